"""A cluster of three primaries with a replica each: slots move, nodes stand still and come back."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial

import anyio
import pytest
from redis.crc import key_slot

from cm_auth_middleware import SessionStore, StoreError
from cm_auth_middleware.stores import RedisStore
from tests.helpers.servers import Forwarder, RedisServer, free_port, redis_server, until
from tests.helpers.stores import checks_of, run

pytestmark = pytest.mark.slow

PREFIX = "cm:"  # without braces, so that the keys are spread over the slots


class Cluster:
    """Six nodes; the first three begin as primaries. The first has a forwarder before it."""

    def __init__(self, stack: ExitStack) -> None:
        self.nodes: list[RedisServer] = []
        for number in range(6):
            bus = str(free_port())
            options = ["--cluster-enabled", "yes", "--cluster-port", bus]
            if number == 0:
                self.name = stack.enter_context(Forwarder(0))
                options += ["--cluster-announce-port", str(self.name.listens_at)]
            options += ["--cluster-node-timeout", "1500", "--repl-diskless-sync-delay", "0"]
            self.nodes.append(stack.enter_context(redis_server(*options)))
        self.name.port = self.nodes[0].port
        addresses = [f"127.0.0.1:{node.port}" for node in self.nodes]
        command = ["redis-cli", "--cluster", "create", *addresses]
        command += ["--cluster-replicas", "1", "--cluster-yes"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
        for node in self.nodes:
            until(lambda node=node: b"cluster_state:ok" in node.command("CLUSTER", "INFO"))
            until(lambda node=node: node.command("CLUSTER", "NODES").count(b"slave ") == 3)
        self.url = "redis+cluster://" + ",".join(addresses)
        self.ids = {
            node.port: node.command("CLUSTER", "MYID").split(b"\r\n")[1].decode()
            for node in self.nodes
        }

    def owner(self, key: str, *, asked: int = -1, kind: str = "s") -> RedisServer:
        """The primary of a record (or another kind of key), as one of the nodes knows it."""
        slot = key_slot(f"{PREFIX}{kind}:{key}".encode())
        for line in self.nodes[asked].command("CLUSTER", "NODES").decode().splitlines():
            words = line.split()
            for first, _, last in (part.partition("-") for part in words[8:] if "[" not in part):
                if int(first) <= slot <= int(last or first):
                    port = int(words[1].split("@")[0].split(":")[1])
                    port = self.name.port if port == self.name.listens_at else port
                    return next(node for node in self.nodes if node.port == port)
        raise AssertionError("no node has the slot")

    def move(self, key: str, target: RedisServer, meanwhile: Callable[[], None]) -> None:
        """Move the slot of a record; do something while it is between two nodes."""
        slot = str(key_slot(f"{PREFIX}s:{key}".encode()))
        source = self.owner(key)
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[source.port])
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[target.port])
        meanwhile()
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, "10").split(b"\r\n")[2::2]:
            for name in keys:
                source.command("MIGRATE", "127.0.0.1", str(target.port), name.decode(), "0", "5000")
        meanwhile()
        for node in (target, source):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", self.ids[target.port])


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack)


@pytest.fixture(params=["asyncio", "trio", "threads"])
def side(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a check with a store, on each side."""
    return checks_of(request.param, partial(RedisStore, prefix=PREFIX))


def in_the_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_slots_that_move_are_followed_without_an_error(
    cluster: Cluster, side: Callable[..., None]
) -> None:
    written: dict[str, bytes] = {}

    async def check(store: SessionStore) -> None:
        async def use() -> None:
            for key in ("mine", *(f"{{{PREFIX}s:mine}}{n}" for n in range(3))):
                value = os.urandom(8)
                old = written.get(key)
                if old is None:
                    await store.put(key, value, 600)
                else:
                    assert await store.get(key) == old
                    assert await store.replace(key, old, value, 600)
                written[key] = value
            assert await store.acquire("mine", "owner", 60)
            await store.release("mine", "owner")

        for number in range(6):
            await use()
            turns: list[threading.Event] = []

            def meanwhile(turns: list[threading.Event] = turns) -> None:
                turns.append(threading.Event())
                assert turns[-1].wait(30)

            target = cluster.nodes[number % 3]
            if target is cluster.owner("mine"):
                target = cluster.nodes[(number + 1) % 3]
            mover = in_the_background(lambda t=target, m=meanwhile: cluster.move("mine", t, m))  # type: ignore[misc]
            for turn in range(2):
                until(lambda turn=turn, turns=turns: len(turns) > turn)
                await use()
                turns[turn].set()
            mover.join()
            await use()
        assert await store.delete("mine") == written["mine"]

    side(check, cluster.url)


def test_a_node_that_stands_still_cuts_off_no_other(
    cluster: Cluster, side: Callable[..., None]
) -> None:
    keys = [f"k{number}" for number in range(60)]
    silent = cluster.owner("k0")
    for node in cluster.nodes[3:]:  # nobody can take its place
        node.command("CONFIG", "SET", "cluster-replica-no-failover", "yes")
    for node in cluster.nodes:
        node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
    others = [key for key in keys if cluster.owner(key) is not silent]
    ours = [key for key in keys if key not in others]

    async def check(store: SessionStore) -> None:
        for key in keys:
            await store.put(key, b"v", 600)
        silent.pause()
        for _ in range(2):
            with pytest.raises(StoreError, match="did not answer in time"):
                await store.get(ours[0])
        slow = 0
        began = time.monotonic()
        while time.monotonic() < began + 4:
            for key in others:
                at = time.monotonic()
                assert await store.get(key) == b"v"
                assert time.monotonic() < at + 2, "one question for the map may be slow"
            for key in ours:
                at = time.monotonic()
                try:
                    await store.get(key)
                except StoreError:
                    slow += time.monotonic() > at + 0.5
        assert slow <= 5
        silent.resume()
        until_answered = time.monotonic() + 4
        while True:
            try:
                assert await store.get(ours[1]) == b"v"
                break
            except StoreError:
                assert time.monotonic() < until_answered
        for key in keys:
            assert await store.get(key) == b"v"

    side(check, f"{cluster.url}?socket_timeout=0.8")


@pytest.mark.parametrize("seconds", [1.0, 3.0, 8.0])
def test_nothing_is_lost_when_a_primary_stands_still_and_comes_back(
    cluster: Cluster, side: Callable[..., None], seconds: float
) -> None:
    keys = [f"k{number}" for number in range(100)]
    confirmed = dict.fromkeys(keys, b"0")
    tried: dict[str, set[bytes]] = {key: set() for key in keys}
    still = cluster.owner("k0")
    replies: list[str] = []

    async def check(store: SessionStore) -> None:
        for key in keys:
            await store.put(key, b"0", 600)
        time.sleep(1)  # noqa: ASYNC251 - the replicas have it
        still.pause()
        waker = threading.Timer(seconds, still.resume)
        waker.start()
        over = time.monotonic() + seconds + 4
        number = 0
        while time.monotonic() < over:
            number += 1
            for key in keys:
                new = b"%d" % number
                try:
                    if await store.replace(key, confirmed[key], new, 600):
                        confirmed[key] = new
                        tried[key].clear()
                    else:
                        found = await store.get(key)
                        assert found in tried[key], "what was confirmed is lost"
                        confirmed[key] = found
                except StoreError as error:
                    tried[key].add(new)
                    replies.append(str(error))
        waker.join()

    side(check, f"{cluster.url}?socket_timeout=1.5")
    store = RedisStore(cluster.url, prefix=PREFIX).blocking()
    for key in keys:
        assert run(store.get(key)) in {confirmed[key], *tried[key]}, key
    run(store.close())
    if seconds > 4:
        assert cluster.owner("k0") is not still


@pytest.mark.parametrize("threads", [False, True])
def test_a_late_answer_of_a_node_that_was_replaced_does_not_count(
    cluster: Cluster, threads: bool
) -> None:
    """Its replica knew nothing of the write, whose answer was long on its way."""
    still = cluster.nodes[0]
    key = next(f"k{n}" for n in range(100) if cluster.owner(f"k{n}") is still)
    replica = next(
        node for node in cluster.nodes[3:] if cluster.ids[still.port].encode() in _myself(node)
    )
    for node in cluster.nodes[3:]:
        node.command("CONFIG", "SET", "cluster-replica-validity-factor", "0")
    loops = RedisStore(f"{cluster.url}?socket_timeout=30", prefix=PREFIX)
    store = loops.blocking() if threads else loops
    asked, answer_now = threading.Event(), threading.Event()

    def held(answer: bytes) -> bytes:
        if not asked.is_set():
            asked.set()
            assert answer_now.wait(60)
        return answer

    def stand_still() -> None:
        assert asked.wait(20)
        still.pause()
        replica.resume()
        until(lambda: cluster.owner(key) is replica)
        until(lambda: cluster.owner(key, asked=1) is replica)
        until(lambda: cluster.owner(key, asked=2) is replica)
        answer_now.set()

    async def ask() -> bool:
        await store.put(key, b"0", 600)
        assert await store.replace(key, b"-", b"0", 600) is False  # it knows the script
        time.sleep(1)  # noqa: ASYNC251 - the replica has it
        replica.pause()
        still.command("CLIENT", "KILL", "TYPE", "replica")
        cluster.name.answered = held
        operator = in_the_background(stand_still)
        answer = await store.replace(key, b"0", b"1", 600)
        operator.join()
        await store.close()
        return answer

    assert (run(ask()) if threads else anyio.run(ask)) is True
    assert replica.command("GET", f"{PREFIX}s:{key}") == b"$1\r\n1\r\n"
    still.resume()


def test_sessions_are_found_whose_index_a_failover_lost(
    cluster: Cluster, side: Callable[..., None]
) -> None:
    """An index and the records that it names are on several nodes, of which one loses writes."""
    for node in cluster.nodes[3:]:
        node.command("CONFIG", "SET", "cluster-replica-validity-factor", "0")
    tag = next(
        tag
        for tag in (b"s" + bytes([n]) * 16 for n in range(1, 100))
        if cluster.owner(tag.hex(), kind="u") is cluster.nodes[1]
    )
    fails = cluster.nodes[1]
    replica = next(
        node for node in cluster.nodes[3:] if cluster.ids[fails.port].encode() in _myself(node)
    )
    keys = [f"k{n}" for n in range(40) if cluster.owner(f"k{n}") is not fails][:6]

    async def check(store: SessionStore) -> None:
        await store.put(keys[0], tag + b"first", 600)
        assert len(await store.find(tag)) == 1
        time.sleep(1)  # noqa: ASYNC251 - the replica has it
        replica.pause()
        fails.command("CLIENT", "KILL", "TYPE", "replica")
        for key in keys[1:]:
            await store.put(key, tag + b"later", 600)
        assert len(await store.find(tag)) == len(keys)
        fails.pause()
        replica.resume()
        until(lambda: all(cluster.owner(tag.hex(), kind="u", asked=n) is replica for n in (0, 2)))
        assert len(replica.command("ZRANGE", f"{PREFIX}u:{tag.hex()}", "0", "-1").split()) == 3
        until(lambda: b"cluster_state:ok" in cluster.nodes[0].command("CLUSTER", "INFO"))
        while True:
            with suppress(StoreError):  # it has to learn of the new primary
                assert {key for key, _ in await store.find(tag)} == set(keys)
                break

    try:
        side(check, cluster.url)
    finally:
        fails.resume()


def _myself(node: RedisServer) -> bytes:
    lines = node.command("CLUSTER", "NODES").splitlines()
    return next(line for line in lines if b"myself" in line)
