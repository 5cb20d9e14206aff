"""The contract of a matcher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from frontend.errors import ConfigError
from frontend.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BatchedMatches:
    """For every keypoint of image 0, its match in image 1.

    Attributes:
        index: (B, K0) int64, index into the keypoints of image 1; -1 where there is no match.
        scores: (B, K0) float32, cosine similarity; 0 where there is no match.
    """

    index: Tensor
    scores: Tensor


class Matcher(Protocol):
    """Matches descriptors of unit norm, batched, with masks."""

    def __call__(
        self,
        descriptors0: Tensor,
        valid0: Tensor,
        descriptors1: Tensor,
        valid1: Tensor,
        *,
        ratio: float | None = None,
        min_similarity: float | None = None,
    ) -> BatchedMatches:
        """Match (B, K0, D) with (B, K1, D) where (B, K0) and (B, K1) are valid."""


MATCHERS: Registry[Matcher] = Registry("matcher", "superpoint.matchers")
MATCHERS.lazy("mnn", "frontend.matching.nearest")


def check_limits(ratio: float | None, min_similarity: float | None) -> None:
    """Refuse limits of matches that are out of range.

    Raises:
        ConfigError: ratio is not in (0, 1], or min_similarity not in [-1, 1].
    """
    if ratio is not None and not 0 < ratio <= 1:
        raise ConfigError(f"ratio is {ratio}; expected a value in (0, 1]")
    if min_similarity is not None and not -1 <= min_similarity <= 1:
        raise ConfigError(f"min_similarity is {min_similarity}; expected a value in [-1, 1]")
