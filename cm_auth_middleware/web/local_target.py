"""Judging paths: where a browser may be sent."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlsplit

MAX_TARGET = 4096  # characters of a target; a longer one is not followed
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def mount_url(root_path: str) -> str:
    """Return the path at which an app is mounted, quoted for a URL, and never a host ("//evil")."""
    path = root_path.strip("/")
    return quote(f"/{path}") if path else ""


def safe_target(target: str | None, root_path: str = "") -> str:
    """Return `target` if a browser takes it for a path of this app, else the app's root.

    It is judged raw and decoded, as the URL standard (WHATWG) resolves it: a backslash counts as a
    slash, tabs and line ends are removed, dot segments are resolved.
    """
    root = f"{mount_url(root_path)}/"
    if not target or len(target) > MAX_TARGET or not target.isascii():
        return root
    forms = (target, unquote(target), unquote(unquote(target)))
    if not all(is_local(form.split("?", 1)[0].split("#", 1)[0]) for form in forms):
        return root
    if _CONTROL.search(target) or " " in target or "\\" in target:
        return root
    try:
        parts = urlsplit(target)
    except ValueError:
        return root
    if parts.scheme or parts.netloc or not f"{unquote(parts.path)}/".startswith(unquote(root)):
        return root
    return target


def is_local(path: str) -> bool:
    """Return True if a path can be read in one way only, as one of this site."""
    if not path.startswith("/") or "\\" in path or _CONTROL.search(path):
        return False
    if any(character in path for character in "\uff0f\u2044\u2215\u29f8\uff3c"):
        return False  # these look like a slash, or become one when normalized
    # "/..//evil" and "/.//evil" resolve to "//evil".
    return "//" not in path and not {".", ".."} & set(path.split("/"))
