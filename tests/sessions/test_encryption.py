"""What a thief finds in a copy of the store: after 100 logins, of 100 users."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from cm_auth_middleware.sessions.cookie import Ticket, TicketSigner
from cm_auth_middleware.sessions.encryption import Sealer
from cm_auth_middleware.testing import Settings, SimulatedUser
from tests.helpers.browser import Browser
from tests.helpers.servers import RedisServer, redis_server
from tests.helpers.world import SECRET_KEY, World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

LOGINS = 100


class Heist:
    """A site after its logins, and everything that its store left on the disk or tells a client.

    Attributes:
        records: keys and values as the store holds them.
        files: what lies on its disk.
    """

    def __init__(self, world: World, browsers: list[Browser]) -> None:
        self.world = world
        self.cookies = [browser.named("cm_auth")[0] for browser in browsers]
        self.records: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}

    @property
    def tickets(self) -> list[Ticket]:
        found = [TicketSigner((SECRET_KEY,)).load(cookie) for cookie in self.cookies]
        return [ticket for ticket, _ in filter(None, found)]

    @property
    def loot(self) -> bytes:
        """All of it in one."""
        parts = [key.encode() + b"\n" + value for key, value in self.records.items()]
        return b"\n".join([*parts, *self.files.values()])


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def heist(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Heist:
    return anyio.run(rob, request.param, tmp_path_factory.mktemp("store"))


async def rob(kind: str, directory: Path) -> Heist:
    with contextlib.ExitStack() as stack:
        server = None
        if kind == "redis":
            # Compression would hide from the search what is there.
            options = ("--rdbcompression", "no", "--appendonly", "yes")
            server = stack.enter_context(redis_server(*options))
        url = server.url if server else f"sqlite:///{directory / 'sessions.db'}"
        world = World(store=url, settings=Settings(rotate_refresh_tokens=True))
        heist = Heist(world, await live(world))
        if server:
            take_redis(heist, server)
        else:
            take_sqlite(heist, directory)
        await world.close()
        return heist


async def live(world: World) -> list[Browser]:
    """A hundred users log in; then tokens are renewed, data is kept, and somebody logs out."""
    world.sim.users += [
        SimulatedUser(
            f"person{n}@customer-{n}.example", "secret", f"First{n}x", f"Family{n}x",
            user_id=810_000_000_000_000 + 7919 * n, account_id=920_000_000 + 7907 * n,
        )
        for n in range(LOGINS)
    ]  # fmt: skip
    browsers = [await world.login(user.email) for user in world.sim.users[-LOGINS:]]
    world.clock.tick(43_200)
    for browser in browsers[:20]:
        assert (await browser.get("/cameras")).status_code == 200
    for browser in browsers[20:30]:
        await browser.post("/data", json={"note": "an application's confidential remark"})
    await world.browser().get("/")  # a login that was abandoned
    leaver = await world.login()
    await leaver.post("/auth/logout")
    return browsers


def take_sqlite(heist: Heist, directory: Path) -> None:
    heist.files = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert {"sessions.db", "sessions.db-wal"} <= set(heist.files)
    with contextlib.closing(sqlite3.connect(directory / "sessions.db")) as copy:
        heist.records = dict(copy.execute("SELECT key, value FROM records"))


def take_redis(heist: Heist, server: RedisServer) -> None:
    from redis import Redis

    with Redis(port=server.port) as client:
        client.save()
        names = list(client.scan_iter("cm_auth:s:*", count=1000))
        heist.records = {
            name.decode().removeprefix("cm_auth:s:"): client.get(name) for name in names
        }
        server_side = [*client.scan_iter(count=1000), *map(client.dump, client.scan_iter())]
    heist.files = {
        str(path): path.read_bytes() for path in server.directory.rglob("*") if path.is_file()
    }
    assert any(name.endswith(".rdb") for name in heist.files)
    assert any(name.endswith(".aof") for name in heist.files)
    heist.files["what a client is told"] = b"\n".join(filter(None, server_side))


def secrets_of(heist: Heist) -> Iterator[str]:
    """Everything that is nobody's business."""
    sim = heist.world.sim
    for token in (*sim._tokens.access.values(), *sim._tokens.refresh.values()):
        yield from (token.value, token.value.partition(":")[0])
    yield from (token for token in sim._tokens.spent)
    for call in sim.requests:
        yield from (call.form.get(name, "") for name in ("code", "code_verifier", "refresh_token"))
        yield call.headers.get("authorization", "").partition(" ")[2]
    for user in sim.users[-LOGINS:]:
        yield from (user.email, user.first_name, user.last_name)
        yield from (str(user.user_id), str(user.account_id))
    yield from ("customer-", "@example.com", "Front gate", "confidential remark", "127.0.0.1")
    yield from (SECRET_KEY, sim.client_id, sim.client_secret)
    for cookie in heist.cookies:
        yield from (cookie, cookie.partition(".")[0], cookie.partition(".")[2])


def disguises(secret: bytes) -> Iterator[bytes]:
    """The ways in which it might have been written."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield secret.decode("latin-1").encode("utf-16-le")
    for shift in range(3):  # base64 of a part of a text depends on where it stands
        inner = base64.b64encode(bytes(shift) + secret)[4 if shift else 0 : -4]
        if len(inner) >= 8:  # a shorter one is there by chance
            yield from (inner, inner.replace(b"+", b"-").replace(b"/", b"_"))


def test_nothing_of_anybody_is_in_it_in_the_clear(heist: Heist) -> None:
    assert len([key for key in heist.records if re.fullmatch("[0-9a-f]{64}", key)]) == LOGINS
    loot, looked_for = heist.loot, 0
    beginnings = {loot[at : at + 6] for at in range(len(loot) - 5)}  # to be done in seconds
    for secret in sorted(set(secrets_of(heist)) - {""}):
        for disguise in disguises(secret.encode()):
            assert len(disguise) >= 6
            is_there = disguise[:6] in beginnings and disguise in loot
            assert not is_there, f"{secret!r} as {disguise!r}"
            looked_for += 1
    assert looked_for > 10_000
    for ticket in heist.tickets:
        for raw in (ticket.session_id, ticket.cookie_key):
            for disguise in (raw, raw.hex().encode(), base64.b64encode(raw)[:-4]):
                assert disguise not in loot
    for user in heist.world.sim.users[-LOGINS:]:
        for form in (">q", "<q"):  # seven bytes, which ciphertext does not hold by chance
            assert struct.pack(form, user.user_id).strip(b"\0") not in loot


def test_the_search_would_find_what_is_there(heist: Heist) -> None:
    """Against a test that is blind: the names of the records are in the clear."""
    for ticket in heist.tickets:
        assert ticket.record_id.encode() in heist.loot


def test_who_has_the_secret_key_too_reads_nothing(heist: Heist) -> None:
    sealer, tried = Sealer((SECRET_KEY,), "userId"), 0
    for name, value in heist.records.items():
        for cookie_key in guesses(name, value):
            assert sealer.open_session(name, cookie_key, value) is None
            assert sealer.open_grant(name, cookie_key, value) is None
            tried += 1
    assert tried > 30 * LOGINS


def guesses(name: str, value: bytes) -> Iterator[bytes]:
    """Every half of a key that the store and the secret key give away between them."""
    secret, hashed = SECRET_KEY.encode(), hashlib.sha256(SECRET_KEY.encode()).digest()
    bare = name.removeprefix("grant.")
    known = [b"", secret, hashed, name.encode(), bare.encode(), bytes(32), bytes(64)]
    with contextlib.suppress(ValueError):
        known.append(bytes.fromhex(bare))
    known += [value[start : start + 32] for start in range(0, min(len(value), 96), 4)]
    for guess in known:
        yield guess
        yield hashlib.sha256(guess).digest()
        yield hashlib.sha256(hashed + guess).digest()


def test_who_has_somebody_else_s_cookie_too_reads_nothing(heist: Heist) -> None:
    sealer, mine = Sealer((SECRET_KEY,), "userId"), heist.tickets[0]
    for name, value in heist.records.items():
        record = sealer.open_session(name, mine.cookie_key, value)
        assert (record is not None) == (name == mine.record_id)
        # Nor by giving my record another's name, or me another's record.
        assert name == mine.record_id or not sealer.open_session(
            name, mine.cookie_key, heist.records[mine.record_id]
        )


def test_the_owner_s_cookie_opens_it(heist: Heist) -> None:
    """So that the refusals above are not those of a store that nobody can read."""
    sealer = Sealer((SECRET_KEY,), "userId")
    emails = set()
    for ticket in heist.tickets:
        record = sealer.open_session(
            ticket.record_id, ticket.cookie_key, heist.records[ticket.record_id]
        )
        assert record is not None
        emails.add(json.loads(record.user)["email"])
    assert emails == {user.email for user in heist.world.sim.users[-LOGINS:]}
    other_key = Sealer(("another-" + SECRET_KEY,), "userId")
    ticket = heist.tickets[0]
    value = heist.records[ticket.record_id]
    assert other_key.open_session(ticket.record_id, ticket.cookie_key, value) is None
