"""The session record: what is kept about a login, and how a handler sees it."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from .errors import SessionDataError, SessionExpiredError

if TYPE_CHECKING:
    from .errors import CMAuthError
    from .sealing import Sealer


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
        """Encode as JSON: nothing in a store is ever unpickled."""
        return dumps(astuple(self)).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Tokens | None:
        """Decode what `encode` made; None for anything else."""
        try:
            return cls(*json.loads(raw))
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True, slots=True, repr=False)
class Record:
    """One session as the store keeps it. Times are epoch seconds.

    The user and the application's data stay JSON text until a handler asks for them: most
    requests do not, and each that does gets a copy of its own.

    Attributes:
        client_id: of the application that opened the session.
        scope: that this application asks for, which the token's may differ from.
        user_read_at: when CameraManager was last asked for the user.
    """

    tokens: Tokens
    user: str
    logged_in_at: float
    last_seen_at: float
    data: str = "{}"
    address: str = ""
    client_id: str = ""
    scope: str = ""
    user_read_at: float = 0.0

    @property
    def user_id(self) -> str:
        """CameraManager's ``userId``, as text."""
        return str(json.loads(self.user).get("userId", ""))

    def encode(self) -> bytes:
        """Encode all but ``last_seen_at``, which the envelope carries."""
        head = dumps(
            [
                *astuple(self.tokens),
                self.logged_in_at,
                self.address,
                self.client_id,
                self.scope,
                self.user_read_at,
            ]
        )
        return f"{head}\n{self.user}\n{self.data}".encode()

    @classmethod
    def decode(cls, raw: bytes, last_seen_at: float) -> Record | None:
        """Decode what `encode` made, in this version or in 0.1; None for anything else."""
        try:
            head, user, data = raw.decode().split("\n")
            *tokens, logged_in_at, address = (values := json.loads(head))[:7]
            # Version 0.1 wrote seven values: such a session is the application's that reads it.
            client_id, scope, user_read_at = values[7:] or ("", "", logged_in_at)
            return cls(
                Tokens(*tokens),
                user,
                logged_in_at,
                last_seen_at,
                data,
                address,
                client_id,
                scope,
                user_read_at,
            )
        except (ValueError, TypeError):
            return None

    def with_tokens(self, tokens: Tokens) -> Record:
        """The same session with newer tokens."""
        return replace(self, tokens=tokens)

    def with_user(self, user: str, now: float) -> Record:
        """The same session with its user as CameraManager knows them now."""
        return replace(self, user=user, user_read_at=now)

    def owned_by(self, client_id: str, scope: str) -> Record:
        """The same session as this application's own."""
        return replace(self, client_id=client_id, scope=scope)

    def seen(self, now: float) -> Record:
        """The same session, used just now."""
        return replace(self, last_seen_at=now)

    def with_changes(self, changes: DataChanges) -> Record:
        """The same session with an application's changes merged into its data, key by key."""
        kept = {k: v for k, v in json.loads(self.data).items() if k not in changes.removed}
        try:
            return replace(self, data=dumps({**kept, **changes.set}))
        except (TypeError, ValueError) as error:
            raise SessionDataError(f"session.data is not JSON: {error}") from None


class DataChanges(NamedTuple):
    """What a request changed in ``session.data``: keys set and keys removed."""

    set: dict[str, Any]
    removed: frozenset[str]


def _frozen(value: Any) -> Any:
    """Return a JSON value whose lists and dictionaries cannot be changed."""
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return MappingProxyType({key: _frozen(item) for key, item in value.items()})
    return value


class SessionData(dict[str, Any]):
    """``session.data``: a dictionary that refuses changes once nothing would save them.

    Attributes:
        is_closed: True when the request is over.
    """

    is_closed = False

    def close(self) -> None:
        """Refuse changes from now on; those of lists and dictionaries in it, too."""
        if not self.is_closed:
            for key, value in self.items():
                super().__setitem__(key, _frozen(value))
            self.is_closed = True

    def _check(self) -> None:
        if self.is_closed:
            raise SessionDataError(
                "session.data cannot be changed any more: the request that it belongs to is over, "
                "and nothing saves it; change it before the handler ends, or keep the value in a "
                "store of your own"
            )

    def __setitem__(self, key: str, value: Any) -> None:
        self._check()
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self._check()
        super().__delitem__(key)

    def __ior__(self, other: Any) -> Self:  # type: ignore[override,misc]  # as dict's own
        self._check()
        return super().__ior__(other)

    def clear(self) -> None:
        """As in dict; so are the others."""
        self._check()
        super().clear()

    def pop(self, *arguments: Any) -> Any:
        """As in dict."""
        self._check()
        return super().pop(*arguments)

    def popitem(self) -> tuple[str, Any]:
        """As in dict."""
        self._check()
        return super().popitem()

    def setdefault(self, key: str, default: Any = None) -> Any:
        """As in dict."""
        if key not in self:
            self._check()
        return super().setdefault(key, default)

    def update(self, *arguments: Any, **values: Any) -> None:
        """As in dict."""
        self._check()
        super().update(*arguments, **values)


class Session:
    """The logged-in session of a request, as a handler sees it: ``request.state.cm_session``.

    Attributes:
        reference: a short hash that names the session in logs; it opens nothing.
        ended: whether it was logged out, or CameraManager ended it.
    """

    __slots__ = (
        "_base", "_data", "_sealer", "_user", "checked_at", "ended", "half_key", "is_closed", "key",
        "record", "trouble",
    )  # fmt: skip

    def __init__(
        self, key: str, half_key: bytes, record: Record, sealer: Sealer, checked_at: float = 0.0
    ) -> None:
        self.key = key
        self.half_key = half_key
        self.record = record  # holds the tokens: for this package, not for a handler
        self.checked_at = checked_at  # when the store last had it (epoch seconds)
        self.ended = False
        self.trouble: CMAuthError | None = None  # what a handler's client ran into
        self._sealer = sealer
        self._base = record.data
        self._data: SessionData | None = None
        self._user: tuple[str, dict[str, Any]] | None = None  # and the text that it was read from
        self.is_closed = False  # when the request is over: changes of `data` would be lost

    @property
    def reference(self) -> str:
        return self.key[:8]

    @property
    def user(self) -> dict[str, Any]:
        """The JSON of CameraManager's ``users/self``, read anew now and then (``revalidate``)."""
        text = self.record.user
        if self._user is None or self._user[0] is not text:
            user = _flat_user(text)
            self._user = text, json.loads(text) if user is None else dict(user)
        return self._user[1]

    @property
    def data(self) -> dict[str, Any]:
        """The application's own JSON values, saved with the session.

        That is when the response starts and when the handler has ended, with its background tasks;
        for a WebSocket before each message that is sent, and at its end. To change it after that
        raises `SessionDataError`.
        """
        if self._data is None:
            self._data = SessionData(json.loads(self._base))
            if self.is_closed:
                self._data.close()
        return self._data

    @property
    def scope(self) -> str:
        """The granted scope, ``read`` or ``write``."""
        return self.record.tokens.scope

    @property
    def logged_in_at(self) -> float:
        """When the user logged in (epoch seconds)."""
        return self.record.logged_in_at

    @property
    def access_token_expires_at(self) -> float:
        """When the current access token ends (epoch seconds); it is renewed before."""
        return self.record.tokens.expires_at

    def export(self) -> str:
        """Return a handle by which a job outside any request acts for this user.

        Keep it where you keep passwords: with your engine's ``secret_key`` it has the power of
        the session. `AuthEngine.client_for` makes a ready client of it. It is dead once the
        session is: after a logout, at its timeouts, and when CameraManager ends it. Using it is
        no use by the user, so it does not put off ``idle_timeout``.

        Raises:
            SessionExpiredError: the session is over.
        """
        if self.ended:
            raise SessionExpiredError
        return self._sealer.seal_handle(self.key, self.half_key)

    @property
    def is_touched(self) -> bool:
        """Whether the handler asked for `data`, and so may have changed it."""
        return self._data is not None

    def changes(self) -> DataChanges | None:
        """What the handler changed in `data` since it was read; None if nothing."""
        if self._data is None:
            return None
        try:
            if dumps(self._data) == self._base:  # as text: to Python, 1 is True and 1.0
                return None
            before, after = json.loads(self._base), self._data
            changed = {
                k: v for k, v in after.items() if k not in before or dumps(before[k]) != dumps(v)
            }
        except (TypeError, ValueError) as error:
            raise SessionDataError(f"session.data is not JSON: {error}") from None
        removed = frozenset(before.keys() - after.keys())
        return DataChanges(changed, removed) if changed or removed else None

    def saved(self) -> None:
        """Remember that the changes were written."""
        self._base = dumps(self._data)

    def close(self) -> None:
        """Note that the request is over: changes of `data` would be lost, and are refused."""
        self.is_closed = True
        if self._data is not None:
            self._data.close()

    def __repr__(self) -> str:
        return f"<Session {self.reference}>"


@lru_cache(1024)
def _flat_user(text: str) -> dict[str, Any] | None:
    """A user to be copied, which is ten times as fast as parsing; None if that has to go deep."""
    user: dict[str, Any] = json.loads(text)
    return None if any(isinstance(value, dict | list) for value in user.values()) else user


def dumps(value: Any) -> str:
    """Encode as compact JSON on one line."""
    return json.dumps(value, separators=(",", ":"))
