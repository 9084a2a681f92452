"""The session of a request, as a handler sees it."""

from __future__ import annotations

import json
from functools import lru_cache, wraps
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import SessionDataError, SessionExpiredError
from .record import DataChanges, dumps

if TYPE_CHECKING:
    from ..errors import CMAuthError
    from .encryption import Sealer
    from .record import Record


# Older releases kept users with NaN in them, which is no JSON to a browser.
_USERS = json.JSONDecoder(parse_constant=lambda _: None)
_MOST_FLAT = 2_048  # characters of a user that is kept parsed; a thousand of them are


def _frozen(value: Any) -> Any:
    """Return a JSON value whose lists and dictionaries cannot be changed."""
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return MappingProxyType({key: _frozen(item) for key, item in value.items()})
    return value


def _checked(method: Any) -> Any:
    """Return a method of dict that first checks if the data may still be changed."""

    @wraps(method)
    def change(self: SessionData, *arguments: Any, **values: Any) -> Any:
        self._check()
        return method(self, *arguments, **values)

    return change


class SessionData(dict[str, Any]):
    """``session.data``: a dictionary that refuses changes after the request is over.

    Attributes:
        is_closed: True when the request is over.
    """

    is_closed = False

    def close(self) -> None:
        """Refuse changes from now on; those of lists and dictionaries in it, too."""
        if not self.is_closed:
            for key, value in self.items():
                self[key] = _frozen(value)
            self.is_closed = True

    def _check(self) -> None:
        """Raise `SessionDataError` if the request is over."""
        if self.is_closed:
            raise SessionDataError(
                "session.data cannot be changed any more: the request that it belongs to is over, "
                "and nothing saves it; change it before the handler ends, or keep the value in a "
                "store of your own"
            )

    __setitem__ = _checked(dict.__setitem__)
    __delitem__ = _checked(dict.__delitem__)
    __ior__ = _checked(dict.__ior__)
    clear = _checked(dict.clear)
    pop = _checked(dict.pop)
    popitem = _checked(dict.popitem)
    update = _checked(dict.update)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """As in dict; a key that exists may be read at any time."""
        if key not in self:
            self._check()
        return super().setdefault(key, default)


class Session:
    """The logged-in session of a request, as a handler sees it: ``request.state.cm_session``.

    Attributes:
        ended: True if it was logged out, or CameraManager ended it.
    """

    __slots__ = (
        "_base", "_data", "_sealer", "_user", "checked_at", "client_error", "cookie_key",
        "data_was_read", "ended", "is_closed", "is_detached", "record", "record_id",
    )  # fmt: skip

    def __init__(
        self,
        record_id: str,
        cookie_key: bytes,
        record: Record,
        sealer: Sealer,
        checked_at: float = 0.0,
    ) -> None:
        self.record_id = record_id
        self.cookie_key = cookie_key
        self.record = record  # holds the tokens: for this package, not for a handler
        self.checked_at = checked_at  # when the store last had it (epoch seconds)
        self.ended = False
        self.is_detached = False  # True if a handle opened it, outside of any request
        self.client_error: CMAuthError | None = None  # the last error of a handler's client
        self._sealer = sealer
        self._base = record.data
        self._data: SessionData | None = None
        self.data_was_read = False  # and so the handler may have changed it
        self._user: tuple[str, dict[str, Any]] | None = None  # the JSON text and its dictionary
        self.is_closed = False  # True when the request is over: changes of `data` would be lost

    def copy(self) -> Session:
        """Return another view of the same session, as the store had it."""
        return Session(self.record_id, self.cookie_key, self.record, self._sealer, self.checked_at)

    @property
    def log_id(self) -> str:
        """A short hash that stands for the session in logs; it opens nothing."""
        return self.record_id[:8]

    @property
    def reference(self) -> str:
        """The same as `log_id`."""
        return self.log_id

    @property
    def user_id(self) -> str:
        """CameraManager's ``userId``, as text; empty if CameraManager did not tell it."""
        found = self._sealer.user_id(self.record)
        return "" if found == "None" else found

    @property
    def user(self) -> dict[str, Any]:
        """The user as CameraManager describes them, read anew now and then (``revalidate``)."""
        text = self.record.user
        if self._user is None or self._user[0] is not text:
            user = _flat_user(text) if len(text) <= _MOST_FLAT else None
            self._user = text, _parsed(text) if user is None else dict(user)
        return self._user[1]

    @property
    def data(self) -> dict[str, Any]:
        """The application's own JSON values, saved with the session.

        They are saved when the response starts and when the handler has ended, with its background
        tasks; for a WebSocket before each message that is sent, and at its end. A change after
        that raises `SessionDataError`.
        """
        if self._data is None:
            self._data = SessionData(json.loads(self._base))
            if self.is_closed:
                self._data.close()
            self.data_was_read = True
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
        """When the current access token expires (epoch seconds); it is renewed before."""
        return self.record.tokens.expires_at

    def export(self) -> str:
        """Return a handle by which a job outside any request acts for this user.

        Keep it where you keep passwords: with your engine's ``secret_key`` it gives access to
        everything that the session does. `AuthEngine.client_for` makes a ready client of it. It
        works as long as the session lives: until a logout, its timeouts, or the end of the grant
        at CameraManager. Its use is not a use by the user, so it does not put off
        ``idle_timeout``.

        Raises:
            SessionExpiredError: the session is over.
        """
        if self.ended:
            raise SessionExpiredError
        return self._sealer.seal_handle(self.record_id, self.cookie_key)

    def changes(self) -> DataChanges | None:
        """Return the changes that the handler made in `data`; None if there are none."""
        if self._data is None:
            return None
        try:
            if dumps(self._data) == self._base:  # as text, because 1 == True == 1.0 in Python
                return None
            before, after = json.loads(self._base), self._data
            changed = {
                k: v for k, v in after.items() if k not in before or dumps(before[k]) != dumps(v)
            }
        except (TypeError, ValueError) as error:
            raise SessionDataError(f"session.data is not JSON: {error}") from None
        removed = frozenset(before.keys() - after.keys())
        return DataChanges(changed, removed) if changed or removed else None

    def mark_saved(self) -> None:
        """Remember that the changes of `data` were written to the store."""
        self._base = dumps(self._data)

    def close(self) -> None:
        """Note that the request is over: from now on, a change of `data` is refused."""
        self.is_closed = True
        if self._data is not None:
            self._data.close()

    def __repr__(self) -> str:
        return f"<Session {self.log_id}>"

    def __copy__(self) -> Session:
        """Return the same object: a session is one thing, and its tokens are not copied."""
        return self

    def __deepcopy__(self, memo: Any) -> Session:
        """Return the same object."""
        return self


def _parsed(text: str) -> dict[str, Any]:
    user: dict[str, Any] = _USERS.raw_decode(text)[0]  # there are no blanks around it
    return user


@lru_cache(1024)
def _flat_user(text: str) -> dict[str, Any] | None:
    """Return a user to be copied, ten times as fast as to parse it; None if values are nested."""
    # Brackets may also be inside of a string: such a user is parsed each time.
    return None if "[" in text or "{" in text[1:] else _parsed(text)
