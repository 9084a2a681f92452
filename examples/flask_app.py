"""Cameras with live pictures, in Flask; its options come from the environment.

export CM_AUTH_CLIENT_ID=… CM_AUTH_CLIENT_SECRET=… CM_AUTH_SECRET_KEY=…
flask --app examples/flask_app.py run
"""

from flask import Flask, Response, render_template_string

from cm_auth_middleware.flask import CMAuth, cm, cm_session

app = Flask(__name__)
CMAuth(app, exempt=["/health"])

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Cameras</title>
<h1>Cameras of {{ user.firstName }}</h1>
<form method="post" action="{{ url_for('cameras') }}auth/logout"><button>Log out</button></form>
{% for camera in cameras %}
<figure>
  <img src="{{ url_for('snapshot', camera_id=camera.cameraId) }}" alt="" width="320" height="180">
  <figcaption>{{ camera.name }}</figcaption>
</figure>
{% endfor %}
</html>"""


@app.get("/")
def cameras():
    listing = cm.get("/rest/v2.4/cameras").raise_for_status().json()
    return render_template_string(PAGE, user=cm_session.user, cameras=listing)


@app.get("/cameras/<int:camera_id>/snapshot")
def snapshot(camera_id):
    """Stream a picture to the browser, which never sees a token."""
    path = f"/rest/v2.4/cameras/{camera_id}/snapshot?resolution=320x180"
    request = cm.build_request("GET", path, headers={"Accept": "image/jpeg"})
    picture = cm.send(request, stream=True)
    response = Response(
        picture.iter_bytes(), picture.status_code, content_type=picture.headers["Content-Type"]
    )
    response.call_on_close(picture.close)
    return response


@app.get("/health")
def health():
    return {"status": "ok"}
