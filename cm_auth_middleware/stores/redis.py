"""Sessions in Redis or Valkey: they survive restarts and serve every process of every machine."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Any

from .redis_target import Target  # isort: skip - first, since it reports a missing redis-py

from ..errors import StoreError
from ..runtime.bounded_cache import BoundedCache
from .leases import LAPSED
from .redis_clients import AsyncClients, BlockingClients
from .redis_epochs import replication_ids
from .redis_rights import refused_rights
from .redis_scan import Walk, pattern_of
from .redis_script import Command, Script, at_once, in_turn

_PREFIX = "cm_auth:"
_OLD_PREFIX = "{cm_auth}:"  # of releases that kept all keys in one slot
_OLD_RECORDS = f"{_OLD_PREFIX}s:"
# What is left for ten minutes in the place of an old record that was moved or deleted. Its first
# byte tells older releases that a later one wrote it.
_GONE = b"\x0fcm_auth: gone"
_MARKED = (_GONE, 600_000)
_ABSENT = 10.0  # seconds that a key which an older release did not write is not looked for again
# Values are indexed by so many first bytes: for a session its kind and the tag of its user.
_TAG = 17
_GRANT = b"\x02"  # begins the records of grants; they are many, and belong to no user
_SLACK = 5_000  # milliseconds that an index entry outlives its record, which is written later
_SURE = 7 * 86_400_000  # milliseconds that an index without a gap is trusted
_UNSURE = 600_000  # the same, if the last walk filled gaps: an older release may still be running
_FIRST_PAGES = 8  # pages that the first write of a process looks at

# KEYS[1], then: new value, milliseconds, and each value that may be replaced.
_REPLACE = Script("""
local value = redis.call('GET', KEYS[1])
for i = 3, #ARGV do
  if value == ARGV[i] then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return 1
  end
end
return 0
""")
# KEYS[1], then: the mark of a record that is gone, milliseconds; without those no mark is left.
_DELETE = Script("""
local value = redis.call('GET', KEYS[1])
if #ARGV == 0 then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return value ~= ARGV[1] and value
""")
# KEYS[1] is an old record, then: the mark, milliseconds, and the value that may be marked, if any
# may not. It returns the value, which may be the mark.
_MARK = Script("""
local value = redis.call('GET', KEYS[1])
if value and value ~= ARGV[1] and (#ARGV == 2 or value == ARGV[3]) then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return value
""")
# KEYS[1], then: the value that may be deleted.
_DELETE_IF = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
""")
_PEEK = Script("""
local value = redis.call('GET', KEYS[1])
return value and {value, redis.call('PTTL', KEYS[1])}
""")
# KEYS[1], then: owner, milliseconds.
_ACQUIRE = Script("""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""")
# KEYS[1], then: owner, milliseconds with those of `LAPSED`, those of `LAPSED`, and 1 to take it
# also if it has run out. A "+" begins the value of a lease that stays there for so long after that.
# It returns 0 if another owner has it, and -1 if another one let it run out.
_CLAIM = Script("""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and holder ~= '+' .. ARGV[1] then
  if string.sub(holder, 1, 1) ~= '+' or redis.call('PTTL', KEYS[1]) > tonumber(ARGV[3]) then
    return 0
  end
  if ARGV[4] ~= '1' then
    return -1
  end
end
redis.call('SET', KEYS[1], '+' .. ARGV[1], 'PX', ARGV[2])
return 1
""")
_RELEASE = Script("""
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] or holder == '+' .. ARGV[1] then
  redis.call('DEL', KEYS[1])
end
""")
# An index is a sorted set of keys of records, by when they end. It ends with the last one.
_TIDY = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
local function set_end()
  local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
  if last[2] then
    redis.call('PEXPIREAT', KEYS[1], last[2])
  end
end
"""
# KEYS[1] is an index, then: key of a record, milliseconds. It returns 1 if that was not there.
# An entry is never shortened: of two writers at once, the one whose record stays may be the first.
_INDEX = Script(
    _TIDY
    + """
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not ends or tonumber(ends) < now + ARGV[2] then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
end
set_end()
return ends and 0 or 1
"""
)
# KEYS[1] is an index, then: key of a record.
_UNINDEX = Script(
    _TIDY
    + """
redis.call('ZREM', KEYS[1], ARGV[1])
set_end()
"""
)


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

    Beside each session an entry in an index by user is kept, so finding a user's sessions costs
    those sessions. The entry is written with each write of the session, and ends with it.

    Args:
        url: one of these.
        prefix: begins every key. The keys are spread over all slots of a cluster; if the prefix has
            a part in braces (``{name}:``), all lie in the one slot that this part decides. With the
            default, records that releases before 0.2 stored under ``{cm_auth}:`` are found, too,
            and moved when they are asked for.

    Raises:
        ConfigError: the URL is wrong, or redis-py is not installed.
        StoreError: by every method, if Redis cannot be used; once it can, they work again.
    """

    def __init__(self, url: str, *, prefix: str = _PREFIX) -> None:
        self._target = Target.parse(url)
        self._blocking = BlockingClients(self._target)
        self._clients: AsyncClients | BlockingClients
        self._clients = AsyncClients(self._target, self._blocking)
        self._prefix = prefix
        self._records, self._leases = f"{prefix}s:", f"{prefix}l:"
        self._indexes = [f"{prefix}u:"]
        self._pattern = pattern_of(self._records)
        self._has_old = prefix == _PREFIX
        if self._has_old:
            self._indexes.append(f"{_OLD_PREFIX}u:")
            self._pattern = "*cm_auth*:s:*"
        # Keys without a record of an older release, and when that was found.
        self._absent: BoundedCache[str, float] = BoundedCache(
            lambda found: found < time.monotonic() - _ABSENT
        )
        self._begun: list[bool] = []  # shared with the twin

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

        value: bytes | None = None
        # What has a dot in its key is no session, and mostly absent: then one round trip is enough.
        may_be_old = "." in key and self._may_be_old(key)
        if not may_be_old:
            value = await self._clients.run(call, call, can_wait="." not in key)
            may_be_old = value is None and self._may_be_old(key)
        if may_be_old:
            value = await self._move(key)
        return None if value == _GONE else value

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Set the value."""
        await self.put_all([(key, value, ttl)])

    async def put_all(self, records: Sequence[tuple[str, bytes, float]]) -> None:
        """Set values, all in one round trip if there is one server.

        Another one marks records of older releases as gone, if there are some.
        """
        if any(_is_indexed(value) for _, value, _ in records):
            await self._begin()
        commands: list[Command] = []
        for key, value, ttl in records:
            left = _milliseconds(ttl)
            commands += self._index(key, value, left)
            commands.append(Command(("SET", self._records + key, value, "PX", left)))
        old = [key for key, _, _ in records if self._may_be_old(key)]
        looks = [Command(("GET", _OLD_RECORDS + key)) for key in old]
        found = (await self._all(*commands, beside=looks))[len(commands) :]
        # Not before it is known that the values were set.
        marks = [
            _MARK.command(*_MARKED, key=_OLD_RECORDS + key)
            for key, value in zip(old, found, strict=True)
            if value not in (None, _GONE)
        ]
        if marks:
            await self._repeatable(*marks)
        for key in old:
            self._absent[key] = time.monotonic()

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        """Set `new` if the value is `old`."""
        left, name = _milliseconds(ttl), self._records + key
        index = self._index(key, new, left)
        # When a connection breaks, the script may have run or not. If the second try finds
        # `new`, it did: the value is encrypted with a nonce, so no other caller wrote it.
        call, again = (
            in_turn([*index, _REPLACE.command(new, left, *accepted, key=name)])
            for accepted in ((old,), (old, new))
        )
        if (await self._clients.run(call, again))[-1]:
            return True
        if not self._may_be_old(key) or await self._move(key) != old:
            return False
        return bool((await self._clients.run(call, again))[-1])

    async def delete(self, key: str) -> bytes | None:
        """Delete the value and return it.

        Raises:
            StoreError: also when a connection breaks before the reply: a second try would not find
                a value that the first try deleted.
        """
        former = value = None
        if self._may_be_old(key):
            former = await self._once(_MARK.command(*_MARKED, key=_OLD_RECORDS + key))
        # Where there was an old record, another process may be about to copy it.
        mark = () if former is None else _MARKED
        value = await self._once(_DELETE.command(*mark, key=self._records + key))
        if value is None and former != _GONE:
            value = former
        if value is not None and _is_indexed(value):
            with suppress(StoreError):  # an entry without a record does no harm
                name = self._indexes[0] + value[:_TAG].hex()
                await self._repeatable(_UNINDEX.command(key, key=name))
        return value

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        """Take or extend a lease."""
        name = self._leases + key
        return bool(await self._repeatable(_ACQUIRE.command(owner, _milliseconds(ttl), key=name)))

    async def claim(
        self, key: str, owner: str, ttl: float, *, even_lapsed: bool = False
    ) -> bool | None:
        """Take or extend a lease, unless another owner let it run out."""
        words = owner, _milliseconds(ttl + LAPSED), _milliseconds(LAPSED), int(even_lapsed)
        taken = await self._repeatable(_CLAIM.command(*words, key=self._leases + key))
        return None if taken < 0 else bool(taken)

    async def release(self, key: str, owner: str) -> None:
        """Give a lease back."""
        await self._repeatable(_RELEASE.command(owner, key=self._leases + key))

    async def purge(self) -> int:
        """Return 0: Redis deletes expired keys by itself."""
        return 0

    async def find(self, prefix: bytes) -> list[tuple[str, bytes]]:
        """Return the records whose value begins with `prefix`.

        A prefix of 17 bytes, which a user's sessions have in common, is looked up in the index.
        With a shorter one all keys are read, a page at a time.
        """
        found: dict[str, bytes] = {}  # a walk may come by a key twice
        if _is_indexed(prefix):
            await self._complete_index()
            for key in await self._indexed(prefix[:_TAG]):
                value = await self.get(key)
                if value is not None and value.startswith(prefix):
                    found[key] = value
            return list(found.items())
        async for page in self._walk().pages(prefix, "value"):
            for name, value in page:
                key = self._key_of(name)
                if value is None or name != self._records + key:
                    # It moves to another server, or is to be moved to its new name.
                    value = await self.get(key)
                if value is not None and value.startswith(prefix):
                    found[key] = value
        return list(found.items())

    async def count(self, prefix: bytes = b"") -> int:
        """Count the records, a page at a time."""
        keys: set[str] = set()
        async for page in self._walk().pages(prefix, ""):
            for name, payload in page:
                key = self._key_of(name)
                if payload is None:  # it moves to another server
                    value = await self.get(key)
                    if value is None or not value.startswith(prefix):
                        continue
                keys.add(key)
        return len(keys)

    async def epochs(self, key: str | None = None) -> frozenset[str]:
        """Return the replication id of the primary that has a key, or of all primaries.

        A replica that is promoted, and a primary that starts, give themselves a new one (INFO
        replication, ``master_replid``). A server that has none, as some proxies do, tells nothing.
        """
        name = None if key is None else self._records + key

        async def call(client: Any) -> frozenset[str]:
            return await replication_ids(client, name)

        found: frozenset[str] = await self._clients.run(call, call)
        return found

    async def refused_rights(self) -> list[str]:
        """Return the words for ACL SETUSER that the user of the URL lacks, such as ``+get``."""
        kinds = [f"{self._prefix}{kind}" for kind in ("s:", "l:", "u:")]
        names = [(f"{kind}check.rights", f"{self._prefix}*") for kind in kinds]
        if self._has_old:
            old = [f"{_OLD_PREFIX}s:check.rights", f"{_OLD_PREFIX}u:check.rights"]
            names += [(name, f"{_OLD_PREFIX}*") for name in old]

        async def call(client: Any) -> list[str]:
            return await refused_rights(client, names, waits=self._target.wait_replicas > 0)

        found: list[str] = await self._clients.run(call, call)
        return found

    async def ping(self) -> None:
        """Write a key: a replica, or a server without free memory, would still answer a PING."""
        await self._repeatable(Command(("SET", f"{self._prefix}ping", b"", "PX", 1000)))

    async def close(self) -> None:
        """Close the connections of this event loop, or for the twin those of this process."""
        await self._clients.close()

    def __repr__(self) -> str:
        return f"<RedisStore {self._target}>"

    # -- the index -------------------------------------------------------------------------

    def _index(self, key: str, value: bytes, milliseconds: int) -> list[Command]:
        """Return what has to be run before a value is written."""
        if not _is_indexed(value):
            return []
        name = self._indexes[0] + value[:_TAG].hex()
        return [_INDEX.command(key, milliseconds + _SLACK, key=name)]

    async def _indexed(self, tag: bytes) -> set[str]:
        """Return the keys of an index; some may have no record."""
        keys: set[str] = set()
        for name in self._indexes:
            command = Command(("ZRANGE", name + tag.hex(), 0, -1))
            keys.update(key.decode() for key in await self._repeatable(command))
        return keys

    async def _begin(self) -> None:
        """Note that the index is complete, if no session is there yet: once in a process."""
        if self._begun:
            return
        self._begun.append(True)
        with suppress(StoreError):  # then a search has to find out
            await self._complete_index(_FIRST_PAGES)

    async def _complete_index(self, most: float = math.inf) -> None:
        """Index the sessions that are not in it, unless that was done.

        They are those of a release that had no index, and those whose entry was lost: in a cluster
        an index and its records are on several servers, of which one that another took over has
        lost its last writes.

        Args:
            most: give up after so many pages.
        """
        name, primaries = f"{self._prefix}indexed", await self._primaries()
        if await self._repeatable(Command(("GET", name))) == primaries:
            return
        added = 0
        async with aclosing(self._walk().pages(b"", "head", _TAG)) as pages:
            async for page in pages:
                for record, head in page:
                    added += await self._index_again(self._key_of(record), head)
                most -= 1
                if most < 0:
                    return
        left = _UNSURE if added else _SURE
        await self._repeatable(Command(("SET", name, primaries, "PX", left)))

    async def _primaries(self) -> bytes:
        """Return the epochs of a cluster's primaries, or nothing where there is one.

        One server loses an entry only together with its record, which is written after it.
        """
        if self._target.kind != "cluster":
            return b""
        return b" ".join(sorted(epoch.encode() for epoch in await self.epochs()))

    async def _index_again(self, key: str, head: bytes | None) -> int:
        """Index a record; return 1 if that was missing."""
        if head is None:  # it moves to another server
            peeked = await self._repeatable(_PEEK.command(key=self._records + key))
            if not peeked:
                return 0
            value, left = peeked
        else:
            milliseconds, _, value = head.partition(b" ")
            left = int(milliseconds)
        commands = self._index(key, value, left) if left > 0 else []
        return await self._repeatable(*commands) if commands else 0

    def _walk(self) -> Walk:
        old = [_OLD_RECORDS] if self._has_old else []
        names = (self._records, *old)
        return Walk(self._clients, str(self._target), self._pattern, names, _GONE)

    def _key_of(self, name: str) -> str:
        return name.removeprefix(self._records if name.startswith(self._records) else _OLD_RECORDS)

    # -- records of older releases ---------------------------------------------------------

    def _may_be_old(self, key: str) -> bool:
        """Return True if an older release may have stored a record of this key."""
        if not self._has_old:
            return False
        found = self._absent.get(key)
        return found is None or found < time.monotonic() - _ABSENT

    async def _move(self, key: str) -> Any:
        """Move the record that an older release stored; return the value that is there then.

        The two names are in different slots, so no script can move it in one step. The copy is
        made first, and only where there is none; then the old record is marked as gone. `delete`
        goes the same way and leaves a mark in the new place, too, which keeps a slow process from
        putting its copy there. Only processes of an older release change the old record in
        another way: then the copy is taken back.
        """
        name, old = self._records + key, _OLD_RECORDS + key
        get, peek = Command(("GET", name)), _PEEK.command(key=old)
        while True:
            peeked, found = await self._all(peek, beside=[get])
            value, left = peeked or (_GONE, 0)
            if peeked and value == _GONE and found is None:
                # Another process may have moved it between the two.
                found = await self._repeatable(get)
            if value == _GONE:
                self._absent[key] = time.monotonic()
            if found is not None or value == _GONE:
                return None if found == _GONE else found
            copy_it = Command(("SET", name, value, "PX", max(left, 1), "NX"))
            if await self._repeatable(*self._index(key, value, left), copy_it):
                former = await self._repeatable(_MARK.command(*_MARKED, value, key=old))
                if former not in (value, _GONE):
                    await self._repeatable(_DELETE_IF.command(value, key=name))

    # -- running ---------------------------------------------------------------------------

    async def _repeatable(self, *commands: Command) -> Any:
        """Run commands as `_all` does, and return the answer of the last."""
        return (await self._all(*commands))[-1]

    async def _all(self, *commands: Command, beside: Sequence[Command] = ()) -> list[Any]:
        """Run commands, and repeat them once if the connection breaks, which does no harm.

        Args:
            beside: commands that may be run at any time before, between and after those.
        """
        call = at_once(commands, *([command] for command in beside))
        answers: list[Any] = await self._clients.run(call, call)
        return answers

    async def _once(self, command: Command) -> Any:
        """Run a command that must not be run again."""
        return await self._clients.run(command.run, None)


def _is_indexed(value: bytes) -> bool:
    """Return True for a value, or a prefix, that is long enough and belongs to no grant."""
    return len(value) >= _TAG and not value.startswith(_GRANT)


def _milliseconds(ttl: float) -> int:
    return max(1, round(ttl * 1000))
