"""A million sessions for twenty minutes: `python -m tests.chaos soak`, or `pytest -m soak`.

Sessions expire, are logged out and made anew, and primaries fail, while browsers ask at a steady
rate. At the end memory and connections must be flat, Redis' too, no session lost, and none open
that was logged out. The environment says how
large it is: CM_AUTH_SOAK_SESSIONS (1 000 000), CM_AUTH_SOAK_MINUTES (20), CM_AUTH_SOAK_PROCESSES
(8), and CM_AUTH_SOAK_RATE (60 requests a second).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from redis import Redis

from cm_auth_middleware import AuthEngine
from cm_auth_middleware.sessions.cookie import Ticket, TicketSigner
from cm_auth_middleware.sessions.record import Record, Tokens
from cm_auth_middleware.stores import RedisStore
from cm_auth_middleware.stores.redis_script import Command
from tests.helpers.fleets import SentinelGroup, sentinel_group
from tests.helpers.world import SECRET_KEY

from .crowd import Ask, Response
from .many_grants import MOST, access_token, refresh_token, user
from .rig import ROOT, Rig
from .scenarios import ENDED

LIFETIME = 600.0  # seconds that an access token lives
_LEEWAY = 60.0  # seconds before that a refresh is due
_AT_ONCE = 1_000  # commands that a loader sends at a time
_LOADERS = 2
_LOGOUTS = 0.01  # of the requests
_AGAIN = 0.01  # of the requests: with the cookie of a session that was logged out
_SERVED = 0.95  # of the answers, at least, are those of a store that works
_FAILOVER_EVERY = 240.0  # seconds
_MORE_MEMORY = 1.15  # the last third of the time over the second third
_MORE_CONNECTIONS = 1.3
_POOL = 16  # connections to the store that a process may have: failovers fill the pools
_OUT = "/"  # the path at which only sessions that were logged out ask


@dataclass(frozen=True)
class Size:
    """How large a soak is; `minutes` is how long it lasts, `rate` requests a second."""

    sessions: int
    minutes: float
    processes: int
    rate: float

    @classmethod
    def from_env(cls) -> Size:
        def number(name: str, default: float) -> float:
            return float(os.environ.get(f"CM_AUTH_SOAK_{name}", default))

        sessions, processes = int(number("SESSIONS", 1_000_000)), int(number("PROCESSES", 8))
        return cls(sessions, number("MINUTES", 20), processes, number("RATE", 60))


@dataclass(frozen=True)
class Sample:
    """What the processes use at a moment, and Redis: mebibytes and connections of all.

    What Redis uses is 0 in a failover, when nobody can tell.
    """

    memory: float
    connections: int
    redis_memory: float
    redis_clients: int


@dataclass
class Outcome:
    """What came of a soak.

    Attributes:
        answers: how often each status came.
        out_answers: likewise, for sessions that were asked for after their logout.
        returned: those of them that worked.
    """

    size: Size
    bytes_per_session: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)
    out_answers: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    lost: int = 0
    refreshes: int = 0
    reused: int = 0
    logouts: int = 0
    failovers: int = 0

    @property
    def returned(self) -> int:
        return self.out_answers[200]

    @property
    def served(self) -> float:
        """The share of the answers that a store that works gives."""
        return (self.answers[200] + self.answers[303]) / max(1, self.answers.total())

    @property
    def wrong(self) -> list[str]:
        """A sentence for each thing that is not as it has to be."""
        pools = _POOL * self.size.processes
        memory = self._growth(lambda sample: sample.memory)
        connections = self._growth(lambda sample: max(sample.connections, pools))
        redis_memory = self._growth(lambda sample: sample.redis_memory)
        redis_clients = self._growth(lambda s: s.redis_clients and max(s.redis_clients, pools))
        others = {*self.answers, *self.out_answers} - {200, 303, 401, 503}
        found = {
            f"{self.lost} sessions lost": self.lost,
            f"only {self.failovers} failovers": self.failovers < 2,
            f"{self.reused} refresh tokens used twice": self.reused,
            f"{self.returned} sessions worked after their logout": self.returned,
            "no session was refused after its logout": not self.out_answers[401],
            "no session was refreshed": not self.refreshes,
            "no session was logged out": not self.logouts,
            f"only {self.served:.1%} of the answers are 200 or 303": self.served < _SERVED,
            f"answers besides 200, 303, 401 and 503: {others}": others,
            f"memory grew by {memory:.2f}": memory > _MORE_MEMORY,
            f"connections grew by {connections:.2f}": connections > _MORE_CONNECTIONS,
            f"Redis' memory grew by {redis_memory:.2f}": redis_memory > _MORE_MEMORY,
            f"Redis' clients grew by {redis_clients:.2f}": redis_clients > _MORE_CONNECTIONS,
        }
        return [sentence for sentence, is_so in found.items() if is_so]

    def _growth(self, value: Callable[[Sample], float]) -> float:
        """Return the mean of the last third over that of the second, of what was measured."""
        third = len(self.samples) // 3
        second = [found for found in map(value, self.samples[third : 2 * third]) if found]
        last = [found for found in map(value, self.samples[-third:]) if found]
        return fmean(last) / fmean(second) if second and last else math.inf

    def __str__(self) -> str:
        size = self.size
        return "\n".join(
            [
                f"{size.sessions} sessions, {size.minutes:g} minutes, {size.processes} processes, "
                f"{size.rate:g} requests/s",
                f"{_listed(self.answers)}  slowest {self.slowest:.1f} s  "
                f"refreshes {self.refreshes}  logouts {self.logouts}  "
                f"failovers {self.failovers}  lost {self.lost}  "
                f"{self.bytes_per_session:.0f} bytes of Redis a session",
                f"asked for after their logout: {_listed(self.out_answers)}",
                *(f"WRONG {sentence}" for sentence in self.wrong),
            ]
        )


def _listed(answers: Counter[int]) -> str:
    return " ".join(f"{n}x{status}" for status, n in sorted(answers.items()))


def ticket(number: int) -> Ticket:
    """The ticket of a session: a browser need not be asked for its cookie."""
    drawn = hashlib.sha512(b"%d" % number).digest()
    return Ticket(drawn[:32], drawn[32:])


async def write(engine: AuthEngine, number: int) -> None:
    """Store a session whose access token is somewhere in its life, as those of a site are."""
    now = time.time()
    expires_at = now + random.uniform(-1, 1) * LIFETIME
    tokens = Tokens(
        access_token(number, 0, expires_at),
        refresh_token(number, 0),
        expires_at,
        expires_at - _LEEWAY,
        "write",
    )
    record = Record(tokens, json.dumps(user(number)), now, now, user_read_at=now)
    await engine.async_services.sessions.create(ticket(number), record)


class Loader(RedisStore):
    """Writes what the store writes, many commands at a time: a million sessions take minutes."""

    def __init__(self, port: int) -> None:
        super().__init__(f"redis://127.0.0.1:{port}")
        self._has_old = False
        self._begun.append(True)
        self._pipeline = Redis(port=port).pipeline(transaction=False)

    async def _all(self, *commands: Command, beside: Sequence[Command] = ()) -> list[Any]:
        commands += tuple(beside)
        for command in commands:
            is_script = bool(command.source)
            words = ("EVAL", command.source, *command.words[2:]) if is_script else command.words
            self._pipeline.execute_command(*words)
        if len(self._pipeline) >= _AT_ONCE:
            self._pipeline.execute()
        return [None] * len(commands)

    async def close(self) -> None:
        self._pipeline.execute()


async def write_all(options: dict[str, Any], port: int, numbers: range) -> None:
    store = Loader(port)
    engine = AuthEngine(**{**options, "store": store})
    for number in numbers:
        await write(engine, number)
    await engine.close()
    await store.close()


class Browsers:
    """Somebody with each session, who asks at random, and sometimes logs out, and asks again."""

    def __init__(self, rig: Rig, outcome: Outcome) -> None:
        self._rig = rig
        self._outcome = outcome
        self._signer = TicketSigner([SECRET_KEY])
        self._next = outcome.size.sessions
        self._numbers = list(range(self._next))
        self._asked: dict[str, int] = {}
        self._out: set[int] = set()
        self._ended: list[str] = []  # cookies, from when their logout was answered
        self.to_write: list[int] = []

    def asks(self) -> Iterator[Ask]:
        while True:
            if self._ended and random.random() < _AGAIN:
                yield Ask(random.choice(self._rig.ports), _OUT, random.choice(self._ended))
            at = random.randrange(len(self._numbers))
            number, port = self._numbers[at], random.choice(self._rig.ports)
            cookie = self._signer.dump(ticket(number))
            self._asked[cookie] = number
            if random.random() < _LOGOUTS:
                # Its place is taken by a session that is made anew, when that has been written.
                self._numbers[at] = self._numbers[-1]
                self._numbers.pop()
                self.to_write.append(self._next)
                self._next += 1
                yield Ask(port, "/auth/logout", cookie, method="POST")
            else:
                yield Ask(port, "/cameras", cookie)

    def note(self, ask: Ask, answer: Response) -> None:
        outcome, number = self._outcome, self._asked[ask.cookie]
        outcome.slowest = max(outcome.slowest, answer.seconds)
        if ask.path == _OUT:
            outcome.out_answers[answer.status] += 1
            return
        outcome.answers[answer.status] += 1
        if ask.method == "POST":
            self._out.add(number)
            if answer.status == 303:
                outcome.logouts += 1
                self._ended.append(ask.cookie)
        elif answer.status in ENDED:
            outcome.lost += number not in self._out

    def written(self, number: int) -> None:
        self._numbers.append(number)


def play(size: Size, say: Callable[[str], object] = print) -> Outcome:
    """Load the sessions, keep asking for so many minutes, and say each minute how it goes."""
    assert size.sessions < MOST * 0.9, "the OAuth server has no more grants"
    outcome = Outcome(size)
    with contextlib.ExitStack() as stack:
        fleet = stack.enter_context(sentinel_group())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak")))
        rig = Rig(
            directory,
            side="both",
            workers=size.processes,
            camera_manager="many_grants",
            settings={"access_token_lifetime": LIFETIME},
            store=fleet.url,
        )
        stack.callback(rig.close)
        before = _redis_memory(fleet)
        began = time.monotonic()
        _load(rig.options, fleet.primary().port, size.sessions)
        outcome.bytes_per_session = (_redis_memory(fleet) - before) * 2**20 / size.sessions
        say(f"loaded {size.sessions} sessions in {time.monotonic() - began:.0f} s")
        _ask(rig, fleet, outcome, say)
        outcome.refreshes = rig.cm.control()["refreshes"]
        outcome.reused = rig.cm.control()["reused"]
    return outcome


def _load(options: dict[str, Any], port: int, sessions: int) -> None:
    share = -(-sessions // _LOADERS)
    command = [sys.executable, "-m", "tests.chaos.soak"]
    environment = {**os.environ, "SOAK": json.dumps(options)}
    loaders = []
    for first in range(0, sessions, share):
        part = [str(port), str(first), str(min(share, sessions - first))]
        loaders.append(subprocess.Popen([*command, *part], cwd=ROOT, env=environment))
    statuses = [loader.wait() for loader in loaders]
    assert not any(statuses), "the sessions could not be written"


def _ask(rig: Rig, fleet: SentinelGroup, outcome: Outcome, say: Callable[[str], object]) -> None:
    browsers = Browsers(rig, outcome)
    seconds = outcome.size.minutes * 60
    is_over = threading.Event()
    helpers = [
        threading.Thread(target=_sample_each_minute, args=(rig, fleet, outcome, is_over, say)),
        threading.Thread(target=_fail_over, args=(fleet, outcome, is_over)),
        threading.Thread(target=_write_anew, args=(rig, browsers, is_over)),
    ]
    for helper in helpers:
        helper.start()
    try:
        rig.crowd.pour(browsers.asks(), outcome.size.rate, seconds, browsers.note)
    finally:
        is_over.set()
        for helper in helpers:
            helper.join()


def _sample_each_minute(
    rig: Rig,
    fleet: SentinelGroup,
    outcome: Outcome,
    is_over: threading.Event,
    say: Callable[[str], object],
) -> None:
    # Short soaks are sampled more often, so that a third is more than a sample.
    every = min(60.0, outcome.size.minutes * 60 / 9)
    say("minute  MiB  connections  MiB of Redis  its clients  answers  lost")
    began = time.monotonic()
    while not is_over.wait(every):
        sample = Sample(
            _memory(rig),
            _connections(rig),
            _redis_memory(fleet),
            _redis_clients(fleet),
        )
        outcome.samples.append(sample)
        say(
            f"{(time.monotonic() - began) / 60:6.1f} {sample.memory:4.0f} {sample.connections:12} "
            f"{sample.redis_memory:13.0f} {sample.redis_clients:12}  "
            f"{_listed(outcome.answers)}  {outcome.lost}"
        )


def _fail_over(fleet: SentinelGroup, outcome: Outcome, is_over: threading.Event) -> None:
    """Kill the primary, and the next time let it stand still for as long as a failover takes."""
    every = min(_FAILOVER_EVERY, outcome.size.minutes * 60 / 3)
    while not is_over.wait(every):
        primary = fleet.primary()
        (primary.pause if outcome.failovers % 2 else primary.stop)()
        # A primary without a file that starts again before another one is chosen would be empty.
        while not fleet.works():
            time.sleep(0.1)
        outcome.failovers += 1
        while not is_over.is_set():
            with contextlib.suppress(AssertionError):  # it copies half a gigabyte, which takes time
                fleet.heal()
                break


def _write_anew(rig: Rig, browsers: Browsers, is_over: threading.Event) -> None:
    """Make a session for each that was logged out, as logins would."""

    async def write_anew() -> None:
        engine = AuthEngine(**rig.options)
        while not is_over.is_set():
            while browsers.to_write:
                number = browsers.to_write[-1]
                with contextlib.suppress(Exception):  # a failover: again in a moment
                    await write(engine, number)
                    browsers.to_write.remove(number)
                    browsers.written(number)
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.05)
        await engine.close()

    asyncio.run(write_anew())


def _memory(rig: Rig) -> float:
    """Return the mebibytes that the processes hold."""
    pids = [pid for worker in rig.workers for pid in _family(worker.pid)]
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(text.split("VmRSS:")[1].split()[0]) for text in texts) / 1024


def _connections(rig: Rig) -> int:
    """Return how many connections the processes have, to the store and to CameraManager."""
    held: set[str] = set()
    for pid in [pid for worker in rig.workers for pid in _family(worker.pid)]:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                held.add(str(link.readlink()))
    found = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, _, _, _, _, _, _, inode, *_ = line.split()
        from_browser = int(local.partition(":")[2], 16) in rig.ports
        found += not from_browser and f"socket:[{inode}]" in held
    return found


def _family(pid: int) -> list[int]:
    """Return a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(other for child in children for other in _family(int(child)))]


def _redis_memory(fleet: SentinelGroup) -> float:
    with contextlib.suppress(Exception):  # in a failover: the next sample tells
        return int(fleet.primary().info("memory")["used_memory"]) / 2**20
    return 0.0


def _redis_clients(fleet: SentinelGroup) -> int:
    with contextlib.suppress(Exception):
        return int(fleet.primary().info("clients")["connected_clients"])
    return 0


if __name__ == "__main__":
    port, first, count = map(int, sys.argv[1:])
    asyncio.run(write_all(json.loads(os.environ["SOAK"]), port, range(first, first + count)))
