"""Which backend computes a network: PyTorch on a GPU, a runtime and NumPy on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontend.device import pick_name
from frontend.errors import ConfigError
from frontend.extraction import Backend

if TYPE_CHECKING:
    from frontend.model import SuperPointNet


def backend_of_network(
    network: SuperPointNet,
    device: str = "auto",
    runtime: str = "torch",
    precision: str = "float32",
    brief: bool = False,
) -> Backend:
    """The backend of a network at hand.

    Args:
        network: is brought to evaluation mode.
        device: "auto", "cpu", "cuda" or "cuda:N".
        runtime: see :mod:`frontend.runtime`.
        precision: the same.
        brief: whether a pair of images is all that is to come, so that the time to load counts too.

    Raises:
        ConfigError: there is no such device or runtime, or it has no such precision.
    """
    from frontend.runtime import check_names, runtime_for

    check_names(runtime, precision)
    where = pick_name(device)
    if where.type == "cpu" and hasattr(network.refiner, "refine_patches") | (network.refiner is None):
        from frontend.cpu_backend import CpuBackend

        return CpuBackend(runtime_for(network, runtime, precision), brief)
    return _on_torch(network, str(where), runtime, precision, brief)


def load_backend(
    name_or_path: str | Path, device: str, runtime: str, precision: str, brief: bool = False
) -> tuple[str, Backend]:
    """The backend of a released model or a weight file, and the model's name.

    Args:
        name_or_path: see :func:`frontend.weights.load_network`.
        device: as for :func:`backend_of_network`.
        runtime: the same.
        precision: the same.
        brief: see :func:`frontend.runtime.load_runtime`.

    Raises:
        WeightsError: there are no such weights, or they cannot be used.
        ConfigError: there is no such device or runtime, or it has no such precision.
    """
    from frontend.runtime import check_names, load_runtime
    from frontend.weights import load_network, resolve

    check_names(runtime, precision)
    where = pick_name(device)
    if where.type == "cpu" and runtime != "torch":
        from frontend.cpu_backend import CpuBackend

        name, _ = resolve(name_or_path)
        return name, CpuBackend(load_runtime(name_or_path, runtime, precision, brief=brief), brief)
    name, network = load_network(name_or_path)
    return name, backend_of_network(network, str(where), runtime, precision, brief)


def _on_torch(network: SuperPointNet, device: str, runtime: str, precision: str, brief: bool) -> Backend:
    if runtime not in ("auto", "torch"):
        raise ConfigError(f"runtime is '{runtime}' on device '{device}'; expected auto or torch there")
    if precision == "int8":
        raise ConfigError(f"precision is 'int8' on device '{device}'; expected auto, float32, bf16 or fp16 there")
    if device == "cpu":
        from frontend.torch_backend import TorchBackend

        return TorchBackend(network, device, "float32" if precision == "auto" else precision)
    from frontend.cuda_backend import CudaBackend

    if precision != "auto":
        return CudaBackend(network, device, precision, brief)
    half = CudaBackend(network, device, "fp16", brief)
    return half if _finds_the_same(half, network) else CudaBackend(network, device, "float32", brief)


def _finds_the_same(backend: Any, network: SuperPointNet) -> bool:
    """Whether a backend finds the keypoints that the network does in float32, and describes them alike."""
    import numpy as np
    import torch

    from frontend.extraction import Batch
    from frontend.model import heatmap
    from frontend.runtime.base import Maps
    from frontend.runtime.parity import HALF_COSINE, TRIAL, least_cosine, same_keypoints, scene

    # the best keypoints of an image with many: on a small one there are some that nobody would take
    images = torch.from_numpy(scene(*TRIAL))[None, None].to(backend.device)
    with torch.inference_mode():
        try:
            found = [network(images), backend.forward(Batch(images, []))]
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:  # no kernel for it in half precision
            return False
        both = [
            Maps(heatmap(maps.logits).cpu().numpy(), maps.descriptors.float().permute(0, 2, 3, 1).cpu().numpy())
            for maps in found
        ]
    if not all(np.isfinite(maps.descriptors).all() for maps in both):
        return False
    alike = least_cosine(both[0].descriptors, both[1].descriptors) >= HALF_COSINE
    return alike and same_keypoints(both[0], both[1])
