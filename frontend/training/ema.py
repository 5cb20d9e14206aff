"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from frontend.errors import ConfigError
from frontend.model import SuperPointNet


class WeightAverage:
    """A copy of a network that follows it slowly (Polyak & Juditsky 1992; the form of Tarvainen & Valpola 2017).

    After step t, from 1, ``average += (1 - d) * (weights - average)`` with ``d = min(decay, (1 + t) / (10 + t))``: the
    early steps, where the weights are far from anything, are forgotten soon. The statistics of the batch norms are
    averaged as the weights are; whole numbers are copied.

    Args:
        network: that is followed; the copy starts at its weights.
        decay: d, in (0, 1).

    Raises:
        ConfigError: the decay is out of its range.
    """

    def __init__(self, network: SuperPointNet, decay: float) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f"ema is {decay}; expected a decay between 0 and 1, or 0 for none")
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: SuperPointNet, step: int) -> None:
        """Follow the network after its step ``step``, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = self.network.state_dict(), network.state_dict()
        floats = [name for name, tensor in ours.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([ours[name] for name in floats], [theirs[name] for name in floats], 1 - decay)
        counters = [name for name, tensor in ours.items() if not tensor.is_floating_point()]
        if counters:
            torch._foreach_copy_([ours[name] for name in counters], [theirs[name] for name in counters])

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged tensors, named as the network's."""
        return self.network.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from averaged tensors."""
        self.network.load_state_dict(state)
