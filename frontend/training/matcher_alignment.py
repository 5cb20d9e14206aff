"""Carrying a learned matcher over to the features of another network.

Two networks' descriptors of the same points are nearly linear in each other where the one was trained on from the
other, and less so where they share labels only. A matcher that reads mapped descriptors starts from what it knows,
where one that is given the new ones as they are has to learn them first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from frontend.errors import DataError
from frontend.extractor import SuperPoint
from frontend.keypoints import sample_descriptors
from frontend.matching.lightglue_network import LightGlueNet
from frontend.model import SuperPointNet
from frontend.refinement import add_local
from frontend.types import Float32Array

_LEAST = 4
"""Pairs of descriptors for each of their values, at least: below, the map fits their noise."""


def descriptors_at(network: SuperPointNet, images: Tensor, keypoints: Tensor, scores: Tensor) -> Tensor:
    """A network's descriptors at points that it need not have detected.

    Args:
        network: in evaluation mode, on the images' device.
        images: (B, 1, H, W) float32 in [0, 1], sides multiples of 8.
        keypoints: (B, K, 2) float32 pixels.
        scores: (B, K) float32.

    Returns:
        (B, K, D) float32 of unit norm.
    """
    with torch.inference_mode():
        maps = network(images)
        dense = sample_descriptors(maps.descriptors, keypoints, (images.shape[-1], images.shape[-2]))
        refinement = network.refine(images, keypoints.round(), scores)
        return dense if refinement is None else add_local(dense, refinement.descriptors)


def descriptor_pairs(
    extractor: SuperPoint, network: SuperPointNet, images: Iterable[np.ndarray]
) -> Iterator[tuple[Float32Array, Float32Array]]:
    """What two networks say of the same points, those that the first one detects.

    The other one's refiner cuts its patch at the pixel nearest to the point, the first one's where its last pass began:
    a network beside itself has a cosine of .96 to .99.

    Args:
        extractor: of the one network, on PyTorch.
        network: the other, in evaluation mode; brought to the extractor's device.
        images: as :meth:`frontend.extractor.SuperPoint.extract` takes them, each side at least 8 pixels.

    Yields:
        (N, D0) and (N, D1) float32 for each image that has keypoints, rows of unit norm.
    """
    for image in images:
        batch = extractor.stack([extractor.prepare(image)])
        features = extractor.collect(extractor.postprocess(extractor.forward(batch), batch), batch)[0]
        if not len(features.keypoints):
            continue
        inputs = torch.as_tensor(batch.images)
        inputs = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
        keypoints, scores = (torch.from_numpy(a)[None].to(inputs.device) for a in (features.keypoints, features.scores))
        yield (
            features.descriptors,
            descriptors_at(network.to(inputs.device), inputs, keypoints, scores)[0].cpu().numpy(),
        )


@dataclass(frozen=True, eq=False)
class Alignment:
    """A linear map between two networks' descriptors.

    Attributes:
        weight: (D1, D0) float32: what the other network says is about ``weight @ descriptor``, whose norm is 1 on
            average.
        similarity: mean cosine of mapped and true descriptors, of points that it was not fitted to.
        unmapped: the same, without the map; NaN where D0 is not D1.
    """

    weight: Float32Array
    similarity: float
    unmapped: float


def fit_alignment(pairs: Iterable[tuple[Float32Array, Float32Array]]) -> Alignment:
    """Least squares on every other image's points; the rest say how well it maps.

    Args:
        pairs: (N, D0) and (N, D1) of each image, see :func:`descriptor_pairs`.

    Raises:
        DataError: there are fewer than two images, or fewer than four points a value of D0 in either half.
    """
    held = list(pairs)
    halves = [[np.concatenate(part) for part in zip(*held[i::2], strict=True)] for i in (0, 1) if held[i::2]]
    fewest = min(len(half[0]) for half in halves) if len(halves) == 2 else 0
    if fewest < (least := _LEAST * (held[0][0].shape[1] if held else 1)):
        raise DataError(
            f"{len(held)} images with {fewest} keypoints in a half of them; expected at least {least} in each half"
        )
    (source, target), (other, truth) = halves
    solution = np.linalg.lstsq(source.astype(np.float64), target.astype(np.float64), rcond=None)[0]
    # least squares shrinks what it cannot tell; a matcher learnt from unit norms
    solution /= np.linalg.norm(source @ solution, axis=1).mean()
    mapped = other @ solution
    cosines = (mapped * truth).sum(1) / np.linalg.norm(mapped, axis=1).clip(1e-12)
    unmapped = float((other * truth).sum(1).mean()) if other.shape[1] == truth.shape[1] else float("nan")
    return Alignment(solution.T.astype(np.float32), float(cosines.mean()), unmapped)


def align_matcher(matcher: LightGlueNet, alignment: Alignment, features: str) -> LightGlueNet:
    """The matcher with the map before its first layer.

    Args:
        matcher: for D1 values.
        alignment: from D0 to D1 values.
        features: name of the model whose features the new one is for.

    Returns:
        Another network, for D0 values, on the CPU.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in matcher.state_dict().items()}
    weight, before = torch.from_numpy(alignment.weight), matcher.input_proj
    bias = torch.zeros(matcher.config.dim)
    if isinstance(before, nn.Linear):
        weight, bias = tensors["input_proj.weight"] @ weight, tensors["input_proj.bias"]
    dim = weight.shape[1]
    config = replace(matcher.config, input_dim=dim, features=features, project=dim == matcher.config.dim)
    aligned = LightGlueNet(config).eval()
    aligned.load_state_dict(tensors | {"input_proj.weight": weight, "input_proj.bias": bias})
    return aligned
