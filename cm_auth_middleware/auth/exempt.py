"""The paths that need no login: the option ``exempt``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from ..web.local_target import is_local

if TYPE_CHECKING:
    from ..web.request import Request

_PERCENT = ord("%")  # to look for b"%" takes 0.5 µs, for bytes ask for a number first
_REMEMBERED, _SHORT = 256, 128  # paths whose exemption is remembered, and their most characters


class ExemptPaths:
    """The paths that need no login: exact ones, and subtrees ending in ``/*``.

    Judged on the path that the framework routes. A path that could be read in two ways (an empty
    or dot segment, a backslash, an encoded slash) is never exempt, nor is one that is not below
    the mount.

    Args:
        patterns: as in the option ``exempt``.
        but: paths that are never exempt, whatever the patterns say.
    """

    def __init__(self, patterns: Iterable[str], but: Iterable[str] = ()) -> None:
        patterns = tuple(patterns)
        self._exact = frozenset(p for p in patterns if not p.endswith("/*"))
        self._trees = tuple(p[:-1] for p in patterns if p.endswith("/*"))
        self._but = frozenset(but)
        # Most requests are for a few paths. Visitors choose paths, so long ones are not remembered.
        self._remembered = lru_cache(_REMEMBERED)(self.cover)

    def admit(self, request: Request) -> bool:
        """Return True if a request needs no login."""
        path = request.path
        if not (self._remembered(path) if len(path) <= _SHORT else self.cover(path)):
            return False
        raw = request.routed_raw
        if _PERCENT in raw and b"%2f" in raw.lower():
            return False  # BlackSheep, for one, takes it for a part of a segment
        return not request.is_ambiguous

    def cover(self, path: str) -> bool:
        """Return True if a path needs no login."""
        if path in self._but:
            return False
        if path in self._exact:
            return True
        # What follows the tree's slash, and that slash, as a path of its own.
        rests = (path[len(tree) - 1 :] for tree in self._trees if path.startswith(tree))
        return any("%" not in rest and ";" not in rest and is_local(rest) for rest in rests)
