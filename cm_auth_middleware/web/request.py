"""A request as this package sees it, whichever server protocol it came by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from urllib.parse import parse_qsl, quote, unquote

from ..display import ip_address
from .local_target import mount_url, safe_target
from .response import Headers

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # RFC 9110 §9.2.1
_BLANK = " \t"
_MOST_COOKIES = 200  # that are looked at; browsers keep 180 for a site


class Request(ABC):
    """A request; the ASGI and the WSGI side each have a subclass.

    Attributes:
        method: the method as it was sent, in capitals.
        root_path: the path at which the application is mounted.
        path: the path that the framework routes: decoded, without the `root_path`.
        routed_raw: the path as it was sent, for the frameworks that route it instead of `path`.
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
        """True if the request came over TLS, by what the server or a proxy that it trusts says."""

    @property
    def scheme(self) -> str:
        """Return ``https`` or ``http``, for a WebSocket too."""
        return "https" if self.is_secure else "http"

    @property
    @abstractmethod
    def raw_path(self) -> str:
        """Return the path as it was sent, with the mount; empty if the server does not tell it."""

    @property
    def is_ambiguous(self) -> bool:
        """True if the request is not below `root_path`, where frameworks route differently."""
        return False

    @property
    @abstractmethod
    def query(self) -> str:
        """Return the query as it was sent."""

    @property
    @abstractmethod
    def peer(self) -> str:
        """Return the client's address as the server tells it; empty if it does not."""

    @property
    def address(self) -> str:
        """Return the client's IP address; empty if the server gives no valid one.

        A server that trusts any proxy passes on whatever a visitor wrote into a header.
        """
        return ip_address(self.peer)

    @abstractmethod
    def header(self, name: str) -> str | None:
        """Return a header by its name in lower case, with its lines joined."""

    @property
    def host(self) -> str:
        """Return the Host header; empty if there is none."""
        return self.header("host") or ""

    @property
    def cookies(self) -> Sequence[tuple[str, str]]:
        """Return all names and values. Duplicates are kept; the caller decides which one counts."""
        if not self.cookie_line:
            return ()
        parts = self.cookie_line.split(";", _MOST_COOKIES)[:_MOST_COOKIES]
        pairs = (part.partition("=") for part in parts)
        # Strip what a browser strips (RFC 6265bis §5.6) and no more. Python's own strip() also
        # removes a no-break space: to a browser that is another name, which any neighbouring host
        # may set.
        return [(name.strip(_BLANK), value.strip(_BLANK)) for name, _, value in pairs]

    def cookies_named(self, name: str) -> list[str]:
        """Return the values of the cookies that have a name, as `cookies` has them."""
        values = []
        for part in self.cookie_line.split(";", _MOST_COOKIES)[:_MOST_COOKIES]:
            if name in part:
                key, _, value = part.partition("=")
                if key.strip(_BLANK) == name:
                    values.append(value.strip(_BLANK))
        return values

    @property
    def url(self) -> str:
        """Return the path and query that lead a browser back here; the root if none safely do."""
        path = self.root_path + self.path
        if unquote(self.raw_path) == path:
            path = self.raw_path
        else:
            path = quote(path, safe="/:@!$&'()*+,;=~")
        # Browsers do send requests for "//evil", but a link to it leads to another host.
        return safe_target(f"{path}?{self.query}" if self.query else path, self.root_path)

    @property
    def mount(self) -> str:
        """Return the `root_path` as it is written in a URL."""
        return mount_url(self.root_path)

    def parameters(self) -> list[tuple[str, str]]:
        """Return the query's names and values; none if there are too many or they are not UTF-8."""
        query = self.query
        if not query:
            return []
        try:
            return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=20)
        except ValueError:
            return []

    @property
    def is_write(self) -> bool:
        """True if the request may change state: an unsafe method, or a WebSocket's GET."""
        return self.is_websocket or self.method not in SAFE_METHODS
