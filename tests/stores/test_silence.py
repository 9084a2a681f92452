"""Stores whose server is cut off without a reset: a call waits for an answer that never comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from typing import Any

import anyio
import pytest

from cm_auth_middleware import SessionStore, StoreError
from cm_auth_middleware.stores import open_store, postgres_pool
from cm_auth_middleware.stores.circuit_breaker import TRY_EVERY, CircuitBreaker
from tests.helpers.postgres import postgres_server
from tests.helpers.servers import Forwarder, redis_server
from tests.helpers.stores import run

pytestmark = pytest.mark.slow

SIDES = ("asyncio", "trio", "threads")
Call = Callable[[SessionStore], Coroutine[Any, Any, Any]]


class Crowd:
    """Calls that are made at the same time, on a side; how each ended, and how long it took."""

    def __init__(self, side: str, store: SessionStore) -> None:
        self.side = side
        self.store = store.blocking() if side == "threads" else store  # type: ignore[attr-defined]
        self.ended: list[tuple[str, float]] = []

    async def call(self) -> None:
        began = time.monotonic()
        try:
            await self.store.get("k")
            ending = "answered"
        except StoreError as error:
            ending = str(error)
        self.ended.append((ending, time.monotonic() - began))

    def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a check on the side."""
        if self.side == "threads":
            run(work())
        else:
            anyio.run(work, backend=self.side)

    async def at_once(self, number: int) -> list[tuple[str, float]]:
        """Make so many calls at the same time."""
        self.ended = []
        if self.side == "threads":
            members = [threading.Thread(target=lambda: run(self.call())) for _ in range(number)]
            for member in members:
                member.start()
            for member in members:
                member.join()
        else:
            async with anyio.create_task_group() as group:
                for _ in range(number):
                    group.start_soon(self.call)
        return self.ended

    async def sleep(self, seconds: float) -> None:
        if self.side == "threads":
            time.sleep(seconds)  # noqa: ASYNC251
        else:
            await anyio.sleep(seconds)


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["redis", "postgresql"])
def cut_off(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Forwarder, str]]:
    """A server behind a forwarder, and the URL of the store there; it times out after 0.7 s."""
    with ExitStack() as stack:
        if request.param == "redis":
            server = stack.enter_context(redis_server())
            name = stack.enter_context(Forwarder(server.port))
            yield name, f"{name.url}?socket_timeout=1.2&socket_connect_timeout=1.2"
        else:
            monkeypatch.setattr(postgres_pool, "_TIMEOUT", 1)
            monkeypatch.setattr(postgres_pool, "_MARGIN", 0.2)
            database = stack.enter_context(postgres_server())
            name = stack.enter_context(Forwarder(database.port))
            url = database.url.replace(str(database.port), str(name.listens_at))
            # libpq takes no less than 2 s for a connection
            yield name, f"{url}{'&' if '?' in url else '?'}connect_timeout=2"


def test_after_two_timeouts_calls_fail_at_once_and_one_a_second_tries(
    side: str, cut_off: tuple[Forwarder, str]
) -> None:
    name, url = cut_off
    crowd = Crowd(side, open_store(url))

    async def check() -> None:
        await crowd.at_once(3)
        name.cut()
        began = time.monotonic()
        first = await crowd.at_once(60)  # more than there are connections
        assert {ending for ending, _ in first} <= {
            f"{crowd.store!r}".split()[1].rstrip(">") + end
            for end in (
                " did not answer in time",
                " did not answer in time; it is tried once a second",
            )
        }
        # Those in the queue fail together with the first.
        assert time.monotonic() - began < 4.5
        connections = name.connections
        began, slow = time.monotonic(), 0
        while time.monotonic() < began + 6:
            slow += sum(seconds > 0.9 for _, seconds in await crowd.at_once(10))
            await crowd.sleep(0.05)
        assert name.connections - connections <= 8
        assert 2 <= slow <= 8
        name.mend()
        began = time.monotonic()
        while (await crowd.at_once(1))[0][0] != "answered":
            assert time.monotonic() < began + 2.5
            await crowd.sleep(0.02)
        assert [ending for ending, _ in await crowd.at_once(30)] == ["answered"] * 30
        await crowd.store.close()

    crowd.run(check)


def test_a_breaker_counts_timeouts_in_a_row_only() -> None:
    now = 0.0
    breaker = CircuitBreaker(lambda: now)
    for _ in range(3):
        breaker.timed_out()
        assert breaker.is_suspect
        assert not breaker.is_open
        breaker.answered()
    assert not breaker.is_suspect
    breaker.timed_out()
    breaker.timed_out()
    assert breaker.is_open
    assert [breaker.admit() for _ in range(3)] == [False] * 3
    for _ in range(3):
        now += TRY_EVERY
        assert [breaker.admit() for _ in range(3)] == [True, False, False]
        breaker.timed_out()
    breaker.answered()
    assert [breaker.admit() for _ in range(3)] == [True] * 3
