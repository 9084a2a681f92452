"""The price of each request to a Flask application."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from flask import Flask, request, session
from flask.sessions import SecureCookieSessionInterface

from cm_auth_middleware.flask import CMAuth, cm_session

from .ideal import Cookies, IdealWSGIMiddleware, new_record
from .measure import Costs, one_processor, repeated, take_turns
from .report import Figure
from .world import (
    COOKIE,
    SECRET_KEY,
    USER,
    SimulatedWorld,
    WSGIRequests,
    forget_sessions,
    redis_server,
)

_BARE, _SESSIONS = "a bare Flask application", "Flask's session"
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
    app.add_url_rule("/", "home", lambda: "ok")
    app.add_url_rule("/who", "who", lambda: "ok" if session["user"]["email"] else "")
    app.add_url_rule("/log-in", view_func=_log_in)
    return app


def our_app(**options: Any) -> Flask:
    """One that looks at our session."""
    app = Flask("ours")
    app.add_url_rule("/", "home", lambda: "ok")
    app.add_url_rule("/who", "who", lambda: "ok" if cm_session.user["email"] else "")
    CMAuth(app, **options)
    return app


def run(benchmark: str, *, quick: bool) -> Iterator[Figure]:
    """Measure the request path of WSGI."""
    # More rounds than elsewhere: a third of what is measured is compared, and the rest is Flask.
    effort = {"blocks": 5, "rounds": 10} if quick else {"rounds": 30}
    with one_processor(), ExitStack() as stack:
        local: dict[str, Any] = {
            _BARE: WSGIRequests(bare_app(), f"theme=dark; {COOKIE}={'x' * 130}")
        }
        remote = {}
        redis = None
        if not quick:
            local[_SESSIONS] = _flask_session(session_app())
            local["ideal, WSGI"] = _ideal()
            redis = stack.enter_context(redis_server())
        with SimulatedWorld() as world:

            def ours(store: str) -> WSGIRequests:
                app = our_app(**world.options(store=store))
                stack.callback(app.extensions["cm_auth"].close)
                return WSGIRequests(app, f"theme=dark; {COOKIE}={world.log_in_wsgi(app)}", "/who")

            local["ours, WSGI, memory"] = ours("memory://")
            if not quick:
                local["ours, WSGI, memory, nothing remembered"] = forgetting(ours("memory://"))
                visited = local["ours, WSGI, memory"].app
                local["ours, WSGI, redirect to the login"] = WSGIRequests(visited, status=302)
            if redis:
                remote = {name: local[name] for name in (_BARE, _SESSIONS)}
                remote["ours, WSGI, Redis"] = ours(redis)
                remote["Flask-Session, Redis"] = _flask_session_on_redis(redis)
        turns = {name: repeated(call) for name, call in local.items()}
        costs = take_turns(turns, **effort)
        yield Figure(benchmark, _BARE, costs.cost(_BARE).value * 1e6, "µs")
        yield from _figures(benchmark, costs, list(turns)[1:], _BARE if quick else _SESSIONS)
        if remote:
            turns = {name: repeated(call, waits=True) for name, call in remote.items()}
            yield from _figures(benchmark, take_turns(turns, **effort), list(turns)[2:], _SESSIONS)


def forgetting(requests: WSGIRequests) -> Callable[[], None]:
    """The same, as when the process has not seen this session; see that of `request_path`."""
    engine = requests.app.extensions["cm_auth"]
    forget = forget_sessions(engine.thread_services.sessions)

    def call() -> None:
        forget()
        requests()

    return call


def _flask_session(app: Flask) -> WSGIRequests:
    serializer = SecureCookieSessionInterface().get_signing_serializer(app)
    assert serializer is not None
    return WSGIRequests(app, f"theme=dark; session={serializer.dumps(_SESSION)}", "/who")


def _flask_session_on_redis(url: str) -> WSGIRequests:
    from flask_session import Session
    from redis import Redis

    app = session_app()
    app.config.update(SESSION_TYPE="redis", SESSION_REDIS=Redis.from_url(url))
    Session(app)
    cookie = app.test_client().get("/log-in").headers["Set-Cookie"].partition(";")[0]
    return WSGIRequests(app, f"theme=dark; {cookie}", "/who")


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


def _figures(benchmark: str, costs: Costs, names: list[str], reference: str) -> Iterator[Figure]:
    for name in names:
        added = costs.cost(name, over=_BARE).value * 1e6
        if reference == _BARE:
            ratio = costs.of_two(name, _BARE, _BARE)
        else:
            ratio = costs.ratio(name, reference, over=_BARE)
        is_aimed = name == "ours, WSGI, memory" and reference == _SESSIONS
        target = "<= 0.3" if is_aimed else ""
        yield Figure(benchmark, name, added, "µs more", ratio, reference, target)
