"""Diverse Branch Block: four branches while training, one convolution after it (Ding et al. 2021, arXiv:2103.13425).

The six transforms of section 3.2 turn the branches into the one kernel. They take and return kernels with biases, and
compute in the type that they are given.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from frontend.encoders.base import ENCODERS, ConvBlock, Encoder
from frontend.encoders.spec import Part
from frontend.encoders.vgg import VGG
from frontend.errors import ConfigError, ShapeError


class Kernel(NamedTuple):
    """What a convolution computes with.

    Attributes:
        weight: (O, I / groups, K, K) float.
        bias: (O,) float.
    """

    weight: Tensor
    bias: Tensor


def batch_norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation mode as a gain and a shift for each channel.

    Args:
        norm: of C channels.

    Returns:
        Gain gamma / sigma (C,) and shift beta - mu * gamma / sigma (C,), the terms of equation 3.
    """
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    gain = norm.weight / torch.sqrt(variance + norm.eps)
    return gain, norm.bias - mean * gain


def fuse_batch_norm(kernel: Kernel, norm: nn.BatchNorm2d) -> Kernel:
    """Transform I: a convolution and the batch norm behind it.

    Args:
        kernel: (O, I, K, K), (O,) of the convolution.
        norm: of O channels, in evaluation mode.

    Returns:
        (O, I, K, K), (O,): the same as both.
    """
    gain, shift = batch_norm_affine(norm)
    return Kernel(kernel.weight * gain[:, None, None, None], kernel.bias * gain + shift)


def add_branches(*kernels: Kernel) -> Kernel:
    """Transform II: the sum of the outputs of convolutions of one shape.

    Args:
        kernels: each (O, I, K, K), (O,).

    Returns:
        (O, I, K, K), (O,).

    Raises:
        ShapeError: the shapes differ.
    """
    shapes = {tuple(kernel.weight.shape) for kernel in kernels}
    if len(shapes) != 1:
        raise ShapeError(f"branches to add have kernels of shapes {sorted(shapes)}; expected one shape")
    weights, biases = zip(*kernels, strict=True)
    return Kernel(torch.stack(weights).sum(0), torch.stack(biases).sum(0))


def merge_sequence(first: Kernel, second: Kernel, groups: int = 1) -> Kernel:
    """Transform III: a 1 x 1 convolution, then a K x K convolution.

    The border between the two holds what the first makes of a zero: its bias. Zeros there, which is what a padded
    K x K convolution puts, make another function.

    Args:
        first: (D, I / groups, 1, 1), (D,).
        second: (O, D / groups, K, K), (O,).
        groups: of both convolutions; each is merged by itself (transform IV joins them).

    Returns:
        (O, I / groups, K, K), (O,): the same as both.

    Raises:
        ShapeError: the first is not 1 x 1, or its outputs are not the second's inputs.
    """
    inner = second.weight.shape[1] * groups
    if first.weight.shape[2:] != (1, 1) or first.weight.shape[0] != inner:
        raise ShapeError(f"sequence starts with a kernel {tuple(first.weight.shape)}; expected ({inner}, I, 1, 1)")
    merged = []
    for one, one_bias, two, two_bias in zip(
        *(tensor.chunk(groups) for tensor in (first.weight, first.bias, second.weight, second.bias)), strict=True
    ):
        weight = torch.einsum("odyx,di->oiyx", two, one[:, :, 0, 0])
        merged.append(Kernel(weight, torch.einsum("odyx,d->o", two, one_bias) + two_bias))
    return concatenate(*merged)


def concatenate(*kernels: Kernel) -> Kernel:
    """Transform IV: the outputs of convolutions side by side, as channels.

    Args:
        kernels: (O_n, I, K, K), (O_n,).

    Returns:
        (sum of O_n, I, K, K), (sum of O_n,).
    """
    weights, biases = zip(*kernels, strict=True)
    return Kernel(torch.cat(weights), torch.cat(biases))


def average_pooling(channels: int, size: int, like: Tensor) -> Kernel:
    """Transform V: average pooling as a convolution.

    Args:
        channels: C.
        size: K, side of the pooled window.
        like: a tensor whose type and device the kernel takes.

    Returns:
        (C, C, K, K) with 1 / K^2 where both channels are the same, and zero biases (C,).
    """
    identity = torch.eye(channels, dtype=like.dtype, device=like.device)
    weight = identity[:, :, None, None].expand(-1, -1, size, size) / size**2
    return Kernel(weight, like.new_zeros(channels))


def pad_kernel(kernel: Kernel, size: int) -> Kernel:
    """Transform VI: a k x k convolution as a K x K one, by zeros around its kernel.

    Args:
        kernel: (O, I, k, k), (O,); the convolution pads its input by k // 2.
        size: K, at least k, odd if k is.

    Returns:
        (O, I, K, K), (O,); the convolution pads its input by K // 2.

    Raises:
        ShapeError: K is smaller than k, or the kernel would not lie in the middle.
    """
    margin = size - kernel.weight.shape[-1]
    if margin < 0 or margin % 2:
        raise ShapeError(f"kernel of side {kernel.weight.shape[-1]} cannot be centred in one of side {size}")
    return Kernel(functional.pad(kernel.weight, [margin // 2] * 4), kernel.bias)


def pad_with_shift(x: Tensor, norm: nn.BatchNorm2d, margin: int) -> Tensor:
    """Surround what comes out of a batch norm by what the batch norm makes of a zero.

    Behind a 1 x 1 convolution without bias, that is what a zero-padded image would have given there, so that the
    sequence stays one convolution at the border too. While training, the running statistics are taken, as they are
    afterwards.

    Args:
        x: (B, C, h, w).
        norm: whose output x is.
        margin: pixels on each side.

    Returns:
        (B, C, h + 2 margin, w + 2 margin).
    """
    _, shift = batch_norm_affine(norm)
    around = shift[:, None, None]
    return functional.pad(x - around, [margin] * 4) + around


def _kernel_of(conv: nn.Conv2d) -> Kernel:
    """A convolution's kernel in float64, so that merging does not round."""
    weight = conv.weight.double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.double()
    return Kernel(weight, bias)


class _Branch(nn.Module):
    """One convolution, K x K or 1 x 1, and its batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out

    def kernel(self) -> Kernel:
        return fuse_batch_norm(_kernel_of(self.conv), self.norm)


class _Sequence(nn.Module):
    """1 x 1 convolution, batch norm, K x K convolution, batch norm; as many channels between as come in."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, eps: float) -> None:
        super().__init__()
        self.point = _Branch(in_channels, in_channels, 1, eps)
        nn.init.dirac_(self.point.conv.weight)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_with_shift(self.point(x), self.point.norm, self.conv.kernel_size[0] // 2)
        out: Tensor = self.norm(self.conv(x))
        return out

    def kernel(self) -> Kernel:
        return fuse_batch_norm(merge_sequence(self.point.kernel(), _kernel_of(self.conv)), self.norm)


class _Average(nn.Module):
    """1 x 1 convolution, batch norm, K x K average pooling, batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, eps: float) -> None:
        super().__init__()
        self.point = _Branch(in_channels, out_channels, 1, eps)
        self.pool = nn.AvgPool2d(kernel, stride=1)
        self.norm = nn.BatchNorm2d(out_channels, eps=eps)
        self.size = kernel

    def forward(self, x: Tensor) -> Tensor:
        x = pad_with_shift(self.point(x), self.point.norm, self.size // 2)
        out: Tensor = self.norm(self.pool(x))
        return out

    def kernel(self) -> Kernel:
        point = self.point.kernel()
        pooling = average_pooling(len(point.bias), self.size, point.bias)
        return fuse_batch_norm(merge_sequence(point, pooling), self.norm)


class DiverseBranchBlock(nn.Module):
    """K x K convolution and ReLU, trained as the sum of four branches (section 3.3, figure 1).

    The branches are K x K, 1 x 1, 1 x 1 then K x K, and 1 x 1 then average pooling; a batch norm stands behind each
    of their layers.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: K, odd, at least 3.
        eps: of the batch norms.

    Raises:
        ConfigError: K is even or smaller than 3.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, eps: float = 1e-5) -> None:
        super().__init__()
        if kernel < 3 or kernel % 2 == 0:
            raise ConfigError(f"diverse branch block got a kernel of side {kernel}; expected 3, 5, ...")
        self.size = kernel
        self.square: _Branch | None = _Branch(in_channels, out_channels, kernel, eps)
        self.point: _Branch | None = _Branch(in_channels, out_channels, 1, eps)
        self.sequence: _Sequence | None = _Sequence(in_channels, out_channels, kernel, eps)
        self.average: _Average | None = _Average(in_channels, out_channels, kernel, eps)
        self.conv: nn.Conv2d | None = None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, I, h, w) to (B, O, h, w), at least 0."""
        if self.conv is not None:
            summed: Tensor = self.conv(x)
        elif not self.training and not any(parameter.requires_grad for parameter in self.parameters()):
            # frozen while the rest trains: nothing learns from what its branches give, and one convolution costs less
            weight, bias = self.kernel()
            dtype = cast(_Branch, self.square).conv.weight.dtype
            summed = functional.conv2d(x, weight.to(dtype), bias.to(dtype), padding=self.size // 2)
        else:
            summed = functools.reduce(torch.add, (branch(x) for branch in self._branches()))
        out: Tensor = self.relu(summed)
        return out

    @torch.no_grad()
    def take_over(self, plain: ConvBlock) -> None:
        """Begin as a plain block: its convolution and batch norm as the K x K branch, the other branches at zero.

        Their last batch norms get a gain of zero, so that the sum is the plain block's while training, too; the first
        step moves the gains, and all else from the second on.

        Args:
            plain: convolution, batch norm, ReLU of this block's shape.

        Raises:
            ConfigError: it is another kind of block, or of another shape; or this one is folded.
        """
        norm, square = plain.norm, self.square
        if square is None or not isinstance(norm, nn.BatchNorm2d) or plain.norm_last:
            raise ConfigError("diverse branch block was given a block without batch norm before its ReLU; expected one")
        if plain.conv.weight.shape != square.conv.weight.shape:
            shapes = tuple(plain.conv.weight.shape), tuple(square.conv.weight.shape)
            raise ConfigError(f"diverse branch block was given a kernel of shape {shapes[0]}; expected {shapes[1]}")
        square.conv.load_state_dict(plain.conv.state_dict())
        square.norm.load_state_dict(norm.state_dict())
        square.norm.eps = norm.eps
        for branch in self._branches()[1:]:
            branch.norm.weight.zero_()
            branch.norm.bias.zero_()

    def _branches(self) -> list[_Branch | _Sequence | _Average]:
        branches = (self.square, self.point, self.sequence, self.average)
        return [branch for branch in branches if branch is not None]

    @torch.no_grad()
    def kernel(self) -> Kernel:
        """The one convolution that the branches are in evaluation mode: (O, I, K, K), (O,) float64."""
        if self.conv is not None:
            return _kernel_of(self.conv)
        return add_branches(*(pad_kernel(branch.kernel(), self.size) for branch in self._branches()))

    @torch.no_grad()
    def fold(self) -> None:
        """Replace the branches by their one convolution, in place."""
        if self.square is None:
            return
        kernel, old = self.kernel(), self.square.conv.weight
        conv = nn.Conv2d(old.shape[1], old.shape[0], self.size, padding=self.size // 2)
        self.conv = conv.to(old)
        self.conv.weight.copy_(kernel.weight)
        cast(Tensor, self.conv.bias).copy_(kernel.bias)
        self.square = self.point = self.sequence = self.average = None


@ENCODERS.register("dbb")
class DBB(Encoder):
    """The VGG encoder with Diverse Branch Blocks, which cost nothing after training.

    Args:
        channels: of the four stages, see :class:`frontend.encoders.vgg.VGG`.
        width: multiplies them.
        eps: of the batch norms.

    Raises:
        ConfigError: there are not four channel widths.
    """

    paper = "Ding et al. 2021, arXiv:2103.13425"

    def __init__(self, channels: Sequence[int] = (64, 64, 128, 128), width: float = 1.0, eps: float = 1e-5) -> None:
        super().__init__()
        if len(channels) != 4:
            raise ConfigError(f"dbb got {len(channels)} channel widths; expected 4")
        self.channels = [max(1, round(width * n)) for n in channels]
        self.out_channels = self.channels[-1]
        widths = [1, *self.channels]
        self.stages = nn.ModuleList(
            nn.Sequential(
                DiverseBranchBlock(widths[i], widths[i + 1], eps=eps),
                DiverseBranchBlock(widths[i + 1], widths[i + 1], eps=eps),
            )
            for i in range(4)
        )
        self.pool = nn.MaxPool2d(2, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Maps (B, 1, H, W) to (B, channels[-1], H/8, W/8)."""
        x = image
        for i, stage in enumerate(self.stages):
            x = stage(self.pool(x) if i else x)
        return x

    def take_over(self, plain: Encoder) -> list[str]:
        """Begin as a plain encoder of the same channels, to train on from there with more branches.

        Args:
            plain: the encoder.

        Returns:
            The names of the tensors that came from it: of all K x K branches, if it is a VGG with batch norms and these
            channels. Otherwise nothing is changed.
        """
        if not isinstance(plain, VGG) or plain.channels != self.channels or plain.norm != "bn":
            return []
        for theirs, ours in zip(plain.stages, self.stages, strict=True):
            for source, block in zip(cast(nn.Sequential, theirs), cast(nn.Sequential, ours), strict=True):
                cast(DiverseBranchBlock, block).take_over(cast(ConvBlock, source))
        return [name for name in self.state_dict() if ".square." in name]

    @property
    def reparameterized(self) -> Part:
        """The specification of what :meth:`reparameterize` returns: a vgg without batch norms."""
        return Part("vgg", {"channels": self.channels, "norm": "none"})

    @torch.no_grad()
    def reparameterize(self) -> VGG:
        """The plain encoder that computes the same in evaluation mode; this one is left as it is.

        Returns:
            A VGG of the same channels, norm "none", of this encoder's type and device, in evaluation mode.
        """
        plain = VGG(**self.reparameterized.options).to(next(self.parameters()))
        for theirs, ours in zip(plain.stages, self.stages, strict=True):
            for target, block in zip(cast(nn.Sequential, theirs), cast(nn.Sequential, ours), strict=True):
                kernel = cast(DiverseBranchBlock, block).kernel()
                conv = cast(nn.Conv2d, target.conv)
                conv.weight.copy_(kernel.weight)
                cast(Tensor, conv.bias).copy_(kernel.bias)
        return plain.eval()
