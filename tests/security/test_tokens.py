"""Where tokens and secrets may go, and what a thief of the store has."""

from __future__ import annotations

import copy
import json
import pickle
import re
import socket
import sqlite3
import threading
import warnings
from base64 import urlsafe_b64decode
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.responses import PlainTextResponse, RedirectResponse

from cm_auth_middleware import AuthEngine, CMAuthConfig, ConfigError
from cm_auth_middleware.sessions.encryption import MAX_RECORD, Sealer
from cm_auth_middleware.sessions.record import Record, Tokens
from cm_auth_middleware.sessions.session import Session
from cm_auth_middleware.stores import MemoryStore, RedisStore, SQLiteStore
from cm_auth_middleware.testing import SimulatorServer
from tests.helpers.apps import names
from tests.helpers.certificates import self_signed
from tests.helpers.servers import redis_server, served
from tests.helpers.world import CM, SECRET_KEY, World, both_providers

from .visits import NAME, session_of, sessions_in, stored, visit
from .wired import Wired, clocked

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

REAL = "https://rest.cameramanager.com"
STRANGERS = [
    "https://other.example", "https://rest.cameramanager.com:444", "http://rest.cameramanager.com",
    "https://rest.cameramanager.com.evil", "https://rest.cameramanager.com.", "https://evil",
    "https://xrest.cameramanager.com", "https://rest.cameramanager.co", "https://cameramanager.com",
    "https://evil.rest.cameramanager.com", "https://rest.cameramanager.com.evil:443",
    "http://rest.cameramanager.com:443", "https://127.0.0.1",
]  # fmt: skip


@pytest.fixture
def real(make_world) -> World:
    """A world with CameraManager at its real address, and strangers that listen everywhere else."""
    world = make_world(base_url=REAL)
    world.net.add(REAL, world.sim)
    for origin in STRANGERS:
        world.net.add(origin, stranger)
    return world


async def stranger(scope, receive, send) -> None:
    if scope["path"] == "/back":
        await RedirectResponse(f"{REAL}/rest/v2.4/cameras")(scope, receive, send)
        return
    headers = {"WWW-Authenticate": "Bearer"}
    await PlainTextResponse("stranger", 401, headers=headers)(scope, receive, send)


def sent_elsewhere(world: World) -> list[httpx2.Request]:
    """The requests to anybody but CameraManager and the app."""
    return [r for r in world.net.seen if f"{r.url.scheme}://{r.url.netloc.decode()}" in STRANGERS]


def assert_clean(world: World) -> None:
    """Nothing that was sent elsewhere has a credential of ours, in a header or anywhere else."""
    secrets = [*world.sim._tokens.access, *world.sim._tokens.refresh, world.sim.client_secret]
    for request in sent_elsewhere(world):
        assert "bearer" not in request.headers.get("authorization", "").lower()
        assert "cookie" not in request.headers
        text = f"{request.url} {request.headers.raw!r}"
        assert not [secret for secret in secrets if secret in text]


@pytest.mark.parametrize("origin", STRANGERS)
@pytest.mark.parametrize("how", ["asked", "redirected", "network-path"])
async def test_the_bearer_goes_to_base_url_and_nowhere_else(
    real: World, origin: str, how: str
) -> None:
    """31: other host, port, scheme, suffix, prefix; asked for, or where a redirect leads."""
    browser = await real.login()
    await browser.get("/api/x", params={"url": "/rest/v2.4/set-cookie"})
    url = f"{origin}/x"
    if how == "redirected":
        url = f"/rest/v2.4/redirect?to={origin}/x"
    elif how == "network-path":
        url = f"/rest/v2.4/redirect?to={origin.partition(':')[2]}/x"
    answer = await browser.get("/api/x", params={"url": url, "follow": "1"})
    if origin.startswith("http:") and how == "network-path":
        origin = origin.replace("http:", "https:")  # a network path keeps the scheme
    if origin in STRANGERS:
        assert answer.json() == {"status": 401, "text": "stranger"}
        assert sent_elsewhere(real)
    assert_clean(real)
    # A stranger's 401 is no reason to renew anything.
    assert real.sim.token_calls("refresh_token") == []


@pytest.mark.parametrize(
    "url",
    [f"https://{'rest.cameramanager.com'}@evil/x", "//evil/x", "\\\\evil/x", "/\\evil/x",
     f"{REAL}\\@evil/x", f"{REAL}:443@evil/x", f"{REAL}%2eevil/x", f"{REAL}%00.evil/x",
     f"{REAL}#@evil/x", f"{REAL}?@evil/x", " https://evil/x", "https:evil/x", "https:/evil/x",
     f"{REAL}／evil/x", f"{REAL}。evil/x", "https://ｒest.cameramanager.com.evil/x", "/../../evil"],
)  # fmt: skip
async def test_no_way_to_write_a_url_leads_the_bearer_astray(real: World, url: str) -> None:
    """31: user parts, backslashes, encodings, look-alikes: whatever arrives elsewhere is clean."""
    browser = await real.login()
    for one in (url, f"/rest/v2.4/redirect?to={url}"):
        params = {"url": one, "follow": "1"}
        try:
            await browser.get("/api/x", params=params)
        except (httpx2.InvalidURL, httpx2.HTTPError, ValueError):
            continue  # not sent at all
    assert_clean(real)


async def test_a_redirect_there_and_back_is_clean_on_the_way(real: World) -> None:
    """31: our API → a stranger → our API."""
    browser = await real.login()
    params = {"url": "/rest/v2.4/redirect?to=https://evil/back", "follow": "1"}
    await browser.get("/api/x", params=params)
    assert [r.url.path for r in sent_elsewhere(real)] == ["/back"]
    assert_clean(real)


async def test_http_never_gets_what_https_had(real: World) -> None:
    """31: a downgrade of the same host, which httpx itself would keep the header for."""
    browser = await real.login()
    url = "/rest/v2.4/redirect?to=http://rest.cameramanager.com/x"
    await browser.get("/api/x", params={"url": url, "follow": "1"})
    [request] = sent_elsewhere(real)
    assert request.url.scheme == "http"
    assert_clean(real)


@both_providers
@pytest.mark.parametrize("to", ["https://127.0.0.1:9400", "http://127.0.0.1:9401"])
async def test_nothing_follows_to_another_port_or_scheme_of_the_same_host(
    make_world, side: str, to: str
) -> None:
    """31: httpx keeps the bearer from http to https, and cookies know no ports."""

    async def asgi(scope, receive, send) -> None:
        cm = scope["state"]["cm"]
        await cm.get(f"{world.root}/set-cookie")
        answer = await cm.get(f"{world.root}/redirect?to={to}/x", follow_redirects=True)
        await PlainTextResponse(answer.text)(scope, receive, send)

    def wsgi(environ, start_response):
        cm = environ["cm_auth.client"]
        cm.get(f"{world.root}/set-cookie")
        answer = cm.get(f"{world.root}/redirect?to={to}/x", follow_redirects=True)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [answer.content]

    world = make_world(app=asgi if side == "asgi" else wsgi)
    world.net.add(to, stranger)
    assert (await world.login()).named(NAME)
    seen = [r for r in world.net.seen if f"{r.url.scheme}://{r.url.netloc.decode()}" == to]
    assert seen
    for request in seen:
        assert "authorization" not in request.headers
        assert "cookie" not in request.headers
    assert "cookie" in world.sim.calls(f"{world.api}/redirect")[0].headers


async def test_nothing_follows_from_http_to_https(make_world) -> None:
    """31: on the standard ports, where httpx2 itself takes it for the same server."""
    world = make_world(base_url="http://127.0.0.1")
    world.net.add("http://127.0.0.1", world.sim)
    world.net.add("https://127.0.0.1", stranger)
    browser = await world.login()
    params = {"url": "/rest/v2.4/redirect?to=https://127.0.0.1/x", "follow": "1"}
    await browser.get("/api/x", params=params)
    [request] = [r for r in world.net.seen if str(r.url) == "https://127.0.0.1/x"]
    assert "authorization" not in request.headers
    assert "cookie" not in request.headers


@both_providers
async def test_cookies_of_the_api_stay_with_the_user_they_were_set_for(world: World) -> None:
    """32: not with another user, not with the same one's next request, and ours never leave."""
    one, two = await world.login(), await world.login(email="bob@example.com")
    await one.get("/api/x", params={"url": f"{world.root}/set-cookie"})
    for browser in (two, one):
        await browser.get("/cameras")
    for call in world.sim.requests:
        assert "cookie" not in call.headers
    assert "upstream" not in str(one.cookies)


@both_providers
async def test_a_stolen_store_holds_nothing_in_the_clear(side: str, make_world, tmp_path) -> None:
    """34: a dump of the file: no token, e-mail, name or user id."""
    world = make_world(store=f"sqlite:///{tmp_path}/s.db")
    browser = await world.login()
    await browser.post("/data", json={"note": "confidential"})
    world.clock.tick(43_300)
    await browser.get("/cameras")
    await world.close()
    dump = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    with sqlite3.connect(tmp_path / "s.db") as opened:
        assert opened.execute("SELECT count(*) FROM records").fetchone()[0] >= 1
        for key, value in opened.execute("SELECT key, value FROM records"):
            dump += key.encode() + value
    opened.close()
    for secret in (*world.sim._tokens.access, *world.sim._tokens.refresh, "anna@example.com",
                   "Jansen", "confidential", session_of(browser)):  # fmt: skip
        assert secret.encode() not in dump
        assert secret.encode().hex().encode() not in dump


@both_providers
async def test_a_stolen_store_and_the_secret_key_open_nothing(world: World) -> None:
    """34: half of the key is in the cookie: what a thief can guess is not it."""
    browser, other = await world.login(), await world.login(email="bob@example.com")
    sealer = Sealer([SECRET_KEY], world.user_id_field)
    entries = sessions_in(world)
    assert len(entries) == 2
    guesses = [bytes(32), b"\xff" * 32, SECRET_KEY.encode()[:32]]
    for key, value in entries.items():
        guesses += [bytes.fromhex(key), value[:32], value[-32:]]
    guesses += [_half_of(session_of(b)) for b in (browser, other)]
    opened = [
        (key, half)
        for key, value in entries.items()
        for half in guesses
        if sealer.open_session(key, half, value) is not None
    ]
    assert len(opened) == 2  # each by its own cookie, which the thief does not have
    assert {half for _, half in opened} == set(guesses[-2:])


def _half_of(cookie: str) -> bytes:
    return urlsafe_b64decode(cookie.partition(".")[0] + "==")[32:]


def _key_of(cookie: str) -> str:
    return sha256(urlsafe_b64decode(cookie.partition(".")[0] + "==")[:32]).hexdigest()


@both_providers
async def test_a_thief_with_store_and_key_reads_user_ids_and_times_and_no_more(
    world: World,
) -> None:
    """34: not promised, and said so: which users have sessions, and since when."""
    await world.login()
    [(name, entry)] = stored(world).items() - sessions_in(world).items()
    field, anna = world.user_id_field, str(world.user_id())
    assert Sealer([SECRET_KEY], field).open_user(name, entry) == anna
    assert Sealer(["another" + SECRET_KEY], field).open_user(name, entry) is None
    [(key, value)] = sessions_in(world).items()
    info = Sealer([SECRET_KEY], field).describe(key, value, anna)
    assert info is not None
    assert info.logged_in_at == world.clock.now
    assert Sealer([SECRET_KEY], field).describe(key, value, "10004") is None
    assert Sealer(["another" + SECRET_KEY], field).describe(key, value, anna) is None


def test_a_record_opens_under_its_own_name_only() -> None:
    """35: and with the header it was sealed with: times and tags are not exchanged either."""
    sealer, half = Sealer([SECRET_KEY], "userId"), bytes(32)
    record = Record(_tokens(), '{"userId":1}', 1.8e9, 1.8e9)
    sealed = sealer.seal_session("a" * 64, half, record)
    assert sealer.open_session("a" * 64, half, sealed) == record
    assert sealer.open_session("b" * 64, half, sealed) is None
    assert sealer.open_session("a" * 64, half, _flip(sealed, 18)) is None
    grant = sealer.seal_grant("a" * 64, half, b"[]")
    assert sealer.open_grant("a" * 64, half, grant) == b"[]"
    assert sealer.open_grant("b" * 64, half, grant) is None


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("what", ["flipped", "cut", "junk", "swapped", "older", "huge", "pickle",
                                  "json", "empty", "grant", "header"])  # fmt: skip
@both_providers
async def test_a_record_that_was_tampered_with_is_no_session(
    world: World, tmp_path, what: str
) -> None:
    """35: no session, no exception, nothing executed; the others are not touched."""
    browser, other = await world.login(), await world.login(email="bob@example.com")
    store = world.engine.store
    one, two = (_key_of(session_of(b)) for b in (browser, other))
    value, theirs = stored(world)[one], stored(world)[two]
    mark = tmp_path / "executed"
    bad: list[bytes] = {
        "flipped": [_flip(value, n) for n in range(0, len(value), 7)] + [_flip(value, -1)],
        "cut": [value[:n] for n in range(1, len(value), 11)] + [value[1:]],
        "junk": [b"\x01", b"\x01" * 26, b"\x01" + bytes(25), b"\x01" + b"\xff" * 500, bytes(500)],
        "swapped": [theirs],
        "older": [bytes([version]) + value[1:] for version in (0, 1, 2, 3, 255)],
        "huge": [value + bytes(10_000_000), b"\x01" + bytes(10_000_000), value[:1] * MAX_RECORD],
        "pickle": [pickle.dumps(_Bomb(mark)), b"\x01" + pickle.dumps(_Bomb(mark))],
        "json": [b'["a","b",1,2,"write",3,""]\n{}\n{}', b"null", b"[" * 100_000],
        "empty": [b""],
        "grant": [Sealer([SECRET_KEY], "userId").seal_grant(one, bytes(32), b"[]")],
        "header": [value[:17] + b"\x7f\xf8" + value[19:], value[:25] + b"\xff" + value[26:]],
    }[what]
    for tampered in bad:
        await store.put(one, tampered, 1_000)
        if what == "swapped":
            await store.put(two, value, 1_000)
        cookies = [f"{NAME}={session_of(b)}".encode() for b in (browser, other)]
        assert (await visit(world, cookies[0]))[0] == 302
        assert (await visit(world, cookies[1]))[0] == (302 if what == "swapped" else 200)
        info = await visit(world, cookies[0], "/auth/session")
        assert b'"authenticated":false' in info[2]
    assert not mark.exists()
    assert (await world.login()).named(NAME)


def _flip(value: bytes, n: int) -> bytes:
    changed = bytearray(value)
    changed[n] ^= 1
    return bytes(changed)


def _tokens() -> Tokens:
    return Tokens("a", "r", 2e9, 2e9, "write")


async def test_a_grant_record_that_was_tampered_with_is_as_none(world: World) -> None:
    """35: the record that sessions of one account share."""
    one, two = await world.login(), await world.login()
    world.clock.tick(43_300)
    await one.get("/cameras")
    for key, value in stored(world).items():
        if key.startswith("grant."):
            await world.engine.store.put(key, _flip(value, 40), 1_000)
    assert (await two.get("/cameras")).status_code == 200
    assert (await one.get("/cameras")).status_code == 200


ODD = ["'", '"', "' OR '1'='1", "'; DROP TABLE records; --", "%", "_", "*", "?", "[a-z]", "..",
       "../../etc/passwd", "/", "\\", "\0", "a\0b", "\r\nDEL x", "{cm_auth}:s:*", ";", "`id`",
       "$(id)",
       "\N{SNOWMAN}", "a" * 5_000, "", " "]  # fmt: skip


async def test_what_a_visitor_sends_never_becomes_a_key_of_the_store(make_world, tmp_path) -> None:
    """36: keys are hashes, whatever a cookie, a state or a code holds."""
    keys: list[str] = []

    class Noting(MemoryStore):
        async def get(self, key: str) -> bytes | None:
            keys.append(key)
            return await super().get(key)

        async def acquire(self, key: str, owner: str, ttl: float) -> bool:
            keys.append(key)
            return await super().acquire(key, owner, ttl)

    world = make_world(store=Noting())
    browser = await world.login()
    for odd in ODD:
        cookie = f"{NAME}={odd}; {NAME}_login_{odd}={odd}".encode()
        if b"\r\n" not in cookie:
            await visit(world, cookie)
        await browser.get("/auth/callback", params={"state": odd, "code": odd})
        await browser.get("/auth/login", params={"next": odd})
        await browser.get("/")
    assert keys
    shape = re.compile(r"((gone\.|lease\.)?grant\.)?[0-9a-f]{64}|cm_auth_login_[0-9a-f]{16}")
    assert [key for key in keys if not shape.fullmatch(key)] == []


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "sqlite":
        yield SQLiteStore(tmp_path / "s.db")
    else:
        with redis_server() as server:
            yield RedisStore(server.url)


async def test_odd_keys_are_only_odd(store: Any) -> None:
    """36: and if they were not hashes: no SQL, pattern or command comes of them."""
    odd = [key for key in ODD if "\0" not in key]
    await store.put("bystander", b"\x01bystander", 100)
    for key in odd:
        await store.put(key, b"\x01" + key.encode(), 100)
    for key in odd:
        assert await store.get(key) == b"\x01" + key.encode()
        assert await store.acquire(key, "me", 100)
        assert not await store.acquire(key, "you", 100)
        await store.release(key, "me")
        assert not await store.replace(key, b"other", b"new", 100)
        assert await store.delete(key) == b"\x01" + key.encode()
        assert await store.get(key) is None
    assert dict(await store.find(b"\x01")) == {"bystander": b"\x01bystander"}
    for prefix in (b"%", b"*", b"'", b"\x01' OR 1=1 --", b"\x02"):
        assert await store.find(prefix) == []
    await store.close()


@pytest.mark.parametrize(
    "key",
    ["", None, (), "short", "a" * 64, "ab" * 32, "…", "change me", "changeme" * 8, "secret" * 10,
     "change-me-" * 4, "your-secret-key" * 3, "0123456789" * 4, "password1" * 5, [SECRET_KEY, ""],
     [SECRET_KEY, "short"], "client-secret-client-secret-12345678"],
)  # fmt: skip
def test_a_weak_secret_key_is_refused_at_start_up(key: Any) -> None:
    """37: missing, short, repetitive, from a documentation, equal to client_secret."""
    with pytest.raises(ConfigError, match="secret_key"):
        AuthEngine(
            client_id="id", client_secret="client-secret-client-secret-12345678", secret_key=key
        )


def test_no_key_that_is_written_anywhere_in_the_documentation_is_accepted() -> None:
    """37: what people copy."""
    root = Path(__file__).parents[2]
    texts = [p.read_text() for p in (*root.glob("*.md"), *root.glob("examples/**/*.py"))]
    for text in texts:
        for key in re.findall(r"""secret_key["']?\]?\s*[=:]\s*["']([^"']*)["']""", text):
            with pytest.raises(ConfigError, match="secret_key"):
                CMAuthConfig(client_id="id", client_secret="s", secret_key=key)


OFF = {
    "CM_AUTH_VERIFY": "false", "CM_AUTH_TLS_VERIFY": "0", "CM_AUTH_SSL_VERIFY": "no",
    "CM_AUTH_INSECURE": "1", "CM_AUTH_VERIFY_SSL": "off", "PYTHONHTTPSVERIFY": "0",
    "CURL_CA_BUNDLE": "", "REQUESTS_CA_BUNDLE": "", "SSL_CERT_FILE": "", "HTTPX_VERIFY": "0",
    "HTTPX_SSL_VERIFY": "0", "NODE_TLS_REJECT_UNAUTHORIZED": "0", "SSL_NO_VERIFY": "1",
}  # fmt: skip


@pytest.mark.parametrize("trusted", [False, True])
async def test_tls_verification_cannot_be_switched_off(
    side: str, tmp_path, monkeypatch, trusted: bool
) -> None:
    """38: a certificate that nobody trusts is refused before a byte of HTTP is sent.

    SSL_CERT_FILE says whom to trust instead, as for every OpenSSL program; it turns nothing off.
    """
    for name, value in OFF.items():
        monkeypatch.setenv(name, value)
    public, private = self_signed(tmp_path)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", public)
    sim = clocked()
    with served("h11", sim, ssl_certfile=public, ssl_keyfile=private) as port:
        world = Wired(side, sim, f"https://127.0.0.1:{port}", timeout=5)
        browser = world.browser()
        start = await browser.get("/cameras")
        done = await browser.get(browser.callback_url(start.headers["location"]))
        assert done.status_code == (302 if trusted else 502)
        assert len(sim.requests) == (2 if trusted else 0)
        if trusted:
            assert (await browser.get("/cameras")).status_code == 200
            # Trusted, but not for this name.
            other = Wired(side, sim, f"https://localhost:{port}", timeout=5)
            browser = other.browser()
            start = await browser.get("/cameras")
            done = await browser.get(browser.callback_url(start.headers["location"]))
            assert done.status_code == 502
            await other.close()
        await world.close()


async def test_proxies_of_the_environment_see_nothing(side: str, monkeypatch) -> None:
    """38: HTTP_PROXY and its kin do not apply: tokens go straight to base_url."""
    trap = socket.create_server(("127.0.0.1", 0))
    trap.settimeout(0.2)
    url = f"http://127.0.0.1:{trap.getsockname()[1]}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, url)
        monkeypatch.setenv(name.lower(), url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with SimulatorServer(clocked()) as server:
        world = Wired(side, server.simulator, server.url)
        browser = await world.login()
        assert (await browser.get("/cameras")).status_code == 200
        world.clock.tick(43_300)
        assert (await browser.get("/cameras")).status_code == 200
        await browser.post("/auth/logout")
        await world.close()
    with trap, pytest.raises(TimeoutError):
        trap.accept()


async def test_netrc_lends_nobody_its_passwords(side: str, monkeypatch, tmp_path) -> None:
    """38: nor does the machine's password file reach a request of ours."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login thief password netrc-password\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with SimulatorServer(clocked()) as server:
        world = Wired(side, server.simulator, server.url)
        browser = await world.login()
        await browser.get("/api/x", params={"url": f"{server.url}/rest/v2.4/cameras"})
        await world.close()
        for call in server.simulator.requests:
            scheme, _, value = call.headers["authorization"].partition(" ")
            assert scheme in ("Basic", "Bearer")
            assert "dGhpZWY" not in value


def test_http_off_loopback_is_warned_of() -> None:
    """38: at start-up, and not for a simulator on this machine."""
    options = {"client_id": "id", "client_secret": "secret", "secret_key": SECRET_KEY}
    for url in ("http://rest.cameramanager.com", "http://10.0.0.1", "http://localhost.evil"):
        with pytest.warns(UserWarning, match="in the clear"):
            AuthEngine(**options, base_url=url)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for url in (CM, "http://localhost:1", "http://[::1]:1", REAL):
            AuthEngine(**options, base_url=url)


def test_no_option_of_the_environment_is_about_tls() -> None:
    """38: so none can be set by accident."""
    names = json.dumps(sorted(CMAuthConfig.__slots__))
    assert not re.search("verify|tls|ssl|insecure|cert", names)


def test_the_threads_that_these_tests_start_end() -> None:
    """The helpers leave nothing behind."""
    assert not [t for t in threading.enumerate() if "drip" in t.name]


@both_providers
async def test_no_session_takes_its_tokens_along_where_it_is_pickled(make_world) -> None:
    """33: a queue or a cache pickles what it is given; a job gets a handle instead."""
    sessions: list[Session] = []
    world = make_world(on_login=sessions.append)
    await world.login()
    [session] = sessions
    cm = await world.client_for(session.export())
    for thing in (session, session.record, session.record.tokens, {"session": [session]}):
        with pytest.raises(TypeError, match=r"session\.export\(\)"):
            pickle.dumps(thing)
    for thing in (cm, world.engine):
        with pytest.raises((TypeError, AttributeError)):
            pickle.dumps(thing)
    assert copy.copy(session) is copy.deepcopy([session])[0] is session
    assert pickle.loads(pickle.dumps(dict(session.user))) == session.user


@both_providers
async def test_a_copy_of_a_client_is_one_for_the_same_user(make_world) -> None:
    """33: before its first use, and after it."""
    handles: list[str] = []
    world = make_world(on_login=lambda session: handles.append(session.export()))
    await world.login()
    cm = await world.client_for(handles[0])
    for _ in range(2):
        copied = copy.copy(cm)
        answer = await world.on_its_side(lambda copied=copied: copied.get(f"{world.root}/cameras"))
        assert len(names(answer)) == 4
        await world.on_its_side(lambda: cm.get(f"{world.root}/cameras"))
