"""The contract of a matcher."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from frontend.errors import ConfigError, RegistryError
from frontend.registry import Registry
from frontend.types import Features, Matches

if TYPE_CHECKING:
    from torch import Tensor

LEAST_DISTANCE = 1e-6
"""1 - cosine below which two descriptors are one: float32 tells no smaller differences, and may find less than 0."""


@dataclass(frozen=True, eq=False)
class BatchedMatches:
    """For every keypoint of image 0, its match in image 1.

    Attributes:
        index: (B, K0) int64, index into the keypoints of image 1; -1 where there is no match.
        scores: (B, K0) float32, cosine similarity; 0 where there is no match.
    """

    index: Tensor
    scores: Tensor


class Matcher(Protocol):
    """Matches the features of two images."""

    def __call__(
        self,
        features0: Features,
        features1: Features,
        *,
        ratio: float | None = None,
        min_similarity: float | None = None,
        device: str = "cpu",
    ) -> Matches:
        """Match features of one model, on a device; in the order of the keypoints of image 0.

        Raises:
            ConfigError: the matcher has no ``ratio``, or this or ``min_similarity`` is out of its range.
        """


MATCHERS: Registry[Matcher] = Registry("matcher", "superpoint.matchers")
MATCHERS.lazy("mnn", "frontend.matching.mutual")
MATCHERS.lazy("lightglue", "frontend.matching.lightglue")


def check_matcher(name: str) -> None:
    """Refuse what is neither a registered matcher nor a file, without loading anything.

    Raises:
        RegistryError: there is no such matcher.
    """
    if not isinstance(name, (str, Path)):
        raise RegistryError(f"matcher is {name!r:.64}; expected a matcher's name or its weight file")
    if name not in MATCHERS and not _is_file(name):
        known = ", ".join(MATCHERS)
        raise RegistryError(f"unknown matcher '{name}'; expected a matcher's weight file or one of: {known}")


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # no name that a file may have
        return False


def find_matcher(name: str) -> Matcher:
    """A matcher by its name, or LightGlue with the weights of a file.

    Raises:
        RegistryError: there is no such matcher.
        WeightsError: the file holds no matcher.
    """
    check_matcher(name)
    if name in MATCHERS:
        return MATCHERS.get(name)
    from frontend.matching.lightglue import lightglue_of

    return lightglue_of(Path(name))


def check_limits(ratio: float | None, min_similarity: float | None) -> None:
    """Refuse limits of matches that are out of range.

    Raises:
        ConfigError: ratio is not in (0, 1], or min_similarity not in [-1, 1].
    """
    for name, value in (("ratio", ratio), ("min_similarity", min_similarity)):
        if value is not None and not isinstance(value, Real):
            raise ConfigError(f"{name} is {value!r:.64}; expected a number")
    if ratio is not None and not 0 < ratio <= 1:
        raise ConfigError(f"ratio is {ratio}; expected a value in (0, 1]")
    if min_similarity is not None and not -1 <= min_similarity <= 1:
        raise ConfigError(f"min_similarity is {min_similarity}; expected a value in [-1, 1]")


def check_probability(value: float, name: str = "threshold") -> float:
    """Refuse what is no least probability of a match.

    Args:
        value: to be in [0, 1).
        name: of the setting, for the error.

    Raises:
        ConfigError: it is out of that range.
    """
    if not 0 <= value < 1:
        raise ConfigError(f"{name} is {value}; expected a probability below 1 for a learned matcher")
    return value


def check_learned_limits(ratio: float | None, min_similarity: float | None) -> None:
    """Refuse limits that a learned matcher does not have.

    Raises:
        ConfigError: there is a ratio, or min_similarity is not in [0, 1).
    """
    if ratio is not None:
        raise ConfigError(f"ratio is {ratio}; a learned matcher has none, matcher 'mnn' does")
    if min_similarity is not None:
        check_probability(min_similarity, "min_similarity")


def check_limits_of(matcher: str, ratio: float | None, min_similarity: float | None) -> None:
    """Refuse limits that a matcher does not have, without loading it; of another package's, those that none has.

    Args:
        matcher: its name, or a weight file of a learned one.
        ratio: see :func:`check_limits`, :func:`check_learned_limits`.
        min_similarity: the same.

    Raises:
        RegistryError: there is no such matcher.
        ConfigError: it has no such limit, or it is out of its range.
    """
    check_matcher(matcher)
    check_limits(ratio, min_similarity)
    if matcher == "lightglue" or matcher not in MATCHERS:
        check_learned_limits(ratio, min_similarity)
