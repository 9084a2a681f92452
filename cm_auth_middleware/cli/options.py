"""Show the options and the source of each, without secrets.

A value is shown if it looks like a value of its option. Anything else may be a password, or a URL
with one, that was put into the wrong option.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from typing import Any

from cm_auth_middleware import config, environment
from cm_auth_middleware.cli.output import safe
from cm_auth_middleware.config import (
    FUNCTIONS,
    LISTS,
    SEPARATOR,
    CMAuthConfig,
)
from cm_auth_middleware.display import HIDDEN, shown_url
from cm_auth_middleware.errors import ConfigError
from cm_auth_middleware.tokens.provider import PROVIDERS, find_provider

_ENTRY = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.M)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NUMBER = re.compile(r"[0-9]{1,10}(\.[0-9]{1,6})?")
_SWITCH = re.compile(r"(?i)1|0|true|false|yes|no|on|off")
_KNOWN = {
    "provider": re.compile("|".join(map(re.escape, PROVIDERS))),
    "scope": re.compile(
        "|".join(re.escape(scope) for each in PROVIDERS.values() for scope in each.scopes)
    ),
    "prefix": re.compile(r"(/[A-Za-z0-9._~-]+)+"),
    "exempt": re.compile(r"/[A-Za-z0-9._~/-]*\*?"),
    "idle_timeout": _NUMBER,
    "absolute_timeout": _NUMBER,
    "refresh_leeway": _NUMBER,
    "timeout": _NUMBER,
    "revalidate": re.compile(r"[0-9]{1,10}(\.[0-9]{1,6})?|(?i:none)"),
    "cache_size": re.compile(r"[0-9]{1,15}"),
    "exchanges_at_once": re.compile(r"[0-9]{1,6}"),
    "cookie_name": re.compile(r"(__Host-|__Secure-)?[A-Za-z0-9_-]{1,64}"),
    "background": _SWITCH,
    "cookie_secure": _SWITCH,
    "allowed_hosts": re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]"),
    "trusted_origins": re.compile(
        r"[A-Za-z][A-Za-z0-9+.-]*://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?/?"
    ),
    "allow_emails": re.compile(r"(\*|[A-Za-z0-9._+-]+)@[A-Za-z0-9.-]+"),
    "allow_accounts": re.compile(r"[A-Za-z0-9]{1,20}"),
    "app_name": re.compile(r"[\w .,&()+'’–-]{1,100}"),
    "app_logo": re.compile(r"(/[A-Za-z0-9._~-]+)+"),
    "cross_site_check": _SWITCH,
    "auto_login": _SWITCH,
}


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield the name, the value and its source of each option that a variable can set."""
    for option in fields(CMAuthConfig):
        if option.name in FUNCTIONS:
            continue
        try:
            found = environment.read(option.name)
        except ConfigError:  # which the check itself reports
            yield option.name, "not read", f"{environment.variable(option.name)}_FILE"
            continue
        if found is not None:
            yield option.name, _shown(option.name, found[0]), found[1]
        else:
            yield option.name, _default(option), "default"


def meanings() -> dict[str, str]:
    """Return what the docstring of `CMAuthConfig` says of each option; empty without docstrings."""
    text = inspect.cleandoc(CMAuthConfig.__doc__ or "")
    section = text.partition("Attributes:\n")[2].partition("\nRaises:")[0]
    return {name: " ".join(meaning.split()) for name, meaning in _ENTRY.findall(section)}


def unknown_variables() -> Iterator[str]:
    """Yield a complaint about each variable that looks like an option but is not one."""
    for found in config.unknown_variables():
        hint = f"; did you mean {found.meant}?" if found.option else ""
        if found.option in FUNCTIONS:
            hint = f": {config.only_in_code(found.option)}"
        yield f"{found.variable} is not an option that can be set in the environment{hint}"


def _shown(name: str, value: str) -> str:
    if not value:
        return "empty"
    if name in ("client_secret", "secret_key"):
        return f"hidden ({_length(value)})"
    if name == "client_id":
        return _shown_id(value)
    if name in ("store", "base_url", "redirect_uri"):
        return shown_url(value)
    parts = [part.strip() for part in SEPARATOR.split(value)] if name in LISTS else [value]
    known = _KNOWN.get(name)
    # All or nothing: the value may be another option's, such as a URL with commas in it.
    if known is None or not all(known.fullmatch(part) for part in parts if part):
        return f"not shown ({_length(value)})"
    return value


def _length(value: str) -> str:
    return "1 character" if len(value) == 1 else f"{len(value)} characters"


def _shown_id(value: str) -> str:
    """Return the ID of an API key; only its beginning if it may be the secret by mistake."""
    longest = max(map(len, environment.texts("client_secret")), default=0)
    is_id = _ID.fullmatch(value) and len(value) < longest and safe(value) == value
    return value if is_id else f"{value[:3]}{HIDDEN} ({_length(value)})"


def _default(option: Field[Any]) -> str:
    if option.default is MISSING:
        return "missing"
    value = option.default
    with suppress(ConfigError):  # which the check itself reports
        named = environment.read("provider")
        provider = find_provider(named[0] if named else "cameramanager")
        value = provider.defaults.get(option.name, value)
    if isinstance(value, tuple):
        return ",".join(value) or "not set"
    return "not set" if value is None else str(value)
