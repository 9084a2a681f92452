"""The simulator answers as Spring's two servers do, but for the differences that are known.

They are Spring Security OAuth for CameraManager, and Spring Authorization Server for Eagle Eye.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from . import eagle_eye_differences, eagle_eye_exchanges
from .comparison import carry_out, differences
from .exchanges import EXCHANGES, Exchange
from .known_differences import DOCUMENTED, INFERRED, KNOWN, OBSERVED, SEEN_IN_SPRING, Known
from .other_servers import OtherServer
from .processes import ROOT
from .report import Compared
from .simulator_server import Simulated, Steered
from .spring_server import Setting, Spring

HEADING = "\n## API v3 and Spring Authorization Server\n"
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
    result = Compared(str(setting), exchange.name, found, known)
    compared(result)
    _expect_what_is_known(result)


@pytest.mark.parametrize(
    "exchange", eagle_eye_exchanges.EXCHANGES, ids=lambda exchange: exchange.name
)
def test_the_simulator_answers_as_spring_authorization_server_does(
    exchange: Exchange,
    authorization_server: OtherServer,
    eagle_eye_simulator: Simulated,
    compared: Callable[[Compared], None],
) -> None:
    answers = []
    for server in (Steered(authorization_server.url), eagle_eye_simulator):
        server.reset(Setting(reuse=False, store="jdbc"))
        answers.append(carry_out(exchange, server, eagle_eye_exchanges.EAGLE_EYE))
    known = list(eagle_eye_differences.KNOWN.get(exchange.name, ()))
    result = Compared("Authorization Server", exchange.name, differences(*answers), known)
    compared(result)
    _expect_what_is_known(result)


def _expect_what_is_known(result: Compared) -> None:
    expected = [line for difference in result.known for line in difference.lines]
    assert result.found == expected, "\n".join(
        [
            f"{result.exchange}, at Spring ({result.setting}):",
            *(f"  new: {line}" for line in result.found if line not in expected),
            *(
                f"  gone, although listed as known: {line}"
                for line in expected
                if line not in result.found
            ),
        ]
    )


@pytest.mark.parametrize(
    ("exchanges", "all_known", "part"),
    [
        (EXCHANGES, KNOWN, 0),
        (eagle_eye_exchanges.EXCHANGES, eagle_eye_differences.KNOWN, 1),
    ],
    ids=["CameraManager", "Eagle Eye"],
)
def test_each_known_difference_is_one_of_an_exchange_and_is_told_in_the_documentation(
    exchanges: Sequence[Exchange], all_known: Mapping[str, Sequence[Known]], part: int
) -> None:
    names = [exchange.name for exchange in exchanges]
    assert len(set(names)) == len(names)
    page = (ROOT / "docs" / "simulator-faithfulness.md").read_text()
    rows = {
        name.strip(): cells[2].strip()
        for cells in (line.split("|") for line in page.split(HEADING)[part].splitlines())
        if len(cells) > 3
        for name in cells[1].split(";")
    }
    for name, known in all_known.items():
        assert name in names
        for difference in known:
            assert difference.tag in (DOCUMENTED, OBSERVED, SEEN_IN_SPRING, INFERRED)
            assert rows.get(name) == difference.tag, f"no row for {name!r} with its tag"
    assert set(rows) & set(names) == set(all_known)
