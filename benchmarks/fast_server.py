"""An HTTP server that answers without looking, in a process of its own.

Its time is in every figure that it is part of, so it has as little of it as can be.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
from contextlib import suppress
from typing import Any

BIG_BYTES = 100_000_000
SNAPSHOT_BYTES = 200_000
RECORDING_BYTES = 1_000_000_000
_PIECE = bytes(65_536)
_BODY = b'[{"cameraId":1,"name":"Gate","accountId":200,"zoneId":1,"online":true}]'
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_BODY)
) + _BODY
_SNAPSHOT = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % (
    SNAPSHOT_BYTES
) + bytes(SNAPSHOT_BYTES)
_RANGE = re.compile(rb"\r\nrange: bytes=([0-9]+)-([0-9]+)\r\n", re.IGNORECASE)


class FastServer:
    """A list of cameras at every address, and zeros at some.

    Those are 100 MB where the path ends in `big`, a picture of 200 kB where it ends in `snapshot`,
    and the range that is asked for, of 1 GB, where it ends in `recording`.

    Args:
        port: where; 0 is a free port.
    """

    def __init__(self, port: int = 0) -> None:
        context = multiprocessing.get_context("spawn")
        self._port, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(port, theirs), daemon=True)
        self.url = ""

    def __enter__(self) -> FastServer:
        self._process.start()
        self.url = f"http://127.0.0.1:{self._port.recv()}"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        self._process.join(10)


class _Connection(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._task: asyncio.Task[None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        if b"/big HTTP" in data:
            self._transport.write(
                f"HTTP/1.1 200 OK\r\nContent-Length: {BIG_BYTES}\r\n\r\n".encode()
            )
            self._task = asyncio.get_running_loop().create_task(self._send(BIG_BYTES))
        elif b"/snapshot HTTP" in data:
            self._transport.write(_SNAPSHOT)
        elif b"/recording HTTP" in data:
            self._send_range(data)
        else:
            self._transport.write(_ANSWER)

    def _send_range(self, data: bytes) -> None:
        wanted = _RANGE.search(data)
        assert wanted, data
        first, last = int(wanted[1]), int(wanted[2])
        head = (
            "HTTP/1.1 206 Partial Content\r\nContent-Type: video/mp4\r\n"
            f"Content-Range: bytes {first}-{last}/{RECORDING_BYTES}\r\n"
            f"Content-Length: {last - first + 1}\r\n\r\n"
        )
        self._transport.write(head.encode())
        self._task = asyncio.get_running_loop().create_task(self._send(last - first + 1))

    async def _send(self, left: int) -> None:
        while left:
            await self._may_write.wait()
            piece = _PIECE[:left]
            self._transport.write(piece)
            left -= len(piece)


def _serve(port: int, chosen: Any) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(_Connection, "127.0.0.1", port)
        chosen.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    with suppress(KeyboardInterrupt):
        asyncio.run(serve())
