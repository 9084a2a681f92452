"""Where the simulator differs from Spring, and why. Data only.

docs/simulator-faithfulness.md tells it to users.
"""

from __future__ import annotations

from dataclasses import dataclass

DOCUMENTED = "documented"
OBSERVED = "observed"
SEEN_IN_SPRING = "seen in Spring"
INFERRED = "inferred"


@dataclass(frozen=True, slots=True)
class Known:
    """A difference that stays.

    Attributes:
        tag: where it is known from, or not known, what CameraManager does.
        reason: why the simulator stays as it is.
        lines: the differences, as `comparison.differences` says them.
        only: the setting of Spring that has it, such as ``rotates-jdbc``; empty for each.
    """

    tag: str
    reason: str
    lines: tuple[str, ...]
    only: str = ""


_SCOPE = Known(
    DOCUMENTED,
    "CameraManager's swagger marks scope as required here; Spring takes the login's, or all.",
    ("{n} status: Spring 200, simulator 400", "{n} error: Spring none, simulator invalid_request"),
)
_DEFAULT_SCOPE = Known(
    INFERRED,
    "Spring gives every scope of the key; which CameraManager gives is not known. We always ask.",
    ("{n} scope: Spring read write, simulator write",),
)
_ACCEPT = Known(
    DOCUMENTED,
    "CameraManager's guide wants Accept: application/json, so the simulator needs it; Spring 2.5 "
    "does not.",
    ("{n} type: Spring application/json, simulator application/xml",),
)
_ONE_KEY = "The simulator has one API key, so that another one is unknown to it."


def at(number: int, known: Known) -> tuple[Known, ...]:
    """Return a difference of the answer of this number; ``{n}`` in its lines stands for it."""
    lines = tuple(line.replace("{n}", str(number)) for line in known.lines)
    return (Known(known.tag, known.reason, lines),)


KNOWN: dict[str, tuple[Known, ...]] = {
    "a login without scope": at(2, _DEFAULT_SCOPE),
    "a password without scope, if none is needed": at(1, _DEFAULT_SCOPE),
    "a code without scope": at(2, _SCOPE),
    "a refresh without scope": at(3, _SCOPE),
    "a password without scope": at(1, _SCOPE),
    "an old code": (
        Known(
            INFERRED,
            "Spring's own stores keep a code until it is used; a service is hardly run so.",
            (
                "2 status: Spring 200, simulator 400",
                "2 error: Spring none, simulator invalid_grant",
            ),
        ),
    ),
    "another key's code": (
        Known(
            SEEN_IN_SPRING,
            _ONE_KEY,
            (
                "2 challenge: Spring Bearer invalid_client, simulator Basic unauthorized",
                "2 error: Spring invalid_client, simulator unauthorized",
            ),
        ),
    ),
    "a refresh at another key": (
        Known(
            SEEN_IN_SPRING,
            _ONE_KEY,
            (
                "3 status: Spring 400, simulator 401",
                "3 error: Spring invalid_grant, simulator unauthorized",
                "3 challenge: Spring none, simulator Basic unauthorized",
            ),
        ),
    ),
    "no Accept": at(2, _ACCEPT),
    "any Accept": at(2, _ACCEPT),
    "an error without Accept": at(1, _ACCEPT),
    "a wrong SECRET without Accept": at(1, _ACCEPT),
    "XML": (
        Known(
            SEEN_IN_SPRING,
            "Spring 2.5 gives tokens in JSON whatever is asked for; older ones gave XML.",
            ("2 type: Spring application/json, simulator application/xml",),
        ),
    ),
    "an error in XML": (
        Known(
            SEEN_IN_SPRING,
            "Spring cannot write this error in XML and fails; nobody asks for XML here.",
            (
                "1 status: Spring 500, simulator 400",
                "1 type: Spring none, simulator application/xml",
                "1 error: Spring none, simulator invalid_grant",
            ),
        ),
    ),
    "a refresh with a wider scope": (
        Known(
            SEEN_IN_SPRING,
            "The refusal ends the access token with InMemoryTokenStore only; the simulator does as "
            "JdbcTokenStore, whose transaction is rolled back.",
            (
                "4 status: Spring 401, simulator 200",
                "4 error: Spring invalid_token, simulator none",
                "4 challenge: Spring Bearer invalid_token, simulator none",
            ),
            only="reuses-memory",
        ),
    ),
    "logins at once": (
        Known(
            SEEN_IN_SPRING,
            "The simulator answers one login after the other; InMemoryTokenStore gives each of two "
            "its own tokens.",
            (
                "2 access token: Spring access token 2, simulator access token 1",
                "2 refresh token: Spring refresh token 2, simulator refresh token 1",
            ),
            only="reuses-memory",
        ),
        Known(
            SEEN_IN_SPRING,
            "The simulator answers one login after the other; JdbcTokenStore fails at the second "
            "of two, whose row is there already.",
            (
                "2 status: Spring 500, simulator 200",
                "2 error: Spring server_error, simulator none",
            ),
            only="rotates-jdbc",
        ),
    ),
    "refreshes at once": (
        Known(
            SEEN_IN_SPRING,
            "The simulator answers one refresh after the other; JdbcTokenStore fails at the second "
            "of two, whose row is there already.",
            (
                "4 status: Spring 500, simulator 400",
                "4 error: Spring server_error, simulator invalid_grant",
            ),
            only="rotates-jdbc",
        ),
    ),
}
