"""Drop-in authentication middleware for Eagle Eye Networks CameraManager."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asgi import CMAuthMiddleware, CMState
    from .config import CMAuthConfig, CMAuthOptions
    from .engine import AuthEngine
    from .errors import (
        CMAuthError,
        ConfigError,
        ForbiddenError,
        OAuthError,
        OperatorError,
        SessionDataError,
        SessionExpiredError,
        StoreError,
        UnavailableError,
    )
    from .hooks import ErrorPage
    from .session_header import CMSessionHeader
    from .sessions.record import SessionInfo
    from .sessions.session import Session
    from .sessions.user import CMUser
    from .stores import MemoryStore, SessionStore
    from .tokens.provider import CAMERAMANAGER, EAGLEEYE, Provider
    from .wsgi import CMAuthWSGIMiddleware

__all__ = [
    "CAMERAMANAGER",
    "EAGLEEYE",
    "AuthEngine",
    "CMAuthConfig",
    "CMAuthError",
    "CMAuthMiddleware",
    "CMAuthOptions",
    "CMAuthWSGIMiddleware",
    "CMSessionHeader",
    "CMState",
    "CMUser",
    "ConfigError",
    "ErrorPage",
    "ForbiddenError",
    "MemoryStore",
    "OAuthError",
    "OperatorError",
    "Provider",
    "Session",
    "SessionDataError",
    "SessionExpiredError",
    "SessionInfo",
    "SessionStore",
    "StoreError",
    "UnavailableError",
]

__version__ = "0.2.0"

# Imported at first use: the pytest plugin and the command line are in this package, too, and need
# not wait 0.4 s for HTTP, ASGI and cryptography.
_HOMES = {
    "CAMERAMANAGER": "tokens.provider",
    "EAGLEEYE": "tokens.provider",
    "AuthEngine": "engine",
    "CMAuthConfig": "config",
    "CMAuthMiddleware": "asgi",
    "CMAuthOptions": "config",
    "CMAuthWSGIMiddleware": "wsgi",
    "CMSessionHeader": "session_header",
    "CMState": "asgi",
    "CMUser": "sessions.user",
    "ErrorPage": "hooks",
    "MemoryStore": "stores",
    "Provider": "tokens.provider",
    "Session": "sessions.session",
    "SessionInfo": "sessions.record",
    "SessionStore": "stores",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
