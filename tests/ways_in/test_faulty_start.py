"""The start with a wrong option, a misspelt variable, or a store that cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.testclient import TestClient

from cm_auth_middleware import CMAuthMiddleware, CMAuthWSGIMiddleware, ConfigError
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.world import SECRET_KEY, World

pytestmark = pytest.mark.anyio

GOOD = {"client_id": "id", "client_secret": "secret", "secret_key": SECRET_KEY}
REASON = (
    "client_id, client_secret and secret_key are missing: give them as keywords or in "
    "CM_AUTH_CLIENT_ID, CM_AUTH_CLIENT_SECRET and CM_AUTH_SECRET_KEY"
)


@pytest.fixture(autouse=True)
def _no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GOOD:
        monkeypatch.delenv(f"CM_AUTH_{name.upper()}", raising=False)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[Any]]:
    """The records of an event."""
    return lambda event: [r for r in caplog.records if getattr(r, "event", "") == event]


async def lifespan(app: Any) -> list[Any]:
    """Start an application as a server does, and stop it; return what it sent."""
    sent: list[Any] = []
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    try:
        await app({"type": "lifespan", "state": {}}, receive, send)
    except ConfigError as error:
        sent.append(str(error))
    return sent


# -- a wrong option --------------------------------------------------------------------------


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
async def test_a_wrong_option_ends_the_start_with_its_reason(framework: Any, logged) -> None:
    app = framework()
    app.add_middleware(CMAuthMiddleware)
    failed, raised = await lifespan(app)
    assert failed == {
        "type": "lifespan.startup.failed",
        "message": f"cm_auth_middleware cannot start: {REASON}",
    }
    assert raised == REASON
    assert [record.reason for record in logged("config_error")] == [REASON]


async def test_a_server_that_goes_on_in_spite_of_it_gets_the_error_for_each_request() -> None:
    app = Starlette()
    app.add_middleware(CMAuthMiddleware)
    await lifespan(app)
    client = TestClient(app)
    for _ in range(2):
        with pytest.raises(ConfigError, match="are missing"):
            client.get("/")


def test_a_test_client_raises_it() -> None:
    app = Starlette()
    app.add_middleware(CMAuthMiddleware)
    with pytest.raises(ConfigError, match="are missing"), TestClient(app):
        pass
    with pytest.raises(ConfigError, match="are missing"):  # without a lifespan
        TestClient(app).get("/")


async def test_who_makes_the_middleware_gets_the_error_also_within_a_lifespan() -> None:
    caught = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            CMAuthMiddleware(make_app())
        except ConfigError as error:
            caught.append(str(error))

    await lifespan(CMAuthMiddleware(app, **GOOD))
    assert caught == [REASON]
    with pytest.raises(ConfigError):
        CMAuthWSGIMiddleware(make_wsgi_app())


async def test_a_good_start_sends_what_the_application_sends() -> None:
    app = Starlette()
    app.add_middleware(CMAuthMiddleware, **GOOD)
    assert [message["type"] for message in await lifespan(app)] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


# -- a misspelt variable ---------------------------------------------------------------------


async def test_a_misspelt_variable_is_warned_of_with_the_right_name(
    side: str, monkeypatch, logged
) -> None:
    monkeypatch.setenv("CM_AUTH_IDLE_TIMOUT", "5")
    monkeypatch.setenv("CM_AUTH_SECRETKEY_FILE", "/run/secrets/key")
    monkeypatch.setenv("CM_AUTH_SERVICE_HOST", "10.0.0.7")  # of Kubernetes, for a Service "cm-auth"
    monkeypatch.setenv("CM_AUTH_REQUIRE_REDIS", "1")  # of this package's own tests
    await World(side=side).close()
    warnings = {record.variable: record for record in logged("variable_unknown")}
    assert {name: record.option for name, record in warnings.items()} == {
        "CM_AUTH_IDLE_TIMOUT": "CM_AUTH_IDLE_TIMEOUT",
        "CM_AUTH_SECRETKEY_FILE": "CM_AUTH_SECRET_KEY_FILE",
    }
    assert {record.levelno for record in warnings.values()} == {logging.WARNING}


def made(side: str) -> object:
    if side == "asgi":
        return CMAuthMiddleware(make_app())
    return CMAuthWSGIMiddleware(make_wsgi_app())


def test_a_misspelt_variable_is_named_where_an_option_is_missing(
    side: str, monkeypatch, logged
) -> None:
    monkeypatch.setenv("CM_AUTH_CLIENTID", "hunter2")
    monkeypatch.setenv("CM_AUTH_SECRETKEY_FILE", "/run/secrets/key")
    monkeypatch.setenv("CM_AUTH_IDLE_TIMOUT", "5")
    with pytest.raises(ConfigError) as caught:
        made(side)
    assert str(caught.value) == (
        f"{REASON}; CM_AUTH_CLIENTID is set: did you mean CM_AUTH_CLIENT_ID?"
        "; CM_AUTH_SECRETKEY_FILE is set: did you mean CM_AUTH_SECRET_KEY_FILE?"
    )
    assert len(logged("variable_unknown")) == 3, "also those that nothing is missing for"


async def test_a_variable_for_an_option_that_only_code_can_give_is_warned_of(
    side: str, monkeypatch, logged
) -> None:
    monkeypatch.setenv("CM_AUTH_ALLOW", "*@example.com")
    monkeypatch.setenv("CM_AUTH_ON_LOGIN", "hooks:greet")
    monkeypatch.setenv("CM_AUTH_STORE_URL", "redis://h")
    await World(side=side).close()
    allow, on_login = logged("variable_for_code")
    assert (allow.variable, allow.levelno) == ("CM_AUTH_ALLOW", logging.WARNING)
    assert "did you mean CM_AUTH_ALLOW_EMAILS or CM_AUTH_ALLOW_ACCOUNTS?" in allow.getMessage()
    assert on_login.variable == "CM_AUTH_ON_LOGIN"
    assert "on_login is a function, given in code only" in on_login.getMessage()
    (store,) = logged("variable_unknown")
    assert (store.variable, store.option) == ("CM_AUTH_STORE_URL", "CM_AUTH_STORE")


# -- the store -------------------------------------------------------------------------------


async def start(side: str, store: str) -> None:
    """Start an application, and let it serve a visitor; then stop it."""
    world = World(side=side, store=store)
    if side == "asgi":
        await lifespan(world.app)
    else:
        await world.browser().get("/auth/session")
    await world.close()


async def test_a_store_that_cannot_be_opened_is_warned_of_at_the_start(
    side: str, tmp_path: Path, logged
) -> None:
    path = tmp_path / "other.db"
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    path.chmod(0o600)
    await start(side, f"sqlite:///{path}")
    (record,) = logged("store_unusable")
    assert record.levelno == logging.WARNING
    assert "is not a SQLite database" in record.reason


async def test_a_store_that_cannot_be_reached_is_warned_of_at_the_start(side, logged) -> None:
    await start(side, "redis://:hunter2@127.0.0.1:9/0")
    (record,) = logged("store_unusable")
    assert "127.0.0.1:9" in record.reason
    assert "hunter2" not in record.getMessage()


async def test_a_folder_that_is_missing_is_warned_of_before_the_first_request(side, logged) -> None:
    store = "sqlite:////nowhere/at/all/sessions.db"
    world = World(side=side, store=store)
    (record,) = logged("store_unusable")
    assert record.reason == "there is no folder /nowhere/at/all"
    await world.close()
    await start(side, store)
    assert len(logged("store_unusable")) == 2, "one for each start"


async def test_a_store_that_is_good_is_open_after_the_start(side, tmp_path: Path, logged) -> None:
    path = tmp_path / "sessions.db"
    await start(side, f"sqlite:///{path}")
    assert path.exists()
    assert logged("store_unusable") == []
