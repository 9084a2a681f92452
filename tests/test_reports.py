"""What users of such software reported has a test or a sentence in the documentation, by number.

The numbers are those of the issue "What users of such software report". The docstring of a test
begins with that of its report ("R24: …"), in tests/security after the line of that list ("51: R1:
…").
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALL = {
    1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19, 20, 22, 23, 24, 25, 27, 28, 29, 30, 31, 32, 33,
    34, 35, 36, 37, 39, 40, 41, 42, 43, 44, 45, 47, 48, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 61,
    62, 63, 64, 65,
}  # fmt: skip

# What stays as it is by decision, lies with others, or has to be written down, and where that is: a
# page and the anchor of a section, and words of that section. The last one is a run of its own.
SAID = {
    7: ("docs/limits.md", "wsgi-websockets", "messages do not count as activity"),
    11: ("docs/front-ends.md", "a-front-end-on-another-origin", "**The order matters.**"),
    13: ("docs/deployment.md", "health-checks", "`/auth/session` says nothing about the store"),
    14: ("docs/deployment.md", "a-proxy-before-it", "proxy_set_header Host $http_host;"),
    28: ("docs/deployment.md", "socketio", "wrap first, then `CMAuth(app)`"),
    29: ("docs/deployment.md", "mod_wsgi", "WSGIApplicationGroup %{GLOBAL}"),
    32: ("docs/limits.md", "fragment", "It never reaches a server."),
    34: ("docs/limits.md", "iframe", "there is\nno option for `SameSite=None`"),
    36: ("docs/limits.md", "sub-domains", "the cookie has no `Domain`"),
    40: ("docs/limits.md", "no-store", "ask for styles and scripts each time"),
    42: ("docs/origins.md", "development-servers", "CM_AUTH_REDIRECT_URI=http://localhost:5173/"),
    43: ("docs/origins.md", "403-cross-site-request-refused", "`Referrer-Policy: same-origin`"),
    44: ("docs/testing.md", "logging-in-cm_login", "http://testserver"),
    53: ("docs/how-it-works.md", "back-to-the-same-url", "encodeURIComponent(page)"),
    55: ("docs/limits.md", "offline", 'crossorigin="use-credentials"'),
    57: ("docs/deployment.md", "dragonfly", "Redis and Valkey are supported"),
    64: ("docs/troubleshooting.md", "your-login-did-not-stick", "proxy_cookie_path"),
    25: ("noxfile.py", "", "with the lowest version of each dependency"),
}
_NUMBERS = re.compile(r"(?:\d+(?:, \d+)*: )?(R\d+(?:, R\d+)*)\b")


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield the docstrings of all tests, and of their classes and files, with names."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        yield path.stem, ast.get_docstring(tree) or ""
        for node in ast.walk(tree):
            is_named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if is_named and node.name.startswith(("test_", "Test")):
                yield f"{path.stem}.{node.name}", ast.get_docstring(node) or ""


def by_number() -> dict[int, list[str]]:
    """The tests of each report."""
    found: dict[int, list[str]] = {}
    for name, docstring in docstrings():
        begin = _NUMBERS.match(docstring)
        for number in begin[1].split(", ") if begin else ():
            found.setdefault(int(number[1:]), []).append(name)
    return found


def section(page: str, anchor: str) -> str:
    """The text from an anchor to the next heading; all of the page if there is none."""
    text = (ROOT / page).read_text()
    if not anchor:
        return text
    begin = re.search(rf"\{{ ?#{re.escape(anchor)} ?\}}", text)
    if begin is None:
        begins = [m for m in re.finditer(r"^#+ (.+)$", text, re.M) if slug(m[1]) == anchor]
        assert begins, f"{page} has no {anchor}"
        begin = begins[0]
    return re.split(r"^#+ ", text[begin.end() :], maxsplit=1, flags=re.M)[0]


def slug(heading: str) -> str:
    """The anchor that the documentation makes of a heading."""
    words = re.sub(r"[^\w\s-]", "", heading).strip().lower()
    return re.sub(r"[-\s]+", "-", words)


def test_the_lowest_versions_are_tried() -> None:
    """R25: floors that exclude each other cannot be installed together."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert any("nox" in line and "-s lowest" in line for line in lines)
    assert [line for line in lines if line.endswith(" lowest_versions")] != []


@pytest.mark.slow
def test_every_report_has_a_test_or_a_sentence() -> None:
    """No number is forgotten, and none is made up."""
    assert set(by_number()) | set(SAID) == ALL


@pytest.mark.parametrize("number", sorted(SAID))
def test_a_sentence_stands_where_it_is_said_to(number: int) -> None:
    page, anchor, words = SAID[number]
    assert words in section(page, anchor)
