"""The documentation: every piece of Python in it runs, and what it names exists."""

from __future__ import annotations

import ast
import html
import json
import os
import re
import runpy
import subprocess
import sys
import textwrap
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from cm_auth_middleware import CMAuthConfig, MemoryStore
from tests.helpers.pictures import HOOK, asked_for, in_readme

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
MATRIX = ("quickstart/django.md", "quickstart/litestar.md", "quickstart/quart.md")
_BLOCK = re.compile(
    r"^(?P<indent> *)```python(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^(?P=indent)```$",
    re.M | re.S,
)
_FRAGMENT = re.compile(r"<!-- fragment: (.+) -->\s*\Z")


@dataclass(frozen=True)
class Block:
    title: str | None
    code: str
    why_not: str | None  # it is not run


def blocks_of(text: str) -> list[Block]:
    found = []
    for match in _BLOCK.finditer(text):
        fragment = _FRAGMENT.search(text[: match.start()])
        code = textwrap.dedent(match["code"])
        found.append(Block(match["title"], code, fragment and fragment[1]))
    return found


def blocks(page: str) -> list[Block]:
    return blocks_of((DOCS / page).read_text())


def with_marks(page: str) -> object:
    return pytest.param(page, marks=[pytest.mark.matrix] if page in MATRIX else [])


@pytest.mark.slow
@pytest.mark.parametrize("page", [with_marks(page) for page in PAGES if blocks(page)])
def test_the_code_of_a_page_runs(page: str, tmp_path: Path) -> None:
    """Titled blocks are files; tests among them are run, and so is what they leave untouched."""
    names = []
    for number, block in enumerate(blocks(page)):
        if block.why_not is None:
            name = block.title or f"block_{number}.py"
            assert not (tmp_path / name).exists(), f"{name} is there twice"
            (tmp_path / name).write_text(block.code)
            if not name.startswith(("test_", "conftest")):
                names.append(name)
    (tmp_path / "test_that_each_file_runs.py").write_text(
        "import runpy, pytest\n"
        f"@pytest.mark.parametrize('name', {names})\n"
        "def test_file(name, cm_simulator):\n    runpy.run_path(name)\n"
    )
    clean = {name: v for name, v in os.environ.items() if not name.startswith("CM_AUTH_")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_code_of_the_readme_runs(cm_simulator) -> None:
    given = {"application": object(), "MyStore": MemoryStore}
    names: dict[str, object] = {"__name__": "readme", **given}
    pieces = blocks_of((ROOT / "README.md").read_text())
    assert len(pieces) > 3
    for block in pieces:
        if block.why_not is None:
            code = re.sub(r',? *client_id="…", client_secret="…", secret_key="…"', "", block.code)
            assert "…" not in code
            exec(compile(code, "README.md", "exec", dont_inherit=True), names)


def test_a_test_of_a_users_app_has_ten_lines_at_most() -> None:
    counted = 0
    for page in PAGES:
        for block in blocks(page):
            if block.title and block.title.startswith("test_"):
                counted += 1
                for node in ast.parse(block.code).body:
                    if isinstance(node, ast.FunctionDef):
                        assert node.end_lineno - node.lineno < 10, f"{page}: {node.name}"
    assert counted >= 10


@pytest.mark.parametrize("path", [ROOT / "README.md", *(DOCS / page for page in PAGES)], ids=str)
def test_the_variables_that_a_page_names_are_options(path: Path) -> None:
    known = {f"CM_AUTH_{option.name.upper()}" for option in fields(CMAuthConfig)}
    named = set(re.findall(r"\bCM_AUTH_[A-Z_]*[A-Z]\b", path.read_text()))
    assert {name.removesuffix("_FILE") for name in named} <= known


def test_every_option_is_in_the_table() -> None:
    hook = runpy.run_path(str(DOCS / "_hooks" / "options.py"))
    meanings = hook["documented"]()
    assert list(meanings) == [option.name for option in fields(CMAuthConfig)]
    assert all(len(meaning) > 10 and "``" not in meaning for meaning in meanings.values())
    table = hook["on_page_markdown"]((DOCS / "options.md").read_text())
    leeway = "[`refresh_leeway`](#refresh_leeway){ #refresh_leeway }<br>`CM_AUTH_REFRESH_LEEWAY`"
    assert f"| {leeway} | 60 s | The access token" in table
    assert "| [`allow`](#allow){ #allow } | – |" in table


def test_the_readme_names_every_option() -> None:
    text = (ROOT / "README.md").read_text()
    assert [option.name for option in fields(CMAuthConfig) if f"`{option.name}`" not in text] == []


# What users type into the search, and the entry of docs/limits.md that has the answer.
SEARCHED = {
    "iframe": ["iframe", "embed", "SameSite=None", "Partitioned", "CHIPS"],
    "sub-domains": ["sub-domains", "cookie domain", "Domain=", "one login"],
    "wildcards": ["wildcards", "*.example.com", "allowed_hosts"],
    "session-cookie": ["browser closes", "remember me"],
    "stateless": ["stateless", "JWT"],
    "identity-providers": ["single sign-on", "OpenID Connect", "SAML", "Google", "Microsoft"],
    "single-logout": ["single logout", "back-channel"],
    "several-accounts": ["several accounts", "switch user", "private window"],
    "post-data": ["POST", "form"],
    "fragment": ["fragment", "#cam=3"],
    "roles": ["roles", "permissions", "groups", "require", "scopes"],
    "exempt-decorator": ["exempt", "decorator", "method"],
    "native-apps": ["native apps", "mobile", "API key", "Bearer", "X-Forwarded-User"],
    "access-token": ["access token", "X-Forwarded-Access-Token", "pickled"],
    "wsgi-websockets": ["Flask-Sock", "idle timeout", "close code", "4401"],
    "webhooks": ["webhook", "cron", "monitoring", "machine"],
    "container-image": ["container image", "Docker", "Helm", "Kubernetes"],
    "forward-auth": ["auth_request", "forward auth", "sidecar"],
    "mail-links": ["links in mails", "chat", "snapshot"],
    "no-store": ["no-store", "bfcache", "304", "back button"],
    "offline": ["offline", "service worker", "PWA", "manifest", "use-credentials"],
    "large-sessions": ["16 kB", "session.data", "cache_size"],
    "large-users": ["8 kB", "100 kB", "32 levels", "502"],
    "eight-cookies": ["8 cookies", "neighbouring host"],
    "cookie-names": ["cookie_name", "one host", "Cookie header"],
    "csrf-tokens": ["CSRF"],
    "origin-null": ["Origin: null"],
    "rate-limits": ["rate limit", "CAPTCHA"],
    "x-forwarded": ["X-Forwarded-"],
}


@pytest.mark.slow
def test_what_it_does_not_do_is_found_by_the_words_that_users_type(tmp_path: Path) -> None:
    """In the index that the search of the built pages uses; each entry is one of it."""
    pytest.importorskip("mkdocs", reason="NOT TESTED: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    index = json.loads((tmp_path / "search" / "search_index.json").read_text())
    found = {
        entry["location"].partition("#")[2]: html.unescape(f"{entry['title']} {entry['text']}")
        for entry in index["docs"]
        if entry["location"].startswith("limits.html#")
    }
    headings = {"where-the-cookie-goes", "logging-in-and-out", "clients-that-are-no-browser",
                "websockets-on-wsgi", "caches-and-offline", "sizes",
                "what-is-left-to-others"}  # fmt: skip
    assert set(found) == set(SEARCHED) | headings
    missing = [
        (entry, word)
        for entry, words in SEARCHED.items()
        for word in words
        if word.lower() not in re.sub(r"<[^>]+>", "", found[entry]).lower()
    ]
    assert missing == []


def test_every_picture_that_is_asked_for_is_there() -> None:
    """In light and in dark; ``nox -s pictures`` takes them."""
    asked = asked_for()
    assert "demo" in asked["index.md"]
    assert len(asked["dashboards.md"]) > 8
    files = {name: set(HOOK["files_of"](name)) for names in asked.values() for name in names}
    wanted = {name: {f"{name}-light.webp", f"{name}-dark.webp"} for name in files}
    assert files == wanted
    assert in_readme() == wanted["demo"]


def test_a_picture_is_shown_in_the_scheme_that_it_was_taken_in(tmp_path: Path) -> None:
    hook = runpy.run_path(str(DOCS / "_hooks" / "pictures.py"))
    hook["files_of"].__globals__["FOLDER"] = tmp_path
    for name in ("wall-light.webp", "wall-dark.webp", "plan.webp"):
        (tmp_path / name).touch()
    page = SimpleNamespace(file=SimpleNamespace(src_uri="quickstart/flask.md"))
    made = hook["on_page_markdown"]
    light, dark = (
        f"![Wall](../assets/pictures/wall-{it}.webp#only-{it}){{ .picture loading=lazy }}"
        for it in ("light", "dark")
    )
    assert made("A\n\n    <!-- picture: wall | Wall -->\n\nB", page=page) == (
        f"A\n\n    {light} {dark}\n\nB"
    )
    assert "(../assets/pictures/plan.webp){" in made("<!-- picture: plan | A plan -->", page=page)
    assert made("A\n\n<!-- picture: none | There is none -->\n", page=page) == "A\n\n\n"


def test_the_address_of_the_repository_is_written_where_it_is_known() -> None:
    fill = runpy.run_path(str(DOCS / "_hooks" / "release.py"))["on_page_markdown"]
    text = (DOCS / "install.md").read_text()
    assert "pip install git+https://…\n" in fill(text, config=SimpleNamespace(repo_url=None))
    known = fill(text, config=SimpleNamespace(repo_url="https://git.example.com/cams"))
    assert "pip install git+https://git.example.com/cams\n" in known
    assert "git+https://…" not in known


def test_only_a_site_of_several_versions_asks_for_their_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """tests/browser/test_versions.py makes one."""
    configure = runpy.run_path(str(DOCS / "_hooks" / "release.py"))["on_config"]
    monkeypatch.delenv("MIKE_DOCS_VERSION", raising=False)
    assert configure(SimpleNamespace(extra={})).extra == {}
    monkeypatch.setenv("MIKE_DOCS_VERSION", '{"version": "0.2"}')
    assert configure(SimpleNamespace(extra={})).extra["version"]["provider"] == "mike"
