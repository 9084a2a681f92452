"""Which plays need a network namespace, where a machine may not permit one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers import fleets

from .fleets import KINDS, by_kind
from .scenarios import NotPlayedError


class StartedError(Exception):
    """A server would start now."""


def test_only_plays_that_cut_a_cable_need_a_network_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: str) -> None:
        raise OSError

    def start(*_: Any, **__: Any) -> None:
        raise StartedError

    monkeypatch.setattr(fleets, "_ip", refuse)
    monkeypatch.setattr(fleets._Maker, "node", start)
    monkeypatch.setattr(fleets, "signed", lambda _: None)
    monkeypatch.setattr(fleets, "valkey", lambda: "valkey-server")
    not_played = set()
    for kind, name in by_kind():
        with pytest.raises((NotPlayedError, StartedError)) as caught, KINDS[kind]():
            pass
        if caught.type is NotPlayedError:
            not_played.add(name)
    assert not_played == {"primary-cut-off", "store-cut-off"}


@pytest.mark.slow
def test_a_primary_stays_one_when_another_has_more_keys() -> None:
    with fleets.cluster() as fleet:
        primary = fleet.primary()
        other = next(node for node in fleet.primaries() if node is not primary)
        slot = fleet.owners()[fleet.name(other)][0][0]
        for number in range(int(primary.ask("DBSIZE")) + 1):
            other.ask("SET", f"{{{fleets._key_in(slot)}}}{number}", "value")
        assert fleet.primary() is other
        assert fleet.is_primary(primary)
        fleet.promote(fleet.replicas(primary)[0])
        assert not fleet.is_primary(primary)
