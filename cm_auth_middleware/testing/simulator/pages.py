"""Draw the simulator's web pages: login, consent, and errors.

They are plain strings without a template engine, so that the simulator needs only Starlette.
The content security policy leaves out `form-action` on purpose: Chromium also applies it to the
redirect that answers a form, and would block the redirect back to the application.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape

from starlette.responses import HTMLResponse

from cm_auth_middleware.display import printable

_STYLE = """
:root { color-scheme: light dark; --page: #eef2f6; --card: #ffffff; --ink: #16212e;
  --soft: #56667a; --line: #cbd5e0; --brand: #0b5fa5; --on-brand: #ffffff; --bad: #a4161a;
  --bad-page: #fdecec; --hint: #e8f1fa; }
@media (prefers-color-scheme: dark) { :root { --page: #0d141c; --card: #17212c; --ink: #e8eef5;
  --soft: #a3b2c3; --line: #3b4a5b; --brand: #6db6f5; --on-brand: #08131f; --bad: #ffb3b0;
  --bad-page: #3a1a1c; --hint: #1d2d3e; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1.5rem;
  background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
main { width: 100%; max-width: 25rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .9rem; padding: 2rem; box-shadow: 0 1rem 2.5rem rgb(0 0 0 / .12); }
.mark { display: flex; align-items: center; gap: .6rem; margin: 0 0 1.4rem; font-weight: 600;
  color: var(--soft); }
.mark svg { width: 1.9rem; height: 1.9rem; flex: none; color: var(--brand); }
h1 { margin: 0 0 .4rem; font-size: 1.45rem; line-height: 1.25; }
p { margin: 0 0 1rem; overflow-wrap: anywhere; }
label { display: block; margin: 0 0 .3rem; font-weight: 600; }
input { width: 100%; margin: 0 0 1rem; padding: .65rem .75rem; font: inherit; color: inherit;
  background: var(--page); border: 1px solid var(--soft); border-radius: .5rem; }
button { width: 100%; margin: 0 0 .6rem; padding: .7rem; font: inherit; font-weight: 600;
  border: 1px solid var(--brand); border-radius: .5rem; cursor: pointer;
  background: var(--brand); color: var(--on-brand); }
button.second { background: transparent; color: var(--ink); border-color: var(--soft); }
button.link { border: 0; padding: .2rem; background: transparent; color: var(--brand);
  text-decoration: underline; font-weight: 400; }
input:focus-visible, button:focus-visible { outline: 3px solid var(--brand); outline-offset: 2px; }
.error, .hint { padding: .65rem .8rem; border-radius: .5rem; }
.error { background: var(--bad-page); color: var(--bad); }
.hint { background: var(--hint); margin: .6rem 0 0; font-size: .92rem; }
ul { margin: 0 0 1.2rem; padding-left: 1.2rem; }
code { font: .92em ui-monospace, monospace; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_MARK = (
    '<p class="mark"><svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="2" '
    'aria-hidden="true"><rect x="2" y="6" width="14" height="12" rx="2.5"/>'
    '<path d="M16 11l6-4v10l-6-4z" stroke-linejoin="round"/></svg>'
)
_SCOPES = {
    "read": "See your cameras, their pictures and recordings",
    "write": "See and change your cameras, their pictures and recordings",
    "vms.all": "See and change your cameras, their pictures and recordings",
}


def login_page(
    server: str,
    fields: Mapping[str, str],
    *,
    email: str = "",
    error: str | None = None,
    hint: tuple[str, str] | None = None,
) -> HTMLResponse:
    """Draw the login page.

    Args:
        server: its name.
        fields: the parameters of the authorization request, which the form sends again.
        email: the e-mail address to fill in.
        error: the sentence that says why the last attempt failed.
        hint: an e-mail address and a password to show, so that a demo can be used at once.
    """
    alert = f'<p class="error" id="error" role="alert">{_escape(error)}</p>' if error else ""
    described = ' aria-invalid="true" aria-describedby="error"' if error else ""
    note = ""
    if hint:
        note = (
            f'<p class="hint">Try it with <code>{_escape(hint[0])}</code> and the password '
            f"<code>{_escape(hint[1])}</code></p>"
        )
    return _page(
        server,
        "Log in",
        f"""<h1>Log in</h1>
<p>with your {server} account</p>
{alert}
<form method="post" action="authorize">
{_hidden(fields)}
<label for="email">E-mail</label>
<input id="email" name="email" type="email" autocomplete="username" required
 value="{_escape(email)}"{described}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required
{described}>
<button type="submit">Log in</button>
</form>
{note}""",
    )


def consent_page(
    server: str, fields: Mapping[str, str], *, client: str, email: str, scope: str, target: str
) -> HTMLResponse:
    """Draw the page that asks `email` if `client` may act for them with `scope`."""
    items = "".join(f"<li>{_escape(_SCOPES.get(s, s))}</li>" for s in scope.split())
    return _page(
        server,
        "Allow access",
        f"""<h1>Allow access?</h1>
<p>The application <strong>{_escape(client)}</strong> at <code>{_escape(target)}</code>
asks <strong>{_escape(email)}</strong> for permission to:</p>
<ul>{items}</ul>
<form method="post" action="authorize">
{_hidden(fields)}
<button type="submit" name="decision" value="allow">Allow</button>
<button type="submit" name="decision" value="refuse" class="second">Refuse</button>
<button type="submit" name="decision" value="switch" class="link">Use another account</button>
</form>""",
    )


def message_page(server: str, title: str, text: str, status: int = 400) -> HTMLResponse:
    """Draw a page with a message only, such as an error that must not be redirected."""
    role = ' role="alert" class="error"' if status >= 400 else ""
    return _page(server, title, f"<h1>{_escape(title)}</h1>\n<p{role}>{_escape(text)}</p>", status)


def _escape(text: str) -> str:
    """Return a text for HTML; invisible characters are written as Python escapes."""
    return escape(printable(text))


def _hidden(fields: Mapping[str, str]) -> str:
    return "\n".join(
        f'<input type="hidden" name="{_escape(name)}" value="{_escape(value)}">'
        for name, value in fields.items()
    )


def _page(server: str, title: str, body: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escape(title)} | Simulated {server}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<main>
{_MARK}Simulated {server}</p>
{body}
</main>
</body>
</html>
""",
        status_code=status,
        headers=_HEADERS,
    )
