"""The simulator as Eagle Eye's API v3, held to the contract; and the fixtures that play it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import flask
import httpx2
import pytest
from fastapi import FastAPI

from cm_auth_middleware import CMAuthMiddleware
from cm_auth_middleware.fastapi import CMClient
from cm_auth_middleware.flask import CMAuth, cm
from cm_auth_middleware.testing import (
    CMLogin,
    CMServer,
    CMTime,
    LoginFailed,
    Simulator,
    SimulatorServer,
    settings_for,
)
from cm_auth_middleware.testing.__main__ import _parser, main
from cm_auth_middleware.tokens.provider import EAGLEEYE

pytestmark = pytest.mark.anyio

ANNA, BOB = "anna@example.com", "bob@example.com"
CALLBACK = "http://localhost:8000/auth/callback"
AUTH = "https://auth.eagleeyenetworks.com"
HOSTS = ["api.c001.eagleeyenetworks.com", "api.c002.eagleeyenetworks.com"]
MEDIA_HOST = "media.c002.eagleeyenetworks.com"  # of Anna's account, which is at the second one
KEY = ("demo-key-id", "demo-key-secret")
VERIFIER = "v" * 43
CHALLENGE = (
    base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sim(clock: Clock) -> Simulator:
    return Simulator(settings_for("eagleeye"), clock=clock)


@pytest.fixture
async def http(sim: Simulator) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(sim), base_url=AUTH, headers={"Accept": "application/json"}
    ) as client:
        yield client


async def ask(http: httpx2.AsyncClient, **params: str) -> httpx2.Response:
    return await http.post("/oauth2/token", data={"scope": "vms.all", **params}, auth=KEY)


async def exchange(sim: Simulator, http: httpx2.AsyncClient, **changed: str) -> httpx2.Response:
    code = sim.issue_code(changed.pop("email", ANNA), CALLBACK, CHALLENGE)
    given = {"code": code, "redirect_uri": CALLBACK, "code_verifier": VERIFIER, **changed}
    return await ask(http, grant_type="authorization_code", **given)


async def log_in(sim: Simulator, http: httpx2.AsyncClient, email: str = ANNA) -> dict[str, Any]:
    answer = await exchange(sim, http, email=email)
    assert answer.status_code == 200, answer.text
    tokens: dict[str, Any] = answer.json()
    return tokens


async def refresh(http: httpx2.AsyncClient, tokens: dict[str, Any]) -> httpx2.Response:
    return await ask(http, grant_type="refresh_token", refresh_token=tokens["refresh_token"])


async def get(
    http: httpx2.AsyncClient, path: str, tokens: dict[str, Any], **options: Any
) -> httpx2.Response:
    """Call the API at the host that the tokens name."""
    url = f"https://{tokens['httpsBaseUrl']['hostname']}/api/v3.0{path}"
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    return await http.request(options.pop("method", "GET"), url, headers=headers, **options)


# -- tokens ------------------------------------------------------------------------------------


async def test_the_token_answer_names_the_host_of_the_account(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    anna, bob = await log_in(sim, http), await log_in(sim, http, BOB)
    assert anna["httpsBaseUrl"] == {"hostname": HOSTS[1], "port": 443}
    assert bob["httpsBaseUrl"] == {"hostname": HOSTS[0], "port": 443}
    assert (anna["token_type"], anna["expires_in"], anna["scope"]) == ("Bearer", 43198, "vms.all")
    head, payload, signature = anna["access_token"].split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert (json.loads(base64.urlsafe_b64decode(head + "=="))["alg"], claims["sub"]) == (
        "RS256",
        "00002713",
    )
    assert signature
    user = (await get(http, "/users/self", anna)).json()
    assert (user["id"], user["accountId"], user["email"]) == ("00002713", "000001f5", ANNA)


async def test_only_the_account_s_own_host_answers(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    tokens = await log_in(sim, http)
    elsewhere = {**tokens, "httpsBaseUrl": {"hostname": HOSTS[0]}}
    assert (await get(http, "/cameras", tokens)).status_code == 200
    assert (await get(http, "/cameras", elsewhere)).status_code == 404
    lost = {**tokens, "httpsBaseUrl": {"hostname": "api.eagleeyenetworks.com"}}
    answer = await get(http, "/clientSettings", lost)
    assert answer.json() == {"httpsBaseUrl": tokens["httpsBaseUrl"]}


async def test_an_account_moves_at_its_next_refresh(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    old = await log_in(sim, http)
    sim.move_account(ANNA)
    assert (await get(http, "/cameras", old)).status_code == 200
    new = (await refresh(http, old)).json()
    assert new["httpsBaseUrl"]["hostname"] == HOSTS[0]
    assert (await get(http, "/cameras", new)).status_code == 200
    assert (await get(http, "/cameras", old)).status_code == 401
    sim.reset()
    assert (await log_in(sim, http))["httpsBaseUrl"]["hostname"] == HOSTS[1]


async def test_a_refresh_ends_both_old_tokens_at_once(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    old = await log_in(sim, http)
    new, both = (await refresh(http, old)).json(), ("access_token", "refresh_token")
    assert not {old[name] for name in both}.intersection(new[name] for name in both)
    dead = await get(http, "/users/self", old)
    assert (dead.status_code, dead.json()["status"]) == (401, "unauthenticated")
    assert (await refresh(http, old)).status_code == 401
    assert (await refresh(http, new)).status_code == 200
    other = await log_in(sim, http)
    assert sim.refresh_tokens == 2  # each login is a grant of its own
    assert (await get(http, "/cameras", other)).status_code == 200


async def test_a_key_that_does_not_rotate_gets_the_living_token_again(
    sim: Simulator, http: httpx2.AsyncClient, clock: Clock
) -> None:
    sim.settings.rotate_refresh_tokens = False
    first = await log_in(sim, http)
    clock.now += 40_000
    again = (await refresh(http, first)).json()
    assert {**again, "expires_in": 43198} == first
    assert again["expires_in"] == 3198
    clock.now += 3198
    new = (await refresh(http, again)).json()
    assert new["refresh_token"] == first["refresh_token"]
    assert new["access_token"] != first["access_token"]


async def test_refusals_have_the_statuses_of_the_contract(
    sim: Simulator, http: httpx2.AsyncClient, clock: Clock
) -> None:
    assert (await ask(http, grant_type="password")).status_code == 400
    assert (await exchange(sim, http, redirect_uri=f"{CALLBACK}/")).status_code == 400
    other = CALLBACK.replace("localhost", "127.0.0.1")
    assert (await exchange(sim, http, redirect_uri=other)).status_code == 400
    assert (await exchange(sim, http, code_verifier="w" * 43)).status_code == 400
    assert (await exchange(sim, http, code="none")).status_code == 401
    assert (await exchange(sim, http, scope="write")).status_code == 403
    late = sim.issue_code(ANNA, CALLBACK, CHALLENGE)
    clock.now += 301
    assert (await exchange(sim, http, code=late)).status_code == 401
    tokens = await log_in(sim, http)
    sim.disable_user(ANNA)
    assert (await refresh(http, tokens)).status_code == 401
    sim.reset()
    tokens = await log_in(sim, http)
    clock.now += 14 * 86_400
    assert (await refresh(http, tokens)).status_code == 401
    wrong = await http.post("/oauth2/token", data={"grant_type": "x"}, auth=("demo-key-id", "no"))
    assert (wrong.status_code, wrong.json()["error"]) == (401, "invalid_client")
    unasked = await http.get(f"https://{HOSTS[0]}/api/v3.0/users/self")
    assert (unasked.status_code, unasked.json()["code"]) == (401, 401)


async def test_the_key_is_decoded(sim: Simulator, http: httpx2.AsyncClient) -> None:
    sim.client_secret = "100%+:&"
    data = {"grant_type": "x", "scope": "vms.all"}
    for secret, error in ((quote(sim.client_secret, safe=""), "unsupported_grant_type"),
                          (sim.client_secret, "invalid_client")):  # fmt: skip
        answer = await http.post("/oauth2/token", data=data, auth=(sim.client_id, secret))
        assert answer.json()["error"] == error


async def test_a_revoked_refresh_token_takes_its_access_token_with_it(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    tokens, other = await log_in(sim, http), await log_in(sim, http)
    sim.expire_access_tokens()
    form = {"token": tokens["refresh_token"]}
    assert (await http.post("/oauth2/revoke", data=form)).status_code == 401
    assert sim.refresh_tokens == 2
    assert (await http.post("/oauth2/revoke", data=form, auth=KEY)).status_code == 200
    assert (await refresh(http, tokens)).status_code == 401
    assert (await refresh(http, other)).status_code == 200


async def test_a_redirect_uri_is_compared_as_text(sim: Simulator, http: httpx2.AsyncClient) -> None:
    sim.settings.redirect_uris = [CALLBACK]
    query = {"response_type": "code", "client_id": KEY[0], "scope": "vms.all"}
    for uri, status in ((CALLBACK, 200), (f"{CALLBACK}/", 400), (CALLBACK.upper(), 400)):
        page = await http.get("/oauth2/authorize", params={**query, "redirect_uri": uri})
        assert page.status_code == status


async def test_a_browser_logs_in_and_agrees(sim: Simulator, http: httpx2.AsyncClient) -> None:
    query = {"response_type": "code", "client_id": KEY[0], "redirect_uri": CALLBACK, "state": "s"}
    form = {**query, "email": ANNA, "password": "cameras"}
    right = await http.post("/oauth2/authorize", data=form)
    consent = await http.get(right.url.join(right.headers["location"]))
    assert "Allow access?" in consent.text
    assert "Simulated Eagle Eye" in consent.text
    assert "CameraManager" not in consent.text
    back = await http.post("/oauth2/authorize", data={**query, "decision": "allow"})
    found = parse_qs(urlsplit(back.headers["location"]).query)
    assert found["state"] == ["s"]
    answer = await ask(
        http, grant_type="authorization_code", code=found["code"][0], redirect_uri=CALLBACK
    )
    assert answer.json()["scope"] == "vms.all"


# -- the API -----------------------------------------------------------------------------------


async def test_cameras_and_bridges_come_in_pages(sim: Simulator, http: httpx2.AsyncClient) -> None:
    tokens = await log_in(sim, http)
    first = (await get(http, "/cameras", tokens, params={"pageSize": 3})).json()
    assert (len(first["results"]), first["totalSize"]) == (3, 4)
    params = {"pageSize": "3", "pageToken": first["nextPageToken"]}
    last = (await get(http, "/cameras", tokens, params=params)).json()
    assert ([each["name"] for each in last["results"]], last["nextPageToken"]) == (
        ["Loading dock"],
        "",
    )
    bridges = (await get(http, "/bridges", tokens)).json()["results"]
    assert {camera["bridgeId"] for camera in first["results"] + last["results"]} == {
        bridge["id"] for bridge in bridges
    }
    camera = first["results"][0]
    assert (await get(http, f"/cameras/{camera['id']}", tokens)).json() == camera
    missing = await get(http, "/cameras/00000bb9", tokens)  # one of Bob's
    assert (missing.status_code, missing.json()["status"]) == (404, "notFound")


async def test_previews_are_pictures_and_mjpeg(sim: Simulator, http: httpx2.AsyncClient) -> None:
    tokens = await log_in(sim, http)
    of = {"deviceId": "000007d1", "resolution": "64x36"}
    picture = await get(http, "/media/liveImage.jpeg", tokens, params=of)
    assert (picture.headers["content-type"], picture.content[:2]) == ("image/jpeg", b"\xff\xd8")
    [feed] = (await get(http, "/feeds", tokens, params=of)).json()["results"]
    media = f"https://{MEDIA_HOST}:443/media/streams/preview/multipart?"
    assert feed["multipartUrl"].startswith(media)
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    stream = await http.get(f"{feed['multipartUrl']}&frames=2&resolution=64x36", headers=headers)
    assert stream.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
    assert stream.content.count(b"--frame\r\nContent-Type: image/jpeg\r\n") == 2


async def test_a_media_session_is_a_cookie_of_the_media_host(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    tokens = await log_in(sim, http)
    url = (await get(http, "/media/session", tokens)).json()["url"]
    assert urlsplit(url).netloc == f"{MEDIA_HOST}:443"
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    answer = await http.get(url, headers=headers)
    assert (answer.status_code, "set-cookie" in answer.headers) == (204, True)
    video = f"https://{MEDIA_HOST}/media/streams/preview/multipart?esn=000007d1&frames=1"
    assert (await http.get(video)).status_code == 200  # by the cookie, which the client has kept
    http.cookies.clear()
    assert (await http.get(video)).status_code == 401
    elsewhere = video.replace(MEDIA_HOST, HOSTS[1])
    assert (await http.get(elsewhere, headers=headers)).status_code == 404


async def test_a_user_can_remove_the_application(sim: Simulator, http: httpx2.AsyncClient) -> None:
    tokens = await log_in(sim, http)
    [trusted] = (await get(http, "/users/self/trustedClients", tokens)).json()["results"]
    path = "/users/self/trustedClients"
    assert (await get(http, f"{path}/other", tokens, method="DELETE")).status_code == 404
    gone = await get(http, f"{path}/{trusted['id']}", tokens, method="DELETE")
    assert gone.status_code == 204
    assert (await refresh(http, tokens)).status_code == 401


async def test_failures_have_the_form_of_the_api(sim: Simulator, http: httpx2.AsyncClient) -> None:
    tokens = await log_in(sim, http)
    sim.fail_api(429)
    answer = await get(http, "/cameras", tokens)
    assert (answer.status_code, answer.json()["status"]) == (429, "resourceExhausted")
    sim.fail_token(503)
    assert (await refresh(http, tokens)).status_code == 503
    assert [call.status for call in sim.token_calls("refresh_token")] == [503]
    sim.settings.dead_bearer_status = 403
    dead = await get(http, "/cameras", {**tokens, "access_token": "x"})
    assert (dead.status_code, dead.json()["status"]) == (403, "permissionDenied")


async def test_the_control_moves_accounts_and_poisons_answers(
    sim: Simulator, http: httpx2.AsyncClient
) -> None:
    tokens = await log_in(sim, http)
    command = {"move_account": ANNA, "https_base_url": '{"hostname": "evil.example"}'}
    assert (await http.post("/_control", json=command)).status_code == 200
    assert (await refresh(http, tokens)).json()["httpsBaseUrl"] == {"hostname": "evil.example"}
    plain = Simulator()
    with pytest.raises(LookupError):
        plain.move_account(ANNA)


def test_on_loopback_the_hosts_are_this_machine_s() -> None:
    sim = Simulator(settings_for("eagleeye"))
    here = ["http://127.0.0.1:9400", "http://localhost:9400"]
    assert sim.origins("http://127.0.0.1:9400") == here
    media = ["media.c001.eagleeyenetworks.com", MEDIA_HOST]
    assert sim.origins(AUTH) == [AUTH, *(f"https://{host}" for host in [*HOSTS, *media])]
    assert Simulator().origins("http://127.0.0.1:9400") == here[:1]


@pytest.mark.slow
async def test_on_a_socket_it_names_no_real_host(sim: Simulator) -> None:
    with SimulatorServer(sim) as server:
        async with httpx2.AsyncClient(base_url=server.url) as http:
            for name in (
                "simulator",
                "192.0.2.1",
                "[::1]",
                "127.0.0.2",
                "evileagleeyenetworks.com",
            ):
                http.headers["Host"] = f"{name}:9400"
                tokens = await log_in(sim, http)
                for answer in (tokens, (await refresh(http, tokens)).json()):
                    assert answer["httpsBaseUrl"] == {"hostname": name.strip("[]"), "port": 9400}
                    for base_url in (f"http://{name}:9400", AUTH):
                        assert EAGLEEYE.api_base(answer, base_url) is None
            sim.settings.api_hosts = ["api.vms.example"]  # of a server of one's own
            own = await log_in(sim, http)
    assert own["httpsBaseUrl"] == {"hostname": "api.vms.example", "port": 443}


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "::1"])
def test_the_command_listens_on_this_machine_only(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    report.write_text(
        json.dumps({"schema": "cm-auth-live-check", "version": 1, "provider": "eagleeye"})
    )
    for given in (["--provider", "eagleeye"], ["--like", str(report)]):
        assert main([*given, "--host", host, "--port", "70000"]) == 1  # never a server
        said = "error: with --provider eagleeye, --host is 127.0.0.1 or localhost\n"
        assert capsys.readouterr().err == said


def test_the_command_takes_the_defaults_of_the_provider() -> None:
    options = _parser(settings_for("eagleeye")).parse_args(["--provider", "eagleeye"])
    assert (options.scope, options.rotate_refresh_tokens) == ("vms.all", True)
    with pytest.raises(SystemExit):
        main(["--provider", "nobody"])
    with pytest.raises(LookupError):
        settings_for("nobody")


# -- the fixtures ------------------------------------------------------------------------------


def make_fastapi_app() -> FastAPI:
    app = FastAPI()
    app.add_middleware(CMAuthMiddleware)

    @app.get("/cameras")
    async def cameras(cm: CMClient) -> list[str]:
        return [camera["name"] for camera in (await cm.get("/cameras")).json()["results"]]

    return app


def make_flask_app() -> flask.Flask:
    app = flask.Flask(__name__)
    CMAuth(app)

    @app.get("/cameras")
    def cameras() -> list[str]:
        return [camera["name"] for camera in cm.get("/cameras").json()["results"]]

    return app


@pytest.mark.parametrize(
    ("cm_provider", "provider"), [("cameramanager", "eagleeye"), ("eagleeye", "cameramanager")]
)
def test_an_application_of_another_provider_is_told_so(
    cm_login: CMLogin, cm_provider: str, provider: str
) -> None:
    app = FastAPI()
    app.add_middleware(CMAuthMiddleware, provider=provider)
    with pytest.raises(LoginFailed) as failed:
        cm_login(app)
    has = f"the application has the provider '{provider}', and the simulator plays '{cm_provider}'"
    assert str(failed.value).startswith(f'{has}: let the fixture cm_provider be "{provider}"')
    assert failed.value.response.status_code == 404


@pytest.mark.slow
@pytest.mark.parametrize("cm_provider", ["eagleeye"])
@pytest.mark.parametrize("make_app", [make_fastapi_app, make_flask_app])
def test_an_application_is_tested_against_the_other_server(
    make_app: Any, cm_login: CMLogin, cm_simulator: CMServer, cm_time: CMTime
) -> None:
    anna, bob = cm_login(app := make_app()), cm_login(app, user=BOB)
    assert cm_simulator.env["CM_AUTH_PROVIDER"] == "eagleeye"
    for _ in range(2):
        assert "Front gate" in anna.get("/cameras").json()
        assert bob.get("/cameras").json() == ["Shop floor", "Back door"]
        cm_simulator.simulator.move_account(ANNA)
        cm_time.expire_access_token()
    assert "Front gate" in anna.get("/cameras").json()
    assert {call.headers["host"] for call in cm_simulator.calls("*/cameras")} == set(HOSTS)


@pytest.mark.slow
@pytest.mark.parametrize("cm_provider", ["eagleeye", "cameramanager"])
def test_on_a_socket_both_servers_can_follow_each_other(
    cm_provider: str, cm_login: CMLogin, cm_server: CMServer
) -> None:
    app = FastAPI()
    app.add_middleware(CMAuthMiddleware)
    path = "/cameras" if cm_provider == "eagleeye" else "/rest/v2.4/cameras"

    @app.get("/cameras")
    async def cameras(cm: CMClient) -> int:
        return (await cm.get(path)).status_code

    browser = cm_login(app)
    assert browser.get("/cameras").json() == 200
    assert cm_server.settings.provider == cm_provider
    assert cm_server.calls("*/cameras")[-1].status == 200


@pytest.mark.slow
def test_the_environment_says_which_server_is_simulated(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(cm_simulator):
            assert cm_simulator.settings.scope == "vms.all"
        """
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CM_AUTH_PROVIDER", "eagleeye")
        pytester.runpytest().assert_outcomes(passed=1)
