"""Self-made moving images, and the tracks that the library itself finds in them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from frontend import SuperPoint
from frontend.camera import Camera
from frontend.image import decode_image
from frontend.stereo import StereoRig
from frontend.tracking import Tracker, TrackerConfig
from frontend.types import TrackedFrame
from service.client import SequenceFrame

WIDTH, HEIGHT = 160, 120
STEP = 50_000_000
K = np.array([[150.0, 0, 79.5], [0, 150, 59.5], [0, 0, 1]])
CAMERA = Camera(K, (-0.05, 0.01, 0.001, 0.0))
RIG = StereoRig(CAMERA, Camera(K), np.eye(3), np.array([-0.1, 0.0, 0.0]))


def scenery(seed: int = 0) -> np.ndarray:
    """Blocks of noise, (HEIGHT, 3 WIDTH) uint8: they have corners."""
    blocks = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 8, 3 * WIDTH // 8), dtype=np.uint8)
    return np.kron(blocks, np.ones((8, 8), np.uint8))


def view(shift: int, seed: int = 0) -> bytes:
    """A PNG of what a window sees that has moved to the right by so many pixels."""
    return bytes(cv2.imencode(".png", scenery(seed)[:, shift : shift + WIDTH])[1])


def views(count: int, seed: int = 0, pixels: int = 3) -> list[bytes]:
    return [view(pixels * n, seed) for n in range(count)]


def in_process(
    images: list[bytes], rights: list[bytes] | None = None, config: TrackerConfig | None = None, **changes: Any
) -> list[TrackedFrame]:
    """Frames of the library, by stamps of ``STEP``."""
    extractor = SuperPoint.from_pretrained(device="cpu")
    extractor = extractor.configured(type(extractor.config)(**{**extractor.config.__dict__, **changes}))
    tracker = Tracker(config, CAMERA, RIG if rights else None)
    found = []
    for n, image in enumerate(images):
        white = extractor.config.white
        features = extractor.extract(decode_image(image, "left", white=white))
        right = extractor.extract(decode_image(rights[n], "right", white=white)) if rights else None
        found.append(tracker.update(features, n * STEP, right))
    return found


def check_same(got: SequenceFrame, expected: TrackedFrame) -> None:
    """The same tracks; positions to the rounding of batches of other sizes."""
    for name in ("index", "stamp_ns", "image_size", "keyframe", "motion"):
        assert getattr(got, name) == getattr(expected, name), name
    for name in ("track_ids", "ages", "new", "lost"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(got.keypoints, expected.keypoints, atol=1e-2)
    np.testing.assert_allclose(got.normalised, expected.normalised, atol=1e-4)
    np.testing.assert_allclose(got.velocities, expected.velocities, atol=0.5)
    assert abs(got.inlier_share - expected.inlier_share) < 0.02
    assert (got.matrix is None) == (expected.matrix is None)
    assert (got.pose is None) == (expected.pose is None)
    assert (got.stereo is None) == (expected.stereo is None)
    if got.stereo is not None and expected.stereo is not None:
        np.testing.assert_array_equal(got.stereo.rows, expected.stereo.rows)
        np.testing.assert_allclose(got.stereo.keypoints, expected.stereo.keypoints, atol=1e-2)
        np.testing.assert_allclose(got.stereo.points, expected.stereo.points, rtol=1e-2)
