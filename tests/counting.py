"""A store that counts, and that lets others in between where a network would."""

from __future__ import annotations

from collections import Counter

import anyio.lowlevel

from cm_auth_middleware import MemoryStore, StoreError


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
    """

    def __init__(self, memory: MemoryStore) -> None:
        self.memory = memory
        self.done: Counter[str] = Counter()
        self.tried: Counter[str] = Counter()
        self.broken: set[str] = set()
        self._holds: list[Hold] = []
        self._yields = True

    def hold(self, name: str, prefix: str = "") -> Hold:
        """Hold up the next call of a method for a key that begins so, until it is let go."""
        self._holds.append(Hold(name, prefix))
        return self._holds[-1]

    def blocking(self) -> CountingStore:
        twin = CountingStore(self.memory)
        twin.done, twin.tried, twin.broken = self.done, self.tried, self.broken
        twin._yields = False
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
            raise StoreError("broken on purpose")

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
