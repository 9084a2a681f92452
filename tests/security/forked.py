"""A program that logs in, forks, and goes on in the parent and in its children; run by a test.

Usage: ``python -m tests.security.forked BASE_URL STORE COOKIE``. It prints the statuses of the
children's and then the parent's requests, as a JSON list.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from cm_auth_middleware import AuthEngine, CMAuthWSGIMiddleware
from tests.helpers.apps import make_wsgi_app
from tests.helpers.world import SECRET_KEY

from .visits import call_wsgi

_CHILDREN, _REQUESTS = 4, 5


def main(base_url: str, store: str, cookie: str) -> None:
    engine = AuthEngine(
        base_url=base_url,
        client_id="demo-key-id",
        client_secret="demo-key-secret",
        secret_key=SECRET_KEY,
        store=store,
    )
    app = CMAuthWSGIMiddleware(make_wsgi_app(), engine=engine)

    def ask() -> int:
        return call_wsgi(app, cookie.encode(), "/cameras")[0]

    assert ask() == 200  # its connection to CameraManager is open from now on
    held = _hold(engine.thread_services.runtime)
    results = []
    for _ in range(_CHILDREN):
        reading, writing = os.pipe()
        if os.fork() == 0:
            statuses = [ask() for _ in range(_REQUESTS)]
            os.write(writing, json.dumps(statuses).encode())
            os._exit(0)
        os.close(writing)
        results.append(reading)
    held.set()
    statuses = [status for reading in results for status in json.loads(os.read(reading, 4096))]
    statuses += [ask() for _ in range(_REQUESTS)]
    print(json.dumps(statuses))


def _hold(runtime: Any) -> threading.Event:
    """Hold the lock that guards the pool, in another thread, as one that is just using it."""
    begun, over = threading.Event(), threading.Event()

    def hold() -> None:
        with runtime._lock:
            begun.set()
            over.wait(60)

    threading.Thread(target=hold, daemon=True).start()
    begun.wait(60)
    return over


if __name__ == "__main__":
    main(*sys.argv[1:])
