"""A second, made-up server that differs from CameraManager in each point of `Provider`.

It is the simulator behind a translation: what comes in is checked and made into CameraManager's
words, what goes out into the made-up server's.
"""

from __future__ import annotations

import base64
import json
from dataclasses import fields
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import Response

from cm_auth_middleware import CMAuthConfig, ConfigError
from cm_auth_middleware.tokens.provider import CAMERAMANAGER, Provider
from tests.helpers.browser import Browser
from tests.helpers.world import CM, JSON, SECRET_KEY, World

pytestmark = pytest.mark.anyio

LIFETIME = 43_300
CLIENT_ID, CLIENT_SECRET = "an:id/1", "100%+secret:"
MADE_UP = Provider(
    name="Made Up",
    base_url="https://auth.made-up.example",
    scopes=("all.things",),
    authorize_path="/oauth2/login",
    token_path="/oauth2/exchange",
    api_path="/api/v9",
    user_path="/me",
    user_id_field="id",
    logout_path="/oauth2/revoke",
    revokes_refresh_tokens=True,
    encodes_key=True,
    key_errors=frozenset({"bad_key"}),
    is_grant_over=lambda status, _: status == 401,
    api_host_field="api",
    api_domains=("made-up.example",),
)
API = "http://localhost:9500"


class MadeUp:
    """Speaks the made-up server's words to the middleware and CameraManager's to the simulator.

    Attributes:
        strays: requests that the made-up server does not know.
        revoked: refresh tokens that were revoked.
        refuses_key: True if the API key is refused from now on.
    """

    def __init__(self, world: World) -> None:
        self.sim = world.sim
        self.strays: list[str] = []
        self.revoked: list[str] = []
        self.refuses_key = False
        for origin in (CM, API):
            world.net.add(origin, self, "asgi")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        await (await self.answer(request))(scope, receive, send)

    async def answer(self, request: Request) -> Response:
        method, path = request.method, request.url.path
        if path.startswith("/api/") != str(request.url).startswith(API):
            self.strays.append(f"{method} {request.url}")
        if (method, path) == ("POST", "/oauth2/exchange"):
            return await self.exchange(request)
        if (method, path) == ("POST", "/oauth2/revoke"):
            return await self.revoke(request)
        if (method, path) == ("GET", "/api/v9/me"):
            answer = await self.ask("GET", "/rest/v2.3/users/self", request)
            user = answer.json()
            user["id"] = user.pop("userId", None)
            return Response(json.dumps(user), answer.status_code)
        if path.startswith("/api/v9/rest/"):
            answer = await self.ask(method, path.removeprefix("/api/v9"), request)
            return Response(answer.content, answer.status_code)
        self.strays.append(f"{method} {path}")
        return Response("not here", 404)

    async def exchange(self, request: Request) -> Response:
        if not self.knows_key(request):
            return Response('{"error": "bad_key"}', 403)
        form = {key: values[0] for key, values in parse_qs((await request.body()).decode()).items()}
        assert form.pop("scope") == "all.things"
        answer = await self.ask("POST", "/oauth/token", request, {**form, "scope": "write"})
        if answer.status_code != 200:
            return Response("<h1>No</h1>", 401, media_type="text/html")
        api = {"hostname": "localhost", "port": 9500}
        return Response(json.dumps({**answer.json(), "scope": "all.things", "api": api}))

    async def revoke(self, request: Request) -> Response:
        assert self.knows_key(request)
        [token] = parse_qs((await request.body()).decode())["token"]
        assert token in self.sim._tokens.refresh
        self.revoked.append(token)
        [email] = [u.email for u in self.sim.users if str(u.user_id) == token.partition(":")[2]]
        self.sim.revoke_user(email)
        return Response(status_code=200)

    def knows_key(self, request: Request) -> bool:
        kind, _, value = request.headers["authorization"].partition(" ")
        parts = base64.b64decode(value).decode().split(":")  # its own colons are encoded
        key = [unquote(part) for part in parts]
        return not self.refuses_key and (kind, key) == ("Basic", [CLIENT_ID, CLIENT_SECRET])

    async def ask(
        self, method: str, path: str, request: Request, form: dict[str, str] | None = None
    ) -> httpx2.Response:
        headers = {"Accept": "application/json"}
        auth = None
        if form is None:
            headers["Authorization"] = request.headers.get("authorization", "")
        else:
            auth = (self.sim.client_id, self.sim.client_secret)
        transport = httpx2.ASGITransport(self.sim)
        async with httpx2.AsyncClient(transport=transport, base_url=CM) as client:
            return await client.request(method, path, headers=headers, data=form, auth=auth)


@pytest.fixture
def world(make_world) -> World:
    return make_world(provider=MADE_UP, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)


@pytest.fixture
def server(world: World) -> MadeUp:
    return MadeUp(world)


async def log_in(world: World) -> Browser:
    browser = world.browser()
    start = await browser.get("/")
    url = urlsplit(start.headers["location"])
    query = {key: values[0] for key, values in parse_qs(url.query).items()}
    assert f"{url.scheme}://{url.netloc}{url.path}" == f"{CM}/oauth2/login"
    assert (query["scope"], query["client_id"]) == ("all.things", CLIENT_ID)
    # The person is logged in at the simulator, which has another scope.
    back = await browser.finish(f"{CM}/oauth/authorize?{urlencode({**query, 'scope': 'write'})}")
    assert back.status_code == 200, back.text
    return browser


def test_the_made_up_server_differs_in_each_point() -> None:
    for field in fields(Provider):
        assert getattr(MADE_UP, field.name) != getattr(CAMERAMANAGER, field.name), field.name


async def test_a_login_a_call_a_refresh_and_a_logout_work_there_too(world, server) -> None:
    browser = await log_in(world)
    assert len((await browser.get("/cameras")).json()) == 4
    info = (await browser.get("/auth/session")).json()
    assert (info["user"]["id"], info["user"]["email"]) == (10003, "anna@example.com")
    assert (await browser.get("/state")).json()["scope"] == "all.things"
    assert len(await world.on_its_side(lambda: world.engine.sessions(10003))) == 1

    world.clock.tick(LIFETIME)
    assert len((await browser.get("/cameras")).json()) == 4
    assert [c.status for c in world.sim.token_calls("refresh_token")] == [200]

    await world.close()  # the user is read anew beside the request
    world.sim.expire_access_tokens()  # a logout there needs no living one
    assert (await browser.post("/auth/logout")).status_code == 303
    assert len(server.revoked) == 1
    assert len(world.sim.token_calls("refresh_token")) == 1
    assert world.sim.refresh_tokens == 0
    assert (await browser.get("/")).status_code == 302
    assert server.strays == []


async def test_a_refusal_by_its_status_alone_ends_the_session(world, server) -> None:
    browser = await log_in(world)
    world.sim.revoke_user("anna@example.com")
    world.clock.tick(LIFETIME)
    assert (await browser.get("/cameras")).status_code == 302
    assert (await browser.get("/cameras", headers=JSON)).status_code == 401
    assert len(await world.on_its_side(lambda: world.engine.sessions(10003))) == 0
    assert (await log_in(world)).named("cm_auth")


async def test_a_refused_key_ends_no_session(world, server, caplog) -> None:
    browser = await log_in(world)
    world.clock.tick(LIFETIME)
    server.refuses_key = True
    assert (await browser.get("/cameras", headers=JSON)).status_code == 503
    assert "api_key_refused" in caplog.text
    server.refuses_key = False
    world.clock.tick(5)
    assert (await browser.get("/cameras")).status_code == 200


async def test_a_login_of_another_user_in_the_same_browser_logs_the_first_out(
    world, server
) -> None:
    browser = await log_in(world)
    start = await browser.get("/auth/login")
    query = {k: v[0] for k, v in parse_qs(urlsplit(start.headers["location"]).query).items()}
    url = f"{CM}/oauth/authorize?{urlencode({**query, 'scope': 'write'})}"
    assert (await browser.finish(url, "bob@example.com")).status_code == 200
    assert len(server.revoked) == 1
    assert await world.on_its_side(lambda: world.engine.sessions(10003)) == []


def options(**given: Any) -> CMAuthConfig:
    key = {"client_id": "id", "client_secret": "secret", "secret_key": SECRET_KEY}
    return CMAuthConfig(**{**key, **given})


def test_the_provider_gives_the_defaults() -> None:
    assert (options().base_url, options().scope) == ("https://rest.cameramanager.com", "write")
    other = options(provider=MADE_UP)
    assert (other.base_url, other.scope) == ("https://auth.made-up.example", "all.things")


@pytest.mark.parametrize("provider", ["cameramanger", "", None, 7])
def test_an_unknown_provider_is_refused(provider) -> None:
    with pytest.raises(ConfigError, match="'cameramanager'"):
        options(provider=provider)


def test_a_scope_that_the_provider_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scope has to be 'all\.things' for provider '.+'$"):
        options(provider=MADE_UP, scope="write")
