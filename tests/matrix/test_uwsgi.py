"""R31: uWSGI that was not told of threads holds them still between requests."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.helpers.browser import Visitor
from tests.helpers.servers import until
from tests.matrix.releases import install
from tests.matrix.server_processes import APPS, Simulated, environment, serve

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(300)]

OLD = "2.0.24"  # from 2.0.30 on threads are on by default
LATENCY = 3.0  # seconds that CameraManager takes for new tokens


@pytest.fixture(scope="session")
def uwsgi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, which pip compiles."""
    target = tmp_path_factory.mktemp("uwsgi")
    return install("uwsgi", OLD, target, timeout=240) / "bin" / "uwsgi"


@pytest.mark.parametrize("options", [[], ["--enable-threads"]], ids=["no threads", "threads"])
def test_a_refresh_under_uwsgi_is_complete(
    options: list[str], uwsgi: Path, simulator: Simulated, tmp_path: Path
) -> None:
    """Within the request, where a thread would stand still; beside it, where threads run."""
    command = [
        str(uwsgi), "--http", "127.0.0.1:{port}", "--module", "{app}", "--master",
        "--die-on-term", "--need-app", "--virtualenv", sys.prefix, *options,
    ]  # fmt: skip
    variables = environment(simulator)
    simulator.control(rotate_refresh_tokens=True, revoke_family_on_reuse=True)
    simulator.control(access_token_lifetime=20)  # so one is renewed when it is 10 s old
    with (
        serve("uwsgi", command, tmp_path / "log", variables, app=f"{APPS}flask_app:app") as site,
        Visitor(site.origin) as visitor,
    ):
        visitor.enter("/")
        time.sleep(10.5)
        simulator.control(token_latency=LATENCY)
        started = time.monotonic()
        assert visitor.navigate("/").status_code == 200
        waited = time.monotonic() - started
        assert (waited >= LATENCY) == (not options)
        until(lambda: simulator.control()["requests"][-1]["status"] == 200)
        assert simulator.refreshes == 1
        assert visitor.navigate("/cameras").status_code == 200
