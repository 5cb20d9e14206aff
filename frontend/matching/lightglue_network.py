"""LightGlue, a network that matches two sets of features (Lindenberger et al., ICCV 2023, arXiv 2306.13643).

Self-attention with rotary encodings of the positions, cross-attention in both directions, layer by layer; each layer
has an assignment head of its own, so that training supervises all of them.

Tensors lie differently from those of the authors' implementation and of kornia's: queries, keys and values, and the two
halves of a rotation, are blocks and not interleaved, which reads memory in order. :func:`to_interleaved` and
:func:`from_interleaved` carry weights from one layout to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frontend.device import exactly
from frontend.errors import ConfigError


@dataclass(frozen=True)
class LightGlueConfig:
    """Shape of the network.

    Attributes:
        input_dim: D, of the descriptors that it is given.
        dim: d, of its own; descriptors are projected where it differs.
        layers: L.
        heads: of the attention; each has an even number of dimensions.
        features: name of the model whose features it was trained on; "" where it has no home.
        project: whether they are projected where D is d, too; False where it is not, and they are anyhow.

    Raises:
        ConfigError: a number is out of its range.
    """

    input_dim: int = 128
    dim: int = 128
    layers: int = 5
    heads: int = 2
    features: str = ""
    project: bool = False

    def __post_init__(self) -> None:
        for name in ("input_dim", "dim", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.dim % (2 * self.heads):
            raise ConfigError(f"dim is {self.dim} with {self.heads} heads; expected a multiple of {2 * self.heads}")
        if self.project and self.input_dim != self.dim:
            object.__setattr__(self, "project", False)  # one way to say it: configurations are compared

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; without ``project`` where there is none, as before there was any."""
        return {name: value for name, value in asdict(self).items() if name != "project" or value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LightGlueConfig:
        """The inverse.

        Raises:
            ConfigError: an entry is unknown, or of another type.
        """
        known = {field.name: type(field.default) for field in fields(cls)}
        for name, value in values.items():
            if type(value) is not known.get(name):
                raise ConfigError(f"matcher setting {name} is {value!r}; expected one of: {', '.join(known)}")
        return cls(**values)


class Assignment(NamedTuple):
    """What an assignment head says.

    Attributes:
        similarity: (B, K0, K1).
        matchability0: (B, K0), logits of a point having a match at all.
        matchability1: (B, K1).
    """

    similarity: Tensor
    matchability0: Tensor
    matchability1: Tensor

    def log_scores(self) -> Tensor:
        """The log of the assignment, (B, K0, K1) float32: equation 6, sigmoids times a softmax in each direction."""
        similarity = self.similarity.float()
        matchable = F.logsigmoid(self.matchability0.float())[:, :, None]
        matchable = matchable + F.logsigmoid(self.matchability1.float())[:, None, :]
        return similarity.log_softmax(2) + similarity.log_softmax(1) + matchable


def normalise_positions(points: Tensor, size: Tensor) -> Tensor:
    """Pixels to [-1, 1] along an image's longer side, its middle at 0.

    Args:
        points: (..., K, 2) float, pixels.
        size: (..., 2), width and height.
    """
    half = size.to(points) / 2
    return (points - half[..., None, :]) / half.amax(-1)[..., None, None]


def _rotate(t: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs of dimensions, the first of each pair in the first half of the last axis."""
    first, second = t.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention, (B, H, K0, c) over (B, H, K1, c)."""
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and torch.is_grad_enabled():
        # the fused kernel's backward pass takes twice the time of these two products
        attention: Tensor = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
        return attention @ v
    return F.scaled_dot_product_attention(q, k, v)


def _for_both(run: Callable[[Tensor], Tensor], x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """``run`` on the tokens of both images; at once where they are as many."""
    if x0.shape != x1.shape:
        return run(x0), run(x1)
    first, second = run(torch.cat([x0, x1])).chunk(2)
    return first, second


def _feed_forward(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.LayerNorm(2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class _Positions(nn.Module):
    """Learnt rotary encoding (section 3.1, equation 4): angles are linear in the position."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.Wr = nn.Linear(2, dim // 2, bias=False)
        nn.init.normal_(self.Wr.weight)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, 2) to cosines and sines, (B, 1, K, dim / 2)."""
        with exactly(positions):  # half precision would move every keypoint by a third of a pixel
            angles = self.Wr(positions)[:, None]
        return angles.cos(), angles.sin()


class _SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.Wqkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.ffn = _feed_forward(dim)

    def forward(self, x: Tensor, encoding: tuple[Tensor, Tensor]) -> Tensor:
        """(B, K, d) with the encoding of its positions to the same."""
        q, k, v = self.Wqkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # a rotation in float32 would make the attention's queries float32 under autocast
        cosine, sine = (part.to(q.dtype) for part in encoding)
        found = _attend(_rotate(q, cosine, sine), _rotate(k, cosine, sine), v)
        message = self.out_proj(found.transpose(1, 2).flatten(2))
        change: Tensor = self.ffn(torch.cat([x, message.to(x.dtype)], dim=-1))
        return x + change


class _CrossAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qk = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)
        self.ffn = _feed_forward(dim)

    def _split(self, projection: nn.Linear) -> Callable[[Tensor], Tensor]:
        return lambda x: projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K0, d) and (B, K1, d) to the same; each reads the other."""
        qk0, qk1 = _for_both(self._split(self.to_qk), x0, x1)
        v0, v1 = _for_both(self._split(self.to_v), x0, x1)
        found0 = _attend(qk0, qk1, v1).transpose(1, 2).flatten(2)
        found1 = _attend(qk1, qk0, v0).transpose(1, 2).flatten(2)
        message0, message1 = _for_both(self.to_out, found0, found1)
        change0, change1 = _for_both(
            self.ffn, torch.cat([x0, message0.to(x0.dtype)], dim=-1), torch.cat([x1, message1.to(x1.dtype)], dim=-1)
        )
        return x0 + change0, x1 + change1


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attn = _SelfAttention(dim, heads)
        self.cross_attn = _CrossAttention(dim, heads)


class _AssignmentHead(nn.Module):
    """Similarity and matchability (section 3.2, equations 5 and 7)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matchability = nn.Linear(dim, 1)
        self.final_proj = nn.Linear(dim, dim)

    def forward(self, x0: Tensor, x1: Tensor) -> Assignment:
        scale = x0.shape[-1] ** -0.25
        projected0, projected1 = _for_both(lambda x: self.final_proj(x) * scale, x0, x1)
        matchable0, matchable1 = _for_both(lambda x: self.matchability(x)[..., 0], x0, x1)
        with exactly(x0):
            similarity = projected0.to(x0.dtype) @ projected1.to(x0.dtype).transpose(1, 2)
        return Assignment(similarity, matchable0, matchable1)


class LightGlueNet(nn.Module):
    """The network.

    Args:
        config: its shape.
    """

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        projected = config.project or config.input_dim != dim
        self.input_proj = nn.Linear(config.input_dim, dim) if projected else nn.Identity()
        self.posenc = _Positions(dim // config.heads)
        self.transformers = nn.ModuleList(_Layer(dim, config.heads) for _ in range(config.layers))
        self.log_assignment = nn.ModuleList(_AssignmentHead(dim) for _ in range(config.layers))

    def layers_of(self, descriptors0: Tensor, positions0: Tensor, descriptors1: Tensor, positions1: Tensor) -> Any:
        """Tokens after each layer, one layer at a time: pairs of (B, K0, d) and (B, K1, d)."""
        # what the layers add up stays in the inputs' precision
        x0, x1 = (x.to(descriptors0.dtype) for x in _for_both(self.input_proj, descriptors0, descriptors1))
        encoding0, encoding1 = self.posenc(positions0), self.posenc(positions1)
        together = x0.shape == x1.shape
        both = tuple(torch.cat(parts) for parts in zip(encoding0, encoding1, strict=True)) if together else None
        layers: Iterable[Any] = self.transformers
        for layer in layers:
            if both is not None:
                x0, x1 = layer.self_attn(torch.cat([x0, x1]), both).chunk(2)
            else:
                x0, x1 = layer.self_attn(x0, encoding0), layer.self_attn(x1, encoding1)
            x0, x1 = layer.cross_attn(x0, x1)
            yield x0, x1

    def forward(self, descriptors0: Tensor, positions0: Tensor, descriptors1: Tensor, positions1: Tensor) -> Assignment:
        """The last layer's assignment.

        Args:
            descriptors0: (B, K0, D) float, unit norm.
            positions0: (B, K0, 2) float, of :func:`normalise_positions`.
            descriptors1: (B, K1, D).
            positions1: (B, K1, 2).
        """
        for tokens in self.layers_of(descriptors0, positions0, descriptors1, positions1):
            last = tokens
        found: Assignment = self.log_assignment[-1](*last)
        return found

    def all_layers(
        self, descriptors0: Tensor, positions0: Tensor, descriptors1: Tensor, positions1: Tensor
    ) -> list[Assignment]:
        """Every layer's assignment, for training; arguments as of :meth:`forward`."""
        tokens = self.layers_of(descriptors0, positions0, descriptors1, positions1)
        return [head(*pair) for head, pair in zip(self.log_assignment, tokens, strict=True)]


class MatchGraph(nn.Module):
    """The network with the choice of the matches: mutual maxima of the assignment (section 3.2)."""

    def __init__(self, network: LightGlueNet) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, descriptors0: Tensor, positions0: Tensor, descriptors1: Tensor, positions1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Arguments as of :meth:`LightGlueNet.forward`, at least one keypoint each.

        Returns:
            (B, K0) int64, matches in image 1, -1 for none; and their probabilities, (B, K0) float32, 0 for none. Those
            below a threshold are the caller's to drop.
        """
        scores = self.network(descriptors0, positions0, descriptors1, positions1).log_scores()
        best, partner = scores.max(2)
        back = scores.argmax(1)
        own = torch.arange(partner.shape[1], device=partner.device)
        found = back.gather(1, partner) == own
        return torch.where(found, partner, -1), torch.where(found, best.exp(), 0.0)


def _order(config: LightGlueConfig) -> Tensor:
    """Rows of Wqkv here, in the order in which the interleaved layout has them, (3 d,) int64."""
    half = config.dim // config.heads // 2
    rows = torch.arange(3 * config.dim).reshape(3, config.heads, 2, half)
    # there: head, pair of dimensions, member of the pair, and query, key or value last; values are in order here
    interleaved = rows.permute(1, 3, 2, 0).reshape(config.heads, 2 * half, 3).clone()
    interleaved[..., 2] = rows[2].reshape(config.heads, 2 * half)
    return interleaved.reshape(-1)


def to_interleaved(network: LightGlueNet) -> dict[str, Tensor]:
    """The weights as ``kornia.feature.LightGlue(features=None, ...)`` and the authors' LightGlue name and lay them.

    Early stopping and pruning have no weights here; those there are to be switched off (``depth_confidence=-1``,
    ``width_confidence=-1``). Theirs have no ``input_proj`` where D is d: what a network with ``project`` has there is
    to be applied to the descriptors first.
    """
    order = _order(network.config)
    return {name: tensor[order] if ".Wqkv." in name else tensor for name, tensor in network.state_dict().items()}


def from_interleaved(tensors: Mapping[str, Tensor], config: LightGlueConfig) -> dict[str, Tensor]:
    """The inverse of :func:`to_interleaved`."""
    back = torch.argsort(_order(config))
    return {name: tensor[back] if ".Wqkv." in name else tensor for name, tensor in tensors.items()}
