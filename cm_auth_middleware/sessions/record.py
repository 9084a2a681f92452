"""The session record: everything that is stored about one login."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass, replace
from sys import getsizeof
from typing import Any, Final, NamedTuple, NoReturn, SupportsIndex

from ..errors import SessionDataError

# Several requests share a `Record` and its `Tokens`: nobody changes one. "Final" has a type checker
# see to it, for a frozen dataclass takes three times as long to make, at each first request.

_scan = json.JSONDecoder().raw_decode  # json.loads() also looks for blanks around the value


@dataclass(slots=True, unsafe_hash=True, repr=False)
class Tokens:
    """The answer of the token endpoint (RFC 6749 §5.1). Times are epoch seconds.

    ``refresh_at`` lies before ``expires_at`` by the leeway, or by half of a very short lifetime.

    Attributes:
        former_refresh_token: the one that these tokens were exchanged for, if the server answered
            with another one. Some servers answer with one that they do not know afterwards.
        api_base: the scheme and host of the API, where a server names them with its tokens; empty
            for those of the option ``base_url``.
    """

    access_token: Final[str]
    refresh_token: Final[str | None]
    expires_at: Final[float]
    refresh_at: Final[float]
    scope: Final[str]
    former_refresh_token: Final[str | None] = None
    api_base: Final[str] = ""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            "tokens cannot be pickled or copied: a queue, a cache or a file would hold them in the "
            "clear; give a job the handle that session.export() returns"
        )


@dataclass(slots=True, unsafe_hash=True, repr=False)
class Record:
    """One session as the store keeps it. Times are epoch seconds.

    The user and the application's data stay JSON text until a handler asks for them. Most
    requests do not, and each one that does gets a copy of its own.

    Attributes:
        client_id: the id of the application that opened the session.
        scope: the scope that this application asks for; that of the tokens may differ.
        user_read_at: the time when CameraManager was last asked for the user.
    """

    tokens: Final[Tokens]
    user: Final[str]
    logged_in_at: Final[float]
    last_seen_at: Final[float]
    data: Final[str] = "{}"
    address: Final[str] = ""
    client_id: Final[str] = ""
    scope: Final[str] = ""
    user_read_at: Final[float] = 0.0

    def encode(self) -> bytes:
        """Encode all fields but ``last_seen_at``, which is in the header of the stored value."""
        *tokens, former, api_base = astuple(self.tokens)
        head = [*tokens, self.logged_in_at, self.address]
        head += [self.client_id, self.scope, self.user_read_at]
        # Without an API of their own, sessions stay readable by version 0.2.
        head += [former, api_base] if api_base else [former] if former else []
        return f"{dumps(head)}\n{self.user}\n{self.data}".encode()

    @classmethod
    def decode(cls, raw: bytes, last_seen_at: float) -> Record | None:
        """Decode the result of `encode`, of this version or 0.1; return None for anything else."""
        try:
            head, user, data = raw.decode().split("\n")
            values, end = _scan(head, 0)
            *tokens, logged_in_at, address = values[:7]
            # Version 0.1 wrote seven values, without the application that opened the session.
            client_id, scope, user_read_at, *later = values[7:] or ("", "", logged_in_at)
            owner = client_id, scope, user_read_at
            if end != len(head):
                return None
            tokens = Tokens(*tokens, *later)
            return cls(tokens, user, logged_in_at, last_seen_at, data, address, *owner)
        except (ValueError, TypeError):
            return None

    def with_changes(self, changes: DataChanges) -> Record:
        """Return the same session with changes merged into its data, key by key."""
        kept = {k: v for k, v in json.loads(self.data).items() if k not in changes.removed}
        try:
            return replace(self, data=dumps({**kept, **changes.set}))
        except (TypeError, ValueError) as error:
            raise SessionDataError(f"session.data is not JSON: {error}") from None


class DataChanges(NamedTuple):
    """The keys of ``session.data`` that a request set, and those that it removed."""

    set: dict[str, Any]
    removed: frozenset[str]


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session of a user, as an administrator sees it. Times are epoch seconds.

    Attributes:
        reference: the short hash that stands for the session in logs; `log_id` is the same.
        address: the IP address that the user logged in from, as the server saw it; may be empty.
        user_id: CameraManager's ``userId``, as text.
    """

    reference: str
    logged_in_at: float
    last_seen_at: float
    address: str
    user_id: str = ""

    @property
    def log_id(self) -> str:
        """The short hash that stands for the session in logs."""
        return self.reference


def size_in_memory(part: Record | Tokens) -> int:
    """Return the bytes that a record, or its tokens, take in memory, about."""
    values = [getattr(part, name) for name in part.__slots__]
    return getsizeof(part) + sum(
        size_in_memory(value) if isinstance(value, Tokens) else getsizeof(value) for value in values
    )


def dumps(value: Any) -> str:
    """Encode as compact JSON on one line."""
    return json.dumps(value, separators=(",", ":"))
