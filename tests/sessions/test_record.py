"""What stored bytes of released versions come to: nobody is logged out by an upgrade."""

from __future__ import annotations

import pytest

from cm_auth_middleware import MemoryStore
from tests.helpers.world import World

pytestmark = pytest.mark.anyio

# Made by version 0.1 at 821d7bc, with the tests' secret key: Anna's session, begun at
# 1 800 000 000, with data {"seen": [1, 2]}, and
# her grant, which another browser has refreshed since.
COOKIE = (
    "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9kZWZnaGlqa2xtbm9wcXJzdHV2d3h5ent8fX5_gIGCgw"
    ".6kqkfuDkLz6EO3LUwq0Y6JMXsPXO4_5pdm37nUMLP3Q"
)
KEY = "630dcd2966c4336691125448bbb25b4ff412a49c732db2c8abc1b8581bd710dd"
SEALED = (
    "01ae601b94f231f79ab7d6f92745167fe8b671ac2a41dad2748000000021cb3421861d84221114e6"
    "1beafcd03b7f1e200ba65523fbb7adfadb24433cf774ce4cad53abe282cce8d504cf25f862250529"
    "8c44284e42697845cdb5b67e465e115ff41d6d08ae5977a48b024f41729e99b18759865dc71e6787"
    "d2ceb3e125c837d045ecd6b6418dc46704024bc5803b70f9ed9bcc63393a98c8efac4f152ed0ad7f"
    "14437844faaf49d128327f19ec900075d007bd33409e83119c22dd171f13e6a3c76c51992157ef7d"
    "b2a439707f8b70ddc025227e90ec1c4c321ff439720e549c8474ad3918c55f27f354ed1768ccbf05"
    "8b66002696fd2ed08c8c7925e750c14cdf945ea3c20e15ebc130401ababfb7ec7c1c1af679589021"
    "6caf703f089dddb60f7d958e2c8d810b8ed6569ec45e3bb6ebd439db0d2ae8731e07494482d29153"
    "4d864bd11c6f971978253c28242c7c5b4b67607580024846936d458c6ed5223316c002403711d64f"
    "2cdcde44b9bff6c2dc"
)
GRANT_KEY = "grant.56778c243db4ff6fe7d8d561052f8fb803fa8be4eba5a432ec18ddbd31d4cf86"
GRANT = (
    "0242fd0d3f6c92619544443d82580efc78bc0c7e2841ee003b61dd7d82c6287d08faab7ce9fff691"
    "2e47e08a184fe4884033b1c49535df88e20ec9639b4ef9fb3538f058a909add2a32452288001875e"
    "6e2512525fc20d74aebb6ceb59fc267e12727d6234e5960817a664fb9d78dea5c71576d4635d8abb"
    "a0a333582f04a6f82e8e30f07d8519b505842d9d0d66c2ba6725245eb90858acf15a"
)
HANDLE = (
    "cmauth1.Rg0XgZJFfkSvTMoIPjK5KIqK3iG8sESzUx9HZxv8JHGZYFqP3NnYuDrVYLomJblq4DWUXGTw"
    "TUH8KP8c2n-Ynl_nCOArhZW2Ny8VyaTIhYiY6YvGr3rB5mA2bOY"
)


async def with_old_bytes(make_world, **options) -> World:
    world: World = make_world(store=MemoryStore(clock=lambda: 1_800_000_000.0), **options)
    store = world.engine.store
    await store.put(KEY, bytes.fromhex(SEALED), 7 * 86_400)
    await store.put(GRANT_KEY, bytes.fromhex(GRANT), 7 * 86_400)
    return world


async def test_a_session_of_version_0_1_goes_on(make_world) -> None:
    world = await with_old_bytes(make_world)
    browser = world.browser(Cookie=f"cm_auth={COOKIE}")
    info = (await browser.get("/auth/session")).json()
    assert info["user"]["email"] == "anna@example.com"
    assert (await browser.get("/data")).json() == {"seen": [1, 2]}
    await browser.post("/data", json={"more": True})
    assert (await browser.get("/data")).json() == {"seen": [1, 2], "more": True}
    [found] = await world.on_its_side(lambda: world.engine.sessions(10003))
    assert (found.logged_in_at, found.address) == (1_800_000_000.0, "127.0.0.1")


async def test_it_belongs_to_the_application_that_reads_it_first(make_world) -> None:
    world = await with_old_bytes(make_world)
    store = world.engine.store
    first = make_world(store=store, client_id="first")
    other = make_world(store=store, client_id="other")
    assert (await first.browser(Cookie=f"cm_auth={COOKIE}").get("/")).status_code == 200
    assert (await other.browser(Cookie=f"cm_auth={COOKIE}").get("/")).status_code == 302
    assert (await first.browser(Cookie=f"cm_auth={COOKIE}").get("/")).status_code == 200


async def test_its_grant_is_known_so_nobody_refreshes_twice(make_world) -> None:
    # The simulator does not know its tokens, and would refuse them when the user is read anew.
    world = await with_old_bytes(make_world, revalidate=10**8)
    world.clock.now = 1_800_043_300.0
    browser = world.browser(Cookie=f"cm_auth={COOKIE}")
    assert (await browser.get("/")).status_code == 200
    assert world.sim.token_calls() == []
    assert (await browser.get("/state")).json()["expires_at"] == 1_800_086_399.0


async def test_its_handles_open(make_world) -> None:
    world = await with_old_bytes(make_world)
    client = await world.client_for(HANDLE)
    assert repr(client).endswith(f"{KEY[:8]}>")
