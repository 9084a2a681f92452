"""Read a URL of Redis, and make redis-py clients for the servers that it names."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import SplitResult, unquote, urlsplit

from ..display import is_certain, shown_location
from ..errors import ConfigError

try:
    import redis
    import redis.asyncio
    import redis.backoff
except ImportError:
    raise ConfigError(
        "store redis:// needs redis-py: pip install 'cm_auth_middleware[redis]'"
    ) from None

_TIMEOUT = 5.0  # seconds to connect, and to wait for an answer
_CONNECTIONS = 16
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
    """

    label: str
    url: str
    kind: str
    nodes: tuple[tuple[str, int], ...]
    service: str
    connections: int

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
            # redis-py names the option that it does not know and quotes no value. But the text
            # after another option may be a piece of a password with & in it.
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown and is_certain(url) and f"?{unknown[1]}=" in url:
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
        target = cls(label, url, kind, nodes, service, 0)
        options = target._options("redis")
        # Otherwise an unknown option would raise at the first request.
        options["connection_class"](**_without(options, "connection_class", *_NOT_OF_CONNECTIONS))
        connections = options.get("max_connections", _CONNECTIONS)
        if connections < 1 or (kind == "cluster" and options.get("db")):
            raise ValueError
        return cls(label, url, kind, nodes, service, connections)

    def clients(self, package: str) -> tuple[Any, ...]:
        """Make a client of `redis` or `redis.asyncio`, and the clients that it needs itself.

        The `redis` client of a cluster connects at once.
        """
        options = self._options(package)
        special = {name: options.get(name) for name in _NOT_OF_CONNECTIONS}
        options = _without(options, *_NOT_OF_CONNECTIONS)
        if not self.kind:
            services = importlib.import_module(package)
            return (services.Redis.from_pool(services.ConnectionPool(**options)),)
        options = _without(options, "connection_class", "host", "port")
        if self.url.startswith("rediss"):
            options["ssl"] = True
        if self.kind == "cluster":
            cluster = importlib.import_module(f"{package}.cluster")
            nodes = [cluster.ClusterNode(host, port) for host, port in self.nodes]
            return (cluster.RedisCluster(startup_nodes=nodes, **options),)
        watching = {
            "username": special["sentinel_username"],
            "password": special["sentinel_password"],
            **_without(options, "username", "password", "db"),
        }
        sentinel = importlib.import_module(f"{package}.sentinel")
        watchers = sentinel.Sentinel(list(self.nodes), sentinel_kwargs=watching, **options)
        return (watchers.master_for(self.service), *watchers.sentinels)

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


def _node(host: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError
    return parts.hostname, parts.port or port
