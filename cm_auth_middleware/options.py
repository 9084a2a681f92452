"""The options as keywords, for type checkers and editors; `CMAuthConfig` says what each means."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from .config import Allow, ErrorHandler, Hook
    from .stores import SessionStore
    from .tokens.provider import Provider


class CMAuthOptions(TypedDict, total=False):
    """What both middlewares take as keywords: any of the options of `CMAuthConfig`."""

    client_id: str
    client_secret: str
    secret_key: str | Iterable[str]
    provider: str | Provider
    base_url: str
    scope: str
    redirect_uri: str | None
    prefix: str
    exempt: Iterable[str]
    store: str | SessionStore
    idle_timeout: float | timedelta
    absolute_timeout: float | timedelta
    refresh_leeway: float | timedelta
    timeout: float | timedelta
    cookie_name: str | None
    cookie_secure: bool | None
    allowed_hosts: Iterable[str]
    cross_site_check: bool
    allow: Allow | None
    allow_emails: Iterable[str] | None
    allow_accounts: Iterable[str | int] | None
    revalidate: float | timedelta | None
    on_login: Hook | None
    on_refresh: Hook | None
    on_logout: Hook | None
    auto_login: bool
    error_handler: ErrorHandler | None
