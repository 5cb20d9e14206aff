"""The engine with stand-in extractors: deadlines, cancelling, failures, memory, shutdown."""

from __future__ import annotations

import gc
import math
import threading
import time
import weakref
from functools import partial

import pytest
from engine_stubs import Log, Stub, image, later, send, wait_until

from service.engine import Engine, EngineConfig
from service.errors import DeadlineError, UnavailableError

pytestmark = pytest.mark.usefixtures("stubbed_extractors")


def test_an_engine_that_was_never_started_can_be_stopped() -> None:
    assert Engine().stop(1)


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


def test_a_long_delay_is_no_silence() -> None:
    engine, stub = Engine(EngineConfig(max_delay_s=math.inf, heartbeat_s=0.01)), Stub()
    engine.start()
    (coming,) = engine.reserve()  # so that the batch is waited for
    waiting = send(engine, stub, image(0.5))
    for _ in range(3):
        beat = engine._beat
        wait_until(lambda beat=beat: engine._beat > beat)
    assert engine.healthy
    assert not waiting.done()
    assert engine.stop(10)
    assert waiting.result(0)
    coming.release()


def test_a_thread_that_ends_refuses_what_waits_and_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends() -> None:
        raise OverflowError("timeout value is too large")

    reasons: list[str] = []
    engine.when_device_fails = reasons.append
    gate = threading.Event()
    running = engine.call(lambda: gate.wait(20), later())
    wait_until(running.running)
    waiting = [send(engine, Stub(), image(0.5)), engine.call(lambda: 1, later(), urgent=False)]
    cancelled = send(engine, Stub(), image(0.5))
    assert cancelled.cancel()
    monkeypatch.setattr(engine, "_ripe", ends)
    gate.set()
    for future in waiting:
        with pytest.raises(UnavailableError, match="device has failed"):
            future.result(10)
    assert running.result(10)
    wait_until(lambda: bool(reasons))
    assert reasons == ["its thread has ended (timeout value is too large)"]
    assert not engine.healthy
    with pytest.raises(UnavailableError, match="device has failed"):
        engine.reserve()
    wait_until(lambda: engine.depth == 0)


@pytest.mark.parametrize("ends", [SystemExit, MemoryError])
def test_a_thread_that_ends_refuses_what_it_has_in_hand(engine: Engine, log: Log, ends: type[BaseException]) -> None:
    stub, gate = Stub(), threading.Event()
    held = engine.call(lambda: gate.wait(20), later())
    wait_until(held.running)
    log.dropped = lambda reason: (_ for _ in ()).throw(ends)  # type: ignore[method-assign, assignment]
    late = send(engine, stub, image(0.5), deadline=0.0)  # to be told of as dropped
    images = [send(engine, stub, image(0.5)) for _ in range(2)]
    gate.set()
    for future in (late, *images):
        with pytest.raises(UnavailableError, match="device has failed"):
            future.result(10)
    wait_until(lambda: engine.depth == 0)


def test_a_call_that_ends_the_thread_is_refused(engine: Engine) -> None:
    def ends() -> None:
        raise SystemExit

    with pytest.raises(UnavailableError, match="device has failed"):
        engine.call(ends, later()).result(10)
    assert engine.stop(10)
