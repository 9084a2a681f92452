"""Test with a simulated CameraManager on a real socket, and test a session store of one's own."""

from __future__ import annotations

from cm_auth_middleware.testing.conformance import StoreConformance
from cm_auth_middleware.testing.server import AppServer, SimulatorServer
from cm_auth_middleware.testing.simulator import (
    RecordedRequest,
    Settings,
    SimulatedCamera,
    SimulatedUser,
    Simulator,
)

__all__ = [
    "AppServer",
    "RecordedRequest",
    "Settings",
    "SimulatedCamera",
    "SimulatedUser",
    "Simulator",
    "SimulatorServer",
    "StoreConformance",
]
