"""Attacks on the SQLite file by other users of the machine."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from click.testing import CliRunner

from cm_auth_middleware import CMAuthMiddleware, CMAuthWSGIMiddleware, StoreError
from cm_auth_middleware.cli import main
from cm_auth_middleware.stores import SQLiteStore, sqlite_file
from tests.helpers.stores import run
from tests.helpers.world import SECRET_KEY, MakeWorld

pytestmark = pytest.mark.slow

PARTS = ("", "-wal", "-shm", "-journal")
Check = Callable[[SQLiteStore], Coroutine[Any, Any, None]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as the documentation asks for."""
    folder = tmp_path / "sessions"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(params=["asyncio", "trio", "threads"])
def side(request: pytest.FixtureRequest, folder: Path) -> Callable[[Check], None]:
    """Runs a check with a store on a file in the folder, on each side."""

    def run_check(check: Check) -> None:
        async def checked(store: SQLiteStore) -> None:
            try:
                await check(store)
            finally:
                await store.close()

        store = SQLiteStore(folder / "s.db")
        if request.param == "threads":
            run(checked(store.blocking()))
        else:
            anyio.run(checked, store, backend=request.param)

    return run_check


async def refused(store: SQLiteStore, *sentences: str) -> None:
    """Every method says what is the matter and how to mend it."""
    for call in (store.ping(), store.get("k"), store.put("k", b"v", 60), store.delete("k")):
        with pytest.raises(StoreError) as caught:
            await call
        for sentence in sentences:
            assert sentence in str(caught.value)


def make(path: Path) -> None:
    """Make a store's file with a record in it."""
    store = SQLiteStore(path).blocking()
    run(store.put("k", b"v", 60))
    run(store.close())


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)


def strangers(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let a place belong to another user than this process; return what undoes it."""
    if os.geteuid() == 0:
        os.chown(place, 65534, -1)
        return lambda: os.chown(place, 0, -1)
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    return lambda: monkeypatch.setattr(os, "geteuid", lambda: us)


# Modes and owners


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_folder_that_everybody_may_write_is_refused(
    side: Callable[[Check], None], folder: Path, mode: int
) -> None:
    """66: also with the sticky bit, and nothing is made there."""
    folder.chmod(mode)

    async def check(store: SQLiteStore) -> None:
        await refused(store, f"{folder} can be written by everybody", "a folder of its own", "0700")
        with pytest.raises(StoreError) as caught:
            await store.ping()
        is_sticky = mode == 0o1777
        assert (f"chmod o-w {folder}" in str(caught.value)) is not is_sticky
        assert set(folder.parent.rglob("*.db*")) == set()
        folder.chmod(0o755)  # noqa: ASYNC240
        await store.put("k", b"v", 60)

    side(check)


def test_the_systems_own_folder_for_everybody_is_refused(tmp_path: Path) -> None:
    """66: /tmp itself, whoever it belongs to."""
    path = Path("/tmp") / f"{tmp_path.name}-{os.getpid()}.db"
    with pytest.raises(StoreError, match=r"can be written by everybody.*mode 0700"):
        run(SQLiteStore(path).blocking().ping())
    assert not path.exists()


@pytest.mark.parametrize("part", PARTS)
def test_a_file_that_everybody_may_write_is_refused(
    side: Callable[[Check], None], folder: Path, part: str
) -> None:
    """66: the file, its log, its index and its journal."""
    make(folder / "s.db")
    place = folder / f"s.db{part}"
    place.touch()
    place.chmod(0o602)

    async def check(store: SQLiteStore) -> None:
        await refused(store, f"{place} can be written by everybody: chmod o-w {place}")
        place.chmod(0o600)
        assert await store.get("k") == b"v"

    side(check)


@pytest.mark.parametrize("part", ["folder", *PARTS])
def test_what_belongs_to_another_user_is_refused(
    side: Callable[[Check], None], folder: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """66: who owns a file may write it, whatever its mode."""
    make(folder / "s.db")
    place = folder if part == "folder" else folder / f"s.db{part}"
    if place != folder:
        place.touch()
    give_back = strangers(place, monkeypatch)

    async def check(store: SQLiteStore) -> None:
        await refused(store, " belongs to another user", "run as that user, or chown it")
        give_back()
        assert await store.get("k") == b"v"

    side(check)


def test_a_file_that_a_group_may_write_is_warned_of_once(
    side: Callable[[Check], None], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """66: an operator may mean it; the log says it, and how to end it."""
    caplog.set_level(logging.INFO, logger="cm_auth_middleware")
    make(folder / "s.db")
    folder.chmod(0o770)
    (folder / "s.db").chmod(0o660)

    async def check(store: SQLiteStore) -> None:
        for _ in range(3):
            assert await store.get("k") == b"v"
            await store.close()
        twin = store.blocking()
        assert await twin.get("k") == b"v"

    side(check)
    told = [vars(record) for record in caplog.records if record.levelno == logging.WARNING]
    assert {record["event"] for record in told} == {"store_permissions"}
    paths = [record["path"] for record in told]
    assert len(paths) == len(set(paths))
    assert {str(folder), str(folder / "s.db")} <= set(paths)
    assert all(f"chmod g-w {record['path']}" in record["reason"] for record in told)


def test_a_mode_that_changes_while_the_file_is_open_is_noticed(
    side: Callable[[Check], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """66: the file's, which is looked at once a second anyway."""
    monkeypatch.setattr(sqlite_file, "_LOOK_EVERY", 0)

    async def check(store: SQLiteStore) -> None:
        await store.put("k", b"v", 60)
        (folder / "s.db").chmod(0o666)
        await refused(store, "chmod o-w")
        (folder / "s.db").chmod(0o600)
        assert await store.get("k") == b"v"

    side(check)


# Links


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_a_link_in_place_of_a_file_is_not_followed(
    side: Callable[[Check], None], folder: Path, tmp_path: Path, part: str, kind: str
) -> None:
    """66: neither to a file nor to where one could be made."""
    target = tmp_path / "elsewhere.db"
    if part:
        make(folder / "s.db")
    if kind == "file":
        make(target)
    before = target.read_bytes() if target.exists() else None
    place = folder / f"s.db{part}"
    place.symlink_to(target)

    async def check(store: SQLiteStore) -> None:
        await refused(store, f"{place} is a link")
        assert (target.read_bytes() if target.exists() else None) == before
        place.unlink()
        await store.put("k", b"w", 60)

    side(check)


def test_a_link_put_in_the_place_of_the_open_file_is_noticed(
    side: Callable[[Check], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """66: also one that leads to the very file."""
    monkeypatch.setattr(sqlite_file, "_LOOK_EVERY", 0)

    async def check(store: SQLiteStore) -> None:
        await store.put("k", b"v", 60)
        (folder / "s.db").rename(folder / "moved.db")
        (folder / "s.db").symlink_to(folder / "moved.db")
        await refused(store, "is a link")

    side(check)


def test_a_link_among_the_folders_is_followed_and_its_end_judged(
    folder: Path, tmp_path: Path
) -> None:
    """66: /tmp and /var/run are links on some systems."""
    (tmp_path / "link").symlink_to(folder)
    store = SQLiteStore(tmp_path / "link" / "s.db").blocking()
    run(store.put("k", b"v", 60))
    run(store.close())
    assert (folder / "s.db").exists()
    folder.chmod(0o777)
    with pytest.raises(StoreError, match=f"{folder} can be written by everybody"):
        run(store.get("k"))


def test_folders_that_are_links_in_a_circle_are_a_store_error(tmp_path: Path) -> None:
    """66: and no traceback."""
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(StoreError):
        run(SQLiteStore(tmp_path / "a" / "s.db").blocking().ping())


# What the file holds

TRIGGER = (
    "CREATE TRIGGER theirs AFTER INSERT ON records "
    "BEGIN DELETE FROM records WHERE key <> new.key; END"
)
OBJECTS = {
    "trigger": TRIGGER,
    "view": "CREATE VIEW theirs AS SELECT * FROM records",
    "virtual table": "CREATE VIRTUAL TABLE theirs USING fts5(x)",
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_what_would_run_by_itself_is_refused(
    side: Callable[[Check], None], folder: Path, kind: str
) -> None:
    """66: a trigger, a view, a virtual table."""
    make(folder / "s.db")
    change(folder / "s.db", OBJECTS[kind])

    async def check(store: SQLiteStore) -> None:
        await refused(store, f"has a {kind} that this package did not make, 'theirs", "drop it")
        change(folder / "s.db", f"DROP {kind.split()[-1]} theirs")
        assert await store.get("k") == b"v"

    side(check)


def test_a_trigger_that_claims_to_be_an_index_is_refused(
    side: Callable[[Check], None], folder: Path
) -> None:
    """66: by us, or by SQLite as a damage."""
    make(folder / "s.db")
    with closing(sqlite3.connect(folder / "s.db")) as database, database:
        database.execute("PRAGMA writable_schema = ON")
        row = ("index", "theirs", "records", 0, TRIGGER)
        database.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)

    async def check(store: SQLiteStore) -> None:
        with pytest.raises(StoreError, match=r"did not make|damaged"):
            await store.put("new", b"w", 60)

    side(check)


def test_the_name_of_a_trigger_is_not_told_raw(folder: Path) -> None:
    """66: a terminal would obey it."""
    make(folder / "s.db")
    change(folder / "s.db", TRIGGER.replace("theirs", '"\x1b[31m\nFAKE line%s"' % ("x" * 1000)))
    with pytest.raises(StoreError, match=r"did not make, '\\x1b\[31m\\nFAKE") as caught:
        run(SQLiteStore(folder / "s.db").blocking().ping())
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("event", ["INSERT", "UPDATE", "DELETE"])
def test_a_trigger_that_comes_while_the_file_is_open_never_runs(
    side: Callable[[Check], None], folder: Path, event: str
) -> None:
    """66: the statement that would set it off fails, and those after it say why."""

    async def check(store: SQLiteStore) -> None:
        for key in ("k", "other"):
            await store.put(key, b"v", 60)
            await store.replace(key, b"v", b"v", 60)
        await store.delete("no such key")
        statement = f"CREATE TRIGGER theirs AFTER {event} ON records BEGIN DELETE FROM records; END"
        change(folder / "s.db", statement)
        calls = {
            "INSERT": lambda: store.put("new", b"v", 60),
            "UPDATE": lambda: store.replace("k", b"v", b"w", 60),
            "DELETE": lambda: store.delete("k"),
        }
        with pytest.raises(StoreError, match="trigger"):
            await calls[event]()
        await refused(store, "has a trigger that this package did not make, 'theirs'")
        change(folder / "s.db", "DROP TRIGGER theirs")
        assert await store.get("k") == await store.get("other") == b"v"
        await calls[event]()

    side(check)


def test_tables_that_do_nothing_are_nobodys_harm(
    side: Callable[[Check], None], folder: Path
) -> None:
    """66: what ANALYZE and tools for backups leave there is not refused."""
    make(folder / "s.db")
    change(folder / "s.db", "CREATE TABLE _backup_seq (id INTEGER PRIMARY KEY, seq INTEGER UNIQUE)")
    change(folder / "s.db", "CREATE UNIQUE INDEX backup ON _backup_seq (seq)")
    change(folder / "s.db", "ANALYZE")

    async def check(store: SQLiteStore) -> None:
        assert await store.get("k") == b"v"
        await store.put("k", b"w", 60)

    side(check)


def test_looking_costs_no_statement_anything(folder: Path, monkeypatch: Any) -> None:
    """66: once for each connection."""
    looked = []
    check_access = sqlite_file.check_access

    def counted(path: Path) -> Any:
        looked.append(path)
        return check_access(path)

    monkeypatch.setattr(sqlite_file, "check_access", counted)
    store = SQLiteStore(folder / "s.db").blocking()
    for number in range(50):
        run(store.put(f"k{number}", b"v", 60))
        run(store.get(f"k{number}"))
    run(store.close())
    assert len(looked) == 1


# Through the middleware


def spoil_mode(folder: Path) -> None:
    folder.chmod(0o777)


def spoil_file(folder: Path) -> None:
    (folder / "s.db").touch(0o600)
    (folder / "s.db").chmod(0o666)


def spoil_link(folder: Path) -> None:
    (folder / "s.db").symlink_to(folder / "elsewhere.db")


def spoil_schema(folder: Path) -> None:
    make(folder / "s.db")
    change(folder / "s.db", TRIGGER)


def mend(folder: Path) -> None:
    folder.chmod(0o700)
    for file in folder.glob("s.db*"):
        file.unlink()


SPOILT = {
    "folder": (spoil_mode, "put the file in a folder of its own with mode 0700"),
    "file": (spoil_file, "chmod o-w"),
    "link": (spoil_link, "is a link: name the file that it leads to"),
    "trigger": (spoil_schema, "has a trigger that this package did not make"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("what", SPOILT)
async def test_a_login_is_503_and_the_log_says_how_to_mend_it(
    make_world: MakeWorld, folder: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """66: and a page says nothing of files."""
    caplog.set_level(logging.INFO, logger="cm_auth_middleware")
    spoil, sentence = SPOILT[what]
    spoil(folder)
    world = make_world(store=f"sqlite:///{folder / 's.db'}")
    answer = await world.browser().login()
    assert answer.status_code == 503
    assert str(folder) not in answer.text
    assert sentence in caplog.text
    mend(folder)
    with anyio.fail_after(10):
        while (await world.browser().login()).status_code != 200:
            await anyio.sleep(0.1)


@pytest.mark.parametrize("what", SPOILT)
def test_the_doctor_finds_it(folder: Path, what: str) -> None:
    """66: `cm-auth check`, before the application starts."""
    spoil, sentence = SPOILT[what]
    spoil(folder)
    result = doctor(folder)
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())


def test_the_doctor_warns_of_a_group(folder: Path) -> None:
    """66: which is no error."""
    folder.chmod(0o770)
    result = doctor(folder)
    assert result.exit_code == 1
    assert f"chmod g-w {folder}" in " ".join(result.output.split())


def doctor(folder: Path) -> Any:
    environment = {
        "CM_AUTH_CLIENT_ID": "id",
        "CM_AUTH_CLIENT_SECRET": "x" * 20,
        "CM_AUTH_SECRET_KEY": SECRET_KEY,
        "CM_AUTH_STORE": f"sqlite:///{folder / 's.db'}",
        "CM_AUTH_REDIRECT_URI": "https://cams.example.com/auth/callback",
    }
    return CliRunner().invoke(main, ["check", "--offline"], env=environment)


@pytest.mark.parametrize("middleware", [CMAuthMiddleware, CMAuthWSGIMiddleware])
def test_a_file_that_must_not_be_used_is_told_of_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, middleware: Any
) -> None:
    """66: not only when the first user logs in."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    middleware(
        None, client_id="id", client_secret="s" * 8, secret_key=SECRET_KEY,
        store=f"sqlite:///{folder}/sessions.db",
    )  # fmt: skip
    assert "store_unusable" in caplog.text
    assert not (folder / "sessions.db").exists()
