"""Sessions in Redis or Valkey: they survive restarts and serve every process of every machine."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any

from .redis_target import Target  # isort: skip - first, since it reports a missing redis-py

from redis.exceptions import NoScriptError

from .redis_clients import AsyncClients, BlockingClients, Call, outcome, scripts

_PAGE = 500  # keys that one step of a listing reads; Redis serves other clients in between


class _Script:
    """A Lua script, which Redis runs as one step."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        scripts[self.sha] = source


# KEYS[1], then: new value, milliseconds, and each value that may be replaced.
_REPLACE = _Script("""
local value = redis.call('GET', KEYS[1])
for i = 3, #ARGV do
  if value == ARGV[i] then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return 1
  end
end
return 0
""")
_DELETE = _Script("""
local value = redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
return value
""")
# KEYS[1], then: owner, milliseconds.
_ACQUIRE = _Script("""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""")
_RELEASE = _Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
""")
# KEYS[1] leads to the slot; then: cursor, pattern of keys, keys to look at, prefix of values, and
# 1 to return keys and values or 0 to return keys.
# The key is read twice so that a value of a megabyte that does not match is not copied.
_SCAN = _Script("""
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
local found = {page[1]}
local size = #ARGV[4]
for _, key in ipairs(page[2]) do
  if size == 0 or redis.call('GETRANGE', key, 0, size - 1) == ARGV[4] then
    local value = ARGV[5] == '0' or redis.call('GET', key)
    if value then
      found[#found + 1] = key
      if ARGV[5] == '1' then
        found[#found + 1] = value
      end
    end
  end
end
return found
""")


class RedisStore:
    """A store in Redis, Valkey, a group watched by Sentinel, or a cluster.

    ======================================= ==================================================
    ``redis://[user:password@]host:port/db`` one server
    ``rediss://…``                           the same over TLS; certificates are verified
    ``unix://[user:password@]/path?db=0``    one server, by its socket
    ``redis+sentinel://a:26379,b:26379/name?db=0`` the primary that these sentinels know as `name`
    ``redis+cluster://a:6379,b:6379``        a cluster that these nodes belong to
    ======================================= ==================================================

    ``rediss+sentinel`` and ``rediss+cluster`` use TLS. Options of redis-py's connections follow a
    question mark: ``ssl_ca_certs=/path``, ``socket_timeout=5`` (seconds), ``max_connections=16``
    (per event loop, and per process for threads; further requests wait for a free one), and
    ``sentinel_username``, ``sentinel_password``. ``wait_replicas=1`` makes each write wait until so
    many replicas have it, for ``wait_timeout=0.1`` seconds at most; it counts all the same.

    After two time-outs in a row, calls fail at once, and one a second tries the server; in a
    cluster, each node by itself.

    Args:
        url: one of these.
        prefix: begins every key. The part in braces decides the slot in a cluster, so the prefix
            needs braces.

    Raises:
        ConfigError: the URL is wrong, or redis-py is not installed.
        StoreError: by every method, if Redis cannot be used; once it can, they work again.
    """

    def __init__(self, url: str, *, prefix: str = "{cm_auth}:") -> None:
        self._target = Target.parse(url)
        self._blocking = BlockingClients(self._target)
        self._clients: AsyncClients | BlockingClients
        self._clients = AsyncClients(self._target, self._blocking)
        self._prefix = prefix
        self._records, self._leases = f"{prefix}s:", f"{prefix}l:"
        self._pattern = re.sub(r"([\\*?\[\]])", r"\\\1", self._records) + "*"

    def blocking(self) -> RedisStore:
        """Return a twin for threads, with connections of its own."""
        twin = copy.copy(self)
        twin._clients = self._blocking
        return twin

    async def get(self, key: str) -> bytes | None:
        """Return the value, or None."""
        name = self._records + key

        def call(client: Any) -> Any:
            return client.get(name)

        value: bytes | None = await self._clients.run(call, call)
        return value

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Set the value."""
        await self._repeatable(
            lambda client: client.set(self._records + key, value, px=_milliseconds(ttl))
        )

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        """Set `new` if the value is `old`."""
        # When a connection breaks, the script may have run or not. If the second try finds
        # `new`, it did: the value is encrypted with a nonce, so no other caller wrote it.
        arguments = (new, _milliseconds(ttl), old)
        again = (*arguments, new)
        return bool(await self._run(_REPLACE, self._records + key, arguments, again))

    async def delete(self, key: str) -> bytes | None:
        """Delete the value and return it.

        Raises:
            StoreError: also when a connection breaks before the reply: a second try would not find
                a value that the first try deleted.
        """
        value: bytes | None = await self._run(_DELETE, self._records + key, (), None)
        return value

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        """Take or extend a lease."""
        arguments = (owner, _milliseconds(ttl))
        return bool(await self._run(_ACQUIRE, self._leases + key, arguments, arguments))

    async def release(self, key: str, owner: str) -> None:
        """Give a lease back."""
        await self._run(_RELEASE, self._leases + key, (owner,), (owner,))

    async def purge(self) -> int:
        """Return 0: Redis deletes expired keys by itself."""
        return 0

    async def find(self, prefix: bytes) -> list[tuple[str, bytes]]:
        """Read all keys, a page at a time, and return those whose value begins with `prefix`."""
        found: dict[str, bytes] = {}  # a page may repeat a key of another
        async for pairs in self._pages(prefix, with_values=True):
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                found[key.decode().removeprefix(self._records)] = value
        return list(found.items())

    async def count(self, prefix: bytes = b"") -> int:
        """Count the keys, a page at a time."""
        keys: set[bytes] = set()
        async for page in self._pages(prefix, with_values=False):
            keys.update(page)
        return len(keys)

    async def ping(self) -> None:
        """Write a key: a replica, or a server without free memory, would still answer a PING."""
        await self._repeatable(lambda client: client.set(f"{self._prefix}ping", b"", px=1000))

    async def close(self) -> None:
        """Close the connections of this event loop, or for the twin those of this process."""
        await self._clients.close()

    def __repr__(self) -> str:
        return f"<RedisStore {self._target}>"

    async def _pages(self, prefix: bytes, *, with_values: bool) -> AsyncIterator[list[bytes]]:
        cursor = b"0"
        while True:
            arguments = (cursor, self._pattern, _PAGE, prefix, int(with_values))
            cursor, *page = await self._run(_SCAN, self._records, arguments, arguments)
            yield page
            if cursor == b"0":
                return

    async def _repeatable(self, call: Call) -> Any:
        """Run a command; repeat it once if the connection breaks, which does no harm."""
        return await self._clients.run(call, call)

    async def _run(
        self, script: _Script, key: str, arguments: tuple[Any, ...], again: tuple[Any, ...] | None
    ) -> Any:
        """Run a script.

        Args:
            again: its arguments for a second try after the connection broke; None if there must be
                no second try.
        """
        return await self._clients.run(
            self._call(script, key, arguments),
            None if again is None else self._call(script, key, again),
        )

    def _call(self, script: _Script, key: str, arguments: tuple[Any, ...]) -> Call:
        async def call(client: Any) -> Any:
            try:
                return await outcome(client.evalsha(script.sha, 1, key, *arguments))
            except NoScriptError:
                return await outcome(client.eval(script.source, 1, key, *arguments))

        return call


def _milliseconds(ttl: float) -> int:
    return max(1, round(ttl * 1000))
