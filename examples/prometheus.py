"""Metrics for Prometheus at /metrics: logins, refreshes, sessions, time in the store and beyond.

    pip install 'cm_auth_middleware[fastapi,otel]' opentelemetry-exporter-prometheus uvicorn
    uvicorn examples.prometheus:app

Anybody who reaches the port may read /metrics, so let only Prometheus reach it there, or serve it
on a port of its own.
"""

from fastapi import FastAPI
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import make_asgi_app

from cm_auth_middleware import CMAuthMiddleware
from cm_auth_middleware.fastapi import CMClient

metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))

app = FastAPI()
app.add_middleware(CMAuthMiddleware, exempt=["/metrics", "/metrics/*"])
app.mount("/metrics", make_asgi_app())


@app.get("/cameras")
async def cameras(cm: CMClient) -> list[str]:
    response = await cm.get("/rest/v2.4/cameras")
    return [camera["name"] for camera in response.raise_for_status().json()]
