"""The cookies of logins: one for each pending attempt, and one that marks a fresh login."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import zlib
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

from itsdangerous import BadSignature

from ..sessions.cookie import SessionCookie, signer
from ..web.request import Request
from ..web.response import Headers

LOGIN_LIFETIME = 600  # seconds: a password manager and a second factor take minutes
MAX_COOKIE = 4096  # bytes: the length of a cookie that every browser keeps (RFC 6265 §6.1)
_MOST_VALUE = 3_400  # characters of its value: an answer's headers have to stay below 4 kB
_SHORT = 512  # bytes that are not compressed
_MOST_UNPACKED = 16_384  # bytes
_MOST_LOGINS = 12  # pending logins that one browser may have
_MOST_LOGIN_BYTES = 6_000  # of their cookies together: servers refuse headers beyond 8 kB
_FRESH = 60  # seconds after a login in which a missing session means that cookies are not kept
FRESH_SUFFIX = "_in"  # of the name of the cookie that marks a fresh login
_CLOCK_SKEW = 300  # seconds that two servers' clocks may differ
_HASH = re.compile("[0-9a-f]{16}")  # how the name of a pending login ends


@dataclass(frozen=True, slots=True, repr=False)
class PendingLogin:
    """One login attempt, as its cookie holds it. ``started_at`` is in epoch seconds.

    Attributes:
        key: the secret key that signed the cookie, as its place in the list; it is not in there.
    """

    state: str
    redirect_uri: str
    target: str
    started_at: int
    key: int = -1


class LoginCookies:
    """Signs, sets, finds and clears the cookies of logins.

    Each attempt has a cookie of its own, so that tabs which log in at once do not overwrite each
    other. The server stores nothing for a visitor: the PKCE verifier is derived from the state.

    A login sets a mark for a minute. A browser that sends it without a session does not keep the
    session cookie, and would be sent to log in again for ever.

    Args:
        session_cookie: the site's, whose name and attributes these cookies share.
        secret_keys: from oldest to newest: the newest signs, all verify.
        clock: epoch seconds.
    """

    def __init__(
        self,
        session_cookie: SessionCookie,
        secret_keys: Sequence[str],
        clock: Callable[[], float],
    ) -> None:
        self._session_cookie = session_cookie
        self._clock = clock
        self._signers = [signer([key], "login") for key in secret_keys]
        self._pkce_keys = [
            hashlib.sha256(b"cm_auth.pkce:" + key.encode()).digest() for key in secret_keys
        ]

    # -- pending logins --------------------------------------------------------------------

    def name(self, request: Request, state: str) -> str:
        """Return the cookie's name, a hash of the state, by which the callback finds it."""
        return self._prefix(request) + hashlib.sha256(state.encode()).hexdigest()[:16]

    def start(self, redirect_uri: str, target: str, root: str) -> tuple[PendingLogin, str]:
        """Begin a login; return it and the cookie's value.

        A target that is too long for a cookie loses its fragment, then its query; if it still is,
        the login leads to the `root` of the app.
        """
        now = int(self._clock())
        login = PendingLogin(secrets.token_urlsafe(32), redirect_uri, target, now)
        value = self._dump(login)
        for shorter in (target.partition("#")[0], re.split("[?#]", target)[0], root):
            if len(value) <= _MOST_VALUE:
                break
            login = replace(login, target=shorter)
            value = self._dump(login)
        return login, value

    def load(self, value: str) -> PendingLogin | None:
        """Return the pending login of a cookie, whatever its age; None if it does not verify."""
        if len(value) > MAX_COOKIE or not value.isascii():
            return None
        for key in range(-1, -1 - len(self._signers), -1):
            try:
                payload = self._signers[key].unsign(value)
                fields = json.loads(_unpack(base64.urlsafe_b64decode(payload + b"==")))
                return replace(PendingLogin(*fields), key=key)
            except BadSignature:
                continue
            except (ValueError, TypeError, zlib.error):  # of another version
                return None
        return None

    def find(self, request: Request, state: str) -> PendingLogin | None:
        """Return this browser's pending login with this state, if it has not expired."""
        name = self.name(request, state)
        values = [value for key, value in request.cookies if key == name]
        return next(filter(None, (self.match(value, state) for value in values[:2])), None)

    def match(self, value: str, state: str) -> PendingLogin | None:
        """Return the pending login if the cookie belongs to this state and has not expired."""
        login = self.load(value)
        if login is None or not hmac.compare_digest(login.state.encode(), state.encode()):
            return None
        # It may begin a while from now: two servers' clocks differ a little.
        age = self._clock() - login.started_at
        return login if -_CLOCK_SKEW <= age <= LOGIN_LIFETIME else None

    def code_verifier(self, login: PendingLogin) -> str:
        """Return the PKCE code verifier of a login (RFC 7636 §4.1), which is never stored.

        It comes from the key that signed the cookie: the process that the login ends at may have
        another list of keys, with that key in another place.
        """
        digest = hmac.digest(self._pkce_keys[login.key], login.state.encode(), "sha256")
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def _dump(self, login: PendingLogin) -> str:
        fields = json.dumps(astuple(login)[:-1], separators=(",", ":")).encode()
        return self._signers[-1].sign(base64.urlsafe_b64encode(_pack(fields)).rstrip(b"=")).decode()

    def add(self, request: Request, name: str, value: str) -> Headers:
        """Set a pending login.

        Clear the oldest ones, so that they do not pile up, and before them any that do not verify:
        those of an application beside this one, which has another key, only if there are too many.
        """
        prefix = self._prefix(request)
        found = {
            n: v
            for n, v in request.cookies
            if n.startswith(prefix) and _HASH.fullmatch(n, len(prefix))
        }
        loaded = {n: self.load(v) for n, v in found.items()}
        youngest_first = sorted(
            found, key=lambda n: login.started_at if (login := loaded[n]) else 0, reverse=True
        )
        total, cleared = len(value), []
        for count, old in enumerate(youngest_first, start=2):
            total += len(found[old])
            if count > _MOST_LOGINS or total > _MOST_LOGIN_BYTES:
                cleared.append(old)
        return [
            self._session_cookie.header(request, name, value, LOGIN_LIFETIME),
            *(self.clear(request, old) for old in cleared[:_MOST_LOGINS]),
        ]

    def clear(self, request: Request, name: str) -> tuple[str, str]:
        """Clear a pending login: each works once."""
        return self._session_cookie.header(request, name, "", 0)

    def has_pending(self, request: Request, state: str) -> bool:
        """Return True if this browser has a pending login with this state."""
        name = self.name(request, state)
        return any(key == name for key, _ in request.cookies)

    def _prefix(self, request: Request) -> str:
        return f"{self._session_cookie.name(request)}_login_"

    # -- the mark of a fresh login ---------------------------------------------------------

    def set_fresh_login(self, request: Request) -> tuple[str, str]:
        """Mark for a minute that this browser has just logged in."""
        now = str(int(self._clock()))
        return self._session_cookie.header(request, self._fresh_name(request), now, _FRESH)

    def clear_fresh_login(self, request: Request) -> tuple[str, str]:
        """Clear the mark that this browser has just logged in."""
        return self._session_cookie.header(request, self._fresh_name(request), "", 0)

    def is_fresh_login(self, request: Request) -> bool:
        """Return True if this browser logged in within the last minute."""
        name, now = self._fresh_name(request), self._clock()
        values = (value for key, value in request.cookies if key == name)
        times = (int(value[:12]) for value in values if value.isdecimal())
        return any(-_CLOCK_SKEW <= now - time < _FRESH for time in times)

    def _fresh_name(self, request: Request) -> str:
        return self._session_cookie.name(request) + FRESH_SUFFIX


def _pack(fields: bytes) -> bytes:
    """Compress a long target: a deep link may be longer than a cookie."""
    packed = fields if len(fields) <= _SHORT else zlib.compress(fields, 9)
    return packed if len(packed) < len(fields) else fields


def _unpack(packed: bytes) -> bytes:
    """Reverse `_pack`: zlib's data begins with an x, JSON with a bracket."""
    if packed[:1] != b"x":
        return packed
    return zlib.decompressobj().decompress(packed, _MOST_UNPACKED)
