"""The state of a login (RFC 6749 §4.1.1): what the login is for, encrypted, in the server's URL."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hmac import HMAC

MOST_STATE = 4_000  # characters; a longer one was not made here
PROOF_BYTES = 16  # 128 bits, which nobody guesses (RFC 6749 §10.10)
_NONCE_BYTES = 12
_TAG_BYTES = 16
_SHORT = 256  # bytes that are not compressed
_MOST_UNPACKED = 16_384  # bytes
_PLAIN, _COMPRESSED = 1, 2  # how the two URLs are written
_BY_HTTP, _ANEW = 0x40, 0x80  # are added to that: see `PendingLogin`
# How the URLs are written, the time of the start, the number of the cookie, and the proof in it.
_FIXED = struct.Struct(f">BIB{PROOF_BYTES}s")
_TO_URL = bytes.maketrans(b"+/", b"-_")


@dataclass(frozen=True, slots=True, repr=False)
class PendingLogin:
    """One login attempt, as its state tells it.

    Attributes:
        state: the text that the server sends back.
        number: of the login cookie that this browser has.
        proof: the content of that cookie: a browser without it did not begin this login.
        redirect_uri: byte for byte the one of the authorization URL.
        target: the path of this application where the login leads to.
        started_at: epoch seconds.
        key: the secret key that encrypted the state, as its place in the list; not in the state.
        by_http: True if it began by http: browsers keep no ``Secure`` cookie of that, and bring
            https no cookie that it looks for, nor http one that https has set.
        is_anew: True if it took the place of one whose callback could not be served.
    """

    state: str
    number: int
    proof: bytes
    redirect_uri: str
    target: str
    started_at: int
    key: int = -1
    by_http: bool = False
    is_anew: bool = False


class _Made(NamedTuple):
    """What is made of a secret key, once.

    Attributes:
        cipher: encrypts states.
        pkce: makes code verifiers, of which each takes a copy. To begin anew costs three times
            as much.
    """

    cipher: AESGCM
    pkce: HMAC


class StateSealer:
    """Writes states and reads them.

    A state is encrypted by AES-256-GCM, so that neither the server nor its log nor a Referer header
    tells which page somebody asked for, and nobody else can write one. The target travels in it,
    and not in a cookie, because all tabs send all cookies: few long URLs would fill what servers
    accept.

    Args:
        secret_keys: from oldest to newest: the newest encrypts, all decrypt.
    """

    def __init__(self, secret_keys: Sequence[str]) -> None:
        self._keys = [_derive(key, b"cm_auth.state") for key in secret_keys]
        self._pkce_keys = [
            hashlib.sha256(b"cm_auth.pkce:" + key.encode()).digest() for key in secret_keys
        ]
        self._made: dict[int, _Made] = {}

    def seal(
        self,
        number: int,
        proof: bytes,
        redirect_uri: str,
        target: str,
        started_at: int,
        *,
        by_http: bool = False,
        is_anew: bool = False,
    ) -> str:
        """Return the state of a login that begins."""
        kind, urls = _PLAIN, f"{redirect_uri}\n{target}".encode()
        if len(urls) > _SHORT and len(packed := zlib.compress(urls, 9)) < len(urls):
            kind, urls = _COMPRESSED, packed
        kind += _BY_HTTP * by_http + _ANEW * is_anew
        plain = _FIXED.pack(kind, started_at, number, proof) + urls
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return base64url(nonce + self._of(-1).cipher.encrypt(nonce, plain, None))

    def open(self, state: str) -> PendingLogin | None:
        """Return the login of a state, whatever its age and browser; None if it is not ours."""
        raw = _decode(state) if state else None
        if raw is None or len(raw) < _NONCE_BYTES + _FIXED.size + _TAG_BYTES:
            return None
        from cryptography.exceptions import InvalidTag

        for key in range(-1, -1 - len(self._keys), -1):
            try:
                plain = self._of(key).cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], None)
            except InvalidTag:
                continue
            kind, started_at, number, proof = _FIXED.unpack_from(plain)
            urls = plain[_FIXED.size :]
            by_http, is_anew = bool(kind & _BY_HTTP), bool(kind & _ANEW)
            kind &= ~(_BY_HTTP | _ANEW)
            if kind == _COMPRESSED:
                urls = zlib.decompressobj().decompress(urls, _MOST_UNPACKED)
            elif kind != _PLAIN:
                return None  # of a later release
            redirect_uri, _, target = urls.decode().partition("\n")
            return PendingLogin(
                state, number, proof, redirect_uri, target, started_at, key, by_http, is_anew
            )
        return None

    def code_verifier(self, state: str, key: int = -1) -> str:
        """Return the PKCE code verifier of a login (RFC 7636 §4.1), which is never stored.

        It comes from the key that encrypted the state: the process that the login ends at may have
        another list of keys, with that key in another place.

        Args:
            key: as in `PendingLogin`.
        """
        code = self._of(key).pkce.copy()
        code.update(state.encode())
        return base64url(code.finalize())

    def _of(self, key: int) -> _Made:
        made = self._made.get(key)
        if made is None:
            from cryptography.hazmat.primitives import hashes, hmac  # 20 ms: when needed
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            made = _Made(AESGCM(self._keys[key]), hmac.HMAC(self._pkce_keys[key], hashes.SHA256()))
            self._made[key] = made
        return made


def _derive(secret_key: str, purpose: bytes) -> bytes:
    return hmac.digest(secret_key.encode(), purpose, "sha256")


def base64url(raw: bytes) -> str:
    """Return bytes as text of letters, digits, "-" and "_" (RFC 4648 §5), without padding."""
    return binascii.b2a_base64(raw, newline=False).translate(_TO_URL, b"=").decode()


def _decode(text: str) -> bytes | None:
    """Return the bytes of a text in base64url; None if `base64url` did not write it.

    Decoders ignore the last bits of some texts, and each login must have one state only: the same
    state is not used twice.
    """
    if len(text) > MOST_STATE or not text.isascii():
        return None
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return None
    return raw if base64url(raw) == text else None
