"""The demo: one command, a real process, a login through the forms, and a clean end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from html import unescape

import httpx2
import pytest

from cm_auth_middleware.cli.demo import _dashboard
from tests.helpers.world import HTML

COMMAND = [sys.executable, "-m", "cm_auth_middleware.cli", "demo"]


@pytest.fixture
def demo(provider: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--provider", provider],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def told(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    words: dict[str, str] = {}
    while "Password" not in words:
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        name, _, value = line.strip().partition(" ")
        words[name] = value.strip()
    return words


def test_the_dashboard_shows_no_character_that_nobody_sees(cm_simulator, cm_login) -> None:
    user = cm_simulator.add_user("eve\x1b[2J@example.com", ["Door\u202e\x9b"])
    user.first_name = "Eve\u202e\0"
    page = cm_login(_dashboard().create_app(), user).get("/").text
    assert "eve[2J@example.com" in page
    assert "Door" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page)


def pictures(page: str) -> list[str]:
    return [unescape(path) for path in re.findall(r'<img src="([^"]*)"', page)]


@pytest.mark.parametrize("cm_provider", ["cameramanager", "eagleeye"])
def test_a_picture_of_the_overview_is_made_once_for_all_who_look_at_it(
    cm_simulator, cm_login, cm_provider
) -> None:
    app = _dashboard().create_app(provider=cm_provider)
    browsers = [cm_login(app), cm_login(app)]
    for browser in browsers:
        front, *others = pictures(browser.get("/").text)
        assert len(others) == 2
        answer = browser.get(front)
        assert answer.headers["content-type"] == "image/jpeg"
    path = front.removeprefix("/api/cm").partition("?")[0]
    assert len(cm_simulator.calls(f"*{path}")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("provider", "number"),
    [
        ("cameramanager", signal.SIGINT),
        ("cameramanager", signal.SIGTERM),
        ("eagleeye", signal.SIGINT),
    ],
)
def test_the_demo_serves_a_login_and_cameras_and_ends_cleanly(demo, provider, number) -> None:
    words = told(demo)
    one, offline, bobs = (
        f"{camera:08x}" if provider == "eagleeye" else str(camera) for camera in (2001, 2004, 3001)
    )
    with httpx2.Client(base_url=words["Open"], headers=HTML, follow_redirects=True) as browser:
        page = browser.get("/")
        for fields in (
            {"email": words["E-mail"], "password": words["Password"]},
            {"decision": "allow"},
        ):
            hidden = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.text)
            inputs = {name: value.replace("&amp;", "&") for name, value in hidden}
            page = browser.post(page.url, data={**inputs, **fields})
        assert "Your cameras" in page.text
        assert "Front gate" in page.text
        picture = browser.get(pictures(page.text)[0])
        assert picture.headers["content-type"] == "image/jpeg"
        assert picture.content.startswith(b"\xff\xd8")
        assert browser.get(f"/cameras/{bobs}").status_code == 404  # another account's camera
        assert "No picture while" in browser.get(f"/cameras/{offline}").text
        assert ("Eagle Eye" if provider == "eagleeye" else "CameraManager") in words["Simulated"]
        live = browser.get("/live").text
        [path] = re.findall(r'data-picture="([^"]*)"', live)
        path = path.replace("&amp;", "&").replace("{id}", one)
        assert browser.get(f"/api/cm{path}").headers["content-type"] == "image/jpeg"
        [path] = re.findall(r'data-cameras="([^"]*)"', live)
        assert "Front gate" in browser.get("/api/cm" + path.replace("&amp;", "&")).text
    demo.send_signal(number)
    out, err = demo.communicate(timeout=20)
    assert demo.returncode == 0
    assert "Traceback" not in out + err
    assert out.rstrip().endswith("Stopped.")


@pytest.mark.slow
def test_a_port_in_use_is_one_clear_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = subprocess.run(
            [*COMMAND, "--port", str(port)], capture_output=True, text=True, timeout=30, check=False
        )
    assert result.returncode == 1
    assert str(port) in result.stderr
    assert "in use" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "99999"], "port 99999 is not between 1 and 65535"),
        (["--port", "-1"], "port -1 is not between 1 and 65535"),
        (["--host", "no-such-host.invalid"], "cannot be listened on"),
        (["--host", "192.0.2.1"], "cannot be listened on"),
        (["--host", "0.0.0.0"], "--host needs one address"),
        (["--provider", "eagleeye", "--host", "192.0.2.1"], "--host is 127.0.0.1 or localhost"),
        (["--provider", "nobody"], "give cameramanager or eagleeye"),
    ],
)
def test_an_address_that_cannot_be_is_one_clear_sentence(options: list[str], words: str) -> None:
    result = subprocess.run(
        [*COMMAND, *options], capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode in (1, 2)
    assert words in result.stderr
    assert "Traceback" not in result.stderr
