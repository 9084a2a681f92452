"""Two users as two streams of one HTTP/2 connection, as behind a proxy: each is themselves."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.helpers.browser import ANNA, BOB, Visitor
from tests.helpers.certificates import self_signed
from tests.helpers.servers import free_port

from .multiplexed import Multiplexed
from .releases import install
from .server_processes import (
    APPS,
    ASGI,
    ROOT,
    WSGI,
    Simulated,
    Site,
    environment,
    needs,
    needs_server,
    running,
)

with contextlib.suppress(ModuleNotFoundError):  # the quick run collects this without its extra
    from websockets.sync.client import connect

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(150)]

ROUNDS = 6
OLD = "0.17.3"  # hypercorn: one state for all streams of a connection, up to 0.18

_GRANIAN = ["--ssl-certificate", "{certificate}", "--ssl-keyfile", "{key}"]
_OTHERS = ["--certfile", "{certificate}", "--keyfile", "{key}"]
_H2C = ["--http-protocols", "h2,h1", "--http2-cleartext", "both"]
_ALPN = ["--http-protocols", "h2,h1", *_OTHERS]
# the cell, the server, its arguments, the app
CELLS: dict[str, tuple[list[str], list[str], str]] = {
    "hypercorn h2c": (ASGI["hypercorn"], [], "asgi"),
    "hypercorn tls": (ASGI["hypercorn"], _OTHERS, "asgi"),
    "hypercorn-trio h2c": (ASGI["hypercorn-trio"], [], "asgi"),
    "hypercorn-trio tls": (ASGI["hypercorn-trio"], _OTHERS, "asgi"),
    f"hypercorn-{OLD} h2c": (ASGI["hypercorn"], [], "asgi"),
    f"hypercorn-trio-{OLD} h2c": (ASGI["hypercorn-trio"], [], "asgi"),
    "granian h2c": (ASGI["granian"], [], "asgi"),
    "granian tls": (ASGI["granian"], _GRANIAN, "asgi"),
    "gunicorn-asgi h2c": (ASGI["gunicorn-asgi"], _H2C, "asgi"),
    "gunicorn-asgi tls": (ASGI["gunicorn-asgi"], _ALPN, "asgi"),
    "granian-wsgi h2c": (WSGI["granian"], ["--blocking-threads", "8"], "wsgi"),
    "granian-wsgi tls": (WSGI["granian"], ["--blocking-threads", "8", *_GRANIAN], "wsgi"),
    "gunicorn-gthread h2c": (WSGI["gunicorn-gthread"], _H2C, "wsgi"),
    "gunicorn-gthread tls": (WSGI["gunicorn-gthread"], _ALPN, "wsgi"),
    "hypercorn-wsgi h2c": (ASGI["hypercorn"], [], "wsgi"),
}
# RFC 8441. Granian and gunicorn have WebSockets over HTTP/1.1 only.
WEBSOCKETS = [cell for cell in CELLS if cell.startswith("hypercorn") and "wsgi" not in cell]
BESIDE = ["uvicorn", "granian", "gunicorn-asgi"]


@pytest.fixture(scope="session")
def old_hypercorn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the last hypercorn that shares its state, and nothing else."""
    target = tmp_path_factory.mktemp("hypercorn")
    return install("hypercorn", OLD, target, timeout=120)


@contextlib.contextmanager
def served(
    cell: str, simulator: Simulated, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Site, ssl.SSLContext | None]]:
    """Run a cell's server with the app of two users; with TLS, also who trusts its certificate."""
    server, _, security = cell.partition(" ")
    needs("h2", "wsproto", server.partition("-")[0], *(["trio"] if "trio" in server else []))
    base, arguments, kind = CELLS.get(cell) or (ASGI[server], [], "asgi")
    variables = environment(simulator, CM_AUTH_EXEMPT="/health,/open")
    if server.endswith(OLD):
        old = request.getfixturevalue("old_hypercorn")
        variables["PYTHONPATH"] = f"{old}{os.pathsep}{ROOT}"
        base = [sys.executable, "-c", _RUN_HYPERCORN, *base[1:]]
    tls, paths = None, {"certificate": "", "key": ""}
    if security == "tls":
        paths["certificate"], paths["key"] = self_signed(tmp_path)
        tls = ssl.create_default_context(cafile=paths["certificate"])
    port = free_port()
    prefix = "wsgi:" if server == "hypercorn-wsgi" else ""
    app = f"{prefix}{APPS}two_users_{kind}:app"
    command = [
        part if part == _RUN_HYPERCORN else part.format(port=port, app=app, **paths)
        for part in [*base[:-1], *arguments, "{app}"]
    ]
    origin = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    site = Site(origin, "", server, tmp_path / "log")

    def is_ready(_: httpx2.Client) -> bool:
        return httpx2.get(f"{origin}/health", verify=tls or True).status_code == 200

    with running(command, site.log, variables, is_ready, ROOT):
        yield site, tls
    text = site.log.read_text(errors="replace")
    assert "Traceback" not in text, text[-8000:]


_RUN_HYPERCORN = f"""
import sys
from importlib.metadata import version
from hypercorn.__main__ import main
assert version("hypercorn") == {OLD!r}
sys.argv[0] = "hypercorn"
sys.exit(main())
"""


def cookies(site: Site, tls: ssl.SSLContext | None) -> dict[str | None, str]:
    """What the browsers of two users send once they are logged in, and that of a stranger."""
    found: dict[str | None, str] = {None: ""}
    for email in (ANNA, BOB):
        transport = httpx2.HTTPTransport(verify=tls or True)
        with Visitor(site.origin, transport) as visitor:
            assert visitor.enter("/who", email).json()["user"] == email
            found[email] = visitor.cookie_header
    return found


def is_own(told: dict[str, Any], user: str | None) -> bool:
    """True if a request was its user's from its begin to its end, and saw the lifespan's state."""
    return (told["user"], told["before"], told["kept"]) == (user, user, True) and (
        told["started"] == "by the lifespan"
    )


@pytest.mark.parametrize("cell", CELLS)
def test_two_users_on_one_http2_connection_are_two_users(
    cell: str, simulator: Simulated, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """R1: whatever state the server hands to all requests of a connection."""
    kind = CELLS[cell][2]
    with served(cell, simulator, tmp_path, request) as (site, tls):
        cookie_of = cookies(site, tls)
        users = [ANNA, BOB, None, BOB, ANNA, None]
        numbers = []
        with Multiplexed(site.origin, tls) as connection:
            for _ in range(ROUNDS):
                streams = [
                    connection.ask("/who" if user else "/open", cookie_of[user]) for user in users
                ]
                for user, stream in zip(users, streams, strict=True):
                    answer = connection.answer(stream)
                    assert answer.status == 200, answer
                    told = answer.json()
                    assert is_own(told, user), (user, told)
                    assert told["version"] == "2"
                    assert told["port"] == connection.port or (
                        kind == "wsgi" and told["port"] is None
                    )
                    numbers.append(told["number"])
            refused = connection.answer(connection.ask("/who"))
            assert refused.status == 401
            assert len(set(numbers)) == len(numbers)  # the lifespan's own counter, not copies of it
            if kind == "asgi":
                outside = connection.answer(connection.ask("/outside"))
                assert outside.json() == ["numbers", "started"]


@pytest.mark.parametrize("cell", ["hypercorn tls", "hypercorn-trio h2c", "granian-wsgi tls"])
def test_forty_tabs_on_one_http2_connection_each_arrive(
    cell: str, simulator: Simulated, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """58: a browser sends the requests of all its tabs before the first answer has come."""
    paths = [f"/who?tab={n}&q={secrets.token_urlsafe(2_000)}" for n in range(40)]
    with (
        served(cell, simulator, tmp_path, request) as (site, tls),
        Visitor(site.origin, httpx2.HTTPTransport(verify=tls or True)) as visitor,
    ):
        with Multiplexed(site.origin, tls) as connection:
            streams = [connection.ask(path, accept="text/html") for path in paths]
            answers = [connection.answer(stream) for stream in streams]
        for answer in answers:
            assert answer.status == 302, answer
            assert sum(len(name) + len(value) + 4 for name, value in answer.headers) < 4_096
            asked = httpx2.Request("GET", site.origin)
            headers = [pair for pair in answer.headers if not pair[0].startswith(":")]
            visitor.take_cookies(httpx2.Response(302, headers=headers, request=asked))
        assert len(visitor.cookie_header) < 6_000
        for answer, path in zip(reversed(answers), reversed(paths), strict=True):
            page = visitor.log_in(dict(answer.headers)["location"])
            assert page.status_code == 200, page.text
            assert str(page.url) == f"{site.origin}{path}"
        assert simulator.count("POST", "/oauth/token", "authorization_code") == 40


@pytest.mark.parametrize("cell", WEBSOCKETS)
def test_a_websocket_and_a_request_on_one_http2_connection_are_two_users(
    cell: str, simulator: Simulated, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with served(cell, simulator, tmp_path, request) as (site, tls):
        cookie_of = cookies(site, tls)
        with Multiplexed(site.origin, tls) as connection:
            sockets = {user: connection.open_websocket("/ws", cookie_of[user])
                       for user in (ANNA, BOB)}  # fmt: skip
            for _ in range(ROUNDS):
                for user, other in ((ANNA, BOB), (BOB, ANNA)):
                    connection.say(sockets[user], "who?")
                    streams = {other: connection.ask("/who", cookie_of[other]),
                               None: connection.ask("/open")}  # fmt: skip
                    told = json.loads(connection.hear(sockets[user]))
                    assert is_own(told, user), (user, told)
                    assert (told["version"], told["port"]) == ("2", connection.port)
                    for asker, stream in streams.items():
                        told = connection.answer(stream).json()
                        assert is_own(told, asker), (asker, told)
                        assert told["port"] == connection.port
            outside = connection.answer(connection.ask("/outside"))
            assert outside.json() == ["numbers", "started"]


@pytest.mark.parametrize("server", BESIDE)
def test_a_websocket_beside_requests_is_its_own_user(
    server: str, simulator: Simulated, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Where there is no WebSocket over HTTP/2."""
    needs_server(server)
    with served(server, simulator, tmp_path, request) as (site, tls):
        cookie_of = cookies(site, tls)
        there = {"address": ("127.0.0.1", site.port), "origin": site.origin, "proxy": None}
        header = {"Cookie": cookie_of[ANNA]}
        with (
            connect(f"ws{site.origin[4:]}/ws", additional_headers=header, **there) as socket,
            httpx2.Client(headers={"Cookie": cookie_of[BOB]}) as bob,
        ):
            for _ in range(ROUNDS):
                socket.send("who?")
                assert is_own(bob.get(f"{site.origin}/who").json(), BOB)
                told = json.loads(socket.recv(20))
                assert is_own(told, ANNA), told
        assert httpx2.get(f"{site.origin}/outside").json() == ["numbers", "started"]
