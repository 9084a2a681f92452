"""The pytest plugin, as a user's tests see it: on apps that know nothing of it."""

from __future__ import annotations

import http.cookies
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import flask
import httpx2
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

from cm_auth_middleware import CMAuthMiddleware
from cm_auth_middleware.fastapi import CMClient, CMSession
from cm_auth_middleware.flask import CMAuth, cm, cm_session
from cm_auth_middleware.testing import CMLogin, CMServer, CMTime, LoginFailed, SimulatedUser

pytestmark = pytest.mark.slow

JSON = {"Accept": "application/json"}


def make_fastapi_app(**options: Any) -> FastAPI:
    app = FastAPI()
    app.add_middleware(CMAuthMiddleware, **options)

    @app.get("/")
    async def home(session: CMSession) -> dict[str, Any]:
        return {"email": session.user["email"]}

    @app.get("/cameras")
    async def cameras(cm: CMClient) -> list[str]:
        response = await cm.get("/rest/v2.4/cameras")
        return [camera["name"] for camera in response.json()]

    @app.get("/wrong")
    async def wrong() -> None:
        raise ZeroDivisionError

    return app


def make_flask_app(**options: Any) -> flask.Flask:
    app = flask.Flask(__name__)
    app.testing = True  # raise errors rather than make a 500 of them
    CMAuth(app, **options)

    @app.get("/")
    def home() -> dict[str, Any]:
        return {"email": cm_session.user["email"]}

    @app.get("/cameras")
    def cameras() -> list[str]:
        return [camera["name"] for camera in cm.get("/rest/v2.4/cameras").json()]

    @app.get("/straße/<path:rest>")
    def street(rest: str) -> str:
        return rest

    @app.get("/wrong")
    def wrong() -> None:
        raise ZeroDivisionError

    return app


MADE_ONCE = make_fastapi_app()  # as most people's main.py does, without any environment

MAKERS = {"fastapi": make_fastapi_app, "flask": make_flask_app, "made once": lambda: MADE_ONCE}


@pytest.fixture(params=list(MAKERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["in process", "on a socket"])
def server(request: pytest.FixtureRequest) -> CMServer:
    """Either server; asked for before `cm_login`, which takes the one that the test uses."""
    name = "cm_simulator" if request.param == "in process" else "cm_server"
    request.fixturenames.append(name)
    return request.getfixturevalue(name)


# -- logging in ----------------------------------------------------------------------------


def test_a_browser_is_logged_in_to_an_app(server: CMServer, kind: str, cm_login: CMLogin) -> None:
    app = MAKERS[kind]()
    anna, bob = cm_login(app), cm_login(app, user="bob@example.com")
    assert anna.get("/").json() == {"email": "anna@example.com"}
    assert "Front gate" in anna.get("/cameras").json()
    assert "Shop floor" in bob.get("/cameras").json()
    assert "Front gate" not in bob.get("/cameras").json()


def test_a_visitor_is_not_logged_in(kind: str, cm_login: CMLogin) -> None:
    browser = cm_login(MAKERS[kind]())
    browser.cookies.clear()
    assert browser.get("/").status_code == 302
    assert browser.get("/", headers=JSON).status_code == 401


def test_a_user_of_ones_own_has_cameras_of_ones_own(cm_simulator, cm_login) -> None:
    cm_simulator.add_user("carol@example.com", cameras=["Harbour"])
    assert cm_login(make_flask_app(), "carol@example.com").get("/cameras").json() == ["Harbour"]
    dave = SimulatedUser("dave@example.com", "x", "Dave", "D", 7, 7)
    assert cm_login(make_flask_app(), dave).get("/cameras").json() == []


def test_the_users_of_one_test_are_not_those_of_the_next(cm_login: CMLogin) -> None:
    with pytest.raises(LookupError, match=r"carol@example.com.*anna@example.com.*add_user"):
        cm_login(make_flask_app(), "carol@example.com")


def test_whom_the_app_refuses_is_told_with_its_answer(cm_login: CMLogin) -> None:
    app = make_fastapi_app(allow=lambda user: user["email"].startswith("anna"))
    with pytest.raises(LoginFailed, match="403 “You have no access") as refused:
        cm_login(app, user="bob@example.com")
    assert refused.value.response.status_code == 403
    assert cm_login(app).get("/").status_code == 200


def test_an_app_without_the_middleware_is_one_clear_sentence(cm_login: CMLogin) -> None:
    with pytest.raises(LoginFailed, match=r"/auth/login answered 404.*is the app behind"):
        cm_login(FastAPI())


def test_a_wrong_user_password_is_the_simulators_answer(cm_simulator, cm_login) -> None:
    cm_simulator.simulator.users[0].disabled = True
    with pytest.raises(LoginFailed, match="simulator answered"):
        cm_login(make_flask_app())


def test_a_prefix_of_ones_own_is_given_or_read_from_the_environment(cm_login, monkeypatch) -> None:
    assert cm_login(make_flask_app(prefix="/sso"), prefix="/sso").get("/").status_code == 200
    monkeypatch.setenv("CM_AUTH_PREFIX", "/door")
    assert cm_login(make_fastapi_app()).get("/").status_code == 200


@pytest.mark.parametrize("make", [make_fastapi_app, make_flask_app])
def test_the_browser_goes_where_the_app_says_it_lives(make, cm_login: CMLogin) -> None:
    app = make(redirect_uri="https://app.example.com/auth/callback")
    browser = cm_login(app)
    assert str(browser.get("/").url) == "https://app.example.com/"
    assert browser.get("/").status_code == 200
    assert any(name.startswith("__Host-") for name in browser.cookies)


def test_no_browser_leaves_the_test(cm_login: CMLogin) -> None:
    with pytest.raises(httpx2.ConnectError, match=r"elsewhere\.example is not part of this test"):
        cm_login(make_flask_app()).get("https://elsewhere.example/")


def test_what_makes_an_application_is_told_from_one(cm_login: CMLogin) -> None:
    with pytest.raises(TypeError, match="cm_login takes an application, not what makes it"):
        cm_login(make_flask_app)
    with pytest.raises(TypeError, match="call it first"):
        cm_login(lambda: make_fastapi_app())


# -- the frameworks' own clients -----------------------------------------------------------


def test_flasks_own_test_client_is_logged_in(cm_login: CMLogin) -> None:
    app = make_flask_app()
    client = cm_login(app, client=app.test_client())
    assert client.get("/").json == {"email": "anna@example.com"}


def test_starlettes_own_test_client_is_logged_in(cm_login: CMLogin) -> None:
    app = make_fastapi_app()
    client = cm_login(app, client=TestClient(app))
    assert client.get("/").json() == {"email": "anna@example.com"}


def test_a_test_client_with_the_standard_librarys_cookies_is_logged_in(cm_login: CMLogin) -> None:
    class Client:  # as Django's is
        cookies = http.cookies.SimpleCookie()

    app = make_flask_app()
    cookie = cm_login(app, client=Client()).cookies["cm_auth"].OutputString()
    answer = app.test_client(use_cookies=False).get("/", headers={"Cookie": cookie})
    assert answer.json == {"email": "anna@example.com"}


# -- what can go wrong ---------------------------------------------------------------------


def test_an_expired_token_is_renewed(server, kind, cm_login: CMLogin, cm_time: CMTime) -> None:
    browser = cm_login(MAKERS[kind]())
    assert browser.get("/cameras").status_code == 200
    assert not server.simulator.token_calls("refresh_token")
    cm_time.expire_access_token()
    assert browser.get("/cameras").status_code == 200
    assert len(server.simulator.token_calls("refresh_token")) == 1


def test_a_refresh_that_fails_is_an_outage(server, kind, cm_login, cm_time) -> None:
    browser = cm_login(MAKERS[kind]())
    server.fail_token(503, times=2)
    cm_time.expire_access_token()
    assert browser.get("/cameras").status_code == 503
    cm_time.tick(1)
    assert browser.get("/cameras").status_code == 503
    cm_time.tick(60)
    assert browser.get("/cameras").status_code == 200


def test_a_test_is_not_in_the_way_of_the_next(pytester: pytest.Pytester) -> None:
    """The first leaves an engine that waits for a server; an app made once keeps it."""
    pytester.makepyfile(
        """
        from fastapi import FastAPI
        from cm_auth_middleware import CMAuthMiddleware
        from cm_auth_middleware.fastapi import CMClient

        app = FastAPI()
        app.add_middleware(CMAuthMiddleware)

        @app.get("/cameras")
        async def cameras(cm: CMClient):
            return (await cm.get("/rest/v2.4/cameras")).json()

        def test_outage(cm_login, cm_simulator):
            browser = cm_login(app)
            cm_simulator.simulator.expire_access_tokens()
            cm_simulator.fail_token((503, {}), times=9)
            assert browser.get("/cameras").status_code == 503
            assert browser.get("/cameras").status_code == 503

        def test_revoked(cm_login, cm_simulator):
            browser = cm_login(app)
            cm_simulator.revoke()
            assert browser.get("/cameras").status_code == 302
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=2)


def test_an_idle_session_ends(kind, cm_login, cm_time) -> None:
    browser = cm_login(MAKERS[kind]())
    cm_time.tick(3600)
    assert browser.get("/").status_code == 200
    cm_time.idle_out()
    assert browser.get("/").status_code == 302


def test_a_revoked_user_is_asked_to_log_in(server, kind, cm_login) -> None:
    app = MAKERS[kind]()
    anna, bob = cm_login(app), cm_login(app, user="bob@example.com")
    server.revoke("bob@example.com")
    assert anna.get("/cameras").status_code == 200
    assert bob.get("/cameras").status_code == 302
    server.revoke()
    assert anna.get("/cameras", headers=JSON).status_code == 401


@pytest.mark.parametrize("make", [make_fastapi_app, make_flask_app])
def test_a_slow_server_is_met_with_the_timeout(server, make, cm_login) -> None:
    browser = cm_login(make(timeout=0.2))
    server.slow(5)
    with pytest.raises(httpx2.ReadTimeout):
        browser.get("/cameras")


def test_a_failing_api_is_the_apps_to_handle(server, kind, cm_login) -> None:
    browser = cm_login(MAKERS[kind]())
    server.fail_api({"code": 500}, path="*/cameras")
    with pytest.raises(TypeError):  # a dict where the app expects a list
        browser.get("/cameras")
    assert browser.get("/cameras").status_code == 200


def test_what_cameramanager_received_can_be_seen(server, kind, cm_login) -> None:
    cm_login(MAKERS[kind]()).get("/cameras")
    assert server.requests[-1].path == "/rest/v2.4/cameras"
    assert server.calls("/rest/*/cameras", "GET")[0].headers["authorization"].startswith("Bearer ")
    assert server.calls("/oauth/token")[0].param("grant_type") == "authorization_code"


# -- a real port ---------------------------------------------------------------------------


def test_the_server_listens_and_the_environment_says_where(cm_server: CMServer) -> None:
    key = (os.environ["CM_AUTH_CLIENT_ID"], os.environ["CM_AUTH_CLIENT_SECRET"])
    assert key == (cm_server.client_id, cm_server.client_secret)
    assert os.environ["CM_AUTH_BASE_URL"] == cm_server.url
    data = {"grant_type": "password", "username": "bob@example.com", "password": "cameras"}
    with httpx2.Client(base_url=cm_server.url, headers=JSON) as client:
        answer = client.post("/oauth/token", auth=key, data={**data, "scope": "write"})
    assert answer.json()["token_type"] == "bearer"


def test_an_app_in_a_process_of_its_own_finds_the_server(cm_server: CMServer) -> None:
    code = (
        "import os, urllib.request\n"
        "request = urllib.request.Request(os.environ['CM_AUTH_BASE_URL'] + '/rest/v2.4/cameras')\n"
        "try: urllib.request.urlopen(request)\n"
        "except urllib.error.HTTPError as error: print(error.code); error.close()\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "401"
    assert cm_server.requests[-1].status == 401


def test_no_socket_is_needed(kind, cm_login, cm_time, monkeypatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"a socket goes to {arguments[1:]}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.socket.bind", refuse)
    browser = cm_login(MAKERS[kind]())
    cm_time.expire_access_token()
    assert browser.get("/cameras").status_code == 200


# -- a faithful server ---------------------------------------------------------------------


def test_an_error_of_the_app_is_raised_or_seen(kind, cm_login) -> None:
    browser = cm_login(MAKERS[kind]())
    with pytest.raises(ZeroDivisionError):
        browser.get("/wrong")
    app = MAKERS[kind]()
    app.testing = False
    lenient = cm_login(app, raise_app_exceptions=False)
    assert lenient.get("/wrong").status_code == 500


def test_paths_beyond_ascii_arrive_as_they_were_sent(cm_login) -> None:
    assert cm_login(make_flask_app()).get("/straße/größe").text == "größe"


def test_the_lifespan_of_an_app_runs_once_and_ends(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import contextlib
        from fastapi import FastAPI, Request
        from cm_auth_middleware import CMAuthMiddleware

        events = []

        @contextlib.asynccontextmanager
        async def lifespan(app):
            events.append("up")
            yield {"database": "open"}
            events.append("down")

        app = FastAPI(lifespan=lifespan)
        app.add_middleware(CMAuthMiddleware)

        @app.get("/")
        async def home(request: Request):
            return request.state.database

        def test_one(cm_login):
            assert cm_login(app).get("/").json() == "open"
            assert cm_login(app, "bob@example.com").get("/").json() == "open"
            assert events == ["up"]

        def test_two():
            assert events == ["up", "down"]
        """
    )
    pytester.runpytest("-W", "error").assert_outcomes(passed=2)


def test_an_app_that_does_not_start_says_why(cm_login) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(CMAuthMiddleware)
    with pytest.raises(RuntimeError, match=r"(?s)startup failed.*no database"):
        cm_login(app)


def test_a_streamed_answer_arrives_as_it_is_made(cm_login) -> None:
    app, go_on = make_fastapi_app(), threading.Event()

    @app.get("/events")
    async def events(request: Request) -> StreamingResponse:
        import anyio.to_thread

        async def parts() -> AsyncIterator[str]:
            yield "one\n"
            await anyio.to_thread.run_sync(go_on.wait)
            yield "two\n"
            while True:
                await anyio.sleep(60)
                yield "never"

        return StreamingResponse(parts())

    with cm_login(app).stream("GET", "/events") as response:
        lines = response.iter_lines()
        assert next(lines) == "one"
        go_on.set()
        assert next(lines) == "two"


# -- the plugin itself ---------------------------------------------------------------------


def test_pytest_imports_nothing_for_those_who_do_not_use_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing():
            assert "cm_auth_middleware.testing.plugin" in sys.modules
            heavy = {"httpx2", "starlette", "anyio", "cryptography", "uvicorn", "asyncio"}
            assert not heavy & set(sys.modules)
        """
    )
    others = [f"-pno:{name}" for name in ("anyio", "playwright", "base_url", "valkey")]
    run = pytester.runpytest_subprocess(*others)
    run.assert_outcomes(passed=1)


def test_the_fixtures_explain_themselves(pytester: pytest.Pytester) -> None:
    run = pytester.runpytest("--fixtures")
    run.stdout.fnmatch_lines_random(
        ["cm_login*", "cm_server*", "cm_simulator*", "cm_time*", "*browser = cm_login(app*"]
    )


def test_the_environment_of_a_developer_is_not_used(pytester, monkeypatch) -> None:
    monkeypatch.setenv("CM_AUTH_CLIENT_SECRET", "the real one")
    monkeypatch.setenv("CM_AUTH_BASE_URL", "https://rest.cameramanager.com")
    pytester.makepyfile(
        """
        import os

        def test_inside(cm_login):
            assert os.environ["CM_AUTH_CLIENT_SECRET"] != "the real one"
            assert os.environ["CM_AUTH_BASE_URL"] == "https://cameramanager.test"

        def test_outside():
            assert os.environ["CM_AUTH_CLIENT_SECRET"] == "the real one"
        """
    )
    pytester.runpytest().assert_outcomes(passed=2)


def test_an_app_that_points_at_the_real_server_never_reaches_it(cm_simulator, cm_login) -> None:
    app = make_fastapi_app(
        base_url="https://rest.cameramanager.com",
        client_id="a-real-key",
        client_secret="its-real-secret",
        secret_key="kW9cK2mZ4vB7nQ1xT5yR8uE3oP6aS0dF",
    )
    assert "Front gate" in cm_login(app).get("/cameras").json()
    assert cm_simulator.calls("/oauth/authorize")[0].param("client_id") == "a-real-key"
