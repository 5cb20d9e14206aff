"""Tuning of a network for int8: its quantised convolutions learn to give what they gave in float32.

What the graph will round is rounded while it learns, and gradients go past the rounding (Jacob et al. 2018, 1712.05877,
section 3). The network is its own teacher, so that photographs are all it takes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from frontend.errors import ConfigError
from frontend.evaluation.int8_graph import ACTIVATION_STEPS, WEIGHT_STEPS, QuantisedConvolution, Steps
from frontend.heads import DUSTBIN
from frontend.model import DenseMaps, SuperPointNet
from frontend.progress import Progress
from frontend.types import Float32Array


@dataclass(frozen=True)
class TuningConfig:
    """How a network is tuned.

    Attributes:
        steps: of the optimiser.
        batch_size: crops of a step.
        crop: (height, width) of a crop, pixels, multiples of 8; what of a photograph is smaller repeats its edge.
        learning_rate: at its peak; it rises over a tenth of the steps, and falls as a cosine.
        heat_weight: of the detector's part of the loss.
        descriptor_weight: of the descriptors' cosines.
        length_weight: of their lengths before they are brought to 1.
        seed: of the crops.
    """

    steps: int
    batch_size: int = 4
    crop: tuple[int, int] = (240, 320)
    learning_rate: float = 1e-4
    heat_weight: float = 4.0
    descriptor_weight: float = 10.0
    length_weight: float = 1.0
    seed: int = 0


def rounded_activations(values: Tensor, steps: Steps) -> Tensor:
    """Values (any shape) as they are after QuantizeLinear and DequantizeLinear, float32.

    The gradient is that of the values, and 0 for those beyond the range.
    """
    return torch.fake_quantize_per_tensor_affine(values, steps.scale, steps.zero_point, 0, ACTIVATION_STEPS)


def rounded_weights(weights: Tensor) -> Tensor:
    """Weights (O, I, h, w) of a convolution as they are in steps of an output channel; gradients as of the weights."""
    steps = (weights.detach().abs().amax(dim=(1, 2, 3)) / WEIGHT_STEPS).clamp_min(1e-9)
    zero_points = torch.zeros_like(steps, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weights, steps, zero_points, 0, -WEIGHT_STEPS, WEIGHT_STEPS)


def tune_for_int8(
    network: SuperPointNet,
    convolutions: Mapping[str, QuantisedConvolution],
    images: Sequence[Float32Array],
    config: TuningConfig,
) -> SuperPointNet:
    """A copy of a network whose quantised convolutions give, in int8, more of what they give in float32.

    Args:
        network: folded, in evaluation mode; left as it is.
        convolutions: the steps of its graph, see :func:`frontend.evaluation.int8_graph.convolution_steps`.
        images: photographs, each (1, 1, H, W) float32 in [0, 1].
        config: how.

    Returns:
        The tuned network. All else, such as what stays in float32 and the refiner, is as it was.

    Raises:
        ConfigError: none of the convolutions is one of the network's.
    """
    tuned = copy.deepcopy(network).eval().requires_grad_(False)
    random = np.random.default_rng(config.seed)
    with in_int8(tuned, convolutions) as found, Progress(config.steps, "tune for int8", unit="step") as progress:
        parameters = [parameter.requires_grad_(True) for module in found for parameter in module.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps))
        for _ in range(config.steps):
            batch = torch.from_numpy(np.stack([_crop(images, config.crop, random) for _ in range(config.batch_size)]))
            with torch.no_grad():
                wanted = network(batch)
            heat, descriptors, lengths = distances(wanted, tuned(batch))
            loss = config.heat_weight * heat + config.descriptor_weight * descriptors + config.length_weight * lengths
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            progress.update(note=f"heat {float(heat.detach()):.5f}  descriptors {float(descriptors.detach()):.5f}")
    return tuned.requires_grad_(False)


@contextmanager
def in_int8(network: SuperPointNet, convolutions: Mapping[str, QuantisedConvolution]) -> Iterator[list[nn.Conv2d]]:
    """Have a network compute what its int8 graph does, but for biases, which have steps of no account.

    Args:
        network: folded, in evaluation mode; as it was when the context ends.
        convolutions: the steps of its graph.

    Yields:
        Its quantised convolutions.

    Raises:
        ConfigError: none of the convolutions is one of the network's.
    """
    modules = dict(network.named_modules())
    found = {name: module for name in convolutions if isinstance(module := modules.get(name), nn.Conv2d)}
    if not found:
        raise ConfigError("no convolution of this network's int8 graph can be tuned; expected 0 steps")
    hooks = [hook for name, module in found.items() for hook in _round(module, convolutions[name])]
    try:
        yield list(found.values())
    finally:
        for hook in hooks:
            hook.remove()
        for module in found.values():
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def distances(wanted: DenseMaps, got: DenseMaps) -> tuple[Tensor, Tensor, Tensor]:
    """How far dense maps are from those that are wanted.

    Returns:
        Three scalars: the Kullback-Leibler divergence of the cells' distributions over their pixels, cells with
        keypoints counting most; 1 less the cosine of the descriptors; and the squared relative difference of their
        lengths.
    """
    certain = wanted.logits.float().softmax(dim=1)
    apart = (certain * (wanted.logits.float().log_softmax(dim=1) - got.logits.float().log_softmax(dim=1))).sum(dim=1)
    weights = 1 - certain[:, DUSTBIN] + 0.05
    heat = (apart * weights).sum() / weights.sum()
    a, b = wanted.descriptors.float(), got.descriptors.float()
    length = a.norm(dim=1).clamp_min(1e-6)
    cosine = functional.cosine_similarity(a, b, dim=1)
    return heat, (1 - cosine).mean(), ((b.norm(dim=1) - length) / length).square().mean()


class _RoundedWeights(nn.Module):
    def forward(self, weights: Tensor) -> Tensor:
        return rounded_weights(weights)


def _round(module: nn.Conv2d, steps: QuantisedConvolution) -> Iterator[RemovableHandle]:
    """Have a convolution compute what the graph's does."""
    parametrize.register_parametrization(module, "weight", _RoundedWeights())
    yield module.register_forward_pre_hook(lambda _, given: (rounded_activations(given[0], steps.input),))
    output = steps.output
    if output is not None:
        yield module.register_forward_hook(lambda _, given, made: rounded_activations(made, output))


def _rate(step: int, steps: int) -> float:
    """The learning rate of a step, as a share of its peak."""
    return float(min(1.0, (step + 1) / max(1, steps / 10)) * 0.5 * (1 + np.cos(np.pi * step / max(1, steps))))


def _crop(images: Sequence[Float32Array], crop: tuple[int, int], random: np.random.Generator) -> Float32Array:
    """(1, height, width) of a photograph, half of the time from left to right."""
    image = images[int(random.integers(len(images)))][0]
    missing = [max(0, side - there) for side, there in zip(crop, image.shape[1:], strict=True)]
    image = np.pad(image, ((0, 0), (0, missing[0]), (0, missing[1])), mode="edge")
    y, x = (int(random.integers(there - side + 1)) for side, there in zip(crop, image.shape[1:], strict=True))
    part = image[:, y : y + crop[0], x : x + crop[1]]
    return np.ascontiguousarray(part[..., ::-1] if random.random() < 0.5 else part, np.float32)
