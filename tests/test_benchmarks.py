"""The benchmarks: their page can be written anew, and they fill a store as the store does."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from redis import Redis

from benchmarks import store as filling
from benchmarks.__main__ import _MODULES, _README
from benchmarks.measure import Spread
from benchmarks.report import Figure, section, write_section
from cm_auth_middleware.stores import RedisStore
from tests.helpers.servers import redis_server

FIGURES = [
    Figure("one", "reached", 2.0, "ms", Spread(0.5, 0.4, 0.6), "another", "<= 1"),
    Figure("one", "not reached", 2.0, "ms", Spread(1.5, 1.4, 1.6), "another", "<= 1"),
    Figure("two", "without a target", 3.0, "MB"),
]


def test_the_page_names_each_benchmark() -> None:
    named = re.findall(r"^\| `([a-z-]+)` \|", _README.read_text(), re.MULTILINE)
    assert named == list(_MODULES)


def test_the_tables_of_a_run_take_the_place_of_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.report._COMPARED", ("pytest",))  # which is installed
    page = tmp_path / "README.md"
    page.write_text(_README.read_text())
    write_section(page, section(FIGURES, "today"))
    once = page.read_text()
    write_section(page, section(FIGURES, "today"))
    assert page.read_text() == once
    assert "\n### one\n" in once
    assert "\n### two\n" in once
    assert "Targets that were not reached: not reached (one)." in once
    assert "### request-path" not in once
    assert once.startswith("# What it costs")
    assert "\n## Where the time goes\n" in once


def test_a_page_without_a_place_for_the_tables_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("no marks")
    with pytest.raises(RuntimeError, match="no place"):
        write_section(page, "tables")
    assert page.read_text() == "no marks"


def test_a_start_is_measured_with_nothing_that_pip_would_not_install() -> None:
    program = """
import sys
before = {name.partition(".")[0] for name in sys.modules}  # of the tests' own environment
from benchmarks import started
import cm_auth_middleware.engine, cm_auth_middleware.client, httpcore2, authlib.oauth2.rfc7636
found = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
print(*found - before - set(sys.stdlib_module_names))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    loaded = set(done.stdout.decode().split()) - {"benchmarks"}
    assert "httpcore2" in loaded
    distributions = packages_distributions()
    found = {_name(name) for package in loaded for name in distributions.get(package, [package])}
    assert found - _installed_with("cm_auth_middleware") == set()


def _installed_with(distribution: str) -> set[str]:
    """Return the distributions that one needs, and those that they need, without extras."""
    found, left = set[str](), {_name(distribution)}
    while left:
        found.add(name := left.pop())
        needed = {line for line in requires(name) or [] if "extra ==" not in line}
        left |= {_name(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in needed} - found
        left -= {name for name in left if _is_missing(name)}
    return found


def _name(distribution: str) -> str:
    """Return a distribution's name as all of them are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _is_missing(distribution: str) -> bool:
    """Return True if it is for another platform or Python."""
    try:
        requires(distribution)
    except PackageNotFoundError:
        return True
    return False


@pytest.mark.slow
def test_a_redis_is_filled_with_what_the_store_writes() -> None:
    with redis_server() as server:
        filling._fill(server.url, 25)
        with Redis.from_url(server.url) as client:
            [index, *_] = indexes = list(client.scan_iter("cm_auth:u:*"))
            [record, *_] = client.scan_iter("cm_auth:s:*")
            assert len(indexes) == 25
            for name in (index, record):
                assert 3_500_000 < client.pttl(name) <= 3_600_000
        tag = bytes.fromhex(index.decode().removeprefix("cm_auth:u:"))

        async def look() -> tuple[int, list[tuple[str, bytes]]]:
            store = RedisStore(server.url)
            try:
                return await store.count(b"\x04"), await store.find(tag)
            finally:
                await store.close()

        count, found = asyncio.run(look())
        assert count == 25
        assert [value[:17] for _, value in found] == [tag]
