"""The Flask extension: factories, configuration, blueprints, and errors that a view lets pass."""

from __future__ import annotations

from typing import Any

import flask
import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware import AuthEngine, CMAuthConfig, CMAuthError, ConfigError
from cm_auth_middleware.flask import CMAuth, cm, cm_session
from tests.helpers.apps import api, names
from tests.helpers.world import APP, CM, JSON, SECRET_KEY, World, both_providers

pytestmark = pytest.mark.anyio

GOOD: dict[str, Any] = {
    "client_id": "id",
    "client_secret": "secret-of-the-key",
    "secret_key": SECRET_KEY,
    "base_url": CM,
}


@pytest.fixture
def side() -> str:
    return "wsgi"


def make_app() -> flask.Flask:
    app = flask.Flask(__name__)
    blueprint = flask.Blueprint("cameras", __name__, url_prefix="/site")

    @blueprint.get("/cameras")
    def cameras() -> Any:
        return names(cm.get(f"{api(cm)}/cameras"))

    @blueprint.get("/url")
    def url() -> str:
        return flask.url_for("cameras.cameras")

    @blueprint.get("/who")
    def who() -> str:
        return cm_session.user["email"] if cm_session else "nobody"

    @blueprint.get("/client")
    def client() -> str:
        return str(cm.base_url)

    app.register_blueprint(blueprint)
    return app


def serve(world: World, app: flask.Flask) -> None:
    CMAuth(app, engine=world.engine)
    world.net.add_wsgi(APP, app)


@both_providers
@pytest.mark.parametrize("testing", [False, True])
@pytest.mark.parametrize("debug", [False, True])
async def test_a_session_that_dies_under_a_view_is_answered(world, testing, debug) -> None:
    app = make_app()
    app.testing, app.debug = testing, debug
    serve(world, app)
    browser = world.browser()
    assert len((await browser.login("/site/cameras")).json()) == 4
    world.sim.revoke_user("anna@example.com")
    response = await browser.get("/site/cameras")
    assert response.status_code == 302
    assert response.headers["location"].startswith(world.authorize)


@both_providers
async def test_an_outage_under_a_view_is_503(world: World) -> None:
    serve(world, make_app())
    browser = world.browser()
    await browser.login("/site/cameras")
    world.sim.expire_access_tokens()
    world.sim.fail_token(503)
    response = await browser.get("/site/cameras")
    assert response.status_code == 503
    assert "retry-after" in response.headers


@both_providers
async def test_an_applications_own_error_handler_wins(world: World) -> None:
    from cm_auth_middleware import SessionExpiredError

    app = make_app()
    serve(world, app)
    app.register_error_handler(SessionExpiredError, lambda _: ("mine", 418))
    browser = world.browser()
    await browser.login("/site/cameras")
    world.sim.revoke_user("anna@example.com")
    assert (await browser.get("/site/cameras")).status_code == 418


async def test_url_for_and_the_test_client_work(world: World) -> None:
    app = make_app()
    serve(world, app)
    browser = world.browser()
    assert (await browser.login("/site/url")).text == "/site/cameras"
    answer = app.test_client().get("/site/cameras", headers=JSON)
    assert answer.status_code == 401
    assert answer.get_json()["login_url"] == "/auth/login"


@both_providers
async def test_a_mounted_app_keeps_its_login_below_its_mount(world: World) -> None:
    app = make_app()
    CMAuth(app, engine=world.engine)
    world.net.add_wsgi(APP, DispatcherMiddleware(flask.Flask("outer"), {"/sub": app.wsgi_app}))
    browser = world.browser()
    response = await browser.login("/sub/site/cameras?a=1")
    assert response.status_code == 200
    assert str(response.url) == f"{APP}/sub/site/cameras?a=1"
    assert "redirect_uri=http%3A%2F%2Flocalhost%3A8000%2Fsub%2Fauth%2Fcallback" in str(
        (await world.browser().get("/sub/site/who")).headers["location"]
    )


async def test_on_an_exempt_path_there_may_be_nobody(make_world) -> None:
    world = make_world(exempt=["/site/who", "/site/client"])
    serve(world, make_app())
    browser = world.browser()
    assert (await browser.get("/site/who")).text == "nobody"
    assert (await browser.get("/site/client")).status_code == 302  # it asked for a client
    assert (await browser.login("/site/url")).status_code == 200
    assert (await browser.get("/site/who")).text == "anna@example.com"


def test_options_come_from_the_apps_config_and_keywords_win(monkeypatch) -> None:
    monkeypatch.setenv("CM_AUTH_SCOPE", "read")
    app = flask.Flask(__name__)
    app.config.from_mapping(
        CM_AUTH_CLIENT_ID="from-config",
        CM_AUTH_CLIENT_SECRET="secret-of-the-key",
        CM_AUTH_SECRET_KEY=SECRET_KEY,
        CM_AUTH_TIMEOUT=3,
        CM_AUTH_EXEMPT=["/health"],
    )
    auth = CMAuth(timeout=4)
    auth.init_app(app, prefix="/login")
    config = app.extensions["cm_auth"].config
    assert (config.client_id, config.timeout, config.prefix) == ("from-config", 4, "/login")
    assert config.exempt == ("/health",)
    assert config.scope == "read"


def test_one_extension_serves_several_apps() -> None:
    auth = CMAuth(config=CMAuthConfig(**GOOD))
    engines: list[AuthEngine] = []
    for _ in range(2):
        app = make_app()
        auth.init_app(app)
        engines.append(app.extensions["cm_auth"])
    assert engines[0] is not engines[1]
    engine = AuthEngine(**GOOD)
    assert CMAuth(make_app(), engine=engine) is not None


def test_a_missing_option_is_said_at_construction() -> None:
    with pytest.raises(ConfigError, match="client_id, client_secret and secret_key are missing"):
        CMAuth(make_app())


def test_without_the_extension_the_proxies_say_what_is_missing() -> None:
    with make_app().test_request_context("/"):
        with pytest.raises(CMAuthError, match="CMAuth"):
            str(cm.base_url)
        with pytest.raises(CMAuthError, match="CMAuth"):
            _ = cm_session.user


def test_a_request_that_went_round_the_login_is_told_from_a_missing_login() -> None:
    app = make_app()
    CMAuth(app, **GOOD)
    with (
        app.test_request_context("/"),
        pytest.raises(CMAuthError, match=r"did not come through the login of CMAuth\(app, …\)"),
    ):
        _ = cm_session.user


async def test_templates_know_the_session(make_world) -> None:
    world = make_world(exempt=["/greeting"])
    app = make_app()

    @app.get("/greeting")
    def greeting() -> str:
        text = "{% if cm_session %}{{ cm_session.user.email }}{% else %}nobody{% endif %}"
        return flask.render_template_string(text)

    @app.get("/own")
    def own() -> str:
        return flask.render_template_string("{{ cm_session }}", cm_session="the view's own")

    serve(world, app)
    assert (await world.browser().get("/greeting")).text == "nobody"
    browser = world.browser()
    assert (await browser.login("/own")).text == "the view&#39;s own"
    assert (await browser.get("/greeting")).text == "anna@example.com"
    with app.app_context():  # for a mail, outside of any request
        assert flask.render_template_string("Hello") == "Hello"


def test_an_app_is_put_behind_the_login_once() -> None:
    app = make_app()
    auth = CMAuth(app, **GOOD)
    with pytest.raises(ConfigError, match="behind CMAuth already"):
        auth.init_app(app)


def test_a_misspelt_option_in_the_apps_config_is_told() -> None:
    app = make_app()
    app.config["CM_AUTH_PREFX"] = "/login"
    with pytest.raises(ConfigError, match="CM_AUTH_PREFX"):
        CMAuth(app, **GOOD)


def test_several_paths_may_be_one_string_in_the_apps_config() -> None:
    app = make_app()
    app.config["CM_AUTH_EXEMPT"] = "/health, /static/*"
    CMAuth(app, **GOOD)
    assert app.extensions["cm_auth"].config.exempt == ("/health", "/static/*")


async def test_nobody_on_an_exempt_path_is_sent_to_log_in_even_by_a_catch_all_handler(make_world):
    world = make_world(exempt=["/site/client"])
    app = make_app()
    serve(world, app)
    app.register_error_handler(Exception, lambda _: ("caught", 500))
    assert (await world.browser().get("/site/client")).status_code == 302


@both_providers
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_an_answer_under_a_view_is_the_answer_of_any_other_side(world, method) -> None:
    serve(world, make_app())
    browser = world.browser()
    await browser.login("/site/cameras")
    world.sim.revoke_user("anna@example.com")
    died = await browser.request(method, "/site/cameras", headers=JSON)
    never = await world.browser().request(method, "/site/cameras", headers=JSON)
    assert died.status_code == never.status_code == 401
    assert died.headers.raw == never.headers.raw
    assert died.content == never.content
