"""The cookies: a signed, opaque session ticket and the signed state of a pending login."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace

from itsdangerous import BadSignature, Signer

LOGIN_LIFETIME = 600  # seconds: a password manager and a second factor take minutes
MAX_COOKIE = 4096  # bytes: what every browser keeps of one cookie (RFC 6265 §6.1)
_TICKET_BYTES = 64
_TICKET_LENGTH = 86 + 1 + 43  # two halves, a dot and a SHA-256 signature, in base64url
_LAST = "AEIMQUYcgkosw048"  # what 32 bytes end with: decoders ignore two bits of the last letter


@dataclass(frozen=True, slots=True, repr=False)
class Ticket:
    """What the session cookie carries: who you are in the store, and half of the key to it."""

    session_id: bytes
    cookie_key: bytes
    record_id: str = field(init=False)

    def __post_init__(self) -> None:
        # The store's name for the session is a hash, so that a stolen store opens no session.
        object.__setattr__(self, "record_id", hashlib.sha256(self.session_id).hexdigest())

    @classmethod
    def new(cls) -> Ticket:
        """Draw a ticket: 256 bits of session id and 256 bits of key."""
        return cls(secrets.token_bytes(32), secrets.token_bytes(32))


@dataclass(frozen=True, slots=True, repr=False)
class PendingLogin:
    """One login attempt, as its cookie remembers it."""

    state: str
    redirect_uri: str
    target: str
    started_at: int


class TicketCookie:
    """Signs and verifies the session cookie."""

    def __init__(self, secret_keys: Sequence[str]) -> None:
        self._newest = _signer(secret_keys[-1:], "session")
        self._all = _signer(secret_keys, "session")

    def dump(self, ticket: Ticket) -> str:
        """Return the cookie's value for a ticket."""
        raw = ticket.session_id + ticket.cookie_key
        return self._newest.sign(base64.urlsafe_b64encode(raw).rstrip(b"=")).decode()

    def load(self, value: str) -> tuple[Ticket, bool] | None:
        """Return the ticket and whether an older key signed it; None for anything forged."""
        if len(value) != _TICKET_LENGTH or not value.isascii() or value[-1] not in _LAST:
            return None
        try:
            try:
                encoded, old = self._newest.unsign(value), False
            except BadSignature:
                encoded, old = self._all.unsign(value), True
            raw = base64.b64decode(encoded + b"==", altchars=b"-_", validate=True)
        except (BadSignature, binascii.Error):
            return None
        if len(raw) != _TICKET_BYTES:
            return None
        return Ticket(raw[:32], raw[32:]), old


class LoginCookie:
    """Signs and verifies the cookies of pending logins, one for each attempt.

    One cookie an attempt, so that tabs which log in at once do not overwrite each other.
    Nothing is stored here for a visitor: the PKCE verifier is derived from the state.
    """

    def __init__(self, secret_keys: Sequence[str], name: str) -> None:
        self._signer = _signer(secret_keys, "login")
        # The oldest key still listed: a login that began before a rotation can end after it.
        self._pkce_key = hashlib.sha256(b"cm_auth.pkce:" + secret_keys[0].encode()).digest()
        self.prefix = f"{name}_login_"

    def name(self, state: str) -> str:
        """The cookie's name: a hash of the state, so that the callback finds its own."""
        return self.prefix + hashlib.sha256(state.encode()).hexdigest()[:16]

    def start(self, redirect_uri: str, target: str, now: float) -> tuple[PendingLogin, str]:
        """Begin a login; return it and the cookie's value. A target too long becomes ``/``."""
        login = PendingLogin(secrets.token_urlsafe(32), redirect_uri, target, int(now))
        value = self._dump(login)
        if len(value) > MAX_COOKIE - 256:  # the name and the attributes count too
            login = replace(login, target="/")
            value = self._dump(login)
        return login, value

    def load(self, value: str) -> PendingLogin | None:
        """Return the pending login of a cookie, whatever its age; None for anything forged."""
        if len(value) > MAX_COOKIE or not value.isascii():
            return None
        try:
            payload = self._signer.unsign(value)
            return PendingLogin(*json.loads(base64.urlsafe_b64decode(payload + b"==")))
        except (BadSignature, ValueError, TypeError):  # TypeError: of another version
            return None

    def match(self, value: str, state: str, now: float) -> PendingLogin | None:
        """Return the pending login if the cookie is this state's and still young."""
        login = self.load(value)
        if login is None or not hmac.compare_digest(login.state.encode(), state.encode()):
            return None
        # A minute of grace backwards: two servers' clocks differ a little.
        return login if -60 <= now - login.started_at <= LOGIN_LIFETIME else None

    def code_verifier(self, state: str) -> str:
        """The PKCE code verifier of a login (RFC 7636 §4.1): derived, so it is never stored."""
        digest = hmac.digest(self._pkce_key, state.encode(), "sha256")
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def _dump(self, login: PendingLogin) -> str:
        fields = json.dumps(astuple(login), separators=(",", ":")).encode()
        return self._signer.sign(base64.urlsafe_b64encode(fields).rstrip(b"=")).decode()


def _signer(secret_keys: Sequence[str], purpose: str) -> Signer:
    return Signer(
        list(secret_keys),
        salt=f"cm_auth_middleware.{purpose}",
        key_derivation="hmac",
        digest_method=hashlib.sha256,
    )
