"""Losses of the detector for classes of unequal frequency.

In each 8 x 8 cell 65 classes compete. The dustbin, "no point", is the right one in most cells; each of the 64
positions is right in a few of a thousand. Under plain cross-entropy almost every gradient that a position's logit gets
is one that lowers it. The losses here are three answers from recognition with long tails; all of them train the
same 65 logits, so :func:`frontend.model.heatmap` reads the trained head as it is.

What is drawn at random is drawn from a generator seeded by the batch's labels and mask: a step sees the same draw
whenever and wherever it is run, so a resumed training equals one that was never interrupted.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from frontend.errors import ConfigError
from frontend.heads import DUSTBIN
from frontend.training.losses import detector_loss, masked_mean

# logits (B, 65, h, w) float, labels (B, h, w) int64 in [0, 64], mask (B, h, w) bool; a scalar
DetectorLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

DETECTOR_LOSSES = ("ce", "eql", "bags", "balanced")


def _mean_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return masked_mean(functional.cross_entropy(logits, labels, reduction="none"), mask)


def batch_generator(labels: Tensor, mask: Tensor) -> torch.Generator:
    """A generator on the CPU whose seed is a checksum of the batch, so that draws are a function of it.

    Args:
        labels: (B, h, w) int64 in [0, 64].
        mask: (B, h, w) bool.
    """
    checksum = 0
    for tensor in (labels, mask):
        checksum = zlib.crc32(tensor.to("cpu", torch.uint8).contiguous().numpy().tobytes(), checksum)
    return torch.Generator().manual_seed(checksum)


def equalization_loss(
    logits: Tensor, labels: Tensor, mask: Tensor, *, threshold: float = 0.1, gamma: float = 0.9
) -> Tensor:
    """Softmax equalisation loss (Tan et al. 2020, arXiv:2003.05176, its form for a softmax).

    Class k enters the softmax's denominator with the weight ``w_k = 1 - beta * T(f_k) * (1 - y_k)``. ``T`` is 1 for a
    rare class, one whose share ``f_k`` of the batch's cells is below ``threshold``; ``beta`` is 1 with probability
    ``gamma``, drawn anew for every cell and class. So most cells of other classes do not push a rare class down.

    Args:
        logits: (B, 65, h, w) float.
        labels: (B, h, w) int64 in [0, 64]; 64 is the dustbin.
        mask: (B, h, w) bool, cells that count.
        threshold: lambda of the paper, a share of the cells in [0, 1]. Of the 64 positions none comes near 0.1.
        gamma: probability in [0, 1] that a rare class is ignored.

    Returns:
        Scalar: the mean over the cells that count.
    """
    classes = logits.shape[1]
    counts = torch.bincount(labels[mask], minlength=classes)
    rare = counts < threshold * mask.sum()
    draw = torch.rand(logits.shape, generator=batch_generator(labels, mask)).to(logits.device)
    own = functional.one_hot(labels, classes).movedim(-1, 1).bool()
    ignored = (draw < gamma) & rare[:, None, None] & ~own
    # a weight of 0 in the denominator is a logit of minus infinity
    return _mean_cross_entropy(logits.masked_fill(ignored, float("-inf")), labels, mask)


def group_logits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of balanced group softmax, "others" included, from the head's 65.

    Grouping by frequency gives two groups: the background, and the 64 positions, which are equally frequent. Each has
    its class "others" (Li et al. 2020, arXiv:2006.10408); a softmax over each does not change when a
    number is added to its logits, so the logit of "others" may be fixed without loss of generality. It is

    * 0 for the positions: ``p(k) = exp(l_k) / (1 + S)`` with ``S`` the sum of ``exp(l_k)`` over the positions;
    * ``log(1 + S)`` for the background: ``p(dustbin) = exp(l_64) / (exp(l_64) + 1 + S)``. No gradient flows through it,
      so dustbin cells teach the dustbin's logit alone.

    With this choice the paper's remap at inference, which multiplies the probability of a position
    among the positions by that of the foreground, ``p(others)`` of the background's group, gives
    ``exp(l_k) / (exp(l_64) + 1 + S)``: scaled to sum to one, it is the softmax over the 65 logits. There is nothing
    to fold; the head is used as any other.

    Args:
        logits: (B, 65, h, w) float.

    Returns:
        Group of the background, (B, 2, h, w): the dustbin, then its others. Group of the positions, (B, 65, h, w):
        the 64 positions, then their others.
    """
    positions = torch.cat([logits[:, :DUSTBIN], torch.zeros_like(logits[:, :1])], dim=1)
    others = positions.detach().logsumexp(dim=1, keepdim=True)
    return torch.cat([logits[:, DUSTBIN:], others], dim=1), positions


def sample_others(labels: Tensor, mask: Tensor, ratio: float) -> Tensor:
    """Which dustbin cells the group of the positions learns "others" from (Li et al. 2020).

    Args:
        labels: (B, h, w) int64 in [0, 64].
        mask: (B, h, w) bool, cells that count.
        ratio: beta of the paper: cells taken for each point cell of the batch, at most.

    Returns:
        (B, h, w) bool on the device of ``labels``. None are taken where the batch has no point.
    """
    draw = torch.rand(labels.shape, generator=batch_generator(labels, mask)).to(labels.device)
    others = (labels == DUSTBIN) & mask
    count = (ratio * ((labels != DUSTBIN) & mask).sum()).floor()
    # every cell's place in the order of the draw; those that are no candidates come last
    order = draw.masked_fill(~others, 2.0).flatten().argsort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return others & (place.reshape(labels.shape) < count)


def group_softmax_loss(logits: Tensor, labels: Tensor, mask: Tensor, *, ratio: float = 8.0) -> Tensor:
    """Balanced group softmax (Li et al. 2020, arXiv:2006.10408).

    Two cross-entropies: dustbin or not, over all cells; and which position, over point cells and as many dustbin cells
    as ``ratio`` allows. Only these few lower the positions' logits. See :func:`group_logits`.

    Args:
        logits: (B, 65, h, w) float.
        labels: (B, h, w) int64 in [0, 64]; 64 is the dustbin.
        mask: (B, h, w) bool, cells that count.
        ratio: beta of the paper.

    Returns:
        Scalar: the sum over the groups of the mean over each one's cells.
    """
    background, positions = group_logits(logits)
    # class 0 is the dustbin, class 1 its others; among the positions, others take the dustbin's place
    binary = _mean_cross_entropy(background, (labels != DUSTBIN).long(), mask)
    taken = sample_others(labels, mask, ratio) | ((labels != DUSTBIN) & mask)
    return binary + _mean_cross_entropy(positions, labels, taken)


def balanced_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy in which point cells and dustbin cells weigh the same, however many there are.

    After the balanced mask loss of "A Good Box is not a Guarantee of a Good Mask" (LVIS challenge 2020), which
    balances the foreground and the background of a mask in this way.

    Args:
        logits: (B, 65, h, w) float.
        labels: (B, h, w) int64 in [0, 64]; 64 is the dustbin.
        mask: (B, h, w) bool, cells that count.

    Returns:
        Scalar: half the mean over point cells plus half the mean over dustbin cells; a kind that is missing adds 0.
    """
    kinds = ((labels != DUSTBIN) & mask, (labels == DUSTBIN) & mask)
    return (_mean_cross_entropy(logits, labels, kinds[0]) + _mean_cross_entropy(logits, labels, kinds[1])) / 2


def make_detector_loss(
    name: str, *, eql_threshold: float = 0.1, eql_gamma: float = 0.9, bags_ratio: float = 8.0
) -> DetectorLoss:
    """A detector loss by its name.

    Args:
        name: one of :data:`DETECTOR_LOSSES`: "ce" is :func:`frontend.training.losses.detector_loss`, "eql"
            :func:`equalization_loss`, "bags" :func:`group_softmax_loss`, "balanced" :func:`balanced_loss`.
        eql_threshold: see :func:`equalization_loss`.
        eql_gamma: see :func:`equalization_loss`.
        bags_ratio: see :func:`group_softmax_loss`.

    Raises:
        ConfigError: the name is unknown, or a setting is out of its range.
    """
    for setting, value in (("eql_threshold", eql_threshold), ("eql_gamma", eql_gamma)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{setting} is {value}; expected a value in [0, 1]")
    if not 0 <= bags_ratio < math.inf:
        raise ConfigError(f"bags_ratio is {bags_ratio}; expected 0 or more, finite")
    losses: dict[str, DetectorLoss] = {
        "ce": detector_loss,
        "eql": partial(equalization_loss, threshold=eql_threshold, gamma=eql_gamma),
        "bags": partial(group_softmax_loss, ratio=bags_ratio),
        "balanced": balanced_loss,
    }
    if name not in losses:
        raise ConfigError(f"unknown detector loss '{name}'; expected one of: {', '.join(DETECTOR_LOSSES)}")
    return losses[name]
