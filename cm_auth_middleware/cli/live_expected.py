"""What a live check expects of a server, which is what the tests of this package are made with.

Of CameraManager it is concluded from guides and other clients, of Eagle Eye's API v3 from its
documentation and samples.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a server is expected to do.

    Attributes:
        access_token: kind of `Shape`.
        refresh_token: the same; None if any will do.
        lifetime: seconds of an access token.
        refresh_gives: values of `Report.refresh_gives` that are expected.
        refresh_lasts: how long a refresh token lives, as the end of a sentence.
        scope_needed: True if the token endpoint wants ``scope``; None if that is not known.
        verifies_pkce: True if a wrong PKCE verifier is refused.
        shares_tokens: True if each login of an account gets the same tokens.
    """

    access_token: str
    refresh_token: str | None
    lifetime: int
    refresh_gives: tuple[str, ...]
    refresh_lasts: str
    scope_needed: bool | None
    verifies_pkce: bool
    shares_tokens: bool


_CAMERAMANAGER = Expected(
    access_token="uuid:number",  # noqa: S106 - a kind
    refresh_token="uuid:number",  # noqa: S106
    lifetime=43_199,
    refresh_gives=("kept", "left out"),
    refresh_lasts="until its user logs out",
    scope_needed=True,
    verifies_pkce=False,
    shares_tokens=True,
)
_EAGLEEYE = Expected(
    access_token="JWT",  # noqa: S106
    refresh_token=None,
    lifetime=43_198,
    refresh_gives=("rotated",),
    refresh_lasts="for 14 days",
    scope_needed=None,
    verifies_pkce=True,
    shares_tokens=False,
)


_BY_PROVIDER = {"cameramanager": _CAMERAMANAGER, "eagleeye": _EAGLEEYE}


def expected_of(provider: str) -> Expected:
    """Return what is expected of a server, by `Report.provider`; of an unknown one, the first's."""
    return _BY_PROVIDER.get(provider, _CAMERAMANAGER)
