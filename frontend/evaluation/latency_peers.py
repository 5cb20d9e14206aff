"""Other projects beside ours in one run: OpenCV's always, kornia's, LightGlue's and hloc's where installed.

Networks have random weights: nothing is downloaded, and time does not depend on them. Where a network keeps what lies
above a threshold, the threshold is set so that it has a few times as many candidates as keypoints, as trained ones
have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frontend.evaluation.latency import Case, Outcome
from frontend.evaluation.latency_cases import random_features

UInt8Image = NDArray[np.uint8]
Make = Callable[[Sequence[UInt8Image], int, str], Case]
"""Images of one size, number of keypoints and device to a case."""

XFEAT = "XFeat (kornia, random weights)"
SIFT = "SIFT (OpenCV)"


def _size(images: Sequence[UInt8Image]) -> tuple[int, int]:
    return images[0].shape[1], images[0].shape[0]


def _opencv(name: str, create: Callable[[int], Any]) -> Make:
    def make(images: Sequence[UInt8Image], keypoints: int, device: str) -> Case:
        detector, source = create(keypoints), cycle(images)

        def call() -> Outcome:
            gray = cv2.cvtColor(next(source), cv2.COLOR_BGR2GRAY)
            found, _ = detector.detectAndCompute(gray, None)
            return Outcome(keypoints=len(found))

        return Case(name, call, "opencv", "uint8", size=_size(images), keypoints=keypoints, ours=False)

    return make


def _tensor(image: UInt8Image, device: str) -> Tensor:
    """(1, 3, H, W) float32 RGB in [0, 1]."""
    rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return torch.from_numpy(rgb).to(device).permute(2, 0, 1)[None].float() / 255.0


def _network_case(
    name: str,
    images: Sequence[UInt8Image],
    keypoints: int,
    device: str,
    extract: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Case:
    source: Iterator[UInt8Image] = cycle(images)

    def call() -> Outcome:
        with torch.inference_mode():
            points, descriptors = (found.cpu().numpy() for found in extract(_tensor(next(source), device)))
        return Outcome(keypoints=min(len(points), len(descriptors)))

    return Case(name, call, "torch-eager", size=_size(images), keypoints=keypoints, ours=False)


def _random(make: Callable[[], Any], device: str) -> Any:
    """A network with the same random weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval().to(device)


def _xfeat(images: Sequence[UInt8Image], keypoints: int, device: str) -> Case:
    """XFeat (Potje et al., CVPR 2024, arXiv 2404.19759)."""
    from kornia.feature import XFeat

    network = _random(lambda: XFeat(top_k=keypoints, detection_threshold=0.0), device)
    with torch.inference_mode():
        # of random weights no pixel is above the default of 0.05
        heat = network._get_kpts_heatmap(network.net(_tensor(images[0], device))[1])
        maxima = heat[torch.nn.functional.max_pool2d(heat, 5, 1, 2) == heat]
        wanted = min(4 * keypoints, len(maxima))
        network.detection_threshold = float(maxima.topk(wanted).values[-1])

    def extract(image: Tensor) -> tuple[Tensor, Tensor]:
        found = network.detectAndCompute(image)[0]
        return found["keypoints"], found["descriptors"]

    return _network_case(XFEAT, images, keypoints, device, extract)


def _aliked(images: Sequence[UInt8Image], keypoints: int, device: str) -> Case:
    """ALIKED-n16 (Zhao et al., TIM 2023, arXiv 2304.03608)."""
    from kornia.feature import ALIKED

    def make() -> Any:
        return ALIKED("aliked-n16", max_num_keypoints=keypoints, detection_threshold=0.0)

    network = _random(make, device)

    def extract(image: Tensor) -> tuple[Tensor, Tensor]:
        found = network(image)[0]
        return found.keypoints, found.descriptors

    return _network_case("ALIKED-n16 (kornia, random weights)", images, keypoints, device, extract)


def _disk(images: Sequence[UInt8Image], keypoints: int, device: str) -> Case:
    """DISK (Tyszkiewicz et al., NeurIPS 2020, arXiv 2006.13566)."""
    from kornia.feature import DISK

    network = _random(DISK, device)

    def extract(image: Tensor) -> tuple[Tensor, Tensor]:
        found = network(image, keypoints, pad_if_not_divisible=True)[0]
        return found.keypoints, found.descriptors

    return _network_case("DISK (kornia, random weights)", images, keypoints, device, extract)


EXTRACTORS: dict[str, tuple[str, Make]] = {
    "sift": ("cv2", _opencv(SIFT, lambda count: cv2.SIFT.create(nfeatures=count))),
    "orb": ("cv2", _opencv("ORB (OpenCV)", lambda count: cv2.ORB.create(nfeatures=count))),
    "xfeat": ("kornia", _xfeat),
    "aliked": ("kornia", _aliked),
    "disk": ("kornia", _disk),
}
"""Extractors by name: the package that each needs, and what makes its case."""


def _descriptors(keypoints: int, dim: int, device: str) -> list[tuple[Tensor, Tensor]]:
    """(N, 2) points and (N, D) descriptors of two images."""
    made = [random_features(keypoints, dim, (640, 480), seed) for seed in (0, 1)]
    return [(torch.from_numpy(f.keypoints).to(device), torch.from_numpy(f.descriptors).to(device)) for f in made]


def _brute_force(keypoints: int, dim: int, device: str) -> Callable[[], None]:
    matcher = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True)
    first, second = (random_features(keypoints, dim, (640, 480), seed).descriptors for seed in (0, 1))

    def call() -> None:
        matcher.match(first, second)

    return call


def _kornia(keypoints: int, dim: int, device: str) -> Callable[[], None]:
    from kornia.feature import match_mnn

    (_, first), (_, second) = _descriptors(keypoints, dim, device)

    def call() -> None:
        match_mnn(first, second)[1].cpu()

    return call


def _hloc(keypoints: int, dim: int, device: str) -> Callable[[], None]:
    from hloc.matchers.nearest_neighbor import NearestNeighbor

    matcher = NearestNeighbor({}).eval().to(device)
    (_, first), (_, second) = _descriptors(keypoints, dim, device)
    data = {"descriptors0": first.T[None].contiguous(), "descriptors1": second.T[None].contiguous()}

    def call() -> None:
        with torch.inference_mode():
            matcher(dict(data))["matches0"].cpu()

    return call


def _lightglue(package: str) -> Callable[[int, int, str], Callable[[], None]]:
    """LightGlue (Lindenberger et al., ICCV 2023, arXiv 2306.13643), all layers: random weights stop anywhere.

    Args:
        package: that its class comes from; the authors' and kornia's are called alike.
    """

    def make(keypoints: int, dim: int, device: str) -> Callable[[], None]:
        made = import_module(package).LightGlue
        options = {"input_dim": dim, "depth_confidence": -1, "width_confidence": -1}
        return _learned(_random(lambda: made(features=None, **options), device), keypoints, dim, device)

    return make


def _learned(network: Any, keypoints: int, dim: int, device: str) -> Callable[[], None]:
    """The call of a LightGlue on random features."""
    size = torch.tensor([[640, 480]], device=device)
    views = {
        f"image{i}": {"keypoints": points[None], "descriptors": descriptors[None], "image_size": size}
        for i, (points, descriptors) in enumerate(_descriptors(keypoints, dim, device))
    }

    def call() -> None:
        with torch.inference_mode():
            network(views)["matches0"].cpu()

    return call


MATCHERS: dict[str, tuple[str, str, str, Callable[[int, int, str], Callable[[], None]]]] = {
    "bfmatcher": ("cv2", "BFMatcher with cross check (OpenCV)", "opencv", _brute_force),
    "match_mnn": ("kornia", "match_mnn (kornia)", "torch-eager", _kornia),
    "hloc": ("hloc", "NearestNeighbor (hloc)", "torch-eager", _hloc),
    "lightglue": (
        "lightglue",
        "LightGlue, 9 layers of 256 (its repository, random weights)",
        "torch-eager",
        _lightglue("lightglue"),
    ),
    "lightglue-kornia": (
        "kornia",
        "LightGlue, 9 layers of 256 (kornia, random weights)",
        "torch-eager",
        _lightglue("kornia.feature"),
    ),
}
"""Matchers by name: the package, a label, the runtime, and what makes the call."""


def extractor_case(name: str, images: Sequence[UInt8Image], keypoints: int, device: str) -> Case | str:
    """The case of a peer, or why there is none.

    Args:
        name: of :data:`EXTRACTORS`.
        images: (H, W, 3) uint8 BGR of one size.
        keypoints: asked for in each.
        device: of networks.
    """
    package, make = EXTRACTORS[name]
    if find_spec(package) is None:
        return f"{package} is not installed"
    return _tried(lambda: make(images, keypoints, device))


def matcher_case(name: str, keypoints: int, dim: int, device: str) -> Case | str:
    """The case of another project's matcher, or why there is none.

    Args:
        name: of :data:`MATCHERS`.
        keypoints: of each image.
        dim: of descriptors.
        device: of networks.
    """
    package, label, runtime, make = MATCHERS[name]
    if find_spec(package) is None:
        return f"{package} is not installed"

    def made() -> Case:
        call = make(keypoints, dim, device)
        stage = "learned matching" if name.startswith("lightglue") else "matching"
        return Case(label, call, runtime, stage=stage, size=None, keypoints=keypoints, ours=False)

    return _tried(made)


def _tried(make: Callable[[], Case]) -> Case | str:
    """A case that works once; of other packages' versions no more is known."""
    try:
        case = make()
        case.call()
    except Exception as error:
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:120]}"
    return replace(case, warm=True)
