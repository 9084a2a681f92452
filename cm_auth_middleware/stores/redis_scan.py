"""A walk over all keys of a Redis server, or of all primaries of a cluster, that misses none."""

from __future__ import annotations

import itertools
import re
import secrets
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

from redis.crc import key_slot
from redis.exceptions import RedisClusterException

from ..errors import StoreError
from .redis_clients import AsyncClients, BlockingClients, outcome
from .redis_script import Script

PAGE = 500  # keys that one step reads; Redis serves other clients in between
_ROUNDS = 3  # walks over a cluster whose slots move, until it is an error
_RESTARTS = 3  # of the walk over one server that was replaced meanwhile, until it is an error
_SLOTS = 16384

# A server of a cluster by host and port; None is the only server.
Server = tuple[str, int] | None
# The slots of each primary, and those that it gives to others or gets from them.
Layout = dict[Server, tuple[frozenset[int], frozenset[int]]]

# No keys; then: cursor, pattern of keys, keys to look at, prefix of values, what to return of a
# value ("": nothing; "value": all of it; "head": the milliseconds that it has left, and its first
# bytes), how many bytes "head" has, and prefixes of keys.
# It returns the cursor, the server's run id, and names and what was asked for of each value. That
# is nil for a key in a slot that moves: scripts cannot read it on its way.
# The value is read twice so that a value of a megabyte that does not match is not copied.
_PAGE = Script("""
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
local server = redis.call('INFO', 'server')
local found = {page[1], string.match(server, 'run_id:(%x+)') or ''}
local size = #ARGV[4]
local denied
local function ask(command, ...)
  local answer = redis.pcall(command, ...)
  local err = type(answer) == 'table' and answer.err
  if err and (string.find(err, 'NOPERM') or string.find(err, 'ACL failure')
      or string.find(err, 'user executing the script')) then
    denied = command
  end
  return answer
end
local function is_ours(key)
  for i = 8, #ARGV do
    if string.sub(key, 1, #ARGV[i]) == ARGV[i] then
      return ask('STRLEN', key) ~= #ARGV[7] or ask('GET', key) ~= ARGV[7]
    end
  end
end
for _, key in ipairs(page[2]) do
  if is_ours(key) then
    local answer = ''
    if size > 0 then
      answer = ask('GETRANGE', key, 0, size - 1)
    end
    if answer == ARGV[4] then
      if ARGV[5] == 'value' then
        answer = ask('GET', key)
      elseif ARGV[5] == 'head' then
        local left = ask('PTTL', key)
        answer = ask('GETRANGE', key, 0, ARGV[6] - 1)
        if type(left) == 'number' and type(answer) == 'string' then
          answer = string.format('%d ', left) .. answer
        end
      end
      if answer then  -- it has not expired meanwhile
        found[#found + 1] = key
        found[#found + 1] = type(answer) == 'string' and answer
      end
    elseif type(answer) == 'table' then
      found[#found + 1] = key
      found[#found + 1] = false
    end
  end
end
if denied then
  return redis.error_reply("NOPERM no permissions to run the '" .. denied .. "' command")
end
return found
""")

Clients = AsyncClients | BlockingClients
# Names of keys and what was asked for of their values.
Pages = AsyncGenerator[list[tuple[str, bytes | None]], None]


class Walk:
    """Walks over the keys of a store, a page at a time.

    A walk by SCAN finds what is there from its beginning to its end, on one server. While a slot
    moves from one server to another, a key may move from one that is still to be read to one that
    was read already; so a walk during which the layout of the cluster changes is followed by
    another. A server that restarts, or that a replica replaces, is read anew.

    Args:
        label: of the servers, for errors.
        pattern: matches all names of keys.
        names: how the names of the keys begin.
        no_value: a value that counts as none.
    """

    def __init__(
        self, clients: Clients, label: str, pattern: str, names: tuple[str, ...], no_value: bytes
    ) -> None:
        self._clients = clients
        self._label = label
        self._pattern = pattern
        self._ending = (no_value, *names)

    async def pages(self, prefix: bytes, payload: str, head: int = 0) -> Pages:
        """Yield names of keys and what was asked for of their values; a name may come twice.

        Args:
            prefix: the beginning of the values.
            payload: ``""``, ``"value"``, or ``"head"``: milliseconds, a blank, and the first bytes.
            head: how many bytes a head has.

        Returns:
            None as payload of a key that is on its way to another server: whoever asks for it by
            its name gets it. It may be one whose value does not begin with `prefix`.

        Raises:
            StoreError: a server cannot be asked, or the cluster does not come to rest.
        """
        layout = await self._layout()
        moves: Counter[int] = Counter()
        for _ in range(_ROUNDS):
            for server in layout:
                async for page in self._server(server, prefix, payload, head):
                    yield page
            before, layout = layout, await self._layout()
            if layout == before and not any(moving for _, moving in layout.values()):
                return
            moves.update(_moved(before, layout))
        # Each walk that misses a key needs a move of its own. A slot on its way is about to move.
        moves.update(slot for _, moving in layout.values() for slot in moving)
        if moves and max(moves.values()) >= _ROUNDS:
            raise StoreError(f"{self._label} moves its slots all the time: ask again later")

    async def _server(self, server: Server, prefix: bytes, payload: str, head: int) -> Pages:
        for _ in range(_RESTARTS):
            cursor, run_id = b"0", None
            while True:
                words = (cursor, self._pattern, PAGE, prefix, payload, head, *self._ending)
                cursor, answered_by, *found = await self._run(server, words)
                if run_id not in (None, answered_by):
                    break  # a cursor means nothing to another server
                run_id = answered_by
                names = (name.decode() for name in found[::2])
                yield list(zip(names, found[1::2], strict=True))
                if cursor == b"0":
                    return
        raise StoreError(f"{self._label} was replaced by another server again and again")

    async def _run(self, server: Server, words: tuple[Any, ...]) -> Any:
        command = _PAGE.command(*words)

        def call(client: Any) -> Any:
            if server is None:
                return command.run(client)
            return command.run(client, target_nodes=_node(client, server))

        return await self._clients.run(call, call)

    async def _layout(self) -> Layout:
        layout: Layout = await self._clients.run(_layout, _layout)
        if None not in layout:
            covered = frozenset[int]().union(*(slots for slots, _ in layout.values()))
            if len(covered) != _SLOTS:
                raise StoreError(f"{self._label} has slots that no server answers for")
        return layout


async def _layout(client: Any) -> Layout:
    """Ask each primary of a cluster for its slots."""
    if not hasattr(client, "get_primaries"):
        return {None: (frozenset(), frozenset())}
    if hasattr(client, "initialize"):  # of asyncio; the other one connected when it was made
        await client.initialize()
    some_node = secrets.choice(client.get_primaries())
    told = await outcome(client.execute_command("CLUSTER NODES", target_nodes=some_node))
    layout: Layout = {}
    asked: set[str] = set()
    partners: set[str] = set()  # of moves
    for address, line in told.items():
        if not _is_primary(line):
            continue
        if "myself" in line["flags"]:  # it may not know its own address
            server: tuple[str, int] | None = (some_node.host, int(some_node.port))
        else:
            server = await _known(client, address, line)
        if server is None:
            continue
        node = client.get_node(*server)
        own = await outcome(client.execute_command("CLUSTER NODES", target_nodes=node))
        for line in own.values():
            if "myself" in line["flags"] and "master" in line["flags"]:
                asked.add(line["node_id"])
                partners.update(one["node_id"] for one in line["migrations"])
                slots = frozenset(slot for ends in line["slots"] for slot in _range(ends))
                moving = frozenset(int(one["slot"]) for one in line["migrations"])
                layout[server] = slots, moving
    if not partners <= asked:
        raise RedisClusterException("a slot moves to a server that has no slot yet")
    return layout


def _is_primary(line: dict[str, Any]) -> bool:
    flags = line["flags"].split(",")
    return "master" in flags and not {"fail", "noaddr", "handshake"} & set(flags)


async def _known(client: Any, address: str, line: dict[str, Any]) -> tuple[str, int] | None:
    """Return a server's name in a client, which learns of it first if it is new."""
    host, _, port = address.rpartition(":")
    names = [(name, int(port)) for name in (line["hostname"], host) if name]
    for attempt in (1, 2):
        for name in names:
            if client.get_node(*name) is not None:
                return name
        if attempt == 1 and line["slots"]:
            slots = {slot for ends in line["slots"] for slot in _range(ends)}
            key = next(
                key for key in map(str, itertools.count()) if key_slot(key.encode()) in slots
            )
            await outcome(client.execute_command("EXISTS", key))  # leads there
    if line["slots"]:
        raise RedisClusterException("a server is not known yet")
    return None


def _range(ends: list[str]) -> range:
    return range(int(ends[0]), int(ends[-1]) + 1)


def _moved(before: Layout, after: Layout) -> set[int]:
    """Return the slots that have another server than before."""
    moved: set[int] = set()
    for server in before.keys() | after.keys():
        none = frozenset[int]()
        (old, _), (new, _) = before.get(server, (none, none)), after.get(server, (none, none))
        moved |= old ^ new
    return moved


def _node(client: Any, server: tuple[str, int]) -> Any:
    node = client.get_node(*server)
    if node is None:
        raise RedisClusterException("a server left the cluster")
    return node


def pattern_of(prefix: str) -> str:
    """Return the pattern of all keys that begin so."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", prefix) + "*"
