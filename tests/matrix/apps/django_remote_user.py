"""Django's users by ``RemoteUserMiddleware``, as the quick start shows it."""

from __future__ import annotations

import os
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from cm_auth_middleware import CMAuthWSGIMiddleware

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    SECRET_KEY=os.environ["CM_AUTH_SECRET_KEY"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
    ],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ["MATRIX_DATABASE"],
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.auth.middleware.RemoteUserMiddleware",
    ],
    AUTHENTICATION_BACKENDS=[f"{__name__}.CameraManagerBackend"],
)
django.setup()

from django.contrib.auth.backends import RemoteUserBackend  # noqa: E402 - it needs the settings


class CameraManagerBackend(RemoteUserBackend):
    """Fills in what CameraManager knows of a user."""

    def configure_user(self, request: Any, user: Any, created: bool = True) -> Any:  # noqa: ARG002
        known = request.META["cm_auth.session"].user
        user.email = known["email"]
        user.first_name, user.last_name = known["firstName"], known["lastName"]
        user.save()
        return user


def home(request: Any) -> HttpResponse:
    user = request.user
    told = [user.get_username(), user.email, user.get_full_name(), user.pk]
    return JsonResponse(told, safe=False)


def health(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username() or "nobody")


urlpatterns = [path("", home), path("health", health)]

call_command("migrate", verbosity=0)
app: Any = CMAuthWSGIMiddleware(get_wsgi_application())
