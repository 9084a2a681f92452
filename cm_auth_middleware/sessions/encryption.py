"""Encryption at rest: records that open only with the user's own cookie."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import struct
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from ..display import ip_address
from ..errors import SessionDataError
from .record import Record, SessionInfo

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from ..stores import CountsRecords

MAX_RECORD = 1_000_000  # bytes; a larger one was not written by this package
_NONCE_BYTES = 12
_TAG_BYTES = 16
# The first byte of a stored value: its kind and version. Version 0.1 wrote sessions with 1.
_GRANT, _SESSION, _OLD_SESSION = b"\x02", b"\x04", b"\x01"
SESSIONS = (_SESSION, _OLD_SESSION)
USERS = b"\x05"  # the kind of the entries in the list of users
_HANDLE = "cmauth1."  # what a handle begins with: its kind and version
_HANDLE_LENGTH = len(_HANDLE) + -(-(_NONCE_BYTES + 64 + _TAG_BYTES) * 4 // 3)  # in base64url
_LAST_KIND = b"\x0f"  # kinds up to this one are kept for later releases
_KEY_ID_BYTES = 4
_REMEMBERED, _SHORT = 256, 1_024  # users whose id is remembered, and their most characters
# Kind, user tag, id of the secret key, last seen, length of the login origin.
_FIXED = struct.Struct(f">c{_TAG_BYTES}s{_KEY_ID_BYTES}sdB")


@cache
def load_encryption() -> tuple[type[AESGCM], type[Exception]]:
    """Load the library that encrypts; return its AES-GCM, and the error of a wrong tag."""
    from cryptography.exceptions import InvalidTag  # 20 ms and 8 MB, so only when needed
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM, InvalidTag


def key_names(secret_keys: Sequence[str]) -> list[str]:
    """Return a short hash of each secret key, by which people can tell keys apart."""
    return [_key_id(hashlib.sha256(key.encode()).digest()).hex() for key in secret_keys]


async def count_sessions(store: CountsRecords) -> int:
    """Return the number of live sessions in a store, whatever release wrote them."""
    return sum([await store.count(kind) for kind in SESSIONS])


class Sealer:
    """Encrypts records. A session's key needs the key in the user's cookie and the secret key.

    AES-256-GCM, with keys by HKDF-SHA256 (RFC 5869) from the cookie's key and the application's
    secret key. The record's id is associated data, so a record that was moved to another id does
    not open. The stored value of a session begins with a header that needs no cookie to be read:

    - the user tag, a keyed hash of the user's id: equal for all sessions of one user, and
      computable only with the id and the secret key;
    - a short hash of the secret key that sealed the session;
    - the time when the session was last used, which its time to live tells anyhow;
    - the login origin, which is the time and the IP address of the login, sealed with a key from
      the user's id and the secret key.

    A list of users makes it possible to find the sessions of all, and those of an e-mail address.
    Its entry for a user has a keyed hash of the address, and the user's id, which is sealed with a
    key from the secret key. The name of the entry is the user tag.

    Args:
        secret_keys: from oldest to newest: the newest seals, all open.
        user_id_field: the member of a user that identifies them.
    """

    def __init__(self, secret_keys: Sequence[str], user_id_field: str) -> None:
        self._user_id_field = user_id_field
        self._secrets = [hashlib.sha256(key.encode()).digest() for key in reversed(secret_keys)]
        self._ids = [_key_id(secret) for secret in self._secrets]

    def user_id(self, record: Record) -> str:
        """Return the id of a session's user, as text."""
        text, field = record.user, self._user_id_field
        return _remembered_id(text, field) if len(text) <= _SHORT else _user_id(text, field)

    def id_of(self, user: Mapping[str, Any]) -> str:
        """Return the id of a user, as text."""
        return str(user.get(self._user_id_field, ""))

    # -- sessions --------------------------------------------------------------------------

    def seal_session(self, record_id: str, cookie_key: bytes, record: Record) -> bytes:
        """Encrypt a session for the store.

        Raises:
            SessionDataError: the application's data make the record too large.
        """
        user = _user_key(self._secrets[0], self.user_id(record))
        login_origin = _aead(user).encrypt(
            _login_origin_nonce(record_id),
            struct.pack(">d", record.logged_in_at) + record.address.encode(),
            None,
        )
        fixed = (_SESSION, _tag(user), self._ids[0], record.last_seen_at, len(login_origin))
        header = _FIXED.pack(*fixed) + login_origin
        sealed = header + self._seal(record_id, cookie_key, header, record.encode())
        if len(sealed) > MAX_RECORD:
            raise SessionDataError(
                f"session.data is too large: a session is at most {MAX_RECORD} bytes; keep large "
                "values in a store of your own"
            )
        return sealed

    def open_session(self, record_id: str, cookie_key: bytes, sealed: bytes) -> Record | None:
        """Decrypt a session; return None if it is damaged, moved, or sealed with another key."""
        if sealed[:1] not in SESSIONS or not _FIXED.size < len(sealed) <= MAX_RECORD:
            return None
        *_, last_seen_at, length = _FIXED.unpack_from(sealed)
        size = _FIXED.size + length
        plain = self._open(record_id, cookie_key, sealed[:size], sealed[size:])
        return None if plain is None else Record.decode(plain, last_seen_at)

    def is_current(self, sealed: bytes) -> bool:
        """Return True if a session is sealed with the newest secret key."""
        return _key_id_of(sealed) == self._ids[0]

    def is_from_unknown_key(self, sealed: bytes) -> bool:
        """Return True if a secret key, or a release, that this process lacks may have sealed it.

        While a new secret key or a new release is rolled out, some processes have it and others do
        not yet. A process without it must not treat these sessions as damaged.
        """
        if sealed[:1] in SESSIONS and len(sealed) > _FIXED.size:
            return _key_id_of(sealed) not in self._ids
        return _GRANT < sealed[:1] <= _LAST_KIND

    def user_prefixes(self, user_id: str) -> list[bytes]:
        """Return how the stored values of a user's sessions begin: one prefix for each key."""
        tags = [_tag(_user_key(secret, user_id)) for secret in reversed(self._secrets)]
        # The oldest first: a session that is sealed anew during a search moves to the newest.
        return [kind + tag for kind in reversed(SESSIONS) for tag in tags]

    def describe(self, record_id: str, sealed: bytes, user_id: str) -> SessionInfo | None:
        """Return when and from where a session of this user began, without opening it."""
        if len(sealed) <= _FIXED.size:
            return None
        _, tag, _, last_seen_at, length = _FIXED.unpack_from(sealed)
        login_origin = sealed[_FIXED.size : _FIXED.size + length]
        for secret in self._secrets:
            user = _user_key(secret, user_id)
            plain = _decrypt(user, _login_origin_nonce(record_id), login_origin, None)
            if plain is not None and hmac.compare_digest(tag, _tag(user)):
                (logged_in_at,) = struct.unpack_from(">d", plain)
                # Older releases stored the address as the server gave it, without a check.
                address = ip_address(plain[8:].decode(errors="replace"))
                return SessionInfo(record_id[:8], logged_in_at, last_seen_at, address, user_id)
        return None

    # -- the list of users -----------------------------------------------------------------

    def seal_user(self, record: Record) -> tuple[str, bytes]:
        """Return the name and the value of the entry of a session's user in the list of users."""
        secret, user_id = self._secrets[0], self.user_id(record)
        name = f"listed.{_tag(_user_key(secret, user_id)).hex()}"
        head = USERS + _email_tag(secret, json.loads(record.user).get("email"))
        nonce = secrets.token_bytes(_NONCE_BYTES)
        plain = user_id.encode(errors="surrogatepass")
        sealed = _aead(_list_key(secret)).encrypt(nonce, plain, name.encode() + head)
        return name, head + nonce + sealed

    def open_user(self, name: str, entry: bytes) -> str | None:
        """Return the user's id in an entry; None if it is damaged, or of another secret key."""
        head, rest = entry[: 1 + _TAG_BYTES], entry[1 + _TAG_BYTES :]
        nonce, sealed = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
        for secret in self._secrets:
            plain = _decrypt(_list_key(secret), nonce, sealed, name.encode() + head)
            if plain is not None:
                return plain.decode(errors="surrogatepass")
        return None

    def email_prefixes(self, email: str) -> list[bytes]:
        """Return how the entries of users with an address begin: one prefix for each key."""
        return [USERS + _email_tag(secret, email) for secret in self._secrets]

    # -- grants ----------------------------------------------------------------------------

    def seal_grant(self, record_id: str, grant_key: bytes, plain: bytes) -> bytes:
        """Encrypt the record of a grant, with a key from its refresh token."""
        return _GRANT + self._seal(record_id, grant_key, _GRANT, plain)

    def open_grant(self, record_id: str, grant_key: bytes, sealed: bytes) -> bytes | None:
        """Decrypt the record of a grant; return None for anything else."""
        if sealed[:1] != _GRANT or len(sealed) > MAX_RECORD:
            return None
        return self._open(record_id, grant_key, _GRANT, sealed[1:])

    # -- handles ---------------------------------------------------------------------------

    def seal_handle(self, record_id: str, cookie_key: bytes) -> str:
        """Encrypt a record's id and the cookie's key, as a handle that the application may keep.

        The record's id is a hash of the session id in the cookie, so a handle cannot be made into
        a cookie, not even with the secret key.
        """
        nonce = secrets.token_bytes(_NONCE_BYTES)
        plain = bytes.fromhex(record_id) + cookie_key
        sealed = nonce + _aead(_handle_key(self._secrets[0])).encrypt(nonce, plain, None)
        return _HANDLE + base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def open_handle(self, handle: str) -> tuple[str, bytes] | None:
        """Return the record's id and the cookie's key; None if `seal_handle` did not make it."""
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

    # -- sessions and grants ---------------------------------------------------------------

    def _seal(self, record_id: str, key: bytes, header: bytes, plain: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        derived = _derive(self._secrets[0], key, b"record")
        return nonce + _aead(derived).encrypt(nonce, plain, record_id.encode() + header)

    def _open(self, record_id: str, key: bytes, header: bytes, body: bytes) -> bytes | None:
        nonce, ciphertext = body[:_NONCE_BYTES], body[_NONCE_BYTES:]
        for secret in self._secrets:
            derived = _derive(secret, key, b"record")
            plain = _decrypt(derived, nonce, ciphertext, record_id.encode() + header)
            if plain is not None:
                return plain
        return None


def _decrypt(key: bytes, nonce: bytes, ciphertext: bytes, associated: bytes | None) -> bytes | None:
    aesgcm, invalid_tag = load_encryption()
    if len(nonce) != _NONCE_BYTES:
        return None
    try:
        return aesgcm(key).decrypt(nonce, ciphertext, associated)
    except invalid_tag:
        return None


def _aead(key: bytes) -> AESGCM:
    aesgcm, _ = load_encryption()
    return aesgcm(key)


def _derive(secret: bytes, key: bytes, purpose: bytes) -> bytes:
    """Derive a key of 32 bytes by HKDF-SHA256.

    For one block of output its two steps are one HMAC each (RFC 5869 §2.2 and §2.3). That takes a
    quarter of the time that the library's general one takes.
    """
    extracted = hmac.digest(secret, key, "sha256")  # no secret is as good as 32 zeros
    return hmac.digest(extracted, b"cm_auth_middleware " + purpose + b"\x01", "sha256")


def _handle_key(secret: bytes) -> bytes:
    return _derive(b"", secret, b"handle")


def _key_id(secret: bytes) -> bytes:
    return hmac.digest(secret, b"key id", "sha256")[:_KEY_ID_BYTES]


def _key_id_of(sealed: bytes) -> bytes:
    start = 1 + _TAG_BYTES
    return sealed[start : start + _KEY_ID_BYTES]


def _user_id(user: str, field: str) -> str:
    return str(json.loads(user).get(field, ""))


_remembered_id = lru_cache(_REMEMBERED)(_user_id)


def _user_key(secret: bytes, user_id: str) -> bytes:
    return _derive(secret, user_id.encode(errors="surrogatepass"), b"user")


def _tag(user_key: bytes) -> bytes:
    return hmac.digest(user_key, b"tag", "sha256")[:_TAG_BYTES]


def _list_key(secret: bytes) -> bytes:
    return _derive(b"", secret, b"list of users")


def _email_tag(secret: bytes, email: object) -> bytes:
    """Return a keyed hash of an e-mail address, in whichever case it is written."""
    if not isinstance(email, str) or not email.strip():
        return bytes(_TAG_BYTES)
    address = email.strip().lower().encode(errors="surrogatepass")
    return _derive(secret, address, b"e-mail")[:_TAG_BYTES]


def _login_origin_nonce(record_id: str) -> bytes:
    # A record's login origin never changes, and only it is sealed with this key for this record.
    # A nonce that depends on the record alone therefore never seals two different texts. ("place"
    # is its name in stored records.)
    return hashlib.sha256(b"place:" + record_id.encode()).digest()[:_NONCE_BYTES]
