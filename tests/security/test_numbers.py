"""Every line of the list of attacks has its test, or its reason in SECURITY.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ALL = set(range(1, 69))


def numbered() -> dict[int, list[str]]:
    """The tests of each number, which their docstrings begin with ("31: …", "13, 14: …")."""
    found: dict[int, list[str]] = {}
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            begin = re.match(r"((\d+)(, \d+)*): ", ast.get_docstring(node) or "")
            if node.name.startswith("test_") and begin:
                for number in begin[1].split(", "):
                    found.setdefault(int(number), []).append(f"{path.stem}.{node.name}")
    return found


def documented() -> str:
    return (HERE.parents[1] / "SECURITY.md").read_text()


def test_every_line_has_a_test_or_a_reason() -> None:
    """No number is forgotten, and none is made up."""
    reasons = {int(n) for n in re.findall(r"^- Line (\d+) ", documented(), re.MULTILINE)}
    assert ALL <= set(numbered()) | reasons <= ALL


def test_every_line_has_a_promise_in_security_md() -> None:
    """Its column has numbers and ranges of these: "22–26, 62"."""
    promised: set[int] = set()
    for lines in re.findall(r"^\|[^|]+\| ([\d, –]+) \|", documented(), re.MULTILINE):
        for part in lines.split(", "):
            first, _, last = part.partition("–")
            promised |= set(range(int(first), int(last or first) + 1))
    reasons = {int(n) for n in re.findall(r"^- Line (\d+) ", documented(), re.MULTILINE)}
    assert promised | reasons == ALL


@pytest.mark.slow
def test_every_test_says_which_line_it_is_about() -> None:
    """But for those about the helpers."""
    for path in sorted(HERE.glob("test_*.py")):
        if path.stem in ("test_numbers",):
            continue
        for node in ast.parse(path.read_text()).body:
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and node.name[:5] == "test_"
            ):
                docstring = ast.get_docstring(node) or ""
                assert re.match(r"(\d+(, \d+)*: |The )", docstring), f"{path.stem}.{node.name}"


def test_the_table_in_security_md_names_tests_that_exist() -> None:
    """A promise whose test was renamed is none."""
    names = {name for tests in numbered().values() for name in tests}
    modules = {name.partition(".")[0] for name in names}
    said = re.findall(r"`(test_\w+(?:\.test_\w+)?)`", documented())
    assert said
    assert [name for name in said if name not in names | modules | {"test_numbers"}] == []
