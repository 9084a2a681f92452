"""The small pages that a person may see: one layout, no script, no external resource."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from .events import log
from .http import NO_STORE, Answer, Request, problem
from .messages import MESSAGES, negotiate

if TYPE_CHECKING:
    from .config import CMAuthConfig
    from .ports import Ports

_STYLE = """
:root{color-scheme:light dark;--bg:#f4f6f8;--card:#fff;--ink:#14202b;--soft:#4d5c69;--line:#dbe2e8;
--go:#0b5fa5;--go-ink:#fff}
@media (prefers-color-scheme:dark){:root{--bg:#0f151b;--card:#18212a;--ink:#eef3f7;--soft:#a9b7c4;
--line:#2b3844;--go:#6bb6f5;--go-ink:#08131d}}
*{box-sizing:border-box}body{margin:0;min-height:100vh;display:grid;place-items:center;padding:1.5rem;
background:var(--bg);color:var(--ink);font:1rem/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{width:100%;max-width:28rem;padding:2.25rem;background:var(--card);border:1px solid var(--line);
border-radius:14px;overflow-wrap:break-word}
h1{margin:0 0 .6rem;font-size:1.4rem;line-height:1.25;letter-spacing:-.01em}
p{margin:0 0 1.5rem;color:var(--soft)}form{margin:0}
.go{display:inline-block;border:0;border-radius:8px;padding:.7rem 1.2rem;background:var(--go);
color:var(--go-ink);font:inherit;font-weight:600;text-decoration:none;cursor:pointer}
.go:hover{filter:brightness(1.08)}
.go:focus-visible{outline:3px solid var(--go);outline-offset:3px}
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_OUR_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; frame-ancestors 'none'"
)
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
        kind: what the page is about, a stable name: a key of `cm_auth_middleware.messages`.
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

    def __init__(self, config: CMAuthConfig, ports: Ports) -> None:
        self._handler = config.error_handler
        self._ports = ports

    async def failure(
        self,
        request: Request,
        status: int,
        kind: str,
        *headers: tuple[str, str],
        login: str | None = None,
    ) -> Answer:
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
    ) -> Answer:
        """Show a person a page, drawn by the application or else by us."""
        language = negotiate(request.header("accept-language"))
        page = ErrorPage(
            status, kind, *MESSAGES[kind][language][:2], link,
            MESSAGES[kind][language].action, method, language,
        )  # fmt: skip
        body, policy = await self._theirs(page), _THEIR_POLICY
        if body is None:
            body = render(page)
            policy = _OUR_POLICY + (_NO_FORM if method == "get" else "")
        return Answer(
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
            body = await self._ports.ask(self._handler, page)
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
    title, text = escape(page.title), escape(page.text)
    return (
        f'<!doctype html><html lang="{page.language}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{title}</h1><p>{text}</p>{action}</main></body></html>"
    ).encode()
