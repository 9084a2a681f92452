"""Finding the event loop that runs in this thread, asyncio's or trio's.

It is apart from `run_sync` because it loads asyncio, which a process with threads alone does not
need.
"""

from __future__ import annotations

import asyncio
from typing import Any

from anyio.lowlevel import current_token


def running_loop() -> Any:
    """Return the event loop of this thread, asyncio's or trio's.

    Raises:
        RuntimeError: there is none.
    """
    try:
        return asyncio.get_running_loop()  # anyio only finds it inside a task, not in a callback
    except RuntimeError:
        pass
    try:
        return current_token().native_token  # of trio
    except RuntimeError:
        raise RuntimeError("the ASGI side needs a running event loop") from None
