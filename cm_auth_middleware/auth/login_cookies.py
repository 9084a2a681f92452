"""The cookies of logins: small ones that prove a browser, and one that marks a fresh login."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import socket
import threading
from base64 import urlsafe_b64decode
from collections.abc import Callable, Container, Sequence
from functools import lru_cache
from typing import NamedTuple

from ..runtime.after_fork import after_fork
from ..sessions.cookie import SessionCookie
from ..web.request import Request
from ..web.response import Headers
from .login_state import PROOF_BYTES, PendingLogin, StateSealer, base64url

LOGIN_LIFETIME = 600  # seconds: a password manager and a second factor take minutes
_MOST_LOGINS = 60  # login cookies that one browser may have, when many tabs begin at once
_MOST_OWN = 12  # that it gets one by one; the logins after them share a cookie
# Bytes of our cookies in a Cookie header. Of a site that has both schemes, https gets those of http
# too, and servers refuse headers beyond 8 kB.
_MOST_BYTES = 2_990
_SESSION_BYTES = 149  # of a session's cookies, without their names
_MOST_STRAYS = 12  # cookies that one response clears
_MANY = 4  # login cookies that show that a browser had many tabs at once
_PAUSE = 10  # seconds without a login
_GOLDEN = 0.6180339887498949  # few multiples of it have fractions that are close to each other
_PROOF = re.compile("[A-Za-z0-9_-]{21}[AQgw]")  # 16 bytes in base64url
_NUMBERS = {str(number): number for number in range(_MOST_LOGINS)}
_FRESH = 60  # seconds after a login in which a missing session means that cookies are not kept
_INFIX = "_login_"  # of the names of login cookies, between that of the session cookie and a number
FRESH_SUFFIX = "_in"  # of the name of the cookie that marks a fresh login
_NUMBER = re.compile("[0-9a-f]{1,16}")  # how their names end, with a hash in earlier releases
_CLOCK_SKEW = 300  # seconds that two servers' clocks may differ
_HOST = socket.gethostname()


class Proof(NamedTuple):
    """A login cookie: its number, which is a part of its name, and its content, random bytes."""

    number: int
    content: bytes


class _Numbers:
    """Gives out the numbers of login cookies, one after the other, to all engines of a process.

    Several engines may share logins: one application at two paths, for example. Two tabs that a
    browser restores at once never get the same number from one process, or one tab's cookie would
    overwrite the other's.
    """

    def __init__(self) -> None:
        self.after_fork()
        after_fork(self)

    def after_fork(self) -> None:
        """Begin anew, at the number of this process."""
        self._lock = threading.Lock()
        # How many were given out, and when the last of them, for each name of a session cookie.
        self._given: dict[str, tuple[int, float]] = {}

    def draw(self, session_cookie: str, taken: Container[int], now: float) -> int:
        """Return the next number that is not among those that a browser has; some must be left.

        It begins anew after a pause, so that tabs that are restored at once are spread over all
        numbers, whichever processes they reach.
        """
        most = _most_logins(session_cookie)
        with self._lock:
            count, last = self._given.get(session_cookie, (0, 0.0))
            if now - last > _PAUSE:
                count = 0
            start = first_number(os.getpid(), _HOST, most)
            # One that is taken is skipped for all, or the next tab would get the one after it, too.
            while (number := (start + count) % most) in taken:
                count += 1
            self._given[session_cookie] = count + 1, now
        return number


@lru_cache(64)
def first_number(pid: int, host: str, most: int) -> int:
    """Return the number that a process begins with, of so many.

    Those of workers, with process ids in a row, are far apart from each other. Those of containers,
    where each has the same process id, depend on the host name, and seldom coincide.
    """
    turn = int.from_bytes(hashlib.sha256(os.fsencode(host)).digest()[:4]) / 2**32
    return int((pid * _GOLDEN + turn) % 1 * most)


class LoginCookies:
    """Sets, finds and clears the cookies of logins.

    A login's state says everything about it (`login_state`). A cookie of 22 random characters
    proves that the browser which comes back with a state is the one that began; otherwise an
    attacker could log somebody else in to an account of theirs (RFC 6749 §10.12).

    Tabs that a browser restores all at once do not know of each other's cookies, so each gets one
    of its own. Their names are `_MOST_LOGINS` numbers, given out one after the other, so that the
    Cookie header stays below 3 kB however many tabs there are. A tab whose cookie another tab
    overwrote is led to its page as soon as any tab is logged in, and begins anew before that. Tabs
    that come one by one, and so show `_MOST_OWN` cookies, share the first of them.

    The server stores nothing for a visitor.

    A login sets a mark for a minute. A browser that sends it without a session does not keep the
    session cookie, and would be sent to log in again for ever.

    Args:
        session_cookie: the site's, whose name and attributes these cookies share.
        secret_keys: from oldest to newest: the newest encrypts states, all decrypt them.
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
        self._states = StateSealer(secret_keys)
        self.open, self.code_verifier = self._states.open, self._states.code_verifier

    # -- pending logins --------------------------------------------------------------------

    def proof(self, request: Request) -> Proof:
        """Return the login cookie that a new login of this browser has."""
        proofs, most = self._proofs(request), self._most(request)
        if len(proofs) >= min(_MOST_OWN, most):
            number, value = next(iter(proofs.items()))
            return Proof(number, urlsafe_b64decode(f"{value}=="))
        number = _numbers.draw(self._session_cookie.name(request), proofs, self._clock())
        return Proof(number, secrets.token_bytes(PROOF_BYTES))

    def start(
        self, proof: Proof, redirect_uri: str, target: str, *, by_http: bool, is_anew: bool
    ) -> str:
        """Return the state of a login that begins, in the browser that has or gets this cookie.

        Args: see `PendingLogin`.
        """
        return self._states.seal(
            *proof, redirect_uri, target, int(self._clock()), by_http=by_http, is_anew=is_anew
        )

    def began_here(self, request: Request, login: PendingLogin) -> bool:
        """Return True if this browser began the login, and it has not expired."""
        if not self._is_in_time(login):
            return False
        name, proof = self._name(request, login.number), base64url(login.proof).encode()
        values = [value.encode() for key, value in request.cookies if key == name]
        return any(hmac.compare_digest(value, proof) for value in values[:2])

    def is_overwritten(self, request: Request, login: PendingLogin) -> bool:
        """Return True if another one of many tabs seems to have overwritten the cookie of a login.

        A browser with few login cookies has more likely followed a link that an attacker made.
        """
        proofs = self._proofs(request)
        return self._is_in_time(login) and len(proofs) >= _MANY and login.number in proofs

    def lost_by_scheme(self, request: Request, login: PendingLogin) -> bool:
        """Return True if a login began by http and ends by https, or the other way round.

        Its cookie does not come then. The site has both schemes, and ``redirect_uri`` one of them,
        or something led the callback from the one to the other. If another login can keep no
        cookie either, because they are ``Secure`` and the callback is http, this is False.
        """
        is_kept = request.is_secure or not self._session_cookie.is_secure(request)
        return self._is_in_time(login) and login.by_http is request.is_secure and is_kept

    def _is_in_time(self, login: PendingLogin) -> bool:
        # It may begin a while from now: two servers' clocks differ a little.
        age = self._clock() - login.started_at
        return -_CLOCK_SKEW <= age <= LOGIN_LIFETIME

    def set(self, request: Request, proof: Proof) -> tuple[str, str]:
        """Set the cookie of a login that begins."""
        name = self._name(request, proof.number)
        return self._session_cookie.header(request, name, base64url(proof.content), LOGIN_LIFETIME)

    def clear(self, request: Request, login: PendingLogin) -> tuple[str, str]:
        """Clear the cookie of a login that worked."""
        return self._session_cookie.header(request, self._name(request, login.number), "", 0)

    def release(self, request: Request, login: PendingLogin) -> tuple[str, str]:
        """Clear the cookie of a login that failed, unless others may share it."""
        if len(self._proofs(request)) < _MOST_OWN:
            return self.clear(request, login)
        return self.set(request, Proof(login.number, login.proof))

    def clear_strays(self, request: Request) -> Headers:
        """Clear the cookies with our names that are none of ours, or of an earlier release."""
        if _INFIX not in request.cookie_line:
            return []
        prefix = self._prefix(request)
        proofs = self._proofs(request)
        ours = {f"{prefix}{number}" for number in proofs}
        names = {
            name
            for name, _ in request.cookies
            # Not the session cookie of an application beside this one, whose name begins so.
            if name.startswith(prefix) and _NUMBER.fullmatch(name, len(prefix))
        }
        strays = sorted(names - ours)[:_MOST_STRAYS]
        return [self._session_cookie.header(request, name, "", 0) for name in strays]

    def lease(self, request: Request, login: PendingLogin) -> str:
        """Return the key in the store under which a login is marked as used."""
        return self._prefix(request) + hashlib.sha256(login.state.encode()).hexdigest()[:16]

    def _proofs(self, request: Request) -> dict[int, str]:
        """Return the login cookies of a request: the numbers in their names, and their values."""
        proofs: dict[int, str] = {}
        if _INFIX in request.cookie_line:
            prefix, most = self._prefix(request), self._most(request)
            for name, value in request.cookies:
                number = _NUMBERS.get(name[len(prefix) :], most)
                if name.startswith(prefix) and number < most and _PROOF.fullmatch(value):
                    proofs.setdefault(number, value)
        return proofs

    def _most(self, request: Request) -> int:
        """Return the number of login cookies that one browser may have."""
        return _most_logins(self._session_cookie.name(request))

    def _name(self, request: Request, number: int) -> str:
        return f"{self._prefix(request)}{number}"

    def _prefix(self, request: Request) -> str:
        return _prefix(self._session_cookie.name(request))

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
        if FRESH_SUFFIX not in request.cookie_line:
            return False
        name, now = self._fresh_name(request), self._clock()
        values = (value for key, value in request.cookies if key == name)
        times = (int(value[:12]) for value in values if value.isdecimal())
        return any(-_CLOCK_SKEW <= now - time < _FRESH for time in times)

    def _fresh_name(self, request: Request) -> str:
        return self._session_cookie.name(request) + FRESH_SUFFIX


def _prefix(session_cookie: str) -> str:
    """Return what the names of login cookies begin with, given that of the session cookie."""
    return f"{session_cookie}{_INFIX}"


@lru_cache
def _most_logins(session_cookie: str) -> int:
    """Return the number of login cookies for which there is room, given that name."""
    size = len(f"{_prefix(session_cookie)}10={base64url(bytes(PROOF_BYTES))}; ")
    room = _MOST_BYTES - _SESSION_BYTES - 2 * len(session_cookie)
    return min(_MOST_LOGINS, room // size)


_numbers = _Numbers()
