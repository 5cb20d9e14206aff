"""The two trainings: what a batch is, and the loss on it."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from frontend.errors import ConfigError
from frontend.keypoints import inside_border, non_maximum_suppression, sample_descriptors, top_k
from frontend.model import DenseMaps, SuperPointNet, heatmap
from frontend.refinement import Refinement, add_local
from frontend.training.context_losses import auxiliary_losses
from frontend.training.datasets import Sample
from frontend.training.detector_losses import DetectorLoss
from frontend.training.distributed import sum_over_ranks
from frontend.training.losses import detector_loss, dual_softmax_loss, hinge_descriptor_loss, peak_loss, position_loss
from frontend.training.mixtoken import cell_targets, clear_of_pasted, pasting, without_pasted
from frontend.training.refinement import correspond, matching_loss, near_miss_loss, position_nll, repetition_loss
from frontend.training.token_labelling import TokenLabelling

DESCRIPTOR_LOSSES = ("dual_softmax", "hinge")
# how keypoints are picked for the refiner's losses: as at inference, with the poor ones among them; without a least
# score, as padding would be patches of one corner, and part of the batch norms' statistics
_NMS_RADIUS = 3
_BORDER = 4
_LEAST_SCORE = 0.0
# they are compared each with each: four times as many take gigabytes
_MOST_REFINED = 4096


def to_network_input(image: Tensor) -> Tensor:
    """(..., H, W) uint8 to (B, 1, H, W) float32 in [0, 1], leading dimensions joined."""
    return image.reshape(-1, 1, *image.shape[-2:]).float() / 255


def _check_weights(**weights: float) -> None:
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} is {value}; expected 0 or more, finite")


class Task(Protocol):
    """A training: its data, what of the network runs, and the loss on that.

    ``forward`` may run in half precision. ``loss`` may not: it deals with coordinates.
    """

    name: str
    data: Dataset[Sample]

    def forward(self, network: SuperPointNet, batch: Sample) -> tuple[Tensor, ...]:
        """Run the network on a batch."""

    def loss(self, outputs: tuple[Tensor, ...], batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss from what ``forward`` returned, in float32, and scalars to log."""


class MagicPointTask:
    """The detector on synthetic shapes (DeTone et al. 2018, section 4).

    Where samples have regions, context modules learn from them as well: object regions their classes, map fusion to use
    the shapes' mask as a map and to predict it. Every other batch, about, comes without the map.

    Args:
        data: of :class:`frontend.training.datasets.SyntheticShapes`.
        detector: the detector's loss, see :func:`frontend.training.detector_losses.make_detector_loss`.
        auxiliary_weight: of the context modules' own losses.

    Raises:
        ConfigError: the weight is out of its range.
    """

    name = "magicpoint"

    def __init__(
        self, data: Dataset[Sample], detector: DetectorLoss = detector_loss, auxiliary_weight: float = 0.4
    ) -> None:
        _check_weights(auxiliary_weight=auxiliary_weight)
        self.data = data
        self.detector = detector
        self.auxiliary_weight = auxiliary_weight
        self._outputs: tuple[str, ...] = ()

    def forward(self, network: SuperPointNet, batch: Sample) -> tuple[Tensor, ...]:
        image = to_network_input(batch["image"])
        # decided by the batch itself, so that a resumed run decides alike, and by all ranks' parts of it together
        given = "regions" in batch and int(sum_over_ranks(batch["image"].long().sum())) % 2 == 0
        raster = shape_raster(batch["regions"], network.map_layers) if given and network.map_layers else None
        features, auxiliary = network.encode(image, raster)
        self._outputs = tuple(auxiliary)
        return (network.detector(features, image), *auxiliary.values())

    def loss(self, outputs: tuple[Tensor, ...], batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        logits, *others = outputs
        total = self.detector(logits, batch["labels"].long(), batch["mask"])
        logged = {"loss/detector": total.detach()}
        if "regions" in batch:
            auxiliary = dict(zip(self._outputs, others, strict=True))
            layers = auxiliary["map_fusion/layers"].shape[1] if "map_fusion/layers" in auxiliary else 0
            raster = shape_raster(batch["regions"], layers) if layers else None
            for name, value in auxiliary_losses(auxiliary, batch["regions"].long(), raster).items():
                logged[name] = value.detach()
                total = total + self.auxiliary_weight * value
        return total, logged


def shape_raster(regions: Tensor, layers: int) -> Tensor:
    """The map that synthetic shapes come with.

    Args:
        regions: (B, H, W) integer, class of shape at each pixel; 0 is the background.
        layers: M; one layer has all shapes in it, of several layer m has those of class m + 1.

    Returns:
        (B, M, H, W) float32, 0 or 1.
    """
    if layers == 1:
        return (regions > 0).float()[:, None]
    classes = torch.arange(1, layers + 1, device=regions.device)
    return (regions[:, None].long() == classes[:, None, None]).float()


class SuperPointTask:
    """Detector and descriptor jointly on warped pairs (DeTone et al. 2018, section 3.4).

    Args:
        data: of :class:`frontend.training.datasets.WarpedPairs`.
        descriptor_loss: "dual_softmax" on sparse correspondences, or the paper's "hinge" over all pairs of cells.
        weight: of the descriptor's loss, lambda of equation 1.
        lambda_d: weight of positive pairs in the hinge loss.
        temperature: of the dual softmax.
        position_weight: of the position loss; 0 leaves it out.
        peak_weight: of the peak loss; 0 leaves it out.
        refined_points: keypoints of each view that the refiner learns from, where the network has one.
        near_weight: of the loss on descriptors of neighbours, in the descriptor's loss of those keypoints.
        detector: the detector's loss, see :func:`frontend.training.detector_losses.make_detector_loss`.
        token_labelling: soft labels and MixToken; its module is trained along.

    Raises:
        ConfigError: the loss is unknown, or a number is out of its range.
    """

    name = "superpoint"

    def __init__(
        self,
        data: Dataset[Sample],
        descriptor_loss: str = "dual_softmax",
        weight: float = 0.5,
        lambda_d: float = 250.0,
        temperature: float = 0.05,
        position_weight: float = 0.0,
        refined_points: int = 192,
        near_weight: float = 0.0,
        detector: DetectorLoss = detector_loss,
        token_labelling: TokenLabelling | None = None,
        peak_weight: float = 0.0,
    ) -> None:
        if descriptor_loss not in DESCRIPTOR_LOSSES:
            raise ConfigError(
                f"unknown descriptor loss '{descriptor_loss}'; expected one of: {', '.join(DESCRIPTOR_LOSSES)}"
            )
        if not 1 <= refined_points <= _MOST_REFINED:
            raise ConfigError(f"refined_points is {refined_points}; expected 1 to {_MOST_REFINED}")
        if not 0 < temperature < math.inf:
            raise ConfigError(f"temperature is {temperature}; expected more than 0, finite")
        _check_weights(
            descriptor_weight=weight,
            lambda_d=lambda_d,
            position_weight=position_weight,
            near_weight=near_weight,
            peak_weight=peak_weight,
        )
        self.data = data
        self.descriptor_loss = descriptor_loss
        self.weight = weight
        self.lambda_d = lambda_d
        self.temperature = temperature
        self.position_weight = position_weight
        self.peak_weight = peak_weight
        self.refined_points = refined_points
        self.near_weight = near_weight
        self.detector = detector
        self.auxiliary = token_labelling

    def forward(self, network: SuperPointNet, batch: Sample) -> tuple[Tensor, ...]:
        image = to_network_input(batch["image"])
        maps: DenseMaps
        tokens: tuple[Tensor, ...] = ()
        if self.auxiliary is None:
            maps = network(image)
        else:
            maps, image, tokens = self.auxiliary(network, image, batch)
        if network.refiner is None:
            return (*maps, *tokens)
        heat = heatmap(maps.logits.detach())
        candidates = inside_border(non_maximum_suppression(heat, _NMS_RADIUS), _BORDER)
        found = top_k(candidates, self.refined_points, _LEAST_SCORE, _NMS_RADIUS)
        refinement = network.refine(image, found.keypoints, found.scores)
        assert refinement is not None
        return (*maps, found.keypoints, found.valid, *refinement, *tokens)

    def loss(self, outputs: tuple[Tensor, ...], batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch["image"]
        pairs, size = images.shape[0], (images.shape[-1], images.shape[-2])
        maps = DenseMaps(*outputs[:2])
        mixed = pasting(batch)
        labels, mask, soft = cell_targets(batch, mixed)
        if mixed is not None:
            batch = without_pasted(batch, mixed)
        detector = self.detector(maps.logits, labels, mask)
        logged: dict[str, Tensor] = {}
        beside: Tensor | None = None
        if self.auxiliary is not None:
            outputs, tokens = self.auxiliary.split(outputs)
            detector = self.auxiliary.blend(detector, maps.logits, soft, mask)
            beside = self.auxiliary.loss(tokens, soft, mask)
        logged["loss/detector"] = detector.detach()
        if self.descriptor_loss == "hinge":
            both = maps.descriptors.reshape(pairs, 2, *maps.descriptors.shape[1:])
            masks = batch["mask"]
            descriptor = hinge_descriptor_loss(
                both[:, 0], both[:, 1], batch["H"], masks[:, 0], masks[:, 1], lambda_d=self.lambda_d
            )
        else:
            sampled = sample_descriptors(maps.descriptors, batch["points"].flatten(0, 1), size)
            both = sampled.reshape(pairs, 2, *sampled.shape[1:])
            descriptor, accuracy = dual_softmax_loss(
                both[:, 0],
                both[:, 1],
                batch["points"][:, 0],
                batch["points"][:, 1],
                batch["valid"],
                temperature=self.temperature,
            )
            logged["match_accuracy"] = accuracy
        logged["loss/descriptor"] = descriptor.detach()
        total = detector + self.weight * descriptor
        if self.auxiliary is not None and beside is not None:
            logged["loss/tokens"] = beside.detach()
            total = total + self.auxiliary.token_weight * beside
        if self.position_weight:
            heat = heatmap(maps.logits)
            heat = heat.reshape(pairs, 2, *heat.shape[1:])
            position = position_loss(heat, batch["points"], batch["valid"] & batch["labelled"], batch["H"])
            logged["loss/position"] = position.detach()
            total = total + self.position_weight * position
        if self.peak_weight:
            valid = (batch["valid"] & batch["labelled"])[:, None].expand(-1, 2, -1).flatten(0, 1)
            peak = peak_loss(heatmap(maps.logits), batch["points"].flatten(0, 1), valid)
            logged["loss/peak"] = peak.detach()
            total = total + self.peak_weight * peak
        if len(outputs) > 2:
            keypoints, valid, *refined = outputs[2:]
            real = valid > 0 if mixed is None else (valid > 0) & clear_of_pasted(keypoints, batch["H"], mixed)
            found = _refinement_losses(maps, keypoints, real, Refinement(*refined), batch, self.temperature)
            logged |= {name: value.detach() for name, value in found.items()}
            matching = found["loss/matching"] + self.near_weight * found["loss/near"]
            total = total + found["loss/offset"] + found["loss/repetition"] + self.weight * matching
        return total, logged


def _refinement_losses(
    maps: DenseMaps, keypoints: Tensor, valid: Tensor, refinement: Refinement, batch: Sample, temperature: float
) -> dict[str, Tensor]:
    """Losses on the network's own keypoints, and how well they match."""
    H, images = batch["H"], batch["image"]
    size, pairs = (images.shape[-1], images.shape[-2]), images.shape[0]

    def by_pair(values: Tensor) -> Tensor:
        return values.reshape(pairs, 2, *values.shape[1:])

    points = keypoints + refinement.offsets
    dense = sample_descriptors(maps.descriptors, points.detach(), size)
    descriptors, points, valid = by_pair(add_local(dense, refinement.descriptors)), by_pair(points), by_pair(valid)
    with torch.no_grad():
        found = correspond(points, valid, H)
    matching, accuracy = matching_loss(descriptors, valid, found, temperature)
    settled = points.detach()
    return {
        "loss/offset": position_nll(points, by_pair(refinement.log_sigmas), H, found),
        "loss/repetition": repetition_loss(by_pair(refinement.logits), settled, valid, H, found, size, _BORDER),
        "loss/matching": matching,
        "loss/near": near_miss_loss(descriptors, valid, found),
        "detected_accuracy": accuracy,
    }
