"""The runtimes: the middleware's own calls, and code that runs at the edge of an event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Any

import anyio
import httpx2
import pytest

from cm_auth_middleware import AuthEngine, UnavailableError
from cm_auth_middleware.runtime import bounded_cache
from cm_auth_middleware.runtime.base import MOST_LATE, Runtime
from cm_auth_middleware.runtime.bounded_cache import BoundedCache, CacheMemory
from cm_auth_middleware.runtime.event_loops import EventLoopRuntime
from cm_auth_middleware.runtime.run_sync import run_sync
from cm_auth_middleware.runtime.threads import ThreadRuntime
from tests.helpers.world import SECRET_KEY

URL = "http://cm.example"


@pytest.fixture(params=["asyncio", "trio", "threads"])
def side(request: pytest.FixtureRequest) -> str:
    return request.param


def run(side: str, answer: Any, **call: Any) -> httpx2.Response:
    """Make one call of a runtime, on one of its sides."""
    transport, runtime = httpx2.MockTransport(answer), ThreadRuntime
    if side != "threads":
        runtime = EventLoopRuntime
    made: Runtime = runtime(5.0, URL, transport)

    async def one() -> httpx2.Response:
        return await made.call("POST", f"{URL}/token", headers={"X-Own": "1"}, **call)

    return run_sync(one()) if side == "threads" else anyio.run(one, backend=side)


def test_a_call_sends_its_headers_and_body_and_wants_no_compression(side: str) -> None:
    def echo(request: httpx2.Request) -> httpx2.Response:
        asked = [request.headers["X-Own"], request.headers["Accept-Encoding"]]
        return httpx2.Response(200, json=[*asked, request.content.decode()])

    assert run(side, echo, content=b"code=c").json() == ["1", "identity", "code=c"]
    assert run(side, echo).json() == ["1", "identity", ""]


def test_a_call_follows_no_redirect(side: str) -> None:
    def redirect(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(307, headers={"Location": "https://elsewhere.example/"})

    assert run(side, redirect, content=b"secret").status_code == 307


def test_a_call_names_its_sender_and_keeps_no_cookie(side: str) -> None:
    """Those of one user's login would go with the calls of others."""
    seen: list[httpx2.Headers] = []

    def set_cookie(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers)
        return httpx2.Response(200, headers={"Set-Cookie": "who=one; Path=/"})

    transport = httpx2.MockTransport(set_cookie)
    made: Runtime = (ThreadRuntime if side == "threads" else EventLoopRuntime)(5.0, URL, transport)

    async def two() -> None:
        for _ in range(2):
            await made.call("GET", f"{URL}/token", headers={})

    if side == "threads":
        run_sync(two())
    else:
        anyio.run(two, backend=side)
    names = [sorted(headers) for headers in seen]
    assert names == [["accept", "accept-encoding", "host", "user-agent"]] * 2
    assert seen[0]["user-agent"] == f"python-httpx2/{httpx2.__version__}"
    assert seen[0]["host"] == "cm.example"


class Late:
    """Work that takes until it is let go, and does not end when it is cancelled."""

    def __init__(self, side: str) -> None:
        self._blocks = side == "threads"
        self.let_go = False
        self.under_way = 0

    async def work(self) -> str:
        self.under_way += 1
        while not self.let_go:
            if self._blocks:
                time.sleep(0.005)  # noqa: ASYNC251 - only threads run it
            else:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.005)
        self.under_way -= 1
        return "done"


def test_work_that_is_late_is_not_waited_for_and_does_not_pile_up(side: str) -> None:
    late = Late(side)

    async def wait() -> None:
        made: Runtime = (ThreadRuntime if side == "threads" else EventLoopRuntime)(5.0, URL)

        async def fails() -> None:
            raise KeyError("why")

        with pytest.raises(KeyError, match="why"):
            await made.within(5, fails)
        for _ in range(20):
            with pytest.raises(UnavailableError):
                await made.within(0.01, late.work)
        assert 0 < late.under_way <= MOST_LATE
        late.let_go = True
        deadline = time.monotonic() + 20
        while late.under_way:
            assert time.monotonic() < deadline
            await made.sleep(0.01)
        for _ in range(20):
            assert await made.within(5, late.work) == "done"

    run_sync(wait()) if side == "threads" else anyio.run(wait, backend=side)


def test_in_a_callback_of_an_event_loop_an_engine_is_awaited() -> None:
    engine = AuthEngine(client_id="i", client_secret="s", secret_key=SECRET_KEY)

    async def main() -> Any:
        given: asyncio.Future[Any] = asyncio.Future()
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: given.set_result(engine.sessions("10001")))
        return await (await given)

    assert asyncio.run(main()) == []


def test_an_async_hook_runs_though_the_process_is_about_to_exit() -> None:
    code = """
import threading
from cm_auth_middleware.runtime.threads import ThreadRuntime
from cm_auth_middleware.runtime.run_sync import run_sync
runtime = ThreadRuntime(5.0, "http://cm.example")
async def hook(session):
    print("called with", session)
async def refresh():
    threading.main_thread().join()
    await runtime.run_hook("on_refresh", hook, "session")
runtime.single_flight.start("key", refresh)
"""
    program = [sys.executable, "-c", code]
    done = subprocess.run(program, capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == ("called with session\n", "")


def test_caches_that_share_their_memory_hold_so_many_bytes_together() -> None:
    """The one that holds most makes room: a new value of another one is kept."""
    memory = CacheMemory(100_000)
    large: BoundedCache[int, bytes] = BoundedCache(memory=memory)
    small: BoundedCache[int, bytes] = BoundedCache(memory=memory)
    for key in range(100):
        large[key] = bytes(10_000)
        small[key % 3] = bytes(100)
        assert large.bytes_held + small.bytes_held == memory.used <= 100_000
    assert list(small) == [1, 2, 0]
    assert list(large) == list(range(100 - len(large), 100))
    assert len(large) == 9
    large[0] = bytes(200_000)  # larger than all that there is
    assert not large
    assert len(small) == 3
    for key in range(3):
        small.pop(key)
    assert memory.used == 0
    small["a"] = "x"
    small.clear()
    assert memory.used == small.bytes_held == len(small) == 0
    small["a"] = "y"
    assert memory.used == small.bytes_held > 0


def test_a_cache_drops_its_oldest_values_and_those_that_are_over(monkeypatch) -> None:
    monkeypatch.setattr(bounded_cache, "_MOST", 3)
    cache: BoundedCache[str, int] = BoundedCache(is_over=lambda value: value < 0)
    for key in "abc":
        cache[key] = 1
    cache["a"] = 2  # is the newest now
    cache["d"] = 1
    assert cache == {"c": 1, "a": 2, "d": 1}
    cache["c"] = -1
    cache["a"] = cache["d"] = 1
    cache["e"] = 1
    assert cache == {"a": 1, "d": 1, "e": 1}
    assert cache.pop("a") == 1
    assert cache.pop("a", None) is None
