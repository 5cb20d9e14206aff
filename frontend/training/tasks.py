"""The two trainings: what a batch is, and the loss on it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.utils.data import Dataset

from frontend.errors import ConfigError
from frontend.keypoints import sample_descriptors
from frontend.model import DenseMaps, SuperPointNet, heatmap
from frontend.training.datasets import Sample
from frontend.training.losses import detector_loss, dual_softmax_loss, hinge_descriptor_loss, position_loss

DESCRIPTOR_LOSSES = ("dual_softmax", "hinge")


def to_network_input(image: Tensor) -> Tensor:
    """(..., H, W) uint8 to (B, 1, H, W) float32 in [0, 1], leading dimensions joined."""
    return image.reshape(-1, 1, *image.shape[-2:]).float() / 255


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
    """The detector on synthetic shapes (DeTone et al. 2018, section 4)."""

    name = "magicpoint"

    def __init__(self, data: Dataset[Sample]) -> None:
        self.data = data

    def forward(self, network: SuperPointNet, batch: Sample) -> tuple[Tensor, ...]:
        return (network.detect(to_network_input(batch["image"])),)

    def loss(self, outputs: tuple[Tensor, ...], batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        (logits,) = outputs
        loss = detector_loss(logits, batch["labels"].long(), batch["mask"])
        return loss, {"loss/detector": loss.detach()}


class SuperPointTask:
    """Detector and descriptor jointly on warped pairs (DeTone et al. 2018, section 3.4).

    Args:
        data: of :class:`frontend.training.datasets.WarpedPairs`.
        descriptor_loss: "dual_softmax" on sparse correspondences, or the paper's "hinge" over all pairs of cells.
        weight: of the descriptor's loss, lambda of equation 1.
        lambda_d: weight of positive pairs in the hinge loss.
        temperature: of the dual softmax.
        position_weight: of the position loss; 0 leaves it out.

    Raises:
        ConfigError: the loss is unknown.
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
    ) -> None:
        if descriptor_loss not in DESCRIPTOR_LOSSES:
            raise ConfigError(
                f"unknown descriptor loss '{descriptor_loss}'; expected one of: {', '.join(DESCRIPTOR_LOSSES)}"
            )
        self.data = data
        self.descriptor_loss = descriptor_loss
        self.weight = weight
        self.lambda_d = lambda_d
        self.temperature = temperature
        self.position_weight = position_weight

    def forward(self, network: SuperPointNet, batch: Sample) -> tuple[Tensor, ...]:
        maps: DenseMaps = network(to_network_input(batch["image"]))
        return maps

    def loss(self, outputs: tuple[Tensor, ...], batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch["image"]
        pairs, size = images.shape[0], (images.shape[-1], images.shape[-2])
        maps = DenseMaps(*outputs)
        detector = detector_loss(maps.logits, batch["labels"].flatten(0, 1).long(), batch["mask"].flatten(0, 1))
        logged = {"loss/detector": detector.detach()}
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
        if self.position_weight:
            heat = heatmap(maps.logits)
            heat = heat.reshape(pairs, 2, *heat.shape[1:])
            position = position_loss(heat, batch["points"], batch["valid"] & batch["labelled"], batch["H"])
            logged["loss/position"] = position.detach()
            total = total + self.position_weight * position
        return total, logged
