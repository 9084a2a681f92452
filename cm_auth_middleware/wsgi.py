"""The WSGI shell: the same flow around a WSGI app, driven without an event loop (PEP 3333)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Unpack
from wsgiref.headers import Headers

from .driver import run_sync
from .engine import AuthEngine
from .errors import UnavailableError
from .http import Access, Answer, Request, must_not_be_cached

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .config import CMAuthConfig
    from .flow import Flow
    from .options import CMAuthOptions

_UNPREFIXED = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}


class CMAuthWSGIMiddleware:
    """Puts a WSGI app behind a CameraManager login.

    A handler finds ``environ["cm_auth.client"]`` (an `httpx2.Client`), ``cm_auth.session`` and
    ``cm_auth.engine``; the first two are None for a visitor on an exempt path.

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
        self.engine = AuthEngine.resolve(engine, config, options)
        self._flow = self.engine.thread_side.flow

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Handle one request."""
        request = WSGIRequest(environ)
        outcome = run_sync(self._flow.handle(request))
        if isinstance(outcome, Answer):
            return _send(outcome, request, start_response)
        session = outcome.session
        environ["cm_auth.engine"] = self.engine
        environ["cm_auth.session"] = session
        environ["cm_auth.client"] = None if session is None else self.engine.sync_client(session)
        response = _Response(self._flow, request, outcome, start_response)
        try:
            body = self.app(environ, response.start)
        except Exception as error:
            return response.answer_to(error)
        if response.answer is not None:
            _close(body)
            return [response.answer.body]
        # An application that is a generator has not begun; its errors are still to come.
        return body if response.started else _Late(body, response)


class WSGIRequest(Request):
    """A request of a WSGI server."""

    __slots__ = ("_environ",)

    def __init__(self, environ: WSGIEnvironment) -> None:
        self._environ = environ
        self.method = environ["REQUEST_METHOD"]
        self.path = _text(environ.get("PATH_INFO", "")) or "/"
        self.root_path = _text(environ.get("SCRIPT_NAME", "")).rstrip("/")
        self.cookie_line = environ.get("HTTP_COOKIE", "")

    @property
    def is_secure(self) -> bool:
        return bool(self._environ["wsgi.url_scheme"] == "https")

    @property
    def raw_path(self) -> str:
        # Not in the standard: werkzeug and gunicorn have both, others one or none.
        raw: str = self._environ.get("REQUEST_URI") or self._environ.get("RAW_URI") or ""
        path = raw.partition("?")[0]
        return path if path.startswith("/") else ""

    @property
    def query(self) -> str:
        query: str = self._environ.get("QUERY_STRING", "")
        return query

    @property
    def address(self) -> str:
        address: str = self._environ.get("REMOTE_ADDR", "")
        return address

    def header(self, name: str) -> str | None:
        key = _UNPREFIXED.get(name) or f"HTTP_{name.upper().replace('-', '_')}"
        value: str | None = self._environ.get(key)
        return value


class _Response:
    """The application's response on its way out."""

    def __init__(
        self, flow: Flow, request: Request, access: Access, start_response: StartResponse
    ) -> None:
        self._flow = flow
        self._request = request
        self._access = access
        self._start_response = start_response
        self.started = False
        self.answer: Answer | None = None  # ours, in place of the application's

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """Start the response: the application's ``start_response``."""
        if self.answer is None and not self.started:
            self.answer = self._before_start(int(status[:3]), headers)
        self.started = True
        if self.answer is not None:
            status, headers = _head(self.answer)
            self._start_response(status, headers, exc_info)
            return _swallow
        return self._start_response(status, headers, exc_info)

    def answer_to(self, error: Exception) -> Iterable[bytes]:
        """Send the answer to an error of ours; raise any other one, and any that comes late."""
        answer = None
        if not self.started:
            answer = run_sync(self._flow.answer_to(self._request, error))
        if answer is None:
            raise error
        self.started = True
        return _send(answer, self._request, self._start_response)

    def _before_start(self, status: int, headers: list[tuple[str, str]]) -> Answer | None:
        session = self._access.session
        if session is None:
            return None
        if session.trouble is not None and status == 500:
            # The framework caught our error on its way and made a 500 of it.
            return run_sync(self._flow.answer_to(self._request, session.trouble))
        try:
            run_sync(self._flow.save(session))
        except UnavailableError as error:
            return run_sync(self._flow.unavailable(self._request, error))
        view = Headers(headers)  # of the very list
        if must_not_be_cached(view.get_all("Cache-Control"), self._access.headers):
            view["Cache-Control"] = "no-store"
        vary = ", ".join(view.get_all("Vary"))
        if "cookie" not in vary.lower():
            view["Vary"] = f"{vary}, Cookie" if vary else "Cookie"
        headers.extend(self._access.headers)
        return None


class _Late:
    """The body of an application that starts its response when it is first asked for a part."""

    def __init__(self, body: Iterable[bytes], response: _Response) -> None:
        self._body = body
        self._parts: Iterator[bytes] = iter(())
        self._response = response
        self._begun = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._begun:
            return next(self._parts)
        self._begun = True
        try:
            self._parts = iter(self._body)
            part = next(self._parts)
        except StopIteration:
            part, self._parts = b"", iter(())
        except Exception as error:
            self._parts = iter(self._response.answer_to(error))
            return next(self._parts)
        if self._response.answer is not None:
            self._parts = iter(())
            return self._response.answer.body
        return part

    def close(self) -> None:
        _close(self._body)


def _send(answer: Answer, request: Request, start_response: StartResponse) -> Iterable[bytes]:
    status, headers = _head(answer)
    start_response(status, headers)
    return [b"" if request.method == "HEAD" else answer.body]


def _head(answer: Answer) -> tuple[str, list[tuple[str, str]]]:
    status = f"{answer.status} {HTTPStatus(answer.status).phrase}"
    return status, [*answer.headers, ("Content-Length", str(len(answer.body)))]


def _swallow(data: bytes) -> None:
    """Take what the application writes after an answer of ours took its place."""


def _close(body: Iterable[bytes]) -> None:
    close: Callable[[], None] | None = getattr(body, "close", None)
    if close is not None:
        close()


def _text(value: str) -> str:
    """Decode a path: WSGI hands its bytes on as Latin-1 (PEP 3333)."""
    try:
        return value.encode("latin-1").decode("utf-8", "replace")
    except UnicodeEncodeError:  # somebody decoded it already, as Bottle's mount does
        return value
