"""Dashboards in a real Chromium: the applications of docs/dashboards.md, each by its framework.

One walk for all: a person logs in, clicks a button that calls CameraManager, clicks again after the
access token has expired, and is led to the login after a logout in another tab. With
``CM_AUTH_PICTURES=folder`` pictures of each are kept there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.helpers.browser import ANNA, CAMERAS, PASSWORD
from tests.helpers.pictures import keep_each
from tests.helpers.servers import free_port

from . import bun
from .server_processes import Simulated, environment, running

pytestmark = [pytest.mark.browser, pytest.mark.matrix, pytest.mark.slow]

APPS = Path(__file__).parent / "apps" / "dashboards"
LIST = "/rest/v2.4/cameras"
PATIENCE = 20_000.0  # milliseconds
LED_WITHIN = 60_000.0  # milliseconds from the logout until the person is told
_UVICORN = ("uvicorn", "--host", "127.0.0.1", "--port", "{port}", "main:app")


@dataclass(frozen=True)
class Dashboard:
    """How a dashboard is started.

    Args:
        module: of the framework.
        command: with ``{port}`` to fill in.
        path: of its page.
        patience: seconds until it answers: some build a front end first.
        needs_bun: its front end is built by Bun.
    """

    module: str
    command: Sequence[str] = _UVICORN
    path: str = "/"
    patience: float = 60.0
    needs_bun: bool = False


DASHBOARDS = {
    "dash_on_flask": Dashboard(
        "dash",
        ["gunicorn", "--no-control-socket", "-b", "127.0.0.1:{port}", "-k", "gthread",
         "--threads", "8", "main:server"],
    ),
    "dash_on_fastapi": Dashboard("dash"),
    "streamlit": Dashboard("streamlit"),
    "gradio_mounted": Dashboard("gradio"),
    "gradio_alone": Dashboard("gradio", ["python", "main.py"]),
    "nicegui": Dashboard("nicegui"),
    "panel": Dashboard("panel", path="/cameras"),
    "marimo": Dashboard("marimo"),
    "shiny": Dashboard("shiny"),
    "reflex": Dashboard(
        "reflex",
        ["reflex", "run", "--env", "prod", "--single-port", "--backend-host", "127.0.0.1",
         "--frontend-port", "{port}", "--backend-port", "{port}"],
        patience=400.0,
        needs_bun=True,
    ),
}  # fmt: skip


def variables(simulator: Simulated, port: int) -> dict[str, str]:
    """The environment of a dashboard's process; each framework is kept from calling home."""
    return environment(
        simulator,
        PYTHONWARNINGS="ignore",  # of the frameworks themselves
        DO_NOT_TRACK="1",
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_SERVER_NAME="127.0.0.1",
        GRADIO_SERVER_PORT=str(port),
        REFLEX_API_URL=f"http://127.0.0.1:{port}",
        REFLEX_TELEMETRY_ENABLED="false",
        STREAMLIT_BROWSER_GATHER_USAGE_STATS="false",
    )


def not_tested(what: str) -> NoReturn:
    """Skip a dashboard; with ``CM_AUTH_REQUIRE_DASHBOARDS=1`` that is a failure."""
    reason = f"NOT TESTED: {what}"
    if os.environ.get("CM_AUTH_REQUIRE_DASHBOARDS"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@dataclass(frozen=True)
class Served:
    """A dashboard that runs."""

    name: str
    url: str
    login_url: str
    simulator: Simulated


@pytest.fixture(params=DASHBOARDS)
def dashboard(
    request: pytest.FixtureRequest, simulator: Simulated, tmp_path: Path
) -> Iterator[Served]:
    name = str(request.param)
    made = DASHBOARDS[name]
    if importlib.util.find_spec(made.module) is None:
        not_tested(f"{made.module} (pip install -e '.[dashboards]')")
    folder = tmp_path / name  # a copy: some write beside their files
    shutil.copytree(APPS / name, folder)
    port = free_port()
    given = variables(simulator, port)
    if made.needs_bun:
        (tmp_path / "bun").mkdir()
        try:
            given |= bun.variables(tmp_path / "bun", given["PATH"])
        except bun.NotInstalledError as error:
            not_tested(f"{made.module}, which needs Bun: {error}")
    origin = f"http://127.0.0.1:{port}"

    def is_ready(client: httpx2.Client) -> bool:
        return client.get(f"{origin}/auth/health").status_code == 200

    command = [part.format(port=port) for part in made.command]
    log = tmp_path / "log"
    with running(command, log, given, is_ready, folder, made.patience):
        yield Served(name, f"{origin}{made.path}", f"{origin}/auth", simulator)


@pytest.fixture
def context(browser: Browser, dashboard: Served) -> Iterator[BrowserContext]:
    """A browser at the dashboard; its sockets are closed before the server has to end."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    yield context
    context.close()


def see(locator: Locator, within: float = PATIENCE) -> None:
    expect(locator.first).to_be_visible(timeout=within)


def log_in(page: Page, url: str) -> None:
    page.goto(url)
    page.get_by_label("E-mail").fill(ANNA)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Allow").click()
    page.wait_for_url(url)
    see(page.get_by_text(ANNA))


def click(page: Page, simulator: Simulated) -> None:
    """Click, and see that the server asked CameraManager for what the page shows."""
    asked = simulator.count("GET", LIST)
    page.get_by_role("button", name="Show cameras").click()
    for _ in range(150):
        if simulator.count("GET", LIST) > asked:
            break
        page.wait_for_timeout(100)
    assert simulator.count("GET", LIST) > asked  # one, and another if the token had expired
    for camera in CAMERAS[ANNA]:
        see(page.get_by_text(camera))


def log_out(page: Page, login_url: str) -> None:
    page.goto(f"{login_url}/logout?next=/auth/signed-out")
    page.get_by_role("button", name="Log out").click()
    see(page.get_by_role("heading", name="You are logged out"))
    page.close()


@pytest.mark.timeout(900)  # Bun, then the front end of Reflex
def test_a_dashboard_works_behind_the_login_and_leads_back_to_it(
    dashboard: Served, context: BrowserContext
) -> None:
    simulator = dashboard.simulator
    page = context.new_page()
    log_in(page, dashboard.url)
    click(page, simulator)
    keep_each(page, f"dashboard-{dashboard.name}-works")
    simulator.expire()
    click(page, simulator)
    assert simulator.refreshes == 1
    log_out(context.new_page(), dashboard.login_url)
    page.bring_to_front()
    again = page.get_by_role("link", name="Log in again")
    see(again, LED_WITHIN)
    see(page.get_by_role("alert").filter(has_text="You are logged out"))
    keep_each(page, f"dashboard-{dashboard.name}-over")
    logins = simulator.count("POST", "/oauth/token", "authorization_code")
    with page.expect_navigation(url=dashboard.url):  # CameraManager remembers the person
        again.click()
    see(page.get_by_text(ANNA))
    assert simulator.count("POST", "/oauth/token", "authorization_code") == logins + 1
    click(page, simulator)
