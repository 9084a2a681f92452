"""Commands for Redis: plain ones, and Lua scripts, which Redis runs as one step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import NoScriptError

from .redis_clients import Call, outcome, scripts


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


def in_turn(commands: Sequence[Command]) -> Call:
    """Return a call that runs commands one after the other, and returns their answers.

    One server is sent all of them at once, which saves a round trip; the keys of a cluster are on
    different servers.
    """

    async def call(client: Any) -> list[Any]:
        if len(commands) == 1 or hasattr(client, "get_primaries"):
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
