"""How many bytes a process keeps in memory for those who visit it."""

from __future__ import annotations

import gc
import json
import secrets
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

import cm_auth_middleware
from cm_auth_middleware.runtime.run_sync import run_sync
from cm_auth_middleware.sessions.cookie import Ticket
from cm_auth_middleware.sessions.record import Record
from cm_auth_middleware.sessions.session import Session
from tests.helpers.browser import log_in
from tests.helpers.world import MakeWorld, World

from .held import WSGI, HeldSite
from .visits import NAME, session_of, visit

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

HERE = Path(cm_auth_middleware.__file__).parent
OURS = [
    tracemalloc.Filter(True, f"{HERE}/*"),
    tracemalloc.Filter(False, f"{HERE}/testing/*"),
]
EVERYBODY = [tracemalloc.Filter(False, "nobody")]


class Growth:
    """The bytes that were allocated in a block, and that are still held."""

    bytes = 0


@contextmanager
def growth(*, by_whom: Sequence[tracemalloc.Filter] = OURS) -> Iterator[Growth]:
    """Measure what this package's code allocates, or whoever is named."""
    measured = Growth()
    gc.collect()
    tracemalloc.start()
    try:
        yield measured
        gc.collect()
        held = tracemalloc.take_snapshot().filter_traces(by_whom).statistics("filename")
        measured.bytes = sum(one.size for one in held)
    finally:
        tracemalloc.stop()


class Crowd:
    """Sessions as logins make them, without the logins."""

    def __init__(self, world: World, record: Record) -> None:
        self.world = world
        self.record = record
        engine = world.engine
        is_async = world.side == "asgi"
        self.services = engine.async_services if is_async else engine.thread_services

    @classmethod
    async def of(cls, world: World) -> Crowd:
        browser = await world.login()
        crowd = cls(world, None)  # type: ignore[arg-type]
        loaded: list[Session] = []
        ticket = crowd.services.sessions.cookie._signer.load(session_of(browser))
        assert ticket is not None

        async def load() -> None:
            sessions = crowd.services.sessions
            found = await sessions.load_record(ticket[0].record_id, ticket[0].cookie_key)
            assert found is not None
            loaded.append(found)

        await crowd.on_its_side(load)
        crowd.record = loaded[0].record
        return crowd

    async def on_its_side(self, work: Callable[[], Any]) -> None:
        if self.world.side == "asgi":
            await work()
        else:
            await anyio.to_thread.run_sync(lambda: run_sync(work()))

    async def join(self, **changes: str) -> bytes:
        """Add a session and return its Cookie header."""
        ticket = Ticket.new()
        record = replace(self.record, **changes)
        await self.on_its_side(lambda: self.services.sessions.create(ticket, record))
        return f"{NAME}={self.services.sessions.cookie._signer.dump(ticket)}".encode()


def data(size: int) -> str:
    """JSON of so many bytes, of its own for each session."""
    return json.dumps({"x": secrets.token_hex(size // 2)})


def in_a_file(make_world: MakeWorld, tmp_path: Path, **options: Any) -> World:
    """A world whose store holds nothing in memory."""
    return make_world(store=f"sqlite:///{tmp_path / 'sessions.db'}", **options)


async def test_opened_sessions_hold_so_many_bytes(make_world, tmp_path) -> None:
    """64: bytes, and not entries: 400 sessions of 15 kB would hold 12 MB."""
    world = in_a_file(make_world, tmp_path, cache_size=1_000_000)
    crowd = await Crowd.of(world)
    cookies = [await crowd.join(data=data(15_000)) for _ in range(400)]
    with growth() as grown:
        for cookie in cookies:
            assert (await visit(world, cookie))[0] == 200
    assert grown.bytes < 2_000_000
    assert crowd.services.runtime.cache_memory.used <= 1_000_000


async def test_large_records_are_not_kept_open(make_world, tmp_path) -> None:
    """64: those beyond 16 kB are decrypted at each request, and served like the others."""
    world = in_a_file(make_world, tmp_path)
    crowd = await Crowd.of(world)
    small = await crowd.join(data=data(12_000))
    large = [await crowd.join(data=data(900_000)) for _ in range(12)]
    with growth() as grown:
        for cookie in [*large, small, *large]:
            status, _, body = await visit(world, cookie, "/data")
            assert status == 200
            assert json.loads(body)["x"]
    assert grown.bytes < 1_000_000
    assert list(map(len, crowd.services.sessions._opened)) == [64, 64]  # Anna's, and the small


async def test_a_session_that_grows_and_shrinks_is_served_as_it_is(world: World) -> None:
    """64: the small record that was kept open is forgotten when the large one takes its place."""
    browser = await world.login()
    for size in (10, 50_000, 20, 16_384, 0):
        text = json.dumps({"x": "y" * size})
        assert (await browser.post("/data", content=text)).status_code == 200
        for _ in range(2):
            assert (await browser.get("/data")).json() == {"x": "y" * size}


async def test_unreadable_records_leave_a_hash(make_world, tmp_path) -> None:
    """64: not themselves."""
    world = in_a_file(make_world, tmp_path)
    crowd = await Crowd.of(world)
    cookies = []
    for _ in range(12):
        cookie = await crowd.join(data=data(900_000))
        found = crowd.services.sessions.cookie._signer.load(cookie.decode()[8:])
        assert found is not None
        sealed = b"\x0f" + secrets.token_bytes(900_000)  # of a later release
        put = partial(crowd.services.sessions.store.put, found[0].record_id, sealed, 9e3)
        await crowd.on_its_side(put)
        cookies.append(cookie)
    del sealed, put
    with growth() as grown:
        for cookie in cookies:
            assert (await visit(world, cookie))[0] == 302
    assert grown.bytes < 1_000_000


async def test_cookie_headers_of_one_user_hold_so_many_bytes(make_world: MakeWorld) -> None:
    """64: any number of different ones, each with a valid cookie in it."""
    world = make_world(cache_size=1_000_000)
    crowd = await Crowd.of(world)
    cookie = await crowd.join()
    with growth(by_whom=EVERYBODY) as grown:
        for number in range(800):
            padding = f"; a={number:0>3800}".encode()
            assert (await visit(world, cookie + padding, "/health"))[0] == 200
    assert grown.bytes < 2_000_000


@pytest.mark.parametrize("count", [4, 96, 200])
async def test_eight_cookies_of_our_name_are_looked_at(world: World, count: int) -> None:
    """64: the first four and the last four: a neighbour's come before ours, or after."""
    ours = f"{NAME}={session_of(await world.login())}".encode()
    junk = b"; ".join(f"{NAME}={'A' * 86}.{n:042d}A".encode() for n in range(count))
    assert (await visit(world, ours + b"; " + junk))[0] == 200
    if count < 200:  # cookies that are looked at for their names
        assert (await visit(world, junk + b"; " + ours))[0] == 200
    among = (await visit(world, b"; ".join([junk, ours, junk])))[0]
    assert among == (200 if count < 4 else 302)


async def test_five_thousand_cookie_headers_are_bounded_work(world: World) -> None:
    """64: the name is looked for in the first 200 cookies, however they are sent."""
    ours = f"{NAME}={session_of(await world.login())}".encode()
    line = b"; ".join([ours, *(f"{NAME}={'A' * 86}.{n:042d}A".encode() for n in range(5_000))])
    with growth() as grown:
        for _ in range(20):
            assert (await visit(world, line))[0] == 200
    assert grown.bytes < 500_000


def test_users_are_not_kept_parsed_beyond_a_size() -> None:
    """64: a user's JSON may have 100 kB."""
    record: Any = None
    with growth(by_whom=EVERYBODY) as grown:
        for number in range(100):
            user = json.dumps({"userId": number, "x": secrets.token_hex(45_000)})
            record = Record(None, user, 0.0, 0.0)  # type: ignore[arg-type]
            session = Session("0" * 64, b"", record, None)  # type: ignore[arg-type]
            assert session.user["userId"] == number
    assert grown.bytes < 1_000_000


def resident(port: int) -> int:
    """Return the bytes of memory that the processes of a server take."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            words = (process / "cmdline").read_text().split("\0")
            if str(port) in words or f"127.0.0.1:{port}" in words:
                status = (process / "status").read_text()
                found += int(status.split("VmRSS:")[1].split()[0]) * 1024
    assert found
    return found


@pytest.mark.parametrize(
    ("server", "provider"),
    [
        ("uvicorn", "cameramanager"),
        ("uvicorn", "eagleeye"),
        ("gunicorn", "cameramanager"),
        ("waitress", "eagleeye"),
    ],
)
def test_a_server_does_not_grow_with_its_large_sessions(
    server: str, provider: str, tmp_path: Path
) -> None:
    """64: fifty more of 0.9 MB, which would take 45 MB."""
    store = f"sqlite:///{tmp_path / 'sessions.db'}"
    with ExitStack() as stack:
        site = HeldSite(server, stack, provider=provider, is_apart=True, store=store)
        visitor, used = site.visitor(), []
        kept: dict[str, Any] = {}
        for count in (10, 50):
            for _ in range(count):
                visitor.cookies.clear()
                log_in(visitor, site.simulator)
                text = data(900_000)
                assert visitor.post("/data", content=text).status_code == 200
                kept[visitor.cookies[NAME]] = json.loads(text)
            for cookie, found in kept.items():
                visitor.cookies.clear()
                visitor.cookies.set(NAME, cookie)
                assert visitor.get("/data").json() == found
            used.append(resident(site.port))
    assert used[1] - used[0] < 15_000_000, used


@pytest.mark.parametrize("server", ["uvicorn", *WSGI])
def test_a_server_does_not_grow_with_its_sessions_and_their_cookies(
    server: str, tmp_path: Path
) -> None:
    """64: three crowds of large ones, each of which would take 7 MB."""
    store = f"sqlite:///{tmp_path / 'sessions.db'}"
    with ExitStack() as stack:
        site = HeldSite(server, stack, is_apart=True, store=store, cache_size="1000000")
        visitor, used = site.visitor(), []
        for crowd in range(3):
            for _ in range(60):
                visitor.cookies.clear()
                log_in(visitor, site.simulator)
                assert visitor.post("/data", content=data(15_000)).status_code == 200
                assert len(visitor.get("/data").text) > 15_000
            cookie = f"{NAME}={visitor.cookies[NAME]}"
            with closing(HTTPConnection("127.0.0.1", site.port, timeout=60)) as connection:
                for number in range(1_300):
                    headers = {"Cookie": f"{cookie}; a={crowd}{number:0>3800}"}
                    connection.request("GET", "/health", headers=headers)
                    assert b"@" in connection.getresponse().read()
            used.append(resident(site.port))
    first, second = used[1] - used[0], used[2] - used[1]
    assert second < first / 4 + 2_000_000, used
