"""A client of a Redis cluster: it sends each command to the node that has the key's slot.

That of redis-py closes connections under the calls that use them when the cluster changes, so that
they raise an `AttributeError` (redis-py issues 4287, 4015); `reinitialize_steps=0` prevents that
for moved slots only. On event loops it sends ASKING by another connection than the command that
it is meant for. And it may ask a node that stands still for the map of slots while every call to
any node waits. This one has what a store needs and no more: commands with one key, and commands to
every primary.
"""

from __future__ import annotations

import asyncio
import errno
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, NamedTuple

from redis import exceptions
from redis.commands import AsyncCoreCommands, CoreCommands
from redis.crc import key_slot

from ..runtime.run_sync import run_sync
from .circuit_breaker import CircuitBreaker

_REDIRECTS = 16  # of one command; a slot that is being moved leads to and fro
_PAUSE = 0.1  # seconds before a command that a node does not accept just now is sent again
_PAUSES = 4
_REFRESH_EVERY = 0.25  # seconds, at least, between two questions for the map of slots
_MAP_TIMEOUT = 1.0  # seconds that a node may take to connect, and to send the map
_SILENCE = 0.5  # seconds after which a node may be standing still
_SETTLE = 3.0  # seconds that a failover is waited for
_NO_WAY = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}


class Node(NamedTuple):
    """A primary of the cluster.

    Attributes:
        id: its name in the cluster; empty if it is not known.
    """

    host: str
    port: int
    id: str = ""

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"


class SilentNodeError(exceptions.TimeoutError):
    """A node did not answer the last calls, so this one was not sent."""


class _Verdict(NamedTuple):
    """What other nodes say of one.

    Attributes:
        began: when they were asked, by the monotonic clock.
        maps: the node of each slot, as each of them knows it.
        is_certain: False if the node may be about to be replaced.
    """

    began: float
    maps: list[list[Node | None]]
    is_certain: bool


class _Cluster:
    """The part of the client that is the same for event loops and threads.

    Args:
        connect: makes the client of one node, given host, port and other options.
        startup: nodes to ask first.
        breakers: the circuit breaker of each node of this process, by name.
        send: sends a command to a node, given the client of it, the command and its options.
    """

    _sleep: Callable[[float], Awaitable[None]]
    _turn: Callable[[str], AbstractAsyncContextManager[None]]  # of those who ask about a node

    def __init__(
        self,
        connect: Callable[..., Any],
        startup: tuple[tuple[str, int], ...],
        breakers: dict[str, CircuitBreaker],
        send: Callable[..., Awaitable[Any]],
    ) -> None:
        self._connect = connect
        self._startup = [Node(host, port) for host, port in startup]
        self._breakers = breakers
        self._send = send
        self._clients: dict[str, Any] = {}
        self._questioned: dict[str, Any] = {}  # clients for questions about the cluster
        self._trusted_at: dict[str, float] = {}  # when a node answered last, and was believed
        self._verdicts: dict[str, _Verdict] = {}
        self._turns: dict[str, Any] = {}
        self._slots: list[Node | None] = []
        self._primaries: list[Node] = []
        self._is_stale = True
        self._refresh_at = 0.0

    async def _execute(self, *args: Any, **options: Any) -> Any:
        """Send a command to the node of its key, or to `target_nodes`: nodes, or "primaries"."""
        targets = options.pop("target_nodes", None)
        await self._refresh_if_stale()
        if targets is None:
            return await self._execute_by_key(key_slot(_key(args)), args, options)
        if isinstance(targets, Node):
            return await self._ask(targets, args, options)
        nodes = self.get_primaries() if isinstance(targets, str) else list(targets)
        return {node.name: await self._ask(node, args, options) for node in nodes}

    async def _execute_by_key(self, slot: int, args: Any, options: dict[str, Any]) -> Any:
        node, is_asking = self._owner(slot), False
        pauses = 0
        for _ in range(_REDIRECTS):
            try:
                return await self._ask_owner(node, slot, args, options, is_asking=is_asking)
            except exceptions.MovedError as error:
                # The address is empty if the node does not know its own.
                node, is_asking = Node(error.host or node.host, error.port), False
                self._slots[slot] = node
                self._primaries = []
                self._is_stale = True
            except exceptions.AskError as error:
                node, is_asking = Node(error.host or node.host, error.port), True
            except (exceptions.TryAgainError, exceptions.ClusterDownError):
                pauses += 1
                if pauses > _PAUSES:
                    raise
                self._is_stale = True
                await self._sleep(_PAUSE)
                await self._refresh_if_stale()
                node, is_asking = self._owner(slot), False
        raise exceptions.ClusterError("too many redirects")

    async def _ask_owner(
        self, node: Node, slot: int, args: Any, options: dict[str, Any], *, is_asking: bool
    ) -> Any:
        asked_at = time.monotonic()
        answer = await self._ask(node, args, options, is_asking=is_asking)
        # A node that stood still, until a replica took its place, answers as if it were a primary
        # still, and then forgets what it was told. See redis_sentinels.
        now = time.monotonic()
        silence = now - max(asked_at, self._trusted_at.get(node.name, 0.0))
        if silence >= _SILENCE and not is_asking and not await self._is_owner(node, slot, now):
            raise exceptions.ConnectionError("the node is no longer the primary")
        self._trusted_at[node.name] = time.monotonic()
        return answer

    async def _ask(
        self, node: Node, args: Any, options: dict[str, Any], *, is_asking: bool = False
    ) -> Any:
        breaker = self._breakers.setdefault(node.name, CircuitBreaker())
        if not breaker.admit():
            self._is_stale = True  # a replica may have taken its place
            raise SilentNodeError
        try:
            answer = await self._send(self.client_of(node), args, options, is_asking=is_asking)
        except exceptions.BusyLoadingError:
            breaker.answered()
            raise
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
            self._is_stale = True
            if is_silence(error):
                breaker.timed_out()
            raise
        except exceptions.ResponseError:
            breaker.answered()
            raise
        breaker.answered()
        return answer

    def client_of(self, node: Node) -> Any:
        """Return the client of one node."""
        client = self._clients.get(node.name)
        if client is None:
            # Without a lock, which a fork could leave locked: of two threads, one's client stays.
            client = self._clients.setdefault(node.name, self._connect(node.host, node.port))
        return client

    def _owner(self, slot: int) -> Node:
        node = self._slots[slot]
        if node is None:
            self._is_stale = True
            raise exceptions.SlotNotCoveredError("no node has the slot")
        return node

    def get_primaries(self) -> list[Node]:
        """Return the nodes that have slots, as far as is known; call `initialize` before."""
        if not self._primaries:
            nodes = {node.name: node for node in self._slots if node is not None}
            self._primaries = list(nodes.values())
        return list(self._primaries)

    def get_node(self, host: str, port: int) -> Node | None:
        """Return a node that has slots, as far as is known."""
        return next((node for node in self.get_primaries() if node[:2] == (host, port)), None)

    def get_node_from_key(self, key: str) -> Node:
        """Return the node that has the slot of a key, as far as is known."""
        return self._owner(key_slot(key.encode()))

    async def initialize(self) -> None:
        """Learn which nodes have which slots, unless that is known."""
        await self._refresh_if_stale()

    async def _refresh_if_stale(self) -> None:
        now = time.monotonic()
        if self._slots and (not self._is_stale or now < self._refresh_at):
            return
        self._refresh_at = now + _REFRESH_EVERY
        self._is_stale = False
        error: Exception | None = None
        for node in self._witnesses():
            breaker = self._breakers.setdefault(node.name, CircuitBreaker())
            if not breaker.admit():
                error = error or SilentNodeError()
                continue
            try:
                found = await self._question(node, "CLUSTER SLOTS")
                breaker.answered()
                self._slots, self._primaries = _slots(node, found), []
                return
            except Exception as caught:
                error = caught.with_traceback(None)
                if is_silence(caught):
                    breaker.timed_out()
        self._is_stale = True
        if not self._slots:
            # With the last reason: a wrong password, for example.
            raise error or exceptions.RedisClusterException("no node answers")

    def _witnesses(self, but: Node | None = None) -> list[Node]:
        """Return the nodes to ask, those first that answered lately, in an order by chance."""
        nodes = {node.name: node for node in [*self.get_primaries(), *self._startup]}
        others = [node for node in nodes.values() if but is None or node.name != but.name]
        random.shuffle(others)
        others.sort(
            key=lambda node: node.name in self._breakers and self._breakers[node.name].is_suspect
        )
        return others

    async def _is_owner(self, node: Node, slot: int, answered_at: float) -> bool:
        """Ask other nodes if one has a slot, until it is certain; True if none answers.

        Calls that wait for the same node share the answer: asking costs more than what they asked.
        """
        async with self._turn(node.name):
            verdict = self._verdicts.get(node.name)
            if verdict is None or verdict.began < answered_at:
                verdict = self._verdicts[node.name] = await self._judge(node)
        for slots in verdict.maps:
            owner = slots[slot]
            if owner is not None and owner.name != node.name:
                self._is_stale = True
                return False
        return verdict.is_certain

    async def _judge(self, node: Node) -> _Verdict:
        """Ask other nodes for their maps, until none of them is about to replace this one."""
        began = time.monotonic()
        while True:
            maps, is_certain = [], True
            for witness in self._witnesses(but=node)[:3]:
                with suppress(Exception):
                    slots = _slots(witness, await self._question(witness, "CLUSTER SLOTS"))
                    maps.append(slots)
                    known = next((one for one in slots if one and one.name == node.name), None)
                    table = await self._question(witness, "CLUSTER NODES")
                    is_certain = is_certain and not (known and _is_failing(table, known))
            if is_certain or time.monotonic() > began + _SETTLE:
                return _Verdict(began, maps, is_certain)
            await self._sleep(_PAUSE)

    async def _question(self, node: Node, command: str) -> Any:
        """Ask for something about the cluster, by a connection that does not wait for long."""
        client = self._questioned.pop(node.name, None)
        if client is None:
            client = self._connect(
                node.host,
                node.port,
                socket_timeout=_MAP_TIMEOUT,
                socket_connect_timeout=_MAP_TIMEOUT,
            )
            client.set_response_callback("CLUSTER SLOTS", _unparsed)
            client.set_response_callback("CLUSTER NODES", _unparsed)
        try:
            answer = await outcome(client.execute_command(command))
        except BaseException:
            await close(client)
            raise
        other = self._questioned.setdefault(node.name, client)
        if other is not client:  # two asked at once
            await close(client)
        return answer

    async def aclose(self) -> None:
        """Close all connections."""
        for clients in (self._clients, self._questioned):
            while clients:
                _, client = clients.popitem()
                await close(client)


class AsyncCluster(_Cluster, AsyncCoreCommands):  # type: ignore[misc]
    """The client for event loops."""

    _sleep = staticmethod(asyncio.sleep)

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        async with self._turns.setdefault(name, asyncio.Lock()):
            yield

    def execute_command(self, *args: Any, **options: Any) -> Awaitable[Any]:
        return self._execute(*args, **options)


class BlockingCluster(_Cluster, CoreCommands):
    """The client for threads."""

    @staticmethod
    async def _sleep(seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        with self._turns.setdefault(name, threading.Lock()):
            yield

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return run_sync(self._execute(*args, **options))


def _unparsed(answer: Any, **_: Any) -> Any:
    return answer


async def outcome(answer: Any) -> Any:
    """Return the answer of redis-py, which has to be awaited if it is from `redis.asyncio`."""
    return await answer if hasattr(answer, "__await__") else answer


async def close(client: Any) -> None:
    """Close the connections of a client of redis-py, and ignore those that are broken."""
    with suppress(Exception):
        await outcome(client.aclose() if hasattr(client, "aclose") else client.close())


def is_silence(error: BaseException | None) -> bool:
    """True if nothing came back in time: neither an answer, nor that the connection is refused."""
    while error is not None:
        if isinstance(error, (TimeoutError, exceptions.TimeoutError)):
            return True
        if isinstance(error, OSError) and error.errno in _NO_WAY:
            return True
        error = error.__cause__ or error.__context__
    return False


def _key(args: Any) -> bytes:
    """Return the key of a command: scripts have it behind the number of keys."""
    command = args[0].upper()
    key = args[3] if command in ("EVAL", "EVALSHA") else args[1]
    return key.encode() if isinstance(key, str) else bytes(key)


def _slots(witness: Node, found: Any) -> list[Node | None]:
    """Read the answer to CLUSTER SLOTS."""
    slots: list[Node | None] = [None] * 16384
    for first, last, primary, *_ in found:
        host = primary[0].decode() if primary[0] else ""
        # A node that does not know its own address leaves it out.
        node_id = primary[2].decode() if len(primary) > 2 else ""
        node = Node(host if host not in ("", "?") else witness.host, int(primary[1]), node_id)
        slots[first : last + 1] = [node] * (last + 1 - first)
    return slots


def _is_failing(table: bytes, node: Node) -> bool:
    """True if the answer to CLUSTER NODES says that a node is about to be replaced."""
    for line in table.splitlines():
        words = line.split()
        if words and words[0].decode() == node.id:
            return b"fail" in words[2].split(b",")
    return False
