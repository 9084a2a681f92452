"""Containers without an image registry: this machine's files, under layers that a Dockerfile makes.

The file system of this machine and its Python stand in for the base images. What a Dockerfile runs
and copies is run and copied for real, into a layer above them that goes away with the test; so is
what a container writes. Each container has network addresses of its own, on a switch that nothing
else is connected to. Linux, root, and the programs `ip` and `unshare` are needed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")
_PYTHON = Path(sys.base_prefix) / "bin"
_PATH = f"{_PYTHON}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CLONE_NEWNET = 0x40000000  # <sched.h>

_ENTER = r"""
set -eu
top=$1 layers=$2 folder=$3 user=$4 read_only=$5; shift 5
mkdir -p "$top/up" "$top/work" "$top/root"
mount -t overlay overlay -o "lowerdir=$layers,upperdir=$top/up,workdir=$top/work" "$top/root"
mkdir -p "$top/root$folder"
# This machine's Python may be in a folder that is root's alone.
part="$top/root$PYTHON_FOLDER"
while [ "$part" != "$top/root" ]; do chmod o+x "$part"; part=$(dirname "$part"); done
mount -t proc proc "$top/root/proc"
mount --rbind /dev "$top/root/dev"
for volume in ${VOLUMES:-}; do
  mkdir -p "$top/root$volume"
  mount -t tmpfs -o mode=0700 tmpfs "$top/root$volume"
  chown "$user" "$top/root$volume"
done
[ "$read_only" = no ] || mount -o remount,ro "$top/root"
exec chroot --userspec="$user" --groups= "$top/root" \
  /bin/sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
"""


def require(program: str) -> str:
    """Return the path of a program; without it the test is skipped, or fails where CI says so.

    Set CM_AUTH_REQUIRE_DEPLOY=1 where a skip would go unnoticed.
    """
    beside = Path(sys.executable).with_name(program)
    found = str(beside) if beside.exists() else shutil.which(program)
    if found is None:
        missing(f"{program} is not installed")
    return found


def missing(what: str) -> None:
    """Skip the test, or fail where CI says so."""
    if os.environ.get("CM_AUTH_REQUIRE_DEPLOY") == "1":
        pytest.fail(f"NOT TESTED: {what}")
    pytest.skip(f"NOT TESTED: {what}")


@dataclass
class Image:
    """What a Dockerfile made.

    Attributes:
        layer: the folder with what is not of the base image.
    """

    layer: Path
    folder: str = "/"
    user: str = "0:0"
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    command: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)


def instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    """Yield each instruction of a Dockerfile with what follows it."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.M)
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


def build(dockerfile: Path, context: Path, top: Path) -> Image:
    """Do what a Dockerfile says; return its last stage.

    Args:
        context: the folder that `COPY` copies from.
        top: an empty folder for the layers, on another file system than this machine's.
    """
    stages: dict[str, Image] = {}
    image = Image(top)
    for name, rest in instructions(dockerfile.read_text()):
        words = shlex.split(rest)
        if name == "FROM":
            image = Image(top / f"stage{len(stages)}" / "up")
            image.layer.mkdir(parents=True)
            stages[words[-1] if "AS" in words else f"{len(stages)}"] = image
        elif name == "RUN":
            _run(image, rest)
        elif name == "COPY":
            source = context
            if words[0].startswith("--from="):
                source = stages[words.pop(0).removeprefix("--from=")].layer
            _copy(source, words, image)
        elif name == "WORKDIR":
            image.folder = words[0]
        elif name == "ENV":
            for word in words:
                variable, _, value = word.partition("=")
                image.environment[variable] = value.replace("$PATH", image.environment["PATH"])
        elif name == "USER":
            image.user = words[0]
        elif name == "EXPOSE":
            image.ports += map(int, words)
        elif name == "CMD":
            image.command = json.loads(rest)
        else:
            raise NotImplementedError(name)
    return image


def _run(image: Image, line: str) -> None:
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    command = enter(
        image.layer.parent, "/", image.folder, image.user, False, ["/bin/sh", "-c", line]
    )
    done = subprocess.run(
        command,
        env={**_FOR_ENTERING, **image.environment, **pip, "HOME": "/root"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"RUN {line}\n{done.stdout}{done.stderr}"


def _copy(source: Path, words: list[str], image: Image) -> None:
    *names, to = words
    target = image.layer / os.path.join(image.folder, to).lstrip("/")  # noqa: PTH118
    for name in names:
        item = source / name.lstrip("/")
        if item.is_dir():
            shutil.copytree(item, target, symlinks=True, dirs_exist_ok=True)
        else:
            is_folder = to.endswith("/") or len(names) > 1
            (target if is_folder else target.parent).mkdir(parents=True, exist_ok=True)
            shutil.copy2(item, target)


_FOR_ENTERING = {"PYTHON_FOLDER": f"{_PYTHON}"}


def enter(
    top: Path, layers: str, folder: str, user: str, is_read_only: bool, command: list[str]
) -> list[str]:
    """Return the command that runs a command with layers as its root, writing into `top`/up."""
    read_only = "yes" if is_read_only else "no"
    inner = ["sh", "-c", _ENTER, "sh", f"{top}", layers, folder, user, read_only, *command]
    # In a process namespace of its own, all that it started ends with it.
    return ["unshare", "--mount", "--pid", "--fork", *inner]


@contextlib.contextmanager
def layers() -> Iterator[Path]:
    """Give an empty folder for layers, in memory: a layer cannot lie in what it lies on."""
    with tempfile.TemporaryDirectory(prefix="cm", dir="/dev/shm") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def require_containers() -> None:
    """Skip the test where this machine lets nobody mount layers or make networks, or fail in CI."""
    for program in ("ip", "unshare", "chroot"):
        require(program)
    with layers() as top:
        command = enter(top, "/", "/", "65534:65534", True, ["true"])
        done = subprocess.run(
            command, env={"PATH": _PATH, **_FOR_ENTERING}, capture_output=True, text=True
        )
        if done.returncode:
            missing(f"no layers can be mounted: {done.stderr.strip()}")


class Container:
    """A running container: a process, its files and its address."""

    def __init__(
        self, top: Path, namespace: str, address: str, process: subprocess.Popen[str]
    ) -> None:
        self.files = top / "up"
        self.address = address
        self.process = process
        self._namespace = namespace
        self._log = top / "log"

    @property
    def log(self) -> str:
        """What it has written to its standard output and error."""
        return self._log.read_text()

    def inside(self, function: Callable[[], T]) -> T:
        """Call a function in a thread that has this container's network, as a sidecar has."""

        def enter_and_call() -> T:
            libc = ctypes.CDLL(None, use_errno=True)
            with Path(f"/run/netns/{self._namespace}").open() as namespace:
                if libc.setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return function()

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(enter_and_call).result()

    def kill(self) -> None:
        """End it at once, with all that it started."""
        pid = self.process.pid
        with contextlib.suppress(OSError):  # if it has ended
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        self.process.wait()


class Network:
    """A switch of its own; each container that is started on it gets an address.

    Args:
        top: an empty folder, from `layers`.
    """

    def __init__(self, top: Path) -> None:
        self._top = top
        self._name = f"cm{os.getpid()}"
        self._count = 0
        self._cleanup = contextlib.ExitStack()
        self.hosts: dict[str, str] = {}

    def __enter__(self) -> Network:
        self._namespace(self._name)
        self._ip("-n", self._name, "link", "add", "switch", "type", "bridge")
        self._ip("-n", self._name, "link", "set", "switch", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def attach(self, *names: str, address: str) -> str:
        """Make the network of a container that others find by these names; return what it is."""
        self._count += 1
        namespace = f"{self._name}-{self._count}"
        self._namespace(namespace)
        port = ("type", "veth", "peer", "name", f"p{self._count}", "netns", self._name)
        self._ip("-n", namespace, "link", "add", "eth0", *port)
        self._ip("-n", self._name, "link", "set", f"p{self._count}", "master", "switch", "up")
        self._ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self._ip("-n", namespace, "link", "set", device, "up")
        self.hosts.update(dict.fromkeys(names, address))
        return namespace

    def start(
        self,
        namespace: str,
        address: str,
        command: list[str],
        environment: Mapping[str, str],
        *,
        image: Image | None = None,
        user: str | None = None,
        is_read_only: bool = False,
        files: Mapping[str, bytes] = {},
        volumes: Iterable[str] = (),
    ) -> Container:
        """Start a command in a container.

        Args:
            image: the image; without one, only the files of this machine.
            files: what is mounted: a path and its content.
            volumes: empty folders that are mounted, and are the user's.
        """
        image = image or Image(self._top)
        user = user or image.user
        top = Path(tempfile.mkdtemp(dir=self._top))
        top.chmod(0o755)
        hosts = "".join(f"{address}\t{name}\n" for name, address in self.hosts.items())
        for path, content in {
            "/etc/hosts": f"127.0.0.1 localhost\n{hosts}".encode(),
            **files,
        }.items():
            target = top / "up" / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        lower = f"{image.layer}:/" if image.layer != self._top else "/"
        inner = enter(top, lower, image.folder, user, is_read_only, command)
        own = {**_FOR_ENTERING, "VOLUMES": " ".join(volumes)}
        with (top / "log").open("w") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", namespace, *inner],
                env={**own, **image.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        container = Container(top, namespace, address, process)
        self._cleanup.callback(container.kill)
        return container

    def _namespace(self, name: str) -> None:
        self._ip("netns", "add", name)
        self._cleanup.callback(self._ip, "netns", "del", name)

    @staticmethod
    def _ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
