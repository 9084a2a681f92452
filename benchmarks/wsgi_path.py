"""The price of each request to a Flask application."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from flask import Flask, request, session
from flask.sessions import SecureCookieSessionInterface

from cm_auth_middleware.flask import CMAuth, cm_session

from .ideal import Cookies, IdealWSGIMiddleware, new_record
from .measure import Costs, repeated, take_turns
from .report import Figure
from .world import COOKIE, SECRET_KEY, USER, SimulatedWorld, WSGIRequests, redis_server

_SESSION = {"user": USER, "scope": "write", "logged_in_at": 1_800_000_000.0, "csrf": "x" * 32}


def bare_app() -> Flask:
    """A Flask application that asks nobody who they are."""
    app = Flask("bare")
    app.add_url_rule("/", view_func=lambda: "ok")
    return app


def session_app() -> Flask:
    """One that looks at Flask's session."""
    app = Flask("session")
    app.secret_key = secrets.token_urlsafe(48)
    app.add_url_rule("/", view_func=lambda: "ok" if session["user"]["email"] else "")
    return app


def our_app(**options: Any) -> Flask:
    """One that looks at our session."""
    app = Flask("ours")
    app.add_url_rule("/", view_func=lambda: "ok" if cm_session.user["email"] else "")
    CMAuth(app, **options)
    return app


def run(benchmark: str, *, quick: bool) -> Iterator[Figure]:
    """Measure the request path of WSGI."""
    with ExitStack() as stack:
        redis = None if quick else stack.enter_context(redis_server())
        requests = {
            "bare": WSGIRequests(bare_app(), f"theme=dark; {COOKIE}={'x' * 130}"),
            "Flask's session": _flask_session(session_app()),
            "ideal, WSGI": _ideal(),
        }
        with SimulatedWorld() as world:
            stores = {"memory": "memory://", **({"Redis": redis} if redis else {})}
            for name, store in stores.items():
                app = our_app(**world.options(store=store))
                cookie = f"theme=dark; {COOKIE}={world.log_in_wsgi(app)}"
                requests[f"ours, WSGI, {name}"] = WSGIRequests(app, cookie)
                stack.callback(app.extensions["cm_auth"].close)
        if redis:
            requests["Flask-Session, Redis"] = _flask_session_on_redis(redis)
        turns = {name: repeated(request) for name, request in requests.items()}
        costs = take_turns(turns, **({"blocks": 5, "rounds": 10} if quick else {}))
        yield from _figures(benchmark, costs, list(turns))


def _flask_session(app: Flask) -> WSGIRequests:
    serializer = SecureCookieSessionInterface().get_signing_serializer(app)
    assert serializer is not None
    return WSGIRequests(app, f"theme=dark; session={serializer.dumps(_SESSION)}")


def _flask_session_on_redis(url: str) -> WSGIRequests:
    from flask_session import Session
    from redis import Redis

    app = session_app()
    app.config.update(SESSION_TYPE="redis", SESSION_REDIS=Redis.from_url(url))
    app.add_url_rule("/login", view_func=_log_in)
    Session(app)
    cookie = app.test_client().get("/login").headers["Set-Cookie"].partition(";")[0]
    return WSGIRequests(app, f"theme=dark; {cookie}")


def _log_in() -> str:
    session.update(_SESSION)
    return "ok"


def _home() -> str:
    return "ok" if request.environ["cm_auth.session"].user["email"] else ""


def _ideal() -> WSGIRequests:
    cookies, session_id = Cookies(SECRET_KEY), secrets.token_urlsafe(64)
    sessions = {session_id.encode(): new_record(USER)}
    app = Flask("ideal")
    app.add_url_rule("/", view_func=_home)
    app.wsgi_app = IdealWSGIMiddleware(app.wsgi_app, cookies, sessions.get)  # type: ignore[method-assign]
    return WSGIRequests(app, f"theme=dark; {COOKIE}={cookies.sign(session_id)}")


def _figures(benchmark: str, costs: Costs, names: list[str]) -> Iterator[Figure]:
    for name in names:
        if name == "bare":
            cost = costs.cost(name).value * 1e6
            yield Figure(benchmark, "a bare Flask application", cost, "µs")
            continue
        added = costs.cost(name, over="bare").value * 1e6
        ratio = costs.ratio(name, "Flask's session", over="bare")
        target = "<= 0.3" if name == "ours, WSGI, memory" else ""
        yield Figure(benchmark, name, added, "µs more", ratio, "Flask's session", target)
