"""What sessions and grants take up in Redis and PostgreSQL, and how many commands requests need."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx2
import redis

from cm_auth_middleware import AuthEngine, CMAuthMiddleware
from cm_auth_middleware.sessions.cookie import Ticket
from cm_auth_middleware.sessions.record import Record, Tokens, dumps
from cm_auth_middleware.tokens.grant_records import GrantState
from tests.helpers.postgres import PostgresServer, postgres_server, require_postgres

from .report import Figure, number
from .request_path import reading_state
from .world import COOKIE, ORIGIN, USER, Requests, SimulatedWorld, redis_server

NAME = "sizes"
_SESSIONS = 100_000
_SAMPLE = 1_000
_AT_ONCE = 16
_REQUESTS = 20


def run() -> Iterator[Figure]:
    """Fill a Redis and a PostgreSQL of our own by the package's own code."""
    with redis_server() as url:
        if url is not None:
            yield from asyncio.run(_in_redis(url))
    with redis_server() as url:
        if url is not None:
            yield from asyncio.run(_commands(url))
    try:
        require_postgres()
    except BaseException:  # pytest's, which is no Exception
        return
    with postgres_server("autovacuum=off") as server:
        yield from asyncio.run(_in_postgres(server))


class _People:
    """Users who log in, each with tokens of their own, as the package stores them."""

    def __init__(self, store: str) -> None:
        self.engine = AuthEngine(**SimulatedWorld().options(store=store))
        services = self.engine.async_services
        self._sessions, self._grants = services.sessions, services.refresher.grants
        self._tokens: list[Tokens] = []

    async def log_in(self) -> None:
        """Store a session for each."""
        self._tokens = [_tokens() for _ in range(_SESSIONS)]
        await self._each(self._create)

    async def refresh(self) -> None:
        """Store what the first refresh of each leaves: the grant's newest tokens."""
        await self._each(self._note)

    async def _create(self, which: int) -> None:
        now = time.time()
        user = dumps({**USER, "userId": 10_000_000 + which, "email": f"anna{which}@example.com"})
        record = Record(
            self._tokens[which], user, now, now, address="203.0.113.7", user_read_at=now
        )
        await self._sessions.create(Ticket.new(), record)

    async def _note(self, which: int) -> None:
        held = self._tokens[which].refresh_token
        assert held is not None
        await self._grants.save(held, _tokens(held), over=GrantState())

    @staticmethod
    async def _each(step: Callable[[int], Awaitable[None]]) -> None:
        todo = iter(range(_SESSIONS))

        async def work() -> None:
            for which in todo:
                await step(which)

        await asyncio.gather(*(work() for _ in range(_AT_ONCE)))


def _tokens(refresh_token: str | None = None) -> Tokens:
    """Tokens of the form that CameraManager gives; the refresh token stays the same."""
    now = time.time()
    kept = refresh_token or str(uuid.uuid4())
    return Tokens(str(uuid.uuid4()), kept, now + 43_199, now + 43_139, "write")


async def _in_redis(url: str) -> list[Figure]:
    server: Any = redis.Redis.from_url(url)
    people = _People(url)
    await people.engine.store.ping()
    used = [server.info("memory")["used_memory"]]
    await people.log_in()
    used.append(server.info("memory")["used_memory"])
    keys = server.dbsize()
    one = _mean_usage(server)
    await people.refresh()
    used.append(server.info("memory")["used_memory"])
    resident = server.info("memory")["used_memory_rss"]
    await people.engine.close()
    title = f"{number(_SESSIONS)} sessions"
    return [
        Figure(NAME, "Redis: keys of a session", keys / _SESSIONS, ""),
        Figure(NAME, "Redis: MEMORY USAGE of a key of a session", one, "bytes"),
        Figure(NAME, f"Redis: a session, of {title}", (used[1] - used[0]) / _SESSIONS, "bytes"),
        Figure(NAME, "Redis: a grant beside it", (used[2] - used[1]) / _SESSIONS, "bytes"),
        Figure(NAME, f"Redis: resident memory with all {title}", resident / 1e6, "MB"),
    ]


def _mean_usage(server: Any) -> float:
    sizes = [server.memory_usage(server.randomkey()) for _ in range(_SAMPLE)]
    return float(sum(sizes) / len(sizes))


async def _in_postgres(server: PostgresServer) -> list[Figure]:
    people = _People(server.url)
    await people.engine.store.ping()

    def size() -> int:
        return int(server.command("SELECT pg_total_relation_size('cm_auth')")[0][0])

    sizes = [size()]
    await people.log_in()
    sizes.append(size())
    await people.refresh()
    sizes.append(size())
    # Each row is written again when its session was used, once a minute at most.
    server.command("UPDATE cm_auth SET value = value || ''::bytea WHERE kind = 'record'")
    server.command("VACUUM cm_auth")
    sizes.append(size())
    await people.engine.close()
    return [
        Figure(NAME, "PostgreSQL: a session", (sizes[1] - sizes[0]) / _SESSIONS, "bytes"),
        Figure(NAME, "PostgreSQL: a grant beside it", (sizes[2] - sizes[1]) / _SESSIONS, "bytes"),
        Figure(
            NAME,
            "PostgreSQL: both, each row rewritten once before a vacuum",
            (sizes[3] - sizes[0]) / _SESSIONS,
            "bytes",
        ),
    ]


async def _commands(url: str) -> list[Figure]:
    """Count what the clients send: what a script does inside the server is no round trip."""
    late = 0.0
    found: dict[str, float] = {}
    with ExitStack() as stack:
        world = stack.enter_context(SimulatedWorld())
        options = world.options(store=url, revalidate=None)
        engine = AuthEngine(**options, clock=lambda: time.time() + late)
        app = CMAuthMiddleware(reading_state, engine=engine)
        server: Any = redis.Redis.from_url(url)
        server.ping()
        watched = stack.enter_context(server.monitor())

        async def count(name: str, action: Callable[[], Awaitable[Any]], times: int = 1) -> None:
            for _ in range(times):
                await action()
            server.echo(name)
            sent = 0
            for command in watched.listen():
                if command["command"] == f"ECHO {name}":
                    break
                sent += command["client_type"] != "lua"
            found[name] = sent / times

        for _ in range(2):  # the second time connections are open and scripts are loaded
            await count("a login", lambda: world.log_in(app))
            cookie = await world.log_in(app)
            ask = Requests(app, f"{COOKIE}={cookie}")
            await count("the two before", ask)
            await count("a request", ask, _REQUESTS)
            late += 61
            await count("the first request of a minute", ask)
            late += world.simulator.settings.access_token_lifetime
            calls = len(world.simulator.token_calls("refresh_token"))
            await count("a request that refreshes", ask)
            assert len(world.simulator.token_calls("refresh_token")) == calls + 1
            await count("a logout", partial(_log_out, app, cookie))
        del found["the two before"]
        await engine.close()
    return [Figure(NAME, f"Redis: commands of {name}", value, "") for name, value in found.items()]


async def _log_out(app: Any, cookie: str) -> None:
    headers = {"cookie": f"{COOKIE}={cookie}", "origin": ORIGIN}
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url=ORIGIN, headers=headers) as browser:
        answer = await browser.post("/auth/logout")
        assert answer.status_code == 303, answer.text
