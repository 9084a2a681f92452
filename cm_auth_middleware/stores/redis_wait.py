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

_READING = frozenset({"GET", "EXISTS", "ZRANGE", "SCAN", "INFO", "CLUSTER NODES"})
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
        is_waited_for = self._replicas and is_write(args)
        if not is_waited_for and not is_asking:
            return await outcome(client.execute_command(*args, **options))
        pipeline = client.pipeline(transaction=False)  # all by one connection
        if is_asking:
            pipeline.execute_command("ASKING")
        pipeline.execute_command(*args, **options)
        answers = await self.execute(pipeline, is_waited_for=bool(is_waited_for))
        answer = answers[1 if is_asking else 0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def execute(self, pipeline: Any, *, is_waited_for: bool) -> list[Any]:
        """Send the commands of a pipeline of redis-py; return answers and errors."""
        if is_waited_for:
            pipeline.execute_command("WAIT", self._replicas, self._milliseconds)
        answers: list[Any] = await outcome(pipeline.execute(raise_on_error=False))
        if is_waited_for:
            self._note(answers.pop())
        return answers

    def _note(self, reached: Any) -> None:
        if isinstance(reached, Exception):
            raise reached
        now = time.monotonic()
        if reached < self._replicas and now >= self._log_at:
            self._log_at = now + _LOG_EVERY
            log("replicas_behind", replicas=reached, wait_replicas=self._replicas)


def is_write(args: Any) -> bool:
    """True if a command may write."""
    return str(args[0]).upper() not in _READING


class _Pipeline:
    """A pipeline that waits for replicas at its end."""

    def __init__(self, pipeline: Any, sender: Sender) -> None:
        self._pipeline = pipeline
        self._sender = sender
        self._writes = False

    def execute_command(self, *args: Any, **options: Any) -> None:
        self._writes = self._writes or is_write(args)
        self._pipeline.execute_command(*args, **options)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        answers = await self._sender.execute(self._pipeline, is_waited_for=self._writes)
        if raise_on_error:
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers


class _Waiting:
    """A client of one server that waits for replicas.

    Attributes:
        plain: one that does not.
    """

    def __init__(self, client: Any, sender: Sender) -> None:
        self.plain = client
        self._sender = sender

    def pipeline(self, *, transaction: bool) -> Any:
        return _Pipeline(self.plain.pipeline(transaction=transaction), self._sender)

    async def aclose(self) -> None:
        await close(self.plain)


class AsyncWaiting(_Waiting, AsyncCoreCommands):  # type: ignore[misc]
    """The client for event loops."""

    def execute_command(self, *args: Any, **options: Any) -> Awaitable[Any]:
        return self._sender.send(self.plain, args, options)


class BlockingWaiting(_Waiting, CoreCommands):
    """The client for threads."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return run_sync(self._sender.send(self.plain, args, options))
