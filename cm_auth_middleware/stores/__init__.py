"""Where sessions are kept: the protocol of a store, and the opening of one by its URL."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import unquote

from ..errors import ConfigError
from .memory import MemoryStore

if TYPE_CHECKING:
    from .redis import RedisStore
    from .sqlite import SQLiteStore

__all__ = [
    "CountsRecords",
    "FindsByPrefix",
    "HasBlockingTwin",
    "MemoryStore",
    "RedisStore",
    "SQLiteStore",
    "SessionStore",
    "open_store",
]


@runtime_checkable
class SessionStore(Protocol):
    """A key, an opaque value, a time to live, replace-only-if-unchanged, and leases.

    Keys are short ASCII strings (hashes), values are sealed bytes; a store can read neither.
    Records and leases are apart: a lease may have the key of a record. Times to live are in
    seconds and positive. A method that cannot reach its storage raises `StoreError`; it never
    answers "not there" instead.

    A store may also have the methods of `FindsByPrefix`, `CountsRecords` and `HasBlockingTwin`.
    `cm_auth_middleware.testing.StoreConformance` checks all of it.
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
        """Release connections and files. The store may be used again: it opens them anew."""


@runtime_checkable
class FindsByPrefix(Protocol):
    """A store that finds records by what their values begin with: one user's sessions."""

    async def find(self, prefix: bytes) -> list[tuple[str, bytes]]:
        """Return the live keys and values whose value begins with `prefix`, in any order."""


@runtime_checkable
class CountsRecords(Protocol):
    """A store that knows how much it holds."""

    async def count(self, prefix: bytes = b"") -> int:
        """Return the number of live records whose value begins with `prefix`; leases are none."""


@runtime_checkable
class HasBlockingTwin(Protocol):
    """A store that serves threads (WSGI) as well as event loops."""

    def blocking(self) -> SessionStore:
        """Return a store on the same storage whose methods block the thread and never suspend."""


def open_store(
    store: str | SessionStore, *, clock: Callable[[], float] = time.time
) -> SessionStore:
    """Return the store that an option names: a URL, or a store object as it is.

    Args:
        store: ``memory://``, ``sqlite:///relative.db``, ``sqlite:////absolute.db``,
            ``redis://…`` and its kin (see `RedisStore`), or an object.
        clock: epoch seconds, for the stores that keep time themselves.

    Raises:
        ConfigError: the URL names no store, or what it needs is not installed.
    """
    if not isinstance(store, str):
        if not isinstance(store, SessionStore):
            raise ConfigError("store is a URL or an object with the methods of SessionStore")
        return store
    scheme, separator, rest = store.partition("://")
    if scheme == "memory" or store == "memory:":
        if rest:
            raise ConfigError("store memory:// takes nothing after it")
        return MemoryStore(clock=clock)
    if scheme == "sqlite" and separator:
        from .sqlite import SQLiteStore  # imported where it is used: 5 ms of start-up

        return SQLiteStore(_sqlite_path(rest), clock=clock)
    if scheme.startswith(("redis", "unix")) and separator:
        from .redis import RedisStore  # imported where it is used: 150 ms of start-up

        return RedisStore(store)
    raise ConfigError(
        "store has an unknown scheme: give memory://, sqlite:///path, redis://, rediss://, "
        "unix://, redis+sentinel://, redis+cluster:// or a store object"
    )


def _sqlite_path(rest: str) -> str:
    host, _, path = rest.partition("/")
    if host or not path or "?" in path or path.endswith("/"):
        raise ConfigError(
            "store sqlite:// needs the path of a file and nothing else: sqlite:///sessions.db in "
            "the working directory, or sqlite:////var/lib/app/sessions.db with four slashes"
        )
    return unquote(path)


def __getattr__(name: str) -> Any:
    """Import the other stores when somebody asks for them."""
    if name in ("RedisStore", "SQLiteStore"):
        module = importlib.import_module(f".{name.removesuffix('Store').lower()}", __name__)
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
