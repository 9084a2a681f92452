"""What must always hold, whatever happens in whatever order: a property-based state machine.

Two processes of one site with one store, both ASGI, or one of them WSGI; two browsers, two
accounts; a CameraManager and a store that fail. CM_AUTH_INVARIANTS=1000 plays so many histories,
and others each time; without it they are few and always the same.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import anyio
import anyio.to_thread
import httpx2
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from cm_auth_middleware import MemoryStore
from cm_auth_middleware.runtime.run_sync import run_sync
from cm_auth_middleware.testing import RecordedRequest
from tests.helpers.stores import CountingStore
from tests.helpers.world import HTML, JSON, World

LIFETIME, LEEWAY, MINUTE, DAY = 43_199, 60, 60, 86_400
IDLE, ABSOLUTE = 7 * DAY + 1234, 30 * DAY + 4321
LOGIN = (302, 401)
EVERYTHING = {"get", "put", "replace", "delete", "acquire", "release", "find", "ping"}
WRITES = EVERYTHING - {"get", "find"}

T = TypeVar("T")
slots = st.integers(0, 1)
processes = st.integers(0, 1)
accounts = st.sampled_from(["anna@example.com", "bob@example.com"])
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
IDS = {"anna@example.com": "10003", "bob@example.com": "10007"}


@dataclass
class Grant:
    """What a user gave this site at CameraManager; logins share it while it can be used.

    Attributes:
        usable: None where that depends on more than this model knows.
    """

    usable: bool | None


@dataclass
class Account:
    """What is known of a user's grants at CameraManager.

    Attributes:
        grants: the last one is the one that a login would be given again.
        born: when its access token was given.
        kills: how often that token was ended since.
    """

    grants: list[Grant] = field(default_factory=lambda: [Grant(False)])
    born: float = 0.0
    kills: int = 0

    @property
    def is_doubtful(self) -> bool:
        return any(grant.usable is None for grant in self.grants)

    def end(self, grant: Grant, usable: bool | None = False) -> None:
        """Note that a grant is over, or may be; one in doubt may be another's."""
        if grant.usable is None:
            for other in self.grants:
                other.usable = None if other.usable else other.usable
        elif grant.usable:
            grant.usable = usable


@dataclass
class Login:
    """A session, as a browser knows it.

    Attributes:
        alive: None where that depends on more than this model knows.
        seen: between which times it was last noted as used.
        data: what the application keeps in it; keys of which that is unknown are in `doubtful`.
    """

    cookie: str
    email: str
    grant: Grant
    at: float
    seen: tuple[float, float]
    alive: bool | None = True
    data: dict[str, int] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)


class Site(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = CountingStore(MemoryStore(1000))
        first = World(store=self.store, **self.options)
        self.store.memory._clock = self.clock = first.clock
        self.sim = first.sim
        self.worlds = [first, self.process(self.second, first)]
        self.quicken(first)
        self.accounts = {email: Account() for email in IDS}
        self.browsers: list[Login | None] = [None, None]
        self.dead: list[str] = []
        self.outage = False
        self.seen = 0

    second = "asgi"
    options: ClassVar[dict[str, Any]] = {"idle_timeout": IDLE, "absolute_timeout": ABSOLUTE}

    def process(self, side: str, beside: World) -> World:
        world = World(side=side, beside=beside, **self.options)
        self.quicken(world)
        return world

    def quicken(self, world: World) -> None:
        """Let nobody wait for long."""

        async def sleep(seconds: float) -> None:
            if world.side == "asgi":
                await anyio.sleep(min(seconds, 0.001))
            else:
                time.sleep(min(seconds, 0.001))  # noqa: ASYNC251 - a thread's

        side = world.engine.async_services if world.side == "asgi" else world.engine.thread_services
        side.runtime.sleep = sleep

    def teardown(self) -> None:
        """Whoever is out stays out."""
        try:
            self.store.broken.clear()
            over = [login for login in self.browsers if login is not None and login.alive is False]
            for cookie in self.dead + [login.cookie for login in over]:
                for world in self.worlds:
                    assert self.get(world, "/", cookie).status_code in LOGIN
        finally:
            for world in self.worlds:
                self.runner.run(world.close())
            self.runner.close()

    # -- asking ----------------------------------------------------------------------------

    def send(self, world: World, *requests: tuple[str, str, str, Any]) -> list[httpx2.Response]:
        """Send requests at once and look at all that comes back."""

        async def one(method: str, path: str, cookie: str, body: Any) -> httpx2.Response:
            accept = HTML if len(path) % 2 else JSON
            headers = {**accept, "Cookie": f"cm_auth={cookie}"}
            async with world.browser(**headers) as browser:
                return await browser.request(method, path, json=body)

        async def all_of_them() -> list[httpx2.Response]:
            return await asyncio.gather(*(one(*request) for request in requests))

        answers = self.run(all_of_them())
        for answer in answers:
            self.look_at(answer)
        return answers

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it, and what goes on beside it, to the end."""

        async def whole() -> T:
            result = await coroutine
            for world in self.worlds:
                if world.side == "asgi":
                    await world.engine.async_services.runtime.close()
                else:
                    close = world.engine.thread_services.runtime.close
                    await anyio.to_thread.run_sync(lambda close=close: run_sync(close()))
            return result

        result = self.runner.run(whole())
        self.audit()
        return result

    def get(self, world: World, path: str, cookie: str) -> httpx2.Response:
        return self.send(world, ("GET", path, cookie, None))[0]

    def look_at(self, answer: httpx2.Response) -> None:
        """Nothing of CameraManager's tokens reaches a browser, and no error is unforeseen."""
        assert answer.status_code < 500 or answer.status_code == 503, answer.text
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            assert "set-cookie" not in answer.headers
        text = answer.text + str(answer.headers.multi_items())
        for token in self.tokens():
            assert token not in text

    def tokens(self) -> list[str]:
        inside = self.sim._tokens
        return [*inside.access, *inside.refresh, *inside.spent]

    def audit(self) -> None:
        """One expiry, one refresh: no access token is replaced that was still good.

        And what a thief could read of the store and the cookies tells nothing.
        """
        stored = b"".join(v for values, _ in self.store.memory._shards for v in values.values())
        for word in (*self.tokens(), *IDS, "Jansen", "Front gate"):
            assert word.encode() not in stored
        for login in filter(None, self.browsers):
            assert len(login.cookie) == 130
            assert set(login.cookie) <= set(ALPHABET)
        calls = self.sim.requests[self.seen :]
        self.seen += len(calls)
        # A logout may have to refresh: only a living access token ends a grant.
        is_logout = any(call.method == "DELETE" for call in calls)
        for call in calls:
            if call.path == "/oauth/token" and call.param("grant_type") == "refresh_token":
                self.audit_refresh(call, is_logout)

    def audit_refresh(self, call: RecordedRequest, is_logout: bool) -> None:
        account = self.account_of(call.form["refresh_token"])
        if call.status == 200 and not self.outage:  # a page of HTML is 200, too
            is_due = call.time >= account.born + LIFETIME - LEEWAY
            called_for = is_due or account.kills or account.is_doubtful or is_logout
            assert called_for, "a refresh that nothing called for"
            account.born, account.kills = call.time, 0
        elif call.status is None:  # done, and the answer was lost
            account.kills += 1
            if self.sim.settings.rotate_refresh_tokens:
                account.end(account.grants[-1], usable=None)

    def account_of(self, token: str) -> Account:
        user_id = token.partition(":")[2]
        return next(self.accounts[email] for email, its in IDS.items() if its == user_id)

    # -- what is expected ------------------------------------------------------------------

    def judge(self, login: Login, status: int, path: str) -> None:
        """Judge the answer to a request of this session, and learn from it."""
        if login.alive is False and status in LOGIN:
            return
        account, now = self.accounts[login.email], self.clock.now
        fails = bool(self.store.broken) or self.outage
        over = now >= min(login.seen[1] + IDLE, login.at + ABSOLUTE)
        perhaps = now >= min(login.seen[0] + IDLE, login.at + ABSOLUTE) - 1
        if status in LOGIN:
            assert login.alive is not True or login.grant.usable is not True or perhaps, (
                f"{login.email} was logged out"
            )
            # A store that cannot delete leaves it for later: it is over all the same.
            login.alive = False
            return
        if status == 503:
            assert fails, "503 although nothing fails"
            if login.alive is False:
                return
            good = now < account.born + LIFETIME - 1 and not account.kills
            assert self.store.broken or not good or login.grant.usable is not True, (
                "served too little"
            )
            return
        assert status == 200
        assert login.alive is not False, "a session came back"
        assert not over, "a session outlived its timeouts"
        assert path == "/" or login.grant.usable is not False, "tokens outlived their grant"
        lately = now if self.store.broken else max(now - MINUTE, login.seen[0])
        login.seen = (login.seen[0] if self.store.broken else lately, now)

    def visit(self, number: int, world: World, *paths: str) -> None:
        login = self.browsers[number]
        if login is not None:
            answers = self.send(world, *(("GET", path, login.cookie, None) for path in paths))
            pairs = zip(answers, paths, strict=True)
            for answer, path in sorted(pairs, key=lambda pair: pair[0].status_code in LOGIN):
                self.judge(login, answer.status_code, path)

    # -- what browsers do ------------------------------------------------------------------

    @initialize(rotates=st.booleans())
    def begin(self, rotates: bool) -> None:
        settings = self.sim.settings
        settings.rotate_refresh_tokens = settings.revoke_family_on_reuse = rotates
        for number in (0, 1):
            self.log_in_again(number)

    @rule(number=slots, process=processes, email=accounts)
    def log_in(self, number: int, process: int, email: str) -> None:
        if self.outage or self.store.broken:
            return
        world, previous = self.worlds[process], self.browsers[number]

        async def walk() -> str:
            async with world.browser() as browser:
                if previous is not None:
                    browser.cookies.set("cm_auth", previous.cookie)
                start = await browser.get("/auth/login")
                url = browser.callback_url(start.headers["location"], email)
                answer = await browser.get(url)
                assert answer.status_code == 302, answer.text
                assert answer.headers["location"] == "/"
                for response in (start, answer):
                    self.look_at(response)
                lines = answer.headers.get_list("set-cookie")
                return next(line for line in lines if line.startswith("cm_auth=")).split(";")[0]

        is_there = previous is not None and previous.alive and not self.perhaps_over(previous)
        cookie = self.run(walk()).partition("=")[2]
        account, now = self.accounts[email], self.clock.now
        if previous is not None and previous.email != email and previous.alive is not False:
            # Another user ends the session of the first as a logout does.
            first = self.accounts[previous.email]
            first.end(previous.grant, usable=False if is_there else None)
        if account.grants[-1].usable is not True:
            account.born, account.kills = now, 0
            account.grants.append(Grant(usable=True))
        if previous is not None:
            self.dead.append(previous.cookie)
        self.browsers[number] = Login(cookie, email, account.grants[-1], now, (now, now))
        self.visit(number, world, "/cameras")  # no loop: who logged in is in
        login = self.browsers[number]
        assert login is not None
        assert login.alive is True

    def log_in_again(self, number: int) -> None:
        """So that most of a history happens to people who are logged in."""
        login = self.browsers[number]
        if login is None or login.alive is False:
            self.log_in(number, number, "anna@example.com")

    @rule(number=slots, process=processes, path=st.sampled_from(["/", "/cameras"]))
    def ask(self, number: int, process: int, path: str) -> None:
        self.visit(number, self.worlds[process], path)
        self.log_in_again(number)

    @rule(process=processes, count=st.integers(2, 6))
    def ask_much_at_once(self, process: int, count: int) -> None:
        for number in (0, 1):
            self.visit(number, self.worlds[process], *(["/cameras", "/"] * count))

    @rule(count=st.integers(1, 3), expired=st.booleans())
    def all_ask_everywhere_at_once(self, count: int, expired: bool) -> None:
        """Both browsers at both processes, in one moment, perhaps that of expiry."""
        for number in (0, 1):
            self.log_in_again(number)
        if expired:
            self.time_passes(LIFETIME + 1)
        logins = [login for login in self.browsers if login is not None and login.alive]
        if not logins:
            return

        async def crowd() -> list[tuple[Login, httpx2.Response]]:
            async def one(login: Login, world: World) -> tuple[Login, httpx2.Response]:
                async with world.browser(Cookie=f"cm_auth={login.cookie}", **JSON) as browser:
                    return login, await browser.get("/cameras")

            return await asyncio.gather(
                *(one(login, world) for login in logins for world in self.worlds * count)
            )

        answers = self.run(crowd())
        # In one moment: who was served was served before another was turned away.
        for login, answer in sorted(answers, key=lambda pair: pair[1].status_code in LOGIN):
            self.look_at(answer)
            self.judge(login, answer.status_code, "/cameras")

    @rule(number=slots, value=st.integers(0, 9))
    def keep_data(self, number: int, value: int) -> None:
        """Two requests at two processes change different keys at once; both keep theirs."""
        self.log_in_again(number)
        login = self.browsers[number]
        if login is None:
            return

        async def both() -> list[httpx2.Response]:
            async def one(world: World, key: str) -> httpx2.Response:
                async with world.browser(Cookie=f"cm_auth={login.cookie}") as browser:
                    return await browser.post("/data", json={key: value})

            return await asyncio.gather(*map(one, self.worlds, "ab"))

        for key, answer in zip("ab", self.run(both()), strict=True):
            self.look_at(answer)
            self.judge(login, answer.status_code, "/")
            if answer.status_code == 200:
                login.data[key] = value
                login.doubtful.discard(key)
            else:
                login.doubtful.add(key)
        self.read_data(login)

    def read_data(self, login: Login) -> None:
        answer = self.get(self.worlds[0], "/data", login.cookie)
        self.judge(login, answer.status_code, "/")
        if answer.status_code == 200:
            found = {k: v for k, v in answer.json().items() if k not in login.doubtful}
            assert found == {k: v for k, v in login.data.items() if k not in login.doubtful}

    @rule(number=slots, process=processes, turns=st.integers(0, 60))
    def log_out(self, number: int, process: int, turns: int) -> None:
        """Log out, perhaps in the middle of a refresh that another process makes."""
        self.log_in_again(number)
        login = self.browsers[number]
        if login is None:
            return
        if turns:
            self.time_passes(LIFETIME + 1)
        world, other = self.worlds[process], self.worlds[1 - process]

        async def both() -> httpx2.Response:
            async def ask() -> None:
                async with other.browser(Cookie=f"cm_auth={login.cookie}", **JSON) as browser:
                    self.look_at(await browser.get("/cameras"))

            racing = asyncio.create_task(ask()) if turns else None
            for _ in range(turns):
                await asyncio.sleep(0)
            async with world.browser(Cookie=f"cm_auth={login.cookie}") as browser:
                answer = await browser.post("/auth/logout")
            if racing is not None:
                await racing
            return answer

        answer = self.run(both())
        self.look_at(answer)
        account = self.accounts[login.email]
        if answer.status_code == 503:
            assert self.store.broken
            login.alive = None if login.alive else login.alive
            account.end(login.grant, usable=None)
            return
        assert answer.status_code == 303
        if login.alive is not False:
            # While CameraManager does not answer, it may not have heard of it.
            certain = login.alive and not self.outage and not self.perhaps_over(login)
            account.end(login.grant, usable=False if certain else None)
            if login.grant.usable is False and account.grants[-1] is login.grant:
                living = [t for t in self.sim._tokens.refresh if t.endswith(IDS[login.email])]
                assert not living, "a grant outlived its logout"
        login.alive = False
        for world in self.worlds:
            self.visit(number, world, "/")

    def perhaps_over(self, login: Login) -> bool:
        return self.clock.now >= min(login.seen[0] + IDLE, login.at + ABSOLUTE) - 1

    @rule(process=processes)
    def come_back_with_an_old_cookie(self, process: int) -> None:
        for cookie in self.dead[-3:]:
            status = self.get(self.worlds[process], "/", cookie).status_code
            assert status in LOGIN or (status == 503 and self.store.broken)

    @rule(process=processes)
    def a_stranger_comes_by(self, process: int) -> None:
        before = self.store.writes
        for path in ("/", "/auth/login", "/auth/callback?code=x&state=y", "/auth/session"):
            self.get(self.worlds[process], path, "junk")
        assert self.store.writes == before

    # -- what happens to the site ----------------------------------------------------------

    @rule(
        seconds=st.sampled_from(
            [1, 61, LIFETIME - 30, LIFETIME + 1, LIFETIME + 1, 3 * DAY, 8 * DAY, 31 * DAY]
        )
    )
    def time_passes(self, seconds: int) -> None:
        self.clock.tick(seconds)

    @rule()
    def access_tokens_expire_early(self) -> None:
        self.sim.expire_access_tokens()
        for account in self.accounts.values():
            account.kills += 1

    @rule(email=accounts)
    def camera_manager_ends_a_grant(self, email: str) -> None:
        self.sim.revoke_user(email)
        for grant in self.accounts[email].grants:
            grant.usable = False

    @rule(email=accounts, process=processes)
    def an_administrator_logs_a_user_out(self, email: str, process: int) -> None:
        world = self.worlds[process]
        if self.store.broken:
            return

        async def log_out() -> int:
            if world.side == "asgi":
                return await world.engine.logout_user(IDS[email])
            return await anyio.to_thread.run_sync(world.engine.logout_user, IDS[email])

        ended = self.run(log_out())
        logins = [login for login in self.browsers if login is not None and login.email == email]
        assert ended >= sum(
            login.alive is True and not self.perhaps_over(login) for login in logins
        )
        for login in logins:
            login.alive = False

    @rule(rotates=st.booleans())
    def camera_manager_changes_its_mind_about_rotation(self, rotates: bool) -> None:
        settings = self.sim.settings
        settings.rotate_refresh_tokens = settings.revoke_family_on_reuse = rotates

    @precondition(lambda self: not self.outage)
    @rule(
        what=st.sampled_from(
            [503, "html", "truncated", "drop", "lost", {"error": "invalid_client"}]
        ),
        expired=st.booleans(),
    )
    def camera_manager_fails(self, what: Any, expired: bool) -> None:
        self.sim.fail_token(what, times=10_000)
        self.outage = True
        if expired:
            self.time_passes(LIFETIME + 1)
        for number in (0, 1):
            for world in self.worlds:
                self.visit(number, world, "/")

    @precondition(lambda self: self.outage)
    @rule()
    def camera_manager_recovers(self) -> None:
        self.sim.forget_failures()
        self.outage = False
        self.clock.tick(2)
        self.everybody_is_served()

    @precondition(lambda self: not self.store.broken)
    @rule(methods=st.sampled_from([EVERYTHING, WRITES]))
    def the_store_fails(self, methods: set[str]) -> None:
        self.store.broken |= methods
        for number in (0, 1):
            for world in self.worlds:
                self.visit(number, world, "/cameras")

    @precondition(lambda self: self.store.broken)
    @rule()
    def the_store_recovers(self) -> None:
        self.store.broken.clear()
        self.clock.tick(2)
        self.everybody_is_served()

    @rule(process=processes)
    def a_process_is_restarted(self, process: int) -> None:
        old = self.worlds[process]
        self.worlds[process] = self.process(old.side, self.worlds[1 - process])
        self.runner.run(old.close())

    def everybody_is_served(self) -> None:
        """The first request after a recovery works."""
        for number in (0, 1):
            for world in self.worlds:
                self.visit(number, world, "/cameras")


_HISTORIES = int(os.environ.get("CM_AUTH_INVARIANTS", "0"))


class MixedSite(Site):
    """One of the processes serves WSGI; its threads make histories less repeatable."""

    second = "wsgi"


def case_of(site: type[Site], few: int, *marks: pytest.MarkDecorator) -> Any:
    case = type(site)(f"{site.__name__}Of{few}", (site,), {}).TestCase
    case.settings = settings(
        max_examples=_HISTORIES or few,
        stateful_step_count=60 if _HISTORIES else 30,
        derandomize=not _HISTORIES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=bool(_HISTORIES),
    )
    case.pytestmark = [pytest.mark.timeout(max(120, 10 * _HISTORIES)), *marks]
    return case


TestInvariants = case_of(Site, 4)
TestInvariantsOfBothShells = case_of(MixedSite, 2)
TestInvariantsAtLength = case_of(Site, 60, pytest.mark.slow)
TestInvariantsOfBothShellsAtLength = case_of(MixedSite, 20, pytest.mark.slow)
