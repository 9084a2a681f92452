"""The price of each request: who is asking, and may they?"""

from __future__ import annotations

import asyncio
import secrets
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection

from cm_auth_middleware import CMAuthMiddleware

from .ideal import Cookies, IdealMiddleware, SQLiteFind, new_record
from .measure import Costs, Turn, awaited, one_processor, take_turns
from .report import Figure
from .world import (
    COOKIE,
    SECRET_KEY,
    USER,
    Requests,
    SimulatedWorld,
    close,
    forget_sessions,
    redis_server,
    sqlite_url,
)

NAME = "request-path"
_PLAIN, _SESSIONS, _GET = (
    "Starlette's cookies and headers",
    "SessionMiddleware",
    "redis.asyncio GET",
)
_EXEMPT = ("/health", "/static/*")
_FORGOTTEN = "ours, memory, nothing remembered"
_FORGETTING = "a bare request after forgetting"  # which is no part of what is measured
Call = Callable[[], Awaitable[Any]]
_SESSION = {"user": USER, "scope": "write", "logged_in_at": 1_800_000_000.0, "csrf": "x" * 32}


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """The least application."""
    await send({"type": "http.response.start", "status": 200, "headers": [_TYPE]})
    await send({"type": "http.response.body", "body": b"ok"})


_TYPE = (b"content-type", b"text/plain; charset=utf-8")


async def reading_state(scope: Any, receive: Any, send: Any) -> None:
    """Looks at who is logged in, as `request.state.cm_session.user` does."""
    assert scope["state"]["cm_session"].user["email"]
    await bare(scope, receive, send)


async def reading_session(scope: Any, receive: Any, send: Any) -> None:
    """Looks at Starlette's session, as `request.session` does."""
    session = scope["session"]
    session.mark_accessed()
    assert session["user"]["email"]
    await bare(scope, receive, send)


async def reading_plain_session(scope: Any, receive: Any, send: Any) -> None:
    """Looks at starsessions' session."""
    assert scope["session"]["user"]["email"]
    await bare(scope, receive, send)


class StarlettesOwn:
    """A middleware that lets Starlette parse the cookies and add a header, and does no more.

    It signs nothing, which makes it a steadier yardstick.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert HTTPConnection(scope).cookies

        async def varying(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).add_vary_header("Cookie")
            await send(message)

        await self.app(scope, receive, varying)


def run(*, quick: bool = False) -> Iterator[Figure]:
    """Measure the request path; `quick` for the figures that CI compares only."""
    effort = {"blocks": 5, "rounds": 10} if quick else {}
    with one_processor(), ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        redis = stack.enter_context(redis_server())
        sqlite = stack.enter_context(sqlite_url())
        local, remote = _contestants(stack, runner, redis, sqlite, quick)
        turns = {name: awaited(runner, call) for name, call in local.items()}
        yield from _figures(take_turns(turns, **effort), turns, _PLAIN if quick else _SESSIONS)
        if remote:
            turns = {name: awaited(runner, call, waits=True) for name, call in remote.items()}
            yield from _redis_figures(take_turns(turns, **effort), turns)
    from . import wsgi_path  # which loads Flask, and a process of ASGI alone has none

    yield from wsgi_path.run(NAME, quick=quick)


def _contestants(
    stack: ExitStack, runner: asyncio.Runner, redis: str | None, sqlite: str, quick: bool
) -> tuple[dict[str, Call], dict[str, Call]]:
    """Those that only this process works for, and those that wait for Redis."""
    bare_request = Requests(bare, f"theme=dark; {COOKIE}={'x' * 130}")
    local: dict[str, Call] = {"bare": bare_request}
    local[_PLAIN] = Requests(StarlettesOwn(bare), f"theme=dark; {COOKIE}={'x' * 130}")
    remote: dict[str, Call] = {}
    if not quick:
        local[_SESSIONS] = _session_middleware(runner)
        local["ideal"] = _ideal()
    with SimulatedWorld() as world:

        def ours(store: str) -> Requests:
            app = CMAuthMiddleware(reading_state, **world.options(store=store, exempt=_EXEMPT))
            stack.callback(lambda: runner.run(close(app)))
            return Requests(app, f"theme=dark; {COOKIE}={runner.run(world.log_in(app))}")

        local["ours, memory"], local["ours, SQLite"] = ours("memory://"), ours(sqlite)
        if redis:
            remote = {"bare": bare_request, _GET: _bare_get(stack, runner, redis)}
            remote["ours, Redis"] = ours(redis)
        exempt = CMAuthMiddleware(bare, **world.options(exempt=_EXEMPT))
        local["ours, exempt path"] = Requests(exempt, path="/static/app.css")
        if not quick:
            local["ours, exempt path, somebody else's cookie"] = Requests(
                exempt, "theme=dark; consent=1", path="/static/app.css"
            )
            again = ours("memory://")
            local[_FORGOTTEN] = forgetting(again)
            local[_FORGETTING] = forgetting(again, bare_request)
            cookie = f"theme=dark; {COOKIE}={runner.run(world.log_in(exempt))}"
            local["ours, exempt path, logged in"] = Requests(exempt, cookie, path="/static/app.css")
        local["ours, redirect to the login"] = Requests(exempt, status=302)
    if not quick:
        local["ideal, SQLite"] = _ideal_sqlite(sqlite)
        local["starsessions, memory"] = _starsessions(runner, None)
        if redis:
            remote["starsessions, Redis"] = _starsessions(runner, redis)
    return local, remote


def forgetting(requests: Requests, then: Requests | None = None) -> Call:
    """The same, as when the process has not seen this session, or 4 096 others since.

    Args:
        then: the request that is made after forgetting, instead.
    """
    forget = forget_sessions(requests.app.engine.async_services.sessions)

    async def call() -> None:
        forget()
        await (then or requests)()

    return call


def _session_middleware(runner: asyncio.Runner) -> Requests:
    """Log in by letting the middleware write its cookie."""
    written: list[bytes] = []

    async def login(scope: Any, receive: Any, send: Any) -> None:
        scope["session"].update(_SESSION)
        await bare(scope, receive, send)

    async def keep(message: Any) -> None:
        written.extend(value for name, value in message.get("headers", ()) if name == b"set-cookie")

    secret = secrets.token_urlsafe(48)
    scope = {"type": "http", "headers": [], "path": "/"}
    runner.run(SessionMiddleware(login, secret)(scope, None, keep))  # type: ignore[arg-type]
    cookie = written[0].decode().partition(";")[0]
    return Requests(SessionMiddleware(reading_session, secret), f"theme=dark; {cookie}")


def _ideal() -> Requests:
    cookies, session_id = Cookies(SECRET_KEY), secrets.token_urlsafe(64)
    sessions = {session_id.encode(): new_record(USER)}
    app = IdealMiddleware(reading_state, cookies, sessions.get)
    return Requests(app, f"theme=dark; {COOKIE}={cookies.sign(session_id)}")


def _ideal_sqlite(url: str) -> Requests:
    cookies, session_id = Cookies(SECRET_KEY), secrets.token_urlsafe(64)
    find = SQLiteFind(f"{url.removeprefix('sqlite:///')}.ideal")
    find.store(session_id.encode(), secrets.token_bytes(500), new_record(USER))
    app = IdealMiddleware(reading_state, cookies, find)
    return Requests(app, f"theme=dark; {COOKIE}={cookies.sign(session_id)}")


def _starsessions(runner: asyncio.Runner, redis: str | None) -> Requests:
    from starsessions import InMemoryStore, SessionAutoloadMiddleware
    from starsessions import SessionMiddleware as StarSessions
    from starsessions.stores.redis import RedisStore

    store: InMemoryStore | RedisStore
    if redis:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            store = RedisStore(redis)
    else:
        store = InMemoryStore()
    written: list[bytes] = []

    async def login(scope: Any, receive: Any, send: Any) -> None:
        scope["session"].update(_SESSION)
        await bare(scope, receive, send)

    async def keep(message: Any) -> None:
        written.extend(value for name, value in message.get("headers", ()) if name == b"set-cookie")

    def stacked(app: Any) -> Any:
        return StarSessions(
            SessionAutoloadMiddleware(app), store, lifetime=86_400, cookie_https_only=False
        )

    runner.run(stacked(login)({"type": "http", "headers": [], "path": "/"}, None, keep))
    cookie = written[0].decode().partition(";")[0]
    return Requests(stacked(reading_plain_session), f"theme=dark; {cookie}")


def _bare_get(stack: ExitStack, runner: asyncio.Runner, url: str) -> Call:
    """One GET of a record's size, by redis-py with the options of our Redis store."""
    from redis.asyncio import Redis

    from cm_auth_middleware.stores.redis_target import Target

    client: Any = Redis.from_pool(Target.parse(url).pool("redis.asyncio"))
    runner.run(client.set("benchmark", secrets.token_bytes(500)))
    stack.callback(lambda: runner.run(client.aclose()))
    return lambda: client.get("benchmark")


_TARGETS = {
    "ours, memory": "<= 0.3",
    "ours, exempt path": "<= 0.10",
    "ours, SQLite": "<= 0.55",
    _FORGOTTEN: "<= 1.3",
    "ours, redirect to the login": "<= 3.0",
}


def _figures(costs: Costs, turns: dict[str, Turn], reference: str) -> Iterator[Figure]:
    yield Figure(NAME, "a bare application", costs.cost("bare").value * 1e6, "µs")
    for name in [name for name in turns if name not in ("bare", _FORGETTING)]:
        base = _FORGETTING if name == _FORGOTTEN else "bare"
        added = costs.cost(name, over=base).value * 1e6
        ratio = costs.of_two(name, base, reference, "bare")
        target = _TARGETS.get(name, "") if reference == _SESSIONS else ""
        yield Figure(NAME, name, added, "µs more", ratio, reference, target)
    if "ideal" in turns:
        added = costs.cost("ours, memory", over="bare").value * 1e6
        ratio = costs.ratio("ours, memory", "ideal", over="bare")
        title = "ours, memory, beside the ideal"
        yield Figure(NAME, title, added, "µs more", ratio, "ideal", "<= 1.08")


def _redis_figures(costs: Costs, turns: dict[str, Turn]) -> Iterator[Figure]:
    yield Figure(NAME, _GET, costs.cost(_GET).value * 1e6, "µs")
    for name in list(turns)[2:]:
        added = costs.cost(name, over="bare").value * 1e6
        target = "<= 1.25" if name == "ours, Redis" else ""
        yield Figure(NAME, name, added, "µs more", costs.of_two(name, "bare", _GET), _GET, target)
