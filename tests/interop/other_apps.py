"""The tests' applications behind servers of other kinds, each by a `Provider` of one's own.

Options come from the environment (``CM_AUTH_…``); ``INTEROP_PROVIDER`` names the provider.
"""

from __future__ import annotations

import os
from typing import Any

from cm_auth_middleware import CMAuthMiddleware
from cm_auth_middleware.flask import CMAuth
from cm_auth_middleware.tokens.provider import Provider
from tests.apps import make_app, make_wsgi_app

OIDC_PROVIDER = Provider(
    base_url="http://127.0.0.1",  # and a port that the test knows
    scopes=("openid offline_access email cameras",),
    # A refresh token is given for consent to offline access alone (OpenID Connect Core §11).
    authorize_path="/auth?prompt=consent",
    token_path="/token",
    api_path="",
    user_path="/me",
    user_id_field="sub",
    logout_path="/token/revocation",
    revokes_refresh_tokens=True,
    encodes_key=True,
    key_errors=frozenset({"invalid_client", "unauthorized_client"}),
    is_grant_over=lambda status, error: (status, error) == (400, "invalid_grant"),
)
DJANGO_TOOLKIT = Provider(
    base_url="http://127.0.0.1",
    scopes=("cameras",),
    authorize_path="/o/authorize/",
    token_path="/o/token/",
    api_path="/api",
    user_path="/users/self",
    user_id_field="id",
    logout_path="/o/revoke_token/",
    revokes_refresh_tokens=True,
    encodes_key=True,
    key_errors=frozenset({"invalid_client", "unauthorized_client"}),
    is_grant_over=lambda status, error: (status, error) == (400, "invalid_grant"),
)
PROVIDERS = {"oidc-provider": OIDC_PROVIDER, "django-oauth-toolkit": DJANGO_TOOLKIT}


def asgi() -> Any:
    app = make_app()
    app.add_middleware(CMAuthMiddleware, provider=PROVIDERS[os.environ["INTEROP_PROVIDER"]])
    return app


def wsgi() -> Any:
    app = make_wsgi_app()
    CMAuth(app, provider=PROVIDERS[os.environ["INTEROP_PROVIDER"]])
    return app
