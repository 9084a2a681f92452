"""What one would write by hand for one application: the least that keeps the same promises.

Find the cookie, verify its signature, look the record up, check the times, hand it over. No login,
no refresh, no errors, no logout: nothing here is to be copied.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .world import COOKIE

_IDLE, _ABSOLUTE = 7 * 86_400, 30 * 86_400


@dataclass(slots=True)
class IdealRecord:
    """A session."""

    user: dict[str, Any]
    logged_in_at: float
    last_seen_at: float
    expires_at: float


class Cookies:
    """Signs and verifies session ids."""

    def __init__(self, secret_key: str) -> None:
        self._key = hashlib.sha256(secret_key.encode()).digest()

    def sign(self, session_id: str) -> str:
        """The cookie of a session."""
        return f"{session_id}.{self._signature(session_id.encode()).decode()}"

    def verify(self, value: bytes) -> bytes | None:
        """The session id of a cookie."""
        session_id, _, signature = value.rpartition(b".")
        if hmac.compare_digest(self._signature(session_id), signature):
            return session_id
        return None

    def _signature(self, session_id: bytes) -> bytes:
        return urlsafe_b64encode(hmac.digest(self._key, session_id, "sha256")).rstrip(b"=")


Find = Callable[[bytes], IdealRecord | None]
_NAME = f"{COOKIE}=".encode()


class IdealMiddleware:
    """The ideal for ASGI.

    Args:
        app: the application.
        cookies: verify the cookie.
        find: looks a session up.
    """

    def __init__(self, app: Any, cookies: Cookies, find: Find) -> None:
        self.app = app
        self._cookies = cookies
        self._find = find

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = None
        for name, value in scope["headers"]:
            if name == b"cookie":
                for part in value.split(b";"):
                    pair = part.strip()
                    if pair.startswith(_NAME):
                        session_id = self._cookies.verify(pair[len(_NAME) :])
                        record = self._find(session_id) if session_id is not None else None
        if record is None or _is_over(record):
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        scope["state"]["cm_session"] = record

        async def private(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(b"cache-control", b"no-store"), (b"vary", b"cookie")]
            await send(message)

        await self.app(scope, receive, private)


class IdealWSGIMiddleware:
    """The ideal for WSGI; the arguments are those of `IdealMiddleware`."""

    def __init__(self, app: Any, cookies: Cookies, find: Find) -> None:
        self.app = app
        self._cookies = cookies
        self._find = find

    def __call__(self, environ: Any, start_response: Any) -> Any:
        record = None
        for part in environ.get("HTTP_COOKIE", "").encode("latin-1").split(b";"):
            pair = part.strip()
            if pair.startswith(_NAME):
                session_id = self._cookies.verify(pair[len(_NAME) :])
                record = self._find(session_id) if session_id is not None else None
        if record is None or _is_over(record):
            start_response("401 Unauthorized", [])
            return [b""]
        environ["cm_auth.session"] = record

        def private(status: str, headers: Any, exc_info: Any = None) -> Any:
            return start_response(
                status, [*headers, ("Cache-Control", "no-store"), ("Vary", "Cookie")], exc_info
            )

        return self.app(environ, private)


def _is_over(record: IdealRecord) -> bool:
    now = time.time()
    return (
        now >= record.last_seen_at + _IDLE
        or now >= record.logged_in_at + _ABSOLUTE
        or now >= record.expires_at
    )


def new_record(user: dict[str, Any]) -> IdealRecord:
    """The record of somebody who has just logged in."""
    now = time.time()
    return IdealRecord(user, now, now, now + 43_199)


class SQLiteFind:
    """Reads the record's bytes each time, and keeps what they meant while they are equal."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(
            "CREATE TABLE sessions (id BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"
        )
        self._opened: dict[bytes, IdealRecord] = {}

    def store(self, session_id: bytes, sealed: bytes, record: IdealRecord) -> None:
        """Keep a record, and what it means."""
        self._connection.execute("INSERT INTO sessions VALUES (?, ?)", (session_id, sealed))
        self._opened[sealed] = record

    def __call__(self, session_id: bytes) -> IdealRecord | None:
        row = self._connection.execute(
            "SELECT value FROM sessions WHERE id = ?", (session_id,)
        ).fetchone()
        return self._opened.get(row[0]) if row else None
