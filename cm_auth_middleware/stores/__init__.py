"""Stores keep the sessions: the protocol of a store, and the opening of one by its URL."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable
from urllib.parse import unquote

from ..errors import ConfigError
from .memory import MemoryStore

if TYPE_CHECKING:
    from .postgres import PostgresStore
    from .redis import RedisStore
    from .sqlite import SQLiteStore

__all__ = [
    "CountsRecords",
    "FindsByPrefix",
    "HasBlockingTwin",
    "HasEpochs",
    "MemoryStore",
    "PostgresStore",
    "PutsSeveral",
    "RedisStore",
    "SQLiteStore",
    "SessionStore",
    "TellsLapsedLeases",
    "open_store",
]


_REDIS = {
    "redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster",
    "rediss+cluster",
}  # fmt: skip
_POSTGRES = {"postgresql", "postgres"}


@runtime_checkable
class SessionStore(Protocol):
    """A store keeps values under keys for a time, replaces them atomically, and grants leases.

    Keys are short ASCII strings (hashes), values are encrypted bytes; a store can read neither.
    Records and leases are separate: a lease may have the key of a record. Times to live are in
    seconds and positive. A method that cannot reach its storage raises `StoreError`; it never
    returns None or False instead.

    A store may also have the methods of `FindsByPrefix`, `CountsRecords`, `PutsSeveral`,
    `HasEpochs`, `TellsLapsedLeases` and `HasBlockingTwin`.
    `cm_auth_middleware.testing.StoreConformance` checks all of it.
    """

    async def get(self, key: str) -> bytes | None:
        """Return the value, or None if there is none or it has expired."""

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Set the value; replace any old one."""

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        """Set `new` only if the value is `old` right now, atomically; return True if it was.

        This keeps a refresh from restoring a session that was logged out, and two requests from
        overwriting each other.
        """

    async def delete(self, key: str) -> bytes | None:
        """Delete the value and return it, atomically: only one of two callers gets it."""

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        """Take the lease `key` for `owner`, or extend it if `owner` holds it; True if so."""

    async def release(self, key: str, owner: str) -> None:
        """Give the lease back; nothing happens if another owner holds it now."""

    async def purge(self) -> int:
        """Delete what has expired and return how many; 0 in a store that expires by itself."""

    async def ping(self) -> None:
        """Raise `StoreError` if the store cannot be used."""

    async def close(self) -> None:
        """Release connections and files. The store may be used again: it then reopens them."""


@runtime_checkable
class FindsByPrefix(Protocol):
    """A store that finds records by the first bytes of their values: one user's sessions."""

    async def find(self, prefix: bytes) -> list[tuple[str, bytes]]:
        """Return the live keys and values whose value begins with `prefix`, in any order."""


@runtime_checkable
class CountsRecords(Protocol):
    """A store that can count its records."""

    async def count(self, prefix: bytes = b"") -> int:
        """Return the number of live records whose value begins with `prefix`, without leases."""


@runtime_checkable
class PutsSeveral(Protocol):
    """A store that sets several values by one message to its storage: a login has two."""

    async def put_all(self, records: Sequence[tuple[str, bytes, float]]) -> None:
        """Set values as `put` does, each by its key, its value and its time to live.

        There is one at least, and the keys differ. After an error some may have been set. It is
        called only where it goes with `put`: a class that overrides `put` alone is called by that.
        """


@runtime_checkable
class HasBlockingTwin(Protocol):
    """A store that serves threads (WSGI) as well as event loops."""

    def blocking(self) -> SessionStore:
        """Return a store on the same storage whose methods block the thread and never suspend."""


@runtime_checkable
class HasEpochs(Protocol):
    """A store that tells when a server took over that may lack what was acknowledged.

    Replication is asynchronous in most databases: a replica that becomes the primary may have lost
    the last writes of the one before it. That begins an epoch, and so does a restart that may lose
    some. Who refreshed tokens then puts them back.
    """

    async def epochs(self, key: str | None = None) -> frozenset[str]:
        """Return the name of the epoch of the server that has a key, or of all servers.

        A name is never used again. The set is empty if the server does not tell it.
        """


@runtime_checkable
class TellsLapsedLeases(Protocol):
    """A store that tells a lease which has run out from one that was given back.

    Who let it run out died, or is cut off from the store and may hold new tokens that it could not
    save. `release` gives back these leases, too.
    """

    async def claim(
        self, key: str, owner: str, ttl: float, *, even_lapsed: bool = False
    ) -> bool | None:
        """Take a lease as `acquire` does, unless another owner let it run out within a day.

        Args:
            even_lapsed: take it all the same.

        Returns:
            True if `owner` has it now, False if another owner does; None if another one let it run
            out and has not given it back.
        """


_REPLACED = {"put_all": ("put",), "claim": ("acquire", "release")}


def method_of(store: object, name: str) -> Callable[..., Any] | None:
    """Return `put_all` or `claim` of a store, or None if it has none that goes with its others.

    A store of an application may derive from one of ours, or hand on to one what it lacks, and have
    a `put` or `acquire` of its own, which changes keys or values: what we call in the place of
    that would pass it by.
    """
    for kind in type(store).__mro__:
        if name in vars(kind):
            break
        if any(replaced in vars(kind) for replaced in _REPLACED[name]):
            return None
    return getattr(store, name, None)


class StoreURL(NamedTuple):
    """The kind of a store, and the file of a SQLite store.

    Attributes:
        kind: ``memory``, ``sqlite``, ``redis`` or ``postgres``.
        path: the file of a SQLite store; None for other stores.
    """

    kind: str
    path: Path | None = None


def parse(url: str) -> StoreURL:
    """Read the URL of a store. `RedisStore` and `PostgresStore` check the rest of theirs.

    Raises:
        ConfigError: the URL names no store.
    """
    scheme, separator, rest = url.partition("://")
    if scheme == "memory" or url == "memory:":
        if rest:
            raise ConfigError("store memory:// takes nothing after it")
        return StoreURL("memory")
    if scheme == "sqlite" and separator:
        host, _, path = rest.partition("/")
        if host or not path or "?" in path or path.endswith("/"):
            raise ConfigError(
                "store sqlite:// needs the path of a file and nothing else: sqlite:///sessions.db "
                "in the working directory, or sqlite:////var/lib/app/sessions.db with four slashes"
            )
        return StoreURL("sqlite", Path(unquote(path)))
    if scheme in _REDIS and separator:
        return StoreURL("redis")
    if scheme in _POSTGRES and separator:
        return StoreURL("postgres")
    raise ConfigError(
        "store has an unknown scheme: give memory://, sqlite:///path, redis://, rediss://, "
        "unix://, redis+sentinel://, redis+cluster://, postgresql:// or a store object"
    )


def open_store(
    store: str | SessionStore, *, clock: Callable[[], float] = time.time
) -> SessionStore:
    """Return the store that an option names: a URL, or a store object as it is.

    Args:
        store: ``memory://``, ``sqlite:///relative.db``, ``sqlite:////absolute.db``,
            ``redis://…`` and its variants (see `RedisStore`), ``postgresql://…`` (see
            `PostgresStore`), or an object.
        clock: epoch seconds, for the stores that keep time themselves.

    Raises:
        ConfigError: the URL names no store, or a package that the store needs is not installed.
    """
    if not isinstance(store, str):
        if not isinstance(store, SessionStore):
            raise ConfigError("store is a URL or an object with the methods of SessionStore")
        return store
    url = parse(store)
    if url.path is not None:
        from .sqlite import SQLiteStore  # imported where it is used: 5 ms of start-up

        return SQLiteStore(url.path, clock=clock)
    if url.kind == "redis":
        from .redis import RedisStore  # imported where it is used: 150 ms of start-up

        return RedisStore(store)
    if url.kind == "postgres":
        from .postgres import PostgresStore  # imported where it is used: 150 ms of start-up

        return PostgresStore(store)
    return MemoryStore(clock=clock)


def __getattr__(name: str) -> Any:
    """Import the other stores when they are first used."""
    if name in ("PostgresStore", "RedisStore", "SQLiteStore"):
        module = importlib.import_module(f".{name.removesuffix('Store').lower()}", __name__)
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
