"""The messages to CameraManager: authorize URL, code exchange, refresh, logout, ``users/self``."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import httpx2

from .config import CMAuthConfig, seconds
from .errors import OAuthError, OperatorError, TokenRefusedError, UnavailableError
from .session import Tokens

if TYPE_CHECKING:
    from .ports import Ports

GRANT_REFUSED = frozenset({"invalid_grant", "invalid_token"})
_KEY_REFUSED = frozenset({"invalid_client", "unauthorized", "unauthorized_client"})
_KNOWN = GRANT_REFUSED | {
    "invalid_request",
    "invalid_scope",
    "unsupported_grant_type",
    "access_denied",
}
_MOST_USER = 100_000  # bytes of users/self: it is kept with the session
_UNKNOWN_LIFETIME = 3600.0  # seconds, when expires_in is missing or no number
_SHORTEST_LIFETIME = 10.0  # seconds: a server that says 0 must not make us refresh on every request
_LONGEST_LIFETIME = 10 * 365 * 86_400.0
_HEADERS = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}


class CameraManager:
    """CameraManager's OAuth server, as this application's API key sees it."""

    def __init__(self, config: CMAuthConfig, ports: Ports) -> None:
        self._config = config
        self._ports = ports
        self._token_url = f"{config.base_url}/oauth/token"

    def authorization_url(self, redirect_uri: str, state: str, code_verifier: str) -> str:
        """Where to send the browser (RFC 6749 §4.1.1, RFC 7636 §4.3)."""
        from authlib.oauth2.rfc6749.parameters import prepare_grant_uri  # when first needed
        from authlib.oauth2.rfc7636 import create_s256_code_challenge

        url = prepare_grant_uri(
            f"{self._config.base_url}/oauth/authorize",
            client_id=self._config.client_id,
            response_type="code",
            redirect_uri=redirect_uri,
            scope=self._config.scope,
            state=state,
            code_challenge=create_s256_code_challenge(code_verifier),
            code_challenge_method="S256",
        )
        return str(url)

    async def exchange(self, code: str, redirect_uri: str, code_verifier: str) -> Tokens:
        """Trade a code for tokens (RFC 6749 §4.1.3): `redirect_uri` byte for byte the first one."""
        answer = await self._token_call(
            lambda client: client.fetch_token(
                self._token_url,
                grant_type="authorization_code",
                code=code,
                redirect_uri=redirect_uri,
                code_verifier=code_verifier,
                scope=self._config.scope,  # which Authlib sends with a refresh only
                headers=dict(_HEADERS),
            )
        )
        return self._tokens(answer, None)

    async def refresh(self, refresh_token: str) -> Tokens:
        """Trade a refresh token for new tokens (RFC 6749 §6).

        Raises:
            OAuthError: with ``invalid_grant`` or ``invalid_token`` the grant is over.
            OperatorError: the API key is refused.
            UnavailableError: ask again later.
        """
        answer = await self._token_call(
            lambda client: client.refresh_token(
                self._token_url, refresh_token=refresh_token, headers=dict(_HEADERS)
            )
        )
        return self._tokens(answer, refresh_token)

    async def user(self, access_token: str) -> dict[str, Any]:
        """Read ``users/self``."""
        response = await self._api_call("GET", "/rest/v2.3/users/self", access_token)
        if response.status_code == 401:
            raise TokenRefusedError("CameraManager answered 401 to users/self")
        if response.status_code != 200:
            raise UnavailableError(f"CameraManager answered {response.status_code} to users/self")
        try:
            user = _json(response)
        except ValueError:
            user = None
        if not isinstance(user, dict) or len(response.content) > _MOST_USER:
            raise UnavailableError("CameraManager's users/self is no small JSON object")
        return user

    async def revoke(self, access_token: str) -> bool:
        """Delete the access and the refresh token at CameraManager (the guide's logout).

        Returns:
            Whether it did; else the access token is dead already.

        Raises:
            UnavailableError: ask again later.
        """
        path = "/rest/v2.0/users/self/tokens/current"
        status = (await self._api_call("DELETE", path, access_token)).status_code
        if status == 429 or status >= 500:
            raise UnavailableError(f"CameraManager answered {status} to a logout")
        return status < 300

    async def _api_call(self, method: str, path: str, access_token: str) -> httpx2.Response:
        url = self._config.base_url + path
        headers = {"Accept": "application/json", "Authorization": f"Bearer {access_token}"}
        response: httpx2.Response = await self._guarded(self._ports.api_call(method, url, headers))
        return response

    async def _token_call(self, send: Callable[[Any], Any]) -> dict[str, Any]:
        from authlib.integrations.base_client import OAuthError as AuthlibError

        def checked_send(client: Any) -> Any:
            client.register_compliance_hook("access_token_response", _checked)
            client.register_compliance_hook("refresh_token_response", _checked)
            return send(client)

        call = self._ports.oauth_call(
            checked_send,
            client_id=self._config.client_id,
            client_secret=self._config.client_secret,
            token_endpoint_auth_method="client_secret_basic",  # noqa: S106 - a method's name
            scope=self._config.scope,
        )
        try:
            return dict(await self._guarded(call))
        except AuthlibError as refused:
            error = str(refused.error)
        # Raised out here, so that Authlib's error (whose description may repeat a token) is not
        # its context.
        if error in _KEY_REFUSED:
            raise OperatorError(error)
        raise OAuthError(error if error in _KNOWN else "an unknown error")

    async def _guarded(self, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except httpx2.HTTPError as error:
            reason = type(error).__name__
        except (ValueError, httpx2.StreamError):
            reason = "an answer that is no JSON object"
        raise UnavailableError(f"CameraManager cannot be reached ({reason})")

    def _tokens(self, answer: dict[str, Any], refresh_token: str | None) -> Tokens:
        now = self._ports.clock()
        lifetime = answer["expires_in"]
        if refresh_token is not None:
            lifetime = max(lifetime, _SHORTEST_LIFETIME)
        leeway = min(seconds(self._config.refresh_leeway), lifetime / 2)
        return Tokens(
            access_token=answer["access_token"],
            refresh_token=answer.get("refresh_token") or refresh_token,
            expires_at=now + lifetime,
            refresh_at=now + lifetime - leeway,
            scope=answer.get("scope") or self._config.scope,
        )


def _checked(response: httpx2.Response) -> httpx2.Response:
    """Let a token answer through to Authlib once every field of it is what it says it is."""
    if response.status_code == 429 or response.status_code >= 500:
        raise UnavailableError(
            f"CameraManager answered {response.status_code}",
            retry_after=_retry_after(response.headers.get("Retry-After")),
        )
    if response.is_redirect:
        raise UnavailableError("CameraManager redirected the token call")
    answer = _json(response)
    if not isinstance(answer, dict):
        raise ValueError("no JSON object")
    if "error" in answer:
        error = answer["error"] if isinstance(answer["error"], str) else "unknown"
        # Its description, which may repeat a token, goes no further.
        return httpx2.Response(
            response.status_code, json={"error": error}, request=response.request
        )
    if response.status_code != 200:
        raise UnavailableError(f"CameraManager answered {response.status_code}")
    clean: dict[str, Any] = {"expires_in": _lifetime(answer.get("expires_in"))}
    if str(answer.get("token_type") or "bearer").lower() != "bearer":
        raise UnavailableError("CameraManager gave a token that is no bearer token")
    for name in ("access_token", "refresh_token", "scope"):
        value = answer.get(name)
        if isinstance(value, str) and value.isascii() and value.isprintable() and value:
            clean[name] = value  # RFC 6749 appendix A: printable ASCII
    if not clean.get("access_token") or " " in clean["access_token"]:
        raise UnavailableError("CameraManager gave no access token")
    return httpx2.Response(200, json=clean, request=response.request)


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _lifetime(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return _UNKNOWN_LIFETIME
    if math.isnan(seconds) or isinstance(value, bool):
        return _UNKNOWN_LIFETIME
    return min(max(seconds, 0.0), _LONGEST_LIFETIME)


def _retry_after(value: str | None) -> float:
    """Seconds to wait; the date form of Retry-After (RFC 9110 §10.2.3) counts as the least."""
    return min(float(value), 60.0) if value and value.isdecimal() else 1.0
