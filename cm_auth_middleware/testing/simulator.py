"""Simulate Eagle Eye CameraManager: its OAuth server, its REST API, and the ways both can fail.

`_Tokens` is the authorization server's memory. It follows `DefaultTokenServices` of Spring
Security OAuth 2, to which CameraManager's token shapes and lifetimes point, and which is where the
surprising parts come from (a shared access token, a refresh that kills the old access token at
once). `Simulator` puts HTTP around it, and the knobs.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
import re
import string
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit
from xml.sax.saxutils import escape

import anyio
import anyio.to_thread
import httpx2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cm_auth_middleware.testing import _pages, _snapshots

What = int | str | dict[str, Any] | tuple[int, Any]

_COOKIE = "cm_simulator"
_FORM = "application/x-www-form-urlencoded"
_SCOPES = frozenset({"read", "write"})
_GRANT_TYPES = frozenset({"authorization_code", "refresh_token", "password"})
_AUTHORIZE_FIELDS = (
    "response_type",
    "client_id",
    "redirect_uri",
    "scope",
    "state",
    "code_challenge",
    "code_challenge_method",
)
_WAYS_TO_FAIL = frozenset({"html", "xml", "truncated", "hang", "drop", "lost"})
_MAX_FORM = 1 << 20


@dataclass(slots=True)
class Settings:
    """What the simulator can do differently. Every field may be changed while it runs.

    Attributes:
        access_token_lifetime: seconds; CameraManager's is twelve hours less a second.
        rotate_refresh_tokens: a refresh hands out a new refresh token and ends the old one.
        revoke_family_on_reuse: with rotation, the use of an old refresh token ends all its heirs.
        shared_access_token: one user at one client with one scope gets the same living access
            token again at each login.
        refresh_token_lifetime: seconds; `None` is for ever.
        code_lifetime: seconds that an authorization code may be exchanged.
        repeat_tokens_in_errors: `error_description` contains the token, as in older Spring.
        echo_state: the `state` comes back to the redirect URI.
        latency: seconds before any answer of `/oauth/` and `/rest/`.
        token_latency: seconds more before an answer of the token endpoint.
        pkce: verify the `code_verifier` when a `code_challenge` was sent (RFC 7636); without, both
            are ignored, as Spring does.
        redirect_uris: the only ones that are accepted; `None` accepts any http or https URI.
        scope: the scope when the authorization request has none.
        scope_required: the token endpoint answers 400 ``invalid_request`` to a grant without
            ``scope``, which CameraManager's swagger marks as required there.
        media_url: where recordings are said to be: another host, which must get no bearer token.
        snapshot_limit: so many snapshots are made at once, and 503 is the answer beyond.
        snapshot_latency: seconds that the making of a snapshot takes.
        hang_time: seconds until a "hang" gives up on a client that does not leave.
        hint: show the first user's e-mail address and password on the login page.
        any_key: accept the API key of any application, not only `client_id` and `client_secret`.
    """

    access_token_lifetime: float = 43199
    rotate_refresh_tokens: bool = False
    revoke_family_on_reuse: bool = False
    shared_access_token: bool = True
    refresh_token_lifetime: float | None = None
    code_lifetime: float = 300
    repeat_tokens_in_errors: bool = False
    echo_state: bool = True
    latency: float = 0.0
    token_latency: float = 0.0
    pkce: bool = False
    redirect_uris: list[str] | None = None
    scope: str = "write"
    scope_required: bool = True
    media_url: str = "https://media.example.invalid"
    snapshot_limit: int | None = None
    snapshot_latency: float = 0.0
    hang_time: float = 60.0
    hint: bool = True
    any_key: bool = False


@dataclass(frozen=True, slots=True)
class SimulatedCamera:
    """A camera of a simulated user."""

    camera_id: int
    name: str
    online: bool = True
    zone_id: int = 1


@dataclass(slots=True)
class SimulatedUser:
    """Somebody who can log in at the simulator, and what they own."""

    email: str
    password: str
    first_name: str
    last_name: str
    user_id: int
    account_id: int
    cameras: list[SimulatedCamera] = field(default_factory=list)
    disabled: bool = False
    language: str = "en"


@dataclass(slots=True)
class RecordedRequest:
    """A request that the simulator got.

    Attributes:
        query: the parameters of the URL.
        headers: by lower-case name; several of one name are joined by a comma.
        form: the fields of an urlencoded body; the last of several of one name.
        body_length: bytes that were read of the body.
        status: of the answer; `None` when there was none (yet).
        time: when it came, by the simulator's clock.
    """

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    form: dict[str, str]
    body_length: int
    status: int | None
    time: float

    def param(self, name: str) -> str | None:
        """The parameter from the body or else the query: CameraManager reads either."""
        return self.form.get(name) or next(iter(self.query.get(name, ())), None)


@dataclass(frozen=True, slots=True)
class _Code:
    email: str
    client_id: str
    redirect_uri: str
    scope: str
    challenge: str | None
    challenge_method: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class _RefreshToken:
    value: str
    email: str
    client_id: str
    scope: str
    family: int
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class _AccessToken:
    value: str
    email: str
    client_id: str
    scope: str
    refresh_token: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class _Failure:
    what: What
    path: str | None


class _OAuthError(Exception):
    """An answer of RFC 6749 §5.2."""

    def __init__(self, status: int, error: str, description: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.description = description


class _Dropped(Exception):  # noqa: N818 - nobody's error: the connection ends here
    """The connection is to be closed without an answer."""


class _Tokens:
    """The codes and tokens that are valid now. Not thread-safe: the simulator holds the lock."""

    def __init__(self, settings: Settings, rng: random.Random, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.rng = rng
        self.clock = clock
        self.clear()

    def clear(self) -> None:
        self.codes: dict[str, _Code] = {}
        self.access: dict[str, _AccessToken] = {}
        self.refresh: dict[str, _RefreshToken] = {}
        self.spent: dict[str, int] = {}
        self.shared: dict[tuple[str, str, str], str] = {}

    def new_id(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def new_code(self, code: _Code) -> str:
        value = "".join(self.rng.choices(string.ascii_letters + string.digits, k=6))
        self.codes[value] = code
        return value

    def redeem(
        self, value: str, client_id: str, redirect_uri: str | None, verifier: str | None
    ) -> _Code:
        """Use up a code (RFC 6749 §4.1.3). As in Spring, a mistake uses it up, too."""
        code = self.codes.pop(value, None)
        if code is None or code.expires_at <= self.clock():
            raise self._grant_error("Invalid authorization code", value)
        if code.client_id != client_id:
            raise _OAuthError(401, "invalid_client", "Client ID mismatch")
        if code.redirect_uri != redirect_uri:
            raise _OAuthError(400, "invalid_grant", "Redirect URI mismatch.")
        if self.settings.pkce and not _verifies(code, verifier):
            raise _OAuthError(400, "invalid_grant", "Invalid code verifier.")
        return code

    def log_in(self, user: SimulatedUser, client_id: str, scope: str) -> _AccessToken:
        """`DefaultTokenServices.createAccessToken`."""
        heir: _RefreshToken | None = None
        existing = self.access.get(self.shared.get((user.email, client_id, scope), ""))
        if self.settings.shared_access_token and existing is not None:
            if existing.expires_at > self.clock():
                return existing
            heir = self.refresh.get(existing.refresh_token)
            self.drop_access(existing.value)
        if heir is None or self._expired(heir):
            heir = self._new_refresh(user, client_id, scope, self.rng.getrandbits(64))
        return self._new_access(user, heir)

    def renew(
        self, value: str, client_id: str, user_of: Callable[[str], SimulatedUser | None]
    ) -> _AccessToken:
        """`DefaultTokenServices.refreshAccessToken`."""
        token = self.refresh.get(value)
        if token is None:
            family = self.spent.get(value)
            if family is not None and self.settings.revoke_family_on_reuse:
                self.drop_where(lambda heir: heir.family == family)
            raise self._grant_error("Invalid refresh token", value)
        if token.client_id != client_id:
            raise self._grant_error("Wrong client for this refresh token", value)
        user = user_of(token.email)
        if user is None or user.disabled:
            raise _OAuthError(400, "invalid_grant", "User is disabled")
        # The old access token goes first, even if the refresh is then refused.
        for access in [a for a in self.access.values() if a.refresh_token == value]:
            self.drop_access(access.value)
        if self._expired(token):
            del self.refresh[value]
            raise self._token_error("Invalid refresh token (expired)", value)
        if self.settings.rotate_refresh_tokens:
            del self.refresh[value]
            self.spent[value] = token.family
            token = self._new_refresh(user, client_id, token.scope, token.family)
        return self._new_access(user, token)

    def check(self, value: str) -> _AccessToken:
        """`DefaultTokenServices.loadAuthentication`."""
        token = self.access.get(value)
        if token is None:
            raise self._token_error("Invalid access token", value)
        if token.expires_at <= self.clock():
            self.drop_access(value)
            raise self._token_error("Access token expired", value)
        return token

    def drop_access(self, value: str) -> None:
        token = self.access.pop(value, None)
        if token is not None:
            key = (token.email, token.client_id, token.scope)
            if self.shared.get(key) == value:
                del self.shared[key]

    def drop_where(self, condemned: Callable[[_RefreshToken], bool]) -> None:
        """End the refresh tokens that are `condemned`, and their access tokens."""
        gone = {token.value for token in self.refresh.values() if condemned(token)}
        for value in gone:
            del self.refresh[value]
        for access in [a for a in self.access.values() if a.refresh_token in gone]:
            self.drop_access(access.value)

    def answer(self, token: _AccessToken) -> dict[str, Any]:
        """The body of RFC 6749 §5.1."""
        return {
            "access_token": token.value,
            "token_type": "bearer",
            "refresh_token": token.refresh_token,
            "expires_in": max(0, int(token.expires_at - self.clock())),
            "scope": token.scope,
        }

    def _new_refresh(
        self, user: SimulatedUser, client_id: str, scope: str, family: int
    ) -> _RefreshToken:
        lifetime = self.settings.refresh_token_lifetime
        token = _RefreshToken(
            value=f"{self.new_id()}:{user.user_id}",
            email=user.email,
            client_id=client_id,
            scope=scope,
            family=family,
            expires_at=None if lifetime is None else self.clock() + lifetime,
        )
        self.refresh[token.value] = token
        return token

    def _new_access(self, user: SimulatedUser, parent: _RefreshToken) -> _AccessToken:
        token = _AccessToken(
            value=f"{self.new_id()}:{user.user_id}",
            email=parent.email,
            client_id=parent.client_id,
            scope=parent.scope,
            refresh_token=parent.value,
            expires_at=self.clock() + self.settings.access_token_lifetime,
        )
        self.access[token.value] = token
        self.shared[(token.email, token.client_id, token.scope)] = token.value
        return token

    def _expired(self, token: _RefreshToken) -> bool:
        return token.expires_at is not None and token.expires_at <= self.clock()

    def _grant_error(self, text: str, value: str) -> _OAuthError:
        return _OAuthError(400, "invalid_grant", self._describe(text, value))

    def _token_error(self, text: str, value: str) -> _OAuthError:
        return _OAuthError(401, "invalid_token", self._describe(text, value))

    def _describe(self, text: str, value: str) -> str:
        return f"{text}: {value}" if self.settings.repeat_tokens_in_errors else text


class Simulator:
    """CameraManager as an ASGI application, for tests and demos. Everything is kept in memory.

        sim = Simulator()
        client = httpx2.AsyncClient(transport=httpx2.ASGITransport(sim), base_url="http://cm")

    A connection that is to be dropped is really closed under uvicorn; in process
    (`ASGITransport`) the caller gets the `httpx2.RemoteProtocolError` that comes of it.

    Args:
        settings: the knobs; also changed later, in `sim.settings`.
        client_id: the ID of the one API key that is accepted.
        client_secret: its SECRET.
        seed: of the codes, tokens and cookies, which so are the same in each run.
        users: who can log in; by default anna@example.com and bob@example.com, both with the
            password "cameras".
        clock: gives the seconds since 1970; replace it to move time in a test.
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
        self.users = list(users) if users is not None else _default_users()
        self._clock = clock
        self._initial_settings = replace(self.settings)
        self._lock = threading.Lock()
        rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self._tokens = _Tokens(self.settings, rng, clock)
        self._requests: list[RecordedRequest] = []
        self._logins: dict[str, str] = {}
        self._consents: set[tuple[str, str, str]] = set()
        self._token_failures: list[_Failure] = []
        self._api_failures: list[_Failure] = []
        self._snapshots_in_flight = 0
        self._app = Starlette(
            routes=self._routes(),
            exception_handlers={HTTPException: _http_error, _OAuthError: _oauth_error},
        )

    # For tests

    @property
    def settings(self) -> Settings:
        """The knobs; change its fields, at any time."""
        return self._settings

    @property
    def app(self) -> ASGIApp:
        """The ASGI application: this object."""
        return self

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests so far, oldest first, without those to `/_control`."""
        with self._lock:
            return list(self._requests)

    def calls(self, path: str, method: str | None = None) -> list[RecordedRequest]:
        """The requests to `path`, which may contain `*`."""
        return [
            call
            for call in self.requests
            if fnmatchcase(call.path, path) and method in (None, call.method)
        ]

    def token_calls(self, grant_type: str | None = None) -> list[RecordedRequest]:
        """The requests to the token endpoint, all or those of one `grant_type`."""
        return [
            call
            for call in self.calls("/oauth/token")
            if grant_type in (None, call.param("grant_type"))
        ]

    @property
    def access_tokens(self) -> int:
        """How many access tokens are valid now."""
        now = self._clock()
        with self._lock:
            return sum(token.expires_at > now for token in self._tokens.access.values())

    @property
    def refresh_tokens(self) -> int:
        """How many refresh tokens can be used; each stands for a grant."""
        with self._lock:
            return len(self._tokens.refresh)

    def reset(self) -> None:
        """Forget tokens, logins, consents, failures and requests; restore settings and users.

        What was handed out before stays invalid: the seed goes on.
        """
        with self._lock:
            for knob in fields(Settings):
                setattr(self.settings, knob.name, getattr(self._initial_settings, knob.name))
            for user in self.users:
                user.disabled = False
            self._tokens.clear()
            self._requests.clear()
            self._logins.clear()
            self._consents.clear()
            self._token_failures.clear()
            self._api_failures.clear()

    def fail_token(self, what: What, times: int = 1) -> None:
        """Let the next calls to the token endpoint fail.

        Args:
            what: a status; `"html"`, `"xml"` or `"truncated"` (JSON) as the body of a 200;
                `"hang"` until the client leaves; `"drop"` the connection; `"lost"`: do what was
                asked, then drop the connection; a dict, or a status and a dict, as the answer.
            times: how many calls.
        """
        self._fail(self._token_failures, what, times, None)

    def fail_api(self, what: What, times: int = 1, path: str | None = None) -> None:
        """Let the next calls below `/rest/` fail: all, or those to `path`, which may contain `*`.

        The rest is as with `fail_token`.
        """
        self._fail(self._api_failures, what, times, path)

    def forget_failures(self) -> None:
        """Let nothing fail any more that was to fail."""
        with self._lock:
            self._token_failures.clear()
            self._api_failures.clear()

    def expire_access_tokens(self) -> None:
        """Let every access token expire now."""
        now = self._clock()
        with self._lock:
            for value, token in self._tokens.access.items():
                self._tokens.access[value] = replace(token, expires_at=now)

    def expire_refresh_tokens(self) -> None:
        """Let every refresh token expire now. Access tokens live on."""
        now = self._clock()
        with self._lock:
            for value, token in self._tokens.refresh.items():
                self._tokens.refresh[value] = replace(token, expires_at=now)

    def revoke_user(self, email: str) -> None:
        """End all tokens of a user, who can log in again at once; consent and cookie stay."""
        user = self._known_user(email)
        with self._lock:
            self._tokens.drop_where(lambda token: token.email == user.email)

    def disable_user(self, email: str) -> None:
        """Refuse this user's logins and refreshes. An access token lives on until it expires."""
        user = self._known_user(email)
        with self._lock:
            user.disabled = True
            self._logins = {c: e for c, e in self._logins.items() if e != user.email}

    def issue_code(
        self,
        email: str,
        redirect_uri: str,
        code_challenge: str | None = None,
        scope: str = "write",
        code_challenge_method: str = "S256",
    ) -> str:
        """An authorization code as if the user had logged in and agreed."""
        user = self._known_user(email)
        with self._lock:
            return self._new_code(
                user, redirect_uri, scope, code_challenge or "", code_challenge_method
            )

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
        with self._lock:
            self._requests.append(record)

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
            record.form = dict(parse_qsl(body.decode("latin-1"), keep_blank_values=True))
            body_receive = _replay(body, receive)
        scope["cm.record"] = record
        try:
            await self._answer(record, scope, body_receive, noting_send)
        except _Dropped:
            await _close_connection(receive, send)

    async def _answer(
        self, record: RecordedRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        is_token = record.path == "/oauth/token"
        is_api = record.path.startswith("/rest/")
        if is_token or is_api or record.path.startswith("/oauth/"):
            await anyio.sleep(self.settings.latency)
        if is_token:
            await anyio.sleep(self.settings.token_latency)
        failure = None
        if is_token or is_api:
            failure = self._next_failure(
                self._token_failures if is_token else self._api_failures, record.path
            )
        if failure is None:
            await self._app(scope, receive, send)
        elif failure.what == "lost":
            await self._app(scope, receive, _swallow)
            raise _Dropped
        elif failure.what == "drop":
            raise _Dropped
        elif failure.what == "hang":
            with anyio.move_on_after(self.settings.hang_time):
                while (await receive())["type"] != "http.disconnect":
                    pass
            raise _Dropped
        else:
            await _failure_response(failure.what, is_token)(scope, receive, send)

    def _routes(self) -> list[Route]:
        api = "/rest/v2.{minor:int}"
        bearer = self._with_bearer
        every = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        return [
            Route("/oauth/authorize", self._authorize, methods=["GET", "POST"]),
            Route("/oauth/token", self._token, methods=["POST"]),
            Route("/oauth/logout", self._forget_login, methods=["GET"]),
            Route("/_control", self._control, methods=["GET", "POST"]),
            Route(
                f"{api}/users/self/tokens/current", bearer(self._delete_token), methods=["DELETE"]
            ),
            Route(f"{api}/users/self", bearer(self._user)),
            Route(f"{api}/cameras", bearer(self._cameras)),
            Route(f"{api}/cameras/all/status", bearer(self._all_status)),
            Route(f"{api}/cameras/{{camera:int}}", bearer(self._camera)),
            Route(f"{api}/cameras/{{camera:int}}/status", bearer(self._status)),
            Route(f"{api}/cameras/{{camera:int}}/snapshot", bearer(self._snapshot)),
            Route(f"{api}/cameras/{{camera:int}}/streams", bearer(self._streams)),
            Route(
                f"{api}/cameras/{{camera:int}}/recordings/{{recording}}", bearer(self._recording)
            ),
            Route(f"{api}/echo", bearer(self._echo), methods=every),
            Route(f"{api}/big", bearer(self._big)),
            Route(f"{api}/redirect", bearer(self._redirect), methods=every),
            Route(f"{api}/set-cookie", bearer(self._set_cookie)),
        ]

    # The authorization endpoint, RFC 6749 §4.1.1

    async def _authorize(self, request: Request) -> Response:
        form = _record(request).form
        params = dict(request.query_params) | form
        carried = {name: params[name] for name in _AUTHORIZE_FIELDS if params.get(name)}
        redirect_uri = params.get("redirect_uri", "")
        # RFC 6749 §4.1.2.1: with a bad client or redirect URI, nothing may be redirected.
        if params.get("client_id") != self.client_id and not self.settings.any_key:
            return _pages.message_page("Unknown application", "No API key has this client_id.")
        if not self._redirect_allowed(redirect_uri):
            return _pages.message_page(
                "Bad redirect URI",
                "redirect_uri has to be a full http:// or https:// address without a fragment, "
                "and one that this API key may use.",
            )
        if params.get("response_type") != "code":
            return self._back(params, error="unsupported_response_type")
        scope = params.get("scope") or self.settings.scope
        if not set(scope.split()) <= _SCOPES:
            return self._back(params, error="invalid_scope")

        if request.method == "POST" and "email" in form:
            return self._log_in(form, carried)
        decision = form.get("decision") if request.method == "POST" else None
        if decision == "switch":
            answer = self._again(carried)
            self._end_login(request, answer)
            return answer
        with self._lock:
            user = self._user_by_email(self._logins.get(request.cookies.get(_COOKIE, ""), ""))
        if user is None or user.disabled:
            return _pages.login_page(carried, hint=self._hint())
        if decision == "refuse":
            return self._back(params, error="access_denied", error_description="User denied access")
        consent = (user.email, self.client_id, scope)
        with self._lock:
            if decision == "allow":
                self._consents.add(consent)
            if consent in self._consents:
                code = self._new_code(
                    user,
                    redirect_uri,
                    scope,
                    params.get("code_challenge", ""),
                    params.get("code_challenge_method", "plain"),
                )
                return self._back(params, code=code)
        target = urlsplit(redirect_uri)
        return _pages.consent_page(
            carried,
            client=self.client_id,
            email=user.email,
            scope=scope,
            target=f"{target.scheme}://{target.netloc}",
        )

    def _log_in(self, form: Mapping[str, str], carried: Mapping[str, str]) -> Response:
        email = form["email"].strip()
        user = self._user_with_password(email, form.get("password", ""))
        if user is None:
            return _pages.login_page(
                carried,
                email=email,
                error="This e-mail address and password do not belong together.",
                hint=self._hint(),
            )
        with self._lock:
            cookie = self._tokens.new_id()
            self._logins[cookie] = user.email
        answer = self._again(carried)
        answer.set_cookie(_COOKIE, cookie, path="/oauth", httponly=True, samesite="lax")
        return answer

    def _again(self, carried: Mapping[str, str]) -> Response:
        return RedirectResponse(
            f"authorize?{urlencode(carried)}", 303, headers={"Cache-Control": "no-store"}
        )

    def _back(self, params: Mapping[str, str], **answer: str) -> Response:
        if self.settings.echo_state and params.get("state"):
            answer["state"] = params["state"]
        redirect_uri = params["redirect_uri"]
        joint = "&" if urlsplit(redirect_uri).query else "?"
        return RedirectResponse(
            f"{redirect_uri}{joint}{urlencode(answer)}",
            303 if "decision" in params else 302,
            headers={"Cache-Control": "no-store"},
        )

    def _redirect_allowed(self, uri: str) -> bool:
        if self.settings.redirect_uris is not None:
            return uri in self.settings.redirect_uris
        try:
            parts = urlsplit(uri)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and bool(parts.netloc) and not parts.fragment

    async def _forget_login(self, request: Request) -> Response:
        """End the browser's login at the simulator, so that somebody else can log in."""
        answer = _pages.message_page("Logged out", "You are logged out of CameraManager.", 200)
        self._end_login(request, answer)
        return answer

    def _end_login(self, request: Request, answer: Response) -> None:
        with self._lock:
            self._logins.pop(request.cookies.get(_COOKIE, ""), None)
        answer.delete_cookie(_COOKIE, path="/oauth", httponly=True, samesite="lax")

    def _hint(self) -> tuple[str, str] | None:
        if not self.settings.hint or not self.users:
            return None
        return self.users[0].email, self.users[0].password

    # The token endpoint, RFC 6749 §4.1.3 and §6

    async def _token(self, request: Request) -> Response:
        call = _record(request)
        try:
            self._check_client(call.headers.get("authorization", ""))
            with self._lock:
                token = self._grant(call)
                answer = self._tokens.answer(token)
        except _OAuthError as error:
            return _oauth_error(request, error)
        return _negotiated(request, answer, 200)

    def _grant(self, call: RecordedRequest) -> _AccessToken:
        kind = call.param("grant_type")
        if kind in _GRANT_TYPES and self.settings.scope_required:
            _required(call, "scope")
        match kind:
            case "authorization_code":
                code = self._tokens.redeem(
                    _required(call, "code"),
                    self.client_id,
                    call.param("redirect_uri"),
                    call.param("code_verifier"),
                )
                user = self._user_by_email(code.email)
                if user is None or user.disabled:
                    raise _OAuthError(400, "invalid_grant", "User is disabled")
                return self._tokens.log_in(user, self.client_id, code.scope)
            case "refresh_token":
                value = _required(call, "refresh_token")
                held = self._tokens.refresh.get(value)
                wanted = set((call.param("scope") or "").split())
                if held is not None and not wanted <= set(held.scope.split()):
                    raise _OAuthError(400, "invalid_scope", "Unable to narrow the scope")
                return self._tokens.renew(value, self.client_id, self._user_by_email)
            case "password":
                user = self._user_with_password(
                    _required(call, "username"), _required(call, "password")
                )
                if user is None:
                    raise _OAuthError(400, "invalid_grant", "Bad credentials")
                scope = call.param("scope") or self.settings.scope
                if not set(scope.split()) <= _SCOPES:
                    raise _OAuthError(400, "invalid_scope", "Invalid scope")
                return self._tokens.log_in(user, self.client_id, scope)
            case None:
                raise _OAuthError(400, "invalid_request", "Missing grant type")
            case other:
                raise _OAuthError(400, "unsupported_grant_type", f"Unsupported: {other}")

    def _check_client(self, authorization: str) -> None:
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() != "basic":
            raise _OAuthError(
                401, "unauthorized", "Full authentication is required to access this resource"
            )
        if self.settings.any_key:
            return
        try:
            given = base64.b64decode(value, validate=True)
        except ValueError:
            given = b""
        if not hmac.compare_digest(given, f"{self.client_id}:{self.client_secret}".encode()):
            raise _OAuthError(401, "invalid_client", "Bad client credentials")

    # REST

    def _with_bearer(
        self, handler: Callable[[Request, SimulatedUser], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            if request.path_params["minor"] > 4:
                raise HTTPException(404)
            scheme, _, value = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                raise _OAuthError(401, "invalid_token", "No bearer token")
            with self._lock:
                token = self._tokens.check(value.strip())
                user = self._user_by_email(token.email)
            if user is None:
                raise _OAuthError(401, "invalid_token", "Unknown user")
            return await handler(request, user)

        return endpoint

    async def _delete_token(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        value = request.headers["authorization"].partition(" ")[2].strip()
        with self._lock:
            token = self._tokens.access.get(value)
            if token is not None:
                self._tokens.drop_where(lambda r: r.value == token.refresh_token)
                self._tokens.drop_access(value)
        return Response(status_code=204)

    async def _user(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        return JSONResponse(
            {
                "userId": user.user_id,
                "accountId": user.account_id,
                "email": user.email,
                "firstName": user.first_name,
                "lastName": user.last_name,
                "language": user.language,
            }
        )

    async def _cameras(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        return JSONResponse([_camera_json(camera, user) for camera in user.cameras])

    async def _camera(self, request: Request, user: SimulatedUser) -> Response:
        return JSONResponse(_camera_json(_own_camera(request, user), user))

    async def _all_status(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        return JSONResponse([_status_json(camera) for camera in user.cameras])

    async def _status(self, request: Request, user: SimulatedUser) -> Response:
        return JSONResponse(_status_json(_own_camera(request, user)))

    async def _snapshot(self, request: Request, user: SimulatedUser) -> Response:
        camera = _own_camera(request, user)
        if not camera.online:
            raise HTTPException(503, "The camera is offline")
        width, height = _resolution(request.query_params.get("resolution", "640x360"))
        stamped = request.query_params.get("includeTimestamp", "true") != "false"
        limit = self.settings.snapshot_limit
        with self._lock:
            if limit is not None and self._snapshots_in_flight >= limit:
                raise HTTPException(503, "Too many snapshots are being made", {"Retry-After": "1"})
            self._snapshots_in_flight += 1
        try:
            await anyio.sleep(self.settings.snapshot_latency)
            when = datetime.fromtimestamp(self._clock(), UTC)
            picture = await anyio.to_thread.run_sync(
                _snapshots.draw, camera.camera_id, camera.name, when, (width, height), stamped
            )
        finally:
            with self._lock:
                self._snapshots_in_flight -= 1
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    async def _streams(self, request: Request, user: SimulatedUser) -> Response:
        camera = _own_camera(request, user)
        host = urlsplit(self.settings.media_url).netloc
        return JSONResponse(
            [
                {
                    "streamId": camera.camera_id * 10,
                    "cameraId": camera.camera_id,
                    "resolution": "1280x720",
                    "urls": {"rtsp": f"rtsp://{host}/live/{camera.camera_id}"},
                }
            ]
        )

    async def _recording(self, request: Request, user: SimulatedUser) -> Response:
        camera = _own_camera(request, user)
        recording = request.path_params["recording"]
        kinds = request.query_params.get("includeUrlTypes", "").split(",")
        url = f"{self.settings.media_url}/{camera.camera_id}/{recording}.mp4"
        return JSONResponse(
            {
                "recordingId": recording,
                "cameraId": camera.camera_id,
                "urls": {kind: url for kind in kinds if kind == "mp4Http"},
            }
        )

    async def _echo(self, request: Request, user: SimulatedUser) -> Response:
        """What came in; the body is read as it comes, and hashed."""
        digest = hashlib.sha256()
        length = 0
        async for chunk in request.stream():
            digest.update(chunk)
            length += len(chunk)
        return JSONResponse(
            {
                "method": request.method,
                "path": request.url.path,
                "query": request.url.query,
                "headers": _headers(request.scope),
                "sha256": digest.hexdigest(),
                "length": length,
                "userId": user.user_id,
            }
        )

    async def _big(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        """So many bytes, or the part of them that a Range asks for (RFC 9110 §14.2)."""
        size = _number(request, "bytes", 1 << 20)
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{size}"', "Content-Length": str(size)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if asked is None or int(asked[1]) >= size:
            return StreamingResponse(
                _zeros(size), media_type="application/octet-stream", headers=headers
            )
        first, last = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        headers["Content-Length"] = str(last - first + 1)
        return StreamingResponse(
            _zeros(last - first + 1), 206, media_type="application/octet-stream", headers=headers
        )

    async def _redirect(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        return RedirectResponse(request.query_params.get("to", "/"), 302)

    async def _set_cookie(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        answer = JSONResponse({"userId": user.user_id})
        answer.set_cookie("upstream", str(user.user_id), path="/")
        return answer

    # Control over HTTP

    async def _control(self, request: Request) -> Response:
        if request.method == "POST":
            # A page elsewhere cannot send this media type without being asked for CORS first.
            if not request.headers.get("content-type", "").startswith("application/json"):
                return JSONResponse({"error": "send application/json"}, 415)
            try:
                self._command(await request.json())
            except (TypeError, ValueError, LookupError) as error:
                return JSONResponse({"error": str(error)}, 400)
        since = _number(request, "since", 0)
        requests = self.requests
        counts: dict[str, int] = {}
        for call in requests:
            counts[call.path] = counts.get(call.path, 0) + 1
        return JSONResponse(
            {
                "settings": asdict(self.settings),
                "users": [user.email for user in self.users],
                "living": {
                    "access_tokens": self.access_tokens,
                    "refresh_tokens": self.refresh_tokens,
                },
                "counts": counts,
                "next": len(requests),
                "requests": [asdict(call) for call in requests[since:]],
            }
        )

    def _command(self, command: Any) -> None:
        if not isinstance(command, dict):
            raise TypeError("send a JSON object")
        actions: dict[str, Callable[[Any], None]] = {
            "reset": lambda _: self.reset(),
            "fail_token": lambda value: self.fail_token(**_failure_arguments(value)),
            "fail_api": lambda value: self.fail_api(**_failure_arguments(value)),
            "forget_failures": lambda _: self.forget_failures(),
            "expire_access_tokens": lambda _: self.expire_access_tokens(),
            "expire_refresh_tokens": lambda _: self.expire_refresh_tokens(),
            "revoke_user": self.revoke_user,
            "disable_user": self.disable_user,
        }
        knobs = {knob.name for knob in fields(Settings)}
        unknown = set(command) - knobs - set(actions)
        if unknown:
            raise ValueError(
                f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(actions))}, "
                f"{', '.join(sorted(knobs))}"
            )
        # A reset in the same command comes first, or it would undo the rest.
        for name in sorted(command, key=lambda name: name != "reset"):
            if name in knobs:
                setattr(self.settings, name, command[name])
            elif command[name] is not False:
                actions[name](command[name])

    # Inner help; the caller of those that say so holds the lock

    def _fail(self, queue: list[_Failure], what: What, times: int, path: str | None) -> None:
        if isinstance(what, str) and what not in _WAYS_TO_FAIL:
            raise ValueError(f"unknown way to fail: {what}; known: {sorted(_WAYS_TO_FAIL)}")
        with self._lock:
            queue.extend([_Failure(what, path)] * times)

    def _next_failure(self, queue: list[_Failure], path: str) -> _Failure | None:
        with self._lock:
            for index, failure in enumerate(queue):
                if failure.path is None or fnmatchcase(path, failure.path):
                    return queue.pop(index)
        return None

    def _new_code(
        self, user: SimulatedUser, redirect_uri: str, scope: str, challenge: str, method: str
    ) -> str:
        """The lock is held."""
        return self._tokens.new_code(
            _Code(
                email=user.email,
                client_id=self.client_id,
                redirect_uri=redirect_uri,
                scope=scope,
                challenge=challenge or None,
                challenge_method=method,
                expires_at=self._clock() + self.settings.code_lifetime,
            )
        )

    def _user_by_email(self, email: str) -> SimulatedUser | None:
        wanted = email.lower()
        return next((user for user in self.users if user.email.lower() == wanted), None)

    def _user_with_password(self, email: str, password: str) -> SimulatedUser | None:
        user = self._user_by_email(email)
        if user is None or user.disabled:
            return None
        if not hmac.compare_digest(user.password.encode(), password.encode()):
            return None
        return user

    def _known_user(self, email: str) -> SimulatedUser:
        user = self._user_by_email(email)
        if user is None:
            raise LookupError(f"no such user: {email}")
        return user


def _default_users() -> list[SimulatedUser]:
    return [
        SimulatedUser(
            email="anna@example.com",
            password="cameras",  # noqa: S106 - of a simulator
            first_name="Anna",
            last_name="Jansen",
            user_id=10003,
            account_id=501,
            cameras=[
                SimulatedCamera(2001, "Front gate"),
                SimulatedCamera(2002, "Parking lot"),
                SimulatedCamera(2003, "Warehouse"),
                SimulatedCamera(2004, "Loading dock", online=False, zone_id=2),
            ],
        ),
        SimulatedUser(
            email="bob@example.com",
            password="cameras",  # noqa: S106 - of a simulator
            first_name="Bob",
            last_name="de Vries",
            user_id=10007,
            account_id=502,
            cameras=[SimulatedCamera(3001, "Shop floor"), SimulatedCamera(3002, "Back door")],
        ),
    ]


def _verifies(code: _Code, verifier: str | None) -> bool:
    """RFC 7636 §4.6."""
    if code.challenge is None:
        return True
    if verifier is None:
        return False
    made = verifier
    if code.challenge_method == "S256":
        digest = hashlib.sha256(verifier.encode()).digest()
        made = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return hmac.compare_digest(made.encode(), code.challenge.encode())


def _required(call: RecordedRequest, name: str) -> str:
    value = call.param(name)
    if not value:
        raise _OAuthError(400, "invalid_request", f"Missing parameter: {name}")
    return value


def _own_camera(request: Request, user: SimulatedUser) -> SimulatedCamera:
    wanted = request.path_params["camera"]
    for camera in user.cameras:
        if camera.camera_id == wanted:
            return camera
    raise HTTPException(404, "No such camera")


def _camera_json(camera: SimulatedCamera, user: SimulatedUser) -> dict[str, Any]:
    tail = camera.camera_id.to_bytes(3, "big").hex(":")
    return {
        "cameraId": camera.camera_id,
        "name": camera.name,
        "accountId": user.account_id,
        "zoneId": camera.zone_id,
        "ethernetMacAddress": f"02:00:00:{tail}",
    }


def _status_json(camera: SimulatedCamera) -> dict[str, Any]:
    return {
        "cameraId": camera.camera_id,
        "online": camera.online,
        "recordingOnCloud": camera.online,
        "recordingOnSd": False,
        "audioEnabled": False,
        "passwordKnown": True,
        "firmwareStatus": "UpToDate",
    }


def _resolution(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise HTTPException(400, "resolution has to be like 1280x720")
    size = int(width), int(height)
    if not (16 <= size[0] <= 3840 and 16 <= size[1] <= 2160):
        raise HTTPException(400, "resolution is from 16x16 to 3840x2160")
    return size


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isdecimal():
        raise HTTPException(400, f"{name} has to be a number")
    return int(text)


async def _zeros(size: int) -> AsyncIterator[bytes]:
    block = bytes(65536)
    while size > 0:
        yield block[:size]
        size -= len(block)


def _record(request: Request) -> RecordedRequest:
    record: RecordedRequest = request.scope["cm.record"]
    return record


def _headers(scope: Scope) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _http_error(request: Request, error: Exception) -> Response:
    """CameraManager's own shape of an error."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else ""
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if not request.url.path.startswith("/rest/"):
        return Response(detail, status, headers, "text/plain")
    return JSONResponse(_api_error(status, detail), status, headers)


def _api_error(status: int, detail: str) -> dict[str, Any]:
    return {"code": status, "title": _TITLES.get(status, "Error"), "detail": detail}


_TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
}


def _oauth_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, _OAuthError):
        raise error
    headers = {}
    if error.status == 401:
        scheme = "Basic" if request.url.path == "/oauth/token" else "Bearer"
        headers["WWW-Authenticate"] = (
            f'{scheme} realm="oauth", error="{error.error}", '
            f'error_description="{error.description}"'
        )
    body = {"error": error.error, "error_description": error.description}
    if request.url.path.startswith("/rest/"):
        return JSONResponse(body, error.status, headers)
    return _negotiated(request, body, error.status, headers)


def _negotiated(
    request: Request, body: Mapping[str, Any], status: int, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON for who asks for JSON by name; XML for the others, as Spring may do."""
    all_headers = {"Cache-Control": "no-store", "Pragma": "no-cache", **(headers or {})}
    if "application/json" in request.headers.get("accept", "").lower():
        return JSONResponse(body, status, all_headers)
    inner = "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in body.items())
    return Response(
        f'<?xml version="1.0" encoding="UTF-8"?><oauth>{inner}</oauth>',
        status,
        all_headers,
        "application/xml",
    )


def _failure_arguments(value: Any) -> dict[str, Any]:
    """`503`, `{"error": …}` or `{"what": 503, "times": 2}`; `what` may be `[400, {…}]`."""
    arguments = dict(value) if isinstance(value, dict) and "what" in value else {"what": value}
    if isinstance(arguments["what"], list):
        arguments["what"] = tuple(arguments["what"])
    return arguments


_TOKEN_ERRORS = {400: "invalid_request", 401: "unauthorized", 403: "access_denied"}


def _failure_response(what: What, is_token: bool) -> Response:
    match what:
        case "html":
            return Response(
                "<html><body><h1>Maintenance</h1></body></html>", media_type="text/html"
            )
        case "xml":
            return Response("<oauth><note>hello</note></oauth>", media_type="application/xml")
        case "truncated":
            return Response('{"access_token": "aaaaaaaa-aaaa-', media_type="application/json")
        case dict():
            status = 401 if what.get("error") in _UNAUTHORIZED else 400
            return JSONResponse(what, status)
        case (int(status), body):
            return JSONResponse(body, status)
        case int():
            headers = {"Retry-After": "1"} if what in (429, 503) else {}
            if is_token:
                error = _TOKEN_ERRORS.get(what, "server_error")
                return JSONResponse(
                    {"error": error, "error_description": "Simulated failure"}, what, headers
                )
            if what == 401:
                headers["WWW-Authenticate"] = 'Bearer realm="oauth", error="invalid_token"'
                return JSONResponse(
                    {"error": "invalid_token", "error_description": "Simulated failure"},
                    what,
                    headers,
                )
            return JSONResponse(_api_error(what, "Simulated failure"), what, headers)
    raise ValueError(f"unknown way to fail: {what!r}")


_UNAUTHORIZED = frozenset({"invalid_client", "invalid_token", "unauthorized"})


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)
        if len(body) > _MAX_FORM:
            raise _Dropped


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _swallow(message: Message) -> None:
    """Send nowhere."""


async def _close_connection(receive: Receive, send: Send) -> None:
    """End the connection without an answer, which ASGI has no message for.

    uvicorn's `send` is a method of an object that knows the transport. In process there is none,
    and the error that a client would make of it is raised instead.
    """
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        raise httpx2.RemoteProtocolError("Server disconnected without sending a response.")
    transport.abort()
    with anyio.move_on_after(5):
        while (await receive())["type"] != "http.disconnect":
            pass
