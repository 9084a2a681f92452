"""The examples that are an app of their own, run as their first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from cm_auth_middleware.testing import SimulatorServer
from tests.helpers.servers import free_port
from tests.helpers.world import SECRET_KEY

REPOSITORY = Path(__file__).parents[1]
WAIT = 30.0  # seconds until a test gives up


@pytest.fixture
def prometheus() -> Iterator[tuple[httpx2.Client, SimulatorServer]]:
    port = free_port()
    with SimulatorServer() as cm:
        environment = {
            "CM_AUTH_CLIENT_ID": cm.client_id,
            "CM_AUTH_CLIENT_SECRET": cm.client_secret,
            "CM_AUTH_SECRET_KEY": SECRET_KEY,
            "CM_AUTH_BASE_URL": cm.url,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "examples.prometheus:app", "--port", str(port)],
            cwd=REPOSITORY,
            env={**os.environ, **environment},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT) as client:
                wait_for(client, process)
                yield client, cm
        finally:
            process.terminate()
            process.wait()


def wait_for(client: httpx2.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT
    while True:
        try:
            client.get("/metrics/")
        except httpx2.ConnectError:
            assert process.poll() is None, "the example did not start"
            assert time.monotonic() < deadline, "the example did not answer"
            time.sleep(0.05)
        else:
            return


@pytest.mark.slow
def test_prometheus_reads_logins_sessions_and_times(prometheus) -> None:
    client, cm = prometheus
    start = client.get("/cameras", headers={"Accept": "text/html"})
    query = httpx2.URL(start.headers["location"]).params
    code = cm.simulator.issue_code(
        "anna@example.com", query["redirect_uri"], query["code_challenge"]
    )
    client.get(query["redirect_uri"], params={"code": code, "state": query["state"]})
    assert "Front gate" in client.get("/cameras").json()
    text = client.get("/metrics/").text
    values = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            sample, _, value = line.rpartition(" ")
            name, _, labels = sample.partition("{")
            own = [
                part
                for part in labels.rstrip("}").split(",")
                if not part.startswith("otel") and '=""' not in part
            ]
            values[name, *sorted(own)] = float(value)
    assert values["cm_auth_logins_total", 'result="success"'] == 1
    assert values["cm_auth_sessions_active", 'store="MemoryStore"'] == 1
    assert values["cm_auth_cameramanager_duration_seconds_count", 'operation="exchange"'] == 1
    assert values["cm_auth_store_duration_seconds_count", 'operation="get"'] > 1
