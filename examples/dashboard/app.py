"""An internal dashboard: who is logged in, a card with a picture for each camera, and a live page.

The overview is rendered on the server. The live page is a small front end in the browser that asks
the API through a proxy; neither shows the browser a token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.background import BackgroundTask

from cm_auth_middleware import CMAuthMiddleware
from cm_auth_middleware.fastapi import CMClient, CMSession
from cm_auth_middleware.proxy import CMProxy

HERE = Path(__file__).parent
SNAPSHOT_HEADERS = {
    # CameraManager makes a snapshot on the fly and asks that it be cached.
    "Cache-Control": "private, max-age=20",
    "X-Content-Type-Options": "nosniff",
}
LIVE_EVERY = 10  # seconds between two pictures of a camera on the live page
LIVE_READS = ["GET /rest/v2.4/cameras", "GET /rest/v2.4/cameras/*/snapshot"]

templates = Jinja2Templates(HERE / "templates")


def create_app(**options: Any) -> FastAPI:
    """Build the dashboard; options go to the middleware, what is missing comes from CM_AUTH_…"""
    app = FastAPI(title="Camera dashboard", docs_url=None, redoc_url=None)
    app.add_middleware(
        CMAuthMiddleware,
        **{"exempt": ["/health", "/signed-out", "/static/*"], **options},
    )
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.mount("/api/cm", CMProxy(allow=LIVE_READS))
    app.add_api_route("/", overview, response_class=HTMLResponse)
    app.add_api_route("/cameras/{camera_id}", detail, response_class=HTMLResponse)
    app.add_api_route("/cameras/{camera_id}/snapshot", snapshot)
    app.add_api_route("/live", live, response_class=HTMLResponse)
    app.add_api_route("/signed-out", signed_out, response_class=HTMLResponse)
    app.add_api_route("/health", health)
    return app


async def overview(request: Request, cm: CMClient, session: CMSession) -> Response:
    cameras, trouble = [], False
    try:
        listing = (await cm.get("/rest/v2.4/cameras")).raise_for_status().json()
        status = (await cm.get("/rest/v2.4/cameras/all/status")).raise_for_status().json()
    except (httpx2.HTTPError, ValueError):
        trouble = True
    else:
        by_id = {item["cameraId"]: item for item in status}
        cameras = [{**camera, "status": by_id.get(camera["cameraId"], {})} for camera in listing]
    return templates.TemplateResponse(
        request,
        "overview.html",
        {"user": session.user, "cameras": cameras, "trouble": trouble},
        status_code=502 if trouble else 200,
    )


async def detail(request: Request, camera_id: int, cm: CMClient, session: CMSession) -> Response:
    camera, trouble = None, False
    try:
        answer = await cm.get(f"/rest/v2.4/cameras/{camera_id}")
        if answer.status_code == 404:
            raise HTTPException(404, "There is no such camera in your account.")
        camera = answer.raise_for_status().json()
        status = await cm.get(f"/rest/v2.4/cameras/{camera_id}/status")
        camera["status"] = status.raise_for_status().json()
    except (httpx2.HTTPError, ValueError):
        trouble = True
    return templates.TemplateResponse(
        request,
        "detail.html",
        {"user": session.user, "camera": camera, "trouble": trouble},
        status_code=502 if trouble else 200,
    )


async def snapshot(camera_id: int, cm: CMClient) -> Response:
    """Stream a picture from CameraManager to the browser, which never sees a token."""
    query = "resolution=1280x720&includeTimestamp=false"
    request = cm.build_request("GET", f"/rest/v2.4/cameras/{camera_id}/snapshot?{query}")
    request.headers["Accept"] = "image/jpeg"
    try:
        answer = await cm.send(request, stream=True)
    except httpx2.HTTPError:
        raise HTTPException(502, "CameraManager cannot be reached.") from None
    if answer.status_code != 200:
        await answer.aclose()
        raise HTTPException(404 if answer.status_code == 404 else 502, "There is no picture now.")
    return StreamingResponse(
        answer.aiter_bytes(),
        media_type="image/jpeg",
        headers=SNAPSHOT_HEADERS,
        background=BackgroundTask(answer.aclose),
    )


async def live(request: Request, session: CMSession) -> Response:
    return templates.TemplateResponse(
        request, "live.html", {"user": session.user, "every": LIVE_EVERY}
    )


async def signed_out(request: Request) -> Response:
    return templates.TemplateResponse(request, "signed_out.html", {"user": None})


async def health() -> dict[str, str]:
    return {"status": "ok"}
