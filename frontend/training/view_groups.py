"""Features of several views of one thing, and where each keypoint is in the other views: what a matcher learns from.

A group is the views of a made scene (:mod:`frontend.training.scene_views`: cameras that moved, with parallax and
occlusion), or of a photograph under homographies and photometric noise. Its file holds no image, only what the
extractor found, so that training does not run the extractor.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from frontend.atomic import atomic_path, remove_leftovers
from frontend.errors import ConfigError, DataError, FrontendError
from frontend.evaluation.pairs import load_bgr, reduce_image
from frontend.folders import find_images, reading_npz
from frontend.homography import HomographyConfig, prefiltered, sample_homography, warp_image, warp_points
from frontend.progress import Progress
from frontend.training.photometric import PhotometricConfig, photometric_noise
from frontend.training.scene_views import SceneView, project_points, scene_views
from frontend.training.workers import mapping
from frontend.types import BoolArray, Features, Float32Array, Float64Array, IntArray

_MADE = 2
"""Part of the names of photographs' groups; goes up when a seed makes others, so that they are not taken for those."""
_SIZE = (640, 480)
_LONGEST = 640
_NOISE = PhotometricConfig(contrast=(0.5, 1.5), brightness=40.0, blur=1.0, noise=8.0, exposure=1.0, jpeg=30)
_RELATIVE = HomographyConfig(
    patch=0.75, scale=0.25, rotation=0.8, perspective=0.25, anisotropy=0.35, translation=True, overhang=0.3
)
_ANY_ROTATION = 0.1
# a camera that hardly moves while the light changes: without these a matcher is worse there than nearest neighbours
_STILL = 0.3
_STILL_RELATIVE = HomographyConfig(
    patch=0.97, scale=0.02, rotation=0.05, perspective=0.03, translation=True, overhang=0.02
)
_STILL_NOISE = PhotometricConfig(exposure=3.0, jpeg=30)


NO_MATCH = -1
UNKNOWN = -2
MATCHED_PX = 2.0
"""Keypoints that are each other's nearest within this are the same."""
APART_PX = 2.5
"""A keypoint with none within this of where it should be has no match; what lies between is not known. Twice as much
(and 3 px above) left a matcher free to take what is nearly right, which robust estimators suffer from most."""

Extract = Callable[[np.ndarray], Features]


@dataclass(frozen=True, eq=False)
class ViewGroup:
    """V views with at most K keypoints each, the best first; entries beyond ``counts`` are 0.

    Attributes:
        points: (V, K, 2) float32, pixels.
        descriptors: (V, K, D) float16, of unit norm but for rounding.
        counts: (V,) int64, keypoints of each view.
        sizes: (V, 2) int64, width and height.
        matches: (V, V, K) int16, at [i, j, k] the keypoint of view j that keypoint k of view i is, :data:`NO_MATCH` or
            :data:`UNKNOWN`.
    """

    points: Float32Array
    descriptors: np.ndarray
    counts: np.ndarray
    sizes: np.ndarray
    matches: np.ndarray

    def save(self, path: Path) -> None:
        """Write it, atomically."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> ViewGroup:
        """Read it.

        Raises:
            DataError: the file is damaged, or no such group.
        """
        with reading_npz(path, "group of views") as held:
            return cls(**{field.name: held[field.name] for field in fields(cls)})


class Projected(NamedTuple):
    """Where a view's N keypoints are in another view.

    Attributes:
        points: (N, 2) float64, pixels of the other view.
        seen: (N,) bool, whether they can be seen there.
        outside: (N,) bool, whether they are beyond the other image for certain. Those that are neither are hidden, or
            nothing is known about them.
    """

    points: Float64Array
    seen: BoolArray
    outside: BoolArray


def true_matches(
    points0: Float32Array, points1: Float32Array, there: Projected, back: Projected
) -> tuple[IntArray, IntArray]:
    """Which keypoints of two views are the same.

    They are, where they are each other's nearest and within :data:`MATCHED_PX` in both views.

    Args:
        points0: (N0, 2), keypoints of view 0, pixels.
        points1: (N1, 2), of view 1.
        there: those of view 0 in view 1.
        back: those of view 1 in view 0.

    Returns:
        For each keypoint of view 0 its match in view 1, :data:`NO_MATCH` or :data:`UNKNOWN`, (N0,) int64; and the
        reverse, (N1,).
    """
    first: IntArray = np.where(there.outside, NO_MATCH, UNKNOWN)
    second: IntArray = np.where(back.outside, NO_MATCH, UNKNOWN)
    if not len(points0) or not len(points1):
        first[there.seen], second[back.seen] = NO_MATCH, NO_MATCH
        return first, second
    forward = _squared_distances(there.points, points1)
    backward = np.ascontiguousarray(_squared_distances(back.points, points0).T)
    # alone by both projections: the depth of one of two may be wrong
    alone0 = np.minimum(forward.min(axis=1), backward.min(axis=1)) > APART_PX**2
    alone1 = np.minimum(forward.min(axis=0), backward.min(axis=0)) > APART_PX**2
    first[there.seen & alone0], second[back.seen & alone1] = NO_MATCH, NO_MATCH
    distance = np.maximum(forward, backward, out=forward)
    distance[~there.seen] = np.inf
    distance[:, ~back.seen] = np.inf
    nearest, own = distance.argmin(axis=1), np.arange(len(points0))
    matched = (distance[own, nearest] < MATCHED_PX**2) & (distance.argmin(axis=0)[nearest] == own)
    first[matched] = nearest[matched]
    second[nearest[matched]] = own[matched]
    return first, second


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Float32Array:
    """(N, 2) and (M, 2) pixels to (N, M); within 0.1 for points in the image, far points anywhere far."""
    # single precision is what makes a million of them cheap; about the middle, and not further than it can hold
    middle = b.mean(axis=0)
    a, b = (a - middle).clip(-1e4, 1e4).astype(np.float32), (b - middle).astype(np.float32)
    found: Float32Array = a @ (-2 * b.T)
    found += (a * a).sum(axis=1)[:, None]
    found += (b * b).sum(axis=1)
    return found


def _group(found: Sequence[Features], project: Callable[[int, int, Float32Array], Projected]) -> ViewGroup:
    counts = np.array([len(features) for features in found])
    views, most, dim = len(found), max(int(counts.max()), 1), found[0].descriptors.shape[1]
    group = ViewGroup(
        np.zeros((views, most, 2), np.float32),
        np.zeros((views, most, dim), np.float16),
        counts,
        np.array([features.image_size for features in found]),
        np.full((views, views, most), UNKNOWN, np.int16),
    )
    for i, features in enumerate(found):
        group.points[i, : len(features)] = features.keypoints
        group.descriptors[i, : len(features)] = features.descriptors
    for i, j in combinations(range(views), 2):
        points = found[i].keypoints, found[j].keypoints
        pair = true_matches(*points, project(i, j, points[0]), project(j, i, points[1]))
        group.matches[i, j, : counts[i]], group.matches[j, i, : counts[j]] = pair
    return group


def _beyond(points: np.ndarray, size: tuple[int, int], margin: float) -> BoolArray:
    """Which of (N, 2) points are at least ``margin`` pixels outside an image."""
    limit = np.array(size) - 1
    return np.asarray(((points < -margin) | (points > limit + margin)).any(axis=1))


def group_of_scene(views: Sequence[SceneView], extract: Extract) -> ViewGroup:
    """The features of views of a made scene."""

    def project(i: int, j: int, points: Float32Array) -> Projected:
        where, seen = project_points(points, views[i], views[j])
        known = np.isfinite(_depth_at(views[i], points))
        size = (views[j].image.shape[1], views[j].image.shape[0])
        return Projected(where.astype(np.float64), seen, known & ~seen & _beyond(where, size, APART_PX))

    return _group([extract(view.image) for view in views], project)


def _depth_at(view: SceneView, points: Float32Array) -> Float32Array:
    x, y = np.rint(points).astype(int).T
    depth: Float32Array = view.depth[y.clip(0, view.depth.shape[0] - 1), x.clip(0, view.depth.shape[1] - 1)]
    return depth


def warped_views(
    image: np.ndarray, rng: np.random.Generator, count: int
) -> tuple[list[np.ndarray], list[Float64Array]]:
    """A photograph under homographies and noise: views from anywhere, or from one place under changing light.

    Args:
        image: (H, W) uint8.
        rng: source of randomness.
        count: V; the first view is not warped.

    Returns:
        V images of the photograph's size, and the homographies from the photograph to them.
    """
    size = (image.shape[1], image.shape[0])
    homographies: list[Float64Array] = [np.eye(3)]
    still = rng.random() < _STILL
    relative, noise = (_STILL_RELATIVE, _STILL_NOISE) if still else (_RELATIVE, _NOISE)
    for _ in range(count - 1):
        turned = not still and rng.random() < _ANY_ROTATION
        config = replace(relative, rotation=np.pi) if turned else relative
        H = sample_homography(rng, size, config)
        # the draw zooms in on a crop; half of the views zoom out instead
        homographies.append(np.asarray(np.linalg.inv(H) if rng.random() < 0.5 else H, np.float64))
    border = cv2.BORDER_REFLECT_101 if rng.random() < 0.3 else cv2.BORDER_CONSTANT
    warped = [warp_image(*prefiltered(image, H, size), size, border=border) for H in homographies]
    return [photometric_noise(view, rng, noise) for view in warped], homographies


def group_of_photo(images: Sequence[np.ndarray], homographies: Sequence[Float64Array], extract: Extract) -> ViewGroup:
    """The features of views of a photograph; what is seen beyond its border is not labelled."""
    size = (images[0].shape[1], images[0].shape[0])
    back = [np.linalg.inv(H) for H in homographies]

    def project(i: int, j: int, points: Float32Array) -> Projected:
        photo = warp_points(points.astype(np.float64), back[i])
        where = warp_points(photo, homographies[j])
        real = ~_beyond(photo, size, 0.0)
        return Projected(where, real & ~_beyond(where, size, 0.0), real & _beyond(where, size, APART_PX))

    return _group([extract(image) for image in images], project)


def _render(number: int, seed: int, views: int) -> list[SceneView]:
    cv2.setNumThreads(1)
    return scene_views(seed, number, views, _SIZE)


def _warp(
    source: tuple[Path, int], seed: int, views: int
) -> tuple[list[np.ndarray], list[Float64Array]] | FrontendError:
    """Views of a photograph; an error is handed on, so that one bad file does not end the work."""
    cv2.setNumThreads(1)
    path, key = source
    try:
        image, _ = reduce_image(load_bgr(path), _LONGEST)
    except FrontendError as error:
        return error
    gray: np.ndarray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return warped_views(gray, np.random.default_rng((seed, key)), views)


@dataclass(frozen=True)
class GroupReport:
    """What a run did.

    Attributes:
        made: groups.
        kept: that were there.
        skipped: photographs that could not be read, with the reason.
    """

    made: int
    kept: int
    skipped: tuple[str, ...]


def _photo_key(path: Path, name: str) -> int:
    """A number of a photograph, its name and its content: what lies under the name may be replaced."""
    return zlib.crc32(path.read_bytes(), zlib.crc32(os.fsencode(name)))


def make_groups(
    out: Path, extract: Extract, *, scenes: int, photos: Path | None, views: int, seed: int, workers: int
) -> GroupReport:
    """Fill a folder with groups; those that are there are kept, so an interrupted run goes on.

    Args:
        out: folder, made if missing.
        extract: image to features.
        scenes: made scenes, each a group.
        photos: folder of photographs, each a group; None for none.
        views: of each, 2 or more.
        seed: of scenes and warps.
        workers: processes that make images; 0 makes them in this one.

    Raises:
        ConfigError: a number is out of its range, or there is nothing to do.
        DataError: the folder of photographs has none, or a process was killed.
    """
    check_request(scenes=scenes, photos=photos, views=views, seed=seed, workers=workers)
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    scene_paths = {number: out / f"scene-{seed}-{views}-{number:06}.npz" for number in range(scenes)}
    names = [] if photos is None else find_images(photos)
    root = photos or Path()
    sources = [(root / name, _photo_key(root / name, str(name))) for name in names]
    photo_paths = {source: out / f"photo-{_MADE}-{seed}-{views}-{source[1]:08x}.npz" for source in sources}
    new_scenes = [number for number, path in scene_paths.items() if not path.is_file()]
    new_photos = [source for source, path in photo_paths.items() if not path.is_file()]
    todo, total = len(new_scenes) + len(new_photos), len(scene_paths) + len(photo_paths)
    render, warp = partial(_render, seed=seed, views=views), partial(_warp, seed=seed, views=views)
    skipped: list[str] = []
    with Progress(total, "views", start=total - todo, unit="group") as progress, mapping(workers) as run:
        for number, rendered in zip(new_scenes, run(render, new_scenes), strict=True):
            group_of_scene(rendered, extract).save(scene_paths[number])
            progress.update()
        for source, warped in zip(new_photos, run(warp, new_photos), strict=True):
            if isinstance(warped, FrontendError):
                skipped.append(str(warped))
                progress.write(f"skipped {warped}")
            else:
                group_of_photo(warped[0], warped[1], extract).save(photo_paths[source])
            progress.update()
    return GroupReport(todo - len(skipped), total - todo, tuple(skipped))


def check_request(*, scenes: int, photos: Path | None, views: int, seed: int, workers: int) -> None:
    """Refuse what :func:`make_groups` cannot do.

    Raises:
        ConfigError: a number is out of its range, or there is nothing to do.
    """
    if views < 2 or scenes < 0 or workers < 0 or seed < 0 or (scenes == 0 and photos is None):
        raise ConfigError(
            f"views {views}, scenes {scenes}, workers {workers}, seed {seed}, photographs {photos};"
            " expected 2 or more views, no negative number, and scenes or photographs"
        )


def find_groups(folder: Path) -> list[Path]:
    """The groups in a folder, in order.

    Raises:
        DataError: there is none.
    """
    found = sorted(folder.glob("*.npz"))
    if not found:
        raise DataError(f"{folder} has no groups of views; expected a folder that 'superpoint make-views' made")
    return found
