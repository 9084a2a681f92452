"""The small pages that a person may see: one layout, no script, no external resource."""

from __future__ import annotations

import base64
import hashlib
from html import escape

_STYLE = """
:root{color-scheme:light dark;--bg:#f4f6f8;--card:#fff;--ink:#14202b;--soft:#51606e;--line:#dbe2e8;
--go:#0b5fa5;--go-ink:#fff}
@media (prefers-color-scheme:dark){:root{--bg:#0f151b;--card:#18212a;--ink:#eef3f7;--soft:#a9b7c4;
--line:#2b3844;--go:#6bb6f5;--go-ink:#08131d}}
*{box-sizing:border-box}body{margin:0;min-height:100vh;display:grid;place-items:center;padding:1.5rem;
background:var(--bg);color:var(--ink);font:1rem/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{width:100%;max-width:27rem;padding:2.25rem;background:var(--card);border:1px solid var(--line);
border-radius:14px}
h1{margin:0 0 .6rem;font-size:1.4rem;line-height:1.25;letter-spacing:-.01em}
p{margin:0 0 1.5rem;color:var(--soft)}form{margin:0}
.go{display:inline-block;border:0;border-radius:8px;padding:.7rem 1.2rem;background:var(--go);
color:var(--go-ink);font:inherit;font-weight:600;text-decoration:none;cursor:pointer}
.go:focus-visible{outline:3px solid var(--go);outline-offset:3px}
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS = [
    ("Content-Type", "text/html; charset=utf-8"),
    (
        "Content-Security-Policy",
        f"default-src 'none'; style-src 'sha256-{_HASH}'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
]


def page(title: str, text: str, *, link: tuple[str, str] | None = None, form: str = "") -> bytes:
    """Render a page: a title, a sentence, and one thing to do next.

    Args:
        title: what happened.
        text: what it means.
        link: where to go next and what to call it.
        form: where to post to instead, under the label "Log out".
    """
    action = ""
    if form:
        action = (
            f'<form method="post" action="{escape(form)}">'
            '<button class="go" type="submit">Log out</button></form>'
        )
    elif link:
        action = f'<a class="go" href="{escape(link[0])}">{escape(link[1])}</a>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1><p>{escape(text)}</p>{action}</main></body></html>"
    ).encode()
