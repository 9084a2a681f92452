"""Where the keys of a Redis store are: over a cluster, in the index by user, after an upgrade."""

from __future__ import annotations

import contextlib
import gc
import random
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest
from redis import Redis
from redis.cluster import key_slot

from cm_auth_middleware import StoreError
from cm_auth_middleware.stores import RedisStore
from tests.helpers.servers import Forwarder, RedisServer, free_port, pair, redis_server, until
from tests.helpers.stores import checks_of, run
from tests.helpers.world import JSON, MakeWorld

pytestmark = pytest.mark.slow

Check = Callable[[RedisStore], Coroutine[Any, Any, None]]
Side = Callable[..., None]
SLOTS = 16384
OLD = "{cm_auth}:s:"


@pytest.fixture(params=["asyncio", "trio", "threads"])
def side(request: pytest.FixtureRequest) -> Side:
    """Runs a check with a store, on each side."""
    return checks_of(request.param, RedisStore)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Redis]:
    """A plain client of the server, as an operator has one."""
    with Redis(port=server.port) as client:
        yield client


class Cluster:
    """Three primaries without replicas, each with a third of the slots."""

    def __init__(self, nodes: list[RedisServer]) -> None:
        self.nodes = nodes
        self.clients = [Redis(port=node.port) for node in nodes]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        self.ids = [str(client.execute_command("CLUSTER MYID"), "ascii") for client in self.clients]

    def owner(self, slot: int) -> int:
        """Return the number of the primary that has a slot, by the word of each."""
        for number, client in enumerate(self.clients):
            lines = client.execute_command("CLUSTER NODES").values()
            (mine,) = (line for line in lines if "myself" in line["flags"])
            if any(int(ends[0]) <= slot <= int(ends[-1]) for ends in mine["slots"]):
                return number
        raise AssertionError(f"nobody has slot {slot}")

    def begin_move(self, slot: int) -> tuple[int, int]:
        """Open a slot for its move to the next primary; return the numbers of both."""
        source = self.owner(slot)
        target = (source + 1) % len(self.nodes)
        self.clients[target].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", self.ids[source])
        self.clients[source].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", self.ids[target])
        return source, target

    def move_keys(self, slot: int, source: int, target: int, most: int = 1000) -> int:
        keys = self.clients[source].execute_command("CLUSTER GETKEYSINSLOT", slot, most)
        if keys:
            port = self.nodes[target].port
            words = ["MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys]
            self.clients[source].execute_command(*words)
        return len(keys)

    def end_move(self, slot: int, target: int) -> None:
        for number in [target, *(n for n in range(len(self.nodes)) if n != target)]:
            self.clients[number].execute_command("CLUSTER SETSLOT", slot, "NODE", self.ids[target])

    def sizes(self, prefix: str) -> list[int]:
        return [len(client.keys(f"{prefix}*")) for client in self.clients]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(
                redis_server("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
            )
            for _ in range(3)
        ]
        for number, node in enumerate(nodes):
            first, end = SLOTS * number // 3, SLOTS * (number + 1) // 3
            node.command("CLUSTER", "ADDSLOTSRANGE", str(first), str(end - 1))
            bus = node.options[-1]
            node.command("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
            for other in nodes[:number]:
                other.command("CLUSTER", "MEET", "127.0.0.1", str(node.port), bus)
        for node in nodes:
            until(lambda node=node: knows_all(node))  # type: ignore[misc]
        made = Cluster(nodes)
        yield made
        for client in made.clients:
            client.close()


def knows_all(node: RedisServer) -> bool:
    info = node.command("CLUSTER", "INFO")
    slots = node.command("CLUSTER", "SLOTS")
    return b"cluster_state:ok" in info and b"cluster_size:3" in info and slots.startswith(b"*3")


def a_tag() -> bytes:
    """How the values of one user's sessions begin."""
    return b"\x04" + secrets.token_bytes(16)


def a_key() -> str:
    return secrets.token_hex(32)


async def sessions(store: RedisStore, count: int, tag: bytes | None = None) -> list[str]:
    """Put sessions of one user, or of a user each."""
    keys = [a_key() for _ in range(count)]
    for key in keys:
        await store.put(key, (tag or a_tag()) + key.encode(), 60)
    return keys


async def found(store: RedisStore, prefix: bytes) -> list[str]:
    return sorted(key for key, _ in await store.find(prefix))


# A cluster


def test_the_keys_of_many_sessions_are_spread_over_all_primaries(
    side: Side, cluster: Cluster
) -> None:
    async def check(store: RedisStore) -> None:
        await sessions(store, 400)
        for key in range(400):
            await store.acquire(f"lease {key}", "owner", 60)
        for kind in ("cm_auth:s:", "cm_auth:u:", "cm_auth:l:"):
            sizes = cluster.sizes(kind)
            assert sum(sizes) == 400
            assert min(sizes) > 70, f"{kind} {sizes}"
        assert await store.count(b"\x04") == await store.count() == 400
        assert len(await store.find(b"\x04")) == 400

    side(check, cluster.url)


def test_a_prefix_in_braces_keeps_all_keys_on_one_primary(side: Side, cluster: Cluster) -> None:
    async def check(store: RedisStore) -> None:
        tag = a_tag()
        keys = await sessions(store, 20, tag)
        await sessions(store, 80)
        await store.acquire("k", "owner", 60)
        await store.ping()
        sizes = cluster.sizes("")
        assert sorted(sizes)[:2] == [0, 0], sizes
        assert await found(store, tag) == sorted(keys)
        assert await store.count() == 100

    side(check, cluster.url, prefix="{x}:")


def test_a_user_s_sessions_are_all_found_and_ended_while_their_slots_move(
    side: Side, cluster: Cluster
) -> None:
    async def check(store: RedisStore) -> None:
        tag = a_tag()
        keys = await sessions(store, 40, tag)
        slots = {key_slot(f"cm_auth:s:{key}".encode()) for key in keys}
        index = key_slot(f"cm_auth:u:{tag.hex()}".encode())
        for number, slot in enumerate({*slots, index}):
            ends = cluster.begin_move(slot)
            if number % 2 or slot == index:
                cluster.move_keys(slot, *ends)
        assert await found(store, tag) == sorted(keys)
        assert await found(store, b"\x04") == sorted(keys)
        assert await store.count(b"\x04") == await store.count() == 40
        assert await store.count(b"\x05") == 0
        more = await sessions(store, 5, tag)
        assert await found(store, tag) == sorted(keys + more)
        for key in keys + more:
            value = await store.get(key)
            assert value is not None
            assert await store.replace(key, value, value + b"!", 60)
            assert await store.delete(key) == value + b"!"
        assert await found(store, tag) == await found(store, b"\x04") == []
        assert await store.count() == 0

    side(check, cluster.url)


def test_nothing_is_missed_while_keys_move_from_page_to_page(
    side: Side, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots go round and round, and each listing has everything, or is an error."""
    monkeypatch.setattr("cm_auth_middleware.stores.redis_scan.PAGE", 20)
    over = threading.Event()
    moved = Counter[str]()

    def move(slots: list[int]) -> None:
        while not over.is_set():
            slot = random.choice(slots)
            source, target = cluster.begin_move(slot)
            while cluster.move_keys(slot, source, target, 1):
                moved["keys"] += 1
            cluster.end_move(slot, target)
            until(lambda slot=slot, target=target: cluster.owner(slot) == target)  # type: ignore[misc]

    async def check(store: RedisStore) -> None:
        keys = [f"{{{n % 5}}}{a_key()}" for n in range(500)]
        for key in keys:
            await store.put(key, b"\x04" + bytes(20), 60)
        slots = sorted({key_slot(f"cm_auth:s:{key}".encode()) for key in keys})
        assert len(slots) == 5
        mover = threading.Thread(target=move, args=[slots])
        mover.start()
        answers = Counter[str]()
        try:
            ends = time.monotonic() + 40
            while answers["complete"] < 3:
                assert time.monotonic() < ends, answers
                try:
                    assert await store.count(b"\x04") == 500
                    assert await found(store, b"\x04") == sorted(keys)
                except StoreError:
                    answers["error"] += 1
                else:
                    answers["complete"] += 1
        finally:
            over.set()
            mover.join()
        assert moved["keys"] > 0

    side(check, cluster.url)


# redis-py leaves connections open when it asks anew for the nodes.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_primary_that_cannot_be_asked_makes_a_listing_an_error(
    side: Side, cluster: Cluster
) -> None:
    async def check(store: RedisStore) -> None:
        tag = a_tag()
        await sessions(store, 30, tag)
        cluster.nodes[2].stop()
        for call in (store.count, store.find):
            with pytest.raises(StoreError):
                await call(b"\x04")
        with pytest.raises(StoreError):
            await store.find(tag)

    side(check, cluster.url)
    gc.collect()


@pytest.mark.anyio
async def test_logout_user_ends_every_session_while_the_slots_move(
    make_world: MakeWorld, cluster: Cluster
) -> None:
    world = make_world(store=cluster.url)
    annas = [await world.login() for _ in range(6)]
    bob = await world.login("bob@example.com")
    for client in cluster.clients:
        for name in client.keys("cm_auth:*"):
            slot = key_slot(name)
            ends = cluster.begin_move(slot)
            if random.random() < 0.5:
                cluster.move_keys(slot, *ends)

    async def call(function: Any) -> Any:
        if world.side == "asgi":
            return await function(10003)
        return await anyio.to_thread.run_sync(function, 10003)

    assert len(await call(world.engine.sessions)) == 6
    assert await call(world.engine.logout_user) == 6
    for browser in annas:
        assert (await browser.get("/", headers=JSON)).status_code == 401
    assert (await bob.get("/cameras")).status_code == 200


# The index


def fill(redis: Redis, count: int) -> None:
    """Store sessions of a user each, as the store does."""
    ends = time.time() * 1000 + 60_000
    pipeline = redis.pipeline(transaction=False)
    for _ in range(count):
        tag, key = a_tag(), a_key()
        pipeline.zadd(f"cm_auth:u:{tag.hex()}", {key: ends})
        pipeline.set(f"cm_auth:s:{key}", tag, px=60_000)
    pipeline.execute()


def commands(redis: Redis) -> int:
    """Count the commands that the server has run, in scripts, too."""
    stats: dict[str, dict[str, int]] = redis.info("commandstats")  # type: ignore[assignment]
    return sum(one["calls"] for one in stats.values())


def test_the_cost_of_a_search_is_that_of_the_user_s_own_sessions(
    side: Side, server: RedisServer, redis: Redis
) -> None:
    async def check(store: RedisStore) -> None:
        tag, costs = a_tag(), []
        keys = await sessions(store, 5, tag)
        for foreign in (50, 5_000):
            fill(redis, foreign)
            before = commands(redis)
            assert await found(store, tag) == sorted(keys)
            costs.append(commands(redis) - before)
        assert costs[0] == costs[1]
        assert costs[0] < 3 * len(keys) + 10, costs

    side(check, server.url)


def test_a_lost_index_is_repaired_when_the_session_is_next_written(
    side: Side, server: RedisServer, redis: Redis
) -> None:
    async def check(store: RedisStore) -> None:
        tag, key = a_tag(), a_key()
        await store.put(key, tag, 60)
        redis.delete(f"cm_auth:u:{tag.hex()}")
        assert await store.replace(key, tag, tag + b"!", 60)
        assert await store.find(tag) == [(key, tag + b"!")]
        other = a_tag()
        assert await store.replace(key, tag + b"!", other, 60)
        assert await store.find(other) == [(key, other)]
        assert await store.find(tag) == [], "it has another user by now"
        redis.flushall()
        await store.put(key, tag, 60)
        assert await store.find(tag) == [(key, tag)]

    side(check, server.url)


def test_an_index_ends_with_its_last_session(
    side: Side, server: RedisServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cm_auth_middleware.stores.redis._SLACK", 500)

    async def check(store: RedisStore) -> None:
        tag, long = a_tag(), a_key()
        name = f"cm_auth:u:{tag.hex()}"
        await store.put(a_key(), tag, 0.2)
        await store.put(long, tag, 60)
        until(lambda: redis.dbsize() == 3)  # one record, its index, and that all are indexed
        assert await found(store, tag) == [long]
        assert 55_000 < int(redis.pttl(name)) <= 60_500
        time.sleep(0.6)  # noqa: ASYNC251
        await store.put(a_key(), tag, 0.2)
        assert redis.zcard(name) == 2, "what is over is removed"
        await store.put(long, tag, 0.2)  # an entry is never shortened
        assert await store.delete(long) == tag
        until(lambda: not redis.keys("cm_auth:[su]:*"))
        await store.put(long, tag, 60)
        assert await store.delete(long) == tag
        assert not redis.exists(name)

    side(check, server.url)


def test_records_of_grants_and_marks_have_no_index(
    side: Side, server: RedisServer, redis: Redis
) -> None:
    async def check(store: RedisStore) -> None:
        grant = b"\x02" + bytes(100)
        await store.put("grant.1", grant, 60)
        await store.put("gone.1", b"12345678", 60)
        assert sorted(redis.keys()) == [b"cm_auth:s:gone.1", b"cm_auth:s:grant.1"]
        assert await store.find(grant[:17]) == [("grant.1", grant)]

    side(check, server.url)


@pytest.mark.parametrize("prefix", ["cm_auth:", "{cm_auth}:", "{x}:"])
def test_sessions_of_a_release_without_an_index_are_found(
    side: Side, server: RedisServer, redis: Redis, prefix: str
) -> None:
    async def check(store: RedisStore) -> None:
        tag = a_tag()
        keys = sorted(a_key() for _ in range(1200))
        old = "{cm_auth}:" if prefix == "cm_auth:" else prefix
        for number, key in enumerate(keys):
            redis.set(f"{old}s:{key}", tag if number < 3 else a_tag(), px=60_000)
        await store.put("k", a_tag(), 60)
        assert await found(store, tag) == keys[:3]
        assert await store.count(b"\x04") == 1201
        await store.delete(keys[0])
        before = commands(redis)
        assert await found(store, tag) == keys[1:3]
        assert commands(redis) - before < 20, "the second search reads the index"
        late = a_key()
        redis.set(f"{old}s:{late}", tag, px=60_000)  # by a process that was not upgraded yet
        redis.delete(f"{prefix}indexed")  # ten minutes later
        assert await found(store, tag) == sorted([late, *keys[1:3]])
        assert 0 < int(redis.pttl(f"{prefix}indexed")) <= 600_000

    side(check, server.url, prefix=prefix)


def test_sessions_of_a_release_without_an_index_are_found_in_a_cluster(
    side: Side, cluster: Cluster
) -> None:
    async def check(store: RedisStore) -> None:
        tag = a_tag()
        keys = sorted(a_key() for _ in range(30))
        slot = key_slot(OLD.encode())
        client = cluster.clients[cluster.owner(slot)]
        for number, key in enumerate(keys):
            client.set(OLD + key, tag if number < 10 else a_tag(), px=60_000)
        ends = cluster.begin_move(slot)
        cluster.move_keys(slot, *ends, most=15)
        assert await store.count(b"\x04") == 30
        assert await found(store, tag) == keys[:10]
        assert await found(store, b"\x04") == keys
        assert await found(store, b"\x04") == keys

    side(check, cluster.url)


# The walk over all keys


def test_a_server_that_a_replica_replaces_during_a_listing_is_read_anew(side: Side) -> None:
    """The cursor of one server means nothing to another."""
    with pair() as (old, new), Forwarder(old.port) as name:

        async def check(store: RedisStore) -> None:
            keys = await sessions(store, 2000)
            offset = re.findall(rb"master_repl_offset:(\d+)", old.command("INFO", "replication"))[0]
            until(lambda: b"slave_repl_offset:" + offset in new.command("INFO", "replication"))
            pages = 0

            def fail_over(answer: bytes) -> bytes:
                nonlocal pages
                pages += answer.startswith(b"*") and b"cm_auth:s:" in answer
                if pages == 2 and name.port == old.port:
                    name.port = new.port
                    new.command("REPLICAOF", "NO", "ONE")
                    old.stop()
                return answer

            name.answered = fail_over
            assert await found(store, b"\x04") == sorted(keys)
            assert name.port == new.port

        side(check, name.url)


# What an older release stored


def test_a_record_under_the_old_prefix_is_moved_with_the_time_that_it_has_left(
    side: Side, server: RedisServer, redis: Redis
) -> None:
    async def check(store: RedisStore) -> None:
        tag = a_tag()
        for key in ("got", "replaced", "not replaced", "put", "deleted", "grant.1"):
            redis.set(OLD + key, tag + b" old", px=30_000)
        assert await store.get("got") == tag + b" old"
        assert await store.get("grant.1") == tag + b" old"
        for key in ("got", "grant.1"):
            assert 20_000 < int(redis.pttl(f"cm_auth:s:{key}")) <= 30_000
        assert await store.replace("replaced", tag + b" old", tag + b" new", 60)
        assert await store.get("replaced") == tag + b" new"
        assert not await store.replace("not replaced", b"other", tag + b" new", 60)
        assert await store.get("not replaced") == tag + b" old"
        await store.put("put", tag + b" put", 60)
        assert await store.get("put") == tag + b" put"
        assert await store.delete("deleted") == tag + b" old"
        assert await store.delete("deleted") is None
        assert await store.get("deleted") is None
        assert all(b"gone" in redis.get(name) for name in redis.keys("{cm_auth}*"))
        assert await store.count() == 5
        assert await found(store, tag) == ["got", "grant.1", "not replaced", "put", "replaced"]
        for key in ("got", "replaced", "put"):
            assert await store.delete(key)
            assert await store.get(key) is None

    side(check, server.url)


def test_a_prefix_of_one_s_own_takes_nothing_from_the_old_one(
    side: Side, server: RedisServer, redis: Redis
) -> None:
    async def check(store: RedisStore) -> None:
        redis.set(f"{OLD}k", a_tag(), px=30_000)
        assert await store.get("k") is None
        assert await store.delete("k") is None
        assert await store.count() == 0
        assert await store.find(b"") == []
        assert redis.exists(f"{OLD}k")

    side(check, server.url, prefix="mine:")


def test_of_processes_that_move_and_end_sessions_at_once_the_end_wins(cluster: Cluster) -> None:
    old = cluster.clients[cluster.owner(key_slot(OLD.encode()))]
    keys = [a_key() for _ in range(300)]
    ended, deleted = set(keys[::2]), Counter[str]()
    tag = a_tag()
    for key in keys:
        old.set(OLD + key, tag + key.encode(), px=60_000)
    stores = [RedisStore(cluster.url).blocking() for _ in range(6)]  # each as in its own process
    ready = threading.Barrier(6)

    def use(number: int) -> None:
        store = stores[number]
        ready.wait()
        for key in keys:
            if number % 3 == 0 and key in ended:
                deleted[key] += run(store.delete(key)) is not None
            else:
                value = run(store.get(key))
                assert value or key in ended, "it was never missing"
                if value and number % 3 == 1:
                    run(store.replace(key, value, value + b"!", 60))

    crowd = [threading.Thread(target=use, args=[number]) for number in range(6)]
    for member in crowd:
        member.start()
    for member in crowd:
        member.join()
    store = stores[0]
    kept = {key for key in keys if run(store.get(key)) is not None}
    assert kept == set(keys) - ended
    assert set(deleted) >= ended
    assert {key for key, _ in run(store.find(tag))} == kept
    assert run(store.count()) == len(kept)
    for each in stores:
        run(each.close())
