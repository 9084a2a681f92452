"""Read a URL of Redis, and make redis-py clients for the servers that it names."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import SplitResult, unquote, urlsplit

from ..display import is_option, shown_location
from ..errors import ConfigError

try:
    import redis
    import redis.asyncio
    import redis.backoff
except ImportError:
    raise ConfigError(
        "store redis:// needs redis-py: pip install 'cm_auth_middleware[redis]'"
    ) from None

from .redis_get import client_class

_TIMEOUT = 5.0  # seconds to connect, and to wait for an answer
_SENTINEL_TIMEOUT = 0.5  # seconds; there are others to ask
_CONNECTIONS = 16
_WAIT = 0.1  # seconds to wait for replicas
_PORTS = {"sentinel": 26379, "cluster": 6379}
_EXAMPLE = "redis://user:password@host:6379/0, special characters of the password as %XX"


@dataclass(frozen=True, slots=True, repr=False)
class Target:
    """One server, a group watched by Sentinel, or a cluster.

    Attributes:
        label: the URL as `shown_location` shows it: without user, password and options.
        url: the URL for redis-py's own parser.
        kind: ``""``, ``"sentinel"`` or ``"cluster"``.
        nodes: hosts and ports of the sentinels or of the cluster.
        service: the name of the primary at the sentinels.
        connections: the most connections at a time.
        wait_replicas: so many replicas should have a write before it is confirmed.
        wait_timeout: seconds to wait for them.
    """

    label: str
    url: str
    kind: str
    nodes: tuple[tuple[str, int], ...]
    service: str
    connections: int
    wait_replicas: int = 0
    wait_timeout: float = _WAIT
    timeout: float = _TIMEOUT

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL.

        Raises:
            ConfigError: it is wrong, or could be read in two ways. Neither the message nor a
                chained error holds a part of the URL that may belong to a password.
        """
        problem = "is not a URL of Redis"
        try:
            return cls._parse(url)
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            # redis-py names the option that it does not know and quotes no value.
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown and is_option(unknown[1], url):
                problem = f"has the unknown option {unknown[1]}"
            elif unknown:
                problem = "has an option that redis-py does not know"
        raise ConfigError(f"store {problem}; give {_EXAMPLE}")

    @classmethod
    def _parse(cls, url: str) -> Self:
        parts, label = urlsplit(url), shown_location(url)
        scheme, _, kind = parts.scheme.partition("+")
        userinfo, at, hosts = parts.netloc.rpartition("@")
        if scheme != "unix" and "@" in parts.path:
            raise ValueError  # urlsplit() takes "user" for the host of "redis://user:12/34@host"
        if scheme not in ("redis", "rediss", "unix") or kind not in ("", *_PORTS) or parts.fragment:
            raise ValueError
        nodes: tuple[tuple[str, int], ...] = ()
        service = ""
        if not kind:
            _ = parts.port  # raises ValueError if it is not a number
        else:
            nodes = tuple(_node(host, _PORTS[kind]) for host in hosts.split(","))
            service = unquote(parts.path.strip("/")) if kind == "sentinel" else ""
            if kind == "sentinel" and not service:
                raise ConfigError(
                    "store redis+sentinel:// needs the name of the primary as its path: "
                    "redis+sentinel://host:26379/mymaster"
                )
            url = SplitResult(scheme, f"{userinfo}{at}localhost", "", parts.query, "").geturl()
        url, wait_replicas, wait_timeout = _wait_options(url)
        target = cls(label, url, kind, nodes, service, 0)
        options = target._options("redis")
        # Otherwise an unknown option would raise at the first request.
        options["connection_class"](**_without(options, "connection_class", *_NOT_OF_CONNECTIONS))
        connections = options.get("max_connections", _CONNECTIONS)
        if connections < 1 or (kind == "cluster" and options.get("db")):
            raise ValueError
        if not 0 < wait_timeout < options["socket_timeout"]:
            raise _wrong("wait_timeout", "seconds, above 0 and below socket_timeout")
        timeout = options["socket_timeout"]
        return cls(
            label, url, kind, nodes, service, connections, wait_replicas, wait_timeout, timeout
        )

    def client(self, package: str, host: str = "", port: int = 0, **more: Any) -> Any:
        """Make a client of `redis` or `redis.asyncio` for one server.

        Args:
            host: of the server; empty for that of the URL.
            more: options of connections, in the place of the URL's.
        """
        return client_class(package).from_pool(self.pool(package, host, port, **more))

    def pool(self, package: str, host: str = "", port: int = 0, **more: Any) -> Any:
        """Make the connections of such a client."""
        options = _without(self._options(package), *_NOT_OF_CONNECTIONS)
        if host:
            options |= {"host": host, "port": port}
        return importlib.import_module(package).ConnectionPool(**options | more)

    def sentinel_connections(self) -> list[Any]:
        """Make a connection of the blocking redis-py to each sentinel."""
        options = self._options("redis")
        options |= {name: options.get(f"sentinel_{name}") for name in ("username", "password")}
        options["db"] = 0
        for name in ("socket_timeout", "socket_connect_timeout"):
            options[name] = min(options[name], _SENTINEL_TIMEOUT)
        make = options["connection_class"]
        options = _without(options, "connection_class", *_NOT_OF_CONNECTIONS)
        return [make(**options | {"host": host, "port": port}) for host, port in self.nodes]

    def _options(self, package: str) -> dict[str, Any]:
        """Return the URL's options with defaults for the others, as arguments of connections."""
        connection = importlib.import_module(f"{package}.connection")
        retry = importlib.import_module(f"{package}.retry")
        options: dict[str, Any] = connection.parse_url(self.url)
        options.setdefault("connection_class", connection.Connection)
        options.setdefault("socket_timeout", _TIMEOUT)
        options.setdefault("socket_connect_timeout", _TIMEOUT)
        options.setdefault("protocol", 2)  # one round trip fewer for each connection
        if "path" not in options:
            options.setdefault("socket_keepalive", True)
        # redis-py's own retries wait for seconds, and repeat commands that must not be repeated.
        options["retry"] = retry.Retry(redis.backoff.NoBackoff(), 0)
        options["decode_responses"] = False
        return options

    def __repr__(self) -> str:
        return self.label


_NOT_OF_CONNECTIONS = ("max_connections", "sentinel_username", "sentinel_password")


def _without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def _wait_options(url: str) -> tuple[str, int, float]:
    """Take this package's own options out of a URL, for redis-py does not know them."""
    base, mark, query = url.partition("?")
    own = {"wait_replicas": "0", "wait_timeout": str(_WAIT)}
    others = []
    for option in query.split("&"):
        name, _, value = option.partition("=")
        if name in own:
            own[name] = value
        else:
            others.append(option)
    query = "&".join(others)
    if not own["wait_replicas"].isdecimal():
        raise _wrong("wait_replicas", "a number of replicas")
    try:
        seconds = float(own["wait_timeout"])
    except ValueError:
        seconds = 0.0  # which is refused
    return f"{base}{mark if query else ''}{query}", int(own["wait_replicas"]), seconds


def _wrong(option: str, needed: str) -> ConfigError:
    """Return the error of an option's value, which it does not quote."""
    return ConfigError(f"store has a wrong {option}: it is {needed}")


def _node(host: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError
    return parts.hostname, parts.port or port
