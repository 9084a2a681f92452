"""Long-lived connections end with their session on every server, however their handlers work."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cm_auth_middleware import AuthEngine
from tests.helpers.browser import ANNA, BOB, Visitor
from tests.helpers.servers import free_port
from tests.helpers.world import SECRET_KEY

from .lasting import Lasting
from .server_processes import (
    APPS,
    ASGI,
    ROOT,
    WSGI,
    Simulated,
    Site,
    environment,
    needs,
    running,
    serve,
)

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(150)]

Expected = Mapping[str, Set[Any]]  # by kind; None stands for nothing

LOOK_EVERY = 2.0  # seconds; in production, such that everything here happens within a minute
WAIT = 30.0  # seconds until a test gives up

STREAMS = ["tick", "silent", "download", "poll", "relay"]
SOCKETS = ["ws-send", "ws-receive", "ws-wait", "ws-neither"]
TALKING = ["tick", "download", "relay", "ws-send"]  # a part each half second

ASGI_CELLS = {
    "uvicorn": [*ASGI["uvicorn"], "--timeout-graceful-shutdown", "5"],
    "uvicorn-h11-wsproto": [*ASGI["uvicorn"], "--loop", "asyncio", "--http", "h11",
                            "--ws", "wsproto", "--timeout-graceful-shutdown", "5"],
    "hypercorn": [*ASGI["hypercorn"], "--graceful-timeout", "5"],
    "hypercorn-trio": [*ASGI["hypercorn-trio"], "--graceful-timeout", "5"],
    "granian": ASGI["granian"],
    "gunicorn-asgi": [*ASGI["gunicorn-asgi"], "--graceful-timeout", "5"],
}  # fmt: skip
WSGI_CELLS = {
    "gunicorn-gthread": [*WSGI["gunicorn-gthread"], "--threads", "32", "--graceful-timeout", "5"],
    "gunicorn-gevent": [*WSGI["gunicorn-gevent"], "--graceful-timeout", "5"],
    "waitress": [*WSGI["waitress"][:-1], "--threads=32", WSGI["waitress"][-1]],
    "granian-wsgi": [*WSGI["granian"], "--blocking-threads", "32"],
    "werkzeug": [sys.executable, "-m", "flask", "--app", "{app}", "run", "--port", "{port}"],
}
# They drop in silence what is sent over a WebSocket whose client left, as without the middleware.
SWALLOWS = frozenset({"hypercorn", "hypercorn-trio", "granian"})
# simple-websocket takes the socket over, which these servers hand out.
WITH_SOCKETS = frozenset({"gunicorn-gthread", "gunicorn-gevent", "werkzeug"})


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulated]:
    """CameraManager with a recording that never ends."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [part.format(port=url.rpartition(":")[2], app=f"{APPS}endless:app")
               for part in ASGI["uvicorn"]]  # fmt: skip
    log = tmp_path_factory.mktemp("endless") / "log"

    def is_ready(client: httpx2.Client) -> bool:
        return client.get(f"{url}/running").status_code == 200

    with running(command, log, environment(Simulated(url)), is_ready, ROOT):
        yield Simulated(url)


class Cell:
    """A server with the app of long-lived handlers, and the connections of its users."""

    def __init__(self, site: Site, simulator: Simulated, store: str, folder: Path) -> None:
        self.site, self._simulator, self._store = site, simulator, store
        self._record, self.release = folder / "record", folder / "release"
        self.open: dict[tuple[str, str], Lasting] = {}
        self.visitors: dict[str, Visitor] = {}

    def begin(self, user: str, kinds: list[str]) -> None:
        """Log a user in and open a connection of each kind."""
        self.visitors[user] = visitor = Visitor(self.site.origin)
        assert visitor.enter("/", user).text == user
        for kind in kinds:
            self.open[user, kind] = Lasting(self.site, kind, visitor.cookie_header)
        until(lambda: set(self.told(user)) >= set(kinds), lambda: f"began: {self.told(user)}")
        self.expect_parts(user)

    def told(self, user: str) -> dict[str, list[str]]:
        """What the handlers of a user noted of their ends, by kind; nothing if they go on."""
        httpx2.get(f"{self.site.origin}/health")  # collects garbage
        found: dict[str, list[str]] = {}
        text = self._record.read_text() if self._record.exists() else ""
        for who, kind, event in map(json.loads, text.splitlines()):
            if who == user:
                found.setdefault(kind, []).extend([] if event == "began" else [event])
        return found

    def expect_parts(self, user: str) -> None:
        """Wait until what talks has said more than it had."""
        talking = [c for (who, kind), c in self.open.items() if who == user and kind in TALKING]
        before = [connection.parts for connection in talking]
        until(
            lambda: all(
                connection.parts >= seen + 2
                for connection, seen in zip(talking, before, strict=True)
            ),
            lambda: str([(c.kind, c.parts, c.how) for c in talking]),
        )

    def expect_open(self, user: str) -> None:
        """Assert that no connection of a user has ended, for several looks."""
        time.sleep(3 * LOOK_EVERY)  # what must not happen in it is seen in no other way
        self.expect_parts(user)
        ended = {kind: connection.how for (who, kind), connection in self.open.items()
                 if who == user and connection.over.is_set()}  # fmt: skip
        assert ended == {}
        assert not any(self.told(user).values()), self.told(user)

    def log_out(self, user: str, how: str) -> None:
        """End the session of a user elsewhere.

        Args:
            how: "browser": the user does, on another connection; "engine": another process does;
                "command": an operator does.
        """
        visitor = self.visitors[user]
        user_id = visitor.fetch("/auth/session").json()["user"]["userId"]
        if how == "browser":
            assert visitor.submit("/auth/logout").status_code == 303
        elif how == "command":
            arguments = ["sessions", "revoke", "--store", self._store, "--user", str(user_id)]
            command = [sys.executable, "-m", "cm_auth_middleware.cli", *arguments]
            variables = environment(self._simulator)
            done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, check=True)
            assert done.stdout.strip() == b"1"
        else:
            engine = AuthEngine(
                client_id="demo-key-id", client_secret="demo-key-secret", secret_key=SECRET_KEY,
                base_url=self._simulator.url, store=self._store,
            )  # fmt: skip
            try:
                assert engine.logout_user(user_id) == 1
            finally:
                engine.close()

    def surprises(self, user: str, seen: Expected, told: Expected) -> dict[str, Any]:
        """What the client saw and the handler was told, where it is not as expected."""
        noted = self.told(user)
        found = {}
        for (who, kind), connection in self.open.items():
            if who == user:
                how, words = connection.how, noted[kind] or [None]
                if how not in seen[kind] or len(words) != 1 or words[0] not in told[kind]:
                    found[kind] = (how, words)
        return found

    @property
    def relays(self) -> int:
        """How many recordings CameraManager is sending."""
        return int(httpx2.get(f"{self._simulator.url}/running").text)


def until(is_so: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT
    while not is_so():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


# What the client sees: nothing that looks whole, but for events, which are parts in themselves.
SEEN: Expected = {
    "tick": {"cut", "whole"},
    "silent": {"cut", "whole"},
    "download": {"cut"},
    "poll": {401},  # its handler goes on, and nothing that it says in the end is sent
    "listen": {"cut", 401},
    "relay": {"cut"},
    **{kind: {4401} for kind in SOCKETS},
}
# What a handler is told: as its framework tells of a client that left. No server interrupts a
# handler that does nothing with its connection, except gunicorn's ASGI worker.
CANCELLED = {"CancelledError", "Cancelled"}  # asyncio's and trio's
CLOSED = {*CANCELLED, "GeneratorExit"}
TOLD: Expected = {
    "tick": CLOSED,
    "silent": CLOSED,
    "download": CLOSED,
    "poll": {*CANCELLED, None},
    "listen": {*CANCELLED, "returned"},
    "relay": {*CANCELLED, "ClientDisconnect", "_GoneError", "returned"},  # by ASGI: an OSError
    "ws-send": {"WebSocketDisconnect"},
    "ws-receive": {"WebSocketDisconnect"},
    "ws-wait": {"WebSocketDisconnect"},
    "ws-neither": {*CANCELLED, None},
}

# On WSGI a connection is ended by its socket, which has no close code, or at its next part.
# A thread answers when its handler does.
WSGI_SEEN: Expected = {**SEEN, "poll": {None}, **{kind: {"cut", 4401} for kind in SOCKETS}}
# Waitress and Granian give no socket to their applications: what never comes to its next part
# cannot be reached, and a body without a length can only be ended, not broken off.
WSGI_SEEN_WITHOUT: Expected = {**WSGI_SEEN, "silent": {None}, "relay": {"cut", "whole"}}
# A thread that waits for something of its own cannot be interrupted.
WSGI_TOLD: Expected = {
    "tick": {"GeneratorExit"},
    "silent": {None},
    "download": {"GeneratorExit"},
    "poll": {None},
    "relay": {"closed"},
    "ws-send": {"ConnectionClosed"},
    "ws-receive": {"ConnectionClosed"},
    "ws-wait": {"ConnectionClosed"},
    "ws-neither": {None},
}


@pytest.fixture
def cell(request: pytest.FixtureRequest, endless: Simulated, tmp_path: Path) -> Iterator[Cell]:
    """The server that the test names, with its application."""
    server, command, module = request.param
    needs(server.partition("-")[0], "websockets", "wsproto")
    if "trio" in server or "gevent" in server:
        needs(server.rpartition("-")[2])
    if module == "lasting_wsgi":
        needs("flask_sock")
    store = f"sqlite:///{tmp_path / 'sessions.db'}"
    variables = environment(
        endless, CM_AUTH_STORE=store, MATRIX_RECORD=str(tmp_path / "record"),
        MATRIX_RELEASE=str(tmp_path / "release"),
        MATRIX_LOOK_EVERY=str(LOOK_EVERY),
    )  # fmt: skip
    with serve(server, command, tmp_path / "log", variables, app=f"{APPS}{module}:app") as site:
        made = Cell(site, endless, store, tmp_path)
        try:
            yield made
        finally:
            for connection in made.open.values():
                connection.leave()
            made.release.touch()
            for visitor in made.visitors.values():
                visitor.close()
            until(lambda: made.relays == 0, lambda: f"{made.relays} recordings")


def cells(table: dict[str, list[str]], module: str) -> Any:
    params = [(server, command, module) for server, command in table.items()]
    return pytest.mark.parametrize("cell", params, ids=list(table), indirect=True)


@cells(ASGI_CELLS, "lasting_asgi")
def test_long_lived_connections_end_with_their_session(cell: Cell) -> None:
    server = cell.site.server
    how = {"uvicorn": "browser", "hypercorn": "command"}.get(server, "engine")
    kinds = [*STREAMS, "listen", *SOCKETS]
    seen = SEEN
    if server == "granian":  # which closes by itself as soon as a handler returns
        seen = {**SEEN, **{kind: {4401, 1005, "cut"} for kind in SOCKETS}}
    lead_two_lives(cell, kinds, how, seen, TOLD)
    # Some servers tell those that do nothing, too.
    deaf = {"poll", "silent", "ws-neither"}
    if server in SWALLOWS:
        deaf.add("ws-send")
    expect_to_notice(cell, [kind for kind in kinds if kind not in deaf])
    expect_nothing_late(cell)


@cells(WSGI_CELLS, "lasting_wsgi")
def test_long_lived_connections_end_with_their_session_on_wsgi(cell: Cell) -> None:
    how = {"waitress": "browser", "werkzeug": "command"}.get(cell.site.server, "engine")
    if cell.site.server in WITH_SOCKETS:
        lead_two_lives(cell, STREAMS + SOCKETS, how, WSGI_SEEN, WSGI_TOLD)
        expect_to_notice(cell, ["tick", "download", "relay", "ws-send", "ws-receive", "ws-wait"])
    else:
        lead_two_lives(cell, STREAMS, how, WSGI_SEEN_WITHOUT, WSGI_TOLD)
        expect_to_notice(cell, ["tick", "download", "relay"])
    expect_nothing_late(cell)


def lead_two_lives(cell: Cell, kinds: list[str], how: str, seen: Expected, told: Expected) -> None:
    """Log one of two users out: that one's connections end, the other's go on."""
    for user in (ANNA, BOB):
        cell.begin(user, kinds)
    for user in (ANNA, BOB):
        cell.expect_open(user)
    assert cell.relays == 2
    cell.log_out(ANNA, how)
    until(
        lambda: cell.relays == 1 and not cell.surprises(ANNA, seen, told),
        lambda: f"{cell.relays - 1} relays, {cell.surprises(ANNA, seen, told)}",
    )
    cell.expect_open(BOB)
    # What could not be reached has not said anything either, since.
    assert cell.surprises(ANNA, seen, told) == {}


def expect_nothing_late(cell: Cell) -> None:
    """Let the handlers that could not be interrupted end: nothing of theirs gets out."""
    cell.release.touch()
    poll = cell.open[ANNA, "poll"]
    until(poll.over.is_set, lambda: "the long poll is not answered")
    assert poll.how == 401


def expect_to_notice(cell: Cell, kinds: list[str]) -> None:
    """Let the other user's client hang up: their handlers end as without the middleware."""
    for (user, _), connection in cell.open.items():
        if user == BOB:
            connection.leave()
    until(
        lambda: cell.relays == 0 and all(cell.told(BOB)[kind] for kind in kinds),
        lambda: f"{cell.relays} relays, {cell.told(BOB)}",
    )


@cells(
    {"uvicorn": ASGI_CELLS["uvicorn"]},
    "lasting_asgi",
)
def test_a_recording_that_the_end_of_its_session_cuts_off_does_not_look_whole(cell: Cell) -> None:
    cut_off(cell, "relay")


@cells({"gunicorn-gthread": WSGI_CELLS["gunicorn-gthread"]}, "lasting_wsgi")
def test_a_recording_that_the_end_of_its_session_cuts_off_does_not_look_whole_on_wsgi(
    cell: Cell,
) -> None:
    cut_off(cell, "relay")


@cells({"uvicorn-h11-wsproto": ASGI_CELLS["uvicorn-h11-wsproto"]}, "lasting_asgi")
def test_a_download_that_the_end_of_its_session_cuts_off_is_over_for_its_client(cell: Cell) -> None:
    cut_off(cell, "download")


def cut_off(cell: Cell, kind: str) -> None:
    cell.begin(ANNA, [kind])
    cell.log_out(ANNA, "engine")
    connection = cell.open[ANNA, kind]
    until(connection.over.is_set, lambda: "it goes on")
    assert connection.how == "cut"
