"""No secret in a log line, a traceback, a warning, an error page or a repr: a whole life of it."""

from __future__ import annotations

import base64
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import anyio
import httpx2
import pytest

from cm_auth_middleware import CMAuthError
from cm_auth_middleware.errors import StoreError
from cm_auth_middleware.stores import MemoryStore
from cm_auth_middleware.testing import SimulatorServer
from tests.helpers.world import APP, JSON, SECRET_KEY, both_providers

from .visits import started, stored
from .wired import Wired, clocked

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

STEPS = ["exchange", "user", "store get", "store put", "store replace", "store delete",
         "store acquire", "on_login", "on_refresh", "on_logout", "allow", "refresh", "api",
         "revoke", "nothing"]  # fmt: skip
TROUBLES: dict[str, list[Any]] = {
    "exchange": [400, 401, 500, "html", "truncated", "drop", {"error": "invalid_grant"}],
    "refresh": [400, 401, 500, "html", "truncated", "drop", {"error": "invalid_client"}],
}


class Failing(MemoryStore):
    """A store whose method of the test's choice raises, whatever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = ""

    def _fail(self, name: str) -> None:
        if self.fails == name:
            self.fails = ""
            raise StoreError("the store is gone")

    async def get(self, key: str) -> bytes | None:
        self._fail("store get")
        return await super().get(key)

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        self._fail("store put")
        await super().put(key, value, ttl)

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        self._fail("store replace")
        return await super().replace(key, old, new, ttl)

    async def delete(self, key: str) -> bytes | None:
        self._fail("store delete")
        return await super().delete(key)

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        self._fail("store acquire")
        return await super().acquire(key, owner, ttl)


class Life:
    """A session's life over real connections, and all that anybody could read of it."""

    def __init__(self, side: str, server: SimulatorServer, step: str) -> None:
        self.step = step
        self.sim = server.simulator
        self.store = Failing()
        self.texts: list[str] = []
        self.failed: set[str] = set()
        self.secrets: set[str] = {SECRET_KEY, self.sim.client_secret}
        basic = f"{self.sim.client_id}:{self.sim.client_secret}".encode()
        self.secrets.add(base64.b64encode(basic).decode())
        self.world = Wired(
            side,
            self.sim,
            server.url,
            store=self.store,
            timeout=5,
            on_login=lambda session: self.hook("on_login", session),
            on_refresh=lambda session: self.hook("on_refresh", session),
            on_logout=lambda session: self.hook("on_logout", session),
            allow=lambda user: self.hook("allow", None) is None,
        )
        self.browser = self.world.browser()

    def hook(self, name: str, session: Any) -> None:
        """A function of the application's, which keeps nothing secret and may fail once."""
        if session is not None:
            self.look_at(session)
            self.secrets.add(session.export())
            engine = self.world.engine
            is_asgi = self.world.side == "asgi"
            client = engine.client(session) if is_asgi else engine.sync_client(session)
            self.look_at(client)
            assert client.timeout  # now it is built
            self.look_at(client)
            self.look_at(client.build_request("GET", "/x"))
        if self.step == name and name not in self.failed:
            self.failed.add(name)
            raise LookupError("the application's own mistake")

    def trouble(self, what: Any) -> None:
        """Let the step at hand go wrong this way."""
        if self.step.startswith("store"):
            self.store.fails = self.step
        elif self.step in ("exchange", "refresh"):
            self.sim.fail_token(what)
        elif self.step == "user":
            self.sim.fail_api(what or 401, path="*/users/self")
        elif self.step == "revoke":
            self.sim.fail_api(what or 401, path="*/tokens/current")
        elif self.step == "api":
            self.sim.fail_api(what or 500, path="*/cameras")

    def note_secrets(self) -> None:
        """Everything ever issued, as far as anybody has seen it."""
        tokens = self.sim._tokens
        self.secrets |= {*tokens.access, *tokens.refresh, *tokens.codes}
        for call in self.sim.requests:
            for name in ("code", "code_verifier", "refresh_token"):
                self.secrets.add(call.form.get(name, ""))
            self.secrets.add(call.headers.get("authorization", "").partition(" ")[2])
        for cookie in self.browser.cookies.jar:
            if not cookie.name.endswith("_in"):  # a time, not a secret
                self.secrets |= {cookie.value or "", (cookie.value or "").partition(".")[0]}
        self.secrets.discard("")

    def look_at(self, thing: Any) -> None:
        """Read what a debugger, a crash report or a careless log line would show of it."""
        self.texts += [repr(thing), str(thing)]
        with suppress(TypeError):  # slots
            self.texts.append(repr(vars(thing)))
        for name in getattr(type(thing), "__slots__", ()):
            # These are what they are called, for the package to use; no repr or vars() has them.
            if name not in ("cookie_key", "client_secret", "secret_key"):
                self.texts.append(repr(getattr(thing, name, None)))

    def look_at_error(self, error: BaseException | None) -> None:
        while error is not None:
            self.look_at(error)
            self.texts += traceback.format_exception(error)
            error = error.__cause__ or error.__context__

    async def ask(self, method: str, path: str, **options: Any) -> Any:
        """Ask, and read the answer but for the cookies that it sets for the browser itself."""
        answer = None
        try:
            answer = await self.browser.request(method, path, **options)
        except Exception as error:
            self.look_at_error(error)
        self.note_secrets()
        if answer is not None:
            headers = [(k, v) for k, v in answer.headers.items() if k != "set-cookie"]
            self.texts += [answer.text, repr(headers)]
        return answer

    async def live(self, what: Any) -> None:
        world, browser = self.world, self.browser
        start = await started(browser)
        self.texts += [start.headers["location"], start.text]
        self.note_secrets()
        url = browser.callback_url(start.headers["location"])
        if self.step in ("exchange", "user") or self.step.startswith("store"):
            self.trouble(what)
        self.note_secrets()
        await self.ask("GET", url)
        await self.ask("GET", url)  # back
        if not browser.named("cm_auth"):
            await self.ask(
                "GET", browser.callback_url((await started(browser)).headers["location"])
            )
        await self.ask("POST", "/data", json={"a": 1})
        await self.ask("POST", "/data", content=b"{")  # the handler raises
        await self.ask("GET", "/state")
        for spell in (self.expire_at_server, self.expire_by_time, self.into_leeway):
            spell()
            self.trouble(what)
            await self.ask("GET", "/cameras", headers=JSON)
            world.clock.tick(3)
            await self.ask("GET", "/cameras")
        await self.ask("GET", "/api/x?url=/nothing-here")
        await self.ask("GET", "/api/x?url=http://[")
        await self.ask("GET", "/api/x?url=http://127.0.0.1:9/")
        await self.ask("GET", "/auth/session")
        for thing in (world.engine, world.engine.config, world.app, world.engine.store, world.sim):
            if thing is not world.sim:
                self.look_at(thing)
        self.trouble(what)
        await self.ask("POST", "/auth/logout", headers=JSON)
        await self.ask("POST", "/auth/logout")
        await self.ask("GET", "/cameras")
        self.texts += stored(world)
        await world.close()

    def expire_at_server(self) -> None:
        self.sim.expire_access_tokens()

    def expire_by_time(self) -> None:
        self.world.clock.tick(43_300)

    def into_leeway(self) -> None:
        self.world.clock.tick(43_199 - 30)


@pytest.fixture(autouse=True)
def all_logs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Everything at DEBUG, also of loggers that somebody has set higher."""
    names = ["", "cm_auth_middleware", "httpx2", "httpcore2", "httpcore2.http11",
             "httpcore2.connection", "authlib", "asyncio", "h11"]  # fmt: skip
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        caplog.set_level(logging.DEBUG, logger=name or None)
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@both_providers
@pytest.mark.parametrize("step", STEPS)
async def test_a_whole_life_leaves_no_secret_anywhere(
    side: str, step: str, caplog, provider: str
) -> None:
    """33: with an exception at the step, and a server that repeats tokens in its errors."""
    for what in TROUBLES.get(step, [None]):
        sim = clocked(provider)
        with SimulatorServer(sim) as server, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            server.simulator.settings.repeat_tokens_in_errors = True
            server.simulator.settings.rotate_refresh_tokens = True
            life = Life(side, server, step)
            with anyio.fail_after(40):
                await life.live(what)
        life.texts += [str(warning.message) for warning in warned]
        life.texts += [_whole(r) for r in caplog.records if not _is_others(r)]
        assert len(life.secrets) > 10
        assert {r.name.partition(".")[0] for r in caplog.records} >= {
            "cm_auth_middleware", "httpx2", "httpcore2",
        }  # fmt: skip
        for secret in life.secrets:
            assert [text for text in life.texts if secret in text] == [], secret
        caplog.clear()


def _is_others(record: logging.LogRecord) -> bool:
    """Whether it is of the simulated server, or of the simulated browser."""
    return record.name.startswith("uvicorn") or f" {APP}/" in record.getMessage()


def _whole(record: logging.LogRecord) -> str:
    text = f"{record.getMessage()} {record.args!r} {vars(record)!r}"
    if record.exc_info and record.exc_info[1] is not None:
        text += "".join(traceback.format_exception(record.exc_info[1]))
    return text


async def test_the_search_finds_what_it_looks_for(side: str, caplog) -> None:
    """33: the test of the test: a token that is logged is found."""
    with SimulatorServer(clocked()) as server:
        life = Life(side, server, "nothing")
        life.note_secrets()
        await life.live(None)
        token = next(s for s in life.secrets if s.endswith(":10003"))
        logging.getLogger("cm_auth_middleware").debug("careless token=%s", token)
        assert [r for r in caplog.records if token in _whole(r)]
        life.look_at(CMAuthError(token))
        assert [text for text in life.texts if token in text]


@both_providers
async def test_a_transport_of_ones_own_logs_no_token_either(
    side: str, caplog, provider: str
) -> None:
    """33: CameraManager repeats a token that has expired, and httpcore2 logs what it says."""
    logging.getLogger("httpcore2.http11").filters.clear()  # those of other tests' pools
    own: Any = httpx2.AsyncHTTPTransport() if side == "asgi" else httpx2.HTTPTransport()
    with SimulatorServer(clocked(provider)) as server:
        server.simulator.settings.repeat_tokens_in_errors = True
        world = Wired(side, server.simulator, server.url, transport=own)
        browser = await world.login()
        token = server.simulator.calls(world.user_path)[0].headers["authorization"][7:]
        server.simulator.expire_access_tokens()
        assert (await browser.get("/cameras")).status_code == 200
        await world.close()
        await own.aclose() if side == "asgi" else own.close()
    repeated = [r for r in caplog.records if "www-authenticate" in _whole(r)]
    assert repeated
    assert [r for r in caplog.records if token in _whole(r)] == []
