"""Redis: every kind of deployment, and what happens when it is in trouble."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from redis.asyncio.connection import AbstractConnection

from cm_auth_middleware import ConfigError, SessionStore, StoreError
from cm_auth_middleware.stores import RedisStore, open_store, redis_clients
from cm_auth_middleware.stores.circuit_breaker import TRY_EVERY
from cm_auth_middleware.testing import StoreConformance
from tests.helpers.certificates import signed
from tests.helpers.servers import (
    REFUSALS,
    Forwarder,
    RedisServer,
    clients_of,
    exchange,
    free_port,
    pair,
    redis_server,
    until,
)
from tests.helpers.stores import INCREMENTS, checks_of, finish, increment, run, start

pytestmark = pytest.mark.slow

SECRET = "pass-word/that?nobody#sees"
QUOTED = "pass-word%2Fthat%3Fnobody%23sees"
Both = Callable[[Callable[[SessionStore], Coroutine[Any, Any, Any]]], Any]


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    """A server for tests that leave it as it is."""
    with redis_server() as server:
        yield server


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server for tests that break it."""
    with redis_server("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture(params=["asyncio", "trio", "threads"])
def side(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a check with a store, on each side."""
    return checks_of(request.param, RedisStore)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_needs_none_of_the_threads_that_everybody_shares(shared, backend) -> None:
    """They may all wait for what the store will say."""

    async def check() -> None:
        store = RedisStore(shared.url)
        over = threading.Event()
        everybodys = anyio.to_thread.current_default_thread_limiter()
        async with anyio.create_task_group() as group:
            for _ in range(int(everybodys.total_tokens)):
                group.start_soon(anyio.to_thread.run_sync, over.wait)
            await anyio.wait_all_tasks_blocked()
            assert everybodys.available_tokens == 0
            try:
                with anyio.fail_after(10):
                    assert await store.get("nothing") is None
            finally:
                over.set()
        await store.close()

    anyio.run(check, backend=backend)


# The protocol, on every kind of deployment


class OnRedis(StoreConformance):
    url = ""

    def make_store(self) -> SessionStore:
        store = open_store(self.url)
        assert isinstance(store, RedisStore)
        return store.blocking() if self.blocking else store


class TestRedisStore(OnRedis):
    @pytest.fixture(autouse=True)
    def _given(self, shared: RedisServer) -> None:
        self.url = shared.url


class TestRedisStoreForThreads(TestRedisStore):
    blocking = True


class TestRedisStoreOnTrio(TestRedisStore):
    backend = "trio"


class TestUnixSocket(OnRedis):
    @pytest.fixture(autouse=True)
    def _given(self, shared: RedisServer) -> None:
        self.url = f"unix://{shared.socket}?db=3"


class TestUnixSocketForThreads(TestUnixSocket):
    blocking = True


class TestTLS(OnRedis):
    @pytest.fixture(autouse=True)
    def _given(self, tls: tuple[str, str]) -> None:
        self.url = "?ssl_ca_certs=".join(tls)


class TestTLSForThreads(TestTLS):
    blocking = True


class TestSentinel(OnRedis):
    @pytest.fixture(autouse=True)
    def _given(self, sentinel: str) -> None:
        self.url = sentinel


class TestSentinelForThreads(TestSentinel):
    blocking = True


class TestCluster(OnRedis):
    @pytest.fixture(autouse=True)
    def _given(self, cluster: str) -> None:
        self.url = cluster


class TestClusterForThreads(TestCluster):
    blocking = True


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of a server with a certificate of an own authority, and that authority's file."""
    directory = tmp_path_factory.mktemp("tls")
    signed(directory)
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    for option, name in (("cert", "server.pem"), ("key", "server.key"), ("ca-cert", "ca.pem")):
        options += [f"--tls-{option}-file", str(directory / name)]
    with redis_server(*options, port=0):
        yield f"rediss://127.0.0.1:{port}/0", str(directory / "ca.pem")


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory, shared: RedisServer) -> Iterator[str]:
    with watching(tmp_path_factory.mktemp("sentinel"), shared) as (_, url):
        yield f"redis+sentinel://127.0.0.1:1,{url}/mymaster?db=2"  # the first does not answer


@contextlib.contextmanager
def watching(directory: Path, primary: RedisServer) -> Iterator[tuple[RedisServer, str]]:
    """Run a sentinel that watches `primary`; yield it and its address."""
    file = directory / "sentinel.conf"
    file.write_text(
        f"sentinel monitor mymaster 127.0.0.1 {primary.port} 1\n"
        "sentinel down-after-milliseconds mymaster 500\n"
        "sentinel failover-timeout mymaster 2000\n"
    )
    with redis_server(sentinel=file) as server:
        yield server, f"127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with redis_server("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        until(lambda: b"cluster_state:ok" in server.command("CLUSTER", "INFO"))
        yield f"redis+cluster://127.0.0.1:{server.port},127.0.0.1:1"


async def elapse(seconds: float) -> None:
    """Wait, on any side."""
    try:
        await anyio.sleep(seconds)
    except RuntimeError:  # no event loop
        time.sleep(seconds)  # noqa: ASYNC251


async def fails(call: Coroutine[Any, Any, Any], sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence) as caught:
        await call
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None, "what redis-py raised is not chained"


async def all_fail(store: SessionStore, sentence: str) -> None:
    await fails(store.get("k"), sentence)
    await fails(store.put("k", b"w", 60), sentence)
    await fails(store.replace("k", b"v", b"w", 60), sentence)
    await fails(store.delete("k"), sentence)
    await fails(store.acquire("k", "owner", 60), sentence)
    await fails(store.release("k", "owner"), sentence)
    await fails(store.ping(), sentence)


# What is in Redis


def test_every_key_has_the_prefix_and_an_end(shared: RedisServer) -> None:
    async def use(store: RedisStore) -> None:
        await store.put("k", b"v", 60)
        await store.replace("k", b"v", b"w", 60)
        await store.acquire("k", "owner", 60)
        await store.ping()
        await store.close()

    shared.command("FLUSHALL")
    run(use(RedisStore(shared.url).blocking()))
    keys = re.findall(rb"cm_auth:\S+", shared.command("KEYS", "*"))
    assert sorted(keys) == [b"cm_auth:l:k", b"cm_auth:ping", b"cm_auth:s:k"]
    assert shared.command("DBSIZE") == b":3\r\n"
    for key in keys:
        assert int(shared.command("PTTL", key.decode())[1:]) > 0, key


def test_stores_of_different_prefixes_see_nothing_of_each_other(shared: RedisServer) -> None:
    async def use(one: RedisStore, two: RedisStore) -> None:
        await one.put("k", b"1", 60)
        await two.put("k", b"2", 60)
        assert (await one.get("k"), await two.get("k")) == (b"1", b"2")
        assert await one.find(b"") == [("k", b"1")]
        assert await two.find(b"") == [("k", b"2")]
        assert await one.count() == await two.count() == 1
        await one.close()

    # The first, taken for a pattern, would match the second.
    stores = (RedisStore(shared.url, prefix=prefix).blocking() for prefix in ("{*}?[a]:", "{b}xa:"))
    run(use(*stores))


def test_a_listing_has_all_pages(shared: RedisServer) -> None:
    async def use(store: RedisStore) -> None:
        for number in range(1500):
            await store.put(f"key {number}", b"prefix %d" % number, 60)
        found = await store.find(b"prefix ")
        assert sorted(found) == sorted((f"key {n}", b"prefix %d" % n) for n in range(1500))
        assert await store.count() == 1500
        await store.close()

    run(use(RedisStore(shared.url, prefix="{listing}:").blocking()))


def test_scripts_are_sent_again_when_redis_forgot_them(
    side: Callable[..., None], server: RedisServer
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("k", b"v", 60)
        for number in range(3):
            server.command("SCRIPT", "FLUSH")
            assert await store.acquire("k", "owner", 60)
            server.command("SCRIPT", "FLUSH")
            assert await store.replace("k", b"v", b"v", 60), number

    side(check, server.url)


# Outages


def test_a_server_that_is_gone_is_an_error_until_it_is_back(
    side: Callable[..., None], server: RedisServer
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("k", b"v", 60)
        server.stop()
        await all_fail(store, "cannot be reached")
        server.start()
        assert await store.get("k") == b"v"
        assert await store.replace("k", b"v", b"w", 60)

    side(check, server.url)


def test_a_restart_between_two_requests_is_not_noticed(
    side: Callable[..., None], server: RedisServer
) -> None:
    async def check(store: SessionStore) -> None:
        for method in ("get", "replace", "delete"):
            await store.put("k", b"v", 60)
            server.stop()
            server.start()
            await elapse(0.05)  # an event loop has to see that the connection is gone
            if method == "get":
                assert await store.get("k") == b"v"
            elif method == "replace":
                assert await store.replace("k", b"v", b"w", 60)
            else:
                assert await store.delete("k") == b"v"

    side(check, server.url)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_connection_that_closes_just_before_it_is_written_to_is_not_noticed(
    shared: RedisServer, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    """uvloop has an error of its own for that, a RuntimeError, which redis-py hands on."""
    send, closed = AbstractConnection.send_packed_command, []

    async def closing(self: Any, *arguments: Any, **options: Any) -> None:
        if not closed:
            closed.append(self)
            self._writer.transport.abort()
        await send(self, *arguments, **options)

    async def check() -> None:
        store = RedisStore(shared.url)
        await store.put("k", b"v", 60)
        monkeypatch.setattr(AbstractConnection, "send_packed_command", closing)
        assert await store.get("k") == b"v"
        closed.clear()
        assert await store.replace("k", b"v", b"w", 60)
        closed.clear()
        with pytest.raises(StoreError, match="cannot be reached"):
            await store.delete("k")  # twice could answer "not there" for what was there
        assert await store.delete("k") == b"w"
        await store.close()

    anyio.run(check, backend_options={"use_uvloop": loop == "uvloop"})


def test_a_server_that_stands_still_for_two_seconds_is_waited_for(
    side: Callable[..., None], server: RedisServer
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("k", b"v", 60)
        server.pause()
        threading.Timer(2, server.resume).start()
        assert await store.replace("k", b"v", b"w", 60)
        server.pause()
        threading.Timer(2, server.resume).start()
        assert await store.get("k") == b"w"

    side(check, server.url)


def test_a_server_that_stands_still_for_longer_is_an_error(
    side: Callable[..., None], server: RedisServer
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("k", b"v", 60)
        server.pause()
        await fails(store.get("k"), "did not answer in time")
        await fails(store.delete("k"), "did not answer in time")
        server.resume()
        await elapse(TRY_EVERY)  # two time-outs in a row open the circuit breaker
        await store.put("k", b"w", 60)
        assert await store.get("k") == b"w"

    side(check, f"{server.url}?socket_timeout=0.3")


def test_an_answer_that_nobody_waits_for_is_not_given_to_the_next(server: RedisServer) -> None:
    async def check() -> None:
        store = RedisStore(f"{server.url}?max_connections=1")
        await store.put("mine", b"of one user", 60)
        await store.put("yours", b"of another", 60)
        server.pause()
        with anyio.move_on_after(0.2):  # a client hangs up
            await store.get("mine")
        server.resume()
        assert await store.get("yours") == b"of another"
        assert await store.get("mine") == b"of one user"
        await store.close()

    anyio.run(check)


class Cutter:
    """A proxy that hands a request on and then cuts the connection instead of answering."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cut_at: bytes | None = None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}/0"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=[client], daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.port)) as server:
            while request := client.recv(65536):
                server.sendall(request)
                answer = server.recv(65536)
                if self.cut_at and self.cut_at in request and not answer.startswith(b"-NOSCRIPT"):
                    self.cut_at = None
                    return
                client.sendall(answer)


@pytest.fixture
def cutter(shared: RedisServer) -> Iterator[Cutter]:
    cutter = Cutter(shared.port)
    yield cutter
    cutter.listener.close()


def test_a_replace_whose_answer_is_lost_says_that_it_replaced(
    side: Callable[..., None], cutter: Cutter
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("k", b"old", 60)
        cutter.cut_at = b"EVAL"
        assert await store.replace("k", b"old", b"new", 60)
        assert cutter.cut_at is None, "the connection was cut"
        assert await store.get("k") == b"new"
        cutter.cut_at = b"EVAL"
        assert not await store.replace("k", b"old", b"newer", 60), "and no more than that"

    side(check, cutter.url)


def test_a_delete_whose_answer_is_lost_does_not_say_that_nothing_was_there(
    side: Callable[..., None], cutter: Cutter
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("k", b"v", 60)
        cutter.cut_at = b"EVAL"
        await fails(store.delete("k"), "cannot be reached")
        assert await store.get("k") is None

    side(check, cutter.url)


def test_what_may_run_twice_does_when_an_answer_is_lost(
    side: Callable[..., None], cutter: Cutter
) -> None:
    async def check(store: SessionStore) -> None:
        cutter.cut_at = b"SET"
        await store.put("k", b"v", 60)
        cutter.cut_at = b"GET"
        assert await store.get("k") == b"v"
        cutter.cut_at = b"EVAL"
        assert await store.acquire("a lease", "one", 60)
        cutter.cut_at = b"EVAL"
        await store.release("a lease", "one")
        assert await store.acquire("a lease", "two", 60)
        await store.release("a lease", "two")
        assert cutter.cut_at is None

    side(check, cutter.url)


# Refusals


def test_a_replica_is_an_error_until_it_is_a_primary(
    side: Callable[..., None], server: RedisServer
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("k", b"v", 60)
        server.command("REPLICAOF", "127.0.0.1", "1")
        await fails(store.put("k", b"w", 60), "replica")
        await fails(store.replace("k", b"v", b"w", 60), "replica")
        await fails(store.delete("k"), "replica")
        await fails(store.ping(), "replica")
        server.command("REPLICAOF", "NO", "ONE")
        assert await store.delete("k") == b"v"

    side(check, server.url)


def test_a_full_memory_is_an_error_and_reading_goes_on(
    side: Callable[..., None], server: RedisServer
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("k", b"v", 60)
        server.command("CONFIG", "SET", "maxmemory", "1")
        await fails(store.put("k", b"w", 60), "out of memory")
        await fails(store.replace("k", b"v", b"w", 60), "out of memory")
        await fails(store.ping(), "out of memory")
        assert await store.get("k") == b"v"
        server.command("CONFIG", "SET", "maxmemory", "0")
        await store.put("k", b"w", 60)

    side(check, server.url)


def test_a_server_busy_with_a_script_is_an_error_until_it_is_done(
    side: Callable[..., None], server: RedisServer
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("k", b"v", 60)
        server.command("CONFIG", "SET", "busy-reply-threshold", "50")
        endless = threading.Thread(target=server.command, args=["EVAL", "while 1 do end", "0"])
        endless.start()
        until(lambda: server.command("PING").startswith(b"-BUSY"))
        await fails(store.get("k"), "BUSY")
        await fails(store.delete("k"), "BUSY")
        server.command("SCRIPT", "KILL")
        endless.join()
        assert await store.get("k") == b"v"

    side(check, server.url)


def test_a_server_that_loads_is_an_error_until_it_has_loaded(
    side: Callable[..., None], server: RedisServer
) -> None:
    async def check(store: SessionStore) -> None:
        for number in range(200):
            await store.put(f"k{number}", b"v" * 1000, 60)
        server.stop()
        # Options for Redis's own tests: 0.1 s for each key, and an ear for clients in between.
        slow = ["--key-load-delay", "100000", "--loading-process-events-interval-bytes", "1024"]
        server.options += slow
        server.start(loaded=False)
        await fails(store.get("k1"), "loading|cannot be reached")
        await fails(store.delete("k1"), "loading|cannot be reached")
        server.stop()
        del server.options[-4:]
        server.start()
        assert await store.delete("k1") == b"v" * 1000

    side(check, server.url)


def everything_about(error: BaseException, store: RedisStore) -> str:
    parts = [repr(error), str(error), *traceback.format_exception(error), repr(store)]
    parts += [
        repr(vars(store)),
        *(repr(vars(value)) for value in vars(store).values() if vars_of(value)),
    ]
    return "\n".join(parts)


def vars_of(value: Any) -> bool:
    return hasattr(value, "__dict__")


@pytest.mark.parametrize("where", ["refused", "denied", "unreachable"])
def test_a_password_is_in_no_message(
    where: str, side: Callable[..., None], caplog: pytest.LogCaptureFixture, server: RedisServer
) -> None:
    caplog.set_level(logging.DEBUG)
    server.command("ACL", "SETUSER", "cm", "on", f">{SECRET}", "~*", "+ping", "+get")
    host = f"127.0.0.1:{server.port}"
    url = {
        "refused": f"redis://cm:wrong-{QUOTED}@{host}/0",
        "denied": f"redis://cm:{QUOTED}@{host}/0",
        "unreachable": f"redis://cm:{QUOTED}@127.0.0.1:1/0",
    }[where]
    sentence = {"refused": "refuses", "denied": "permit", "unreachable": "reached"}[where]

    async def check(store: SessionStore) -> None:
        with pytest.raises(StoreError, match=sentence) as caught:
            await store.put("key-of-a-session", b"value-of-a-session", 60)
        assert isinstance(store, RedisStore)
        told = everything_about(caught.value, store) + caplog.text
        for secret in (SECRET, QUOTED, "key-of-a-session", "value-of-a-session"):
            # The test's own call is in the traceback.
            assert secret not in told.replace('"key-of-a-session", b"value-of-a-session"', "")

    side(check, url)


def test_the_right_password_opens(side: Callable[..., None]) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("k", b"v", 60)
        assert await store.get("k") == b"v"

    with redis_server() as server:
        server.command("CONFIG", "SET", "requirepass", SECRET)
        side(check, f"redis://:{QUOTED}@127.0.0.1:{server.port}/0")


def test_certificates_are_verified(side: Callable[..., None], tls: tuple[str, str]) -> None:
    url, authority = tls

    async def unknown(store: SessionStore) -> None:
        await fails(store.get("k"), "cannot be reached.*certificate")

    async def misnamed(store: SessionStore) -> None:
        await fails(store.get("k"), "cannot be reached.*not valid for 'localhost'")

    async def accepted(store: SessionStore) -> None:
        assert await store.get("k") is None

    side(unknown, url)
    side(misnamed, f"{url.replace('127.0.0.1', 'localhost')}?ssl_ca_certs={authority}")
    side(accepted, f"{url}?ssl_ca_certs={authority}")


# Many at once


def test_more_requests_than_connections_wait_their_turn(server: RedisServer) -> None:
    async def check() -> None:
        store = RedisStore(server.url)
        await store.put("k", b"v", 60)
        most = 0

        async def ask(number: int) -> None:
            nonlocal most
            assert await store.get("k") == b"v"
            if number % 100 == 0:
                most = max(most, server.command("CLIENT", "LIST").count(b"id="))

        async with anyio.create_task_group() as group:
            for number in range(500):
                group.start_soon(ask, number)
        assert most <= 51, "50, and the one of the test"
        await store.close()

    anyio.run(check)


def test_threads_wait_their_turn_too(shared: RedisServer) -> None:
    store = RedisStore(f"{shared.url}?max_connections=2").blocking()
    run(store.put("k", b"0", 60))

    threads = [threading.Thread(target=lambda: run(increment(store, "k", 10))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run(store.get("k")) == b"120"
    run(store.close())


@pytest.mark.parametrize("threads", [False, True])
def test_who_waits_for_a_connection_for_too_long_is_told(
    threads: bool, server: RedisServer
) -> None:
    url = f"{server.url}?max_connections=1&socket_timeout=8"
    store = RedisStore(url).blocking() if threads else RedisStore(url)
    failures: list[str] = []

    async def ask() -> None:
        try:
            await store.get("k")
        except StoreError as error:
            failures.append(str(error))

    async def crowd() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask)
        await store.close()

    server.pause()
    resume = threading.Timer(6.5, server.resume)
    resume.start()
    if threads:
        crowd_of_threads = [threading.Thread(target=lambda: run(ask())) for _ in range(3)]
        for thread in crowd_of_threads:
            thread.start()
        for thread in crowd_of_threads:
            thread.join()
        run(store.close())
    else:
        anyio.run(crowd)
    resume.join()
    assert len(failures) == 2, "the first has the connection and its answer"
    assert all("too slow" in failure for failure in failures)


def test_several_event_loops_and_threads_share_one_store(shared: RedisServer) -> None:
    store = RedisStore(shared.url, prefix="{loops}:")

    async def on_a_loop() -> None:
        await increment(store, "k", 20)
        await store.close()

    run(store.blocking().put("k", b"0", 60))
    threads = [threading.Thread(target=lambda: asyncio.run(on_a_loop())) for _ in range(4)]
    threads.append(threading.Thread(target=lambda: anyio.run(on_a_loop, backend="trio")))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run(store.blocking().get("k")) == b"100"
    run(store.blocking().close())


def test_four_processes_lose_no_increment(shared: RedisServer) -> None:
    store = RedisStore(shared.url).blocking()
    run(store.put("compared", b"0", 600))
    run(store.put("guarded", b"0", 600))
    processes = [start(INCREMENTS, shared.url, 100) for _ in range(4)]
    assert [finish(process) for process in processes] == [0] * 4
    assert run(store.get("compared")) == b"400"
    assert run(store.get("guarded")) == b"400"
    run(store.close())


def test_a_fork_shares_no_connection_with_its_parent(shared: RedisServer) -> None:
    # Sharing a socket would mix up answers: each asks many times for a key of its own.
    code = """
    async def ask(store, name):
        for _ in range(300):
            assert await store.get(name) == name.encode(), name

    twin = store.blocking()
    names = ["parent", "child 0", "child 1"]
    for name in names:
        run(twin.put(name, name.encode(), 60))

    async def main():
        await store.get("parent")
        children = []
        for name in names[1:]:
            pid = os.fork()
            if pid == 0:
                try:
                    asyncio.events._set_running_loop(None)  # as a server's fork finds it
                    run(ask(twin, name))
                    asyncio.new_event_loop().run_until_complete(ask(store, name))
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(pid)
        await ask(store, "parent")
        await ask(twin, "parent")
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        await ask(store, "parent")
        await store.close()
        assert codes == [0, 0], codes

    asyncio.run(main())
    """
    assert finish(start(code, shared.url)) == 0


def test_a_loop_that_was_used_before_a_fork_connects_anew_after_it(server: RedisServer) -> None:
    code = """
    import redis

    def connections():
        with redis.Redis.from_url(sys.argv[1]) as client:
            return len(client.client_list())

    loop = asyncio.new_event_loop()
    loop.run_until_complete(store.put("k", b"v", 60))
    before = connections()
    pid = os.fork()
    if pid == 0:
        value = loop.run_until_complete(store.get("k"))
        os._exit(0 if (value, connections()) == (b"v", before + 1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    loop.run_until_complete(store.close())
    loop.close()
    """
    assert finish(start(code, server.url)) == 0


def test_after_a_failover_the_new_primary_is_used(
    side: Callable[..., None], tmp_path: Path, server: RedisServer
) -> None:
    with contextlib.ExitStack() as stack:
        replica = stack.enter_context(redis_server())
        replica.command("REPLICAOF", "127.0.0.1", str(server.port))
        until(lambda: b"master_link_status:up" in replica.command("INFO", "replication"))
        _, address = stack.enter_context(watching(tmp_path, server))  # it has to find the replica

        async def check(store: SessionStore) -> None:
            await store.put("k", b"v", 60)
            until(lambda: b"k" in replica.command("KEYS", "*k"))
            await elapse(1)
            server.stop()
            deadline = time.monotonic() + 40
            while True:
                try:
                    assert await store.replace("k", b"v", b"w", 60)
                except StoreError:
                    assert time.monotonic() < deadline, "no failover"
                    await elapse(0.1)
                else:
                    break
            assert await store.get("k") == b"w"

        side(check, f"redis+sentinel://{address}/mymaster")


# Another primary, while connections to the old one stay open


WRITES: dict[str, tuple[Callable[[Any], Coroutine[Any, Any, Any]], Any]] = {
    "put": (lambda store: store.put("k", b"w", 60), None),
    "put_all": (lambda store: store.put_all([("k", b"w", 60), ("other", b"w", 60)]), None),
    "replace": (lambda store: store.replace("k", b"v", b"w", 60), True),
    "delete": (lambda store: store.delete("k"), b"v"),
    "acquire": (lambda store: store.acquire("k", "one", 60), True),
    "release": (lambda store: store.release("k", "one"), None),
    "ping": (lambda store: store.ping(), None),
}


@pytest.mark.parametrize("method", WRITES)
def test_after_a_failover_behind_one_name_the_first_call_finds_the_new_primary(
    side: Callable[..., None], method: str
) -> None:
    call, answer = WRITES[method]
    with pair() as (old, new), Forwarder(old.port) as name:

        async def check(store: SessionStore) -> None:
            await store.put("k", b"v", 60)
            if method == "release":  # which would write nothing
                await store.acquire("k", "one", 60)
            exchange(old, new)
            name.port = new.port
            assert await call(store) == answer
            until(lambda: clients_of(old) == 0)
            assert clients_of(new) == 1

        side(check, name.url)


@pytest.mark.parametrize("kind", ["socket", "sentinel", "cluster"])
def test_the_new_primary_is_found_however_it_is_named(
    side: Callable[..., None], kind: str, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        if kind == "cluster":
            # No node of a cluster takes REPLICAOF: this one lacks replicas, and others answer
            # where it was.
            name = stack.enter_context(Forwarder(1))
            options = ["--cluster-enabled", "yes", "--cluster-announce-port", str(name.listens_at)]
            old, new = (
                stack.enter_context(redis_server(*options, "--cluster-port", str(free_port())))
                for _ in range(2)
            )
            for node in (old, new):
                node.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
                until(lambda node=node: b"cluster_state:ok" in node.command("CLUSTER", "INFO"))
            name.port = old.port
            url = name.url.replace("redis://", "redis+cluster://").removesuffix("/0")
        else:
            old, new = stack.enter_context(pair())
        if kind == "socket":
            link = old.directory / "link"
            link.symlink_to(old.socket)
            url = f"unix://{link}"
        if kind == "sentinel":
            sentinel, address = stack.enter_context(watching(tmp_path, old))
            url = f"redis+sentinel://{address}/mymaster"

        def fail_over() -> None:
            if kind == "cluster":
                old.command("CONFIG", "SET", "min-replicas-to-write", "1")
                name.port = new.port
                return
            exchange(old, new)
            if kind == "socket":
                link.unlink()
                link.symlink_to(new.socket)
            else:
                sentinel.command("SENTINEL", "REMOVE", "mymaster")
                sentinel.command("SENTINEL", "MONITOR", "mymaster", "127.0.0.1", str(new.port), "1")

        async def check(store: SessionStore) -> None:
            await store.put("k", b"v", 60)
            fail_over()
            assert await store.delete("k") == (None if kind == "cluster" else b"v")
            await store.put("k", b"w", 60)
            assert await store.get("k") == b"w"
            assert b"k" in new.command("KEYS", "*k")

        side(check, url)


@pytest.mark.parametrize("code", REFUSALS)
def test_a_server_that_takes_no_writes_is_an_error_until_it_does_or_another_is_there(
    side: Callable[..., None], code: str
) -> None:
    make_ill, sentence = REFUSALS[code]
    with redis_server() as server, redis_server() as other, Forwarder(server.port) as name:
        value = os.urandom(1000)  # which Redis cannot store as less

        async def check(store: SessionStore) -> None:
            for number in range(200):
                await store.put(f"k{number}", value, 60)
            make_well = make_ill(server)
            for _ in range(2):
                await fails(store.put("k1", b"w", 60), sentence)
                await fails(store.replace("k1", value, b"w", 60), sentence)
                await fails(store.delete("k1"), sentence)
            if code != "NOREPLICAS":
                await fails(store.get("k1"), sentence)
            make_well()
            assert await store.delete("k1") == value

            make_ill(server)
            await fails(store.put("k", b"w", 60), sentence)
            name.port = other.port
            until_written = time.monotonic() + 3
            while True:  # a new client is made twice a second at most
                try:
                    await store.put("k", b"w", 60)
                except StoreError:
                    assert time.monotonic() < until_written
                    await elapse(0.05)
                else:
                    break
            assert b"k" in other.command("KEYS", "*k")

        side(check, name.url)


def test_a_refusal_in_the_words_of_redis_6_is_one(side: Callable[..., None]) -> None:
    """It puts what a script's command was answered into a sentence."""

    def as_of_6(answer: bytes) -> bytes:
        if not answer.startswith(b"-READONLY"):
            return answer
        return (
            b"-ERR Error running script (call to f_9b5e0f): @user_script:3: @user_script: 3: "
            b"-READONLY You can't write against a read only replica. \r\n"
        )

    with pair() as (old, new), Forwarder(old.port) as name:
        name.answered = as_of_6

        async def check(store: SessionStore) -> None:
            await store.put("k", b"v", 60)
            exchange(old, new)
            await fails(store.delete("k"), "is a replica")  # the name leads there still
            name.port = new.port
            await elapse(redis_clients._RENEW_EVERY)
            assert await store.delete("k") == b"v"

        side(check, name.url)


@pytest.mark.parametrize("threads", [False, True])
def test_a_call_under_way_keeps_its_connection_when_another_finds_a_new_primary(
    threads: bool,
) -> None:
    asked, answer_now = threading.Event(), threading.Event()

    def held(answer: bytes) -> bytes:
        if b"held" in answer:
            asked.set()
            assert answer_now.wait(20)
        return answer

    with pair() as (old, new), Forwarder(old.port) as name:
        store = RedisStore(name.url).blocking() if threads else RedisStore(name.url)
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await store.delete("k"))  # which is not repeated

        async def begin() -> None:
            await store.put("k", b"held", 60)
            name.answered = held

        async def fail_over() -> None:
            await store.put("other", b"v", 60)  # by another connection to the old one
            exchange(old, new)
            name.port = new.port
            await store.put("other", b"w", 60)
            assert answers == []
            await elapse(0.1)
            assert clients_of(old) > 0, "the one in use"
            answer_now.set()

        async def all_on_a_loop() -> None:
            await begin()
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await anyio.to_thread.run_sync(asked.wait, 20)
                await fail_over()
            await store.close()

        if threads:
            run(begin())
            asking = threading.Thread(target=lambda: run(ask()))
            asking.start()
            assert asked.wait(20)
            run(fail_over())
            asking.join()
            run(store.close())
        else:
            anyio.run(all_on_a_loop)
        assert answers == [b"held"]
        until(lambda: clients_of(old) == clients_of(new) == 0)


@pytest.mark.parametrize("threads", [False, True])
def test_who_waits_for_a_connection_meanwhile_gets_one_to_the_new_primary(threads: bool) -> None:
    asked, answer_now = threading.Event(), threading.Event()

    def held(answer: bytes) -> bytes:
        if answer.startswith(b"-READONLY") and not asked.is_set():
            asked.set()
            assert answer_now.wait(20)
        return answer

    with pair() as (old, new), Forwarder(old.port) as name:
        url = f"{name.url}?max_connections=1"
        store = RedisStore(url).blocking() if threads else RedisStore(url)
        name.answered = held

        async def begin() -> None:
            await store.put("k", b"v", 60)
            exchange(old, new)
            name.port = new.port

        async def all_on_a_loop() -> None:
            await begin()
            async with anyio.create_task_group() as group:
                for number in range(5):
                    group.start_soon(store.put, f"k{number}", b"w", 60)
                await anyio.to_thread.run_sync(asked.wait, 20)
                await anyio.wait_all_tasks_blocked()
                answer_now.set()
            await store.close()

        if threads:
            run(begin())
            crowd = [
                threading.Thread(target=lambda key=f"k{n}": run(store.put(key, b"w", 60)))  # type: ignore[misc]
                for n in range(5)
            ]
            for member in crowd:
                member.start()
            assert asked.wait(20)
            answer_now.set()
            for member in crowd:
                member.join()
            run(store.close())
        else:
            anyio.run(all_on_a_loop)
        assert new.command("KEYS", "*k?").count(b"cm_auth:s:k") == 5
        assert name.connections == 2
        until(lambda: clients_of(old) == clients_of(new) == 0)


@pytest.mark.parametrize("threads", [False, True])
def test_closing_lets_calls_under_way_end(threads: bool, shared: RedisServer) -> None:
    asked, answer_now = threading.Event(), threading.Event()

    def held(answer: bytes) -> bytes:
        if b"held" in answer:
            asked.set()
            assert answer_now.wait(20)
        return answer

    with Forwarder(shared.port) as name:
        store = RedisStore(name.url).blocking() if threads else RedisStore(name.url)
        run(RedisStore(shared.url).blocking().put("k", b"held", 60))
        name.answered = held
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await store.delete("k"))

        async def all_on_a_loop() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await anyio.to_thread.run_sync(asked.wait, 20)
                await store.close()
                answer_now.set()
            await store.close()

        if threads:
            asking = threading.Thread(target=lambda: run(ask()))
            asking.start()
            assert asked.wait(20)
            run(store.close())
            answer_now.set()
            asking.join()
        else:
            anyio.run(all_on_a_loop)
        assert answers == [b"held"]
        until(lambda: name.open_connections == 0)


@pytest.mark.parametrize("threads", [False, True])
def test_a_crowd_gets_through_a_failover_with_answers_or_store_errors(threads: bool) -> None:
    with pair() as (old, new), Forwarder(old.port) as name:
        store = RedisStore(name.url).blocking() if threads else RedisStore(name.url)
        over = threading.Event()
        strange: list[BaseException] = []
        written: list[str] = []  # after the failover

        async def write(who: str) -> None:
            deadline = time.monotonic() + 15
            while time.monotonic() < deadline:
                key = f"a key of {who}"
                was_over = over.is_set()
                try:
                    await store.put(key, b"v", 60)
                    replaced = await store.replace(key, b"v", b"w", 60)
                    value = await store.delete(key)
                except StoreError:
                    continue
                except BaseException as error:
                    strange.append(error)
                    raise
                if was_over:
                    assert (replaced, value) == (True, b"w")
                    written.append(who)
                    return

        def fail_over() -> None:
            time.sleep(0.3)
            new.command("REPLICAOF", "NO", "ONE")  # at once: no care is taken of what is under way
            name.port = new.port
            old.command("REPLICAOF", "127.0.0.1", str(new.port))
            over.set()

        crowd = [f"{number}" for number in range(24)]

        async def all_on_a_loop() -> None:
            async with anyio.create_task_group() as group:
                for who in crowd:
                    group.start_soon(write, who)
            await store.close()

        operator = threading.Thread(target=fail_over)
        operator.start()
        if threads:
            members = [
                threading.Thread(target=lambda who=who: run(write(who)))  # type: ignore[misc]
                for who in crowd
            ]
            for member in members:
                member.start()
            for member in members:
                member.join()
            run(store.close())
        else:
            anyio.run(all_on_a_loop)
        operator.join()
        assert strange == []
        assert sorted(written) == sorted(crowd)
        until(lambda: clients_of(old) == clients_of(new) == 0)


def test_a_server_that_goes_on_refusing_is_not_connected_to_at_each_request(
    side: Callable[..., None], server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_clients, "_RENEW_EVERY", 3600)
    with Forwarder(server.port) as name:

        async def check(store: SessionStore) -> None:
            server.command("CONFIG", "SET", "min-replicas-to-write", "1")
            for _ in range(50):
                await fails(store.put("k", b"v", 60), "fewer replicas")
            assert name.connections == 2
            server.command("CONFIG", "SET", "min-replicas-to-write", "0")
            await store.put("k", b"v", 60)
            assert name.connections == 2

        side(check, name.url)


def test_a_cluster_that_cannot_be_reached_is_an_error(side: Callable[..., None]) -> None:
    async def check(store: SessionStore) -> None:
        await all_fail(store, "cannot be reached")

    side(check, "redis+cluster://127.0.0.1:1")


# URLs


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}@localhost/0",  # not percent-encoded
        "redis://localhost:port",
        "redis://localhost/0?colour=blue",
        "redis://localhost/0?socket_timeout=soon",
        "redis://localhost/0?max_connections=0",
        "redis://localhost/0#fragment",
        "redis+sentinel://localhost:26379",
        "redis+sentinel:///mymaster",
        "redis+cluster://",
        "redis+cluster://a:1,b:port",
        "redis+cluster://a:1?db=3",
        "redis+proxy://localhost",
        "unix+sentinel:///x/y",
        "rediss+socket://localhost",
    ],
)
def test_a_wrong_url_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(ConfigError, match="store") as caught:
        open_store(url)
    told = "".join(traceback.format_exception(caught.value)).replace(url, "")
    assert "nobody" not in told
    assert "pass-word" not in str(caught.value)
    assert caught.value.__context__ is None


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ConfigError, match="colour"):
        open_store("redis://localhost/0?colour=blue")


def test_a_name_without_secrets() -> None:
    for url, name in (
        (f"redis://u:{QUOTED}@h:1/2?socket_timeout=1", "redis://h:1/2"),
        (f"rediss://u:{QUOTED}@h/2", "rediss://h/2"),
        (f"unix://u:{QUOTED}@/tmp/s?db=1", "unix:///tmp/s"),
        (
            f"redis+sentinel://u:{QUOTED}@a,b:2/m?sentinel_password={QUOTED}",
            "redis+sentinel://a,b:2/m",
        ),
        (f"redis+cluster://u:{QUOTED}@a,[::1]:2", "redis+cluster://a,[::1]:2"),
    ):
        assert repr(RedisStore(url)) == f"<RedisStore {name}>"
