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
    SessionExpiredError,
    StoreError,
    UnavailableError,
)
from .session import Session
from .stores import MemoryStore, SessionStore

__all__ = [
    "AuthEngine",
    "CMAuthConfig",
    "CMAuthError",
    "CMAuthMiddleware",
    "CMState",
    "ConfigError",
    "MemoryStore",
    "OAuthError",
    "OperatorError",
    "Session",
    "SessionExpiredError",
    "SessionStore",
    "StoreError",
    "UnavailableError",
]

__version__ = "0.1.0"
