"""The simulator on the clock that everybody shares: `python -m tests.chaos.camera_manager`."""

from __future__ import annotations

import sys

from cm_auth_middleware.testing import SimulatedUser, Simulator, SimulatorServer, settings_for
from cm_auth_middleware.testing.simulator.settings import SimulatedCamera, default_users
from tests.helpers.browser import PASSWORD

from .site import SharedClock

MANY = 200  # users beside the simulator's own


def email(number: int) -> str:
    return f"user{number}@example.com"


def user_id(number: int) -> int:
    return 20_000 + number


def users() -> list[SimulatedUser]:
    """The simulator's own users, and many more: each has a grant of its own."""
    cameras = [SimulatedCamera(1, "Front gate")]
    return default_users() + [
        SimulatedUser(email(n), PASSWORD, "User", str(n), user_id(n), 600 + n, cameras)
        for n in range(MANY)
    ]


def main(port: str, clock: str, provider: str = "cameramanager") -> None:
    simulator = Simulator(settings_for(provider), clock=SharedClock(clock), users=users())
    with SimulatorServer(simulator, int(port)) as server:
        server.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
