"""The engine: images of many clients, batched onto one device.

An item is one prepared image. Items wait in buckets of one network shape and one configuration. The device's own
thread takes a batch from the bucket whose head has waited longest, as soon as the device is free; a batch that
is not full is waited for a moment. Nothing here runs on the event loop.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from frontend.extractor import ExtractorConfig, Prepared, SuperPoint
from frontend.types import Features
from service.admission import Admission, Lane, Slot
from service.errors import DeadlineError, UnavailableError

Clock = Callable[[], float]
_LOG = logging.getLogger("superpoint")


class Observer(Protocol):
    """What the engine tells of itself; called from its thread, so quick and thread-safe."""

    def batch(self, size: int, waited_s: float, device_s: float) -> None:
        """A batch has been run; ``waited_s`` is the longest wait of its items."""

    def dropped(self, reason: str) -> None:
        """An item has been dropped: "cancelled", "deadline" or "failed"."""


class SilentObserver:
    """Hears nothing."""

    def batch(self, size: int, waited_s: float, device_s: float) -> None:
        """See :class:`Observer`."""

    def dropped(self, reason: str) -> None:
        """See :class:`Observer`."""


@dataclass(frozen=True)
class EngineConfig:
    """Settings of the engine.

    Attributes:
        max_batch: images of a batch.
        max_batch_pixels: of network input in a batch, so that large images do not fill the memory; one image of any
            size is a batch.
        max_delay_s: how long a batch that is not full is waited for, seconds, counted from its oldest item. It is not
            waited for where every item that was admitted is there.
        max_queue: places that may be taken, see :class:`service.admission.Admission`.
        max_wait_s: who would have to wait longer, by how fast the last ones were, is not admitted, seconds.
        heartbeat_s: the device's thread says it is alive at least this often while it has nothing to do, seconds.
    """

    max_batch: int = 16
    max_batch_pixels: int = 16_000_000
    max_delay_s: float = 0.002
    max_queue: int = 256
    max_wait_s: float = math.inf
    heartbeat_s: float = 1.0


@dataclass
class _Item:
    prepared: Prepared
    future: Future[Features]
    deadline: float
    admitted: float

    def done(self, _: object) -> None:
        # a cancelled one waits on until the device gets to it, and whoever has its place brings another image; and the
        # future holds this method, so that others would stay until cycles are collected
        del self.prepared


@dataclass
class _Call:
    function: Callable[[], object]
    future: Future[object]
    deadline: float
    urgent: bool
    extractor: SuperPoint | None

    def done(self, _: object) -> None:
        del self.function  # as above


@dataclass
class _Bucket:
    extractor: SuperPoint
    most: int
    items: deque[_Item] = field(default_factory=deque)


def _was_run(future: Future[Features]) -> bool:
    return not future.cancelled() and not isinstance(future.exception(), (DeadlineError, UnavailableError))


def _line(error: BaseException) -> str:
    """What an error says, its first line, or its type where it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


def _head(bucket: _Bucket) -> float:
    """When its oldest item was admitted."""
    return bucket.items[0].admitted


class Engine:
    """Runs extractors on one device, in one thread.

    Args:
        config: settings.
        observer: is told of batches and drops.
        clock: seconds that never go back.

    Attributes:
        when_device_fails: called in the device's thread with the reason, once, when what waited has been refused: from
            then on everything is, since a device that has failed works again in another process at best.
    """

    def __init__(
        self, config: EngineConfig | None = None, observer: Observer | None = None, clock: Clock = time.monotonic
    ) -> None:
        self.config = config or EngineConfig()
        self._observer = observer or SilentObserver()
        self._clock = clock
        self._condition = threading.Condition()
        self._buckets: dict[tuple[object, ...], _Bucket] = {}
        self._calls: deque[_Call] = deque()
        self._pieces: deque[_Call] = deque()
        self._lead_s = 0.0  # what pieces have had of the device more than images, while both were waiting
        self._queued = 0
        self._admission = Admission(self.config.max_queue, self.config.max_wait_s, self.config.max_batch)
        self._accepting = True
        self._stopping = False
        self._failure: str | None = None
        self.when_device_fails: Callable[[str], None] = lambda reason: None
        self._beat = clock()
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)

    def start(self) -> None:
        """Start the device's thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Finish what was accepted, take nothing new, and end the thread; False where that takes longer."""
        with self._condition:
            self._accepting, self._stopping = False, True
            self._condition.notify_all()
        if self._thread.ident is not None:  # it was started
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def depth(self) -> int:
        """Places that are taken."""
        return self._admission.depth

    @property
    def healthy(self) -> bool:
        """Whether the device's thread lives and the device works."""
        return self._failure is None and self._thread.is_alive()

    @property
    def silence_s(self) -> float:
        """Seconds since the device's thread last said that it is alive."""
        return self._clock() - self._beat

    def reserve(self, count: int = 1, *, searches: bool = False) -> list[Slot]:
        """Take places in the queue, all or none, before any work is done for a request.

        Args:
            count: of places.
            searches: whether they are for calls that are not urgent, and not for images.

        Raises:
            OverloadedError: there are not as many.
            UnavailableError: the engine is stopping, or its device has failed.
        """
        with self._condition:
            if self._failure is not None:
                raise UnavailableError(f"the device has failed: {self._failure}")
            if not self._accepting:
                raise UnavailableError("the service is shutting down")
        return self._admission.reserve(count, self._lane(searches))

    def _lane(self, searches: bool) -> Lane:
        return self._admission.searches if searches else self._admission.images

    def submit(self, extractor: SuperPoint, prepared: Prepared, deadline: float, slot: Slot) -> Future[Features]:
        """Queue a prepared image.

        Args:
            extractor: that prepared it.
            prepared: the image.
            deadline: by the engine's clock; later it is dropped.
            slot: reserved for it; given back when the future is done.

        Returns:
            A future of the features. Cancelling it before its batch starts costs the device nothing. It fails with
            :class:`DeadlineError`, :class:`UnavailableError`, or what the network raised for this image.
        """
        future: Future[Features] = Future()
        item = _Item(prepared, future, deadline, self._clock())
        future.add_done_callback(item.done)
        future.add_done_callback(lambda done: slot.release(served=_was_run(done)))
        key = (id(extractor.backend), extractor.config, prepared.gray.shape, prepared.raster is None)
        with self._condition:
            if self._failure is not None or self._stopping:
                future.set_exception(UnavailableError("the device is not available"))
                return future
            most = min(max(self.config.max_batch_pixels // prepared.gray.size, 1), self.config.max_batch)
            bucket = self._buckets.setdefault(key, _Bucket(extractor, most))
            self._queued += 1
            bucket.items.append(item)
            self._condition.notify()
        return future

    def call(
        self,
        function: Callable[[], Any],
        deadline: float,
        *,
        urgent: bool = True,
        extractor: SuperPoint | None = None,
    ) -> Future[Any]:
        """Queue a piece of work for the device that is no image: matching, geometry.

        Args:
            function: called in the device's thread.
            deadline: by the engine's clock; later it is dropped.
            urgent: it comes before the images, as what finishes requests whose images are done. Otherwise it shares
                the device's time with batches of images, half and half while both wait.
            extractor: whose device the function uses: where it fails, it is asked whether the device still works.

        Returns:
            A future of what the function returns or raises.
        """
        future: Future[Any] = Future()
        call = _Call(function, future, deadline, urgent, extractor)
        future.add_done_callback(call.done)
        with self._condition:
            if self._failure is not None or self._stopping:
                future.set_exception(UnavailableError("the device is not available"))
                return future
            (self._calls if urgent else self._pieces).append(call)
            self._condition.notify()
        return future

    def _take(self) -> _Call | tuple[SuperPoint, list[_Item]] | None:
        """Wait for work; None once the engine stops and the queues are empty."""
        with self._condition:
            while True:
                self._beat = self._clock()
                if self._calls:
                    return self._calls.popleft()
                self._buckets = {key: bucket for key, bucket in self._buckets.items() if bucket.items}
                bucket, left = self._ripe()
                if not (self._pieces and bucket):
                    self._lead_s = 0.0  # whoever comes finds nobody in debt
                if self._pieces and not (bucket and self._lead_s > 0):
                    return self._pieces.popleft()
                if bucket:
                    count = min(len(bucket.items), bucket.most)
                    self._queued -= count
                    return bucket.extractor, [bucket.items.popleft() for _ in range(count)]
                if self._stopping and not self._buckets:
                    return None
                # no longer at a time, so that a long delay is no silence
                self._condition.wait(min(left, self.config.heartbeat_s))

    def _ripe(self) -> tuple[_Bucket | None, float]:
        """The bucket of the next batch, or None and how many seconds to wait for one at most."""
        if not self._buckets:
            return None, math.inf
        oldest = min(self._buckets.values(), key=_head)
        left = _head(oldest) + self.config.max_delay_s - self._clock()
        coming = self._admission.images.reserved > self._queued
        if len(oldest.items) >= oldest.most or left <= 0 or not coming or self._stopping:
            return oldest, 0.0
        # a full one goes before it now, and not once it has waited: it would wait as long as others fill
        full = [bucket for bucket in self._buckets.values() if len(bucket.items) >= bucket.most]
        return (min(full, key=_head), 0.0) if full else (None, left)

    def _work(self) -> None:
        taken: _Call | tuple[SuperPoint, list[_Item]] | None = None
        try:
            while (taken := self._take()) is not None:
                self._do(taken)
        except BaseException as error:  # nobody else would ever answer what waits
            _LOG.error("the device's thread has ended", exc_info=error)
            in_hand = [taken] if isinstance(taken, _Call) else taken[1] if taken else []
            self._refuse_all(f"its thread has ended ({_line(error)})", in_hand)

    def _do(self, taken: _Call | tuple[SuperPoint, list[_Item]]) -> None:
        lane = self._lane(isinstance(taken, _Call) and not taken.urgent)
        began, waited_for = self._clock(), lane.reserved > 0
        if isinstance(taken, _Call):
            self._answer(taken)
        else:
            self._serve(*taken)
        took = self._clock() - began
        if lane is self._admission.searches:
            self._lead_s += took
        elif not isinstance(taken, _Call):
            self._lead_s -= took
        if waited_for:  # not the warm-up
            lane.worked(took)

    def _serve(self, extractor: SuperPoint, items: list[_Item]) -> None:
        now = self._clock()
        wanted = []
        for item in items:
            if not item.future.set_running_or_notify_cancel():
                self._observer.dropped("cancelled")
            elif item.deadline <= now:
                self._observer.dropped("deadline")
                item.future.set_exception(DeadlineError("the deadline passed while the image was waiting"))
            else:
                wanted.append(item)
        if wanted:
            self._run(extractor, wanted, now)

    def _answer(self, call: _Call) -> None:
        if not call.future.set_running_or_notify_cancel():
            self._observer.dropped("cancelled")
        elif call.deadline <= self._clock():
            self._observer.dropped("deadline")
            call.future.set_exception(DeadlineError("the deadline passed while the request was waiting"))
        else:
            try:
                call.future.set_result(call.function())
            except Exception as error:
                self._observer.dropped("failed")
                call.future.set_exception(self._reason(call.extractor, error))

    def _run(self, extractor: SuperPoint, items: list[_Item], began: float) -> None:
        try:
            results = extract_prepared(extractor, [item.prepared for item in items])
        except Exception as error:
            if len(items) == 1:
                self._observer.dropped("failed")
                items[0].future.set_exception(self._reason(extractor, error))
                return
            results = None  # and the error is let go: its frames hold what the batch has on the device
        if results is None:
            # one of them is the culprit; the others get their results
            for item in items:
                self._run(extractor, [item], self._clock())
            return
        ended = self._clock()
        self._observer.batch(len(items), began - min(item.admitted for item in items), ended - began)
        self._beat = ended
        for item, features in zip(items, results, strict=True):
            item.future.set_result(features)

    def _reason(self, extractor: SuperPoint | None, error: Exception) -> Exception:
        """Why work failed: what it raised or, where the device itself does not work, that; all is refused then."""
        if extractor is None:
            return error
        try:
            extractor.backend.check()
        except Exception:
            self._refuse_all(_line(error))
            return UnavailableError("the device has failed")
        return error

    def _refuse_all(self, failure: str, in_hand: Sequence[_Item | _Call] = ()) -> None:
        """Refuse what waits, what was taken and has no answer yet, and whatever comes from now on."""
        with self._condition:
            known, self._failure = self._failure is not None, failure
            waiting: list[_Item | _Call] = [*in_hand]
            waiting += [item for bucket in self._buckets.values() for item in bucket.items]
            waiting += [*self._calls, *self._pieces]
            self._buckets, self._queued = {}, 0
            self._calls.clear()
            self._pieces.clear()
        for one in waiting:
            running = one.future.running()
            if running or (not one.future.done() and one.future.set_running_or_notify_cancel()):
                one.future.set_exception(UnavailableError("the device has failed"))
        if not known:
            self.when_device_fails(failure)


def extract_prepared(extractor: SuperPoint, prepared: list[Prepared]) -> list[Features]:
    """Features of prepared images of one size, in one batch."""
    batch = extractor.stack(prepared)
    return extractor.collect(extractor.postprocess(extractor.forward(batch), batch), batch)


def configuration(base: ExtractorConfig, **changes: object) -> ExtractorConfig:
    """A configuration with those of the changes that are not None.

    Raises:
        ConfigError: a value is out of its range.
    """
    import dataclasses

    return dataclasses.replace(base, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]
