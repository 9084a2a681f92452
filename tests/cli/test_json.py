"""``--json``, of every command: one line of it on standard output, and nothing else there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from cm_auth_middleware.cli import main
from cm_auth_middleware.runtime.run_sync import run_sync
from cm_auth_middleware.stores.sqlite import SQLiteStore

COMMAND = [sys.executable, "-m", "cm_auth_middleware.cli"]
ROOT = Path(__file__).parents[2]
OPTIONS = {
    "CM_AUTH_CLIENT_ID": "demo-key-id",
    "CM_AUTH_CLIENT_SECRET": "demo-key-secret",
    "CM_AUTH_SECRET_KEY": "uT3-pQ8_wZ1xK6vB9nM4aS7dF2gH5jL0cR",
    "CM_AUTH_STORE": "sqlite:///sessions.db",
    "CM_AUTH_BASE_URL": "http://127.0.0.1:9",  # nobody is there
}
# What each command is called with, its exit status, and the keys of its JSON: none if it fails,
# which it says in text on standard error.
CALLS: list[tuple[str, int, set[str]]] = [
    ("check", 2, {"options", "findings"}),
    ("check --offline", 1, {"options", "findings"}),
    ("check --offline --quiet", 1, {"findings"}),
    ("check --login", 2, set()),
    ("demo --host 0.0.0.0", 2, set()),
    ("demo --port 99999", 1, set()),
    ("dev main", 2, set()),
    ("init", 0, {"file"}),
    ("init --file sessions.db", 1, set()),
    ("secret", 0, {"secret_key"}),
    ("sessions count", 0, {"sessions"}),
    ("sessions count --store sqlite:///none.db", 1, set()),
    ("sessions list", 0, {"sessions", "next", "others"}),
    ("sessions list --user 10003", 1, set()),
    ("sessions purge", 0, {"purged"}),
    ("sessions revoke", 2, set()),
    ("sessions revoke --user 10003", 1, set()),
]
SERVERS = [  # the applications end by themselves
    ("demo --port 0", 0),
    ("dev mine:app --port 0 --no-reload", 3),
    ("dev mine:app --port 0 --no-reload --wsgi", 3),
]


def commands(group: click.Group, *words: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *words, name)
        else:
            yield " ".join([*words, name]), command


def test_every_command_has_the_option_and_is_tried_here() -> None:
    tried = [call for call, *_ in CALLS] + [call for call, _ in SERVERS]
    for name, command in commands(main):
        assert "as_json" in {parameter.name for parameter in command.params}, name
        assert any(f"{call} ".startswith(f"{name} ") for call in tried), name


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, Any]:
    """Where a command runs, for subprocess: a folder with an empty store and an application."""
    run_sync(SQLiteStore(tmp_path / "sessions.db").blocking().ping())
    (tmp_path / "mine.py").write_text(
        "print('of the application', flush=True)\nraise SystemExit(3)"
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith("CM_AUTH_")}
    return {"cwd": tmp_path, "env": own | OPTIONS | {"PYTHONPATH": str(ROOT)}, "text": True}


@pytest.mark.slow
@pytest.mark.parametrize(("call", "status", "keys"), CALLS, ids=[call for call, *_ in CALLS])
def test_one_line_of_json_is_the_output_of_a_command(
    environment: dict[str, Any], call: str, status: int, keys: set[str]
) -> None:
    arguments = [*COMMAND, *call.split(), "--json"]
    ended = subprocess.run(arguments, capture_output=True, timeout=60, check=False, **environment)
    assert ended.returncode == status, ended.stderr
    if keys:
        assert json.loads(ended.stdout).keys() == keys
        assert ended.stdout.count("\n") == 1
        assert ended.stderr == ""
    else:
        assert ended.stdout == ""
        assert "Error: " in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("call", "status"), SERVERS, ids=[call for call, _ in SERVERS])
def test_one_line_of_json_is_the_output_of_a_command_that_serves(
    environment: dict[str, Any], call: str, status: int
) -> None:
    process = subprocess.Popen(
        [*COMMAND, *call.split(), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **environment,
    )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told.keys() == {"url", "simulator", "email", "password"}
        if not status:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (status, ""), err
    assert ("of the application" in err) is bool(status)
    assert "Traceback" not in err
