"""Where sessions are kept: the protocol of a store, and the opening of one by its URL."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ..errors import ConfigError
from .memory import MemoryStore

__all__ = ["MemoryStore", "SessionStore", "open_store"]


@runtime_checkable
class SessionStore(Protocol):
    """A key, an opaque value, a time to live, replace-only-if-unchanged, and leases.

    Keys are short ASCII strings (hashes), values are sealed bytes; a store can read neither.
    Times to live are in seconds. A method that cannot reach its storage raises `StoreError`;
    it never answers "not there" instead.
    """

    async def get(self, key: str) -> bytes | None:
        """Return the value, or None if there is none or its time is over."""

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Set the value, whatever was there."""

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        """Set `new` only if the value is `old` right now, atomically; say whether it was.

        This is what keeps a refresh from bringing back a session that was logged out, and two
        requests from overwriting each other.
        """

    async def delete(self, key: str) -> bytes | None:
        """Remove the value and return it, atomically: of two callers one gets it."""

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        """Take the lease `key` for `owner`, or extend it if `owner` holds it; say whether."""

    async def release(self, key: str, owner: str) -> None:
        """Give the lease back; nothing happens if another owner holds it by now."""

    async def purge(self) -> int:
        """Remove what has expired; return how many. A store that expires by itself returns 0."""

    async def ping(self) -> None:
        """Raise `StoreError` if the store cannot be used."""

    async def close(self) -> None:
        """Release connections and files."""


def open_store(store: str | SessionStore) -> SessionStore:
    """Return the store that an option names: a URL, or a store object as it is."""
    if not isinstance(store, str):
        if not isinstance(store, SessionStore):
            raise ConfigError("store is a URL or an object with the methods of SessionStore")
        return store
    scheme = store.partition(":")[0]
    if scheme == "memory":
        return MemoryStore()
    raise ConfigError(
        f"store {scheme}:// is not built into this version: give memory:// or a store object"
    )
