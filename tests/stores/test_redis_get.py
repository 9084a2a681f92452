"""The short way of a GET: its answer is nobody else's, and who traces commands still sees it."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from cm_auth_middleware import StoreError
from cm_auth_middleware.stores import RedisStore
from tests.helpers.servers import RedisServer, redis_server
from tests.helpers.stores import ROOT, checks_of

pytestmark = pytest.mark.slow


@pytest.fixture(params=["asyncio", "trio", "threads"])
def side(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a check with a store, on each side."""
    return checks_of(request.param, RedisStore)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def test_an_answer_that_came_too_late_is_not_given_to_the_next_user(
    server: RedisServer, side: Callable[..., None]
) -> None:
    async def check(store: RedisStore) -> None:
        await store.put("anna", b"of Anna", 60)
        await store.put("ben", b"of Ben", 60)
        server.pause()
        with pytest.raises(StoreError):
            await store.get("anna")
        server.resume()
        assert await store.get("ben") == b"of Ben"
        assert await store.get("anna") == b"of Anna"

    side(check, f"{server.url}?socket_timeout=0.3&max_connections=1")


def test_the_answer_of_a_request_that_was_cancelled_is_not_given_to_the_next_user(
    server: RedisServer,
) -> None:
    async def check() -> None:
        store = RedisStore(f"{server.url}?max_connections=1")
        await store.put("anna", b"of Anna", 60)
        await store.put("ben", b"of Ben", 60)
        server.pause()
        request = asyncio.create_task(store.get("anna"))
        await asyncio.sleep(0.1)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        server.resume()
        assert await store.get("ben") == b"of Ben"
        await store.close()

    asyncio.run(check())


def test_a_refusal_costs_no_connection(server: RedisServer, side: Callable[..., None]) -> None:
    async def check(store: RedisStore) -> None:
        await store.put("key", b"v", 60)
        server.command("DEL", "cm_auth:s:key")
        server.command("LPUSH", "cm_auth:s:key", "no string")
        before = _connections(server)
        for _ in range(3):
            with pytest.raises(StoreError, match="WRONGTYPE"):
                await store.get("key")
        assert _connections(server) == before + 1  # which asks

    side(check, server.url)


def _connections(server: RedisServer) -> int:
    """How many connections the server took so far."""
    stats = server.command("INFO", "stats")
    return int(stats.split(b"total_connections_received:")[1].split()[0])


def _wrapped(original: Any, seen: list[Any]) -> Any:
    @functools.wraps(original)  # as wrapt does for OpenTelemetry and Datadog
    def execute_command(self: Any, *args: Any, **options: Any) -> Any:
        seen.append(args[0])
        return original(self, *args, **options)

    return execute_command


def _replaced(original: Any, seen: list[Any]) -> Any:
    def execute_command(self: Any, *args: Any, **options: Any) -> Any:  # as Sentry does
        seen.append(args[0])
        return original(self, *args, **options)

    return execute_command


@pytest.mark.parametrize("trace", [_wrapped, _replaced])
def test_who_traces_the_commands_of_redis_py_sees_each_get(
    server: RedisServer, side: Callable[..., None], monkeypatch: pytest.MonkeyPatch, trace: Any
) -> None:
    seen: list[Any] = []
    for client in (redis.Redis, redis.asyncio.Redis):
        monkeypatch.setattr(client, "execute_command", trace(client.execute_command, seen))

    async def check(store: RedisStore) -> None:
        await store.put("key", b"v", 60)
        seen.clear()
        assert await store.get("key") == b"v"
        assert seen == ["GET"]

    side(check, server.url)


MEASURED = """
import asyncio, sys
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from redis.observability import MetricGroup, OTelConfig, get_observability_instance
from cm_auth_middleware.stores import RedisStore
from tests.helpers.stores import run

reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
get_observability_instance().init(OTelConfig(metric_groups=[MetricGroup.COMMAND]))


async def on_a_loop():
    store = RedisStore(sys.argv[1])
    await store.get("key")
    await store.close()


asyncio.run(on_a_loop())
store = RedisStore(sys.argv[1]).blocking()
run(store.get("key"))
run(store.close())
counts = {}
for resource in reader.get_metrics_data().resource_metrics:
    for scope in resource.scope_metrics:
        for metric in scope.metrics:
            for point in metric.data.data_points:
                name = point.attributes.get("db.operation.name")
                counts[name] = counts.get(name, 0) + getattr(point, "count", 0)
print(counts.get("GET"))
"""


def test_who_has_redis_py_measure_its_commands_gets_each_get(server: RedisServer) -> None:
    pytest.importorskip("redis.observability", reason="NOT TESTED: this redis-py measures nothing")
    program = [sys.executable, "-c", MEASURED, server.url]  # redis-py is set up once in a process
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.stdout.strip() == "2", done.stderr
