"""Make requests fail: keep the failures that a test asked for, and answer with them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from starlette.responses import JSONResponse, Response

from cm_auth_middleware.testing.simulator.settings import What

_WAYS_TO_FAIL = frozenset({"html", "xml", "truncated", "hang", "drop", "lost"})
_TOKEN_ERRORS = {400: "invalid_request", 401: "unauthorized", 403: "access_denied"}
_UNAUTHORIZED = frozenset({"invalid_client", "invalid_token", "unauthorized"})
_TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
}


class Dropped(Exception):  # noqa: N818 - no error: this is how the connection is to end
    """The simulator must close the connection without an answer."""


@dataclass(frozen=True, slots=True)
class _Failure:
    what: What
    path: str | None


class Failures:
    """The failures that are still due. Each makes one request fail, the oldest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: list[_Failure] = []

    def add(self, what: What, times: int, path: str | None = None) -> None:
        """Let the next requests fail, or only those to `path`, which may contain `*`.

        Raises:
            ValueError: `what` is a string that names no way to fail.
        """
        if isinstance(what, str) and what not in _WAYS_TO_FAIL:
            raise ValueError(f"unknown way to fail: {what}; known: {sorted(_WAYS_TO_FAIL)}")
        with self._lock:
            self._failures.extend([_Failure(what, path)] * times)

    def take(self, path: str) -> What | None:
        """Remove and return the oldest failure for a request to `path`."""
        with self._lock:
            for index, failure in enumerate(self._failures):
                if failure.path is None or fnmatchcase(path, failure.path):
                    return self._failures.pop(index).what
        return None

    def clear(self) -> None:
        """Forget the failures that are still due."""
        with self._lock:
            self._failures.clear()


def api_error(status: int, detail: str) -> dict[str, Any]:
    """Return the body of an error of the REST API, in CameraManager's own form."""
    return {"code": status, "title": _TITLES.get(status, "Error"), "detail": detail}


def failure_arguments(value: Any) -> dict[str, Any]:
    """Return the arguments of `Simulator.fail_token` or `fail_api` that a command stands for.

    A command is `503`, `{"error": …}` or `{"what": 503, "times": 2}`; `what` may be `[400, {…}]`.
    """
    arguments = dict(value) if isinstance(value, dict) and "what" in value else {"what": value}
    if isinstance(arguments["what"], list):
        arguments["what"] = tuple(arguments["what"])
    return arguments


def failure_response(
    what: What, is_token: bool, describe: Callable[[int, str], dict[str, Any]]
) -> Response:
    """Return the answer of the token endpoint or the REST API to a request that must fail.

    Args:
        describe: returns the body of an error of the REST API.
    """
    match what:
        case "html":
            return Response(
                "<html><body><h1>Maintenance</h1></body></html>", media_type="text/html"
            )
        case "xml":
            return Response("<oauth><note>hello</note></oauth>", media_type="application/xml")
        case "truncated":
            return Response('{"access_token": "aaaaaaaa-aaaa-', media_type="application/json")
        case dict():
            status = 401 if what.get("error") in _UNAUTHORIZED else 400
            return JSONResponse(what, status)
        case (int(status), body):
            return JSONResponse(body, status)
        case int():
            headers = {"Retry-After": "1"} if what in (429, 503) else {}
            if is_token:
                error = _TOKEN_ERRORS.get(what, "server_error")
                return JSONResponse(
                    {"error": error, "error_description": "Simulated failure"}, what, headers
                )
            if what == 401:
                headers["WWW-Authenticate"] = 'Bearer realm="oauth", error="invalid_token"'
                return JSONResponse(
                    {"error": "invalid_token", "error_description": "Simulated failure"},
                    what,
                    headers,
                )
            return JSONResponse(describe(what, "Simulated failure"), what, headers)
    raise ValueError(f"unknown way to fail: {what!r}")
