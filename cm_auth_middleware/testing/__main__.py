"""Run the simulator from a command line: `python -m cm_auth_middleware.testing --port 9400`."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from cm_auth_middleware.display import printable
from cm_auth_middleware.testing.live_reports import read_report, settings_like
from cm_auth_middleware.testing.server import SimulatorServer
from cm_auth_middleware.testing.simulator import (
    Settings,
    Simulator,
    host_refusal,
    settings_for,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; each setting is a flag, such as `--access-token-lifetime 60`."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--like", metavar="REPORT")
    first.add_argument("--provider", choices=_PROVIDERS)
    known, _ = first.parse_known_args(arguments)
    settings = settings_for(known.provider or "cameramanager")
    try:
        if known.like is not None:
            settings = settings_like(read_report(known.like), known.provider and settings)
    except ValueError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"the report cannot be read: {error.strerror}")
    options = vars(_parser(settings).parse_args(arguments))
    options.pop("like")
    port, host = options.pop("port"), options.pop("host")
    if refusal := host_refusal(settings.provider, host):
        return _fail(refusal)
    client_id, client_secret = options.pop("client_id"), options.pop("client_secret")
    seed = options.pop("seed")
    sim = Simulator(Settings(**options), client_id, client_secret, seed)
    try:
        server = SimulatorServer(sim, port, host)
    except (RuntimeError, OSError) as error:
        return _fail(str(error))
    with server, contextlib.suppress(KeyboardInterrupt):
        name = "CameraManager" if settings.provider == "cameramanager" else "Eagle Eye API v3"
        sys.stdout.write(f"Simulated {name} at {server.url}\n")
        sys.stdout.write(f"  client_id {client_id}, client_secret {client_secret}\n")
        for user in sim.users:
            sys.stdout.write(f"  {printable(user.email)}, password {user.password}\n")
        sys.stdout.write(f"  POST JSON to {server.url}/_control to change it; Ctrl-C stops it\n")
        sys.stdout.flush()
        server.wait()
    return 0


def _fail(reason: str) -> int:
    sys.stderr.write(f"error: {printable(reason)}\n")
    return 1


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cm_auth_middleware.testing",
        description="A simulator of Eagle Eye CameraManager, or of API v3, for tests and demos.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=9400, help="the port; 0 chooses a free one")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--client-id", default="demo-key-id", help="the API key's ID")
    parser.add_argument("--client-secret", default="demo-key-secret", help="the API key's SECRET")
    parser.add_argument("--seed", type=int, default=1, help="the seed of codes and tokens")
    parser.add_argument(
        "--like",
        metavar="REPORT",
        help="a report of cm-auth check --login, for the settings that are not given",
    )
    for knob in fields(Settings):
        if knob.name == "provider":
            kept = "the server to play, whose defaults the settings have"
            parser.add_argument(
                "--provider", choices=_PROVIDERS, default=settings.provider, help=kept
            )
            continue
        default = getattr(settings, knob.name)
        flag = f"--{knob.name.replace('_', '-')}"
        parser.add_argument(flag, default=default, help="setting", **_kind(knob.name, default))
    return parser


_PROVIDERS = ("cameramanager", "eagleeye")
_CHOICES = {"content_encoding": ("", "gzip", "deflate"), "dead_bearer_status": (401, 403)}


def _kind(name: str, default: object) -> dict[str, Any]:
    if name in _CHOICES:
        return {"type": type(default), "choices": _CHOICES[name]}
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction}
    if name == "redirect_uris":
        return {"action": "append", "metavar": "URI"}
    if name == "api_hosts":
        return {"nargs": "+", "metavar": "HOST"}
    if isinstance(default, str):
        return {"type": str, "metavar": "TEXT"}
    if name in ("snapshot_limit", "rate_limit"):
        return {"type": _count, "metavar": "N"}
    return {"type": _seconds, "metavar": "SECONDS"}


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError
    return number


if __name__ == "__main__":
    sys.exit(main())
