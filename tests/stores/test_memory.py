"""Memory: bounded, swept as it goes, safe over forks, and outspoken about several workers."""

from __future__ import annotations

import gc
import logging
import os
import re
import secrets
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from cm_auth_middleware import MemoryStore
from cm_auth_middleware.stores import workers
from tests.helpers.servers import free_port
from tests.helpers.stores import increment, run
from tests.helpers.world import Clock


def test_beyond_its_capacity_the_one_longest_not_written_goes() -> None:
    store = MemoryStore(3)
    for key in ("a", "b", "c"):
        run(store.put(key, b"v", 60))
    run(store.get("b"))
    run(store.replace("a", b"v", b"w", 60))
    run(store.put("d", b"v", 60))
    assert [run(store.get(key)) for key in "abcd"] == [b"w", None, b"v", b"v"]
    for number in range(100):
        run(store.put(str(number), b"v", 60))
    assert run(store.count()) == 3


def test_a_large_store_holds_about_its_capacity() -> None:
    store = MemoryStore(10_000)
    for number in range(30_000):
        run(store.put(f"key {number}", b"v", 60))
    assert 9_000 <= run(store.count()) <= 10_500


@pytest.mark.slow
def test_what_expired_is_gone_after_some_writes_also_among_what_lives_long() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    for number in range(50_000):
        run(store.put(f"long {number}", b"v", 10**6))
        run(store.put(f"short {number}", b"v", 600))
    clock.tick(601)
    run(store.put("a write", b"v", 600))
    for number in range(600):
        assert run(store.replace(f"long {number}", b"v", b"w", 10**6))
    assert run(store.purge()) == 0, "writes swept everything"
    assert run(store.count()) == 50_001


def test_one_write_sweeps_a_part_only() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    for number in range(50_000):
        run(store.put(f"short {number}", b"v", 600))
    clock.tick(601)
    run(store.put("a write", b"v", 600))
    assert run(store.purge()) > 49_000


def test_leases_that_ran_out_do_not_pile_up() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    for number in range(20_000):
        run(store.acquire(f"lease {number}", "owner", 1))
        clock.tick(0.01)
    assert len(store._leases) < 2_000


@pytest.mark.slow
def test_a_session_costs_two_hundred_bytes_beside_its_key_and_value() -> None:
    store = MemoryStore()
    records = [(secrets.token_hex(32), secrets.token_bytes(400)) for _ in range(100_000)]
    gc.collect()
    tracemalloc.start()
    try:
        for key, value in records:
            run(store.put(key, value, 60))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / len(records) <= 200


def test_threads_lose_no_increment() -> None:
    store = MemoryStore()
    run(store.put("k", b"0", 60))

    threads = [threading.Thread(target=lambda: run(increment(store, "k", 200))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run(store.get("k")) == b"1600"


class _Pausing(str):
    """A key whose write pauses where a dictionary asks for its hash."""

    __slots__ = ("at", "is_there", "may_go_on")

    def __hash__(self) -> int:
        self.at -= 1
        if self.at == 0:
            self.is_there.set()
            self.may_go_on.wait(10)
        return super().__hash__()


@pytest.mark.parametrize("step", range(1, 6))
@pytest.mark.parametrize("read", ["get", "find", "count"])
def test_a_record_that_is_being_written_anew_is_never_missed(read: str, step: int) -> None:
    store = MemoryStore()
    run(store.put("k", b"v1", 60))
    key = _Pausing("k")
    key.at, key.is_there, key.may_go_on = step, threading.Event(), threading.Event()
    writer = threading.Thread(target=lambda: run(store.put(key, b"v2", 60)))
    writer.start()
    assert key.is_there.wait(10)
    reads = {"get": lambda: store.get("k"), "find": lambda: store.find(b"v"), "count": store.count}
    found: list[object] = []
    reader = threading.Thread(target=lambda: found.append(run(reads[read]())))
    reader.start()
    reader.join(0.03)  # it may have to wait for the writer
    key.may_go_on.set()
    writer.join()
    reader.join()
    wanted = {"get": [b"v1", b"v2"], "find": [[("k", b"v1")], [("k", b"v2")]], "count": [1]}
    assert found[0] in wanted[read]


def test_a_fork_in_the_middle_of_a_write_leaves_the_child_a_working_store() -> None:
    code = """
    import os, signal, threading, time
    from cm_auth_middleware import MemoryStore
    from tests.helpers.stores import run

    entered, leave = threading.Event(), threading.Event()

    def clock():
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            leave.wait()
        return time.time()

    store = MemoryStore(clock=clock)
    run(store.put("k", b"v", 60))
    thread = threading.Thread(target=lambda: run(store.put("other", b"v", 60)))
    thread.start()
    entered.wait()  # the lock is held now
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        run(store.put("child", b"v", 60))
        os._exit(0 if run(store.get("k")) == b"v" else 1)
    leave.set()
    thread.join()
    status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0, "the child hung"
    """
    program = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(program, check=True, timeout=50, cwd=Path(__file__).parents[2])


# Several workers

SEVERAL = [
    ("uvicorn app:app --workers 4", {}),
    ("/usr/local/bin/uvicorn app:app --workers=4", {}),
    ("/lib/python3/site-packages/uvicorn/__main__.py app:app --workers 4", {}),
    ("uvicorn app:app", {"WEB_CONCURRENCY": "4"}),
    ("uvicorn app:app", {"UVICORN_WORKERS": "4"}),
    ("gunicorn -w 4 app:app", {}),
    ("gunicorn -w4 app:app", {}),
    ("gunicorn app:app", {"WEB_CONCURRENCY": "4"}),
    ("gunicorn app:app", {"GUNICORN_CMD_ARGS": "--bind=0:80 --workers=4"}),
    ("fastapi run app.py --workers 4", {}),
    ("granian --workers 4 app:app", {}),
    ("granian app:app", {"GRANIAN_WORKERS": "4"}),
    ("hypercorn -w 4 app:app", {}),
]
ONE = [
    ("uvicorn app:app", {}),
    ("uvicorn app:app --workers 1", {"WEB_CONCURRENCY": "4"}),
    ("uvicorn app:app --reload", {"WEB_CONCURRENCY": "4"}),
    ("fastapi dev app.py", {"WEB_CONCURRENCY": "4"}),
    ("gunicorn", {}),
    ("gunicorn app:app", {"WEB_CONCURRENCY": "many"}),
    ("hypercorn app:app", {"WEB_CONCURRENCY": "4"}),
    ("script.py --workers 4", {"WEB_CONCURRENCY": "4"}),
    ("pytest -w 4", {}),
    ("", {}),
]


def set_up(monkeypatch: pytest.MonkeyPatch, command: str, environ: dict[str, str]) -> None:
    monkeypatch.setattr(sys, "argv", command.split())
    for name in ("WEB_CONCURRENCY", "UVICORN_WORKERS", "GUNICORN_CMD_ARGS", "GRANIAN_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(workers, "_warned", False)


@pytest.mark.parametrize(("command", "environ"), SEVERAL)
def test_several_workers_are_warned_of_once(
    command: str,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    set_up(monkeypatch, command, environ)
    MemoryStore()
    MemoryStore()
    [record] = caplog.records
    assert (record.name, record.levelno) == ("cm_auth_middleware", logging.WARNING)
    assert record.getMessage().startswith("memory_store_multiprocess workers=4")
    assert "sqlite:///" in record.getMessage(), "it says what to do"


@pytest.mark.parametrize(("command", "environ"), ONE)
def test_one_worker_is_not_warned_of(
    command: str,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    set_up(monkeypatch, command, environ)
    MemoryStore()
    assert not caplog.records


APP = """
import logging
from cm_auth_middleware import MemoryStore
logging.basicConfig(format="%(message)s")
store = MemoryStore()
print("made a store", flush=True)
async def app(scope, receive, send):
    while True:
        kind = (await receive())["type"]
        await send({"type": kind + ".complete"})
"""


@pytest.mark.slow
@pytest.mark.parametrize(("option", "warned"), [("--workers=2", True), ("--reload", False)])
def test_uvicorn_itself(option: str, warned: bool, tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(APP)
    arguments = ["served:app", f"--port={free_port()}", option]
    log = tmp_path / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", *arguments],
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        try:
            for _ in range(400):
                if re.search("startup complete", log.read_text()):
                    break
                time.sleep(0.05)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(20)
    assert "made a store" in log.read_text()
    assert ("memory_store_multiprocess workers=2" in log.read_text()) is warned, log.read_text()
