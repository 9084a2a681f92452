"""A filter that keeps tokens out of the log of the HTTP client."""

from __future__ import annotations

import logging
import re

_HTTPCORE_LOGGERS = [logging.getLogger(name) for name in ("httpcore2.http11", "httpcore2.http2")]
_SECRET_HEADER = re.compile(
    r"""\(b'(www-authenticate|set-cookie|location)', b('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\)""",
    re.IGNORECASE,
)


class _RedactHeaders(logging.Filter):
    """Redacts the response headers in httpcore2's DEBUG log that may contain a token.

    CameraManager's ``WWW-Authenticate`` may repeat one ("Access token expired: …").
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if "return_value=" in (message := record.getMessage()):
            record.msg, record.args = _SECRET_HEADER.sub(r"(b'\1', b'[secure]')", message), ()
        return True


_REDACT_HEADERS = _RedactHeaders()


def redact_logged_headers() -> None:
    """Keep tokens out of httpcore2's log, also where an application made the connection pool."""
    for logger in _HTTPCORE_LOGGERS:
        logger.addFilter(_REDACT_HEADERS)
