"""How the servers of this directory are described to the package."""

from __future__ import annotations

from cm_auth_middleware import CAMERAMANAGER, EAGLEEYE, Provider

OIDC_PROVIDER = Provider(
    name="oidc-provider",
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
    name="Django OAuth Toolkit",
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
PROVIDERS = {
    "cameramanager": CAMERAMANAGER,
    "oidc-provider": OIDC_PROVIDER,
    "django-oauth-toolkit": DJANGO_TOOLKIT,
    "Spring Authorization Server": EAGLEEYE,
}
