"""Browsers: `Browser` is in the process of the app, `Visitor` comes over real sockets.

`cm_auth_middleware.testing` has one for the tests of users, which is what tests/testing is about.
A crowd that asks at once is in tests/chaos, a real Chromium in tests/browser.
"""

from __future__ import annotations

import html
import itertools
import re
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import httpx2

from cm_auth_middleware.testing import Simulator

if TYPE_CHECKING:
    from tests.helpers.world import World

ANNA, BOB = "anna@example.com", "bob@example.com"
PASSWORD = "cameras"
CAMERAS = {
    ANNA: ["Front gate", "Parking lot", "Warehouse", "Loading dock"],
    BOB: ["Shop floor", "Back door"],
}

_NAVIGATE = {
    "Accept": "text/html,application/xhtml+xml",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Dest": "document",
}
_FETCH = {"Accept": "application/json", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
_HIDDEN = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)"')


class Browser(httpx2.AsyncClient):
    """A browser in this process: it keeps cookies, follows redirects when asked, and can log in."""

    def __init__(self, world: World, site: str, headers: dict[str, str]) -> None:
        super().__init__(transport=world.net, base_url=site, headers=headers)
        self.world = world

    async def login(self, path: str = "/", email: str = "anna@example.com") -> httpx2.Response:
        """Ask for a page, walk through CameraManager's forms, and come back."""
        response = await self.get(path)
        assert response.status_code == 302, response.text
        return await self.finish(response.headers["location"], email)

    async def finish(self, authorize_url: str, email: str = "anna@example.com") -> httpx2.Response:
        return await self.get(self.callback_url(authorize_url, email), follow_redirects=True)

    def callback_url(self, authorize_url: str, email: str = "anna@example.com") -> str:
        """Where CameraManager would send the browser, consent given."""
        query = {k: v[0] for k, v in parse_qs(urlsplit(authorize_url).query).items()}
        code = self.world.sim.issue_code(
            email, query["redirect_uri"], query["code_challenge"], scope=query["scope"]
        )
        return f"{query['redirect_uri']}?code={code}&state={query['state']}"

    def named(self, name: str) -> list[str]:
        return [cookie.value or "" for cookie in self.cookies.jar if cookie.name == name]


class Socket:
    """One WebSocket connection to an ASGI app, message by message."""

    def __init__(self, world: World, headers: dict[str, str], *, denial: bool = True) -> None:
        self.app = world.app
        self.sent: list[dict] = []
        self.scope = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "scheme": "ws",
            "path": "/ws",
            "root_path": "",
            "query_string": b"",
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
            "extensions": {"websocket.http.response": {}} if denial else {},
            "state": {},
        }

    async def run(self) -> list[dict]:
        async def receive():
            return {"type": "websocket.connect"}

        async def send(message) -> None:
            self.sent.append(message)

        await self.app(self.scope, receive, send)
        return self.sent


async def ws_headers(world: World) -> dict[str, str]:
    """The headers of a WebSocket of somebody who is logged in."""
    browser = await world.login()
    return {"Host": "localhost:8000", "Cookie": f"cm_auth={browser.named('cm_auth')[0]}"}


class _Trip(NamedTuple):
    method: str
    status: int
    address: Any  # of the visitor's end of the connection


class Visitor:
    """A browser on real sockets, with the headers that browsers send, at one site.

    Args:
        origin: scheme, host and port of the site.
        transport: how its requests travel; a connection pool of its own by default.
    """

    def __init__(self, origin: str, transport: httpx2.BaseTransport | None = None) -> None:
        self.origin = origin
        self.cookies_set: list[str] = []
        self._trips: list[_Trip] = []
        self._transport = transport or httpx2.HTTPTransport()
        self._client = httpx2.Client(transport=self._transport, timeout=30)

    def companion(self) -> Visitor:
        """Somebody else, whose requests share this visitor's connections."""
        other = Visitor(self.origin, self._transport)
        other._trips = self._trips
        return other

    @property
    def requests(self) -> int:
        """How many requests to the site there were, a companion's included."""
        return len(self._trips)

    @property
    def reconnections(self) -> set[tuple[str, int]]:
        """After which methods and statuses the next request needed a new connection."""
        pairs = itertools.pairwise(self._trips)
        return {(one.method, one.status) for one, two in pairs if one.address != two.address}

    def navigate(self, url: str, **headers: str) -> httpx2.Response:
        """Open an address, as typing it or clicking a link does; redirects are not followed."""
        return self._send("GET", url, {**_NAVIGATE, **headers})

    def fetch(self, url: str, method: str = "GET", **options: Any) -> httpx2.Response:
        """Call the site from a script of its own."""
        headers = {**_FETCH, "Sec-Fetch-Site": "same-origin", **options.pop("headers", {})}
        return self._send(method, url, headers, **options)

    def submit(self, url: str, site: str = "same-origin", **options: Any) -> httpx2.Response:
        """Send a form (a navigation by POST) from a page of the given site."""
        origin = self.origin if site == "same-origin" else "https://elsewhere.example"
        headers = {**_NAVIGATE, "Sec-Fetch-Site": site, "Origin": origin}
        return self._send("POST", url, headers, **options)

    def log_in(self, authorize_url: str, email: str = ANNA) -> httpx2.Response:
        """Fill in CameraManager's forms; return the first answer of the site's after it."""
        page = self._follow(self.navigate(authorize_url))
        for answers in ({"email": email, "password": PASSWORD}, {"decision": "allow"}):
            if page.url.path not in ("/oauth/authorize", "/oauth2/authorize"):
                break  # CameraManager remembers a consent
            fields = {name: html.unescape(value) for name, value in _HIDDEN.findall(page.text)}
            page = self._follow(self.submit(str(page.url), data={**fields, **answers}))
        return page

    def enter(self, path: str = "/", email: str = ANNA) -> httpx2.Response:
        """Ask for a page without a session, log in, and come back to it."""
        refused = self.navigate(path)
        assert refused.status_code == 302, f"{refused.status_code} {refused.text[:500]}"
        return self._follow(self.log_in(refused.headers["location"], email))

    @property
    def session_cookie(self) -> str:
        """The value of the session cookie."""
        return self._client.cookies["cm_auth"]

    @property
    def cookie_header(self) -> str:
        """The site's cookies as the browser would send them now."""
        request = self._client.build_request("GET", self.origin + "/")
        return request.headers.get("Cookie", "")

    def take_cookies(self, response: httpx2.Response) -> None:
        """Keep the cookies of a response that another of its connections got meanwhile."""
        self._client.cookies.extract_cookies(response)

    def close(self) -> None:
        """Close the browser."""
        self._client.close()

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _follow(self, response: httpx2.Response) -> httpx2.Response:
        """Follow redirects, one navigation each."""
        for _ in range(10):
            if response.status_code not in (302, 303, 307):
                return response
            response = self.navigate(str(response.url.join(response.headers["location"])))
        raise AssertionError(f"redirects in a circle, last to {response.url}")

    def _was_refused(self) -> bool:
        last = self._trips[-1] if self._trips else None
        return last is not None and last.method == "POST" and last.status in (401, 403)

    def _send(
        self, method: str, url: str, headers: dict[str, str], **options: Any
    ) -> httpx2.Response:
        url = self.origin + url if url.startswith("/") else url
        request = self._client.build_request(method, url, headers=headers, **options)
        is_repeated = False
        try:
            response = self._client.send(request, stream=True)
        except httpx2.RemoteProtocolError:
            # A server may close an idle connection just as a request goes out on it, and browsers
            # then repeat what is safe to repeat (RFC 9110 §9.2.2).
            # So are forms behind one that was refused: its body may be unread, and the connection
            # then ends some time after the answer.
            if method not in ("GET", "HEAD") and not self._was_refused():
                raise
            is_repeated = True
            response = self._client.send(request, stream=True)
        if url.startswith(self.origin):
            stream = response.extensions.get("network_stream")
            address = stream and stream.get_extra_info("client_addr")
            if is_repeated and self._trips:  # the server was idle, not offended
                self._trips[-1] = self._trips[-1]._replace(address=address)
            self._trips.append(_Trip(method, response.status_code, address))
            self.cookies_set += response.headers.get_list("set-cookie")
        response.read()
        return response


class NamedHost(httpx2.HTTPTransport):
    """Reaches a host name at 127.0.0.1, without a resolver that knows it.

    Args:
        name: the host name.
        verify: trusts the site's certificate authority.
    """

    def __init__(self, name: str, verify: ssl.SSLContext) -> None:
        super().__init__(verify=verify)
        self._name = name

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.host != self._name:
            return super().handle_request(request)
        travelling = httpx2.Request(
            request.method,
            request.url.copy_with(host="127.0.0.1"),
            headers=request.headers,  # Host stays as it was
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": self._name},
        )
        return super().handle_request(travelling)


def log_in(client: httpx2.Client, simulator: Simulator, email: str = ANNA) -> None:
    """Log a client in without the forms: the simulator gives out the code at once."""
    start = client.get("/auth/login", headers={"Accept": "text/html"})
    query = httpx2.URL(start.headers["location"]).params
    code = simulator.issue_code(email, query["redirect_uri"], query["code_challenge"])
    client.get(query["redirect_uri"], params={"code": code, "state": query["state"]})
    assert client.get("/auth/session").json()["authenticated"]
