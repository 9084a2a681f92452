"""The judgement who sends a request, and so which kind of answer helps them.

Browsers tell it by Fetch Metadata (``Sec-Fetch-Mode``, ``Sec-Fetch-Dest``, ``Sec-Purpose``), on
https and on loopback. On other http sites, and in older browsers, the other headers tell it.
The table in docs/how-it-works.md has the rules; ``tests/web/test_asking.py`` has the cases.
"""

from __future__ import annotations

import re
from enum import Enum

from .request import Request

_FRAMES = frozenset({"iframe", "frame", "embed", "object", "fencedframe"})
_NAVIGATIONS = ("navigate", "nested-navigate")  # the second: frames, in Chrome 76 to 79
# Sec-Purpose is the standard's; older browsers send the others.
_PURPOSES = ("sec-purpose", "purpose", "x-purpose", "x-moz")
_EARLY = re.compile(r"prefetch|prerender|preview|instant", re.IGNORECASE)
# Libraries that fetch HTML and put it into a page name themselves.
_LIBRARIES = (
    "hx-request", "turbo-frame", "x-turbo-request-id", "x-pjax", "x-inertia", "x-up-version",
    "x-alpine-request", "datastar-request",
)  # fmt: skip
# Office follows the redirects of a link and opens where they end: in a browser that has no cookie
# of the login.
_OFFICE = re.compile(r"ms-office|MSOffice|Microsoft Office", re.IGNORECASE)
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
_HTML = ("text/html", "application/xhtml+xml")
_DATA = re.compile(r"application/json|.*\+json|text/event-stream|text/vnd\.turbo-stream\.html")
_RANGE = re.compile(r"([^;]*)(?:;.*?\bq=([01](?:\.\d{0,3})?))?.*", re.IGNORECASE | re.DOTALL)
_MOST_RANGES = 30  # of an Accept header that are read; browsers send up to ten


class Asker(Enum):
    """A sender of requests."""

    PERSON = "opens a page"
    """A redirect to a login helps."""
    FRAME = "opens a page in a frame"
    """CameraManager refuses to be framed: only a page of ours can be shown."""
    FORM = "submits a form"
    """A redirect would lose the form without a word."""
    OFFICE = "looks where a link in a document leads"
    """A redirect would be followed, and its end opened in a browser."""
    PROGRAM = "reads the answer by a program"
    """Scripts, images, WebSockets, prefetches, and clients that are no browser."""


def who_asks(request: Request) -> Asker:
    """Return who sends a request."""
    header = request.header
    if request.is_websocket or header("hx-request") or is_early(request):
        return Asker.PROGRAM
    mode, dest = header("sec-fetch-mode"), header("sec-fetch-dest")
    is_told = mode is not None or dest is not None
    if is_told:
        is_page = dest in (None, "document") or dest in _FRAMES
        if mode not in (None, *_NAVIGATIONS) or not is_page:
            return Asker.PROGRAM
    elif _is_script(request) or not _prefers_html(header("accept") or ""):
        return Asker.PROGRAM
    if request.method not in ("GET", "HEAD"):
        kind = (header("content-type") or "").partition(";")[0].strip().lower()
        return Asker.FORM if is_told or kind in _FORMS else Asker.PROGRAM
    if _is_office(request):
        return Asker.OFFICE
    return Asker.FRAME if _is_frame(mode, dest) else Asker.PERSON


def is_framed(request: Request) -> bool:
    """Return True if the answer is shown in a frame of another page."""
    return _is_frame(request.header("sec-fetch-mode"), request.header("sec-fetch-dest"))


def is_early(request: Request) -> bool:
    """Return True if a browser asks before a person does: a prefetch, or a preview."""
    for name in _PURPOSES:
        value = request.header(name)
        if value is not None and _EARLY.search(value):
            return True
    return False


def is_plain_program(request: Request) -> bool:
    """Return True for a program that asks for itself, as far as it tells: no page, no Office."""
    is_told = any(request.header(f"sec-fetch-{name}") is not None for name in ("mode", "dest"))
    is_other = is_told or is_early(request) or _is_script(request) or _is_office(request)
    return who_asks(request) is Asker.PROGRAM and not is_other


def opens_document(request: Request) -> bool:
    """Return True if a browser tells that it opens the answer as a page, and not in a frame."""
    return (
        request.method in ("GET", "HEAD")
        and request.header("sec-fetch-mode") == "navigate"
        and request.header("sec-fetch-dest") in (None, "document")
    )


def _is_frame(mode: str | None, dest: str | None) -> bool:
    return dest in _FRAMES or mode == "nested-navigate"


def _is_office(request: Request) -> bool:
    agent = request.header("user-agent") or ""
    return "ffice" in agent and bool(_OFFICE.search(agent))  # to look for a part costs a tenth


def _is_script(request: Request) -> bool:
    """Return True if a script sends a request, in a browser that does not tell it."""
    # Android's WebView sends the app's name in X-Requested-With when it opens a page.
    if (request.header("x-requested-with") or "").lower() == "xmlhttprequest":
        return True
    if request.method in ("GET", "HEAD") and request.header("origin") is not None:
        return True  # browsers send Origin with a GET only for CORS
    return any(request.header(name) for name in _LIBRARIES)


def _prefers_html(accept: str) -> bool:
    """Return True if an Accept header names HTML, and nothing for programs before it."""
    best = {"html": (0.0, 0), "data": (0.0, 0)}
    for place, part in enumerate(accept.split(",", _MOST_RANGES)[:_MOST_RANGES]):
        found = _RANGE.fullmatch(part.strip())
        kind = found[1].strip().lower() if found else ""
        group = "html" if kind in _HTML else "data" if _DATA.fullmatch(kind) else ""
        if found and group:
            # The earlier one of two with equal weight counts as preferred.
            best[group] = max(best[group], (float(found[2] or 1), -place))
    return best["html"][0] > 0 and best["html"] > best["data"]
