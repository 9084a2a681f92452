"""Serve an ASGI application while it is developed; for ``cm-auth dev``."""

from __future__ import annotations

import contextlib
import sys

import uvicorn


class _Config(uvicorn.Config):
    def load(self) -> None:
        super().load()
        # What is no coroutine function: uvicorn would answer 500 to every request.
        if self.interface == "asgi2":
            raise SystemExit(
                "This is not an ASGI application. For Flask, Django and other WSGI applications "
                "give --wsgi."
            )


def main(target: str, host: str, port: str) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    is_factory = target.endswith("()")
    config = _Config(target.removesuffix("()"), factory=is_factory, host=host, port=int(port))
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise SystemExit(3)  # as uvicorn's own command


if __name__ == "__main__":
    main(*sys.argv[1:])
