"""R62: with gunicorn --preload, gevent patches a process that has imported and used everything."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from tests.helpers.browser import ANNA, BOB, CAMERAS, Visitor
from tests.helpers.servers import Forwarder, redis_server

from .server_processes import APPS, WSGI, Simulated, Site, environment, needs, serve

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(150)]

COMMAND = [*WSGI["gunicorn-gevent"][:-1], "--preload", "--keep-alive", "30", "{app}"]
DELAY = 0.2  # seconds that each answer of Redis takes, when it is slow


class Preloaded:
    """A site with one worker and one connection to Redis, and two users of it."""

    def __init__(self, site: Site, redis: Forwarder, anna: Visitor, bob: Visitor) -> None:
        self.site, self.redis, self.users = site, redis, {ANNA: anna, BOB: bob}

    def together(self, path: str) -> tuple[float, dict[str, httpx2.Response]]:
        """Let both users ask at once; return the seconds that it took, and the responses."""
        responses: dict[str, httpx2.Response] = {}

        def ask(email: str) -> None:
            responses[email] = self.users[email].fetch(path)

        return took([lambda: ask(ANNA), lambda: ask(BOB)]), responses


def took(calls: list[Callable[[], None]]) -> float:
    """Make calls at once; return the seconds until all have ended."""
    threads = [threading.Thread(target=call) for call in calls]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - started


@pytest.fixture
def preloaded(simulator: Simulated, tmp_path: Path) -> Iterator[Preloaded]:
    needs("flask", "gunicorn", "gevent", "redis")
    with redis_server() as server, Forwarder(server.port) as redis:
        store = f"{redis.url}?max_connections=1"
        variables = environment(simulator, CM_AUTH_STORE=store)
        log, app = tmp_path / "log", f"{APPS}preloaded:app"
        with (
            serve("gunicorn-gevent", COMMAND, log, variables, app=app) as site,
            Visitor(site.origin) as anna,
            Visitor(site.origin) as bob,
        ):
            assert "used before the fork" in log.read_text()
            anna.enter("/", ANNA)
            bob.enter("/", BOB)
            yield Preloaded(site, redis, anna, bob)


def test_two_slow_requests_overlap(preloaded: Preloaded, simulator: Simulated) -> None:
    """R62: each waits for CameraManager for a second."""
    simulator.control(latency=1.0)
    seconds, responses = preloaded.together("/cameras")
    assert {email: answer.json() for email, answer in responses.items()} == {
        email: CAMERAS[email] for email in (ANNA, BOB)
    }
    assert seconds < 1.8


def test_who_waits_for_a_connection_to_redis_stops_nobody(preloaded: Preloaded) -> None:
    """R62: there is one, so a request waits for the other's answer, which has to come meanwhile."""

    def late(data: bytes) -> bytes:
        time.sleep(DELAY)
        return data

    preloaded.redis.answered = late
    health: list[float] = []

    def look() -> None:
        time.sleep(DELAY / 2)
        started = time.monotonic()
        assert httpx2.get(f"{preloaded.site.origin}/health", timeout=30).text == "nobody"
        health.append(time.monotonic() - started)

    looking = threading.Thread(target=look)
    looking.start()
    seconds, responses = preloaded.together("/")
    looking.join()
    assert [answer.status_code for answer in responses.values()] == [200, 200]
    assert seconds < 4
    assert len(health) == 1
    assert health[0] < 1


def test_refreshes_of_two_users_overlap_again_and_again(
    preloaded: Preloaded, simulator: Simulated
) -> None:
    """R62: each has a thread of its own, which to gevent is a greenlet; none ends in an error."""
    simulator.control(token_latency=0.5)
    for number in range(1, 4):
        simulator.expire()
        seconds, responses = preloaded.together("/cameras")
        assert [answer.status_code for answer in responses.values()] == [200, 200]
        assert simulator.refreshes == 2 * number
        assert seconds < 3
