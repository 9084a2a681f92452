"""``cm-auth sessions``: count, list and end the sessions of a store outside the process."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from cm_auth_middleware.cli.output import Refusal, say

if TYPE_CHECKING:
    from cm_auth_middleware import AuthEngine
    from cm_auth_middleware.stores import SessionStore

_store = click.option(
    "--store",
    envvar="CM_AUTH_STORE",
    metavar="URL",
    required=True,
    help="sqlite:///path, redis://… or postgresql://…; CM_AUTH_STORE if not given.",
)
_user = click.option("--user", required=True, metavar="ID", help="CameraManager's userId.")


def _report_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the errors of this package into one sentence and exit status 1."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        from cm_auth_middleware.errors import CMAuthError

        try:
            command(*args, **options)
        except CMAuthError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:  # its own text may quote a path
            raise click.ClickException(f"the store cannot be used: {error.strerror}") from None

    return run


@click.group()
def sessions() -> None:
    """Count, list and end sessions in SQLite, Redis or PostgreSQL."""


@sessions.command()
@_store
@_report_errors
def count(store: str) -> None:
    """Count the live sessions."""
    from cm_auth_middleware.runtime.run_sync import run_sync
    from cm_auth_middleware.sessions.encryption import count_sessions

    opened = _open(store)
    say(run_sync(count_sessions(opened)))  # type: ignore[arg-type]  # both stores count
    run_sync(opened.close())


@sessions.command()
@_store
@_report_errors
def purge(store: str) -> None:
    """Delete expired records and print how many. Redis does it by itself."""
    from cm_auth_middleware.runtime.run_sync import run_sync

    opened = _open(store)
    run_sync(opened.ping())  # RedisStore.purge() does not connect
    say(run_sync(opened.purge()))
    run_sync(opened.close())


@sessions.command("list")
@_store
@_user
@_report_errors
def list_sessions(store: str, user: str) -> None:
    """List a user's sessions, the one used last first. Needs CM_AUTH_SECRET_KEY."""
    engine = _engine(store)
    for info in engine.sessions(user):
        say(
            f"{info.reference}  logged in {_when(info.logged_in_at)}  "
            f"last seen {_when(info.last_seen_at)}  from {info.address or 'unknown'}"
        )
    engine.close()


@sessions.command()
@_store
@_user
@_report_errors
def revoke(store: str, user: str) -> None:
    """End all sessions of a user; print how many. Needs CM_AUTH_SECRET_KEY.

    The user's tokens stay valid at CameraManager until they expire: they are encrypted, and only
    the user's cookies could open them. Disable the account there too if it must not be used.
    """
    engine = _engine(store)
    say(engine.logout_user(user))
    engine.close()


def _open(url: str) -> SessionStore:
    from cm_auth_middleware.cli.store import open_blocking
    from cm_auth_middleware.display import shown_file
    from cm_auth_middleware.stores import parse

    kind, path = parse(url)
    if kind == "memory":
        raise Refusal(
            "the memory store is inside your application's process, and no other can read it"
        )
    store = open_blocking(url)
    if path is not None and not path.exists():
        raise click.ClickException(f"there is no file {shown_file(str(path))}")
    return store


def _engine(url: str) -> AuthEngine:
    from cm_auth_middleware import AuthEngine

    # Sessions are found with the secret key alone; the API key is for the application.
    engine = AuthEngine(
        store=url,
        client_id=os.environ.get("CM_AUTH_CLIENT_ID") or "unused",
        client_secret=os.environ.get("CM_AUTH_CLIENT_SECRET") or secrets.token_hex(),
    )
    _open(url)
    return engine


def _when(epoch: float) -> str:
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M UTC")
