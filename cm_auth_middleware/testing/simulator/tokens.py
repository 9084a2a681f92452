"""Keep the codes and tokens of the OAuth server, and decide which are valid.

`Tokens` follows `DefaultTokenServices` of Spring Security OAuth 2: the form and the lifetimes of
CameraManager's tokens suggest that it uses this class. The surprising parts come from there, such
as a shared access token, and a refresh that ends the old access token at once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cm_auth_middleware.testing.simulator.settings import Settings, SimulatedUser


@dataclass(frozen=True, slots=True)
class Code:
    """An authorization code that was not exchanged yet; times in seconds since 1970."""

    email: str
    client_id: str
    redirect_uri: str
    scope: str
    challenge: str | None
    challenge_method: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token; those that replace each other by rotation are one `family`."""

    value: str
    email: str
    client_id: str
    scope: str
    family: int
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class AccessToken:
    """An access token, and the refresh token that was issued with it."""

    value: str
    email: str
    client_id: str
    scope: str
    refresh_token: str
    expires_at: float


class OAuthError(Exception):
    """An error that the OAuth server answers with (RFC 6749 §5.2).

    Args:
        scheme: the scheme of WWW-Authenticate; Spring says ``Bearer`` unless the API key is wrong.
        scope: the scopes that there are, which an ``invalid_scope`` of Spring's tells.
    """

    def __init__(
        self,
        status: int,
        error: str,
        description: str,
        *,
        scheme: str = "Bearer",
        scope: str | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.description = description
        self.scheme = scheme
        self.scope = scope


class Tokens:
    """The codes and tokens that are valid now. Not thread-safe: `OAuthServer.lock` guards it."""

    def __init__(self, settings: Settings, rng: random.Random, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.rng = rng
        self.clock = clock
        self.issued: set[str] = set()
        self.outdated: set[str] = set()
        self.clear()

    def clear(self) -> None:
        """Forget all codes and tokens; `outdated` are all that were issued before."""
        self.outdated |= self.issued
        self.codes: dict[str, Code] = {}
        self.access: dict[str, AccessToken] = {}
        self.refresh: dict[str, RefreshToken] = {}
        self.spent: dict[str, int] = {}
        self.shared: dict[tuple[str, str, str], str] = {}
        self.phantoms: dict[str, str] = {}

    def new_id(self) -> str:
        """Make a UUID, which the seed determines."""
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def new_code(self, code: Code) -> str:
        """Keep a code under six random letters and digits, and return these."""
        value = "".join(self.rng.choices(string.ascii_letters + string.digits, k=6))
        self.codes[value] = code
        return value

    def redeem(
        self, value: str, client_id: str, redirect_uri: str | None, verifier: str | None
    ) -> Code:
        """Use up a code (RFC 6749 §4.1.3); a request with a mistake does so, too, as in Spring."""
        code = self.codes.pop(value, None)
        if code is None or code.expires_at <= self.clock():
            raise self._grant_error("Invalid authorization code", value)
        if code.client_id != client_id:
            raise OAuthError(401, "invalid_client", "Client ID mismatch")
        if code.redirect_uri != redirect_uri:
            raise OAuthError(400, "invalid_grant", "Redirect URI mismatch.")
        if self.settings.pkce and not _verifies(code, verifier):
            raise OAuthError(400, "invalid_grant", "Invalid code verifier.")
        return code

    def log_in(self, user: SimulatedUser, client_id: str, scope: str) -> AccessToken:
        """Issue tokens for a login, as `DefaultTokenServices.createAccessToken` does."""
        parent: RefreshToken | None = None
        existing = self.access.get(self.shared.get((user.email, client_id, scope), ""))
        if self.settings.shared_access_token and existing is not None:
            if existing.expires_at > self.clock():
                return existing
            parent = self.refresh.get(existing.refresh_token)
            self.drop_access(existing.value)
        if parent is None or self._expired(parent):
            parent = self._new_refresh(user, client_id, scope, self.rng.getrandbits(64))
        return self._new_access(user, parent, scope)

    def renew(
        self,
        value: str,
        client_id: str,
        scope: str | None,
        user_of: Callable[[str], SimulatedUser | None],
    ) -> AccessToken:
        """Issue tokens for a refresh token, as `DefaultTokenServices.refreshAccessToken` does.

        Args:
            scope: the scope to narrow the new tokens to; `None` keeps that of the login.
        """
        token = self.refresh.get(value)
        if token is None:
            family = self.spent.get(value)
            if family is not None and self.settings.revoke_family_on_reuse:
                self.drop_where(lambda later: later.family == family)
            raise self._grant_error("Invalid refresh token", value)
        if token.client_id != client_id:
            raise self._grant_error("Wrong client for this refresh token", value)
        user = user_of(token.email)
        if user is None or user.disabled:
            raise OAuthError(400, "invalid_grant", "User is disabled")
        is_expired = self._expired(token)
        # With JdbcTokenStore, whose transaction such an error rolls back, the old access token
        # outlives it; with InMemoryTokenStore it does not.
        if not is_expired and not set((scope or "").split()) <= set(token.scope.split()):
            text = "Unable to narrow the scope of the client authentication"
            raise OAuthError(400, "invalid_scope", f"{text} to {scope}.", scope=token.scope)
        # The old access token ends first, even if the refresh is then refused.
        for access in [a for a in self.access.values() if a.refresh_token == value]:
            self.drop_access(access.value)
        if is_expired:
            del self.refresh[value]
            raise self._token_error("Invalid refresh token (expired)", value)
        if self.settings.rotate_refresh_tokens:
            del self.refresh[value]
            self.spent[value] = token.family
            token = self._new_refresh(user, client_id, scope or token.scope, token.family)
        access = self._new_access(user, token, scope or token.scope)
        if self.settings.phantom_refresh_tokens:
            self.phantoms[access.value] = f"{self.new_id()}:{user.user_id}"
        return access

    def check(self, value: str) -> AccessToken:
        """Return a valid access token, as `DefaultTokenServices.loadAuthentication` does."""
        token = self.access.get(value)
        if token is None:
            raise self._token_error("Invalid access token", value)
        if token.expires_at <= self.clock():
            self.drop_access(value)
            raise self._token_error("Access token expired", value)
        return token

    def drop_access(self, value: str) -> None:
        """End an access token."""
        token = self.access.pop(value, None)
        if token is not None:
            key = (token.email, token.client_id, token.scope)
            if self.shared.get(key) == value:
                del self.shared[key]

    def drop_where(self, condemned: Callable[[RefreshToken], bool]) -> None:
        """End the refresh tokens for which `condemned` is True, and their access tokens."""
        gone = {token.value for token in self.refresh.values() if condemned(token)}
        for value in gone:
            del self.refresh[value]
        for access in [a for a in self.access.values() if a.refresh_token in gone]:
            self.drop_access(access.value)

    def answer(self, token: AccessToken) -> dict[str, Any]:
        """Return the body of a successful answer (RFC 6749 §5.1)."""
        return {
            "access_token": token.value,
            "token_type": "bearer",
            "refresh_token": self.phantoms.get(token.value, token.refresh_token),
            "expires_in": max(0, int(token.expires_at - self.clock())),
            "scope": token.scope,
        }

    def _new_refresh(
        self, user: SimulatedUser, client_id: str, scope: str, family: int
    ) -> RefreshToken:
        lifetime = self.settings.refresh_token_lifetime
        token = RefreshToken(
            value=self._refresh_value(user),
            email=user.email,
            client_id=client_id,
            scope=scope,
            family=family,
            expires_at=None if lifetime is None else self.clock() + lifetime,
        )
        self.refresh[token.value] = token
        self.issued.add(token.value)
        return token

    def _new_access(self, user: SimulatedUser, parent: RefreshToken, scope: str) -> AccessToken:
        token = AccessToken(
            value=self._access_value(user),
            email=parent.email,
            client_id=parent.client_id,
            scope=scope,
            refresh_token=parent.value,
            expires_at=self.clock() + self.settings.access_token_lifetime,
        )
        self.access[token.value] = token
        self.issued.add(token.value)
        self.shared[(token.email, token.client_id, token.scope)] = token.value
        return token

    def _refresh_value(self, user: SimulatedUser) -> str:
        return f"{self.new_id()}:{user.user_id}"

    def _access_value(self, user: SimulatedUser) -> str:
        return f"{self.new_id()}:{user.user_id}"

    def _expired(self, token: RefreshToken) -> bool:
        return token.expires_at is not None and token.expires_at <= self.clock()

    def _grant_error(self, text: str, value: str) -> OAuthError:
        return OAuthError(400, "invalid_grant", self._describe(text, value))

    def _token_error(self, text: str, value: str) -> OAuthError:
        return OAuthError(401, "invalid_token", self._describe(text, value))

    def _describe(self, text: str, value: str) -> str:
        return f"{text}: {value}" if self.settings.repeat_tokens_in_errors else text


def _verifies(code: Code, verifier: str | None) -> bool:
    """True if the verifier belongs to the code's challenge (RFC 7636 §4.6)."""
    if code.challenge is None:
        return True
    if verifier is None:
        return False
    made = verifier
    if code.challenge_method == "S256":
        digest = hashlib.sha256(verifier.encode()).digest()
        made = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return hmac.compare_digest(made.encode(), code.challenge.encode())
