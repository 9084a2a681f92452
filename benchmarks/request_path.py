"""The price of each request: who is asking, and may they?"""

from __future__ import annotations

import asyncio
import secrets
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from starlette.middleware.sessions import SessionMiddleware

from cm_auth_middleware import CMAuthMiddleware

from . import wsgi_path
from .ideal import Cookies, IdealMiddleware, SQLiteFind, new_record
from .measure import Costs, Turn, awaited, take_turns
from .report import Figure
from .world import (
    COOKIE,
    SECRET_KEY,
    USER,
    Requests,
    SimulatedWorld,
    close,
    redis_server,
    sqlite_url,
)

NAME = "request-path"
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


def run(*, quick: bool = False) -> Iterator[Figure]:
    """Measure the request path; `quick` for the figures that CI compares only."""
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        redis = stack.enter_context(redis_server())
        sqlite = stack.enter_context(sqlite_url())
        turns = _asgi_turns(stack, runner, redis, sqlite, quick)
        costs = take_turns(turns, **({"blocks": 5, "rounds": 10} if quick else {}))
        yield from _figures(costs, turns)
    yield from wsgi_path.run(NAME, quick=quick)


def _asgi_turns(
    stack: ExitStack, runner: asyncio.Runner, redis: str | None, sqlite: str, quick: bool
) -> dict[str, Turn]:
    with SimulatedWorld() as world:
        stores = {"memory": "memory://", "SQLite": sqlite, **({"Redis": redis} if redis else {})}
        requests = {
            "bare": Requests(bare, f"theme=dark; {COOKIE}={'x' * 130}"),
            "SessionMiddleware": _session_middleware(runner),
            "ideal": _ideal(),
        }
        for name, store in stores.items():
            app = CMAuthMiddleware(
                reading_state, **world.options(store=store, exempt=("/health", "/static/*"))
            )
            cookie = f"theme=dark; {COOKIE}={runner.run(world.log_in(app))}"
            requests[f"ours, {name}"] = Requests(app, cookie)
            stack.callback(lambda app=app: runner.run(close(app)))
        exempt = CMAuthMiddleware(bare, **world.options(exempt=("/health", "/static/*")))
        requests["ours, exempt path"] = Requests(exempt, path="/static/app.css")
        requests["ours, redirect to the login"] = Requests(exempt, status=302)
    if not quick:
        requests["ideal, SQLite"] = _ideal_sqlite(stack, sqlite)
        requests["starsessions, memory"] = _starsessions(runner, None)
        if redis:
            requests["starsessions, Redis"] = _starsessions(runner, redis)
    turns = {name: awaited(runner, request) for name, request in requests.items()}
    if redis:
        turns["redis.asyncio GET"] = _bare_get(stack, runner, redis)
    return turns


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


def _ideal_sqlite(stack: ExitStack, url: str) -> Requests:
    cookies, session_id = Cookies(SECRET_KEY), secrets.token_urlsafe(64)
    find = SQLiteFind(f"{url.removeprefix('sqlite:///')}.ideal")
    find.store(session_id.encode(), secrets.token_bytes(500), new_record(USER))
    app = IdealMiddleware(reading_state, cookies, find)
    return Requests(app, f"theme=dark; {COOKIE}={cookies.sign(session_id)}")


def _starsessions(runner: asyncio.Runner, redis: str | None) -> Requests:
    from starsessions import InMemoryStore, SessionAutoloadMiddleware
    from starsessions import SessionMiddleware as StarSessions
    from starsessions.stores.redis import RedisStore

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


def _bare_get(stack: ExitStack, runner: asyncio.Runner, url: str) -> Turn:
    """One GET of a record's size, by the client that our Redis store uses."""
    from redis.asyncio import Redis

    client = Redis.from_url(url)
    runner.run(client.set("benchmark", secrets.token_bytes(500)))
    stack.callback(lambda: runner.run(client.aclose()))
    return awaited(runner, lambda: client.get("benchmark"))


_TARGETS = {"ours, memory": "<= 0.3", "ours, exempt path": "<= 0.08", "ours, SQLite": "<= 0.75"}


def _figures(costs: Costs, turns: dict[str, Turn]) -> Iterator[Figure]:
    for name in turns:
        if name == "bare":
            yield Figure(NAME, "a bare application", costs.cost(name).value * 1e6, "µs")
        elif name == "redis.asyncio GET":
            yield Figure(NAME, name, costs.cost(name).value * 1e6, "µs")
        elif name == "ours, Redis":
            added = costs.cost(name, over="bare").value * 1e6
            ratio = costs.of_two(name, "bare", "redis.asyncio GET")
            yield Figure(NAME, name, added, "µs more", ratio, "redis.asyncio GET", "<= 1.3")
        else:
            added = costs.cost(name, over="bare").value * 1e6
            ratio = costs.ratio(name, "SessionMiddleware", over="bare")
            target = _TARGETS.get(name, "")
            yield Figure(NAME, name, added, "µs more", ratio, "SessionMiddleware", target)
