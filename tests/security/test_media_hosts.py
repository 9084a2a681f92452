"""The hosts with videos of Eagle Eye's API v3: who sends the bearer there, and to no other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware import ConfigError
from cm_auth_middleware.proxy import CMProxy, CMWSGIProxy
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.browser import Browser
from tests.helpers.eagleeye import ANNAS, AUTH, BOBS, bearers, exported
from tests.helpers.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MEDIA = "https://media.c002.eagleeyenetworks.com"  # of Anna's account
VIDEO = "/media/streams/preview/multipart"
RULES = ["GET /feeds", "GET /cameras/*"]
OF_MJPEG = "multipart/x-mixed-replace; boundary=frame"


@pytest.fixture
def provider() -> str:
    return "eagleeye"


@pytest.fixture
def live(make_world: Callable[..., World]) -> World:
    """A world whose servers have the names of the live ones; no socket is opened."""
    return make_world(base_url=AUTH)


@pytest.fixture
def proxied(make_world: Callable[..., World], side: str) -> World:
    return make_world(base_url=AUTH, app=relaying(side))


def relaying(side: str, **options: Any) -> Any:
    """An application with a proxy that relays to media hosts, too."""
    rules: dict[str, Any] = {"allow": RULES, "media": [f"GET {VIDEO}"], **options}
    if side == "asgi":
        return make_app([Mount("/cm", CMProxy(**rules))])
    return DispatcherMiddleware(make_wsgi_app(), {"/cm": CMWSGIProxy(**rules)})


async def preview(world: World, client: Any) -> str:
    """Where the API says that two pictures of a camera are."""
    query = {"deviceId": "000007d1", "type": "preview", "include": "multipartUrl"}
    listed = await world.on_its_side(lambda: client.get("/feeds", params=query))
    [feed] = listed.json()["results"]
    return f"{feed['multipartUrl']}&frames=2&resolution=64x36"


async def preview_path(browser: Browser) -> str:
    """Where a page asks the proxy for them."""
    listed = await browser.get("/cm/feeds?deviceId=000007d1&type=preview&include=multipartUrl")
    video = httpx2.URL(listed.json()["results"][0]["multipartUrl"])
    return f"/cm/{video.host}{video.raw_path.decode()}&frames=2&resolution=64x36"


async def test_a_media_host_gets_the_bearer_if_the_request_says_so(live: World) -> None:
    """31: and not without."""
    client = await exported(live, await live.login())
    url = await preview(live, client)
    assert url.startswith(f"{MEDIA}:443{VIDEO}?")
    assert (await live.on_its_side(lambda: client.get(url))).status_code == 401
    assert bearers(live) == {ANNAS}
    answer = await live.on_its_side(lambda: client.get(url, auth=client.media_auth))
    assert (answer.status_code, answer.headers["content-type"]) == (200, OF_MJPEG)
    assert answer.content.count(b"--frame\r\n") == 2
    assert bearers(live) == {ANNAS, MEDIA}
    assert "authorization" not in answer.request.headers


async def test_a_401_of_a_media_host_is_answered_by_a_refresh(live: World) -> None:
    """31: as at the API, and the new token goes where the old one went."""
    client = await exported(live, await live.login())
    url = await preview(live, client)
    live.sim.expire_access_tokens()
    answer = await live.on_its_side(lambda: client.get(url, auth=client.media_auth))
    assert answer.status_code == 200
    assert [call.status for call in live.sim.calls(VIDEO)] == [401, 200]
    assert len(live.sim.token_calls("refresh_token")) == 1


async def test_the_cookie_of_a_media_session_stays_with_the_client(live: World) -> None:
    """32: it is that of Eagle Eye's own players."""
    client = await exported(live, await live.login())
    url = (await live.on_its_side(lambda: client.get("/media/session"))).json()["url"]
    answer = await live.on_its_side(lambda: client.get(url, auth=client.media_auth))
    assert (answer.status_code, len(client.cookies)) == (204, 1)


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/x",
        "https://media.c002.eagleeyenetworks.com.evil.example/x",
        "https://evileagleeyenetworks.com/x",
        "http://media.c002.eagleeyenetworks.com/x",
        "http://media.c002.eagleeyenetworks.com:443/x",
        "https://name:word@media.c002.eagleeyenetworks.com/x",
        "https://media.c002.eagleeyenetworks.com./x",
        "https://xn--mdia-bpa.eagleeyenetworks.com/x",
        "https://1.2.3.4/x",
        "https://[::1]/x",
        "http://127.0.0.1:9400/x",
    ],
)
async def test_no_other_host_gets_it_though_the_request_says_so(live: World, url: str) -> None:
    """31: other domains, look-alikes, http, user parts, addresses, this machine."""
    client = await exported(live, await live.login())
    before = len(live.net.seen)
    with suppress(httpx2.ConnectError):
        await live.on_its_side(lambda: client.get(url, auth=client.media_auth))
    assert len(live.net.seen) == before + 1
    assert bearers(live) == {ANNAS}


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example",
        "https://media.c001.eagleeyenetworks.com",  # one that could have been asked
        MEDIA.replace("https:", "http:"),
        f"{MEDIA}:8443",
        BOBS,
    ],
)
async def test_a_media_host_that_redirects_takes_the_bearer_nowhere(
    live: World, target: str
) -> None:
    """31: the request says so of one host."""
    client = await exported(live, await live.login())
    live.net.add(MEDIA, RedirectResponse(f"{target}/y"))
    live.net.add(target, PlainTextResponse("stranger"))
    answer = await live.on_its_side(
        lambda: client.get(f"{MEDIA}/x", auth=client.media_auth, follow_redirects=True)
    )
    assert answer.text == "stranger"
    assert bearers(live) == {ANNAS, MEDIA}


async def test_the_api_that_redirects_to_a_media_host_takes_the_bearer_nowhere(live: World) -> None:
    """31: the request did not say so, or said so of the API's host."""
    client = await exported(live, await live.login())
    live.net.add(MEDIA, PlainTextResponse("stranger"))
    for options in ({}, {"auth": client.media_auth}):
        answer = await live.on_its_side(
            lambda options=options: client.get(
                "/redirect", params={"to": f"{MEDIA}/x"}, follow_redirects=True, **options
            )
        )
        assert answer.text == "stranger"
    assert bearers(live) == {ANNAS}


@pytest.mark.parametrize(
    ("origin", "status"), [("http://127.0.0.1:9400", 404), ("http://127.0.0.1:9401", None)]
)
async def test_on_this_machine_the_simulators_port_gets_it_and_no_other(
    make_world: Callable[..., World], origin: str, status: int | None
) -> None:
    """31: the programs beside it are not the server's."""
    world = make_world()
    client = await exported(world, await world.login())
    with suppress(httpx2.ConnectError):
        answer = await world.on_its_side(lambda: client.get(f"{origin}/x", auth=client.media_auth))
        assert answer.status_code == status
    assert (origin in bearers(world)) == (status is not None)


async def test_cameramanager_has_no_media_host(make_world) -> None:
    """31: there the token goes to base_url alone, whatever a request says."""
    world = make_world(provider="cameramanager")
    client = await exported(world, await world.login())
    before = len(world.net.seen)
    for url in (f"{MEDIA}/x", "http://localhost:9400/rest/v2.4/cameras"):
        with suppress(httpx2.ConnectError):
            await world.on_its_side(lambda url=url: client.get(url, auth=client.media_auth))
    seen = world.net.seen[before:]
    assert [request.headers.get("authorization") for request in seen] == [None, None]


async def test_live_pictures_come_through_the_proxy(proxied: World) -> None:
    """31: by a rule, in a page that has no token."""
    anna = await proxied.login()
    path = await preview_path(anna)
    proxied.sim.expire_access_tokens()
    answer = await anna.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, OF_MJPEG)
    assert answer.content.count(b"--frame\r\n") == 2
    assert len(proxied.sim.token_calls("refresh_token")) == 1
    session = path.partition("/media/")[0] + "/media/session"
    assert (await anna.get(session)).status_code == 404  # no rule
    assert (await anna.get(f"/cm{VIDEO}?esn=000007d1")).status_code == 404  # no host
    assert (await anna.get(f"{path}&access_token=x")).status_code == 400
    written = await anna.post(path, headers={"Sec-Fetch-Site": "same-origin"})
    assert written.status_code == 405


async def test_with_cameramanager_the_proxy_relays_to_no_media_host(
    make_world: Callable[..., World], side: str
) -> None:
    """31: there is none, whatever a rule says."""
    world = make_world(provider="cameramanager", app=relaying(side))
    anna = await world.login()
    before = len(world.net.seen)
    for host in ("media.c002.eagleeyenetworks.com", "localhost:9400", "127.0.0.1:9400"):
        assert (await anna.get(f"/cm/{host}{VIDEO}?esn=000007d1&frames=1")).status_code == 404
    assert {request.url.host for request in world.net.seen[before:]} == {"localhost"}
    assert not world.sim.calls(VIDEO)


async def test_what_a_media_host_answers_is_not_kept(
    make_world: Callable[..., World], side: str
) -> None:
    """31: nor asked of the API's host, where a rule for what is kept names such a path."""
    video = "GET " + VIDEO.replace("/multipart", "/*")
    rules = [f"GET /x{VIDEO}", "GET /feeds"]
    kept = {f"/*{VIDEO}": 60}
    world = make_world(base_url=AUTH, app=relaying(side, allow=rules, media=video, cache=kept))
    anna = await world.login()
    url = await preview_path(anna)
    for _ in range(2):
        assert (await anna.get(url)).status_code == 200
    assert [call.status for call in world.sim.calls(VIDEO)] == [200, 200]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "media.c002.eagleeyenetworks.com.evil.example",
        "Media.c002.eagleeyenetworks.com",
        "name@media.c002.eagleeyenetworks.com",
        "media.c002.eagleeyenetworks.com:0",
        "media.c002.eagleeyenetworks.com:99999",
        "media.c002.eagleeyenetworks.com:+443",
        "media.c002.eagleeyenetworks.com:",
        "localhost:9400",
        "1.2.3.4",
    ],
)
async def test_the_proxy_relays_to_no_host_of_another_server(proxied: World, host: str) -> None:
    """31: though the page chooses the host."""
    anna = await proxied.login()
    before = len(proxied.net.seen)
    answer = await anna.get(f"/cm/{host}{VIDEO}?esn=000007d1&frames=1")
    assert answer.status_code == 404
    assert [request.url.host for request in proxied.net.seen[before:]] == ["localhost"]
    assert bearers(proxied) == {ANNAS}


def test_a_rule_for_media_that_is_wrong_names_its_option() -> None:
    """31: at start-up."""
    with pytest.raises(ConfigError, match="media has the rule 'GET'"):
        CMProxy(allow=RULES, media=["GET"])
    assert CMWSGIProxy(allow=RULES, media=f"GET {VIDEO}")
