"""Answer as CameraManager's OAuth server: login and consent pages, token endpoint, bearer tokens.

The endpoints follow RFC 6749, and Spring Security OAuth 2 where the RFC leaves a choice.
"""

from __future__ import annotations

import base64
import hmac
import math
import random
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit
from xml.sax.saxutils import escape

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from cm_auth_middleware.testing.simulator import pages
from cm_auth_middleware.testing.simulator.settings import (
    RecordedRequest,
    Settings,
    SimulatedUser,
    recorded,
)
from cm_auth_middleware.testing.simulator.tokens import AccessToken, Code, OAuthError, Tokens

_COOKIE = "cm_simulator"
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


_SQL = (
    "PreparedStatementCallback; SQL [insert into oauth_access_token (token_id, token, "
    "authentication_id, user_name, client_id) values (?, ?, ?, ?, ?)]; Duplicate entry for key "
    "'PRIMARY'"
)


class Accounts(Protocol):
    """The API key and the users, which a test may change while the server runs."""

    client_id: str
    client_secret: str
    users: list[SimulatedUser]


class OAuthServer:
    """The OAuth server, with its logins, its consents and its tokens.

    Args:
        accounts: the API key and the users.
        settings: the simulator's settings.
        clock: returns the seconds since 1970.
        seed: the seed of the random codes, tokens and cookies.

    Attributes:
        lock: must be held while `tokens` is used.
        name: of the server, in its pages.
        root: the path of its endpoints.
        scopes: those that there are.
    """

    name = "CameraManager"
    root = "/oauth"
    scopes = frozenset({"read", "write"})

    def __init__(
        self, accounts: Accounts, settings: Settings, clock: Callable[[], float], seed: int
    ) -> None:
        self.lock = threading.Lock()
        rng = random.Random(seed)  # noqa: S311 - repeatable
        self.tokens = self._make_tokens(settings, rng, clock)
        self._accounts = accounts
        self._settings = settings
        self._clock = clock
        self._logins: dict[str, str] = {}
        self._consents: set[tuple[str, str, str]] = set()
        self._exchanged_at: dict[str, float] = {}

    def _make_tokens(
        self, settings: Settings, rng: random.Random, clock: Callable[[], float]
    ) -> Tokens:
        return Tokens(settings, rng, clock)

    def reset(self) -> None:
        """Forget tokens, logins and consents, and enable every user."""
        with self.lock:
            for user in self._accounts.users:
                user.disabled = False
            self.tokens.clear()
            self._logins.clear()
            self._consents.clear()

    def revoke(self, email: str) -> None:
        """End all tokens of a user."""
        user = self._known_user(email)
        with self.lock:
            self.tokens.drop_where(lambda token: token.email == user.email)

    def disable(self, email: str) -> None:
        """Refuse a user's logins and refreshes from now on."""
        user = self._known_user(email)
        with self.lock:
            user.disabled = True
            self._logins = {c: e for c, e in self._logins.items() if e != user.email}

    def issue_code(
        self, email: str, redirect_uri: str, scope: str, challenge: str, method: str
    ) -> str:
        """Make an authorization code for a user."""
        user = self._known_user(email)
        with self.lock:
            return self._new_code(user, redirect_uri, scope, challenge, method)

    # The authorization endpoint, RFC 6749 §4.1.1

    async def authorize(self, request: Request) -> Response:
        """Show the login page or the consent page, or redirect back with a code or an error."""
        form = recorded(request).form
        params = dict(request.query_params) | form
        carried = {name: params[name] for name in _AUTHORIZE_FIELDS if params.get(name)}
        redirect_uri = params.get("redirect_uri", "")
        # RFC 6749 §4.1.2.1: with a bad client or redirect URI, the server must not redirect.
        if params.get("client_id") != self._accounts.client_id and not self._settings.any_key:
            return pages.message_page(
                self.name, "Unknown application", "No API key has this client_id.", 401
            )
        if not self._redirect_allowed(redirect_uri):
            return pages.message_page(
                self.name,
                "Bad redirect URI",
                "redirect_uri has to be a full http:// or https:// address without a fragment, "
                "and one that this API key may use.",
            )
        if params.get("response_type") != "code":
            return self._back(
                params,
                error="unsupported_response_type",
                error_description="Unsupported response types",
            )
        scope = params.get("scope") or self._settings.scope
        if not set(scope.split()) <= self.scopes:
            return self._back(
                params,
                error="invalid_scope",
                error_description="Invalid scope",
                scope=" ".join(sorted(self.scopes)),
            )

        if request.method == "POST" and "email" in form:
            return self._log_in(form, carried)
        decision = form.get("decision") if request.method == "POST" else None
        if decision == "switch":
            answer = self._again(carried)
            self._end_login(request, answer)
            return answer
        with self.lock:
            user = self._user_by_email(self._logins.get(request.cookies.get(_COOKIE, ""), ""))
        if user is None or user.disabled:
            return pages.login_page(self.name, carried, hint=self._hint())
        if decision == "refuse":
            return self._back(params, error="access_denied", error_description="User denied access")
        consent = (user.email, self._accounts.client_id, scope)
        with self.lock:
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
        return pages.consent_page(
            self.name,
            carried,
            client=self._accounts.client_id,
            email=user.email,
            scope=scope,
            target=f"{target.scheme}://{target.netloc}",
        )

    def _log_in(self, form: Mapping[str, str], carried: Mapping[str, str]) -> Response:
        email = form["email"].strip()
        user = self._user_with_password(email, form.get("password", ""))
        if user is None:
            return pages.login_page(
                self.name,
                carried,
                email=email,
                error="This e-mail address and password do not belong together.",
                hint=self._hint(),
            )
        with self.lock:
            cookie = self.tokens.new_id()
            self._logins[cookie] = user.email
        answer = self._again(carried)
        answer.set_cookie(_COOKIE, cookie, path=self.root, httponly=True, samesite="lax")
        return answer

    def _again(self, carried: Mapping[str, str]) -> Response:
        return RedirectResponse(
            f"authorize?{urlencode(carried)}", 303, headers={"Cache-Control": "no-store"}
        )

    def _back(self, params: Mapping[str, str], **answer: str) -> Response:
        if self._settings.echo_state and params.get("state"):
            answer["state"] = params["state"]
        redirect_uri = params["redirect_uri"]
        joint = "&" if urlsplit(redirect_uri).query else "?"
        return RedirectResponse(
            f"{redirect_uri}{joint}{urlencode(answer)}",
            303 if "decision" in params else 302,
            headers={"Cache-Control": "no-store"},
        )

    def _redirect_allowed(self, uri: str) -> bool:
        if self._settings.redirect_uris is not None:
            return uri in self._settings.redirect_uris
        try:
            parts = urlsplit(uri)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and bool(parts.netloc) and not parts.fragment

    async def log_out(self, request: Request) -> Response:
        """End the browser's login at the simulator, so that another user can log in."""
        answer = pages.message_page(
            self.name, "Logged out", f"You are logged out of {self.name}.", 200
        )
        self._end_login(request, answer)
        return answer

    def _end_login(self, request: Request, answer: Response) -> None:
        with self.lock:
            self._logins.pop(request.cookies.get(_COOKIE, ""), None)
        answer.delete_cookie(_COOKIE, path=self.root, httponly=True, samesite="lax")

    def _hint(self) -> tuple[str, str] | None:
        if not self._settings.hint or not self._accounts.users:
            return None
        return self._accounts.users[0].email, self._accounts.users[0].password

    # The token endpoint, RFC 6749 §4.1.3 and §6

    async def token(self, request: Request) -> Response:
        """Issue tokens for a grant, or refuse it."""
        call = recorded(request)
        try:
            self._check_client(call)
            if request.method != "POST":
                raise OAuthError(405, "method_not_allowed", "Request method 'GET' not supported")
            with self.lock:
                token = self._grant(call)
                answer = self.tokens.answer(token)
        except OAuthError as error:
            return oauth_error(request, error)
        return _negotiated(request, answer, 200)

    def _grant(self, call: RecordedRequest) -> AccessToken:
        """Issue tokens; the order of the checks is that of Spring's `TokenEndpoint`."""
        kind, scope = _given(call, "grant_type"), _given(call, "scope")
        if not set((scope or "").split()) <= self.scopes:
            scopes = " ".join(sorted(self.scopes))
            raise OAuthError(400, "invalid_scope", "Invalid scope", scope=scopes)
        if kind in _GRANT_TYPES and self._settings.scope_required:
            _required(call, "scope")
        match kind:
            case "authorization_code":
                value = _given(call, "code")
                if value is None:
                    text = "An authorization code must be supplied."
                    raise OAuthError(400, "invalid_request", text)
                code = self.tokens.redeem(
                    value,
                    self._accounts.client_id,
                    _given(call, "redirect_uri"),
                    _given(call, "code_verifier"),
                )
                user = self._user_by_email(code.email)
                if user is None or user.disabled:
                    raise OAuthError(400, "invalid_grant", "User is disabled")
                self._refuse_simultaneous(user)
                return self.tokens.log_in(user, self._accounts.client_id, code.scope)
            case "refresh_token":
                value = _required(call, "refresh_token")
                return self.tokens.renew(
                    value, self._accounts.client_id, scope or None, self._user_by_email
                )
            case "password":
                user = self._user_with_password(
                    _given(call, "username") or "", _given(call, "password") or ""
                )
                if user is None:
                    raise OAuthError(400, "invalid_grant", "Bad credentials")
                return self.tokens.log_in(
                    user, self._accounts.client_id, scope or self._settings.scope
                )
            case "implicit":
                text = "Implicit grant type not supported from token endpoint"
                raise OAuthError(400, "invalid_grant", text)
            case "client_credentials":
                text = "Unauthorized grant type: client_credentials"
                raise OAuthError(401, "invalid_client", text)
            case None | "":
                raise OAuthError(400, "invalid_request", "Missing grant type")
            case _:
                raise OAuthError(400, "unsupported_grant_type", "Unsupported grant type")

    def _refuse_simultaneous(self, user: SimulatedUser) -> None:
        now, before = self._clock(), self._exchanged_at.get(user.email, -math.inf)
        self._exchanged_at[user.email] = now
        if self._settings.fail_simultaneous_logins and now - before < 1:
            raise OAuthError(500, "server_error", _SQL)

    def _check_client(self, call: RecordedRequest) -> None:
        """Verify the API key: in the parameters if there is a `client_id`, else in HTTP Basic.

        Spring looks at the parameters first (`ClientCredentialsTokenEndpointFilter`), and then at
        HTTP Basic only if its ID is another one. So Basic beside a `client_id` without its SECRET
        is refused.
        """
        client_id = _given(call, "client_id")
        if client_id is not None and not self._is_key(
            client_id.strip(), _given(call, "client_secret") or ""
        ):
            raise OAuthError(401, "invalid_client", "Bad client credentials", scheme="Form")
        scheme, _, value = call.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            if client_id is None:
                text = "Full authentication is required to access this resource"
                raise OAuthError(401, "unauthorized", text, scheme="Basic")
            return
        try:
            given = base64.b64decode(value, validate=True).decode()
        except ValueError:
            given = ""
        basic_id, _, secret = given.partition(":")
        if basic_id != client_id and not self._is_key(basic_id, secret):
            raise OAuthError(401, "unauthorized", "Bad credentials", scheme="Basic")

    def _is_key(self, client_id: str, secret: str) -> bool:
        expected = f"{self._accounts.client_id}:{self._accounts.client_secret}"
        given = f"{client_id}:{secret}"
        return self._settings.any_key or hmac.compare_digest(given.encode(), expected.encode())

    # Bearer tokens

    def with_bearer(
        self, handler: Callable[[Request, SimulatedUser], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Make an endpoint that passes the user of a valid bearer token to `handler`."""

        async def endpoint(request: Request) -> Response:
            if request.path_params["minor"] > 4:
                raise HTTPException(404)
            value = bearer_of(request)
            if value is None:
                text = "Full authentication is required to access this resource"
                raise OAuthError(401, "unauthorized", text)
            with self.lock:
                try:
                    token = self.tokens.check(value)
                except OAuthError as error:
                    if self._settings.dead_bearer_status == 401:
                        raise
                    raise HTTPException(self._settings.dead_bearer_status) from error
                user = self._user_by_email(token.email)
            if user is None:
                raise OAuthError(401, "invalid_token", "Unknown user")
            return await handler(request, user)

        return endpoint

    async def delete_token(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        """End the request's access token and its refresh token."""
        value = bearer_of(request) or ""
        with self.lock:
            token = self.tokens.access.get(value)
            if token is not None:
                self.tokens.drop_where(lambda r: r.value == token.refresh_token)
                self.tokens.drop_access(value)
        return Response(status_code=204)

    def _new_code(
        self, user: SimulatedUser, redirect_uri: str, scope: str, challenge: str, method: str
    ) -> str:
        """Make an authorization code; the caller holds the lock."""
        return self.tokens.new_code(
            Code(
                email=user.email,
                client_id=self._accounts.client_id,
                redirect_uri=redirect_uri,
                scope=scope,
                challenge=challenge or None,
                challenge_method=method,
                expires_at=self._clock() + self._settings.code_lifetime,
            )
        )

    def _user_by_email(self, email: str) -> SimulatedUser | None:
        wanted = email.lower()
        return next((user for user in self._accounts.users if user.email.lower() == wanted), None)

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


def _given(call: RecordedRequest, name: str) -> str | None:
    """Return a parameter; that of the query comes before that of the body, as in any servlet."""
    return next(iter(call.query.get(name, ())), call.form.get(name))


def _required(call: RecordedRequest, name: str) -> str:
    value = _given(call, name)
    if not value:
        raise OAuthError(400, "invalid_request", f"Missing parameter: {name}")
    return value


def bearer_of(request: Request) -> str | None:
    """Return the access token of the header, or else of the query (RFC 6750 §2.1, §2.3)."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    return request.query_params.get("access_token")


def oauth_error(request: Request, error: Exception) -> Response:
    """Answer with an `OAuthError`, from an OAuth endpoint or from the REST API."""
    if not isinstance(error, OAuthError):
        raise error
    headers = {}
    if error.status == 401:
        realm = "" if error.scheme == "Bearer" else 'realm="oauth2/client", '
        if request.url.path.startswith("/rest/"):
            realm = 'realm="oauth2-resource", '
        headers["WWW-Authenticate"] = (
            f'{error.scheme} {realm}error="{error.error}", error_description="{error.description}"'
        )
    body = {"error": error.error, "error_description": error.description}
    if error.scope is not None:
        body["scope"] = error.scope
    if not request.url.path.startswith("/rest/"):
        return _negotiated(request, body, error.status, headers)
    accept = request.headers.get("accept", "*/*").lower()
    if any(accepted in accept for accepted in ("json", "*/*", "application/*")):
        return JSONResponse(body, error.status, headers)
    if "xml" in accept:
        return _xml(body, error.status, headers)
    # Spring can say it in JSON and in XML only, and then does not say it at all.
    return Response(status_code=406)


def _negotiated(
    request: Request, body: Mapping[str, Any], status: int, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer in JSON if `Accept` names JSON, else in XML, as Spring may do."""
    all_headers = {"Cache-Control": "no-store", "Pragma": "no-cache", **(headers or {})}
    if "application/json" in request.headers.get("accept", "").lower():
        return JSONResponse(body, status, all_headers)
    return _xml(body, status, all_headers)


def _xml(body: Mapping[str, Any], status: int, headers: Mapping[str, str]) -> Response:
    inner = "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in body.items())
    return Response(
        f'<?xml version="1.0" encoding="UTF-8"?><oauth>{inner}</oauth>',
        status,
        dict(headers),
        "application/xml",
    )
