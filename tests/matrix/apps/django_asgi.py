"""Django under ASGI: the client is ``request.scope["state"]["cm"]``, for ``async def`` views.

A sync view runs in a thread, where an async client cannot be awaited: use async views here, or
Django under WSGI.
"""

from __future__ import annotations

import json
import os
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from starlette.applications import Starlette
from starlette.routing import Mount

from cm_auth_middleware import CMAuthMiddleware

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    SECRET_KEY=os.environ["CM_AUTH_SECRET_KEY"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)


async def home(request: Any) -> HttpResponse:
    user = request.scope["state"]["cm_session"].user
    return JsonResponse({"user": user["email"], "query": request.META["QUERY_STRING"]})


async def room(request: HttpRequest, name: str) -> HttpResponse:
    return JsonResponse({"room": name, "query": request.META["QUERY_STRING"]})


async def cameras(request: Any) -> HttpResponse:
    response = await request.scope["state"]["cm"].get("/rest/v2.4/cameras")
    return JsonResponse([camera["name"] for camera in response.json()], safe=False)


async def data(request: Any) -> HttpResponse:
    session = request.scope["state"]["cm_session"]
    if request.method == "POST":
        session.data.update(json.loads(request.body))
    return JsonResponse(session.data)


async def health(request: Any) -> HttpResponse:
    session = request.scope["state"]["cm_session"]
    return HttpResponse(session.user["email"] if session else "nobody")


urlpatterns = [
    path("", home),
    path("rooms/<name>", room),
    path("cameras", cameras),
    path("data", data),
    path("health", health),
]

app: Any = CMAuthMiddleware(get_asgi_application())
if os.environ.get("MATRIX_MOUNT"):
    app = Starlette(routes=[Mount(os.environ["MATRIX_MOUNT"], app)])
