"""What is logged: events with stable names, under the logger `cm_auth_middleware`.

Each is one `logging.LogRecord`: a message such as `login session=1f0c93ab` for people, and the
same as attributes for machines: `event`, the name, and the fields named here. `session` is a
short hash that opens nothing. No token, code, cookie, secret or user data is ever in an event.
Characters that are not printable are written as escapes.

| event | level | when, and its fields |
| --- | --- | --- |
| `login` | INFO | a session began: `session` |
| `login_cancelled` | INFO | the person refused at CameraManager: `error` |
| `login_denied` | INFO | `allow` said no |
| `login_stale` | INFO | a callback used twice, too late, or in another browser |
| `login_failed` | WARNING | CameraManager or the store failed in a login: `reason` |
| `logout` | INFO | a session was logged out: `session` |
| `session_ended` | INFO | CameraManager ended a session: `session` |
| `session_denied` | INFO | `allow` no longer admits a session's user, and it ended: `session` |
| `revalidation_failed` | INFO | a user could not be read anew; tried again: `session`, `reason` |
| `session_unreadable` | WARNING | a record does not open, by a key or by damage: `session` |
| `refreshed` | INFO | new tokens for a grant: `expires_in`, seconds |
| `refresh_refused` | INFO | CameraManager ended a grant: `error` |
| `refresh_failed` | WARNING | a refresh did not work; it is tried again: `reason` |
| `revoke_failed` | WARNING | tokens may live on at CameraManager: `reason` |
| `touch_failed` | WARNING | the store took no time of last use: `session`, `reason` |
| `data_lost` | WARNING | the store took no `session.data` after the response: `session`, `reason` |
| `watch_failed` | ERROR | looking at the sessions of open connections raised |
| `unavailable` | INFO | a request was answered with 503: `reason` |
| `host_not_allowed` | WARNING | a login under a host that is not ours: `host` |
| `scheme_mismatch` | WARNING | not the scheme of `redirect_uri`; once: `request`, `redirect_uri` |
| `cookie_prefix_on_http` | WARNING | browsers refuse our cookies; once: `cookie_name` |
| `callback_not_routed` | ERROR | the callback did not reach the middleware: `path` |
| `api_key_refused` | ERROR | CameraManager refuses the API key: `error` |
| `hook_failed` | ERROR | a hook of the application raised: `hook` |
| `allow_failed` | ERROR | the application's `allow` raised; nobody gets in |
| `error_handler_failed` | ERROR | `error_handler` raised, or gave no page: `kind` |
| `memory_store_multiprocess` | WARNING | `workers` with a memory store each |
| `store_permissions` | WARNING | a group may write the store's file or folder: `path`, `reason` |
| `store_unusable` | WARNING | at the start the store cannot be used: `reason` |
| `config_error` | CRITICAL | an option is missing or wrong: `reason` |
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

from .display import printable

logger = logging.getLogger(__package__)

LEVELS = {
    "login": logging.INFO,
    "login_cancelled": logging.INFO,
    "login_denied": logging.INFO,
    "login_stale": logging.INFO,
    "login_failed": logging.WARNING,
    "logout": logging.INFO,
    "session_ended": logging.INFO,
    "session_denied": logging.INFO,
    "revalidation_failed": logging.INFO,
    "session_unreadable": logging.WARNING,
    "refreshed": logging.INFO,
    "refresh_refused": logging.INFO,
    "refresh_failed": logging.WARNING,
    "revoke_failed": logging.WARNING,
    "touch_failed": logging.WARNING,
    "data_lost": logging.WARNING,
    "watch_failed": logging.ERROR,
    "unavailable": logging.INFO,
    "host_not_allowed": logging.WARNING,
    "scheme_mismatch": logging.WARNING,
    "cookie_prefix_on_http": logging.WARNING,
    "callback_not_routed": logging.ERROR,
    "api_key_refused": logging.ERROR,
    "hook_failed": logging.ERROR,
    "allow_failed": logging.ERROR,
    "error_handler_failed": logging.ERROR,
    "memory_store_multiprocess": logging.WARNING,
    "store_permissions": logging.WARNING,
    "store_unusable": logging.WARNING,
    "config_error": logging.CRITICAL,
}
_HINTS = {
    "host_not_allowed": "add it to allowed_hosts",
    "scheme_mismatch": (
        "let the server trust the proxy's X-Forwarded-Proto, and the proxy send it; cookies follow "
        "redirect_uri where it is https"
    ),
    "cookie_prefix_on_http": (
        "a name that begins with __Host- or __Secure- needs https; on https a plain name gets "
        "__Host- by itself"
    ),
    "callback_not_routed": "check prefix, and where the app is mounted",
    "api_key_refused": "check client_id and client_secret",
    "allow_failed": "nobody gets in while it fails",
    "memory_store_multiprocess": (
        "each worker has sessions of its own, so users are logged out at random; set store to "
        "sqlite:///path or redis://host, or run one worker"
    ),
}

observers: list[Callable[[str], None]] = []
"""Who else is told the name of each event: telemetry."""


def log(event: str, *, exc_info: bool = False, **fields: object) -> None:
    """Log an event.

    Args:
        event: a name in `LEVELS`.
        exc_info: whether the exception at hand goes along; ours never do, they may be chained to
            what a server said.
        fields: numbers and words; nothing that is not in the table above.
    """
    for observer in observers:
        observer(event)
    level = LEVELS[event]
    if logger.isEnabledFor(level):
        # A line end in a host or a path would forge a line of the log, an escape code would reach
        # the terminal of who reads it (CWE-117, CWE-150).
        plain = {k: v if isinstance(v, int) else printable(str(v)) for k, v in fields.items()}
        words = [event, *(f"{name}={value}" for name, value in plain.items())]
        message = ": ".join([" ".join(words), *([_HINTS[event]] if event in _HINTS else [])])
        extra = {"event": event, **plain}
        logger.log(level, "%s", message, exc_info=exc_info, extra=extra, stacklevel=2)


def _escape_traceback(record: logging.LogRecord) -> bool:
    """Escape what a hook's error quotes, an e-mail address for example; lets every record pass."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        parts = traceback.format_exception(error)
        escaped = [_escaped(part) for part in parts]
        if escaped != parts:
            record.exc_text = "".join(escaped).removesuffix("\n")  # formatters prefer it
    return True


def _escaped(part: str) -> str:
    """Escape a part of a traceback; line ends stay in frames, where no message is."""
    text = part.removesuffix("\n")
    lines = text.split("\n") if text.startswith((" ", "\n")) else [text]
    return "\n".join(map(printable, lines)) + "\n"


logger.addFilter(_escape_traceback)
