"""Whole extractors as one graph: image in, K described keypoints out, for runtimes without this library.

The steps are those of :mod:`frontend.torch_backend`, written for export: fixed K, no operator whose output's size
depends on values (no NonZero), sizes read from the tensors so that one graph serves all of them. What is no keypoint
has score 0 and comes last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from frontend.extraction import MEETING, ExtractorConfig, candidates
from frontend.keypoints import inside_border, non_maximum_suppression, refine_subpixel
from frontend.model import SuperPointNet
from frontend.refinement import Refinement, add_local
from frontend.runtime.graphs import heat_of

_LEAST = -2.0  # below any cosine


def best_pixels(maps: Tensor, k: int, threshold: float, radius: int) -> tuple[Tensor, Tensor]:
    """The K best pixels of suppressed maps, also where the maps have fewer.

    Args:
        maps: (B, H, W) float32, H and W multiples of 8.
        k: keypoints of each image.
        threshold: the score that a keypoint exceeds.
        radius: that the maps were suppressed with; a block of a side up to radius + 1 holds one survivor.

    Returns:
        Integer keypoints (B, K, 2) float32 and their scores (B, K), 0 where there is none.
    """
    batch, height, width = maps.shape
    side = 8 if radius >= 7 else 4 if radius >= 3 else 2 if radius >= 1 else 1
    columns = width // side
    blocks = maps.reshape(batch, height // side, side, columns, side).transpose(2, 3)
    best, within = blocks.reshape(batch, (height // side) * columns, side * side).max(dim=-1)
    scores, block = functional.pad(best, (0, k)).topk(k, dim=1)
    inner = functional.pad(within, (0, k)).gather(1, block)
    x = (block % columns) * side + inner % side
    y = torch.div(block, columns, rounding_mode="floor") * side + torch.div(inner, side, rounding_mode="floor")
    valid = scores > threshold
    keypoints = torch.stack([x, y], dim=-1).to(torch.float32)
    return keypoints * valid[..., None], scores * valid


def sample(descriptors: Tensor, keypoints: Tensor, height: int, width: int) -> Tensor:
    """:func:`frontend.keypoints.sample_descriptors`, the image's size taken from a tensor's shape."""
    grid = torch.stack([(keypoints[..., 0] * 2 + 1) / width - 1, (keypoints[..., 1] * 2 + 1) / height - 1], dim=-1)
    sampled = functional.grid_sample(
        descriptors.float(), grid[:, :, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return functional.normalize(sampled[..., 0].transpose(1, 2), dim=-1)


def settle_pixels(
    keypoints: Tensor,
    scores: Tensor,
    refinement: Refinement,
    height: int,
    width: int,
    k: int,
    last: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`frontend.refinement.settle` by comparing all keypoints with all, which every runtime can do.

    Args:
        keypoints: (B, C, 2) float32 integer pixels.
        scores: (B, C), the detector's, 0 where there is no keypoint.
        refinement: of them.
        height: of the images, pixels.
        width: the same.
        k: keypoints that are kept.
        last: (B, 1, 2) float32, (x, y) of each image's last pixel where it is padded.

    Returns:
        Integer keypoints (B, K, 2) float32 and the detector's scores (B, K), 0 where there is none.
    """
    moved = (keypoints + refinement.offsets).round()
    moved = moved if last is None else moved.minimum(last)
    x, y = moved[..., 0].clamp(0, width - 1), moved[..., 1].clamp(0, height - 1)
    ranks = refinement.logits.sigmoid() - (scores <= 0).to(torch.float32)
    apart = torch.maximum((x[:, :, None] - x[:, None]).abs(), (y[:, :, None] - y[:, None]).abs())
    beaten = ((apart <= MEETING) & (ranks[:, None] > ranks[:, :, None])).to(torch.float32).amax(dim=2)
    ranked, order = (ranks - 2 * beaten).topk(k, dim=1)
    valid = (ranked > 0).to(torch.float32)
    settled = torch.stack([x.gather(1, order) * valid, y.gather(1, order) * valid], dim=-1)
    return settled, scores.gather(1, order) * valid


class FeatureGraph(nn.Module):
    """(B, 1, H, W) float32 in [0, 1] to K keypoints of each image, best first.

    ``forward`` gives keypoints (B, K, 2) float32 in pixels of the image, scores (B, K), 0 where there is no keypoint,
    descriptors (B, K, D) of unit norm, and, where the network has a refiner, sigmas (B, K) in pixels.

    It takes the images' sizes, too, (B, 2) int64, width and height: what lies to the right of them or below is padding,
    and the border without keypoints lies within. Without them the whole input is the image.

    Args:
        network: in evaluation mode, folded.
        config: settings; ``resize`` is the caller's.
    """

    def __init__(self, network: SuperPointNet, config: ExtractorConfig | None = None) -> None:
        super().__init__()
        self.network = network
        self.config = config or ExtractorConfig()

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Names of what ``forward`` gives, with the shape for one image."""
        k, dim = self.config.max_keypoints, self.network.config.descriptor_dim
        shapes: dict[str, tuple[int, ...]] = {"keypoints": (k, 2), "scores": (k,), "descriptors": (k, dim)}
        return shapes if self.network.refiner is None else {**shapes, "sigmas": (k,)}

    def forward(self, image: Tensor, size: Tensor | None = None) -> tuple[Tensor, ...]:
        config = self.config
        maps = self.network(image)
        heat = heat_of(maps.logits)
        height, width = heat.shape[1], heat.shape[2]
        last = None if size is None else (size - 1).to(torch.float32)[:, None]
        kept = inside_border(non_maximum_suppression(heat, config.nms_radius), config.border, size)
        passes = self.network.config.refiner_passes if self.network.refiner is not None else 1
        count = candidates(config.max_keypoints, passes)
        keypoints, scores = best_pixels(kept, count, config.detection_threshold, config.nms_radius)
        refinement = self.network.refine(image, keypoints, scores)
        for _ in range(passes - 1):
            assert refinement is not None
            keypoints, scores = settle_pixels(keypoints, scores, refinement, height, width, config.max_keypoints, last)
            refinement = self.network.refine(image, keypoints, scores)
        valid = scores > 0
        if refinement is None:
            if config.subpixel:
                keypoints = refine_subpixel(heat, keypoints)
            described = sample(maps.descriptors, keypoints, height, width)
            return _within(keypoints, last) * valid[..., None], scores, described
        if config.subpixel:
            keypoints = keypoints + refinement.offsets
        described = add_local(sample(maps.descriptors, keypoints, height, width), refinement.descriptors)
        # a keypoint of score 0 may not stand before a valid one
        ranked, order = (refinement.logits.sigmoid() - (~valid).to(torch.float32)).topk(config.max_keypoints, dim=1)
        chosen = order[..., None]
        keypoints = (_within(keypoints, last) * valid[..., None]).gather(1, chosen.expand(-1, -1, 2))
        described = described.gather(1, chosen.expand(-1, -1, described.shape[2]))
        return keypoints, ranked.clamp(min=0), described, refinement.log_sigmas.exp().gather(1, order)


def _within(keypoints: Tensor, last: Tensor | None) -> Tensor:
    """Keypoints (B, K, 2) brought into images whose last pixels (B, 1, 2) are known."""
    return keypoints if last is None else keypoints.clamp(min=0).minimum(last)


class PairGraph(nn.Module):
    """Two images to their features and mutual nearest neighbours.

    ``forward`` gives what :class:`FeatureGraph` gives for image 0, the same for image 1, and matches (B, K) int64, for
    every keypoint of image 0 its match in image 1 or -1, with match_scores (B, K), cosines, 0 without a match.
    The images may be of different sizes.

    Args:
        features: of both images.
    """

    def __init__(self, features: FeatureGraph) -> None:
        super().__init__()
        self.features = features

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Names of what ``forward`` gives, with the shape for one pair."""
        both = {f"{name}{i}": shape for i in (0, 1) for name, shape in self.features.outputs.items()}
        k = self.features.config.max_keypoints
        return {**both, "matches": (k,), "match_scores": (k,)}

    def forward(
        self, image0: Tensor, image1: Tensor, size0: Tensor | None = None, size1: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        first, second = self.features(image0, size0), self.features(image1, size1)
        similarity = first[2] @ second[2].transpose(1, 2)
        usable = (first[1] > 0)[:, :, None] & (second[1] > 0)[:, None]
        # a descriptor that is not finite is nobody's neighbour
        usable = usable & (similarity == similarity)
        similarity = torch.where(usable, similarity, torch.full_like(similarity, _LEAST))
        best, there = similarity.max(dim=2)
        back = similarity.argmax(dim=1).gather(1, there)
        mutual = (back == torch.arange(back.shape[1], device=back.device)) & (best > _LEAST)
        matches = torch.where(mutual, there, torch.full_like(there, -1))
        return *first, *second, matches, best * mutual
