"""R49: a Flask app, such as Dash's, mounted in an ASGI app whose middleware has the login."""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from cm_auth_middleware import CMAuthError, CMAuthMiddleware
from cm_auth_middleware.flask import cm, cm_session, require
from cm_auth_middleware.testing import Simulator, settings_for
from tests.helpers.apps import api, names
from tests.helpers.browser import Visitor
from tests.helpers.servers import served
from tests.helpers.world import SECRET_KEY, both_providers
from tests.matrix.server_processes import needs

pytestmark = [pytest.mark.slow]

Bridge = Callable[[Any], Any]
BRIDGES = {
    "starlette": "starlette.middleware.wsgi:WSGIMiddleware",
    "a2wsgi": "a2wsgi:WSGIMiddleware",
}


@pytest.fixture(params=list(BRIDGES))
def bridge(request: pytest.FixtureRequest) -> Bridge:
    needs(request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Starlette's is deprecated, and in use
        found: Bridge = pkgutil.resolve_name(BRIDGES[request.param])
    return found


def make_flask() -> flask.Flask:
    app = flask.Flask(__name__)

    @app.get("/cameras")
    def cameras() -> Any:
        return names(cm.get(f"{api(cm)}/cameras"))

    @app.get("/who")
    def who() -> str:
        return cm_session.user["email"] if cm_session else "nobody"

    @app.get("/admin")
    @require(lambda user: user["accountId"] == 502)
    def admin() -> str:
        return "the admin's page"

    @app.post("/data")
    def data() -> dict[str, Any]:
        cm_session.data["seen"] = True
        return cm_session.data

    return app


@pytest.fixture
def simulator(provider: str) -> Simulator:
    settings = settings_for(provider)
    settings.any_key = True
    return Simulator(settings)


@pytest.fixture
def origin(bridge: Bridge, simulator: Simulator, provider: str) -> Iterator[str]:
    """The site of an ASGI app with a Flask app below ``/flask``."""
    with served("h11", simulator) as port:
        site = CMAuthMiddleware(
            Starlette(routes=[Mount("/flask", bridge(make_flask()))]),
            base_url=f"http://127.0.0.1:{port}", client_id="id", client_secret="secret",
            provider=provider, secret_key=SECRET_KEY,
            exempt=["/flask/who", "/flask/cameras", "/flask/admin"],
        )  # fmt: skip
        with served("h11", site) as own:
            yield f"http://127.0.0.1:{own}"
        site.engine.close()


@both_providers
def test_a_mounted_flask_app_has_the_client_and_the_session_of_its_visitor(origin: str) -> None:
    with Visitor(origin) as anna, Visitor(origin) as bob:
        anna.enter("/flask/data", "anna@example.com")
        bob.enter("/flask/data", "bob@example.com")
        for _ in range(3):
            assert anna.navigate("/flask/cameras").json()[0] == "Front gate"
            assert bob.navigate("/flask/cameras").json() == ["Shop floor", "Back door"]
        assert anna.navigate("/flask/who").text == "anna@example.com"
        assert anna.fetch("/flask/data", "POST").json() == {"seen": True}


def test_its_visitor_without_a_session_is_sent_to_the_login(origin: str) -> None:
    """On an exempt path: as from a handler of the ASGI app."""
    with Visitor(origin) as visitor:
        assert visitor.navigate("/flask/who").text == "nobody"
        assert visitor.fetch("/flask/cameras").status_code == 401
        assert visitor.navigate("/flask/cameras").status_code == 302


def test_a_rule_of_its_own_refuses_with_the_page(origin: str) -> None:
    with Visitor(origin) as anna, Visitor(origin) as bob:
        anna.enter("/flask/data", "anna@example.com")
        bob.enter("/flask/data", "bob@example.com")
        assert bob.navigate("/flask/admin").text == "the admin's page"
        refused = anna.navigate("/flask/admin")
        assert refused.status_code == 403
        assert "You have no access to this page" in refused.text
    with Visitor(origin) as visitor:
        assert visitor.fetch("/flask/admin").status_code == 401


def test_its_session_ends_with_its_grant(origin: str, simulator: Simulator) -> None:
    """The error of the client passes through Flask and the bridge."""
    with Visitor(origin) as visitor:
        visitor.enter("/flask/data")
        simulator.revoke_user("anna@example.com")
        assert visitor.fetch("/flask/cameras").status_code == 401


def test_without_a_middleware_the_error_says_what_is_missing() -> None:
    app = make_flask()
    app.testing = True
    with pytest.raises(CMAuthError, match=r"CMAuth\(app, …\) is missing; or this app is mounted"):
        app.test_client().get("/cameras")
