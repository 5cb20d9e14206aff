"""Stand-ins for extractors and observers, shared by the engine's tests; fixtures are in conftest.py."""

from __future__ import annotations

import threading
import time

import numpy as np

from frontend.extractor import ExtractorConfig, Geometry, Prepared
from frontend.types import Features
from service.engine import Engine


class Backend:
    """A device that works until it is told otherwise."""

    works = True

    def check(self) -> None:
        if not self.works:
            raise RuntimeError("device-side assert")


class Stub:
    """Stands in for an extractor: waits for ``gate``, and answers with the image's mean as the only score."""

    def __init__(self, config: ExtractorConfig | None = None) -> None:
        self.backend, self.config = Backend(), config or ExtractorConfig()
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []

    def run(self, prepared: list[Prepared]) -> list[Features]:
        assert self.gate.wait(20)
        self.batches.append(len(prepared))
        if any(item.gray.min() < 0 for item in prepared):
            raise ValueError("a negative image")
        empty = np.zeros((1, 2), np.float32)
        return [Features(empty, item.gray.mean(keepdims=True)[0], empty, (8, 8)) for item in prepared]


class Log:
    def __init__(self) -> None:
        self.batches: list[tuple[int, float, float]] = []
        self.drops: list[str] = []

    def batch(self, size: int, waited_s: float, device_s: float) -> None:
        self.batches.append((size, waited_s, device_s))

    def dropped(self, reason: str) -> None:
        self.drops.append(reason)


def image(value: float, size: int = 8) -> Prepared:
    return Prepared(np.full((size, size), value, np.float32), Geometry((size, size), (size, size), (1.0, 1.0)), None)


def later() -> float:
    return time.monotonic() + 30


def send(engine: Engine, stub: Stub, item: Prepared, deadline: float | None = None):  # type: ignore[no-untyped-def]
    (slot,) = engine.reserve()
    return engine.submit(stub, item, later() if deadline is None else deadline, slot)  # type: ignore[arg-type]


def wait_until(condition) -> None:  # type: ignore[no-untyped-def]
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)
