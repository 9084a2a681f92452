"""Ask the primaries of a Redis for their replication ids, which tell that another one took over.

A replica that is promoted gives itself a new id, and so does a primary that starts
(https://redis.io/docs/latest/operate/oss_and_stack/management/replication/, "Replication ID
explained").
"""

from __future__ import annotations

from typing import Any

from redis.exceptions import NoPermissionError, ResponseError

from .redis_cluster import outcome


async def replication_ids(client: Any, name: str | None) -> frozenset[str]:
    """Return the replication id of the primary that has a key, or of all that answer.

    A server that does not tell has none: proxies, some servers that speak like Redis, and one whose
    user may not ask.
    """
    if not hasattr(client, "get_primaries"):
        return _id_in(await _ask(client))
    await client.initialize()
    if name is not None:
        return _id_in(await _ask(client, target_nodes=client.get_node_from_key(name)))
    found: set[str] = set()
    failure: Exception | None = None
    for node in client.get_primaries():
        try:
            found |= _id_in(await _ask(client, target_nodes=node))
        except Exception as error:  # the others' part goes on
            failure = error
    if failure is not None and not found:
        raise failure
    return frozenset(found)


async def _ask(client: Any, **options: Any) -> Any:
    try:
        return await outcome(client.execute_command("INFO", "replication", **options))
    except NoPermissionError:
        return {}
    except ResponseError as error:
        if "unknown command" in str(error).lower():
            return {}
        raise


def _id_in(told: Any) -> frozenset[str]:
    name = told.get("master_replid") if isinstance(told, dict) else None
    return frozenset([str(name)] if name else [])
