"""An internal dashboard: who is logged in, a card with a picture for each camera, and a live page.

The overview is rendered on the server. The live page is a small front end in the browser that asks
the API through a proxy; neither shows the browser a token.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.exceptions import HTTPException as AnyHTTPException

from cm_auth_middleware import CMAuthMiddleware
from cm_auth_middleware.fastapi import CMClient, CMSession
from cm_auth_middleware.proxy import CMProxy

HERE = Path(__file__).parent
SNAPSHOT_HEADERS = {
    # CameraManager makes a snapshot on the fly and asks that it be cached.
    "Cache-Control": "private, max-age=20",
    "X-Content-Type-Options": "nosniff",
}
SNAPSHOTS_AT_ONCE = 2  # CameraManager limits how many it makes
NO_PICTURE = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1280 720">'
    b'<rect width="1280" height="720" fill="#8a97a3"/><text x="640" y="375" fill="#fff" '
    b'font-family="sans-serif" font-size="44" text-anchor="middle">No picture just now</text></svg>'
)
LIVE_EVERY = 10  # seconds between two pictures of a camera on the live page
LIVE_READS = ["GET /rest/v2.4/cameras", "GET /rest/v2.4/cameras/*/snapshot"]
LIVE_KEPT = {"/rest/v2.4/cameras/*/snapshot": LIVE_EVERY / 2}  # one call for all who watch

# CameraManager does not answer, or answers something else than it says.
UNUSABLE = (httpx2.HTTPError, ValueError, TypeError, KeyError)

templates = Jinja2Templates(HERE / "templates")


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
    app.state.snapshots = anyio.Semaphore(SNAPSHOTS_AT_ONCE)
    app.add_exception_handler(AnyHTTPException, error_page)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.mount("/api/cm", CMProxy(allow=LIVE_READS, cache=LIVE_KEPT))
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
        by_id = {item["cameraId"]: item for item in status}
        cameras = [{**camera, "status": by_id.get(camera["cameraId"], {})} for camera in listing]
    except UNUSABLE:
        trouble = True
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
        status = await cm.get(f"/rest/v2.4/cameras/{camera_id}/status")
        camera = {
            **answer.raise_for_status().json(),
            "status": {**status.raise_for_status().json()},
        }
    except UNUSABLE:
        trouble = True
    return templates.TemplateResponse(
        request,
        "detail.html",
        {"user": session.user, "camera": camera, "trouble": trouble},
        status_code=502 if trouble else 200,
    )


async def snapshot(request: Request, camera_id: int, cm: CMClient) -> Response:
    """Stream a picture from CameraManager to the browser, which never sees a token."""
    query = "resolution=1280x720&includeTimestamp=false"
    asked = cm.build_request("GET", f"/rest/v2.4/cameras/{camera_id}/snapshot?{query}")
    asked.headers["Accept"] = "image/jpeg"
    try:
        async with request.app.state.snapshots:
            answer = await cm.send(asked, stream=True)
    except httpx2.HTTPError:
        return Response(NO_PICTURE, 502, media_type="image/svg+xml")
    if answer.status_code != 200:
        await answer.aclose()
        return Response(NO_PICTURE, 502, media_type="image/svg+xml")
    return StreamingResponse(chunks(answer), media_type="image/jpeg", headers=SNAPSHOT_HEADERS)


async def chunks(answer: httpx2.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_bytes():
            yield chunk
    finally:  # also when the browser has gone
        with anyio.CancelScope(shield=True):
            await answer.aclose()


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
