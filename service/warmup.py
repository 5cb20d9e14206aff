"""Warm-up: what clients will send is done once before the service says that it is ready."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

import cv2
import numpy as np

from frontend.camera import Camera
from frontend.extractor import SuperPoint
from frontend.image import decode_image
from frontend.pipeline import MatchPipeline, PipelineConfig
from frontend.tracking import Tracker
from service.engine import Engine, extract_prepared
from service.wire import FORMATS, encode

_LIMIT_S = 600.0
_TURNS = 2  # the first allocates, the second finds what has been allocated
_LONE = (
    10  # images one at a time at the end: what large batches have freed goes back to the system, and costs once more
)


def batch_sizes(extractor: SuperPoint, max_batch: int) -> list[int]:
    """Sizes of batches worth warming, the largest first, so that what runs last is what the first client sends.

    On a GPU each may choose kernels of its own; on a CPU the largest allocates for all.
    """
    if extractor.device.type == "cuda":
        return list(range(max_batch, 0, -1))
    return sorted({1, min(2, max_batch), max_batch}, reverse=True)


def warm_up(
    engine: Engine, pool: Executor, extractor: SuperPoint, size: tuple[int, int], matchers: Sequence[str] = ("mnn",)
) -> None:
    """Decode, extract in batches, match, fit a homography and a fundamental matrix, track, and encode.

    Args:
        engine: that has been started.
        pool: whose threads decode.
        extractor: of one model.
        size: (width, height) of the images, pixels.
        matchers: that requests of this model may name.
    """
    # blocks of noise: they have corners, so that matching and the geometry have something to do
    width, height = size
    blocks = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1), dtype=np.uint8)
    image = np.kron(blocks, np.ones((8, 8), np.uint8))[:height, :width]
    data = cv2.imencode(".jpg", image)[1].tobytes()
    deadline = time.monotonic() + _LIMIT_S
    turns = _TURNS
    if extractor.device.type == "cuda":
        from frontend.cuda_backend import SEEN

        turns = SEEN + 2  # the calls after those that capture graphs have found all of them
    for _ in range(turns):
        prepared = pool.submit(
            lambda: extractor.prepare(decode_image(data, "warm-up", max_pixels=width * height))
        ).result()
        # the engine makes no larger ones of this size
        most = min(max(engine.config.max_batch_pixels // prepared.gray.size, 1), engine.config.max_batch)
        for count in batch_sizes(extractor, most):
            found = engine.call(partial(extract_prepared, extractor, [prepared] * count), deadline).result()
        configs = [PipelineConfig(geometry=geometry) for geometry in ("homography", "fundamental")]
        configs += [PipelineConfig(matcher=name, geometry="none") for name in matchers if name != "mnn"]
        for config in configs:
            pipeline = MatchPipeline(extractor, config)
            engine.call(partial(pipeline.match_features, found[0], found[0]), deadline).result()
        K = np.array([[width, 0.0, width / 2], [0.0, width, height / 2], [0.0, 0.0, 1.0]])
        tracker = Tracker(camera=Camera(K))
        for stamp in range(2):
            pool.submit(partial(tracker.update, found[0], stamp)).result()
        for kind in FORMATS:
            encode({"keypoints": found[0].keypoints, "descriptors": found[0].descriptors}, kind)
    for _ in range(_LONE):
        prepared = pool.submit(
            lambda: extractor.prepare(decode_image(data, "warm-up", max_pixels=width * height))
        ).result()
        engine.call(partial(extract_prepared, extractor, [prepared]), deadline).result()
