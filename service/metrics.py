"""What Prometheus reads at /metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of one application; an engine's observer."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "superpoint_requests", "Requests by route and status", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "superpoint_request_seconds", "Seconds of a request", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.stage = Histogram(
            "superpoint_stage_seconds", "Seconds of a stage", ["stage"], buckets=_SECONDS, registry=self.registry
        )
        self.batch_size = Histogram(
            "superpoint_batch_size", "Images of a batch", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.drops = Counter("superpoint_dropped", "Images dropped, by reason", ["reason"], registry=self.registry)
        self.depth = Gauge("superpoint_queue_depth", "Images admitted and not yet finished", registry=self.registry)
        self.memory = Gauge("superpoint_device_memory_bytes", "Memory allocated on the device", registry=self.registry)

    def batch(self, size: int, waited_s: float, device_s: float) -> None:
        """See :class:`service.engine.Observer`."""
        self.batch_size.observe(size)
        self.stage.labels("wait").observe(waited_s)
        self.stage.labels("device").observe(device_s)

    def dropped(self, reason: str) -> None:
        """See :class:`service.engine.Observer`."""
        self.drops.labels(reason).inc()

    def text(self) -> bytes:
        """In the format of :data:`CONTENT_TYPE`."""
        body: bytes = generate_latest(self.registry)
        return body
