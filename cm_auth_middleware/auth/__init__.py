"""May this request pass, and how does a user log in?

`gate` decides about each request. `login` sends a browser to CameraManager, opens a session when it
comes back, and ends it at the logout. The browser holds the session cookie, and another one while
a login is pending; the server stores nothing for a visitor. `allow` decides if a user may come in,
and `revalidation` asks it again later. `connections` ends streams and WebSockets after a logout.
"""
