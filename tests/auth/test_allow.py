"""Who may come in: allow_emails, allow_accounts and allow, at the login."""

from __future__ import annotations

import pytest

from cm_auth_middleware import CMAuthConfig, ConfigError
from cm_auth_middleware.testing import SimulatedUser
from tests.helpers.world import SECRET_KEY, both_providers

pytestmark = pytest.mark.anyio

KEY = {"client_id": "id", "client_secret": "s" * 8, "secret_key": SECRET_KEY}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "may"),
    [
        ({"allow_emails": ["*@example.com"]}, True),
        ({"allow_emails": "ANNA@Example.COM"}, True),
        ({"allow_emails": ["bob@example.com", "anna@example.com"]}, True),
        ({"allow_emails": ["bob@example.com"]}, False),
        ({"allow_emails": ["*@ample.com"]}, False),
        ({"allow_emails": ["*@example.com.evil"]}, False),
        ({"allow_emails": ["a@example.com"]}, False),
        ({"allow_accounts": [501]}, True),
        ({"allow_accounts": ["501", "502"]}, True),
        ({"allow_accounts": [50]}, False),
        ({"allow_emails": ["*@example.com"], "allow_accounts": [7]}, False),
        ({"allow_emails": ["*@example.com"], "allow": lambda _: False}, False),
        ({"allow_accounts": [501], "allow": lambda user: user["accountId"] == 501}, True),
        ({"allow_emails": ["bob@example.com"], "allow": lambda _: True}, False),
    ],
)
async def test_all_that_is_given_has_to_agree(make_world, options, may: bool) -> None:
    world = make_world(**options)
    world.sim.users[0].account_id = 501
    assert (await world.browser().login()).status_code == (200 if may else 403)


@both_providers
@pytest.mark.parametrize(
    "email",
    [
        "anna@example.com@evil.example",
        "anna@evil.example\n@example.com.evil",
        "mar\u212a@example.com",  # whose lower case is "mark"
        "\uff41nna@example.com",
        "",
    ],
)
async def test_an_address_that_only_looks_like_a_listed_one_stays_out(make_world, email) -> None:
    world = make_world(allow_emails=["anna@example.com", "mark@example.com"])
    world.sim.users.append(SimulatedUser(email, "cameras", "No", "Body", 9, 9))
    assert (await world.browser().login(email=email)).status_code == 403


@both_providers
async def test_a_user_without_an_address_or_account_stays_out(make_world) -> None:
    for options in ({"allow_emails": ["*@example.com"]}, {"allow_accounts": [501]}):
        world = make_world(**options)
        world.sim.fail_api((200, {world.user_id_field: 1}), path=world.user_path)
        assert (await world.browser().login()).status_code == 403


def test_the_environment_may_say_who_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CM_AUTH_ALLOW_EMAILS", "*@example.com, bob@example.org")
    monkeypatch.setenv("CM_AUTH_ALLOW_ACCOUNTS", "501,502")
    monkeypatch.setenv("CM_AUTH_REVALIDATE", "none")
    config = CMAuthConfig.from_env(**KEY)
    assert config.allow_emails == ("*@example.com", "bob@example.org")
    assert config.allow_accounts == ("501", "502")
    assert config.revalidate is None


@pytest.mark.parametrize("name", ["ALLOW_EMAILS", "ALLOW_ACCOUNTS"])
@pytest.mark.parametrize("value", ["", " ", ",", " , "])
def test_an_empty_variable_lets_nobody_in_by_mistake(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"CM_AUTH_{name}", value)
    with pytest.raises(ConfigError, match=f"{name.lower()} is empty"):
        CMAuthConfig.from_env(**KEY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow_emails": ["a@b.c", "example.com"]}, "allow_emails has no address in place 2"),
        ({"allow_emails": ["*"]}, "allow_emails has"),
        ({"allow_emails": ["*.example.com"]}, "allow_emails has"),
        ({"allow_emails": ["*@*.com"]}, "allow_emails has"),
        ({"allow_emails": []}, "allow_emails is empty"),
        ({"allow_accounts": ["5 01"]}, "allow_accounts has"),
        ({"revalidate": 0}, "revalidate has to be a positive"),
        ({"revalidate": "soon"}, "revalidate is a number"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CMAuthConfig(**{**KEY, **options})


def test_the_environment_says_who_comes_in_beside_a_config_object(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = CMAuthConfig(**KEY, scope="read")
    monkeypatch.setenv("CM_AUTH_ALLOW_EMAILS", "*@example.com")
    monkeypatch.setenv("CM_AUTH_SCOPE", "write")
    built = CMAuthConfig.build(config, {})
    assert built.allow_emails == ("*@example.com",)
    assert built.scope == "read"  # what the object says counts more


@both_providers
async def test_lists_go_by_what_the_server_says_of_a_user(make_world) -> None:
    """Eagle Eye's account is a text, in a user whose other members have other names."""
    open_one = make_world()
    browser = await open_one.login()
    account = (await browser.get("/auth/session")).json()["user"]["accountId"]
    for options, status in (
        ({"allow_accounts": [account]}, 200),
        ({"allow_accounts": f"1{account}"}, 403),
        ({"allow_emails": "*@example.com"}, 200),
        ({"allow_emails": "*@example.org"}, 403),
    ):
        world = make_world(beside=open_one, store="memory://", **options)
        assert (await world.browser().login()).status_code == status
