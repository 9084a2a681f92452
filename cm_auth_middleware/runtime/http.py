"""The parts of HTTP that both runtimes share: limits of connections and of bodies."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing, contextmanager, suppress
from functools import lru_cache
from typing import Any

import httpx2

from ..errors import UnavailableError

MAX_BODY = 1_000_000  # bytes of a response to the middleware's own calls; a token response has 300
MAX_DISCARDED = 65_536  # bytes that are read of a body that is thrown away

# A live view keeps its connection for as long as it is open. With httpx2's default of 100, a
# hundred viewers would leave no connection to other users. Many servers close a connection that was
# idle for 5 s, httpx2's default, too: who sends a request at that moment gets an error.
LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=20, keepalive_expiry=4.0)

UNCOMPRESSED = {"Accept-Encoding": "identity"}
"""The header that asks for a body whose size is that of its bytes on the wire."""

_TOO_LARGE = "the server's answer is too large"
_HEADERS = {"Accept": "*/*", "User-Agent": f"python-httpx2/{httpx2.__version__}"}
_url = lru_cache(64)(httpx2.URL)  # to parse one costs as much as the rest of a request


def own_request(
    method: str,
    url: str,
    headers: dict[str, str],
    content: bytes | None,
    timeout: float,
    **extensions: Any,
) -> httpx2.Request:
    """Return one of the middleware's own requests, for a transport.

    They need nothing of what a client adds: cookies, redirects, authentication. It would be a
    fifth of their cost, and a client may not outlive its call, for it would keep the cookies.
    """
    limits = httpx2.Timeout(timeout).as_dict()
    return httpx2.Request(
        method,
        _url(url),
        headers={**_HEADERS, **headers, **UNCOMPRESSED},
        content=content,
        extensions={"timeout": limits, **extensions},
    )


class TooLongError(Exception):
    """A body is longer than what is read of it."""


@contextmanager
def reading(response: httpx2.Response, most: int) -> Iterator[None]:
    """Read so many bytes of a response's connection at most, while the ``with`` lasts.

    A body of few bytes may come in chunks that are long: each may have an extension (RFC 9112
    §7.1.1), of which nobody learns who reads the body. So the bytes are counted where they arrive.

    Raises:
        TooLongError: by the read after that; the connection can only be closed then.
    """
    # https://www.python-httpx.org/advanced/extensions/#network_stream
    stream: Any = response.extensions.get("network_stream")
    if stream is None or response.http_version == "HTTP/2":  # where it is that of others, too
        yield
        return
    read, left = stream.read, most

    def room(size: int) -> int:
        if left <= 0:
            raise TooLongError
        return min(size, left)

    async def read_async(size: int, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - theirs
        nonlocal left
        data = await read(room(size), timeout)
        left -= len(data)
        return data

    def read_blocking(size: int, timeout: float | None = None) -> Any:
        nonlocal left
        data = read(room(size), timeout)
        left -= len(data)
        return data

    stream.read = read_async if inspect.iscoroutinefunction(read) else read_blocking
    try:
        yield
    finally:
        del stream.read  # the class's own is there again, for the next response


class Discarded:
    """Counts the bytes of a body that is thrown away.

    Attributes:
        is_short: True while it is worth to read on, for the sake of the connection.
    """

    def __init__(self, response: httpx2.Response) -> None:
        length = response.headers.get("Content-Length", "")
        self._is_known = length.isdecimal() and length.isascii()
        self.is_short = not self._is_known or int(length[:18]) <= MAX_DISCARDED
        self._total = 0

    def count(self, part: bytes) -> None:
        """Note a part that was read. One that follows is taken to be as long."""
        self._total += len(part)
        self.is_short = self._total + (0 if self._is_known else len(part)) <= MAX_DISCARDED


def bound(response: httpx2.Response) -> None:
    """Limit the body of a response that is not read yet to `MAX_BODY`, also once it is decoded.

    That of another status than 200 is cut after `MAX_DISCARDED` bytes, without an error. The
    middleware asks for no compression, but some servers and proxies compress all the same.

    Raises:
        UnavailableError: the body has an encoding that is neither gzip nor deflate.
    """
    encoding = response.headers.pop("Content-Encoding", "identity").strip().lower()
    is_compressed = encoding in ("gzip", "x-gzip", "deflate")
    if response.status_code != 200:
        response.stream = _CutStream(response, is_compressed=is_compressed)
    elif is_compressed or encoding == "identity":
        response.stream = _BoundedStream(response, is_compressed=is_compressed)
    else:
        raise UnavailableError("the server's answer has an unknown Content-Encoding")


class _BoundedStream(httpx2.AsyncByteStream, httpx2.SyncByteStream):
    """A response's body, decoded and up to `MAX_BODY`; raises `UnavailableError` beyond it."""

    def __init__(self, response: httpx2.Response, *, is_compressed: bool) -> None:
        self._response = response
        self._stream: Any = response.stream
        self._total = 0
        self._is_compressed = is_compressed
        self._begin = b""  # what came before the first decoded byte
        self._decoder = zlib.decompressobj(wbits=47)  # the header tells gzip from zlib

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            with reading(self._response, 2 * MAX_BODY):  # with what is around its chunks
                async for chunk in self._stream:
                    yield self._counted(chunk)
        except TooLongError:
            raise UnavailableError(_TOO_LARGE) from None

    def __iter__(self) -> Iterator[bytes]:
        try:
            with reading(self._response, 2 * MAX_BODY):
                for chunk in self._stream:
                    yield self._counted(chunk)
        except TooLongError:
            raise UnavailableError(_TOO_LARGE) from None

    def _counted(self, chunk: bytes) -> bytes:
        if self._is_compressed:
            chunk = self._decoded(chunk)
        self._total += len(chunk)
        if self._total > MAX_BODY:
            raise UnavailableError(_TOO_LARGE)
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
        raise UnavailableError("the server's answer cannot be decompressed")

    async def aclose(self) -> None:
        await self._stream.aclose()

    def close(self) -> None:
        self._stream.close()


class _CutStream(_BoundedStream):
    """The beginning of a body, decoded: the rest of it is thrown away."""

    def __init__(self, response: httpx2.Response, *, is_compressed: bool) -> None:
        super().__init__(response, is_compressed=is_compressed)
        self._rest = Discarded(response)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with suppress(TooLongError), reading(self._response, MAX_DISCARDED):
            async with aclosing(aiter(self._stream)) as parts:
                while self._rest.is_short and (part := await anext(parts, None)) is not None:
                    yield self._taken(part)

    def __iter__(self) -> Iterator[bytes]:
        with (
            suppress(TooLongError),
            reading(self._response, MAX_DISCARDED),
            closing(iter(self._stream)) as parts,
        ):
            while self._rest.is_short and (part := next(parts, None)) is not None:
                yield self._taken(part)

    def _taken(self, part: bytes) -> bytes:
        self._rest.count(part)
        try:
            return self._counted(part)
        except UnavailableError:  # it cannot be decoded, or is too large then
            self._rest.is_short = False
            return b""
