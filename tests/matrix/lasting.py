"""Clients of long-lived connections: they read, and tell how it ended."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from typing import Any

from .server_processes import Site

with contextlib.suppress(ModuleNotFoundError):  # the quick run collects this without its extra
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import ClientConnection, connect


class Lasting:
    """One open connection, read by a thread of its own.

    Args:
        site: where.
        kind: the handler; those of WebSockets begin with ``ws-``.
        cookie: the Cookie header of its user.

    Attributes:
        parts: how many parts arrived so far.
        over: set when the connection has ended, whoever ended it.
        how: "whole", or "cut" for a response that broke off; a WebSocket's close code; else
            the status of a response that is none, or the error.
    """

    def __init__(self, site: Site, kind: str, cookie: str) -> None:
        self.kind = kind
        self.parts = 0
        self.over = threading.Event()
        self.how: Any = None
        self._is_left = threading.Event()
        self._socket: ClientConnection | None = None
        self._plain = socket.create_connection(("127.0.0.1", site.port), 30)
        run = self._talk if kind.startswith("ws-") else self._read
        self._thread = threading.Thread(target=self._run, args=(run, site, cookie), daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Hang up without a word, as a closed laptop does."""
        self._is_left.set()
        with contextlib.suppress(OSError):
            self._plain.shutdown(socket.SHUT_RDWR)

    def _run(self, run: Any, site: Site, cookie: str) -> None:
        try:
            self.how = run(site, cookie)
        except Exception as error:
            self.how = repr(error)
        finally:
            self._plain.close()
            self.over.set()

    def _read(self, site: Site, cookie: str) -> Any:
        path = "/relay/rest/v2.4/live" if self.kind == "relay" else f"/{self.kind}"
        lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{site.port}", f"Cookie: {cookie}"]
        self._plain.sendall("\r\n".join([*lines, "Accept: */*", "", ""]).encode())
        self._plain.settimeout(None)
        response = http.client.HTTPResponse(self._plain)
        try:
            response.begin()
            while response.read1(65536):
                self.parts += 1
        except (http.client.HTTPException, OSError):
            return "cut"
        if response.status != 200:
            return response.status
        return "cut" if response.length else "whole"

    def _talk(self, site: Site, cookie: str) -> Any:
        headers = {"Cookie": cookie}
        url = f"ws{site.origin[4:]}/{self.kind}"
        with connect(url, sock=self._plain, additional_headers=headers, origin=site.origin,
                     ping_interval=None, proxy=None) as self._socket:  # fmt: skip
            while True:
                try:
                    self._socket.recv(0.5)
                    self.parts += 1
                except TimeoutError:
                    pass
                except ConnectionClosed as closed:
                    return closed.rcvd.code if closed.rcvd else "cut"
                if self.kind == "ws-receive" and not self._is_left.is_set():
                    with contextlib.suppress(ConnectionClosed):
                        self._socket.send("tick")
