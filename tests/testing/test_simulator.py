"""Hold the simulator to the contract that the package is tested against."""

from __future__ import annotations

import base64
import hashlib
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from cm_auth_middleware.testing import AppServer, Settings, Simulator, SimulatorServer
from cm_auth_middleware.testing.__main__ import main

pytestmark = pytest.mark.anyio

ANNA, BOB = "anna@example.com", "bob@example.com"
CALLBACK = "http://app.example/auth/callback"
AUTHORIZE = {
    "response_type": "code",
    "client_id": "demo-key-id",
    "redirect_uri": CALLBACK,
    "scope": "write",
    "state": "s t&a",
}


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sim(clock: Clock) -> Simulator:
    return Simulator(clock=clock)


@pytest.fixture
async def http(sim: Simulator) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(sim.app),
        base_url="http://cm.example",
        headers={"Accept": "application/json"},
    ) as client:
        yield client


async def ask(http: httpx2.AsyncClient, **params: str) -> httpx2.Response:
    params = {"scope": "write", **params}
    return await http.post("/oauth/token", data=params, auth=("demo-key-id", "demo-key-secret"))


async def log_in(sim: Simulator, http: httpx2.AsyncClient, email: str = ANNA) -> dict[str, Any]:
    code = sim.issue_code(email, CALLBACK)
    answer = await ask(http, grant_type="authorization_code", code=code, redirect_uri=CALLBACK)
    assert answer.status_code == 200, answer.text
    tokens: dict[str, Any] = answer.json()
    return tokens


async def refresh(http: httpx2.AsyncClient, tokens: dict[str, Any]) -> httpx2.Response:
    return await ask(http, grant_type="refresh_token", refresh_token=tokens["refresh_token"])


async def get(
    http: httpx2.AsyncClient, path: str, tokens: dict[str, Any], **options: Any
) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    return await http.request(options.pop("method", "GET"), path, headers=headers, **options)


async def test_a_browser_logs_in_agrees_and_comes_back_with_a_code(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    page = await http.get("/oauth/authorize", params=AUTHORIZE)
    assert "Simulated CameraManager" in page.text
    assert ANNA in page.text
    assert "form-action" not in page.headers["content-security-policy"]
    wrong = await http.post(
        "/oauth/authorize", data={**AUTHORIZE, "email": ANNA, "password": "<no>"}
    )
    assert wrong.status_code == 200
    assert 'role="alert"' in wrong.text
    right = await http.post(
        "/oauth/authorize", data={**AUTHORIZE, "email": ANNA, "password": "cameras"}
    )
    assert right.status_code == 303
    consent = await http.get(f"/oauth/{right.headers['location']}")
    assert "Allow access?" in consent.text
    back = await http.post("/oauth/authorize", data={**AUTHORIZE, "decision": "allow"})
    assert back.headers["location"].startswith(f"{CALLBACK}?")
    query = parse_qs(urlsplit(back.headers["location"]).query)
    assert query["state"] == ["s t&a"]
    assert len(query["code"][0]) == 6
    again = await http.get("/oauth/authorize", params=AUTHORIZE)
    assert again.status_code == 302
    assert "code=" in again.headers["location"]
    answer = await ask(
        http, grant_type="authorization_code", code=query["code"][0], redirect_uri=CALLBACK
    )
    assert answer.json()["expires_in"] == 43199
    assert answer.json()["access_token"].endswith(":10003")


async def test_a_refusal_comes_back_as_access_denied(http: httpx2.AsyncClient) -> None:
    await http.post("/oauth/authorize", data={**AUTHORIZE, "email": BOB, "password": "cameras"})
    back = await http.post("/oauth/authorize", data={**AUTHORIZE, "decision": "refuse"})
    query = parse_qs(urlsplit(back.headers["location"]).query)
    assert query["error"] == ["access_denied"]
    assert query["state"] == ["s t&a"]


async def test_another_account_can_be_chosen_instead(http: httpx2.AsyncClient) -> None:
    await http.post("/oauth/authorize", data={**AUTHORIZE, "email": BOB, "password": "cameras"})
    await http.post("/oauth/authorize", data={**AUTHORIZE, "decision": "switch"})
    page = await http.get("/oauth/authorize", params=AUTHORIZE)
    assert "Log in" in page.text
    assert (await http.get("/oauth/logout")).status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"client_id": "x"},
        {"redirect_uri": "app.example/callback"},
        {"redirect_uri": "javascript:alert(1)"},
        {"redirect_uri": "http://[x"},
    ],
)
async def test_an_unknown_client_or_bad_redirect_is_never_redirected(
    http: httpx2.AsyncClient, wrong: dict[str, str]
) -> None:
    answer = await http.get("/oauth/authorize", params={**AUTHORIZE, **wrong})
    assert answer.status_code == (401 if "client_id" in wrong else 400)
    assert "location" not in answer.headers


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"scope": "admin"}, "invalid_scope"),
    ],
)
async def test_other_mistakes_are_told_to_the_application(
    sim: Simulator, http: httpx2.AsyncClient, wrong: dict[str, str], error: str
) -> None:
    sim.settings.echo_state = False
    answer = await http.get("/oauth/authorize", params={**AUTHORIZE, **wrong})
    assert answer.headers["location"].startswith(f"{CALLBACK}?error={error}&error_description=")


async def test_only_listed_redirect_uris_are_accepted_when_there_is_a_list(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    sim.settings.redirect_uris = ["http://other.example/"]
    assert (await http.get("/oauth/authorize", params=AUTHORIZE)).status_code == 400


async def test_a_code_works_once_and_for_five_minutes(
    sim: Simulator, http: httpx2.AsyncClient, clock: Clock
) -> None:
    code = sim.issue_code(ANNA, CALLBACK)
    params = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
    assert (await ask(http, **params)).status_code == 200
    assert (await ask(http, **params)).json()["error"] == "invalid_grant"
    params["code"] = sim.issue_code(ANNA, CALLBACK)
    clock.now += 300
    assert (await ask(http, **params)).json()["error"] == "invalid_grant"


async def test_the_redirect_uri_has_to_be_the_same(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    code = sim.issue_code(ANNA, CALLBACK)
    answer = await ask(
        http, grant_type="authorization_code", code=code, redirect_uri=f"{CALLBACK}/"
    )
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


@pytest.mark.parametrize(("pkce", "statuses"), [(True, (400, 200)), (False, (200, 200))])
async def test_pkce_is_verified_or_ignored(
    sim: Simulator, http: httpx2.AsyncClient, pkce: bool, statuses: tuple[int, int]
) -> None:
    sim.settings.pkce = pkce
    digest = hashlib.sha256(b"verifier").digest()
    challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    for verifier, status in zip(("wrong", "verifier"), statuses, strict=True):
        answer = await ask(
            http,
            grant_type="authorization_code",
            code=sim.issue_code(ANNA, CALLBACK, challenge),
            redirect_uri=CALLBACK,
            code_verifier=verifier,
        )
        assert answer.status_code == status


async def test_the_token_endpoint_wants_the_key(http: httpx2.AsyncClient) -> None:
    for key in (None, ("demo-key-id", "no"), ("no", "demo-key-secret")):
        refused = await http.post("/oauth/token", auth=key or httpx2.Auth())
        assert (refused.status_code, refused.json()["error"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"].startswith('Basic realm="oauth2/client"')
    got = await http.get("/oauth/token", auth=("demo-key-id", "demo-key-secret"))
    assert (got.status_code, got.json()["error"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("place", ["data", "params"])
async def test_the_key_may_be_in_the_body_or_the_query(
    http: httpx2.AsyncClient, place: str
) -> None:
    grant = {"grant_type": "password", "username": ANNA, "password": "cameras", "scope": "write"}
    for secret, status in (("demo-key-secret", 200), ("no", 401)):
        key = {"client_id": "demo-key-id", "client_secret": secret}
        answer = await http.post("/oauth/token", **{place: {**grant, **key}})
        assert answer.status_code == status
    assert answer.json()["error"] == "invalid_client"
    assert answer.headers["www-authenticate"].startswith("Form ")


async def test_a_refresh_may_narrow_the_scope_and_never_widen_it(http: httpx2.AsyncClient) -> None:
    both = (await ask(
        http, grant_type="password", username=ANNA, password="cameras", scope="read write"
    )).json()  # fmt: skip
    again = {"grant_type": "refresh_token", "refresh_token": both["refresh_token"]}
    narrowed = await ask(http, **again, scope="read")
    assert narrowed.json()["scope"] == "read"
    unknown = await ask(http, **again, scope="admin")
    assert (unknown.status_code, unknown.json()["error"]) == (400, "invalid_scope")
    assert unknown.json()["scope"] == "read write"


async def test_a_bearer_may_be_in_the_query_and_one_that_is_dead_is_told_as_spring_does(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    tokens = await log_in(sim, http)
    living = await http.get("/rest/v2.4/cameras", params={"access_token": tokens["access_token"]})
    assert living.status_code == 200
    for accept, status, kind in (
        ("*/*", 401, "application/json"),
        ("application/xml", 401, "application/xml"),
        ("image/jpeg", 406, ""),
    ):
        dead = await http.get(
            "/rest/v2.4/cameras", params={"access_token": "x"}, headers={"Accept": accept}
        )
        assert (dead.status_code, dead.headers.get("content-type", "")) == (status, kind)


async def test_parameters_may_be_in_the_query_and_the_answer_is_xml_unless_json_is_accepted(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    answer = await http.post(
        "/oauth/token",
        params={
            "grant_type": "authorization_code",
            "code": sim.issue_code(ANNA, CALLBACK),
            "redirect_uri": CALLBACK,
            "scope": "write",
        },
        auth=("demo-key-id", "demo-key-secret"),
        headers={"Accept": "*/*"},
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/xml")
    assert "<access_token>" in answer.text


async def test_a_grant_without_scope_is_refused_unless_the_knob_is_off(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    code = sim.issue_code(ANNA, CALLBACK)
    by_code = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
    refused = await ask(http, **by_code, scope="")
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_request")
    tokens = (await ask(http, **by_code)).json()  # the code was not used up
    by_token = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    assert (await ask(http, **by_token, scope="")).status_code == 400
    sim.settings.scope_required = False
    assert (await ask(http, **by_token, scope="")).status_code == 200


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({}, "invalid_request"),
        ({"grant_type": "refresh_token"}, "invalid_request"),
        ({"grant_type": "magic"}, "unsupported_grant_type"),
        ({"grant_type": "refresh_token", "refresh_token": "x"}, "invalid_grant"),
        ({"grant_type": "password", "username": ANNA, "password": "x"}, "invalid_grant"),
        (
            {"grant_type": "password", "username": ANNA, "password": "cameras", "scope": "x"},
            "invalid_scope",
        ),
    ],
)
async def test_a_bad_token_request_names_its_error(
    http: httpx2.AsyncClient, params: dict[str, str], error: str
) -> None:
    answer = await ask(http, **params)
    assert (answer.status_code, answer.json()["error"]) == (400, error)


async def test_a_refresh_kills_the_old_access_token_and_keeps_the_refresh_token(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    old = await log_in(sim, http)
    new = (await refresh(http, old)).json()
    assert new["refresh_token"] == old["refresh_token"]
    assert (await get(http, "/rest/v2.4/users/self", old)).status_code == 401
    assert (await get(http, "/rest/v2.4/users/self", new)).json()["email"] == ANNA


async def test_two_logins_share_a_living_access_token(
    sim: Simulator, http: httpx2.AsyncClient, clock: Clock
) -> None:
    first = await log_in(sim, http)
    clock.now += 99
    second = await log_in(sim, http)
    assert second == {**first, "expires_in": 43100}
    clock.now += 43100
    third = await log_in(sim, http)
    assert third["access_token"] != first["access_token"]
    assert third["refresh_token"] == first["refresh_token"]
    sim.settings.shared_access_token = False
    fourth = await log_in(sim, http)
    assert fourth["refresh_token"] != third["refresh_token"]
    assert (await log_in(sim, http, BOB))["access_token"].endswith(":10007")


async def test_reuse_of_a_rotated_refresh_token_revokes_its_family(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    sim.settings.rotate_refresh_tokens = True
    first = await log_in(sim, http)
    second = (await refresh(http, first)).json()
    assert second["refresh_token"] != first["refresh_token"]
    assert (await refresh(http, first)).json()["error"] == "invalid_grant"
    assert (await get(http, "/rest/v2.4/cameras", second)).status_code == 200
    sim.settings.revoke_family_on_reuse = True
    assert (await refresh(http, first)).json()["error"] == "invalid_grant"
    assert (await get(http, "/rest/v2.4/cameras", second)).status_code == 401
    assert (await refresh(http, second)).json()["error"] == "invalid_grant"


async def test_an_expired_refresh_token_is_an_invalid_token(
    sim: Simulator, http: httpx2.AsyncClient, clock: Clock
) -> None:
    sim.settings.refresh_token_lifetime = 1000
    tokens = await log_in(sim, http)
    clock.now += 1000
    answer = await refresh(http, tokens)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_token")
    assert (await get(http, "/rest/v2.4/users/self", tokens)).status_code == 401


async def test_tokens_are_repeated_in_errors_only_when_told(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    tokens = {"access_token": "sesame", "refresh_token": "sesame"}
    assert "sesame" not in (await refresh(http, tokens)).text
    sim.settings.repeat_tokens_in_errors = True
    assert "sesame" in (await refresh(http, tokens)).text
    assert "sesame" in (await get(http, "/rest/v2.4/users/self", tokens)).text


async def test_time_and_the_operator_end_tokens(sim: Simulator, http: httpx2.AsyncClient) -> None:
    tokens = await log_in(sim, http)
    sim.expire_access_tokens()
    refused = await get(http, "/rest/v2.4/users/self", tokens)
    assert refused.status_code == 401
    assert refused.json()["error"] == "invalid_token"
    assert refused.headers["www-authenticate"].startswith("Bearer")
    tokens = (await refresh(http, tokens)).json()
    sim.disable_user(ANNA)
    assert (await refresh(http, tokens)).json()["error"] == "invalid_grant"
    sim.reset()
    tokens = await log_in(sim, http)
    sim.revoke_user(ANNA)
    assert (await get(http, "/rest/v2.4/users/self", tokens)).status_code == 401
    assert (await refresh(http, tokens)).json()["error"] == "invalid_grant"
    tokens = await log_in(sim, http)
    sim.expire_refresh_tokens()
    assert (await get(http, "/rest/v2.4/users/self", tokens)).status_code == 200
    assert (await refresh(http, tokens)).status_code == 401
    with pytest.raises(LookupError):
        sim.revoke_user("nobody@example.com")


async def test_who_is_left_of_an_earlier_test_is_refused_and_not_recorded(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    tokens = await log_in(sim, http)
    sim.reset()
    assert (await get(http, "/rest/v2.4/users/self", tokens)).status_code == 401
    assert (await refresh(http, tokens)).json()["error"] == "invalid_grant"
    assert sim.requests == []
    await refresh(http, await log_in(sim, http))
    assert len(sim.token_calls("refresh_token")) == 1


async def test_a_logout_ends_access_and_refresh_token(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    tokens = await log_in(sim, http)
    path = "/rest/v2.0/users/self/tokens/current"
    assert (await get(http, path, tokens, method="DELETE")).status_code == 204
    assert (await get(http, path, tokens, method="DELETE")).status_code == 401
    assert (await refresh(http, tokens)).json()["error"] == "invalid_grant"


async def test_a_user_sees_only_their_own_cameras(sim: Simulator, http: httpx2.AsyncClient) -> None:
    anna, bob = await log_in(sim, http), await log_in(sim, http, BOB)
    assert len((await get(http, "/rest/v2.4/cameras", anna)).json()) == 4
    assert len((await get(http, "/rest/v2.4/cameras/all/status", bob)).json()) == 2
    for suffix in ("", "/status", "/streams", "/snapshot", "/recordings/9?includeUrlTypes=mp4Http"):
        path = f"/rest/v2.4/cameras/2001{suffix}"
        assert (await get(http, path, anna)).status_code == 200
        refused = await get(http, path, bob)
        assert (refused.status_code, refused.json()["code"]) == (404, 404)
    assert (await get(http, "/rest/v2.5/cameras", anna)).status_code == 404
    assert (await http.get("/rest/v2.4/cameras")).status_code == 401


async def test_recordings_are_on_another_host(sim: Simulator, http: httpx2.AsyncClient) -> None:
    tokens = await log_in(sim, http)
    path = "/rest/v2.4/cameras/2001/recordings/r1?includeUrlTypes=mp4Http"
    urls = (await get(http, path, tokens)).json()["urls"]
    assert urls == {"mp4Http": "https://media.example.invalid/2001/r1.mp4"}


async def test_a_snapshot_is_a_jpeg_of_the_wanted_size(
    sim: Simulator, http: httpx2.AsyncClient, clock: Clock
) -> None:
    image_module = pytest.importorskip("PIL.Image")
    tokens = await log_in(sim, http)
    for hour in range(0, 24, 6):
        clock.now = 1_800_000_000 + hour * 3600.0
        sim.settings.access_token_lifetime = 10**9
        tokens = await log_in(sim, http)
        answer = await get(http, "/rest/v2.4/cameras/2001/snapshot?resolution=320x180", tokens)
        assert answer.headers["content-type"] == "image/jpeg"
        import io

        assert image_module.open(io.BytesIO(answer.content)).size == (320, 180)
    for wrong in ("big", "9x9", "99999x99999"):
        path = f"/rest/v2.4/cameras/2001/snapshot?resolution={wrong}"
        assert (await get(http, path, tokens)).status_code == 400
    sim.settings.snapshot_limit = 0
    answer = await get(http, "/rest/v2.4/cameras/2001/snapshot", tokens)
    assert answer.status_code == 503
    assert (await get(http, "/rest/v2.4/cameras/2004/snapshot", tokens)).status_code == 503


async def test_the_test_endpoints_echo_stream_redirect_and_set_a_cookie(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    tokens = await log_in(sim, http)
    echo = (await get(http, "/rest/v2.4/echo?a=1", tokens, method="POST", content=b"abc")).json()
    assert echo["sha256"] == hashlib.sha256(b"abc").hexdigest()
    assert (echo["method"], echo["length"], echo["query"]) == ("POST", 3, "a=1")
    assert sim.calls("/rest/v2.4/echo")[0].body_length == 3
    assert len((await get(http, "/rest/v2.4/big?bytes=70000", tokens)).content) == 70000
    assert (await get(http, "/rest/v2.4/big?bytes=x", tokens)).status_code == 400
    moved = await get(http, "/rest/v2.4/redirect?to=http://evil.example/", tokens)
    assert (moved.status_code, moved.headers["location"]) == (302, "http://evil.example/")
    assert "upstream=" in (await get(http, "/rest/v2.4/set-cookie", tokens)).headers["set-cookie"]


async def test_failures_come_as_ordered_and_then_end(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    tokens = await log_in(sim, http)
    sim.fail_token(503)
    sim.fail_token("html")
    sim.fail_token("xml")
    sim.fail_token("truncated")
    sim.fail_token({"error": "invalid_client"})
    sim.fail_token((418, {"a": 1}))
    busy = await refresh(http, tokens)
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
    assert "html" in (await refresh(http, tokens)).headers["content-type"]
    assert "xml" in (await refresh(http, tokens)).headers["content-type"]
    with pytest.raises(ValueError):
        (await refresh(http, tokens)).json()
    assert (await refresh(http, tokens)).status_code == 401
    assert (await refresh(http, tokens)).status_code == 418
    tokens = (await refresh(http, tokens)).json()
    sim.fail_api(500, times=2, path="*/cameras")
    assert (await get(http, "/rest/v2.4/users/self", tokens)).status_code == 200
    assert (await get(http, "/rest/v2.4/cameras", tokens)).json()["code"] == 500
    sim.reset()
    sim.fail_api(401)
    assert (await get(http, "/rest/v2.4/cameras", tokens)).json()["error"] == "invalid_token"
    with pytest.raises(ValueError):
        sim.fail_api("nonsense")


async def test_a_lost_answer_still_changed_the_tokens(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    tokens = await log_in(sim, http)
    sim.fail_token("lost")
    with pytest.raises(httpx2.RemoteProtocolError):
        await refresh(http, tokens)
    assert sim.token_calls("refresh_token")[-1].status is None
    assert (await get(http, "/rest/v2.4/users/self", tokens)).status_code == 401
    assert (await refresh(http, tokens)).status_code == 200


async def test_requests_are_recorded(sim: Simulator, http: httpx2.AsyncClient) -> None:
    tokens = await log_in(sim, http)
    await get(http, "/rest/v2.4/cameras?a=1&a=2", tokens)
    exchange, listing = sim.requests
    assert exchange.form["grant_type"] == "authorization_code"
    assert exchange.headers["authorization"].startswith("Basic ")
    assert exchange.body_length > 0
    assert (listing.query, listing.status) == ({"a": ["1", "2"]}, 200)
    assert len(sim.token_calls()) == 1
    assert sim.token_calls("refresh_token") == []


async def test_the_control_endpoint_turns_every_knob(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    tokens = await log_in(sim, http)
    commands = {
        "latency": 0,
        "rotate_refresh_tokens": True,
        "fail_api": {"what": [404, {"code": 404}], "path": "*/echo"},
        "fail_token": 429,
        "expire_access_tokens": True,
        "expire_refresh_tokens": False,
    }
    state = (await http.post("/_control", json=commands)).json()
    assert state["settings"]["rotate_refresh_tokens"] is True
    assert state["counts"] == {"/oauth/token": 1}
    assert (await refresh(http, tokens)).status_code == 429
    assert (await get(http, "/rest/v2.4/users/self", tokens)).status_code == 401
    later = (await http.get("/_control", params={"since": state["next"]})).json()
    assert [call["status"] for call in later["requests"]] == [429, 401]
    for command in ({"reset": True}, {"revoke_user": ANNA}, {"disable_user": ANNA}):
        assert (await http.post("/_control", json=command)).status_code == 200
    assert (await http.post("/_control", json={"nonsense": 1})).status_code == 400
    assert (await http.post("/_control", json=[])).status_code == 400
    assert (await http.post("/_control", data={"reset": "1"})).status_code == 415


async def test_the_same_seed_gives_the_same_tokens(http: httpx2.AsyncClient) -> None:
    first, second = Simulator(seed=7), Simulator(Settings(pkce=True), seed=7)
    assert first.issue_code(ANNA, CALLBACK) == second.issue_code(ANNA, CALLBACK)


@pytest.mark.slow
def test_on_a_socket_a_dropped_connection_is_a_protocol_error() -> None:
    with SimulatorServer() as server, httpx2.Client(base_url=server.url) as http:
        sim = server.simulator
        key = (server.client_id, server.client_secret)
        sim.fail_token("drop")
        with pytest.raises(httpx2.RemoteProtocolError):
            http.post("/oauth/token", auth=key)
        sim.fail_token("hang")
        with pytest.raises(httpx2.ReadTimeout):
            http.post("/oauth/token", auth=key, timeout=0.1)
        sim.settings.hang_time = 0.05
        sim.fail_token("hang")
        with pytest.raises(httpx2.RemoteProtocolError):
            http.post("/oauth/token", auth=key)
        assert http.post("/oauth/token", auth=key).status_code == 400
        with pytest.raises(RuntimeError, match="in use"):
            AppServer(sim, server.port)
        with pytest.raises(RuntimeError, match="started before"):
            server.start()
        assert main(["--port", str(server.port)]) == 1
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(server.url)


def test_an_application_whose_lifespan_fails_does_not_start() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    with pytest.raises(RuntimeError, match="did not start"):
        AppServer(broken, log_level="critical").start()


def test_an_ipv6_address_is_written_in_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        server = AppServer(Simulator(), host="::1")
    except OSError:
        pytest.skip("no IPv6 loopback here")
    assert server.url == f"http://[::1]:{server.port}"
    server.stop()
