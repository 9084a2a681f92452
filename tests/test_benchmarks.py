"""The benchmarks: their page can be written anew, and they fill a store as the store does."""

from __future__ import annotations

import asyncio
import re
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
