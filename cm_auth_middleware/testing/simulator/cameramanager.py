"""Play CameraManager: its OAuth server and its REST API, at their paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cm_auth_middleware.testing.network import origin_of
from cm_auth_middleware.testing.simulator.api import API
from cm_auth_middleware.testing.simulator.failures import api_error
from cm_auth_middleware.testing.simulator.oauth import Accounts, OAuthServer, oauth_error
from cm_auth_middleware.testing.simulator.settings import Settings


class CameraManager:
    """A platform of Eagle Eye's that the simulator can play; `EagleEye` is the other one.

    Args: as `OAuthServer`.

    Attributes:
        oauth: the OAuth server.
        token_path: of the token endpoint.
        oauth_paths: how each path of the OAuth server begins.
        api_paths: how each path of the REST API begins.
    """

    token_path = "/oauth/token"  # noqa: S105 - a path
    oauth_paths = "/oauth/"
    api_paths = "/rest/"

    def __init__(
        self, accounts: Accounts, settings: Settings, clock: Callable[[], float], seed: int
    ) -> None:
        self.oauth = self._make_oauth(accounts, settings, clock, seed)
        self._settings = settings
        self._clock = clock

    def _make_oauth(
        self, accounts: Accounts, settings: Settings, clock: Callable[[], float], seed: int
    ) -> OAuthServer:
        return OAuthServer(accounts, settings, clock, seed)

    def routes(self) -> list[Route]:
        """Return the routes of the OAuth server and the REST API."""
        root = "/rest/v2.{minor:int}"
        camera = f"{root}/cameras/{{camera:int}}"
        every = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        oauth, api = self.oauth, API(self._settings, self._clock)
        bearer = oauth.with_bearer
        return [
            Route("/oauth/authorize", oauth.authorize, methods=["GET", "POST"]),
            Route("/oauth/token", oauth.token, methods=["GET", "POST"]),
            Route("/oauth/logout", oauth.log_out, methods=["GET"]),
            Route(
                f"{root}/users/self/tokens/current", bearer(oauth.delete_token), methods=["DELETE"]
            ),
            Route(f"{root}/users/self", bearer(api.user)),
            Route(f"{root}/cameras", bearer(api.cameras)),
            Route(f"{root}/cameras/all/status", bearer(api.all_status)),
            Route(camera, bearer(api.camera)),
            Route(f"{camera}/status", bearer(api.status)),
            Route(f"{camera}/snapshot", bearer(api.snapshot)),
            Route(f"{camera}/streams", bearer(api.streams)),
            Route(f"{camera}/recordings/{{recording}}", bearer(api.recording)),
            Route(f"{root}/echo", bearer(api.echo), methods=every),
            Route(f"{root}/big", bearer(api.big)),
            Route(f"{root}/redirect", bearer(api.redirect), methods=every),
            Route(f"{root}/set-cookie", bearer(api.set_cookie)),
        ]

    def api_error(self, status: int, detail: str) -> dict[str, Any]:
        """Return the body of an error of the REST API."""
        return api_error(status, detail)

    def oauth_error(self, request: Request, error: Exception) -> Response:
        """Answer with an `OAuthError`."""
        return oauth_error(request, error)

    def origins(self, base_url: str) -> list[str]:
        """Return each origin that an application with this ``base_url`` calls."""
        return [origin_of(base_url)]

    def move_account(self, email: str) -> None:
        """Move an account to another host of the API, which this platform has not."""
        raise LookupError(f"CameraManager has one host of the API, also for {email}")
