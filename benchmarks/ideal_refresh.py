"""What one would write by hand to refresh once: a future per process, a lease between them."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from typing import Any

import httpx2

_POLL = 0.02  # seconds


class IdealRefresh:
    """Keeps one token fresh in Redis. No rotation chains, no logout, no errors."""

    def __init__(self, redis: str, **client: Any) -> None:
        from redis.asyncio import BlockingConnectionPool, Redis

        # Waits for a connection; the usual pool raises when more than 100 are wanted.
        self._redis = Redis.from_pool(BlockingConnectionPool.from_url(redis, max_connections=16))
        self._client = httpx2.AsyncClient(**client)
        self._under_way: asyncio.Task[dict[str, Any]] | None = None

    async def log_in(self, token: dict[str, Any]) -> None:
        """Start with a token."""
        await self._redis.set("ideal.token", json.dumps(token))
        await self._redis.delete("ideal.lease")
        self._under_way = None

    async def fresh_token(self) -> dict[str, Any]:
        """The token of a request."""
        token = await self._stored()
        if token["expires_at"] > time.time():
            return token
        if self._under_way is None:
            self._under_way = asyncio.create_task(self._refresh())
        return await asyncio.shield(self._under_way)

    async def _refresh(self) -> dict[str, Any]:
        owner = secrets.token_hex(16)
        while not await self._redis.set("ideal.lease", owner, nx=True, px=15_000):
            await asyncio.sleep(_POLL)
            token = await self._stored()
            if token["expires_at"] > time.time():
                return token
        token = await self._stored()
        if token["expires_at"] <= time.time():
            form = {
                "grant_type": "refresh_token",
                "refresh_token": token["refresh_token"],
                "scope": token["scope"],
            }
            answer = (await self._client.post("/oauth/token", data=form)).raise_for_status().json()
            token = {**answer, "expires_at": time.time() + answer["expires_in"]}
            await self._redis.set("ideal.token", json.dumps(token))
        await self._redis.delete("ideal.lease")
        return token

    async def _stored(self) -> dict[str, Any]:
        token: dict[str, Any] = json.loads(await self._redis.get("ideal.token") or b"{}")
        return token
