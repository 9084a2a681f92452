"""Simulate Eagle Eye CameraManager: its OAuth server, its REST API, and the ways both can fail.

`app.Simulator` is the ASGI application. Behind it, `oauth` logs users in and issues tokens, which
`tokens` keeps. `api` returns users, cameras and pictures. `eagleeye` does all three as Eagle Eye's
API v3 does. `failures` makes requests fail. With
`control`, another process does over HTTP what a test does by calling `Simulator`.
"""

from cm_auth_middleware.testing.simulator.app import Simulator
from cm_auth_middleware.testing.simulator.settings import (
    RecordedRequest,
    Settings,
    SimulatedCamera,
    SimulatedUser,
    What,
    host_refusal,
    settings_for,
)

__all__ = [
    "RecordedRequest",
    "Settings",
    "SimulatedCamera",
    "SimulatedUser",
    "Simulator",
    "What",
    "host_refusal",
    "settings_for",
]
