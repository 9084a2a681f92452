"""A FastAPI and a Flask app with one secret key and one store are one site to the user."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from cm_auth_middleware import CMAuthWSGIMiddleware
from tests.helpers.apps import make_wsgi_app
from tests.helpers.world import CM, HTML, World

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("first", "second"), [("asgi", "wsgi"), ("wsgi", "asgi")])
async def test_a_login_at_one_counts_at_the_other_until_a_logout_at_either(
    tmp_path: Path, first: str, second: str
) -> None:
    store = f"sqlite:///{tmp_path / 'sessions.db'}"
    one, two = World(side=first, store=store), World(side=second, store=store)
    two.net.apps[CM] = one.net.apps[CM]  # one upstream
    browser = await one.login()
    cookie = browser.named("cm_auth")[0]
    other = two.browser(Cookie=f"cm_auth={cookie}")
    assert (await other.get("/")).text == "/? anna@example.com"
    assert len((await other.get("/cameras")).json()) == 4

    one.sim.expire_access_tokens()  # a refresh at one serves the other
    assert (await browser.get("/cameras")).status_code == 200
    assert (await other.get("/cameras")).status_code == 200
    assert len(one.sim.token_calls("refresh_token")) == 1

    await other.post("/data", json={"from": second})
    assert (await browser.get("/data")).json() == {"from": second}

    assert (await other.post("/auth/logout")).status_code == 303
    assert (await browser.get("/")).status_code == 302
    await one.close()
    await two.close()


async def test_the_cookies_are_the_same_on_both_sides() -> None:
    lines = []
    for side in ("asgi", "wsgi"):
        world = World(side=side)
        browser = world.browser()
        start = await browser.get("/")
        back = await browser.get(browser.callback_url(start.headers["location"]))
        cookies = start.headers.get_list("set-cookie") + back.headers.get_list("set-cookie")
        lines.append([[part.partition("=")[0] for part in line.split("; ")] for line in cookies])
        lines[-1] = [[name[:13] for name in line] for line in lines[-1]]  # the state's hash differs
        await world.close()
    assert lines[0] == lines[1]


async def test_one_engine_serves_both_kinds_of_app_at_once() -> None:
    world = World(side="asgi")
    flask_site = "http://localhost:8001"
    app = CMAuthWSGIMiddleware(make_wsgi_app(), engine=world.engine)
    world.net.add_wsgi(flask_site, app)
    browser = await world.login()
    cookie = {"Cookie": f"cm_auth={browser.named('cm_auth')[0]}", **HTML}
    async with httpx2.AsyncClient(transport=world.net, headers=cookie) as other:
        assert len((await other.get(f"{flask_site}/cameras")).json()) == 4
        sessions = await world.engine.sessions(10003)
        assert [info.logged_in_at for info in sessions] == [world.clock.now]
        assert await world.engine.logout_user(10003) == 1
        assert (await other.get(f"{flask_site}/cameras")).status_code == 302
    assert (await browser.get("/cameras")).status_code == 302
    await world.close()
