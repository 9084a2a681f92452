"""What needs no login: judged on what the framework really routes, on real servers."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from typing import Any
from wsgiref.util import setup_testing_defaults

import fastapi
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from cm_auth_middleware import CMAuthMiddleware
from tests.helpers.browser import Socket, ws_headers
from tests.helpers.servers import ASGI_SERVERS, WSGI_SERVERS, served
from tests.helpers.world import CM, World

from .raw_requests import Answered, ask, say
from .routed import METHODS, OPTIONS, asgi_app, guarded_asgi, guarded_wsgi, wsgi_app
from .visits import NAME, session_of

pytestmark = pytest.mark.slow

OPEN = ["/health", "/health?x", "/health?/secret", "/public/a", "/public/a/b.css",
        "/public/a?b=../x",
        "/public/%61", "/public/a%20b", "/public/"]  # fmt: skip
TRICKS = [
    "/public/../x", "/public/%2e%2e/x", "/public/%2E%2E/x", "/public/.%2e/x", "/public/..%2fx",
    "/public/%2e%2e%2fx", "/public/..%5cx", "/public/..\\x", "/public/..;/x", "/public/..%3b/x",
    "/public/%252e%252e/x", "/public/..%252fx", "/public/./x", "/public//x", "/public/a//../../x",
    "/public%2fx", "/public%2f..%2fx", "/public%5cx", "/public\\x", "/public/%00/x", "/public/%0a",
    "/public/%09", "/public/x%00", "/public/..", "/public", "/publicx", "/public%20/x", "/Public/x",
    "/PUBLIC/x", "/public./x", "/public;/x", "/public;a=b/x", "//public/x", "///public/x",
    "/x/../public/x", "/./public/x", "/%2e/public/x", "/x;/public/", "/x;/public", "/x?/public/",
    "/x?/../public/x", "/x#/public/", "/x%23/public/", "/x%3f/public/", "/x/public/",
    "/x%2fpublic/a",
    "//x", "/./x", "/", "//", "/x//public/a", "/healthx", "/health/", "/Health", "/HEALTH",
    "/health%20",
    "/health%00", "/health%0a", "/health;", "/health;x", "/health.", "/health..", "/health/.",
    "/health/..", "/health/../x", "/health%2f..%2fx", "/health%2f", "//health", "/./health",
    "/%2fhealth", "/x/../health", "/%68ealth", "/health%3f", "/health%3fx", "/health#", "/health#x",
    "/health%23", "/health\\", "/%5chealth", "\\health", "health", "public/x", "", "*", "?", "#",
    "/health\xe9", "/public/\xe9", "/public/\xc3\xa9", "/public/%ff", "/%ff/../health",
    "/ｐublic/x".encode().decode("latin-1"), "/public/．．/x".encode().decode("latin-1"),
    "/public/%ef%bc%8f..%ef%bc%8fx", "/public/%c0%ae%c0%ae/x", "/public/%u002e%u002e/x",
    "http://localhost/public/a", "http://localhost/x", "http://localhost/health",
    "http://evil/public/../x", "http://localhost/public/%2e%2e/x", "http:///health",
    "http://localhost/x?/public/", "//localhost/public/a", "https://localhost/health",
    "localhost:80",
    "javascript:/health", "/x HTTP/1.1\r\nX: /health", "/health\tx", "/health x",
]  # fmt: skip


@pytest.fixture(scope="module", params=[*ASGI_SERVERS, *WSGI_SERVERS])
def ports(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """One server with the bare application, and one with the middleware before it."""
    name = request.param
    if name in ASGI_SERVERS:
        pair = asgi_app(), guarded_asgi()
    elif name == "gunicorn":
        module = "tests.security.routed"
        pair = f"{module}:bare_application", f"{module}:application"
    else:
        pair = wsgi_app(), guarded_wsgi()
    with ExitStack() as stack:
        bare, guarded = (stack.enter_context(served(name, app)) for app in pair)
        yield bare, guarded


def reached(answer: Answered) -> str:
    return answer.body.decode() if answer.body in (b"open", b"secret") else ""


def test_exempt_paths_are_open(ports: tuple[int, int]) -> None:
    """17: what the routes below /public and /health are asked for is answered without a login."""
    bare, guarded = ports
    for target in OPEN:
        answer = ask(guarded, target)
        assert (answer.status, reached(answer)) == (200, reached(ask(bare, target))), target
        assert reached(answer) == "open", target


def test_a_visitor_reaches_what_is_exempt_and_nothing_else(ports: tuple[int, int]) -> None:
    """17: tricks with the request target: the bare application shows where each would lead."""
    bare, guarded = ports
    for target in TRICKS:
        there, here = reached(ask(bare, target)), ask(guarded, target)
        assert reached(here) in ("", there), target
        assert reached(here) != "secret", target
        assert here.status < 500, target


def test_pieces_put_together_reach_nothing_secret(ports: tuple[int, int]) -> None:
    """17: the same with every pair of pieces that servers and frameworks treat specially."""
    bare, guarded = ports
    pieces = ["/", "//", "/.", "/..", "/%2e%2e", "%2f", "%5c", "\\", ";", "?", "#", "%00", "%"]
    for first, second in product(pieces, repeat=2):
        for target in (f"/public{first}{second}x", f"/x{first}{second}public/a"):
            here = ask(guarded, target)
            assert reached(here) != "secret", target
            if reached(here) == "open":
                assert reached(ask(bare, target)) == "open", target


@pytest.mark.parametrize("method", ["HEAD", *METHODS, "get", "G\xe9T"])
def test_every_method_is_protected_like_get(ports: tuple[int, int], method: str) -> None:
    """18: HEAD, OPTIONS, TRACE, PROPFIND and unknown ones get nothing of the application."""
    answer = ask(ports[1], "/x", "Content-Length: 0", method=method)
    assert answer.status in (0, 302, 400, 401, 405, 501)
    assert reached(answer) == ""


@pytest.mark.parametrize(
    "line",
    [
        *(f"{name}: {method}" for name in ("X-HTTP-Method-Override", "X-Method-Override",
          "X-HTTP-Method") for method in ("GET", "OPTIONS")),
        *(f"{name}: {path}" for name in ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Uri",
          "X-Forwarded-Prefix", "X-Original-URI", "Script-Name", "Script_Name", "Path_Info",
          "X-Forwarded-Path", "Request-Uri") for path in ("/health", "/public/a")),
    ],
)  # fmt: skip
def test_no_header_makes_a_path_exempt(ports: tuple[int, int], line: str) -> None:
    """18: overrides of the method or the URL in headers mean nothing."""
    for method in ("GET", "POST"):
        answer = ask(ports[1], "/x", line, "Content-Length: 0", method=method)
        assert answer.status in (400, 401, 500)  # 500: gunicorn's own, to a wrong Script_Name
        assert reached(answer) == ""


def test_a_cors_preflight_gets_no_data_and_no_session(ports: tuple[int, int]) -> None:
    """18: nor a permission."""
    lines = ("Origin: http://evil", "Access-Control-Request-Method: DELETE")
    for target in ("/x", "/auth/session", "/auth/logout", "/auth/login"):
        answer = ask(ports[1], target, *lines, method="OPTIONS")
        assert answer.status in (401, 405)
        assert "access-control" not in str(answer.headers).lower()
        assert answer.header("set-cookie") == ""
        assert reached(answer) == ""


@pytest.mark.parametrize(
    "lines",
    [
        ("X-Forwarded-User: anna@example.com",), ("X-Auth-Request-User: anna",),
        ("X-Auth-Request-Email: anna@example.com",), ("X_Forwarded_User: anna@example.com",),
        ("Remote-User: anna",), ("Remote_User: anna",), ("X-Remote-User: anna",),
        ("Authorization: Bearer 00000000-0000-0000-0000-000000000000:10003",),
        ("Authorization: Basic YW5uYTpjYW1lcmFz",), ("Proxy-Authorization: Basic YW5uYTpj",),
        ("X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1"), ("Cm_Auth.Session: x",),
        ("X-Forwarded-Access-Token: x",), ("Cookie: session=anna; user=anna; cm_auth=anna",),
    ],
)  # fmt: skip
def test_identity_from_outside_means_nothing(ports: tuple[int, int], lines) -> None:
    """20: whoever says who they are in a header is still a visitor."""
    answer = ask(ports[1], "/x", *lines)
    assert answer.status == 401
    assert reached(answer) == ""
    assert b'"authenticated":false' in ask(ports[1], "/auth/session", *lines).body


def test_a_second_request_in_the_body_of_the_first_is_judged_by_itself(ports) -> None:
    """17: pipelined, or smuggled behind a wrong length: no answer holds a secret."""
    second = b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    for framing in (
        b"Content-Length: 0\r\n",
        b"Content-Length: 0\r\nContent-Length: %d\r\n" % len(second),
        b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
    ):
        first = b"POST /health HTTP/1.1\r\nHost: localhost\r\n" + framing + b"\r\n"
        answer = say(ports[1], first + second)
        assert b"secret" not in answer.body
        assert answer.status < 500 or answer.status == 501


BELOW = {
    "/health": "", "/sub/health": "open", "/sub/public/a": "open", "/sub/x": "", "/subhealth": "",
    "/sub/sub/health": "", "/sub//health": "", "/sub/../health": "", "/sub/%2e%2e/health": "",
    "/sub/public/../x": "", "/sub": "", "/sub/": "", "/sub/public/sub/health": "open",
    "/x/sub/health": "", "/sub/x/sub/health": "",
}  # fmt: skip


@pytest.mark.parametrize("how", ["mounted", "root_path", "root_path/", "dispatched"])
def test_below_a_mount_the_exempt_paths_are_the_applications_own(how: str) -> None:
    """17: root_path and SCRIPT_NAME: what the framework routes there decides."""
    name, options, targets = "h11", {}, BELOW
    if how == "mounted":
        guarded, bare = guarded_asgi("/sub"), Starlette(routes=[Mount("/sub", asgi_app())])
    elif how == "dispatched":
        name = "werkzeug"
        guarded, bare = (
            DispatcherMiddleware(_nothing, {"/sub": app}) for app in (guarded_wsgi(), wsgi_app())
        )
    else:
        # As behind a proxy that takes the mount off: uvicorn puts it back before the path.
        guarded, bare = guarded_asgi(), asgi_app()
        options = {"root_path": how.replace("root_path", "/sub")}
        targets = {
            target.removeprefix("/sub"): expected
            for target, expected in BELOW.items()
            if target.startswith("/sub/")
        }
    with served(name, guarded, **options) as here, served(name, bare, **options) as there:
        for target, expected in targets.items():
            answer = reached(ask(here, target))
            assert answer == expected, target
            if answer == "open":
                assert reached(ask(there, target)) == "open", target


OUTSIDE = [
    # where the application is mounted, what is asked for, and whether that needs a login
    ("/ui", "/ui/health", False),
    ("/ui", "/health", True),
    ("/ui", "/public/a", True),
    ("/ui", "/", True),
    ("/ui", "/ui", True),  # below, but the pattern for it would be "/"
    ("/ui", "//ui/health", True),
    ("/ui", "/ui///health", True),
    ("/ui", "/UI/health", True),
    ("/UI", "/ui/health", True),
    ("/ui", "/uihealth", True),
    ("/ui", "/ui2/health", True),
    ("/ui", "/public/ui/health", True),
    ("/ui", "/public/ui/x", True),
    ("/ui", "/ui/public/ui/x", False),
    ("/ui", "/ui/ui/health", True),
    ("/ui/a", "/ui/health", True),
    ("/ui/a", "/ui/a/health", False),
    ("/caf\xe9", "/caf\xe9/health", False),
    ("/caf\xe9", "/health", True),
    ("/caf%C3%A9", "/health", True),
    ("", "/health", False),
    ("/", "/health", False),
    ("/", "/x/health", True),
]


@pytest.mark.anyio
@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(("root", "path", "needs_login"), OUTSIDE)
async def test_outside_the_mount_nothing_is_exempt(
    root: str, path: str, needs_login: bool, slash: str
) -> None:
    """63: the path as the specification has it, mount included, is not below root_path."""
    if slash and root not in ("", "/") and not needs_login:
        path = f"{root}/{path.removeprefix(root)}"  # as uvicorn puts it, and Starlette routes it
    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(),
        "root_path": root if root == "/" else root and root + slash, "query_string": b"",
        "scheme": "http", "headers": [(b"host", b"localhost")], "http_version": "1.1",
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await guarded_asgi()(scope, receive, send)
    assert (sent[0]["status"] == 401) is needs_login
    assert (sent[0]["status"] == 200) is not needs_login


@pytest.mark.parametrize("told_by", ["REQUEST_URI", "RAW_URI"])
@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(
    ("script", "path", "target", "needs_login"),
    [
        ("/ui", "/health", "/ui/health", False),
        ("/ui", "/health", "/ui/health?x=/y", False),
        ("/ui", "/health", "", False),  # the server does not tell: SCRIPT_NAME is believed
        ("/ui", "/health", "/health", True),
        ("/ui", "/health", "/health?/ui/health", True),
        ("/ui", "/public/a", "/public/a", True),
        ("/ui", "/public/ui/a", "/public/ui/a", True),
        ("/ui", "/health", "//ui/health", True),
        ("/ui", "/health", "/UI/health", True),
        ("/ui", "/health", "/uihealth", True),
        ("/ui", "/health", "/ui2/health", True),
        ("/ui", "/health", "http://localhost/health", True),
        ("/ui", "/health", "http:///ui/health", True),
        ("/ui", "/health", "*", True),
        ("/ui", "/health", "/%75i/health", False),  # a server that decodes first
        ("/caf\xc3\xa9", "/health", "/caf%C3%A9/health", False),
        ("/caf\xc3\xa9", "/health", "/caf\xc3\xa9/health", False),
        ("/caf%C3%A9", "/health", "/caf%C3%A9/health", False),  # one that cuts first
        ("/caf\xc3\xa9", "/health", "/health", True),
        ("", "/health", "/health", False),
        ("/", "/health", "/health", False),
    ],
)
def test_outside_script_name_nothing_is_exempt_where_the_server_tells(
    script: str, path: str, target: str, needs_login: bool, slash: str, told_by: str
) -> None:
    """63: SCRIPT_NAME says "below /ui", and the request target says that it was not."""
    environ: dict[str, Any] = {told_by: target, "HTTP_HOST": "localhost"}
    environ |= {"SCRIPT_NAME": script.rstrip("/") + slash if script else "", "PATH_INFO": path}
    setup_testing_defaults(environ)
    started: list[str] = []
    b"".join(guarded_wsgi()(environ, lambda status, *_: started.append(status)))
    assert started[0][:3] == ("401" if needs_login else "200")


@pytest.mark.parametrize("path", ["/health", "/public/a", "/public/ui/a"])
def test_a_server_that_hands_on_what_is_outside_its_mount_opens_nothing(path: str) -> None:
    """63: waitress does, told where the application is; uvicorn takes the mount for cut off."""
    with served("waitress", guarded_wsgi(), url_prefix="/ui") as port:
        assert ask(port, f"/ui{path}").body == b"open"
        assert ask(port, path).status == 401
        assert ask(port, f"http://localhost{path}").status == 401
        assert ask(port, f"//ui{path}").body != b"open"
    for parser in ASGI_SERVERS:
        with served(parser, guarded_asgi(), root_path="/ui") as port:
            assert ask(port, path).body == b"open"  # as behind a proxy that takes /ui off
            assert ask(port, f"/ui{path}").status == 401


def test_a_framework_that_claims_a_mount_needs_the_server_to_put_it_into_the_path() -> None:
    """63: FastAPI(root_path=…) behind a proxy that takes the mount off; uvicorn is not told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has been deprecated since
        app = fastapi.FastAPI(root_path="/ui")
    app.add_api_route("/health", lambda: PlainTextResponse("open"))
    app.add_middleware(CMAuthMiddleware, **OPTIONS)
    with served("h11", app) as port:
        assert ask(port, "/health").status == 401
        assert ask(port, "/ui/health").body == b"open"
        assert ask(port, "/auth/session").status == 200  # the middleware's own routes are served
    prefixed = ProxyFix(guarded_wsgi(), x_prefix=1)
    with served("werkzeug", prefixed) as port:
        assert ask(port, "/health").body == b"open"
        assert ask(port, "/health", "X-Forwarded-Prefix: /ui").status == 401
        assert ask(port, "/ui/health", "X-Forwarded-Prefix: /ui").status == 401


@pytest.mark.anyio
async def test_a_websocket_outside_the_mount_is_not_exempt(make_world) -> None:
    """63: denied like every other one without a session."""

    async def accepting(scope, receive, send) -> None:
        await send({"type": "websocket.accept"})

    world = make_world(exempt=["/ws"])
    for root, path, expected in (
        ("/ui", "/ui/ws", "websocket.accept"),
        ("/ui", "/ws", "websocket.http.response.start"),
    ):
        one = Socket(world, {"Host": "localhost:8000"})
        one.scope |= {"root_path": root, "path": path}
        world.app.app = accepting
        assert (await one.run())[0]["type"] == expected


def _nothing(environ, start_response):
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b""]


@pytest.fixture
def side(request: pytest.FixtureRequest) -> str:
    return "asgi"


@pytest.mark.anyio
async def test_a_websocket_without_a_session_is_never_accepted(world: World) -> None:
    """19: refused before accept, whatever else it brings along."""
    for headers in (
        {},
        {"Origin": "http://localhost:8000"},
        {"Cookie": f"{NAME}=x"},
        {"Sec-Fetch-Mode": "navigate", "Accept": "text/html"},
        {"Authorization": "Bearer x"},
    ):
        for denial in (True, False):
            sent = await Socket(world, {"Host": "localhost:8000", **headers}, denial=denial).run()
            assert "websocket.accept" not in [message["type"] for message in sent]
            assert sent[0].get("status", 401) == 401
            assert sent[0].get("code", 4401) == 4401


@pytest.mark.anyio
@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:8001", "http://localhost", "http://localhost:8000.evil",
     "http://evil@localhost:9", "file://", "http://[", "chrome-extension://localhost:8000x"],
)  # fmt: skip
async def test_a_websocket_of_another_origin_is_refused_although_the_cookie_came(
    world: World, origin: str
) -> None:
    """19: cross-site WebSocket hijacking; Sec-Fetch-Site does not help the attacker."""
    headers = await ws_headers(world)
    for more in ({}, {"Sec-Fetch-Site": "same-origin"}):
        sent = await Socket(world, {**headers, "Origin": origin, **more}).run()
        assert sent[0]["type"] == "websocket.http.response.start"
        assert sent[0]["status"] == 403
    sent = await Socket(world, {**headers, "Origin": "http://localhost:8000"}).run()
    assert sent[0]["type"] == "websocket.accept"


@pytest.mark.anyio
async def test_a_websocket_from_the_http_twin_of_an_https_site_is_refused(world: World) -> None:
    """19: whoever can alter http://host is not https://host."""
    browser = await world.login()
    headers = {"Host": "localhost:8000", "Cookie": f"__Host-cm_auth={session_of(browser)}"}
    for origin, expected in (
        ("http", "websocket.http.response.start"),
        ("https", "websocket.accept"),
    ):
        one = Socket(world, {**headers, "Origin": f"{origin}://localhost:8000"})
        one.scope["scheme"] = "wss"
        assert (await one.run())[0]["type"] == expected


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("redirect_uri", "scheme", "name"),
    [
        ("https://app.example/auth/callback", "ws", "__Host-cm_auth"),
        ("https://app.example/auth/callback", "wss", "__Host-cm_auth"),
        (None, "wss", "__Host-cm_auth"),
        (None, "ws", "cm_auth"),
    ],
)
async def test_a_websocket_finds_its_session_by_the_name_that_the_site_uses(
    make_world, redirect_uri: str | None, scheme: str, name: str
) -> None:
    """62: wss and ws are https and http; redirect_uri counts there, too."""
    cookie = session_of(await (one := make_world()).login())
    world = make_world(redirect_uri=redirect_uri, store=one.engine.store)
    own = "https://app.example" if redirect_uri else f"http{scheme[2:]}://localhost:8000"
    for sent, expected in (
        (name, "accept"),
        ({"cm_auth": "__Host-cm_auth"}.get(name, "cm_auth"), ""),
    ):
        headers = {"Host": "localhost:8000", "Origin": own, "Cookie": f"{sent}={cookie}"}
        one_socket = Socket(world, headers)
        one_socket.scope["scheme"] = scheme
        [first, *_] = await one_socket.run()
        assert (first["type"] == "websocket.accept") is bool(expected)


@pytest.mark.anyio
async def test_the_http_twin_of_a_site_is_foreign_though_the_proxy_forgot_the_scheme(
    make_world,
) -> None:
    """62: redirect_uri says that the site is https, under whatever other name it is reached."""
    cookie = session_of(await (one := make_world()).login())
    world = make_world(redirect_uri="https://app.example/auth/callback", store=one.engine.store)
    for origin, expected in (
        ("https://app.example", "websocket.accept"),
        ("https://www.app.example", "websocket.accept"),
        ("http://app.example", "websocket.http.response.start"),
        ("http://www.app.example", "websocket.http.response.start"),
    ):
        headers = {"Host": "www.app.example", "Cookie": f"__Host-cm_auth={cookie}"}
        sent = await Socket(world, {**headers, "Origin": origin}).run()
        assert sent[0]["type"] == expected, origin


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/public%2fx", "/public%2Fa/b", "/public/a%2fb", "/a%2fb"])
async def test_a_framework_that_routes_the_raw_path_opens_nothing_else(make_world, path) -> None:
    """17: BlackSheep takes "/public%2fx" for one segment of another route."""

    async def app(scope, receive, send) -> None:
        is_open = scope["raw_path"].startswith((b"/public/", b"/a/"))
        await PlainTextResponse("open" if is_open else "secret")(scope, receive, send)

    world = make_world(app=app, exempt=["/public/*", "/a/b"])
    browser = world.browser()
    assert (await browser.get(path)).status_code == 302
    assert (await browser.get(path.lower().replace("%2f", "/"))).status_code == 200


@pytest.mark.anyio
async def test_an_exempt_websocket_of_another_origin_has_no_session(make_world) -> None:
    """19: open to everybody it may be, but not with the cookie of whoever visits evil.example."""
    seen = []

    async def app(scope, receive, send) -> None:
        seen.append(scope["state"]["cm_session"])
        await send({"type": "websocket.close"})

    world = make_world(exempt=["/ws"])
    headers = await ws_headers(world)
    world.app.app = app
    for origin in ("http://evil.example", "http://localhost:8000"):
        await Socket(world, {**headers, "Origin": origin}).run()
    assert seen[0] is None
    assert seen[1].user["email"] == "anna@example.com"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "kind", ["webtransport", "http2", "HTTP", "", "websocket.http", "lifespan2"]
)
async def test_an_unknown_kind_of_connection_never_reaches_the_app(world: World, kind: str) -> None:
    """21: only lifespan is passed on unseen."""
    reached = []

    async def app(scope, receive, send) -> None:
        reached.append(scope["type"])

    world.app.app = app
    with pytest.raises(RuntimeError, match="unknown ASGI scope"):
        await world.app({"type": kind, "path": "/health", "headers": []}, None, None)
    assert reached == []


@pytest.mark.anyio
async def test_no_request_for_an_exempt_path_asks_camera_manager(make_world) -> None:
    """17: and with CameraManager gone, it is answered all the same."""
    world = make_world(exempt=["/health"])
    del world.net.apps[CM]
    assert (await world.browser().get("/health")).text == "nobody"


def test_a_server_in_a_thread_is_gone_after_its_test() -> None:
    """The helper that these tests stand on frees its port."""
    for name in (*ASGI_SERVERS, "werkzeug", "waitress"):
        with served(name, asgi_app() if name in ASGI_SERVERS else wsgi_app()) as port:
            assert ask(port, "/health").body == b"open"
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
            pass
