"""The WSGI side: the same gate around a WSGI app, driven without an event loop (PEP 3333)."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http import HTTPStatus
from itertools import chain
from typing import TYPE_CHECKING, Any, Unpack, cast
from urllib.parse import unquote

from .auth import connections
from .config import log_unknown_variables
from .display import printable
from .engine import AuthEngine
from .errors import SessionExpiredError
from .runtime.run_sync import run_sync
from .web.request import Request
from .web.response import NO_STORE, Response, must_not_be_cached, varies_by_cookie
from .web.unread_body import read_on

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .config import CMAuthConfig, CMAuthOptions
    from .engine import Services
    from .sessions.session import Session
    from .web.response import Headers

_VARY = ("Vary", "Cookie")
_UNPREFIXED = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}


class CMAuthWSGIMiddleware:
    """Puts a WSGI app behind a CameraManager login.

    A handler finds ``environ["cm_auth.client"]`` (an `httpx2.Client`), ``cm_auth.session`` and
    ``cm_auth.engine``; the first two are None for a visitor on an exempt path. ``REMOTE_USER`` is
    the user's id, CameraManager's ``userId``.

    Args: as `CMAuthMiddleware`.

    Raises:
        ConfigError: an option is missing or wrong; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        config: CMAuthConfig | None = None,
        engine: AuthEngine | None = None,
        **options: Unpack[CMAuthOptions],
    ) -> None:
        self.app = app
        log_unknown_variables()  # before an error that one of them may be the reason of
        self.engine = AuthEngine.resolve(engine, config, options)
        self._services = self.engine.thread_services
        self._services.warn_of_store()
        self._is_new = True  # until the first request
        self._gate = self._services.gate

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Handle one request."""
        if self._is_new:  # not before: a server may fork this process until then
            self._is_new = False
            self._services.start_beside()
        exchange = _Exchange(environ, self._services, start_response)
        outcome = run_sync(self._gate.handle(exchange))
        if isinstance(outcome, Response):
            self._services.note_outer(environ.get("cm_auth.session"))
            return _send(self._gate.origins.share(exchange, outcome), exchange, start_response)
        exchange.let_pass(outcome)
        _set_remote_user(environ, outcome)
        environ["cm_auth.engine"] = self.engine
        environ["cm_auth.session"] = outcome
        environ["cm_auth.client"] = outcome and self._services.client_of(outcome)
        try:
            body = self.app(environ, exchange.start)
        except Exception as error:
            try:
                return exchange.response_to(error)
            finally:
                exchange.finish()
        if exchange.response is not None:
            _close(body)
            exchange.finish()
            return _body(exchange.response, exchange)
        if exchange.started and (outcome is None or isinstance(body, list | tuple)):
            exchange.finish()
            return body
        return exchange.lasting(body)


class WSGIRequest(Request):
    """A request of a WSGI server.

    Attributes:
        environ: as the server gives it.
    """

    __slots__ = ("environ",)

    def __init__(self, environ: WSGIEnvironment) -> None:
        self.environ = environ
        self.method = environ["REQUEST_METHOD"]
        # A handler may take the socket over (Flask-Sock, gevent-websocket): RFC 6455 §4.1.
        upgrade = environ.get("HTTP_UPGRADE")
        self.is_websocket = upgrade is not None and "websocket" in upgrade.lower()
        mount = environ.get("SCRIPT_NAME")
        self.root_path = _text(mount).rstrip("/") if mount else ""
        path = environ.get("PATH_INFO", "")
        if not path.isascii():
            path = _text(path)
        self.path = path if path or self.root_path else "/"
        self.routed_raw = b""
        self.cookie_line = environ.get("HTTP_COOKIE", "")
        self.set_cookies = []

    @property
    def is_secure(self) -> bool:
        return bool(self.environ["wsgi.url_scheme"] == "https")

    @property
    def raw_path(self) -> str:
        # Not in the standard: werkzeug and gunicorn have both, others one or none.
        raw = self._target
        return raw.partition("?")[0] if raw.startswith("/") else ""

    @property
    def _target(self) -> str:
        target: str = self.environ.get("REQUEST_URI") or self.environ.get("RAW_URI") or ""
        return target

    @property
    def is_ambiguous(self) -> bool:
        # A server that was told its mount may hand on what never was below it (waitress), and so
        # may a proxy's header (werkzeug's ProxyFix). Without the target, SCRIPT_NAME is believed.
        root, raw = self.root_path, _text(self._target.partition("?")[0])
        if not root or not raw:
            return False
        # Servers cut SCRIPT_NAME off the path as it was sent, or off the decoded one.
        return not any(f"{path}/".startswith(f"{root}/") for path in (raw, unquote(raw)))

    @property
    def query(self) -> str:
        return str(self.environ.get("QUERY_STRING", ""))

    @property
    def peer(self) -> str:
        return str(self.environ.get("REMOTE_ADDR", ""))

    def header(self, name: str) -> str | None:
        key = _UNPREFIXED.get(name) or f"HTTP_{name.upper().replace('-', '_')}"
        return cast("str | None", self.environ.get(key))


class _Exchange(WSGIRequest):
    """A request, and the application's response to it on its way out."""

    __slots__ = (
        "__weakref__", "_headers", "_is_finished", "_next_look", "_services", "_start_response",
        "_write", "ended", "is_old", "response", "session", "started",
    )  # fmt: skip

    session: Session  # None for a visitor; only an exchange with a session is watched

    def __init__(
        self, environ: WSGIEnvironment, services: Services, start_response: StartResponse
    ) -> None:
        WSGIRequest.__init__(self, environ)
        self._services = services
        self._start_response = start_response
        self.session = None  # type: ignore[assignment]
        self.started = False
        self.ended = False  # True when its session has ended
        self.response: Response | None = None  # this middleware's, in place of the application's
        self._headers: Headers = []
        self.is_old = False
        self._is_finished = False

    def let_pass(self, session: Session | None) -> None:
        """Let the application respond."""
        self.session = session  # type: ignore[assignment]
        if session is not None:
            self._next_look = connections.NextLook(session, self._services.gate)
            if self.is_websocket:
                self._services.connections.add(self)

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """Start the response: the application's ``start_response``.

        It may be called again with an error, as long as nothing was sent (PEP 3333).
        """
        if self.response is None:
            self.response = self._before_start(status)
        was_started, self.started = self.started, True
        if self.response is not None:
            status, headers = _head(self.response)
            # It answers the error, which a server needs for a second start only (PEP 3333).
            self._start_response(status, headers, exc_info if was_started else None)
            return _swallow
        if self.session is not None:
            headers = _private(headers, self.set_cookies)
            self._headers = headers
            self._write = self._start_response(status, headers, exc_info)
            return self.write
        return self._start_response(status, headers, exc_info)

    def write(self, data: bytes) -> Any:
        """Send a part as ``start_response`` allows it to (PEP 3333).

        Raises:
            BrokenPipeError: the session has ended, as if the client had left.
        """
        if self.broke_off():
            raise BrokenPipeError(errno.EPIPE, "the session of this response has ended")
        return self._write(data)

    def response_to(self, error: Exception) -> Iterable[bytes]:
        """Send the response to an error of this package; raise any other, and one that is late."""
        response = None
        if not self.started:
            response = run_sync(self._services.gate.response_to(self, error, self.session))
        if response is None:
            raise error
        self.started = True
        response = self._services.gate.origins.share(self, response)
        return _send(response, self, self._start_response)

    def _before_start(self, status: str) -> Response | None:
        gate, session, is_failure = self._services.gate, self.session, status.startswith("500")
        needs_check = session is not None and gate.needs_check(session)
        if not (is_failure or needs_check or self.ended):
            return None
        error = self.environ.get("cm_auth.error")
        response = run_sync(gate.before_response(self, session, is_failure, error, self.ended))
        return response and gate.origins.share(self, response)

    # -- a response that lasts ---------------------------------------------------------------

    def lasting(self, body: Iterable[bytes]) -> Iterable[bytes]:
        """Return the body of a response that may last; it ends when its session has ended."""
        if self.session is not None:
            wrapper = self.environ.get("wsgi.file_wrapper")
            if isinstance(wrapper, type) and isinstance(body, wrapper) and self._socket:
                # The server sends the file by itself, and has to know its own object again.
                self._services.connections.add(self, body)
                return body
            self._services.connections.add(self)
        return _Body(body, self)

    def broke_off(self) -> bool:
        """Break the response off if its session has ended, and return True then.

        The store is asked now and then.
        """
        if self.session is None:
            return False
        if not self.ended and self._next_look.is_due:
            self.ended = run_sync(self._next_look.finds_end())
        if not self.ended:
            return False
        self.session.ended = True
        is_event_stream = any(
            name.lower() == "content-type" and value.startswith("text/event-stream")
            for name, value in self._headers
        )
        if not is_event_stream:
            self._cut()  # or half of a recording would look whole, or be waited for
        return True

    async def end(self) -> None:
        """End a response whose session has ended: see `connections`.

        A response that still sends ends at its next part. One that has not ended when this is
        called again is cut off, where the server tells its socket, and so is a WebSocket.
        """
        was_ended, self.ended = self.ended, True
        if was_ended or self.is_websocket:
            self._cut()

    @property
    def _socket(self) -> Any:
        # Not in the standard: gunicorn and werkzeug say which socket it is.
        return self.environ.get("gunicorn.socket") or self.environ.get("werkzeug.socket")

    def _cut(self) -> None:
        connection = self._socket
        if connection is not None and not self._is_finished:  # it may serve another request then
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def finish(self) -> None:
        """Save the changes of the session by a streamed body."""
        self._is_finished = True
        if self.session is not None:
            if self.session.data_was_read:
                run_sync(self._services.gate.save_late(self.session))
            self.session.close()


class _Body:
    """The body of a response on its way out.

    An application that is a generator starts its response when it is first asked for a part.
    """

    def __init__(self, body: Iterable[bytes], exchange: _Exchange) -> None:
        self._body = body
        self._exchange = exchange
        self._replacements: list[Iterable[bytes]] = []  # of this middleware
        # It knows nothing of this object: a cycle would keep a body that nobody closes.
        self._parts = _parts(body, exchange, self._replacements)

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def __next__(self) -> bytes:
        return next(self._parts)

    def close(self) -> None:
        """End the application's body too: a generator gets GeneratorExit."""
        try:
            _close(self._body)
        finally:
            self._exchange.finish()
            for replacement in self._replacements:
                _close(replacement)


def _parts(
    body: Iterable[bytes], exchange: _Exchange, replacements: list[Iterable[bytes]]
) -> Iterator[bytes]:
    """Yield the parts of a body, or those of the response that takes its place."""
    try:
        parts = iter(body)
        # PEP 3333 has the response started by the first part, perhaps with ours.
        parts = chain([next(parts, b"")], parts)
    except Exception as error:
        replacements.append(exchange.response_to(error))
        yield from replacements[0]
        return
    if exchange.response is not None:
        replacements.append(_body(exchange.response, exchange))
        yield b"".join(replacements[0])
        return
    try:
        for part in parts:
            if exchange.broke_off():  # it may have taken long to come
                break
            yield part
            if exchange.broke_off():  # or to be sent
                break
    except SessionExpiredError:
        if not exchange.ended:
            raise  # the server says so to the client, by breaking off


def _set_remote_user(environ: WSGIEnvironment, session: Session | None) -> None:
    """Set ``REMOTE_USER`` (RFC 3875 §4.1.11), which no header of a request can set.

    A visitor keeps what a server that authenticates by itself has set, but not what another
    middleware of this class, around this one, has set for its own session.
    """
    user_id = "" if session is None else session.user_id
    if user_id:
        text = printable(user_id)
        if not text.isascii():  # in an environ, it is bytes decoded as Latin-1 (PEP 3333)
            text = text.encode(errors="replace").decode("latin-1")
        environ["REMOTE_USER"] = text
    elif session is not None or environ.get("cm_auth.session") is not None:
        environ.pop("REMOTE_USER", None)


def _private(headers: Headers, added: Headers) -> Headers:
    """Mark a response as private to one user, and add the headers of this middleware.

    The list is a new one: an application may use its own for every response, and other users.
    """
    result, own, varied = list(headers), [], []
    for name, value in result:
        kind = name.lower()
        if kind == "cache-control":
            own.append(value)
        elif kind == "vary":
            varied.append(value)
    if not own:
        result.append(NO_STORE)
    elif must_not_be_cached(own, added):
        result = [*_without("cache-control", result), NO_STORE]
    if not varied:
        result.append(_VARY)
    elif not varies_by_cookie(varied):
        result = [*_without("vary", result), ("Vary", ", ".join([*varied, "Cookie"]))]
    return result + added if added else result


def _without(name: str, headers: Headers) -> Headers:
    return [header for header in headers if header[0].lower() != name]


def _send(
    response: Response, request: WSGIRequest, start_response: StartResponse
) -> Iterable[bytes]:
    status, headers = _head(response)
    start_response(status, headers)
    return _body(response, request)


def _body(response: Response, request: WSGIRequest) -> Iterable[bytes]:
    parts = [b"" if request.method == "HEAD" else response.body]
    return read_on(parts, request, request.environ)


def _head(response: Response) -> tuple[str, list[tuple[str, str]]]:
    status = f"{response.status} {HTTPStatus(response.status).phrase}"
    return status, [*response.headers, ("Content-Length", str(len(response.body)))]


def _swallow(data: bytes) -> None:
    """Ignore what the application writes after another response took the place of its own."""


def _close(body: Iterable[bytes]) -> None:
    if hasattr(body, "close"):
        body.close()


def _text(value: str) -> str:
    """Decode a path: WSGI hands its bytes on as Latin-1 (PEP 3333)."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode("utf-8", "replace")
    except UnicodeEncodeError:  # it was decoded before, as Bottle's mount does
        return value
