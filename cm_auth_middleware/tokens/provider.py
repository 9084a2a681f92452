"""Describe the servers: their URLs, how they are given the key, and how they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigError

# Lower case, without a dot at its end, without IDN: one spelling of each name.
_LABEL = r"(?!xn--)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})+")
_LOOPBACK = ("localhost", "127.0.0.1")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """An OAuth server and its API. Everything in which two servers differ is in here.

    Paths are below the option ``base_url``, those of the API below `api_url`. To describe a server
    that differs from another one in some points, use `dataclasses.replace`.

    Attributes:
        name: what the pages call it.
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
        api_host_field: the member of a token answer that says where the API is, as an object with
            ``hostname`` and ``port``; empty if the API is at ``base_url``.
        api_domains: the domains that such a host has to be below, and each host of the server that
            has pictures and videos. The bearer token goes there: name only those whose every host
            is the server's own.
    """

    name: str
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
    api_host_field: str = ""
    api_domains: tuple[str, ...] = ()

    @property
    def defaults(self) -> dict[str, str]:
        """Return the defaults of the options that depend on the provider, by their names."""
        return {"base_url": self.base_url, "scope": self.scopes[0]}

    def api_url(self, api_base: str) -> str:
        """Return the URL that the API's paths are below, for the scheme and host of the API."""
        return api_base + self.api_path

    def user_url(self, api_base: str) -> str:
        """Return the URL of the user of an access token."""
        return self.api_url(api_base) + self.user_path

    def probe_url(self, base_url: str) -> str | None:
        """Return a URL that answers 401 to a request without a token.

        None if there is none before a login, which is when the API's host becomes known.
        """
        return None if self.api_host_field else self.user_url(base_url)

    def api_base(self, answer: Mapping[str, Any], base_url: str) -> str | None:
        """Return the scheme and host of the API that a token answer names.

        The bearer token goes there, so a host is believed only if it is spelled in the one plain
        way, and is below `api_domains`; or on this machine, if the server itself is.

        Returns:
            An empty string if the API is at `base_url`; None if the answer names no host, or one
            that is not believed.
        """
        if not self.api_host_field:
            return ""
        named = answer.get(self.api_host_field)
        host = named.get("hostname") if isinstance(named, Mapping) else None
        if not isinstance(named, Mapping) or not isinstance(host, str):
            return None
        return self._own_origin(host, named.get("port"), base_url)

    def media_origin(self, host: str, port: int | None, base_url: str) -> str | None:
        """Return the scheme and host of one that has media; None if it must not get the token.

        A page may have named it: on this machine that cannot be the port of another program.

        Args:
            host: its name.
            port: None for the scheme's own.
        """
        if not self.api_host_field or (host in _LOOPBACK and port != urlsplit(base_url).port):
            return None
        return self._own_origin(host, port, base_url)

    def _own_origin(self, host: str, port: Any, base_url: str) -> str | None:
        if port is not None and (type(port) is not int or not 1 <= port <= 65_535):
            return None
        own, domains = urlsplit(base_url), tuple(f".{name}" for name in self.api_domains)
        if host in _LOOPBACK and own.hostname in _LOOPBACK:
            scheme = own.scheme
        elif _NAME.fullmatch(host) and host.endswith(domains):
            scheme = "https"
        else:
            return None
        return (
            f"{scheme}://{host}" if port in (None, _PORTS[scheme]) else f"{scheme}://{host}:{port}"
        )


def _is_refused_by_code(_: int, error: str) -> bool:
    # An expired refresh token is `invalid_token`, any other dead one `invalid_grant` (Spring).
    return error in ("invalid_grant", "invalid_token")


CAMERAMANAGER = Provider(
    name="CameraManager",
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


def _is_refused_by_status(status: int, _: str) -> bool:
    # The bodies are not documented. What a dead refresh token is answered with must not look like
    # an outage; the errors that are about the key are in `key_errors`, which count before.
    return status in (400, 401)


EAGLEEYE = Provider(
    name="Eagle Eye",
    base_url="https://auth.eagleeyenetworks.com",
    scopes=("vms.all",),
    authorize_path="/oauth2/authorize",
    token_path="/oauth2/token",  # noqa: S106 - a path
    api_path="/api/v3.0",
    user_path="/users/self",
    user_id_field="id",
    logout_path="/oauth2/revoke",
    revokes_refresh_tokens=True,
    encodes_key=True,  # Spring Authorization Server decodes it
    key_errors=frozenset({"invalid_client", "unauthorized_client"}),
    is_grant_over=_is_refused_by_status,
    api_host_field="httpsBaseUrl",
    api_domains=("eagleeyenetworks.com",),
)
PROVIDERS = {"cameramanager": CAMERAMANAGER, "eagleeye": EAGLEEYE}


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
