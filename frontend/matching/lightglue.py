"""LightGlue as a matcher: features to matches with a network that was trained on features of their model.

    matches = match_features(features0, features1, matcher="lightglue")

The network is :class:`frontend.matching.lightglue_network.LightGlueNet`; torch is imported when one is loaded.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from frontend.errors import ConfigError, ShapeError
from frontend.matching.base import MATCHERS, Matcher
from frontend.types import Features, Matches
from frontend.weights import resolve_matcher, sha256_of, weights_dir

if TYPE_CHECKING:
    from frontend.matching.lightglue_network import LightGlueNet

THRESHOLD = 0.1
"""Probability that a match has at least (section 3.2 of the paper)."""


class LightGlue:
    """A matcher with its weights.

    Args:
        network: in evaluation mode.
        device: where it computes: "cpu", "cuda" or "cuda:N".
        threshold: least probability of a match, in [0, 1).
        name: for errors.

    Raises:
        ConfigError: the threshold is out of its range.
    """

    def __init__(
        self, network: LightGlueNet, *, device: str = "cpu", threshold: float = THRESHOLD, name: str = "lightglue"
    ) -> None:
        from frontend.matching.lightglue_network import MatchGraph

        if not 0 <= threshold < 1:
            raise ConfigError(f"threshold is {threshold}; expected a probability below 1")
        self.config = network.config
        self.device = device
        self.name = name
        self._graph = MatchGraph(network, threshold).to(device).eval()

    @classmethod
    def from_pretrained(cls, model_or_path: str | Path = "superpoint-edge", *, device: str = "cpu") -> LightGlue:
        """Load weights.

        Args:
            model_or_path: a released model for whose features a matcher was released, or a weight file.
            device: as for the constructor.

        Raises:
            WeightsError: there is no such matcher, or its file is damaged.
        """
        from frontend.matching.lightglue_weights import load_matcher

        path = Path(model_or_path)
        if not path.is_file():
            path = resolve_matcher(str(model_or_path))
        return cls(load_matcher(path), device=device, name=path.stem)

    def match(self, features0: Features, features1: Features) -> Matches:
        """Match the features of two images.

        Args:
            features0: of image 0, made by the model that the weights are for.
            features1: of image 1.

        Returns:
            Matches in the order of image 0; their scores are probabilities above the threshold.

        Raises:
            ShapeError: the descriptors have another dimension than the weights are for.
        """
        import torch

        for features in (features0, features1):
            if features.descriptors.shape[1] != self.config.input_dim:
                raise ShapeError(
                    f"descriptors of {features.model or 'the features'} have {features.descriptors.shape[1]}"
                    f" dimensions; matcher '{self.name}' expects {self.config.input_dim}"
                )
        if not len(features0) or not len(features1):
            return Matches(np.zeros((0, 2), np.int64), np.zeros(0, np.float32))
        inputs = [
            torch.from_numpy(np.ascontiguousarray(part)).to(self.device)[None]
            for features in (features0, features1)
            for part in (features.descriptors, normalised(features))
        ]
        with torch.inference_mode():
            partner, scores = (found[0].cpu().numpy() for found in self._graph(*inputs))
        first = np.flatnonzero(partner >= 0)
        return Matches(np.stack([first, partner[first]], axis=1), scores[first])


def normalised(features: Features) -> np.ndarray:
    """Positions of keypoints as the network takes them, (N, 2) float32: [-1, 1] along the image's longer side."""
    half = np.array(features.image_size, np.float32) / 2
    return np.asarray((features.keypoints - half) / half.max(), np.float32)


@lru_cache(maxsize=8)
def _loaded(path: Path, _digest: str, device: str) -> LightGlue:
    return LightGlue.from_pretrained(path, device=device)


@lru_cache(maxsize=64)
def _digest(path: Path, _changed_ns: int, _size: int) -> str:
    return sha256_of(path)


def lightglue_of(path: Path) -> Matcher:
    """The matcher of a weight file, loaded at its first use; a file that has changed is loaded again."""

    def match(
        features0: Features,
        features1: Features,
        *,
        ratio: float | None = None,
        min_similarity: float | None = None,
        device: str = "cpu",
    ) -> Matches:
        for name, value in (("ratio", ratio), ("min_similarity", min_similarity)):
            if value is not None:
                raise ConfigError(f"{name} is {value}; a learned matcher has none, matcher 'mnn' does")
        facts = path.stat()
        return _loaded(path, _digest(path, facts.st_mtime_ns, facts.st_size), device).match(features0, features1)

    return match


@lru_cache(maxsize=64)
def _released(features: str, _weights: Path) -> Path:
    return resolve_matcher(features)


@MATCHERS.register("lightglue")
def match_lightglue(
    features0: Features,
    features1: Features,
    *,
    ratio: float | None = None,
    min_similarity: float | None = None,
    device: str = "cpu",
) -> Matches:
    """Match with the LightGlue that was released for the features' model.

    Scores are probabilities. There is neither ratio nor least similarity.
    """
    path = _released(features0.model, weights_dir())
    return lightglue_of(path)(features0, features1, ratio=ratio, min_similarity=min_similarity, device=device)
