"""Training in several processes, as ``torchrun`` starts them: gloo on CPUs, NCCL on GPUs.

A step sees the samples that one process would see, split by rank, and every mean of a loss is taken over all of them:
the ranks share the counts that the means divide by, the statistics of the batch norms and the gradients. So the number
of processes changes a run by rounding alone. Without ``torchrun`` everything here does nothing.

Not split exactly are what the detector losses ``eql`` and ``bags`` draw and the partners of MixToken: those are taken
from a rank's own samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from frontend.device import pick_device
from frontend.errors import ConfigError

T = TypeVar("T")


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if _active() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _active() else 0


@contextmanager
def joined(device: str) -> Iterator[torch.device]:
    """Take part in the run that ``torchrun`` started, if it did; yields the device of this process.

    Args:
        device: "auto", "cpu" or "cuda": each process of a machine has a GPU of its own. A certain one, "cuda:N", is for
            a single process.

    Raises:
        ConfigError: the device is not there, or it is one GPU for several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield pick_device(device)
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if ":" in device:
        raise ConfigError(f"device is '{device}' in a run of several processes; expected auto, cpu or cuda")
    chosen = pick_device(device)
    if chosen.type == "cuda":
        chosen = pick_device(f"cuda:{local}")
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield chosen
    finally:
        dist.destroy_process_group()


def share(value: T) -> T:
    """What rank 0 has, on every rank."""
    if not _active():
        return value
    holder: list[Any] = [value]
    dist.broadcast_object_list(holder, src=0)
    shared: T = holder[0]
    return shared


def share_tensors(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by those of rank 0."""
    if _active():
        for tensor in tensors:
            # collectives want contiguous memory, which channels-last is not
            buffer = tensor.detach().contiguous()
            dist.broadcast(buffer, src=0)
            tensor.detach().copy_(buffer)


class _Mean(torch.autograd.Function):
    """The mean over ranks; the loss is the mean of the ranks' losses, so the gradient is a mean, too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _reduced(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _reduced(gradients[0])


def _reduced(value: Tensor) -> Tensor:
    total = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / dist.get_world_size()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a tensor over the ranks, differentiable; itself where there is one."""
    if not _active():
        return value
    mean: Tensor = _Mean.apply(value)  # type: ignore[no-untyped-call]
    return mean


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a tensor over the ranks, without gradient; itself where there is one."""
    if not _active():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their mean over the ranks, in one transfer.

    Parameters that got none on a rank count as zero there, and stay without where no rank has one.
    """
    if not _active():
        return
    every = list(parameters)
    if not every:
        return
    device = every[0].device
    present = torch.tensor([parameter.grad is not None for parameter in every], dtype=torch.float32, device=device)
    dist.all_reduce(present)
    used = [parameter for parameter, count in zip(every, present.tolist(), strict=True) if count]
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.contiguous().flatten() for p in used])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, gradient in zip(used, torch.split(flat, [p.numel() for p in used]), strict=True):
        values = gradient.view(parameter.shape)
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(values)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm whose statistics are those of all ranks' samples, on any device.

    The formula and the state are those of :class:`torch.nn.BatchNorm2d`; PyTorch's own synchronised one needs a GPU.
    All ranks have equally many values. One transfer forward and one backward.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not _active() or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        # about a common value near the mean, so that the difference of squares keeps its digits
        pivot = self.running_mean[:, None, None]
        moved = x - pivot
        moments = torch.stack([moved.mean(dim=(0, 2, 3)), moved.square().mean(dim=(0, 2, 3))])
        first, second = mean_over_ranks(moments)
        variance = (second - first.square()).clamp_min(0)
        count = x.shape[0] * x.shape[2] * x.shape[3] * world_size()
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            mean = first + self.running_mean
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / max(count - 1, 1), momentum)
        out: Tensor = (moved - first[:, None, None]) * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            out = out * self.weight[:, None, None] + self.bias[:, None, None]
        return out.to(input.dtype)


def share_batch_norms(module: nn.Module) -> None:
    """Let the batch norms within a module share their statistics, in place; their tensors and names stay."""
    if not _active():
        return
    for part in list(module.modules()):
        for name, child in part.named_children():
            if type(child) is nn.BatchNorm2d:
                other = SharedBatchNorm2d(
                    child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
                )
                other.weight, other.bias = child.weight, child.bias
                other._buffers.update(child._buffers)
                other.train(child.training)
                setattr(part, name, other)
