"""Falcon: the client is ``req.env["cm_auth.client"]``."""

from __future__ import annotations

import os
from typing import Any

import falcon
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware import CMAuthWSGIMiddleware


class Home:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        user = req.env["cm_auth.session"].user
        resp.media = {"user": user["email"], "query": req.query_string}


class Room:
    def on_get(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        resp.media = {"room": name, "query": req.query_string}


class Cameras:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        response = req.env["cm_auth.client"].get("/rest/v2.4/cameras")
        resp.media = [camera["name"] for camera in response.json()]


class Data:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = req.env["cm_auth.session"].data

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        session = req.env["cm_auth.session"]
        session.data.update(req.get_media())
        resp.media = session.data


class Health:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        session = req.env["cm_auth.session"]
        resp.text = session.user["email"] if session else "nobody"


api = falcon.App()
api.add_route("/", Home())
api.add_route("/rooms/{name}", Room())
api.add_route("/cameras", Cameras())
api.add_route("/data", Data())
api.add_route("/health", Health())

app: Any = CMAuthWSGIMiddleware(api)
if os.environ.get("MATRIX_MOUNT"):
    app = DispatcherMiddleware(NotFound(), {os.environ["MATRIX_MOUNT"]: app})
