"""Give tests a synchronous browser, and log it in through the simulator's forms."""

from __future__ import annotations

import html
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2

from cm_auth_middleware.display import printable
from cm_auth_middleware.testing.network import origin_of
from cm_auth_middleware.tokens.provider import PROVIDERS

_TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL)
_HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


class LoginFailed(AssertionError):  # noqa: N818 - a failed assertion, not an error
    """A login failed: the application started no session.

    Attributes:
        response: the last response, of the application or of the simulator.
    """

    def __init__(self, message: str, response: httpx2.Response) -> None:
        super().__init__(message)
        self.response = response


class Browser(httpx2.Client):
    """An `httpx2.Client` that asks for HTML, keeps cookies, and calls apps in the same process.

    It follows redirects only where ``follow_redirects=True`` is given, so that a test sees them.

    Args:
        sites: the transport for each origin, such as ``http://localhost:8000``.
        base_url: the address of the application.
        options: options of `httpx2.Client`.
    """

    def __init__(
        self, sites: dict[str, httpx2.BaseTransport], base_url: str, **options: Any
    ) -> None:
        self.sites = sites
        super().__init__(
            transport=_Sites(sites),
            base_url=base_url,
            headers={"Accept": _HTML},
            timeout=30,
            **options,
        )


def log_in(
    browser: Browser,
    simulator: httpx2.BaseTransport,
    prefix: str,
    email: str,
    password: str,
    *,
    provider: str,
) -> None:
    """Log a browser in: open the application's login, fill in CameraManager's forms, and return.

    Args:
        browser: the browser; if the application's ``redirect_uri`` names another origin, the
            browser's ``base_url`` changes to that.
        simulator: the transport for the server that the application redirects the browser to.
        prefix: the middleware's option ``prefix``.
        email: the user's e-mail address.
        password: the user's password.
        provider: the server that the simulator plays.

    Raises:
        LoginFailed: the application or the simulator refused the login.
    """
    authorize = _start(browser, prefix)
    home = origin_of(parse_qs(authorize.query.decode())["redirect_uri"][0])
    if home != origin_of(browser.base_url):
        browser.sites[home] = browser.sites[origin_of(browser.base_url)]
        browser.base_url = httpx2.URL(home)
        browser.cookies.clear()
        authorize = _start(browser, prefix)
    browser.sites[origin_of(authorize)] = simulator
    page = browser.post(authorize, data={"email": email, "password": password})
    asked = _provider_of(authorize)
    if page.status_code == 404 and asked not in ("", provider):
        raise LoginFailed(
            f"the application has the provider '{asked}', and the simulator plays '{provider}': "
            f'let the fixture cm_provider be "{asked}", or give the application the other provider',
            page,
        )
    page = browser.get(_target(page))
    if not page.is_redirect:
        page = browser.post(page.url, data={"decision": "allow"})
    answer = browser.get(_target(page))
    if not answer.is_redirect:
        raise LoginFailed(f"the application answered {_describe(answer)}", answer)
    # This cookie marks a login of the last minute. Tests are about browsers that logged in earlier.
    for mark in [f"{name}_in" for name in browser.cookies]:
        if mark in browser.cookies:
            browser.cookies.delete(mark)


def _start(browser: Browser, prefix: str) -> httpx2.URL:
    answer = browser.get(f"{prefix}/login")
    target = httpx2.URL(answer.headers.get("Location", ""))
    if not answer.is_redirect or not target.path.endswith("/authorize"):
        raise LoginFailed(
            f"{answer.url} answered {_describe(answer)} and not a redirect to CameraManager: is "
            "the app behind the middleware, and does it use the prefix that cm_login was given?",
            answer,
        )
    return target


def _provider_of(authorize: httpx2.URL) -> str:
    """Return the name of the provider that has a login page at this path; empty if none has."""
    names = [name for name, p in PROVIDERS.items() if authorize.path.endswith(p.authorize_path)]
    return names[0] if names else ""


def _target(page: httpx2.Response) -> httpx2.URL:
    if not page.is_redirect:
        raise LoginFailed(f"the simulator answered {_describe(page)}", page)
    return page.url.join(page.headers["Location"])


def _describe(answer: httpx2.Response) -> str:
    title = _TITLE.search(answer.text)
    if title:
        return printable(f"{answer.status_code} “{html.unescape(title[1])}”")
    return printable(f"{answer.status_code} {answer.text[:200]}".strip())


class _Sites(httpx2.BaseTransport):
    """Sends each request to the transport of its origin."""

    def __init__(self, sites: dict[str, httpx2.BaseTransport]) -> None:
        self._sites = sites

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        origin = origin_of(request.url)
        if origin not in self._sites:
            raise httpx2.ConnectError(
                f"{urlsplit(origin).netloc} is not part of this test", request=request
            )
        return self._sites[origin].handle_request(request)
