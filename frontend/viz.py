"""Pictures of results, drawn with OpenCV: matches side by side, and one image laid over the other."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from frontend.errors import ConfigError, ShapeError
from frontend.image import rescale_points, to_uint8
from frontend.types import BoolArray, Float32Array, Float64Array, MatchResult, Status

Bgr = NDArray[np.uint8]

INLIER = (96, 220, 60)
OUTLIER = (60, 60, 235)
MATCH = (235, 180, 50)
KEYPOINT = (40, 200, 255)
_BACK = (32, 32, 32)
_TEXT = (235, 235, 235)
_GAP = 8
_SHIFT = 4  # drawing coordinates are in 1/16 pixel
_OUTLIER_OPACITY = 0.4


def to_bgr(image: NDArray[Any]) -> Bgr:
    """Any image as 8-bit BGR, in a copy that may be drawn on.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) BGR or (H, W, 4) BGRA; depth as in :func:`frontend.image.to_uint8`.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ShapeError: another shape.
    """
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)) or 0 in image.shape:
        raise ShapeError(f"image has shape {image.shape}, expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    pixels = np.ascontiguousarray(to_uint8(image if image.ndim == 2 else image[:, :, :3]))
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), np.uint8)
    return pixels.copy() if np.may_share_memory(pixels, image) else pixels


def draw_matches(
    image0: NDArray[Any],
    image1: NDArray[Any],
    result: MatchResult,
    *,
    max_lines: int = 200,
    max_side: int = 1280,
) -> Bgr:
    """Draw two images side by side with their keypoints, the outliers (faint, red) and the inliers (green) on top.

    Without an estimated geometry the matches are neither and are drawn in blue. A strip below states the counts.

    Args:
        image0: see :func:`to_bgr`; the picture that ``result.features0`` belongs to.
        image1: likewise.
        result: keypoints in pixels of those images.
        max_lines: draw at most this many inliers and as many outliers, best match score first.
        max_side: an image with a longer side is reduced to it, in pixels, for the picture only.

    Returns:
        (height, width, 3) uint8 BGR.

    Raises:
        ConfigError: ``max_lines`` negative or ``max_side`` below 1.
        ShapeError: an image of another shape than :func:`to_bgr` takes.
    """
    if max_lines < 0 or max_side < 1:
        raise ConfigError(f"max_lines = {max_lines}, max_side = {max_side}: expected at least 0 and 1")
    left, scale0 = _reduce(to_bgr(image0), max_side)
    right, scale1 = _reduce(to_bgr(image1), max_side)
    offset = left.shape[1] + _GAP
    canvas: Bgr = np.full((max(left.shape[0], right.shape[0]), offset + right.shape[1], 3), _BACK, np.uint8)
    canvas[: left.shape[0], : left.shape[1]] = left
    canvas[: right.shape[0], offset:] = right

    points0 = _scaled(result.features0.keypoints, scale0)
    points1 = _scaled(result.features1.keypoints, scale1) + np.array([offset, 0.0])
    for points in (points0, points1):
        _dots(canvas, points, KEYPOINT, 1.0)
    ends = np.stack([points0[result.matches.matches[:, 0]], points1[result.matches.matches[:, 1]]], axis=1)
    best_first = np.argsort(-result.matches.match_scores, kind="stable")
    estimated = result.geometry.status is not Status.NOT_REQUESTED
    if estimated:
        inlier = np.asarray(result.geometry.inliers, np.bool_)[best_first]
        outliers, inliers = best_first[~inlier][:max_lines], best_first[inlier][:max_lines]
        under = canvas.copy()
        _lines(under, ends[outliers], OUTLIER)
        canvas = np.asarray(cv2.addWeighted(under, _OUTLIER_OPACITY, canvas, 1 - _OUTLIER_OPACITY, 0.0), np.uint8)
        _lines(canvas, ends[inliers], INLIER)
        drawn = len(inliers) + len(outliers)
    else:
        _lines(canvas, ends[best_first[:max_lines]], MATCH)
        drawn = min(len(best_first), max_lines)
    return _with_legend(canvas, result, drawn)


def warp_overlay(image0: NDArray[Any], image1: NDArray[Any], H: Float64Array) -> Bgr:
    """Lay image 0, warped by H, half transparent over image 1: where H is right the two melt into one.

    Args:
        image0: see :func:`to_bgr`.
        image1: likewise; its frame is the picture's.
        H: (3, 3), maps image 0 to image 1.

    Returns:
        (H1, W1, 3) uint8 BGR; image 1 alone, darkened, where image 0 does not reach.

    Raises:
        ShapeError: H is not (3, 3), or an image of another shape than :func:`to_bgr` takes.
    """
    if H.shape != (3, 3):
        raise ShapeError(f"H has shape {H.shape}, expected (3, 3)")
    source, base = to_bgr(image0), to_bgr(image1)
    size = (base.shape[1], base.shape[0])
    matrix = np.asarray(H, np.float64)
    warped = cv2.warpPerspective(source, matrix, size, flags=cv2.INTER_LINEAR)
    ones = np.full(source.shape[:2], 255, np.uint8)
    covered: BoolArray = np.asarray(cv2.warpPerspective(ones, matrix, size, flags=cv2.INTER_NEAREST) > 0)
    mixed = np.asarray(cv2.addWeighted(warped, 0.5, base, 0.5, 0.0), np.uint8)
    return np.where(covered[:, :, None], mixed, base // 2)


def _reduce(image: Bgr, max_side: int) -> tuple[Bgr, tuple[float, float]]:
    """Shrink to ``max_side`` where larger; return the scale (x, y) as well."""
    height, width = image.shape[:2]
    ratio = max_side / max(height, width)
    if ratio >= 1:
        return image, (1.0, 1.0)
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return small, (size[0] / width, size[1] / height)


def _scaled(keypoints: Float32Array, scale: tuple[float, float]) -> Float64Array:
    return rescale_points(np.asarray(keypoints, np.float64).reshape(-1, 2), scale)


def _fixed(points: Float64Array) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in np.rint(points * (1 << _SHIFT))]


def _dots(canvas: Bgr, points: Float64Array, color: tuple[int, int, int], radius: float) -> None:
    size = round(radius * (1 << _SHIFT))
    for point in _fixed(points):
        cv2.circle(canvas, point, size, color, -1, cv2.LINE_AA, _SHIFT)


def _lines(canvas: Bgr, ends: Float64Array, color: tuple[int, int, int]) -> None:
    """Draw (L, 2, 2) segments with a dot at both ends, the first ones last, so on top."""
    for start, stop in zip(_fixed(ends[::-1, 0]), _fixed(ends[::-1, 1]), strict=True):
        cv2.line(canvas, start, stop, color, 1, cv2.LINE_AA, _SHIFT)
        for point in (start, stop):
            cv2.circle(canvas, point, 2 << _SHIFT, color, -1, cv2.LINE_AA, _SHIFT)


def _with_legend(canvas: Bgr, result: MatchResult, drawn: int) -> Bgr:
    """Add a strip below: a colour key with counts, and the outcome of the geometry."""
    total, good = len(result.matches), result.geometry.num_inliers
    entries = [(KEYPOINT, f"{len(result.features0)} / {len(result.features1)} keypoints")]
    if result.geometry.status is Status.NOT_REQUESTED:
        entries.append((MATCH, f"{total} matches"))
    else:
        entries += [(INLIER, f"{good} inliers"), (OUTLIER, f"{total - good} outliers")]
    notes = [] if drawn == total else [f"{drawn} lines drawn"]
    if result.geometry.status not in (Status.OK, Status.NOT_REQUESTED):
        notes.append(f"no {result.geometry.kind}: {result.geometry.status.value.replace('_', ' ')}")

    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.5
    widths = [24 + cv2.getTextSize(text, font, scale, 1)[0][0] + 18 for _, text in entries]
    widths += [cv2.getTextSize(text, font, scale, 1)[0][0] + 18 for text in notes]
    # Entries flow onto further rows where the picture is narrow; one that is too wide alone widens it.
    width = max(canvas.shape[1], max(widths) + 12)
    places, x, row = [], 12, 0
    for entry_width in widths:
        if x > 12 and x + entry_width > width:
            x, row = 12, row + 1
        places.append((x, 20 + 24 * row))
        x += entry_width
    strip: Bgr = np.full((24 * (row + 1) + 8, width, 3), _BACK, np.uint8)
    for (color, text), (x, y) in zip(entries, places, strict=False):
        cv2.circle(strip, (x + 6, y - 4), 5, color, -1, cv2.LINE_AA)
        cv2.putText(strip, text, (x + 18, y), font, scale, _TEXT, 1, cv2.LINE_AA)
    for text, (x, y) in zip(notes, places[len(entries) :], strict=True):
        cv2.putText(strip, text, (x, y), font, scale, _TEXT, 1, cv2.LINE_AA)
    wide: Bgr = np.full((canvas.shape[0], width, 3), _BACK, np.uint8)
    wide[:, : canvas.shape[1]] = canvas
    return np.vstack([wide, strip])
