"""No password of a store's URL is printed, logged or shown, wherever in the URL it stands."""

from __future__ import annotations

import logging
import os
import re
import traceback
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from hypothesis import assume, example, given
from hypothesis import strategies as st

from cm_auth_middleware import AuthEngine, CMAuthConfig, CMAuthMiddleware, CMAuthWSGIMiddleware
from cm_auth_middleware.cli import main
from cm_auth_middleware.stores import open_store
from tests.helpers.world import CM, SECRET_KEY

from .profile import PROFILE
from .visits import started

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

AT = "127.0.0.1:1"  # where nobody listens
# None of these letters, and no two of these digits, are in what is printed beside.
passwords = st.text("QXZKV789@:/#?&;=%+,! $\"'[\\é", min_size=6, max_size=24)
PLACES = [
    f"redis://{{}}@{AT}/0",
    f"redis://user:{{}}@{AT}/0",
    f"redis://:{{}}@{AT}",
    f"rediss://:{{}}@{AT}/0?socket_timeout=0.1",
    "redis://:{}@/0",
    "redis://:{}",
    f"redis:/u:{{}}@{AT}",
    f"u:{{}}@{AT}/0",
    f"REDIS://u:{{}}@{AT}/0",
    "unix://u:{}@/nowhere/redis.sock?db=1",
    "unix://u:{}@",
    f"redis://{AT}/0?password={{}}",
    f"redis://{AT}/0?db=1&PASSWORD={{}}",
    f"redis://{AT}/0?%70assword={{}}",
    f"redis://{AT}/0?password=x&password={{}}",
    f"redis://{AT}/0?db=1;password={{}}",
    f"redis://{AT}/0;password={{}}",
    f"redis://{AT}/0?passwrd={{}}",
    f"redis://{AT}/0?colour=blue&{{}}=1",
    f"redis://{AT}/0?username={{}}",
    f"redis://{AT}/0?db={{}}",
    f"rediss://{AT}/0?ssl_password={{}}",
    f"redis://{AT}/0#{{}}",
    f"redis://{AT}/x{{}}",
    f"redis+sentinel://u:{{}}@{AT},127.0.0.1:2/main",
    f"redis+sentinel://u:x@{AT},v:{{}}@127.0.0.1:2/main",
    f"redis+sentinel://{AT}/main?sentinel_password={{}}",
    f"redis+sentinel://{AT}/main?sentinel%5Fpassword={{}}",
    f"redis+cluster://u:{{}}@{AT}",
    f"redis://[{{}}@{AT}",
    f"postgresql://u:{{}}@{AT}/x",
    f"postgres://u:{{}}@{AT},127.0.0.1:2/x?sslmode=require",
    f"postgresql://{AT}/x?password={{}}",
    f"postgresql://{AT}/x?sslmode=require&PASSWORD={{}}",
    f"postgresql://{AT}/x?options={{}}",
    f"postgresql://{AT}/x?table={{}}",
    f"postgresql://{AT}/x?{{}}=1",
    f"postgresql://{AT}/{{}}",
    f"https://u:{{}}@{AT}/x",
    f"rediss+proxy://u:{{}}@{AT}",
    "memory://{}",
    "sqlite://u:{}@host/x.db",
    "sqlite:///u:{}@host/x.db",
    "sqlite:////nowhere/x.db?key={}",
    "sqlite:////nowhere/x.db%3Fkey={}",
]
IN_ENVIRONMENT = {
    "CM_AUTH_CLIENT_ID": "id",
    "CM_AUTH_CLIENT_SECRET": "a-secret-of-its-own",
    "CM_AUTH_SECRET_KEY": SECRET_KEY,
    "CM_AUTH_BASE_URL": CM,
}


def pieces(password: str) -> set[str]:
    """Four characters in a row of a password, as it is or decoded, but for mere punctuation."""
    fours = {password[i : i + 4] for i in range(len(password) - 3)}
    return {four for four in fours if sum(c in "QXZKV789é" for c in four) > 1}


def check(text: str, password: str) -> None:
    assert [piece for piece in pieces(password) if piece in text] == []


def told_by(make: Any) -> str:
    """What a store or a configuration says of itself, or the error instead of it."""
    try:
        made = make()
    except Exception as error:
        return told_of(error)
    return f"{made!r} {made}"


def told_of(error: BaseException | None) -> str:
    texts = []
    while error is not None:
        # Without the lines of code, which name what they are called with, and no values.
        texts += [repr(error), *traceback.format_exception_only(error)]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def command(*arguments: str, **environment: str) -> str:
    clean = {name: None for name in os.environ if name.startswith("CM_AUTH_")}
    env = {**clean, **IN_ENVIRONMENT, **environment}
    result = CliRunner().invoke(main, arguments, env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return f"{result.output} {result.stderr}"


def means_something_else(place: str, password: str) -> bool:
    """Whether it makes a host, a port or a database that nobody could tell from one."""
    is_port = place.endswith(":{}") and re.match(r"\d{4,}([/?#]|$)", password)
    return bool(is_port) or (place.endswith("db={}") and bool(re.match(r"\d{4}(&|$)", password)))


@PROFILE
@given(place=st.sampled_from(PLACES), password=passwords, quoted=st.booleans())
@example(place=PLACES[1], password="QX@ZK/789@Q", quoted=False)
@example(place=PLACES[1], password="78/QXZK8", quoted=False)
@example(place=PLACES[1], password="78?db=7899", quoted=False)
@example(place=f"redis://{AT}/0?password={{}}", password="QX&db=7789", quoted=False)
@example(place="sqlite:///u:{}@host/x.db", password="Q/QXZK/Q", quoted=False)
@example(place=f"postgresql://{AT}/x?{{}}=1", password="777777", quoted=False)
@example(place=f"redis://{AT}/0?{{}}=1", password="777777", quoted=False)
def test_a_password_in_any_part_of_a_store_url_is_printed_nowhere(
    place: str, password: str, quoted: bool
) -> None:
    """55: by the command, by errors, by what stores say of themselves."""
    assume(not means_something_else(place, password))
    password = quote(password, safe="") if quoted else password
    assume("%00" not in password)
    url = place.format(password)
    with patch.dict(os.environ):  # a store that is opened reads nothing, but to be sure
        texts = [
            told_by(lambda: open_store(url)),
            told_by(lambda: CMAuthConfig(client_id="x", client_secret="y", secret_key=SECRET_KEY,
                                         store=url)),
        ]  # fmt: skip
    for text in texts:
        check(text, password)
    check(command("check", "--offline", CM_AUTH_STORE=url), password)
    check(command("sessions", "count", CM_AUTH_STORE=url), password)
    check(command("sessions", "list", "--user", "1", "--store", url), password)
    check(command("sessions", "count", url), password)
    check(command(url), password)
    check(command("check", f"--store={url}"), password)


MISPLACED = [
    "redis://u:{}@127.0.0.1:1/0",
    "http://u:{}@127.0.0.1:1",
    "https://u:{}@127.0.0.1:1/auth/callback",
    "https://127.0.0.1:1/auth/callback?token={}",
]
OPTIONS = [
    "BASE_URL", "REDIRECT_URI", "CLIENT_ID", "PREFIX", "SCOPE", "EXEMPT", "ALLOWED_HOSTS",
    "ALLOW_EMAILS", "ALLOW_ACCOUNTS", "TIMEOUT", "COOKIE_SECURE", "COOKIE_NAME", "SECRET_KEY",
    "STROE", "REDIRECT_URL", "ALLOW",
]  # fmt: skip


@PROFILE
@given(name=st.sampled_from(OPTIONS), place=st.sampled_from(MISPLACED), password=passwords)
@example(name="BASE_URL", place="http://u:{}@127.0.0.1:1", password="78/QXZK8")
@example(name="REDIRECT_URI", place="https://u:{}@127.0.0.1:1/auth/callback", password="78/QXZK8")
@example(name="EXEMPT", place="redis://u:{}@127.0.0.1:1/0", password="Q,/QXZK8,Q")
def test_a_url_in_the_wrong_option_is_not_printed_either(
    name: str, place: str, password: str
) -> None:
    """55: nor the value of a variable that is none of ours."""
    variable = {f"CM_AUTH_{name}": place.format(password)}
    check(command("check", "--offline", CM_AUTH_STORE="sqlite:///x.db", **variable), password)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CM_AUTH_")}
    with patch.dict(os.environ, {**clean, **IN_ENVIRONMENT, **variable}, clear=True):
        check(told_by(CMAuthConfig.from_env), password)


@pytest.mark.parametrize("name", ["CLIENT_ID", "SCOPE", "COOKIE_NAME", "ALLOWED_HOSTS", "EXEMPT"])
def test_the_secret_in_another_option_is_not_printed(name: str) -> None:
    """55: pasted twice, or into the one option instead of the other."""
    value = "/QXZK789QXZK" if name == "EXEMPT" else "QXZK789QXZK"
    given = {f"CM_AUTH_{name}": value, "CM_AUTH_CLIENT_SECRET": "QXZK789QXZK"}
    check(command("check", "--offline", CM_AUTH_STORE="sqlite:///x.db", **given), "QXZK789QXZK")
    given["CM_AUTH_CLIENT_SECRET"] = "an-id"
    if name in ("CLIENT_ID", "SCOPE"):
        check(command("check", "--offline", CM_AUTH_STORE="sqlite:///x.db", **given), value)


PASSWORD = "QXZK/789@QX:ZK?7#Q&8"
QUOTED = quote(PASSWORD, safe="")


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{QUOTED}@{AT}/0",
        f"redis://user:QXZK789@QXZK@{AT}/0",
        f"redis://{AT}/0?password=QXZK@789QXZ&db=1",
        f"unix://u:{QUOTED}@/nowhere/redis.sock",
        f"unix:///nowhere/redis.sock?%70assword={QUOTED}",
        f"redis+sentinel://u:{QUOTED}@{AT}/main?sentinel_password={QUOTED}",
        f"redis+cluster://u:{QUOTED}@{AT}",
        f"sqlite:////nowhere/u:{QUOTED}@host/x.db",
    ],
)
async def test_a_store_that_fails_names_no_password(
    make_world: Any, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """55: in a login, on its page, in the log at DEBUG, in the engine."""
    caplog.set_level(logging.DEBUG)
    world = make_world(store=url, timeout=2)
    browser = world.browser()
    answer = await browser.finish((await started(browser)).headers["location"])
    assert answer.status_code == 503
    texts = [answer.text, str(answer.headers), repr(world.engine), repr(world.engine.store)]
    texts += [f"{r.getMessage()} {vars(r)!r}" for r in caplog.records if " " not in r.name]
    assert "login_failed" in caplog.text
    for text in (*texts, caplog.text):
        check(text, PASSWORD)
        check(text, QUOTED)
        check(text, "QXZK@789QXZ")


async def test_a_store_url_that_is_wrong_is_logged_without_its_password(
    side: str, caplog: pytest.LogCaptureFixture
) -> None:
    """55: at start-up, where the error is all that an operator sees."""
    middleware: Any = CMAuthMiddleware if side == "asgi" else CMAuthWSGIMiddleware
    options = {"client_id": "x", "client_secret": "y", "secret_key": SECRET_KEY}
    for place in PLACES:
        url = place.format("QX/ZK@789#QXZK?V")
        for make in (lambda: middleware(lambda: None, store=url, **options),  # noqa: B023
                     lambda: AuthEngine(store=url, **options)):  # noqa: B023  # fmt: skip
            check(told_by(make), "QX/ZK@789#QXZK?V")
    check(caplog.text, "QX/ZK@789#QXZK?V")
