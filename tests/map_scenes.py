"""Feature files of made scenes: points in space or on a plane, seen by cameras that are known."""

from __future__ import annotations

import sqlite3
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from frontend.feature_files import write_features
from frontend.types import Features

K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
SIZE = (640, 480)
LENS = "500,500,320,240"
DIMENSIONS = 16
NAMES = ("a/one.jpg", "a/two.png", "b.JPG", "c d.jpg")


def pose(view: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and translation of a view's camera; that of every fourth is upside down, where half a pixel matters."""
    turned = np.diag([-1.0, -1.0, 1.0]) if view % 4 == 3 else np.eye(3)
    turn = cv2.Rodrigues(np.array([0.02, -0.05, 0.01]) * view)[0]
    return turned @ turn, turned @ np.array([0.5, 0.1, 0.05]) * view


def project(points: np.ndarray, view: int) -> np.ndarray:
    """(N, 3) points to (N, 2) pixels of a view."""
    R, t = pose(view)
    seen = (points @ R.T + t) @ K.T
    pixels: np.ndarray = seen[:, :2] / seen[:, 2:]
    return pixels


def cloud(count: int = 120, flat: bool = False, seed: int = 0) -> np.ndarray:
    """(N, 3) points in front of the cameras."""
    rng = np.random.default_rng(seed)
    depth = np.full(count, 6.0) if flat else rng.uniform(4, 9, count)
    return np.c_[rng.uniform(-1.4, 1.4, count), rng.uniform(-1.1, 1.1, count), depth]


class View:
    """Features of one view, and which point each keypoint shows."""

    def __init__(self, points: np.ndarray, view: int, noise: float = 0.05, model: str = "m") -> None:
        rng = np.random.default_rng(100 + view)
        self.point = rng.permutation(len(points))
        look = np.random.default_rng(7).standard_normal((len(points), DIMENSIONS))[self.point]
        look += 0.05 * rng.standard_normal(look.shape)
        pixels = project(points, view)[self.point] + rng.normal(0, noise, (len(points), 2))
        self.features = Features(
            pixels.astype(np.float32),
            np.linspace(1, 0.1, len(points), dtype=np.float32),
            (look / np.linalg.norm(look, axis=1, keepdims=True)).astype(np.float32),
            SIZE,
            model,
            np.full(len(points), 0.4, np.float32),
        )


def blank(features: Features) -> Features:
    """The same image with nothing in it."""
    parts: dict[str, Any] = {
        name: getattr(features, name)[:0] for name in ("keypoints", "scores", "descriptors", "sigmas")
    }
    return replace(features, **parts)


def stranger(features: Features) -> Features:
    """The same image with descriptors of something else."""
    other = np.random.default_rng(3).standard_normal(features.descriptors.shape).astype(np.float32)
    return replace(features, descriptors=other / np.linalg.norm(other, axis=1, keepdims=True))


def write_views(folder: Path, names: tuple[str, ...] = NAMES, flat: bool = False, count: int = 120) -> list[View]:
    """A feature file for each name, of views 0, 1, ..."""
    views = [View(cloud(count, flat), index) for index in range(len(names))]
    for name, view in zip(names, views, strict=True):
        write_features(folder / f"{name}.npz", view.features)
    return views


def rows_of(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """What a database answers."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def numbers(blob: bytes | None, kind: str, columns: int) -> np.ndarray:
    """A blob's numbers by the standard library, row by row."""
    values = [value for (value,) in struct.iter_unpack(f"<{kind}", blob or b"")]
    return np.array(values).reshape(-1, columns)


def content(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables, in the order of their first column."""
    tables = [name for (name,) in rows_of(path, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {name: rows_of(path, f"SELECT * FROM {name} ORDER BY 1") for name in tables}
