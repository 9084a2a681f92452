"""Flask glue: the extension, and ``cm`` and ``cm_session`` for the request at hand."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Unpack, cast

from flask import Flask, Response, request
from werkzeug.local import LocalProxy

from .config import CMAuthConfig
from .engine import AuthEngine
from .errors import CMAuthError, ConfigError, SessionExpiredError, UnavailableError
from .wsgi import CMAuthWSGIMiddleware

if TYPE_CHECKING:
    from .client import CMClient
    from .options import CMAuthOptions
    from .sessions.session import Session

__all__ = ["CMAuth", "cm", "cm_session"]

_LISTS = ("exempt", "allowed_hosts", "allow_emails", "allow_accounts")


class CMAuth:
    """Puts a Flask app behind a CameraManager login.

        CMAuth(app, client_id="…", client_secret="…", secret_key="…")

    or, with an application factory, ``auth = CMAuth(); auth.init_app(app)``. Options are
    keywords, or ``app.config["CM_AUTH_<OPTION>"]``, or the environment, in this order.

    Args: as `CMAuthMiddleware`, which see.

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
            raise ConfigError("this app is behind CMAuth already: give it the app or init_app it")
        options = {**self._options, **options}
        if self._engine is None and self._config is None:
            options = {**_from_app(app), **options}
        middleware = CMAuthWSGIMiddleware(
            app.wsgi_app, config=self._config, engine=self._engine, **options
        )
        app.wsgi_app = middleware  # type: ignore[method-assign]  # Flask documents this
        app.extensions["cm_auth"] = middleware.engine
        for error in (SessionExpiredError, UnavailableError):
            app.register_error_handler(error, _answer)


def _from_app(app: Flask) -> CMAuthOptions:
    known = {f"CM_AUTH_{field.name.upper()}": field.name for field in fields(CMAuthConfig)}
    given = [key for key in app.config if key.startswith("CM_AUTH_")]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"app.config has unknown options: {', '.join(unknown)}")
    found = {known[key]: app.config[key] for key in given}
    for name in (
        "exempt",
        "allowed_hosts",
        "allow_emails",
        "allow_accounts",
    ):  # as from_prefixed_env() may leave them
        if isinstance(found.get(name), str):
            found[name] = [part.strip() for part in found[name].split(",")]
    return cast("CMAuthOptions", found)


def _answer(error: Exception) -> Response:
    """Leave word for the shell, which answers as it does to any unauthenticated request."""
    request.environ["cm_auth.error"] = error
    return Response(status=500)


def _client() -> Any:
    environ = request.environ  # once: each look through Flask's proxy takes a microsecond
    if "cm_auth.client" not in environ:
        raise CMAuthError("no client here: CMAuth(app, …) is missing")
    client = environ["cm_auth.client"]
    if client is None:
        environ["cm_auth.error"] = SessionExpiredError("nobody is logged in")
        raise environ["cm_auth.error"]
    return client


def _session() -> Any:
    environ = request.environ
    if "cm_auth.session" not in environ:
        raise CMAuthError("no session here: CMAuth(app, …) is missing")
    return environ["cm_auth.session"]


cm = cast("CMClient", LocalProxy(_client))
"""The ready `httpx2.Client` of this request's user.

Flask knows the request by the thread: give other threads `cm._get_current_object()`, the client
itself, which they may share.
"""

cm_session = cast("Session", LocalProxy(_session))
"""The session of this request; it is false for a visitor on an exempt path."""
