"""``cm-auth init``: write a file with all options, each explained, and a new secret key."""

from __future__ import annotations

import os
import secrets
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from cm_auth_middleware import environment
from cm_auth_middleware.cli.options import meanings
from cm_auth_middleware.cli.output import as_json, say, say_json
from cm_auth_middleware.config import REQUIRED, CMAuthConfig, environment_options
from cm_auth_middleware.tokens.provider import CAMERAMANAGER

_HEAD = """\
# The options of cm_auth_middleware. This file has secrets: keep it out of version control.
#
#     set -a; . ./.env; set +a          a shell; then start your application
#     EnvironmentFile=/etc/cams.env     systemd
#     env_file: .env                    docker compose
#
# cm-auth check finds what is missing or wrong.
"""
_REST = """\
# The rest may stay as it is: each line shows its default, or an example where there is none. Remove
# the # before a line to set it. Times are in seconds; several values are separated by commas.
"""
_EXAMPLES = {
    "redirect_uri": "https://cams.example.com/auth/callback",
    "exempt": "/health,/static/*",
    "store": "sqlite:///sessions.db",
    "exchanges_at_once": "2",
    "background": "true",
    "cookie_name": "cm_auth",
    "cookie_secure": "true",
    "trusted_origins": "https://app.example.com",
    "app_name": "Cameras",
    "app_logo": "/static/logo.svg",
    "allow_emails": "*@example.com",
    "allow_accounts": "501",
}


@click.command()
@click.option(
    "--file",
    "path",
    default=".env",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The file to write.",
)
@as_json
def init(path: Path, as_json: bool) -> None:
    """Write a .env file that explains all options, with a new secret_key.

    Only its owner can read it. A file that exists is left alone; the exit status is 1 then.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content())
    except FileExistsError:
        raise click.ClickException("the file exists already: it was left alone") from None
    except OSError as error:
        raise click.ClickException(f"the file cannot be written: {error.strerror}") from None
    if as_json:
        say_json({"file": str(path)})
        return
    say(f"Wrote {path} with a new secret_key. Keep it out of version control.")
    say("1. Put the ID and the SECRET of your API key into it.")
    say(f"2. Read it into the shell: set -a; . {_for_shell(path)}; set +a")
    say("3. cm-auth check finds what is missing or wrong.")
    say("Without an API key: cm-auth dev main:app")


def content() -> str:
    """Return the text of the file."""
    values = {"client_id": "", "client_secret": "", "secret_key": secrets.token_urlsafe(48)}
    lines = [_HEAD]
    for name in REQUIRED:
        lines += [*_comment(name), f"{environment.variable(name)}={values[name]}", ""]
    lines.append(_REST)
    for name in environment_options():
        if name not in REQUIRED:
            lines += [*_comment(name), f"# {environment.variable(name)}={_value(name)}", ""]
    return "\n".join(lines)


def _comment(name: str) -> Iterator[str]:
    text = meanings().get(name, "").replace("`", "")
    for line in textwrap.wrap(text, 96, break_on_hyphens=False):
        yield f"# {line}"


def _value(name: str) -> str:
    """Return the default of an option, or an example, as a variable has it."""
    if name in _EXAMPLES:
        return _EXAMPLES[name]
    default = CMAuthConfig.__dataclass_fields__[name].default
    value = CAMERAMANAGER.defaults.get(name, default)
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _for_shell(path: Path) -> str:
    """Return the path with a slash, without which the shell would look for it in its PATH."""
    return str(path) if "/" in str(path) else f"./{path}"
