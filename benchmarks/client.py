"""The price of a call to CameraManager through `request.state.cm`."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx2

from cm_auth_middleware import CMAuthMiddleware
from cm_auth_middleware.testing import settings_for

from .fast_server import BIG_BYTES, FastServer
from .measure import Costs, Spread, Turn, awaited, one_processor, take_turns
from .processes import forget_peak, in_new_process, peak_memory
from .report import Figure
from .request_path import bare
from .world import COOKIE, Requests, SimulatedWorld, close

NAME = "client"
_CAMERAS = "/rest/v2.4/cameras"
_BIG = "/rest/v2.4/big"
_BARE, _SLOW = "a bare shared client", "an Authlib client each time"
_BARE_ONCE = "a bare shared client, one get a request"
_ONCE, _ONCE_V3 = (
    "request.state.cm, one get a request",
    "request.state.cm of API v3, one get a request",
)
_FLAT = 16.0  # MB that the memory of a process may grow by while 100 MB pass through it

Use = Callable[[httpx2.AsyncClient], Awaitable[Any]]


def run() -> Iterator[Figure]:
    """Measure single calls and one long answer, against a server that costs next to nothing."""
    with one_processor(), ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        handler = _Handler()
        requests, url = _logged_in(stack, runner, handler)
        turns = _turns(stack, runner, handler, requests, url)
        # There the host of the API is in the session: what CameraManager's users must not pay for.
        requests_v3, _ = _logged_in(stack, runner, handler, "eagleeye")
        turns[_ONCE_V3] = _first_calls(runner, handler, requests_v3)
        slow = {name: turns[name] for name in (_BARE, _SLOW)}
        del turns[_SLOW]
        yield from _figures(take_turns(turns, rounds=20))
        costs = take_turns(slow, blocks=3, rounds=3)
        cost, ratio = costs.cost(_SLOW).value * 1e6, costs.ratio(_SLOW, _BARE)
        yield Figure(NAME, _SLOW, cost, "µs", ratio, _BARE)
    yield from _streaming()


class _Handler:
    """A handler that asks CameraManager a number of times, and how long only that took."""

    def __init__(self) -> None:
        self.calls = 1
        self.seconds = 0.0
        self.use: Use = _get

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        client = scope["state"]["cm"]
        started = time.perf_counter()
        for _ in range(self.calls):
            await self.use(client)
        self.seconds += time.perf_counter() - started
        await bare(scope, receive, send)


async def _get(client: httpx2.AsyncClient) -> None:
    response = await client.get(_CAMERAS)
    if response.status_code != 200:
        raise AssertionError(f"CameraManager answered {response.status_code}")


def _logged_in(
    stack: ExitStack, runner: asyncio.Runner, handler: Any, provider: str = "cameramanager"
) -> tuple[Requests, str]:
    """An app with a session, and at the address of its CameraManager a server that is fast."""
    with SimulatedWorld(settings_for(provider)) as world:
        app = CMAuthMiddleware(handler, **world.options())
        cookie = runner.run(world.log_in(app))
        url = app.engine.config.base_url
    stack.callback(lambda: runner.run(close(app)))
    stack.enter_context(FastServer(urlsplit(url).port or 0))
    return Requests(app, f"{COOKIE}={cookie}"), url


def _turns(
    stack: ExitStack, runner: asyncio.Runner, handler: _Handler, request: Requests, url: str
) -> dict[str, Turn]:
    transport = httpx2.AsyncHTTPTransport(verify=False)
    shared = httpx2.AsyncClient(
        transport=transport,
        base_url=url,
        headers={"Authorization": "Bearer aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa:10003"},
    )
    stack.callback(lambda: runner.run(shared.aclose()))
    token = {"access_token": "a", "refresh_token": "r", "token_type": "bearer", "expires_at": 1e10}
    authlib = _authlib(url, token)
    stack.callback(lambda: runner.run(authlib.aclose()))

    def first_bare_calls(calls: int) -> float:
        # A call out of a request that was just served finds the processor's caches full of that.
        handler.calls, handler.seconds, handler.use = 1, 0.0, lambda _: _get(shared)
        runner.run(_again(request, calls))
        return handler.seconds

    def later_calls(calls: int) -> float:
        handler.calls, handler.seconds, handler.use = calls, 0.0, _get
        runner.run(_again(request, 1))
        return handler.seconds

    async def client_each_time() -> None:
        async with _authlib(url, token) as client:
            await _get(client)

    return {
        _BARE: awaited(runner, lambda: _get(shared), waits=True),
        _BARE_ONCE: first_bare_calls,
        _ONCE: _first_calls(runner, handler, request),
        "request.state.cm, further gets of a request": later_calls,
        "one Authlib client shared by all": awaited(runner, lambda: _get(authlib), waits=True),
        _SLOW: awaited(runner, client_each_time, waits=True),
    }


def _first_calls(runner: asyncio.Runner, handler: _Handler, request: Requests) -> Turn:
    def first_calls(calls: int) -> float:
        handler.calls, handler.seconds, handler.use = 1, 0.0, _get
        runner.run(_again(request, calls))
        return handler.seconds

    return first_calls


def _authlib(url: str, token: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from authlib.integrations.httpx_client import AsyncOAuth2Client
    return AsyncOAuth2Client("id", "secret", token=token, base_url=url)


async def _again(request: Requests, times: int) -> None:
    for _ in range(times):
        await request()


def _figures(costs: Costs) -> Iterator[Figure]:
    yield Figure(NAME, _BARE, costs.cost(_BARE).value * 1e6, "µs")
    for name, against, target in (
        (_BARE_ONCE, _BARE, ""),
        (_ONCE, _BARE_ONCE, "<= 1.1"),
        (_ONCE_V3, _ONCE, "<= 1.1"),
        ("request.state.cm, further gets of a request", _BARE, "<= 1.1"),
        ("one Authlib client shared by all", _BARE, ""),
    ):
        cost, ratio = costs.cost(name).value * 1e6, costs.ratio(name, against)
        yield Figure(NAME, name, cost, "µs", ratio, against, target)


# 100 MB through one process: how long, and how much of it the process held.


def _streaming() -> Iterator[Figure]:
    runs = [(in_new_process(_stream_bare), in_new_process(_stream_ours)) for _ in range(3)]
    bare_runs, our_runs = zip(*runs, strict=True)
    ratio = Spread.of([ours[0] / bare[0] for bare, ours in runs])
    seconds = Spread.of([run[0] for run in our_runs]).value
    size = BIG_BYTES // 1_000_000
    yield Figure(
        NAME, f"{size} MB streamed through it", seconds, "s", ratio, "a bare shared client"
    )
    grown = max(run[1] for run in our_runs)
    yield Figure(NAME, "memory that grew by meanwhile", grown, "MB", target=f"<= {_FLAT:.0f}")
    grown = max(run[1] for run in bare_runs)
    yield Figure(NAME, "the same, a bare shared client", grown, "MB")


def _stream_ours() -> tuple[float, float]:
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        handler = _Handler()
        request, _ = _logged_in(stack, runner, handler)
        runner.run(request())  # connected, and all that is loaded late loaded
        handler.use, handler.seconds = _stream, 0.0
        before = forget_peak()
        runner.run(request())
        return handler.seconds, peak_memory() - before


def _stream_bare() -> tuple[float, float]:
    async def stream(url: str) -> tuple[float, float]:
        async with httpx2.AsyncClient(base_url=url) as client:
            await _get(client)
            before, started = forget_peak(), time.perf_counter()
            await _stream(client)
            return time.perf_counter() - started, peak_memory() - before

    with FastServer() as server:
        return asyncio.run(stream(server.url))


async def _stream(client: httpx2.AsyncClient) -> None:
    size = 0
    async with client.stream("GET", _BIG) as response:
        async for piece in response.aiter_raw():
            size += len(piece)
    if size != BIG_BYTES:
        raise AssertionError(f"{size} bytes came through")
