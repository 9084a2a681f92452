"""Where the bearer may go, if the server says it with its tokens: to its own hosts only."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cm_auth_middleware import EAGLEEYE
from tests.helpers.browser import ANNA, CAMERAS
from tests.helpers.eagleeye import (
    ANNAS,
    AUTH,
    BOBS,
    HALF_A_DAY,
    NAME,
    bearers,
    exported,
    poison,
)  # fmt: skip
from tests.helpers.world import World

pytestmark = pytest.mark.anyio

# Each of these names a host that is not Eagle Eye's, or not plainly so.
POISON: list[Any] = [
    {"hostname": "evil.example", "port": 443},
    {"hostname": "eagleeyenetworks.com", "port": 443},
    {"hostname": "eagleeyenetworks.com.evil.example", "port": 443},
    {"hostname": "api.eagleeyenetworks.com.evil.example", "port": 443},
    {"hostname": "evileagleeyenetworks.com", "port": 443},
    {"hostname": "api.eagleeyenetworks.co", "port": 443},
    {"hostname": "api-eagleeyenetworks.com", "port": 443},
    {"hostname": f"{NAME}:8443", "port": 443},
    {"hostname": f"{NAME}@evil.example", "port": 443},
    {"hostname": f"evil.example@{NAME}", "port": 443},
    {"hostname": f"evil.example/.{NAME}", "port": 443},
    {"hostname": f"evil.example#.{NAME}", "port": 443},
    {"hostname": f"evil.example?.{NAME}", "port": 443},
    {"hostname": f"evil.example\\.{NAME}", "port": 443},
    {"hostname": f"evil.example。{NAME}", "port": 443},
    {"hostname": f"{NAME}/x", "port": 443},
    {"hostname": f"{NAME}.", "port": 443},
    {"hostname": f"{NAME}\n", "port": 443},
    {"hostname": f" {NAME}", "port": 443},
    {"hostname": f".{NAME}", "port": 443},
    {"hostname": "api..eagleeyenetworks.com", "port": 443},
    {"hostname": "-api.eagleeyenetworks.com", "port": 443},
    {"hostname": "api_c.eagleeyenetworks.com", "port": 443},
    {"hostname": "%61pi.eagleeyenetworks.com", "port": 443},
    {"hostname": f"{'a' * 64}.eagleeyenetworks.com", "port": 443},
    {"hostname": f"{'a.' * 150}eagleeyenetworks.com", "port": 443},
    {"hostname": NAME.upper(), "port": 443},
    {"hostname": "Api.c001.eagleeyenetworks.com", "port": 443},
    {"hostname": "apı.eagleeyenetworks.com", "port": 443},
    {"hostname": "ａpi.eagleeyenetworks.com", "port": 443},
    {"hostname": "xn--ap-uia.eagleeyenetworks.com", "port": 443},
    {"hostname": f"http://{NAME}", "port": 443},
    {"hostname": f"https://{NAME}", "port": 443},
    {"hostname": f"//{NAME}", "port": 443},
    {"hostname": "93.184.216.34", "port": 443},
    {"hostname": "1.2.3.4.eagleeyenetworks.com.", "port": 443},
    {"hostname": "127.0.0.1", "port": 443},
    {"hostname": "localhost", "port": 443},
    {"hostname": "[::1]", "port": 443},
    {"hostname": "::1", "port": 443},
    {"hostname": "2130706433", "port": 443},
    {"hostname": "", "port": 443},
    {"hostname": None, "port": 443},
    {"hostname": [NAME], "port": 443},
    {"hostname": {"hostname": NAME}, "port": 443},
    {"hostname": 7, "port": 443},
    {"port": 443},
    {"hostname": NAME, "port": 0},
    {"hostname": NAME, "port": -1},
    {"hostname": NAME, "port": 65_536},
    {"hostname": NAME, "port": 443.5},
    {"hostname": NAME, "port": True},
    {"hostname": NAME, "port": "443"},
    {"hostname": NAME, "port": "443@evil.example"},
    {"hostname": NAME, "port": [443]},
    NAME,
    f"https://{NAME}",
    f"http://{NAME}",
    "https://evil.example",
    [NAME],
    [{"hostname": NAME, "port": 443}],
    7,
    True,
    {},
    None,
]


@pytest.fixture
def provider() -> str:
    return "eagleeye"


@pytest.fixture
def live(make_world) -> World:
    """A world whose servers have the names of the live ones; no socket is opened."""
    world: World = make_world(base_url=AUTH)
    return world


def named(value: Any) -> str:
    return json.dumps(value)[:60]


@pytest.mark.parametrize("value", POISON, ids=named)
def test_a_poisoned_host_is_not_believed(value: Any) -> None:
    """31: also those that a URL parser, a resolver or a person may read as another one."""
    assert EAGLEEYE.api_base({"httpsBaseUrl": value}, AUTH) is None


@pytest.mark.parametrize(
    ("host", "port", "base"),
    [
        (NAME, 443, f"https://{NAME}"),
        (NAME, None, f"https://{NAME}"),
        (NAME, 8443, f"https://{NAME}:8443"),
        (NAME, 80, f"https://{NAME}:80"),
        ("a.b.c-d.9.eagleeyenetworks.com", 65_535, "https://a.b.c-d.9.eagleeyenetworks.com:65535"),
    ],
)
def test_a_host_below_eagle_eye_s_domain_is_believed(host: str, port: int, base: str) -> None:
    """31: at any port that there is."""
    answer = {"httpsBaseUrl": {"hostname": host, "port": port}}
    assert EAGLEEYE.api_base(answer, AUTH) == base


def test_a_host_on_this_machine_is_believed_of_a_server_on_this_machine_only() -> None:
    """31: a simulator, for one."""
    answer = {"httpsBaseUrl": {"hostname": "localhost", "port": 9400}}
    assert EAGLEEYE.api_base(answer, "http://127.0.0.1:9400") == "http://localhost:9400"
    assert EAGLEEYE.api_base(answer, "https://localhost:9400") == "https://localhost:9400"
    for base_url in (AUTH, "https://localhost.evil.example", "http://127.0.0.1.evil.example"):
        assert EAGLEEYE.api_base(answer, base_url) is None


def test_a_provider_of_one_s_own_names_other_domains() -> None:
    """31: and none of them is believed by accident."""
    own = replace(EAGLEEYE, api_domains=("vms.example",))
    answer = {"httpsBaseUrl": {"hostname": "a.vms.example", "port": 443}}
    assert own.api_base(answer, AUTH) == "https://a.vms.example"
    assert EAGLEEYE.api_base(answer, AUTH) is None
    assert replace(own, api_domains=()).api_base(answer, AUTH) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"hostname": "api.evil.example", "port": 8443}, "'api.evil.example:8443'"),
        ("https://api.evil.example", "'https://api.evil.example'"),
        ({"hostname": "a\nb\x1b[31m\u202e", "port": None}, r"'a\nb\x1b[31m\u202e'"),
        ({"hostname": "a" * 5_000, "port": 443}, repr("a" * 100)),
        ({"hostname": [[NAME]], "port": {}}, "''"),
        ([NAME], "''"),
    ],
    ids=lambda value: str(value)[:30].encode("ascii", "replace").decode(),
)
async def test_the_log_says_which_host_was_refused(
    live: World, caplog: pytest.LogCaptureFixture, value: Any, shown: str
) -> None:
    """31: on one short line, whatever the server puts there."""
    browser = await live.login()
    poison(live, value)
    live.clock.tick(HALF_A_DAY)
    await browser.get("/cameras")
    await live.browser().login(email="bob@example.com")
    said = {record.event: record for record in caplog.records if hasattr(record, "event")}
    assert said["api_host_refused"].host == shown
    assert said["login_failed"].reason.endswith(f"that the server names is refused: {shown}")
    assert all("\n" not in record.getMessage() for record in said.values())


QUICK = (  # the others are among the slow tests
    {"hostname": "evil.example", "port": 443},
    {"hostname": f"{NAME}:8443", "port": 443},
    NAME,
    None,
)


@pytest.mark.parametrize(
    "value",
    [pytest.param(value, marks=[] if value in QUICK else [pytest.mark.slow]) for value in POISON],
    ids=named,
)
async def test_a_poisoned_host_fails_a_login_and_a_refresh_keeps_the_old_one(
    live: World, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    """31: the tokens of the refresh are kept, since the old ones are dead."""
    poison(live, value)
    browser = live.browser()
    page = await browser.login()
    assert page.status_code == 502
    assert "evil" not in page.text.lower()
    assert "login_failed" in caplog.text
    assert browser.named("cm_auth") == []
    assert bearers(live) == set()

    live.sim.settings.https_base_url = ""
    browser = await live.login()
    client = await exported(live, browser)
    poison(live, value)
    caplog.clear()
    live.clock.tick(HALF_A_DAY)
    assert (await browser.get("/cameras")).json() == CAMERAS[ANNA]
    assert (await live.on_its_side(lambda: client.get("/cameras"))).status_code == 200
    assert [call.status for call in live.sim.token_calls("refresh_token")] == [200]
    assert ("api_host_refused" in caplog.text) is (value is not None)
    assert bearers(live) == {ANNAS}

    # What came with the poison was not lost: the next refresh names the host as it should.
    live.sim.settings.https_base_url = ""
    live.sim.move_account(ANNA)
    live.clock.tick(HALF_A_DAY)
    assert (await browser.get("/cameras")).json() == CAMERAS[ANNA]
    assert [call.status for call in live.sim.token_calls("refresh_token")] == [200, 200]
    await live.close()
    assert bearers(live) == {ANNAS, BOBS}
