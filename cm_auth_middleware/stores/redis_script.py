"""Commands for Redis: plain ones, and Lua scripts, which Redis runs as one step."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.exceptions import NoScriptError

from ..runtime.run_sync import begin, run_sync
from .redis_clients import Call, outcome, scripts
from .redis_cluster import BlockingCluster


@dataclass(frozen=True, slots=True)
class Command:
    """A command as its words; `source` is the text of the script that it runs, if it runs one."""

    words: tuple[Any, ...]
    source: str = ""

    async def run(self, client: Any, **options: Any) -> Any:
        """Run it; send the script to a server that does not know it."""
        try:
            return await outcome(client.execute_command(*self.words, **options))
        except NoScriptError:
            words = ("EVAL", self.source, *self.words[2:])
            return await outcome(client.execute_command(*words, **options))


class Script:
    """A Lua script."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        scripts[self._sha] = source

    def command(self, *arguments: Any, key: str | None = None) -> Command:
        """Return the command that runs the script on one key, or on none."""
        keys = () if key is None else (key,)
        return Command(("EVALSHA", self._sha, len(keys), *keys, *arguments), self._source)


def at_once(*groups: Sequence[Command]) -> Call:
    """Return a call that runs groups of commands in any order, and returns all their answers.

    In a group they run one after the other. A cluster is sent the groups at the same time: that is
    one round trip, if none has more than one command.
    """
    together = in_turn([command for group in groups for command in group])
    calls = [in_turn(group) for group in groups]

    async def call(client: Any) -> list[Any]:
        if len(calls) == 1 or not _is_cluster(client):
            answers: list[Any] = await together(client)
            return answers
        if isinstance(client, BlockingCluster):
            begun = [begin(partial(run_sync, run(client))) for run in calls]
            found: list[Any] = [future.exception() or future.result() for future in begun]
        else:
            found = await asyncio.gather(*(run(client) for run in calls), return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return [answer for each in found for answer in each]

    return call


def in_turn(commands: Sequence[Command]) -> Call:
    """Return a call that runs commands one after the other, and returns their answers.

    One server is sent all of them at once, which saves a round trip; the keys of a cluster are on
    different servers.
    """

    async def call(client: Any) -> list[Any]:
        if len(commands) == 1 or _is_cluster(client):
            return [await command.run(client) for command in commands]
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command.words)
        answers: list[Any] = await outcome(pipeline.execute(raise_on_error=False))
        for number, answer in enumerate(answers):
            if isinstance(answer, NoScriptError):
                answers[number] = await commands[number].run(client)
            elif isinstance(answer, Exception):
                raise answer
        return answers

    return call


def _is_cluster(client: Any) -> bool:
    return hasattr(client, "get_primaries")
