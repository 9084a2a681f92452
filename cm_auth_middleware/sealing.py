"""Encryption at rest: records that open only with the user's own cookie."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .display import ip_address
from .errors import SessionDataError
from .session import Record, Tokens

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from .stores import CountsRecords

MAX_RECORD = 1_000_000  # bytes; a larger one is nobody's session
_NONCE_BYTES = 12
_TAG_BYTES = 16
# The first byte of a stored value: its kind and version. Version 0.1 wrote sessions with 1.
_GRANT, _SESSION, _OLD_SESSION = b"\x02", b"\x04", b"\x01"
SESSIONS = (_SESSION, _OLD_SESSION)
_HANDLE = "cmauth1."  # what a handle begins with: its kind and version
_HANDLE_LENGTH = len(_HANDLE) + -(-(_NONCE_BYTES + 64 + _TAG_BYTES) * 4 // 3)  # in base64url
_LAST_KIND = b"\x0f"  # kinds up to this one are, or will be, ours
_KEY_ID_BYTES = 4
# Kind, user tag, id of the secret key, last seen, length of the place.
_FIXED = struct.Struct(f">c{_TAG_BYTES}s{_KEY_ID_BYTES}sdB")


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session of a user, as an administrator sees it. Times are epoch seconds.

    Attributes:
        reference: the short hash that logs name the session by.
        address: the IP address that the user logged in from, as the server saw it; may be empty.
    """

    reference: str
    logged_in_at: float
    last_seen_at: float
    address: str


async def count_sessions(store: CountsRecords) -> int:
    """Return the number of live sessions in a store, of every version of the record."""
    return sum([await store.count(kind) for kind in SESSIONS])


class Sealer:
    """Encrypts records with keys of which one half is only in the user's cookie.

    AES-256-GCM under HKDF-SHA256 (RFC 5869) over a half key and the application's secret key.
    The record's own name in the store is associated data, so one moved to another name does not
    open. A session's value begins with what may be read without its cookie:

    - a tag, the keyed hash of the user's id: equal for sessions of one user, and found by
      whoever knows the id and the secret key;
    - which secret key sealed it, as a short hash;
    - when the session was last used, which its time to live tells anyhow;
    - when and from where the user logged in, sealed under the user's id and the secret key.
    """

    def __init__(self, secret_keys: Sequence[str]) -> None:
        self._secrets = [hashlib.sha256(key.encode()).digest() for key in reversed(secret_keys)]
        self._ids = [_key_id(secret) for secret in self._secrets]

    # -- sessions --------------------------------------------------------------------------

    def seal_session(self, name: str, half_key: bytes, record: Record) -> bytes:
        """Encrypt a session for the store.

        Raises:
            SessionDataError: the application's data make the record too large.
        """
        user = _user_key(self._secrets[0], record.user_id)
        place = _aead(user).encrypt(
            _place_nonce(name),
            struct.pack(">d", record.logged_in_at) + record.address.encode(),
            None,
        )
        header = _FIXED.pack(_SESSION, _tag(user), self._ids[0], record.last_seen_at, len(place))
        header += place
        sealed = header + self._seal(name, half_key, header, record.encode())
        if len(sealed) > MAX_RECORD:
            raise SessionDataError(
                f"session.data is too large: a session is at most {MAX_RECORD} bytes; keep large "
                "values in a store of your own"
            )
        return sealed

    def open_session(self, name: str, half_key: bytes, sealed: bytes) -> Record | None:
        """Decrypt a session; None for one that is corrupt, foreign or moved."""
        if sealed[:1] not in SESSIONS or not _FIXED.size < len(sealed) <= MAX_RECORD:
            return None
        *_, last_seen_at, _ = _FIXED.unpack_from(sealed)
        size = _FIXED.size + _FIXED.unpack_from(sealed)[-1]
        plain = self._open(name, half_key, sealed[:size], sealed[size:])
        return None if plain is None else Record.decode(plain, last_seen_at)

    def is_current(self, sealed: bytes) -> bool:
        """Whether a session is sealed with the newest secret key."""
        return _key_id_of(sealed) == self._ids[0]

    def may_be_anothers(self, sealed: bytes) -> bool:
        """Whether a value that does not open may be a session all the same, to somebody else.

        While a new secret key, or a new release, is rolled out, some processes have it already
        and others do not; these must not take the sessions of those for spoilt.
        """
        if sealed[:1] in SESSIONS and len(sealed) > _FIXED.size:
            return _key_id_of(sealed) not in self._ids
        return _GRANT < sealed[:1] <= _LAST_KIND

    def user_prefixes(self, user_id: str) -> list[bytes]:
        """What the stored values of a user's sessions begin with, one for each secret key."""
        tags = [_tag(_user_key(secret, user_id)) for secret in reversed(self._secrets)]
        # What is sealed anew while somebody searches moves from the old to the new.
        return [kind + tag for kind in reversed(SESSIONS) for tag in tags]

    def describe(self, name: str, sealed: bytes, user_id: str) -> SessionInfo | None:
        """When and from where a session of this user began, without opening it."""
        if len(sealed) <= _FIXED.size:
            return None
        _, tag, _, last_seen_at, length = _FIXED.unpack_from(sealed)
        place = sealed[_FIXED.size : _FIXED.size + length]
        for secret in self._secrets:
            user = _user_key(secret, user_id)
            plain = _decrypt(user, _place_nonce(name), place, None)
            if plain is not None and hmac.compare_digest(tag, _tag(user)):
                (logged_in_at,) = struct.unpack_from(">d", plain)
                # Records of older releases hold whatever the server said.
                address = ip_address(plain[8:].decode(errors="replace"))
                return SessionInfo(name[:8], logged_in_at, last_seen_at, address)
        return None

    # -- grants ----------------------------------------------------------------------------

    def seal_grant(self, name: str, half_key: bytes, tokens: Tokens) -> bytes:
        """Encrypt the newest tokens of a grant."""
        return _GRANT + self._seal(name, half_key, _GRANT, tokens.encode())

    def open_grant(self, name: str, half_key: bytes, sealed: bytes) -> Tokens | None:
        """Decrypt the newest tokens of a grant; None for anything else."""
        if sealed[:1] != _GRANT or len(sealed) > MAX_RECORD:
            return None
        plain = self._open(name, half_key, _GRANT, sealed[1:])
        return None if plain is None else Tokens.decode(plain)

    # -- handles ---------------------------------------------------------------------------

    def seal_handle(self, name: str, half_key: bytes) -> str:
        """Encrypt what opens a session, for an application to keep.

        It holds the session's name in the store, which is a hash of the id in the cookie: no
        handle, opened or not, makes a cookie.
        """
        nonce = secrets.token_bytes(_NONCE_BYTES)
        plain = bytes.fromhex(name) + half_key
        sealed = nonce + _aead(_handle_key(self._secrets[0])).encrypt(nonce, plain, None)
        return _HANDLE + base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def open_handle(self, handle: str) -> tuple[str, bytes] | None:
        """Return a session's name and half key; None for what `seal_handle` did not make."""
        if len(handle) != _HANDLE_LENGTH or not handle.startswith(_HANDLE) or not handle.isascii():
            return None
        try:
            encoded = handle.removeprefix(_HANDLE) + "="
            sealed = base64.b64decode(encoded, altchars=b"-_", validate=True)
        except binascii.Error:
            return None
        for secret in self._secrets:
            plain = _decrypt(
                _handle_key(secret), sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None
            )
            if plain is not None:
                return plain[:32].hex(), plain[32:]
        return None

    # -- both ------------------------------------------------------------------------------

    def _seal(self, name: str, half_key: bytes, header: bytes, plain: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        key = _derive(self._secrets[0], half_key, b"record")
        return nonce + _aead(key).encrypt(nonce, plain, name.encode() + header)

    def _open(self, name: str, half_key: bytes, header: bytes, body: bytes) -> bytes | None:
        nonce, ciphertext = body[:_NONCE_BYTES], body[_NONCE_BYTES:]
        for secret in self._secrets:
            key = _derive(secret, half_key, b"record")
            plain = _decrypt(key, nonce, ciphertext, name.encode() + header)
            if plain is not None:
                return plain
        return None


def _decrypt(key: bytes, nonce: bytes, ciphertext: bytes, associated: bytes | None) -> bytes | None:
    from cryptography.exceptions import InvalidTag  # with the rest of it, when first needed

    if len(nonce) != _NONCE_BYTES:
        return None
    try:
        return _aead(key).decrypt(nonce, ciphertext, associated)
    except InvalidTag:
        return None


def _aead(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 20 ms: when first needed

    return AESGCM(key)


def _derive(secret: bytes, half_key: bytes, purpose: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = b"cm_auth_middleware " + purpose
    return HKDF(SHA256(), 32, salt=secret, info=info).derive(half_key)


def _handle_key(secret: bytes) -> bytes:
    return _derive(b"", secret, b"handle")


def _key_id(secret: bytes) -> bytes:
    return hmac.digest(secret, b"key id", "sha256")[:_KEY_ID_BYTES]


def _key_id_of(sealed: bytes) -> bytes:
    start = 1 + _TAG_BYTES
    return sealed[start : start + _KEY_ID_BYTES]


def _user_key(secret: bytes, user_id: str) -> bytes:
    return _derive(secret, user_id.encode(errors="surrogatepass"), b"user")


def _tag(user_key: bytes) -> bytes:
    return hmac.digest(user_key, b"tag", "sha256")[:_TAG_BYTES]


def _place_nonce(name: str) -> bytes:
    # What is sealed under a user's key and a session's name never changes, so its nonce may be
    # fixed by the name: the same bytes are sealed to the same bytes.
    return hashlib.sha256(b"place:" + name.encode()).digest()[:_NONCE_BYTES]
