"""LightGlue as a matcher: features to matches with a network that was trained on features of their model.

    matches = match_features(features0, features1, matcher="lightglue")

The network is :class:`frontend.matching.lightglue_network.LightGlueNet`; on a CPU it runs as an exported graph where
OpenVINO or ONNX Runtime is installed.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from frontend.errors import ConfigError, ShapeError, WeightsError
from frontend.matching.base import MATCHERS, Matcher
from frontend.matching.lightglue_graph import Answer, Run, export_graph, graph_runtimes, load_graph, open_graph
from frontend.types import Features, Matches
from frontend.weights import DEFAULT_MODEL, resolve_matcher, sha256_of, weights_dir

if TYPE_CHECKING:
    from frontend.matching.lightglue_network import LightGlueNet

THRESHOLD = 0.1
"""Probability that a match has at least (section 3.2 of the paper)."""


class LightGlue:
    """A matcher with its weights: :meth:`from_pretrained` loads them.

    Args:
        run: computes the network.
        input_dim: D of the descriptors that it takes.
        runtime: what runs it: "torch", "openvino" or "onnxruntime".
        threshold: least probability of a match, in [0, 1).
        name: for errors.

    Raises:
        ConfigError: the threshold is out of its range.
    """

    def __init__(
        self,
        run: Run,
        input_dim: int,
        *,
        runtime: str = "torch",
        threshold: float = THRESHOLD,
        name: str = "lightglue",
    ) -> None:
        if not 0 <= threshold < 1:
            raise ConfigError(f"threshold is {threshold}; expected a probability below 1")
        self.input_dim, self.runtime, self.threshold, self.name = input_dim, runtime, threshold, name
        self._run = run

    @classmethod
    def of(cls, network: LightGlueNet, *, device: str = "cpu", threshold: float = THRESHOLD) -> LightGlue:
        """A matcher with a network at hand, in torch.

        Args:
            network: the network.
            device: where it computes: "cpu", "cuda" or "cuda:N".
            threshold: as for the constructor.
        """
        return cls(_in_torch(network, device), network.config.input_dim, threshold=threshold)

    @classmethod
    def from_pretrained(
        cls,
        model_or_path: str | Path = DEFAULT_MODEL,
        *,
        device: str = "cpu",
        runtime: str = "auto",
        threshold: float = THRESHOLD,
    ) -> LightGlue:
        """Load weights.

        Args:
            model_or_path: a released model for whose features a matcher was released, or a weight file.
            device: as for :meth:`of`.
            runtime: "torch", or on a CPU "openvino", "onnxruntime" or "auto": the first of these that is installed.
            threshold: as for the constructor.

        Raises:
            WeightsError: there is no such matcher, or its file is damaged.
            ConfigError: the runtime is not to be had there.
        """
        path = Path(model_or_path)
        if not path.is_file():
            path = resolve_matcher(str(model_or_path))
        known = ("torch", *(graph_runtimes() if device == "cpu" else ()))
        if runtime not in ("auto", *known):
            raise ConfigError(f"runtime of the matcher is '{runtime}'; expected auto or one of: {', '.join(known)}")
        candidates = [*known[1:], "torch"] if runtime == "auto" else [runtime]
        if candidates[0] != "torch":
            made = _from_graph(path, [name for name in candidates if name != "torch"], runtime == "auto")
            if made is not None:
                run, dim, name = made
                return cls(run, dim, runtime=name, threshold=threshold, name=path.stem)
        from frontend.matching.lightglue_weights import load_matcher

        network = load_matcher(path)
        return cls(_in_torch(network, device), network.config.input_dim, threshold=threshold, name=path.stem)

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
        for features in (features0, features1):
            if features.descriptors.shape[1] != self.input_dim:
                raise ShapeError(
                    f"descriptors of {features.model or 'the features'} have {features.descriptors.shape[1]}"
                    f" dimensions; matcher '{self.name}' expects {self.input_dim}"
                )
        if not len(features0) or not len(features1):
            return Matches(np.zeros((0, 2), np.int64), np.zeros(0, np.float32))
        partner, scores = self._run(
            features0.descriptors, normalised(features0), features1.descriptors, normalised(features1)
        )
        first = np.flatnonzero((partner >= 0) & (scores > self.threshold))
        return Matches(np.stack([first, partner[first]], axis=1), scores[first])


def _in_torch(network: LightGlueNet, device: str) -> Run:
    import torch

    from frontend.matching.lightglue_network import MatchGraph

    module = MatchGraph(network).to(device).eval()

    def run(*inputs: np.ndarray) -> Answer:
        on_device = [torch.from_numpy(np.ascontiguousarray(part, np.float32)).to(device)[None] for part in inputs]
        with torch.inference_mode():
            partner, probability = (found[0].cpu().numpy() for found in module(*on_device))
        return partner, probability

    return run


def _from_graph(path: Path, runtimes: list[str], lenient: bool) -> tuple[Run, int, str] | None:
    """The first of the runtimes that computes the matcher; None where there is none and torch will do instead."""
    digest = sha256_of(path)
    try:
        graph = load_graph(digest) or export_graph(path, digest)
    except ConfigError:  # no exporter here
        if lenient:
            return None
        raise
    if not lenient:
        return open_graph(graph, runtimes[0]), graph.input_dim, runtimes[0]
    for name in runtimes:
        with suppress(ConfigError):  # computes something else
            return open_graph(graph, name), graph.input_dim, name
    return None


def normalised(features: Features) -> np.ndarray:
    """Positions of keypoints as the network takes them, (N, 2) float32: [-1, 1] along the image's longer side."""
    half = np.array(features.image_size, np.float32) / 2
    return np.asarray((features.keypoints - half) / half.max(), np.float32)


@lru_cache(maxsize=8)
def _loaded(path: Path, device: str, _changed_ns: int, _size: int) -> LightGlue:
    return LightGlue.from_pretrained(path, device=device)


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
        _refuse_limits(ratio, min_similarity)
        try:
            facts = path.stat()
        except OSError as error:
            raise WeightsError(f"weights {path} cannot be read: {error.strerror}") from None
        return _loaded(path, device, facts.st_mtime_ns, facts.st_size).match(features0, features1)

    return match


def _refuse_limits(ratio: float | None, min_similarity: float | None) -> None:
    for name, value in (("ratio", ratio), ("min_similarity", min_similarity)):
        if value is not None:
            raise ConfigError(f"{name} is {value}; a learned matcher has none, matcher 'mnn' does")


@lru_cache(maxsize=8)
def _released(features: str, device: str, _weights: Path) -> LightGlue:
    # kept as it was checked: weights that are replaced below a running process may be for another model's features
    return LightGlue.from_pretrained(resolve_matcher(features), device=device)


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
    _refuse_limits(ratio, min_similarity)
    return _released(features0.model, device, weights_dir()).match(features0, features1)
