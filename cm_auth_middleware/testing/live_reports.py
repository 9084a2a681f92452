"""Make a simulator's settings from the report of ``cm-auth check --login --report``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from cm_auth_middleware.testing.simulator import Settings

_SCHEMA, _VERSION = "cm-auth-live-check", 1


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a report.

    Raises:
        ValueError: the file is none, or of a version that is not known.
        OSError: it cannot be read.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        report = None
    if not isinstance(report, dict) or report.get("schema") != _SCHEMA:
        raise ValueError("this is no report of cm-auth check --login")
    if report.get("version") != _VERSION:
        raise ValueError(f"this report is not of version {_VERSION}, the only one that is known")
    return report


def settings_like(report: Mapping[str, Any]) -> Settings:
    """Return the settings with which a simulator does what the report says of a server.

    What the report does not know stays at its default.
    """
    settings = Settings()
    is_rotated = report.get("refresh_gives") == "rotated"
    bearer = report.get("dead_bearer") or {}
    known: dict[str, Any] = {
        "access_token_lifetime": _lifetime(report, settings.access_token_lifetime),
        "rotate_refresh_tokens": is_rotated,
        "phantom_refresh_tokens": report.get("refresh_gives") == "phantom",
        "revoke_family_on_reuse": report.get("replaced_refresh") == "ends the grant",
        "repeat_tokens_in_errors": report.get("repeats_values") is True,
        "fail_simultaneous_logins": report.get("is_quick_login_refused") is True,
        "dead_bearer_status": 403 if bearer.get("status") == 403 else 401,
        "content_encoding": report.get("compression") or "",
        "rate_limit": report.get("rate_limit"),
    }
    for name, found in (
        ("shared_access_token", _is(report.get("second_login_access"), "same", "other")),
        ("echo_state", report.get("state_echoed")),
        ("pkce", report.get("pkce_verified")),
        ("scope_required", report.get("scope_needed_by_refresh")),
    ):
        if found is not None:
            known[name] = found
    for knob in fields(Settings):
        if knob.name in known:
            setattr(settings, knob.name, known[knob.name])
    return settings


def _is(value: Any, yes: str, no: str) -> bool | None:
    return {yes: True, no: False}.get(value)


def _lifetime(report: Mapping[str, Any], default: float) -> float:
    known = [report.get("lifetime"), report.get("refreshed_lifetime")]
    longest = max((n for n in known if isinstance(n, int)), default=default)
    return default if abs(longest - default) <= 2 else longest  # it is told in whole seconds
