"""A wrong option ends the start of each ASGI server, and its output says the reason."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers.servers import free_port

from .server_processes import ASGI, Simulated, environment, needs_server

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(150)]

APP = """
from starlette.applications import Starlette

from cm_auth_middleware import CMAuthMiddleware

app = Starlette()
app.add_middleware(CMAuthMiddleware)
"""


@pytest.mark.parametrize("server", list(ASGI))
def test_a_wrong_option_ends_the_start(server: str, simulator: Simulated, tmp_path: Path) -> None:
    needs_server(server)
    (tmp_path / "wrong.py").write_text(APP)
    variables = environment(simulator, CM_AUTH_COOKIE_SECURE="perhaps")
    variables["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
    command = [part.format(port=free_port(), app="wrong:app") for part in ASGI[server]]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=variables, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    # It has ended by itself. hypercorn's first process does so with 0, whatever its workers did.
    assert process.returncode != 0 or server.startswith("hypercorn"), output
    assert "cm_auth_middleware cannot start: CM_AUTH_COOKIE_SECURE is true or false" in output
