"""Describe the servers: their URLs, how they are given the key, and how they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """An OAuth server and its API. Everything in which two servers differ is in here.

    Paths are below the option ``base_url``, those of the API below `api_url`.

    Attributes:
        base_url: default of the option of this name.
        scopes: values that the option ``scope`` may have; the first is its default.
        included_scopes: pairs of scopes of which the first includes the second.
        authorize_path: where a browser logs in (RFC 6749 §3.1).
        token_path: where codes and refresh tokens are exchanged (RFC 6749 §3.2).
        api_path: what the relative URLs of a ready client are relative to.
        user_path: the user of an access token, as a JSON object.
        user_id_field: the member of that object that identifies the user.
        logout_path: where a grant is ended.
        revokes_refresh_tokens: True if a grant is ended by a POST of the refresh token with the
            API key (RFC 7009); False if by a DELETE with the access token as the bearer, which has
            to be a living one.
        encodes_key: True if the server percent-decodes the ID and SECRET of HTTP Basic, as RFC 6749
            §2.3.1 wants; False if it takes them as they are.
        key_errors: error codes that say that the API key is refused: the operator's mistake, which
            must not end any session.
        is_grant_over: given the status and the error code (empty if there is none) of a refused
            token call, True if the grant has ended and the user has to log in again.
    """

    base_url: str
    scopes: tuple[str, ...]
    authorize_path: str
    token_path: str
    api_path: str
    user_path: str
    user_id_field: str
    logout_path: str
    revokes_refresh_tokens: bool
    encodes_key: bool
    key_errors: frozenset[str]
    is_grant_over: Callable[[int, str], bool]
    included_scopes: tuple[tuple[str, str], ...] = ()

    @property
    def defaults(self) -> dict[str, str]:
        """Return the defaults of the options that depend on the provider, by their names."""
        return {"base_url": self.base_url, "scope": self.scopes[0]}

    def api_url(self, base_url: str) -> str:
        """Return the URL that the API's paths are below."""
        return base_url + self.api_path

    def user_url(self, base_url: str) -> str:
        """Return the URL of the user of an access token."""
        return self.api_url(base_url) + self.user_path


def _is_refused_by_code(_: int, error: str) -> bool:
    # An expired refresh token is `invalid_token`, any other dead one `invalid_grant` (Spring).
    return error in ("invalid_grant", "invalid_token")


CAMERAMANAGER = Provider(
    base_url="https://rest.cameramanager.com",
    scopes=("write", "read"),
    included_scopes=(("write", "read"),),
    authorize_path="/oauth/authorize",
    token_path="/oauth/token",  # noqa: S106 - a path
    api_path="",
    user_path="/rest/v2.3/users/self",
    user_id_field="userId",
    logout_path="/rest/v2.0/users/self/tokens/current",
    revokes_refresh_tokens=False,
    encodes_key=False,  # Spring Security OAuth does not decode it
    key_errors=frozenset({"invalid_client", "unauthorized", "unauthorized_client"}),
    is_grant_over=_is_refused_by_code,
)
PROVIDERS = {"cameramanager": CAMERAMANAGER}


def find_provider(provider: str | Provider) -> Provider:
    """Return the provider that the option ``provider`` names.

    Raises:
        ConfigError: no provider has this name.
    """
    if isinstance(provider, Provider):
        return provider
    found = PROVIDERS.get(provider) if isinstance(provider, str) else None
    if found is None:
        names = " or ".join(f"'{name}'" for name in PROVIDERS)
        raise ConfigError(f"provider is unknown: give {names}, or a Provider")
    return found
