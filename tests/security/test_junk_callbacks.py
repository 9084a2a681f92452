"""Junk callbacks: visitors who begin logins and come back with invented codes, by the hundred."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import anyio
import httpx2
import pytest

from cm_auth_middleware.auth.exchange_limit import ExchangeLimit
from tests.helpers.browser import ANNA, BOB
from tests.helpers.servers import until
from tests.helpers.world import CM, Clock, MakeWorld, World, both_providers

from .held import EXCHANGE, REFRESH, THREADS, WSGI, Burst, HeldSite
from .visits import started

AT_ONCE = {"asgi": 16, "wsgi": 2}
SOON = 1.0  # seconds: /health takes 2 ms, and did take as long as the exchanges before it


@pytest.mark.slow
class TestInProcess:
    """What becomes of callbacks beyond the limit, on both sides."""

    pytestmark = pytest.mark.anyio

    async def callbacks(self, world: World, count: int) -> list[Callable[[], object]]:
        """Begin so many logins; return what sends their callbacks, with real codes."""
        found = []
        for _ in range(count):
            browser = world.browser()
            url = browser.callback_url((await started(browser)).headers["location"])
            found.append(lambda browser=browser, url=url: browser.get(url))
        return found

    @both_providers
    @pytest.mark.slow
    @pytest.mark.parametrize("given", [None, 1, 5])
    async def test_so_many_exchanges_are_under_way_and_no_more(
        self, make_world: MakeWorld, given: int | None
    ) -> None:
        """57: those beyond it are told at once to try again, and nothing of theirs is used up."""
        world = make_world(**({} if given is None else {"exchanges_at_once": given}))
        most = given or AT_ONCE[world.side]
        callbacks = await self.callbacks(world, most + 3)
        world.sim.settings.token_latency = 0.5
        answers: dict[int, httpx2.Response] = {}

        async def send(number: int) -> None:
            answers[number] = await callbacks[number]()

        async with anyio.create_task_group() as group:
            for number in range(len(callbacks)):
                group.start_soon(send, number)
        refused = [n for n, answer in answers.items() if answer.status_code == 503]
        assert len(refused) == 3
        assert len(world.sim.token_calls()) == most
        assert [answers[n].status_code for n in answers if n not in refused] == [302] * most
        for number in refused:
            assert answers[number].headers["retry-after"] == "1"
            assert "<h1>Too many logins at once</h1>" in answers[number].text
            assert "code=" not in answers[number].text
            assert (await callbacks[number]()).status_code == 302  # a reload

    @both_providers
    async def test_an_exchange_that_fails_makes_room(self, make_world: MakeWorld) -> None:
        """57: whatever it ends by."""
        world = make_world(exchanges_at_once=1)
        for what in (500, "drop", "html", {"error": "invalid_grant"}, {"error": "invalid_client"}):
            [callback] = await self.callbacks(world, 1)
            world.sim.fail_token(what)
            assert (await callback()).status_code in (400, 502)
        [callback] = await self.callbacks(world, 1)
        assert (await callback()).status_code == 302

    @both_providers
    @pytest.mark.parametrize(
        ("asked", "least", "most"),
        [("30", 30, 30), ("2", 2, 2), ("86400", 60, 60), ("9" * 400, 60, 60)],
        ids=["30", "2", "a day", "no end"],
    )
    async def test_a_429_at_an_exchange_pauses_exchanges_and_no_refresh(
        self, make_world: MakeWorld, asked: str, least: int, most: int
    ) -> None:
        """57: for as long as the server asks for, a minute at most."""
        world = make_world()
        anna = await world.login(ANNA)
        world.clock.tick(43_199)  # her token has expired
        refused, late = await self.callbacks(world, 2)
        simulator = world.net.apps[CM]
        world.net.add(CM, _refusing_exchanges(world, asked))
        assert (await refused()).status_code == 502
        before = len(world.sim.token_calls(EXCHANGE))
        paused = await late()
        assert paused.status_code == 503
        assert least <= int(paused.headers["retry-after"]) <= most
        assert (await anna.get("/cameras")).status_code == 200
        assert len(world.sim.token_calls(REFRESH)) == 1
        world.net.apps[CM] = simulator
        world.clock.tick(least - 1.5)
        assert (await late()).status_code == 503
        world.clock.tick(2)
        assert (await late()).status_code == 302
        assert len(world.sim.token_calls(EXCHANGE)) == before + 1

    @both_providers
    async def test_a_429_at_a_refresh_pauses_no_exchange(self, world: World) -> None:
        """57: the other way round: users may log in meanwhile."""
        anna = await world.login(ANNA)
        world.clock.tick(43_199)
        world.sim.fail_token(429)
        assert (await anna.get("/cameras")).status_code == 503
        assert await world.login(BOB)

    def test_a_pause_ends_where_the_clock_is_set_back(self) -> None:
        clock = Clock()
        limit = ExchangeLimit(1, clock)
        limit.pause(30)
        assert limit.enter() == 30
        clock.tick(-86_400)
        assert limit.enter() is None


def test_a_process_that_is_forked_counts_its_own_exchanges() -> None:
    """57: workers share no count."""
    code = """
import os, time
from cm_auth_middleware.auth.exchange_limit import ExchangeLimit
limit = ExchangeLimit(1, time.time)
assert limit.enter() is None
pid = os.fork()
if pid == 0:
    os._exit(7 if limit.enter() is None else 1)
assert limit.enter() == 1
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    program = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "7\n"


def _refusing_exchanges(world: World, retry_after: str) -> object:
    async def app(scope, receive, send) -> None:
        messages = [await receive()]
        if scope["path"] != world.token_path or EXCHANGE.encode() not in messages[0]["body"]:

            async def again():
                return messages.pop() if messages else await receive()

            await world.sim(scope, again, send)
            return
        headers = [(b"retry-after", retry_after.encode())]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    return app


@pytest.fixture
def make_site(provider: str) -> Iterator[Callable[..., HeldSite]]:
    with ExitStack() as stack:
        yield lambda server, **options: HeldSite(server, stack, provider=provider, **options)


def junk(site: HeldSite, count: int, visitor: httpx2.Client) -> Burst:
    """Send so many callbacks at one time, each of a login that was begun."""
    paths, cookies = [], []
    for _ in range(count):
        start = visitor.get("/auth/login")
        visitor.cookies.clear()
        state = httpx2.URL(start.headers["location"]).params["state"]
        paths.append(f"/auth/callback?code=invent&state={state}")
        cookies.append(start.headers["set-cookie"].partition(";")[0])
    return Burst(visitor, paths, cookies)


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize("server", WSGI)
def test_junk_callbacks_keep_no_threads_from_others(make_site, server) -> None:
    """57: with four threads, while CameraManager answers none of them."""
    site = make_site(server)
    anna, bob, visitor = site.user(ANNA), site.user(BOB, expired=True), site.visitor()
    site.calls.held.add(EXCHANGE)
    burst = junk(site, 200, visitor)
    until(lambda: burst.answered() == 200 - AT_ONCE["wsgi"])
    assert site.seconds(visitor, "/health") < SOON
    assert site.seconds(anna) < SOON
    assert site.seconds(bob) < SOON  # which takes a refresh
    assert len(site.simulator.token_calls(REFRESH)) == 1
    site.calls.held.clear()
    answers = burst.answers()
    assert answers.count((503, "1")) == 200 - AT_ONCE["wsgi"]
    assert len([status for status, _ in answers if status == 400]) == AT_ONCE["wsgi"]
    assert site.calls.most[EXCHANGE] == AT_ONCE["wsgi"]


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize("server", WSGI)
def test_junk_callbacks_at_a_slow_server_leave_threads_to_others(make_site, server) -> None:
    """57: the exchanges go on one after the other, and others are served in between."""
    site = make_site(server)
    anna, visitor = site.user(ANNA), site.visitor()
    site.simulator.settings.token_latency = 0.3
    burst = junk(site, 200, visitor)
    while burst.answered() < 200:
        assert site.seconds(visitor, "/health") < SOON
        assert site.seconds(anna) < SOON
    assert {status for status, _ in burst.answers()} == {400, 503}
    assert site.calls.most[EXCHANGE] <= AT_ONCE["wsgi"]


@both_providers
@pytest.mark.slow
def test_junk_callbacks_keep_no_connections_from_refreshes_on_an_event_loop(make_site) -> None:
    """57: 1 150 of them, more than a pool has connections."""
    site = make_site("uvicorn")
    anna, bob, visitor = site.user(ANNA), site.user(BOB, expired=True), site.visitor()
    site.calls.held.add(EXCHANGE)
    burst = junk(site, 1_150, visitor)
    until(lambda: burst.answered() == 1_150 - AT_ONCE["asgi"])
    assert site.seconds(visitor, "/health") < SOON
    assert site.seconds(anna) < SOON
    assert site.seconds(bob) < SOON
    assert len(site.simulator.token_calls(REFRESH)) == 1
    site.calls.held.clear()
    assert burst.answers().count((503, "1")) == 1_150 - AT_ONCE["asgi"]
    assert site.calls.most[EXCHANGE] == AT_ONCE["asgi"]


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize("server", ["uvicorn", *WSGI])
def test_so_many_exchanges_as_a_server_was_given_are_under_way(make_site, server) -> None:
    """57: no more and, with three of four threads, no fewer."""
    site = make_site(server, exchanges_at_once="3")
    anna, visitor = site.user(), site.visitor()
    site.calls.held.add(EXCHANGE)
    burst = junk(site, 12, visitor)
    until(lambda: burst.answered() == 9 and site.calls.under_way[EXCHANGE] == 3)
    assert site.seconds(visitor, "/health") < SOON
    assert site.seconds(anna) < SOON
    site.calls.held.clear()
    answers = burst.answers()
    assert answers.count((503, "1")) == 9
    assert len([status for status, _ in answers if status == 400]) == 3
    assert site.calls.most[EXCHANGE] == 3
    assert site.user(BOB).get("/").status_code == 200  # there is room again


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "connections", "exchanges", "under_way"),
    [
        ("uvicorn", 10, 50, 10),
        *((server, THREADS - 1, THREADS - 1, THREADS - 1) for server in WSGI),
    ],
)
def test_logins_and_refreshes_have_connections_of_their_own(
    make_site, server, connections, exchanges, under_way
) -> None:
    """57: also where exchanges take every connection that a pool has, and more would."""
    site = make_site(server, connections=connections, exchanges_at_once=str(exchanges))
    bob, visitor = site.user(BOB, expired=True), site.visitor()
    site.calls.held.add(EXCHANGE)
    burst = junk(site, exchanges, visitor)
    until(lambda: site.calls.under_way[EXCHANGE] == under_way)
    assert site.seconds(bob) < SOON
    assert len(site.simulator.token_calls(REFRESH)) == 1
    assert bob.get("/cameras").status_code == 200
    site.calls.held.clear()
    assert {status for status, _ in burst.answers()} == {400}


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize("server", ["uvicorn", *WSGI])
def test_a_429_at_an_exchange_of_a_server_pauses_logins_and_no_refresh(make_site, server) -> None:
    """57: others who log in are asked to try again, and CameraManager is left alone."""
    site = make_site(server)
    bob, visitor = site.user(BOB, expired=True), site.visitor()
    late = site.callback_url(visitor.get("/auth/login"))
    calls = len(site.simulator.token_calls(EXCHANGE))
    site.calls.paused[EXCHANGE] = "5"
    assert site.junk()().status_code == 502
    site.calls.paused.clear()
    paused = visitor.get(late)
    assert paused.status_code == 503
    assert 1 <= int(paused.headers["retry-after"]) <= 5
    assert "<h1>Too many logins at once</h1>" in paused.text
    assert "Please try again in a moment." in paused.text
    assert bob.get("/").status_code == 200
    assert len(site.simulator.token_calls(REFRESH)) == 1
    assert len(site.simulator.token_calls(EXCHANGE)) == calls
    until(lambda: visitor.get(late).status_code == 302)  # a reload, once the pause is over
