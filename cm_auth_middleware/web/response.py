"""The responses of this package that are not pages: redirects, problems and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Headers = list[tuple[str, str]]

NO_STORE = ("Cache-Control", "no-store")
PLAIN = ("Content-Type", "text/plain; charset=utf-8")  # WSGI wants one even for no body
CHALLENGE = ("WWW-Authenticate", 'Cookie realm="CameraManager"')
"""The header that each 401 has to have (RFC 9110 §15.5.2). Browsers do nothing about its scheme."""


MOST_HEADERS = 3_920
"""Bytes that the headers of a response may have: nginx refuses more than 4096 (proxy_buffer_size).

The rest is for what the server adds.
"""


@dataclass(frozen=True, slots=True)
class Response:
    """A response that takes the place of the application's."""

    status: int
    headers: Headers
    body: bytes = b""

    @property
    def fits(self) -> bool:
        """True if every proxy takes headers of this size."""
        return _size(self.headers) <= MOST_HEADERS

    def with_what_fits(self, *headers: tuple[str, str]) -> Response:
        """Return the response with those of these headers, from the first on, that it can bear."""
        if not headers:
            return self
        fitting = list(self.headers)
        for header in headers:
            if _size([*fitting, header]) <= MOST_HEADERS:
                fitting.append(header)
        return replace(self, headers=fitting)


def _size(headers: Headers) -> int:
    return sum(len(name) + len(value) + len(": \r\n") for name, value in headers)


def redirect(status: int, location: str, *headers: tuple[str, str]) -> Response:
    """Send the browser to another URL."""
    return Response(status, [("Location", location), PLAIN, *headers, NO_STORE])


def problem(status: int, title: str, *headers: tuple[str, str], **members: Any) -> Response:
    """Tell a program what is wrong (RFC 9457)."""
    body = {"type": "about:blank", "title": title, "status": status, **members}
    if status == 401:
        headers = (CHALLENGE, *headers)
    return json_response(status, body, *headers, content_type="application/problem+json")


def json_response(
    status: int, content: Any, *headers: tuple[str, str], content_type: str = "application/json"
) -> Response:
    """Send JSON."""
    body = json.dumps(content, separators=(",", ":")).encode()
    return Response(status, [("Content-Type", content_type), NO_STORE, *headers], body)


def must_not_be_cached(own: Sequence[str], added: Headers) -> bool:
    """Return True if a response to a logged-in user has to be sent with ``no-store``.

    Args:
        own: the application's Cache-Control headers, line by line.
        added: the headers that this package adds; a cookie among them must not reach other users
            from a shared cache.
    """
    if not own or not added:
        return not own
    words = {word.strip().lower() for line in own for word in line.split(",")}
    return not words & {"private", "no-store"}


def varies_by_cookie(own: Sequence[str]) -> bool:
    """Return True if the application's Vary headers, line by line, name Cookie or everything.

    Another name may contain the word: ``X-Cookie-Consent``.
    """
    words = {word.strip().lower() for line in own for word in line.split(",")}
    return not words.isdisjoint(("cookie", "*"))
