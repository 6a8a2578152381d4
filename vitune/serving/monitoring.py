"""Metrics for Prometheus: counted requests, and the service's own numbers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client import generate_latest as text_of
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vitune.serving.gate import App, Message, Receive, Scope, Send
from vitune.serving.service import Figure, Service

PATHS = ("/", "/docs", "/healthz", "/metrics", "/openapi.json", "/v1/adapters", "/v1/embed",
         "/v1/predict")  # fmt: skip
"""Paths with separate metrics; all others are "other", so that clients cannot invent labels."""

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """The counters of one server, in their own registry."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, service: Service) -> None:
        self.service = service
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "vitune_requests", "Requests.", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "vitune_request_seconds", "Time of a request, including its body.", ("path",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip

    async def text(self) -> str:
        """All metrics in Prometheus' text format."""
        of_service = CollectorRegistry()
        of_service.register(_Said(await self.service.figures()))
        return (text_of(self.registry) + text_of(of_service)).decode()


class Measured:
    """ASGI middleware that counts every request, including refused ones."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in PATHS else "other"
        started, status = time.perf_counter(), 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)


class _Said:
    """The metrics of a service as a collector for Prometheus' client."""

    def __init__(self, figures: Iterable[Figure]) -> None:
        self.figures = list(figures)

    def collect(self) -> Iterable[Metric]:
        """Metric families, grouped by name."""
        families: dict[str, Any] = {}
        for figure in self.figures:
            names = [name for name, _ in figure.labels]
            family = families.get(figure.name)
            if family is None:
                kind = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
                family = kind(f"vitune_{figure.name}", figure.text, labels=names)
                families[figure.name] = family
            family.add_metric([value for _, value in figure.labels], figure.value)
        return families.values()
