"""Stores that tests share, and a way to call a blocking one."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from cm_auth_middleware import MemoryStore, StoreError


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a call of a blocking store to its end; it must not suspend."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a blocking store suspended")


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
