"""A slow CameraManager takes no thread of a WSGI server, and nothing else, from other users."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from typing import Any

import httpx2
import pytest

from cm_auth_middleware.errors import UnavailableError
from cm_auth_middleware.runtime import threads
from cm_auth_middleware.runtime.base import UnderWayError
from cm_auth_middleware.runtime.run_sync import run_sync
from cm_auth_middleware.runtime.threads import SingleFlight, ThreadRuntime
from tests.helpers.browser import ANNA, BOB
from tests.helpers.servers import redis_server, until
from tests.helpers.world import both_providers

from .held import REFRESH, SNAPSHOT, THREADS, WSGI, Burst, HeldSite, at_once

pytestmark = pytest.mark.slow

CAMERAS, USER = "/rest/v2.4/cameras", "/rest/v2.3/users/self"
LOGOUT = "/rest/v2.0/users/self/tokens/current"
URL = "http://cm.example/oauth/token"
SOON = 1.0  # seconds: a page takes 3 ms, and did take as long as the call that hangs


@pytest.fixture
def make_site() -> Iterator[Callable[..., HeldSite]]:
    with ExitStack() as stack:
        yield lambda server, **options: HeldSite(server, stack, **options)


@pytest.mark.parametrize("server", WSGI)
def test_one_thread_waits_for_a_users_refresh_and_other_users_wait_for_none(
    make_site, server
) -> None:
    """56: the other requests of that user get 503, and the refresh goes on."""
    site = make_site(server)
    anna, bob = site.user(ANNA, expired=True), site.user(BOB)
    site.calls.held.add(REFRESH)
    with at_once(*[lambda: anna.get("/")] * (2 * THREADS)) as answers:
        until(lambda: sum(answer.done() for answer in answers) == 2 * THREADS - 1)
        assert site.seconds(bob) < SOON
        for _ in range(2 * THREADS):
            began = time.monotonic()
            late = anna.get("/")
            assert (late.status_code, late.headers["retry-after"]) == (503, "1")
            assert time.monotonic() - began < SOON
        assert site.calls.under_way[REFRESH] == 1
        refused = [answer.result() for answer in answers if answer.done()]
        assert {(one.status_code, one.headers["retry-after"]) for one in refused} == {(503, "1")}
        assert len(refused) == 2 * THREADS - 1
        site.calls.held.clear()
    assert sorted(answer.result().status_code for answer in answers)[0] == 200
    assert anna.get("/").status_code == 200
    assert len(site.simulator.token_calls(REFRESH)) == 1


@pytest.mark.parametrize("server", WSGI)
def test_the_refreshes_of_several_users_leave_threads_to_others(make_site, server) -> None:
    """56: so does a server that hangs for all of them; what they ask for later is there."""
    site = make_site(server)
    users = site.expired_users(THREADS)
    site.calls.held.add(REFRESH)
    bob = site.user(BOB)
    with at_once(*[lambda user=user: user.get("/") for user in users]) as answers:
        until(lambda: site.calls.under_way[REFRESH] == len(users))
        until(lambda: sum(answer.done() for answer in answers) == len(users) - 1)
        assert site.seconds(bob) < SOON
        assert site.seconds(site.visitor(), "/health") < SOON
        site.calls.held.clear()
    until(lambda: site.calls.under_way[REFRESH] == 0)
    for user in users:
        until(lambda user=user: user.get("/").status_code == 200)
    assert len(site.simulator.token_calls(REFRESH)) == len(users)


@both_providers
@pytest.mark.parametrize("server", WSGI)
def test_forty_users_whose_refreshes_hang_keep_another_waiting_for_a_second_at_most(
    make_site, server, provider
) -> None:
    """56: the first four find out that the server hangs, and the others are refused at once."""
    site = make_site(server, provider=provider)
    users, bob = site.expired_users(40), site.user(BOB)
    site.calls.held.add(REFRESH)
    first = requests_of(users)
    until(lambda: site.calls.under_way[REFRESH] >= THREADS)
    assert site.seconds(bob) < 3 * threads._PATIENCE  # behind all of them
    until(lambda: first.answered() == len(users) - 1)
    again = requests_of(users)
    assert site.seconds(bob) < SOON
    site.calls.held.clear()
    assert first.answers() == [(503, "1")] * (len(users) - 1) + [(200, "")]
    assert set(again.answers()) <= {(503, "1"), (200, "")}
    until(lambda: site.calls.under_way[REFRESH] == 0)
    for user in users:
        until(lambda user=user: user.get("/").status_code == 200)
    assert len(site.simulator.token_calls(REFRESH)) == len(users)


@both_providers
@pytest.mark.parametrize("server", WSGI)
def test_forty_users_half_of_whose_refreshes_hang_keep_another_waiting_for_a_moment(
    make_site, server, provider
) -> None:
    """56: as behind a load balancer, where one of two machines hangs."""
    site = make_site(server, provider=provider)
    users, bob = site.expired_users(40), site.user(BOB)
    site.calls.every_second.add(REFRESH)
    first = requests_of(users)
    until(lambda: site.calls.under_way[REFRESH] > 1)
    assert site.seconds(bob) < 3 * threads._PATIENCE  # 20 hang: with four threads it would be 5
    assert site.seconds(site.visitor(), "/health") < 3 * threads._PATIENCE
    until(lambda: first.answered() >= len(users) - 1)
    site.calls.every_second.clear()
    site.calls.held.clear()
    answers = first.answers()
    assert answers.count((200, "")) >= len(users) // 2, "who was answered has the page"
    assert set(answers) <= {(503, "1"), (200, "")}
    until(lambda: site.calls.under_way[REFRESH] == 0)
    for user in users:
        until(lambda user=user: user.get("/").status_code == 200)
    assert len(site.simulator.token_calls(REFRESH)) == len(users)


def requests_of(users: list[httpx2.Client]) -> Burst:
    """Send a request of each user at one time."""
    cookies = [user.build_request("GET", "/").headers["Cookie"] for user in users]
    return Burst(users[0], ["/"] * len(users), cookies)


@pytest.mark.parametrize("server", WSGI)
def test_forty_users_whose_refreshes_take_a_moment_get_their_pages(make_site, server) -> None:
    """56: a server that answers is waited for, however many ask."""
    site = make_site(server)
    users = site.expired_users(40)
    site.simulator.settings.token_latency = 0.3
    assert requests_of(users).answers() == [(200, "")] * len(users)
    assert len(site.simulator.token_calls(REFRESH)) == len(users)


@pytest.mark.parametrize("server", WSGI)
def test_the_viewers_of_a_slow_snapshot_leave_threads_to_others(make_site, server) -> None:
    """56: one of them waits for it, and the others get 503 until it is there."""
    site = make_site(server)
    viewers, bob = [site.user() for _ in range(2 * THREADS)], site.user(BOB)
    picture = f"GET {SNAPSHOT}"
    site.calls.held.add(picture)
    with at_once(*[lambda viewer=viewer: viewer.get(f"/cm{SNAPSHOT}") for viewer in viewers]) as (
        answers
    ):
        until(lambda: sum(answer.done() for answer in answers) == len(viewers) - 1)
        refused = [answer.result() for answer in answers if answer.done()]
        assert {(one.status_code, one.headers["retry-after"]) for one in refused} == {(503, "1")}
        assert site.seconds(bob) < SOON
        began = time.monotonic()
        assert viewers[0].get("/").status_code == 200  # nobody is logged out
        assert time.monotonic() - began < SOON
        assert site.calls.under_way[picture] == 1
        site.calls.held.clear()
    assert sorted(answer.result().status_code for answer in answers)[0] == 200
    assert {viewer.get(f"/cm{SNAPSHOT}").status_code for viewer in viewers} == {200}
    assert len(site.simulator.calls(SNAPSHOT)) == 1


@pytest.mark.parametrize("server", WSGI)
def test_a_slow_logout_keeps_no_threads_from_others(make_site, server) -> None:
    """56: the session ends at once; CameraManager is told as soon as it listens."""
    site = make_site(server)
    users, bob = [site.user() for _ in range(THREADS)], site.user(BOB)
    revoke = f"DELETE {LOGOUT}"
    site.calls.held.add(revoke)
    with at_once(*[lambda user=user: user.post("/auth/logout") for user in users]) as answers:
        until(lambda: sum(answer.done() for answer in answers) >= len(users) - 1)
        assert site.seconds(bob) < SOON
        assert site.calls.under_way[revoke] >= 1
        site.calls.held.clear()
    assert {answer.result().status_code for answer in answers} == {303}
    until(lambda: len(site.simulator.calls(LOGOUT)) == len(users))
    assert not any(user.get("/auth/session").json()["authenticated"] for user in users)


@pytest.mark.parametrize("server", WSGI)
def test_the_question_if_a_token_is_dead_keeps_no_threads_from_others(make_site, server) -> None:
    """56: a 403 that the user may deserve reaches the handler without the answer, too."""
    site = make_site(server)
    anna, bob = site.user(), site.user(BOB)
    site.simulator.fail_api(403, times=THREADS, path=CAMERAS)
    site.calls.held.add(f"GET {USER}")
    with at_once(*[lambda: anna.get("/api/x")] * THREADS) as answers:
        until(lambda: sum(answer.done() for answer in answers) == THREADS - 1)
        assert site.seconds(bob) < SOON
        assert site.calls.under_way[f"GET {USER}"] == 1
        site.calls.held.clear()
    assert {answer.result().json()["status"] for answer in answers} == {403}


@pytest.mark.parametrize("server", WSGI)
def test_who_asks_during_a_refresh_of_less_than_a_second_gets_the_page(make_site, server) -> None:
    """56: as before: one refresh serves all."""
    site = make_site(server)
    anna = site.user(expired=True)
    site.simulator.settings.token_latency = 0.2
    with at_once(*[lambda: anna.get("/")] * (2 * THREADS)) as answers:
        pass
    assert {answer.result().status_code for answer in answers} == {200}
    assert len(site.simulator.token_calls(REFRESH)) == 1


def test_many_requests_of_one_grant_take_nothing_from_others_on_an_event_loop(make_site) -> None:
    """56: hundreds may wait: each costs memory, and neither a thread nor a connection."""
    with redis_server() as redis:
        site = make_site("uvicorn", store=redis.url)
        anna, bob = site.user(expired=True), site.user(BOB)
        site.calls.held.add(REFRESH)
        burst = Burst(anna, ["/"] * 300)
        until(lambda: site.calls.under_way[REFRESH] == 1)
        assert site.seconds(bob) < SOON
        assert site.seconds(bob, "/cameras") < SOON
        assert site.seconds(site.visitor(), "/auth/health") < SOON
        assert burst.answered() == 0
        site.calls.held.clear()
        assert {status for status, _ in burst.answers()} == {200}
    assert len(site.simulator.token_calls(REFRESH)) == 1


@pytest.mark.parametrize("server", WSGI)
def test_a_store_that_stays_silent_leaves_threads_to_exempt_paths(make_site, server) -> None:
    """50, 56: once it is known to be silent, few of the requests that need it try it."""
    with redis_server() as redis:
        site = make_site(server, store=f"{redis.url}?socket_timeout=4")
        anna, visitor = site.user(), site.visitor()
        redis.pause()
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                anna.get("/")
                time.sleep(0.05)

        with ThreadPoolExecutor(2 * THREADS) as pool:
            asking = [pool.submit(ask) for _ in range(2 * THREADS)]
            try:
                time.sleep(6)  # the first requests wait for its answer
                slowest = 0.0
                for _ in range(40):
                    slowest = max(slowest, site.seconds(visitor, "/health"))
                    time.sleep(0.2)
            finally:
                over.set()
                redis.resume()
            assert not any(asked.exception() for asked in asking)
        assert slowest < SOON


# -- the threads themselves ----------------------------------------------------------------


class Slow:
    """Work that ends when it is let go, and then fails if it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.runs = 0
        self.fails = False

    async def work(self) -> str:
        self.runs += 1
        self.go.wait(30)
        if self.fails:
            raise UnavailableError("no answer")
        return "done"


def attempt(flight: SingleFlight, key: str, slow: Slow, *asks: str) -> str:
    try:
        return str(run_sync(flight.do_apart(key, slow.work, asks=asks)))
    except UnderWayError:
        return "under way"
    except UnavailableError:
        return "unavailable"


def test_the_one_thread_that_waits_long_gets_the_outcome() -> None:
    """56: the server's one thread that waits shows the page."""
    flight, slow, found = SingleFlight(), Slow(), []
    waiting = [
        threading.Thread(target=lambda: found.append(attempt(flight, "key", slow)))
        for _ in range(5)
    ]
    for thread in waiting:
        thread.start()
    until(lambda: len(found) == 4)
    assert attempt(flight, "another", slow) == "under way"  # of the whole process, not of a key
    slow.go.set()
    for thread in waiting:
        thread.join()
    assert found == ["under way"] * 4 + ["done"]
    assert slow.runs == 2


def test_after_an_outage_only_who_begins_the_next_attempt_waits_for_a_second() -> None:
    """56: the others are answered at once: the server was just found to be slow."""
    flight, slow = SingleFlight(), Slow()
    slow.fails = True
    first = threading.Thread(target=attempt, args=[flight, "key", slow])
    first.start()
    time.sleep(threads._PATIENCE + 0.2)
    slow.go.set()
    first.join()
    slow.go.clear()
    second = threading.Thread(target=attempt, args=[flight, "key", slow])
    second.start()
    until(lambda: slow.runs == 2)
    patient = threading.Thread(target=attempt, args=[flight, "key", slow])
    patient.start()  # nobody else waits long yet
    until(lambda: flight._waits_long.locked())
    began = time.monotonic()
    assert attempt(flight, "key", slow) == "under way"
    assert time.monotonic() - began < threads._PATIENCE / 2
    slow.fails = False
    slow.go.set()
    for thread in (second, patient):
        thread.join()
    assert attempt(flight, "key", slow) == "done"


class Server(httpx2.BaseTransport):
    """A server that hangs, refuses connections, or answers, as a test says; and calls to it."""

    def __init__(self) -> None:
        self.hangs = True
        self.refuses = False
        self.asked: list[httpx2.Request] = []
        self.go = threading.Event()
        self.runtime = ThreadRuntime(30.0, URL, transport=self)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.refuses:
            raise httpx2.ConnectError("refused")
        if self.hangs:
            self.asked.append(request)
            self.go.wait(30)
            raise httpx2.ReadTimeout("no answer")
        return httpx2.Response(200, request=request)

    async def call(self, **how: Any) -> str:
        with suppress(httpx2.HTTPError):
            await self.runtime.call("GET", URL, headers={}, **how)
        return "done"

    def ask(self, key: str) -> str:
        """Ask the server by work apart, as a request does that needs a refresh."""
        try:
            return str(run_sync(self.runtime.single_flight.do_apart(key, self.call, asks=[URL])))
        except UnderWayError:
            return "under way"

    def is_waited_for(self, url: str = URL) -> bool:
        """Return True if a request still waits for work that asks the server."""
        flight, slow = self.runtime.single_flight, Slow()
        is_free = flight._waits_long.acquire(blocking=False)  # else one of the test waits long
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(attempt, flight, f"{slow!r}", slow, url)
            refused, _ = wait([waiting], threads._PATIENCE / 2)
            slow.go.set()
        if is_free:
            flight._waits_long.release()
        return not refused


@pytest.fixture
def hanging() -> Iterator[Server]:
    """A server that has hung for longer than a second."""
    server = Server()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(server.ask, "first")
        until(server.runtime.single_flight._waits_long.locked)
        until(lambda: server.ask("another") == "under way")
        yield server
        server.go.set()


def test_calls_that_ended_long_ago_say_nothing_of_the_server(
    hanging: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """56: who comes in the morning must not be refused for what hung in the evening."""
    flight = hanging.runtime.single_flight
    until(lambda: len(hanging.asked) == len(flight._calls))
    time.sleep(threads._PATIENCE)  # no call times out sooner
    hanging.go.set()
    run_sync(flight.wait_all())
    until(lambda: not flight._waits_long.locked())
    flight._stuck_until = 0.0
    assert not hanging.is_waited_for()
    monkeypatch.setattr(threads, "_REMEMBERED", 0.0)
    assert hanging.is_waited_for()


@pytest.mark.parametrize("refuses", [False, True])
def test_nobody_else_waits_for_a_server_that_hangs_until_it_answers_or_refuses(
    hanging: Server, refuses: bool
) -> None:
    """56: other work is begun all the same, and one that asks elsewhere is waited for."""
    flight = hanging.runtime.single_flight
    began = time.monotonic()
    assert [hanging.ask(f"{n}") for n in range(4)] == ["under way"] * 4
    assert time.monotonic() - began < threads._PATIENCE / 2
    assert {f"{n}" for n in range(4)} <= set(flight._calls)
    assert hanging.is_waited_for(f"{URL}/else")
    until(lambda: len(hanging.asked) == len(flight._calls))
    time.sleep(threads._PATIENCE)  # no call times out sooner
    hanging.go.set()
    run_sync(flight.wait_all())
    until(lambda: not flight._waits_long.locked())
    flight._stuck_until = 0.0  # a failure after long, which concerns all work
    assert not hanging.is_waited_for()  # that its calls have timed out is no answer
    hanging.hangs, hanging.refuses = False, refuses
    assert hanging.ask("last") in ("done", "under way")  # it may be the one that waits long
    until(lambda: not flight._calls)
    assert hanging.is_waited_for()


def test_a_store_that_hangs_makes_nobody_impatient_with_the_server() -> None:
    """56: after a failover, what waited for the store must not cost others their pages."""
    server, store = Server(), Slow()
    server.hangs = False
    with ThreadPoolExecutor(1) as pool:
        pool.submit(attempt, server.runtime.single_flight, "refresh", store, URL)
        until(server.runtime.single_flight._waits_long.locked)
        assert server.is_waited_for()
        store.go.set()
    assert server.is_waited_for()


def test_one_call_that_hangs_among_others_that_are_answered_is_no_server_that_hangs() -> None:
    """56: it is a connection that was lost."""
    server = Server()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(server.ask, "lost")
        until(lambda: bool(server.asked))
        server.hangs = False
        assert server.ask("another") == "done"
        until(server.runtime.single_flight._waits_long.locked)
        assert server.is_waited_for()
        server.go.set()


def test_the_exchanges_of_logins_say_nothing_of_the_server() -> None:
    """56, 57: a visitor's invented code may be refused slowly."""
    server = Server()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run_sync, server.call(connections="logins"))
        time.sleep(threads._PATIENCE + 0.1)
        assert server.is_waited_for()
        server.go.set()


def test_who_joins_a_slow_call_waits_for_three_seconds_at_most() -> None:
    """56: as viewers of one snapshot do, whose first one makes the call."""
    flight, slow = SingleFlight(), Slow()

    def ask() -> str:
        try:
            return str(run_sync(flight.do_impatiently("key", slow.work)))
        except UnderWayError:
            return "under way"

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask)
        until(lambda: slow.runs == 1)
        assert [pool.submit(ask).result() for _ in range(2)] == ["under way"] * 2
        slow.go.set()
        assert first.result() == ask() == "done"
    assert slow.runs == 2


def test_so_many_threads_work_apart_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """56: visitors must not fill a process with threads."""
    monkeypatch.setattr(threads, "_MOST_APART", 3)
    flight, slow = SingleFlight(), Slow()
    for key in "abcd":
        flight.start(f"refresh {key}", slow.work)
    until(lambda: slow.runs == 3)
    assert attempt(flight, "refresh e", slow) == "unavailable"
    other = Slow()
    other.go.set()
    assert attempt(flight, "logout e", other) == "done"  # which refreshes that hang do not keep
    slow.go.set()
    run_sync(flight.wait_all())
    until(lambda: attempt(flight, "refresh e", slow) == "done")
    assert slow.runs == 4


def test_work_that_is_apart_waits_for_more_of_it_in_its_own_thread() -> None:
    """56: no server waits for such a thread."""
    flight, slow = SingleFlight(), Slow()

    async def outer() -> str:
        return str(await flight.do_apart("inner", slow.work))

    flight.start("outer", outer)
    until(lambda: slow.runs == 1)
    time.sleep(threads._PATIENCE + 0.1)
    assert not flight._waits_long.locked()
    assert flight._places["outer"]._value == threads._MOST_APART - 1
    assert "inner" not in flight._places
    slow.go.set()
    assert run_sync(flight.do_apart("outer", outer)) == "done"


def test_where_no_thread_can_be_started_the_work_is_done_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """56: a process at its limit of threads still refreshes."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    flight, slow = SingleFlight(), Slow()
    slow.go.set()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert attempt(flight, "key", slow) == "done"
    assert attempt(flight, "key", slow) == "done"
    assert flight._places["key"]._value == threads._MOST_APART
