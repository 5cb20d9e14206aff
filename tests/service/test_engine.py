"""The engine with stand-in extractors: batching, admission, deadlines, cancelling, failures, shutdown."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch

from frontend.extractor import ExtractorConfig, Geometry, Prepared, SuperPoint
from frontend.model import MODEL_PRESETS, SuperPointNet
from frontend.types import Features
from service import engine as engine_module
from service.engine import Engine, EngineConfig, configuration
from service.errors import DeadlineError, OverloadedError, UnavailableError


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


@pytest.fixture(autouse=True)
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "extract_prepared", lambda extractor, prepared: extractor.run(prepared))


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def engine(log: Log) -> Iterator[Engine]:
    made = Engine(EngineConfig(max_batch=4, max_delay_s=0.02, max_queue=10), log)
    made.start()
    yield made
    assert made.stop(10)


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


def test_what_waits_while_the_device_works_goes_in_one_batch(engine: Engine, log: Log) -> None:
    stub = Stub()
    stub.gate.clear()
    first = send(engine, stub, image(0.1))
    wait_until(first.running)
    rest = [send(engine, stub, image(v)) for v in (0.2, 0.3, 0.4, 0.5, 0.6)]
    stub.gate.set()
    scores = [float(f.result(10).scores[0]) for f in (first, *rest)]
    assert scores == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert stub.batches == [1, 4, 1]
    assert [size for size, _, _ in log.batches] == [1, 4, 1]
    wait_until(lambda: engine.depth == 0)


def test_a_batch_has_one_shape_and_one_configuration(engine: Engine) -> None:
    stub, strict = Stub(), Stub(ExtractorConfig(max_keypoints=5))
    strict.backend = stub.backend
    gate = threading.Event()
    engine.call(lambda: gate.wait(20), later())
    futures = [
        send(engine, s, image(0.5, size))
        for s, size in ((stub, 8), (stub, 16), (strict, 8), (stub, 8), (strict, 8), (stub, 16))
    ]
    gate.set()
    for future in futures:
        future.result(10)
    assert sorted(stub.batches + strict.batches) == [2, 2, 2]


def test_an_image_waits_for_others_that_are_coming_no_longer_than_the_delay(engine: Engine, log: Log) -> None:
    (coming,) = engine.reserve()
    send(engine, Stub(), image(0.5)).result(10)
    coming.release()
    ((_, waited, _),) = log.batches
    assert 0.015 < waited < 10


def test_full_batches_do_not_starve_what_has_waited_longer(engine: Engine) -> None:
    """Whoever keeps a bucket full is not served before a lone image that came before."""
    large, lone = Stub(), Stub()
    large.gate.clear()
    first = send(engine, large, image(0.5, 4096))  # of the size of a batch
    wait_until(first.running)
    others = [send(engine, large, image(0.5, 4096))]
    alone = send(engine, lone, image(0.5))
    served: list[int] = []
    alone.add_done_callback(lambda _: served.append(len(large.batches)))
    time.sleep(0.05)  # longer than a batch is waited for
    others += [send(engine, large, image(0.5, 4096)) for _ in range(6)]
    large.gate.set()
    for future in (first, alone, *others):
        future.result(10)
    assert served == [2]  # after the two that came before it


@pytest.mark.parametrize(
    ("piece_s", "image_s", "order"), [(1.0, 1.0, "pipipi"), (1.0, 3.0, "pipppipppi"), (3.0, 1.0, "piiipiii")]
)
def test_images_and_pieces_that_come_without_end_share_the_time(piece_s: float, image_s: float, order: str) -> None:
    """The next piece is there before the device looks for work: it is sent as the last one's result is set."""
    now, done = [0.0], []
    engine = Engine(EngineConfig(max_batch=1, max_delay_s=0.0), clock=lambda: now[0])
    engine.start()
    stub, gate, ended = Stub(), threading.Event(), threading.Event()

    def work(name: str, seconds: float) -> None:
        done.append(name)
        now[0] += seconds

    def next_piece(_: object = None) -> None:
        if len(done) < 50:
            engine.call(partial(work, "p", piece_s), 1e9, urgent=False).add_done_callback(next_piece)
        else:
            ended.set()

    stub.run = lambda prepared: (work("i", image_s), Stub.run(stub, prepared))[1]  # type: ignore[method-assign]
    engine.call(lambda: gate.wait(20), 1e9)
    for _ in range(8):
        send(engine, stub, image(0.5), deadline=1e9)
    engine.call(lambda: done.append("urgent"), 1e9)
    next_piece()
    gate.set()
    assert ended.wait(20)
    assert done[0] == "urgent"
    assert "".join(done[1:]).startswith(order)
    assert engine.stop(10)


def test_a_piece_is_done_while_an_image_waits_for_others() -> None:
    engine = Engine(EngineConfig(max_delay_s=20.0))
    engine.start()
    (coming,) = engine.reserve()
    waiting = send(engine, Stub(), image(0.5))
    for _ in range(3):
        engine.call(lambda: None, later(), urgent=False).result(10)
    assert not waiting.done()
    coming.release()
    engine.call(lambda: None, later(), urgent=False).result(10)  # the engine looks again
    assert waiting.result(10)
    assert engine.stop(10)


def test_pieces_of_several_take_turns(engine: Engine) -> None:
    gate, done = threading.Event(), []
    engine.call(lambda: gate.wait(20), later())

    def piece(name: str, left: int) -> None:
        def then(_: object) -> None:
            if left:
                piece(name, left - 1)

        engine.call(lambda: done.append(name), later(), urgent=False).add_done_callback(then)

    for name in "abc":
        piece(name, 9)
    gate.set()
    wait_until(lambda: len(done) == 30)
    assert "".join(done) == "abc" * 10


def test_an_engine_that_was_never_started_can_be_stopped() -> None:
    assert Engine().stop(1)


def test_an_image_that_is_alone_does_not_wait(log: Log) -> None:
    engine = Engine(EngineConfig(max_delay_s=20.0), log)
    engine.start()
    send(engine, Stub(), image(0.5)).result(10)
    assert engine.stop(10)


def test_a_batch_of_large_images_has_fewer(log: Log) -> None:
    engine, stub = Engine(EngineConfig(max_batch=4, max_batch_pixels=600, max_delay_s=0.0), log), Stub()
    engine.start()
    stub.gate.clear()
    first = send(engine, stub, image(0.1))
    wait_until(first.running)
    futures = [send(engine, stub, image(0.5, size)) for size in (32, 32, 16, 16, 16, 8, 8, 8, 8)]
    stub.gate.set()
    for future in futures:
        future.result(10)
    assert engine.stop(10)
    # 1,024 pixels are over the limit, so one at a time; two of 256 are within it; of 64, four are a full batch
    assert sorted(stub.batches) == [1, 1, 1, 1, 2, 4]


def test_who_would_wait_too_long_is_not_let_in(log: Log) -> None:
    engine, stub = Engine(EngineConfig(max_batch=2, max_queue=100, max_delay_s=0.0, max_wait_s=0.5), log), Stub()
    engine.start()
    slots = engine.reserve(10)  # nothing is known of its pace yet
    for slot in slots:
        slot.release()  # and they tell nothing of it
    stub.gate.clear()
    slow = send(engine, stub, image(0.5))
    wait_until(slow.running)
    time.sleep(0.2)
    stub.gate.set()
    slow.result(10)
    wait_until(lambda: engine._admission.images.pace.seconds > 0)
    each = engine._admission.images.pace.seconds
    assert each > 0.19
    slots = engine.reserve(2)  # a batch is let in whatever the pace
    with pytest.raises(OverloadedError, match="images are waiting, which takes"):
        engine.reserve(int(0.5 / each) + 1)
    for slot in slots:
        slot.release()
    assert engine.stop(10)


def test_a_full_queue_refuses_and_says_when_to_come_back(engine: Engine) -> None:
    slots = engine.reserve(8)
    with pytest.raises(OverloadedError, match="queue of 10 places is full") as refused:
        engine.reserve(3)
    assert refused.value.retry_after == 1
    assert engine.depth == 8  # all or none
    slots[0].release()
    slots[0].release()
    assert engine.depth == 7
    for slot in slots:
        slot.release()


def test_late_and_cancelled_images_cost_nothing(engine: Engine, log: Log) -> None:
    stub = Stub()
    stub.gate.clear()
    first = send(engine, stub, image(0.1))
    wait_until(first.running)
    late = send(engine, stub, image(0.2), deadline=time.monotonic() + 0.01)
    cancelled = send(engine, stub, image(0.3))
    kept = send(engine, stub, image(0.4))
    assert cancelled.cancel()
    time.sleep(0.02)
    stub.gate.set()
    assert float(kept.result(10).scores[0]) == pytest.approx(0.4)
    with pytest.raises(DeadlineError):
        late.result(10)
    assert stub.batches == [1, 1]
    assert sorted(log.drops) == ["cancelled", "deadline"]
    wait_until(lambda: engine.depth == 0)


def test_a_poisoned_image_fails_alone(engine: Engine, log: Log) -> None:
    stub = Stub()
    stub.gate.clear()
    first = send(engine, stub, image(0.1))
    wait_until(first.running)
    good, bad, fine = (send(engine, stub, image(v)) for v in (0.2, -1.0, 0.3))
    stub.gate.set()
    with pytest.raises(ValueError, match="a negative image"):
        bad.result(10)
    assert [float(f.result(10).scores[0]) for f in (good, fine)] == pytest.approx([0.2, 0.3])
    assert stub.batches == [1, 3, 1, 1, 1]
    assert log.drops == ["failed"]
    assert engine.healthy


def test_a_dead_device_turns_the_engine_off(engine: Engine) -> None:
    stub = Stub()
    stub.gate.clear()
    first = send(engine, stub, image(-1.0))
    wait_until(first.running)
    waiting = send(engine, stub, image(0.5, 16))
    calls = [engine.call(lambda: 1, later(), urgent=urgent) for urgent in (True, False)]

    stub.backend.works = False
    stub.gate.set()
    for future in (first, waiting, *calls):
        with pytest.raises(UnavailableError, match="device has failed"):
            future.result(10)
    assert not engine.healthy
    with pytest.raises(UnavailableError, match="device has failed"):
        engine.reserve()
    wait_until(lambda: engine.depth == 0)


def test_a_device_that_dies_in_a_call_is_noticed(engine: Engine) -> None:
    stub, gate = Stub(), threading.Event()

    def fails() -> None:
        gate.wait(20)
        raise RuntimeError("an illegal memory access")

    failing = [engine.call(fails, later(), urgent=False, extractor=stub) for _ in range(2)]  # type: ignore[arg-type]
    waiting = send(engine, stub, image(0.5))
    gate.set()
    with pytest.raises(RuntimeError, match="illegal"):  # the device works: the call is what is wrong
        failing[0].result(10)
    assert waiting.result(10)

    gate.clear()
    stub.backend.works = False
    failing = [engine.call(fails, later(), urgent=urgent, extractor=stub) for urgent in (True, False)]  # type: ignore[arg-type]
    waiting = send(engine, stub, image(0.5))
    gate.set()
    for future in (*failing, waiting):
        with pytest.raises(UnavailableError):
            future.result(10)
    assert not engine.healthy


def test_what_is_cancelled_holds_no_memory_while_the_device_works(engine: Engine) -> None:
    gate = threading.Event()
    running = engine.call(lambda: gate.wait(20), later())
    wait_until(running.running)
    item = image(0.5)
    pixels = weakref.ref(item.gray)
    futures = [send(engine, Stub(), item), engine.call(partial(len, item.gray), later())]
    del item
    assert pixels() is not None
    for future in futures:
        assert future.cancel()
    gc.collect()
    assert pixels() is None
    assert engine.depth == 0
    gate.set()
    assert running.result(10)


def test_what_is_done_holds_no_memory(engine: Engine) -> None:
    item = image(0.5)
    pixels = weakref.ref(item.gray)
    futures = [send(engine, Stub(), item), engine.call(partial(len, item.gray), later())]
    del item
    gc.disable()  # reference counting alone
    try:
        for future in futures:
            future.result(10)
        send(engine, Stub(), image(0.4)).result(10)  # the device's thread has let go of the last one
        engine.call(lambda: None, later()).result(10)
        wait_until(lambda: pixels() is None)
    finally:
        gc.enable()


def test_searches_do_not_make_images_look_slow() -> None:
    now = [0.0]

    def worked(seconds: float) -> None:
        now[0] += seconds

    engine = Engine(EngineConfig(max_batch=2, max_delay_s=0.0, max_wait_s=1.0, max_queue=100), clock=lambda: now[0])
    engine.start()

    def image_of(seconds: float) -> None:
        stub = Stub()
        stub.run = lambda prepared: (worked(seconds), Stub.run(stub, prepared))[1]  # type: ignore[method-assign]
        send(engine, stub, image(0.5), deadline=1e9).result(10)

    image_of(0.01)
    (search,) = engine.reserve(searches=True)
    for _ in range(100):
        engine.call(partial(worked, 0.2), 1e9, urgent=False).result(10)
    search.release(served=True)
    image_of(0.01)
    for slot in engine.reserve(10):
        slot.release()
    engine.call(lambda: None, 1e9, urgent=False).result(10)
    (search,) = engine.reserve(searches=True)
    engine.call(lambda: None, 1e9, urgent=False).result(10)
    wait_until(lambda: engine._admission.searches.pace.seconds > 1)
    with pytest.raises(OverloadedError, match="1 searches are waiting, which takes"):
        engine.reserve(2, searches=True)
    search.release()
    assert engine.stop(10)


def test_stopping_finishes_what_was_accepted(log: Log) -> None:
    engine, stub = Engine(EngineConfig(max_batch=2, max_delay_s=5.0), log), Stub()
    engine.start()
    slots = engine.reserve(4)
    futures = [engine.submit(stub, image(0.5), later(), slot) for slot in slots[:3]]  # type: ignore[arg-type]
    assert engine.stop(10)
    assert [f.result(0).scores[0] for f in futures] == pytest.approx([0.5] * 3)
    with pytest.raises(UnavailableError, match="shutting down"):
        engine.reserve()
    # a place reserved before, its image decoded after
    with pytest.raises(UnavailableError):
        engine.submit(stub, image(0.5), later(), slots[3]).result(0)  # type: ignore[arg-type]
    assert engine.depth == 0
    assert not engine.healthy


def test_an_idle_engine_says_that_it_lives() -> None:
    engine = Engine(EngineConfig(heartbeat_s=0.01))
    engine.start()
    for _ in range(3):
        beat = engine._beat
        wait_until(lambda beat=beat: engine._beat > beat)
    assert engine.silence_s < 10
    assert engine.stop(10)


def test_real_features_are_those_of_the_extractor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    torch.manual_seed(0)
    extractor = SuperPoint(SuperPointNet(MODEL_PRESETS["edge"]).fold(), device="cpu")
    few = extractor.configured(configuration(extractor.config, max_keypoints=20, resize=None))
    assert few.backend is extractor.backend
    assert (few.config.max_keypoints, extractor.config.max_keypoints) == (20, 1024)
    assert extractor.configured(extractor.config) is extractor
    images = [np.random.default_rng(i).integers(0, 256, (60, 70), dtype=np.uint8) for i in range(3)]
    engine = Engine()
    engine.start()
    futures = [engine.submit(e, e.prepare(i), later(), engine.reserve()[0]) for e in (extractor, few) for i in images]
    for future, (e, i) in zip(futures, ((e, i) for e in (extractor, few) for i in images), strict=True):
        found, expected = future.result(20), e.extract(i)
        np.testing.assert_allclose(found.keypoints, expected.keypoints, atol=1e-3)
        np.testing.assert_allclose(found.descriptors, expected.descriptors, atol=1e-3)
    assert engine.stop(10)
