"""The exchanges with an OAuth server that Spring and the simulator are compared by. Data only.

A text in braces stands for what the server answered before: ``{code}`` for the code of the last
login, ``{access}`` and ``{refresh}`` for the tokens of the last answer that had some, and
``{access1}``, ``{access2}``, … for those of the first, the second, … such answer, and ``{api}`` for
the API's origin that the last one named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .browser import ANNA, BOB, PASSWORD

CALLBACK = "http://nobody.invalid/auth/callback"
KEY = ("demo-key-id", "demo-key-secret")
WRONG = ("demo-key-id", "wrong")
OTHER = ("other-key-id", "other-key-secret")
LIFETIME = 43_199  # seconds, of an access token of CameraManager's
JSON = "application/json"
XML = "application/xml"


@dataclass(frozen=True, slots=True)
class Login:
    """A user logs in by the pages and consents, or not; a code comes back, or an error."""

    email: str = ANNA
    consents: bool = True
    scope: str | None = "write"
    change: Mapping[str, str | None] = field(default_factory=dict)
    same_browser: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """An HTTP request.

    Attributes:
        path: below the server's origin; or with ``{api}``.
        basic: the ID and the SECRET, or the header's value after ``Basic``.
        bearer: the access token; an empty one is sent, too.
        sent: the body instead of `form`, as it is, with its media type.
    """

    method: str = "POST"
    path: str = "/oauth/token"
    form: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    basic: tuple[str, str] | str | None = None
    bearer: str | None = None
    scheme: str = "Bearer"
    accept: str | None = JSON
    sent: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class AtOnce:
    """Two requests at the very same moment."""

    one: Ask
    two: Ask


@dataclass(frozen=True, slots=True)
class Wait:
    """Seconds pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Tokens live so many seconds from now on; 0 is no end of a refresh token."""

    access: int
    refresh: int = 0


@dataclass(frozen=True, slots=True)
class Revoke:
    """All tokens of a user end."""

    email: str = ANNA


@dataclass(frozen=True, slots=True)
class Disable:
    """A user's account is closed."""

    email: str = ANNA


@dataclass(frozen=True, slots=True)
class Simulate:
    """A setting of the simulator changes."""

    settings: Mapping[str, Any]


Step = Login | Ask | AtOnce | Wait | Lifetimes | Revoke | Disable | Simulate


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is done, step by step, with both servers."""

    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Platform:
    """How servers of a kind are spoken to, and which of their answers' details count.

    Attributes:
        scope: what an exchange asks for unless it says otherwise.
        lifetime: seconds that an access token lives.
        code: the form of an authorization code, as a regular expression.
        access_token: that of an access token.
        refresh_token: that of a refresh token.
        optional: members of answers that do not count.
        api: how the paths of the API begin if nothing of its answers counts but whether the bearer
            was taken.
    """

    authorize_path: str
    token_path: str
    scope: str
    lifetime: int
    code: str
    access_token: str
    refresh_token: str
    optional: frozenset[str] = frozenset()
    api: str = ""

    def grant(self, grant_type: str, given: Mapping[str, str | None], **options: Any) -> Ask:
        """Ask the token endpoint; a parameter of None is left out."""
        parameters = {"grant_type": grant_type, "scope": self.scope, **given}
        kept = {name: value for name, value in parameters.items() if value is not None}
        where = options.pop("where", "form")
        options.setdefault("basic", KEY)
        kept |= options.pop("extra", {})
        form = kept if where in ("form", "both") else {}
        query = kept if where in ("query", "both") else {}
        return Ask(path=self.token_path, form=form, query=query, **options)

    def exchange(self, options: dict[str, Any] | None = None, **given: str | None) -> Ask:
        """Exchange the code of the last login."""
        return self.grant(
            "authorization_code",
            {"code": "{code}", "redirect_uri": CALLBACK, **given},
            **(options or {}),
        )

    def refresh(self, options: dict[str, Any] | None = None, **given: str | None) -> Ask:
        """Use the last refresh token."""
        return self.grant(
            "refresh_token", {"refresh_token": "{refresh}", **given}, **(options or {})
        )


_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}:\d+"
CAMERAMANAGER = Platform(
    authorize_path="/oauth/authorize",
    token_path="/oauth/token",
    scope="write",
    lifetime=LIFETIME,
    code=".{6}",
    access_token=_UUID,
    refresh_token=_UUID,
)


def _do(name: str, *steps: Step) -> Exchange:
    return Exchange(name, steps)


_grant, _code, _refresh = CAMERAMANAGER.grant, CAMERAMANAGER.exchange, CAMERAMANAGER.refresh


def _password(options: dict[str, Any] | None = None, **given: str | None) -> Ask:
    return _grant("password", {"username": ANNA, "password": PASSWORD, **given}, **(options or {}))


def _api(bearer: str | None = "{access}", **options: Any) -> Ask:
    options.setdefault("path", "/rest/v2.4/cameras")
    return Ask("GET", bearer=bearer, **options)


def _logout(bearer: str | None = "{access}", **options: Any) -> Ask:
    return Ask("DELETE", "/rest/v2.0/users/self/tokens/current", bearer=bearer, **options)


def _in_form(key: tuple[str, str], **options: Any) -> dict[str, Any]:
    return {"basic": None, "extra": {"client_id": key[0], "client_secret": key[1]}, **options}


_IN = (Login(), _code())  # a login, and its tokens
_NOBODY = "aaaaaaaa-aaaa-4aaa-aaaa-aaaaaaaaaaaa:10003"
_NO_SCOPE_NEEDED = Simulate({"scope_required": False})

EXCHANGES = (
    # The authorization endpoint
    _do("a login", Login()),
    _do("a login with scope read", Login(scope="read"), _code(scope="read")),
    _do("a login with both scopes", Login(scope="read write"), _code()),
    _do("a login without scope", Login(scope=None), _code()),
    _do("a login without state", Login(change={"state": None})),
    _do("a login that is refused", Login(consents=False)),
    _do("a login with an unknown scope", Login(scope="admin")),
    _do("a login with another response type", Login(change={"response_type": "id"})),
    _do("a login with an unknown key", Login(change={"client_id": "nobody"})),
    _do("a login without a key", Login(change={"client_id": None})),
    _do("a login with no web address", Login(change={"redirect_uri": "ftp://nobody.invalid/"})),
    _do("a second login in the same browser", *_IN, Login(same_browser=True), _code()),
    # The code
    _do("a code, in the body", Login(), _code()),
    _do("a code, in the query", Login(), _code({"where": "query"})),
    _do("a code, in body and query", Login(), _code({"where": "both"})),
    _do("a code without scope", Login(), _code(scope=None)),
    _do("a code without scope, if none is needed", _NO_SCOPE_NEEDED, Login(), _code(scope=None)),
    _do("a code with an unknown scope", Login(), _code(scope="admin"), _code()),
    _do("a code with a wider scope", Login(scope="read"), _code(scope="write")),
    _do("a code without redirect URI", Login(), _code(redirect_uri=None)),
    _do("a code with another redirect URI", Login(), _code(redirect_uri=CALLBACK + "/")),
    _do("no code", Login(), _code(code=None)),
    _do("an empty code", Login(), _code(code="")),
    _do("an unknown code", _code(code="AAAAAA")),
    _do("a used code", Login(), _code(), _code()),
    _do("a code after a wrong redirect URI", Login(), _code(redirect_uri="http://x/"), _code()),
    _do("a code after a wrong key", Login(), _code({"basic": WRONG}), _code()),
    _do("an old code", Simulate({"code_lifetime": 0.5}), Login(), Wait(0.7), _code()),
    _do(
            "a code with a wrong verifier",
            Login(change={"code_challenge": "x" * 43, "code_challenge_method": "S256"}),
            _code(code_verifier="y" * 43),
        ),
    _do("another key's code", Login(), _code({"basic": OTHER})),
    # The grant type, and the form of the request
    _do("no grant type", Login(), Ask(form={"code": "{code}", "scope": "write"}, basic=KEY)),
    _do("an empty grant type", Ask(form={"grant_type": "", "scope": "write"}, basic=KEY)),
    _do("an unknown grant type", _grant("magic", {})),
    _do("the implicit grant", _grant("implicit", {})),
    _do("client credentials", _grant("client_credentials", {})),
    _do("nothing at all", Ask(basic=KEY)),
    _do("GET", Ask("GET", query={"grant_type": "refresh_token"}, basic=KEY)),
    _do("a body of JSON", Ask(sent=(JSON, '{"grant_type": "refresh_token"}'), basic=KEY)),
    _do(
            "a parameter twice",
            Ask(
                sent=(
                    "application/x-www-form-urlencoded",
                    f"grant_type=password&username={ANNA}&password={PASSWORD}&password=no&scope=write",
                ),
                basic=KEY,
            ),
        ),
    # The key
    _do("a wrong SECRET", _password({"basic": WRONG})),
    _do("an unknown ID", _password({"basic": ("nobody", "demo-key-secret")})),
    _do("a percent-encoded ID", _password({"basic": ("demo%2Dkey%2Did", KEY[1])})),
    _do("Basic that is no base64", _password({"basic": "%%%"})),
    _do("Basic without a colon", _password({"basic": "bm9jb2xvbg=="})),
    _do("an empty Basic", _password({"basic": ""})),
    _do("no key", _password({"basic": None})),
    _do("a bearer for a key", *_IN, _refresh({"basic": None, "bearer": "{access}"})),
    _do("the key in the body", _password(_in_form(KEY))),
    _do("the key in the query", _password(_in_form(KEY, where="query"))),
    _do("a wrong SECRET in the body", _password(_in_form(WRONG))),
    _do("an unknown ID in the body", _password(_in_form(("nobody", "x")))),
    _do("an ID in the body, no SECRET", _password(_in_form((KEY[0], "")))),
    _do("Basic, and the ID in the body", _password({"extra": {"client_id": KEY[0]}})),
    _do("Basic, and the key in the body", _password(_in_form(KEY, basic=KEY))),
    _do("Basic, and a wrong SECRET in the body", _password(_in_form(WRONG, basic=KEY))),
    _do("a wrong Basic, and the key in the body", _password(_in_form(KEY, basic=WRONG))),
    _do("a wrong key and a wrong code", _code({"basic": WRONG}, code="AAAAAA")),
    # Accept
    _do("no Accept", Login(), _code({"accept": None})),
    _do("any Accept", Login(), _code({"accept": "*/*"})),
    _do("XML", Login(), _code({"accept": XML})),
    _do("an error without Accept", _code({"accept": None}, code="AAAAAA")),
    _do("an error in XML", _code({"accept": XML}, code="AAAAAA")),
    _do("a wrong SECRET without Accept", _password({"accept": None, "basic": WRONG})),
    _do("a wrong SECRET in XML", _password({"accept": XML, "basic": WRONG})),
    # The refresh token
    _do("a refresh", *_IN, _refresh(), _api("{access2}")),
    _do("a refresh, in the query", *_IN, _refresh({"where": "query"})),
    _do("a refresh, in body and query", *_IN, _refresh({"where": "both"})),
    _do("a refresh without scope", *_IN, _refresh(scope=None)),
    _do(
            "a refresh without scope, if none is needed",
            *(_NO_SCOPE_NEEDED, *_IN, _refresh(scope=None)),
        ),
    _do("a refresh with an unknown scope", *_IN, _refresh(scope="admin"), _api(), _refresh()),
    _do("a refresh with a wider scope", Login(scope="read"), _code(), _refresh(), _api()),
    _do(
            "a refresh with a narrower scope",
            *(Login(scope="read write"), _code(), _refresh(scope="read"), _refresh(), _api()),
        ),
    _do("no refresh token", _refresh(refresh_token=None)),
    _do("an empty refresh token", _refresh(refresh_token="")),
    _do("an unknown refresh token", _refresh(refresh_token=_NOBODY)),
    _do("an access token as refresh token", *_IN, _refresh(refresh_token="{access}")),
    _do("an old access token after a refresh", *_IN, _refresh(), _api("{access1}")),
    _do("a refresh of what was refreshed", *_IN, _refresh(), _refresh(), _refresh(), _api()),
    _do(
            "the first refresh token again",
            *_IN, _refresh(), _refresh(refresh_token="{refresh1}"), _refresh(), _api(),
        ),
    _do("a refresh with a wrong key", *_IN, _refresh({"basic": WRONG}), _api(), _refresh()),
    _do("a refresh at another key", *_IN, _refresh({"basic": OTHER})),
    _do("a refresh after the expiry", Lifetimes(1), *_IN, Wait(1.1), _refresh(), _api()),
    _do(
            "an expired refresh token",
            Lifetimes(100, 1), *_IN, Wait(1.1), _api(), _refresh(), _api(), _refresh(),
        ),
    _do("a refresh after the logout", *_IN, _logout(), _refresh()),
    _do("a refresh of a revoked user", *_IN, Revoke(), _refresh()),
    _do("a refresh of a disabled user", *_IN, Disable(), _refresh(), _api()),
    # A user's password
    _do("a password", _password(), _api()),
    _do("a wrong password", _password(password="wrong")),
    _do("an unknown user", _password(username="nobody@example.com")),
    _do("no user", _password(username=None)),
    _do("no password", _password(password=None)),
    _do("a password with an unknown scope", _password(scope="admin")),
    _do("a password without scope", _password(scope=None)),
    _do(
            "a password without scope, if none is needed",
            _NO_SCOPE_NEEDED,
            _password(scope=None),
        ),
    _do("a disabled user's password", Disable(), _password()),
    # Logins after and beside each other
    _do("a second login", *_IN, *_IN, _api()),
    _do("a second login of another user", *_IN, Login(BOB), _code()),
    _do("a second login with another scope", *_IN, Login(scope="read"), _code()),
    _do("a second login by password", *_IN, _password()),
    _do("a second login, later", Lifetimes(100), *_IN, Wait(2.5), *_IN),
    _do("a second login after a refresh", *_IN, _refresh(), *_IN),
    _do("a second login after the expiry", Lifetimes(1), *_IN, Wait(1.1), *_IN, _refresh()),
    _do("a second login after all expired", Lifetimes(1, 1), *_IN, Wait(1.1), *_IN, _refresh()),
    _do("a second login after the logout", *_IN, _logout(), *_IN),
    _do("a second login after a revocation", *_IN, Revoke(), *_IN, _api()),
    _do("a refresh after a second login", *_IN, *_IN, _refresh(), _api("{access1}")),
    _do("logins at once", AtOnce(_password(), _password())),
    _do("refreshes at once", *_IN, AtOnce(_refresh(), _refresh())),
    # The bearer
    _do("a user", *_IN, _api(path="/rest/v2.3/users/self")),
    _do("no bearer", _api(None)),
    _do("an empty bearer", _api("")),
    _do("an unknown bearer", _api(_NOBODY)),
    _do("a refresh token as bearer", *_IN, _api("{refresh}")),
    _do("a bearer in lower case", *_IN, _api(scheme="bearer")),
    _do("a bearer in the query", *_IN, _api(None, query={"access_token": "{access}"})),
    _do("a dead bearer in the query", _api(None, query={"access_token": _NOBODY})),
    _do("Basic for a bearer", _api(None, basic=KEY)),
    _do("an expired bearer", Lifetimes(1), *_IN, Wait(1.1), _api(), _api()),
    _do("a revoked bearer", *_IN, Revoke(), _api()),
    _do("a disabled user's bearer", *_IN, Disable(), _api()),
    _do("a dead bearer without Accept", _api(_NOBODY, accept=None)),
    _do("a dead bearer, asking for a picture", _api(_NOBODY, accept="image/jpeg")),
    _do("a dead bearer, asking for XML", _api(_NOBODY, accept=XML)),
    # The logout
    _do("a logout", *_IN, _logout(), _api()),
    _do("a second logout", *_IN, _logout(), _logout()),
    _do("a logout of two logins", *_IN, *_IN, _logout("{access2}"), _api("{access1}")),
    _do("a logout after a refresh", *_IN, _refresh(), _logout("{access1}"), _logout("{access2}")),
    _do("a logout without a bearer", _logout(None)),
    _do("a logout with a dead bearer", _logout(_NOBODY)),
)  # fmt: skip
