"""The judgement of paths: where a browser may be sent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import parse_qsl, quote, unquote, urlsplit

MAX_TARGET = 4096  # characters of a target; a longer one is not followed
# Most visitors open a few pages. They choose their targets, so long ones are not remembered.
_REMEMBERED = 128
_SHORT = 200  # characters
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# A blank, and all from U+00A0 on, which no URL has as they are. Said by what they are not: a class
# of so many characters takes 3 ms to compile, a twentieth of all imports.
_UNQUOTED = re.compile(r"[^\x00-\x1f\x21-\x9f]+")
# Characters that browsers take for a slash, or that become one when they are normalized.
_SLASHES = str.maketrans(dict.fromkeys("\\\uff0f\u2044\u2215\u29f8\uff3c", "/"))


def mount_url(root_path: str) -> str:
    """Return the path at which an app is mounted, quoted for a URL, and never a host ("//evil")."""
    path = root_path.strip("/")
    return quote(f"/{path}") if path else ""


def safe_target(target: str | None, root_path: str = "") -> str:
    """Return `target` if a browser takes it for a path of this app, else the app's root.

    Its path is judged raw and decoded, as the URL standard (WHATWG) resolves it: a backslash counts
    as a slash, tabs and line ends are removed, dot segments are resolved. What leads to this app is
    returned as it stands, a "//" after the first segment and a backslash in the query included.
    """
    if not target or len(target) > MAX_TARGET or not target.isascii():
        return f"{mount_url(root_path)}/"
    is_short = len(target) <= _SHORT and len(root_path) <= _SHORT
    return _remembered(target, root_path) if is_short else _judged(target, root_path)


def _judged(target: str, root_path: str) -> str:
    root = f"{mount_url(root_path)}/"
    path = re.split(r"[?#]", target, maxsplit=1)[0]
    if not all(map(_stays_here, (path, unquote(path), unquote(unquote(path))))):
        return root
    if _CONTROL.search(target) or " " in target or "\\" in path:
        return root
    try:
        parts = urlsplit(target)
    except ValueError:
        return root
    if parts.scheme or parts.netloc or not f"{unquote(parts.path)}/".startswith(unquote(root)):
        return root
    return target


_remembered = lru_cache(_REMEMBERED)(_judged)


def shorter_targets(target: str, root: str) -> Iterator[str]:
    """Yield a target, then without its fragment, then without its query, and at last the root.

    These are for the places that a long URL does not fit into.
    """
    yield target  # most fit, and nothing else has to be made
    yield target.partition("#")[0]
    yield re.split("[?#]", target)[0]
    yield root


def next_target(query: str) -> str | None:
    """Return the parameter ``next`` of a query; None if there is none.

    A link that was written by hand has it as it is: ``next=/x?a=1&b=2``. Its "?" tells that all
    the rest belongs to it. Front ends append ``?next=…`` to a ``login_url`` that has one.
    """
    found = re.search(r"(?:^|&)next=([^&]*\?.*)", query, re.DOTALL)
    if found is not None:
        _, again, last = found[1].rpartition("?next=")
        return unquote(last) if again else found[1]
    try:
        target = dict(parse_qsl(query, errors="strict", max_num_fields=20)).get("next")
    except ValueError:
        return None
    # Frameworks hand paths on decoded, and applications put them here: "/report name", "/café".
    return target and _UNQUOTED.sub(lambda found: quote(found[0]), target)


def _stays_here(path: str) -> bool:
    """Return True if a path names no host, however its characters are read."""
    path = path.translate(_SLASHES)
    if not path.startswith("/") or path.startswith("//") or _CONTROL.search(path):
        return False
    # "/..//evil" and "/.//evil" resolve to "//evil".
    return not {".", ".."} & set(path.split("/"))


def is_local(path: str) -> bool:
    """Return True if a path can be read in one way only, as one of this site."""
    if not path.startswith("/") or "\\" in path or _CONTROL.search(path):
        return False
    if any(character in path for character in "\uff0f\u2044\u2215\u29f8\uff3c"):
        return False  # these look like a slash, or become one when normalized
    # "/..//evil" and "/.//evil" resolve to "//evil".
    return "//" not in path and not {".", ".."} & set(path.split("/"))
