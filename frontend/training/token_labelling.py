"""Token labelling (Jiang et al. 2021, arXiv:2104.10858): every cell is a token with a soft label of its own."""

from __future__ import annotations

import math
from functools import partial
from typing import cast

from torch import Tensor, nn

from frontend.encoders import Context, Encoder, TokenEncoder
from frontend.errors import ConfigError, DataError
from frontend.heads import DUSTBIN
from frontend.model import DenseMaps, SuperPointNet
from frontend.training.losses import masked_mean
from frontend.training.mixtoken import paste, pasting


def soft_cross_entropy(logits: Tensor, soft: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy with soft labels (section 3.2), over the 65 classes of each cell.

    Args:
        logits: (B, 65, h, w) float.
        soft: (B, 65, h, w) float, summing to 1 over the classes.
        mask: (B, h, w) bool, cells that count.

    Returns:
        Scalar: the mean over the cells that count of the sum over classes of -soft * log softmax(logits).
    """
    return masked_mean(-(soft * logits.log_softmax(dim=1)).sum(dim=1), mask)


class TokenLabelling(nn.Module):
    """What training with soft labels adds to a network: an auxiliary head, and mixed tokens.

    The head is one 1 x 1 convolution on the features that the network's own heads see (behind the context modules,
    where there are any). It serves the training alone: :class:`frontend.training.trainer.Trainer` keeps it in
    checkpoints and not in the weights.

    Args:
        network: that is trained; not kept.
        token_weight: beta, of the tokens' loss (section 3.2); 0 leaves the head out.
        soft_weight: W, share of the soft labels in the detector's own loss.
        mix_tokens: probability that a view has tokens replaced; it takes effect where the samples are made.

    Raises:
        ConfigError: a value is out of range, or tokens are to be mixed and the encoder has none.
    """

    def __init__(
        self, network: SuperPointNet, token_weight: float = 0.0, soft_weight: float = 0.0, mix_tokens: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= token_weight < math.inf:
            raise ConfigError(f"token_weight is {token_weight}; expected 0 or more, finite")
        for name, value in (("soft_weight", soft_weight), ("mix_tokens", mix_tokens)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}; expected a share in [0, 1]")
        if mix_tokens and not isinstance(network.encoder, TokenEncoder):
            raise ConfigError(f"mix_tokens is {mix_tokens}; encoder '{network.config.encoder}' has no tokens to mix")
        self.token_weight = token_weight
        self.soft_weight = soft_weight
        last = cast(Encoder | Context, network.contexts[-1] if len(network.contexts) else network.encoder)
        self.head = nn.Conv2d(last.out_channels, DUSTBIN + 1, 1) if token_weight else None

    def forward(
        self, network: SuperPointNet, image: Tensor, batch: dict[str, Tensor]
    ) -> tuple[DenseMaps, Tensor, tuple[Tensor, ...]]:
        """Run the network, with its tokens mixed where the batch says so.

        Args:
            network: that is trained.
            image: (N, 1, H, W) float in [0, 1].
            batch: see :func:`frontend.training.mixtoken.pasting`.

        Returns:
            The dense maps; the image, mixed in the same cells, as the detector's head has seen it; and the tokens'
            logits (N, 65, H/8, W/8), where there is a head.
        """
        mixed = pasting(batch)
        features, _ = network.encode(image, mix=None if mixed is None else partial(paste, mixed=mixed))
        if mixed is not None:
            image = paste(image, mixed)
        maps = DenseMaps(network.detector(features, image), network.descriptor(features))
        return maps, image, () if self.head is None else (self.head(features),)

    def split(self, outputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Take the tokens' logits off the end of a task's outputs; None where there is no head."""
        return (outputs, None) if self.head is None else (outputs[:-1], outputs[-1])

    def blend(self, hard: Tensor, logits: Tensor, soft: Tensor | None, mask: Tensor) -> Tensor:
        """The detector's loss: (1 - W) of the one with hard labels, and W of the one with soft labels."""
        if not self.soft_weight:
            return hard
        return (1 - self.soft_weight) * hard + self.soft_weight * soft_cross_entropy(logits, _given(soft), mask)

    def loss(self, tokens: Tensor | None, soft: Tensor | None, mask: Tensor) -> Tensor | None:
        """The tokens' loss, to be weighted by beta: the mean over tokens that count; None where there is no head."""
        return None if tokens is None else soft_cross_entropy(tokens, _given(soft), mask)


def _given(soft: Tensor | None) -> Tensor:
    if soft is None:
        raise DataError("the samples have no soft labels; expected those of WarpedPairs with PairConfig(soft=True)")
    return soft
