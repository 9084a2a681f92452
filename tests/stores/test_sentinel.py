"""A group watched by three sentinels, whose primary stands still and comes back."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from cm_auth_middleware import SessionStore, StoreError
from cm_auth_middleware.runtime.run_sync import run_sync
from cm_auth_middleware.stores import RedisStore
from tests.helpers.servers import RedisServer, clients_of, pair, redis_server, until
from tests.helpers.stores import run

pytestmark = pytest.mark.slow

SESSIONS = 100


class Group:
    """A primary, its replica and three sentinels, of which two have to agree."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self.primary, self.replica = stack.enter_context(pair())
        self.sentinels: list[RedisServer] = []
        for number in range(3):
            file = directory / f"sentinel{number}.conf"
            file.write_text(
                f"sentinel monitor mymaster 127.0.0.1 {self.primary.port} 2\n"
                "sentinel down-after-milliseconds mymaster 1000\n"
                "sentinel failover-timeout mymaster 6000\n"
            )
            self.sentinels.append(stack.enter_context(redis_server(sentinel=file)))
        self.url = (
            "redis+sentinel://"
            + ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
            + "/mymaster"
        )
        for sentinel in self.sentinels:
            until(lambda sentinel=sentinel: self._is_complete(sentinel))

    def _is_complete(self, sentinel: RedisServer) -> bool:
        """True if it knows the replica and the other sentinels."""
        state = sentinel.command("SENTINEL", "MASTER", "mymaster").split(b"\r\n")
        known = dict(zip(state[2::4], state[4::4], strict=False))
        return known[b"num-slaves"] == b"1" and known[b"num-other-sentinels"] == b"2"

    def named_by(self, sentinel: RedisServer) -> int:
        """The port of the primary, as a sentinel knows it."""
        answer = sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
        return int(answer.split(b"\r\n")[4])

    def forces_failover(self) -> bool:
        """Have one sentinel choose the replica; False if it cannot yet."""
        return b"+OK" in self.sentinels[0].command("SENTINEL", "FAILOVER", "mymaster")

    def is_failed_over(self) -> bool:
        return all(self.named_by(sentinel) == self.replica.port for sentinel in self.sentinels)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    with ExitStack() as stack:
        yield Group(stack, tmp_path)


class Storm:
    """Sessions that are refreshed again and again; each knows what the store last confirmed."""

    def __init__(self, store: SessionStore) -> None:
        self.store = store
        self.confirmed: dict[str, bytes] = {}
        self.tried: dict[str, set[bytes]] = {}
        self.strange: list[BaseException] = []
        self.failures: list[str] = []
        self.over = threading.Event()
        self.rounds = 0

    async def begin(self) -> None:
        for number in range(SESSIONS):
            await self.store.put(f"s{number}", b"0", 600)
            self.confirmed[f"s{number}"] = b"0"

    async def refresh(self, key: str, sleep: Callable[[float], Any]) -> None:
        number = 0
        while not self.over.is_set():
            number += 1
            new = b"%d %s" % (number, os.urandom(4).hex().encode())
            old = self.confirmed[key]
            try:
                if await self.store.replace(key, old, new, 600):
                    self.confirmed[key] = new
                    self.tried.pop(key, None)
                else:
                    found = await self.store.get(key)
                    if found in self.tried.get(key, ()):
                        assert found is not None
                        self.confirmed[key] = found
                    else:
                        return  # lost: found again at the end
            except StoreError as error:
                self.tried.setdefault(key, set()).add(new)
                self.failures.append(str(error))
            except BaseException as error:
                self.strange.append(error)
                raise
            self.rounds += 1
            pause = sleep(0.05)
            if pause is not None:
                await pause

    def lost(self, url: str) -> list[str]:
        """The sessions whose confirmed state the primary has not, as a new process sees it."""
        store = RedisStore(url).blocking()
        found = {key: run(store.get(key)) for key in self.confirmed}
        run(store.close())
        return [
            key
            for key, value in found.items()
            if value != self.confirmed[key] and value not in self.tried.get(key, ())
        ]


def weather(group: Group, seconds: float, storm: Storm) -> None:
    """Stop the primary for so many seconds; end the storm later."""
    time.sleep(seconds)
    group.primary.resume()
    time.sleep(4)
    storm.over.set()


@pytest.mark.parametrize("seconds", [0.7, 2.0, 8.0])
@pytest.mark.parametrize("side", ["asyncio", "trio", "threads"])
def test_no_session_is_lost_when_the_primary_stands_still_and_comes_back(
    group: Group, side: str, seconds: float
) -> None:
    """For shorter and for longer than the failover, and for about as long."""
    store = RedisStore(f"{group.url}?socket_timeout=5")
    storm = Storm(store.blocking() if side == "threads" else store)
    operator = threading.Thread(target=weather, args=[group, seconds, storm])

    def pause() -> None:
        offset = group.primary.command("INFO", "replication")
        until(lambda: _offset(group.replica, b"slave_repl_offset") >= _offset_of(offset))
        group.primary.pause()
        operator.start()

    async def on_a_loop() -> None:
        await storm.begin()
        await anyio.to_thread.run_sync(pause)
        async with anyio.create_task_group() as tasks:
            for key in storm.confirmed:
                tasks.start_soon(storm.refresh, key, anyio.sleep)
        await store.close()

    if side == "threads":
        run(storm.begin())
        pause()
        members = [
            threading.Thread(target=lambda key=key: run(storm.refresh(key, time.sleep)))  # type: ignore[misc]
            for key in storm.confirmed
        ]
        for member in members:
            member.start()
        for member in members:
            member.join()
        run(store.blocking().close())
    else:
        anyio.run(on_a_loop, backend=side)
    operator.join()
    assert storm.lost(group.url) == []
    assert storm.strange == []
    assert storm.rounds > 2 * SESSIONS
    if seconds > 4:
        assert group.is_failed_over()
    until(lambda: sum(clients_of(sentinel) for sentinel in group.sentinels) < 12)


@pytest.mark.parametrize("side", ["asyncio", "threads"])
def test_calls_that_wait_for_a_replaced_primary_stop_no_call_to_the_new_one(
    group: Group, side: str
) -> None:
    store: Any = RedisStore(f"{group.url}?socket_timeout=5")
    failed: list[str] = []

    async def call(store: Any, errors: list[str]) -> None:
        try:
            await store.get("key")
        except StoreError as error:
            errors.append(str(error))

    def fail_over() -> None:
        time.sleep(0.3)  # calls are under way, by all connections
        until(group.forces_failover)  # in less than those have: the sentinels need not agree
        until(group.is_failed_over)

    async def on_a_loop() -> None:
        await store.put("key", b"value", 600)
        group.primary.pause()
        async with anyio.create_task_group() as tasks:
            for _ in range(16):
                tasks.start_soon(call, store, [])
            await anyio.to_thread.run_sync(fail_over)
            for _ in range(16):
                tasks.start_soon(call, store, failed)
        await store.close()

    def in_threads() -> None:
        twin = store.blocking()
        run_sync(twin.put("key", b"value", 600))
        group.primary.pause()

        def ask(errors: list[str]) -> None:
            run_sync(call(twin, errors))

        lists: tuple[list[str], list[str]] = ([], failed)
        first, then = (
            [threading.Thread(target=ask, args=[errors]) for _ in range(16)] for errors in lists
        )
        for thread in first:
            thread.start()
        fail_over()
        for thread in then:
            thread.start()
        for thread in first + then:
            thread.join()
        run_sync(twin.close())

    try:
        anyio.run(on_a_loop) if side == "asyncio" else in_threads()
    finally:
        group.primary.resume()
    assert not failed


def _offset_of(info: bytes) -> int:
    return int(info.split(b"master_repl_offset:")[1].split()[0])


def _offset(server: RedisServer, name: bytes) -> int:
    with contextlib.suppress(IndexError):
        return int(server.command("INFO", "replication").split(name + b":")[1].split()[0])
    return -1
