"""A world whose engine talks to CameraManager over real connections, as in production."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMAuthWSGIMiddleware
from cm_auth_middleware.testing import Simulator, settings_for
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.world import APP, SECRET_KEY, Clock, Net, World


class Wired(World):
    """As `World`, but CameraManager is at a URL, and the engine has its own connections there."""

    def __init__(self, side: str, sim: Simulator, base_url: str, **options: Any) -> None:
        self.clock: Any = sim._clock
        self.net = Net()
        self.sim = sim
        self.side = side
        self._know_the_server(base_url)
        options = {
            "client_id": sim.client_id,
            "client_secret": sim.client_secret,
            "secret_key": SECRET_KEY,
            "provider": sim.settings.provider,
            "base_url": base_url,
            **options,
        }
        self.engine = AuthEngine(clock=self.clock, **options)
        if side == "asgi":
            self.app = CMAuthMiddleware(make_app(), engine=self.engine)
        else:
            self.app = CMAuthWSGIMiddleware(make_wsgi_app(), engine=self.engine)
        self.net.add(APP, self.app)


def clocked(provider: str = "cameramanager") -> Simulator:
    """A simulator whose clock a test moves, and with it the world's."""
    return Simulator(settings_for(provider), clock=Clock())


class Dripper:
    """A server that answers every request a byte at a time.

    Attributes:
        url: where it listens.
        finished: how many answers it got to the end of.
        cut: how many ended because whoever asked had left.
    """

    def __init__(self, answer: bytes, head_at_once: int, pause: float) -> None:
        self._answer, self._head, self._pause = answer, head_at_once, pause
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.finished = self.cut = 0
        self._over = threading.Event()

    def run(self) -> None:
        threads = []
        while not self._over.is_set():
            with suppress(OSError):
                connection, _ = self._listener.accept()
                threads.append(threading.Thread(target=self._drip, args=(connection,)))
                threads[-1].start()
        for thread in threads:
            thread.join()

    def _drip(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(self._pause)
            try:
                connection.recv(65536)
                connection.sendall(self._answer[: self._head])
                for n in range(self._head, len(self._answer)):
                    if self._over.is_set() or self._is_gone(connection):
                        self.cut += 1
                        return
                    connection.sendall(self._answer[n : n + 1])
                self.finished += 1
            except OSError:
                self.cut += 1

    @staticmethod
    def _is_gone(connection: socket.socket) -> bool:
        try:
            return connection.recv(65536) == b""
        except TimeoutError:  # the pause between two bytes
            return False

    def close(self) -> None:
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def dripping(answer: bytes, *, head_at_once: int, pause: float = 0.05) -> Iterator[Dripper]:
    """Run a `Dripper` whose answer would take minutes.

    Args:
        head_at_once: so many bytes come at once, before the first pause.
        pause: seconds between two bytes.
    """
    dripper = Dripper(answer, head_at_once, pause)
    thread = threading.Thread(target=dripper.run)
    thread.start()
    try:
        yield dripper
    finally:
        dripper.close()
        thread.join()
