"""The documentation of several versions, as ``nox -s versions`` makes it: a reader chooses one."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

ROOT = Path(__file__).parents[2]
SOURCES = ("cm_auth_middleware", "docs", "examples", "tests")
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of a site with two versions."""
    pytest.importorskip("mike", reason="NOT TESTED: pip install -e '.[docs]'")
    copy = tmp_path / "copy"
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.md"), ROOT / "mkdocs.yml"):
        shutil.copy(path, copy)
    who = {f"GIT_{role}_{what}": "a@example.com" for role in ("AUTHOR", "COMMITTER")
           for what in ("NAME", "EMAIL")}  # fmt: skip

    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, **who, "PATH": path, "PYTHONPATH": str(copy)}

    def run(*command: str) -> None:
        subprocess.run(command, cwd=copy, env=env, check=True)

    run("git", "init", "-q")
    run("git", "commit", "-q", "--allow-empty", "-m", "Nothing")
    for version in ("0.2", "0.3"):
        run("mike", "-q", "deploy", "--update-aliases", version, "latest")
    run("mike", "set-default", "latest")
    run("git", "worktree", "add", "-q", str(tmp_path / "site"), "gh-pages")
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "site")
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_reader_gets_the_latest_version_and_chooses_another(browser: Browser, site: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(site)
    page.wait_for_url(f"{site}/latest/**")
    page.goto(f"{site}/latest/options.html")
    expect(page.locator(".md-version__current")).to_contain_text("0.3")
    page.locator(".md-version__current").focus()
    page.locator(".md-version__link", has_text="0.2").click()
    page.wait_for_url(f"{site}/0.2/**")
    context.close()
