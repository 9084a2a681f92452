"""PostgreSQL: the protocol on a real server, and what happens when it is in trouble."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import psycopg
import pytest

from cm_auth_middleware import ConfigError, SessionStore, StoreError
from cm_auth_middleware.stores import PostgresStore, open_store, postgres_pool
from cm_auth_middleware.stores.circuit_breaker import TRY_EVERY
from cm_auth_middleware.stores.postgres import SCHEMA, schema
from cm_auth_middleware.testing import StoreConformance
from tests.chaos.scenarios import expiry
from tests.helpers.certificates import signed
from tests.helpers.postgres import (
    PASSWORD,
    QUOTED,
    Cutter,
    PostgresServer,
    pgbouncer,
    postgres_server,
)
from tests.helpers.servers import Forwarder
from tests.helpers.stores import INCREMENTS, checks_of, finish, increment, run, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared() -> Iterator[PostgresServer]:
    """A server for tests that leave it as it is."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server for tests that break it."""
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["asyncio", "trio", "threads"])
def side(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a check with a store, on each side."""
    return checks_of(request.param, PostgresStore)


# The protocol


class TestPostgresStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def _given(self, shared: PostgresServer) -> None:
        self.url = shared.url

    def make_store(self) -> SessionStore:
        store = open_store(self.url)
        assert isinstance(store, PostgresStore)
        return store.blocking() if self.blocking else store


class TestPostgresStoreForThreads(TestPostgresStore):
    blocking = True


class TestPostgresStoreOnTrio(TestPostgresStore):
    backend = "trio"


class TestSerializable(TestPostgresStore):
    """A database whose transactions fail on a conflict instead of waiting for each other."""

    @pytest.fixture(autouse=True)
    def _given(self, shared: PostgresServer) -> None:
        self.url = f"{shared.url}?options=-c%20default_transaction_isolation%3Dserializable"


class TestPgBouncer(TestPostgresStore):
    """Each transaction may meet another connection to the server."""

    @pytest.fixture(autouse=True)
    def _given(self, bouncer: str) -> None:
        self.url = bouncer


class TestPgBouncerForThreads(TestPgBouncer):
    blocking = True


@pytest.fixture(scope="module")
def bouncer(shared: PostgresServer) -> Iterator[str]:
    with pgbouncer(shared) as url:
        yield url


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
    assert caught.value.__context__ is None, "what psycopg raised is not chained"


async def all_fail(store: SessionStore, sentence: str) -> None:
    await fails(store.get("k"), sentence)
    await fails(store.put("k", b"w", 60), sentence)
    await fails(store.replace("k", b"v", b"w", 60), sentence)
    await fails(store.delete("k"), sentence)
    await fails(store.acquire("k", "owner", 60), sentence)
    await fails(store.release("k", "owner"), sentence)
    await fails(store.ping(), sentence)


# The table


def test_tables_of_different_names_see_nothing_of_each_other(shared: PostgresServer) -> None:
    async def use(one: PostgresStore, two: PostgresStore) -> None:
        await one.put("k", b"1", 60)
        await two.put("k", b"2", 60)
        assert await one.find(b"") == [("k", b"1")]
        assert await two.find(b"") == [("k", b"2")]
        await one.close()
        await two.close()

    shared.command('CREATE SCHEMA "user"')
    urls = (f"{shared.url}?table=one", f"{shared.url}?table=user.table")  # two words of SQL
    run(use(*(PostgresStore(url).blocking() for url in urls)))


def test_many_processes_may_make_the_table_at_once(server: PostgresServer) -> None:
    code = "run(store.blocking().put('k', b'v', 60))"
    processes = [start(code, server.url) for _ in range(4)]
    assert [finish(process) for process in processes] == [0] * 4


def told_steps(error: StoreError) -> list[str]:
    """The SQL that an error says is to be run, in its order."""
    steps = str(error).partition(" run: ")[2].partition(" (user_name: ")[0].split("; ")
    told = re.compile(r'the SQL of cm_auth_middleware\.stores\.postgres\.schema\("([\w.]+)"\)')
    found = [told.sub(lambda name: schema(name[1]), step) for step in steps]
    return [step.replace("TO user_name", "TO cm") for step in found]


@pytest.mark.parametrize(
    ("table", "given", "first"),
    [
        ("own.cm_auth", "", "CREATE SCHEMA"),
        ("own.cm_auth", "CREATE SCHEMA own", "CREATE TABLE"),
        ("own.cm_auth", "CREATE SCHEMA own; GRANT USAGE ON SCHEMA own TO cm", "CREATE TABLE"),
        ("own.cm_auth", f"CREATE SCHEMA own; {schema('own.cm_auth')}", "GRANT USAGE"),
        ("user.table", "", "CREATE SCHEMA"),  # two words of SQL
        ("cm_auth", "", "CREATE TABLE"),
        ("cm_auth", SCHEMA, "GRANT SELECT"),
    ],
)
def test_a_user_without_ddl_rights_is_told_all_that_an_owner_has_to_run(
    side: Callable[..., None], server: PostgresServer, table: str, given: str, first: str
) -> None:
    async def check(store: SessionStore) -> None:
        if given:
            server.command(given)
        await all_fail(store, " run: ")
        with pytest.raises(StoreError) as caught:
            await store.put("k", b"v", 60)
        steps = told_steps(caught.value)
        assert steps[0].startswith(first)
        for step in steps:
            server.command(step)
        await store.put("k", b"v", 60)
        assert await store.get("k") == b"v"
        assert await store.delete("k") == b"v"

    side(check, f"postgresql://cm:{QUOTED}@127.0.0.1:{server.port}/postgres?table={table}")


def test_a_user_who_may_use_no_schema_is_told_to_name_one(server: PostgresServer) -> None:
    server.command("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    store = PostgresStore(f"postgresql://cm:{QUOTED}@127.0.0.1:{server.port}/postgres").blocking()
    run(fails(store.put("k", b"v", 60), r"no schema of its search_path: .*\?table=schema"))
    run(store.close())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("UPDATE {} SET value = '2' WHERE kind = 'schema'", "version 2, and .* needs version 1"),
        ("DROP TABLE {}; CREATE TABLE {} (kind text)", "that this package did not make"),
        ("DROP TABLE {}; CREATE VIEW {} AS SELECT 1 AS one", "that this package did not make"),
    ],
)
def test_a_table_of_another_version_or_maker_is_refused(
    shared: PostgresServer, change: str, sentence: str
) -> None:
    async def check(store: SessionStore) -> None:
        await all_fail(store, sentence)
        await store.close()

    name = f"made_{abs(hash(change))}"
    shared.command(schema(name))
    shared.command(change.format(name, name))
    run(check(PostgresStore(f"{shared.url}?table={name}").blocking()))


def test_a_table_that_is_dropped_is_made_again(
    side: Callable[..., None], server: PostgresServer
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("k", b"v", 60)
        server.command("DROP TABLE cm_auth")
        assert await store.get("k") is None
        await store.put("k", b"v", 60)

    side(check, server.url)


def test_one_users_sessions_and_expired_rows_are_found_by_an_index(
    server: PostgresServer,
) -> None:
    store = PostgresStore(server.url).blocking()
    run(store.ping())
    server.command(
        "INSERT INTO cm_auth SELECT 'record', int4send(n), sha256(int4send(n)), "
        "now() + n * interval '1 minute' FROM generate_series(-500, 20000) AS n"
    )
    server.command("VACUUM ANALYZE cm_auth")
    prefix = b"\x01" * 17
    for name, parameters, index in (
        ("find between", (prefix, prefix[:-1] + b"\x02"), "cm_auth_by_user"),
        ("count between", (prefix, prefix[:-1] + b"\x02"), "cm_auth_by_user"),
        ("purge", (50,), "cm_auth_by_expiry"),
        ("get", (b"k",), "cm_auth_pkey"),
    ):
        explained = server.command("EXPLAIN " + store._sql[name].decode(), *parameters)
        plan = "\n".join(row[0] for row in explained)
        assert index in plan, plan
        assert "Seq Scan" not in plan, plan
    run(store.close())


def test_expired_rows_go_in_batches_with_the_writes(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(store: PostgresStore) -> None:
        await store.put("live", b"v", 60)
        server.command(
            "INSERT INTO cm_auth SELECT kind, int4send(n), '', now() - interval '1 minute' "
            "FROM generate_series(1, 120) AS n, unnest(ARRAY['record', 'lease']) AS kind"
        )
        await store.put("live", b"v", 60)
        assert expired() == 240, "it looked just now"
        store._purge_at = 0.0
        for left in (190, 140):
            await store.put("live", b"v", 60)
            assert expired() == left
        assert await store.acquire("lease", "owner", 60)
        assert expired() == 90
        with server.connected() as other:  # its rows are left out: a purge waits for nothing
            other.execute("SELECT 1 FROM cm_auth WHERE expires < now() LIMIT 10 FOR UPDATE")
            await store.purge()
            assert expired() == 10
        await store.purge()
        assert expired() == 0
        assert await store.get("live") == b"v"
        assert not await store.acquire("lease", "another", 60)
        await store.close()

    def expired() -> int:
        return int(server.command("SELECT count(*) FROM cm_auth WHERE expires < now()")[0][0])

    run(check(PostgresStore(server.url).blocking()))


# Outages


def test_a_server_that_is_gone_is_an_error_until_it_is_back(
    side: Callable[..., None], server: PostgresServer
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
    side: Callable[..., None], server: PostgresServer
) -> None:
    async def check(store: SessionStore) -> None:
        for method in ("get", "replace", "delete"):
            await store.put("k", b"v", 60)
            server.stop()
            server.start()
            if method == "get":
                assert await store.get("k") == b"v"
            elif method == "replace":
                assert await store.replace("k", b"v", b"w", 60)
            else:
                assert await store.delete("k") == b"v"

    side(check, server.url)


@pytest.mark.parametrize("threads", [False, True])
def test_a_restart_under_load_is_an_answer_or_a_store_error(
    threads: bool, server: PostgresServer
) -> None:
    store = PostgresStore(server.url)
    over = threading.Event()
    strange: list[BaseException] = []
    failed: list[str] = []

    async def use(one: SessionStore, key: str) -> None:
        while not over.is_set():
            try:
                await one.put(key, b"v", 60)
                assert await one.replace(key, b"v", b"w", 60)
                assert await one.delete(key) == b"w"
            except StoreError as error:
                failed.append(str(error))
                if not threads:
                    await anyio.sleep(0.01)
            except BaseException as error:
                strange.append(error)
                return

    async def all_on_a_loop() -> None:
        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(use, store, f"{number}")
        await store.put("after", b"v", 60)
        await store.close()

    def restart() -> None:
        for _ in range(2):
            time.sleep(0.3)
            server.stop()
            server.start()
        time.sleep(0.3)
        over.set()

    operator = threading.Thread(target=restart)
    operator.start()
    if threads:
        twin = store.blocking()
        users = [
            threading.Thread(target=lambda n=n: run(use(twin, f"{n}")))  # type: ignore[misc]
            for n in range(8)
        ]
        for user in users:
            user.start()
        for user in users:
            user.join()
        run(twin.put("after", b"v", 60))
        run(twin.close())
    else:
        anyio.run(all_on_a_loop)
    operator.join()
    assert strange == []
    assert failed
    known = ("cannot be reached", "is shutting down or starting")
    assert [failure for failure in failed if not any(words in failure for words in known)] == []


def test_a_server_that_stands_still_is_an_error_in_time(
    side: Callable[..., None], server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("k", b"v", 60)
        server.pause()
        began = time.monotonic()
        await fails(store.get("k"), "did not answer in time")
        await fails(store.delete("k"), "did not answer in time|cannot be reached")
        assert time.monotonic() - began < 10
        server.resume()
        await elapse(TRY_EVERY)  # two time-outs in a row open the circuit breaker
        await store.put("k", b"w", 60)
        assert await store.get("k") == b"w"

    monkeypatch.setattr(postgres_pool, "_TIMEOUT", 1)
    side(check, f"{server.url}?connect_timeout=2")


def test_a_row_that_another_transaction_holds_is_an_error_in_time(
    side: Callable[..., None], server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("k", b"v", 60)
        with server.connected() as other:
            other.execute("SELECT 1 FROM cm_auth WHERE kind = 'record' FOR UPDATE")
            await fails(store.put("k", b"w", 60), "did not answer in time")
        assert await store.get("k") == b"v", "the server gave up, too"
        assert server.clients() == 1, "the connection could be kept"

    monkeypatch.setattr(postgres_pool, "_TIMEOUT", 1)
    side(check, server.url)


def test_a_conflict_of_serializable_transactions_is_no_error(
    side: Callable[..., None], shared: PostgresServer
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("conflict", b"v", 60)
        with shared.connected() as other:
            other.execute("UPDATE cm_auth SET expires = expires WHERE key = 'conflict'")
            commit = threading.Timer(0.3, other.commit)
            commit.start()
            assert await store.replace("conflict", b"v", b"w", 60)
            commit.join()

    side(check, f"{shared.url}?options=-c%20default_transaction_isolation%3Dserializable")


def test_an_answer_that_nobody_waits_for_is_not_given_to_the_next(server: PostgresServer) -> None:
    async def check() -> None:
        store = PostgresStore(f"{server.url}?max_connections=1")
        await store.put("mine", b"of one user", 60)
        await store.put("yours", b"of another", 60)
        server.pause()
        began = time.monotonic()
        with anyio.move_on_after(0.2):  # a client hangs up
            await store.get("mine")
        assert time.monotonic() - began < 2, "it does not ask the server to cancel, either"
        server.resume()
        assert await store.get("yours") == b"of another"
        assert await store.get("mine") == b"of one user"
        await store.close()

    anyio.run(check)


@pytest.fixture
def cutter(shared: PostgresServer) -> Iterator[Cutter]:
    cutter = Cutter(shared)
    yield cutter
    cutter.close()


def test_a_replace_whose_answer_is_lost_says_that_it_replaced(
    side: Callable[..., None], cutter: Cutter
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("cut", b"old", 60)
        cutter.cut_at = b"UPDATE"
        assert await store.replace("cut", b"old", b"new", 60)
        assert cutter.cut_at is None, "the connection was cut"
        assert await store.get("cut") == b"new"
        cutter.cut_at = b"UPDATE"
        assert not await store.replace("cut", b"old", b"newer", 60), "and no more than that"

    side(check, cutter.url)


def test_a_delete_whose_answer_is_lost_does_not_say_that_nothing_was_there(
    side: Callable[..., None], cutter: Cutter
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("cut", b"v", 60)
        cutter.cut_at = b"DELETE"
        await fails(store.delete("cut"), "cannot be reached")
        assert await store.get("cut") is None

    side(check, cutter.url)


def test_what_may_run_twice_does_when_an_answer_is_lost(
    side: Callable[..., None], cutter: Cutter
) -> None:
    async def check(store: SessionStore) -> None:
        await store.ping()
        cutter.cut_at = b"INSERT"
        await store.put("cut", b"v", 60)
        cutter.cut_at = b"SELECT"
        assert await store.get("cut") == b"v"
        cutter.cut_at = b"INSERT"
        assert await store.acquire("a lease", "one", 60)
        cutter.cut_at = b"DELETE"
        await store.release("a lease", "one")
        assert await store.acquire("a lease", "two", 60)
        await store.release("a lease", "two")
        assert cutter.cut_at is None

    side(check, cutter.url)


# Refusals


def test_a_standby_is_an_error_until_it_is_a_primary(
    side: Callable[..., None], server: PostgresServer
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("k", b"v", 60)
        server.set("default_transaction_read_only", "on")
        await fails(store.put("k", b"w", 60), "standby")
        await fails(store.replace("k", b"v", b"w", 60), "standby")
        await fails(store.delete("k"), "standby")
        await fails(store.ping(), "standby")
        assert await store.get("k") == b"v"
        server.set("default_transaction_read_only", "off")
        assert await store.delete("k") == b"v"

    side(check, server.url)


def test_after_a_failover_behind_one_name_the_first_call_finds_the_new_primary(
    side: Callable[..., None], server: PostgresServer, shared: PostgresServer
) -> None:
    with Forwarder(shared.port) as name:

        async def check(store: SessionStore) -> None:
            await store.put("moved", b"v", 60)
            await other.put("moved", b"v", 60)
            shared.set("default_transaction_read_only", "on")
            try:
                name.port = server.port
                assert await store.delete("moved") == b"v"
            finally:
                shared.set("default_transaction_read_only", "off")
            assert await store.get("moved") is None

        other = PostgresStore(server.url).blocking()
        try:
            side(check, server.url.replace(str(server.port), str(name.listens_at)))
        finally:
            run(other.close())


@pytest.mark.parametrize(
    ("state", "sentence"),
    [("53100", "disk is full"), ("53200", "out of memory"), ("XX001", r"SQLSTATE XX001\)$")],
)
def test_what_the_server_cannot_do_is_one_sentence(
    side: Callable[..., None], shared: PostgresServer, state: str, sentence: str
) -> None:
    async def check(store: SessionStore) -> None:
        await fails(store.put("refused", b"v", 60), sentence)
        assert await store.get("k") is None

    table = f"refusing_{state.lower()}"
    shared.command(f"""
        DROP TABLE IF EXISTS {table};
        {schema(table)}
        CREATE OR REPLACE FUNCTION {table}() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$;
        CREATE TRIGGER refusing BEFORE INSERT ON {table} EXECUTE FUNCTION {table}();
    """)
    side(check, f"{shared.url}?table={table}")


CASES = {
    "refused": ("cm:wrong-{q}@{h}/postgres", "refuses the user or the password"),
    "nobody": ("nobody:{q}@{h}/postgres", "refuses the user or the password"),
    "no database": ("cm:{q}@{h}/nowhere", "has no such database"),
    "denied": ("cm:{q}@{h}/postgres?table=denied", "does not permit the user"),
    "unreachable": ("cm:{q}@127.0.0.1:1/postgres", r"cannot be reached \(Connection refused\)"),
    "no host": ("cm:{q}@nowhere.invalid/postgres", "cannot be reached"),
    "no tls": ("cm:{q}@{h}/postgres?sslmode=require", "does not support TLS"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_password_is_in_no_message(
    case: str,
    side: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    shared: PostgresServer,
) -> None:
    caplog.set_level(logging.DEBUG)
    place, sentence = CASES[case]
    shared.command(schema("denied"))
    url = "postgresql://" + place.format(q=QUOTED, h=f"127.0.0.1:{shared.port}")
    value = b"value-of-a-session"

    async def check(store: SessionStore) -> None:
        with pytest.raises(StoreError, match=sentence) as caught:
            await store.put("key-of-a-session", value, 60)
        error = caught.value
        parts = [repr(error), *traceback.format_exception(error), repr(store), repr(vars(store))]
        parts += [repr(vars(part)) for part in vars(store).values() if hasattr(part, "__dict__")]
        told = "\n".join(parts).replace('store.put("key-of-a-session"', "")  # the test's own call
        for secret in (PASSWORD, QUOTED, "key-of-a-session", "value-of-a-session"):
            assert secret not in told + caplog.text

    side(check, url)


def test_too_many_connections_are_an_error(side: Callable[..., None]) -> None:
    async def check(store: SessionStore) -> None:
        held = [psycopg.connect(url) for _ in range(2)]
        await fails(store.get("k"), "has no connection left")
        for connection in held:
            connection.close()
        deadline = time.monotonic() + 10
        while True:
            try:
                assert await store.get("k") is None
                return
            except StoreError:  # until the server has noticed
                assert time.monotonic() < deadline

    with postgres_server("max_connections=5", "superuser_reserved_connections=3") as server:
        server.command(SCHEMA)
        server.command("GRANT ALL ON cm_auth TO cm")
        url = f"postgresql://cm:{QUOTED}@127.0.0.1:{server.port}/postgres"
        side(check, url)


def test_certificates_are_verified(side: Callable[..., None], tmp_path: Path) -> None:
    async def unknown(store: SessionStore) -> None:
        await fails(store.get("k"), "certificate")

    async def accepted(store: SessionStore) -> None:
        assert await store.get("k") is None

    with postgres_server() as server:
        authority = tmp_path / "ca.pem"
        signed(server.directory)
        shutil.copy(server.directory / "ca.pem", authority)
        authority.chmod(0o644)
        server.secure("server.pem", "server.key")
        url = f"{server.url}?sslmode=verify-full"
        side(accepted, f"{url}&sslrootcert={authority}")
        side(unknown, f"{url}&sslrootcert={tmp_path}/none.pem")
        other = tmp_path / "other"
        other.mkdir()
        signed(other)
        side(unknown, f"{url}&sslrootcert={other}/ca.pem")
        side(unknown, f"{url.replace('127.0.0.1', 'localhost')}&sslrootcert={authority}")


# Many at once


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_needs_none_of_the_threads_that_everybody_shares(
    shared: PostgresServer, backend: str
) -> None:
    """They may all wait for what the store will say."""

    async def check() -> None:
        store = PostgresStore(shared.url)
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


def test_more_requests_than_connections_wait_their_turn(server: PostgresServer) -> None:
    async def check() -> None:
        store = PostgresStore(server.url)
        await store.put("k", b"v", 60)
        most = 0

        async def ask(number: int) -> None:
            nonlocal most
            assert await store.get("k") == b"v"
            if number % 100 == 0:
                most = max(most, server.clients())

        async with anyio.create_task_group() as group:
            for number in range(500):
                group.start_soon(ask, number)
        assert 1 <= most <= 5
        await store.close()

    anyio.run(check)
    server.loses_its_clients()


def test_connections_that_are_not_used_are_closed(
    side: Callable[..., None], server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(store: SessionStore) -> None:
        await store.put("k", b"v", 60)
        assert server.clients() == 1
        monkeypatch.setattr(postgres_pool, "_IDLE", -1.0)  # all are unused for longer
        assert await store.get("k") == b"v"
        server.loses_its_clients()

    side(check, server.url)


@pytest.mark.parametrize("threads", [False, True])
def test_who_waits_for_a_connection_for_too_long_is_told(
    threads: bool, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_pool, "_QUEUE", 0.5)
    url = f"{server.url}?max_connections=1"
    store = PostgresStore(url).blocking() if threads else PostgresStore(url)
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

    server.command(SCHEMA)
    server.pause()
    resume = threading.Timer(2, server.resume)
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


def test_several_event_loops_and_threads_share_one_store(shared: PostgresServer) -> None:
    store = PostgresStore(f"{shared.url}?table=loops")

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


def test_four_processes_lose_no_increment(shared: PostgresServer) -> None:
    store = PostgresStore(shared.url).blocking()
    run(store.put("compared", b"0", 600))
    run(store.put("guarded", b"0", 600))
    processes = [start(INCREMENTS, shared.url, 50) for _ in range(4)]
    assert [finish(process) for process in processes] == [0] * 4
    assert run(store.get("compared")) == b"200"
    assert run(store.get("guarded")) == b"200"
    run(store.close())


@pytest.mark.timeout(240)
def test_two_processes_refresh_once_and_lose_nobody() -> None:
    """Through the middleware, at a server that punishes a second refresh."""
    counts = expiry("postgres", 2, requests=60)
    assert not counts.wrong, f"\n{counts}"


def test_a_loop_that_ends_without_a_close_leaves_no_connection(server: PostgresServer) -> None:
    async def use() -> None:
        await stores[0].put("k", b"v", 60)

    stores = [PostgresStore(server.url)]
    loops = [asyncio.new_event_loop() for _ in range(3)]
    for loop in loops:
        loop.run_until_complete(use())
        loop.close()
    assert server.clients() == 1, "the next loop closes what closed loops left"
    loops.clear()
    stores.clear()
    del loop
    server.loses_its_clients()


def test_a_fork_shares_no_connection_with_its_parent(shared: PostgresServer) -> None:
    # Sharing a socket would mix up answers: each asks many times for a key of its own.
    code = """
    async def ask(store, name):
        for _ in range(100):
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
                    run(twin.close())
                    asyncio.new_event_loop().run_until_complete(ask(store, name))
                    sys.exit(0)  # and what belongs to the parent is left alone at the exit, too
                finally:
                    if sys.exc_info()[0] is not SystemExit:
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


def test_a_loop_that_was_used_before_a_fork_connects_anew_after_it(server: PostgresServer) -> None:
    code = """
    import psycopg

    def connections():
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cm_auth'"
        with psycopg.connect(sys.argv[1]) as connection:
            return connection.execute(query).fetchone()[0]

    loop = asyncio.new_event_loop()
    loop.run_until_complete(store.put("k", b"v", 60))
    before = connections()
    pid = os.fork()
    if pid == 0:
        value = loop.run_until_complete(store.get("k"))
        os._exit(0 if (value, connections()) == (b"v", before + 1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert loop.run_until_complete(store.get("k")) == b"v"
    loop.run_until_complete(store.close())
    loop.close()
    """
    assert finish(start(code, server.url)) == 0


@pytest.mark.parametrize("threads", [False, True])
def test_closing_lets_calls_under_way_end(threads: bool, server: PostgresServer) -> None:
    store = PostgresStore(server.url).blocking() if threads else PostgresStore(server.url)
    answers: list[Any] = []

    async def ask() -> None:
        answers.append(await store.replace("k", b"v", b"w", 60))

    async def on_a_loop() -> None:
        await store.put("k", b"v", 60)
        with server.connected() as other:
            other.execute("SELECT 1 FROM cm_auth WHERE kind = 'record' FOR UPDATE")
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await anyio.sleep(0.2)
                await store.close()
                other.rollback()

    if threads:
        run(store.put("k", b"v", 60))
        with server.connected() as other:
            other.execute("SELECT 1 FROM cm_auth WHERE kind = 'record' FOR UPDATE")
            asking = threading.Thread(target=lambda: run(ask()))
            asking.start()
            time.sleep(0.2)
            run(store.close())
            other.rollback()
            asking.join()
    else:
        anyio.run(on_a_loop)
    assert answers == [True]
    server.loses_its_clients()


# URLs


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{PASSWORD}@localhost/db",  # not percent-encoded
        "postgresql://user:12/34nobody@localhost/db",
        "postgresql://localhost:port/db",
        "postgresql://localhost/db?colour=blue",
        "postgresql://localhost/db?connect_timeout=soon",
        "postgresql://localhost/db?max_connections=0",
        "postgresql://localhost/db?max_connections=many",
        "postgresql://localhost/db?table=Robert'); DROP TABLE students; --",
        "postgresql://localhost/db?table=a.b.c",
        "postgresql://localhost/db#fragment",
        "postgresql+psycopg://localhost/db",
        "postgresql:localhost",
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
        open_store("postgresql://localhost/db?colour=blue")


def test_a_name_without_secrets() -> None:
    for url, name in (
        (f"postgres://u:{QUOTED}@h:1/db?sslmode=require", "postgres://h:1/…"),
        (f"postgresql://u:{QUOTED}@a,b:2/db", "postgresql://a,b:2/…"),
        (f"postgresql://h/db?password={QUOTED}", "postgresql://h/…"),
        ("postgresql:///db?host=/var/run/postgresql", "postgresql:///…"),
        (f"postgresql://u:{QUOTED}@[::1]:2/db", "postgresql://[::1]:2/…"),
    ):
        assert repr(PostgresStore(url)) == f"<PostgresStore {name}>"


def test_the_documentation_shows_the_sql_that_an_owner_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()
    assert f"```sql\n{SCHEMA}GRANT SELECT, INSERT, UPDATE, DELETE ON" in page


def test_the_documented_steps_for_a_schema_of_its_own_are_those_of_the_error(
    shared: PostgresServer,
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()
    documented = page.split('CREATE SCHEMA "my_schema";')[1].split("```")[0]
    url = f"postgresql://cm:{QUOTED}@127.0.0.1:{shared.port}/postgres?table=my_schema.my_table"
    store = PostgresStore(url).blocking()
    with pytest.raises(StoreError) as caught:
        run(store.ping())
    run(store.close())
    first, making, *grants = told_steps(caught.value)
    assert first == 'CREATE SCHEMA "my_schema"'
    assert making == schema("my_schema.my_table")
    told = [f"{grant};".replace("TO cm", "TO cameras") for grant in grants]
    assert documented.strip().split("\n")[1:] == told
