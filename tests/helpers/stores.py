"""Stores that tests share, a way to call a blocking one, and programs that use one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

from cm_auth_middleware import MemoryStore, SessionStore, StoreError

ROOT = Path(__file__).parents[2]
PRELUDE = """
import asyncio, os, signal, sys, threading, time
from cm_auth_middleware import StoreError
from cm_auth_middleware.stores import open_store
from tests.helpers.stores import run

store = open_store(sys.argv[1])
"""

INCREMENTS = """
store = store.blocking()
for number in range(int(sys.argv[2])):
    while True:
        value = run(store.get("compared"))
        if run(store.replace("compared", value, b"%d" % (int(value) + 1), 600)):
            break
    owner = f"{os.getpid()}:{number}"
    while not run(store.acquire("lease", owner, 600)):
        time.sleep(0.001)
    value = run(store.get("guarded"))
    run(store.put("guarded", b"%d" % (int(value) + 1), 600))
    run(store.release("lease", owner))
"""


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a call of a blocking store to its end; it must not suspend."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a blocking store suspended")


def checks_of(side: str, make: Callable[..., Any]) -> Callable[..., None]:
    """Return a function that runs a check with a store on a side, and closes the store.

    Args:
        side: "asyncio", "trio" or "threads".
        make: makes the store of what the function is given behind the check.
    """

    def run_check(
        check: Callable[[Any], Coroutine[Any, Any, None]], *given: Any, **options: Any
    ) -> None:
        async def checked(store: Any) -> None:
            try:
                await check(store)
            finally:
                await store.close()

        store = make(*given, **options)
        if side == "threads":
            run(checked(store.blocking()))
        else:
            anyio.run(checked, store, backend=side)

    return run_check


async def increment(store: SessionStore, key: str, times: int) -> None:
    """Add to a number by `replace`, which fails when somebody else was faster."""
    for _ in range(times):
        while True:
            value = await store.get(key)
            assert value is not None
            if await store.replace(key, value, b"%d" % (int(value) + 1), 600):
                break


class BrokenStore(MemoryStore):
    """A store that fails while `broken` is True."""

    broken = False

    def _check(self) -> None:
        if self.broken:
            raise StoreError("gone")

    async def get(self, key: str) -> bytes | None:
        self._check()
        return await super().get(key)

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        self._check()
        await super().put(key, value, ttl)

    async def count(self, prefix: bytes = b"") -> int:
        self._check()
        return await super().count(prefix)


class Hold:
    """A call that was held up."""

    def __init__(self, name: str, prefix: str) -> None:
        self.name = name
        self.prefix = prefix
        self.reached = anyio.Event()
        self.released = anyio.Event()


class CountingStore:
    """A memory store whose every method takes its turn, can be held up, and fails while `broken`.

    Attributes:
        done: how often each method changed or read something; a `replace` counts if it replaced.
        broken: the names of methods that fail for now.
        failures: what they raise is the last of these.
    """

    def __init__(self, memory: MemoryStore) -> None:
        self.memory = memory
        self.done: Counter[str] = Counter()
        self.tried: Counter[str] = Counter()
        self.broken: set[str] = set()
        self.failures: list[type[Exception]] = [StoreError]
        self._holds: list[Hold] = []
        self._yields = True

    def hold(self, name: str, prefix: str = "") -> Hold:
        """Hold up the next call of a method for a key that begins so, until it is let go."""
        self._holds.append(Hold(name, prefix))
        return self._holds[-1]

    def blocking(self) -> CountingStore:
        twin = type(self)(self.memory)
        twin.done, twin.tried, twin.broken = self.done, self.tried, self.broken
        twin.failures, twin._yields = self.failures, False
        return twin

    @property
    def writes(self) -> int:
        """How many records were written."""
        return self.done["put"] + self.done["replace"]

    async def _turn(self, name: str, key: str = "") -> None:
        self.tried[name] += 1
        for hold in list(self._holds):
            if hold.name == name and key.startswith(hold.prefix):
                self._holds.remove(hold)
                hold.reached.set()
                await hold.released.wait()
        if self._yields:
            await anyio.lowlevel.checkpoint()
        if name in self.broken:
            raise self.failures[-1]("broken on purpose")

    async def get(self, key: str) -> bytes | None:
        await self._turn("get", key)
        self.done["get"] += 1
        return await self.memory.get(key)

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        await self._turn("put", key)
        self.done["put"] += 1
        await self.memory.put(key, value, ttl)

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        await self._turn("replace", key)
        replaced = await self.memory.replace(key, old, new, ttl)
        self.done["replace"] += replaced
        return replaced

    async def delete(self, key: str) -> bytes | None:
        await self._turn("delete", key)
        return await self.memory.delete(key)

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        await self._turn("acquire", key)
        return await self.memory.acquire(key, owner, ttl)

    async def claim(
        self, key: str, owner: str, ttl: float, *, even_lapsed: bool = False
    ) -> bool | None:
        await self._turn("acquire", key)
        return await self.memory.claim(key, owner, ttl, even_lapsed=even_lapsed)

    async def release(self, key: str, owner: str) -> None:
        await self._turn("release", key)
        await self.memory.release(key, owner)

    async def purge(self) -> int:
        return await self.memory.purge()

    async def find(self, prefix: bytes) -> list[tuple[str, bytes]]:
        await self._turn("find")
        return await self.memory.find(prefix)

    async def count(self) -> int:
        return await self.memory.count()

    async def ping(self) -> None:
        await self._turn("ping")

    async def close(self) -> None:
        await self.memory.close()


class HangingStore(MemoryStore):
    """A memory store whose methods do not return while it `hangs`, on event loops or in threads.

    Attributes:
        hanging: calls that are under way and do not return.
        asked: how often each method was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self._blocks = False
        self.going = threading.Event()
        self.going.set()
        self.hanging = 0
        self.asked: Counter[str] = Counter()

    @property
    def hangs(self) -> bool:
        """True while no method returns; set it."""
        return not self.going.is_set()

    @hangs.setter
    def hangs(self, value: bool) -> None:
        (self.going.clear if value else self.going.set)()

    def blocking(self) -> HangingStore:
        self._blocks = True  # a world has one side
        return self

    async def _wait(self, name: str) -> None:
        self.asked[name] += 1
        self.hanging += 1
        try:
            while self.hangs:
                if self._blocks:
                    self.going.wait()
                else:
                    await anyio.sleep(0.01)
        finally:
            self.hanging -= 1

    async def get(self, key: str) -> bytes | None:
        await self._wait("get")
        return await super().get(key)

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        await self._wait("replace")
        return await super().replace(key, old, new, ttl)

    async def ping(self) -> None:
        await self._wait("ping")


class DictStore:
    """A store in a dictionary: the whole protocol, as short as it gets."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.records: dict[str, tuple[bytes, float]] = {}
        self.leases: dict[str, tuple[str, float]] = {}

    async def get(self, key: str) -> bytes | None:
        value, expires = self.records.get(key, (None, 0))
        return value if expires > time.monotonic() else None

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        with self.lock:
            self.records[key] = (value, time.monotonic() + ttl)

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        with self.lock:
            value, expires = self.records.get(key, (None, 0))
            if value != old or expires <= time.monotonic():
                return False
            self.records[key] = (new, time.monotonic() + ttl)
            return True

    async def delete(self, key: str) -> bytes | None:
        with self.lock:
            value, expires = self.records.pop(key, (None, 0))
            return value if expires > time.monotonic() else None

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        with self.lock:
            holder, expires = self.leases.get(key, (owner, 0))
            if holder != owner and expires > time.monotonic():
                return False
            self.leases[key] = (owner, time.monotonic() + ttl)
            return True

    async def release(self, key: str, owner: str) -> None:
        with self.lock:
            if self.leases.get(key, ("",))[0] == owner:
                del self.leases[key]

    async def purge(self) -> int:
        with self.lock:
            over = [k for k, (_, expires) in self.records.items() if expires <= time.monotonic()]
            for key in over:
                del self.records[key]
            return len(over)

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


def start(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Run a program that has a store on the URL of its first argument."""
    program = PRELUDE + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **options,
    )


def finish(process: subprocess.Popen[str]) -> int:
    """Wait for a program and return its exit code; one that hangs is killed."""
    try:
        process.communicate(timeout=50)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode
