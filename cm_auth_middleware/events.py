"""The events that are logged, with stable names, under the logger `cm_auth_middleware`.

Each event is one `logging.LogRecord`: a message such as `login session=1f0c93ab` for people, and
for machines the attribute `event`, its name, with an attribute for each of its fields. `session` is
a short hash that opens no session. No token, code, cookie, secret or user data is in an event.
Characters that are not printable are written as escapes.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from logging import CRITICAL, ERROR, INFO, WARNING
from typing import NamedTuple

from .display import printable

logger = logging.getLogger(__package__)


class Event(NamedTuple):
    """A kind of event.

    Attributes:
        level: of `logging`.
        description: says when it is logged, and after a colon names its fields; Markdown.
        hint: says what to do, and ends the message; empty if there is nothing to do.
    """

    level: int
    description: str
    hint: str = ""


EVENTS = {
    "login": Event(INFO, "a session began: `session`"),
    "login_cancelled": Event(INFO, "the person did not log in at CameraManager: `error`"),
    "login_denied": Event(INFO, "`allow` refused the user"),
    "login_stale": Event(INFO, "a callback came twice, too late, or from another browser"),
    "login_failed": Event(WARNING, "CameraManager or the store failed during a login: `reason`"),
    "logins_limited": Event(
        WARNING,
        "logins were asked to come again, for too many were under way, or CameraManager wanted a "
        "pause; logged once until none is under way: `under_way`",
        "visitors may send invented callbacks; if real logins are refused, raise exchanges_at_once",
    ),
    "logout": Event(INFO, "a session was logged out: `session`"),
    "session_ended": Event(INFO, "CameraManager ended a session: `session`"),
    "session_denied": Event(
        INFO, "a session ended because `allow` no longer admits its user: `session`"
    ),
    "revalidation_failed": Event(
        INFO, "a user could not be read again; it will be retried: `session`, `reason`"
    ),
    "session_unreadable": Event(
        WARNING, "a record cannot be decrypted, for its key or for damage: `session`"
    ),
    "refreshed": Event(INFO, "CameraManager gave new tokens: `expires_in`, seconds"),
    "refresh_refused": Event(INFO, "CameraManager ended a grant: `error`"),
    "refresh_failed": Event(WARNING, "a refresh failed; it will be retried: `reason`"),
    "api_host_refused": Event(
        WARNING,
        "a refresh named a host of the API that is not one of the provider's domains; the session "
        "goes on with the old one: `host`",
    ),
    "tokens_put_back": Event(
        WARNING,
        "the store had lost new tokens, in a failover for example, and has them again: `count`",
    ),
    "keepers_gone": Event(
        WARNING,
        "processes that may keep tokens which a failover lost do not answer any more: `count`",
    ),
    "failovers_unseen": Event(
        WARNING,
        "the store does not tell when another server takes over, so tokens that a failover loses "
        "are not put back; logged once",
        "a user of Redis needs the right +info for that; some proxies and services cannot tell it",
    ),
    "revoke_failed": Event(WARNING, "tokens may still be valid at CameraManager: `reason`"),
    "touch_failed": Event(
        WARNING, "the store did not save the time of last use: `session`, `reason`"
    ),
    "data_lost": Event(
        WARNING, "the store did not save `session.data` after the response: `session`, `reason`"
    ),
    "watch_failed": Event(ERROR, "the check of open connections' sessions raised an error"),
    "unavailable": Event(INFO, "a request was answered with 503: `reason`"),
    "host_not_allowed": Event(
        WARNING, "a login was asked for under an unknown host: `host`", "add it to allowed_hosts"
    ),
    "cross_site_refused": Event(
        WARNING,
        "a request of another origin than the site's own was refused; logged once for each pair: "
        "`origin`, `own`",
        "if both are this site, let the proxy pass Host on with its port, or set redirect_uri; "
        "if you trust the other site, name it in trusted_origins",
    ),
    "origin_hidden": Event(
        WARNING,
        "a request with `Origin: null` was refused, from a sandboxed frame or from a page with "
        "`Referrer-Policy: no-referrer`; logged once: `own`",
        "if the page is one of this site, let it send Referrer-Policy: same-origin",
    ),
    "scheme_mismatch": Event(
        WARNING,
        "a request has another scheme than `redirect_uri`; logged once: `request`, `redirect_uri`",
        "if redirect_uri is https, let the server trust the proxy's X-Forwarded-Proto, and the "
        "proxy send it; cookies follow redirect_uri. If it is http, write https there, or each "
        "login ends by http, and https has no session",
    ),
    "cookie_prefix_on_http": Event(
        WARNING,
        "browsers refuse the cookies; logged once: `cookie_name`",
        "a name that begins with __Host- or __Secure- needs https; on https a plain name gets "
        "__Host- by itself",
    ),
    "two_middlewares": Event(
        WARNING,
        "a request that one middleware of this package let pass was refused by another one inside "
        "of it; logged once",
        "add it once, or give both the same engine; users are sent to a second login",
    ),
    "callback_not_routed": Event(
        ERROR,
        "the callback did not reach the middleware: `path`",
        "check prefix, and where the app is mounted",
    ),
    "api_key_refused": Event(
        ERROR, "CameraManager refuses the API key: `error`", "check client_id and client_secret"
    ),
    "hook_failed": Event(ERROR, "a hook of the application raised an error: `hook`"),
    "allow_failed": Event(
        ERROR, "the application's `allow` raised an error", "no new user gets in while it fails"
    ),
    "error_handler_failed": Event(
        ERROR, "`error_handler` raised an error, or returned no page: `kind`"
    ),
    "memory_store_multiprocess": Event(
        WARNING,
        "several workers have a memory store each: `workers`",
        "each worker has sessions of its own, so users are logged out at random; set store to "
        "sqlite:///path or redis://host, or run one worker",
    ),
    "store_permissions": Event(
        WARNING, "a group may write the store's file or folder: `path`, `reason`"
    ),
    "store_file_system": Event(
        WARNING,
        "the store's file is on a file system where SQLite may not work (NFS, SMB, 9p, FUSE): "
        "`reason`",
        "put the file on a local disk, or use redis:// or postgresql://",
    ),
    "store_slow": Event(
        WARNING,
        "requests to exempt paths go on without their session, for which they wait 0.25 s; logged "
        "once",
    ),
    "unhealthy": Event(
        WARNING, "the route `health` says that the store cannot be used; logged once: `reason`"
    ),
    "store_unusable": Event(
        WARNING,
        "at the start the store cannot be used: `reason`",
        "until it can be, requests that need a session are answered 503",
    ),
    "variable_unknown": Event(
        WARNING,
        "at the start there is a variable that no option has, and one is alike: `variable`, "
        "`option`",
        "correct its name; it has no effect",
    ),
    "variable_for_code": Event(
        WARNING,
        "at the start there is a variable for an option that only code can give: `variable`, "
        "`advice`",
        "it has no effect",
    ),
    "replicas_behind": Event(
        WARNING,
        "a write reached fewer replicas in time than the store's URL asks for; logged once a "
        "minute: `replicas`, `wait_replicas`",
        "a failover may lose it; look at the replicas, or raise wait_timeout",
    ),
    "config_error": Event(CRITICAL, "an option is missing or wrong: `reason`"),
}

observers: list[Callable[[str], None]] = []
"""Functions that are called with the name of each event."""


def log(event: str, *, exc_info: bool = False, **fields: object) -> None:
    """Log an event.

    Args:
        event: a name in `EVENTS`.
        exc_info: True to log the exception being handled. Never for this package's own errors:
            they may be chained to one that quotes a server.
        fields: numbers and words; only those that the event's description names.
    """
    for observer in observers:
        observer(event)
    level, _, hint = EVENTS[event]
    if logger.isEnabledFor(level):
        # A line end in a host or a path would forge a line of the log, and an escape code would
        # reach the reader's terminal (CWE-117, CWE-150).
        plain = {k: v if isinstance(v, int) else printable(str(v)) for k, v in fields.items()}
        words = [event, *(f"{name}={value}" for name, value in plain.items())]
        message = " ".join(words) + (f": {hint}" if hint else "")
        extra = {"event": event, **plain}
        logger.log(level, "%s", message, exc_info=exc_info, extra=extra, stacklevel=2)


_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JSONFormatter(logging.Formatter):
    """Formats any log record as one line of JSON.

    It has ``time`` (UTC), ``level``, ``logger``, ``message``, ``exception`` if there is one, and
    each attribute that was given with the record, such as ``event`` and its fields.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": time,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _PLAIN}
        if record.exc_info:
            line["exception"] = record.exc_text or self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _escape_traceback(record: logging.LogRecord) -> bool:
    """Escape what a hook's error quotes, an e-mail address for example; keep every record."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        parts = traceback.format_exception(error)
        escaped = [_escaped(part) for part in parts]
        if escaped != parts:
            record.exc_text = "".join(escaped).removesuffix("\n")  # formatters prefer it
    return True


def _escaped(part: str) -> str:
    """Escape a part of a traceback; keep the line ends of frames, which hold no message."""
    text = part.removesuffix("\n")
    lines = text.split("\n") if text.startswith((" ", "\n")) else [text]
    return "\n".join(map(printable, lines)) + "\n"


logger.addFilter(_escape_traceback)
