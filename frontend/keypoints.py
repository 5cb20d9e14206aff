"""From dense maps to keypoints: NMS, border, top-K, sub-pixel refinement, descriptor sampling.

Everything is batched with a fixed K and a valid mask: no boolean indexing, no synchronisation with the host, and
image n of a batch gets what it would get alone.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from frontend.errors import ConfigError, ShapeError


class BatchedKeypoints(NamedTuple):
    """K keypoints for every image of a batch, best first.

    Attributes:
        keypoints: (B, K, 2) float32, (x, y) pixels of the network's input.
        scores: (B, K) float32, non-increasing; 0 for padding.
        valid: (B, K) bool; padding is False.
    """

    keypoints: Tensor
    scores: Tensor
    valid: Tensor


_kernels: dict[torch.device, ModuleType | None] = {}


def triton_kernels(device: torch.device) -> ModuleType | None:
    """:mod:`frontend.cuda_kernels`, or None where there is no Triton that works on this GPU."""
    if device not in _kernels:
        try:
            from frontend import cuda_kernels

            cuda_kernels.probe(device)
            _kernels[device] = cuda_kernels
        except torch.cuda.OutOfMemoryError:
            return None
        # a Triton that does not fit the rest, or finds no compiler, raises what it likes
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:160]
            print(f"no Triton kernels, going on with PyTorch's: {reason}", file=sys.stderr)
            _kernels[device] = None
    return _kernels[device]


def kernels_for(values: Tensor) -> ModuleType | None:
    """The kernels where they can read a tensor: float32 on a GPU, which nothing is differentiated by."""
    readable = values.is_cuda and values.dtype == torch.float32 and not values.requires_grad
    return triton_kernels(values.device) if readable else None


def max_filter(maps: Tensor, radius: int) -> Tensor:
    """Largest value in the (2 radius + 1)-sided square about each pixel.

    Args:
        maps: (B, H, W) float32.
        radius: pixels.

    Returns:
        (B, H, W) float32.
    """
    side = 2 * radius + 1
    exporting = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]
    if maps.device.type == "cpu" and maps.dtype == torch.float32 and not maps.requires_grad and not exporting:
        # the same filter; OpenCV's takes 0.2 ms at VGA where max_pool2d takes 34
        out = np.empty(tuple(maps.shape), np.float32)
        kernel = np.ones((side, side), np.uint8)
        for source, target in zip(maps.contiguous().numpy(), out, strict=True):
            cv2.dilate(source, kernel, dst=target, borderType=cv2.BORDER_REPLICATE)
        return torch.from_numpy(out)
    rows = functional.max_pool2d(maps[:, None], (side, 1), stride=1, padding=(radius, 0))
    return functional.max_pool2d(rows, (1, side), stride=1, padding=(0, radius))[:, 0]


def non_maximum_suppression(maps: Tensor, radius: int, iterations: int = 2) -> Tensor:
    """Keep local maxima, suppress what lies within ``radius`` of them, and look again among the rest.

    With enough iterations this is greedy suppression by score over square neighbourhoods; two come close.

    Args:
        maps: (B, H, W) float32, non-negative.
        radius: suppression radius, pixels (Chebyshev distance); 0 keeps every pixel.
        iterations: rounds after the first.

    Returns:
        (B, H, W) float32: the score where a pixel survives, 0 elsewhere.
    """
    if radius < 0:
        raise ConfigError(f"nms_radius is {radius}; expected 0 or more")
    if radius == 0:
        return maps
    if kernels := kernels_for(maps):
        suppressed: Tensor = kernels.suppress(maps, radius, iterations)
        return suppressed
    keep = maps == max_filter(maps, radius)
    for _ in range(iterations):
        covered = max_filter(keep.to(maps.dtype), radius) > 0
        rest = torch.where(covered, torch.zeros_like(maps), maps)
        keep = keep | ((rest == max_filter(rest, radius)) & ~covered)
    return torch.where(keep, maps, torch.zeros_like(maps))


def inside_border(maps: Tensor, border: int, sizes: Tensor | None = None) -> Tensor:
    """Zero what lies within ``border`` pixels of the image's edge.

    Args:
        maps: (B, H, W) float.
        border: pixels.
        sizes: (B, 2) int64, (width, height) of each image where it is padded at the right and the bottom.

    Returns:
        (B, H, W) float.
    """
    height, width = maps.shape[-2:]
    x = torch.arange(width, device=maps.device)
    y = torch.arange(height, device=maps.device)
    if sizes is None:
        inside = ((y >= border) & (y < height - border))[:, None] & ((x >= border) & (x < width - border))
    else:
        inside_x = (x >= border) & (x < sizes[:, :1] - border)
        inside_y = (y >= border) & (y < sizes[:, 1:] - border)
        inside = inside_y[:, :, None] & inside_x[:, None, :]
    return maps * inside


def top_k(maps: Tensor, k: int, threshold: float, nms_radius: int = 0) -> BatchedKeypoints:
    """The K best pixels of each map.

    Args:
        maps: (B, H, W) float32, 0 where there is no candidate; H and W multiples of 8.
        k: keypoints of each image.
        threshold: the score that a valid keypoint exceeds.
        nms_radius: that ``maps`` was suppressed with. A block of a side up to nms_radius + 1 then holds one
            survivor at most, so the search runs over blocks instead of pixels.

    Returns:
        Integer keypoints, K of them even where the maps have fewer pixels.
    """
    if maps.ndim != 3 or maps.shape[1] % 8 or maps.shape[2] % 8:
        raise ShapeError(f"got maps of shape {tuple(maps.shape)}; expected (B, H, W) with multiples of 8")
    batch, height, width = maps.shape
    side = 8 if nms_radius >= 7 else 4 if nms_radius >= 3 else 2 if nms_radius >= 1 else 1
    blocks = maps.reshape(batch, height // side, side, width // side, side).transpose(2, 3)
    best, within = blocks.reshape(batch, -1, side * side).max(dim=-1)
    taken = min(k, best.shape[1])
    scores, block = best.topk(taken, dim=1)
    inner = within.gather(1, block)
    columns = width // side
    x = (block % columns) * side + inner % side
    y = (block // columns) * side + inner // side
    keypoints = torch.stack([x, y], dim=-1).to(torch.float32)
    valid = scores > threshold
    if taken < k:
        keypoints = functional.pad(keypoints, (0, 0, 0, k - taken))
        scores, valid = functional.pad(scores, (0, k - taken)), functional.pad(valid, (0, k - taken))
    return BatchedKeypoints(keypoints * valid[..., None], scores * valid, valid)


def reorder(found: BatchedKeypoints) -> tuple[BatchedKeypoints, Tensor]:
    """Sort keypoints by falling scores, the invalid ones behind; equal scores keep their order.

    Returns:
        The keypoints, and the (B, K) int64 order that they were brought in.
    """
    # an invalid keypoint may not stand before a valid one of score 0
    order = (found.scores - (~found.valid).to(found.scores.dtype)).argsort(dim=1, descending=True, stable=True)
    keypoints = found.keypoints.gather(1, order[..., None].expand_as(found.keypoints))
    return BatchedKeypoints(keypoints, found.scores.gather(1, order), found.valid.gather(1, order)), order


def window_values(maps: Tensor, keypoints: Tensor, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values of a map about keypoints.

    Args:
        maps: (B, H, W) float32.
        keypoints: (B, K, 2) float32 integer pixels.
        radius: of the window, pixels; it has n = (2 radius + 1)^2 of them.

    Returns:
        Offsets along x and y, (n,) int64 each, and the values there, (B, K, n), 0 outside of the map.
    """
    batch, height, width = maps.shape
    steps = torch.arange(-radius, radius + 1, device=maps.device)
    dy, dx = (d.reshape(-1) for d in torch.meshgrid(steps, steps, indexing="ij"))
    x = keypoints[..., :1].long() + dx
    y = keypoints[..., 1:].long() + dy
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).reshape(batch, -1)
    return dx, dy, maps.reshape(batch, -1).gather(1, index).reshape(x.shape) * inside


def refine_subpixel(maps: Tensor, keypoints: Tensor, radius: int = 2) -> Tensor:
    """Move keypoints to the centre of mass of the heat map about them (soft-argmax).

    Args:
        maps: (B, H, W) float32 heat maps, before suppression.
        keypoints: (B, K, 2) float32 integer pixels.
        radius: of the window, pixels.

    Returns:
        (B, K, 2) float32; no coordinate moves by more than ``radius``.
    """
    dx, dy, weight = window_values(maps, keypoints, radius)
    total = weight.sum(dim=-1).clamp_min(1e-12)
    shift = torch.stack([(weight * dx).sum(dim=-1) / total, (weight * dy).sum(dim=-1) / total], dim=-1)
    return keypoints + shift


def sample_descriptors(descriptors: Tensor, keypoints: Tensor, size: tuple[int, int]) -> Tensor:
    """Sample a semi-dense descriptor map at keypoints: bilinear, then of unit L2 norm (section 3.3).

    Args:
        descriptors: (B, D, h, w) float.
        keypoints: (B, K, 2) float32 pixels of the network's input.
        size: (width, height) of the network's input, pixels.

    Returns:
        (B, K, D) float32, each of unit norm.
    """
    learning = torch.is_grad_enabled() and (descriptors.requires_grad or keypoints.requires_grad)
    if descriptors.is_cuda and not learning and (kernels := triton_kernels(descriptors.device)):
        result: Tensor = kernels.sample(descriptors, keypoints, size)
        return result
    if keypoints.is_cuda:
        # filled on the device: a copy from the host would wait for it
        extent = torch.cat([torch.full((1,), float(side), device=keypoints.device) for side in size])
    else:
        extent = torch.tensor(size, device=keypoints.device, dtype=torch.float32)
    # cell centres: with align_corners=False, -1 and 1 are the outer edges of the image
    grid = ((keypoints * 2 + 1) / extent - 1)[:, :, None]
    if learning and not grid.is_cuda:
        # what a training that diverges gives: PyTorch's backward on CPUs writes anywhere for it
        grid = grid.nan_to_num()
    sampled = functional.grid_sample(descriptors.float(), grid, padding_mode="border", align_corners=False)
    return functional.normalize(sampled[..., 0].transpose(1, 2), dim=-1)
