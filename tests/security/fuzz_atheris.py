"""Coverage-guided fuzzing of the parsers, and of both sides; run by hand, and shortly in CI.

Usage: ``python -m tests.security.fuzz_atheris TARGET [-runs=1000000] [CORPUS_DIRECTORY]``, where
TARGET is ``paths``, ``cookies`` or ``sides``. It ends with 0 after so many inputs, or at once,
with the input that it failed on, by an error. Needs ``pip install -e '.[fuzz]'``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["cm_auth_middleware"]):
    from cm_auth_middleware.sessions.cookie import TicketSigner
    from tests.helpers.world import SECRET_KEY

    from .fuzzing import Sides, check_cookie, check_exempt, check_handle, check_state, check_target

_MOUNTS = ["", "/sub", "/a/b"]
_METHODS = ["GET", "HEAD", "POST", "OPTIONS"]
_HEADERS = ["host", "origin", "accept", "sec-fetch-site", "sec-fetch-mode", "hx-request", "cookie"]
_session = TicketSigner([SECRET_KEY])


def paths(data: bytes) -> None:
    """Return targets and exempt paths."""
    given = atheris.FuzzedDataProvider(data)
    mount = given.PickValueInList(_MOUNTS)
    text = given.ConsumeUnicode(200)
    for target in (text, f"{mount}/{text}"):
        check_target(target, mount)
        check_exempt(target)
    check_exempt(f"/public/{text}")


def cookies(data: bytes) -> None:
    """Session cookies, states and handles: none is ours, and none is an error."""
    given = atheris.FuzzedDataProvider(data)
    value = given.ConsumeString(200)
    assert _session.load(value) is None
    assert _session.load(f"{value[:86]:A<86}.{value[86:129]:A<43}") is None
    check_state(given.ConsumeUnicode(50))
    check_handle(value)


def sides_target(sides: Sides) -> Callable[[bytes], None]:
    """Whole requests of a visitor, at both sides."""

    def run(data: bytes) -> None:
        given = atheris.FuzzedDataProvider(data)
        method = given.PickValueInList(_METHODS)
        headers = {given.PickValueInList(_HEADERS): given.ConsumeUnicode(40) for _ in range(2)}
        query = given.ConsumeUnicode(60)
        sides.check_visitor(method, "/" + given.ConsumeUnicode(60), query, headers)
        check_cookie(sides, given.ConsumeBytes(100))

    return run


def main() -> None:
    """Run one of the targets."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in ("paths", "cookies", "sides"):
        sys.exit(__doc__)
    target: Callable[[bytes], None] = paths if name == "paths" else cookies
    if name == "sides":
        target = sides_target(Sides().__enter__())
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
