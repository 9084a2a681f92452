"""The ready clients of a request: bearer attached, refreshed on a 401, on a shared pool."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Union

import httpx2

from .driver import run_sync
from .errors import CMAuthError, UnavailableError

if TYPE_CHECKING:
    from .background import HandleKeeper
    from .engine import Side
    from .session import Session
    from .tokens import TokenKeeper

_OURS = "cm_auth.bearer"  # marks a request whose Authorization header this package set
_REPLAY = 1_048_576  # bytes of a streamed body that are kept, to send it again after a 401
_LOOK_EVERY = 15.0  # seconds between looks at the session of an answer that is being read
_TRIES = 3  # a token that another session had renewed may have been refused meanwhile, too

Keeper = Union["TokenKeeper", "HandleKeeper"]
_Step = Coroutine[Any, Any, Any] | httpx2.Request | httpx2.Response


class AsyncCMClient(httpx2.AsyncClient):
    """An `httpx2.AsyncClient` for one user of CameraManager.

    Relative URLs go to ``base_url``; the bearer token goes to its origin and nowhere else, nor
    after a redirect. Cookies are its own. Closing it leaves the shared connection pool open.

    Raises, beside httpx2's errors:
        SessionExpiredError: the session is over; let it pass and the middleware answers.
        UnavailableError: the token has expired and cannot be renewed just now.
    """

    _cm: tuple[Side, Session, Keeper | None]

    def __repr__(self) -> str:
        return f"<AsyncCMClient {self._cm[1].reference}>"


class CMClient(httpx2.Client):
    """An `httpx2.Client` for one user of CameraManager; see `AsyncCMClient`.

    The threads of one request may share it.
    """

    _cm: tuple[Side, Session, Keeper | None]

    def __repr__(self) -> str:
        return f"<CMClient {self._cm[1].reference}>"


class _Unused:
    """Becomes a client when it is first used, so that a handler which never asks pays nothing."""

    _lock = threading.RLock()
    _kind: type[AsyncCMClient | CMClient]
    _pattern: type[httpx2.AsyncClient | httpx2.Client]

    def __init__(self, side: Side, session: Session, keeper: Keeper | None = None) -> None:
        self.__dict__["_cm"] = (side, session, keeper)  # not by our own __setattr__, below

    def __getattr__(self, name: str) -> Any:
        # Only called for what is missing: before the first use, everything.
        _Unused._use(self)  # which another thread may have done since this method was found
        return getattr(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # What a handler sets before the first use has to outlive it.
        _Unused._use(self)
        setattr(self, name, value)

    def _use(self) -> None:
        with _Unused._lock:
            if isinstance(self, _Unused):  # no other thread was faster
                self._begin(*self.__dict__["_cm"])

    def _begin(self, side: Side, session: Session, keeper: Keeper | None) -> None:
        if side.pattern is None:
            side.pattern = self._pattern(
                base_url=side.config.base_url,
                headers={"Accept": "application/json"},
                transport=_OriginGuard(side.transport, side.config.base_url),
            )
        # A copy of a client takes a third of what making one does. What can be changed in it is
        # this request's own; the rest is replaced when it is set.
        ready = object.__new__(self._kind)
        for name, value in vars(side.pattern).items():
            ready.__dict__[name] = value.copy() if isinstance(value, httpx2.Headers) else value
        ready.auth = BearerAuth(keeper or side.keeper, session, side.pattern.base_url)
        ready.cookies = httpx2.Cookies()
        ready.event_hooks = {}
        ready.timeout = httpx2.Timeout(side.ports.timeout)
        self.__dict__.update(ready.__dict__)  # all at once: another thread may be looking
        object.__setattr__(self, "__class__", self._kind)  # which has none of these detours


class UnusedAsyncCMClient(_Unused, AsyncCMClient):
    """An `AsyncCMClient`, until it is one."""

    _kind, _pattern = AsyncCMClient, httpx2.AsyncClient


class UnusedCMClient(_Unused, CMClient):
    """A `CMClient`, until it is one."""

    _kind, _pattern = CMClient, httpx2.Client


class BearerAuth(httpx2.Auth):
    """Attaches the session's access token; on a 401 renews it and sends the request once more."""

    def __init__(self, keeper: Keeper, session: Session, base_url: httpx2.URL) -> None:
        self._keeper = keeper
        self._session = session
        self._origin = _origin(base_url)

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Drive one request (httpx2's protocol)."""
        steps = self._steps(request)
        try:
            step = next(steps)
            while True:
                if isinstance(step, httpx2.Request):
                    step = steps.send((yield step))
                elif isinstance(step, httpx2.Response):
                    step = steps.send(await step.aread())
                else:
                    step = steps.send(await step)
        except StopIteration:
            return

    def sync_auth_flow(
        self, request: httpx2.Request
    ) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Drive one request (httpx2's protocol)."""
        steps = self._steps(request)
        try:
            step = next(steps)
            while True:
                if isinstance(step, httpx2.Request):
                    step = steps.send((yield step))
                elif isinstance(step, httpx2.Response):
                    step = steps.send(step.read())
                else:
                    step = steps.send(run_sync(step))
        except StopIteration:
            return

    def _steps(self, request: httpx2.Request) -> Generator[_Step, Any, None]:
        """What to do, in order: coroutines to run, requests to send, responses to read."""
        if _origin(request.url) != self._origin or "Authorization" in request.headers:
            yield request
            return
        if self._keeper.is_due(self._session):
            yield self._noting_trouble(self._keeper.freshen(self._session))
        body = None
        if not isinstance(request.stream, httpx2.ByteStream):
            request.stream = body = _Replayable(request.stream)
        is_new = False
        for _ in range(_TRIES):
            sent = self._attach(request)
            response = yield request
            response.stream = _Watched(response.stream, self._keeper, self._session)
            if response.status_code != 401 or not _is_refused(response, sent):
                return
            yield response  # which gives its connection back: others wait for one, too
            if not is_new:
                is_new = yield self._noting_trouble(self._keeper.refresh(self._session, sent))
            elif not (yield self._noting_trouble(self._keeper.catch_up(self._session, sent))):
                return  # refused though it is the newest: another one would be, too
            if body is not None and not body.can_replay:
                return

    async def _noting_trouble(self, step: Coroutine[Any, Any, Any]) -> Any:
        """Leave word for the shell, should the framework make a 500 of the error on its way."""
        try:
            return await step
        except CMAuthError as error:
            self._session.trouble = error
            raise

    def _attach(self, request: httpx2.Request) -> str:
        token = self._session.record.tokens.access_token
        request.headers["Authorization"] = f"Bearer {token}"
        request.extensions = {**request.extensions, _OURS: True}
        return token


class _Watched(httpx2.AsyncByteStream, httpx2.SyncByteStream):
    """The body of an answer, for as long as its session lasts: a live view may run for days."""

    def __init__(self, stream: Any, keeper: Keeper, session: Session) -> None:
        self._stream = stream
        self._keeper = keeper
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
            await self._keeper.look_up(self._session)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def close(self) -> None:
        self._stream.close()


def _is_refused(response: httpx2.Response, token: str) -> bool:
    """Whether a 401 is for our token: redirected elsewhere, and even back, a request lost it."""
    return response.request.headers.get("Authorization") == f"Bearer {token}"


class _OriginGuard(httpx2.AsyncBaseTransport, httpx2.BaseTransport):
    """Takes our bearer and the API's cookies off whatever leaves for another origin.

    Redirects never pass the auth class, and httpx2 keeps the header on one from http to https.

    Args:
        transport: gives the pool to send by: each event loop has its own.
        base_url: of the API.
    """

    def __init__(self, transport: Callable[[], Any], base_url: str) -> None:
        self._transport = transport
        self._origin = _origin(httpx2.URL(base_url))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self._guard(request)
        response: httpx2.Response = await self._transport().handle_async_request(request)
        return response

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self._guard(request)
        response: httpx2.Response = self._transport().handle_request(request)
        return response

    def _guard(self, request: httpx2.Request) -> None:
        if _origin(request.url) != self._origin:
            request.headers.pop("Cookie", None)
            if request.extensions.get(_OURS):
                request.headers.pop("Authorization", None)

    async def aclose(self) -> None:
        """Leave the pool open: every other request uses it too."""

    def close(self) -> None:
        """Leave the pool open: every other request uses it too."""


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


def _renew_lock() -> None:
    _Unused._lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # another thread of the parent may hold it at the fork
    os.register_at_fork(after_in_child=_renew_lock)
