"""Play Eagle Eye's API v3: rotating tokens, and a host of the API for each account.

What it does is documented by Eagle Eye, unless a comment says otherwise; the documentation of this
package lists it. Nobody has compared it with the live service yet.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import unquote_plus, urlsplit

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cm_auth_middleware.display import ip_address
from cm_auth_middleware.testing.network import origin_of
from cm_auth_middleware.testing.simulator.api import API, number
from cm_auth_middleware.testing.simulator.cameramanager import CameraManager
from cm_auth_middleware.testing.simulator.oauth import (
    Accounts,
    OAuthServer,
    bearer_of,
)
from cm_auth_middleware.testing.simulator.settings import (
    RecordedRequest,
    Settings,
    SimulatedCamera,
    SimulatedUser,
    recorded,
)
from cm_auth_middleware.testing.simulator.tokens import (
    AccessToken,
    Code,
    OAuthError,
    RefreshToken,
    Tokens,
)

_ROOT = "/api/v3.0"
_LOOPBACK = ("127.0.0.1", "localhost")
_REAL = ".eagleeyenetworks.com"
_STATUSES = {
    400: "invalidArgument",
    401: "unauthenticated",
    403: "permissionDenied",
    404: "notFound",
    429: "resourceExhausted",
    503: "unavailable",
}
_BOUNDARY = "frame"
_MEDIA_COOKIE = "mediaSession"  # its real name is not known


class EagleEyeTokens(Tokens):
    """The codes and tokens of Eagle Eye's.

    Attributes:
        places: by access token, the number of the API host that takes it.
        media_cookies: by the cookie of a media host, the access token that it stands for.
    """

    def clear(self) -> None:
        """Forget all codes and tokens."""
        super().clear()
        self.places: dict[str, int] = {}
        self.media_cookies: dict[str, str] = {}

    def redeem(
        self, value: str, client_id: str, redirect_uri: str | None, verifier: str | None
    ) -> Code:
        """Use up a code: a bad or expired one is 401, a mismatch of the redirect URI 400."""
        try:
            return super().redeem(value, client_id, redirect_uri, verifier)
        except OAuthError as error:
            if error.description.startswith("Invalid authorization code"):
                raise OAuthError(401, "invalid_grant", error.description) from None
            raise

    def renew(
        self,
        value: str,
        client_id: str,
        scope: str | None,
        user_of: Callable[[str], SimulatedUser | None],
    ) -> AccessToken:
        """Issue tokens for a refresh token. The old ones die at once.

        With a key that does not rotate, the access token is given again as long as it lives.
        """
        token = self.refresh.get(value)
        if token is None:
            family = self.spent.get(value)
            if family is not None and self.settings.revoke_family_on_reuse:
                self.drop_where(lambda later: later.family == family)
            raise OAuthError(401, "invalid_grant", "Invalid refresh token")
        user = user_of(token.email)
        if user is None or user.disabled or token.client_id != client_id or self._expired(token):
            raise OAuthError(401, "invalid_grant", "Invalid refresh token")
        return self._renewed(token, user, scope or token.scope)

    def _renewed(self, token: RefreshToken, user: SimulatedUser, scope: str) -> AccessToken:
        now = self.clock()
        held = [access for access in self.access.values() if access.refresh_token == token.value]
        living = [access for access in held if access.expires_at > now]
        if living and not self.settings.rotate_refresh_tokens:
            return living[0]
        for access in held:
            self.drop_access(access.value)
        if self.settings.rotate_refresh_tokens:
            del self.refresh[token.value]
            self.spent[token.value] = token.family
            token = self._new_refresh(user, token.client_id, scope, token.family)
        return self._new_access(user, token, scope)

    def answer(self, token: AccessToken) -> dict[str, Any]:
        """Return the body of a successful answer, but for ``httpsBaseUrl``."""
        return {**super().answer(token), "token_type": "Bearer"}

    def _access_value(self, user: SimulatedUser) -> str:
        """Make a token of the form of a JWT (RFC 7519), which nobody can verify."""
        payload = {"sub": _id(user.user_id), "jti": self.new_id(), "scope": self.settings.scope}
        parts = [json.dumps(part).encode() for part in ({"alg": "RS256", "typ": "JWT"}, payload)]
        signature = self.rng.getrandbits(512).to_bytes(64, "big")
        encoded = (base64.urlsafe_b64encode(part).rstrip(b"=") for part in (*parts, signature))
        return b".".join(encoded).decode()

    def _refresh_value(self, user: SimulatedUser) -> str:
        return (
            base64.urlsafe_b64encode(f"{self.new_id()}{user.user_id}".encode()).decode().strip("=")
        )


class EagleEyeOAuth(OAuthServer):
    """Eagle Eye's OAuth server."""

    name = "Eagle Eye"
    root = "/oauth2"
    scopes = frozenset({"vms.all"})
    tokens: EagleEyeTokens

    def _make_tokens(
        self, settings: Settings, rng: random.Random, clock: Callable[[], float]
    ) -> Tokens:
        self.moves: dict[int, int] = {}  # of accounts, how often each has moved
        return EagleEyeTokens(settings, rng, clock)

    def reset(self) -> None:
        """Forget tokens, logins, consents and moves, and enable every user."""
        super().reset()
        with self.lock:
            self.moves.clear()

    def move(self, email: str) -> None:
        """Move a user's account to the next host of the API."""
        user = self._known_user(email)
        with self.lock:
            self.moves[user.account_id] = self.moves.get(user.account_id, 0) + 1

    def hosts(self, request: Request) -> list[tuple[str, int]]:
        """Return the hosts of the API, and their ports.

        Eagle Eye's own are named only in the process of a test, whose network leads here: from a
        socket, an application believes them as well, and would send its token there.
        """
        asked = urlsplit(f"//{request.headers.get('host', '')}")
        name, port = asked.hostname or "", asked.port or 80
        if name in _LOOPBACK:
            return [(name, port) for name in _LOOPBACK]
        # ASGI: a server gives the address of its socket, and only what needs none gives a name.
        server = request.scope.get("server") or ("",)
        is_on_socket = server[0] != name or bool(ip_address(name))
        return [
            (name, port) if is_on_socket and host.endswith(_REAL) else (host, 443)
            for host in self._settings.api_hosts
        ]

    def media_host(self, request: Request, place: int) -> tuple[str, int]:
        """Return the host with the pictures and videos of the accounts of an API host."""
        hosts = self.hosts(request)
        name, port = hosts[place]
        if name in _LOOPBACK:  # the other one of this machine
            return hosts[1 - place]
        return f"media.{name.removeprefix('api.')}", port

    def media_url(self, request: Request, path: str) -> str:
        """Return a URL at the media host of the account whose bearer token a request carries."""
        name, port = self.media_host(request, self.tokens.places[bearer_of(request) or ""])
        return f"{request.url.scheme}://{name}:{port}{path}"

    async def token(self, request: Request) -> Response:
        """Issue tokens for a grant, or refuse it."""
        call = recorded(request)
        try:
            self._check_key(call)
            with self.lock:
                token = self._grant(call)
                answer = self.tokens.answer(token)
                user = self._known_user(token.email)
                hosts = self.hosts(request)
                place = (user.account_id + self.moves.get(user.account_id, 0)) % len(hosts)
                self.tokens.places[token.value] = place
        except OAuthError as error:
            return _oauth_error(error)
        answer["httpsBaseUrl"] = self.base_url(hosts[place])
        return JSONResponse(answer, headers={"Cache-Control": "no-store"})

    def base_url(self, host: tuple[str, int]) -> Any:
        """Return ``httpsBaseUrl``, or what a test wants in its place."""
        if self._settings.https_base_url:
            return json.loads(self._settings.https_base_url)
        return {"hostname": host[0], "port": host[1]}

    def _grant(self, call: RecordedRequest) -> AccessToken:
        kind, scope = call.form.get("grant_type"), call.form.get("scope")
        if kind not in ("authorization_code", "refresh_token"):
            raise OAuthError(400, "unsupported_grant_type", "Unsupported grant type")
        if not set((scope or "").split()) <= self.scopes:
            raise OAuthError(403, "invalid_scope", "Invalid scope")
        if scope is None and self._settings.scope_required:
            raise OAuthError(400, "invalid_request", "Missing parameter: scope")
        key = self._accounts.client_id
        if kind == "refresh_token":
            return self.tokens.renew(
                call.form.get("refresh_token", ""), key, scope, self._user_by_email
            )
        code = self.tokens.redeem(
            call.form.get("code", ""),
            key,
            call.form.get("redirect_uri"),
            call.form.get("code_verifier"),
        )
        user = self._user_by_email(code.email)
        if user is None or user.disabled:
            raise OAuthError(401, "invalid_grant", "User is disabled")
        self._refuse_simultaneous(user)
        return self.tokens.log_in(user, key, code.scope)

    def _check_key(self, call: RecordedRequest) -> None:
        """Verify the API key, whose parts are percent-encoded in HTTP Basic (RFC 6749 §2.3.1)."""
        scheme, _, value = call.headers.get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(value, validate=True).decode()
        except ValueError:
            given = ""
        client_id, _, secret = given.partition(":")
        if scheme.lower() != "basic" or not self._is_key(
            unquote_plus(client_id), unquote_plus(secret)
        ):
            raise OAuthError(401, "invalid_client", "Client authentication failed")

    async def revoke_token(self, request: Request) -> Response:
        """End a refresh token and its access token (RFC 7009)."""
        call = recorded(request)
        try:
            self._check_key(call)
        except OAuthError as error:
            return _oauth_error(error)
        value = call.form.get("token", "")
        with self.lock:
            access = self.tokens.access.get(value)
            refresh_token = value if access is None else access.refresh_token
            self.tokens.drop_where(lambda token: token.value == refresh_token)
        return Response(status_code=200)

    def with_bearer(
        self,
        handler: Callable[[Request, SimulatedUser], Awaitable[Response]],
        *,
        where: str = "account",
    ) -> Callable[[Request], Awaitable[Response]]:
        """Make an endpoint that passes the user of a valid bearer token to `handler`.

        Args:
            where: the host that answers: the ``account``'s own of the API; or its ``media`` host,
                which takes its cookie in place of the token, too; or ``any``.
        """

        async def endpoint(request: Request) -> Response:
            value = bearer_of(request)
            if value is None and where == "media":
                value = self.tokens.media_cookies.get(request.cookies.get(_MEDIA_COOKIE, ""))
            if value is None:
                raise OAuthError(401, "unauthenticated", "Authentication required")
            with self.lock:
                try:
                    token = self.tokens.check(value)
                except OAuthError as error:
                    if self._settings.dead_bearer_status == 401:
                        raise
                    raise HTTPException(self._settings.dead_bearer_status) from error
                user = self._user_by_email(token.email)
                place = self.tokens.places[value]
            if user is None:
                raise OAuthError(401, "invalid_token", "Unknown user")
            name, port = self.hosts(request)[place]
            if where == "media":
                name, port = self.media_host(request, place)
            asked = urlsplit(f"//{request.headers.get('host', '')}")
            if where != "any" and (asked.hostname, asked.port or port) != (name, port):
                # Not known of Eagle Eye; another answer than to a dead token tells them apart.
                raise HTTPException(404, "This account is at another host")
            return await handler(request, user)

        return endpoint

    def end_client(self, user: SimulatedUser) -> None:
        """End all tokens that the application has of a user, as users can."""
        with self.lock:
            self.tokens.drop_where(lambda token: token.email == user.email)
            self._consents = {each for each in self._consents if each[0] != user.email}


class EagleEyeAPI(API):
    """The endpoints of the API v3, and the paths of `API` that only test a client."""

    def __init__(
        self, settings: Settings, clock: Callable[[], float], oauth: EagleEyeOAuth, client_id: str
    ) -> None:
        super().__init__(settings, clock)
        self._oauth = oauth
        self._client_id = client_id

    async def user(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        return JSONResponse(
            {
                "id": _id(user.user_id),
                "accountId": _id(user.account_id),
                "email": user.email,
                "firstName": user.first_name,
                "lastName": user.last_name,
                "language": user.language,
            }
        )

    async def cameras(self, request: Request, user: SimulatedUser) -> Response:
        return _page(request, [_camera(camera, user) for camera in user.cameras])

    async def camera(self, request: Request, user: SimulatedUser) -> Response:
        return JSONResponse(_camera(_own_camera(request.path_params["camera"], user), user))

    async def bridges(self, request: Request, user: SimulatedUser) -> Response:
        numbers = sorted({camera.zone_id for camera in user.cameras})
        found = [
            {
                "id": _bridge(user, zone),
                "accountId": _id(user.account_id),
                "name": f"Bridge {zone}",
            }
            for zone in numbers
        ]
        return _page(request, found)

    async def image(self, request: Request, user: SimulatedUser) -> Response:
        """Return the newest preview image of a camera."""
        camera = _own_camera(request.query_params.get("deviceId", ""), user)
        request.path_params["camera"] = camera.camera_id
        return await self.snapshot(request, user)

    async def feeds(self, request: Request, user: SimulatedUser) -> Response:
        """Return where a camera's preview is: at a media host, which is another host."""
        camera = _own_camera(request.query_params.get("deviceId", ""), user)
        path = f"/media/streams/preview/multipart?esn={_id(camera.camera_id)}&stream_session=1"
        found = {
            "id": f"{_id(camera.camera_id)}-preview",
            "type": "preview",
            "deviceId": _id(camera.camera_id),
            "mediaType": "video",
            "multipartUrl": self._oauth.media_url(request, path),
        }
        return _page(request, [found])

    async def multipart(self, request: Request, user: SimulatedUser) -> Response:
        """Return a preview as MJPEG, endless unless ``frames`` says how many there are."""
        camera = _own_camera(request.query_params.get("esn", ""), user)
        request.path_params["camera"] = camera.camera_id
        limit = number(request, "frames", 0)

        async def frames() -> AsyncIterator[bytes]:
            count = 0
            while not limit or count < limit:
                if count:
                    await anyio.sleep(0.2)
                picture = bytes((await self.snapshot(request, user)).body)
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\n"
                yield f"{head}Content-Length: {len(picture)}\r\n\r\n".encode() + picture + b"\r\n"
                count += 1

        kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
        return StreamingResponse(frames(), media_type=kind)

    async def media_session(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        """Return the address that sets the cookie of the players."""
        return JSONResponse({"url": self._oauth.media_url(request, "/media/session")})

    async def media_cookie(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        """Set a cookie that the media host takes as it takes the bearer token."""
        tokens, value = self._oauth.tokens, bearer_of(request)
        answer = Response(status_code=204)
        if value is not None:
            with self._oauth.lock:
                cookie = tokens.new_id()
                tokens.media_cookies[cookie] = value
            answer.set_cookie(_MEDIA_COOKIE, cookie, path="/", httponly=True)
        return answer

    async def client_settings(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        place = self._oauth.tokens.places[bearer_of(request) or ""]
        host = self._oauth.hosts(request)[place]
        return JSONResponse({"httpsBaseUrl": self._oauth.base_url(host)})

    async def trusted_clients(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        return _page(request, [{"id": self._client_id, "name": "The application"}])

    async def end_trust(self, request: Request, user: SimulatedUser) -> Response:
        """Remove the application, as users can: its next refresh is refused."""
        if request.path_params["client"] != self._client_id:
            raise HTTPException(404, "No such client")
        self._oauth.end_client(user)
        return Response(status_code=204)


class EagleEye(CameraManager):
    """Eagle Eye's Cloud VMS with the API v3, as a platform that the simulator can play."""

    token_path = "/oauth2/token"  # noqa: S105 - a path
    oauth_paths = "/oauth2/"
    api_paths = f"{_ROOT}/"
    oauth: EagleEyeOAuth

    def _make_oauth(
        self, accounts: Accounts, settings: Settings, clock: Callable[[], float], seed: int
    ) -> OAuthServer:
        self._client_id = accounts.client_id
        return EagleEyeOAuth(accounts, settings, clock, seed)

    def routes(self) -> list[Route]:
        """Return the routes of the OAuth server and the API."""
        every = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        oauth = self.oauth
        api = EagleEyeAPI(self._settings, self._clock, oauth, self._client_id)
        bearer = oauth.with_bearer
        trusted = f"{_ROOT}/users/self/trustedClients"
        return [
            Route("/oauth2/authorize", oauth.authorize, methods=["GET", "POST"]),
            Route("/oauth2/token", oauth.token, methods=["POST"]),
            Route("/oauth2/revoke", oauth.revoke_token, methods=["POST"]),
            Route("/oauth2/logout", oauth.log_out, methods=["GET"]),
            Route(f"{_ROOT}/clientSettings", bearer(api.client_settings, where="any")),
            Route(f"{_ROOT}/users/self", bearer(api.user)),
            Route(trusted, bearer(api.trusted_clients)),
            Route(f"{trusted}/{{client}}", bearer(api.end_trust), methods=["DELETE"]),
            Route(f"{_ROOT}/cameras", bearer(api.cameras)),
            Route(f"{_ROOT}/cameras/{{camera}}", bearer(api.camera)),
            Route(f"{_ROOT}/bridges", bearer(api.bridges)),
            Route(f"{_ROOT}/feeds", bearer(api.feeds)),
            Route(f"{_ROOT}/media/liveImage.jpeg", bearer(api.image)),
            Route(f"{_ROOT}/media/session", bearer(api.media_session)),
            Route("/media/session", bearer(api.media_cookie, where="media")),
            Route("/media/streams/preview/multipart", bearer(api.multipart, where="media")),
            Route(f"{_ROOT}/echo", bearer(api.echo), methods=every),
            Route(f"{_ROOT}/big", bearer(api.big)),
            Route(f"{_ROOT}/redirect", bearer(api.redirect), methods=every),
            Route(f"{_ROOT}/set-cookie", bearer(api.set_cookie)),
        ]

    def api_error(self, status: int, detail: str) -> dict[str, Any]:
        """Return the body of an error of the API."""
        name = _STATUSES.get(status, "unknown")
        return {"code": status, "status": name, "message": detail, "details": []}

    def oauth_error(self, request: Request, error: Exception) -> Response:  # noqa: ARG002
        """Answer with an `OAuthError` of the API: a bearer token that is not valid."""
        if not isinstance(error, OAuthError):
            raise error
        headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        return JSONResponse(self.api_error(401, error.description), 401, headers)

    def origins(self, base_url: str) -> list[str]:
        """Return each origin that an application with this ``base_url`` calls."""
        parts = urlsplit(base_url)
        if parts.hostname in _LOOPBACK:
            port = parts.port or 80
            names = [origin_of(f"{parts.scheme}://{name}:{port}") for name in _LOOPBACK]
        else:
            names = [f"https://{name}" for name in self._settings.api_hosts]
            names += [name.replace("//api.", "//media.") for name in names]
        return list(dict.fromkeys([origin_of(base_url), *names]))

    def move_account(self, email: str) -> None:
        """Move the account of a user to the next host of the API."""
        self.oauth.move(email)


def _id(number: int) -> str:
    return f"{number:08x}"


def _bridge(user: SimulatedUser, zone: int) -> str:
    return _id(user.account_id * 100 + zone)


def _camera(camera: SimulatedCamera, user: SimulatedUser) -> dict[str, Any]:
    return {
        "id": _id(camera.camera_id),
        "accountId": _id(user.account_id),
        "name": camera.name,
        "bridgeId": _bridge(user, camera.zone_id),
        "status": {"connectionStatus": "online" if camera.online else "deviceOffline"},
    }


def _own_camera(wanted: str, user: SimulatedUser) -> SimulatedCamera:
    for camera in user.cameras:
        if _id(camera.camera_id) == wanted:
            return camera
    raise HTTPException(404, "No such camera")


def _page(request: Request, results: list[dict[str, Any]]) -> Response:
    """Return a page of a list; the token of a page is the number of its first member."""
    start = number(request, "pageToken", 0)
    stop = start + max(1, number(request, "pageSize", 100))
    following = str(stop) if stop < len(results) else ""
    return JSONResponse(
        {
            "nextPageToken": following,
            "prevPageToken": "",
            "totalSize": len(results),
            "results": results[start:stop],
        }
    )


def _oauth_error(error: OAuthError) -> Response:
    """Answer with an error of the token endpoint (RFC 6749 §5.2); its body is not documented."""
    body = {"error": error.error, "error_description": error.description}
    headers = {"Cache-Control": "no-store"}
    if error.error == "invalid_client":
        headers["WWW-Authenticate"] = "Basic"
    return JSONResponse(body, error.status, headers)
