"""What all routes share: models, engine, threads that decode, metrics."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from frontend.errors import ConfigError
from frontend.extractor import Prepared, SuperPoint
from frontend.types import Features
from frontend.weights import list_models
from service.admission import Slot
from service.bodies import Budget
from service.decoding import Decoder
from service.engine import Engine, EngineConfig, configuration
from service.errors import (
    BadRequestError,
    DeadlineError,
    NotFoundError,
    UnavailableError,
)
from service.masks import Mask, PackedMask
from service.matchers import Matchers
from service.metrics import Metrics
from service.room import Room
from service.sessions import SessionConfig, Sessions
from service.settings import Settings, warmup_sizes
from service.store import FeatureStore, StoreConfig
from service.warmup import warm_up

T = TypeVar("T")
_WATCH_S = 1.0
STOPPED = (1012, "the service is shutting down")
"""Code and reason that streams are closed with then."""


class Stream(Protocol):
    """A WebSocket that is open."""

    def end(self, code: int, reason: str) -> None:
        """Read no more, answer what has been read, and close it."""


class Core:
    """State of one application.

    Args:
        settings: see there.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._sizes = warmup_sizes(settings)
        self.engine = Engine(
            EngineConfig(
                max_batch=settings.max_batch,
                max_batch_pixels=int(settings.max_batch_mp * 1e6),
                max_delay_s=settings.max_delay_ms / 1e3,
                max_queue=settings.max_queue,
                # the device may slow down by half and those who wait are still served in time
                max_wait_s=settings.deadline_s / 2,
            ),
            self.metrics,
        )
        bounds = StoreConfig(settings.store_ttl_s, settings.store_max_entries, int(settings.store_max_mb * 1e6))
        self.store = FeatureStore(bounds, self.metrics)
        limits = SessionConfig(settings.sequence_ttl_s, settings.sequence_max, int(settings.sequence_max_mb * 1e6))
        self.sessions = Sessions(limits, self.metrics)
        self.metrics.sequence_limit.set(limits.max_bytes)
        self.bodies = Budget(int(settings.max_bodies_mb * 1e6))
        self.decoder = Decoder(settings.max_pixels_mp)
        self.decoded = Room(int(settings.max_decoded_mb * 1e6))
        self.streams: set[Stream] = set()
        self.stopping = False
        self._stops_at: float | None = None
        self._pool = ThreadPoolExecutor(settings.decode_threads, "decode")
        # of their own: a frame whose turn has come, and for which others wait, would wait for all images in the pool
        self._trackers = ThreadPoolExecutor(settings.decode_threads, "track")
        self.models: dict[str, SuperPoint] = {}
        self.versions: dict[str, str] = {}  # of the released models
        self.matchers = Matchers()
        self.ready = False
        self.failure: str | None = None
        self.when_start_fails: Callable[[], None] = lambda: None  # called in the thread that starts

    def start(self) -> None:
        """Load the models, start the device's thread, and run what clients will send, so that the first is no slower.

        Raises:
            FrontendError: a model cannot be loaded, or there is no such device.
        """
        try:
            self._load()
        except Exception as error:
            self.failure = str(error).partition("\n")[0]
            self.when_start_fails()
            raise
        self.ready = True

    def _load(self) -> None:
        loaded = {
            name: SuperPoint.from_pretrained(
                name,
                device=self.settings.device,
                runtime=self.settings.runtime,
                precision=self.settings.precision,
            )
            for name in dict.fromkeys((self.settings.model, *self.settings.models))
        }
        self.versions = {name: info.version for name, info in list_models().items()}
        self.engine.start()
        self.matchers.load(self.engine, loaded)
        self.models = loaded  # all at once, and with their matchers: pages ask for them until there are some
        for size in self._sizes:
            for name, extractor in loaded.items():
                warm_up(self.engine, self._pool, extractor, size, self.matchers.of(name))

    def stop(self) -> None:
        """Take nothing new, finish what was accepted."""
        self.ready = False
        self.engine.stop(self.left_to_stop())
        for pool in (self._pool, self._trackers):
            pool.shutdown(wait=True, cancel_futures=True)

    async def finish_streams(self) -> None:
        """Open no more streams, answer what those that are open have sent, and close them."""
        self.stopping = True
        for stream in self.streams:
            stream.end(*STOPPED)
        while self.streams and self.left_to_stop():
            await asyncio.sleep(0.02)

    def left_to_stop(self) -> float:
        """Seconds that are left for what was accepted, all steps of a shutdown together; the first call begins it."""
        if self._stops_at is None:
            self._stops_at = time.monotonic() + self.settings.shutdown_s
        return max(self._stops_at - time.monotonic(), 0.0)

    async def watch(self) -> None:
        """Forget what expires, also while nobody asks, until cancelled."""
        while True:
            await asyncio.sleep(_WATCH_S)
            self.store.expire()
            self.sessions.expire()

    def unready_because(self) -> str | None:
        """Why the service cannot serve; None where it can."""
        if self.failure is not None:
            return f"the start has failed: {self.failure}"
        if not self.ready or self.stopping:
            return "models are being loaded and warmed up, or the service is stopping"
        if not self.engine.healthy:
            return "the device has failed"
        if self.engine.silence_s > self.settings.heartbeat_limit_s:
            return f"the device's thread has been silent for {self.engine.silence_s:.0f} s"
        return None

    def extractor(self, model: str | None, **changes: object) -> SuperPoint:
        """The extractor of a request.

        Args:
            model: a name; the default where None.
            changes: of its configuration; None leaves a value as it is.

        Raises:
            UnavailableError: models are still being loaded.
            NotFoundError: no such model is served.
            BadRequestError: a value is out of its range.
        """
        self._require_models()
        name = model or self.settings.model
        if name not in self.models:
            raise NotFoundError(f"model {name[:64]!r} is not served; expected one of: {', '.join(self.models)}")
        asked = changes.get("max_keypoints")
        if isinstance(asked, int) and asked > self.settings.max_keypoints:
            raise BadRequestError(f"max_keypoints is {asked}; expected at most {self.settings.max_keypoints}")
        base = self.models[name]
        try:
            return base.configured(configuration(base.config, **changes))
        except ConfigError as error:
            raise BadRequestError(str(error)) from None

    def deadline(self) -> float:
        """When a request that is admitted now has to be done, by the engine's clock."""
        return time.monotonic() + self.settings.deadline_s

    def _prepare(self, extractor: SuperPoint, data: bytes, name: str, masks: Sequence[Mask]) -> Prepared:
        began = time.perf_counter()
        prepared = self.decoder.prepare(extractor, data, name, masks)
        self.metrics.stage.labels("decode").observe(time.perf_counter() - began)
        return prepared

    async def mask(self, extractor: SuperPoint, data: bytes, name: str, deadline: float) -> PackedMask:
        """An encoded mask, decoded, for a sequence to keep; ``name`` is for errors.

        Raises:
            BadImageError: it cannot be read, or is black everywhere.
            TooLargeError: it has more pixels than an image may have.
            DeadlineError: it was not ready in time.
        """

        loop = asyncio.get_running_loop()

        async def decode() -> PackedMask:
            async with self.decoded.hold(self.decoder.nbytes(extractor, data, name)):
                return await loop.run_in_executor(self._pool, self.decoder.mask, extractor, data, name)

        return await self.in_time(decode(), deadline)

    async def features(
        self,
        extractor: SuperPoint,
        images: list[tuple[str, bytes]],
        deadline: float,
        slots: list[Slot],
        masks: Mapping[str, Sequence[Mask]] | None = None,
    ) -> list[Features]:
        """Features of encoded images, one slot for each; where all of its masks, by its name, allow keypoints.

        Raises:
            BadImageError: an image or a mask cannot be used.
            TooLargeError: one has more pixels than the limit, as it is or as resized.
            DeadlineError: they were not ready in time.
            UnavailableError: the device failed, or the service is stopping.
        """
        loop = asyncio.get_running_loop()

        async def one(name: str, data: bytes, slot: Slot) -> Features:
            submitted, given = False, (masks or {}).get(name, ())
            try:
                nbytes = self.decoder.nbytes(extractor, data, name)
                nbytes += sum(self.decoder.mask_nbytes(extractor, mask) for mask in given)
                async with self.decoded.hold(nbytes):
                    prepared = await loop.run_in_executor(self._pool, self._prepare, extractor, data, name, given)
                    submitted = True
                    return await asyncio.wrap_future(self.engine.submit(extractor, prepared, deadline, slot))
            except BaseException as error:
                if not submitted:  # else the engine sees to both
                    slot.release()
                    if isinstance(error, asyncio.CancelledError):
                        self.metrics.dropped("cancelled")
                raise

        tasks = [asyncio.ensure_future(one(name, data, slot)) for (name, data), slot in zip(images, slots, strict=True)]
        try:
            left = max(deadline - time.monotonic(), 0.001)
            done, waiting = await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_EXCEPTION)
            failures = [error for task in done if (error := task.exception()) is not None]
            if failures:
                raise failures[0]
            if waiting:
                raise self._late()
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()

    async def in_thread(
        self,
        function: Callable[[], T],
        deadline: float,
        done: Callable[[asyncio.Future[T]], object] | None = None,
        *,
        tracking: bool = False,
    ) -> T:
        """Run a function in a thread; once it has begun it is not stopped, whoever waits for it.

        Args:
            function: called in the thread.
            deadline: by the engine's clock; nobody waits longer.
            done: called on the event loop with the future when it has ended, or will not begin.
            tracking: whether it is a tracker's work, which does not wait for images to be decoded.

        Raises:
            DeadlineError: it was not done in time.
        """
        pool = self._trackers if tracking else self._pool
        work = pool.submit(function)
        future = asyncio.wrap_future(work)
        if done is not None:
            future.add_done_callback(done)
        try:
            return await self.in_time(asyncio.shield(future), deadline)
        finally:
            work.cancel()  # if it has not begun, it does not

    async def on_device(
        self,
        function: Callable[..., T],
        *args: Any,
        deadline: float,
        urgent: bool = True,
        extractor: SuperPoint | None = None,
        **kwargs: Any,
    ) -> T:
        """Run a function in the device's thread, see :meth:`Engine.call`; work that brings no image is not urgent.

        Raises:
            DeadlineError: it was not done in time.
            UnavailableError: the device failed, or the service is stopping.
        """
        call = functools.partial(function, *args, **kwargs)
        future = self.engine.call(call, deadline, urgent=urgent, extractor=extractor)
        result: T = await self.in_time(asyncio.wrap_future(future), deadline)
        return result

    async def in_time(self, awaited: Awaitable[T], deadline: float) -> T:
        """Wait for something.

        Raises:
            DeadlineError: it was not done in time.
        """
        try:
            return await asyncio.wait_for(awaited, max(deadline - time.monotonic(), 0.001))
        except asyncio.TimeoutError:
            raise self._late() from None

    def _late(self) -> DeadlineError:
        return DeadlineError(f"not done within {self.settings.deadline_s:g} s")

    def _require_models(self) -> None:
        if not self.ready:
            raise UnavailableError("the service is not ready")

    def require_ready(self) -> None:
        """Refuse what is new while models are loaded, and once the service stops.

        Raises:
            UnavailableError: the service is not ready.
        """
        self._require_models()
        if self.stopping:
            raise UnavailableError("the service is shutting down")

    def require_places(self, count: int, *, searches: bool = False) -> None:
        """Refuse, before a body is read, whom :meth:`reserve` would refuse; nothing is held while the body comes.

        Raises:
            UnavailableError: the service is not ready.
            OverloadedError: the queue is full.
        """
        for slot in self.reserve(count, searches=searches):
            slot.release()

    def reserve(self, count: int, *, searches: bool = False, accepted: bool = False) -> list[Slot]:
        """Places in the queue, see :meth:`Engine.reserve`.

        Args:
            count: of them.
            searches: whether they are for work that brings no image.
            accepted: whether they are for what was accepted before, which is finished when the service stops.

        Raises:
            UnavailableError: the service is not ready.
            OverloadedError: the queue is full.
        """
        if accepted:
            self._require_models()
        else:
            self.require_ready()
        return self.engine.reserve(count, searches=searches)
