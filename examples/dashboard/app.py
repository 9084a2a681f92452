"""An internal dashboard: who is logged in, a card with a picture for each camera, and a live page.

The overview is rendered on the server. The live page is a small front end in the browser that asks
the API through a proxy. The pictures of both come through it, and neither shows the browser a
token. It runs with both platforms of Eagle Eye's: what they call things, and where they have them,
is in `CameraManagerAPI` and `EagleEyeAPI`.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import anyio
import httpx2
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi import Path as InPath
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cm_auth_middleware import CMAuthMiddleware
from cm_auth_middleware.fastapi import CMClient, CMSession
from cm_auth_middleware.proxy import CMProxy

HERE = Path(__file__).parent
PICTURES_AT_ONCE = 2  # CameraManager limits how many it makes
LIVE_EVERY = 10  # seconds between two pictures of a camera on the live page
CameraId = Annotated[str, InPath(pattern="^[0-9A-Za-z]+$")]

# The server does not answer, or answers something else than it says.
UNUSABLE = (httpx2.HTTPError, ValueError, TypeError, KeyError)


class CameraManagerAPI:
    """CameraManager's cameras and their pictures.

    `picture` is what the overview asks for through the proxy, `listing` and `thumbnail` what the
    live page does; `reads` is what the proxy relays, and `pictures` the path that it keeps for some
    seconds.
    """

    name = "CameraManager"
    listing = "/rest/v2.4/cameras"
    picture = "/rest/v2.4/cameras/{id}/snapshot?resolution=1280x720&includeTimestamp=false"
    thumbnail = "/rest/v2.4/cameras/{id}/snapshot?resolution=640x360&includeTimestamp=true"
    pictures = "/rest/v2.4/cameras/*/snapshot"
    reads = ("GET /rest/v2.4/cameras", "GET /rest/v2.4/cameras/*/snapshot")

    async def cameras(self, cm: httpx2.AsyncClient) -> list[dict[str, Any]]:
        """The user's cameras, as the templates show them."""
        found = (await cm.get("/rest/v2.4/cameras")).raise_for_status().json()
        status = (await cm.get("/rest/v2.4/cameras/all/status")).raise_for_status().json()
        by_id = {item["cameraId"]: item for item in status}
        return [self._shown(camera, by_id.get(camera["cameraId"], {})) for camera in found]

    async def camera(self, cm: httpx2.AsyncClient, camera_id: str) -> dict[str, Any] | None:
        """One of them; None if the user has none of this id."""
        answer = await cm.get(f"/rest/v2.4/cameras/{camera_id}")
        if answer.status_code == 404:
            return None
        status = await cm.get(f"/rest/v2.4/cameras/{camera_id}/status")
        return self._shown(answer.raise_for_status().json(), status.raise_for_status().json())

    def _shown(self, camera: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
        words = {
            "recordingOnCloud": "Recording to cloud",
            "recordingOnSd": "Recording to SD",
            "audioEnabled": "Audio",
        }
        return {
            "id": camera["cameraId"],
            "name": camera["name"],
            "online": bool(status.get("online")),
            "badges": [word for member, word in words.items() if status.get(member)],
            "facts": {
                "Camera": camera["cameraId"],
                "Zone": camera.get("zoneId"),
                "Ethernet address": camera.get("ethernetMacAddress"),
                "Firmware": status.get("firmwareStatus"),
            },
        }


class EagleEyeAPI(CameraManagerAPI):
    """The same of Eagle Eye's API v3, whose paths are below ``/api/v3.0``."""

    name = "Eagle Eye"
    listing = "/cameras?include=status&pageSize=100"
    picture = thumbnail = "/media/liveImage.jpeg?deviceId={id}&type=preview"
    pictures = "/media/liveImage.jpeg"
    reads = ("GET /cameras", "GET /media/liveImage.jpeg")

    async def cameras(self, cm: httpx2.AsyncClient) -> list[dict[str, Any]]:
        """The user's cameras, of all pages of the list."""
        found: list[dict[str, Any]] = []
        params = {"include": "status", "pageSize": "100"}
        while True:
            page = (await cm.get("/cameras", params=params)).raise_for_status().json()
            found += page["results"]
            if not page.get("nextPageToken"):
                return [self._shown(camera, camera.get("status") or {}) for camera in found]
            params["pageToken"] = page["nextPageToken"]

    async def camera(self, cm: httpx2.AsyncClient, camera_id: str) -> dict[str, Any] | None:
        """One of them; None if the user has none of this id."""
        answer = await cm.get(f"/cameras/{camera_id}", params={"include": "status"})
        if answer.status_code == 404:
            return None
        camera = answer.raise_for_status().json()
        return self._shown(camera, camera["status"])

    def _shown(self, camera: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
        state = status.get("connectionStatus")
        return {
            "id": camera["id"],
            "name": camera["name"],
            "online": state == "online",
            "badges": [],
            "facts": {"Camera": camera["id"], "Bridge": camera.get("bridgeId"), "Status": state},
        }


APIS = {"cameramanager": CameraManagerAPI, "eagleeye": EagleEyeAPI}

templates = Jinja2Templates(
    HERE / "templates", context_processors=[lambda request: {"api": request.app.state.api}]
)


def visible(value: Any) -> Any:
    """Leave out characters of a name that nobody sees: they may turn the text around it."""
    if type(value) is not str:  # markup, say
        return value
    return "".join(character for character in value if character.isprintable())


templates.env.finalize = visible


def create_app(**options: Any) -> FastAPI:
    """Build the dashboard; options go to the middleware, what is missing comes from CM_AUTH_…"""
    app = FastAPI(title="Camera dashboard", docs_url=None, redoc_url=None)
    app.add_middleware(
        CMAuthMiddleware,
        **{"exempt": ["/health", "/signed-out", "/static/*"], **options},
    )
    provider = options.get("provider") or os.environ.get("CM_AUTH_PROVIDER", "cameramanager")
    api = app.state.api = APIS.get(provider, CameraManagerAPI)()
    app.add_exception_handler(AnyHTTPException, error_page)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    # One call for all who watch.
    proxy = CMProxy(allow=api.reads, cache={api.pictures: LIVE_EVERY / 2})
    app.mount("/api/cm", FewAtOnce(proxy, PICTURES_AT_ONCE))
    app.add_api_route("/", overview, response_class=HTMLResponse)
    app.add_api_route("/cameras/{camera_id}", detail, response_class=HTMLResponse)
    app.add_api_route("/live", live, response_class=HTMLResponse)
    app.add_api_route("/signed-out", signed_out, response_class=HTMLResponse)
    app.add_api_route("/health", health)
    return app


class FewAtOnce:
    """Lets a few requests wait for their responses at a time; the others stand in line."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.places = anyio.Semaphore(most)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as place:
            await place.enter_async_context(self.places)

            async def begin(message: Message) -> None:
                await place.aclose()  # a slow browser keeps nobody waiting
                await send(message)

            await self.app(scope, receive, begin)


async def overview(request: Request, cm: CMClient, session: CMSession) -> Response:
    cameras, trouble = [], False
    try:
        cameras = await request.app.state.api.cameras(cm)
    except UNUSABLE:
        trouble = True
    return templates.TemplateResponse(
        request,
        "overview.html",
        {"user": session.user, "cameras": cameras, "trouble": trouble},
        status_code=502 if trouble else 200,
    )


async def detail(
    request: Request, camera_id: CameraId, cm: CMClient, session: CMSession
) -> Response:
    camera, trouble = None, False
    try:
        camera = await request.app.state.api.camera(cm, camera_id)
        if camera is None:
            raise HTTPException(404, "There is no such camera in your account.")
    except UNUSABLE:
        trouble = True
    return templates.TemplateResponse(
        request,
        "detail.html",
        {"user": session.user, "camera": camera, "trouble": trouble},
        status_code=502 if trouble else 200,
    )


async def live(request: Request, session: CMSession) -> Response:
    return templates.TemplateResponse(
        request, "live.html", {"user": session.user, "every": LIVE_EVERY}
    )


async def signed_out(request: Request) -> Response:
    return templates.TemplateResponse(request, "signed_out.html", {"user": None})


async def error_page(request: Request, error: Exception) -> Response:
    """A page for a person, FastAPI's JSON for a program."""
    assert isinstance(error, AnyHTTPException)
    if "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, error)
    session = request.state.cm_session
    return templates.TemplateResponse(
        request,
        "error.html",
        {"user": session.user if session else None, "detail": error.detail},
        status_code=error.status_code,
    )


async def health() -> dict[str, str]:
    return {"status": "ok"}
