"""The simulator on the clock that everybody shares: `python -m tests.chaos.camera_manager`.

The variable CHAOS_USERS is how many users it has beside Anna and Bob: user0@example.com and so on.
"""

from __future__ import annotations

import os
import sys

from cm_auth_middleware.testing import SimulatedUser, Simulator, SimulatorServer

from .site import SharedClock


def main(port: str, clock: str) -> None:
    simulator = Simulator(clock=SharedClock(clock))
    simulator.users += [
        SimulatedUser(f"user{n}@example.com", "cameras", "User", str(n), n, n)
        for n in range(int(os.environ.get("CHAOS_USERS", "0")))
    ]
    with SimulatorServer(simulator, int(port)) as server:
        server.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
