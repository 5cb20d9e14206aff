"""Training of LightGlue on groups of views: pairs with ground truth, and the loss."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from frontend.errors import ConfigError, DataError
from frontend.matching.lightglue_network import Assignment, LightGlueNet, normalise_positions
from frontend.matching.lightglue_weights import save_matcher
from frontend.training.datasets import Sample
from frontend.training.losses import masked_mean
from frontend.training.view_groups import APART_PX, NO_MATCH, UNKNOWN, ViewGroup, find_groups
from frontend.types import Float32Array, IntArray


@dataclass(frozen=True)
class MatchingConfig:
    """How a sample is drawn from a group.

    Attributes:
        keypoints: K, of each view; pairs of views with fewer are not used.
        strongest: the K are drawn from the n strongest keypoints, n uniform between K and this.
        least_matches: pairs with fewer matches among the drawn keypoints are passed over.
        hardest_of: so many pairs of views are drawn from a group, and the one with the fewest matches is taken, of
            those with four times ``least_matches``; with 1 every pair is as likely.
    """

    keypoints: int = 256
    strongest: int = 768
    least_matches: int = 10
    hardest_of: int = 1

    def __post_init__(self) -> None:
        if self.hardest_of < 1:
            raise ConfigError(f"hardest_of is {self.hardest_of}; expected 1 or more")
        if self.keypoints < 1 or self.strongest < self.keypoints or self.least_matches < 0:
            raise ConfigError(
                f"keypoints {self.keypoints}, strongest {self.strongest}, least matches {self.least_matches};"
                " expected at least 1, no fewer than the keypoints, and 0 or more"
            )


class ViewPairs(Dataset[Sample]):
    """Pairs of views with their true matches; a map from sample number to sample, a pure function of the seed.

    A sample has ``descriptors`` (2, K, D) float16, ``points`` (2, K, 2) float32 and ``sizes`` (2, 2) int64 in pixels,
    and ``matches`` (2, K) int64 as of :func:`frontend.training.view_groups.true_matches`.

    Args:
        seed: of the whole set.
        folder: of the groups, see :func:`frontend.training.view_groups.make_groups`.
        config: how samples are drawn.

    Raises:
        DataError: there is no group.
    """

    def __init__(self, seed: int, folder: Path, config: MatchingConfig | None = None) -> None:
        self.seed = seed
        self.config = config or MatchingConfig()
        self.groups = find_groups(folder)
        self.descriptor_dim = int(ViewGroup.load(self.groups[0]).descriptors.shape[2])

    def content(self) -> str:
        """SHA-256 of the groups' names and of their own checksums, hexadecimal; reading all would take minutes."""
        digest = hashlib.sha256()
        for path in self.groups:
            try:
                with zipfile.ZipFile(path) as file:
                    sums = [member.CRC for member in file.infolist()]
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"group of views {path} cannot be read: {error}") from None
            digest.update(f"{path.name} {sums}\n".encode())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index))
        for _ in range(1000):
            group = ViewGroup.load(self.groups[int(rng.integers(len(self.groups)))])
            first, second = self._pair(group, rng)
            sample = self._sample(group, first, second, rng)
            if sample is not None:
                return sample
        raise DataError(
            f"none of 1000 pairs had {self.config.keypoints} keypoints and {self.config.least_matches} matches;"
            " expected groups of views with more"
        )

    def _pair(self, group: ViewGroup, rng: np.random.Generator) -> tuple[int, int]:
        """Two views: of several draws the two that have the fewest matches and yet enough."""
        draws = [rng.permutation(len(group.counts))[:2].tolist() for _ in range(self.config.hardest_of)]
        if len(draws) == 1:
            return draws[0][0], draws[0][1]

        def matches(pair: list[int]) -> float:
            found = int((group.matches[pair[0], pair[1]] >= 0).sum())
            return found if found >= 4 * self.config.least_matches else np.inf

        first, second = min(draws, key=matches)
        return first, second

    def _sample(self, group: ViewGroup, first: int, second: int, rng: np.random.Generator) -> Sample | None:
        config, views = self.config, [first, second]
        if group.counts[views].min() < config.keypoints:
            return None
        matches = [group.matches[first, second].astype(np.int64), group.matches[second, first].astype(np.int64)]
        pool = int(rng.integers(config.keypoints, config.strongest + 1))
        rows = _draw(rng, matches, [min(pool, int(count)) for count in group.counts[views]], config.keypoints)
        places = [group.points[v] for v in views]
        kept = [
            _among(matches[0][rows[0]], rows[1], places[1]),
            _among(matches[1][rows[1]], rows[0], places[0]),
        ]
        if int((kept[0] >= 0).sum()) < config.least_matches:
            return None
        return {
            "descriptors": torch.from_numpy(
                np.stack([group.descriptors[v, r] for v, r in zip(views, rows, strict=True)])
            ),
            "points": torch.from_numpy(np.stack([group.points[v, r] for v, r in zip(views, rows, strict=True)])),
            "sizes": torch.from_numpy(group.sizes[views]),
            "matches": torch.from_numpy(np.stack(kept)),
        }


def _draw(rng: np.random.Generator, matches: Sequence[IntArray], pools: Sequence[int], count: int) -> list[IntArray]:
    """Keypoints of two views, ``count`` of the first ``pools`` of each.

    Drawn independently they would seldom be the same ones: a share of those whose match was drawn in view 0, from none
    to all, comes first in view 1.
    """
    first: IntArray = rng.permutation(pools[0])[:count]
    order: IntArray = rng.permutation(pools[1])
    wanted = np.isin(matches[1][order], first) & (rng.random(len(order)) < rng.random())
    second = np.concatenate([order[wanted], order[~wanted]])[:count]
    return [np.sort(first), np.sort(second)]


def _among(matches: IntArray, rows: IntArray, points: Float32Array) -> IntArray:
    """Matches as positions in the ascending ``rows`` of keypoints that were drawn from ``points``.

    A match that was not drawn leaves none; unless one that was drawn is so near to it that nobody can tell.
    """
    place = np.searchsorted(rows, matches).clip(0, len(rows) - 1)
    found: IntArray = np.where((matches >= 0) & (rows[place] == matches), place, np.minimum(matches, NO_MATCH))
    lost = np.flatnonzero((matches >= 0) & (found < 0))
    apart = points[matches[lost]][:, None] - points[rows][None]
    found[lost[((apart * apart).sum(axis=2) <= APART_PX**2).any(axis=1)]] = UNKNOWN
    return found


class MatchingTask:
    """LightGlue on pairs of views, all layers supervised (section 3.3, equation 10).

    Args:
        data: of :class:`ViewPairs`.
    """

    name = "lightglue"

    def __init__(self, data: Dataset[Sample]) -> None:
        self.data = data

    def forward(self, network: LightGlueNet, batch: Sample) -> tuple[Tensor, ...]:
        positions = normalise_positions(batch["points"], batch["sizes"])
        descriptors = batch["descriptors"].float()
        found = network.all_layers(descriptors[:, 0], positions[:, 0], descriptors[:, 1], positions[:, 1])
        return tuple(part for layer in found for part in layer)

    def loss(self, outputs: tuple[Tensor, ...], batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        layers = [Assignment(*outputs[n : n + 3]) for n in range(0, len(outputs), 3)]
        matches0, matches1 = batch["matches"].unbind(1)
        losses = [matching_loss(layer, matches0, matches1) for layer in layers]
        total = torch.stack([positive + negative for positive, negative in losses]).mean()
        recall, precision = recall_and_precision(layers[-1], matches0)
        return total, {
            "loss/positive": losses[-1][0].detach(),
            "loss/negative": losses[-1][1].detach(),
            "recall": recall,
            "precision": precision,
        }

    def save(self, path: Path, network: LightGlueNet, training: Mapping[str, Any]) -> None:
        """Write the weights."""
        save_matcher(path, network, training)


def matching_loss(layer: Assignment, matches0: Tensor, matches1: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the log likelihood of the true matches, and of true absences (equation 10), a mean over each.

    Args:
        layer: what the layer says.
        matches0: (B, K0) int64, as of :func:`~frontend.training.view_groups.true_matches`.
        matches1: (B, K1).
    """
    scores = layer.log_scores().gather(2, matches0.clamp_min(0)[..., None])[..., 0]
    positive = -masked_mean(scores, matches0 >= 0)
    absent = [
        masked_mean(F.softplus(logits.float()), matches == NO_MATCH)
        for logits, matches in ((layer.matchability0, matches0), (layer.matchability1, matches1))
    ]
    return positive, (absent[0] + absent[1]) / 2


@torch.no_grad()
def recall_and_precision(layer: Assignment, matches0: Tensor, threshold: float = 0.1) -> tuple[Tensor, Tensor]:
    """Share of the true matches that are found, and of the found ones, as far as the truth is known, that are true."""
    best, partner = layer.log_scores().max(2)
    back = layer.log_scores().argmax(1)
    own = torch.arange(partner.shape[1], device=partner.device)
    found = (back.gather(1, partner) == own) & (best > math.log(threshold))
    right = found & (partner == matches0)
    return masked_mean(right.float(), matches0 >= 0), masked_mean(right.float(), found & (matches0 != UNKNOWN))
