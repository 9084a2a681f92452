"""What is logged: events with stable names, under the logger `cm_auth_middleware`.

Each is one `logging.LogRecord`: a message such as `login session=1f0c93ab` for people, and the
same as attributes for machines: `event`, the name, and the fields named here. `session` is a
short hash that opens nothing. No token, code, cookie, secret or user data is ever in an event.

| event | level | when, and its fields |
| --- | --- | --- |
| `login` | INFO | a session began: `session` |
| `login_cancelled` | INFO | the person refused at CameraManager: `error` |
| `login_denied` | INFO | `allow` said no |
| `login_stale` | INFO | a callback used twice, too late, or in another browser |
| `login_failed` | WARNING | CameraManager or the store failed in a login: `reason` |
| `logout` | INFO | a session was logged out: `session` |
| `session_ended` | INFO | CameraManager ended a session: `session` |
| `session_unreadable` | WARNING | a record does not open, by a key or by damage: `session` |
| `refreshed` | INFO | new tokens for a grant: `expires_in`, seconds |
| `refresh_refused` | INFO | CameraManager ended a grant: `error` |
| `refresh_failed` | WARNING | a refresh did not work; it is tried again: `reason` |
| `revoke_failed` | WARNING | tokens may live on at CameraManager: `reason` |
| `touch_failed` | WARNING | the store took no time of last use: `session`, `reason` |
| `unavailable` | INFO | a request was answered with 503: `reason` |
| `host_not_allowed` | WARNING | a login under a host that is not ours: `host` |
| `callback_not_routed` | ERROR | the callback did not reach the middleware: `path` |
| `api_key_refused` | ERROR | CameraManager refuses the API key: `error` |
| `hook_failed` | ERROR | a hook of the application raised: `hook` |
| `allow_failed` | ERROR | the application's `allow` raised; nobody gets in |
| `error_handler_failed` | ERROR | `error_handler` raised, or gave no page: `kind` |
| `memory_store_multiprocess` | WARNING | `workers` with a memory store each |
| `store_permissions` | WARNING | a group may write the store's file or folder: `path`, `reason` |
| `config_error` | CRITICAL | an option is missing or wrong: `reason` |
"""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger(__package__)

LEVELS = {
    "login": logging.INFO,
    "login_cancelled": logging.INFO,
    "login_denied": logging.INFO,
    "login_stale": logging.INFO,
    "login_failed": logging.WARNING,
    "logout": logging.INFO,
    "session_ended": logging.INFO,
    "session_unreadable": logging.WARNING,
    "refreshed": logging.INFO,
    "refresh_refused": logging.INFO,
    "refresh_failed": logging.WARNING,
    "revoke_failed": logging.WARNING,
    "touch_failed": logging.WARNING,
    "unavailable": logging.INFO,
    "host_not_allowed": logging.WARNING,
    "callback_not_routed": logging.ERROR,
    "api_key_refused": logging.ERROR,
    "hook_failed": logging.ERROR,
    "allow_failed": logging.ERROR,
    "error_handler_failed": logging.ERROR,
    "memory_store_multiprocess": logging.WARNING,
    "store_permissions": logging.WARNING,
    "config_error": logging.CRITICAL,
}
_HINTS = {
    "host_not_allowed": "add it to allowed_hosts",
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
        plain = {k: v if isinstance(v, int | str) else str(v) for k, v in fields.items()}
        words = [event, *(f"{name}={value}" for name, value in plain.items())]
        message = ": ".join([" ".join(words), *([_HINTS[event]] if event in _HINTS else [])])
        extra = {"event": event, **plain}
        logger.log(level, "%s", message, exc_info=exc_info, extra=extra, stacklevel=2)
