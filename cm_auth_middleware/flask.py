"""The Flask extension, and ``cm`` and ``cm_session`` for the current request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, Unpack, cast

from flask import Flask, Response, current_app, request
from werkzeug.local import LocalProxy

from .config import CMAuthConfig, CMAuthOptions
from .engine import AuthEngine, asgi_states
from .errors import (
    CMAuthError,
    ConfigError,
    ForbiddenError,
    SessionExpiredError,
    UnavailableError,
)
from .runtime.run_sync import run_sync
from .wsgi import CMAuthWSGIMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .client import CMClient
    from .hooks import Allow
    from .sessions.session import Session

__all__ = ["CMAuth", "cm", "cm_session", "require"]

P = ParamSpec("P")

_LISTS = ("exempt", "allowed_hosts", "trusted_origins", "allow_emails", "allow_accounts")


class CMAuth:
    """Puts a Flask app behind a CameraManager login.

        CMAuth(app, client_id="…", client_secret="…", secret_key="…")

    or, with an application factory, ``auth = CMAuth(); auth.init_app(app)``. Options are
    keywords, or ``app.config["CM_AUTH_<OPTION>"]``, or the environment, in this order. Templates
    know `cm_session`.

    Args: the same as those of `CMAuthMiddleware`.

    Raises:
        ConfigError: an option is missing or wrong; the message names it.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        config: CMAuthConfig | None = None,
        engine: AuthEngine | None = None,
        **options: Unpack[CMAuthOptions],
    ) -> None:
        self._config = config
        self._engine = engine
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, **options: Unpack[CMAuthOptions]) -> None:
        """Put an app behind the login, once; options override those given before."""
        if "cm_auth" in app.extensions:
            raise ConfigError(
                "this app is behind CMAuth already: use CMAuth(app) or init_app(app), not both"
            )
        options = {**self._options, **options}
        if self._engine is None and self._config is None:
            options = {**_from_app(app), **options}
        middleware = CMAuthWSGIMiddleware(
            app.wsgi_app, config=self._config, engine=self._engine, **options
        )
        app.wsgi_app = middleware  # type: ignore[method-assign]  # Flask documents this
        app.extensions["cm_auth"] = middleware.engine
        for error in (SessionExpiredError, UnavailableError, ForbiddenError):
            app.register_error_handler(error, _note_error)
        app.context_processor(_names_for_templates)


def _from_app(app: Flask) -> CMAuthOptions:
    known = {f"CM_AUTH_{field.name.upper()}": field.name for field in fields(CMAuthConfig)}
    given = [key for key in app.config if key.startswith("CM_AUTH_")]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"app.config has unknown options: {', '.join(unknown)}")
    found = {known[key]: app.config[key] for key in given}
    for name in _LISTS:  # strings, if they come from Flask's from_prefixed_env()
        if isinstance(found.get(name), str):
            found[name] = [part.strip() for part in found[name].split(",")]
    return cast("CMAuthOptions", found)


def require(rule: Allow) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """Return a decorator that admits only some of the users to a view.

        @app.get("/admin")
        @require(lambda user: user["accountId"] == 501)
        def admin(): ...

    A user whom the rule does not admit gets 403 and a page (`ForbiddenError`); a visitor on an
    exempt path is sent to the login. Below ``@blueprint.before_request`` it guards a blueprint.

    Args:
        rule: called with the user (the JSON of ``users/self``), sync or async; returns True if this
            user may use the view. What it raises is an error of the view.
    """

    def decorate(view: Callable[P, Any]) -> Callable[P, Any]:
        @wraps(view)
        def permitted(*args: P.args, **kwargs: P.kwargs) -> Any:
            session = _session()
            if session is None:
                raise _noted(SessionExpiredError("no user is logged in"))
            engine: AuthEngine = request.environ["cm_auth.engine"]
            runtime = engine.thread_services.runtime
            if not run_sync(runtime.call_user_function(rule, session.user)):
                raise _noted(ForbiddenError())
            return current_app.ensure_sync(view)(*args, **kwargs)

        return permitted

    return decorate


def _names_for_templates() -> dict[str, Any]:
    return {"cm_session": cm_session}  # a proxy: a template that does not use it needs no request


def _note_error(error: Exception) -> Response:
    """Hand an error to the WSGI middleware, whose response replaces this one."""
    request.environ["cm_auth.error"] = error
    return Response(status=500)


def _noted(error: CMAuthError) -> CMAuthError:
    """Return an error that the middleware finds even if a catch-all handler hides it."""
    request.environ["cm_auth.error"] = error
    for state in asgi_states.get([]):
        state["cm_error"] = error
    return error


def _client() -> Any:
    environ = request.environ  # read once: each access through Flask's proxy takes a microsecond
    if "cm_auth.client" not in environ:
        _take_from_asgi(environ, "client")
    client = environ["cm_auth.client"]
    if client is None:
        raise _noted(SessionExpiredError("no user is logged in"))
    return client


def _session() -> Any:
    environ = request.environ
    if "cm_auth.session" not in environ:
        _take_from_asgi(environ, "session")
    return environ["cm_auth.session"]


def _take_from_asgi(environ: WSGIEnvironment, name: str) -> None:
    """Give an app that is mounted in an ASGI app the session of the middleware around that one."""
    states = asgi_states.get([])
    if not states:
        if "cm_auth" in current_app.extensions:
            raise CMAuthError(
                f"there is no {name} here: this request did not come through the login of "
                "CMAuth(app, …). One of app.test_request_context() does not: use "
                "app.test_client(), or cm_login of the pytest plugin"
            )
        raise CMAuthError(
            f"there is no {name} here: CMAuth(app, …) is missing; or this app is mounted in an "
            "ASGI app behind CMAuthMiddleware, by a bridge that does not pass on the context"
        )
    session, engine = states[0]["cm_session"], states[0]["cm_auth"]
    environ["cm_auth.engine"] = engine
    environ["cm_auth.session"] = session
    environ["cm_auth.client"] = session and engine.sync_client(session)


cm = cast("CMClient", LocalProxy(_client))
"""The `httpx2.Client` of this request's user.

Flask finds the request by the thread. Give other threads `cm._get_current_object()`, which is the
client itself; they may share it.
"""

cm_session = cast("Session", LocalProxy(_session))
"""The session of this request; its truth value is False for a visitor on an exempt path."""
