"""Where the simulator's API v3 differs from Spring Authorization Server, and why. Data only.

docs/simulator-faithfulness.md tells it to users.
"""

from __future__ import annotations

from .known_differences import DOCUMENTED, INFERRED, SEEN_IN_SPRING, Known, at

_REFUSED = Known(
    DOCUMENTED,
    "Eagle Eye's documentation has 401 for codes and refresh tokens that are not valid; Spring "
    "says 400, as RFC 6749 does.",
    ("{n} status: Spring 400, simulator 401",),
)
_MISSING = Known(
    DOCUMENTED,
    "The same, also for a code or a refresh token that is missing.",
    (
        "{n} status: Spring 400, simulator 401",
        "{n} error: Spring invalid_request, simulator invalid_grant",
    ),
)
_SCOPE = Known(
    INFERRED,
    "Eagle Eye's documentation always sends scope; Spring takes the login's.",
    ("{n} status: Spring 200, simulator 400", "{n} error: Spring none, simulator invalid_request"),
)
_CHALLENGE = Known(
    SEEN_IN_SPRING,
    "RFC 6749 wants WWW-Authenticate in the answer to a wrong key; Spring leaves it out.",
    ("{n} challenge: Spring none, simulator Basic None",),
)
_BASIC = Known(
    DOCUMENTED,
    "Eagle Eye's documentation has 401 for a wrong key; Spring says 400 to one it cannot read.",
    (
        "{n} status: Spring 400, simulator 401",
        "{n} error: Spring invalid_request, simulator invalid_client",
        "{n} challenge: Spring none, simulator Basic None",
    ),
)
_NO_GRANT_TYPE = Known(
    INFERRED,
    "Eagle Eye's documentation has 400 for a bad grant type, and does not tell them apart.",
    ("{n} error: Spring invalid_request, simulator unsupported_grant_type",),
)
_PAGE = Known(
    INFERRED,
    "Both show a page, and no standard has its status.",
    ("{n} status: Spring 400, simulator 401",),
)
_ONE_KEY = "The simulator has one API key, so that another one is unknown to it."


KNOWN: dict[str, tuple[Known, ...]] = {
    # The authorization endpoint
    "a login without scope": (
        Known(
            INFERRED,
            "Spring's user can consent to nothing then. We always ask.",
            (
                "1 code: Spring none, simulator well-formed",
                "1 error: Spring access_denied, simulator none",
                "1 parameters: Spring ['error', 'state'], simulator ['code', 'state']",
            ),
        ),
    ),
    "a login with an unknown scope": (
        Known(
            INFERRED,
            "The simulator tells the scopes that there are, as it does for CameraManager.",
            ("1 parameters: Spring ['error', 'state'], simulator ['error', 'scope', 'state']",),
        ),
    ),
    "a login with another response type": (
        Known(
            INFERRED,
            "RFC 6749 wants the redirect; Spring shows a page.",
            (
                "1 redirected: Spring none, simulator True",
                "1 status: Spring 400, simulator none",
                "1 error: Spring none, simulator unsupported_response_type",
            ),
        ),
    ),
    "a login with an unknown key": at(1, _PAGE),
    "a login without a key": at(1, _PAGE),
    "a plain challenge": (
        Known(
            INFERRED,
            "Eagle Eye's documentation has S256 only; whether it refuses others is not known.",
            (
                "1 code: Spring none, simulator well-formed",
                "1 error: Spring invalid_request, simulator none",
                "1 parameters: Spring ['error', 'state'], simulator ['code', 'state']",
            ),
        ),
    ),
    # The code
    "a code with a wrong verifier": (
        Known(
            INFERRED,
            "A wrong verifier uses the simulator's code up, so that there is no second try.",
            (
                "3 status: Spring 200, simulator 401",
                "3 error: Spring none, simulator invalid_grant",
            ),
        ),
    ),
    "a verifier without a challenge": (
        Known(
            INFERRED,
            "The simulator takes it, as servers without PKCE do; RFC 9700 wants a refusal.",
            (
                "2 status: Spring 400, simulator 200",
                "2 error: Spring invalid_grant, simulator none",
            ),
        ),
    ),
    "a code without scope": at(2, _SCOPE),
    "a code with an unknown scope": (
        Known(
            DOCUMENTED,
            "Eagle Eye's documentation has 403 for a scope; Spring takes the login's, whatever is "
            "asked for.",
            (
                "2 status: Spring 200, simulator 403",
                "2 error: Spring none, simulator invalid_scope",
            ),
        ),
    ),
    "no code": at(1, _MISSING),
    "an empty code": at(1, _REFUSED),
    "an unknown code": at(1, _REFUSED),
    "a used code": (
        Known(
            INFERRED,
            "Spring ends the tokens of a code that is used again, as RFC 6749 recommends; whether "
            "Eagle Eye does is not known.",
            (
                "3 status: Spring 400, simulator 401",
                "4 status: Spring 401, simulator 200",
                "4 challenge: Spring Bearer invalid_token, simulator none",
                "5 status: Spring 400, simulator 200",
                "5 error: Spring invalid_grant, simulator none",
            ),
        ),
    ),
    "a code after a wrong key": at(2, _CHALLENGE),
    "an old code": at(2, _REFUSED),
    "another key's code": (
        Known(
            SEEN_IN_SPRING,
            _ONE_KEY,
            (
                "2 status: Spring 400, simulator 401",
                "2 error: Spring invalid_grant, simulator invalid_client",
                "2 challenge: Spring none, simulator Basic None",
                "3 status: Spring 400, simulator 200",
                "3 error: Spring invalid_grant, simulator none",
            ),
        ),
    ),
    # The grant type
    "no grant type": at(1, _NO_GRANT_TYPE),
    "nothing at all": at(1, _NO_GRANT_TYPE),
    "a body of JSON": at(1, _NO_GRANT_TYPE),
    "client credentials": (
        Known(
            INFERRED,
            "Spring has this grant, and refuses it to the key.",
            ("1 error: Spring unauthorized_client, simulator unsupported_grant_type",),
        ),
    ),
    # The key
    "a wrong SECRET": at(1, _CHALLENGE),
    "an unknown ID": at(1, _CHALLENGE),
    "Basic that is no base64": at(1, _BASIC),
    "Basic without a colon": at(1, _BASIC),
    "an empty Basic": at(1, _BASIC),
    "no key": (
        Known(
            SEEN_IN_SPRING,
            "Spring says nothing but 401.",
            (
                "1 type: Spring none, simulator application/json",
                "1 error: Spring none, simulator invalid_client",
                "1 challenge: Spring none, simulator Basic None",
            ),
        ),
    ),
    "the key in the body": at(1, _CHALLENGE),
    "a wrong key and a wrong code": at(1, _CHALLENGE),
    "an error without Accept": at(1, _REFUSED),
    # The refresh token
    "a refresh without scope": at(3, _SCOPE),
    "a refresh with an unknown scope": (
        Known(
            DOCUMENTED,
            "Eagle Eye's documentation has 403 for a scope that is refused.",
            ("3 status: Spring 400, simulator 403",),
        ),
    ),
    "no refresh token": at(1, _MISSING),
    "an empty refresh token": at(1, _MISSING),
    "an unknown refresh token": at(1, _REFUSED),
    "an access token as refresh token": at(3, _REFUSED),
    "the first refresh token again": at(4, _REFUSED),
    "a refresh with a wrong key": at(3, _CHALLENGE),
    "a refresh at another key": (
        Known(
            SEEN_IN_SPRING,
            _ONE_KEY,
            (
                "3 status: Spring 400, simulator 401",
                "3 error: Spring invalid_grant, simulator invalid_client",
                "3 challenge: Spring none, simulator Basic None",
            ),
        ),
    ),
    "an expired refresh token": at(4, _REFUSED),
    "a refresh of a revoked user": at(3, _REFUSED),
    "a refresh of a disabled user": (
        Known(
            INFERRED,
            "Spring looks at users when they log in only; a service that closes accounts ends "
            "their tokens.",
            (
                "3 status: Spring 200, simulator 401",
                "3 error: Spring none, simulator invalid_grant",
            ),
        ),
    ),
    "refreshes at once": (
        Known(
            SEEN_IN_SPRING,
            "Spring gives tokens twice, and keeps those that it stores last; the simulator answers "
            "one refresh after the other.",
            (
                "4 status: Spring 200, simulator 401",
                "4 error: Spring none, simulator invalid_grant",
                "6 status: Spring 401, simulator 200",
                "6 challenge: Spring Bearer invalid_token, simulator none",
            ),
        ),
    ),
    # The bearer
    "no bearer": (
        Known(
            INFERRED,
            "Eagle Eye's documentation has 401 and no more; RFC 6750 has no error code here.",
            ("1 challenge: Spring Bearer None, simulator Bearer invalid_token",),
        ),
    ),
    # The logout
    "a logout": at(5, _REFUSED),
    "a logout after the expiry": at(4, _REFUSED),
    "a logout with the access token": (
        Known(
            INFERRED,
            "Spring leaves the refresh token alive; RFC 7009 permits both. We send the other one.",
            (
                "5 status: Spring 200, simulator 401",
                "5 error: Spring none, simulator invalid_grant",
            ),
        ),
    ),
    "a logout without a token": (
        Known(
            INFERRED,
            "RFC 7009 has a refusal; the simulator has nothing to end.",
            (
                "1 status: Spring 400, simulator 200",
                "1 type: Spring application/json, simulator none",
                "1 error: Spring invalid_request, simulator none",
            ),
        ),
    ),
    "a logout with a wrong key": at(3, _CHALLENGE),
    "a logout at another key": (
        Known(
            SEEN_IN_SPRING,
            _ONE_KEY,
            (
                "3 status: Spring 400, simulator 401",
                "3 challenge: Spring none, simulator Basic None",
            ),
        ),
    ),
}
