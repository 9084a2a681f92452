"""Writes the table of log events into the page that asks for it, from the code itself.

A page asks by the line ``<!-- events -->``.
"""

from __future__ import annotations

import logging
from typing import Any

from cm_auth_middleware.events import EVENTS

_MARK = "<!-- events -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the table (a hook of mkdocs)."""
    return markdown.replace(_MARK, table()) if _MARK in markdown else markdown


def table() -> str:
    """Return a row for each event, in the order of the code."""
    lines = ["| event | level | logged when, and its fields |", "| --- | --- | --- |"]
    lines += [
        f"| `{name}` | {logging.getLevelName(event.level)} | {event.description} |"
        for name, event in EVENTS.items()
    ]
    return "\n".join(lines)
