"""Development servers and the examples: reloader, debugger, and what the README says to type."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import time
from pathlib import Path

import httpx2
import pytest

from tests.helpers.browser import ANNA, BOB, CAMERAS, Visitor

from .server_processes import ROOT, WSGI, Simulated, Site, environment, needs, serve

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(150)]

EXAMPLES = ROOT / "examples"
FLASK = ["flask", "--app", "flask_app.py", "run", "--port", "{port}"]
MORE_ROUTES = """

@app.get("/version")
def version():
    return "first version"


@app.get("/boom")
def boom():
    secret_of_the_handler = 42
    return secret_of_the_handler / 0
"""


@pytest.mark.parametrize(
    ("example", "command"),
    [
        ("flask_app.py", FLASK),
        ("flask_app.py", [*WSGI["gunicorn-gthread"][:-1], "flask_app:app"]),
        ("django_project", [sys.executable, "manage.py", "runserver", "{port}"]),
        ("django_project", [*WSGI["gunicorn-gthread"][:-1], "cameras.wsgi"]),
    ],
    ids=["flask run", "flask under gunicorn", "django runserver", "django under gunicorn"],
)
def test_example(example: str, command: list[str], simulator: Simulated, tmp_path: Path) -> None:
    needs("flask", "django", "gunicorn")
    place = _copy(example, tmp_path)
    variables = environment(simulator)
    del variables["CM_AUTH_EXEMPT"]  # the example says so itself
    with serve("example", command, tmp_path / "log", variables, cwd=place) as site:
        for email, first_name in ((ANNA, "Anna"), (BOB, "Bob")):
            _see_cameras(site, email, first_name)


def _without_watchdog(place: Path) -> Path:
    """A path that hides watchdog, which other tools bring: werkzeug sees no change through 7.1."""
    hidden = place / "hidden"
    hidden.mkdir()
    (hidden / "watchdog.py").write_text("raise ImportError('hidden')\n")
    return hidden


def test_the_werkzeug_reloader_keeps_sessions_and_the_debugger_shows_errors(
    simulator: Simulated, tmp_path: Path
) -> None:
    needs("flask")
    place = _copy("flask_app.py", tmp_path)
    source = place / "flask_app.py"
    source.write_text(source.read_text() + MORE_ROUTES)
    variables = environment(simulator, CM_AUTH_STORE=f"sqlite:///{tmp_path}/sessions.db")
    variables["PYTHONPATH"] = str(_without_watchdog(tmp_path))
    command = [*FLASK, "--debug"]
    with (
        serve("werkzeug", command, tmp_path / "log", variables, cwd=place, silent=False) as site,
        Visitor(site.origin) as visitor,
    ):
        assert visitor.enter("/version").text == "first version"
        source.write_text(source.read_text().replace("first version", "second version"))
        assert _eventually(visitor, "/version") == "second version"  # and still logged in

        broken = visitor.navigate("/boom")
        assert broken.status_code == 500
        assert "ZeroDivisionError" in broken.text
        assert "Werkzeug Debugger" in broken.text
        style = visitor.fetch("/?__debugger__=yes&cmd=resource&f=style.css")
        assert style.headers["content-type"].startswith("text/css")
        assert "demo-key-secret" not in broken.text
        assert visitor.navigate("/").status_code == 200


def _copy(example: str, place: Path) -> Path:
    """Take an example to a directory where it may write."""
    if example.endswith(".py"):
        shutil.copy(EXAMPLES / example, place)
        return place
    ignore = shutil.ignore_patterns("*.db*", "__pycache__")
    return Path(shutil.copytree(EXAMPLES / example, place / example, ignore=ignore))


def _see_cameras(site: Site, email: str, first_name: str) -> None:
    with Visitor(site.origin) as visitor:
        page = visitor.enter("/", email)
        assert f"Cameras of {first_name}" in page.text
        assert re.findall("<figcaption>(.*)</figcaption>", page.text) == CAMERAS[email]
        pictures = re.findall('src="(.*?)"', page.text)
        assert len(pictures) == len(CAMERAS[email])
        picture = visitor.fetch(pictures[0])
        assert (picture.status_code, picture.headers["content-type"]) == (200, "image/jpeg")
        assert picture.content.startswith(b"\xff\xd8")
        action = re.search('action="(.*?)"', page.text)
        assert action is not None
        assert visitor.submit(action[1]).status_code == 303
        assert visitor.navigate("/").status_code == 302


def _eventually(visitor: Visitor, path: str) -> str:
    """The page's text once the reloader has done its work; meanwhile nobody may answer."""
    deadline = time.monotonic() + 40
    text = "first version"
    while text == "first version" and time.monotonic() < deadline:
        time.sleep(0.2)
        with contextlib.suppress(httpx2.TransportError):
            text = visitor.fetch(path).text
    return text
