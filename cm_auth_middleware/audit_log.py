"""The audit log: who logged in and out, from where, and who was refused.

It is the logger `cm_auth_middleware.audit`. As it names users, its records go to its own handlers
and not to those of other loggers; without a handler nothing is written. Each event is one
`logging.LogRecord` of level INFO: a message such as
`login user_id=10003 address=203.0.113.7 session=1f0c93ab` for people, and for machines the
attribute `event`, its name, with an attribute for each of its fields. `user_id` is CameraManager's
`userId`, or Eagle Eye's `id`. `address` is the IP address of the request or, where no request
caused the event, of the login; it is empty if the server gives none. `session` is the reference
that other log events and `cm-auth sessions list` show.
"""

from __future__ import annotations

import logging

from .display import printable

logger = logging.getLogger(f"{__package__}.audit")
logger.propagate = False
if logger.level == logging.NOTSET:  # a server may have configured it before this module is loaded
    logger.setLevel(logging.INFO)

AUDIT_EVENTS = {
    "login": "a user logged in: `user_id`, `address`, `session`",
    "login_denied": "`allow` refused a user at the login: `user_id`, `address`",
    "logout": "a session was logged out, by its user, by the login of another user in the same "
    "browser, or after `session_denied`: `user_id`, `address`, `session`",
    "logout_everywhere": "`logout_user` ended all sessions of a user: `user_id`, `sessions`, their "
    "number",
    "session_ended": "CameraManager ended a session: `user_id`, `address`, `session`",
    "session_denied": "`allow` no longer admits the user of a session: `user_id`, `address`, "
    "`session`",
    "request_denied": "a request with a session was answered 403: `user_id`, `address`, `session`, "
    "and `reason`, which is `allow`, `cross_site`, or `rule` (`require`, `ForbiddenError`)",
}


def audit(event: str, user_id: str, **fields: object) -> None:
    """Write an event into the audit log.

    Args:
        event: a name in `AUDIT_EVENTS`.
        fields: numbers and words; only those that the event's description names.
    """
    if logger.isEnabledFor(logging.INFO):
        # A user's id comes from CameraManager, an address from the server: see `events.log`.
        plain = {
            name: value if isinstance(value, int) else printable(str(value))
            for name, value in {"user_id": user_id, **fields}.items()
        }
        message = " ".join([event, *(f"{name}={value}" for name, value in plain.items())])
        logger.info("%s", message, extra={"event": event, **plain}, stacklevel=2)
