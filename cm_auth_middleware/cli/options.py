"""The options as a person may see them: where each came from, and no secret."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any

from cm_auth_middleware.config import FUNCTIONS, CMAuthConfig

PREFIX = "CM_AUTH_"
_SECRETS = ("client_secret", "secret_key")
_USER_INFO = re.compile(r"(?<=://)[^/?#@]*(?::[^/?#]*)?@")
_PASSWORD = re.compile(r"(?i)\b(password|passwd|username|token|secret)=[^&#]*")


def rows() -> Iterator[tuple[str, str, str]]:
    """Each option that the environment can hold: its name, value, and where that came from."""
    for option in fields(CMAuthConfig):
        if option.name in FUNCTIONS:
            continue
        variable = PREFIX + option.name.upper()
        value = os.environ.get(variable)
        if value is not None:
            yield option.name, _shown(option.name, value), variable
        else:
            yield option.name, _default(option), "default"


def strays() -> Iterator[str]:
    """What is wrong with variables that look like options and are none."""
    known = {PREFIX + option.name.upper() for option in fields(CMAuthConfig)}
    known -= {PREFIX + name.upper() for name in FUNCTIONS}
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in known:
            close = difflib.get_close_matches(variable, known, 1, 0.75)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield f"{variable} is no option that the environment can hold{hint}"


def masked(text: str) -> str:
    """A URL, or a text that may have some in it, without the passwords."""
    return _PASSWORD.sub(r"\1=***", _USER_INFO.sub("***@", text))


def _shown(name: str, value: str) -> str:
    if name in _SECRETS:
        return f"hidden ({len(value)} characters)" if value else "empty"
    return masked(value)


def _default(option: Field[Any]) -> str:
    if option.default is MISSING:
        return "missing"
    value = option.default
    if isinstance(value, tuple):
        return ",".join(value) or "not set"
    return "not set" if value is None else str(value)
