"""Writes the tables of log events into the page that asks for them, from the code itself.

A page asks by the lines ``<!-- events -->`` and ``<!-- audit events -->``.
"""

from __future__ import annotations

import logging
from typing import Any

from cm_auth_middleware.audit_log import AUDIT_EVENTS
from cm_auth_middleware.events import EVENTS


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the tables (a hook of mkdocs)."""
    for mark, make in (("<!-- events -->", table), ("<!-- audit events -->", audit_table)):
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def audit_table() -> str:
    """Return a row for each event of the audit log, in the order of the code."""
    lines = ["| event | logged when, and its fields |", "| --- | --- |"]
    lines += [f"| `{name}` | {description} |" for name, description in AUDIT_EVENTS.items()]
    return "\n".join(lines)


def table() -> str:
    """Return a row for each event, in the order of the code."""
    lines = ["| event | level | logged when, and its fields |", "| --- | --- | --- |"]
    lines += [
        f"| `{name}` | {logging.getLevelName(event.level)} | {event.description} |"
        for name, event in EVENTS.items()
    ]
    return "\n".join(lines)
