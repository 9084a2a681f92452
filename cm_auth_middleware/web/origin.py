"""The judgement if a request was made by a page of this site: by its origin (RFC 6454)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv6Address
from urllib.parse import urlsplit

from ..display import HOST
from ..events import log
from .local_target import safe_target
from .request import Request
from .response import NO_STORE, PLAIN, Response

_ORIGIN = re.compile(rf"([a-z][a-z0-9+.-]*)://({HOST})(?::([0-9]{{1,5}}))?")
_TOKENS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,2000}")  # names, and commas between them
_PORTS = {"http": 80, "https": 443}  # which browsers leave out
_MOST_PAIRS = 100  # pairs of origins that one process logs; visitors may send any number
_MOST_TEXT = 200  # characters of an origin that are logged


def normal_origin(text: str) -> str:
    """Return an origin as browsers write it, or an empty string if it is none.

    Browsers write it in lower case, without the default port, and shorten an IPv6 address (URL
    standard, "host serializing"). Configurations and proxies also write it in other ways.
    """
    found = _ORIGIN.fullmatch(text.lower())
    if found is None:
        return ""
    scheme, host, port = found.groups()
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            return ""
    if port is None or int(port) == _PORTS.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{int(port)}" if int(port) <= 65_535 else ""


class Origins:
    """The origins whose pages may use this site: its own, and those that it trusts.

    Its own are that of ``redirect_uri`` and that which ``Host`` names.

    Args:
        redirect_uri: the callback's URL as browsers see it; None if it is not known.
        trusted: the option ``trusted_origins``, each as `normal_origin` returns it.
    """

    def __init__(self, redirect_uri: str | None, trusted: Iterable[str]) -> None:
        callback = urlsplit(redirect_uri or "")
        self._scheme = callback.scheme
        self._own = normal_origin(f"{callback.scheme}://{callback.netloc}")
        # A page of these may send any request: browsers let no other page name them.
        self._trusted = frozenset(filter(None, (self._own, *trusted)))
        # Those that need CORS.
        self._others = self._trusted - {self._own}
        self._logged: set[tuple[str, str]] = set()

    def refuse(self, request: Request, *, including_reads: bool = False) -> bool:
        """Return True if the page of another site sent a request (RFC 9700 §4.7), and log it.

        Args:
            including_reads: True to judge every method, False to judge writes only.
        """
        if not (including_reads or request.is_write):
            return False
        site, sent = request.header("sec-fetch-site"), request.header("origin")
        if request.is_websocket:
            site = None  # browsers send Origin with each (RFC 6455 §4.1)
        if site in ("same-origin", "none") or (site is None and sent is None):
            return False
        origin = normal_origin(sent or "")
        if origin in self._trusted or (site is None and self._is_host(request, origin)):
            return False
        self._log(request, sent)
        return True

    def preflight(self, request: Request) -> Response | None:
        """Return the answer to a CORS preflight of a trusted origin; None for another request.

        A preflight has no cookie, so the application, behind the login, cannot answer it.
        """
        if request.method != "OPTIONS":
            return None
        method = request.header("access-control-request-method")
        names = request.header("access-control-request-headers")
        if not method or not self._is_other(request):
            return None
        headers = [PLAIN, ("Access-Control-Allow-Methods", method), NO_STORE]
        if names:
            headers.append(("Access-Control-Allow-Headers", names))
        return Response(200, headers) if _TOKENS.fullmatch(f"{method},{names or ''}") else None

    def share(self, request: Request, response: Response) -> Response:
        """Let the page of a trusted origin read a response of this package (CORS)."""
        if not self._others or not self._is_other(request):
            return response
        cors = [
            ("Access-Control-Allow-Origin", normal_origin(request.header("origin") or "")),
            ("Access-Control-Allow-Credentials", "true"),
            ("Vary", "Origin"),
        ]
        return replace(response, headers=[*response.headers, *cors])

    def _is_other(self, request: Request) -> bool:
        return normal_origin(request.header("origin") or "") in self._others

    def page_of(self, request: Request) -> str | None:
        """Return the path, query and fragment of the page that sent a request.

        None if it is not told, or not a page of this app.
        """
        header = request.header
        try:
            parts = urlsplit(header("hx-current-url") or header("referer") or "")
        except ValueError:
            return None
        origin = normal_origin(f"{parts.scheme}://{parts.netloc}")
        if not origin or not (origin == self._own or self._is_host(request, origin)):
            return None
        page = parts._replace(scheme="", netloc="").geturl()
        return page if safe_target(page, request.root_path) == page else None

    def _is_host(self, request: Request, origin: str) -> bool:
        """Return True if an origin is the one that the Host header of a request names."""
        scheme = origin.partition(":")[0]
        # An attacker on the network can pose as http://host, so on https that origin is another
        # site. The server learns that it is https from the request or from redirect_uri.
        if scheme not in _PORTS or (scheme == "http" and "https" in (request.scheme, self._scheme)):
            return False
        # A proxy in front may speak https and the server not know it: the port tells.
        return normal_origin(f"{scheme}://{request.host}") == origin

    def _log(self, request: Request, sent: str | None) -> None:
        """Warn once of each pair: the origin that was sent, and the one that was expected."""
        origin = (sent or "none")[:_MOST_TEXT]
        own = (self._own or f"{request.scheme}://{request.host}")[:_MOST_TEXT]
        if len(self._logged) >= _MOST_PAIRS or (origin, own) in self._logged:
            return
        self._logged.add((origin, own))
        if origin == "null":
            log("origin_hidden", own=own)
        else:
            log("cross_site_refused", origin=origin, own=own)
