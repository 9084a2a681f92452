"""Judging paths: where a browser may be sent, and which paths need no login."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from .request import Request

MAX_TARGET = 4096  # characters of a target; a longer one is not followed
_REMEMBERED, _SHORT = 256, 128  # paths whose exemption is remembered, and their most characters
_PERCENT = ord("%")  # found among bytes in a tenth of the time that b"%" takes
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9_.~-]*+"  # no two readings
_PLAIN = rf"{_SEGMENT}(?:/{_SEGMENT})*+"


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
    if not all(_is_local(form.split("?", 1)[0].split("#", 1)[0]) for form in forms):
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


def _is_local(path: str) -> bool:
    if not path.startswith("/") or "\\" in path or _CONTROL.search(path):
        return False
    if any(character in path for character in "\uff0f\u2044\u2215\u29f8\uff3c"):
        return False  # these look like a slash, or become one when normalized
    # "/..//evil" and "/.//evil" resolve to "//evil".
    return "//" not in path and not {".", ".."} & set(path.split("/"))


class ExemptPaths:
    """The paths that need no login: exact ones, and subtrees ending in ``/*``.

    Judged on the path that the framework routes; a path that could be read in two ways (an
    empty or dot segment, a backslash, an encoded slash) is never exempt, nor is one that is not
    below the mount.

    Args:
        patterns: as in the option ``exempt``.
        but: paths that never are, whatever the patterns say.
    """

    def __init__(self, patterns: Iterable[str], but: Iterable[str] = ()) -> None:
        patterns = tuple(patterns)
        exact = [re.escape(p) for p in patterns if not p.endswith("/*")]
        self._trees = tuple(p[:-1] for p in patterns if p.endswith("/*"))
        trees = [re.escape(tree) + _PLAIN for tree in self._trees]
        self._plain = re.compile("|".join([*exact, *trees]) or r"(?!)")
        self._but = frozenset(but)
        # Most requests are for a few paths, and a path is exempt or not for ever.
        self._remembered = lru_cache(_REMEMBERED)(self.cover)

    def admit(self, request: Request) -> bool:
        """Whether a request needs no login."""
        path, raw = request.path, request.routed_raw
        if not (self._remembered(path) if len(path) <= _SHORT else self.cover(path)):
            return False
        if _PERCENT in raw and b"%2f" in raw.lower():
            return False  # BlackSheep, for one, takes it for a part of a segment
        return not request.is_ambiguous

    def cover(self, path: str) -> bool:
        """Whether a path needs no login."""
        if path in self._but:
            return False
        if self._plain.fullmatch(path):  # nearly all that is exempt
            return True
        return path.startswith(self._trees) and _is_unambiguous(path)


def _is_unambiguous(path: str) -> bool:
    return _is_local(path) and "%" not in path and ";" not in path
