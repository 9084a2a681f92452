"""What the long-lived handlers of both apps share: a record of how each began and ended.

``MATRIX_LOOK_EVERY`` is the seam by which a test makes the looks at open connections' sessions
frequent: seconds between two of them, which are 20 in production.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from cm_auth_middleware.auth import connections
from cm_auth_middleware.sessions import manager

TICK = 0.5  # seconds between two parts
SIZE = 50_000_000  # bytes of the download, at a few each tick

_RECORD = Path(os.environ["MATRIX_RECORD"])
_RELEASE = Path(os.environ["MATRIX_RELEASE"])
connections.LOOK_EVERY = float(os.environ["MATRIX_LOOK_EVERY"])
manager.STALE = 1.5 * connections.LOOK_EVERY  # in proportion, as in production


def is_released() -> bool:
    """True if the test is over, so that handlers that nothing could interrupt let go."""
    return _RELEASE.exists()


def note(user: str, kind: str, event: str) -> None:
    """Write a line to the record; several processes and threads may."""
    with _RECORD.open("a") as file:
        file.write(json.dumps([user, kind, event]) + "\n")


@contextlib.contextmanager
def noted(user: str, kind: str) -> Iterator[None]:
    """Note that a handler began, and what it was told when it ended."""
    note(user, kind, "began")
    try:
        yield
    except BaseException as error:
        note(user, kind, type(error).__name__)
        raise
    note(user, kind, "returned")
