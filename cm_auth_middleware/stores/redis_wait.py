"""Send a command to a Redis, and wait until replicas have what it wrote.

Redis replicates without being waited for, so a failover may lose what was confirmed just before.
WAIT (https://redis.io/docs/latest/commands/wait/) makes that rare, not impossible: the replica that
becomes the primary may be another one. It waits for the writes of its own connection, so it is
sent with them.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any

from redis.commands import AsyncCoreCommands, CoreCommands

from ..events import log
from ..runtime.run_sync import run_sync
from .redis_cluster import close, outcome

_READING = frozenset({"GET", "GETRANGE", "MGET", "SCAN", "PING", "DBSIZE", "ZRANGE"})
_LOG_EVERY = 60.0  # seconds


class Sender:
    """Sends commands.

    Args:
        replicas: so many should have a write; 0 to wait for none.
        timeout: seconds to wait for them. After that the write counts all the same: it is
            in the primary, and saying that it failed would be wrong.
    """

    def __init__(self, replicas: int, timeout: float) -> None:
        self._replicas = replicas
        self._milliseconds = max(1, round(timeout * 1000))
        self._log_at = float("-inf")

    async def send(
        self, client: Any, args: Any, options: dict[str, Any], *, is_asking: bool = False
    ) -> Any:
        """Send one command by a client of redis-py.

        Args:
            is_asking: the slot is being moved to this node of a cluster.
        """
        is_waited_for = self._replicas and str(args[0]).upper() not in _READING
        if not is_waited_for and not is_asking:
            return await outcome(client.execute_command(*args, **options))
        pipeline = client.pipeline(transaction=False)  # all by one connection
        if is_asking:
            pipeline.execute_command("ASKING")
        pipeline.execute_command(*args, **options)
        if is_waited_for:
            pipeline.execute_command("WAIT", self._replicas, self._milliseconds)
        answers = await outcome(pipeline.execute(raise_on_error=False))
        answer = answers[1 if is_asking else 0]
        if isinstance(answer, Exception):
            raise answer
        if is_waited_for:
            self._note(answers[-1])
        return answer

    def _note(self, reached: Any) -> None:
        if isinstance(reached, Exception):
            raise reached
        now = time.monotonic()
        if reached < self._replicas and now >= self._log_at:
            self._log_at = now + _LOG_EVERY
            log("replicas_behind", replicas=reached, wait_replicas=self._replicas)


class AsyncWaiting(AsyncCoreCommands):
    """A client of one server that waits for replicas, for event loops."""

    def __init__(self, client: Any, sender: Sender) -> None:
        self._client = client
        self._sender = sender

    def execute_command(self, *args: Any, **options: Any) -> Awaitable[Any]:
        return self._sender.send(self._client, args, options)

    async def aclose(self) -> None:
        await close(self._client)


class BlockingWaiting(CoreCommands):
    """The same for threads."""

    def __init__(self, client: Any, sender: Sender) -> None:
        self._client = client
        self._sender = sender

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return run_sync(self._sender.send(self._client, args, options))

    async def aclose(self) -> None:
        await close(self._client)
