"""What Prometheus reads at /metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of one application; observer of its engine and its store."""

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
        self.drops = Counter(
            "superpoint_dropped", "Work of the device that was dropped, by reason", ["reason"], registry=self.registry
        )
        self.depth = Gauge(
            "superpoint_queue_depth", "Images and searches let in, not yet finished", registry=self.registry
        )
        self.bodies = Gauge("superpoint_body_bytes", "Bodies of requests that are held", registry=self.registry)
        self.decoded = Gauge("superpoint_decoded_bytes", "Decoded images that are held", registry=self.registry)
        self.memory = Gauge("superpoint_device_memory_bytes", "Memory allocated on the device", registry=self.registry)

        self.store_entries = Gauge("superpoint_store_entries", "Images with stored features", registry=self.registry)
        self.store_bytes = Gauge("superpoint_store_bytes", "Memory of stored features", registry=self.registry)
        self.store_removed = Counter(
            "superpoint_store_removed", "Stored features removed, by reason", ["reason"], registry=self.registry
        )
        self.store_full = Counter("superpoint_store_full", "Refusals by a full store", registry=self.registry)
        for reason in ("expired", "deleted"):
            self.store_removed.labels(reason)

        self.sequences = Gauge("superpoint_sequences", "Sequences that are open", registry=self.registry)
        self.sequence_bytes = Gauge(
            "superpoint_sequence_bytes", "Memory of their tracks and masks", registry=self.registry
        )
        self.sequence_reserved = Gauge(
            "superpoint_sequence_reserved_bytes", "Memory that these may come to", registry=self.registry
        )
        self.sequence_limit = Gauge(
            "superpoint_sequence_limit_bytes", "Memory that open sequences may come to", registry=self.registry
        )
        self.sequences_closed = Counter(
            "superpoint_sequences_closed", "Sequences closed, by reason", ["reason"], registry=self.registry
        )
        self.sequences_full = Counter(
            "superpoint_sequences_full", "Sequences refused for want of room", registry=self.registry
        )
        self.streams = Gauge("superpoint_streams", "WebSockets that are open", registry=self.registry)
        self.stream_frames = Counter(
            "superpoint_stream_frames", "Frames of streams, by outcome", ["outcome"], registry=self.registry
        )
        for reason in ("expired", "deleted"):
            self.sequences_closed.labels(reason)
        for outcome in ("tracked", "dropped", "refused"):
            self.stream_frames.labels(outcome)

    def batch(self, size: int, waited_s: float, device_s: float) -> None:
        """See :class:`service.engine.Observer`."""
        self.batch_size.observe(size)
        self.stage.labels("wait").observe(waited_s)
        self.stage.labels("device").observe(device_s)

    def dropped(self, reason: str) -> None:
        """See :class:`service.engine.Observer`."""
        self.drops.labels(reason).inc()

    def stored(self, entries: int, nbytes: int) -> None:
        """See :class:`service.store.Observer`."""
        self.store_entries.set(entries)
        self.store_bytes.set(nbytes)

    def removed(self, reason: str) -> None:
        """See :class:`service.store.Observer`."""
        self.store_removed.labels(reason).inc()

    def store_refused(self) -> None:
        """See :class:`service.store.Observer`."""
        self.store_full.inc()

    def sessions(self, count: int, nbytes: int, reserved: int) -> None:
        """See :class:`service.sessions.Observer`."""
        self.sequences.set(count)
        self.sequence_bytes.set(nbytes)
        self.sequence_reserved.set(reserved)

    def session_closed(self, reason: str) -> None:
        """See :class:`service.sessions.Observer`."""
        self.sequences_closed.labels(reason).inc()

    def session_refused(self) -> None:
        """See :class:`service.sessions.Observer`."""
        self.sequences_full.inc()

    def text(self) -> bytes:
        """In the format of :data:`CONTENT_TYPE`."""
        body: bytes = generate_latest(self.registry)
        return body
