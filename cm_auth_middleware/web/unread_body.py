"""Bodies of requests that are answered before they have arrived: they are read on, within bounds.

A server that closes a connection on which bytes still arrive resets it (RFC 9112 §9.6). A client
that writes all before it reads, as most libraries do with an upload, then reports "broken pipe" or
"connection reset", and never sees the 401. So the response goes out first, and then the rest of the
body is read and dropped. A body that does not come, or does not end, is left after a while.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from .request import Request

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

MOST_BYTES = 64 * 1024 * 1024
"""Bytes that are read on. A body that says to be longer is not read at all."""
PATIENCE = 3.0
"""Seconds until the rest of a body has to be there."""

_IN_A_HURRY = 0.1  # seconds, for bodies beyond so many at a time:
_AT_ONCE = 2  # threads of a process, which others need (WSGI)
_PART = 65_536  # bytes that are read at a time

_places = threading.BoundedSemaphore(_AT_ONCE)


def is_expected(request: Request) -> bool:
    """Return True if a request has a body that is short enough to be read to its end."""
    length = request.header("content-length")
    if length is None:
        return request.header("transfer-encoding") is not None
    return length.isdecimal() and len(length) < 12 and 0 < int(length) <= MOST_BYTES


def read_on(parts: list[bytes], request: Request, environ: WSGIEnvironment) -> Iterable[bytes]:
    """Return the body of a WSGI response, which reads on when the server has sent and closes it.

    Only gunicorn needs it, and only a server that tells its socket can be kept from waiting for a
    client: waitress reads a body before it calls the application, werkzeug after it did.

    Args:
        parts: of the response's body.
    """
    connection = environ.get("gunicorn.socket")
    if (
        connection is None
        or not environ.get("wsgi.input_terminated")
        or not environ.get("SERVER_PROTOCOL", "").startswith("HTTP/1")  # HTTP/2 closes a stream
        or not is_expected(request)
    ):
        return parts
    return _ReadingOn(parts, partial(_discard, environ["wsgi.input"], connection))


class _ReadingOn:
    """The body of a response; see `read_on`."""

    def __init__(self, parts: list[bytes], discard: Callable[[], None]) -> None:
        self._parts = parts
        self._discard = discard

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)

    def close(self) -> None:
        """Read on."""
        with suppress(Exception):  # the client has left, or has sent something else than a body
            self._discard()


def _discard(source: Any, connection: socket.socket) -> None:
    """Read the rest of a body and drop it, in this thread.

    The time is that for all of it: a client that sends a byte now and then would lengthen a timeout
    of the socket with each.
    """
    has_place = _places.acquire(blocking=False)
    timer = threading.Timer(PATIENCE if has_place else _IN_A_HURRY, _stop, [connection])
    timer.daemon = True
    timer.start()
    left = MOST_BYTES
    try:
        while left > 0 and (part := source.read(_PART)):
            left -= len(part)
    finally:
        timer.cancel()
        if has_place:
            _places.release()


def _stop(connection: socket.socket) -> None:
    """Let the thread that reads find the end: there is nothing to be read any more."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
