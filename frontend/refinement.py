"""Refinement of keypoints from the pixels about them: position, how sure it is, score, and a local descriptor.

The dense maps know a keypoint to about a pixel, and their descriptors change slowly from cell to cell: neighbours a
few pixels apart look alike. A small network over one patch of the image for each keypoint adds what they lack (after
Keypt2Subpx, Kim et al. 2024, which refines matches; here a keypoint is refined on its own, so that it can be stored).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from frontend.encoders import ConvBlock, Norm
from frontend.errors import ConfigError
from frontend.extraction import MEETING
from frontend.keypoints import BatchedKeypoints, kernels_for, max_filter
from frontend.registry import Registry


class Refinement(NamedTuple):
    """What a refiner says about keypoints.

    Attributes:
        offsets: (B, K, 2) float32 pixels, to be added to the integer keypoints.
        log_sigmas: (B, K) float32, natural logarithm of the position's standard deviation along an axis, pixels.
        logits: (B, K) float32; their sigmoid is the probability that another view shows the keypoint again.
        descriptors: (B, K, D) float32, to be added to the unit descriptors of the dense map.
    """

    offsets: Tensor
    log_sigmas: Tensor
    logits: Tensor
    descriptors: Tensor


def gather_patches(images: Tensor, keypoints: Tensor, size: int) -> Tensor:
    """Cut a square out of the image about each keypoint; beyond the edge the last pixel is repeated.

    Args:
        images: (B, 1, H, W) float.
        keypoints: (B, K, 2) float32 integer pixels, inside the image.
        size: side of the square, odd.

    Returns:
        (B * K, 1, size, size).
    """
    if kernels := kernels_for(images):
        patches: Tensor = kernels.cut_patches(images, keypoints, size)
        return patches
    batch, _, height, width = images.shape
    steps = torch.arange(size, device=images.device) - size // 2
    x = (keypoints[..., 0].long()[..., None] + steps).clamp(0, width - 1)
    y = (keypoints[..., 1].long()[..., None] + steps).clamp(0, height - 1)
    index = (y[..., :, None] * width + x[..., None, :]).reshape(batch, -1)
    return images.reshape(batch, -1).gather(1, index).reshape(-1, 1, size, size)


class PatchRefiner(nn.Module):
    """A few unpadded convolutions over a patch of the image, contrast-normalised, and two heads.

    Args:
        dim: D, of the descriptor that the local part is added to.
        size: side of the patch, pixels, odd.
        channels: of the convolutions.
        kernels: sides of their kernels.
        strides: their strides.
        hidden: units before the position.
        reach: largest offset along an axis, pixels.
        norm: see :class:`ConvBlock`.

    Raises:
        ConfigError: the layers' settings do not go together.
    """

    def __init__(
        self,
        dim: int,
        size: int = 17,
        channels: Sequence[int] = (16, 24, 32, 32),
        kernels: Sequence[int] = (3, 3, 3, 3),
        strides: Sequence[int] = (1, 2, 1, 1),
        hidden: int = 64,
        reach: float = 3.0,
        norm: Norm = "bn",
    ) -> None:
        super().__init__()
        if not len(channels) == len(kernels) == len(strides) or size % 2 == 0:
            raise ConfigError(
                f"refiner has channels {channels}, kernels {kernels}, strides {strides} and size {size}; "
                "expected as many of each, and an odd size"
            )
        self.size = size
        self.reach = reach
        self.layers = nn.Sequential()
        inputs, side = 1, size
        for outputs, kernel, stride in zip(channels, kernels, strides, strict=True):
            self.layers.append(ConvBlock(inputs, outputs, kernel, stride=stride, padding=0, norm=norm))
            inputs, side = outputs, (side - kernel) // stride + 1
        if side < 1:
            raise ConfigError(f"refiner's layers need a larger patch than {size} pixels")
        flat = inputs * side**2
        self.position = nn.Sequential(nn.Linear(flat, hidden), nn.ReLU(inplace=True))
        self.position_out = nn.Linear(hidden, 4)
        self.score_gain = nn.Parameter(torch.ones(()))
        self.local = nn.Linear(flat, dim)
        # at the start keypoints stay where they are and descriptors as they are
        for layer in (self.position_out, self.local):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor, keypoints: Tensor, scores: Tensor) -> Refinement:
        """Refine integer keypoints.

        Args:
            images: (B, 1, H, W) float in [0, 1].
            keypoints: (B, K, 2) float32 integer pixels.
            scores: (B, K) float32 in [0, 1], of the detector.
        """
        batch, count, _ = keypoints.shape
        offsets, log_sigmas, logits, local = self.refine_patches(
            gather_patches(images, keypoints, self.size), scores.reshape(-1)
        )
        return Refinement(
            offsets.reshape(batch, count, 2),
            log_sigmas.reshape(batch, count),
            logits.reshape(batch, count),
            local.reshape(batch, count, local.shape[-1]),  # not -1: there may be no keypoint
        )

    def refine_patches(self, patches: Tensor, scores: Tensor) -> Refinement:
        """The same for patches at hand.

        Args:
            patches: (N, 1, size, size) float in [0, 1].
            scores: (N,) float32 in [0, 1], of the detector.

        Returns:
            Without the batch dimension: offsets (N, 2), log_sigmas (N,), logits (N,) and descriptors (N, D).
        """
        centred = patches - patches.mean(dim=(2, 3), keepdim=True)
        # the floor of about five grey levels keeps flat patches from being blown up to noise
        spread = centred.square().mean(dim=(2, 3), keepdim=True).sqrt()
        features = self.layers(centred / (spread + 0.02)).flatten(1)
        # not in half precision: its steps would be hundredths of a pixel
        with torch.autocast(features.device.type, enabled=False):
            position = self.position_out(self.position(features.float()))
        offsets = self.reach * torch.tanh(position[:, :2] / self.reach)
        logits = self.score_gain * torch.logit(scores, 1e-4) + position[:, 3]
        return Refinement(offsets, position[:, 2].clamp(-3.0, 3.0), logits, self.local(features).float())


REFINERS: Registry[type[nn.Module]] = Registry("refiner", "superpoint.refiners")
REFINERS.register("patch")(PatchRefiner)


def settle(
    found: BatchedKeypoints, refinement: Refinement, sizes: Tensor, size: tuple[int, int], count: int
) -> BatchedKeypoints:
    """Keypoints at the pixels that a refiner moves them to, without those that a better one is within ``MEETING`` of.

    Args:
        found: integer keypoints, C of each image.
        refinement: of them.
        sizes: (B, 2), (width, height) of each image without padding, which none leaves.
        size: (width, height) of the network's input, pixels.
        count: K, keypoints that are kept, the best by the refiner's scores; at most C.

    Returns:
        Integer keypoints, K of each image, with the detector's scores.
    """
    limit = (sizes[:, None] - 1).to(torch.float32)
    pixels = (found.keypoints + refinement.offsets).round().clamp(min=0).minimum(limit)
    place = pixels[..., 1].long() * size[0] + pixels[..., 0].long()
    least = torch.finfo(torch.float32).min
    logits = refinement.logits.float().masked_fill(~found.valid, least)
    best = torch.full((len(sizes), size[0] * size[1]), least, device=logits.device)
    best = best.scatter_reduce(1, place, logits, "amax").reshape(-1, size[1], size[0])
    valid = found.valid & (logits == max_filter(best, MEETING).flatten(1).gather(1, place))
    order = (logits.sigmoid() - (~valid).to(torch.float32)).argsort(dim=1, descending=True, stable=True)[:, :count]
    valid = valid.gather(1, order)
    pixels = pixels.gather(1, order[..., None].expand(-1, -1, 2)) * valid[..., None]
    return BatchedKeypoints(pixels, found.scores.gather(1, order) * valid, valid)


def add_local(descriptors: Tensor, local: Tensor) -> Tensor:
    """Unit descriptors of the dense map and their local parts to unit descriptors, (B, K, D)."""
    return functional.normalize(descriptors + local, dim=-1)
