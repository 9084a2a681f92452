"""The ready client of a request: bearer attached, refreshed on a 401, on a shared pool."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx2

from .errors import CMAuthError, SessionExpiredError

if TYPE_CHECKING:
    from .engine import AuthEngine
    from .session import Session

_OURS = "cm_auth.bearer"  # marks a request whose Authorization header this package set
_REPLAY = 1_048_576  # bytes of a streamed body that are kept, to send it again after a 401


class AsyncCMClient(httpx2.AsyncClient):
    """An `httpx2.AsyncClient` for one user of CameraManager.

    Relative URLs go to ``base_url``; the bearer token goes to its origin and nowhere else, nor
    after a redirect. Cookies are its own. Closing it leaves the shared connection pool open. It
    is built when it is first used, so that a handler which never asks pays nothing.

    Raises, beside httpx2's errors:
        SessionExpiredError: the session is over; let it pass and the middleware answers.
        UnavailableError: the token has expired and cannot be renewed just now.
    """

    def __init__(self, engine: AuthEngine, session: Session) -> None:
        self.__dict__["_cm"] = (engine, session)

    def __getattr__(self, name: str) -> Any:
        # Only called for what is missing: before the first use, everything.
        if name == "_state" or "_state" not in self.__dict__:
            engine, session = self.__dict__["_cm"]
            super().__init__(
                base_url=engine.config.base_url,
                headers={"Accept": "application/json"},
                auth=BearerAuth(engine, session),
                transport=_OriginGuard(engine.ports.transport(), engine.config.base_url),
                timeout=engine.ports.timeout,
            )
            return getattr(self, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.__dict__['_cm'][1].reference}>"


class BearerAuth(httpx2.Auth):
    """Attaches the session's access token; on a 401 renews it and sends the request once more."""

    def __init__(self, engine: AuthEngine, session: Session) -> None:
        self._engine = engine
        self._session = session
        self._origin = _origin(httpx2.URL(engine.config.base_url))

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Drive one request (httpx2's protocol)."""
        if _origin(request.url) != self._origin or "Authorization" in request.headers:
            yield request
            return
        with self._noting_trouble():
            if self._session.ended:
                raise SessionExpiredError
            await self._engine.flow.freshen(self._session)
        body = _Replayable(request.stream)
        if not isinstance(request.stream, httpx2.ByteStream):
            request.stream = body
        sent = self._attach(request)
        response = yield request
        if response.status_code != 401 or _origin(response.request.url) != self._origin:
            return
        with self._noting_trouble():
            await self._engine.keeper.refresh(self._session, sent)
        if request.stream is not body or body.can_replay:
            self._attach(request)
            yield request

    @contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        """Leave word for the shell, should the framework make a 500 of the error on its way."""
        try:
            yield
        except CMAuthError as error:
            self._session.trouble = error
            raise

    def _attach(self, request: httpx2.Request) -> str:
        token = self._session.record.tokens.access_token
        request.headers["Authorization"] = f"Bearer {token}"
        request.extensions = {**request.extensions, _OURS: True}
        return token


class _OriginGuard(httpx2.AsyncBaseTransport):
    """Takes our bearer and the API's cookies off whatever leaves for another origin.

    Redirects never pass the auth class, and httpx2 keeps the header on one from http to https.
    """

    def __init__(self, transport: httpx2.AsyncBaseTransport, base_url: str) -> None:
        self._transport = transport
        self._origin = _origin(httpx2.URL(base_url))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if _origin(request.url) != self._origin:
            request.headers.pop("Cookie", None)
            if request.extensions.get(_OURS):
                request.headers.pop("Authorization", None)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Leave the pool open: every other request uses it too."""


class _Replayable(httpx2.AsyncByteStream):
    """A streamed body that can be sent twice, as long as it is small."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._source: AsyncIterator[bytes] | None = None
        self._kept: list[bytes] = []
        self._size = 0
        self.can_replay = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._kept:
            yield chunk
        if self._source is None:
            self._source = aiter(self._stream)
        async for chunk in self._source:
            self._size += len(chunk)
            if self._size <= _REPLAY:
                self._kept.append(chunk)
            else:
                self.can_replay = False
                self._kept.clear()
            yield chunk

    async def aclose(self) -> None:
        """The body belongs to the caller."""


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    return url.scheme, url.host, port
