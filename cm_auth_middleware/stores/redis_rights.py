"""Find out which rights (ACL) a user of Redis lacks, by trying all that a store does.

The commands are sent as they are, though a store sends most from scripts: those are subject to the
same rights. Redis looks at the rights before it does anything, and before a node of a cluster says
that it does not have the key. None of the commands here changes anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redis import exceptions

from .redis_clients import denied_command, is_denial, is_denial_of_keys
from .redis_cluster import outcome

_NO_SCRIPT = "0" * 40
_KEY = object()  # stands for a key

_EVERYWHERE: dict[str, tuple[Any, ...]] = {
    "+get": ("GET", _KEY),
    "+set": ("SET", _KEY, "", "PX", 1000, "XX"),  # only if it is there
    "+del": ("DEL", _KEY),
    "+exists": ("EXISTS", _KEY),
    "+strlen": ("STRLEN", _KEY),
    "+getrange": ("GETRANGE", _KEY, 0, 0),
    "+pttl": ("PTTL", _KEY),
    "+pexpireat": ("PEXPIREAT", _KEY, 1),
    "+zadd": ("ZADD", _KEY, "XX", 0, "check"),
    "+zrange": ("ZRANGE", _KEY, 0, 0),
    "+zrem": ("ZREM", _KEY, "check"),
    "+zscore": ("ZSCORE", _KEY, "check"),
    "+zremrangebyscore": ("ZREMRANGEBYSCORE", _KEY, 0, 0),
    "+scan": ("SCAN", 0, "COUNT", 1),
    "+time": ("TIME",),
    "+info": ("INFO", "replication"),
    "+eval": ("EVAL", "return 1", 0),
    "+evalsha": ("EVALSHA", _NO_SCRIPT, 0),
}
_WAITING: dict[str, tuple[Any, ...]] = {"+wait": ("WAIT", 0, 1)}
_IN_A_CLUSTER: dict[str, tuple[Any, ...]] = {
    "+asking": ("ASKING",),
    "+cluster|slots": ("CLUSTER SLOTS",),
    "+cluster|nodes": ("CLUSTER NODES",),
}

RIGHTS = (*_EVERYWHERE, *_WAITING, *_IN_A_CLUSTER)
"""The words that allow each command, for ACL SETUSER."""


async def refused_rights(
    client: Any, names: Iterable[tuple[str, str]], *, waits: bool
) -> list[str]:
    """Return the words for ACL SETUSER that would allow what the user may not do.

    Args:
        names: names of keys that nobody uses, each with the pattern that should be allowed.
        waits: the store waits for replicas.
    """
    names = list(names)
    in_cluster = hasattr(client, "get_primaries")
    tries = _EVERYWHERE | (_WAITING if waits else {}) | (_IN_A_CLUSTER if in_cluster else {})
    if in_cluster:
        await client.initialize()
        servers = [client.client_of(node) for node in client.get_primaries()]
    else:
        servers = [getattr(client, "plain", client)]
    refused: list[str] = []
    for server in servers:
        for right, words in tries.items():
            refused += await _try(server, right, words, *names[0])
        for name, pattern in names[1:]:
            for right in ("+get", "+set"):  # for keys that may be read, or written only
                refused += await _try(server, right, tries[right], name, pattern)
    return list(dict.fromkeys(refused))


async def _try(
    server: Any, right: str, words: tuple[Any, ...], name: str, pattern: str
) -> list[str]:
    try:
        filled = (name if word is _KEY else word for word in words)
        await outcome(server.execute_command(*filled))
    except exceptions.ResponseError as error:
        text = str(error)
        if is_denial(error):
            if is_denial_of_keys(text):
                return [f"~{pattern}"]
            named = denied_command(text)  # it is another one where SELECT is refused
            return [f"+{named.lower()}" if named else right]
        if "unknown command" in text.lower():
            return [right]
    return []
