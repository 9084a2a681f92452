"""Many browsers at once, at little cost: connections that stay open, and no more HTTP than needed.

A client library takes longer for a request than the site takes to answer it, and on two cores that
would be a test of the client.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_PATIENCE = 60.0  # seconds for one answer
_CONNECTING = 64  # at a time: a backlog of a hundred must not overflow
_MOST_IDLE = 3.0  # seconds, before the servers close a connection, which most do after 5


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of one browser."""

    port: int
    path: str
    cookie: str = ""
    method: str = "GET"
    body: bytes = b""
    accept: str = "application/json"

    def encode(self) -> bytes:
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            f"Accept: {self.accept}",
            f"Content-Length: {len(self.body)}",
        ]
        if self.cookie:
            lines.append(f"Cookie: cm_auth={self.cookie}")
        return "\r\n".join([*lines, "", ""]).encode() + self.body


@dataclass(frozen=True, slots=True)
class Response:
    """One answer; the status is 0 when the connection broke before it came."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def worker(self) -> int:
        """The process that answered."""
        return int(self.headers.get("x-worker", "0"))

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer, and when its request was sent, in seconds of the monotonic clock."""

    sent: float
    response: Response

    @property
    def answered(self) -> float:
        return self.sent + self.response.seconds


class Crowd:
    """Sends requests at once, each over a connection of its own.

    Attributes:
        asked_at: when `ask` last sent some, in seconds of the monotonic clock.
    """

    def __init__(self) -> None:
        self.asked_at = 0.0
        self._runner = asyncio.Runner()
        self._idle: dict[int, list[Any]] = {}

    def ask(
        self, asks: Sequence[Ask], *meanwhile: tuple[float, Callable[[], object]]
    ) -> list[Response]:
        """Send all at the same moment and return the answers in their order.

        Args:
            asks: what to send.
            meanwhile: pairs of seconds after that moment, and what to do then, in a thread.
        """
        return self._runner.run(self._ask(asks, meanwhile))

    def one(self, port: int, path: str, cookie: str = "", **rest: Any) -> Response:
        return self.ask([Ask(port, path, cookie, **rest)])[0]

    def send_and_leave(self, asks: Sequence[Ask], seconds: float) -> None:
        """Send all, and close the connections after so many seconds without an answer."""

        async def leave() -> None:
            connections = [await asyncio.open_connection("127.0.0.1", ask.port) for ask in asks]
            for ask, (_, writer) in zip(asks, connections, strict=True):
                writer.write(ask.encode())
            await asyncio.sleep(seconds)
            for _, writer in connections:
                writer.transport.abort()

        self._runner.run(leave())

    def keep_asking(
        self, browsers: Sequence[Sequence[Ask]], pause: float, is_over: Callable[[], bool]
    ) -> list[Seen]:
        """Let each browser send its requests in turn, over and over, and return all answers.

        Args:
            pause: seconds from an answer to that browser's next request.
        """
        seen: list[Seen] = []

        async def browse(asks: Sequence[Ask], delay: float) -> None:
            await asyncio.sleep(delay)
            for ask in itertools.cycle(asks):
                if is_over():
                    return
                connection = await self._connect(ask.port)
                sent = time.monotonic()
                seen.append(Seen(sent, await self._exchange(ask, connection, sent)))
                await asyncio.sleep(pause)

        async def browse_all() -> None:
            delays = (pause * n / len(browsers) for n in range(len(browsers)))
            await asyncio.gather(*map(browse, browsers, delays))

        self._runner.run(browse_all())
        return seen

    def pour(
        self,
        asks: Iterator[Ask],
        rate: float,
        seconds: float,
        note: Callable[[Ask, Response], None],
    ) -> None:
        """Send so many requests a second, whether or not those before were answered.

        Args:
            note: is called with each request and its answer.
        """

        async def send(ask: Ask) -> None:
            note(ask, await self._exchange(ask, await self._connect(ask.port), time.monotonic()))

        async def pour() -> None:
            began, sent = time.monotonic(), 0
            async with asyncio.TaskGroup() as tasks:
                while (passed := time.monotonic() - began) < seconds:
                    for _ in range(int(passed * rate) - sent):
                        tasks.create_task(send(next(asks)))
                        sent += 1
                    await asyncio.sleep(0.01)

        self._runner.run(pour())

    def close(self) -> None:
        async def close() -> None:
            for connections in self._idle.values():
                for _, writer, _ in connections:
                    writer.close()

        self._runner.run(close())
        self._runner.close()

    async def _ask(self, asks: Sequence[Ask], meanwhile: Any) -> list[Response]:
        gate = asyncio.Semaphore(_CONNECTING)

        async def connect(ask: Ask) -> Any:
            async with gate:
                return await self._connect(ask.port)

        connections = await asyncio.gather(*(connect(ask) for ask in asks))
        deeds = [asyncio.create_task(_later(*deed)) for deed in meanwhile]
        self.asked_at = started = time.monotonic()
        waiting = [
            self._exchange(ask, connection, started)
            for ask, connection in zip(asks, connections, strict=True)
        ]
        answers = await asyncio.gather(*waiting)
        await asyncio.gather(*deeds)
        return answers

    async def _connect(self, port: int) -> Any:
        idle = self._idle.setdefault(port, [])
        while idle:
            reader, writer, since = idle.pop()
            is_young = time.monotonic() - since < _MOST_IDLE
            if is_young and not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return None

    async def _exchange(self, ask: Ask, connection: Any, started: float) -> Response:
        if connection is None:
            return Response(0, {}, b"", 0.0)
        reader, writer = connection
        try:
            async with asyncio.timeout(_PATIENCE):
                writer.write(ask.encode())
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                fields = (line.partition(":") for line in head[1:-2])
                headers = {name.lower(): value.strip() for name, _, value in fields}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
        except (OSError, EOFError, TimeoutError):
            writer.close()
            return Response(0, {}, b"", time.monotonic() - started)
        if headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._idle[ask.port].append((reader, writer, time.monotonic()))
        return Response(int(head[0].split()[1]), headers, body, time.monotonic() - started)


async def _later(seconds: float, deed: Callable[[], object]) -> None:
    await asyncio.sleep(seconds)
    await asyncio.to_thread(deed)
