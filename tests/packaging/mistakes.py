"""Mistakes that a type checker finds, if it sees our types at all."""

from __future__ import annotations

from starlette.applications import Starlette

from cm_auth_middleware import CMAuthConfig, CMAuthMiddleware
from cm_auth_middleware.fastapi import CMClient, CMSession
from cm_auth_middleware.testing import CMTime

CMAuthConfig(client_id=7, client_secret="secret", secret_key="key")
Starlette().add_middleware(CMAuthMiddleware, exempted=["/health"])


async def cameras(client: CMClient, session: CMSession) -> None:
    client.fetch("/rest/v2.4/cameras")
    print(session.user.email)


def test_later(cm_time: CMTime) -> None:
    cm_time.tick("an hour")
