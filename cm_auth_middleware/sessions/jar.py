"""The cookies of one site: what they are called, and how they are found, set and cleared."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple
from urllib.parse import urlsplit

from ..config import CMAuthConfig, needs_https, seconds
from ..events import log
from ..runtime.bounded_cache import BoundedCache
from ..web.request import Request
from ..web.response import Headers
from .cookie import LOGIN_LIFETIME, LoginCookie, Ticket, TicketCookie

_MOST_LOGINS = 12  # pending logins that one browser may have
_MOST_LOGIN_BYTES = 6_000  # of their cookies together: servers refuse headers beyond 8 kB
_MOST_TICKETS = 4  # well signed session cookies whose sessions are looked up
_MOST_LINE = 4_096  # characters of a Cookie header that is remembered
_MARKED = 60  # seconds after a login in which a missing session means that cookies do not stick
_CLOCK_SKEW = 300  # seconds that two servers' clocks may differ


class Cookies(NamedTuple):
    """What a Cookie header says that concerns us.

    Attributes:
        tickets: those that are well signed, and whether an old key signed them. Several: a
            neighbouring host can set a cookie of our name, so the first need not be ours.
        stamps: when this browser logged in lately, as it says.
    """

    tickets: list[tuple[Ticket, bool]]
    stamps: list[str]


class CookieJar:
    """Reads and writes the session cookie, the login cookies and the mark of a recent login.

    A login leaves a mark for a minute: a browser that has it but no session does not keep our
    cookies, and sending it to log in again would never end.
    """

    def __init__(self, config: CMAuthConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._ticket = TicketCookie(tuple(config.secret_key))
        self._plain = config.cookie_name or _NAME
        self._secure = secure_name(self._plain)
        # What browsers are told to use; the server may not know it, behind a proxy.
        self._scheme = urlsplit(config.redirect_uri or "").scheme
        forced = config.cookie_secure
        # None: by the scheme of the request.
        self._forced = True if forced is None and self._scheme == "https" else forced
        names = {self._plain, self._secure}
        self._logins = {name: LoginCookie(tuple(config.secret_key), name) for name in names}
        # What was verified, by the name of the session cookie and the very Cookie header: a
        # signature does not change its mind. Only a header with a valid one is kept. Whether there
        # is a session, the store says.
        self._known: dict[str, BoundedCache[str, Cookies]] = {
            name: BoundedCache() for name in names
        }
        self._warned: set[str] = set()

    def read(self, request: Request) -> Cookies:
        """Return what the request's cookies say."""
        line = request.cookie_line
        if not line:
            return _NONE
        name = self._name(request)
        known = self._known[name]
        cookies = known.get(line)
        if cookies is None:
            if name not in line:  # nor, then, its mark: other people's cookies
                return _NONE
            cookies = self._read(request)
            if cookies.tickets and len(line) <= _MOST_LINE:
                known[line] = cookies
        return cookies

    def _read(self, request: Request) -> Cookies:
        name, mark = self._name(request), self._mark(request)
        found = request.cookies
        loaded = (self._ticket.load(value.strip('"')) for key, value in found if key == name)
        tickets = islice((ticket for ticket in loaded if ticket is not None), _MOST_TICKETS)
        stamps = (value for key, value in found if key == mark)
        return Cookies(list(tickets), [stamp for stamp in stamps if stamp.isdecimal()])

    def session(self, request: Request, ticket: Ticket, logged_in_at: float) -> tuple[str, str]:
        """Set the session cookie, for as long as the session may live."""
        left = logged_in_at + seconds(self._config.absolute_timeout) - self._clock()
        return self._set(request, self._name(request), self._ticket.dump(ticket), int(left))

    def forget(self, request: Request) -> Headers:
        """Clear the session cookie and the mark of its login."""
        return [self._clear(request, self._name(request)), self.unmark(request)]

    def login(self, request: Request) -> LoginCookie:
        """The signer of pending logins for this request's scheme."""
        return self._logins[self._name(request)]

    def add_login(self, request: Request, name: str, value: str) -> Headers:
        """Set a pending login; drop the oldest ones, and what is none, so that none pile up."""
        cookie = self.login(request)
        found = {n: v for n, v in request.cookies if n.startswith(cookie.prefix)}
        loaded = {n: cookie.load(v) for n, v in found.items()}
        youngest_first = sorted(
            found, key=lambda n: login.started_at if (login := loaded[n]) else 0, reverse=True
        )
        total, dropped = len(value), []
        for count, old in enumerate(youngest_first, start=2):
            total += len(found[old])
            if count > _MOST_LOGINS or total > _MOST_LOGIN_BYTES or loaded[old] is None:
                dropped.append(old)
        return [
            self._set(request, name, value, LOGIN_LIFETIME),
            *(self._clear(request, old) for old in dropped[:_MOST_LOGINS]),
        ]

    def drop_login(self, request: Request, name: str) -> Headers:
        """Clear a pending login: each works once."""
        return [self._clear(request, name)]

    def mark(self, request: Request) -> tuple[str, str]:
        """Remember for a minute that this browser has just logged in."""
        return self._set(request, self._mark(request), str(int(self._clock())), _MARKED)

    def unmark(self, request: Request) -> tuple[str, str]:
        """Forget that this browser has just logged in."""
        return self._clear(request, self._mark(request))

    def is_marked(self, request: Request) -> bool:
        """Whether this browser logged in within the last minute."""
        now = self._clock()
        stamps = self.read(request).stamps
        return any(-_CLOCK_SKEW <= now - int(stamp[:12]) < _MARKED for stamp in stamps)

    def watch_scheme(self, request: Request) -> None:
        """Warn once if requests come by another scheme than that of ``redirect_uri``."""
        if self._scheme not in ("", request.scheme) and self._is_first("scheme"):
            log("scheme_mismatch", request=request.scheme, redirect_uri=self._scheme)

    def _is_first(self, warning: str) -> bool:
        """True once for each warning: a visitor may send any number of requests that earn it."""
        is_first = warning not in self._warned
        self._warned.add(warning)
        return is_first

    def _is_secure(self, request: Request) -> bool:
        return request.is_secure if self._forced is None else self._forced

    def _name(self, request: Request) -> str:
        return self._secure if self._is_secure(request) else self._plain

    def _mark(self, request: Request) -> str:
        return f"{self._name(request)}_in"

    def _set(self, request: Request, name: str, value: str, age: int) -> tuple[str, str]:
        self.watch_scheme(request)
        is_secure = self._is_secure(request)
        if not is_secure and needs_https(name) and self._is_first("prefix"):
            log("cookie_prefix_on_http", cookie_name=self._plain)
        secure = "; Secure" if is_secure else ""
        return (
            "Set-Cookie",
            f"{name}={value}; Max-Age={age}; Path=/; HttpOnly; SameSite=Lax{secure}",
        )

    def _clear(self, request: Request, name: str) -> tuple[str, str]:
        return self._set(request, name, "", 0)


def secure_name(name: str) -> str:
    """The name of a cookie on https: the browser keeps other hosts from setting ``__Host-…``.

    A name that has a prefix already stays (RFC 6265bis §4.1.3): ``__Secure-`` keeps http from
    setting it, but not a neighbouring host.
    """
    return name if name.startswith(("__Host-", "__Secure-")) else f"__Host-{name}"


_NAME = "cm_auth"
_NONE = Cookies([], [])
