"""Everybody's request at the moment when the access token has just expired."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import httpx2

from cm_auth_middleware import CMAuthMiddleware
from cm_auth_middleware.testing import Settings

from .ideal_refresh import IdealRefresh
from .measure import Spread
from .report import Figure
from .request_path import reading_state
from .world import COOKIE, EMAIL, Requests, SimulatedWorld, redis_server, sqlite_url

NAME = "storm"
_PROCESSES = 4
_REQUESTS = 1000
_RUNS = 5
_TOKEN_CALL = 0.05  # seconds that CameraManager takes to answer one
_LIFETIME = 2  # seconds until the storm; whole ones, as in `expires_in`
_ALLOWED = 0.15  # seconds beyond the token call that the slowest request may take


@dataclass(frozen=True, slots=True)
class _Outcome:
    token_calls: int
    failures: int
    slowest: float  # seconds


def run() -> Iterator[Figure]:
    """Let storms come over processes that share a store, and over the other ways to refresh."""
    settings = Settings(
        rotate_refresh_tokens=True,
        revoke_family_on_reuse=True,
        shared_access_token=False,  # or a login would get the long-lived token of a storm before
        token_latency=_TOKEN_CALL,
    )
    with ExitStack() as stack:
        world = stack.enter_context(SimulatedWorld(settings))
        redis = stack.enter_context(redis_server())
        sqlite = stack.enter_context(sqlite_url())
        call = _token_call(world)
        yield Figure(NAME, "one token call", call.value * 1e3, "ms")
        stores = {"SQLite": sqlite, **({"Redis": redis} if redis else {})}
        for name, url in stores.items():
            with _Workers(_ours, world.options(store=url, refresh_leeway=0)) as workers:
                outcomes = [_our_storm(world, workers, url) for _ in range(_RUNS)]
            yield from _figures(f"ours, {name}", outcomes, call, bounded=True)
        if redis:
            with _Workers(_ideal, {"redis": redis, **_client_options(world)}) as workers:
                outcomes = [_reference_storm(world, workers, _REQUESTS) for _ in range(3)]
            yield from _figures("a future per session, a lease in Redis", outcomes, call)
        with _Workers(_authlib, _client_options(world), processes=1) as workers:
            outcomes = [_reference_storm(world, workers, 50) for _ in range(3)]
        yield from _figures("Authlib's pattern, 50 requests", outcomes, call)


def _figures(
    name: str, outcomes: list[_Outcome], call: Spread, *, bounded: bool = False
) -> Iterator[Figure]:
    calls = max(outcome.token_calls for outcome in outcomes)
    yield Figure(NAME, f"{name}: token calls", calls, "", target="<= 1" if bounded else "")
    failures = max(outcome.failures for outcome in outcomes)
    yield Figure(NAME, f"{name}: failures", failures, "", target="<= 0" if bounded else "")
    slowest = Spread.of([outcome.slowest for outcome in outcomes])
    ratio = Spread(*(part / call.value for part in (slowest.value, slowest.low, slowest.high)))
    bound = f"<= {(call.value + _ALLOWED) * 1e3:.0f}" if bounded else ""
    yield Figure(
        NAME,
        f"{name}: slowest request",
        slowest.value * 1e3,
        "ms",
        ratio,
        "one token call",
        bound,
        of_ratio=False,
    )
    if bounded:
        title = f"{name}: slowest request of {len(outcomes)} storms"
        yield Figure(NAME, title, slowest.high * 1e3, "ms", target=bound)


def _our_storm(world: SimulatedWorld, workers: _Workers, store: str) -> _Outcome:
    """Log in for a short time, let every process see the session, and wait until it is over."""
    settings = world.simulator.settings
    settings.access_token_lifetime = _LIFETIME
    app = CMAuthMiddleware(reading_state, **world.options(store=store, refresh_leeway=0))

    async def log_in() -> str:
        value = await world.log_in(app)
        await app.engine.close()
        return value

    cookie = f"{COOKIE}={asyncio.run(log_in())}"
    expiry = time.time() + _LIFETIME
    settings.access_token_lifetime = 43_199
    workers.prepare(cookie)
    return _let_loose(world, workers, expiry + 0.05, _REQUESTS)


def _reference_storm(world: SimulatedWorld, workers: _Workers, requests: int) -> _Outcome:
    token = _password_grant(world)
    world.simulator.expire_access_tokens()
    workers.prepare({**token, "expires_at": int(time.time()) - 1})
    return _let_loose(world, workers, time.time() + 0.05, requests)


def _let_loose(world: SimulatedWorld, workers: _Workers, start: float, requests: int) -> _Outcome:
    before = len(world.simulator.token_calls("refresh_token"))
    latencies = workers.storm(start, requests)
    calls = len(world.simulator.token_calls("refresh_token")) - before
    failures = sum(latency is None for latency in latencies)
    return _Outcome(calls, failures, max((value for value in latencies if value), default=0.0))


def _token_call(world: SimulatedWorld) -> Spread:
    """How long one refresh takes by itself."""
    seconds = []
    with httpx2.Client(**_client_options(world)) as client:
        for _ in range(7):
            token = _password_grant(world)
            form = {
                "grant_type": "refresh_token",
                "refresh_token": token["refresh_token"],
                "scope": token["scope"],
            }
            started = time.perf_counter()
            client.post("/oauth/token", data=form).raise_for_status()
            seconds.append(time.perf_counter() - started)
    return Spread.of(seconds)


def _client_options(world: SimulatedWorld) -> dict[str, Any]:
    options = world.options()
    return {
        "base_url": options["base_url"],
        "auth": (options["client_id"], options["client_secret"]),
        "headers": {"Accept": "application/json"},
    }


def _password_grant(world: SimulatedWorld) -> dict[str, Any]:
    form = {"grant_type": "password", "username": EMAIL, "password": "cameras", "scope": "write"}
    with httpx2.Client(**_client_options(world)) as client:
        token: dict[str, Any] = client.post("/oauth/token", data=form).raise_for_status().json()
    return token


# The processes that the requests come in at


Request = Callable[[], Awaitable[Any]]


class _Workers:
    """Processes that get ready, wait for a moment, and then all begin at once.

    Args:
        make: makes, in each process, what is to be stormed, from `options`; it is given what
            `prepare` is given, and returns what is called for each request.
    """

    def __init__(
        self,
        make: Callable[..., Callable[[Any], Awaitable[Request]]],
        options: dict[str, Any],
        processes: int = _PROCESSES,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        ends = [context.Pipe() for _ in range(processes)]
        self._pipes = [ours for ours, _ in ends]
        self._processes = [
            context.Process(target=_work, args=(theirs, make, options), daemon=True)
            for _, theirs in ends
        ]

    def __enter__(self) -> _Workers:
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(10)

    def prepare(self, grant: Any) -> None:
        """Let each process see the session while it is good."""
        for pipe in self._pipes:
            pipe.send(grant)
        for pipe in self._pipes:
            pipe.recv()

    def storm(self, start: float, requests: int) -> list[float | None]:
        """Seconds that each request took, None for one that failed."""
        for pipe in self._pipes:
            pipe.send((start, requests // len(self._pipes)))
        return [latency for pipe in self._pipes for latency in pipe.recv()]


def _work(pipe: Connection, make: Any, options: dict[str, Any]) -> None:
    async def work() -> None:
        prepare = make(**options)
        while (grant := await asyncio.to_thread(pipe.recv)) is not None:
            request = await prepare(grant)
            pipe.send("ready")
            start, count = await asyncio.to_thread(pipe.recv)
            await asyncio.sleep(start - time.time())
            pipe.send(await asyncio.gather(*(_timed(request) for _ in range(count))))

    asyncio.run(work())


async def _timed(request: Request) -> float | None:
    started = time.perf_counter()
    try:
        await request()
    except Exception:
        return None
    return time.perf_counter() - started


def _ours(**options: Any) -> Callable[[str], Awaitable[Request]]:
    app = CMAuthMiddleware(_ready, **options)
    started = False

    async def prepare(cookie: str) -> Request:
        nonlocal started
        if not started:
            await app({"type": "lifespan"}, _nothing, _nothing)  # as a server does
            started = True
        await Requests(app, cookie)()
        return lambda: Requests(app, cookie)()  # one each: it notes its own status

    return prepare


async def _ready(scope: Any, receive: Any, send: Any) -> None:
    """An application that is ready at once."""
    if scope["type"] != "lifespan":
        await reading_state(scope, receive, send)


async def _nothing(*message: Any) -> Any:
    """Hear and say nothing."""


def _ideal(**options: Any) -> Callable[[dict[str, Any]], Awaitable[Request]]:
    refresh = IdealRefresh(**options)

    async def prepare(token: dict[str, Any]) -> Request:
        await refresh.log_in(token)
        return refresh.fresh_token

    return prepare


def _authlib(**options: Any) -> Callable[[dict[str, Any]], Awaitable[Request]]:
    """A client per request, which refreshes by itself, all on one connection pool."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from authlib.integrations.httpx_client import AsyncOAuth2Client
    transport = httpx2.AsyncHTTPTransport(verify=False)
    client_id, client_secret = options["auth"]

    async def prepare(token: dict[str, Any]) -> Request:
        async def request() -> None:
            client = AsyncOAuth2Client(
                client_id,
                client_secret,
                scope="write",  # which CameraManager wants at a refresh, too
                token=dict(token),
                token_endpoint=f"{options['base_url']}/oauth/token",
                transport=transport,
            )
            await client.ensure_active_token(client.token)

        return request

    return prepare
