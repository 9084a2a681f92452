"""The audit log, as a handler of it sees the events."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cm_auth_middleware.events import JSONFormatter

Read = Callable[[], list[dict[str, Any]]]


class Lines(logging.Handler):
    """A handler that keeps what its formatter makes."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JSONFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def audited() -> Iterator[Read]:
    """Return the events since the last look: their names and fields."""
    handler, logger = Lines(), logging.getLogger("cm_auth_middleware.audit")
    logger.addHandler(handler)

    def read() -> list[dict[str, Any]]:
        events = [json.loads(line) for line in handler.lines]
        handler.lines.clear()
        about = {"time", "level", "logger", "message"}
        return [{k: v for k, v in event.items() if k not in about} for event in events]

    yield read
    logger.removeHandler(handler)
