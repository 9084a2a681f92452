"""The demo, the pages and the documentation fit: in light, in dark, and on a telephone.

With ``CM_AUTH_PICTURES=folder`` a picture of each is kept there, to be looked at, and for the
documentation.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from cm_auth_middleware import AuthEngine, __version__
from cm_auth_middleware.testing import AppServer, SimulatorServer
from cm_auth_middleware.web.messages import MESSAGES
from tests.helpers.pictures import ROOT, SCHEMES, SIZES, keep
from tests.helpers.world import SECRET_KEY

from .test_dashboard import dashboard, log_in, pictures
from .test_drawn_pages import gallery

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@dataclass(frozen=True)
class View:
    """A page of a browser of some size and colour scheme.

    Attributes:
        ending: of the names of its pictures.
    """

    page: Page
    ending: str

    def see(self, name: str) -> None:
        """Check that nothing is wider than the window, and keep a picture."""
        size = self.page.viewport_size
        assert size is not None
        wide = self.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= size["width"], f"{name}: {wide} pixels in a window of {size['width']}"
        keep(self.page, f"{name}{self.ending}")


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=SIZES, ids=["desk", "phone"])
def view(request: pytest.FixtureRequest, browser: Browser, scheme: str) -> Iterator[View]:
    context = browser.new_context(
        viewport=SIZES[request.param], color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(15_000)
    yield View(context.new_page(), f"{request.param}-{scheme}")
    context.close()


def test_the_demo_fits(view: View, cm: SimulatorServer) -> None:
    with AppServer(dashboard(cm)) as site:
        view.page.goto(site.url)
        expect(view.page.get_by_label("E-mail")).to_be_visible()
        view.see("simulator-login")
        log_in(view.page, f"{site.url}/")
        assert all(pictures(view.page))
        view.see("demo")
        view.page.goto(f"{site.url}/live")
        expect(view.page.locator("#live img:visible")).to_have_count(3)
        view.see("demo-live")
        view.page.goto("about:blank")  # nothing is asked while the server ends


def test_each_page_fits(view: View) -> None:
    engine = AuthEngine(
        client_id="a", client_secret="b", secret_key=SECRET_KEY, app_name="Camera wall"
    )
    with AppServer(gallery(engine)) as server:
        for kind in MESSAGES:
            view.page.goto(f"{server.url}/{kind}")
            view.see(f"page-{kind}")


@pytest.fixture(scope="module")
def documentation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built documentation."""
    pytest.importorskip("mkdocs", reason="NOT TESTED: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "REPOSITORY_URL": "https://git.example.com/cameras/auth"},
        check=True,
        timeout=300,
    )
    return folder


@pytest.mark.timeout(300)
def test_the_documentation_fits(view: View, documentation: Path) -> None:
    """Its first page in each view; all pages on a telephone."""
    view.page.goto((documentation / "index.html").as_uri())
    assert all(shown(view.page))
    view.see("docs")
    if "phone" in view.ending:
        for path in sorted(documentation.rglob("*.html")):
            name = path.relative_to(documentation).with_suffix("").as_posix()
            if name != "404":  # its style sheets are those of a site's root
                view.page.goto(path.as_uri())
                view.see(f"docs-{name.replace('/', '-')}")


def shown(page: Page) -> list[bool]:
    """Wait for the pictures of this scheme; return for each whether it could be loaded."""
    return page.evaluate(
        """async () => {
             const seen = [...document.images].filter((image) => image.offsetParent);
             for (const image of seen) image.loading = "eager";
             await Promise.all(seen.map((image) => image.decode().catch(() => null)));
             return seen.map((image) => image.naturalWidth > 0);
           }"""
    )


@pytest.mark.timeout(300)
def test_a_page_of_the_documentation_asks_no_other_host(
    browser: Browser, documentation: Path
) -> None:
    """Not even the repository's, for the link to it."""
    context = browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for name in ("index", "dashboards", "options", "quickstart/fastapi"):
        page.goto((documentation / f"{name}.html").as_uri(), wait_until="networkidle")
        expect(page.locator("a.md-source").first).to_have_attribute(
            "href", "https://git.example.com/cameras/auth"
        )
    expect(page.locator(".md-copyright")).to_contain_text(f"Version {__version__}")
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


@pytest.mark.timeout(300)
def test_a_link_to_an_option_leads_to_its_row(view: View, documentation: Path) -> None:
    view.page.goto(f"{(documentation / 'options.html').as_uri()}#absolute_timeout")
    name = view.page.locator("#absolute_timeout")
    expect(name).to_be_in_viewport()
    expect(name).to_have_text("absolute_timeout")
    view.see("docs-option")
