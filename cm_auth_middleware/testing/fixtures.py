"""Define the objects that the pytest fixtures return: a CameraManager, logins, and time."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from copy import deepcopy
from typing import Any, TypeVar, overload

import httpx2

from cm_auth_middleware.runtime.defaults import DEFAULTS
from cm_auth_middleware.testing.bridge import ASGIBridge, Lifespan
from cm_auth_middleware.testing.browser import Browser, log_in
from cm_auth_middleware.testing.loop import LoopThread
from cm_auth_middleware.testing.network import (
    Interface,
    Network,
    Sockets,
    interface_of,
    is_application,
    origin_of,
    wsgi_transport,
)
from cm_auth_middleware.testing.simulator import (
    RecordedRequest,
    Settings,
    SimulatedCamera,
    SimulatedUser,
    Simulator,
    What,
    settings_for,
)

IN_PROCESS_URL = "https://cameramanager.test"  # a name that never resolves (RFC 6761 §6.2)
_APP_URL = "http://localhost:8000"

T = TypeVar("T")


def make_simulator(provider: str = "cameramanager") -> Simulator:
    """Make a simulator whose clock a test can move, and which accepts every API key."""
    settings = settings_for(provider)
    settings.any_key = True
    return Simulator(settings, clock=DEFAULTS.clock)


class CMServer:
    """A simulated CameraManager, which the fixtures ``cm_server`` and ``cm_simulator`` return.

    While a test uses one, every engine in this process calls it, whatever the engine's
    ``base_url`` is, so that no test reaches the real CameraManager. Only an engine that was given
    a transport uses that instead.

    Attributes:
        url: the address, for the option ``base_url``.
        secret_key: a random key, for the option ``secret_key`` of the application under test.
        simulator: the simulator itself, which can do more than this class offers.
    """

    def __init__(self, simulator: Simulator, url: str = IN_PROCESS_URL) -> None:
        self.simulator = simulator
        self.url = url
        self.secret_key = secrets.token_urlsafe(48)
        self._sockets = None if url == IN_PROCESS_URL else Sockets()
        self._networks: dict[str, Network] = {}

    @property
    def client_id(self) -> str:
        """The ID of the API key."""
        return self.simulator.client_id

    @property
    def client_secret(self) -> str:
        """The SECRET of the API key."""
        return self.simulator.client_secret

    @property
    def env(self) -> dict[str, str]:
        """The environment variables for an application that runs in a process of its own."""
        return {
            "CM_AUTH_PROVIDER": self.settings.provider,
            "CM_AUTH_BASE_URL": self.url,
            "CM_AUTH_CLIENT_ID": self.client_id,
            "CM_AUTH_CLIENT_SECRET": self.client_secret,
            "CM_AUTH_SECRET_KEY": self.secret_key,
        }

    @property
    def settings(self) -> Settings:
        """The settings of the simulator; a test may change them at any time."""
        return self.simulator.settings

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests so far, oldest first."""
        return self.simulator.requests

    def calls(self, path: str, method: str | None = None) -> list[RecordedRequest]:
        """Return the requests to `path`, which may contain `*`."""
        return self.simulator.calls(path, method)

    def add_user(self, email: str, cameras: Iterable[str] = ()) -> SimulatedUser:
        """Add a user, whose password is ``cameras``.

        Args:
            email: the e-mail address.
            cameras: the names of the user's cameras.
        """
        number = 20_000 + 100 * len(self.simulator.users)
        user = SimulatedUser(
            email=email,
            password="cameras",  # noqa: S106 - of a simulator
            first_name=email.partition("@")[0].capitalize(),
            last_name="Test",
            user_id=number,
            account_id=number,
            cameras=[SimulatedCamera(number + n, name) for n, name in enumerate(cameras, 1)],
        )
        self.simulator.users.append(user)
        return user

    def fail_token(self, what: What, times: int = 1) -> None:
        """Let the next calls to the token endpoint fail; see `Simulator.fail_token`."""
        self.simulator.fail_token(what, times)

    def fail_api(self, what: What, times: int = 1, path: str | None = None) -> None:
        """Let the next calls of the API fail; see `Simulator.fail_api`."""
        self.simulator.fail_api(what, times, path)

    def revoke(self, user: str | SimulatedUser | None = None) -> None:
        """End the tokens of one user, or of all users; the next call of the API is refused."""
        emails = [user.email for user in self.simulator.users] if user is None else [_email(user)]
        for email in emails:
            self.simulator.revoke_user(email)

    def slow(self, seconds: float = 1.0) -> None:
        """Delay every response by this number of seconds."""
        self.simulator.settings.latency = seconds

    # -- for the fixtures ------------------------------------------------------------------

    def open(self) -> None:
        """Begin a test, and move the clock an hour past the last test.

        An engine that an application makes at import serves every test. If CameraManager failed
        in the last one, the engine may still be waiting until it may try again.
        """
        DEFAULTS.time_offset += 3600
        self._users = deepcopy(self.simulator.users)
        DEFAULTS.transport_factory = self._stand_in

    def close(self) -> None:
        """End a test: reset the simulator, and let engines use the real network again."""
        DEFAULTS.transport_factory = None
        for network in self._networks.values():
            network.shut_down()
        self.simulator.users[:] = self._users
        self.simulator.reset()

    def _stand_in(self, base_url: str) -> Network | Sockets:
        if self._sockets is not None and base_url == self.url:
            return self._sockets
        network = self._networks.get(base_url)
        if network is None:
            network = Network()
            for origin in self.simulator.origins(base_url):
                network.add(origin, self.simulator)
            self._networks[base_url] = network
        return network


class CMLogin:
    """Logs users in to an application, as in ``cm_login(app)``."""

    def __init__(self, server: CMServer) -> None:
        self.server = server
        self._logins: list[tuple[Browser, str]] = []
        self._loop = LoopThread()
        self._lifespans: dict[int, Lifespan] = {}

    @overload
    def __call__(
        self,
        app: Any,
        user: str | SimulatedUser = ...,
        *,
        client: None = ...,
        base_url: str = ...,
        prefix: str | None = ...,
        interface: Interface | None = ...,
        raise_app_exceptions: bool = ...,
    ) -> Browser: ...

    @overload
    def __call__(
        self,
        app: Any,
        user: str | SimulatedUser = ...,
        *,
        client: T,
        base_url: str = ...,
        prefix: str | None = ...,
        interface: Interface | None = ...,
        raise_app_exceptions: bool = ...,
    ) -> T: ...

    def __call__(
        self,
        app: Any,
        user: str | SimulatedUser = "anna@example.com",
        *,
        client: Any = None,
        base_url: str = _APP_URL,
        prefix: str | None = None,
        interface: Interface | None = None,
        raise_app_exceptions: bool = True,
    ) -> Any:
        """Log in, and return a browser that has the session.

        Args:
            app: the application behind the middleware, ASGI or WSGI.
            user: the e-mail address of a user of the simulator, or a `SimulatedUser`.
            client: a framework's own test client, which gets the session's cookie and is returned.
            base_url: the address of the application; its option ``redirect_uri`` takes precedence.
            prefix: the middleware's option; read from ``CM_AUTH_PREFIX`` if not given.
            interface: "asgi" or "wsgi"; if it is not given, the application is examined.
            raise_app_exceptions: raise the application's exceptions, instead of answering 500.

        Raises:
            LoginFailed: the application refused the login; its answer is in ``response``.
            LookupError: the simulator has no such user.
            TypeError: `app` is a function that makes the application.
        """
        if not is_application(app):
            raise TypeError("cm_login takes an application, not what makes it: call it first")
        prefix = prefix or os.environ.get("CM_AUTH_PREFIX") or "/auth"
        known = self._user(user)
        site = self._site(app, interface, raise_app_exceptions)
        browser = Browser({origin_of(base_url): site}, base_url)
        self._logins.append((browser, f"{prefix}/session"))
        simulator = ASGIBridge(self.server.simulator, self._loop)
        played = self.server.settings.provider
        log_in(browser, simulator, prefix, known.email, known.password, provider=played)
        if client is None:
            return browser
        _give_cookies(client, browser)
        return client

    def seconds_left(self) -> float:
        """Return the seconds after which all sessions have expired if they are not used."""
        left = [browser.get(session).json()["expires_in"] for browser, session in self._logins]
        return float(max(left, default=0))

    def close(self) -> None:
        """Close the browsers, and shut the applications down."""
        for browser, _ in self._logins:
            browser.close()
        for lifespan in self._lifespans.values():
            lifespan.stop()
        self._loop.close()

    def _user(self, user: str | SimulatedUser) -> SimulatedUser:
        known = self.server.simulator.users
        if isinstance(user, SimulatedUser) and user not in known:
            known.append(user)
        for candidate in known:
            if candidate.email == _email(user):
                return candidate
        emails = ", ".join(candidate.email for candidate in known)
        raise LookupError(
            f"the simulator has no user {user}: its users are {emails}; add one with "
            "cm_server.add_user(email)"
        )

    def _site(
        self, app: Any, interface: Interface | None, raise_app_exceptions: bool
    ) -> httpx2.BaseTransport:
        if (interface or interface_of(app)) == "wsgi":
            return wsgi_transport(app, raise_app_exceptions=raise_app_exceptions)
        key = id(app)
        if key not in self._lifespans:
            lifespan = Lifespan(app, self._loop)
            lifespan.start()
            self._lifespans[key] = lifespan  # keeps the app alive, so that no other gets its id
        bridge = ASGIBridge(app, self._loop, raise_app_exceptions=raise_app_exceptions)
        bridge.state = self._lifespans[key].state
        return bridge


class CMTime:
    """Moves the clock of the middleware and of the simulator in this process.

    The clock never goes back, because an engine may serve the next test, too.
    """

    def __init__(self, login: CMLogin) -> None:
        self._login = login

    def tick(self, seconds: float) -> None:
        """Move the clock forward.

        Args:
            seconds: by how much.
        """
        DEFAULTS.time_offset += seconds

    def expire_access_token(self) -> None:
        """Move the clock forward until every access token issued so far has expired."""
        self.tick(self._login.server.settings.access_token_lifetime + 1)

    def idle_out(self) -> None:
        """Move the clock forward until the sessions of this test's browsers have expired."""
        self.tick(self._login.seconds_left() + 1)


def _email(user: str | SimulatedUser) -> str:
    return user if isinstance(user, str) else user.email


def _give_cookies(client: Any, browser: Browser) -> None:
    """Copy the browser's cookies to a test client of werkzeug, Starlette, Django or httpx."""
    sent = browser.build_request("GET", "/").headers["Cookie"]
    for name, _, value in (pair.partition("=") for pair in sent.split("; ")):
        if hasattr(client, "set_cookie"):
            client.set_cookie(name, value)
        else:
            client.cookies[name] = value
