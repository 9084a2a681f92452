"""A request and an answer as the flow sees them, and the answers that are no pages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from .display import ip_address
from .paths import mount_url, safe_target
from .session import dumps

Headers = list[tuple[str, str]]

NO_STORE = ("Cache-Control", "no-store")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # RFC 9110 §9.2.1
_BLANK = " \t"
_MOST_COOKIES = 200  # that are looked at; browsers keep 180 for a site


class Request(ABC):
    """A request as the flow sees it; each shell has its own.

    Attributes:
        method: as it was sent, in capitals.
        root_path: where the application is mounted.
        path: what the framework routes, decoded, without the `root_path`.
        routed_raw: the path as it was sent, where some frameworks route that instead of `path`.
        cookie_line: the Cookie header; empty if there is none.
        is_websocket: True for the handshake of a WebSocket.
        set_cookies: headers for the application's response, if the request is passed on.
    """

    __slots__ = (
        "cookie_line", "is_websocket", "method", "path", "root_path", "routed_raw", "set_cookies",
    )  # fmt: skip

    method: str
    path: str
    root_path: str
    routed_raw: bytes
    cookie_line: str
    is_websocket: bool
    set_cookies: Headers

    @property
    @abstractmethod
    def is_secure(self) -> bool:
        """Whether it came over TLS, as the server knows it (through a proxy that it trusts)."""

    @property
    def scheme(self) -> str:
        """``https`` or ``http``, for a WebSocket too."""
        return "https" if self.is_secure else "http"

    @property
    @abstractmethod
    def raw_path(self) -> str:
        """The path as it was sent, mount included, where the server tells it."""

    @property
    def is_ambiguous(self) -> bool:
        """True if the request is not below `root_path`: what is routed then is anybody's guess."""
        return False

    @property
    @abstractmethod
    def query(self) -> str:
        """The query as it was sent."""

    @property
    @abstractmethod
    def peer(self) -> str:
        """The client's address as the server tells it, where it does."""

    @property
    def address(self) -> str:
        """The client's IP address; empty if the server tells none, or something else.

        A server that believes any proxy hands on what a visitor wrote into a header.
        """
        return ip_address(self.peer)

    @abstractmethod
    def header(self, name: str) -> str | None:
        """A header by its name in lower case; the lines of one name joined."""

    @property
    def host(self) -> str:
        """The Host header."""
        return self.header("host") or ""

    @property
    def cookies(self) -> Sequence[tuple[str, str]]:
        """Every name and value, duplicates included: which one counts is not for here."""
        parts = self.cookie_line.split(";", _MOST_COOKIES)[:_MOST_COOKIES]
        pairs = (part.partition("=") for part in parts)
        # No more than a browser does (RFC 6265bis §5.6). Python's own strip() takes off a no-break
        # space, too: to a browser such a name is another one, which any neighbour may set.
        return [(name.strip(_BLANK), value.strip(_BLANK)) for name, _, value in pairs]

    @property
    def url(self) -> str:
        """The path and query that a browser would come back to; the root if it would not."""
        path = self.root_path + self.path
        if unquote(self.raw_path) == path:
            path = self.raw_path
        else:
            path = quote(path, safe="/:@!$&'()*+,;=~")
        # A request for "//evil" is one that browsers send, and a link to it is not to here.
        return safe_target(f"{path}?{self.query}" if self.query else path, self.root_path)

    @property
    def mount(self) -> str:
        """The `root_path` as it stands in a URL."""
        return mount_url(self.root_path)

    @property
    def htmx_page(self) -> str | None:
        """The page of ours that an htmx request came from."""
        try:
            parts = urlsplit(self.header("hx-current-url") or "")
        except ValueError:
            return None
        if parts.netloc.lower() != self.host.lower():
            return None
        return f"{parts.path}?{parts.query}" if parts.query else parts.path

    def parameters(self) -> list[tuple[str, str]]:
        """The query's names and values; none if there are too many or they are not UTF-8."""
        try:
            return parse_qsl(self.query, keep_blank_values=True, errors="strict", max_num_fields=20)
        except ValueError:
            return []

    @property
    def is_navigation(self) -> bool:
        """Whether a person's browser asks for a page."""
        if self.method not in ("GET", "HEAD") or self.is_websocket or self.header("hx-request"):
            return False
        mode = self.header("sec-fetch-mode")
        if mode is not None and mode != "navigate":
            return False
        return mode == "navigate" or "text/html" in (self.header("accept") or "")

    @property
    def is_write(self) -> bool:
        """True for what may change state: an unsafe method, or a WebSocket although it is a GET."""
        return self.is_websocket or self.method not in SAFE_METHODS

    def is_cross_site(self, own_origin: str = "") -> bool:
        """Return True if another site made the browser send this state change (RFC 9700 §4.7).

        Args:
            own_origin: the origin that is this site, whatever ``Host`` says.
        """
        if not self.is_write:
            return False
        site = self.header("sec-fetch-site")
        if site is not None and not self.is_websocket:
            return site not in ("same-origin", "none")
        return self._has_foreign_origin(own_origin)

    def comes_from_elsewhere(self, own_origin: str = "") -> bool:
        """Whether another site made the browser send this request, whatever its method."""
        site = self.header("sec-fetch-site")
        if site is not None:
            return site not in ("same-origin", "none")
        return self._has_foreign_origin(own_origin)

    def _has_foreign_origin(self, own_origin: str) -> bool:
        origin = self.header("origin")
        if origin is None:
            return False
        try:
            sent, own = urlsplit(origin.lower()), urlsplit(own_origin)
        except ValueError:
            return True
        if not sent.netloc:
            return True  # "null"
        if sent.netloc == own.netloc:
            return sent.scheme != own.scheme
        # Anybody on the way can be http://host. A server that does not know it is https, from
        # the request or from redirect_uri, cannot tell; the other way round, it is not ours.
        is_downgraded = sent.scheme == "http" and "https" in (self.scheme, own.scheme)
        return sent.netloc != self.host.lower() or is_downgraded


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that the flow gives instead of the application's."""

    status: int
    headers: Headers
    body: bytes = b""


def must_not_be_cached(own: Sequence[str], added: Headers) -> bool:
    """Whether an answer to a logged-in user needs another Cache-Control than the application's.

    Args:
        own: the application's, line by line.
        added: headers of ours; a cookie of ours must not come out of a shared cache.
    """
    if not own or not added:
        return not own
    words = {word.strip().lower() for line in own for word in line.split(",")}
    return not words & {"private", "no-store"}


def redirect(status: int, location: str, *headers: tuple[str, str]) -> Answer:
    """Send the browser elsewhere."""
    plain = ("Content-Type", "text/plain; charset=utf-8")  # WSGI wants one even for nothing
    return Answer(status, [("Location", location), plain, *headers, NO_STORE])


def problem(status: int, title: str, *headers: tuple[str, str], **members: Any) -> Answer:
    """Tell a program what is wrong (RFC 9457)."""
    body = {"type": "about:blank", "title": title, "status": status, **members}
    return json_answer(status, body, *headers, content_type="application/problem+json")


def not_allowed(allowed: str) -> Answer:
    """Refuse a method (RFC 9110 §15.5.6)."""
    return problem(405, "Method not allowed", ("Allow", allowed))


def json_answer(
    status: int, content: Any, *headers: tuple[str, str], content_type: str = "application/json"
) -> Answer:
    """Send JSON."""
    return Answer(status, [("Content-Type", content_type), NO_STORE, *headers], _dumps(content))


def _dumps(content: Any) -> bytes:
    return dumps(content).encode()
