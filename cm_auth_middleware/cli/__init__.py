"""The ``cm-auth`` command."""

from __future__ import annotations

import secrets
import sys

try:
    import click
except ModuleNotFoundError:  # pragma: no cover - proven by the packaging test, not under coverage
    sys.exit("cm-auth needs its extra: pip install 'cm_auth_middleware[cli]'")

from cm_auth_middleware.cli.check import check
from cm_auth_middleware.cli.demo import demo
from cm_auth_middleware.cli.dev import dev
from cm_auth_middleware.cli.init import init
from cm_auth_middleware.cli.output import SafeGroup, as_json, say, say_json
from cm_auth_middleware.cli.sessions import sessions

__all__ = ["main"]


@click.group(cls=SafeGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cm_auth_middleware")
def main() -> None:
    """Tools for cm_auth_middleware."""


@main.command()
@as_json
def secret(as_json: bool) -> None:
    """Print a good secret_key, of 384 random bits."""
    key = secrets.token_urlsafe(48)
    if as_json:
        say_json({"secret_key": key})
    else:
        say(key)


main.add_command(check)
main.add_command(demo)
main.add_command(dev)
main.add_command(init)
main.add_command(sessions)
