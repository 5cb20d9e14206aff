"""The two trainings: what a batch is, and the loss on it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.utils.data import Dataset

from frontend.errors import ConfigError
from frontend.keypoints import sample_descriptors
from frontend.model import SuperPointNet
from frontend.training.datasets import Sample
from frontend.training.losses import detector_loss, dual_softmax_loss, hinge_descriptor_loss

DESCRIPTOR_LOSSES = ("dual_softmax", "hinge")


def to_network_input(image: Tensor) -> Tensor:
    """(..., H, W) uint8 to (B, 1, H, W) float32 in [0, 1], leading dimensions joined."""
    return image.reshape(-1, 1, *image.shape[-2:]).float() / 255


class Task(Protocol):
    """A training: its data and its loss."""

    name: str
    data: Dataset[Sample]

    def loss(self, network: SuperPointNet, batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and scalars to log."""


class MagicPointTask:
    """The detector on synthetic shapes (DeTone et al. 2018, section 4)."""

    name = "magicpoint"

    def __init__(self, data: Dataset[Sample]) -> None:
        self.data = data

    def loss(self, network: SuperPointNet, batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        logits = network.detect(to_network_input(batch["image"]))
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

    def loss(self, network: SuperPointNet, batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch["image"]
        pairs, size = images.shape[0], (images.shape[-1], images.shape[-2])
        maps = network(to_network_input(images))
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
        return detector + self.weight * descriptor, logged
