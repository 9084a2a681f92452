"""The small pages that a person may see: one layout, a few lines of script, nothing to load."""

from __future__ import annotations

from functools import cache
from html import escape
from string import Template
from typing import TYPE_CHECKING

from ..events import log
from ..hooks import ErrorHandler, ErrorPage
from .asking import Asker, is_framed, who_asks
from .files import digest, read
from .origin import Origins
from .request import Request
from .response import CHALLENGE, NO_STORE, Response, problem

if TYPE_CHECKING:
    from ..runtime.base import Runtime

# The log-out form goes without: browsers apply form-action to its redirects too, and the last of
# them leads to CameraManager's login, whose hosts are not known here.
_NO_FORM = "; form-action 'none'"
# The pages that are shown at the address that was asked for, and whose link leads back to it.
_AT_ADDRESS = frozenset(
    {"log_in", "login_lost", "denied", "unavailable", "store_unavailable", "unknown_host",
     "misconfigured"}
)  # fmt: skip
# A page that the application draws may have any style and script, but no other site may frame it.
_CUSTOM_POLICY = "base-uri 'none'"


class Pages:
    """Makes the responses that explain something: a page for a person, a problem for a program.

    Args:
        server: what they call the server that users log in at.
    """

    def __init__(
        self,
        error_handler: ErrorHandler | None,
        runtime: Runtime,
        origins: Origins,
        server: str,
        app_name: str | None = None,
        app_logo: str | None = None,
    ) -> None:
        self._server = server
        self._handler = error_handler
        self._runtime = runtime
        self._origins = origins
        self._app_name = app_name
        self._app_logo = app_logo

    async def failure(
        self,
        request: Request,
        status: int,
        kind: str,
        *headers: tuple[str, str],
        login: str | None = None,
        link: str | None = None,
    ) -> Response:
        """Say what is wrong: with a page for a person, with a problem for a program.

        Args:
            kind: a key of `MESSAGES`.
            login: the URL that starts a login.
            link: the URL that the page leads to. Without it and `login` the page offers to try its
                own URL again, or after a form to go back to the form's page.
        """
        asker = who_asks(request)
        if asker is not Asker.PROGRAM:
            again = self.page_before(request) if asker is Asker.FORM else request.url
            return await self.show(request, status, kind, link or login or again, *headers)
        from .messages import words  # when first needed

        message = words(kind, "en", self._server)
        members = {"login_url": login} if login else {}
        return problem(status, message.title, *headers, detail=message.text, **members)

    def page_before(self, request: Request) -> str:
        """Return the URL of the page that sent a request; the app's root if it is not known."""
        return self._origins.page_of(request) or f"{request.mount}/"

    async def cross_site(self, request: Request) -> Response:
        """Refuse a request that another site made the browser send."""
        if who_asks(request) is Asker.FORM:
            return await self.show(request, 403, "cross_site", f"{request.mount}/")
        return problem(403, "Cross-site request refused")

    async def show(
        self,
        request: Request,
        status: int,
        kind: str,
        link: str,
        *headers: tuple[str, str],
        method: str = "get",
    ) -> Response:
        """Show a person a page, drawn by the application or else by this package."""
        from .messages import negotiate, words  # most processes show no page for long

        language = negotiate(request.header("accept-language"))
        message = words(kind, language, self._server)
        # A link can do no harm in a frame of the application's own pages; the log-out button could.
        is_frame = method == "get" and is_framed(request)
        # To try again stays in the frame; a login leaves it, from the login's own URL too.
        leaves = kind == "log_in" or link != request.url
        target = "_top" if is_frame and leaves else "_self"
        page = ErrorPage(
            status,
            kind,
            message.title,
            message.text,
            link,
            message.action,
            method,
            language,
            target,
            # Not the page before: a foreign site may have led here, or a page that is not safe.
            back=f"{request.mount}/" if message.back else None,
            back_label=message.back,
            app_name=self._app_name,
            app_logo=self._logo(request),
        )
        body, policy = await self._custom_page(page), _CUSTOM_POLICY
        if body is None:
            body = render(page)
            policy = _own_policy(kind in _AT_ADDRESS) + _picture_policy(page.app_logo)
            policy += _NO_FORM if method == "get" else ""
        policy += "; frame-ancestors 'self'" if is_frame else "; frame-ancestors 'none'"
        return Response(
            status,
            [
                ("Content-Type", "text/html; charset=utf-8"),
                ("Content-Language", language),
                ("Content-Security-Policy", policy),
                ("X-Content-Type-Options", "nosniff"),
                ("Referrer-Policy", "same-origin"),
                NO_STORE,
                *([CHALLENGE] if status == 401 else []),
                *headers,
            ],
            body,
        )

    def _logo(self, request: Request) -> str | None:
        """Return the URL of the logo: a path is one of the application, below its mount."""
        logo = self._app_logo
        return f"{request.mount}{logo}" if logo is not None and logo.startswith("/") else logo

    async def _custom_page(self, page: ErrorPage) -> bytes | None:
        """Return the application's page; None if it draws none, or fails to."""
        if self._handler is None:
            return None
        try:
            body = await self._runtime.call_user_function(self._handler, page)
        except Exception:
            log("error_handler_failed", exc_info=True, kind=page.kind)
            return None
        if body is None or isinstance(body, bytes):
            return body
        if isinstance(body, str):
            return body.encode()
        log("error_handler_failed", kind=page.kind)  # neither str, bytes nor None
        return None


def render(page: ErrorPage) -> bytes:
    """Return the HTML of a page: a title, a sentence or two, and one thing to do next."""
    link, label = escape(page.link), escape(page.label)
    back = ""
    if page.back is not None:
        back = f'<a class="back" href="{escape(page.back)}">{escape(page.back_label or "")}</a>'
    if page.method == "post":
        action = (
            f'<form method="post" action="{link}">'
            f'<button class="go" type="submit">{label}</button>{back}</form>'
        )
    else:
        target = ' target="_top"' if page.target == "_top" else ""
        action = f'<a class="go" href="{link}"{target}>{label}</a>{back}'
    title = escape(page.title)
    document = Template(read("page.html")).substitute(
        language=page.language,
        title=f"{title} · {escape(page.app_name)}" if page.app_name else title,
        app=_app(page),
        heading=title,
        style=read("page.css"),
        text=escape(page.text),
        action=action,
        script=f"<script>{read('page.js')}</script>\n" if page.kind in _AT_ADDRESS else "",
    )
    return document.encode()


def _app(page: ErrorPage) -> str:
    """Return the HTML that says whose page it is; empty if there is nothing to say."""
    # Without an alternative text: a screen reader reads the name beside it once.
    picture = f'<img src="{escape(page.app_logo)}" alt="">' if page.app_logo else ""
    name = escape(page.app_name or "")
    return f'<p class="app">{picture}{name}</p>\n' if picture or name else ""


@cache
def _own_policy(has_script: bool) -> str:
    """Return the Content-Security-Policy of this package's pages: their own style and script."""
    policy = f"default-src 'none'; style-src '{digest('page.css')}'; base-uri 'none'"
    return f"{policy}; script-src '{digest('page.js')}'" if has_script else policy


def _picture_policy(logo: str | None) -> str:
    """Return what the policy needs for the logo, and for no other picture than it has to."""
    if logo is None:
        return ""
    return "; img-src data:" if logo.startswith("data:") else "; img-src 'self'"
