"""An application as a user writes it, for type checkers: every type here is known to them."""

from __future__ import annotations

from typing import Any, assert_type

import fastapi
import flask
import httpx2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse

from cm_auth_middleware import (
    AuthEngine,
    CMAuthConfig,
    CMAuthMiddleware,
    CMAuthWSGIMiddleware,
    CMState,
    Session,
    SessionExpiredError,
    SessionStore,
    UnavailableError,
)
from cm_auth_middleware.fastapi import CMClient, CMSession, CMSyncClient, require
from cm_auth_middleware.flask import CMAuth, cm, cm_session
from cm_auth_middleware.flask import require as flask_require
from cm_auth_middleware.testing import Browser, CMLogin, CMServer, CMTime

config = CMAuthConfig(client_id="id", client_secret="secret", secret_key=["old", "new"])
engine = AuthEngine(config, exempt=["/health"])
assert_type(engine.store, SessionStore)

api = fastapi.FastAPI()
api.add_middleware(CMAuthMiddleware, engine=engine)


@api.get("/cameras")
async def cameras(client: CMClient, session: CMSession) -> Any:
    assert_type(client, httpx2.AsyncClient)
    assert_type(session, Session)
    assert_type(session.user, dict[str, Any])
    try:
        response = await client.get("/rest/v2.4/cameras")
    except (SessionExpiredError, UnavailableError) as error:
        raise error
    return response.json()


@api.get("/admin", dependencies=[fastapi.Depends(require(lambda user: user["accountId"] == 501))])
def admin(client: CMSyncClient) -> Any:
    assert_type(client, httpx2.Client)
    return client.get("/rest/v2.4/cameras").json()


async def home(request: Request[CMState]) -> JSONResponse:
    response = await request.state["cm"].get("/rest/v2.4/cameras")
    assert_type(response, httpx2.Response)
    return JSONResponse({"user": request.state["cm_session"].user, "cameras": response.json()})


starlette = Starlette(middleware=[Middleware(CMAuthMiddleware, config=config)])

site = flask.Flask(__name__)
CMAuth(site, config=config)


@site.get("/cameras")
def site_cameras() -> Any:
    assert_type(cm.get("/rest/v2.4/cameras"), httpx2.Response)
    assert_type(cm_session.data, dict[str, Any])
    return cm.get("/rest/v2.4/cameras").json()


@site.get("/admin/<int:number>")
@flask_require(lambda user: bool(user["accountId"] == 501))
def site_admin(number: int) -> str:
    return f"page {number}"


wrapped = CMAuthWSGIMiddleware(flask.Flask("another").wsgi_app, config=config)


def test_cameras(cm_login: CMLogin, cm_time: CMTime, cm_server: CMServer) -> None:
    browser = cm_login(api, user="bob@example.com")
    assert_type(browser, Browser)
    client = cm_login(site, client=site.test_client())
    assert client.get("/cameras").status_code == 200
    cm_time.expire_access_token()
    cm_server.fail_token(503)
    assert browser.get("/cameras").status_code == 503
