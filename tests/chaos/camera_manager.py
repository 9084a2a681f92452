"""The simulator on the clock that everybody shares: `python -m tests.chaos.camera_manager`."""

from __future__ import annotations

import sys

from cm_auth_middleware.testing import Simulator, SimulatorServer

from .site import SharedClock


def main(port: str, clock: str) -> None:
    with SimulatorServer(Simulator(clock=SharedClock(clock)), int(port)) as server:
        server.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
