"""The messages to the OAuth server: authorize URL, code exchange, refresh, logout, the user."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from ..errors import (
    OAuthError,
    OperatorError,
    TokenRefusedError,
    TooManyCallsError,
    UnavailableError,
)
from ..events import log
from ..sessions.record import Tokens, dumps

if TYPE_CHECKING:
    import httpx2

    from ..runtime.base import Connections, Runtime
    from .provider import Provider

# Error codes that may be shown; the server might put anything into another one.
_KNOWN = (
    "access_denied", "invalid_grant", "invalid_request", "invalid_scope", "invalid_token",
    "unsupported_grant_type",
)  # fmt: skip
_MOST_USER = 100_000  # bytes of the user's JSON: it is kept with the session
_MOST_LEVELS = 32  # of lists and objects in it: Python's JSON does not read any number
_MOST_URIS = 64  # redirect URIs whose part of the authorization URL is kept
_MOST_HOST = 100  # characters of a refused host in a log
_MOST_TOKEN = 8_192  # characters; servers take no longer header (nginx and Tomcat: 8 kB)
_UNKNOWN_LIFETIME = 3600.0  # seconds, when expires_in is missing or no number
_SHORTEST_LIFETIME = 10.0  # seconds: a server that says 0 must not cause a refresh at each request
_LONGEST_LIFETIME = 10 * 365 * 86_400.0

Timed = Callable[[str], AbstractContextManager[Any]]


class OAuthClient:
    """An OAuth server as the client with this application's API key sees it.

    Args:
        scope: that logins ask for.
        refresh_leeway: seconds before its expiry that an access token is due for a refresh.
        timed: measures the operation that it is given the name of.

    Attributes:
        token_url: where codes and refresh tokens are exchanged.
        logout_url: where a grant is ended.
    """

    def __init__(
        self,
        provider: Provider,
        runtime: Runtime,
        *,
        base_url: str,
        client_id: str,
        client_secret: str,
        scope: str,
        refresh_leeway: float,
        timed: Timed = nullcontext,
    ) -> None:
        self._provider = provider
        self._runtime = runtime
        self._base_url = base_url
        self.token_url = base_url + provider.token_path
        self.logout_url = base_url + provider.logout_path
        self._client_id = client_id
        self._client_secret = client_secret
        self._scope = scope
        self._leeway = refresh_leeway
        self._timed = timed
        self._connections: Connections = "calls"
        # There is one redirect URI for each host name and port that visitors use.
        self._prepared = lru_cache(_MOST_URIS)(self._prepare)

    def load(self) -> None:
        """Load what makes the messages."""
        import authlib.oauth2.auth
        import authlib.oauth2.rfc7636  # noqa: F401

    def for_logins(self) -> OAuthClient:
        """Return the same client with connections of its own, which logins may use up."""
        client = copy.copy(self)
        client._connections = "logins"
        return client

    def authorization_url(self, redirect_uri: str, state: str, code_verifier: str) -> str:
        """Return the URL to send the browser to (RFC 6749 §4.1.1, RFC 7636 §4.3).

        Args:
            state: of characters that stand for themselves in a query.
        """
        return self._prepared(redirect_uri)(state, code_verifier)

    def _prepare(self, redirect_uri: str) -> Callable[[str, str], str]:
        """Return what makes the authorization URLs of a redirect URI: two parameters differ."""
        from authlib.oauth2.rfc6749.parameters import prepare_grant_uri  # when first needed
        from authlib.oauth2.rfc7636 import create_s256_code_challenge

        url = prepare_grant_uri(
            self._base_url + self._provider.authorize_path,
            client_id=self._client_id,
            response_type="code",
            redirect_uri=redirect_uri,
            scope=self._scope,
            code_challenge_method="S256",
        )

        def authorization_url(state: str, code_verifier: str) -> str:
            challenge = create_s256_code_challenge(code_verifier)
            return f"{url}&state={state}&code_challenge={challenge}"

        return authorization_url

    async def exchange(self, code: str, redirect_uri: str, code_verifier: str) -> Tokens:
        """Exchange a code for tokens (RFC 6749 §4.1.3).

        Args:
            redirect_uri: byte for byte the one of the authorization URL.

        Raises: as `refresh`.
        """
        with self._timed("exchange"):
            return await self._token_call(
                "authorization_code",
                code=code,
                redirect_uri=redirect_uri,
                code_verifier=code_verifier,
            )

    async def refresh(self, refresh_token: str, api_base: str) -> Tokens:
        """Exchange a refresh token for new tokens (RFC 6749 §6).

        Args:
            api_base: of the tokens until now. It stays if the answer names no API to be believed.

        Raises:
            OperatorError: the API key is refused.
            OAuthError: any other refusal; `is_grant_over` is True if the grant has ended.
            TooManyCallsError: it was one call too many.
            UnavailableError: try again later.
        """
        with self._timed("refresh"):
            return await self._token_call("refresh_token", api_base, refresh_token=refresh_token)

    async def user(self, access_token: str, api_base: str) -> dict[str, Any]:
        """Return the user of an access token.

        Args:
            api_base: as in `Tokens`.

        Raises:
            UnavailableError: try again later.
        """
        with self._timed("user"):
            response = await self._send("GET", self.user_url(api_base), _bearer(access_token))
            if response.status_code in (401, 403):
                raise TokenRefusedError(
                    f"the server answered {response.status_code} to the question for the user"
                )
            if response.status_code != 200:
                raise UnavailableError(
                    f"the server answered {response.status_code} to the question for the user"
                )
            # Python reads NaN, and 1e999 as infinity, and would write them: to a browser they are
            # no JSON (RFC 8259 §6).
            user = _json(response, parse_constant=lambda _: None, parse_float=_finite)
            if not isinstance(user, dict) or not _can_be_kept(user):
                raise UnavailableError("the server's user is no small JSON object")
        return user

    def user_url(self, api_base: str) -> str:
        """Return where the user is read; `api_base` as in `Tokens`."""
        return self._provider.user_url(api_base or self._base_url)

    async def revoke(self, tokens: Tokens) -> bool:
        """End a grant at the server.

        Returns:
            True if the server did; False if it refused, as for an access token that is dead.

        Raises:
            UnavailableError: try again later.
        """
        with self._timed("revoke"):
            if self._provider.revokes_refresh_tokens:  # RFC 7009 §2.1
                body = urlencode({"token": tokens.refresh_token or tokens.access_token})
                response = await self._send_with_key(self.logout_url, body)
            else:
                response = await self._send("DELETE", self.logout_url, _bearer(tokens.access_token))
            status = response.status_code
            if status == 429 or status >= 500:
                raise UnavailableError(f"the server answered {status} to a logout")
        return status < 300

    async def try_to_revoke(self, tokens: Tokens) -> None:
        """End a grant at the server; failures are logged and not raised."""
        try:
            if not await self.revoke(tokens):
                log("revoke_failed", reason="the server refused it")
        except UnavailableError as error:
            log("revoke_failed", reason=error)

    async def revoke_newest(self, tokens: Tokens) -> None:
        """End a grant at the server, also when its access token has expired.

        Failures are logged and not raised.
        """
        try:
            if await self.revoke(tokens):
                return
            # Only a living access token ends a grant, and this one has expired.
            for refresh_token in (tokens.refresh_token, tokens.former_refresh_token):
                if refresh_token is None or self._provider.revokes_refresh_tokens:
                    continue
                try:
                    fresh = await self.refresh(refresh_token, tokens.api_base)
                    await self.try_to_revoke(fresh)
                    return
                except OAuthError as error:
                    if not error.is_grant_over:  # else it had ended already
                        raise
        except (OAuthError, UnavailableError) as error:
            log("revoke_failed", reason=error)

    # -- inside ----------------------------------------------------------------------------

    async def _token_call(
        self, grant_type: str, api_base: str | None = None, **parameters: str
    ) -> Tokens:
        """Call the token endpoint; return the tokens of its answer, checked."""
        from authlib.oauth2.rfc6749.parameters import prepare_token_request  # when first needed

        body = prepare_token_request(grant_type, scope=self._scope, **parameters)
        response = await self._send_with_key(self.token_url, body)
        return self._tokens(response, parameters.get("refresh_token"), api_base)

    async def _send_with_key(self, url: str, body: str) -> httpx2.Response:
        """POST a form with the API key (RFC 6749 §2.3.1)."""
        from authlib.oauth2.auth import ClientAuth  # when first needed

        key = [self._client_id, self._client_secret]
        if self._provider.encodes_key:
            key = [quote(part, safe="") for part in key]
        headers = {
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        url, headers, body = ClientAuth(*key, "client_secret_basic").prepare(
            "POST", url, headers, body
        )
        return await self._send("POST", url, headers, body.encode())

    async def _send(
        self, method: str, url: str, headers: dict[str, str], content: bytes | None = None
    ) -> httpx2.Response:
        import httpx2  # when first needed

        try:
            return await self._runtime.call(
                method, url, headers=headers, content=content, connections=self._connections
            )
        except (httpx2.HTTPError, httpx2.StreamError, ValueError) as error:
            reason = type(error).__name__
        # Raised out here, so that httpx2's error, which may repeat the URL, is not its context.
        raise UnavailableError(f"the server cannot be reached ({reason})")

    def _tokens(self, response: httpx2.Response, old: str | None, api_base: str | None) -> Tokens:
        """Check a token answer and return its tokens.

        ``error_description``, which may repeat a token, is not looked at.

        Args:
            old: the refresh token that was exchanged, which stays if the answer has none.
            api_base: where the API was until now; None at a login.
        """
        status = response.status_code
        if status == 429 or status >= 500:
            wait = _retry_after(response.headers.get("Retry-After"))
            kind = TooManyCallsError if status == 429 else UnavailableError
            raise kind(f"the server answered {status}", retry_after=wait)
        if response.is_redirect:
            raise UnavailableError("the server redirected the token call")
        answer = _json(response)
        members: dict[str, Any] = answer if isinstance(answer, dict) else {}
        if status != 200 or "error" in members:
            error = members.get("error", "")
            self._raise_refusal(status, error if isinstance(error, str) else "", members)
        if not isinstance(answer, dict):
            raise UnavailableError("the server's answer is no JSON object")
        if str(members.get("token_type") or "bearer").lower() != "bearer":
            raise UnavailableError("the server gave a token that is no bearer token")
        access_token = _printable(members.get("access_token"))
        if not access_token or " " in access_token:
            raise UnavailableError("the server gave no access token")
        now, lifetime = self._runtime.clock(), _lifetime(members.get("expires_in"))
        if old is not None:
            lifetime = max(lifetime, _SHORTEST_LIFETIME)
        refresh_token = _printable(members.get("refresh_token")) or old
        scope = _printable(members.get("scope")) or self._scope
        if max(map(len, (access_token, refresh_token or "", scope))) > _MOST_TOKEN:
            raise UnavailableError("the server gave a token or a scope that is too long")
        return Tokens(
            access_token=access_token,
            refresh_token=refresh_token,
            expires_at=now + lifetime,
            refresh_at=now + lifetime - min(self._leeway, lifetime / 2),
            scope=scope,
            former_refresh_token=None if refresh_token == old else old,
            api_base=self._api_base(members, api_base),
        )

    def _api_base(self, members: dict[str, Any], old: str | None) -> str:
        """Return where the API is: the bearer goes to no host that is not believed.

        A refresh that names such a host has given new tokens all the same, and the old ones are
        dead: they go on at the old host.
        """
        found = self._provider.api_base(members, self._base_url)
        if found is not None:
            return found
        named = members.get(self._provider.api_host_field)
        if named is not None:
            host = _shown_host(named)
            if old is None:
                raise UnavailableError(
                    f"the host of the API that the server names is refused: {host}"
                )
            log("api_host_refused", host=host)
        elif old is None:
            raise UnavailableError("the server names no host of its API")
        return old

    def _raise_refusal(self, status: int, error: str, members: dict[str, Any]) -> None:
        if error in self._provider.key_errors:
            raise OperatorError(error)
        shown = error if error in _KNOWN else "an unknown error"
        is_over = self._provider.is_grant_over(status, error)
        if is_over or "error" in members:
            raise OAuthError(shown, is_grant_over=is_over)
        raise UnavailableError(f"the server answered {status}", status=status)


def _bearer(access_token: str) -> dict[str, str]:
    return {"Accept": "application/json", "Authorization": f"Bearer {access_token}"}


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _json(response: httpx2.Response, **hooks: Callable[[str], Any]) -> Any:
    """Return the JSON value of a response; None if it holds none."""
    try:
        return response.json(**hooks)
    except (ValueError, RecursionError):
        return None


def _can_be_kept(user: dict[str, Any]) -> bool:
    """Return True if a user is small as a session keeps it, and not deep."""
    return _is_shallow(user, _MOST_LEVELS) and len(dumps(user)) <= _MOST_USER


def _is_shallow(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_shallow(item, levels - 1) for item in inner)


def _printable(value: Any) -> str | None:
    """Return a member of printable ASCII (RFC 6749 appendix A); None for anything else."""
    is_valid = isinstance(value, str) and value.isascii() and value.isprintable()
    return value if is_valid else None


def _shown_host(named: Any) -> str:
    """Return the start of what a server names as the host of its API, and its port, quoted."""
    parts = [named.get("hostname"), named.get("port")] if isinstance(named, dict) else [named]
    # Never a whole list or object, which may be of any depth.
    words = [str(part) for part in parts if isinstance(part, str | int | float)]
    return repr(":".join(words)[:_MOST_HOST])


def _lifetime(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return _UNKNOWN_LIFETIME
    if math.isnan(seconds) or isinstance(value, bool):
        return _UNKNOWN_LIFETIME
    return min(max(seconds, 0.0), _LONGEST_LIFETIME)


def _retry_after(value: str | None) -> float:
    """Return the seconds to wait: 1 if Retry-After is a date (RFC 9110 §10.2.3)."""
    return min(float(value), 60.0) if value and value.isdecimal() else 1.0
