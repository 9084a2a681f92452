"""What the tests share: an app behind the middleware, the simulator, and a browser on both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import anyio.to_thread
import pytest

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMAuthWSGIMiddleware
from cm_auth_middleware.flask import CMAuth
from cm_auth_middleware.testing import Network, Settings, Simulator, settings_for
from cm_auth_middleware.tokens.provider import Provider
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.browser import Browser

APP = "http://localhost:8000"
CM = "http://127.0.0.1:9400"
SECRET_KEY = "kW9cK2mZ4vB7nQ1xT5yR8uE3oP6aS0dF-gHjL_zXc"
HTML = {"Accept": "text/html,application/xhtml+xml"}
JSON = {"Accept": "application/json"}


both_providers = pytest.mark.parametrize(
    "provider", ["cameramanager", pytest.param("eagleeye", marks=pytest.mark.slow)]
)
"""Runs a test against CameraManager, and against Eagle Eye's API v3."""


class Clock:
    """Time that a test moves; with a `step`, it also passes from one look to the next."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.step = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


class Net(Network):
    """The network, for tests that say which kind of app they add."""

    def add_wsgi(self, origin: str, app: Any) -> None:
        self.add(origin, app, "wsgi")


class World:
    """One simulator, one app behind the middleware, one clock.

    Args:
        provider: the server; the simulator plays CameraManager unless this names another one.
        settings: of the simulator, as CameraManager's; what they change is changed of the
            provider's.
        beside: a world of which this one is another process: same simulator, clock and store.
        skew: seconds that this process's clock is ahead.

    Attributes:
        api: the path of the API at the simulator.
        root: where the API is for a ready client: below its ``base_url``.
        user_path: the path of the user there.
        user_id_field: the member of the user that identifies them.
        token_path: of the token endpoint.
        authorize: the URL of the login page.
        lifetime: seconds that an access token lives.
        scope: that logins ask for.
    """

    def __init__(
        self,
        *,
        side: str = "asgi",
        provider: str | Provider = "cameramanager",
        app: Any = None,
        settings: Settings | None = None,
        beside: World | None = None,
        skew: float = 0.0,
        **options: Any,
    ) -> None:
        self.net = Net()
        if beside is None:
            self.clock = Clock()
            self.sim = Simulator(_settings(provider, settings), clock=self.clock)
        else:
            self.clock, self.sim = beside.clock, beside.sim
            options = {"store": beside.engine.store, **options}
        options = {
            "provider": provider,
            "client_id": self.sim.client_id,
            "client_secret": self.sim.client_secret,
            "secret_key": SECRET_KEY,
            "base_url": CM,
            "background": True,  # as on a server that has a lifespan
            **options,
        }
        for origin in [CM, *self.sim.origins(options["base_url"])]:
            self.net.add(origin, self.sim)
        self._know_the_server(CM)
        self.side = side
        self.engine = AuthEngine(transport=self.net, clock=lambda: self.clock() + skew, **options)
        self.scope = self.engine.config.scope
        if side == "asgi":
            self.app: Any = CMAuthMiddleware(app or make_app(), engine=self.engine)
        else:
            self.app = self._wsgi(app)
        self.net.add(APP, self.app)

    def _know_the_server(self, url: str) -> None:
        is_v3 = self.sim.settings.provider == "eagleeye"
        self.api = "/api/v3.0" if is_v3 else "/rest/v2.4"
        self.root = "" if is_v3 else "/rest/v2.4"
        self.user_path = "/api/v3.0/users/self" if is_v3 else "/rest/v2.3/users/self"
        self.user_id_field = "id" if is_v3 else "userId"
        self.authorize = f"{url}/oauth2/authorize" if is_v3 else f"{url}/oauth/authorize"
        self.token_path = self.sim._platform.token_path
        self.lifetime = self.sim.settings.access_token_lifetime

    def put_before_the_server(self, app: Any) -> None:
        """Let an application answer at each address of the server; the simulator: as before."""
        for origin in self.sim.origins(CM):
            self.net.add(origin, app)

    def _wsgi(self, app: Any) -> CMAuthWSGIMiddleware:
        """The tests' own app gets the middleware as a Flask user gives it, by the extension."""
        if app is not None:
            return CMAuthWSGIMiddleware(app, engine=self.engine)
        flask_app = make_wsgi_app()
        CMAuth(flask_app, engine=self.engine)
        middleware = flask_app.wsgi_app
        assert isinstance(middleware, CMAuthWSGIMiddleware)
        return middleware

    async def close(self) -> None:
        """Let refreshes that go on beside requests come home."""
        if self.side == "asgi":
            await self.engine.close()
        else:
            await anyio.to_thread.run_sync(self.engine.close)
        self.net.shut_down()

    def logouts(self) -> list[int]:
        """The statuses of the calls that ended a grant."""
        calls = self.sim.calls("/rest/*/tokens/current", "DELETE")
        return [call.status or 0 for call in calls + self.sim.calls("/oauth2/revoke")]

    def user_id(self, email: str = "anna@example.com") -> int | str:
        """The user's id as the server gives it."""
        [user] = [user for user in self.sim.users if user.email == email]
        return f"{user.user_id:08x}" if self.api == "/api/v3.0" else user.user_id

    async def on_its_side(self, call: Callable[[], Any]) -> Any:
        """Call an engine or a client as a handler would: on the event loop, or in a thread."""
        if self.side == "wsgi":
            return await anyio.to_thread.run_sync(call)
        return await call()

    async def client_for(self, handle: str) -> Any:
        """The ready client of a handle, for this side."""
        if self.side == "wsgi":
            return await anyio.to_thread.run_sync(self.engine.sync_client_for, handle)
        return await self.engine.client_for(handle)

    def browser(self, **headers: str) -> Browser:
        return Browser(self, APP, {**HTML, **headers})

    async def login(self, email: str = "anna@example.com", path: str = "/") -> Browser:
        browser = self.browser()
        response = await browser.login(path, email)
        assert response.status_code == 200, response.text
        return browser


def _settings(provider: str | Provider, given: Settings | None) -> Settings:
    if provider != "eagleeye":
        return given or Settings()
    settings, usual = settings_for("eagleeye"), Settings()
    for knob in fields(Settings) if given is not None else ():
        value = getattr(given, knob.name)
        if value != getattr(usual, knob.name):
            setattr(settings, knob.name, value)
    return settings


MakeWorld = Callable[..., World]
