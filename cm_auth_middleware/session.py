"""The session record: what is kept about a login, how it is encoded and how it is sealed."""

from __future__ import annotations

import copy
import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from .errors import CMAuthError

MAX_RECORD = 1_000_000  # bytes; a larger one is nobody's session
_VERSION = b"\x01"
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True, repr=False)
class Tokens:
    """What the token endpoint gave (RFC 6749 §5.1). Times are epoch seconds.

    ``refresh_at`` lies before ``expires_at`` by the leeway, or by half of a very short life.
    """

    access_token: str
    refresh_token: str | None
    expires_at: float
    refresh_at: float
    scope: str

    def encode(self) -> bytes:
        """Encode for sealing."""
        return json.dumps(self.fields(), separators=(",", ":")).encode()

    def fields(self) -> list[Any]:
        """The fields in their order, for encoding."""
        return list(astuple(self))

    @classmethod
    def decode(cls, raw: bytes) -> Tokens | None:
        """Decode what `encode` made; None for anything else."""
        try:
            return cls(*json.loads(raw))
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True, slots=True, repr=False)
class Record:
    """One session as the store keeps it. Times are epoch seconds."""

    tokens: Tokens
    user: dict[str, Any]
    logged_in_at: float
    last_seen_at: float
    data: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Encode as JSON: nothing in a store is ever unpickled."""
        fields = [self.tokens.fields(), self.user, self.logged_in_at, self.last_seen_at, self.data]
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Record | None:
        """Decode what `encode` made; None for anything else."""
        try:
            tokens, user, logged_in_at, last_seen_at, data = json.loads(raw)
            return cls(Tokens(*tokens), dict(user), float(logged_in_at), float(last_seen_at), data)
        except (ValueError, TypeError):
            return None

    def with_tokens(self, tokens: Tokens) -> Record:
        """The same session with newer tokens."""
        return replace(self, tokens=tokens)

    def seen(self, now: float) -> Record:
        """The same session, used just now."""
        return replace(self, last_seen_at=now)

    def with_changes(self, changes: DataChanges) -> Record:
        """The same session with an application's changes merged into its data, key by key."""
        data = {k: v for k, v in self.data.items() if k not in changes.removed}
        return replace(self, data={**data, **changes.set})


class DataChanges(NamedTuple):
    """What a request changed in ``session.data``: keys set and keys removed."""

    set: dict[str, Any]
    removed: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.set or self.removed)


class Session:
    """The logged-in session of a request, as a handler sees it: ``request.state.cm_session``.

    Attributes:
        user: the JSON of CameraManager's ``users/self``.
        scope: the granted scope, ``read`` or ``write``.
        logged_in_at: when the user logged in (epoch seconds).
        access_token_expires_at: when the current access token ends (epoch seconds); the
            middleware renews it before, so this is for information.
        data: the application's own JSON-serializable values, saved with the session when the
            response starts.
        reference: a short hash that names the session in logs; it opens nothing.
    """

    __slots__ = (
        "_record",
        "_saved_data",
        "data",
        "ended",
        "key",
        "reference",
        "seal_key",
        "trouble",
    )

    def __init__(self, key: str, seal_key: bytes, record: Record) -> None:
        self.key = key
        self.seal_key = seal_key
        self.reference = key[:8]
        self.ended = False
        self.trouble: CMAuthError | None = None  # what a handler's client ran into
        self._record = record
        self._saved_data = record.data
        self.data: dict[str, Any] = copy.deepcopy(record.data) if record.data else {}

    @property
    def user(self) -> dict[str, Any]:
        return self._record.user

    @property
    def scope(self) -> str:
        return self._record.tokens.scope

    @property
    def logged_in_at(self) -> float:
        return self._record.logged_in_at

    @property
    def access_token_expires_at(self) -> float:
        return self._record.tokens.expires_at

    @property
    def record(self) -> Record:
        """The record behind this view; internal, since it holds the tokens."""
        return self._record

    def adopt(self, record: Record) -> None:
        """Go on with a newer record of the same session; the handler's own data stays."""
        self._record = record

    def changes(self) -> DataChanges:
        """What the handler changed in `data` since it was read."""
        if self.data == self._saved_data:
            return DataChanges({}, frozenset())
        before = self._saved_data
        changed = {k: v for k, v in self.data.items() if k not in before or before[k] != v}
        return DataChanges(changed, frozenset(before.keys() - self.data.keys()))

    def saved(self) -> None:
        """Remember that the changes were written."""
        self._saved_data = copy.deepcopy(self.data)

    def __repr__(self) -> str:
        return f"<Session {self.reference}>"


class Sealer:
    """Encrypts records at rest with a key of which one half is only in the user's cookie.

    AES-256-GCM under HKDF-SHA256 (RFC 5869) over a half key and the application's secret key;
    the record's own name in the store is the associated data, so a record moved to another
    name does not open.
    """

    def __init__(self, secret_keys: Sequence[str]) -> None:
        self._salts = [hashlib.sha256(key.encode()).digest() for key in reversed(secret_keys)]

    def seal(self, name: str, half_key: bytes, plain: bytes) -> bytes:
        """Encrypt a record for the store."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        key = _derive(self._salts[0], half_key)
        return _VERSION + nonce + AESGCM(key).encrypt(nonce, plain, name.encode())

    def open(self, name: str, half_key: bytes, sealed: bytes) -> bytes | None:
        """Decrypt a record; None for one that is corrupt, foreign or moved."""
        if sealed[:1] != _VERSION or not 1 + _NONCE_BYTES < len(sealed) <= MAX_RECORD:
            return None
        nonce, body = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        for salt in self._salts:
            try:
                return AESGCM(_derive(salt, half_key)).decrypt(nonce, body, name.encode())
            except InvalidTag:
                continue
        return None


def _derive(salt: bytes, half_key: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=salt, info=b"cm_auth_middleware record").derive(half_key)
