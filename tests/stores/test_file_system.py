"""The file system of a SQLite file, as the kernel tells it; this machine has local ones."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cm_auth_middleware import CMAuthMiddleware, CMAuthWSGIMiddleware
from cm_auth_middleware.cli import main
from cm_auth_middleware.stores import file_system
from cm_auth_middleware.stores.file_system import unfit_file_system
from tests.helpers.world import SECRET_KEY

# As Linux writes it; the second field from the left is optional, and there may be several.
LINE = "{number} 25 0:{number} / {point} rw,relatime shared:1 master:2 - {kind} {source} rw"


def mounts(*points: tuple[str, str]) -> str:
    lines = [("/", "ext4"), ("/proc", "proc"), *points]
    return "".join(
        LINE.format(number=30 + n, point=point.replace(" ", "\\040"), kind=kind, source="x - y")
        + "\n"
        for n, (point, kind) in enumerate(lines)
    )


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Let the kernel tell these mounts."""

    def tell(*points: tuple[str, str]) -> None:
        (tmp_path / "mountinfo").write_text(mounts(*points))
        monkeypatch.setattr(file_system, "_MOUNTS", tmp_path / "mountinfo")

    return tell


@pytest.mark.parametrize(
    "kind",
    ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse", "fuse.sshfs", "fuse.s3fs", "virtiofs",
     "fakeowner", "vboxsf"],
)  # fmt: skip
def test_file_systems_of_a_network_or_of_a_host_are_named(tell, kind: str) -> None:
    """R58: WAL needs shared memory and locks."""
    tell(("/srv", "xfs"), ("/srv/shared", kind))
    assert unfit_file_system(Path("/srv/shared/app/sessions.db")) == kind
    assert unfit_file_system(Path("/srv/sharedx/sessions.db")) is None
    assert unfit_file_system(Path("/srv/sessions.db")) is None


@pytest.mark.parametrize(
    "kind",
    ["ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "f2fs", "fuseblk", "fuse.fuse-overlayfs"],
)
def test_local_file_systems_are_not(tell, kind: str) -> None:
    """R58: those of containers included."""
    tell(("/data", kind))
    assert unfit_file_system(Path("/data/sessions.db")) is None


def test_the_mount_that_is_seen_decides(tell) -> None:
    """R58: the deepest one, the last one at a point, the file itself, a name with a blank."""
    tell(("/a", "nfs"), ("/a/b", "ext4"), ("/c", "ext4"), ("/c", "nfs4"), ("/d/s.db", "9p"),
         ("/my disk", "cifs"), ("/e", "nfs"), ("/e", "ext4"))  # fmt: skip
    assert unfit_file_system(Path("/a/s.db")) == "nfs"
    assert unfit_file_system(Path("/a/b/s.db")) is None
    assert unfit_file_system(Path("/c/s.db")) == "nfs4"
    assert unfit_file_system(Path("/d/s.db")) == "9p"
    assert unfit_file_system(Path("/d/t.db")) is None
    assert unfit_file_system(Path("/my disk/s.db")) == "cifs"
    assert unfit_file_system(Path("/e/s.db")) is None


def test_a_link_among_the_folders_is_followed(tell, tmp_path: Path) -> None:
    """R58: the file is where it leads to."""
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "there")
    tell((str(tmp_path.resolve() / "there"), "nfs4"))
    assert unfit_file_system(tmp_path / "here" / "s.db") == "nfs4"


def test_where_the_system_does_not_tell_nothing_is_said(monkeypatch, tmp_path: Path) -> None:
    """R58: macOS, Windows; and lines that are none."""
    monkeypatch.setattr(file_system, "_MOUNTS", tmp_path / "none")
    assert unfit_file_system(Path("/srv/s.db")) is None
    (tmp_path / "none").write_text("\n\nx - nfs\n1 2 3 4 / rw -\n - \n")
    assert unfit_file_system(Path("/srv/s.db")) is None


def test_this_machine_tells_its_own() -> None:
    """R58: what the kernel really writes can be read."""
    assert unfit_file_system(Path("/proc/s.db")) is None


@pytest.mark.parametrize("middleware", [CMAuthMiddleware, CMAuthWSGIMiddleware])
def test_it_is_said_at_the_start(tell, tmp_path: Path, caplog, middleware: Any) -> None:
    """R58: a sentence in the log that names the file system, before anybody logs in."""
    caplog.set_level(logging.INFO, logger="cm_auth_middleware")
    folder = tmp_path / "own"
    folder.mkdir(0o700)
    tell((str(folder.resolve()), "nfs4"))
    options = {"client_id": "id", "client_secret": "s" * 8, "secret_key": SECRET_KEY}
    middleware(None, **options, store=f"sqlite:///{folder}/sessions.db")
    [record] = [r for r in caplog.records if r.event == "store_file_system"]
    assert record.levelno == logging.WARNING
    assert "is on nfs4, where SQLite's write-ahead log may fail" in record.getMessage()
    assert "put the file on a local disk" in record.getMessage()
    caplog.clear()
    tell()
    middleware(None, **options, store=f"sqlite:///{folder}/sessions.db")
    assert "store_file_system" not in caplog.text


def test_the_doctor_says_it(tell, tmp_path: Path) -> None:
    """R58: `cm-auth check`, with the remedy; whether the file exists or not."""
    folder = tmp_path / "own"
    folder.mkdir(0o700)
    tell((str(folder.resolve()), "cifs"))
    environment = {
        "CM_AUTH_CLIENT_ID": "id",
        "CM_AUTH_CLIENT_SECRET": "x" * 20,
        "CM_AUTH_SECRET_KEY": SECRET_KEY,
        "CM_AUTH_STORE": f"sqlite:///{folder / 's.db'}",
        "CM_AUTH_REDIRECT_URI": "https://cams.example.com/auth/callback",
    }
    result = CliRunner().invoke(main, ["check", "--offline"], env=environment)
    said = " ".join(result.output.split())
    assert result.exit_code == 1
    assert "is on cifs, where SQLite's write-ahead log may fail" in said
    assert "Put the file on a local disk" in said
