"""Choose what a conditional request, or one for a range, gets of a body (RFC 9110 §13 and §14)."""

from __future__ import annotations

import re
from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .request import Request

_ETAG = re.compile(r"(?:W/)?\"[^\"]*\"")
_RANGE = re.compile(r"bytes[ \t]*=[ \t]*([0-9]{0,18})-([0-9]{0,18})")  # one; more get the whole


class Choice(NamedTuple):
    """The status of a response, and the bytes of the body that it has: from `start` to `stop`."""

    status: int
    start: int = 0
    stop: int = 0


def choose(request: Request, etag: str, last_modified: str, length: int) -> Choice:
    """Return what a GET or HEAD request gets of a body with these validators."""
    if _is_precondition_wrong(request, etag, last_modified):
        return Choice(412)
    if _is_not_modified(request, etag, last_modified):
        return Choice(304)
    wanted = request.header("range") if request.method == "GET" else None
    if wanted is None or not _is_range_meant(request, etag, last_modified):
        return Choice(200, 0, length)
    return _range(wanted.strip(" \t"), length)


def _is_precondition_wrong(request: Request, etag: str, last_modified: str) -> bool:
    wanted = request.header("if-match")
    if wanted is not None:
        is_weak = etag.startswith("W/")
        return wanted.strip() != "*" and (is_weak or etag not in _ETAG.findall(wanted))
    since = _seconds(request.header("if-unmodified-since"))
    return since is not None and since < (_seconds(last_modified) or 0)


def _is_not_modified(request: Request, etag: str, last_modified: str) -> bool:
    known = request.header("if-none-match")
    if known is not None:
        tags = {tag.removeprefix("W/") for tag in _ETAG.findall(known)}
        return known.strip() == "*" or etag.removeprefix("W/") in tags
    since = _seconds(request.header("if-modified-since"))
    modified = None if since is None else _seconds(last_modified)
    return since is not None and modified is not None and modified <= since


def _is_range_meant(request: Request, etag: str, last_modified: str) -> bool:
    """Return True unless If-Range names another version of the body."""
    version = request.header("if-range")
    if version is None:
        return True
    version = version.strip(" \t")
    return version == last_modified or (version == etag and not etag.startswith("W/"))


def _range(wanted: str, length: int) -> Choice:
    found = _RANGE.fullmatch(wanted)
    if found is None or found[0].endswith("=-"):
        return Choice(200, 0, length)
    first, last = found.groups()
    if not first:
        start, stop = max(0, length - int(last)), length
    else:
        start, stop = int(first), min(int(last) + 1, length) if last else length
        if last and int(last) < start:
            return Choice(200, 0, length)  # not valid, and so ignored (RFC 9110 §14.1.1)
    return Choice(206, start, stop) if start < stop else Choice(416)


def _seconds(date: str | None) -> int | None:
    """Return a date as epoch seconds; None if there is none, or it cannot be read."""
    if date is None:
        return None
    try:
        parts = parsedate_tz(date)
        return None if parts is None else int(mktime_tz(parts))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
