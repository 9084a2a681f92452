"""``cm-auth dev``: one's own application with one command, a login, a change, and a clean end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from click.testing import CliRunner

from cm_auth_middleware.cli import main
from cm_auth_middleware.cli.dev import _command, _files, _variables
from cm_auth_middleware.cli.wsgi_server import load
from cm_auth_middleware.config import CMAuthConfig
from tests.cli.test_demo import told
from tests.helpers.servers import ROOT
from tests.helpers.world import HTML, SECRET_KEY, both_providers

APPS = {
    "asgi": """
from fastapi import FastAPI
from cm_auth_middleware import CMAuthMiddleware
from cm_auth_middleware.fastapi import CMClient

app = FastAPI()
app.add_middleware(CMAuthMiddleware)

@app.get("/")
async def home(cm: CMClient) -> list[str]:
    return ["first", *(camera["name"] for camera in (await cm.get("/rest/v2.4/cameras")).json())]

def make():
    print("chatter")
    return app
""",
    "wsgi": """
from flask import Flask
from cm_auth_middleware.flask import CMAuth, cm

app = Flask(__name__)
CMAuth(app)

@app.get("/")
def home():
    return ["first", *(camera["name"] for camera in cm.get("/rest/v2.4/cameras").json())]

def make():
    print("chatter")
    return app
""",
}
KEYS = {
    "CM_AUTH_CLIENT_ID": "id",
    "CM_AUTH_CLIENT_SECRET": "secret",
    "CM_AUTH_SECRET_KEY": SECRET_KEY,
}
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path, provider: str) -> Iterator[Start]:
    """Run the command in a folder with an application of one's own."""
    running: list[subprocess.Popen[str]] = []

    def start(side: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        code = APPS[side]
        if provider == "eagleeye":
            code = code.replace("/rest/v2.4", "").replace(".json()", '.json()["results"]')
        (tmp_path / "mine.py").write_text(code)
        kind = ["--wsgi"] if side == "wsgi" else []
        process = subprocess.Popen(
            [sys.executable, "-m", "cm_auth_middleware.cli", "dev", *kind, "--port", "0",
             "--provider", provider, *(arguments or ("mine:app",))],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **variables},
        )  # fmt: skip
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.terminate()  # so that it ends the application, too
        process.communicate(timeout=30)


def answer(browser: httpx2.Client, expected: Callable[[httpx2.Response], bool]) -> httpx2.Response:
    """Ask for the page until it is as expected."""
    deadline = time.monotonic() + 30
    while True:
        try:
            response = browser.get("/")
        except httpx2.TransportError:
            response = None
        if response is not None and expected(response):
            return response
        assert time.monotonic() < deadline, response and (response.status_code, response.text)
        time.sleep(0.1)


@both_providers
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_application_runs_with_a_login_and_keeps_it_when_a_file_changes(
    start: Start, side: str, tmp_path: Path
) -> None:
    # What is set for another site must not lead there.
    process = start(side, CM_AUTH_REDIRECT_URI="https://cams.example.com/auth/callback",
                    CM_AUTH_SECRET_KEY_FILE="/no/such/file",
                    CM_AUTH_ALLOW_EMAILS="*@elsewhere.example")  # fmt: skip
    words = told(process)
    with httpx2.Client(base_url=words["Open"], headers=HTML) as browser:
        answer(browser, lambda response: response.status_code == 302)
        browser.follow_redirects = True
        page = browser.get("/")
        for fields in (
            {"email": words["E-mail"], "password": words["Password"]},
            {"decision": "allow"},
        ):
            hidden = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.text)
            inputs = {name: value.replace("&amp;", "&") for name, value in hidden}
            page = browser.post(page.url, data={**inputs, **fields})
        assert page.json()[:2] == ["first", "Front gate"]
        path = tmp_path / "mine.py"
        path.write_text(path.read_text().replace('"first"', '"second"'))
        changed = answer(browser, lambda response: response.json()[0] == "second")
        assert changed.json()[1] == "Front gate", "the login is kept"
        path.write_text("a mistake")
        assert process.stderr is not None
        assert any("The application has ended" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.rstrip().endswith("Stopped.")
    host, port = words["Open"].removeprefix("http://").split(":")
    with pytest.raises(OSError), socket.create_connection((host, int(port)), 1):
        pass


@pytest.mark.slow
def test_a_factory_is_called_and_json_is_the_only_output(start: Start, side: str) -> None:
    process = start(side, "mine:make()", "--json", "--no-reload")
    assert process.stdout is not None
    words = json.loads(process.stdout.readline())
    assert words.keys() == {"url", "simulator", "email", "password"}
    with httpx2.Client(base_url=words["url"], headers=HTML) as browser:
        answer(browser, lambda response: response.status_code == 302)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")


@pytest.mark.slow
def test_without_reload_the_end_of_the_application_is_the_end(start: Start, side: str) -> None:
    process = start(side, "mine:nothing", "--no-reload")
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["mine:app", "mine:make()"])
def test_an_application_of_the_other_kind_is_refused(side: str, target: str, tmp_path) -> None:
    (tmp_path / "mine.py").write_text(APPS[side])
    other = {"asgi": "wsgi", "wsgi": "asgi"}[side]
    done = subprocess.run(
        [sys.executable, "-m", f"cm_auth_middleware.cli.{other}_server", target, "127.0.0.1", "0"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **KEYS},
    )  # fmt: skip
    assert done.returncode == 1
    said = {"asgi": "an ASGI application: leave out --wsgi.", "wsgi": "applications give --wsgi."}
    assert done.stderr.rstrip().endswith(said[side])
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing argument"),
        (["main"], "give MODULE:APP, such as main:app"),
        (["main.py:app;rm"], "give MODULE:APP"),
        (["main:app", "--host", "0.0.0.0"], "--host needs one address"),
    ],
)
def test_a_wrong_call_says_what_is_right(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(main, ["dev", *arguments])
    assert result.exit_code == 2
    assert says in result.output


def test_the_application_is_started_as_its_server_wants_it() -> None:
    for target, wsgi, end in (
        ("main:app", False, ["cm_auth_middleware.cli.asgi_server", "main:app", "::1", "80"]),
        ("m:make()", True, ["cm_auth_middleware.cli.wsgi_server", "m:make()", "::1", "80"]),
    ):
        assert _command(target, wsgi, "::1", 80) == [sys.executable, "-m", *end]


def test_variables_that_name_another_site_are_replaced(monkeypatch) -> None:
    monkeypatch.setenv("CM_AUTH_REDIRECT_URI", "https://cams.example.com/auth/callback")
    monkeypatch.setenv("CM_AUTH_STORE_FILE", "/run/secrets/store")
    monkeypatch.setenv("CM_AUTH_PREFIX", "/login")
    variables = _variables(
        "eagleeye", "http://127.0.0.1:1", ("id", "secret"), "/folder", "192.0.2.1"
    )
    assert "CM_AUTH_REDIRECT_URI" not in variables
    assert "CM_AUTH_STORE_FILE" not in variables
    assert variables["CM_AUTH_PREFIX"] == "/login"
    assert variables["CM_AUTH_PROVIDER"] == "eagleeye"
    assert variables["CM_AUTH_STORE"] == "sqlite:////folder/sessions.db"
    assert variables["CM_AUTH_ALLOWED_HOSTS"] == "localhost,127.0.0.1,[::1],192.0.2.1"
    with monkeypatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("CM_AUTH_")]:
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        assert CMAuthConfig.from_env().base_url == "http://127.0.0.1:1"


def test_an_application_is_found_by_its_name_or_made_by_its_factory(tmp_path, monkeypatch) -> None:
    (tmp_path / "some_app_of_mine.py").write_text("class web:\n    app = 1\n    make = lambda: 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load("some_app_of_mine:web.app") == 1
    assert load("some_app_of_mine:web.make()") == 2


def test_files_that_are_installed_or_hidden_are_not_watched(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("main.py", "templates/a.html", "notes.txt", ".git/x.py", "venv/pyvenv.cfg",
                 "venv/lib/y.py", "node_modules/z.py"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert set(_files()) == {"./main.py", "./templates/a.html"}
    (tmp_path / "main.py").unlink()
    assert set(_files()) == {"./templates/a.html"}
