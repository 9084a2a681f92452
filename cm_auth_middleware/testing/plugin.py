"""Define the pytest fixtures: a simulated CameraManager, logins, and a clock that a test moves.

pytest loads this plugin wherever the package is installed, so the plugin imports the rest only
when a test uses a fixture.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cm_auth_middleware.testing.fixtures import CMLogin, CMServer, CMTime
    from cm_auth_middleware.testing.simulator import Simulator


@pytest.fixture
def cm_provider() -> str:
    """The server that is simulated: CameraManager, or what ``CM_AUTH_PROVIDER`` says.

    A test has another one by its parameter: ``@pytest.mark.parametrize("cm_provider",
    ["eagleeye"])``; a test module, or all tests, by a fixture of this name.
    """
    return os.environ.get("CM_AUTH_PROVIDER") or "cameramanager"


@pytest.fixture(scope="session")
def _cm_simulators() -> dict[str, Simulator]:
    return {}  # by provider


@pytest.fixture
def _cm_simulator(cm_provider: str, _cm_simulators: dict[str, Simulator]) -> Simulator:
    from cm_auth_middleware.testing.fixtures import make_simulator

    if cm_provider not in _cm_simulators:
        _cm_simulators[cm_provider] = make_simulator(cm_provider)
    return _cm_simulators[cm_provider]


@pytest.fixture(scope="session")
def _cm_urls() -> Iterator[tuple[dict[str, str], ExitStack]]:
    with ExitStack() as stack:
        yield {}, stack


@pytest.fixture
def _cm_url(
    cm_provider: str, _cm_simulator: Simulator, _cm_urls: tuple[dict[str, str], ExitStack]
) -> str:
    try:
        from cm_auth_middleware.testing.server import SimulatorServer
    except ModuleNotFoundError as error:  # pragma: no cover - proven by the packaging test
        pytest.fail(f"cm_server needs {error.name}: pip install 'cm_auth_middleware[testing]'")

    urls, stack = _cm_urls
    if cm_provider not in urls:
        urls[cm_provider] = stack.enter_context(SimulatorServer(_cm_simulator)).url
    return urls[cm_provider]


@pytest.fixture(scope="session")
def _cm_servers() -> dict[tuple[str, str], CMServer]:
    # By provider and URL. One lasts for all tests: an app made at import keeps its secret key.
    return {}


@pytest.fixture
def cm_simulator(
    _cm_simulator: Simulator,
    _cm_servers: dict[tuple[str, str], CMServer],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[CMServer]:
    """A simulated CameraManager in this process, without a socket; see `cm_server`."""
    from cm_auth_middleware.testing.fixtures import IN_PROCESS_URL

    yield from _serve(IN_PROCESS_URL, _cm_simulator, _cm_servers, monkeypatch)


@pytest.fixture
def cm_server(
    _cm_url: str,
    _cm_simulator: Simulator,
    _cm_servers: dict[tuple[str, str], CMServer],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[CMServer]:
    """A simulated CameraManager on a real port of this machine.

    Its ``url``, ``client_id``, ``client_secret`` and ``secret_key`` are also in the environment
    (``CM_AUTH_BASE_URL`` and so on) while the test runs. ``requests`` lists the requests that it
    received. ``fail_token(503)``, ``fail_api(…)``, ``revoke()`` and ``slow()`` simulate failures.
    """
    yield from _serve(_cm_url, _cm_simulator, _cm_servers, monkeypatch)


@pytest.fixture
def cm_login(
    request: pytest.FixtureRequest,
    cm_provider: str,  # noqa: ARG001 - so that a test can give it as a parameter
) -> Iterator[CMLogin]:
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
    servers: dict[tuple[str, str], CMServer],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[CMServer]:
    from cm_auth_middleware.testing.fixtures import CMServer

    key = simulator.settings.provider, url
    server = servers.get(key) or servers.setdefault(key, CMServer(simulator, url))
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    server.open()
    yield server
    server.close()
