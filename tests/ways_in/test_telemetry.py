"""OpenTelemetry: what an operator sees of logins, refreshes, sessions and time, on both sides."""

from __future__ import annotations

import gc
import json
import logging
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cm_auth_middleware import MemoryStore, events, telemetry
from cm_auth_middleware.stores import SQLiteStore
from tests.helpers.stores import BrokenStore
from tests.helpers.world import CM, World, both_providers

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]


class Operator:
    """Reads what has come since the last look."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.spans = InMemorySpanExporter()
        metrics.set_meter_provider(MeterProvider([self._reader]))
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        trace.set_tracer_provider(tracers)
        self._before: dict[Any, float] = {}

    def points(self) -> dict[tuple[str, tuple[tuple[str, Any], ...]], float]:
        data = self._reader.get_metrics_data()
        found = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        key = (metric.name, tuple(sorted(point.attributes.items())))
                        found[key] = getattr(point, "count", None) or getattr(point, "value", 0)
        return found

    def start(self) -> None:
        self._before = self.points()
        self.spans.clear()

    def new(self, name: str) -> dict[tuple[Any, ...], float]:
        """What has grown since `start`, by the values of the attributes."""
        return {
            tuple(value for _, value in attributes): value
            - self._before.get((metric, attributes), 0)
            for (metric, attributes), value in self.points().items()
            if metric == name and value != self._before.get((metric, attributes), 0)
        }


@pytest.fixture(scope="session")
def the_only_operator() -> Operator:
    return Operator()  # OpenTelemetry takes one for a process


@pytest.fixture
def operator(the_only_operator: Operator) -> Operator:
    the_only_operator.start()
    return the_only_operator


@both_providers
async def test_logins_refreshes_and_logouts_are_counted(operator: Operator, world: World) -> None:
    browser = await world.login()
    world.clock.tick(43_300)
    await browser.get("/cameras")
    await browser.post("/auth/logout")
    assert operator.new("cm_auth.logins") == {("success",): 1}
    assert operator.new("cm_auth.refreshes") == {("success",): 1}
    assert operator.new("cm_auth.logouts") == {(): 1}
    assert operator.new("cm_auth.sessions_ended") == {}


@both_providers
async def test_logins_that_fail_are_counted_by_their_result(operator: Operator, make_world) -> None:
    world = make_world(allow=lambda user: user["email"] == "bob@example.com")
    browser = world.browser()
    await browser.get("/auth/callback?code=abcdef&state=x")
    await browser.login(email="anna@example.com")
    start = await browser.get("/")
    url = browser.callback_url(start.headers["location"])
    await browser.get(re.sub(r"code=\w+", "error=access_denied", url))
    start = await browser.get("/")
    world.sim.fail_token(503)
    await browser.get(browser.callback_url(start.headers["location"]))
    assert operator.new("cm_auth.logins") == {
        ("stale",): 1, ("denied",): 1, ("cancelled",): 1, ("failed",): 1,
    }  # fmt: skip


@both_providers
async def test_refreshes_that_fail_are_counted_by_their_result(
    operator: Operator, world: World
) -> None:
    browser = await world.login()
    world.clock.tick(43_300)
    world.sim.fail_token(503)
    assert (await browser.get("/cameras")).status_code == 503
    world.clock.tick(5)
    world.sim.fail_token({"error": "invalid_client"})
    assert (await browser.get("/cameras")).status_code == 503
    world.clock.tick(5)
    world.sim.revoke_user("anna@example.com")
    assert (await browser.get("/cameras")).status_code == 302
    assert operator.new("cm_auth.refreshes") == {("failed",): 2, ("refused",): 1}
    assert operator.new("cm_auth.sessions_ended") == {(): 1}


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_active_sessions_are_counted_where_the_store_can(
    operator: Operator, make_world, kind: str, tmp_path: Path
) -> None:
    store = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "sessions.db")
    name = (type(store).__name__,)
    gc.collect()  # the stores of earlier tests count as well, until they are gone
    before = operator.new("cm_auth.sessions.active").get(name, 0)
    world = make_world(store=store)
    browser = await world.login()
    await world.login("bob@example.com")
    world.sim.expire_access_tokens()
    await browser.get("/cameras")  # a grant's record is in the store now; it is no session
    assert operator.new("cm_auth.sessions.active").get(name, 0) - before == 2
    await browser.post("/auth/logout")
    assert operator.new("cm_auth.sessions.active").get(name, 0) - before == 1
    await store.close()


async def test_what_the_storage_costs_users_is_counted(operator: Operator, make_world) -> None:
    store = BrokenStore()
    world = make_world(store=store)
    browser = await world.login()
    store.broken = True
    assert (await browser.get("/")).status_code == 503
    store.broken = False
    events.log("unhealthy", reason="gone")
    assert operator.new("cm_auth.unavailable") == {(): 1}
    assert operator.new("cm_auth.store.warnings") == {("unhealthy",): 1}


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    dashboard = json.loads((REPOSITORY / "examples" / "grafana-dashboard.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = set(re.findall(r"\bcm_auth_[a-z_]+", " ".join(asked)))
    page = re.findall(r"^\| `(cm_auth[a-z._]+)` \| (\w+)", telemetry.__doc__ or "", re.MULTILINE)
    endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_seconds_bucket",)}
    names = {name.replace(".", "_") + ending for name, kind in page for ending in endings[kind]}
    assert names <= shown
    assert shown - names == {"cm_auth_store_duration_seconds_count"}
    places = [tuple(panel["gridPos"][side] for side in "xywh") for panel in dashboard["panels"]]
    for x, y, w, h in places:
        overlapping = [
            (x2, y2) for x2, y2, w2, h2 in places
            if x < x2 + w2 and x2 < x + w and y < y2 + h2 and y2 < y + h
        ]  # fmt: skip
        assert overlapping == [(x, y)]
        assert x + w <= 24


async def test_time_in_the_store_is_measured(operator: Operator, make_world) -> None:
    store = BrokenStore()
    browser = await make_world(store=store).login()
    await browser.get("/")
    store.broken = True
    await browser.get("/")
    store.broken = False
    await browser.post("/auth/logout")
    new = operator.new("cm_auth.store.duration")
    assert {("get",), ("put",), ("delete",), ("StoreError", "get")} <= set(new)
    assert new[("StoreError", "get")] == 1


async def test_a_store_that_cannot_count_now_gives_no_number(operator, make_world, caplog) -> None:
    store = BrokenStore()
    world = make_world(store=store)
    await world.login()
    store.broken = True
    assert ("BrokenStore",) not in operator.new("cm_auth.sessions.active")
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


@both_providers
async def test_time_at_camera_manager_is_measured(operator: Operator, make_world) -> None:
    world = make_world(revalidate=86_400)
    browser = await world.login()
    await browser.get("/cameras")
    world.clock.tick(43_300)
    await browser.get("/cameras")
    world.sim.fail_api(500)
    await browser.get("/api/x")
    await browser.post("/auth/logout")
    assert operator.new("cm_auth.cameramanager.duration") == {
        ("exchange",): 1,
        ("user",): 1,
        ("refresh",): 1,
        ("revoke",): 1,
        ("GET", 200, "api"): 2,
        ("GET", 500, "api"): 1,
    }


def test_an_attribute_has_no_escape_code(operator) -> None:
    found = telemetry.find()
    assert found is not None
    answers = httpx2.MockTransport(lambda _: httpx2.Response(200))
    request = httpx2.Request("GET\x1b[2J\r\n", "http://evil")
    telemetry.TimedTransport(answers, found).handle_request(request)
    with found.call("api", "evil\x9b\u202e"):
        pass
    seen = [str(value) for span in operator.spans.get_finished_spans()
            for value in span.attributes.values()]  # fmt: skip
    assert {"GET\\x1b[2J\\r\\n", "evil\\x9b\\u202e"} <= set(seen)
    assert all(value.isprintable() for value in seen)


@both_providers
async def test_calls_to_camera_manager_are_spans_of_the_request(operator, make_world) -> None:
    world = make_world(revalidate=86_400)
    browser = await world.login()
    operator.spans.clear()
    with trace.get_tracer("an app").start_as_current_span("GET /cameras") as parent:
        world.clock.tick(43_300)
        await browser.get("/cameras")
    spans = {span.name: span for span in operator.spans.get_finished_spans()}
    assert list(spans) == ["cm_auth refresh", "cm_auth api", "GET /cameras"]
    call = spans["cm_auth api"]
    assert call.kind is trace.SpanKind.CLIENT
    assert call.attributes == {
        "operation": "api",
        "server.address": "localhost" if world.api == "/api/v3.0" else "127.0.0.1",
        "http.request.method": "GET",
        "http.response.status_code": 200,
    }
    assert call.context.trace_id == parent.get_span_context().trace_id


@both_providers
async def test_a_failed_call_is_a_failed_span_without_its_words(operator, world: World) -> None:
    browser = world.browser()
    start = await browser.get("/")
    world.sim.settings.repeat_tokens_in_errors = True
    world.sim.fail_token((400, {"error": "invalid_grant", "error_description": "code SECRET"}))
    await browser.get(browser.callback_url(start.headers["location"]))
    (span,) = operator.spans.get_finished_spans()
    assert span.name == "cm_auth exchange"
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes["error.type"] == "OAuthError"
    assert "SECRET" not in span.to_json()
    del world.net.apps[CM]
    start = await browser.get("/")
    operator.spans.clear()


@both_providers
async def test_no_secret_is_in_a_metric_or_a_span(operator: Operator, world: World) -> None:
    browser = await world.login()
    world.clock.tick(43_300)
    await browser.get(f"/api/x?url={world.root}/cameras?q=private")
    cookie = browser.named("cm_auth")[0]
    await browser.post("/auth/logout")
    text = "".join(span.to_json() for span in operator.spans.get_finished_spans())
    text += repr(operator.points())
    secrets = [cookie, world.sim.client_secret, "anna@example.com", "private"]
    for call in world.sim.requests:
        secrets.append(call.headers.get("authorization", "").partition(" ")[2])
        secrets += [call.form.get(name, "") for name in ("code", "code_verifier", "refresh_token")]
    assert [secret for secret in filter(None, secrets) if secret in text] == []


# -- in a process of its own -------------------------------------------------------------------


def run(side: str, body: str) -> Any:
    """Run a piece of an async function with `World` and `side` at hand; return what it prints."""
    program = (
        "import asyncio, json, sys\n"
        f"side = {side!r}\n"
        "async def main():\n" + textwrap.indent(textwrap.dedent(body), "    ") + "\n"
        "asyncio.run(main())\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_without_opentelemetry_nothing_is_imported_and_all_works(side: str) -> None:
    found = run(
        side,
        """
        sys.modules["opentelemetry"] = None  # as where it is not installed
        from tests.helpers.world import World
        world = World(side=side)
        browser = await world.login()
        world.clock.tick(43_300)
        status = (await browser.get("/cameras")).status_code
        services = world.engine._async or world.engine._threads
        await world.close()
        names = [name for name in sys.modules if name.startswith("opentelemetry.")]
        print(json.dumps([status, names, type(services.sessions.store).__name__]))
        """,
    )
    assert found == [200, [], "MemoryStore"]


def test_an_sdk_that_is_set_up_after_the_app_is_noticed(side: str) -> None:
    before, after = run(
        side,
        """
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from tests.helpers.world import World
        world = World(side=side)
        browser = await world.login()
        before = world.engine._async or world.engine._threads
        before = before._telemetry.active
        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        browser = await world.login()
        await browser.get("/cameras")
        scopes = reader.get_metrics_data().resource_metrics[0].scope_metrics
        await world.close()
        print(json.dumps([before, sorted(m.name for scope in scopes for m in scope.metrics)]))
        """,
    )
    assert before is False
    assert after == [
        "cm_auth.cameramanager.duration",
        "cm_auth.logins",
        "cm_auth.sessions.active",
        "cm_auth.store.duration",
    ]
