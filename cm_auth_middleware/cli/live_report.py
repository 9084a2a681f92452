"""The report of a live check: what a server does, and no secret.

It is written as JSON, so that a user can attach it to an issue, and so that
`cm_auth_middleware.testing` can make a simulator that does the same. Values come from a server and
may be anything, a token among them: only words that are known, names, numbers and lengths are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SCHEMA = "cm-auth-live-check"
VERSION = 1

KNOWN_ERRORS = frozenset(
    {
        "access_denied",
        "insufficient_scope",
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "invalid_token",
        "server_error",
        "temporarily_unavailable",
        "unauthorized",
        "unauthorized_client",
        "unsupported_grant_type",
        "unsupported_response_type",
        "unsupported_token_type",
    }
)
_KNOWN_SCHEMES = frozenset({"basic", "bearer", "digest", "dpop", "negotiate"})
_PIECE = 8  # letters and digits of a secret that no name may have; a UUID begins with as many
_SHORTEST = 6  # of a secret as a whole that no name may contain; an authorization code has as many
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")
_UUID = r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_SHAPES = {
    "uuid": re.compile(_UUID),
    "uuid:number": re.compile(rf"{_UUID}:[0-9]+"),
    "JWT": re.compile(r"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a token looks like.

    Attributes:
        kind: "uuid", "uuid:number", "JWT", "opaque", or "unusable": not printable ASCII without
            spaces (RFC 6750 §2.1).
        length: characters.
    """

    kind: str
    length: int


@dataclass(frozen=True, slots=True)
class Refused:
    """What an error of the server looks like.

    Attributes:
        error: the member ``error`` if it is a known word, else "another"; empty if there is none.
        members: names of the members of its JSON.
        headers: names of its headers.
        challenge: the scheme in ``WWW-Authenticate``; empty if there is none.
    """

    status: int
    error: str
    members: list[str]
    headers: list[str]
    challenge: str


@dataclass(slots=True)
class Report:
    """What a live check found out; None where something was not tried.

    Attributes:
        server: the name of the one that the package knows by this address, "loopback" or
            "another".
        outcome: "complete", "cancelled" or "broken off".
        login_by: "listener" or "paste": how the code came back.
        logins: the number of logins.
        status_without_bearer: of ``users/self``.
        clock_skew: seconds that the server's clock is ahead.
        reads_form, reads_query: where the token endpoint finds its parameters.
        callback_parameters: names of the parameters of the first callback.
        lifetime, refreshed_lifetime: ``expires_in`` of the login and of the refresh, in seconds.
        is_bearer: True if ``token_type`` says so.
        api_host, refreshed_api_host: "believed", "not believed" or "left out": the API's host in
            the answer to the login and to the refresh; empty if this server names none.
        refresh_gives: "kept", "left out", "rotated", "phantom" (the new one is refused and
            the old one works), "refused" or "failed" (by a 5xx or by what cannot be read).
        replaced_refresh: "refused", "accepted" or "ends the grant": what the use of a refresh
            token does that was replaced.
        bearer_after_refresh: "dead" or "alive": the access token before it; so after the others.
        second_login_access: "same" or "other": the access token; so for the refresh token.
        second_login_fails: "another account" or "no tokens": why it cannot be compared.
        is_quick_login_refused: True if a login right after another was answered by a 5xx.
        repeats_values: True if an error repeats the code or token that it is about.
        compression: the encoding of an answer for which none was asked; empty if there was none.
        rate_limit: calls in a minute before the first 429.
        revoked: the number of logins whose tokens are revoked.
        not_revoked: the number of logins whose tokens could not be revoked, or perhaps not all.
        perhaps_not_revoked: those of them of which all that is known is revoked, but the answer to
            a token call was lost.
    """

    provider: str
    server: str
    scope_asked: str
    package: str
    date: str
    outcome: str = "broken off"
    login_by: str = ""
    logins: int = 0
    status_without_bearer: int | None = None
    clock_skew: int | None = None
    reads_form: bool | None = None
    reads_query: bool | None = None
    refused_code: Refused | None = None
    callback_parameters: list[str] = field(default_factory=list)
    state_echoed: bool | None = None
    exchange: Refused | None = None
    exchange_status: int | None = None
    token_members: list[str] = field(default_factory=list)
    is_bearer: bool | None = None
    api_host: str = ""
    refreshed_api_host: str = ""
    access_token: Shape | None = None
    refresh_token: Shape | None = None
    scope_granted: str = ""
    lifetime: int | None = None
    user_status: int | None = None
    user_fields: list[str] = field(default_factory=list)
    refresh_status: int | None = None
    refreshed_lifetime: int | None = None
    refresh_gives: str = ""
    replaced_refresh: str = ""
    bearer_after_refresh: str = ""
    dead_bearer: Refused | None = None
    scope_needed_by_refresh: bool | None = None
    scope_needed_by_exchange: bool | None = None
    pkce_verified: bool | None = None
    code_survives_wrong_verifier: bool | None = None
    second_login_access: str = ""
    second_login_refresh: str = ""
    first_bearer_after_second_login: str = ""
    second_login_fails: str = ""
    is_quick_login_refused: bool | None = None
    logout_status: int | None = None
    bearer_after_logout: str = ""
    refresh_after_logout: str = ""
    dead_refresh_token: Refused | None = None
    repeats_values: bool = False
    compression: str = ""
    rate_limit: int | None = None
    revoked: int = 0
    not_revoked: int = 0
    perhaps_not_revoked: int = 0

    @property
    def gives_same_tokens(self) -> bool:
        """True if the second login got the tokens of the first."""
        return (self.second_login_access, self.second_login_refresh) == ("same", "same")


def shape(token: str) -> Shape:
    """Return what a token looks like."""
    if not (token.isascii() and token.isprintable()) or " " in token:
        return Shape("unusable", len(token))
    kinds = (kind for kind, pattern in _SHAPES.items() if pattern.fullmatch(token))
    return Shape(next(kinds, "opaque"), len(token))


def names(found: Iterable[Any], secrets: Iterable[str]) -> list[str]:
    """Return the names among these, sorted; "…" for any that is none, or has a piece of a secret.

    A server may make a name of half a token, in other letters, or without its hyphens.
    """
    pieces: set[str] = set()
    for secret in map(_letters, secrets):
        size = min(len(secret), _PIECE)
        if size:
            pieces |= {secret[i : i + size] for i in range(len(secret) - size + 1)}
    return sorted({name if _is_name(name, pieces) else "…" for name in found})


def _is_name(name: Any, hidden: set[str]) -> bool:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return False
    letters = _letters(name)
    return letters not in hidden and not any(
        letters[i : i + size] in hidden
        for size in range(_SHORTEST, _PIECE + 1)
        for i in range(len(letters) - size + 1)
    )


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


def known_error(error: Any) -> str:
    """Return the word of an OAuth error; "another" for one that is not known."""
    if not error:
        return ""
    return error if isinstance(error, str) and error in KNOWN_ERRORS else "another"


def challenge(header: str) -> str:
    """Return the scheme of ``WWW-Authenticate`` (RFC 9110 §11.6.1)."""
    scheme = header.partition(" ")[0].lower()
    if not scheme:
        return ""
    return scheme.capitalize() if scheme in _KNOWN_SCHEMES else "another"
