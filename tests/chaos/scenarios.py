"""The scenarios: what a deployment goes through, and what must come of it."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .counts import Counts
from .crowd import Ask, Response
from .rig import EVERY_STORE, LIFETIME, STORES, Rig, rig

T = TypeVar("T")

STRICT = {"rotate_refresh_tokens": True, "revoke_family_on_reuse": True}
REQUESTS = 500
_SHORT = 4.0  # seconds of `timeout` where a scenario waits for it; the lease is 5 s longer
_LEASE = _SHORT + 5.0

ENDED = (401, 302)  # asks for a login


# -- the moment of expiry ------------------------------------------------------------------


def expiry(store: str, repeat: int, side: str = "asgi", requests: int = REQUESTS) -> Counts:
    """Many requests at the moment of expiry, at a server that punishes a second refresh."""
    counts = Counts(f"expiry, {side}", store)
    with rig(store, side=side, settings=STRICT) as site:
        cookies = [site.login()]
        for number in rounds(counts, range(repeat)):
            mark = site.cm.mark()
            asks = site.asks(cookies, requests)
            if number % 2:  # while the requests are on their way
                answers = site.crowd.ask(asks, (0.02 * (number % 7), site.expire))
                if not site.cm.refreshes(mark):  # all were served before
                    answers += site.crowd.ask(site.asks(cookies, 40))
            elif number % 4:  # CameraManager alone forgets: all meet a 401
                site.cm.control(expire_access_tokens=True)
                answers = site.crowd.ask(asks)
            else:
                site.expire()
                answers = site.crowd.ask(asks)
            counts.saw(answers, 200)
            counts.called(len(site.cm.refreshes(mark)), 1, 1)
        if side != "asgi":
            pids = {answer.worker for answer in answers}
            counts.check(len(pids) > 1, f"only {len(pids)} worker answered")
        finish(counts, site, cookies)
    return counts


def skew(store: str, repeat: int, ahead: float, lifetime: float = LIFETIME) -> Counts:
    """The clock of one of four processes is wrong."""
    counts = Counts(f"clock {ahead:+.0f} s off, tokens of {lifetime:.0f} s", store)
    settings = {**STRICT, "access_token_lifetime": lifetime}
    with rig(store, skews=(0, ahead), settings=settings) as site:
        cookies = [site.login(), site.login(1, "bob@example.com")]
        for _ in rounds(counts, range(repeat)):
            mark = site.cm.mark()
            site.expire(lifetime)
            asks = site.asks(cookies, 200)
            counts.saw(site.crowd.ask(asks), 200)
            for ask in asks[:24]:  # and one after the other
                counts.saw(site.crowd.ask([ask]), 200)
            # A clock that is off by more than a token lives takes each fresh one for dead: it
            # renews once more what another process just renewed.
            most = 1 if lifetime > 2 * abs(ahead) + 60 else 2
            counts.called(len(site.cm.refreshes(mark)), 2, 2 * most)
        finish(counts, site, cookies)
    return counts


def sharing(store: str, repeat: int, browsers: int) -> Counts:
    """Browsers of one account, which CameraManager gives the same tokens."""
    counts = Counts(f"{browsers} browsers, one account", store)
    with rig(store) as site:
        cookies = [site.login(n % 4) for n in range(browsers)]
        for number in rounds(counts, range(repeat)):
            mark = site.cm.mark()
            if number % 2:  # CameraManager alone forgets: every worker meets a 401
                site.cm.control(expire_access_tokens=True)
            else:
                site.expire()
            asks = site.asks(cookies, 100)
            if number % 4 < 2:
                answers = [site.crowd.ask([ask])[0] for ask in asks]
            else:
                answers = site.crowd.ask(asks)
            counts.saw(answers, 200)
            counts.called(len(site.cm.refreshes(mark)), 1, 1)
        finish(counts, site, cookies)
        out = site.crowd.one(site.ports[0], "/auth/logout", cookies[0], method="POST")
        counts.saw([out], 303)
        page, program = "text/html", "application/json"
        for cookie in cookies:
            for accept, status in ((page, 302), (program, 401)):
                asks = [Ask(port, "/cameras", cookie, accept=accept) for port in site.ports]
                counts.saw(site.crowd.ask(asks), status)
        new = [site.login(n % 4) for n in range(browsers)]
        counts.survived(site.alive(new), len(new))
        counts.check(site.tracebacks() == 0, "an error page")
    return counts


def moving(store: str, repeat: int) -> Counts:
    """Eagle Eye's API v3: accounts move to another host, and everybody notices at once."""
    counts = Counts("API v3, accounts move", store)
    people = ("anna@example.com", "bob@example.com")
    strict = {"revoke_family_on_reuse": True}
    with rig(store, provider="eagleeye", settings=strict) as site:
        cookies = [site.login(number, email) for number, email in enumerate(people)]
        for number in rounds(counts, range(repeat)):
            mark = site.cm.mark()
            for email in people:
                site.cm.control(move_account=email)
            if number % 2:  # the server alone forgets: all meet a 401 of the host before
                site.cm.control(expire_access_tokens=True)
            else:
                site.expire()
            counts.saw(site.crowd.ask(site.asks(cookies, REQUESTS)), 200)
            counts.called(len(site.cm.refreshes(mark)), 2, 2)
        finish(counts, site, cookies)
        for cookie in cookies:
            ask = Ask(site.ports[2], "/auth/logout", cookie, method="POST")
            counts.saw(site.crowd.ask([ask]), 303)
        counts.check(site.cm.living_grants() == 0, "a token lives on at Eagle Eye")
    return counts


# -- processes that die or freeze ----------------------------------------------------------


def killed(store: str, repeat: int, rotate: bool) -> Counts:
    """The refreshing worker is killed when the new tokens are on their way to it."""
    counts = Counts(f"kill -9 in a refresh, {'rotating' if rotate else 'lasting'}", store)
    settings = {"rotate_refresh_tokens": rotate, "revoke_family_on_reuse": rotate}
    with rig(store, timeout=_SHORT, settings=settings) as site:
        for _ in rounds(counts, range(repeat)):
            cookies = [site.login(1)]
            site.expire()
            mark = site.cm.mark()
            site.cm.control(token_latency=1.0)

            def kill() -> None:
                site.cm.wait_for_refresh(mark)  # noqa: B023 - called in this round
                site.workers[0].pause()  # so that it cannot save what now comes
                site.cm.wait_for_refresh(mark, answered=True)  # noqa: B023
                site.workers[0].kill()
                site.cm.control(token_latency=0)

            first = site.asks(cookies, 1)
            counts.saw(site.crowd.ask(first, (0, kill)), 0)
            others = [ask for ask in site.asks(cookies, 40) if ask.port != site.ports[0]]
            # They wait for the dead one's lease to end.
            counts.saw(site.crowd.ask(others), *((401,) if rotate else (200,)))
            site.restart(0)
            if rotate:
                pages = [Ask(port, "/", cookies[0], accept="text/html") for port in site.ports]
                counts.saw(site.crowd.ask(pages), 302)
                cookies = [site.login(0)]  # which works at once
            counts.survived(site.alive(cookies), 1)
            # The first who takes over; with rotation the others find the session gone.
            counts.called(len(site.cm.refreshes(mark)), 2, 2)
        counts.check(site.tracebacks() == 0, "an error page")
    return counts


def frozen(store: str, repeat: int, rotate: bool) -> Counts:
    """The refreshing worker stands still for longer than its lease, and then goes on."""
    counts = Counts(f"frozen past its lease, {'rotating' if rotate else 'lasting'}", store)
    settings = {"rotate_refresh_tokens": rotate, "revoke_family_on_reuse": rotate}
    with rig(store, timeout=_SHORT, settings=settings) as site:
        cookies = [site.login(n) for n in range(2)]
        for _ in rounds(counts, range(repeat)):
            site.expire()
            mark = site.cm.mark()
            site.cm.control(token_latency=0.5)
            late: list[Response] = []

            def freeze() -> None:
                site.cm.wait_for_refresh(mark)  # noqa: B023 - called in this round
                site.workers[0].pause()
                site.cm.wait_for_refresh(mark, answered=True)  # noqa: B023
                site.cm.control(token_latency=0)
                time.sleep(_LEASE + 1)
                site.workers[0].resume()

            asks = site.asks(cookies[:1], 40)
            late = site.crowd.ask(asks[:1], (0, freeze))
            counts.saw(late, 200, 401, 503)
            mixed = site.crowd.ask(site.asks(cookies, 80))
            if rotate:
                counts.saw(mixed, 200, 401)
                cookies = [site.login(n) for n in range(2)]
            else:
                counts.saw(mixed, 200)
            # With rotation each other worker may ask once, and be refused.
            counts.called(len(site.cm.refreshes(mark)), 1, 4 if rotate else 3)
            counts.survived(site.alive(cookies), len(cookies))
            # What came late has confused nobody: the next expiry costs one call again.
            mark = site.cm.mark()
            site.expire()
            counts.saw(site.crowd.ask(site.asks(cookies, 80)), 200)
            counts.called(len(site.cm.refreshes(mark)), 1, 1)
        finish(counts, site, cookies)
    return counts


def overtaken(store: str, repeat: int) -> Counts:
    """The refreshing worker freezes, others take over and finish, and then it goes on."""
    counts = Counts("overtaken while frozen", store)
    with rig(store, timeout=_SHORT) as site:
        cookies = [site.login(n) for n in range(2)]
        for _ in rounds(counts, range(repeat)):
            site.expire()
            mark = site.cm.mark()
            site.cm.control(token_latency=1.0)

            def freeze() -> None:
                site.cm.wait_for_refresh(mark)  # noqa: B023 - called in this round
                site.workers[0].pause()
                site.cm.wait_for_refresh(mark, answered=True)  # noqa: B023
                site.cm.control(token_latency=0)
                others = [Ask(port, "/cameras", cookies[0]) for port in site.ports[1:]]
                counts.saw(site.other_crowd.ask(others), 200)
                site.workers[0].resume()

            # Its own call was cut off, for it took too long; or it came home with the older token.
            counts.saw(site.crowd.ask(site.asks(cookies, 1), (0, freeze)), 200, 503)
            counts.called(len(site.cm.refreshes(mark)), 2, 2)
            # Which must not take the place of the newer one.
            mark = site.cm.mark()
            counts.saw(site.crowd.ask(site.asks(cookies, 80)), 200)
            counts.called(len(site.cm.refreshes(mark)), 0, 0)
        finish(counts, site, cookies)
    return counts


def stopped(store: str, repeat: int, side: str) -> Counts:
    """A deployment ends the refreshing worker in order: it brings the refresh home first."""
    counts = Counts(f"SIGTERM in a refresh, {side}", store)
    with rig(store, side=side, settings=STRICT) as site:
        cookies = [site.login(len(site.ports) - 1)]
        for _ in rounds(counts, range(repeat)):
            site.expire()
            mark = site.cm.mark()
            site.cm.control(token_latency=1.0)

            def stop() -> None:
                site.cm.wait_for_refresh(mark)  # noqa: B023 - called in this round
                site.workers[0].stop()

            counts.saw(site.crowd.ask(site.asks(cookies, 1), (0, stop)), 200, 0)
            site.cm.control(token_latency=0)
            site.restart(0)
            counts.saw(site.crowd.ask(site.asks(cookies, 40)), 200)
            counts.called(len(site.cm.refreshes(mark)), 1, 1)
        finish(counts, site, cookies)
    return counts


def restarted(store: str, repeat: int) -> Counts:
    """Every process is killed, the store's too, and started again."""
    counts = Counts("everything killed and restarted", store)
    with rig(store, settings=STRICT) as site:
        cookies = [site.login(), site.login(1, "bob@example.com")]
        for number in rounds(counts, range(repeat)):
            mark = site.cm.mark()
            expired = number % 2
            if expired:
                site.expire()
            site.crowd.ask(
                site.asks(cookies, 60 if expired else 0),
                (0.5 if expired else 0.0, lambda: [worker.kill() for worker in site.workers]),
            )
            if site.server is not None:
                site.server.stop()
                site.server.start()
            for worker in range(len(site.workers)):
                site.restart(worker)
            counts.saw(site.crowd.ask(site.asks(cookies, 40)), 200)
            counts.token_calls += len(site.cm.refreshes(mark))
        finish(counts, site, cookies)
    return counts


def hung_up(store: str, repeat: int) -> Counts:
    """The browsers leave in the middle of the refresh that they caused."""
    counts = Counts("browsers leave in a refresh", store)
    with rig(store, settings=STRICT) as site:
        cookies = [site.login()]
        for _ in rounds(counts, range(repeat)):
            site.expire()
            mark = site.cm.mark()
            site.cm.control(token_latency=0.5)
            site.crowd.send_and_leave(site.asks(cookies, 20), 0.2)
            site.cm.wait_for_refresh(mark)
            counts.saw(site.crowd.ask(site.asks(cookies, 40)), 200)
            site.cm.control(token_latency=0)
            counts.called(len(site.cm.refreshes(mark)), 1, 1)
        finish(counts, site, cookies)
    return counts


# -- a slow CameraManager ------------------------------------------------------------------


def slow_refresh(store: str, repeat: int) -> Counts:
    """The token endpoint takes longer than a lease lasts: the lease is renewed meanwhile."""
    counts = Counts("token endpoint slower than a lease", store)
    with rig(store, lease_margin=-9.0, settings=STRICT) as site:  # a lease of 1 s
        cookies = [site.login()]
        site.cm.control(token_latency=4.0)
        for _ in rounds(counts, range(repeat)):
            site.expire()
            mark = site.cm.mark()
            counts.saw(site.crowd.ask(site.asks(cookies, 40)), 200)
            counts.called(len(site.cm.refreshes(mark)), 1, 1)
        site.cm.control(token_latency=0.0)
        finish(counts, site, cookies)
    return counts


def too_slow(store: str, repeat: int) -> Counts:
    """The token endpoint takes longer than `timeout`: 503, and nobody is logged out."""
    counts = Counts("token endpoint slower than timeout", store)
    with rig(store, timeout=_SHORT) as site:
        cookies = [site.login()]
        for _ in rounds(counts, range(repeat)):
            site.expire()
            mark = site.cm.mark()
            site.cm.control(token_latency=30.0)
            answers = site.crowd.ask(site.asks(cookies, 40))
            counts.saw(answers, 503)
            counts.check(all(int(a.headers["retry-after"]) >= 1 for a in answers), "Retry-After")
            slowest = max(answer.seconds for answer in answers)
            counts.check(slowest < 15, f"an answer took {slowest:.1f} s")
            counts.called(len(site.cm.refreshes(mark)), 1, 4)
            site.cm.control(token_latency=0.0)
            recover(counts, site, cookies)
        finish(counts, site, cookies)
    return counts


# -- logouts -------------------------------------------------------------------------------


def logout_in_refresh(store: str, repeat: int, rotate: bool, everywhere: bool = False) -> Counts:
    """A logout at one process while another refreshes: out it stays, and the tokens are revoked."""
    kind = "logout_user" if everywhere else "logout"
    counts = Counts(f"{kind} in a refresh, {'rotating' if rotate else 'lasting'}", store)
    settings = {"rotate_refresh_tokens": rotate, "revoke_family_on_reuse": rotate}
    with rig(store, settings=settings) as site:
        for _ in rounds(counts, range(repeat)):
            cookie = site.login(0)
            site.expire()
            mark = site.cm.mark()
            site.cm.control(token_latency=0.8)

            def log_out() -> None:
                site.cm.wait_for_refresh(mark)  # noqa: B023 - called in this round
                path = "/admin/logout/10003" if everywhere else "/auth/logout"
                ask = Ask(site.ports[1], path, cookie, method="POST")  # noqa: B023
                answer = site.other_crowd.ask([ask])
                counts.saw(answer, 200 if everywhere else 303)

            counts.saw(site.crowd.ask(site.asks([cookie], 1), (0, log_out)), 401)
            site.cm.control(token_latency=0.0)
            everybody = [Ask(port, "/cameras", cookie) for port in site.ports]
            counts.saw(site.crowd.ask(everybody), 401)
            counts.check(site.cm.living_grants() == 0, "a token lives on at CameraManager")
            counts.token_calls += len(site.cm.refreshes(mark))
        counts.check(site.tracebacks() == 0, "an error page")
    return counts


def logout_everywhere(store: str, repeat: int, side: str) -> Counts:
    """An administrator lists a user's sessions and ends them; another user notices nothing."""
    counts = Counts(f"logout_user, {side}", store)
    with rig(store, side=side) as site:
        other = site.login(0, "bob@example.com")
        for _ in rounds(counts, range(repeat)):
            cookies = [site.login(n % len(site.ports)) for n in range(6)]
            listed = site.crowd.one(site.ports[0], "/admin/sessions/10003").json()
            counts.check(len(listed) == 6, f"{len(listed)} sessions listed, not 6")
            counts.check(all(address == "127.0.0.1" for _, address in listed), "addresses")
            ended = site.crowd.one(site.ports[-1], "/admin/logout/10003", method="POST").json()
            counts.check(ended == 6, f"{ended} sessions ended, not 6")
            for cookie in cookies:
                counts.saw(site.crowd.ask([Ask(p, "/", cookie) for p in site.ports]), 401)
        finish(counts, site, [other])
    return counts


# -- outages -------------------------------------------------------------------------------


def store_frozen(store: str, repeat: int, seconds: float) -> Counts:
    """The server of the store stands still in the middle of a refresh."""
    counts = Counts(f"store frozen for {seconds:.0f} s", store)
    with rig(store, settings=STRICT) as site:
        server = site.server
        assert server is not None
        cookies = [site.login(), site.login(1, "bob@example.com")]
        patient = seconds < 5  # the clients wait that long
        for _ in rounds(counts, range(repeat)):
            site.expire()
            mark = site.cm.mark()
            site.cm.control(token_latency=0.5)

            def freeze() -> None:
                site.cm.wait_for_refresh(mark)  # noqa: B023 - called in this round
                server.pause()
                time.sleep(seconds)
                server.resume()

            answers = site.crowd.ask(site.asks(cookies, 200), (0, freeze))
            site.cm.control(token_latency=0.0)
            counts.saw(answers, *((200,) if patient else (200, 503)))
            counts.recovered_in(recover(counts, site, cookies))
            counts.called(len(site.cm.refreshes(mark)), 2, 2)
        finish(counts, site, cookies)
    return counts


def store_down(store: str, repeat: int) -> Counts:
    """The server of the store is killed, in the middle of a refresh too, and comes back."""
    counts = Counts("store down and up", store)
    with rig(store, settings=STRICT) as site:
        server = site.server
        assert server is not None
        cookies = [site.login(), site.login(1, "bob@example.com")]
        for number in rounds(counts, range(repeat)):
            mark = site.cm.mark()
            in_refresh = number % 2
            if in_refresh:
                site.expire()
                site.cm.control(token_latency=0.5)

                def kill() -> None:
                    site.cm.wait_for_refresh(mark)  # noqa: B023 - called in this round
                    server.stop()
                    time.sleep(1.5)
                    server.start()

                counts.saw(site.crowd.ask(site.asks(cookies, 60), (0, kill)), 200, 503)
                site.cm.control(token_latency=0.0)
            else:
                server.stop()
                down(counts, site, cookies)
                server.start()
            counts.recovered_in(recover(counts, site, cookies))
            counts.called(len(site.cm.refreshes(mark)), 2 * in_refresh, 2 * in_refresh)
        finish(counts, site, cookies)
    return counts


def store_locked(store: str, repeat: int) -> Counts:
    """Another process holds the lock of the SQLite file at the moment of expiry."""
    counts = Counts("sqlite locked", store)
    with rig(store, settings=STRICT) as site:
        cookies = [site.login(), site.login(1, "bob@example.com")]
        for _ in rounds(counts, range(repeat)):
            mark = site.cm.mark()
            other = sqlite3.connect(site.file, isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            # Reading goes on while the tokens live.
            counts.saw(site.crowd.ask(site.asks(cookies, 40)), 200)
            site.expire()
            down(counts, site, cookies)
            other.execute("ROLLBACK")
            other.close()
            counts.recovered_in(recover(counts, site, cookies))
            counts.called(len(site.cm.refreshes(mark)), 2, 2)
        finish(counts, site, cookies)
    return counts


def disk_full(store: str, repeat: int) -> Counts:
    """The disk of the SQLite file is full, at the moment of expiry and in a refresh."""
    counts = Counts("disk full", store)
    with small_disk() as disk, rig(store, file=disk / "sessions.db", settings=STRICT) as site:
        cookies = [site.login(), site.login(1, "bob@example.com")]
        for number in rounds(counts, range(repeat)):
            mark = site.cm.mark()
            if number % 2:
                fill(disk, site)
                counts.saw(site.crowd.ask(site.asks(cookies, 40)), 200)
                site.expire()
                down(counts, site, cookies)
                (disk / "ballast").unlink()
            else:
                site.expire()
                site.cm.control(token_latency=0.5)

                def fill_meanwhile() -> None:
                    site.cm.wait_for_refresh(mark)  # noqa: B023 - called in this round
                    fill(disk, site)
                    time.sleep(2)
                    (disk / "ballast").unlink()

                counts.saw(site.crowd.ask(site.asks(cookies, 60), (0, fill_meanwhile)), 200, 503)
                site.cm.control(token_latency=0.0)
            counts.recovered_in(recover(counts, site, cookies))
            counts.called(len(site.cm.refreshes(mark)), 2, 2)
        finish(counts, site, cookies)
    return counts


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    """A file system of a megabyte."""
    with tempfile.TemporaryDirectory(prefix="disk") as directory:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", directory]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            raise NotPlayedError("mounting a small disk needs root")
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True)


def fill(disk: Path, site: Rig) -> None:
    """Leave not a byte, neither on the disk nor in the part of the journal that is written anew."""
    with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    reader = sqlite3.connect(site.file)
    reader.execute("BEGIN")
    reader.execute(
        "SELECT count(*) FROM records"
    ).fetchone()  # keeps the journal from starting over
    reader.close()


# Every way in which the token endpoint can fail, and answers that are not what they should be.
FAILURES: list[Any] = [
    *(500, 502, 503, 429, 404),
    *("html", "xml", "truncated", "drop", "lost", "hang"),
    *({"error": "invalid_client"}, {"error": "unauthorized"}, {"error": "who knows"}),
    *([200, []], [200, "text"], [200, None], [200, {}], [200, {"access_token": None}]),
    [200, {"access_token": 5, "expires_in": 60}],
    [200, {"access_token": "", "refresh_token": "", "expires_in": 60}],
    [200, {"access_token": "x", "token_type": "mac", "expires_in": 60}],
    [204, None],
    [302, {"access_token": "x"}],
]
# Answers that are odd, but tokens; these are not CameraManager's, which a 401 shows at once.
ODD: list[Any] = [
    {"access_token": "x:1"},
    {"access_token": "x:2", "expires_in": "43199", "refresh_token": ""},
    {"access_token": "x:3", "expires_in": "soon", "refresh_token": None},
    {"access_token": "x:4", "expires_in": -1, "refresh_token": 5},
    {"access_token": "x:5", "expires_in": 1e12, "token_type": "BEARER"},
]


def camera_manager_fails(store: str, repeat: int) -> Counts:
    """Each failure of the token endpoint: served while the token lives, then 503, then all well."""
    counts = Counts("each failure of the token endpoint", store)
    with rig(store, timeout=_SHORT) as site:
        cookies = [site.login()]
        page = [Ask(site.ports[0], "/cameras", cookies[0], accept="text/html")]
        for what in rounds(counts, FAILURES * repeat):
            command = {"what": what, "times": 1000}
            site.clock.move(LIFETIME - 30)  # inside the leeway the old token serves
            site.cm.control(fail_token=command)
            # Unless CameraManager did renew it, and only its answer was lost.
            also = (503,) if what == "lost" else ()
            counts.saw(site.crowd.ask(site.asks(cookies, 8)), 200, *also)
            site.expire()
            mark = site.cm.mark()
            answers = site.crowd.ask(site.asks(cookies, 12) + page)
            for _ in range(10):
                answers += site.crowd.ask(site.asks(cookies, 8))
            counts.saw(answers, 503)
            counts.check(all(int(a.headers["retry-after"]) >= 1 for a in answers), "Retry-After")
            counts.saw(site.crowd.ask([Ask(port, "/health") for port in site.ports]), 200)
            calls = len(site.cm.refreshes(mark))
            counts.check(calls <= 12, f"{what}: {calls} token calls for {len(answers)} requests")
            counts.token_calls += calls
            site.cm.control(forget_failures=True)
            recover(counts, site, cookies)
        for odd in rounds(counts, ODD * repeat):
            site.cm.control(fail_token=[200, odd])
            site.expire()
            counts.saw(site.crowd.ask(site.asks(cookies, 12)), 200)
        finish(counts, site, cookies)
    return counts


def storm(store: str, repeat: int) -> Counts:
    """CameraManager is down for three seconds, and everybody keeps asking."""
    counts = Counts("no storm at a CameraManager that is down", store)
    with rig(store, timeout=_SHORT) as site:
        cookies = [site.login(), site.login(1, "bob@example.com")]
        for what in rounds(counts, [503, "hang"] * repeat):
            site.expire()
            mark = site.cm.mark()
            site.cm.control(fail_token={"what": what, "times": 10_000})
            began = time.monotonic()
            while time.monotonic() < began + 3:
                counts.saw(site.crowd.ask(site.asks(cookies, 40)), 503)
            seconds = time.monotonic() - began
            calls = len(site.cm.refreshes(mark))
            # Four processes, each of which tries again once a second at most.
            counts.called(calls, 1, round(4 * (2 + seconds)))
            site.cm.control(forget_failures=True)
            recover(counts, site, cookies)
        finish(counts, site, cookies)
    return counts


class NotPlayedError(Exception):
    """The scenario needs what this machine does not have."""


def down(counts: Counts, site: Rig, cookies: list[str]) -> None:
    """What everybody must see while the store is down."""
    page = site.asks(cookies, 12)
    answers = site.crowd.ask(
        [Ask(a.port, a.path, a.cookie, accept="text/html") for a in page] + page
    )
    counts.saw(answers, 503)
    counts.check(all(int(a.headers["retry-after"]) >= 1 for a in answers), "no Retry-After")
    kinds = {answer.headers["content-type"].partition(";")[0] for answer in answers}
    counts.check(kinds == {"text/html", "application/problem+json"}, f"answered as {kinds}")
    counts.check(all("set-cookie" not in a.headers for a in answers), "a cookie was touched")
    counts.saw(site.crowd.ask([Ask(port, "/health", cookies[0]) for port in site.ports]), 200)


def recover(counts: Counts, site: Rig, cookies: list[str]) -> float:
    """Within a few seconds all is well, without anybody's doing; return how many it took."""
    began = time.monotonic()
    deadline = began + 30
    while True:
        asked = time.monotonic()
        answers = site.crowd.ask(site.asks(cookies, 8 * len(cookies)))
        if {answer.status for answer in answers} == {200} or time.monotonic() > deadline:
            break
        counts.saw(answers, 200, 503)
        time.sleep(0.2)
    counts.saw(answers, 200, 503)
    took = asked - began
    found = {answer.status for answer in answers}
    counts.check_time(503 not in found, f"503 still after {took:.0f} s")
    return took


def rounds(counts: Counts, each: Iterable[T]) -> Iterator[T]:
    """Give each item to a round, and count the round when it is over."""
    for item in each:
        yield item
        counts.rounds += 1


def finish(counts: Counts, site: Rig, cookies: list[str]) -> None:
    counts.survived(site.alive(cookies), len(cookies))
    counts.check(site.tracebacks() == 0, "an error page")
    if counts.wrong:
        counts.complaints = site.complaints()


class Scenario(NamedTuple):
    """A scenario and its options.

    Attributes:
        rounds: how often it is played where nobody says otherwise.
    """

    play: Callable[[str, int], Counts]
    rounds: int = 1
    stores: tuple[str, ...] = STORES


_SQLITE, _SERVERS = ("sqlite",), ("redis", "postgres")

SCENARIOS = {
    "expiry": Scenario(expiry, 3, EVERY_STORE),
    "expiry-workers": Scenario(partial(expiry, side="uvicorn --workers"), 2),
    "expiry-wsgi": Scenario(partial(expiry, side="wsgi", requests=60), 3, EVERY_STORE),
    "clock-ahead": Scenario(partial(skew, ahead=90), 2),
    "clock-behind": Scenario(partial(skew, ahead=-90), 2),
    "clock-ahead-short": Scenario(partial(skew, ahead=90, lifetime=40), 2),
    "clock-behind-short": Scenario(partial(skew, ahead=-90, lifetime=40), 2),
    "sharing-2": Scenario(partial(sharing, browsers=2), 4, EVERY_STORE),
    "sharing-10": Scenario(partial(sharing, browsers=10), 4),
    "moving": Scenario(moving, 4, EVERY_STORE),
    "killed-lasting": Scenario(partial(killed, rotate=False)),
    "killed-rotating": Scenario(partial(killed, rotate=True), 1, EVERY_STORE),
    "frozen-lasting": Scenario(partial(frozen, rotate=False)),
    "frozen-rotating": Scenario(partial(frozen, rotate=True), 1, EVERY_STORE),
    "overtaken": Scenario(overtaken, 1, EVERY_STORE),
    "stopped": Scenario(partial(stopped, side="asgi"), 2, EVERY_STORE),
    "stopped-wsgi": Scenario(partial(stopped, side="wsgi"), 2),
    "restarted": Scenario(restarted, 2, EVERY_STORE),
    "hung-up": Scenario(hung_up, 2),
    "slow-refresh": Scenario(slow_refresh, 1, EVERY_STORE),
    "too-slow": Scenario(too_slow),
    "logout-lasting": Scenario(partial(logout_in_refresh, rotate=False), 2),
    "logout-rotating": Scenario(partial(logout_in_refresh, rotate=True), 2, EVERY_STORE),
    "logout-user-in-refresh": Scenario(partial(logout_in_refresh, rotate=False, everywhere=True)),
    "logout-user": Scenario(partial(logout_everywhere, side="asgi"), 1, EVERY_STORE),
    "logout-user-wsgi": Scenario(partial(logout_everywhere, side="wsgi")),
    "camera-manager-fails": Scenario(camera_manager_fails, 1, _SQLITE),
    "storm": Scenario(storm, 1, EVERY_STORE),
    "store-frozen": Scenario(partial(store_frozen, seconds=3), 1, _SERVERS),
    "store-frozen-long": Scenario(partial(store_frozen, seconds=8), 1, _SERVERS),
    "store-down": Scenario(store_down, 2, _SERVERS),
    "sqlite-locked": Scenario(store_locked, 1, _SQLITE),
    "disk-full": Scenario(disk_full, 2, _SQLITE),
}
