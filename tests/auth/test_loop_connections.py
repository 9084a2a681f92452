"""Open connections are looked at by the event loop that serves them, whichever ran before."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import anyio
import pytest

from cm_auth_middleware.auth import connections
from cm_auth_middleware.auth.connections import LoopConnections
from cm_auth_middleware.runtime.event_loops import EventLoopRuntime

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")


class Open:
    """An open connection of a session that is over."""

    is_old = False

    def __init__(self) -> None:
        self.session = self
        self.ended = True
        self.record_id = "1"
        self.was_told = anyio.Event()

    async def end(self) -> None:
        self.was_told.set()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> LoopConnections:
    monkeypatch.setattr(connections, "LOOK_EVERY", 0.01)

    async def is_alive(session: Any) -> bool:
        return False

    return LoopConnections(EventLoopRuntime(5.0, "http://cm.example"), is_alive)


async def _is_ended(watched: LoopConnections) -> bool:
    """Return True if a connection that opens on the loop that runs ends with its session."""
    connection = Open()
    watched.here().add(connection)
    with anyio.move_on_after(2):
        await connection.was_told.wait()
    return connection.was_told.is_set()


def test_a_loop_looks_at_its_own_though_another_one_stands_still(watched: LoopConnections) -> None:
    standing = asyncio.new_event_loop()
    try:
        assert standing.run_until_complete(_is_ended(watched))
        assert asyncio.run(_is_ended(watched))
        assert standing.run_until_complete(_is_ended(watched))
    finally:
        standing.run_until_complete(standing.shutdown_asyncgens())
        standing.close()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_each_run_looks_at_its_own(watched: LoopConnections, backend: str) -> None:
    assert anyio.run(_is_ended, watched, backend=backend)
    assert anyio.run(_is_ended, watched, backend=backend)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 on
def test_a_process_that_was_forked_amid_a_loop_looks_at_its_own(watched: LoopConnections) -> None:
    async def fork() -> int:
        assert await _is_ended(watched)
        child = os.fork()
        if child == 0:  # the parent's loop seems to run in the child, in this thread
            code = 1
            try:
                code = 0 if asyncio.run(_is_ended(watched)) else 2
            finally:
                os._exit(code)
        return child

    _, status = os.waitpid(asyncio.run(fork()), 0)
    assert os.waitstatus_to_exitcode(status) == 0
