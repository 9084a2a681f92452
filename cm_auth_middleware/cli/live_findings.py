"""Say what a live check found out, and what it means for the application."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cm_auth_middleware.cli.findings import ERROR, OK, WARNING, Finding
from cm_auth_middleware.cli.live_expected import Expected, expected_of
from cm_auth_middleware.cli.live_report import Refused, Report, Shape
from cm_auth_middleware.cli.network import SKEW, TOO_MUCH_SKEW
from cm_auth_middleware.tokens.provider import Provider

SKIPPED = -1  # the level of what was not tried
_NEAR = 60  # seconds


def findings(
    report: Report, provider: Provider, needs: dict[str, str], *, is_over: bool
) -> Iterator[Finding]:
    """Yield a line for each thing that is known.

    The level is OK for what this package expects, WARNING for what differs and does no harm, and
    ERROR for what the application cannot do its work with.

    Args:
        needs: the fields of the user that options need, with the option of each.
        is_over: True if nothing more will be found out.
    """
    expected = expected_of(report.provider)
    yield from _reached(report, provider)
    yield from _login(report)
    yield from _tokens(report, expected)
    yield from _api_host(report)
    yield from _user(report, provider, needs)
    yield from _refresh(report, expected)
    yield from _scope(report, expected)
    yield from _pkce(report, expected, is_over=is_over)
    yield from _second_login(report, expected, is_over=is_over)
    yield from _logout(report)
    if is_over:
        yield from _errors(report, provider.is_grant_over)
        yield from _burdens(report)
        yield from _revocation(report, expected)


def _reached(report: Report, provider: Provider) -> Iterator[Finding]:
    status = report.status_without_bearer
    if status is None:
        return
    if status == 401:
        yield Finding(OK, "base_url", f"answers as {provider.name} does")
    elif provider.probe_url("") is None:  # where the API is, a login tells
        yield Finding(OK, "base_url", "answers")
    else:
        yield Finding(
            WARNING, "base_url", f"answers {status} without a bearer token, where 401 was expected"
        )
    skew = report.clock_skew
    if skew is None:
        yield Finding(WARNING, "clock", "the server does not say what time it is")
    elif abs(skew) < SKEW:
        yield Finding(OK, "clock", "agrees with the server's")
    else:
        word = "behind" if skew > 0 else "ahead of"
        yield Finding(
            WARNING if abs(skew) < TOO_MUCH_SKEW else ERROR,
            "clock",
            f"of this machine is {abs(skew)} seconds {word} the server's: synchronise it (NTP), "
            "because logins and sessions expire by it",
        )
    yield Finding(OK, "API key", "is accepted, by HTTP Basic")


def _login(report: Report) -> Iterator[Finding]:
    if report.state_echoed is True:
        yield Finding(OK, "state", "comes back: the application knows which login an answer is for")
    elif report.state_echoed is False:
        yield Finding(ERROR, "state", "does not come back: the application refuses every login")
    if report.exchange is not None:
        hint = ""
        if report.reads_query and not report.reads_form:
            hint = "; the server reads parameters in the query only"
        yield Finding(
            ERROR, "code exchange", f"{_failure(report.exchange)}: nobody can log in{hint}"
        )
    elif report.exchange_status is not None:
        yield Finding(
            OK, "code exchange", "works as the application does it: form body, Basic, PKCE by S256"
        )


def _tokens(report: Report, expected: Expected) -> Iterator[Finding]:
    if report.access_token is None:
        return
    if not report.is_bearer:
        yield Finding(ERROR, "access token", "is no bearer token: the application refuses it")
    else:
        yield _shape("access token", report.access_token, expected.access_token)
    if report.refresh_token is None:
        yield Finding(
            ERROR, "refresh token", "is missing: users log in again when the access token expires"
        )
    else:
        yield _shape("refresh token", report.refresh_token, expected.refresh_token)
    if report.scope_granted not in ("", report.scope_asked):
        yield Finding(WARNING, "scope granted", "is another than the one that was asked for")
    if report.refresh_token is None or report.refresh_status is not None:
        yield _lifetime(report, expected.lifetime)


def _shape(topic: str, shape: Shape, expected: str | None) -> Finding:
    text = f"is {'a ' if shape.kind != 'opaque' else ''}{shape.kind} of {shape.length} characters"
    if shape.kind == "unusable":
        return Finding(ERROR, topic, "has characters that no header can hold: nobody can log in")
    if expected in (None, shape.kind):
        return Finding(OK, topic, text)
    return Finding(
        WARNING, topic, f"{text}, where {expected} was expected: the application does not mind"
    )


def _lifetime(report: Report, expected: int) -> Finding:
    # A login may get an access token that the account had already, with what is left of its time.
    known = [n for n in (report.lifetime, report.refreshed_lifetime) if n is not None]
    if not known:
        return Finding(WARNING, "lifetime", "is not told: the application takes it for an hour")
    seconds = max(known)
    text = f"an access token lasts {_duration(seconds)}"
    if known[0] < seconds - _NEAR:
        text += f"; the login got one that the account had already, with {_duration(known[0])} left"
    if abs(seconds - expected) <= _NEAR:
        return Finding(OK, "lifetime", text)
    return Finding(
        WARNING,
        "lifetime",
        f"{text}, where {_duration(expected)} was expected: the application refreshes in time",
    )


def _api_host(report: Report) -> Iterator[Finding]:
    """Say where the API is, of a server that tells it with its tokens."""
    at_login, at_refresh = report.api_host, report.refreshed_api_host
    if at_login == "left out":
        yield Finding(ERROR, "API host", "is not named with the tokens: nobody can log in")
    elif at_login == "not believed":
        yield Finding(
            ERROR,
            "API host",
            "is named, but not as a host and a port below the server's domain: nobody can log in",
        )
    elif at_login == "believed":
        text = "is named with the tokens, and the bearer token goes nowhere else"
        yield Finding(OK, "API host", text)
    if at_refresh == "left out":
        text = "is not named: the session stays at the host that it has"
        yield Finding(WARNING, "host, refresh", text)
    elif at_refresh == "not believed":
        text = "is named, but not as it was at the login: the session stays at the host it has"
        yield Finding(WARNING, "host, refresh", text)


def _user(report: Report, provider: Provider, needs: dict[str, str]) -> Iterator[Finding]:
    if report.user_status is None:
        return
    needs = {provider.user_id_field: "every login", **needs}
    missing = [
        f"{name} (for {why})" for name, why in needs.items() if name not in report.user_fields
    ]
    if report.user_status != 200:
        yield Finding(ERROR, "user", f"the question is answered {report.user_status}")
    elif missing:
        yield Finding(ERROR, "user", f"lacks {', '.join(missing)}: nobody can log in")
    else:
        yield Finding(OK, "user", f"has {', '.join(report.user_fields)}")


_REFRESH_TOKEN = {  # as it is expected, and where another one is
    "kept": (
        "works, and keeps the refresh token",
        "keeps the refresh token, where a new one was expected each time: no harm",
    ),
    "left out": (
        "works, and gives no new refresh token: the application keeps the old one",
        "gives no new refresh token, where one was expected each time: the application keeps the "
        "old one",
    ),
    "rotated": (
        "works, and gives a new refresh token each time, which the application saves",
        "gives a new refresh token each time, where the old one was expected to stay: the "
        "application saves the new one",
    ),
    "phantom": (
        "",
        "gives a new refresh token that the server then refuses, while the old one works (a known "
        "fault of Spring's): the application tries the old one",
    ),
}
_SPENT = {
    "refused": (OK, "a refresh token that was replaced is refused, and nothing else happens"),
    "accepted": (WARNING, "a refresh token that was replaced still works: no harm"),
    "ends the grant": (
        WARNING,
        "a refresh token that was replaced ends the login when it is used: if a new one is lost "
        "on its way, the user logs in again",
    ),
}


def _refresh(report: Report, expected: Expected) -> Iterator[Finding]:
    kind = report.refresh_gives
    if kind == "refused":
        yield Finding(ERROR, "refresh", "is refused: users log in when the access token expires")
    elif kind == "failed":
        yield Finding(
            ERROR,
            "refresh",
            "fails, or its answer cannot be read: the application takes this for an outage",
        )
    elif kind:
        usual, other = _REFRESH_TOKEN[kind]
        if kind in expected.refresh_gives:
            yield Finding(OK, "refresh", usual)
        else:
            yield Finding(WARNING, "refresh", other)
    if report.bearer_after_refresh == "dead":
        yield Finding(
            OK, "old token", "is dead after a refresh: the application repeats requests under way"
        )
    elif report.bearer_after_refresh == "alive":
        yield Finding(WARNING, "old token", "still works after a refresh: no harm")
    if report.replaced_refresh:
        level, text = _SPENT[report.replaced_refresh]
        yield Finding(level, "spent token", text)


def _scope(report: Report, expected: Expected) -> Iterator[Finding]:
    for topic, what, is_needed in (
        ("scope", "a refresh", report.scope_needed_by_refresh),
        ("scope, code", "the code exchange", report.scope_needed_by_exchange),
    ):
        if is_needed is True:
            yield Finding(OK, topic, f"is needed by {what}: the application sends it every time")
        elif is_needed is False and expected.scope_needed is None:
            yield Finding(OK, topic, f"is not needed by {what}: the application sends it")
        elif is_needed is False:
            yield Finding(
                WARNING,
                topic,
                f"is not needed by {what}, where it was expected to be: no harm, the application "
                "sends it",
            )


_NOT_COMPARED = {
    "": "was not tried",
    "no tokens": "gave no tokens that can be compared",
    "another account": "was of another account, which shows nothing: log in by the same one again",
}


def _pkce(report: Report, expected: Expected, *, is_over: bool) -> Iterator[Finding]:
    if report.pkce_verified is True and expected.verifies_pkce:
        yield Finding(OK, "PKCE", "a wrong verifier is refused")
    elif report.pkce_verified is False and expected.verifies_pkce:
        yield Finding(
            WARNING,
            "PKCE",
            "a wrong verifier is accepted, where it was expected to be refused: state and the "
            "login's cookie protect the login",
        )
    elif report.pkce_verified is False:
        yield Finding(
            OK,
            "PKCE",
            "a wrong verifier is accepted, as by a server that knows no PKCE: state and the "
            "login's cookie protect the login",
        )
    elif report.pkce_verified is True:
        yield Finding(WARNING, "PKCE", "a wrong verifier is refused, which is better than expected")
    elif is_over and report.access_token is not None:
        yield Finding(SKIPPED, "PKCE", "S256 is accepted; a wrong verifier was not tried")


def _second_login(report: Report, expected: Expected, *, is_over: bool) -> Iterator[Finding]:
    if report.is_quick_login_refused:
        yield Finding(
            WARNING,
            "two at once",
            "a login right after another is answered by a server error: the user tries again",
        )
    same = report.second_login_access, report.second_login_refresh
    first = report.first_bearer_after_second_login or "alive"
    if report.gives_same_tokens:
        yield Finding(
            OK if expected.shares_tokens else WARNING,
            "second login",
            "gets the same tokens: two browsers of an account share them, and a logout in one "
            "ends both",
        )
    elif same == ("other", "other") and first == "alive" and not expected.shares_tokens:
        text = "gets tokens of its own: a logout in one browser does not end another's login"
        yield Finding(OK, "second login", text)
    elif same[0]:
        which = "the same" if expected.shares_tokens else "others"
        yield Finding(
            WARNING,
            "second login",
            f"gets {_same('access', same[0])} and {_same('refresh', same[1])}, where {which} were "
            f"expected; the first access token is then {first}: no harm",
        )
    elif is_over and report.access_token is not None:
        yield Finding(SKIPPED, "second login", _NOT_COMPARED[report.second_login_fails])


def _same(kind: str, which: str) -> str:
    return f"{'the same' if which == 'same' else 'another'} {kind} token"


def _logout(report: Report) -> Iterator[Finding]:
    status = report.logout_status
    if status is None:
        return
    after = report.bearer_after_logout, report.refresh_after_logout
    if status >= 300:
        yield Finding(ERROR, "logout", f"is refused ({status}): tokens live on until they expire")
    elif "alive" in after:
        which = " and ".join(
            f"{kind} token"
            for kind, state in zip(("access", "refresh"), after, strict=True)
            if state == "alive"
        )
        yield Finding(ERROR, "logout", f"is answered {status}, but the {which} still works")
    else:
        yield Finding(OK, "logout", f"is answered {status}, and the tokens are dead")


def _errors(report: Report, is_grant_over: Callable[[int, str], bool]) -> Iterator[Finding]:
    bearer = report.dead_bearer
    if bearer is not None and bearer.status == 401:
        text = f"is refused ({_short(bearer)}): the application gets a new token"
        yield Finding(OK, "dead bearer", text)
    elif bearer is not None:
        yield Finding(
            WARNING,
            "dead bearer",
            f"is refused ({_short(bearer)}), where 401 was expected: the application asks for the "
            "user, which tells a dead token from a page that is forbidden",
        )
    if bearer is not None:
        yield Finding(OK, "error headers", ", ".join(bearer.headers))
    refresh = report.dead_refresh_token
    if refresh is not None and is_grant_over(refresh.status, refresh.error):
        yield Finding(OK, "dead refresh", f"is refused ({_short(refresh)}): the user logs in again")
    elif refresh is not None:
        yield Finding(
            ERROR,
            "dead refresh",
            f"is refused ({_short(refresh)}): the application takes this for an outage, and does "
            "not ask for a login",
        )
    if report.repeats_values:
        yield Finding(
            WARNING,
            "error text",
            "repeats codes or tokens: the application neither logs nor shows it",
        )
    elif report.dead_refresh_token is not None:
        yield Finding(OK, "error text", "repeats no code and no token")


def _burdens(report: Report) -> Iterator[Finding]:
    if report.compression == "another":
        yield Finding(
            ERROR,
            "compression",
            "answers have an encoding that was not asked for, and the application cannot read them",
        )
    elif report.compression:
        yield Finding(
            WARNING,
            "compression",
            f"answers are compressed ({report.compression}) unasked: the application reads them",
        )
    if report.rate_limit is not None:
        yield Finding(
            WARNING,
            "rate limit",
            f"a call is answered 429 after {report.rate_limit} in a minute: a refresh is tried "
            "again later, and the application itself gets the 429 of its own calls",
        )


def _revocation(report: Report, expected: Expected) -> Iterator[Finding]:
    known = [n for n in (report.lifetime, report.refreshed_lifetime) if n is not None]
    how_long = (
        f"an access token lives for about {_duration(max(known, default=expected.lifetime))}"
        f"{'' if known else ' by the guide'}, a refresh token {expected.refresh_lasts}"
    )
    if report.not_revoked > report.perhaps_not_revoked:
        yield Finding(ERROR, "revocation", f"some tokens could not be revoked: {how_long}")
    elif report.perhaps_not_revoked:
        yield Finding(
            ERROR,
            "revocation",
            "tokens may live on, because the answer to a token call was lost or could not be read: "
            f"{how_long}",
        )
    elif report.revoked:
        yield Finding(OK, "revocation", "everything that this check obtained is revoked")


def _failure(answer: Refused) -> str:
    if answer.status < 300:
        return f"is answered {answer.status}, without an access token that can be read"
    return f"{'fails' if answer.status >= 500 else 'is refused'} ({_short(answer)})"


def _short(refused: Refused) -> str:
    words = [str(refused.status), refused.error, refused.challenge]
    return ", ".join(word for word in words if word)


def _duration(seconds: int) -> str:
    hours = round(seconds / 3600)
    is_whole = hours > 0 and abs(seconds - hours * 3600) <= 2
    return f"{seconds} s ({hours} h)" if is_whole else f"{seconds} s"
