"""Define the simulator's settings, its users and cameras, and its record of a request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

What = int | str | dict[str, Any] | tuple[int, Any]  # a failure; see Simulator.fail_token


@dataclass(slots=True)
class Settings:
    """The settings of a simulator. Every field but `provider` may be changed while it runs.

    Attributes:
        provider: the server to play: ``cameramanager`` or ``eagleeye``; see `settings_for`.
        access_token_lifetime: seconds; CameraManager's is twelve hours less a second.
        rotate_refresh_tokens: each refresh issues a new refresh token, and ends the old one.
        revoke_family_on_reuse: with rotation, the use of an old refresh token ends every token
            that was issued in its place.
        shared_access_token: a further login of the same user, client and scope gets the same
            access token, until it expires.
        refresh_token_lifetime: seconds; `None` means that refresh tokens do not expire.
        code_lifetime: seconds within which an authorization code can be exchanged.
        repeat_tokens_in_errors: `error_description` contains the token, as in older Spring.
        echo_state: the redirect back to the application carries the `state`.
        latency: seconds before any answer of `/oauth/` and `/rest/`.
        token_latency: further seconds before an answer of the token endpoint.
        pkce: verify the `code_verifier` if a `code_challenge` was sent (RFC 7636); if False, both
            are ignored, as by Spring.
        redirect_uris: the redirect URIs that are accepted; `None` accepts any http or https URI.
        scope: the scope if the authorization request has none.
        scope_required: the token endpoint answers 400 ``invalid_request`` to a grant without
            ``scope``, which CameraManager's swagger marks as required there.
        phantom_refresh_tokens: each refresh answers with a new refresh token that is not valid,
            while the old one stays valid: a known bug of Spring's with a token enhancer.
        fail_simultaneous_logins: two exchanges of one user's codes within a second: the second is
            answered by 500 with SQL text, as by Spring's JDBC token store. Its code is spent.
        dead_bearer_status: of the answer to a bearer token that is not valid: 401 or 403.
        content_encoding: ``gzip`` or ``deflate``, for all answers of the token endpoint and the
            REST API, also where the client accepts ``identity`` only.
        rate_limit: calls to the token endpoint and the REST API in a minute; more of them are
            answered by 429 with ``Retry-After``.
        media_url: the start of the recordings' URLs: another host, which must get no bearer token.
        snapshot_limit: the number of snapshots that can be made at once; others get a 503.
        snapshot_latency: seconds that it takes to make a snapshot.
        hang_time: seconds after which a "hang" drops the connection of a client that still waits.
        hint: show the first user's e-mail address and password on the login page.
        any_key: accept the API key of any application, not only `client_id` and `client_secret`.
        api_hosts: Eagle Eye's hosts of the API, which accounts move between. A simulator that is
            called at this machine's own address names that address instead, once as 127.0.0.1 and
            once as localhost; one on a socket that is called at another name gives that name in
            place of Eagle Eye's, and the middleware refuses it.
        https_base_url: the JSON text of ``httpsBaseUrl`` in Eagle Eye's token answers, in place of
            the right one.
    """

    provider: str = "cameramanager"
    access_token_lifetime: float = 43199
    rotate_refresh_tokens: bool = False
    revoke_family_on_reuse: bool = False
    shared_access_token: bool = True
    refresh_token_lifetime: float | None = None
    code_lifetime: float = 300
    repeat_tokens_in_errors: bool = False
    echo_state: bool = True
    latency: float = 0.0
    token_latency: float = 0.0
    pkce: bool = False
    redirect_uris: list[str] | None = None
    scope: str = "write"
    scope_required: bool = True
    phantom_refresh_tokens: bool = False
    fail_simultaneous_logins: bool = False
    dead_bearer_status: int = 401
    content_encoding: str = ""
    rate_limit: int | None = None
    media_url: str = "https://media.example.invalid"
    snapshot_limit: int | None = None
    snapshot_latency: float = 0.0
    hang_time: float = 60.0
    hint: bool = True
    any_key: bool = False
    api_hosts: list[str] = field(
        default_factory=lambda: [
            "api.c001.eagleeyenetworks.com",
            "api.c002.eagleeyenetworks.com",
        ]
    )
    https_base_url: str = ""


def settings_for(provider: str) -> Settings:
    """Return the settings with which a simulator plays a server as it is by default.

    Raises:
        LookupError: no simulator plays it.
    """
    if provider == "cameramanager":
        return Settings()
    if provider == "eagleeye":
        return Settings(
            provider="eagleeye",
            access_token_lifetime=43198,
            rotate_refresh_tokens=True,
            shared_access_token=False,
            refresh_token_lifetime=14 * 86_400,
            pkce=True,
            scope="vms.all",
        )
    raise LookupError(f"no simulator plays {provider}: there are cameramanager and eagleeye")


def host_refusal(provider: str, host: str) -> str:
    """Return why a simulator must not listen at an address; empty if it may.

    An application gets the API's host from API v3, and believes only Eagle Eye's real ones, where
    no simulated token has to go, or those of this machine.
    """
    if provider == "eagleeye" and host not in ("127.0.0.1", "localhost"):
        return f"with --provider {provider}, --host is 127.0.0.1 or localhost"
    return ""


@dataclass(frozen=True, slots=True)
class SimulatedCamera:
    """A camera of a simulated user."""

    camera_id: int
    name: str
    online: bool = True
    zone_id: int = 1


@dataclass(slots=True)
class SimulatedUser:
    """A user who can log in at the simulator, with their cameras."""

    email: str
    password: str
    first_name: str
    last_name: str
    user_id: int
    account_id: int
    cameras: list[SimulatedCamera] = field(default_factory=list)
    disabled: bool = False
    language: str = "en"


@dataclass(slots=True)
class RecordedRequest:
    """A request that the simulator received.

    Attributes:
        query: the parameters of the URL.
        headers: the headers by lower-case name; those of the same name are joined by a comma.
        form: the fields of an urlencoded body; of fields of the same name, the first.
        body_length: the number of bytes that were read of the body.
        status: the status of the answer; `None` if there was no answer, or not yet.
        time: when the request arrived, in seconds since 1970, by the simulator's clock.
    """

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    form: dict[str, str]
    body_length: int
    status: int | None
    time: float

    def param(self, name: str) -> str | None:
        """Return a parameter from the body, or else from the query: CameraManager reads both."""
        return self.form.get(name) or next(iter(self.query.get(name, ())), None)


def recorded(request: Request) -> RecordedRequest:
    """Return the record of a request that the simulator is answering."""
    record: RecordedRequest = request.scope["cm.record"]
    return record


def default_users() -> list[SimulatedUser]:
    """Make the users that a simulator has by default."""
    return [
        SimulatedUser(
            email="anna@example.com",
            password="cameras",  # noqa: S106 - of a simulator
            first_name="Anna",
            last_name="Jansen",
            user_id=10003,
            account_id=501,
            cameras=[
                SimulatedCamera(2001, "Front gate"),
                SimulatedCamera(2002, "Parking lot"),
                SimulatedCamera(2003, "Warehouse"),
                SimulatedCamera(2004, "Loading dock", online=False, zone_id=2),
            ],
        ),
        SimulatedUser(
            email="bob@example.com",
            password="cameras",  # noqa: S106 - of a simulator
            first_name="Bob",
            last_name="de Vries",
            user_id=10007,
            account_id=502,
            cameras=[SimulatedCamera(3001, "Shop floor"), SimulatedCamera(3002, "Back door")],
        ),
    ]
