"""The session cookie: a signed, opaque ticket to a record in the store."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from itsdangerous import Signer
from itsdangerous.signer import SigningAlgorithm

from ..events import log
from ..runtime.bounded_cache import BoundedCache, CacheMemory
from ..web.request import Request

_NAME = "cm_auth"
_TICKET_BYTES = 64
_TICKET_LENGTH = 86 + 1 + 43  # 64 bytes, a dot and a SHA-256 signature, in base64url
# Letters that 32 bytes in base64url may end with: decoders ignore two bits of the last one.
_LAST = "AEIMQUYcgkosw048"
_MOST_TICKETS = 4  # session cookies with a valid signature whose records are looked up
_MOST_OF_OUR_NAME = 8  # cookies whose signatures are verified: the first and the last ones
_MOST_LINE = 4_096  # characters of a Cookie header that is remembered
_TO_URL, _FROM_URL = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_", b"+/")
_TICKET_SIZE = 512  # bytes of memory that a ticket takes, with its parts, about


@dataclass(slots=True, repr=False)
class Ticket:
    """The content of the session cookie: the session's id, and a part of the key to its record."""

    session_id: Final[bytes]
    cookie_key: Final[bytes]
    record_id: str = field(init=False)

    def __post_init__(self) -> None:
        # A hash, so that a stolen store contains no session id that a cookie could be made of.
        self.record_id = hashlib.sha256(self.session_id).hexdigest()

    @classmethod
    def new(cls) -> Ticket:
        """Draw a ticket: 256 bits of session id and 256 bits of key."""
        return cls(secrets.token_bytes(32), secrets.token_bytes(32))


Found = Sequence[tuple[Ticket, bool]]  # the tickets of a request; True if an older key signed it


class TicketSigner:
    """Signs and verifies tickets: the newest secret key signs, all verify."""

    def __init__(self, secret_keys: Sequence[str]) -> None:
        self._signer = signer(secret_keys, "session")
        self._keys = [*enumerate(map(self._signer.derive_key, reversed(self._signer.secret_keys)))]

    def dump(self, ticket: Ticket) -> str:
        """Return the cookie's value for a ticket."""
        raw = ticket.session_id + ticket.cookie_key
        return self._signer.sign(base64.urlsafe_b64encode(raw).rstrip(b"=")).decode()

    def load(self, value: str) -> tuple[Ticket, bool] | None:
        """Return the ticket, and True if an older key signed it; None if its signature is wrong."""
        # As itsdangerous does it, in a third of the time: this is done for each new Cookie header.
        if not _is_ticket(value):
            return None
        encoded, dot, signature = value.encode().rpartition(b".")
        for age, key in self._keys:
            expected = binascii.b2a_base64(hmac.digest(key, encoded, "sha256"), newline=False)
            if dot and hmac.compare_digest(expected[:-1].translate(_TO_URL), signature):
                raw = binascii.a2b_base64(encoded.translate(_FROM_URL) + b"==")
                return (Ticket(raw[:32], raw[32:]), age > 0) if len(raw) == _TICKET_BYTES else None
        return None


def _is_ticket(value: str) -> bool:
    """Return True if a cookie's value has the form of a ticket, whoever signed it."""
    return len(value) == _TICKET_LENGTH and value.isascii() and value[-1] in _LAST


def _size(found: Found) -> int:
    return _TICKET_SIZE * len(found)


class SessionCookie:
    """Reads, sets and clears the session cookie.

    Args:
        secret_keys: from oldest to newest: the newest signs, all verify.
        lifetime: seconds from the login until the cookie ends.
        clock: epoch seconds.
        name: on http; on https it gets the prefix ``__Host-``.
        is_secure: True and False force it; None decides by the scheme.
        redirect_uri: the callback's URL as browsers see it, where the server may not know it.
        memory: shared with other caches.
    """

    def __init__(
        self,
        secret_keys: Sequence[str],
        lifetime: float,
        clock: Callable[[], float],
        *,
        name: str | None = None,
        is_secure: bool | None = None,
        redirect_uri: str | None = None,
        memory: CacheMemory | None = None,
    ) -> None:
        self._signer = TicketSigner(secret_keys)
        self._lifetime = lifetime
        self._clock = clock
        self._plain_name = name or _NAME
        self._secure_name = _secure_name(self._plain_name)
        self._needs_https = needs_https(self._plain_name)
        self._scheme = urlsplit(redirect_uri or "").scheme
        self._forced = True if is_secure is None and self._scheme == "https" else is_secure
        # Verified Cookie headers: those on http, and those on https, where the name is another. A
        # verified signature stays valid, and the store is asked for the session each time. Headers
        # without a ticket are not kept: visitors could fill the memory with them.
        self._verified: dict[bool, BoundedCache[str, Found]] = {
            is_secure: BoundedCache(memory=memory, size=_size) for is_secure in (False, True)
        }
        self._warned: set[str] = set()

    def read(self, request: Request) -> Found:
        """Return the tickets in a request's cookies.

        There may be several: a neighbouring host can set a cookie of the same name, and it may
        come first.
        """
        line = request.cookie_line
        if not line:
            return ()
        is_secure = request.is_secure if self._forced is None else self._forced
        verified = self._verified[is_secure]
        found = verified.get(line)
        if found is None:
            name = self._secure_name if is_secure else self._plain_name
            if name not in line:
                return ()
            named = request.cookies_named(name)
            values = [ticket for value in named if _is_ticket(ticket := value.strip('"'))]
            if len(values) > _MOST_OF_OUR_NAME:
                half = _MOST_OF_OUR_NAME // 2  # cookies of a neighbour come before ours, or after
                values = values[:half] + values[-half:]
            tickets = [ticket for ticket in map(self._signer.load, values) if ticket is not None]
            found = tuple(tickets[:_MOST_TICKETS])
            if found and len(line) <= _MOST_LINE:
                verified[line] = found
        return found

    def set(self, request: Request, ticket: Ticket, logged_in_at: float) -> tuple[str, str]:
        """Return the header that sets the cookie, for as long as the session may live."""
        left = logged_in_at + self._lifetime - self._clock()
        return self.header(request, self.name(request), self._signer.dump(ticket), int(left))

    def clear(self, request: Request) -> tuple[str, str]:
        """Return the header that clears the cookie."""
        return self.header(request, self.name(request), "", 0)

    @property
    def names(self) -> frozenset[str]:
        """The cookie's names, on http and on https."""
        return frozenset({self._plain_name, self._secure_name})

    def name(self, request: Request) -> str:
        """Return the cookie's name for this request's scheme."""
        return self._secure_name if self.is_secure(request) else self._plain_name

    def is_secure(self, request: Request) -> bool:
        """Return True if the answer to a request sets ``Secure`` cookies."""
        return request.is_secure if self._forced is None else self._forced

    def header(self, request: Request, name: str, value: str, max_age: int) -> tuple[str, str]:
        """Return the header that sets a cookie with the attributes of the session cookie.

        Args:
            name: that of the session cookie, or one that begins with it.
            max_age: seconds; 0 clears the cookie.
        """
        self.check_scheme(request)
        is_secure = self.is_secure(request)
        if not is_secure and self._needs_https and self._is_first("prefix"):
            log("cookie_prefix_on_http", cookie_name=self._plain_name)
        secure = "; Secure" if is_secure else ""
        return (
            "Set-Cookie",
            f"{name}={value}; Max-Age={max_age}; Path=/; HttpOnly; SameSite=Lax{secure}",
        )

    def check_scheme(self, request: Request) -> None:
        """Warn once if requests come by another scheme than that of ``redirect_uri``."""
        if self._scheme and self._scheme != request.scheme and self._is_first("scheme"):
            log("scheme_mismatch", request=request.scheme, redirect_uri=self._scheme)

    def _is_first(self, warning: str) -> bool:
        """Return True once for each warning: a visitor may cause any number of them."""
        is_first = warning not in self._warned
        self._warned.add(warning)
        return is_first


class _HMACSHA256(SigningAlgorithm):
    """HMAC-SHA256 in one call; Python's HMAC objects take three times as long."""

    def get_signature(self, key: bytes, value: bytes) -> bytes:
        return hmac.digest(key, value, "sha256")


def signer(secret_keys: Sequence[str], purpose: str) -> Signer:
    """Return a signer by HMAC-SHA256 whose signatures are valid for one purpose only.

    Its keys are derived here, and not at each signature. They are those of itsdangerous's
    ``key_derivation="hmac"``, which releases before 0.2 used.
    """
    salt = f"cm_auth_middleware.{purpose}".encode()
    derived = [hmac.digest(key.encode(), salt, "sha256") for key in secret_keys]
    return Signer(derived, key_derivation="none", algorithm=_HMACSHA256())


def needs_https(name: str) -> bool:
    """Return True if browsers refuse a cookie of this name without ``Secure``.

    The case of its letters does not matter. Source: RFC 6265bis §4.1.3 and §5.7.
    """
    return name.lower().startswith(("__host-", "__secure-"))


def _secure_name(name: str) -> str:
    """Return the cookie's name on https, which keeps other hosts from setting it: ``__Host-…``.

    A name that has a prefix already stays (RFC 6265bis §4.1.3): ``__Secure-`` keeps http from
    setting it, but not a neighbouring host.
    """
    return name if name.startswith(("__Host-", "__Secure-")) else f"__Host-{name}"
