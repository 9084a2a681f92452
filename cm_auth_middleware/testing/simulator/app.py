"""Simulate Eagle Eye CameraManager, or Eagle Eye's API v3, as one ASGI application.

`Simulator` puts the OAuth server, the REST API and `/_control` behind one address. It records each
request, and makes requests fail if a test asked for that.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qs, parse_qsl

import anyio
import httpx2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cm_auth_middleware.testing.simulator.cameramanager import CameraManager
from cm_auth_middleware.testing.simulator.control import Control
from cm_auth_middleware.testing.simulator.eagleeye import EagleEye
from cm_auth_middleware.testing.simulator.failures import (
    Dropped,
    Failures,
    failure_arguments,
    failure_response,
)
from cm_auth_middleware.testing.simulator.settings import (
    RecordedRequest,
    Settings,
    SimulatedUser,
    What,
    default_users,
)
from cm_auth_middleware.testing.simulator.tokens import OAuthError

_FORM = "application/x-www-form-urlencoded"
_MAX_FORM = 1 << 20
_PLATFORMS = {"cameramanager": CameraManager, "eagleeye": EagleEye}


class Simulator:
    """CameraManager as an ASGI application, for tests and demos. Everything is kept in memory.

        sim = Simulator()
        client = httpx2.AsyncClient(transport=httpx2.ASGITransport(sim), base_url="http://cm")

    Under uvicorn, a failure that drops the connection really closes it. In the same process
    (`ASGITransport`), the caller gets the `httpx2.RemoteProtocolError` that this causes.

    Args:
        settings: the settings, which may also be changed later, in `sim.settings`; those of
            `settings_for("eagleeye")` make it play Eagle Eye's API v3.
        client_id: the ID of the one API key that is accepted.
        client_secret: the SECRET of this API key.
        seed: the seed of the codes, tokens and cookies; the same seed gives the same ones.
        users: the users; by default anna@example.com and bob@example.com, both with the
            password "cameras".
        clock: returns the seconds since 1970; a test passes a clock that it can move.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        client_id: str = "demo-key-id",
        client_secret: str = "demo-key-secret",  # noqa: S107 - it opens nothing but a simulator
        seed: int = 1,
        users: Iterable[SimulatedUser] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings if settings is not None else Settings()
        self.client_id = client_id
        self.client_secret = client_secret
        self.users = list(users) if users is not None else default_users()
        self._clock = clock
        self._initial_settings = replace(self.settings)
        self._lock = threading.Lock()
        self._requests: list[RecordedRequest] = []
        self._calls: deque[float] = deque()  # times of those that the rate limit counts
        self._token_failures = Failures()
        self._api_failures = Failures()
        self._platform = _PLATFORMS[self.settings.provider](self, self.settings, clock, seed)
        self._oauth = self._platform.oauth
        self._tokens = self._oauth.tokens
        control = Control(self.settings, self._actions(), self._state, lambda: self.requests)
        self._app = Starlette(
            routes=[
                *self._platform.routes(),
                Route("/_control", control.endpoint, methods=["GET", "POST"]),
            ],
            exception_handlers={
                HTTPException: self._http_error,
                OAuthError: self._platform.oauth_error,
            },
        )

    # For tests

    @property
    def settings(self) -> Settings:
        """The settings; a test may change its fields at any time."""
        return self._settings

    @property
    def app(self) -> ASGIApp:
        """The ASGI application: this object."""
        return self

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests so far, the oldest first, without those to `/_control`."""
        with self._lock:
            return list(self._requests)

    def calls(self, path: str, method: str | None = None) -> list[RecordedRequest]:
        """Return the requests to `path`, which may contain `*`."""
        return [
            call
            for call in self.requests
            if fnmatchcase(call.path, path) and method in (None, call.method)
        ]

    def token_calls(self, grant_type: str | None = None) -> list[RecordedRequest]:
        """Return the requests to the token endpoint, all or those of one `grant_type`."""
        return [
            call
            for call in self.calls(self._platform.token_path)
            if grant_type in (None, call.param("grant_type"))
        ]

    @property
    def access_tokens(self) -> int:
        """The number of access tokens that are valid now."""
        now = self._clock()
        with self._oauth.lock:
            return sum(token.expires_at > now for token in self._tokens.access.values())

    @property
    def refresh_tokens(self) -> int:
        """The number of refresh tokens that can be used; each stands for a grant."""
        with self._oauth.lock:
            return len(self._tokens.refresh)

    def reset(self) -> None:
        """Forget tokens, logins, consents, failures and requests; restore settings and users.

        Codes, tokens and cookies issued before stay invalid, because new ones always differ.
        Requests with such a token are answered, and not recorded.
        """
        for knob in fields(Settings):
            setattr(self.settings, knob.name, getattr(self._initial_settings, knob.name))
        self._oauth.reset()
        self.forget_failures()
        with self._lock:
            self._requests.clear()

    def fail_token(self, what: What, times: int = 1) -> None:
        """Let the next calls to the token endpoint fail.

        Args:
            what: a status; or `"html"`, `"xml"` or `"truncated"`, the body of an answer 200; or
                `"hang"`, no answer until the client disconnects; or `"drop"`, a connection that
                closes without an answer; or `"lost"`, the same after the request was carried out;
                or a dict, the body of an error; or a status and a body.
            times: the number of calls that fail.
        """
        self._token_failures.add(what, times)

    def fail_api(self, what: What, times: int = 1, path: str | None = None) -> None:
        """Let the next calls of the REST API fail.

        Args:
            what: the failure, as for `fail_token`.
            times: the number of calls that fail.
            path: let only calls to this path fail; it may contain `*`.
        """
        self._api_failures.add(what, times, path)

    def forget_failures(self) -> None:
        """Cancel the failures that are still due."""
        self._token_failures.clear()
        self._api_failures.clear()

    def expire_access_tokens(self) -> None:
        """Let every access token expire now."""
        now = self._clock()
        with self._oauth.lock:
            for value, token in self._tokens.access.items():
                self._tokens.access[value] = replace(token, expires_at=now)

    def expire_refresh_tokens(self) -> None:
        """Let every refresh token expire now. Access tokens stay valid."""
        now = self._clock()
        with self._oauth.lock:
            for value, token in self._tokens.refresh.items():
                self._tokens.refresh[value] = replace(token, expires_at=now)

    def revoke_user(self, email: str) -> None:
        """End all tokens of a user. Consent and login stay, so new tokens are issued at once."""
        self._oauth.revoke(email)

    def disable_user(self, email: str) -> None:
        """Refuse a user's logins and refreshes. Access tokens stay valid until they expire."""
        self._oauth.disable(email)

    def issue_code(
        self,
        email: str,
        redirect_uri: str,
        code_challenge: str | None = None,
        scope: str | None = None,
        code_challenge_method: str = "S256",
    ) -> str:
        """Return an authorization code, as if the user had logged in and agreed."""
        scope = scope or self.settings.scope
        return self._oauth.issue_code(
            email, redirect_uri, scope, code_challenge or "", code_challenge_method
        )

    def origins(self, base_url: str) -> list[str]:
        """Return each origin that an application with this ``base_url`` calls."""
        return self._platform.origins(base_url)

    def move_account(self, email: str) -> None:
        """Move the account of a user to Eagle Eye's next API host.

        The next login or refresh tells it; tokens that exist are good for the host before.
        """
        self._platform.move_account(email)

    # HTTP

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/_control":
            await self._app(scope, receive, send)
            return
        record = RecordedRequest(
            method=scope["method"],
            path=scope["path"],
            query=parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True),
            headers=_headers(scope),
            form={},
            body_length=0,
            status=None,
            time=self._clock(),
        )

        async def counting_receive() -> Message:
            message = await receive()
            record.body_length += len(message.get("body", b""))
            return message

        async def noting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        body_receive: Receive = counting_receive
        if record.headers.get("content-type", "").startswith(_FORM):
            body = await _read(counting_receive)
            fields = parse_qsl(body.decode("latin-1"), keep_blank_values=True)
            record.form = dict(reversed(fields))
            body_receive = _replay(body, receive)
        if not self._is_outdated(record):
            with self._lock:
                self._requests.append(record)
        scope["cm.record"] = record
        try:
            await self._answer(record, scope, body_receive, noting_send)
        except Dropped:
            await _close_connection(receive, send)

    def _is_outdated(self, record: RecordedRequest) -> bool:
        """True if a request has a token of before the last reset: an earlier test left it behind.

        An application's thread may go on after its test.
        """
        tokens = {record.headers.get("authorization", "")[len("Bearer ") :]}
        tokens.add(record.form.get("refresh_token", ""))
        return not self._tokens.outdated.isdisjoint(tokens)

    async def _answer(
        self, record: RecordedRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        is_token = record.path == self._platform.token_path
        is_api = record.path.startswith(self._platform.api_paths)
        if is_token or is_api or record.path.startswith(self._platform.oauth_paths):
            await anyio.sleep(self.settings.latency)
        if is_token:
            await anyio.sleep(self.settings.token_latency)
        what = None
        if is_token:
            what = self._token_failures.take(record.path)
        elif is_api:
            what = self._api_failures.take(record.path)
        if (is_token or is_api) and self._is_beyond_rate(record):
            what = 429
        if (is_token or is_api) and self.settings.content_encoding:
            send = _compressing(send, self.settings.content_encoding)
        if what is None:
            await self._app(scope, receive, send)
        elif what == "lost":
            await self._app(scope, receive, _swallow)
            raise Dropped
        elif what == "drop":
            raise Dropped
        elif what == "hang":
            with anyio.move_on_after(self.settings.hang_time):
                while (await receive())["type"] != "http.disconnect":
                    pass
            raise Dropped
        else:
            describe = self._platform.api_error
            await failure_response(what, is_token, describe)(scope, receive, send)

    def _is_beyond_rate(self, record: RecordedRequest) -> bool:
        limit = self.settings.rate_limit
        if limit is None:
            return False
        with self._lock:
            while self._calls and self._calls[0] <= record.time - 60:
                self._calls.popleft()
            if len(self._calls) >= limit:
                return True
            self._calls.append(record.time)
        return False

    def _http_error(self, request: Request, error: Exception) -> Response:
        """Answer with an error, in the platform's own form."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        detail = error.detail if isinstance(error, HTTPException) else ""
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        if not request.url.path.startswith(self._platform.api_paths):
            return Response(detail, status, headers, "text/plain")
        return JSONResponse(self._platform.api_error(status, detail), status, headers)

    def _actions(self) -> dict[str, Callable[[Any], None]]:
        """The commands that `/_control` accepts besides the settings."""
        return {
            "reset": lambda _: self.reset(),
            "fail_token": lambda value: self.fail_token(**failure_arguments(value)),
            "fail_api": lambda value: self.fail_api(**failure_arguments(value)),
            "forget_failures": lambda _: self.forget_failures(),
            "expire_access_tokens": lambda _: self.expire_access_tokens(),
            "expire_refresh_tokens": lambda _: self.expire_refresh_tokens(),
            "revoke_user": self.revoke_user,
            "disable_user": self.disable_user,
            "move_account": self.move_account,
        }

    def _state(self) -> dict[str, Any]:
        """The part of the answer of `/_control` that only the simulator knows."""
        return {
            "users": [user.email for user in self.users],
            "living": {
                "access_tokens": self.access_tokens,
                "refresh_tokens": self.refresh_tokens,
            },
        }


def _headers(scope: Scope) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)
        if len(body) > _MAX_FORM:
            raise Dropped


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _compressing(send: Send, encoding: str) -> Send:
    """Compress a response on its way out, whatever the client accepts."""
    compress = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    has_body = True

    async def compressing(message: Message) -> None:
        nonlocal has_body
        if message["type"] == "http.response.start":
            has_body = message["status"] not in (204, 304)  # RFC 9110 §6.4.1
        if not has_body:
            await send(message)
            return
        if message["type"] == "http.response.start":
            kept = [h for h in message["headers"] if h[0].lower() != b"content-length"]
            headers = [*kept, (b"content-encoding", encoding.encode())]
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            body = compress.compress(message.get("body", b""))
            if not message.get("more_body", False):
                body += compress.flush()
            message = {**message, "body": body}
        await send(message)

    return compressing


async def _swallow(message: Message) -> None:
    """Discard a message."""


async def _close_connection(receive: Receive, send: Send) -> None:
    """Close the connection without an answer, for which ASGI has no message.

    uvicorn's `send` is a method of an object that has the transport. Without a server there is no
    transport, and this raises the error that a client would raise.
    """
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        raise httpx2.RemoteProtocolError("Server disconnected without sending a response.")
    transport.abort()
    with anyio.move_on_after(5):
        while (await receive())["type"] != "http.disconnect":
            pass
