"""Redis: the rights that a store needs are tried, and those that are missing are named."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator

import anyio
import pytest

from cm_auth_middleware.cli import store as store_check
from cm_auth_middleware.cli.findings import ERROR, OK, WARNING, Finding
from cm_auth_middleware.config import CMAuthConfig
from cm_auth_middleware.stores import RedisStore
from cm_auth_middleware.stores.redis_rights import RIGHTS
from tests.helpers.fleets import documented_rights
from tests.helpers.servers import RedisServer, free_port, redis_server, until
from tests.helpers.stores import checks_of
from tests.helpers.world import SECRET_KEY, MakeWorld

CLUSTERS = {"+asking", "+cluster|slots", "+cluster|nodes"}
# Without these, nothing can be asked; the error names them (test_redis_clients.py).
ASKED_FIRST = {"+cluster|slots"}
PATTERNS = ("~cm_auth:*", "~{cm_auth}:*")


@pytest.fixture(scope="module")
def single() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def node() -> Iterator[RedisServer]:
    """The only node of a cluster."""
    with redis_server("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as node:
        node.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        until(lambda: b"cluster_state:ok" in node.command("CLUSTER", "INFO"))
        yield node


@pytest.fixture(params=["asyncio", "trio", "threads"])
def side(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a check with a store, on each side."""
    return checks_of(request.param, RedisStore)


def permit(server: RedisServer, *words: str) -> None:
    """Let the user "cameras" do this and nothing else."""
    assert server.command("ACL", "SETUSER", "cameras", "reset", "on", ">secret", *words) == (
        b"+OK\r\n"
    )


def documented(but: str = "") -> list[str]:
    return [word for word in documented_rights().split() if word != but]


def findings(url: str) -> list[Finding]:
    config = CMAuthConfig(client_id="id", client_secret="s", secret_key=SECRET_KEY, store=url)
    return list(store_check.check(config))


def test_the_rights_that_are_tried_are_those_of_the_documentation() -> None:
    assert sorted(RIGHTS) == sorted(word for word in documented() if word.startswith("+"))
    assert sorted(PATTERNS) == sorted(word for word in documented() if word.startswith("~"))


@pytest.mark.slow
@pytest.mark.parametrize("right", [*RIGHTS, *PATTERNS])
def test_the_check_names_the_one_right_that_is_missing(
    single: RedisServer, node: RedisServer, right: str
) -> None:
    server, scheme = (node, "redis+cluster") if right in CLUSTERS else (single, "redis")
    permit(server, *documented(but=right))
    url = f"{scheme}://cameras:secret@127.0.0.1:{server.port}?wait_replicas=1&wait_timeout=0.01"
    told = findings(url)
    if right in ASKED_FIRST:
        assert [finding.level for finding in told] == [ERROR]
        assert "the command CLUSTER SLOTS" in told[0].text
        return
    levels = {"+info": [WARNING, WARNING, OK], "+zrem": [WARNING, OK]}.get(right, [ERROR])
    assert [finding.level for finding in told] == levels
    name = right[1:] if right in PATTERNS else right[1:].upper().replace("|", " ")
    assert told[0].text.endswith(f" {name}")
    assert told[0].advice.startswith(f"ACL SETUSER … {right} (see Redis rights")
    if right == "+info":
        assert "failover loses are not put back" in told[1].text
    permit(server, *documented(but=right), *re.findall(r"[+~]\S+", told[0].advice))
    assert [finding.level for finding in findings(url)] == [OK], "what it says is enough"


@pytest.mark.slow
def test_the_check_names_all_that_is_missing_on_any_node_and_leaves_nothing(
    side: Callable[..., None], single: RedisServer, node: RedisServer
) -> None:
    async def check(store: RedisStore) -> None:
        assert await store.refused_rights() == ["+del", "+scan", "~{cm_auth}:*"]

    for server, scheme in ((single, "redis"), (node, "redis+cluster")):
        server.command("FLUSHALL")
        lacking = {"+del", "+scan", "~{cm_auth}:*", "+wait"}
        permit(server, *(word for word in documented() if word not in lacking))
        side(check, f"{scheme}://cameras:secret@127.0.0.1:{server.port}")
        assert server.command("DBSIZE") == b":0\r\n"


@pytest.mark.slow
def test_another_database_needs_the_right_to_select_it(single: RedisServer) -> None:
    permit(single, *documented())
    url = f"redis://cameras:secret@127.0.0.1:{single.port}/1"
    told = findings(url)
    assert told[0].level == ERROR
    assert told[0].advice.startswith("ACL SETUSER … +select (")
    permit(single, *documented(), "+select")
    assert [finding.level for finding in findings(url)] == [OK]


@pytest.mark.slow
def test_a_password_that_is_refused_is_no_missing_right(single: RedisServer) -> None:
    (finding,) = findings(f"redis://cameras:wrong@127.0.0.1:{single.port}")
    assert finding.level == ERROR
    assert "refuses the user or the password" in finding.text


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize(("but", "times"), [("", 0), ("+info", 1)])
async def test_an_application_that_cannot_see_failovers_says_so_once(
    single: RedisServer,
    make_world: MakeWorld,
    caplog: pytest.LogCaptureFixture,
    but: str,
    times: int,
) -> None:
    caplog.set_level(logging.INFO, "cm_auth_middleware")
    permit(single, *documented(but))
    world = make_world(store=f"redis://cameras:secret@127.0.0.1:{single.port}")
    browser = await world.login()
    for _ in range(3):  # the store is looked at twice a second
        assert (await browser.get("/cameras")).status_code == 200
        await anyio.sleep(0.5)
    events = [getattr(record, "event", "") for record in caplog.records]
    assert events.count("failovers_unseen") == times
