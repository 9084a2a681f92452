"""Make a simulator's settings from the report of ``cm-auth check --login --report``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cm_auth_middleware.testing.simulator import Settings, settings_for

_SCHEMA, _VERSION = "cm-auth-live-check", 1
_TEXTS = ("provider", "refresh_gives", "replaced_refresh", "compression", "second_login_access")
_NUMBERS = ("lifetime", "refreshed_lifetime", "rate_limit")
_TRUTHS = (
    "repeats_values",
    "is_quick_login_refused",
    "state_echoed",
    "pkce_verified",
    "scope_needed_by_refresh",
)
_KINDS = {
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(_NUMBERS, int),
    **dict.fromkeys(_TRUTHS, bool),
    "dead_bearer": dict,
}
_MOST = 10**10  # of a number


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a report.

    Raises:
        ValueError: the file is none, or of a version that is not known, or a value in it is of a
            wrong type.
        OSError: it cannot be read.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        report = None
    if not isinstance(report, dict) or report.get("schema") != _SCHEMA:
        raise ValueError("this is no report of cm-auth check --login")
    if report.get("version") != _VERSION:
        raise ValueError(f"this report is not of version {_VERSION}, the only one that is known")
    wrong = [
        name for name in _KINDS if report.get(name) is not None and not _is_right(report, name)
    ]
    if wrong:
        raise ValueError(f"this report has a value that cannot be: {', '.join(wrong)}")
    return report


def settings_like(report: Mapping[str, Any], settings: Settings | None = None) -> Settings:
    """Return the settings with which a simulator does what the report says of a server.

    What the report does not know, or says in a wrong type, stays at its default.

    Args:
        settings: has the defaults; if not given, those of the server that the report is about.
    """
    report = {name: report.get(name) for name in _KINDS if _is_right(report, name)}
    settings = settings or _usual(report.get("provider"))
    bearer, encoding = report.get("dead_bearer", {}), report.get("compression")

    def says(name: str, value: object, default: bool) -> bool:
        """True if the report says this; the default if it says nothing."""
        return bool(report[name] == value) if report.get(name, "") != "" else default

    return replace(
        settings,
        access_token_lifetime=_lifetime(report, settings.access_token_lifetime),
        rotate_refresh_tokens=says("refresh_gives", "rotated", settings.rotate_refresh_tokens),
        phantom_refresh_tokens=report.get("refresh_gives") == "phantom",
        revoke_family_on_reuse=report.get("replaced_refresh") == "ends the grant",
        repeat_tokens_in_errors=report.get("repeats_values") is True,
        fail_simultaneous_logins=report.get("is_quick_login_refused") is True,
        dead_bearer_status=403 if bearer.get("status") == 403 else 401,
        content_encoding=encoding if encoding in ("gzip", "deflate") else "",
        rate_limit=report.get("rate_limit"),
        shared_access_token=says("second_login_access", "same", settings.shared_access_token),
        echo_state=report.get("state_echoed") is not False,
        pkce=says("pkce_verified", True, settings.pkce),
        scope_required=report.get("scope_needed_by_refresh") is not False,
    )


def _usual(provider: object) -> Settings:
    """Return the default settings of a server; CameraManager's if no simulator plays it."""
    try:
        return settings_for(str(provider))
    except LookupError:
        return Settings()


def _is_right(report: Mapping[str, Any], name: str) -> bool:
    """True if a value is there, and can be what a check wrote."""
    value, kind = report.get(name), _KINDS[name]
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST
    return isinstance(value, kind)


def _lifetime(report: Mapping[str, Any], default: float) -> float:
    known = [report[name] for name in ("lifetime", "refreshed_lifetime") if name in report]
    longest = max(known, default=default)
    return default if abs(longest - default) <= 2 else longest  # it is told in whole seconds
