"""The Flask app, used by somebody in the process that imports it: sockets and locks are warm."""

from __future__ import annotations

import sys

import httpx2

from tests.helpers.browser import BOB, CAMERAS, Visitor

from .flask_app import app

__all__ = ["app"]


class InProcess(httpx2.HTTPTransport):
    """The app without a server; CameraManager over the network."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "localhost":
            return httpx2.WSGITransport(app).handle_request(request)
        return super().handle_request(request)


with Visitor("http://localhost", InProcess()) as visitor:
    visitor.enter("/", BOB)
    if visitor.fetch("/cameras").json() == CAMERAS[BOB]:
        sys.stdout.write("used before the fork\n")
        sys.stdout.flush()
