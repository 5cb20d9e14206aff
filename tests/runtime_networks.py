"""Untrained networks whose signal does not fade, for tests of runtimes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from frontend.model import MODEL_PRESETS, SuperPointNet


@cache
def network(preset: str) -> SuperPointNet:
    """A network of a preset, or "edge-twice", folded; its refiner moves keypoints and adds to descriptors."""
    return unfolded(preset).fold()


def unfolded(preset: str) -> SuperPointNet:
    """The same as it is stored in weight files."""
    torch.manual_seed(0)
    twice = preset == "edge-twice"
    made = SuperPointNet(replace(MODEL_PRESETS["edge"], refiner_passes=2) if twice else MODEL_PRESETS[preset])
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)  # also where a trained one starts at zero
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    if made.refiner is not None:
        with torch.no_grad():
            # twice: far enough for some to be at another pixel in the second pass
            made.refiner.position_out.weight *= 1.0 if twice else 0.1  # type: ignore[union-attr, operator]
            made.refiner.local.weight *= 0.05  # type: ignore[union-attr, operator]
    return made.eval()
