"""Make a simulator's settings from the report of ``cm-auth check --login --report``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
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
    bearer = report.get("dead_bearer") or {}
    encoding, limit = report.get("compression"), report.get("rate_limit")
    return replace(
        settings,
        access_token_lifetime=_lifetime(report, settings.access_token_lifetime),
        rotate_refresh_tokens=report.get("refresh_gives") == "rotated",
        phantom_refresh_tokens=report.get("refresh_gives") == "phantom",
        revoke_family_on_reuse=report.get("replaced_refresh") == "ends the grant",
        repeat_tokens_in_errors=report.get("repeats_values") is True,
        fail_simultaneous_logins=report.get("is_quick_login_refused") is True,
        dead_bearer_status=403 if bearer.get("status") == 403 else 401,
        content_encoding=encoding if encoding in ("gzip", "deflate") else "",
        rate_limit=limit if isinstance(limit, int) else None,
        shared_access_token=report.get("second_login_access") != "other",
        echo_state=report.get("state_echoed") is not False,
        pkce=report.get("pkce_verified") is True,
        scope_required=report.get("scope_needed_by_refresh") is not False,
    )


def _lifetime(report: Mapping[str, Any], default: float) -> float:
    known = [report.get("lifetime"), report.get("refreshed_lifetime")]
    longest = max((n for n in known if isinstance(n, int)), default=default)
    return default if abs(longest - default) <= 2 else longest  # it is told in whole seconds
