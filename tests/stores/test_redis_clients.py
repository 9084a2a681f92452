"""Redis: failures of redis-py itself, rights that are missing, and waiting for replicas."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio.connection
import redis.connection

from cm_auth_middleware import ConfigError, SessionStore, StoreError
from cm_auth_middleware.stores import RedisStore, open_store
from cm_auth_middleware.testing import StoreConformance
from tests.helpers.fleets import documented_commands, documented_rights
from tests.helpers.servers import Forwarder, RedisServer, free_port, pair, redis_server, until
from tests.helpers.stores import checks_of, run

pytestmark = pytest.mark.slow


@pytest.fixture(params=["asyncio", "trio", "threads"])
def side(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a check with a store, on each side."""
    return checks_of(request.param, RedisStore)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["single", "cluster", "sentinel"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with ExitStack() as stack:
        if request.param == "cluster":
            options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
            node = stack.enter_context(redis_server(*options))
            node.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            until(lambda: b"cluster_state:ok" in node.command("CLUSTER", "INFO"))
            yield f"redis+cluster://127.0.0.1:{node.port}"
            return
        server = stack.enter_context(redis_server())
        if request.param == "single":
            yield server.url
            return
        file = tmp_path / "sentinel.conf"
        file.write_text(f"sentinel monitor mymaster 127.0.0.1 {server.port} 1\n")
        watcher = stack.enter_context(redis_server(sentinel=file))
        yield f"redis+sentinel://127.0.0.1:{watcher.port}/mymaster"


# Failures of the client itself


class Broken:
    """Lets redis-py fail with what it should not raise, so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: list[Exception] = []
        for connection in (
            redis.connection.AbstractConnection,
            redis.asyncio.connection.AbstractConnection,
        ):
            original = connection.send_packed_command

            def send(
                itself: Any, command: Any, *args: Any, original: Any = original, **options: Any
            ) -> Any:
                packed = command if isinstance(command, bytes) else b"".join(command)
                if self.left and b"key-of-a-session" in packed:
                    raise self.left.pop()
                return original(itself, command, *args, **options)

            monkeypatch.setattr(connection, "send_packed_command", send)


ODD = [
    AttributeError("'NoneType' object has no attribute 'writelines' of key-of-a-session"),
    AttributeError("'NoneType' object has no attribute 'execute_command' of key-of-a-session"),
    TypeError("key-of-a-session"),
    IndexError("key-of-a-session"),
    KeyError("key-of-a-session"),
    RuntimeError("key-of-a-session"),
    ValueError("key-of-a-session"),
    AssertionError("key-of-a-session"),
]


def test_what_redis_py_raises_is_repeated_once_and_then_a_store_error(
    side: Callable[..., None], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken(monkeypatch)
    key = "key-of-a-session"

    async def check(store: SessionStore) -> None:
        for error in ODD:
            broken.left = [error]
            await store.put(key, b"v", 60)
            broken.left = [error]
            assert await store.replace(key, b"v", b"w", 60)
            broken.left = [error]
            assert await store.acquire(key, "owner", 60)
            assert broken.left == []
            for left, call in ((2, store.get(key)), (1, store.delete(key))):
                broken.left = [error] * left
                with pytest.raises(StoreError, match=type(error).__name__) as caught:
                    await call
                assert broken.left == []
                assert key not in str(caught.value)
                assert re.search(r"in \w+\.py:\d+", str(caught.value))
                assert caught.value.__context__ is None
            assert await store.get(key) == b"w"

    side(check, url)


def test_a_call_that_is_cancelled_is_no_store_error(server: RedisServer) -> None:
    async def check() -> None:
        store = RedisStore(server.url)
        await store.put("k", b"v", 60)
        server.pause()
        task = asyncio.create_task(store.get("k"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.resume()
        assert await store.get("k") == b"v"
        await store.close()

    asyncio.run(check())


# Rights


def acl_line() -> list[str]:
    """The command of the documentation, without `redis-cli`, and with another password."""
    return f"ACL SETUSER cameras on >secret {documented_rights()}".split()


def paste(title: str, server: RedisServer) -> None:
    """Run commands of the documentation as they stand there."""
    if shutil.which("redis-cli") is None:
        pytest.skip("NOT TESTED: redis-cli is not installed")
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            ["sh", "-ec", documented_commands(title)],
            env={**os.environ, "REDIS": server.url}, cwd=directory, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert (done.stdout, done.stderr, [*Path(directory).iterdir()]) == ("OK\n", "", [])


@pytest.mark.parametrize("kept_in", ["redis.conf", "the aclfile"])
def test_the_documented_commands_make_a_user_whom_a_restart_keeps(
    kept_in: str, tmp_path: Path
) -> None:
    conf, users = tmp_path / "redis.conf", tmp_path / "users.acl"
    users.touch()
    conf.write_text(f"aclfile {users}\n" if kept_in == "the aclfile" else "")
    with redis_server(conf=conf) as server:
        url = f"redis://cameras:password@127.0.0.1:{server.port}"

        def works() -> bool:
            with closing(redis.Redis.from_url(url)) as client:
                try:
                    client.set("cm_auth:s:k", "v")
                except redis.AuthenticationError:
                    return False
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.flushall()
                return client.get("cm_auth:s:k") == b"v"

        paste("a Redis user", server)
        assert works()
        server.stop()
        server.start()
        assert not works(), "as the documentation warns"
        paste("a Redis user", server)
        paste(f"kept in {kept_in}", server)
        server.stop()
        server.start()
        assert works()


class ByTheDocumentedUser(StoreConformance):
    kind = "single"
    url = ""

    @pytest.fixture(autouse=True)
    def _given(self) -> Iterator[None]:
        with ExitStack() as stack:
            options = []
            if self.kind == "cluster":
                options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
            node = stack.enter_context(redis_server(*options))
            if self.kind == "cluster":
                node.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
                until(lambda: b"cluster_state:ok" in node.command("CLUSTER", "INFO"))
            paste("a Redis user", node)
            scheme = "redis+cluster" if self.kind == "cluster" else "redis"
            self.url = f"{scheme}://cameras:password@127.0.0.1:{node.port}"
            yield

    def make_store(self) -> SessionStore:
        store = open_store(f"{self.url}?wait_replicas=0")
        return store.blocking() if self.blocking else store  # type: ignore[attr-defined,no-any-return]


class TestTheDocumentedUser(ByTheDocumentedUser):
    pass


class TestTheDocumentedUserInAClusterByThreads(ByTheDocumentedUser):
    kind = "cluster"
    blocking = True


def test_the_documented_user_may_do_all_that_a_store_does_and_no_more(
    side: Callable[..., None], server: RedisServer
) -> None:
    server.command(*acl_line())

    async def check(store: RedisStore) -> None:
        await store.put("k", b"prefix", 60)
        assert await store.find(b"pre") == [("k", b"prefix")]
        assert await store.count() == 1
        await store.ping()

    side(check, f"redis://cameras:secret@127.0.0.1:{server.port}?wait_replicas=1&wait_timeout=0.01")
    allowed = {word for word in acl_line() if word.startswith("+")}
    assert not any(word.startswith("+@") for word in allowed)
    elsewhere = {"+wait", "+asking", "+exists", "+info", "+cluster|slots", "+cluster|nodes"}
    for word in sorted(allowed - elsewhere - {"+zrem"}):  # without it, an entry stays until it ends
        line = [other for other in acl_line() if other != word]
        server.command("ACL", "DELUSER", "cameras")
        server.command("FLUSHALL")
        server.command(*line)
        command = word[1:].upper()
        store = RedisStore(f"redis://cameras:secret@127.0.0.1:{server.port}")
        with pytest.raises(StoreError, match=rf"the command .*\b{command}\b.*Redis rights"):
            run(everything(store, lambda: server.command("SET", "{cm_auth}:s:old", "v" * 30)))


async def everything(store: RedisStore, old: Callable[[], object]) -> None:
    """Use each command, `old` in between: it stores what a former release did."""
    store = store.blocking()
    one, two = b"\x04" + bytes(40), b"\x04" + bytes(41)  # as sessions of one user begin
    try:
        await store.ping()
        await store.put("k", one, 60)
        await store.get("k")
        await store.acquire("k", "o", 60)
        await store.release("k", "o")
        await store.replace("k", one, two, 60)
        old()
        await store.get("old")
        await store.find(one[:17])
        await store.find(b"\x04")
        await store.count()
        await store.count(b"\x04")
        await store.delete("k")
    finally:
        await store.close()


@pytest.mark.parametrize(
    "answer",
    [
        "NOPERM User cameras has no permissions to run the 'get' command",
        "NOPERM this user has no permissions to run the 'get' command or its subcommand",
        "ERR ACL failure in script: User cameras has no permissions to run the 'get' command "
        "script: 0123456789012345678901234567890123456789, on @user_script:2.",
        "ERR Error running script (call to f_0123456789012345678901234567890123456789): "
        "@user_script:2: @user_script: 2: -NOPERM this user has no permissions to run the 'get' "
        "command or its subcommand",
    ],
)
def test_the_missing_right_is_named_in_the_words_of_other_versions(answer: str) -> None:
    with redis_server() as server:
        server.command("SET", "{cm_auth}:s:k", "v")
        with Forwarder(server.port) as name:
            name.answered = lambda data: (
                f"-{answer}\r\n".encode() if data.startswith(b"$1\r\nv") else data
            )
            store = RedisStore(name.url).blocking()
            with pytest.raises(StoreError, match="does not permit the user the command GET:") as e:
                run(store.get("k"))
            assert "cameras" not in str(e.value)
            run(store.close())


def test_keys_that_a_user_may_not_touch_are_named_as_the_reason(
    side: Callable[..., None], server: RedisServer
) -> None:
    line = ["~other:*" if word.startswith("~") else word for word in acl_line()]
    server.command(*line)

    async def check(store: RedisStore) -> None:
        for call in (store.get("key-of-a-session"), store.delete("key-of-a-session")):
            with pytest.raises(StoreError, match="the keys of a store") as caught:
                await call
            assert "key-of-a-session" not in str(caught.value)

    side(check, f"redis://cameras:secret@127.0.0.1:{server.port}")


# Waiting for replicas


def test_a_write_waits_for_replicas_on_its_own_connection(
    side: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    with pair() as (primary, replica):
        until(lambda: primary.command("WAIT", "1", "100") == b":1\r\n")

        async def check(store: RedisStore) -> None:
            before = waits(primary)
            await store.put("k", b"v", 60)
            assert b"v" in replica.command("GET", "cm_auth:s:k"), "at once"
            assert waits(primary) == before + 1
            assert await store.replace("k", b"v", b"w", 60)
            assert b"w" in replica.command("GET", "cm_auth:s:k"), "at once"
            assert await store.acquire("k", "owner", 60)
            assert b"owner" in replica.command("GET", "cm_auth:l:k"), "at once"
            assert await store.delete("k") == b"w"
            assert replica.command("GET", "cm_auth:s:k") == b"$-1\r\n", "at once"
            assert waits(primary) >= before + 4
            assert not caplog.records

            replica.pause()
            began = time.monotonic()
            await store.put("k", b"v", 60)
            assert time.monotonic() > began + 1.9
            assert await store.get("k") == b"v", "it counts all the same"
            await store.put("k", b"w", 60)
            replica.resume()
            assert [record.event for record in caplog.records] == ["replicas_behind"]  # type: ignore[attr-defined]

        caplog.set_level(logging.INFO, "cm_auth_middleware")
        side(check, f"{primary.url}?wait_replicas=1&wait_timeout=2")


def waits(server: RedisServer) -> int:
    """How often it was told to wait for replicas; a script that it does not know costs another."""
    found = re.search(rb"cmdstat_wait:calls=(\d+)", server.command("INFO", "commandstats"))
    return int(found[1]) if found else 0


def test_in_a_cluster_a_write_waits_at_the_node_of_its_key(side: Callable[..., None]) -> None:
    with ExitStack() as stack:
        nodes = []
        for _ in range(2):
            options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
            options += ["--repl-diskless-sync-delay", "0"]
            nodes.append(stack.enter_context(redis_server(*options)))
        primary, replica = nodes
        primary.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        bus = replica.options[replica.options.index("--cluster-port") + 1]
        primary.command("CLUSTER", "MEET", "127.0.0.1", str(replica.port), bus)
        myself = primary.command("CLUSTER", "MYID").split(b"\r\n")[1].decode()
        until(lambda: myself.encode() in replica.command("CLUSTER", "NODES"))
        until(lambda: replica.command("CLUSTER", "REPLICATE", myself) == b"+OK\r\n")
        until(lambda: b"master_link_status:up" in replica.command("INFO", "replication"))

        async def check(store: RedisStore) -> None:
            await store.put("k", b"v", 60)
            assert await store.replace("k", b"v", b"w", 60)
            assert await store.get("k") == b"w"
            assert waits(primary) >= 2
            replica.pause()
            began = time.monotonic()
            await store.put("k", b"v", 60)
            assert time.monotonic() > began + 0.4
            replica.resume()

        url = f"redis+cluster://127.0.0.1:{primary.port}?wait_replicas=1&wait_timeout=0.5"
        until(lambda: b"cluster_state:ok" in primary.command("CLUSTER", "INFO"))
        side(check, url)


@pytest.mark.parametrize(
    "options",
    [
        "wait_replicas=one",
        "wait_replicas=-1",
        "wait_timeout=0",
        "wait_timeout=soon",
        "wait_timeout=5&socket_timeout=2",
    ],
)
def test_a_wrong_option_for_waiting_is_refused_and_named(options: str) -> None:
    with pytest.raises(ConfigError, match=f"a wrong {options.partition('=')[0]}: ") as caught:
        RedisStore(f"redis://localhost?{options}")
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("scheme", "path", "sentence"),
    [
        ("redis+cluster", "", "is no cluster but one server: give redis://"),
        ("redis+sentinel", "/mymaster", "is no sentinel but a Redis: give the sentinels"),
    ],
)
def test_a_server_of_another_kind_than_the_url_says_is_named(
    side: Callable[..., None], server: RedisServer, scheme: str, path: str, sentence: str
) -> None:
    async def check(store: SessionStore) -> None:
        with pytest.raises(StoreError, match=sentence):
            await store.get("k")

    side(check, f"{scheme}://127.0.0.1:{server.port}{path}")
