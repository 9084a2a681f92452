"""No escape code of a visitor reaches a terminal, a log or a page of ours as it is."""

from __future__ import annotations

import html
import inspect
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from click.testing import CliRunner

from cm_auth_middleware import MemoryStore, StoreError
from cm_auth_middleware.cli import main
from cm_auth_middleware.runtime.run_sync import run_sync
from cm_auth_middleware.sessions.encryption import Sealer
from cm_auth_middleware.sessions.record import Record, Tokens
from cm_auth_middleware.stores import SQLiteStore
from cm_auth_middleware.testing import Simulator
from cm_auth_middleware.testing.simulator import SimulatedUser
from tests.helpers.world import APP, CM, JSON, SECRET_KEY, World

from .visits import started

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

# C0 without the line end, DEL, C1, separators of lines, marks that turn the direction of writing.
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
ESCAPES = {
    "clear": "\x1b[2J",
    "link": "\x1b]8;;https://evil.example\x1b\\here",
    "C1": "\x9b31m",
    "bidi": "\u202egnp.exe",
    "NUL": "\0",
    "line": "\r\nFAKE login of:me",
    "separator": "\u2028FAKE",
    "DEL": "\x7f",
}


@pytest.fixture(params=ESCAPES)
def escape(request: pytest.FixtureRequest) -> str:
    return ESCAPES[str(request.param)]


def behind(
    world: World, *, peer: str = "192.0.2.7", query: bytes | None = None, **headers: bytes
) -> Any:
    """The world's app behind a server that tells this address, query and these headers."""
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    if world.side == "asgi":

        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            kept = [(name, value) for name, value in scope["headers"] if name not in named]
            changes: dict[str, Any] = {"client": (peer, 1), "headers": [*kept, *named.items()]}
            if query is not None:
                changes["query_string"] = query
            await world.app({**scope, **changes}, receive, send)

        return asgi

    def wsgi(environ: Any, start_response: Any) -> Any:
        changes = {
            f"HTTP_{name.upper()}": value.decode("latin-1") for name, value in headers.items()
        }
        if query is not None:
            changes["QUERY_STRING"] = query.decode("latin-1")
        return world.app({**environ, "REMOTE_ADDR": peer, **changes}, start_response)

    return wsgi


async def listed(world: World, user: int = 10003) -> list[Any]:
    found = world.engine.sessions(user)
    return list(await found if inspect.isawaitable(found) else found)


def stranger(world: World | None, email: str, name: str = "Eve") -> SimulatedUser:
    user = SimulatedUser(email, "cameras", name, "Test", 666, 666)
    if world is not None:
        world.sim.users.append(user)
    return user


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:DB8:0::7", "2001:db8::7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("fe80::1%\x1b[2J", "fe80::1"),
        ("192.0.2.7:443", "192.0.2.7"),
        ("[2001:db8::7]:61598", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[::ffff:192.0.2.7]:1", "192.0.2.7"),
        ("192.0.2.7:x", ""),
        ("192.0.2.777:1", ""),
        ("[192.0.2.7", ""),
        ("192.0.2.7, 192.0.2.8", ""),
        ("192.0.2.7\r\n", ""),
        ("\x1b[2J192.0.2.7", ""),
        ("\u0661\u0669\u0662.0.2.7", ""),
        ("unix:", ""),
        ("", ""),
        ("192.0.2.7" * 9_000, ""),
        *((escape, "") for escape in ESCAPES.values()),
    ],
)
async def test_an_address_is_one_or_it_is_none(make_world: Any, peer: str, address: str) -> None:
    """61: what the server says of the client, canonical, in the list of a user's sessions."""
    world = make_world()
    world.net.add(APP, behind(world, peer=peer))
    await world.login()
    assert [info.address for info in await listed(world)] == [address]


@pytest.mark.parametrize(
    "stored", ["\x1b[2J", "\x9b31m1.2.3.4", "10.0.0.1\r\nok", "fe80::1%\x1b[2J"]
)
def test_the_command_prints_no_code_of_an_old_record(tmp_path: Path, stored: str) -> None:
    """61: earlier releases kept whatever the server said."""
    path = tmp_path / "sessions.db"
    store = SQLiteStore(path).blocking()
    record = Record(Tokens("a", "r", 2e9, 2e9, "write"), '{"userId":7}', 1.8e9, 1.8e9, "{}", stored)
    sealed = Sealer([SECRET_KEY], "userId").seal_session("k" * 43, b"h" * 32, record)
    run_sync(store.put("k" * 43, sealed, 1e9))
    run_sync(store.close())
    env = {"CM_AUTH_SECRET_KEY": SECRET_KEY, "CM_AUTH_STORE": f"sqlite:///{path}"}
    result = CliRunner().invoke(main, ["sessions", "list", "--user", "7"], env=env)
    assert result.exit_code == 0, result.output
    assert re.search(r"from (unknown|fe80::1)\n", result.output)
    assert not RAW.search(result.output)
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["CLIENT_ID", "STORE", "REDIRECT_URI", "BASE_URL", "COOKIE_NAME", "STROE", "TIMEOUT"]
)
def test_the_command_prints_no_code_of_its_environment(name: str, escape: str) -> None:
    """61: nor of its arguments, nor of the name of a variable."""
    escape = escape.replace("\0", "")  # no environment can hold it
    env = {
        "CM_AUTH_CLIENT_ID": "x",
        "CM_AUTH_CLIENT_SECRET": "yy",
        "CM_AUTH_SECRET_KEY": SECRET_KEY,
        "CM_AUTH_STORE": "sqlite:///x.db",
        f"CM_AUTH_{name}": f"https://a{escape}b/auth/callback",
        f"CM_AUTH_{escape}": "1",
    }
    for arguments in (
        ["check", "--offline"],
        ["sessions", "count"],
        ["sessions", "count", "--store", f"sqlite:///{escape}"],
        ["sessions", f"co{escape}"],
        ["check", f"--{escape}"],
        ["check", escape],
        ["demo", "--port", escape],
    ):
        result = CliRunner().invoke(main, arguments, env=env)
        assert result.exit_code, arguments
        text = f"{result.output} {result.stderr}"
        assert not RAW.search(text), (arguments, text)
        assert not re.search(r"^FAKE", text, re.M)


class Talkative(MemoryStore):
    """A store whose error quotes what the test says."""

    says = ""

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        if self.says:
            raise StoreError(f"broken {self.says}")
        return await super().acquire(key, owner, ttl)


async def test_a_log_line_has_no_code_in_it(
    make_world: Any, escape: str, caplog: pytest.LogCaptureFixture
) -> None:
    """61: not of a host, a path, an error, nor of what a hook's error says of the user."""
    caplog.set_level(logging.DEBUG, logger="cm_auth_middleware")

    def failing(what: str) -> Callable[[Any], Any]:
        def hook(argument: Any) -> None:
            try:
                raise KeyError(argument.user["email"] if what == "session" else argument["email"])
            except KeyError as error:
                raise LookupError(f"{what} of {error.args[0]}") from error

        return hook

    def draws_nothing(page: Any) -> str:
        raise ValueError(escape)

    email = f"eve{escape}@evil.example"
    store = Talkative()
    world = make_world(store=store, on_login=failing("session"), error_handler=draws_nothing)
    stranger(world, email)
    browser = world.browser()
    assert (await browser.login(email=email)).status_code == 200
    world.net.add(APP, behind(world, host=f"evil{escape}".encode()))
    await world.browser().get("/auth/login")
    world.net.add(APP, world.app)
    away = world.browser()
    url = away.callback_url((await started(away)).headers["location"])
    await away.get(f"/x{quote(escape)}?{url.partition('?')[2]}")
    store.says = escape
    await away.get(url)
    refused = make_world(allow=failing("user"), store=Talkative())
    stranger(refused, email)
    assert (await refused.browser().login(email=email)).status_code == 403

    ours = [record for record in caplog.records if hasattr(record, "event")]
    assert {record.event for record in ours} >= {
        "hook_failed", "allow_failed", "error_handler_failed", "host_not_allowed",
        "callback_not_routed", "login_failed",
    }  # fmt: skip
    assert not RAW.search(caplog.text), RAW.findall(caplog.text)
    assert not re.search(r"^FAKE", caplog.text, re.M)
    assert "Traceback (most recent call last):\n  File " in caplog.text
    assert "The above exception was the direct cause of the following exception:\n\n" in caplog.text
    for record in ours:
        values = [v for k, v in vars(record).items() if k not in ("exc_info", "exc_text")]
        assert not [v for v in values if isinstance(v, str) and (RAW.search(v) or "\n" in v)]
        assert "\n" not in record.getMessage()


async def test_what_can_be_read_is_logged_as_it_is(
    make_world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """61: only what is not printable is escaped."""

    def on_login(session: Any) -> None:
        raise LookupError("Ελένη, 李, café: 😀")

    await make_world(on_login=on_login).login()
    assert "LookupError: Ελένη, 李, café: 😀" in caplog.text


async def test_a_page_has_no_code_in_it(make_world: Any, escape: str) -> None:
    """61: not of a path, a query, a header or the user, nor a header or JSON of ours."""
    email = f"eve{escape}@evil.example"
    code, raw = quote(escape), escape.encode()
    headers = dict.fromkeys(("user_agent", "referer", "accept_language", "hx_current_url"), raw)
    texts: list[str] = []
    for options in ({}, {"auto_login": False}, {"allow": lambda user: False}):
        world = make_world(**options)
        stranger(world, email)
        for browser in (
            world.browser(),
            world.browser(**JSON),
            world.browser(**{"HX-Request": "1"}),
        ):
            for path in (
                f"/x{code}", f"/?next={code}", f"/auth/login?next=/{code}",
                f"/auth/logout?next=/{code}", f"/auth/callback?code={code}&state={code}",
                f"/auth/callback?error={code}&error_description={code}", "/auth/signed-out",
            ):  # fmt: skip
                answer = await browser.get(path)
                texts += [answer.text, *answer.headers.values()]
            world.net.add(APP, behind(world, **headers, host=b"evil" + raw))
            answer = await browser.get("/auth/login")
            texts += [answer.text, *answer.headers.values()]
            world.net.add(APP, behind(world, **headers))
        browser = world.browser()
        start = await browser.get("/auth/login")
        url = browser.callback_url(start.headers["location"], email)
        for wanted in (
            re.sub(r"code=\w+", f"error={code}", url),
            url,
            "/auth/session",
            "/auth/logout",
        ):
            answer = await browser.get(wanted)
            texts += [answer.text, *answer.headers.values()]
        world.net.add(APP, behind(world, query=b"next=/" + raw + b"&error=" + raw, **headers))
        for path in ("/x", "/auth/login", "/auth/logout", "/auth/callback"):
            answer = await world.browser().get(path)
            texts += [answer.text, *answer.headers.values()]
    assert len(texts) > 100
    for text in texts:
        assert not RAW.search(html.unescape(text)), text


def test_a_page_of_the_simulator_has_no_code_in_it(escape: str) -> None:
    """61: neither of whom it names nor of what was typed."""
    email = f"eve{escape}@evil.example"
    sim = Simulator(client_id=f"id{escape}")
    sim.users.insert(0, stranger(None, email, escape))
    sim.settings.hint = True
    world = World(side="wsgi")  # for its network
    world.net.add(CM, sim)
    url = "/oauth/authorize?response_type=code&client_id={}&redirect_uri={}&scope=write&state={}"
    url = url.format(
        quote(sim.client_id), quote("http://localhost:8000/auth/callback"), quote(escape)
    )
    with httpx2.Client(transport=world.net, base_url=CM, follow_redirects=True) as client:
        pages = [
            client.get("/oauth/authorize?client_id=" + quote(escape)),
            client.get(url),
            client.post(url, data={"email": email, "password": "wrong"}),
            client.post(url, data={"email": email, "password": "cameras"}),
        ]
    assert "Allow access?" in pages[-1].text
    for page in pages:
        assert "Simulated CameraManager" in page.text
        assert not RAW.search(html.unescape(page.text)), page.text
    world.net.shut_down()
