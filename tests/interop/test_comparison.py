"""The simulator answers as Spring Security OAuth does, but for the differences that are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .comparison import carry_out, differences
from .exchanges import EXCHANGES, Exchange
from .known_differences import DOCUMENTED, INFERRED, KNOWN, OBSERVED, SEEN_IN_SPRING
from .processes import ROOT
from .report import Compared
from .simulator_server import Simulated
from .spring_server import Setting, Spring

SETTINGS = [Setting(reuse=True, store="memory"), Setting(reuse=False, store="jdbc")]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange.name)
def test_the_simulator_answers_as_spring_does(
    exchange: Exchange,
    setting: Setting,
    spring_of: Callable[[Setting], Spring],
    simulator: Simulated,
    compared: Callable[[Compared], None],
) -> None:
    spring = spring_of(setting)
    spring.reset()
    simulator.reset(setting)
    found = differences(carry_out(exchange, spring), carry_out(exchange, simulator))
    known = [k for k in KNOWN.get(exchange.name, ()) if k.only in ("", str(setting))]
    compared(Compared(str(setting), exchange.name, found, known))
    expected = [line for difference in known for line in difference.lines]
    assert found == expected, "\n".join(
        [
            f"{exchange.name}, at Spring that {setting}:",
            *(f"  new: {line}" for line in found if line not in expected),
            *(
                f"  gone, although listed as known: {line}"
                for line in expected
                if line not in found
            ),
        ]
    )


def test_each_known_difference_is_one_of_an_exchange_and_is_told_in_the_documentation() -> None:
    names = [exchange.name for exchange in EXCHANGES]
    assert len(set(names)) == len(names)
    page = (ROOT / "docs" / "simulator-faithfulness.md").read_text()
    rows = {
        cells[1].strip(): cells[2].strip()
        for cells in (line.split("|") for line in page.splitlines())
        if len(cells) > 3
    }
    for name, known in KNOWN.items():
        assert name in names
        for difference in known:
            assert difference.tag in (DOCUMENTED, OBSERVED, SEEN_IN_SPRING, INFERRED)
            assert rows.get(name) == difference.tag, f"no row for {name!r} with its tag"
    assert set(rows) & set(names) == set(KNOWN)
