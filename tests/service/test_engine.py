"""The engine with stand-in extractors: batching, admission, and who takes turns with whom."""

from __future__ import annotations

import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from engine_stubs import Log, Stub, image, later, send, wait_until

from frontend.extractor import ExtractorConfig, SuperPoint
from frontend.model import MODEL_PRESETS, SuperPointNet
from service.engine import Engine, EngineConfig, configuration
from service.errors import OverloadedError

pytestmark = pytest.mark.usefixtures("stubbed_extractors")


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
