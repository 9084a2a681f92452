"""The exchanges that Spring Authorization Server and the simulator's API v3 are compared by.

Data only, as in `exchanges`.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from .browser import ANNA, BOB, PASSWORD
from .exchanges import (
    CALLBACK,
    JSON,
    KEY,
    OTHER,
    WRONG,
    Ask,
    AtOnce,
    Disable,
    Exchange,
    Lifetimes,
    Login,
    Platform,
    Revoke,
    Simulate,
    Step,
    Wait,
)

EAGLE_EYE = Platform(
    authorize_path="/oauth2/authorize",
    token_path="/oauth2/token",
    scope="vms.all",
    lifetime=43_198,
    code=r"\S+",
    access_token=r"[\w-]+\.[\w-]+\.[\w-]+",  # a JWT
    refresh_token=r"[\w-]+",
    # Eagle Eye's documentation says nothing of the bodies of errors; RFC 6749 leaves these free.
    optional=frozenset({"error_description", "error_uri"}),
    api="/api/",
)

_API = "/api/v3.0/cameras"
_NOBODY = "aaaa.bbbb.cccc"
_VERIFIER = "v" * 43
_CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(_VERIFIER.encode()).digest()).decode()[:-1]
_S256 = {"code_challenge": _CHALLENGE, "code_challenge_method": "S256"}
_PLAIN = {"code_challenge": _VERIFIER, "code_challenge_method": "plain"}
_NO_SCOPE_NEEDED = Simulate({"scope_required": False})

_grant, _code, _refresh = EAGLE_EYE.grant, EAGLE_EYE.exchange, EAGLE_EYE.refresh


def _do(name: str, *steps: Step) -> Exchange:
    return Exchange(name, steps)


def _login(email: str = ANNA, **options: Any) -> Login:
    options.setdefault("scope", EAGLE_EYE.scope)
    return Login(email, **options)


def _dead(options: dict[str, Any] | None = None) -> Ask:
    return _refresh(options, refresh_token=_NOBODY)


def _revoke(token: str = "{refresh}", key: tuple[str, str] = KEY) -> Ask:
    return Ask(path="/oauth2/revoke", form={"token": token}, basic=key)


def _api(bearer: str = "{access}", path: str = _API, **options: Any) -> Ask:
    return Ask("GET", "{api}" + path, bearer=bearer, **options)


def _token(**options: Any) -> Ask:
    return Ask(path=EAGLE_EYE.token_path, basic=KEY, **options)


_IN = (_login(), _code())  # a login, and its tokens

EXCHANGES = (
    # The authorization endpoint
    _do("a login", _login()),
    _do("a login without scope", _login(scope=None)),
    _do("a login without state", _login(change={"state": None})),
    _do("a login that is refused", _login(consents=False)),
    _do("a login with an unknown scope", _login(scope="admin")),
    _do("a login with another response type", _login(change={"response_type": "id"})),
    _do("a login with an unknown key", _login(change={"client_id": "nobody"})),
    _do("a login without a key", _login(change={"client_id": None})),
    _do(
        "a login with another redirect URI",
        Simulate({"redirect_uris": [CALLBACK]}),
        _login(change={"redirect_uri": CALLBACK + "/"}),
    ),
    _do(
        "a login with localhost for 127.0.0.1",
        Simulate({"redirect_uris": ["http://127.0.0.1/auth/callback"]}),
        _login(change={"redirect_uri": "http://localhost/auth/callback"}),
    ),
    _do("a plain challenge", _login(change=_PLAIN)),
    _do("a second login in the same browser", *_IN, _login(same_browser=True), _code()),
    # The code
    _do("a code, in the body", *_IN),
    _do("a code, in the query", _login(), _code({"where": "query"})),
    _do("a code with its verifier", _login(change=_S256), _code(code_verifier=_VERIFIER)),
    _do(
        "a code with a wrong verifier",
        _login(change=_S256),
        _code(code_verifier="w" * 43),
        _code(code_verifier=_VERIFIER),
    ),
    _do("a code without its verifier", _login(change=_S256), _code()),
    _do("a verifier without a challenge", _login(), _code(code_verifier=_VERIFIER)),
    _do("a code without scope", _login(), _code(scope=None)),
    _do("a code without scope, if none is needed", _NO_SCOPE_NEEDED, _login(), _code(scope=None)),
    _do("a code with an unknown scope", _login(), _code(scope="admin")),
    _do("a code without redirect URI", _login(), _code(redirect_uri=None)),
    _do("a code with another redirect URI", _login(), _code(redirect_uri=CALLBACK + "/")),
    _do("no code", _code(code=None)),
    _do("an empty code", _code(code="")),
    _do("an unknown code", _code(code="AAAAAA")),
    _do("a used code", *_IN, _code(), _api(), _refresh()),
    _do("a code after a wrong key", _login(), _code({"basic": WRONG}), _code()),
    _do("an old code", Simulate({"code_lifetime": 1}), _login(), Wait(1.2), _code()),
    _do("another key's code", _login(), _code({"basic": OTHER}), _code()),
    # The grant type, and the form of the request
    _do("no grant type", _token(form={"code": "AAAAAA", "scope": "vms.all"})),
    _do("an empty grant type", _token(form={"grant_type": "", "scope": "vms.all"})),
    _do("an unknown grant type", _grant("magic", {})),
    _do("a password", _grant("password", {"username": ANNA, "password": PASSWORD})),
    _do("client credentials", _grant("client_credentials", {})),
    _do("nothing at all", _token()),
    _do("a body of JSON", _token(sent=(JSON, '{"grant_type": "refresh_token"}'))),
    # The key
    _do("a wrong SECRET", _dead({"basic": WRONG})),
    _do("an unknown ID", _dead({"basic": ("nobody", KEY[1])})),
    _do(
        "a percent-encoded key",
        _login(),
        _code({"basic": ("demo%2Dkey%2Did", "demo%2Dkey%2Dsecret")}),
    ),
    _do("Basic that is no base64", _dead({"basic": "%%%"})),
    _do("Basic without a colon", _dead({"basic": "bm9jb2xvbg=="})),
    _do("an empty Basic", _dead({"basic": ""})),
    _do("no key", _dead({"basic": None})),
    _do(
        "the key in the body",
        _dead({"basic": None, "extra": {"client_id": KEY[0], "client_secret": KEY[1]}}),
    ),
    _do("Basic, and the ID in the body", _login(), _code({"extra": {"client_id": KEY[0]}})),
    _do("a wrong key and a wrong code", _code({"basic": WRONG}, code="AAAAAA")),
    # Accept
    _do("no Accept", _login(), _code({"accept": None})),
    _do("an error without Accept", _dead({"accept": None})),
    # The refresh token
    _do("a refresh", *_IN, _refresh(), _api("{access2}")),
    _do("a refresh without scope", *_IN, _refresh(scope=None)),
    _do(
        "a refresh without scope, if none is needed",
        *(_NO_SCOPE_NEEDED, *_IN, _refresh(scope=None)),
    ),
    _do("a refresh with an unknown scope", *_IN, _refresh(scope="admin"), _api(), _refresh()),
    _do("no refresh token", _refresh(refresh_token=None)),
    _do("an empty refresh token", _refresh(refresh_token="")),
    _do("an unknown refresh token", _dead()),
    _do("an access token as refresh token", *_IN, _refresh(refresh_token="{access}")),
    _do("an old access token after a refresh", *_IN, _refresh(), _api("{access1}")),
    _do("a refresh of what was refreshed", *_IN, _refresh(), _refresh(), _refresh(), _api()),
    _do(
        "the first refresh token again",
        *(*_IN, _refresh(), _refresh(refresh_token="{refresh1}"), _refresh(), _api()),
    ),
    _do("a refresh with a wrong key", *_IN, _refresh({"basic": WRONG}), _api(), _refresh()),
    _do("a refresh at another key", *_IN, _refresh({"basic": OTHER}), _refresh()),
    _do("a refresh after the expiry", Lifetimes(2), *_IN, Wait(2.1), _refresh(), _api()),
    _do("an expired refresh token", Lifetimes(100, 1), *_IN, Wait(1.1), _api(), _refresh(), _api()),
    _do("a refresh of a revoked user", *_IN, Revoke(), _refresh(), _api()),
    _do("a refresh of a disabled user", *_IN, Disable(), _refresh()),
    _do(
        "refreshes at once",
        *(*_IN, AtOnce(_refresh(), _refresh()), AtOnce(_api(), _api("{access2}"))),
    ),
    _do("a refresh after a second login", *_IN, *_IN, _refresh(), _api("{access1}")),
    # The API's host
    _do("another account", _login(BOB), _code(), _api()),
    _do(
        "an account that moves",
        *(*_IN, Simulate({"move_account": ANNA}), _api(), _refresh(), _api()),
    ),
    # The bearer
    _do("a user", *_IN, _api(path="/api/v3.0/users/self")),
    _do("the host, asked for", *_IN, _api(path="/api/v3.0/clientSettings")),
    _do("no bearer", Ask("GET", _API)),
    _do("an unknown bearer", Ask("GET", _API, bearer=_NOBODY)),
    _do("a refresh token as bearer", *_IN, _api("{refresh}")),
    _do("a bearer in lower case", *_IN, _api(scheme="bearer")),
    _do("an expired bearer", Lifetimes(1), *_IN, Wait(1.1), _api()),
    _do("a revoked bearer", *_IN, Revoke(), _api()),
    _do("a disabled user's bearer", *_IN, Disable(), _api()),
    # The logout
    _do("a logout", *_IN, _revoke(), _api(), _refresh()),
    _do("a logout after the expiry", Lifetimes(1), *_IN, Wait(1.1), _revoke(), _refresh()),
    _do("a second logout", *_IN, _revoke(), _revoke()),
    _do("a logout of an unknown token", _revoke(_NOBODY)),
    _do("a logout with an old refresh token", *_IN, _refresh(), _revoke("{refresh1}"), _api()),
    _do("a logout with the access token", *_IN, _revoke("{access}"), _api(), _refresh()),
    _do(
        "a logout of one of two logins",
        *(*_IN, *_IN, _revoke(), _api("{access1}"), _refresh(refresh_token="{refresh1}")),
    ),
    _do("a logout without a token", Ask(path="/oauth2/revoke", basic=KEY)),
    _do("a logout with a wrong key", *_IN, _revoke(key=WRONG), _refresh()),
    _do("a logout at another key", *_IN, _revoke(key=OTHER), _refresh()),
)
