"""An OAuth server for tests: PyPI's django-oauth-toolkit with two users and a few cameras.

Each refresh rotates the refresh token. The use of an old one ends its whole family, except for a
grace period, in which it is answered with the tokens that it was exchanged for already.
``POST /_control`` counts what was called, and moves expiry times instead of waiting. Runs in a
virtual environment of its own, without the package.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

PASSWORD = "cameras"
USERS = {
    "anna@example.com": ["Front gate", "Parking lot", "Warehouse", "Loading dock"],
    "bob@example.com": ["Shop floor", "Back door"],
}

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--directory", type=Path, required=True, help="for the database")
parser.add_argument("--client-id", required=True)
parser.add_argument("--client-secret", required=True)
parser.add_argument("--access-token-lifetime", type=int, default=3600, metavar="SECONDS")
parser.add_argument("--refresh-token-lifetime", type=int, default=86_400, metavar="SECONDS")
parser.add_argument("--grace", type=int, default=120, metavar="SECONDS")
arguments = parser.parse_args()

# Of tests, and changed by `control`.
access_token_lifetime = arguments.access_token_lifetime
token_calls: list[dict[str, Any]] = []
revocations: list[int] = []
answers_to_lose = 0
answer_delay = 0.0  # seconds
forbids_dead_bearers = False
used_refresh_tokens: list[str] = []  # the toolkit keeps them, too, but not in order

import django  # noqa: E402
from django.conf import settings  # noqa: E402

LOGIN_PAGE = '<form method="post">{% csrf_token %}{{ form.as_p }}<button>Log in</button></form>'

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": arguments.directory / "server.sqlite3",
            "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "oauth2_provider",
    ],
    LOGIN_URL="/login/",
    MIDDLEWARE=[
        "__main__.count",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    OAUTH2_PROVIDER={
        "EXTRA_SERVER_KWARGS": {"token_expires_in": lambda _: access_token_lifetime},
        "PKCE_REQUIRED": True,
        "REFRESH_TOKEN_EXPIRE_SECONDS": arguments.refresh_token_lifetime,
        "REFRESH_TOKEN_GRACE_PERIOD_SECONDS": arguments.grace,
        "REFRESH_TOKEN_REUSE_PROTECTION": True,
        "REQUEST_APPROVAL_PROMPT": "auto",
        "ROTATE_REFRESH_TOKEN": True,
        "SCOPES": {"cameras": "See your cameras"},
    },
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],  # a quick one, for tests
    ROOT_URLCONF="__main__",
    SECRET_KEY="interop " * 8,
    SESSION_COOKIE_NAME="django_session",
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "context_processors": ["django.template.context_processors.request"],
                "loaders": [
                    (
                        "django.template.loaders.locmem.Loader",
                        {"registration/login.html": LOGIN_PAGE},
                    ),
                    "django.template.loaders.app_directories.Loader",
                ],
            },
        }
    ],
    USE_TZ=True,
)
django.setup()

from django.contrib.auth.models import User  # noqa: E402
from django.contrib.auth.views import LoginView  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.servers.basehttp import run  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpRequest, HttpResponse, JsonResponse  # noqa: E402
from django.urls import include, path  # noqa: E402
from django.utils import timezone  # noqa: E402
from django.views.decorators.csrf import csrf_exempt  # noqa: E402
from oauth2_provider.decorators import protected_resource  # noqa: E402
from oauth2_provider.models import AccessToken, Application, RefreshToken  # noqa: E402


def count(get_response: Any) -> Any:
    """Note the calls of the token and the revocation endpoint (a Django middleware)."""

    def middleware(request: HttpRequest) -> HttpResponse:
        global answers_to_lose
        response: HttpResponse = get_response(request)
        if request.path == "/o/revoke_token/":
            revocations.append(response.status_code)
        if request.path != "/o/token/":
            return response
        answer = json.loads(response.content)
        call = {"grant_type": request.POST.get("grant_type"), "status": response.status_code}
        token_calls.append({**call, "error": answer.get("error")})
        if "refresh_token" in answer and "refresh_token" in request.POST:
            used_refresh_tokens.append(request.POST["refresh_token"])
        time.sleep(answer_delay)
        if answers_to_lose:
            answers_to_lose -= 1
            return HttpResponse("the answer was lost", status=502)
        return response

    return middleware


def protected(view: Any) -> Any:
    """Demand a living bearer: else 401 with a challenge, or 403 as the toolkit does by default."""
    challenging = protected_resource(scopes=["cameras"], advertise_metadata=True)(view)
    forbidding = protected_resource(scopes=["cameras"])(view)
    return lambda request: (forbidding if forbids_dead_bearers else challenging)(request)


@protected
def user_self(request: HttpRequest) -> HttpResponse:
    user = request.resource_owner
    return JsonResponse({"id": user.pk, "email": user.username, "firstName": user.first_name})


@protected
def cameras(request: HttpRequest) -> HttpResponse:
    names = USERS[request.resource_owner.username]
    found = [{"cameraId": number, "name": name} for number, name in enumerate(names, 1)]
    return JsonResponse(found, safe=False)


@csrf_exempt
def control(request: HttpRequest) -> HttpResponse:
    """Do what a test asks for, and say what has been called."""
    global access_token_lifetime, answers_to_lose, answer_delay, forbids_dead_bearers
    commands = json.loads(request.body or "{}")
    if commands.get("reset"):
        RefreshToken.objects.all().delete()
        AccessToken.objects.all().delete()
        answers_to_lose, answer_delay, forbids_dead_bearers = 0, 0.0, False
        access_token_lifetime = arguments.access_token_lifetime
    if commands.get("reset") or commands.get("forget_calls"):
        for calls in (token_calls, revocations, used_refresh_tokens):
            calls.clear()
    access_token_lifetime = commands.get("access_token_lifetime", access_token_lifetime)
    answers_to_lose = commands.get("lose_token_answers", answers_to_lose)
    answer_delay = commands.get("delay_token_answers", answer_delay)
    forbids_dead_bearers = commands.get("forbid_dead_bearers", forbids_dead_bearers)
    if commands.get("expire_access_tokens"):
        AccessToken.objects.update(expires=timezone.now() - timedelta(seconds=1))
    if commands.get("expire_refresh_tokens"):
        # A refresh token lives for so many seconds longer than its access token.
        lifetime = timedelta(seconds=arguments.refresh_token_lifetime + 1)
        AccessToken.objects.update(expires=timezone.now() - lifetime)
    if email := commands.get("revoke_user"):
        for token in RefreshToken.objects.filter(user__username=email, revoked=None):
            token.revoke()
    return JsonResponse(
        {
            "token_calls": token_calls,
            "revocations": revocations,
            "used_refresh_tokens": used_refresh_tokens,
            "living_refresh_tokens": RefreshToken.objects.filter(revoked=None).count(),
        }
    )


urlpatterns = [
    path("login/", LoginView.as_view()),
    path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
    path("api/users/self", user_self),
    path("api/rest/v2.4/cameras", cameras),
    path("_control", control),
]


def prepare() -> None:
    """Make the database, the users and the application."""
    call_command("migrate", verbosity=0)
    for email in USERS:
        User.objects.create_user(email, email, PASSWORD, first_name=email.partition("@")[0])
    Application.objects.create(
        name="the application",
        client_id=arguments.client_id,
        client_secret=arguments.client_secret,
        client_type=Application.CLIENT_CONFIDENTIAL,
        authorization_grant_type=Application.GRANT_AUTHORIZATION_CODE,
        redirect_uris="http://127.0.0.1/auth/callback",  # the port of a loopback URI is free
    )


def main() -> None:
    prepare()

    def announce(_: int) -> None:
        names = ("django-oauth-toolkit", "django", "oauthlib")
        versions = {name: version(name) for name in names} | {"python": platform.python_version()}
        has_grace_period = arguments.grace > 0
        said = {"versions": versions, "has_grace_period": has_grace_period}
        print(json.dumps(said), flush=True)

    try:
        run("127.0.0.1", arguments.port, get_wsgi_application(), threading=True, on_bind=announce)
    except OSError as error:
        sys.exit(f"cannot listen on port {arguments.port}: {error.strerror}")


if __name__ == "__main__":
    main()
