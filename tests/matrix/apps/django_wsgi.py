"""Django under WSGI: the client is ``request.META["cm_auth.client"]``."""

from __future__ import annotations

import json
import os
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware import CMAuthWSGIMiddleware

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    SECRET_KEY=os.environ["CM_AUTH_SECRET_KEY"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)


def home(request: HttpRequest) -> HttpResponse:
    user = request.META["cm_auth.session"].user
    return JsonResponse({"user": user["email"], "query": request.META["QUERY_STRING"]})


def room(request: HttpRequest, name: str) -> HttpResponse:
    return JsonResponse({"room": name, "query": request.META["QUERY_STRING"]})


def cameras(request: HttpRequest) -> HttpResponse:
    response = request.META["cm_auth.client"].get("/rest/v2.4/cameras")
    return JsonResponse([camera["name"] for camera in response.json()], safe=False)


def data(request: HttpRequest) -> HttpResponse:
    session = request.META["cm_auth.session"]
    if request.method == "POST":
        session.data.update(json.loads(request.body))
    return JsonResponse(session.data)


def health(request: HttpRequest) -> HttpResponse:
    session = request.META["cm_auth.session"]
    return HttpResponse(session.user["email"] if session else "nobody")


urlpatterns = [
    path("", home),
    path("rooms/<name>", room),
    path("cameras", cameras),
    path("data", data),
    path("health", health),
]

app: Any = CMAuthWSGIMiddleware(get_wsgi_application())
if os.environ.get("MATRIX_MOUNT"):
    app = DispatcherMiddleware(NotFound(), {os.environ["MATRIX_MOUNT"]: app})
