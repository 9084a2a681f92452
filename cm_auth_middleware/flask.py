"""Flask glue: the extension, and ``cm`` and ``cm_session`` for the request at hand."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Unpack, cast

from flask import Flask, Response, request
from werkzeug.local import LocalProxy

from .config import CMAuthConfig
from .driver import run_sync
from .engine import AuthEngine
from .errors import CMAuthError, SessionExpiredError, UnavailableError
from .wsgi import CMAuthWSGIMiddleware, WSGIRequest

if TYPE_CHECKING:
    from .client import CMClient
    from .options import CMAuthOptions
    from .session import Session

__all__ = ["CMAuth", "cm", "cm_session"]


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
        """Put an app behind the login; options override those given before."""
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
    names = (field.name for field in fields(CMAuthConfig))
    keys = {name: f"CM_AUTH_{name.upper()}" for name in names}
    found = {name: app.config[key] for name, key in keys.items() if key in app.config}
    return cast("CMAuthOptions", found)


def _answer(error: Exception) -> Response:
    engine = cast("AuthEngine", request.environ["cm_auth.engine"])
    answer = run_sync(engine.thread_side.flow.answer_to(WSGIRequest(request.environ), error))
    if answer is None:
        raise error
    body = b"" if request.method == "HEAD" else answer.body
    return Response(body, answer.status, answer.headers)


def _client() -> Any:
    if "cm_auth.client" not in request.environ:
        raise CMAuthError("no client here: CMAuth(app, …) is missing")
    client = request.environ["cm_auth.client"]
    if client is None:
        raise SessionExpiredError("nobody is logged in")
    return client


def _session() -> Any:
    if "cm_auth.session" not in request.environ:
        raise CMAuthError("no session here: CMAuth(app, …) is missing")
    return request.environ["cm_auth.session"]


cm = cast("CMClient", LocalProxy(_client))
"""The ready `httpx2.Client` of this request's user."""

cm_session = cast("Session", LocalProxy(_session))
"""The session of this request; it is false for a visitor on an exempt path."""
