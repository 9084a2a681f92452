"""Connections to CameraManager: the shared pools, and the bounds on calls of our own."""

from __future__ import annotations

import logging
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple, Self

import httpx2

from ..errors import UnavailableError

MAX_BODY = 1_000_000  # bytes of an answer to a call of our own; a token answer has 300

# A live view keeps its connection for as long as somebody looks at it. Of httpx2's 100 a hundred
# viewers would leave none to anybody else.
_LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=20)

_WIRES = [logging.getLogger(name) for name in ("httpcore2.http11", "httpcore2.http2")]
_TELLTALE = re.compile(
    r"""\(b'(www-authenticate|set-cookie|location)', b('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\)""",
    re.IGNORECASE,
)


class _Discreet(logging.Filter):
    """Keeps tokens out of httpcore2's DEBUG log of response headers.

    CameraManager's ``WWW-Authenticate`` may repeat a token ("Access token expired: …").
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if "return_value=" in (message := record.getMessage()):
            record.msg, record.args = _TELLTALE.sub(r"(b'\1', b'[secure]')", message), ()
        return True


_DISCREET = _Discreet()


def keep_tokens_out_of_logs() -> None:
    """Filter what httpcore2 logs, by pools that applications made, too."""
    for wire in _WIRES:
        wire.addFilter(_DISCREET)


def tls_context() -> ssl.SSLContext:
    """The TLS settings of every pool: certificates are verified. Costs 20 ms, so make one."""
    return httpx2.create_ssl_context()


def async_pool(tls: ssl.SSLContext) -> httpx2.AsyncBaseTransport:
    """A connection pool for an event loop."""
    return httpx2.AsyncHTTPTransport(verify=tls, limits=_LIMITS)


class AsyncPools(NamedTuple):
    """The connections of one event loop: the ready clients', and those of calls of our own.

    A client that waits for a new token may keep a connection meanwhile, and the token must not
    have to wait for that.
    """

    clients: httpx2.AsyncBaseTransport
    own: httpx2.AsyncBaseTransport


def pool(tls: ssl.SSLContext) -> httpx2.BaseTransport:
    """A connection pool for the threads of one process."""
    return httpx2.HTTPTransport(verify=tls, limits=_LIMITS)


class AsyncBounded(httpx2.AsyncBaseTransport):
    """The same pool for calls of our own: their answers are small or refused."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.headers["Accept-Encoding"] = "identity"
        response = await self._transport.handle_async_request(request)
        if _is_compressed(response):
            await response.aclose()
            raise UnavailableError("CameraManager compressed an answer unasked")
        response.stream = _BoundedStream(response.stream)
        return response

    async def aclose(self) -> None:
        """The pool is shared; it outlives each client."""


class Bounded(httpx2.BaseTransport):
    """As `AsyncBounded`, for one call in a thread, whose sockets it shows to a watchdog."""

    def __init__(self, transport: httpx2.BaseTransport, dog: Watchdog) -> None:
        self._transport = transport
        self._dog = dog

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.headers["Accept-Encoding"] = "identity"
        request.extensions = {**request.extensions, "trace": self._dog.trace}
        response = self._transport.handle_request(request)
        if _is_compressed(response):
            response.close()
            raise UnavailableError("CameraManager compressed an answer unasked")
        response.stream = _BoundedStream(response.stream)
        return response

    def close(self) -> None:
        """Whoever made the transport closes it."""


class _BoundedStream(httpx2.AsyncByteStream, httpx2.SyncByteStream):
    """An answer's body up to the bound."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._total = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield self._counted(chunk)

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            yield self._counted(chunk)

    def _counted(self, chunk: bytes) -> bytes:
        self._total += len(chunk)
        if self._total > MAX_BODY:
            raise UnavailableError("CameraManager's answer is too large")
        return chunk

    async def aclose(self) -> None:
        await self._stream.aclose()

    def close(self) -> None:
        self._stream.close()


class Watchdog:
    """Cuts the connections of one call in a thread when its time is over.

    The timeouts of a blocking socket are per read: a server that drips a byte at a time would
    hold the thread for ever.
    """

    def __init__(self, timeout: float) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(timeout, self._bite)
        self._timer.daemon = True
        self._bitten = False

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Learn of each socket as it connects (httpx2's ``trace`` extension)."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._lock:
                self._sockets.append(info["return_value"].get_extra_info("socket"))
            if self._bitten:
                self._bite()

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._timer.cancel()
        if self._bitten and isinstance(error, Exception):
            raise UnavailableError("CameraManager did not answer in time") from None

    def _bite(self) -> None:
        with self._lock:
            self._bitten = True
            for connection in self._sockets:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # closed by now
                    continue


def _is_compressed(response: httpx2.Response) -> bool:
    return response.headers.get("Content-Encoding", "identity") != "identity"
