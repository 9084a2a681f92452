"""Answer as CameraManager's REST API, and offer a few paths that only test a client."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from cm_auth_middleware.testing.simulator import snapshots
from cm_auth_middleware.testing.simulator.settings import (
    Settings,
    SimulatedCamera,
    SimulatedUser,
    recorded,
)


class API:
    """The endpoints of the REST API. Each gets the user whose bearer token the request carried.

    Args:
        settings: the simulator's settings.
        clock: returns the seconds since 1970, which a snapshot shows.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._snapshots_in_flight = 0

    async def user(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        return JSONResponse(
            {
                "userId": user.user_id,
                "accountId": user.account_id,
                "email": user.email,
                "firstName": user.first_name,
                "lastName": user.last_name,
                "language": user.language,
            }
        )

    async def cameras(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        return JSONResponse([_camera_json(camera, user) for camera in user.cameras])

    async def camera(self, request: Request, user: SimulatedUser) -> Response:
        return JSONResponse(_camera_json(_own_camera(request, user), user))

    async def all_status(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        return JSONResponse([_status_json(camera) for camera in user.cameras])

    async def status(self, request: Request, user: SimulatedUser) -> Response:
        return JSONResponse(_status_json(_own_camera(request, user)))

    async def snapshot(self, request: Request, user: SimulatedUser) -> Response:
        camera = _own_camera(request, user)
        if not camera.online:
            raise HTTPException(503, "The camera is offline")
        width, height = _resolution(request.query_params.get("resolution", "640x360"))
        stamped = request.query_params.get("includeTimestamp", "true") != "false"
        limit = self._settings.snapshot_limit
        with self._lock:
            if limit is not None and self._snapshots_in_flight >= limit:
                raise HTTPException(503, "Too many snapshots are being made", {"Retry-After": "1"})
            self._snapshots_in_flight += 1
        try:
            await anyio.sleep(self._settings.snapshot_latency)
            when = datetime.fromtimestamp(self._clock(), UTC)
            picture = await anyio.to_thread.run_sync(
                snapshots.draw, camera.camera_id, camera.name, when, (width, height), stamped
            )
        finally:
            with self._lock:
                self._snapshots_in_flight -= 1
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    async def streams(self, request: Request, user: SimulatedUser) -> Response:
        camera = _own_camera(request, user)
        host = urlsplit(self._settings.media_url).netloc
        return JSONResponse(
            [
                {
                    "streamId": camera.camera_id * 10,
                    "cameraId": camera.camera_id,
                    "resolution": "1280x720",
                    "urls": {"rtsp": f"rtsp://{host}/live/{camera.camera_id}"},
                }
            ]
        )

    async def recording(self, request: Request, user: SimulatedUser) -> Response:
        camera = _own_camera(request, user)
        recording = request.path_params["recording"]
        kinds = request.query_params.get("includeUrlTypes", "").split(",")
        url = f"{self._settings.media_url}/{camera.camera_id}/{recording}.mp4"
        return JSONResponse(
            {
                "recordingId": recording,
                "cameraId": camera.camera_id,
                "urls": {kind: url for kind in kinds if kind == "mp4Http"},
            }
        )

    async def echo(self, request: Request, user: SimulatedUser) -> Response:
        """Return the request as it arrived, with the length and the hash of its body."""
        digest = hashlib.sha256()
        length = 0
        async for chunk in request.stream():
            digest.update(chunk)
            length += len(chunk)
        return JSONResponse(
            {
                "method": request.method,
                "path": request.url.path,
                "query": request.url.query,
                "headers": recorded(request).headers,
                "sha256": digest.hexdigest(),
                "length": length,
                "userId": user.user_id,
            }
        )

    async def big(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        """Return so many zeros, or the part of them that a Range asks for (RFC 9110 §14.2)."""
        size = number(request, "bytes", 1 << 20)
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{size}"', "Content-Length": str(size)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if asked is None or int(asked[1]) >= size:
            return StreamingResponse(
                _zeros(size), media_type="application/octet-stream", headers=headers
            )
        first, last = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        headers["Content-Length"] = str(last - first + 1)
        return StreamingResponse(
            _zeros(last - first + 1), 206, media_type="application/octet-stream", headers=headers
        )

    async def redirect(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        return RedirectResponse(request.query_params.get("to", "/"), 302)

    async def set_cookie(self, request: Request, user: SimulatedUser) -> Response:  # noqa: ARG002
        answer = JSONResponse({"userId": user.user_id})
        answer.set_cookie("upstream", str(user.user_id), path="/")
        return answer


def _own_camera(request: Request, user: SimulatedUser) -> SimulatedCamera:
    wanted = request.path_params["camera"]
    for camera in user.cameras:
        if camera.camera_id == wanted:
            return camera
    raise HTTPException(404, "No such camera")


def _camera_json(camera: SimulatedCamera, user: SimulatedUser) -> dict[str, Any]:
    tail = camera.camera_id.to_bytes(3, "big").hex(":")
    return {
        "cameraId": camera.camera_id,
        "name": camera.name,
        "accountId": user.account_id,
        "zoneId": camera.zone_id,
        "ethernetMacAddress": f"02:00:00:{tail}",
    }


def _status_json(camera: SimulatedCamera) -> dict[str, Any]:
    return {
        "cameraId": camera.camera_id,
        "online": camera.online,
        "recordingOnCloud": camera.online,
        "recordingOnSd": False,
        "audioEnabled": False,
        "passwordKnown": True,
        "firmwareStatus": "UpToDate",
    }


def _resolution(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise HTTPException(400, "resolution has to be like 1280x720")
    size = int(width), int(height)
    if not (16 <= size[0] <= 3840 and 16 <= size[1] <= 2160):
        raise HTTPException(400, "resolution is from 16x16 to 3840x2160")
    return size


def number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isdecimal():
        raise HTTPException(400, f"{name} has to be a number")
    return int(text)


async def _zeros(size: int) -> AsyncIterator[bytes]:
    block = bytes(65536)
    while size > 0:
        yield block[:size]
        size -= len(block)
