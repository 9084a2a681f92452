"""The ready clients of a request: bearer attached, refreshed on a 401, on a shared pool."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx2

from .errors import CMAuthError, UnavailableError
from .runtime.bounded_cache import BoundedCache
from .runtime.run_sync import run_sync

if TYPE_CHECKING:
    from .sessions.session import Session
    from .tokens.refresh import TokenRefresher

# The extensions of a request: its session, and that BearerAuth gave it its header.
_SESSION, _HAS_BEARER = "cm_auth.session", "cm_auth.bearer"
_REPLAY = 1_048_576  # bytes of a streamed body that are kept, to send it again after a 401
_LOOK_EVERY = 15.0  # seconds between looks at the session of an answer that is being read
_TRIES = 3  # a token that another session has renewed may be refused by now, too


class AsyncCMClient(httpx2.AsyncClient):
    """An `httpx2.AsyncClient` for one user of CameraManager.

    Relative URLs go to ``base_url``; the bearer token goes to its origin and nowhere else, nor
    after a redirect. Cookies are its own. Closing it leaves the shared connection pool open.

    Raises, beside httpx2's errors:
        SessionExpiredError: the session is over; let it pass and the middleware answers.
        UnavailableError: the token has expired and cannot be renewed just now; or each connection
            of the process to the API is in use (httpx2's `PoolTimeout`).
    """

    _cm: tuple[ClientFactory, Session]

    def __repr__(self) -> str:
        return f"<AsyncCMClient {self._cm[1].reference}>"


class CMClient(httpx2.Client):
    """An `httpx2.Client` for one user of CameraManager; see `AsyncCMClient`.

    The threads of one request may share it.
    """

    _cm: tuple[ClientFactory, Session]

    def __repr__(self) -> str:
        return f"<CMClient {self._cm[1].reference}>"


class ClientFactory:
    """Makes the clients of one side: those for event loops, or those for threads.

    Args:
        transport: returns the connection pool to send a request by: each event loop has its own.
        base_url: of the API; requests to other origins get no token.

    Attributes:
        urls: by path and query; to take a URL apart costs as much as to make the rest of a request.
    """

    def __init__(
        self,
        kind: type[AsyncCMClient | CMClient],
        refresher: TokenRefresher,
        transport: Callable[[], Any],
        base_url: str,
    ) -> None:
        self.kind = kind
        self._refresher = refresher
        self.urls: BoundedCache[str, httpx2.URL] = BoundedCache(
            memory=refresher.runtime.cache_memory, size=lambda url: 3 * len(str(url)) + 500
        )
        client = httpx2.AsyncClient if issubclass(kind, httpx2.AsyncClient) else httpx2.Client
        self._template = client(
            base_url=base_url,
            headers={"Accept": "application/json"},
            transport=_OriginGuard(transport, base_url),
        )

    def attributes(self, session: Session) -> dict[str, Any]:
        """Return the attributes of a new client for a session.

        They are copied from a template, which takes a third of the time that making a client does.
        Values that can be changed in place are new; the others are replaced when they are set.
        """
        client = object.__new__(self.kind)
        for name, value in vars(self._template).items():
            client.__dict__[name] = value.copy() if isinstance(value, httpx2.Headers) else value
        client.auth = BearerAuth(self._refresher, session, self._template.base_url)
        client.cookies = httpx2.Cookies()
        client.event_hooks = {}
        client.timeout = httpx2.Timeout(self._refresher.runtime.timeout)  # for each step
        return vars(client)


class _Lazy:
    """Becomes a client when it is first used, so that a handler that never does pays nothing.

    Threads may share it: two that use it at once both make the attributes, and of each attribute
    the first value stays. What a handler set before the first use stays, too.
    """

    def __init__(self, factory: ClientFactory, session: Session) -> None:
        self._cm = factory, session

    def __getattr__(self, name: str) -> Any:
        # Python calls this for an attribute that is missing: before the first use, for any.
        if "_cm" not in self.__dict__:  # an empty one, which copy.copy() is about to fill
            raise AttributeError(name)
        factory, session = self.__dict__["_cm"]
        for attribute, value in factory.attributes(session).items():
            self.__dict__.setdefault(attribute, value)
        self.__class__ = factory.kind  # which has no such detour
        return getattr(self, name)


class LazyAsyncCMClient(_Lazy, AsyncCMClient):
    """An `AsyncCMClient`, once it is used."""


class LazyCMClient(_Lazy, CMClient):
    """A `CMClient`, once it is used."""


class BearerAuth(httpx2.Auth):
    """Attaches the session's access token; on a 401 renews it and sends the request once more."""

    def __init__(self, refresher: TokenRefresher, session: Session, base_url: httpx2.URL) -> None:
        self._refresher = refresher
        self._session = session
        self._origin = _origin(base_url)

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Yield what to send, and receive the responses (httpx2's protocol)."""
        refresher, session = self._refresher, self._session
        request.extensions = {**request.extensions, _SESSION: session}
        token: str | None
        if _origin(request.url) != self._origin or "Authorization" in request.headers:
            yield request
            return
        answer: httpx2.Response | None = None
        try:
            await refresher.ensure_fresh(session)
            body = None
            if not isinstance(request.stream, httpx2.ByteStream):
                request.stream = body = _Replayable(request.stream)
            request.extensions = {**request.extensions, _HAS_BEARER: True}
            is_new = False
            for attempt in range(_TRIES):
                token = session.record.tokens.access_token
                request.headers["Authorization"] = f"Bearer {token}"
                response = yield request
                if not await self._is_refused(response, token):
                    break
                path = request.url.path
                if is_new:
                    await refresher.note_refusal(session, token, path)
                    another_may_do = await refresher.reload(session, token)
                else:
                    is_suspect = attempt > 0  # it was saved by another request a moment ago
                    another_may_do = await refresher.may_be_dead(session, token, path, is_suspect)
                if not another_may_do or attempt == _TRIES - 1:
                    break
                can_replay = body is None or body.can_replay
                if can_replay:
                    await refresher.runtime.discard(response)  # others may wait for its connection
                is_new = await refresher.replace(session, token)
                if not can_replay:
                    break
            answer = response
            answer.stream = _Watched(answer.stream, refresher, session)
        except CMAuthError as error:
            # For the adapter, if the framework turns the error into a 500 on its way.
            session.client_error = error
            # Debuggers and services such as Sentry record the variables of each frame: those of
            # the refresh are tokens. The message and the log say what happened.
            token = None
            error.__context__ = None
            raise error.with_traceback(None) from None
        finally:
            _forget_bearer(request, answer)

    def sync_auth_flow(
        self, request: httpx2.Request
    ) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Yield what to send, and receive the responses (httpx2's protocol)."""
        flow = self.async_auth_flow(request)
        try:
            request = run_sync(flow.__anext__())
            while True:
                request = run_sync(flow.asend((yield request)))
        except StopAsyncIteration:
            return
        finally:
            run_sync(flow.aclose())

    async def _is_refused(self, response: httpx2.Response, token: str) -> bool:
        """Return True if a response says that this token is dead: by 401, 403 or 406."""
        # A redirect to another origin drops the token.
        if response.request.headers.get("Authorization") != f"Bearer {token}":
            return False
        if response.status_code not in (403, 406):
            return response.status_code == 401
        # RFC 6750 §3.1 wants 401. Some servers say 403, which the user may deserve, too, and Spring
        # says 406 where it cannot put its 401 into a form that the request accepts.
        if "invalid_token" in response.headers.get("WWW-Authenticate", ""):
            return True
        return await self._refresher.is_dead(self._session, token)


def _forget_bearer(request: httpx2.Request, response: httpx2.Response | None) -> None:
    """Remove the token from a request that is over, and from those that redirects made of it.

    A handler may pickle or log a response with its request. A request that it sends again, or one
    that follows a redirect later, gets the token that is valid then.
    """
    requests = [request]
    if response is not None:
        requests += [each.request for each in (*response.history, response)]
        if response.next_request is not None:
            requests.append(response.next_request)
    for each in requests:
        each.headers.pop("Authorization", None)


class _Watched(httpx2.AsyncByteStream, httpx2.SyncByteStream):
    """A response's body that stops when the session has ended: a live view may last for days."""

    def __init__(self, stream: Any, refresher: TokenRefresher, session: Session) -> None:
        self._stream = stream
        self._refresher = refresher
        self._session = session
        self._look_at = time.monotonic() + _LOOK_EVERY

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            if time.monotonic() >= self._look_at:
                await self._look()
            yield part

    def __iter__(self) -> Iterator[bytes]:
        for part in self._stream:
            if time.monotonic() >= self._look_at:
                run_sync(self._look())
            yield part

    async def _look(self) -> None:
        self._look_at = time.monotonic() + _LOOK_EVERY
        with suppress(UnavailableError):  # which ends nothing
            await self._refresher.look_up(self._session)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def close(self) -> None:
        self._stream.close()


class _OriginGuard(httpx2.AsyncBaseTransport, httpx2.BaseTransport):
    """Removes the bearer token and the API's cookies from requests to another origin.

    Redirects never pass the auth class, and httpx2 keeps the header on one from http to https.
    A request that waits in vain for a free connection raises `UnavailableError`.
    """

    def __init__(self, transport: Callable[[], Any], base_url: str) -> None:
        self._transport = transport
        self._origin = _origin(httpx2.URL(base_url))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self._guard(request)
        try:
            response: httpx2.Response = await self._transport().handle_async_request(request)
        except httpx2.PoolTimeout:
            raise _all_in_use(request) from None
        return response

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self._guard(request)
        try:
            response: httpx2.Response = self._transport().handle_request(request)
        except httpx2.PoolTimeout:
            raise _all_in_use(request) from None
        return response

    def _guard(self, request: httpx2.Request) -> None:
        if _origin(request.url) != self._origin:
            request.headers.pop("Cookie", None)
            if request.extensions.get(_HAS_BEARER):
                request.headers.pop("Authorization", None)

    async def aclose(self) -> None:
        """Leave the pool open: every other request uses it too."""

    def close(self) -> None:
        """Leave the pool open: every other request uses it too."""


def _all_in_use(request: httpx2.Request) -> UnavailableError:
    error = UnavailableError("every connection to CameraManager is in use")
    session: Session | None = request.extensions.get(_SESSION)
    if session is not None:
        session.client_error = error  # as in BearerAuth, which httpx2 does not tell of it
    return error


class _Replayable(httpx2.AsyncByteStream, httpx2.SyncByteStream):
    """A streamed body that can be sent twice, as long as it is small."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._source: Any = None
        self._kept: list[bytes] = []
        self._size = 0
        self.can_replay = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._kept:
            yield chunk
        if self._source is None:
            self._source = aiter(self._stream)
        async for chunk in self._source:
            yield self._keep(chunk)

    def __iter__(self) -> Iterator[bytes]:
        yield from self._kept
        if self._source is None:
            self._source = iter(self._stream)
        for chunk in self._source:
            yield self._keep(chunk)

    def _keep(self, chunk: bytes) -> bytes:
        self._size += len(chunk)
        if self._size <= _REPLAY:
            self._kept.append(chunk)
        else:
            self.can_replay = False
            self._kept.clear()
        return chunk

    async def aclose(self) -> None:
        """The body belongs to the caller."""

    def close(self) -> None:
        """The body belongs to the caller."""


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    return url.scheme, url.host, port
