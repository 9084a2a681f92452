"""Serve an ASGI application on a real socket, from a thread of the running program."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from types import TracebackType
from typing import Any, Literal, Self

import uvicorn

from cm_auth_middleware.testing.simulator import Simulator

_START_TIMEOUT = 10.0
_STOP_TIMEOUT = 5.0


class AppServer:
    """Serves an ASGI application with uvicorn at `http://<host>:<port>` during a `with` block.

    The constructor binds the socket. So `url` is known before the server starts, and can be
    written into a configuration. uvicorn installs no signal handlers outside the main thread.

    Args:
        app: any ASGI application.
        port: the port; 0 chooses a free one.
        host: the address; the default is reachable from this machine only.
        lifespan: uvicorn's option; `"auto"` runs the lifespan of an application that has one.
        log_level: uvicorn's option.

    Raises:
        RuntimeError: the port is in use, or this machine has no such port or address.
    """

    def __init__(
        self,
        app: Any,
        port: int = 0,
        host: str = "127.0.0.1",
        *,
        lifespan: Literal["auto", "on", "off"] = "auto",
        log_level: str = "warning",
    ) -> None:
        self.app = app
        self._socket = listen(host, port)
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan=lifespan,
                log_level=log_level,
                access_log=False,
                timeout_graceful_shutdown=1,
                # The default of nginx. With uvicorn's 5 s, after which httpx2 drops an idle
                # connection, too, a client may use a connection just as the server closes it.
                timeout_keep_alive=75,
            )
        )
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The address, without a slash at its end, such as `http://127.0.0.1:9400`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def start(self) -> Self:
        """Start the server, and return when it answers requests.

        Raises:
            RuntimeError: the server was started before, or the application failed in its lifespan.
        """
        if self._thread is not None:
            raise RuntimeError("this server was started before; make a new one")
        self._thread = threading.Thread(
            target=self._serve, name=f"server on port {self.port}", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the application did not start at {self.url}; see its log")
            time.sleep(0.005)
        return self

    def stop(self) -> None:
        """Stop the server and close the socket; requests in progress get a second to finish."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT)
            if self._thread.is_alive():
                self._server.force_exit = True
                self._thread.join(_STOP_TIMEOUT)
        self._socket.close()

    def wait(self) -> None:
        """Wait until the server has stopped; Ctrl-C ends the wait by a `KeyboardInterrupt`."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.5)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _serve(self) -> None:
        # uvicorn raises SystemExit when the lifespan fails; start() reports the failure.
        with contextlib.suppress(SystemExit):
            self._server.run(sockets=[self._socket])


class SimulatorServer(AppServer):
    """Serves a CameraManager simulator on a real socket.

        with SimulatorServer() as server:
            app.add_middleware(CMAuthMiddleware, base_url=server.url, client_id=server.client_id,
                               client_secret=server.client_secret, secret_key=…)

    Args:
        sim: the simulator to serve; a new one by default.
        port: the port; 0 chooses a free one.
        host: the address; the default is reachable from this machine only.
        log_level: uvicorn's option.
    """

    def __init__(
        self,
        sim: Simulator | None = None,
        port: int = 0,
        host: str = "127.0.0.1",
        *,
        log_level: str = "warning",
    ) -> None:
        self.simulator = sim if sim is not None else Simulator()
        super().__init__(self.simulator, port, host, log_level=log_level)

    @property
    def client_id(self) -> str:
        """The ID of the API key that the simulator accepts."""
        return self.simulator.client_id

    @property
    def client_secret(self) -> str:
        """The SECRET of the API key that the simulator accepts."""
        return self.simulator.client_secret


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a port; 0 chooses a free one.

    Raises:
        RuntimeError: the port cannot be listened on; the message says why.
    """
    if not 0 <= port <= 65_535:
        raise RuntimeError(f"port {port} is not between 1 and 65535; 0 chooses a free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            reason = "is in use; choose another one, or 0 for a free one"
        else:
            reason = f"cannot be listened on: {error.strerror}"
        raise RuntimeError(f"port {port} on {host} {reason}") from error
    return listener
