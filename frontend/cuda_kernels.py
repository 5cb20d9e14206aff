"""Triton kernels for what PyTorch's operators do slowly on a GPU: suppression, and pooling of channels-last maps.

PyTorch's pooling along one axis moves data at a fifth of the memory's speed (.54 of 2.95 TB/s on an H100), and
suppression needs ten such passes. Nothing here is needed: without Triton the callers take PyTorch's operators, which
give the same numbers, those of descriptors to rounding.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
# Triton reads a kernel's annotations and knows none but its own

_BLOCK = 1024


def _device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes a tensor's device the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@triton.jit
def _largest_of_row(source, target, total, width, radius: tl.constexpr, block: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < total
    x = place % width
    best = tl.load(source + place, mask=inside, other=0.0)
    for step in tl.static_range(1, radius + 1):
        left = tl.load(source + place - step, mask=inside & (x >= step), other=0.0)
        right = tl.load(source + place + step, mask=inside & (x + step < width), other=0.0)
        best = tl.maximum(best, tl.maximum(left, right))
    tl.store(target + place, best, mask=inside)


@triton.jit
def _largest_of_column(rows, place, inside, y, height, width, radius: tl.constexpr):
    best = tl.load(rows + place, mask=inside, other=0.0)
    for step in tl.static_range(1, radius + 1):
        above = tl.load(rows + place - step * width, mask=inside & (y >= step), other=0.0)
        below = tl.load(rows + place + step * width, mask=inside & (y + step < height), other=0.0)
        best = tl.maximum(best, tl.maximum(above, below))
    return best


@triton.jit
def _first_maxima(maps, rows, keep, total, height, width, radius: tl.constexpr, block: tl.constexpr):
    """keep: 1 where a pixel is the largest about it."""
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < total
    y = (place // width) % height
    value = tl.load(maps + place, mask=inside, other=0.0)
    best = _largest_of_column(rows, place, inside, y, height, width, radius)
    tl.store(keep + place, tl.where(value == best, 1.0, 0.0), mask=inside)


@triton.jit
def _uncovered(maps, rows, rest, total, height, width, radius: tl.constexpr, block: tl.constexpr):
    """rest: the value where no kept pixel is near, and -1 elsewhere."""
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < total
    y = (place // width) % height
    value = tl.load(maps + place, mask=inside, other=0.0)
    covered = _largest_of_column(rows, place, inside, y, height, width, radius)
    tl.store(rest + place, tl.where(covered > 0.0, -1.0, value), mask=inside)


@triton.jit
def _further_maxima(rest, rows, keep, total, height, width, radius: tl.constexpr, block: tl.constexpr):
    """keep: also 1 where a pixel is the largest of what was uncovered."""
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < total
    y = (place // width) % height
    value = tl.load(rest + place, mask=inside, other=-1.0)
    best = _largest_of_column(rows, place, inside, y, height, width, radius)
    kept = tl.load(keep + place, mask=inside, other=0.0)
    found = (value >= 0.0) & (value == tl.maximum(best, 0.0))
    tl.store(keep + place, tl.where(found, 1.0, kept), mask=inside)


def suppress(maps: Tensor, radius: int, iterations: int) -> Tensor:
    """:func:`frontend.keypoints.non_maximum_suppression`, to the bit.

    Args:
        maps: (B, H, W) float32 on a GPU, non-negative.
        radius: of the suppression, pixels, 1 or more.
        iterations: rounds after the first.

    Returns:
        (B, H, W) float32.
    """
    maps = maps.contiguous()
    total, (height, width) = maps.numel(), maps.shape[1:]
    rows, keep, rest = (torch.empty_like(maps) for _ in range(3))
    grid = (triton.cdiv(total, _BLOCK),)
    settings = {"radius": radius, "block": _BLOCK}
    if total == 0:
        return maps
    with _device_of(maps):
        _largest_of_row[grid](maps, rows, total, width, **settings)
        _first_maxima[grid](maps, rows, keep, total, height, width, **settings)
        for _ in range(iterations):
            _largest_of_row[grid](keep, rows, total, width, **settings)
            _uncovered[grid](maps, rows, rest, total, height, width, **settings)
            _largest_of_row[grid](rest, rows, total, width, **settings)
            _further_maxima[grid](rest, rows, keep, total, height, width, **settings)
    return torch.where(keep > 0, maps, 0.0)


@triton.jit
def _halve(source, target, total, width, channels, block: tl.constexpr):
    """Each value of the target is the largest of a 2 x 2 square; sides of the source are even."""
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < total
    channel = place % channels
    pixel = place // channels
    x, row = pixel % width, pixel // width
    first = (row * 2 * (2 * width) + 2 * x) * channels + channel
    below = first + 2 * width * channels
    best = tl.maximum(
        tl.maximum(tl.load(source + first, mask=inside), tl.load(source + first + channels, mask=inside)),
        tl.maximum(tl.load(source + below, mask=inside), tl.load(source + below + channels, mask=inside)),
    )
    tl.store(target + place, best, mask=inside)


def halve(maps: Tensor) -> Tensor:
    """Max-pooling by 2 x 2 with stride 2.

    Args:
        maps: (B, C, H, W) on a GPU; H and W even.

    Returns:
        (B, C, H / 2, W / 2), channels last.
    """
    maps = maps.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = maps.shape
    shape = (batch, channels, height // 2, width // 2)
    out = torch.empty(shape, dtype=maps.dtype, device=maps.device, memory_format=torch.channels_last)
    total = out.numel()
    if total:
        with _device_of(maps):
            _halve[(triton.cdiv(total, _BLOCK),)](maps, out, total, width // 2, channels, block=_BLOCK)
    return out


@triton.jit
def _cut(images, keypoints, patches, height, width, count, size: tl.constexpr, block: tl.constexpr):
    """One program for each keypoint: the square about it, the last pixels repeated beyond the edge."""
    number = tl.program_id(0).to(tl.int64)
    inside = tl.arange(0, block) < size * size
    dx = tl.arange(0, block) % size - size // 2
    dy = tl.arange(0, block) // size - size // 2
    x = tl.load(keypoints + 2 * number).to(tl.int32) + dx
    y = tl.load(keypoints + 2 * number + 1).to(tl.int32) + dy
    x = tl.minimum(tl.maximum(x, 0), width - 1)
    y = tl.minimum(tl.maximum(y, 0), height - 1)
    image = number // count
    values = tl.load(images + (image * height + y) * width + x, mask=inside)
    tl.store(patches + number * size * size + tl.arange(0, block), values, mask=inside)


def cut_patches(images: Tensor, keypoints: Tensor, size: int) -> Tensor:
    """:func:`frontend.refinement.gather_patches`, without its table of a place for each pixel.

    Args:
        images: (B, 1, H, W) float32 on a GPU.
        keypoints: (B, K, 2) float32 integer pixels, inside the image.
        size: side of the square, odd.

    Returns:
        (B * K, 1, size, size) float32.
    """
    images, keypoints = images.contiguous(), keypoints.contiguous()
    batch, count, _ = keypoints.shape
    patches = torch.empty((batch * count, 1, size, size), dtype=images.dtype, device=images.device)
    if batch * count:
        block = triton.next_power_of_2(size * size)
        with _device_of(images):
            _cut[(batch * count,)](images, keypoints, patches, *images.shape[2:], count, size=size, block=block)
    return patches


@triton.jit
def _sample(maps, keypoints, out, rows, columns, count, gain_x, gain_y, dim, block: tl.constexpr):
    """One program for each keypoint: four cells, weighted, and brought to unit norm."""
    number = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, block)
    inside = channel < dim
    # cell centres, the outermost cells repeated: grid_sample without aligned corners, padded by the border
    x = (tl.load(keypoints + 2 * number) + 0.5) * gain_x - 0.5
    y = (tl.load(keypoints + 2 * number + 1) + 0.5) * gain_y - 0.5
    x = tl.minimum(tl.maximum(x, 0.0), columns - 1.0)
    y = tl.minimum(tl.maximum(y, 0.0), rows - 1.0)
    left = tl.floor(x)
    top = tl.floor(y)
    across = x - left
    down = y - top
    x0 = left.to(tl.int32)
    y0 = top.to(tl.int32)
    x1 = tl.minimum(x0 + 1, columns - 1)
    y1 = tl.minimum(y0 + 1, rows - 1)
    image = maps + (number // count) * rows * columns * dim + channel
    a = tl.load(image + (y0 * columns + x0) * dim, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(image + (y0 * columns + x1) * dim, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(image + (y1 * columns + x0) * dim, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(image + (y1 * columns + x1) * dim, mask=inside, other=0.0).to(tl.float32)
    value = (a * (1 - across) + b * across) * (1 - down) + (c * (1 - across) + d * across) * down
    length = tl.sqrt(tl.sum(value * value, axis=0))
    tl.store(out + number * dim + channel, value / tl.maximum(length, 1e-12), mask=inside)


def sample(descriptors: Tensor, keypoints: Tensor, size: tuple[int, int]) -> Tensor:
    """:func:`frontend.keypoints.sample_descriptors`, reading only the cells that keypoints lie between.

    Args:
        descriptors: (B, D, h, w) of any floating type, on a GPU.
        keypoints: (B, K, 2) float32 pixels.
        size: (width, height) of the network's input.

    Returns:
        (B, K, D) float32 of unit norm.
    """
    descriptors = descriptors.contiguous(memory_format=torch.channels_last)
    keypoints = keypoints.contiguous()
    (batch, dim, rows, columns), count = descriptors.shape, keypoints.shape[1]
    out = torch.empty((batch, count, dim), dtype=torch.float32, device=descriptors.device)
    if batch * count:
        gains = (columns / size[0], rows / size[1])
        block = triton.next_power_of_2(dim)
        with _device_of(descriptors):
            _sample[(batch * count,)](descriptors, keypoints, out, rows, columns, count, *gains, dim, block=block)
    return out


def probe(device: torch.device) -> None:
    """Run each kernel once and wait; raises what is wrong with Triton there, whatever that is."""
    maps = torch.ones(1, 8, 8, device=device)
    point = torch.ones(1, 1, 2, device=device)
    suppress(maps, 1, 1)
    halve(maps[None])
    cut_patches(maps[None], point, 3)
    sample(maps[None], point, (64, 64))
    torch.cuda.synchronize(device)
