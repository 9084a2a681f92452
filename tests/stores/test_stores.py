"""The protocol of stores: what is built in keeps it, and the check finds who does not."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cm_auth_middleware import ConfigError, MemoryStore, SessionStore
from cm_auth_middleware.stores import PostgresStore, RedisStore, SQLiteStore, open_store
from cm_auth_middleware.testing import StoreConformance
from tests.helpers.stores import DictStore
from tests.helpers.world import Clock


@pytest.mark.slow
class TestDictStore(StoreConformance):
    def make_store(self) -> SessionStore:
        return DictStore()


@pytest.mark.slow
class TestDictStoreForThreads(TestDictStore):
    blocking = True


class MovedClock(StoreConformance):
    """For stores that take a clock: no check waits."""

    @pytest.fixture(autouse=True)
    def _given(self, tmp_path: Path) -> None:
        self.clock = Clock()
        self.path = tmp_path / "sessions.db"

    def wait(self, seconds: float) -> None:
        self.clock.tick(seconds)


class TestMemoryStore(MovedClock):
    def make_store(self) -> SessionStore:
        return MemoryStore(clock=self.clock)


class TestMemoryStoreForThreads(MovedClock):
    blocking = True

    def make_store(self) -> SessionStore:
        return MemoryStore(clock=self.clock).blocking()


class TestSQLiteStore(MovedClock):
    def make_store(self) -> SessionStore:
        return SQLiteStore(self.path, clock=self.clock, lease_clock=self.clock)


class TestSQLiteStoreOnTrio(TestSQLiteStore):
    backend = "trio"


class TestSQLiteStoreForThreads(TestSQLiteStore):
    blocking = True

    def make_store(self) -> SessionStore:
        return SQLiteStore(self.path, clock=self.clock, lease_clock=self.clock).blocking()


BROKEN = {
    "replace without comparing": """
        async def replace(self, key, old, new, ttl):
            with self.lock:
                if key not in self.records:
                    return False
                self.records[key] = (new, time.monotonic() + ttl)
                return True
        """,
    "replace in two steps": """
        async def replace(self, key, old, new, ttl):
            if await self.get(key) != old:
                return False
            await anyio.sleep(0)
            await self.put(key, new, ttl)
            return True
        """,
    "replace that revives": """
        async def replace(self, key, old, new, ttl):
            if await self.get(key) not in (old, None):
                return False
            await self.put(key, new, ttl)
            return True
        """,
    "replace that keeps the old time": """
        async def replace(self, key, old, new, ttl):
            with self.lock:
                value, expires = self.records.get(key, (None, 0))
                if value != old or expires <= time.monotonic():
                    return False
                self.records[key] = (new, expires)
                return True
        """,
    "delete in two steps": """
        async def delete(self, key):
            value = await self.get(key)
            await anyio.sleep(0)
            self.records.pop(key, None)
            return value
        """,
    "get without expiry": """
        async def get(self, key):
            return self.records.get(key, (None, 0))[0]
        """,
    "leases that never run out": """
        async def acquire(self, key, owner, ttl):
            return await super().acquire(key, owner, 10**6)
        """,
    "leases that their owner cannot extend": """
        async def acquire(self, key, owner, ttl):
            with self.lock:
                if self.leases.get(key, ("", 0))[1] > time.monotonic():
                    return False
                self.leases[key] = (owner, time.monotonic() + ttl)
                return True
        """,
    "release by anybody": """
        async def release(self, key, owner):
            self.leases.pop(key, None)
        """,
    "keys without case": """
        async def put(self, key, value, ttl):
            await super().put(key.lower(), value, ttl)
        """,
    "text": """
        async def get(self, key):
            value = await super().get(key)
            return value and value.decode(errors="replace").encode()
        """,
    "purge of everything": """
        async def purge(self):
            self.records.clear()
            return 0
        """,
    "find without expiry": """
        async def find(self, prefix):
            return [(k, v) for k, (v, _) in self.records.items() if v.startswith(prefix)]
        """,
    "count of leases too": """
        async def count(self):
            await self.purge()
            return len(self.records) + len(self.leases)
        """,
    "several values with one time": """
        async def put_all(self, records):
            for key, value, _ in records:
                await self.put(key, value, records[0][2])
        """,
    "the last of several values only": """
        async def put_all(self, records):
            await self.put(*records[-1])
        """,
    "a twin apart": """
        def blocking(self):
            return DictStore()
        """,
    "a method is missing": "ping = None",
}


@pytest.mark.slow
def test_the_check_finds_each_fault(tmp_path: Path) -> None:
    for number, (name, fault) in enumerate(BROKEN.items()):
        (tmp_path / f"test_{number}.py").write_text(
            "import time\nimport anyio\nfrom tests.helpers.stores import DictStore\n"
            "from cm_auth_middleware.testing import StoreConformance\n"
            f"class Store(DictStore):\n    name = {name!r}\n"
            f"{textwrap.indent(textwrap.dedent(fault), '    ')}\n"
            "class TestStore(StoreConformance):\n"
            "    short = 0.05\n"
            "    def make_store(self):\n        return Store()\n"
        )
    (tmp_path / "test_blocking.py").write_text(
        "import anyio\nfrom tests.helpers.stores import DictStore\n"
        "from cm_auth_middleware.testing import StoreConformance\n"
        "class Store(DictStore):\n"
        "    async def ping(self):\n        await anyio.sleep(0)\n"
        "class TestStore(StoreConformance):\n"
        "    blocking = True\n    short = 0.05\n"
        "    def make_store(self):\n        return Store()\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-Wignore", f"--rootdir={tmp_path}", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    failed = {line.split("::")[0] for line in run.stdout.splitlines() if line[:7] == "FAILED "}
    missed = [name for n, name in enumerate(BROKEN) if f"test_{n}.py" not in str(failed)]
    assert not missed, run.stdout
    assert "test_blocking.py" in str(failed), run.stdout


# Opening by URL


@pytest.mark.parametrize(
    "url",
    [
        *(
            "sqlite://",
            "sqlite:",
            "sqlite:///",
            "sqlite://host/x.db",
            "sqlite:///x/",
            "sqlite:///a?b",
        ),
        *("memory://x", "file:///x", "mysql://x", "", "redis", "sqlite:///:memory:"),
    ],
)
def test_a_url_of_no_store_is_refused_with_the_way_out(url: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)store.*(sqlite:///|memory://)"):
        open_store(url)


def test_urls_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert repr(open_store("sqlite:///a%20b.db")) == f"<SQLiteStore {tmp_path}/a b.db>"
    assert repr(open_store("sqlite:////var/x.db")) == "<SQLiteStore /var/x.db>"
    assert isinstance(open_store("memory://"), MemoryStore)


def test_a_store_object_is_taken_and_anything_else_refused() -> None:
    store = DictStore()
    assert open_store(store) is store
    with pytest.raises(ConfigError, match="SessionStore"):
        open_store(object())  # type: ignore[arg-type]


def test_every_store_but_memory_sets_several_values_at_once() -> None:
    assert all(hasattr(kind, "put_all") for kind in (PostgresStore, RedisStore, SQLiteStore))


def test_what_is_not_used_is_not_imported() -> None:
    code = (
        "import sys, cm_auth_middleware\n"
        "from cm_auth_middleware.stores import open_store\n"
        "open_store('memory://')\n"
        "assert not {'sqlite3', 'redis', 'psycopg'} & sys.modules.keys()\n"
        "open_store('sqlite:///x.db')\n"
        "assert not {'redis', 'psycopg'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [("redis://localhost", "redis", "redis"), ("postgresql://localhost", "psycopg", "postgres")],
)
def test_without_its_package_a_store_names_the_extra(url: str, package: str, extra: str) -> None:
    code = (
        "import sys\n"
        f"sys.modules[{package!r}] = None\n"  # as if it were not installed
        "from cm_auth_middleware import ConfigError\n"
        "from cm_auth_middleware.stores import open_store\n"
        f"try:\n    open_store({url!r})\n"
        "except ConfigError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert f"cm_auth_middleware[{extra}]" in run.stdout
