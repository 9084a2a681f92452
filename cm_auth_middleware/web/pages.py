"""The small pages that a person may see: one layout, no script, no external resource."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from ..events import log
from .messages import MESSAGES, negotiate
from .request import NO_STORE, Request, Response, problem

if TYPE_CHECKING:
    from ..config import CMAuthConfig
    from ..runtime.base import Runtime

# Not for the log-out form: browsers hold its redirects to form-action too, and the last of them
# leads to CameraManager's login, on hosts that we do not know.
_NO_FORM = "; form-action 'none'"
# An application's own page brings its own style and scripts, but is framed by nobody.
_THEIR_POLICY = "base-uri 'none'; frame-ancestors 'none'"


@dataclass(frozen=True, slots=True)
class ErrorPage:
    """A page for a person, as an ``error_handler`` gets it to draw it in the application's style.

    The values are plain text: escape them where they become HTML, as a template engine does.

    Attributes:
        status: of the answer, 403 for example.
        kind: what the page is about, a stable name: a key of `cm_auth_middleware.web.messages`.
        title: what happened, in the person's language.
        text: what it means.
        link: where the one thing to do next leads.
        label: what that is called.
        method: how to go there: ``get``, a link, or ``post``, a form without fields.
        language: of the texts: ``en``, ``nl``, ``de``, ``fr`` or ``es``.
    """

    status: int
    kind: str
    title: str
    text: str
    link: str
    label: str
    method: str
    language: str


class Pages:
    """Answers that tell somebody what is wrong: a page for a person, a problem for a program."""

    def __init__(self, config: CMAuthConfig, runtime: Runtime) -> None:
        self._handler = config.error_handler
        self._runtime = runtime

    async def failure(
        self,
        request: Request,
        status: int,
        kind: str,
        *headers: tuple[str, str],
        login: str | None = None,
    ) -> Response:
        """Tell whoever asked what is wrong.

        Args:
            kind: a key of `MESSAGES`.
            login: where to start a login; the URL at hand is to be tried again without it.
        """
        if request.is_navigation:
            return await self.show(request, status, kind, login or request.url, *headers)
        title, text, _ = MESSAGES[kind]["en"]
        members = {"login_url": login} if login else {}
        return problem(status, title, *headers, detail=text, **members)

    async def show(
        self,
        request: Request,
        status: int,
        kind: str,
        link: str,
        *headers: tuple[str, str],
        method: str = "get",
    ) -> Response:
        """Show a person a page, drawn by the application or else by us."""
        language = negotiate(request.header("accept-language"))
        page = ErrorPage(
            status, kind, *MESSAGES[kind][language][:2], link,
            MESSAGES[kind][language].action, method, language,
        )  # fmt: skip
        body, policy = await self._theirs(page), _THEIR_POLICY
        if body is None:
            body = render(page)
            policy = _our_policy() + (_NO_FORM if method == "get" else "")
        return Response(
            status,
            [
                ("Content-Type", "text/html; charset=utf-8"),
                ("Content-Language", language),
                ("Content-Security-Policy", policy),
                ("X-Content-Type-Options", "nosniff"),
                ("Referrer-Policy", "same-origin"),
                NO_STORE,
                *headers,
            ],
            body,
        )

    async def _theirs(self, page: ErrorPage) -> bytes | None:
        """The application's page. One that fails must not hide what was to be told."""
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
    """Draw a page: a title, a sentence or two, and one thing to do next."""
    link, label = escape(page.link), escape(page.label)
    if page.method == "post":
        action = (
            f'<form method="post" action="{link}">'
            f'<button class="go" type="submit">{label}</button></form>'
        )
    else:
        action = f'<a class="go" href="{link}">{label}</a>'
    document = Template(_file("page.html")).substitute(
        language=page.language,
        title=escape(page.title),
        style=_file("page.css"),
        text=escape(page.text),
        action=action,
    )
    return document.encode()


@cache
def _file(name: str) -> str:
    """The text of a file in the folder ``web``, which is read at first use."""
    return (files(__package__) / name).read_text("utf-8")


@cache
def _our_policy() -> str:
    """The Content-Security-Policy of a page of this package: its own style and nothing else."""
    digest = base64.b64encode(hashlib.sha256(_file("page.css").encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; frame-ancestors 'none'"
    )
