"""A failover that loses a storm of refreshes, with real processes and Redis.

The link to the replica is cut before the tokens of many users expire, at a server that ends a grant
whose old refresh token is used again. Then the replica takes the primary's place.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.servers import Forwarder, catch_up, pair

from .camera_manager import email
from .rig import Rig, statuses

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

USERS = 100
STRICT = {"rotate_refresh_tokens": True, "revoke_family_on_reuse": True}


@pytest.mark.parametrize("end", ["killed", "demoted"])
@pytest.mark.parametrize("side", ["asgi", "wsgi"])
def test_a_storm_that_a_failover_loses_costs_no_session(
    tmp_path: Path, side: str, end: str
) -> None:
    with pair() as (old, new), Forwarder(old.port) as name:
        site = Rig(tmp_path, side=side, workers=2, settings=STRICT, store=name.url)
        try:
            cookies = [site.login(n % len(site.ports), email(n)) for n in range(USERS)]
            catch_up(old, new)
            new.command("REPLICAOF", "NO", "ONE")  # it gets nothing any more
            mark = site.cm.mark()
            site.expire()
            storm = site.crowd.ask(site.asks(cookies, 2 * USERS))
            name.port = new.port
            if end == "killed":
                old.stop()
            else:
                old.command("REPLICAOF", "127.0.0.1", str(new.port))
            after = site.crowd.ask(site.asks(cookies, 4 * USERS))
            slowest = max(answer.seconds for answer in after)
            alive, calls = site.alive(cookies), len(site.cm.refreshes(mark))
            print(
                f"\n{side}, {end}: storm {statuses(storm)}, after {statuses(after)}, slowest "
                f"{slowest:.2f} s, sessions lost {USERS - alive}, token calls {calls}"
            )
            assert set(statuses(storm)) <= {200, 503}
            assert set(statuses(after)) <= {200, 503}
            assert alive == USERS
            assert calls == USERS
            assert site.tracebacks() == 0
        finally:
            site.close()
