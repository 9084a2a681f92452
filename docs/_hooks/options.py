"""Writes the table of options into the page that asks for it, from the code itself.

A page asks by the line ``<!-- options -->``.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from cm_auth_middleware import CMAuthConfig
from cm_auth_middleware.cli.options import meanings
from cm_auth_middleware.config import FUNCTIONS
from cm_auth_middleware.tokens.provider import CAMERAMANAGER

_MARK = "<!-- options -->"
_TIMES = {"idle_timeout": "7 days", "absolute_timeout": "30 days"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the table (a hook of mkdocs)."""
    return markdown.replace(_MARK, table()) if _MARK in markdown else markdown


def table() -> str:
    """All options, in the order of the code."""
    documentation = documented()
    lines = ["| option | default | meaning |", "| --- | --- | --- |"]
    lines += [
        f"| {_named(option.name)}{_variable(option.name)} | {_default(option)} | "
        f"{documentation[option.name]} |"
        for option in fields(CMAuthConfig)
    ]
    return "\n".join(lines)


def documented() -> dict[str, str]:
    """What the docstring of `CMAuthConfig` says of each option, as Markdown."""
    return {name: meaning.replace("``", "`") for name, meaning in meanings().items()}


def _named(name: str) -> str:
    """Return the name as a link to itself: what people copy to send each other an option."""
    return f"[`{name}`](#{name}){{ #{name} }}"


def _variable(name: str) -> str:
    return "" if name in FUNCTIONS else f"<br>`CM_AUTH_{name.upper()}`"


def _default(option: Field[Any]) -> str:
    if option.default is MISSING:
        return "required"
    if option.name in _TIMES:
        return _TIMES[option.name]
    value = CAMERAMANAGER.defaults.get(option.name, option.default)
    if value is None or value == ():
        return "–"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value} s"
    return f"`{value}`"
