"""Threads, greenlets and forks: many requests of two users, with an expiry in the middle."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
from pathlib import Path

import pytest

from tests.helpers.browser import ANNA, BOB, CAMERAS, Visitor

from .server_processes import APPS, WSGI, Simulated, Site, environment, needs, needs_server, serve

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(150)]

THREADS = 16
_PATIENT = {  # a client of the machine's own may be slow; its connection is not idle yet
    "gunicorn-gthread": ["--keep-alive", "30"],
    "gunicorn-gevent": ["--keep-alive", "30"],
}


def hammer(site: Site, simulator: Simulated, requests: int) -> set[int]:
    """Ask for both users' cameras in turn; return the processes that answered.

    Halfway every access token expires; each user's is then renewed exactly once.
    """
    with Visitor(site.origin) as anna, Visitor(site.origin) as bob:
        anna.enter("/", ANNA)
        bob.enter("/", BOB)
        users = [(ANNA, anna.cookie_header), (BOB, bob.cookie_header)]
    before = simulator.refreshes
    numbers = itertools.count()
    wrong: list[str] = []
    processes: set[int] = set()

    def ask(connection: http.client.HTTPConnection, path: str, cookie: str) -> tuple[int, bytes]:
        connection.request("GET", path, headers={"Cookie": cookie, "Accept": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def visit() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=60)
        try:
            while (number := next(numbers)) < requests and not wrong:
                if number == requests // 2:
                    simulator.expire()
                email, cookie = users[number % 2]
                status, body = ask(connection, "/cameras", cookie)
                if status != 200 or json.loads(body) != CAMERAS[email]:
                    wrong.append(f"request {number} of {email}: {status} {body[:300]!r}")
                if number % 20 == 0:
                    home = json.loads(ask(connection, "/", cookie)[1])
                    processes.add(home["process"])
                    if home["user"] != email:
                        wrong.append(f"request {number} of {email}: {home}")
        except Exception as error:
            wrong.append(repr(error))
        finally:
            connection.close()

    threads = [threading.Thread(target=visit) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert next(numbers) >= requests
    assert simulator.refreshes == before + len(users)
    return processes


@pytest.mark.parametrize("server", ["gunicorn-gthread", "waitress", "gunicorn-gevent"])
def test_2000_requests_of_16_threads(server: str, simulator: Simulated, tmp_path: Path) -> None:
    needs("flask")
    needs_server(server)
    command = [*WSGI[server][:-1], *_PATIENT.get(server, []), "{app}"]
    app = f"{APPS}flask_app:app"
    with serve(server, command, tmp_path / "log", environment(simulator), app=app) as site:
        assert len(hammer(site, simulator, 2000)) == 1


@pytest.mark.parametrize("server", ["gunicorn-gthread", "gunicorn-sync", "gunicorn-gevent"])
def test_fork_after_use_with_preload(server: str, simulator: Simulated, tmp_path: Path) -> None:
    """The master logs in and asks for cameras before it forks: no worker may go on with that."""
    needs("flask")
    needs_server(server)
    arguments = ["--preload", "--workers", "2", *_PATIENT.get(server, [])]
    command = [*WSGI[server][:-1], *arguments, "{app}"]
    variables = environment(simulator, CM_AUTH_STORE=f"sqlite:///{tmp_path}/sessions.db")
    app = f"{APPS}preloaded:app"
    with serve(server, command, tmp_path / "log", variables, app=app) as site:
        assert "used before the fork" in site.log.read_text()
        processes = hammer(site, simulator, 600)
        while len(processes) < 2:  # a busy machine may start the second worker late; or the timeout
            processes |= hammer(site, simulator, 600)
