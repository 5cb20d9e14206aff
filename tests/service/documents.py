"""Documents as the service makes them, filled by hand."""

from __future__ import annotations

from typing import Any

import numpy as np


def features_document(**changes: object) -> dict[str, Any]:
    document = {
        "model": "edge",
        "image_size": [64, 48],
        "keypoints": np.array([[1.5, 2.25], [3, 4]], np.float32),
        "scores": np.array([0.9, 0.5], np.float32),
        "sigmas": np.array([0.3, 0.4], np.float32),
        "descriptors": np.array([[1, 0], [0.6, 0.8]], np.float32),
        "feature_id": "abc",
        "expires_in_s": 60.0,
    }
    return {**document, **changes}


def frame_document(**changes: object) -> dict[str, Any]:
    document = {
        "sequence_id": "s",
        "camera_id": "left",
        "frame_id": "cam0",
        "index": 3,
        "stamp_ns": 1_403_636_579_763_555_584,
        "image_size": [64, 48],
        "track_ids": np.array([7, 9]),
        "ages": np.array([4, 1]),
        "keypoints": np.array([[1.5, 2.25], [3, 4]], np.float32),
        "scores": np.array([0.9, 0.5], np.float32),
        "sigmas": np.array([0.3, 0.4], np.float32),
        "normalised": np.array([[-0.1, 0.2], [0.3, 0.4]]),
        "velocities": np.array([[10, -5], [0, 0]], np.float32),
        "new": np.array([False, True]),
        "lost": np.array([2, 3, 5]),
        "keyframe": True,
        "motion": "essential",
        "matrix": np.arange(9.0).reshape(3, 3),
        "inlier_share": 0.75,
        "pose": {"R": np.eye(3), "t": np.array([0, 0, 1.0])},
        "stereo": {
            "rows": np.array([1]),
            "keypoints": np.array([[2.5, 4]], np.float32),
            "points": np.array([[0.1, 0.2, 3.0]]),
        },
        "descriptors": np.array([[1, 0], [0.6, 0.8]], np.float32),
        "timings_ms": {"total": 12.5},
    }
    return {**document, **changes}
