"""R65: no message of a WebSocket is lost at a look at its session, on no server."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from pathlib import Path

import pytest

from tests.helpers.browser import Visitor

from .server_processes import APPS, ASGI, Simulated, Site, environment, needs, serve

with contextlib.suppress(ModuleNotFoundError):  # the quick run collects this without its extra
    from websockets.sync.client import connect

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(150)]

# As 29.99 to 30.01 s are to looks that are 30 s apart; but 600 times as often.
LOOK_EVERY, JITTER = 0.05, 0.01
CONNECTIONS, MESSAGES = 6, 400

CELLS = {
    "uvicorn": ASGI["uvicorn"],
    "uvicorn-sansio": [*ASGI["uvicorn"], "--ws", "websockets-sansio"],
    "uvicorn-wsproto": [*ASGI["uvicorn"], "--loop", "asyncio", "--ws", "wsproto"],
    "hypercorn": ASGI["hypercorn"],
    "hypercorn-trio": ASGI["hypercorn-trio"],
    "granian": ASGI["granian"],
    "gunicorn-asgi": ASGI["gunicorn-asgi"],
    "daphne": ["daphne", "-b", "127.0.0.1", "-p", "{port}", "{app}"],
}


class Talk:
    """One WebSocket: numbers go out at about the pace of the looks, and are to come back."""

    def __init__(self, site: Site, cookie: str, seed: int, stack: contextlib.ExitStack) -> None:
        self.heard: list[int] = []
        self._pace = random.Random(seed)
        opened = connect(
            f"ws{site.origin[4:]}/ws-echo", additional_headers={"Cookie": cookie},
            origin=site.origin, ping_interval=None, proxy=None,
        )  # fmt: skip
        self._socket = stack.enter_context(opened)
        self._threads = [threading.Thread(target=run) for run in (self._say, self._listen)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _say(self) -> None:
        for number in range(MESSAGES):
            self._socket.send(str(number))
            time.sleep(self._pace.uniform(LOOK_EVERY - JITTER, LOOK_EVERY + JITTER))

    def _listen(self) -> None:
        with contextlib.suppress(TimeoutError):  # one is lost
            while len(self.heard) < MESSAGES:
                self.heard.append(int(self._socket.recv(20)))


@pytest.mark.parametrize("server", CELLS)
def test_no_message_is_lost_at_a_look_at_the_session(
    server: str, simulator: Simulated, tmp_path: Path
) -> None:
    """R65: each comes back once, in its order."""
    needs(server.partition("-")[0], "websockets", "wsproto")
    if server == "hypercorn-trio":
        needs("trio")
    variables = environment(
        simulator, CM_AUTH_STORE=f"sqlite:///{tmp_path / 'sessions.db'}",
        MATRIX_RECORD=str(tmp_path / "record"), MATRIX_RELEASE=str(tmp_path / "release"),
        MATRIX_LOOK_EVERY=str(LOOK_EVERY),
    )  # fmt: skip
    app = f"{APPS}lasting_asgi:app"
    with (
        serve(server, CELLS[server], tmp_path / "log", variables, app=app, silent=False) as site,
        Visitor(site.origin) as visitor,
        contextlib.ExitStack() as stack,
    ):
        visitor.enter("/")
        talks = [Talk(site, visitor.cookie_header, seed, stack) for seed in range(CONNECTIONS)]
        for talk in talks:
            talk.start()
        for talk in talks:
            talk.join()
    assert [talk.heard for talk in talks] == [list(range(MESSAGES))] * CONNECTIONS
