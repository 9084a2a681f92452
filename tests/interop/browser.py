"""A browser that fills in the pages of OAuth servers: their logins and their approval pages."""

from __future__ import annotations

import ssl
from html.parser import HTMLParser
from typing import Any

import httpx2

ANNA, BOB = "anna@example.com", "bob@example.com"
PASSWORD = "cameras"

_NAVIGATE = {
    "Accept": "text/html,application/xhtml+xml",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Dest": "document",
}
_FETCH = {"Accept": "application/json", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
# To read the list of authorities for each client takes longer than an exchange.
NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class _Form(HTMLParser):
    """The first form of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.action: str | None = None
        self.hidden: dict[str, str] = {}
        self.inputs: dict[str, str] = {}  # the type of each, by name
        self.boxes: dict[str, str] = {}  # to check
        self._open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form" and self.action is None:
            self.action, self._open = given.get("action", ""), True
        elif self._open and tag in ("input", "button"):
            name, kind = given.get("name", ""), given.get("type", "text")
            self.inputs[name] = kind
            if kind == "hidden":
                self.hidden[name] = given.get("value", "")
            if kind == "checkbox":
                self.boxes[name] = given.get("value", "on")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = False


class Browser:
    """One browser. It follows redirects, but only to addresses that somebody serves.

    Args:
        nobody: redirects to addresses that begin so are not followed.
    """

    def __init__(self, nobody: str = "nobody:") -> None:
        self._nobody = nobody
        self._client = httpx2.Client(timeout=30, verify=NO_AUTHORITIES)

    def navigate(self, url: str) -> httpx2.Response:
        """Open an address; redirects are followed."""
        return self._follow(self._client.get(url, headers=_NAVIGATE))

    def ask(self, url: str) -> httpx2.Response:
        """Open an address; redirects are not followed."""
        return self._client.get(url, headers=_NAVIGATE)

    def fetch(self, url: str) -> httpx2.Response:
        """Call a site from a script of its own."""
        return self._client.get(url, headers={**_FETCH, "Sec-Fetch-Site": "same-origin"})

    def submit(self, url: str, **fields: str) -> httpx2.Response:
        """Send a form to the site that it is from; redirects are not followed."""
        parts = httpx2.URL(url)
        headers = {
            **_NAVIGATE,
            "Origin": f"{parts.scheme}://{parts.netloc.decode()}",
            "Sec-Fetch-Site": "same-origin",
        }
        return self._client.post(url, headers=headers, data=fields)

    def enter(self, url: str, email: str = ANNA, *, consents: bool = True) -> httpx2.Response:
        """Open an address, and log in and consent if asked; return where that ends."""
        page = self.navigate(url)
        for _ in range(4):
            form = _Form(page.text)
            if page.is_redirect or form.action is None:
                return page
            fields = _filled(form, email, consents)
            page = self._follow(self.submit(str(page.url.join(form.action)), **fields))
        raise AssertionError(
            f"one form after the other, the last at {page.url.copy_with(query=None)}"
        )

    @property
    def cookie(self) -> str:
        """The cookies, as a request would send them."""
        request = self._client.build_request("GET", "http://127.0.0.1/")
        return request.headers.get("Cookie", "")

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _follow(self, response: httpx2.Response) -> httpx2.Response:
        for _ in range(10):
            location = response.headers.get("location", "")
            if not response.is_redirect or location.startswith(self._nobody):
                return response
            target = str(response.url.join(location))
            response = self._client.get(target, headers=_NAVIGATE)
        raise AssertionError(f"redirects in a circle, last to {response.url.path}")


def _filled(form: _Form, email: str, consents: bool) -> dict[str, str]:
    """Return what a user sends: of Spring's pages, the simulator's and the others'."""
    fields: dict[str, Any] = dict(form.hidden)
    if "password" in form.inputs:
        name = "username" if "username" in form.inputs else "email"
        return {**fields, name: email, "password": PASSWORD}
    if "decision" in form.inputs:
        return {**fields, "decision": "allow" if consents else "refuse"}
    if "allow" in form.inputs:  # django-oauth-toolkit's button
        return {**fields, "allow": "Authorize"} if consents else fields
    if form.boxes:  # Spring Authorization Server's scopes
        return {**fields, **form.boxes} if consents else fields
    scopes = [name for name, kind in form.inputs.items() if kind == "radio"]
    return {**fields, **dict.fromkeys(scopes, str(consents).lower())}
