"""The server may differ from what is known of it: a user notices nothing worse than a login."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import httpx2
import pytest

from cm_auth_middleware import MemoryStore
from cm_auth_middleware.runtime.http import bound
from cm_auth_middleware.testing import Settings

from ..helpers.stores import CountingStore
from ..helpers.world import CM, World, both_providers

pytestmark = pytest.mark.anyio

LIFETIME = 43_199


@pytest.mark.slow
class TestPhantomRefreshTokens:
    """A refresh answers with a refresh token that the server does not know; the old one lives."""

    async def test_a_session_lives_through_many_expiries(self, make_world: Any) -> None:
        world = make_world(settings=Settings(phantom_refresh_tokens=True))
        browser = await world.login()
        for _ in range(4):
            world.clock.tick(LIFETIME + 1)
            assert (await browser.get("/cameras")).status_code == 200
        # One for the first expiry, two for each other: the phantom, then the one before it.
        assert len(world.sim.token_calls("refresh_token")) == 7

    async def test_a_server_that_is_mended_meanwhile_is_asked_once_for_each_expiry(
        self, make_world: Any
    ) -> None:
        """It gives the first refresh token again: the chain of its tokens is a circle."""
        store = CountingStore(MemoryStore())
        world = make_world(settings=Settings(phantom_refresh_tokens=True), store=store)
        store.memory._clock = world.clock
        browsers = [await world.login(), await world.login()]
        calls = []
        for _ in range(5):
            world.clock.tick(LIFETIME + 1)
            before = len(world.sim.token_calls("refresh_token"))
            store.tried.clear()
            for browser in browsers:
                assert (await browser.get("/cameras")).status_code == 200
            calls.append(len(world.sim.token_calls("refresh_token")) - before)
            assert store.tried.total() < 60
            world.sim.settings.phantom_refresh_tokens = False
        assert calls == [1, 2, 1, 1, 1]

    async def test_sessions_of_one_user_live_through_it_together(self, make_world: Any) -> None:
        world = make_world(settings=Settings(phantom_refresh_tokens=True))
        browsers = [await world.login(), await world.login()]
        for _ in range(3):
            world.clock.tick(LIFETIME + 1)
            for browser in browsers:
                assert (await browser.get("/cameras")).status_code == 200

    async def test_a_logout_after_it_ends_the_grant_at_the_server(self, make_world: Any) -> None:
        world = make_world(settings=Settings(phantom_refresh_tokens=True))
        browser = await world.login()
        world.clock.tick(LIFETIME + 1)
        assert (await browser.get("/cameras")).status_code == 200
        world.clock.tick(LIFETIME + 1)  # the access token that a logout would need has expired
        assert (await browser.post("/auth/logout")).status_code == 303
        assert world.sim.refresh_tokens == 0

    async def test_each_refresh_token_is_tried_once_when_the_user_is_gone(
        self, make_world: Any
    ) -> None:
        world = make_world(settings=Settings(phantom_refresh_tokens=True))
        browser = await world.login()
        world.clock.tick(LIFETIME + 1)
        assert (await browser.get("/cameras")).status_code == 200
        world.sim.revoke_user("anna@example.com")
        world.clock.tick(LIFETIME + 1)
        before = len(world.sim.token_calls("refresh_token"))
        for _ in range(3):
            assert (await browser.get("/cameras")).status_code == 302
        assert len(world.sim.token_calls("refresh_token")) == before + 2

    @both_providers
    async def test_a_rotated_refresh_token_is_not_used_again_while_it_is_good(
        self, make_world: Any
    ) -> None:
        settings = Settings(rotate_refresh_tokens=True, revoke_family_on_reuse=True)
        world = make_world(settings=settings)
        browser = await world.login()
        for _ in range(3):
            world.clock.tick(LIFETIME + 1)
            assert (await browser.get("/cameras")).status_code == 200
        sent = [call.param("refresh_token") for call in world.sim.token_calls("refresh_token")]
        assert len(set(sent)) == 3


class TestSimultaneousLogins:
    """500 with SQL text for the second of two logins of one user at once."""

    @both_providers
    async def test_the_second_one_is_asked_to_try_again_and_can(
        self, make_world: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        world = make_world(settings=Settings(fail_simultaneous_logins=True))
        first, second = world.browser(), world.browser()
        assert (await first.login("/")).status_code == 200
        answer = await second.login("/")
        assert answer.status_code in (502, 503)
        assert "try again" in answer.text.lower()
        for text in (answer.text, caplog.text):
            assert "insert into" not in text
            assert "PreparedStatement" not in text
        world.clock.tick(2)
        assert (await second.login("/")).status_code == 200
        assert (await first.get("/cameras")).status_code == 200


class TestForbiddenForADeadBearer:
    """403 instead of 401 for an access token that is no longer good."""

    @both_providers
    async def test_another_sessions_refresh_is_not_noticed(self, make_world: Any) -> None:
        settings = Settings(dead_bearer_status=403, shared_access_token=False)
        world = make_world(settings=settings)
        browser = await world.login()
        world.sim.expire_access_tokens()
        for _ in range(3):
            assert (await browser.get("/cameras")).status_code == 200
        assert len(world.sim.token_calls("refresh_token")) == 1
        assert 403 in [call.status for call in world.sim.requests]

    @both_providers
    async def test_a_revoked_user_has_to_log_in(self, make_world: Any) -> None:
        world = make_world(settings=Settings(dead_bearer_status=403))
        browser = await world.login()
        world.sim.revoke_user("anna@example.com")
        answer = await browser.get("/cameras")
        assert answer.status_code == 302
        assert 403 in [call.status for call in world.sim.requests]
        assert (await browser.login("/cameras")).status_code == 200

    @both_providers
    async def test_what_a_user_must_not_do_stays_403_and_costs_one_question_a_minute(
        self, world: World
    ) -> None:
        browser = await world.login()
        before = len(world.sim.calls(world.user_path))
        world.sim.fail_api(403, 5, path=f"{world.api}/cameras")
        for _ in range(5):
            assert (await browser.get("/api/x")).json()["status"] == 403
        assert len(world.sim.calls(world.user_path)) == before + 1
        assert world.sim.token_calls("refresh_token") == []


class TestNotAcceptable:
    """Spring's 401 has a form in JSON and XML only: 406 for a request that accepts neither."""

    async def test_a_dead_bearer_of_such_a_request_is_renewed(self, make_world: Any) -> None:
        world = make_world()
        browser = await world.login()
        handle = (await browser.get("/export")).text
        client = await world.client_for(handle)
        world.sim.expire_access_tokens()
        headers = {"Accept": "image/jpeg"}
        answer = await world.on_its_side(
            lambda: client.get("/rest/v2.4/cameras/2001/snapshot", headers=headers)
        )
        assert answer.status_code == 200
        assert len(world.sim.token_calls("refresh_token")) == 1


@pytest.mark.slow
class TestCompressedAnswers:
    """R37: gzip or deflate although no compression was asked for."""

    @both_providers
    @pytest.mark.parametrize("encoding", ["gzip", "deflate"])
    async def test_login_refresh_and_logout_work(self, make_world: Any, encoding: str) -> None:
        world = make_world(settings=Settings(content_encoding=encoding))
        browser = await world.login()
        assert (await browser.get("/cameras")).status_code == 200
        world.clock.tick(LIFETIME + 1)
        assert (await browser.get("/cameras")).status_code == 200
        assert (await browser.post("/auth/logout")).status_code == 303
        assert world.sim.refresh_tokens == 0
        assert len(world.sim.token_calls()) == 2
        for call in world.sim.token_calls():
            assert call.headers["accept-encoding"] == "identity"

    @both_providers
    @pytest.mark.parametrize(
        ("encoding", "body"),
        [
            ("gzip", gzip.compress(bytes(50_000_000))),
            ("deflate", zlib.compress(bytes(50_000_000))),
            ("gzip", b"not gzip at all"),
            ("br", b"\x0b\x02\x80{}\x03"),
        ],
        ids=["gzip bomb", "deflate bomb", "damaged", "another encoding"],
    )
    async def test_what_cannot_be_read_ends_no_session(
        self, world: World, encoding: str, body: bytes
    ) -> None:
        browser = await world.login()
        world.clock.tick(LIFETIME + 1)
        original = world.sim

        async def answering(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] != world.token_path:
                await original(scope, receive, send)
                return
            headers = [(b"content-encoding", encoding.encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        world.net.add(CM, answering)
        assert (await browser.get("/cameras")).status_code == 503
        world.net.add(CM, original)
        world.clock.tick(60)
        assert (await browser.get("/cameras")).status_code == 200

    @both_providers
    async def test_raw_deflate_is_read_too(self, world: World) -> None:
        browser = await world.login()
        world.clock.tick(LIFETIME + 1)
        original = world.sim

        async def answering(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] != world.token_path:
                await original(scope, receive, send)
                return
            sent: list[dict[str, Any]] = []

            async def keep(message: dict[str, Any]) -> None:
                sent.append(message)

            await original(scope, receive, keep)
            raw = zlib.compressobj(wbits=-15)
            body = raw.compress(b"".join(m.get("body", b"") for m in sent)) + raw.flush()
            headers = [(b"content-encoding", b"deflate")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        world.net.add(CM, answering)
        assert (await browser.get("/cameras")).status_code == 200

    @pytest.mark.parametrize("wbits", [-15, 15, 31], ids=["raw deflate", "deflate", "gzip"])
    def test_a_body_that_comes_byte_by_byte_is_read(self, wbits: int) -> None:
        compressor = zlib.compressobj(wbits=wbits)
        body = compressor.compress(b'{"a": 1}') + compressor.flush()
        headers = {"Content-Encoding": "gzip" if wbits == 31 else "deflate"}
        response = httpx2.Response(200, headers=headers, content=(bytes([one]) for one in body))
        bound(response)
        assert response.read() == b'{"a": 1}'


class TestRateLimit:
    """429 with Retry-After beyond a rate."""

    @both_providers
    async def test_a_refresh_beyond_it_is_repeated_later(self, make_world: Any) -> None:
        world = make_world()
        browser = await world.login()
        world.clock.tick(LIFETIME + 1)
        world.sim.settings.rate_limit = 0
        answer = await browser.get("/cameras")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        world.sim.settings.rate_limit = None
        world.clock.tick(60)
        assert (await browser.get("/cameras")).status_code == 200

    @both_providers
    @pytest.mark.slow
    async def test_a_login_beyond_it_can_be_tried_again(self, make_world: Any) -> None:
        world = make_world(settings=Settings(rate_limit=0))
        browser = world.browser()
        answer = await browser.login("/")
        assert answer.status_code in (502, 503)
        world.sim.settings.rate_limit = None
        assert (await browser.login("/")).status_code == 200
