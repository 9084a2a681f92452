"""Drop-in authentication middleware for Eagle Eye Networks CameraManager."""

from __future__ import annotations

from .asgi import CMAuthMiddleware, CMState
from .config import CMAuthConfig
from .engine import AuthEngine
from .errors import (
    CMAuthError,
    ConfigError,
    OAuthError,
    OperatorError,
    SessionDataError,
    SessionExpiredError,
    StoreError,
    UnavailableError,
)
from .pages import ErrorPage
from .sealing import SessionInfo
from .session import Session
from .stores import MemoryStore, SessionStore
from .wsgi import CMAuthWSGIMiddleware

__all__ = [
    "AuthEngine",
    "CMAuthConfig",
    "CMAuthError",
    "CMAuthMiddleware",
    "CMAuthWSGIMiddleware",
    "CMState",
    "ConfigError",
    "ErrorPage",
    "MemoryStore",
    "OAuthError",
    "OperatorError",
    "Session",
    "SessionDataError",
    "SessionExpiredError",
    "SessionInfo",
    "SessionStore",
    "StoreError",
    "UnavailableError",
]

__version__ = "0.1.0"
