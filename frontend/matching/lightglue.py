"""LightGlue as a matcher: features to matches with a network that was trained on features of their model.

    matches = match_features(features0, features1, matcher="lightglue")

The network is :class:`frontend.matching.lightglue_network.LightGlueNet`; on a CPU it runs as an exported graph where
OpenVINO or ONNX Runtime is installed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from frontend.device import pick_name
from frontend.errors import ConfigError, ShapeError, WeightsError
from frontend.matching.base import MATCHERS, Matcher, check_learned_limits, check_probability
from frontend.matching.lightglue_graph import (
    Answer,
    MatcherGraph,
    Run,
    export_graph,
    graph_runtimes,
    load_graph,
    open_graph,
)
from frontend.types import Features, Matches
from frontend.weights import DEFAULT_MODEL, list_models, resolve_matcher, sha256_of, weights_dir

if TYPE_CHECKING:
    from frontend.matching.lightglue_network import LightGlueNet

THRESHOLD = 0.1
"""Probability that a match has at least (section 3.2 of the paper)."""

_MOST = 8  # matchers that stay loaded

MOST_PAIRS = 64_000_000
"""Keypoints of image 0 times those of image 1, at most: each pair takes some 16 bytes and more."""


def _loaded_again(origin: Path, device: str, runtime: str, threshold: float) -> LightGlue:
    return LightGlue.from_pretrained(origin, device=device, runtime=runtime, threshold=threshold)


class LightGlue:
    """A matcher with its weights: :meth:`from_pretrained` loads them.

    Those that were loaded can be copied and sent to other processes, where they are loaded again, from the same file.

    Args:
        run: computes the network.
        input_dim: D of the descriptors that it takes.
        features: name of the model whose features it is for; "" for any.
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
        features: str = "",
        runtime: str = "torch",
        threshold: float = THRESHOLD,
        name: str = "lightglue",
    ) -> None:
        check_probability(threshold)
        self.input_dim, self.features, self.runtime = input_dim, features, runtime
        self.threshold, self.name = threshold, name
        self._run = run
        self._origin: tuple[Path, str] | None = None  # the file that it was loaded from, and the device
        released: frozenset[str] = frozenset()
        with suppress(WeightsError):  # none but the user's own
            released = frozenset(list_models())
        self._others = released - {features} if features in released else frozenset()

    @classmethod
    def of(cls, network: LightGlueNet, *, device: str = "cpu", threshold: float = THRESHOLD) -> LightGlue:
        """A matcher with a network at hand, in torch.

        Args:
            network: the network.
            device: where it computes: "cpu", "cuda" or "cuda:N".
            threshold: as for the constructor.
        """
        config = network.config
        return cls(_in_torch(network, device), config.input_dim, features=config.features, threshold=threshold)

    @classmethod
    def from_pretrained(
        cls,
        model_or_path: str | Path = DEFAULT_MODEL,
        *,
        device: str = "cpu",
        runtime: str = "auto",
        threshold: float = THRESHOLD,
        brief: bool = False,
    ) -> LightGlue:
        """Load weights.

        Args:
            model_or_path: a released model for whose features a matcher was released, or a weight file.
            device: as for :meth:`of`, or "auto".
            runtime: "torch", or on a CPU "openvino", "onnxruntime" or "auto": the first of these that is installed.
            threshold: as for the constructor.
            brief: whether a pair of images is all that is to come: ONNX Runtime loads a graph in a quarter of the time
                that OpenVINO takes, which matches a tenth faster.

        Raises:
            WeightsError: there is no such matcher, or its file is damaged.
            ConfigError: the runtime is not to be had there.
        """
        device, path = str(pick_name(device)), Path(model_or_path)
        if not path.is_file():
            path = resolve_matcher(str(model_or_path))
        known = ("torch", *(graph_runtimes() if device == "cpu" else ()))
        if runtime not in ("auto", *known):
            raise ConfigError(f"runtime of the matcher is '{runtime}'; expected auto or one of: {', '.join(known)}")
        graphs = known[:0:-1] if brief else known[1:]
        candidates = [*graphs, "torch"] if runtime == "auto" else [runtime]
        if candidates[0] != "torch":
            made = _from_graph(path, [name for name in candidates if name != "torch"], runtime == "auto")
            if made is not None:
                run, graph, name = made
                matcher = cls(
                    run,
                    graph.input_dim,
                    features=graph.features,
                    runtime=name,
                    threshold=threshold,
                    name=path.stem,
                )
                matcher._origin = path.absolute(), device
                return matcher
        from frontend.matching.lightglue_weights import load_matcher

        matcher = cls.of(load_matcher(path), device=device, threshold=threshold)
        matcher.name, matcher._origin = path.stem, (path.absolute(), device)
        return matcher

    def __reduce__(self) -> tuple[Callable[..., LightGlue], tuple[Path, str, str, float]]:
        """For pickle and copy.

        Raises:
            ConfigError: it was not loaded by :meth:`from_pretrained`.
        """
        if self._origin is None:
            raise ConfigError(
                f"matcher '{self.name}' of a network at hand cannot be pickled or copied; expected one that"
                " LightGlue.from_pretrained loaded"
            )
        return _loaded_again, (*self._origin, self.runtime, self.threshold)

    def match(self, features0: Features, features1: Features, *, threshold: float | None = None) -> Matches:
        """Match the features of two images.

        Args:
            features0: of image 0, made by the model that the weights are for; a keypoint whose position or descriptor
                is not finite has no match, and no part in those of the others.
            features1: of image 1, the same.
            threshold: least probability of a match; the matcher's own where None.

        Returns:
            Matches in the order of image 0; their scores are probabilities above the threshold.

        Raises:
            ConfigError: the threshold is out of its range.
            ShapeError: the descriptors have another dimension than the weights are for, or an image has no size.
            WeightsError: they are of another released model than the weights are for.
            ConfigError: there are more pairs of keypoints than :data:`MOST_PAIRS`.
        """
        threshold = self.threshold if threshold is None else check_probability(threshold)
        for features in (features0, features1):
            if features.descriptors.shape[1] != self.input_dim:
                raise ShapeError(
                    f"descriptors of {features.model or 'the features'} have {features.descriptors.shape[1]}"
                    f" dimensions; matcher '{self.name}' expects {self.input_dim}"
                )
            if features.model in self._others:
                raise WeightsError(
                    f"matcher '{self.name}' is for features of '{self.features}'; got those of '{features.model}'"
                )
        if len(features0) * len(features1) > MOST_PAIRS:
            raise ConfigError(
                f"got {len(features0)} and {len(features1)} keypoints; a learned matcher takes at most {MOST_PAIRS:,}"
                " pairs of them, such as 8,000 and 8,000"
            )
        if not len(features0) or not len(features1):
            return Matches(np.zeros((0, 2), np.int64), np.zeros(0, np.float32))
        inputs0, rows0 = _finite(features0.descriptors, normalised(features0))
        inputs1, rows1 = _finite(features1.descriptors, normalised(features1))
        if not len(inputs0[0]) or not len(inputs1[0]):
            return Matches(np.zeros((0, 2), np.int64), np.zeros(0, np.float32))
        partner, scores = self._run(*inputs0, *inputs1)
        first = np.flatnonzero((partner >= 0) & (scores > threshold))
        second = partner[first]
        pairs = (first if rows0 is None else rows0[first]), (second if rows1 is None else rows1[second])
        return Matches(np.stack(pairs, axis=1), scores[first])


def _finite(descriptors: np.ndarray, positions: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray | None]:
    """The rows that are finite, and which these are; None for all of them.

    A single NaN would go through the attention into every row, of which runtimes then make no match, or one of no
    meaning.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        # sums of squares, which take less time than a look at each value; one that overflows is looked into
        if all(np.isfinite(np.vdot(part, part)) for part in (descriptors, positions)):
            return (descriptors, positions), None
    rows = np.flatnonzero(np.isfinite(descriptors).all(axis=1) & np.isfinite(positions).all(axis=1))
    return (descriptors[rows], positions[rows]), rows


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


def _from_graph(path: Path, runtimes: list[str], lenient: bool) -> tuple[Run, MatcherGraph, str] | None:
    """The first of the runtimes that computes the matcher; None where there is none and torch will do instead."""
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise WeightsError(f"weights {path} cannot be read: {error.strerror}") from None
    try:
        graph = load_graph(digest) or export_graph(path, digest)
    except ConfigError:  # no exporter here
        if lenient:
            return None
        raise
    if not lenient:
        return open_graph(graph, runtimes[0]), graph, runtimes[0]
    for name in runtimes:
        with suppress(ConfigError):  # computes something else
            return open_graph(graph, name), graph, name
    return None


def normalised(features: Features) -> np.ndarray:
    """Positions of keypoints as the network takes them, (N, 2) float32: [-1, 1] along the image's longer side.

    Raises:
        ShapeError: the image's size is not positive.
    """
    if not min(features.image_size) > 0:
        raise ShapeError(f"image_size is {features.image_size}; expected (width, height) of an image, 1 pixel or more")
    half = np.array(features.image_size, np.float32) / 2
    return np.asarray((features.keypoints - half) / half.max(), np.float32)


_kept: dict[tuple[object, ...], LightGlue] = {}
_lock = threading.Lock()


def _loaded(path: Path, device: str, key: tuple[object, ...], brief: bool = False) -> LightGlue:
    """A matcher that stays loaded under a key, whoever was the first to load it."""
    with _lock:
        if key not in _kept:
            while len(_kept) >= _MOST:
                del _kept[next(iter(_kept))]
            _kept[key] = LightGlue.from_pretrained(path, device=device, brief=brief)
        return _kept[key]


def _of_file(path: Path, device: str, brief: bool = False) -> LightGlue:
    try:
        facts = path.stat()
    except OSError as error:
        raise WeightsError(f"weights {path} cannot be read: {error.strerror}") from None
    state = (facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size)
    return _loaded(path, device, (path, device, state), brief)


def _of_model(features: str, device: str, brief: bool = False) -> LightGlue:
    # kept as it was checked: weights that are replaced below a running process may be for another model's features
    key = (features, device, weights_dir())
    with _lock:
        kept = _kept.get(key)
    return kept or _loaded(resolve_matcher(features), device, key, brief)


def load_briefly(matcher: str, model: str, device: str) -> None:
    """Load a matcher for a pair of images or so, in the runtime that is there soonest; later matching finds it loaded.

    Args:
        matcher: "lightglue", or a weight file.
        model: whose features it is to match.
        device: where to match.

    Raises:
        WeightsError: there is no such matcher, or its file is damaged.
    """
    if matcher == "lightglue":
        _of_model(model, device, brief=True)
    else:
        _of_file(Path(matcher), device, brief=True)


@dataclass(frozen=True)
class _Learned:
    """A matcher that looks its weights up when it matches: a class, since a function within one cannot be pickled.

    Attributes:
        path: of its weights, loaded at their first use, and again when they have changed; those that were released for
            the features' model where None.
    """

    path: Path | None = None

    def __call__(
        self,
        features0: Features,
        features1: Features,
        *,
        ratio: float | None = None,
        min_similarity: float | None = None,
        device: str = "cpu",
    ) -> Matches:
        check_learned_limits(ratio, min_similarity)
        matcher = _of_model(features0.model, device) if self.path is None else _of_file(self.path, device)
        return matcher.match(features0, features1, threshold=min_similarity)


def lightglue_of(path: Path) -> Matcher:
    """The matcher of a weight file, loaded at its first use; a file that has changed is loaded again."""
    return _Learned(path)


# with the LightGlue that was released for the features' model
MATCHERS.register("lightglue")(_Learned())
