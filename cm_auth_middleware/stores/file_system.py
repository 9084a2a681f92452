"""The file system of a SQLite file: WAL needs locks and shared memory, which some do not have.

Source: https://www.sqlite.org/wal.html, "All processes using a database must be on the same host
computer; WAL does not work over a network filesystem."
"""

from __future__ import annotations

import os
import re
from pathlib import Path

ADVICE = "Put the file on a local disk, or use redis:// or postgresql://."

_MOUNTS = Path("/proc/self/mountinfo")  # Linux; what it says is described in proc(5)
_OCTAL = re.compile(r"\\([0-7]{3})")  # how it writes blanks

# Of a network, of the host of a virtual machine (Docker Desktop, WSL, VirtualBox, VMware), and all
# that a program serves by FUSE (sshfs, rclone, mounted buckets, Docker Desktop's bind mounts).
_UNFIT = frozenset(
    {"9p", "afs", "beegfs", "cifs", "drvfs", "fakeowner", "fuse", "lustre", "ncpfs", "nfs", "nfs4",
     "prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"}
)  # fmt: skip
_FIT = frozenset({"fuse.fuse-overlayfs"})  # containers without root; the disk below is local


def unfit_file_system(path: Path) -> str | None:
    """Return the type of a file's file system if WAL does not work there, or not surely.

    It is None for all others, and where the system does not tell.
    """
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)  # the file itself may be a mount, and need not exist
    longest, found = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if len(fields) < 6 or not kinds[0]:
            continue
        point = _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), fields[4])
        is_above = real == point or real.startswith(f"{point.rstrip('/')}/")
        if is_above and len(point) >= len(longest):  # of two at one point, the last one is seen
            longest, found = point, kinds[0]
    is_unfit = found in _UNFIT or (found.startswith("fuse.") and found not in _FIT)
    return found if is_unfit else None


def sentence(label: str, file_system: str) -> str:
    """Return what to say of a file on such a file system."""
    return (
        f"{label} is on {file_system}, where SQLite's write-ahead log may fail or lose sessions "
        '("disk I/O error", "database is locked")'
    )
