"""``cm-auth sessions``: count, list and end the sessions of a store outside the process."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from cm_auth_middleware import environment
from cm_auth_middleware.cli.output import Refusal, as_json, say, say_json

if TYPE_CHECKING:
    from cm_auth_middleware import AuthEngine, SessionInfo
    from cm_auth_middleware.stores import SessionStore

_OTHERS = "opened by a release before 0.2 and not used since, or with another secret key"
_NO_SESSION = (
    "no session of this user; --user takes the id that the server gives users, --email an address. "
    f"Not found are sessions {_OTHERS}"
)


def _store_url(ctx: click.Context, parameter: click.Parameter, given: str | None) -> str:
    """Return the URL that was given, or that of the environment."""
    from cm_auth_middleware.errors import ConfigError

    try:
        found = None if given else environment.read("store")
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    url = given or (found[0] if found else "")
    if not url:
        raise click.MissingParameter(ctx=ctx, param=parameter)
    return url


_store = click.option(
    "--store",
    metavar="URL",
    callback=_store_url,
    help="sqlite:///path, redis://… or postgresql://…; CM_AUTH_STORE if not given.",
)
_user = click.option(
    "--user", metavar="ID", help="Of one user, by CameraManager's userId or Eagle Eye's id."
)
_email = click.option("--email", metavar="ADDRESS", help="Of one user, by e-mail address.")


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
@as_json
@_report_errors
def count(store: str, as_json: bool) -> None:
    """Count the live sessions."""
    counted = _count(store)
    if as_json:
        say_json({"sessions": counted})
    else:
        say(counted)


@sessions.command()
@_store
@as_json
@_report_errors
def purge(store: str, as_json: bool) -> None:
    """Delete expired records and print how many. Redis does it by itself."""
    from cm_auth_middleware.runtime.run_sync import run_sync

    opened = _open(store)
    run_sync(opened.ping())  # RedisStore.purge() does not connect
    purged = run_sync(opened.purge())
    run_sync(opened.close())
    if as_json:
        say_json({"purged": purged})
    else:
        say(purged)


@sessions.command("list")
@_store
@_user
@_email
@click.option(
    "--limit",
    default=100,
    show_default=True,
    type=click.IntRange(1),
    help="End the page with the user who fills it.",
)
@click.option("--after", metavar="ID", help="Show the page that begins after this userId.")
@as_json
@_report_errors
def list_sessions(
    store: str, user: str | None, email: str | None, limit: int, after: str | None, as_json: bool
) -> None:
    """List the sessions of all users, or of one. Needs CM_AUTH_SECRET_KEY.

    Users are sorted by userId, and each user's sessions by their last use. The exit status is 1 if
    --user or --email is given and that user has no session.
    """
    engine = _engine(store)
    listed, following = _page(engine, _users(engine, user, email), limit, after)
    engine.close()
    if not listed and (user or email):
        raise click.ClickException(_NO_SESSION)
    others = None  # not known: the list is a part
    if following is None and not (user or email or after):
        others = max(0, _count(store) - len(listed))
    if as_json:
        told = [_as_dict(info) for info in listed]
        say_json({"sessions": told, "next": following, "others": others})
        return
    for info in listed:
        say(
            f"{info.reference}  user {info.user_id}  logged in {_when(info.logged_in_at)}  "
            f"last seen {_when(info.last_seen_at)}  from {info.address or 'unknown'}"
        )
    if following is not None:
        say(f"The next page: --after {following}")
    elif others:
        say(f"{others} more: {_OTHERS}")


@sessions.command()
@_store
@_user
@_email
@as_json
@_report_errors
def revoke(store: str, user: str | None, email: str | None, as_json: bool) -> None:
    """End all sessions of a user; print how many. Needs CM_AUTH_SECRET_KEY.

    The exit status is 1 if the user has no session.

    The user's tokens stay valid at the server until they expire: they are encrypted, and only
    the user's cookies could open them. Disable the account there too if it must not be used.
    """
    if not (user or email):
        raise Refusal("give --user or --email: which user's sessions are to end?")
    engine = _engine(store)
    revoked = sum(engine.logout_user(user_id) for user_id in _users(engine, user, email))
    engine.close()
    if not revoked:
        raise click.ClickException(_NO_SESSION)
    if as_json:
        say_json({"revoked": revoked})
    else:
        say(revoked)


def _users(engine: AuthEngine, user: str | None, email: str | None) -> list[str]:
    """Return the ids of the users that are meant; of all if neither is given."""
    if user and email:
        raise Refusal("--user and --email exclude each other")
    users: list[str] = [user] if user else engine.users(email or None)
    return users


def _page(
    engine: AuthEngine, users: list[str], limit: int, after: str | None
) -> tuple[list[SessionInfo], str | None]:
    """Return the sessions of one page, and the user whom the next page follows, if there is one."""
    from cm_auth_middleware.sessions.manager import user_order

    listed: list[SessionInfo] = []
    last = None
    for user_id in users:
        if after is not None and user_order(user_id) <= user_order(after):
            continue
        found = engine.sessions(user_id)
        if found and len(listed) >= limit:
            return listed, last
        if found:
            listed, last = listed + found, user_id
    return listed, None


def _count(url: str) -> int:
    from cm_auth_middleware.runtime.run_sync import run_sync
    from cm_auth_middleware.sessions.encryption import count_sessions

    opened = _open(url)
    counted = run_sync(count_sessions(opened))  # type: ignore[arg-type]  # all of them count
    run_sync(opened.close())
    return counted


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
    engine = AuthEngine(store=url, client_id="unused", client_secret=secrets.token_hex())
    _open(url)
    return engine


def _as_dict(info: SessionInfo) -> dict[str, str]:
    return {
        "reference": info.reference,
        "user_id": info.user_id,
        "logged_in_at": _iso(info.logged_in_at),
        "last_seen_at": _iso(info.last_seen_at),
        "address": info.address,
    }


def _iso(epoch: float) -> str:
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="seconds")


def _when(epoch: float) -> str:
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M UTC")
