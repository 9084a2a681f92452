"""The commands of docs/deployment.md that copy a store and put the copy in its place."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import closing, suppress
from pathlib import Path

import psycopg
import pytest

from tests.helpers.postgres import postgres_server
from tests.helpers.servers import RedisServer, redis_server, until
from tests.helpers.world import MakeWorld, World

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()


def commands(title: str) -> list[str]:
    """The commands for a store: the first copies, the others restore."""
    (block,) = re.findall(rf'^```sh title="{title}"\n(.*?)^```$', PAGE, re.DOTALL | re.MULTILINE)
    lines = [line for line in block.splitlines() if not line.startswith("#")]
    assert len(lines) <= 7
    return lines


def run(command: str, paths: dict[str, Path], user: str = "", **variables: str) -> None:
    """Run a documented command.

    Args:
        user: who owns the store, in place of the documented user; that who runs the tests if empty.
    """
    program = command.split()[0]
    if shutil.which(program) is None:
        pytest.skip(f"NOT TESTED: {program} is not installed")
    command = re.sub(r"(install .*)-o \w+ ", rf"\1-o {user} " if user else r"\1", command)
    command = re.sub(r"runuser -u \w+ --", f"runuser -u {user} --" if user else "", command)
    for documented, path in paths.items():
        command = command.replace(documented, str(path))
    done = subprocess.run(
        ["sh", "-ec", command], env={**os.environ, **variables}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


async def logged_in(make_world: MakeWorld, url: str) -> tuple[World, dict[str, str]]:
    """A site with a session, and its cookie."""
    world = make_world(store=url)
    browser = await world.login()
    return world, {"Cookie": f"cm_auth={browser.named('cm_auth')[0]}"}


async def status(make_world: MakeWorld, world: World, url: str, cookie: dict[str, str]) -> int:
    """What another process on the same store answers."""
    other = make_world(beside=world, store=url)
    answered = (await other.browser(**cookie).get("/")).status_code
    await other.close()
    return answered


async def test_a_copy_of_a_sqlite_file_brings_sessions_back(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    folder = tmp_path / "lib"
    folder.mkdir(mode=0o700)
    paths = {"/var/lib/cams": folder, "/backup": tmp_path}
    url = f"sqlite:///{folder / 'sessions.db'}"
    copy, *restore = commands("SQLite")
    world, cookie = await logged_in(make_world, url)
    run(copy, paths)
    await world.close()
    for path in folder.iterdir():
        path.unlink()
    assert await status(make_world, world, url, cookie) == 302
    for command in restore:
        run(command, paths)
    assert await status(make_world, world, url, cookie) == 200


def answers(server: RedisServer) -> bool:
    with suppress(OSError):
        return server.command("PING") == b"+PONG\r\n"
    return False


async def test_a_copy_of_redis_brings_sessions_back(make_world: MakeWorld, tmp_path: Path) -> None:
    copy, *restore, last = commands("Redis")
    # As root another user runs Redis, as where it is installed.
    user = "nobody" if os.geteuid() == 0 and shutil.which("runuser") else ""
    with redis_server() as server:
        conf = server.directory / "redis.conf"
        conf.write_text(
            f"port {server.port}\nunixsocket {server.socket}\ndir {server.directory}\n"
            f"appendonly yes\nlogfile {server.directory / 'log'}\n"
            f"pidfile {server.directory / 'pid'}\n"
        )
        paths = {
            "/var/lib/redis": server.directory,
            "/backup": tmp_path,
            "/etc/redis/redis.conf": conf,
        }
        world, cookie = await logged_in(make_world, server.url)
        run(copy, paths, REDIS=server.url)
        server.command("FLUSHALL")
        assert await status(make_world, world, server.url, cookie) == 302
        server.stop()
        if user:
            for path in (server.directory, *server.directory.iterdir()):
                shutil.chown(path, user)
        try:
            run("\n".join(restore), paths, user, REDIS=server.url)
            with pytest.raises(OSError):
                server.command("PING")
            assert last == "systemctl start redis-server"
            owners = {path.stat().st_uid for path in server.directory.glob("appendonlydir/*")}
            assert owners == {server.directory.stat().st_uid}
            started = "runuser -u redis -- redis-server /etc/redis/redis.conf --daemonize yes"
            run(started.removeprefix("" if user else "runuser -u redis -- "), paths, user)
            until(lambda: answers(server))
            assert await status(make_world, world, server.url, cookie) == 200
            assert b"aof_enabled:1" in server.command("INFO", "persistence")
        finally:
            with suppress(OSError):
                server.command("SHUTDOWN", "NOSAVE", "FORCE")


async def test_a_copy_of_a_postgresql_table_brings_sessions_back(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    copy, restore = commands("PostgreSQL")
    paths = {"/backup": tmp_path}
    with postgres_server() as server:
        world, cookie = await logged_in(make_world, server.url)
        run(copy, paths, DATABASE=server.url)
        with closing(psycopg.connect(server.url, autocommit=True)) as database:
            database.execute("DELETE FROM cm_auth WHERE kind = 'record'")
        assert await status(make_world, world, server.url, cookie) == 302
        run(restore, paths, DATABASE=server.url)
        assert await status(make_world, world, server.url, cookie) == 200
