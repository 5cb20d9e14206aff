"""Procedural textures of the surfaces of made scenes: (n, n) float32 reflectances in [0, 1].

Most repeat without a seam. Each has structure at several scales: its own pattern, and noise of several octaves on it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import cv2
import numpy as np

from frontend.types import Float32Array

SIDE = 512
# amplitude of an octave relative to the one before
_FALLS = (0.55, 0.7, 0.85)
_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789&%#?!+="


def _octave(rng: np.random.Generator, cells: tuple[int, int], n: int) -> Float32Array:
    """Smooth noise on a grid of (columns, rows) cells that repeats: (n, n) float32, standard deviation near 0.5."""
    columns, rows = cells
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    padded = np.pad(grid, 2, mode="wrap")
    width, height = n * (columns + 4) // columns, n * (rows + 4) // rows
    fine = cv2.resize(padded, (width, height), interpolation=cv2.INTER_CUBIC)
    x, y = 2 * n // columns, 2 * n // rows
    return np.asarray(fine[y : y + n, x : x + n], np.float32)


@cache
def _bank(first: int, fall: float, stretch: int, number: int, n: int) -> Float32Array:
    """Noise that repeats, drawn once for a process: making it anew for each texture would cost more than the rest."""
    rng = np.random.default_rng((first, round(100 * fall), stretch, number))
    total: Float32Array = np.zeros((n, n), np.float32)
    amplitude, cells = 1.0, first
    while cells <= n // 2:
        total += np.float32(amplitude) * _octave(rng, (max(cells // stretch, 1), cells), n)
        amplitude, cells = amplitude * fall, cells * 2
    total = (total - total.mean()) / total.std()
    total.setflags(write=False)
    return total


def fractal(rng: np.random.Generator, n: int = SIDE, first: int = 4, stretch: int = 1) -> Float32Array:
    """Noise of several octaves that repeats, mean 0, standard deviation 1: two of a bank, moved and mirrored.

    Args:
        rng: source of randomness.
        n: side, a power of two.
        first: cells of the first octave along a side, a power of two; doubled from octave to octave.
        stretch: how much coarser the noise is along x, a power of two: the grain of wood.
    """
    fall = _FALLS[int(rng.integers(len(_FALLS)))]
    parts = []
    for number in range(2):
        noise = _bank(first, fall, stretch, number, n)[:: int(rng.choice((-1, 1))), :: int(rng.choice((-1, 1)))]
        parts.append(np.roll(noise, rng.integers(0, n, 2), (0, 1)))
    return np.asarray((parts[0] + parts[1]) * np.float32(0.5**0.5), np.float32)


def _weathered(rng: np.random.Generator, base: Float32Array, strength: float = 0.05) -> Float32Array:
    n = len(base)
    dirt = fractal(rng, n, int(2 ** rng.integers(1, 5)))
    return np.clip(base * (1 + np.float32(strength * rng.uniform(0.5, 2.5)) * dirt), 0, 1)


def _levels(rng: np.random.Generator, least: float = 0.15) -> tuple[float, float]:
    """Two reflectances at least ``least`` apart, in any order."""
    while True:
        a, b = rng.uniform(0.05, 0.95, 2)
        if abs(a - b) >= least:
            return float(a), float(b)


def stone(rng: np.random.Generator, n: int = SIDE) -> Float32Array:
    """Noise alone: plaster, concrete, rock, cloth."""
    noise = fractal(rng, n, int(2 ** rng.integers(1, 5)))
    if rng.random() < 0.4:
        # ridges where the noise changes sign: cracks and veins
        noise = np.float32(1.2) - np.float32(1.5) * np.abs(noise)
    level, strength = np.float32(rng.uniform(0.3, 0.75)), np.float32(rng.uniform(0.03, 0.13))
    return np.asarray(np.clip(level + strength * noise, 0, 1), np.float32)


def bricks(rng: np.random.Generator, n: int = SIDE) -> Float32Array:
    """Courses of bricks or tiles, each of its own grey, with mortar between."""
    rows, columns = int(2 * rng.integers(2, 9)), int(rng.integers(2, 9))
    face, mortar = _levels(rng)
    spread = rng.uniform(0.02, 0.15)
    greys = np.clip(face + spread * rng.standard_normal((rows, 2 * columns)), 0, 1).astype(np.float32)
    image = np.empty((n, n), np.float32)
    gap = max(1, round(n * rng.uniform(0.004, 0.015)))
    shifted = rng.random() < 0.7
    y = np.linspace(0, n, rows + 1).round().astype(int)
    x = np.linspace(0, n, columns + 1).round().astype(int)
    for row in range(rows):
        line = np.empty((y[row + 1] - y[row], n), np.float32)
        for column in range(columns):
            line[:, x[column] : x[column + 1]] = greys[row, column]
            line[:, x[column] : x[column] + gap] = mortar
        line[:gap] = mortar
        image[y[row] : y[row + 1]] = np.roll(line, n // (2 * columns), axis=1) if shifted and row % 2 else line
    return _weathered(rng, image, 0.08)


def checker(rng: np.random.Generator, n: int = SIDE) -> Float32Array:
    """Squares in two greys, varied a little."""
    cells = int(2 * rng.integers(1, 7))
    dark, bright = _levels(rng, 0.25)
    pattern = np.where(np.add.outer(np.arange(cells), np.arange(cells)) % 2, dark, bright)
    pattern = np.clip(pattern + 0.05 * rng.standard_normal(pattern.shape), 0, 1).astype(np.float32)
    image = np.asarray(cv2.resize(pattern, (n, n), interpolation=cv2.INTER_NEAREST), np.float32)
    return _weathered(rng, image, 0.04)


def planks(rng: np.random.Generator, n: int = SIDE) -> Float32Array:
    """Boards with grain and joints, or stripes of cloth."""
    rows = int(rng.integers(3, 13))
    edges = np.r_[0, np.sort(rng.choice(np.arange(8, n - 8, 8), rows - 1, replace=False)), n]
    base = rng.uniform(0.25, 0.75)
    grain = fractal(rng, n, 16, 8)
    image = np.empty((n, n), np.float32)
    spread = rng.uniform(0.03, 0.2)
    for top, bottom in pairwise(edges):
        image[top:bottom] = base + spread * rng.standard_normal()
        joint = int(rng.integers(0, n))
        image[top:bottom, joint : joint + 3] *= 0.4
        image[top : top + 2] *= 0.4
    return np.clip(image + np.float32(rng.uniform(0.02, 0.08)) * grain, 0, 1)


def cobbles(rng: np.random.Generator, n: int = SIDE) -> Float32Array:
    """Cells about scattered points: cobblestones, cracked mud, tiles of broken stone."""
    count, half = int(2 ** rng.uniform(4, 9)), n // 2
    margin = half // 4
    cells = np.full((half, half), -1, np.int32)
    cells[tuple(rng.integers(0, half, (2, count)))] = np.arange(count)
    # with its own repetition about it, so that it goes on without a seam
    cells = np.pad(cells, margin, mode="wrap")
    seeds = np.where(cells >= 0, 0, 255).astype(np.uint8)
    distance, found = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    number = np.zeros(int(found.max()) + 1, np.int32)
    number[found[cells >= 0]] = cells[cells >= 0]
    inner = (slice(margin, margin + half), slice(margin, margin + half))
    label, distance = number[found[inner]], distance[inner]
    greys = np.clip(rng.uniform(0.3, 0.7) + rng.uniform(0.03, 0.2) * rng.standard_normal(count), 0.05, 1)
    image = greys.astype(np.float32)[label]
    size = half / count**0.5
    image = image * (1 - np.float32(rng.uniform(0.1, 0.5)) * np.clip(distance / np.float32(size), 0, 1) ** 2)
    joints = (label != np.roll(label, 1, axis=0)) | (label != np.roll(label, 1, axis=1))
    image[joints] = rng.uniform(0, 0.3)
    image = cv2.resize(image.astype(np.float32), (n, n), interpolation=cv2.INTER_LINEAR)
    return _weathered(rng, np.asarray(image, np.float32), 0.06)


def print_(rng: np.random.Generator, n: int = SIDE) -> Float32Array:
    """Lines of text-like glyphs of several sizes, boxes and bars: posters, packages, papers, signs."""
    paper, ink = _levels(rng, 0.35)
    canvas = np.full((n, n), round(255 * paper), np.uint8)
    y = int(rng.integers(4, 30))
    while y < n - 10:
        scale = float(np.exp(rng.uniform(np.log(0.35), np.log(3.0))))
        height = int(24 * scale)
        kind = rng.random()
        grey = round(255 * float(np.clip(ink + rng.uniform(-0.15, 0.15), 0, 1)))
        if kind < 0.72:
            text = "".join(rng.choice(list(_LETTERS + "   "), int(rng.integers(3, max(4, int(n / (14 * scale)))))))
            font = _FONTS[int(rng.integers(len(_FONTS)))]
            start = (int(rng.integers(0, n // 4)), y + height)
            cv2.putText(canvas, text, start, font, scale, grey, max(1, int(scale * rng.uniform(1, 3))), cv2.LINE_AA)
        elif kind < 0.9:
            x0, x1 = sorted(rng.integers(0, n, 2).tolist())
            cv2.rectangle(canvas, (x0, y), (x1, y + height), grey, -1 if rng.random() < 0.5 else 2)
        y += height + int(rng.integers(4, 20))
    return _weathered(rng, canvas.astype(np.float32) / np.float32(255), 0.03)


def collage(rng: np.random.Generator, n: int = SIDE) -> Float32Array:
    """Overlapping polygons and ellipses of all sizes, from large to small."""
    canvas = np.full((n, n), int(rng.integers(20, 236)), np.uint8)
    count = int(rng.integers(25, 120))
    for size in n * np.sort(np.exp(rng.uniform(np.log(0.02), np.log(0.4), count)))[::-1]:
        centre, grey = rng.uniform(0, n, 2), int(rng.integers(0, 256))
        if rng.random() < 0.75:
            k = int(rng.integers(3, 7))
            angle = np.sort(rng.uniform(0, 2 * np.pi, k))
            corners = centre + size * rng.uniform(0.5, 1, (k, 1)) * np.stack([np.cos(angle), np.sin(angle)], 1)
            cv2.fillPoly(canvas, [np.rint(corners * 8).astype(np.int32)], grey, cv2.LINE_AA, 3)
        else:
            axes = (int(size), max(1, int(size * rng.uniform(0.3, 1))))
            cv2.ellipse(
                canvas, centre.astype(int).tolist(), axes, float(rng.uniform(0, 180)), 0, 360, grey, -1, cv2.LINE_AA
            )
    return _weathered(rng, canvas.astype(np.float32) / np.float32(255), 0.05)


def scratched(rng: np.random.Generator, n: int = SIDE) -> Float32Array:
    """Worn metal or varnish: scratches, dents and stains on noise."""
    canvas = (255 * stone(rng, n)).astype(np.uint8)
    for _ in range(int(rng.integers(20, 90))):
        start = rng.uniform(0, n, 2)
        steps = np.cumsum(rng.normal(0, 0.25, 6)) + rng.uniform(0, 2 * np.pi)
        path = start + np.cumsum(np.stack([np.cos(steps), np.sin(steps)], 1) * rng.uniform(4, 40), axis=0)
        cv2.polylines(canvas, [np.rint(path).astype(np.int32)], False, int(rng.integers(0, 256)), 1, cv2.LINE_AA)
    for _ in range(int(rng.integers(0, 40))):
        centre = rng.integers(0, n, 2).tolist()
        cv2.circle(canvas, centre, int(rng.integers(1, 6)), int(rng.integers(0, 256)), -1, cv2.LINE_AA)
    return canvas.astype(np.float32) / np.float32(255)


def litter(rng: np.random.Generator, n: int = SIDE) -> Float32Array:
    """Hundreds of small overlapping leaves, chips or pebbles."""
    canvas = np.full((n, n), int(rng.integers(20, 200)), np.uint8)
    long, slim = rng.uniform(4, 18), rng.uniform(0.25, 1.0)
    count = int(rng.integers(300, 700))
    centres, sizes = rng.integers(0, n, (count, 2)), long * rng.uniform(0.5, 1.5, count)
    greys = np.clip(rng.normal(rng.uniform(70, 180), rng.uniform(20, 55), count), 0, 255)
    turn = rng.uniform(0, np.pi, count)
    # outlines of ten corners: OpenCV's ellipses cost several times more
    ring = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    x, y = sizes[:, None] * np.cos(ring), slim * sizes[:, None] * np.sin(ring)
    cosine, sine = np.cos(turn)[:, None], np.sin(turn)[:, None]
    outlines = centres[:, None] + np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=2)
    for outline, grey in zip(np.rint(outlines * 8).astype(np.int32), greys.tolist(), strict=True):
        cv2.fillConvexPoly(canvas, outline, grey, cv2.LINE_8, 3)
    return _weathered(rng, cv2.GaussianBlur(canvas, (0, 0), 0.6).astype(np.float32) / np.float32(255), 0.05)


def facade(rng: np.random.Generator, n: int = SIDE) -> Float32Array:
    """Rows of windows with frames, bars and sills in a wall."""
    wall = (255 * (bricks(rng, n) if rng.random() < 0.5 else stone(rng, n))).astype(np.uint8)
    rows, columns = int(rng.integers(2, 6)), int(rng.integers(2, 7))
    height, width = n / rows, n / columns
    frame, glass = _levels(rng, 0.2)
    inset = rng.uniform(0.12, 0.3, 2)
    panes = rng.integers(1, 4, 2)
    for row in range(rows):
        for column in range(columns):
            x0, x1 = int(width * (column + inset[0])), int(width * (column + 1 - inset[0]))
            y0, y1 = int(height * (row + inset[1])), int(height * (row + 1 - inset[1]))
            cv2.rectangle(wall, (x0 - 3, y0 - 3), (x1 + 3, y1 + 3), round(255 * frame), -1)
            shade = float(np.clip(glass + rng.normal(0, 0.1), 0, 1))
            cv2.rectangle(wall, (x0, y0), (x1, y1), round(255 * shade), -1)
            if rng.random() < 0.5:
                # the sky or a curtain in a part of the pane
                x = int(rng.integers(x0, x1 + 1))
                cv2.fillPoly(wall, [np.array([(x0, y0), (x, y0), (x0, y1)])], round(255 * min(shade + 0.2, 1)))
            for k in range(1, int(panes[0])):
                x = x0 + (x1 - x0) * k // int(panes[0])
                cv2.line(wall, (x, y0), (x, y1), round(255 * frame), 2)
            for k in range(1, int(panes[1])):
                y = y0 + (y1 - y0) * k // int(panes[1])
                cv2.line(wall, (x0, y), (x1, y), round(255 * frame), 2)
            cv2.line(wall, (x0 - 5, y1 + 5), (x1 + 5, y1 + 5), round(255 * glass), 2)
    return wall.astype(np.float32) / np.float32(255)


Texture = Callable[[np.random.Generator, int], Float32Array]
TEXTURES: dict[str, Texture] = {
    "stone": stone,
    "bricks": bricks,
    "checker": checker,
    "planks": planks,
    "cobbles": cobbles,
    "print": print_,
    "collage": collage,
    "scratched": scratched,
    "litter": litter,
    "facade": facade,
}
