"""The ready clients of a request: bearer attached, refreshed on a 401, on a shared pool."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx2

from .errors import CMAuthError, UnavailableError
from .runtime.bounded_cache import BoundedCache
from .runtime.run_sync import run_sync

if TYPE_CHECKING:
    from .sessions.session import Session
    from .tokens.refresh import TokenRefresher

# The extensions of a request: its session, where the API was when it was sent, and that BearerAuth
# gave it its header.
_SESSION, _ORIGIN, _HAS_BEARER = "cm_auth.session", "cm_auth.origin", "cm_auth.bearer"
_REPLAY = 1_048_576  # bytes of a streamed body that are kept, to send it again after a 401
_LOOK_EVERY = 15.0  # seconds between looks at the session of an answer that is being read
_TRIES = 3  # a token that another session has renewed may be refused by now, too
_MOST_BASES = 256  # addresses of the API that are kept taken apart
_MOST_TARGET = 500  # characters of a path and query whose URL is remembered
_PORT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)

_Origin = tuple[str, str, int | None]


class _Base(NamedTuple):
    """Where the API is for a session, as a URL and as an origin."""

    url: httpx2.URL
    origin: _Origin


class _Owned:
    """A client of one session, whose ``base_url`` is where the session's API is now.

    Attributes:
        _cm: what made it, its session, and each origin that it has named as the API's: a request
            to one of them is for the API, though that may have moved since.
    """

    _cm: tuple[ClientFactory, Session, set[_Origin]]

    if TYPE_CHECKING:
        _base_url: httpx2.URL

        def _enforce_trailing_slash(self, url: httpx2.URL) -> httpx2.URL: ...

    @property
    def base_url(self) -> httpx2.URL:
        """The URL that relative URLs are relative to; it ends in a slash."""
        given = self._base_url
        factory = self._cm[0]
        return factory.base_of(self).url if given is factory.base_url else given

    @base_url.setter
    def base_url(self, url: httpx2.URL | str) -> None:
        self._base_url = self._enforce_trailing_slash(httpx2.URL(url))

    @property
    def media_auth(self) -> httpx2.Auth:
        """Gives the bearer token to a host with pictures and videos, for one request.

        Eagle Eye's API v3 names such hosts in its answers, and takes the token there:
        ``cm.get(feed["multipartUrl"], auth=cm.media_auth)``. The token still goes only to https
        hosts below the provider's `api_domains`, and on a redirect to no other host. On this
        machine it goes to ``base_url``'s port alone, if that is on this machine, too: a simulator.
        CameraManager has no such hosts.
        """
        return MediaAuth(self._cm[0]._refresher, self._cm)


class AsyncCMClient(_Owned, httpx2.AsyncClient):
    """An `httpx2.AsyncClient` for one user of CameraManager.

    Relative URLs go to ``base_url``; the bearer token goes to its origin and nowhere else, nor
    after a redirect, unless a request asks for it by `media_auth`. Where the server names the
    API's host with its tokens, ``base_url`` follows them, and so does a request to the host before.
    Cookies are its own. Closing it leaves the shared connection pool open.

    Raises, beside httpx2's errors:
        SessionExpiredError: the session is over; let it pass and the middleware answers.
        UnavailableError: the token has expired and cannot be renewed just now; or each connection
            of the process to the API is in use (httpx2's `PoolTimeout`).
    """

    def __repr__(self) -> str:
        return f"<AsyncCMClient {self._cm[1].reference}>"


class CMClient(_Owned, httpx2.Client):
    """An `httpx2.Client` for one user of CameraManager; see `AsyncCMClient`.

    The threads of one request may share it.
    """

    def __repr__(self) -> str:
        return f"<CMClient {self._cm[1].reference}>"


class ClientFactory:
    """Makes the clients of one side: those for event loops, or those for threads.

    Args:
        transport: returns the connection pool to send a request by: each event loop has its own.
        api_url: returns the URL of the API for the ``api_base`` of `Tokens`; requests to other
            origins get no token.
        media_origin: returns the scheme and host of a host with media, by its name and its port;
            None for one that must not get the token.

    Attributes:
        base_url: of clients, where tokens do not say another one.
    """

    def __init__(
        self,
        kind: type[AsyncCMClient | CMClient],
        refresher: TokenRefresher,
        transport: Callable[[], Any],
        api_url: Callable[[str], str],
        media_origin: Callable[[str, int | None], str | None],
    ) -> None:
        self.kind = kind
        is_async = issubclass(kind, AsyncCMClient)
        self._lazy_kind = _LazyAsyncCMClient if is_async else _LazyCMClient
        self._media_origin = media_origin
        self._refresher = refresher
        self._api_url = api_url
        self.base = lru_cache(_MOST_BASES)(self._base)
        # By path and query: to take a URL apart costs as much as to make the rest of a request.
        self._urls: BoundedCache[str, httpx2.URL] = BoundedCache(
            memory=refresher.runtime.cache_memory, size=lambda url: 3 * len(str(url)) + 500
        )
        client = httpx2.AsyncClient if issubclass(kind, httpx2.AsyncClient) else httpx2.Client
        self.base_url = self.base("").url
        self._template = client(
            base_url=self.base_url,
            headers={"Accept": "application/json"},
            transport=_OriginGuard(transport, self.base("").origin),
        )
        self._template._base_url = self.base_url  # the very object, by which a client knows it

    def _base(self, api_base: str) -> _Base:
        url = httpx2.URL(self._api_url(api_base))
        if not url.raw_path.endswith(b"/"):
            url = url.copy_with(raw_path=url.raw_path + b"/")
        return _Base(url, _origin(url))

    def base_of(self, client: _Owned) -> _Base:
        """Return where the API is for a client's session now; requests to it are for the API."""
        _, session, origins = client._cm
        base = self.base(session.record.tokens.api_base)
        origins.add(base.origin)
        return base

    def url_of(self, client: _Owned, target: str) -> httpx2.URL:
        """Return the URL of a path and query of the API, for a client's session now."""
        _, session, origins = client._cm
        api_base = session.record.tokens.api_base
        base, origin = self.base(api_base)
        origins.add(origin)
        key = api_base + target
        url = self._urls.get(key)
        if url is None:
            path = httpx2.URL(target).raw_path.lstrip(b"/")
            url = base.copy_with(raw_path=base.raw_path + path)
            if len(target) <= _MOST_TARGET:
                self._urls[key] = url
        return url

    def is_own(self, url: httpx2.URL) -> bool:
        """Return True if a URL is on a host of the server, which may get the token if asked to."""
        origin = self._media_origin(url.host, url.port)
        return not url.userinfo and origin == f"{url.scheme}://{url.netloc.decode()}"

    def media_url(self, host: str, path: str) -> httpx2.URL | None:
        """Return the URL of a path and query at a host of the server; None if it is another's.

        Args:
            host: with the port behind a colon, if it is not the scheme's own.
        """
        name, colon, port = host.partition(":")
        if colon and not _PORT.fullmatch(port):
            return None
        origin = self._media_origin(name, int(port) if colon else None)
        return None if origin is None else httpx2.URL(origin + path)

    def lazy(self, session: Session) -> Any:
        """Return what becomes a client for a session when it is first used."""
        # Without a call of the class: this is done for every request.
        client = object.__new__(self._lazy_kind)
        client._cm = self, session, set()
        return client

    def attributes(self, cm: tuple[ClientFactory, Session, set[_Origin]]) -> dict[str, Any]:
        """Return the attributes of a new client.

        They are copied from a template, which takes a third of the time that making a client does.
        Values that can be changed in place are new; the others are replaced when they are set.
        """
        client = object.__new__(self.kind)
        for name, value in vars(self._template).items():
            # By type(): the class is an abstract one's, which isinstance() asks each time.
            client.__dict__[name] = value.copy() if type(value) is httpx2.Headers else value
        client.auth = BearerAuth(self._refresher, cm)
        client.cookies = {}  # of which it makes its own
        client.event_hooks = {}
        client.timeout = self._refresher.runtime.timeout  # seconds for each step
        return vars(client)


class _Lazy:
    """Becomes a client when it is first used, so that a handler that never does pays nothing.

    Threads may share it: two that use it at once both make the attributes, and of each attribute
    the first value stays. What a handler set before the first use stays, too.
    """

    _cm: tuple[ClientFactory, Session, set[_Origin]]

    def __getattr__(self, name: str) -> Any:
        # Python calls this for an attribute that is missing: before the first use, for any.
        if "_cm" not in self.__dict__:  # an empty one, which copy.copy() is about to fill
            raise AttributeError(name)
        cm = self.__dict__["_cm"]
        for attribute, value in cm[0].attributes(cm).items():
            self.__dict__.setdefault(attribute, value)
        self.__class__ = cm[0].kind  # which has no such detour
        return getattr(self, name)


class _LazyAsyncCMClient(_Lazy, AsyncCMClient):
    """An `AsyncCMClient`, once it is used."""


class _LazyCMClient(_Lazy, CMClient):
    """A `CMClient`, once it is used."""


class BearerAuth(httpx2.Auth):
    """Attaches the session's access token; on a 401 renews it and sends the request once more.

    A refresh may say that the API is at another host by now: the request goes there.
    """

    def __init__(
        self, refresher: TokenRefresher, cm: tuple[ClientFactory, Session, set[_Origin]]
    ) -> None:
        self._refresher = refresher
        self._factory, self._session, self._origins = cm

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Yield what to send, and receive the responses (httpx2's protocol)."""
        refresher, session = self._refresher, self._session
        token: str | None
        base = self._bearer()[1]
        request.extensions = {**request.extensions, _SESSION: session, _ORIGIN: base.origin}
        if not self._takes(request.url) or "Authorization" in request.headers:
            yield request
            return
        answer: httpx2.Response | None = None
        try:
            await refresher.ensure_fresh(session)
            body = None
            if not isinstance(request.stream, httpx2.ByteStream):
                request.stream = body = _Replayable(request.stream)
            is_new = False
            for attempt in range(_TRIES):
                token, base = self._bearer()
                origin = self._direct(request, base)
                request.extensions = {**request.extensions, _HAS_BEARER: True, _ORIGIN: origin}
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

    def _bearer(self) -> tuple[str, _Base]:
        """Return the access token, and where it may go: of the same tokens."""
        tokens = self._session.record.tokens
        base = self._factory.base(tokens.api_base)
        self._origins.add(base.origin)
        return tokens.access_token, base

    def _takes(self, url: httpx2.URL) -> bool:
        """Return True if a request to this URL gets the token."""
        return _origin(url) in self._origins

    def _direct(self, request: httpx2.Request, base: _Base) -> _Origin:
        """Direct a request at where the API is now; return the origin that gets the token."""
        if _origin(request.url) != base.origin:
            _move(request, base.url)
        return base.origin

    async def _is_refused(self, response: httpx2.Response, token: str) -> bool:
        """Return True if a response says that this token is dead: by 401, 403 or 406."""
        status = response.status_code
        if status not in (401, 403, 406):
            return False
        # A redirect to another origin drops the token.
        if response.request.headers.get("Authorization") != f"Bearer {token}":
            return False
        if status == 401:
            return True
        # RFC 6750 §3.1 wants 401. Some servers say 403, which the user may deserve, too, and Spring
        # says 406 where it cannot put its 401 into a form that the request accepts.
        if "invalid_token" in response.headers.get("WWW-Authenticate", ""):
            return True
        return await self._refresher.is_dead(self._session, token)


class MediaAuth(BearerAuth):
    """The same for the hosts of the server that have pictures and videos, which do not move.

    The URL of such a host names a stream: it is of no use at another one.
    """

    def _takes(self, url: httpx2.URL) -> bool:
        return self._factory.is_own(url)

    def _direct(self, request: httpx2.Request, base: _Base) -> _Origin:  # noqa: ARG002
        return _origin(request.url)


def _move(request: httpx2.Request, base: httpx2.URL) -> None:
    """Direct a request at the host of another base, which has the same paths."""
    before = request.url.netloc.decode()
    request.url = base.copy_with(raw_path=request.url.raw_path)
    if request.headers.get("Host") == before:
        request.headers["Host"] = request.url.netloc.decode()


def _forget_bearer(request: httpx2.Request, response: httpx2.Response | None) -> None:
    """Remove the token from a request that is over, and from those that redirects made of it.

    A handler may pickle or log a response with its request. A request that it sends again, or one
    that follows a redirect later, gets the token that is valid then.
    """
    requests = {request}
    if response is not None:
        requests.update(each.request for each in (*response.history, response))
        if response.next_request is not None:
            requests.add(response.next_request)
    for each in requests:
        with suppress(KeyError):
            del each.headers["Authorization"]


class _Watched(httpx2.AsyncByteStream, httpx2.SyncByteStream):
    """A response's body that stops when the session has ended: a live view may last for days."""

    def __init__(self, stream: Any, refresher: TokenRefresher, session: Session) -> None:
        self._stream = stream
        self._refresher = refresher
        self._session = session
        self._look_at = time.monotonic() + _LOOK_EVERY
        self._parts: AsyncIterator[bytes]

    def __aiter__(self) -> AsyncIterator[bytes]:
        # No generator, which the event loop would have to be told of, twice, for each answer.
        self._parts = aiter(self._stream)
        return self

    async def __anext__(self) -> bytes:
        part = await anext(self._parts)
        if time.monotonic() >= self._look_at:
            await self._look()
        return part

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

    Args:
        origin: of the API, for a request that does not say by `_ORIGIN` where the API of its
            session was.
    """

    def __init__(self, transport: Callable[[], Any], origin: _Origin) -> None:
        self._transport = transport
        self._origin = origin

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
        if _origin(request.url) != request.extensions.get(_ORIGIN, self._origin):
            request.headers.pop("Cookie", None)
            if request.extensions.get(_HAS_BEARER):
                request.headers.pop("Authorization", None)

    async def aclose(self) -> None:
        """Leave the pool open: every other request uses it too."""

    def close(self) -> None:
        """Leave the pool open: every other request uses it too."""


def _all_in_use(request: httpx2.Request) -> UnavailableError:
    error = UnavailableError("every connection to the API is in use")
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


def _origin(url: httpx2.URL) -> _Origin:
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    return url.scheme, url.host, port
