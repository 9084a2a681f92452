"""What a client refuses to send: requests are written to the socket as bytes."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
from dataclasses import dataclass
from typing import Any

_ANSWER = 20.0


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back, or status 0 if the server closed the connection without an answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return ", ".join(v for k, v in self.headers if k.lower() == name)


def say(port: int, request: bytes) -> Answered:
    """Write a request as it stands to the socket and read the answer.

    Args:
        request: all of it; it should ask for ``Connection: close``.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER) as connection:
        with contextlib.suppress(OSError):  # a server may answer before it has read all
            connection.sendall(request)
        received = bytearray()
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                received += part
    response = http.client.HTTPResponse(_Readable(bytes(received)))  # type: ignore[arg-type]
    try:
        response.begin()
        return Answered(response.status, response.getheaders(), response.read())
    except http.client.HTTPException:
        # HTTP/0.9, which a server may speak to a request line that it cannot read.
        return Answered(0, [], bytes(received))


def ask(
    port: int, target: str | bytes, *lines: str, method: str = "GET", host: str = "localhost"
) -> Answered:
    """Ask for a request target as it stands."""
    raw = target if isinstance(target, bytes) else target.encode("latin-1")
    head = [f"Host: {host}", "Connection: close", *lines, "", ""]
    return say(port, method.encode() + b" " + raw + b" HTTP/1.1\r\n" + "\r\n".join(head).encode())


class _Readable:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *args: Any) -> io.BytesIO:
        return io.BytesIO(self._data)
