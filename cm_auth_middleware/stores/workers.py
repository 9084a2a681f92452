"""Find out how many worker processes the server was told to run.

The process tree does not show it: gunicorn, hypercorn and granian start a worker as a child process
even if it is the only one, and so does uvicorn's reloader. So the server's options are read.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import PurePath

from ..events import log

# The environment variables from which each server takes the number if no option gives it.
_SERVERS = {
    "uvicorn": ("UVICORN_WORKERS", "WEB_CONCURRENCY"),
    "gunicorn": ("WEB_CONCURRENCY",),
    "fastapi": ("WEB_CONCURRENCY",),
    "granian": ("GRANIAN_WORKERS",),
    "hypercorn": (),
}
_OPTION = re.compile(r"(?:--workers=?|-w=?)(\d*)\Z")

_warned = False


def warn_if_several_workers() -> None:
    """Log a warning, once in a process, if the server was told to run several workers."""
    global _warned
    workers = _workers()
    if workers > 1 and not _warned:
        _warned = True
        log("memory_store_multiprocess", workers=workers)


def _workers() -> int:
    """Return the number of workers that the server was told to run; 1 if nothing is known.

    Spawned workers have the server's ``sys.argv`` by multiprocessing, forked ones by the fork.
    """
    server, arguments = _server_name(), sys.argv[1:]
    if "--reload" in arguments or (server == "fastapi" and "dev" in arguments[:1]):
        return 1  # the two processes are one worker and its watcher
    return next(_stated(server, arguments), 1) if server else 1


def _stated(server: str, arguments: Sequence[str]) -> Iterator[int]:
    """Yield each number of workers that a server was told, the one that counts first."""
    yield from _options(arguments)
    if server == "gunicorn":
        # Its configuration file is a Python program, so look at the result.
        yield from _gunicorn_siblings()
        yield from _options(shlex.split(os.environ.get("GUNICORN_CMD_ARGS", "")))
    values = [os.environ.get(name, "") for name in _SERVERS[server]]
    yield from (int(value) for value in values if value.isdecimal())


def _server_name() -> str | None:
    """Return the name of the server, for ``uvicorn`` as for ``python -m uvicorn``."""
    path = PurePath(sys.argv[0]) if sys.argv else PurePath()
    name = path.parent.name if path.stem == "__main__" else path.stem
    return name if name in _SERVERS else None


def _options(arguments: Sequence[str]) -> Iterator[int]:
    """Yield each number that ``--workers N``, ``--workers=N``, ``-w N`` or ``-wN`` gives."""
    for argument, following in pairwise([*arguments, ""]):
        match = _OPTION.match(argument)
        if match:
            value = match[1] or following
            if value.isdecimal():
                yield int(value)


def _gunicorn_siblings() -> Iterator[int]:
    """Yield the number of workers in gunicorn's final configuration.

    A worker finds it in the list of the workers that were forked before it; for the first worker
    the list is empty.
    """
    arbiter = getattr(sys.modules.get("gunicorn.arbiter"), "Arbiter", None)
    workers = list(getattr(arbiter, "WORKERS", {}).values())
    yield from sorted((worker.cfg.workers for worker in workers), reverse=True)
