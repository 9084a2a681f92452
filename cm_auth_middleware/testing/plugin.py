"""Define the pytest fixtures: a simulated CameraManager, logins, and a clock that a test moves.

pytest loads this plugin wherever the package is installed, so the plugin imports the rest only
when a test uses a fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cm_auth_middleware.testing.fixtures import CMLogin, CMServer, CMTime
    from cm_auth_middleware.testing.simulator import Simulator


@pytest.fixture(scope="session")
def _cm_simulator() -> Simulator:
    from cm_auth_middleware.testing.fixtures import make_simulator

    return make_simulator()


@pytest.fixture(scope="session")
def _cm_url(_cm_simulator: Simulator) -> Iterator[str]:
    try:
        from cm_auth_middleware.testing.server import SimulatorServer
    except ModuleNotFoundError as error:  # pragma: no cover - proven by the packaging test
        pytest.fail(f"cm_server needs {error.name}: pip install 'cm_auth_middleware[testing]'")

    with SimulatorServer(_cm_simulator) as server:
        yield server.url


@pytest.fixture(scope="session")
def _cm_servers() -> dict[str, CMServer]:
    return {}  # by URL; one lasts for all tests, because an app made at import keeps its secret key


@pytest.fixture
def cm_simulator(
    _cm_simulator: Simulator, _cm_servers: dict[str, CMServer], monkeypatch: pytest.MonkeyPatch
) -> Iterator[CMServer]:
    """A simulated CameraManager in this process, without a socket; see `cm_server`."""
    from cm_auth_middleware.testing.fixtures import IN_PROCESS_URL

    yield from _serve(IN_PROCESS_URL, _cm_simulator, _cm_servers, monkeypatch)


@pytest.fixture
def cm_server(
    _cm_url: str,
    _cm_simulator: Simulator,
    _cm_servers: dict[str, CMServer],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[CMServer]:
    """A simulated CameraManager on a real port of this machine.

    Its ``url``, ``client_id``, ``client_secret`` and ``secret_key`` are also in the environment
    (``CM_AUTH_BASE_URL`` and so on) while the test runs. ``requests`` lists the requests that it
    received. ``fail_token(503)``, ``fail_api(…)``, ``revoke()`` and ``slow()`` simulate failures.
    """
    yield from _serve(_cm_url, _cm_simulator, _cm_servers, monkeypatch)


@pytest.fixture
def cm_login(request: pytest.FixtureRequest) -> Iterator[CMLogin]:
    """Log in to your application: ``browser = cm_login(app, user="bob@example.com")``.

    Uses ``cm_server`` if the test does, else ``cm_simulator``.
    """
    from cm_auth_middleware.testing.fixtures import CMLogin

    name = "cm_server" if "cm_server" in request.fixturenames else "cm_simulator"
    login = CMLogin(request.getfixturevalue(name))
    yield login
    login.close()


@pytest.fixture
def cm_time(cm_login: CMLogin) -> CMTime:
    """Move the clock: ``expire_access_token()``, ``idle_out()``, ``tick(seconds)``."""
    from cm_auth_middleware.testing.fixtures import CMTime

    return CMTime(cm_login)


def _serve(
    url: str,
    simulator: Simulator,
    servers: dict[str, CMServer],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[CMServer]:
    from cm_auth_middleware.testing.fixtures import CMServer

    server = servers.setdefault(url, CMServer(simulator, url))
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    server.open()
    yield server
    server.close()
