"""Serve a WSGI application while it is developed, each request in a thread; for ``cm-auth dev``."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import signal
import socket
import sys
from functools import reduce
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _IPv6Server(_Server):
    address_family = socket.AF_INET6


def load(target: str) -> Any:
    """Return the application that ``module:name`` or ``module:factory()`` names."""
    module, _, name = target.removesuffix("()").partition(":")
    found: Any = importlib.import_module(module)
    found = reduce(getattr, name.split("."), found)
    return found() if target.endswith("()") else found


def main(target: str, host: str, port: str) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    kind = _IPv6Server if ":" in host else _Server
    with contextlib.suppress(KeyboardInterrupt):
        app = load(target)
        if any(map(inspect.iscoroutinefunction, (app, type(app).__call__))):
            raise SystemExit("This is an ASGI application: leave out --wsgi.")
        with make_server(host, int(port), app, server_class=kind) as server:
            server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
