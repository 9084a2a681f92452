"""Print without control characters, without the environment's secrets, without arguments."""

from __future__ import annotations

import json
import re
from typing import Any

import click

from cm_auth_middleware import environment
from cm_auth_middleware.display import HIDDEN, printable

_SECRETS = ("client_secret", "secret_key")
_LEAST = 4  # characters; shorter secrets would also match inside words
_QUOTED = re.compile(r"'.*'|\".*\"|\(.*\)", re.DOTALL)


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def say(text: object = "") -> None:
    """Print a line."""
    click.echo(safe(str(text)))


def say_json(value: object) -> None:
    """Print a value as JSON on one line, without the environment's secrets."""
    click.echo(json.dumps(_without_secrets(value)))  # in ASCII: no control characters


def safe(text: str) -> str:
    """Return a text that is safe to print.

    The values of the secret options are hidden everywhere: an operator may have put them into
    another option too, and a server may repeat them.
    """
    return printable(_hide(text))


def _hide(text: str) -> str:
    for secret in secrets():
        text = text.replace(secret, HIDDEN)
    return text


def _without_secrets(value: object) -> object:
    if isinstance(value, str):
        return _hide(value)
    if isinstance(value, dict):
        return {key: _without_secrets(item) for key, item in value.items()}
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value


def secrets() -> list[str]:
    """Return the values of the secret options, the longest first."""
    values = {text for name in _SECRETS for text in environment.texts(name)}
    values |= {part.strip() for value in values for part in re.split(r"[,\n]", value)}
    return sorted((value for value in values if len(value) >= _LEAST), key=len, reverse=True)


class Refusal(click.UsageError):
    """The command was called wrongly. The message is this package's and repeats no argument."""


class SafeGroup(click.Group):
    """A group of commands whose errors repeat no argument: one may be a URL with a password."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the arguments."""
        try:
            return super().make_context(*args, **kwargs)
        except click.ClickException as error:
            raise _without_arguments(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            raise _without_arguments(error) from None


def _without_arguments(error: click.ClickException) -> click.ClickException:
    """Return an error whose message does not quote the arguments, as click's does."""
    if isinstance(error, click.NoSuchOption):
        near = error.possibilities
        return click.NoSuchOption(error.option_name, "No such option.", near, error.ctx)
    message = _QUOTED.sub(HIDDEN, error.message)
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter):
        if error.param is not None and isinstance(error.param.type, click.Choice):
            message = f"give {' or '.join(error.param.type.choices)}."
        return click.BadParameter(message, error.ctx, error.param, error.param_hint)
    is_plain = type(error) is click.UsageError or type(error).__name__ == "NoSuchCommand"
    if isinstance(error, click.UsageError) and is_plain:
        return Refusal(message, error.ctx)
    if type(error) is click.ClickException:
        return click.ClickException(safe(error.message))
    return error  # the message is this package's, or names only what the command has
