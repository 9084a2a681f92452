"""The parts of HTTP that both runtimes share: TLS, limits, and a filter for the log."""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2

from ..errors import UnavailableError

MAX_BODY = 1_000_000  # bytes of a response to the middleware's own calls; a token response has 300

# A live view keeps its connection for as long as it is open. With httpx2's default of 100, a
# hundred viewers would leave no connection to other users.
LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=20)

UNCOMPRESSED = {"Accept-Encoding": "identity"}
"""The header that asks for a body whose size is that of its bytes on the wire."""

_HTTPCORE_LOGGERS = [logging.getLogger(name) for name in ("httpcore2.http11", "httpcore2.http2")]
_SECRET_HEADER = re.compile(
    r"""\(b'(www-authenticate|set-cookie|location)', b('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\)""",
    re.IGNORECASE,
)


class _RedactHeaders(logging.Filter):
    """Redacts the response headers in httpcore2's DEBUG log that may contain a token.

    CameraManager's ``WWW-Authenticate`` may repeat one ("Access token expired: …").
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if "return_value=" in (message := record.getMessage()):
            record.msg, record.args = _SECRET_HEADER.sub(r"(b'\1', b'[secure]')", message), ()
        return True


_REDACT_HEADERS = _RedactHeaders()


def redact_logged_headers() -> None:
    """Keep tokens out of httpcore2's log, also where an application made the connection pool."""
    for logger in _HTTPCORE_LOGGERS:
        logger.addFilter(_REDACT_HEADERS)


def bound(response: httpx2.Response) -> None:
    """Limit the body of a response that is not read yet to `MAX_BODY`, also once it is decoded.

    The middleware asks for no compression, but some servers and proxies compress all the same.

    Raises:
        UnavailableError: the body has an encoding that is neither gzip nor deflate.
    """
    encoding = response.headers.pop("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise UnavailableError("CameraManager's answer has an unknown Content-Encoding")
    response.stream = _BoundedStream(response.stream, is_compressed=encoding != "identity")


class _BoundedStream(httpx2.AsyncByteStream, httpx2.SyncByteStream):
    """A response's body, decoded and up to `MAX_BODY`; raises `UnavailableError` beyond it."""

    def __init__(self, stream: Any, *, is_compressed: bool) -> None:
        self._stream = stream
        self._total = 0
        self._is_compressed = is_compressed
        self._begin = b""  # what came before the first decoded byte
        self._decoder = zlib.decompressobj(wbits=47)  # the header tells gzip from zlib

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield self._counted(chunk)

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            yield self._counted(chunk)

    def _counted(self, chunk: bytes) -> bytes:
        if self._is_compressed:
            chunk = self._decoded(chunk)
        self._total += len(chunk)
        if self._total > MAX_BODY:
            raise UnavailableError("CameraManager's answer is too large")
        return chunk

    def _decoded(self, chunk: bytes) -> bytes:
        # One byte too many is enough to refuse it: a small body may decode to gigabytes.
        room = MAX_BODY - self._total + 1
        if self._total == 0:
            self._begin += chunk
        try:
            return self._decoder.decompress(chunk, room)
        except zlib.error:
            pass
        if self._total == 0:  # some servers send deflate without its header (RFC 9110 §8.4.1.2)
            self._decoder = zlib.decompressobj(wbits=-15)
            try:
                return self._decoder.decompress(self._begin, room)
            except zlib.error:
                pass
        raise UnavailableError("CameraManager's answer cannot be decompressed")

    async def aclose(self) -> None:
        await self._stream.aclose()

    def close(self) -> None:
        self._stream.close()
