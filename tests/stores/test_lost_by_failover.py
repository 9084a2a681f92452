"""A failover that loses a storm of refreshes, with two engines in one process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import anyio
import pytest

from cm_auth_middleware.testing import Settings, SimulatedUser
from tests.helpers.browser import Browser
from tests.helpers.postgres import postgres_server, standby
from tests.helpers.servers import Forwarder, catch_up, pair, until
from tests.helpers.world import JSON, MakeWorld, World

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


class Replicated(NamedTuple):
    """A store with a replica.

    Attributes:
        cut: the replica gets nothing any more.
        fail_over: the replica takes the primary's place.
    """

    url: str
    cut: Callable[[], object]
    fail_over: Callable[[], object]


@contextlib.contextmanager
def redis(*, is_killed: bool) -> Iterator[Replicated]:
    with pair() as (old, new), Forwarder(old.port) as name:

        def fail_over() -> None:
            name.port = new.port
            if is_killed:
                old.stop()
            else:
                old.command("REPLICAOF", "127.0.0.1", str(new.port))

        def cut() -> None:
            catch_up(old, new)
            new.command("REPLICAOF", "NO", "ONE")

        yield Replicated(name.url, cut, fail_over)


@contextlib.contextmanager
def postgres() -> Iterator[Replicated]:
    with postgres_server() as old, standby(old) as new:
        hosts = f"127.0.0.1:{old.port},127.0.0.1:{new.port}"
        url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

        def cut() -> None:
            lag = (
                "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) FROM pg_stat_replication"
            )
            until(lambda: [row[0] for row in old.command(lag)] == [0])
            new.pause()

        def fail_over() -> None:
            old.stop()
            new.resume()
            new.command("SELECT pg_promote()")

        yield Replicated(url, cut, fail_over)


STORES = {
    "redis, killed": lambda: redis(is_killed=True),
    "redis, made a replica": lambda: redis(is_killed=False),
    "postgres": postgres,
}


@pytest.mark.parametrize("kind", STORES)
async def test_a_storm_of_refreshes_that_the_replica_never_got_costs_no_session(
    make_world: MakeWorld, kind: str
) -> None:
    """The link to the replica breaks before many tokens expire, and then the primary ends."""
    strict = Settings(rotate_refresh_tokens=True, revoke_family_on_reuse=True)
    with STORES[kind]() as store:
        # Two processes: each has a client of its own.
        worlds = [make_world(store=store.url, settings=strict)]
        worlds.append(make_world(beside=worlds[0], store=store.url))
        worlds[0].sim.users += [
            SimulatedUser(f"user{n}@example.com", "x", "U", "N", n, n) for n in range(40)
        ]
        browsers = [await worlds[n % 2].login(f"user{n}@example.com") for n in range(40)]

        def same(browser: Browser, world: World) -> Browser:
            return world.browser(Cookie=f"cm_auth={browser.named('cm_auth')[0]}")

        async def ask_all(shift: int) -> list[int]:
            statuses: list[int] = []

            async def ask(browser: Browser) -> None:
                status, deadline = 503, time.monotonic() + 30
                while status == 503 and time.monotonic() < deadline:  # as a browser is told to
                    status = (await browser.get("/cameras", headers=JSON)).status_code
                statuses.append(status)

            async with anyio.create_task_group() as group:
                for n, browser in enumerate(browsers):
                    group.start_soon(ask, same(browser, worlds[(n + shift) % 2]))
            return statuses

        store.cut()
        worlds[0].clock.tick(43_300)
        assert await ask_all(0) == [200] * 40
        store.fail_over()
        for shift in (1, 0):  # first at the process that does not know the new tokens
            assert await ask_all(shift) == [200] * 40
        assert len(worlds[0].sim.token_calls("refresh_token")) == 40
