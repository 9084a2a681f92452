"""Test an application against a simulated CameraManager, and test your own session store.

Each name is imported when it is first used, because pytest imports this package at every start.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cm_auth_middleware.testing.browser import Browser, LoginFailed
    from cm_auth_middleware.testing.conformance import StoreConformance
    from cm_auth_middleware.testing.fixtures import CMLogin, CMServer, CMTime
    from cm_auth_middleware.testing.live_reports import read_report, settings_like
    from cm_auth_middleware.testing.network import Network
    from cm_auth_middleware.testing.server import AppServer, SimulatorServer
    from cm_auth_middleware.testing.simulator import (
        RecordedRequest,
        Settings,
        SimulatedCamera,
        SimulatedUser,
        Simulator,
        settings_for,
    )

__all__ = [
    "AppServer",
    "Browser",
    "CMLogin",
    "CMServer",
    "CMTime",
    "LoginFailed",
    "Network",
    "RecordedRequest",
    "Settings",
    "SimulatedCamera",
    "SimulatedUser",
    "Simulator",
    "SimulatorServer",
    "StoreConformance",
    "read_report",
    "settings_for",
    "settings_like",
]

_HOMES = {
    "AppServer": "server",
    "Browser": "browser",
    "CMLogin": "fixtures",
    "CMServer": "fixtures",
    "CMTime": "fixtures",
    "LoginFailed": "browser",
    "Network": "network",
    "SimulatorServer": "server",
    "StoreConformance": "conformance",
    "read_report": "live_reports",
    "settings_like": "live_reports",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES.get(name, 'simulator')}", __name__), name)
    globals()[name] = value
    return value
