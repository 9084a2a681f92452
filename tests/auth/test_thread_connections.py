"""The watch over the open connections of threads: whom it sees, and when it begins and ends."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from cm_auth_middleware.auth.connections import ThreadConnections
from cm_auth_middleware.runtime.base import Repetition
from cm_auth_middleware.runtime.run_sync import run_sync


class _Connection:
    def __init__(self) -> None:
        self.session = SimpleNamespace(record_id="a", ended=False)
        self.is_old = False
        self.ends = 0

    async def end(self) -> None:
        self.ends += 1


class _Runtime:
    """Begins a watch when asked to; the test says when it looks."""

    def __init__(self) -> None:
        self.watches: list[tuple[Repetition, Any]] = []

    def repeat(self, _: float, work: Any) -> Repetition:
        self.watches.append((Repetition(None), work))
        return self.watches[-1][0]

    def look(self) -> bool:
        return run_sync(self.watches[-1][1]())


def _watched(*, is_alive: bool = True) -> tuple[Any, _Runtime]:
    async def ask(session: Any) -> bool:
        return is_alive

    runtime = _Runtime()
    return ThreadConnections(runtime, ask), runtime  # type: ignore[arg-type]


def test_one_watch_sees_all_connections_until_the_last_one_is_dropped() -> None:
    connections, runtime = _watched()
    first, second = _Connection(), _Connection()
    connections.add(first)
    connections.add(second)
    connections.add(second)  # a WebSocket's response
    assert runtime.look()
    assert (first.is_old, second.is_old, len(runtime.watches)) == (True, True, 1)
    del first
    assert runtime.look()
    del second
    gc.collect()
    assert not runtime.look()
    connections.add(third := _Connection())
    assert len(runtime.watches) == 2
    assert runtime.look()
    assert third.is_old


def test_a_watch_whose_thread_has_died_is_begun_anew() -> None:
    connections, runtime = _watched()
    connections.add(first := _Connection())
    runtime.watches[0][0].has_ended = True
    connections.add(second := _Connection())
    assert len(runtime.watches) == 2
    assert runtime.look()
    assert first.is_old
    assert second.is_old


def test_a_connection_is_ended_once_in_each_look_however_often_it_was_added() -> None:
    connections, runtime = _watched(is_alive=False)
    connections.add(ended := _Connection())
    connections.add(ended)
    runtime.look()
    assert ended.ends == 1


def test_a_response_that_is_the_servers_own_object_is_watched_while_the_server_keeps_it() -> None:
    class Body:
        pass

    connections, runtime = _watched()
    body = Body()
    connections.add(_Connection(), body)
    gc.collect()
    assert runtime.look()
    del body
    gc.collect()
    assert not runtime.look()


def test_a_connection_that_comes_while_the_last_look_ends_gets_a_watch() -> None:
    connections, runtime = _watched()
    connections.add(_Connection())
    late: list[_Connection] = []

    class Nothing(set[Any]):
        """Has another thread add one just when the watch has found that nothing is open."""

        def __len__(self) -> int:
            size = super().__len__()
            if not late:
                late.append(_Connection())
                connections.add(late[0])
            return size

    connections._open = Nothing()
    connections._lock = nullcontext()  # which that thread would wait for until the look is over
    assert not runtime.look()
    assert len(runtime.watches) == 2
    assert runtime.look()
    assert late[0].is_old
