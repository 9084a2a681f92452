"""Offer a CameraManager to test against: a simulator, and servers that run it or an application."""

from __future__ import annotations

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
]
