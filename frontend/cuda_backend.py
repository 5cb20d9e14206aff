"""The GPU's path: bytes uploaded from pinned memory, fused convolutions, and CUDA graphs for shapes that come again.

At batch 1 a GPU is idle most of the time while the host launches many small kernels; a graph launches them at once.
At larger batches what costs is memory: biases and ReLUs as passes of their own, and poolings.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frontend.encoders import ConvBlock
from frontend.extraction import Batch, ExtractorConfig, HostDescribed, HostKeypoints, Prepared, StageTimes
from frontend.kernels import load_kernels
from frontend.keypoints import triton_kernels
from frontend.model import DenseMaps, SuperPointNet
from frontend.postprocess import BYTE
from frontend.torch_backend import Described, TorchBackend

Result = TypeVar("Result")

GRAPHS = 64
"""Graphs that are kept, of the shapes used last; each holds the memory of its results."""

SEEN = 2
"""Calls of a shape that run without a graph: capturing takes as long as some dozen of them."""

_CAPTURING = threading.Lock()  # CUDA has one capture at a time in a process


class FusedConv(nn.Module):
    """A convolution, its bias and a ReLU as one call of cuDNN.

    Args:
        block: folded, with a ReLU behind the convolution.
        dtype: of the arithmetic.
    """

    def __init__(self, block: ConvBlock, dtype: torch.dtype) -> None:
        super().__init__()
        conv, last = block.conv, torch.channels_last
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.register_buffer("weight", conv.weight.detach().to(dtype, memory_format=last), persistent=False)
        self.register_buffer("bias", bias.to(conv.weight.device, dtype), persistent=False)
        self.settings = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.apart = False  # where cuDNN has no fused engine for it

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = self.weight
        x = x.to(weight.dtype).contiguous(memory_format=torch.channels_last)
        if x.shape[1] == 1:
            # one channel lies both ways; said so, or the output would not be channels-last
            x = x.as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))
        if not self.apart:
            try:
                out: Tensor = torch.cudnn_convolution_relu(x, weight, self.bias, *self.settings)  # type: ignore[arg-type]
                return out
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError:
                pass
        out = nn.functional.conv2d(x, weight, self.bias, *self.settings).relu_()  # type: ignore[arg-type]
        self.apart = True  # known only now: where memory is what lacks, cuDNN says the same, and this fails as well
        return out


class _Halve(nn.Module):
    """Max-pooling by 2 x 2, for even sides."""

    def forward(self, x: Tensor) -> Tensor:
        kernels = triton_kernels(x.device)
        if kernels is None or x.shape[2] % 2 or x.shape[3] % 2:
            return nn.functional.max_pool2d(x, 2)
        out: Tensor = kernels.halve(x)
        return out


def fused(network: SuperPointNet, dtype: torch.dtype) -> SuperPointNet:
    """A copy of a folded network with what cuDNN and Triton have better operators for.

    Args:
        network: in evaluation mode, on a GPU.
        dtype: of the fused convolutions.
    """
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if _can_fuse(child):
                setattr(module, name, FusedConv(child, dtype))  # type: ignore[arg-type]
            elif isinstance(child, nn.MaxPool2d) and child.kernel_size == child.stride == 2 and not child.padding:
                setattr(module, name, _Halve())
    return network


def _can_fuse(module: nn.Module) -> bool:
    # not one of a sub-class, which may do something else
    if type(module) is not ConvBlock:
        return False
    plain = isinstance(module.norm, nn.Identity) and isinstance(module.relu, nn.ReLU)
    # depthwise ones are faster in PyTorch's own kernels
    return plain and module.conv.groups == 1 and module.conv.padding_mode == "zeros"


@dataclass
class _Graph:
    """A captured call: tensors that it reads and writes, and the graph that does."""

    inputs: list[Tensor]
    outputs: Any
    graph: torch.cuda.CUDAGraph


class _Graphs:
    """Graphs of functions of tensors, one for each key and the inputs' shapes; for several threads."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._seen: dict[Hashable, int] = {}
        self._wanted: dict[Hashable, int] = {}
        self._refused: set[Hashable] = set()
        self._pool: Any = None
        self._stream: Any = None
        self._done: Any = None
        self._lock = threading.Lock()

    def run(self, name: Hashable, function: Callable[..., Result], *inputs: Tensor) -> Result:
        """``function(*inputs)``, which has no other inputs that change and does not wait for the device.

        The results are the caller's: a later call does not change them.
        """
        key = (name, *((tuple(x.shape), x.dtype, x.stride()) for x in inputs))
        with self._lock:
            try:
                return self._attempt(key, name, function, inputs)
            except torch.cuda.OutOfMemoryError:
                pass
            # what graphs hold may be just what is missing; not in the handler: the error holds it as well
            self._forget()
            return function(*inputs)

    def _attempt(
        self, key: Hashable, name: Hashable, function: Callable[..., Result], inputs: Sequence[Tensor]
    ) -> Result:
        graph = self._graph(key, name, function, inputs)
        return function(*inputs) if graph is None else self._replay(graph, inputs)

    def _graph(
        self, key: Hashable, name: Hashable, function: Callable[..., Any], inputs: Sequence[Tensor]
    ) -> _Graph | None:
        """The graph of a call; None where it is to run without."""
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        if name in self._refused:
            return None
        if len(self._seen) > 16 * GRAPHS:  # sizes without end: begin to count anew
            self._seen.clear()
            self._wanted.clear()
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._seen[key] <= self._wanted.get(key, SEEN):
            return None
        try:
            self._graphs[key] = self._capture(function, inputs)
        except torch.cuda.OutOfMemoryError:
            # a capture takes more than the call alone, which may well fit
            self._wanted[key] = 8 * self._wanted.get(key, SEEN)
            raise
        except RuntimeError as error:
            self._pool = None  # one that a capture failed in may be left recording
            reason = (str(error).strip().splitlines() or [""])[0][:160]
            print(f"no CUDA graphs for this network, going on without: {reason}", file=sys.stderr)
            self._refused.add(name)
            return None
        while len(self._graphs) > GRAPHS:
            old, _ = self._graphs.popitem(last=False)
            # more shapes in turn than there is room for: capturing each again and again would cost more than it gains
            self._seen[old], self._wanted[old] = 0, 8 * self._wanted.get(old, SEEN)
        return self._graphs[key]

    def _replay(self, graph: _Graph, inputs: Sequence[Tensor]) -> Any:
        stream = torch.cuda.current_stream(self._device)
        if self._done is not None:
            # on another stream, perhaps
            stream.wait_event(self._done)
        for target, source in zip(graph.inputs, inputs, strict=True):
            target.copy_(source)
        graph.graph.replay()
        result = pytree.tree_map_only(Tensor, torch.clone, graph.outputs)
        self._done = stream.record_event()
        return result

    def _forget(self) -> None:
        self._graphs.clear()
        self._seen.clear()
        self._pool = None
        torch.cuda.empty_cache()

    def _capture(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> _Graph:
        with _CAPTURING:
            if self._pool is None:
                # memory for all: graphs run one after the other, and their results are copied out; the stream is one as
                # well, since memory is a stream's
                self._pool = torch.cuda.graph_pool_handle()
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            held = [x.clone() for x in inputs]
            before, stream = torch.cuda.current_stream(self._device), self._stream
            stream.wait_stream(before)
            graph, cudnn = torch.cuda.CUDAGraph(), torch.backends.cudnn
            searching = cudnn.benchmark
            try:
                cudnn.benchmark = not cudnn.deterministic
                with torch.cuda.stream(stream):
                    for _ in range(2):
                        function(*held)
                stream.synchronize()
                with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                    outputs = function(*held)
            finally:
                cudnn.benchmark = searching
                # a capture that fails leaves its own stream behind
                torch.cuda.set_stream(before)
            return _Graph(held, outputs, graph)


class _Pinned:
    """Page-locked memory, which the device copies from and to by itself; grows as needed."""

    def __init__(self) -> None:
        self._memory: dict[torch.dtype, Tensor] = {}
        self._busy: torch.cuda.Event | None = None

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of the shape; the next call with this type gives the same memory."""
        if self._busy is not None:
            self._busy.synchronize()
            self._busy = None
        count = int(np.prod(shape, dtype=np.int64))
        memory = self._memory.get(dtype)
        if memory is None or memory.numel() < count:
            memory = self._memory[dtype] = torch.empty(count, dtype=dtype, pin_memory=True)
        return memory[:count].reshape(tuple(shape))

    def reading(self) -> None:
        """The current device has been told to read it; nobody may write until it has."""
        self._busy = torch.cuda.current_stream().record_event()


class CudaBackend(TorchBackend):
    """See :class:`frontend.torch_backend.TorchBackend`; on a CUDA device.

    What runs is a copy of the network, with its weights at this time. In float32 cuDNN's convolutions may use TF32, as
    ``torch.backends.cudnn.allow_tf32`` says; the fastest algorithms are searched unless they are to be deterministic.

    Args:
        network: folded; is brought to evaluation mode and to the device.
        device: "cuda" or "cuda:N".
        precision: "float32", "bf16" or "fp16".
        brief: see :func:`frontend.kernels.load_kernels`.
    """

    takes_bytes = True

    def __init__(self, network: SuperPointNet, device: str, precision: str, brief: bool = False) -> None:
        super().__init__(network, device, precision)
        dtype = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        load_kernels(brief)  # of the homographies, which stay on the host
        self._run = fused(self.network, dtype)
        self._graphs = _Graphs(self._device)
        self._upload, self._lock = _Pinned(), threading.Lock()
        self._sizes: dict[tuple[tuple[int, int], ...], Tensor] = {}

    def _here(self) -> AbstractContextManager[Any]:
        """Makes its device the current one: events, graphs and kernels are the current device's."""
        return torch.cuda.device(self._device)

    def stack(self, prepared: Sequence[Prepared]) -> Batch:
        if any(item.gray.dtype != np.uint8 for item in prepared):
            floats = [
                item._replace(gray=item.gray * BYTE) if item.gray.dtype == np.uint8 else item for item in prepared
            ]
            return super().stack(floats)
        with self._here(), self._lock:
            staged = self._upload.take((len(prepared), 1, *prepared[0].gray.shape), torch.uint8)
            view = staged.numpy()
            for target, item in zip(view, prepared, strict=True):
                target[0] = item.gray
            images = staged.to(self._device, non_blocking=True)
            self._upload.reading()
        rasters = [item.raster for item in prepared if item.raster is not None]
        raster = torch.from_numpy(np.stack(rasters)).to(self._device) if rasters else None
        # the same product as on the host
        geometries = [item.geometry for item in prepared]
        return Batch(images.float() * BYTE.item(), geometries, raster, *self._allowed(prepared))

    @torch.inference_mode()
    def forward(self, batch: Batch) -> DenseMaps:
        """Logits (B, 65, H/8, W/8) and descriptors (B, D, H/8, W/8)."""
        inputs = (batch.images,) if batch.raster is None else (batch.images, batch.raster)
        with self._here():
            return self._graphs.run("network", self._dense, *inputs)

    def _dense(self, images: Tensor, raster: Tensor | None = None) -> DenseMaps:
        with self._cast:
            maps: DenseMaps = self._run(images.contiguous(memory_format=torch.channels_last), raster)
        return maps

    @torch.inference_mode()
    def postprocess(
        self, maps: DenseMaps, batch: Batch, config: ExtractorConfig, times: StageTimes | None = None
    ) -> Described:
        """Pick keypoints, refine them and sample their descriptors, on the device, without waiting for it."""
        sizes = self._sizes_of(batch)

        def describe(logits: Tensor, descriptors: Tensor, images: Tensor, sizes: Tensor, *allowed: Tensor) -> Described:
            return self._describe(DenseMaps(logits, descriptors), images, sizes, config, *allowed)

        allowed = () if batch.allowed is None else (batch.allowed,)
        with self._here():
            return self._graphs.run(("keypoints", config), describe, *maps, batch.images, sizes, *allowed)

    def _sizes_of(self, batch: Batch) -> Tensor:
        """(B, 2) widths and heights without the padding; an upload would take as long as the network."""
        resized = tuple(geometry.resized for geometry in batch.geometries)
        sizes = self._sizes.get(resized)
        if sizes is None:
            if len(self._sizes) >= 4 * GRAPHS:
                self._sizes.clear()
            sizes = self._sizes[resized] = torch.tensor(resized, device=self._device)
        return sizes

    def _refine(self, images: Tensor, keypoints: Tensor, scores: Tensor) -> Any:
        # its convolutions in the network's precision, as in training; what it says of positions stays in float32
        with self._cast:
            return self._run.refine(images, keypoints, scores)

    def host(self, found: Described) -> HostDescribed:
        tensors = [*found.keypoints, found.descriptors, *([] if found.sigmas is None else [found.sigmas])]
        # not kept: what comes back is the caller's
        with self._here():
            held = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
            for target, tensor in zip(held, tensors, strict=True):
                target.copy_(tensor, non_blocking=True)
            self.synchronize()
        keypoints, scores, valid, descriptors, *sigmas = (tensor.numpy() for tensor in held)
        return HostDescribed(HostKeypoints(keypoints, scores, valid), descriptors, sigmas[0] if sigmas else None)

    def synchronize(self) -> None:
        # the whole device must not be waited for while another thread captures
        torch.cuda.current_stream(self._device).synchronize()
