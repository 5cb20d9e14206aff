"""What the latency benchmark times of this project, and the usual SuperPoint that it is measured against."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from frontend.converters import convert_state_dict, original_state_dict
from frontend.errors import ConfigError, FrontendError
from frontend.evaluation.latency import Case, Outcome
from frontend.evaluation.latency_models import ModelUnderTest, UInt8Image
from frontend.extractor import ExtractorConfig, StageTimes, SuperPoint
from frontend.model import DenseMaps, SuperPointNet
from frontend.types import Features, Float32Array
from frontend.weights import list_matchers, load_network, resolve_matcher

USUAL = "usual SuperPoint"
"""Name of the baseline: a network in eager PyTorch with the usual post-processing."""

HOMOGRAPHY = "homography, default"
"""Name of what :class:`frontend.pipeline.MatchPipeline` fits homographies with."""


def extraction_case(
    extractor: SuperPoint,
    label: str,
    pair: tuple[str, str],
    images: Sequence[UInt8Image],
    *,
    keypoints: int = 1024,
    batch: int = 1,
) -> Case:
    """A case that extracts a batch of images, other ones each time, and times its stages.

    Args:
        extractor: of any settings; the number of keypoints is changed.
        label: name of the method.
        pair: runtime and precision.
        images: of one size.
        keypoints: asked for in each.
        batch: images of a call.
    """
    configured = extractor.configured(replace(extractor.config, max_keypoints=keypoints))
    source: Iterator[UInt8Image] = cycle(images)

    def call() -> Outcome:
        times = StageTimes()
        features = configured.extract_batch([next(source) for _ in range(batch)], times)
        return Outcome(dict(times.ms), round(sum(map(len, features)) / batch))

    height, width = images[0].shape[:2]
    return Case(label, call, *pair, size=(width, height), batch=batch, keypoints=keypoints)


class UsualSuperPoint:
    """A network as it is commonly run: eager float32, max-pool NMS, boolean indexing, normalised dense descriptors.

    Detection as in the paper (section 3.2); suppression by repeated max-pooling, five passes of 9 x 9; keypoints by
    boolean indexing; descriptors sampled from the dense map after it was normalised as a whole (section 3.3).

    Args:
        network: without a refiner.
        keypoints: at most.
        threshold: probability that a keypoint exceeds.
        device: of the network.
    """

    RADIUS = 4
    BORDER = 4

    def __init__(self, network: SuperPointNet, keypoints: int, threshold: float, device: str = "cpu") -> None:
        if network.refiner is not None:
            raise ConfigError("the usual SuperPoint has no refiner; expected a network without one")
        self.network = network.eval().to(device)
        self.keypoints, self.threshold, self.device = keypoints, threshold, device

    @torch.inference_mode()
    def extract(self, image: UInt8Image, times: StageTimes | None = None) -> Features:
        """Features of an (H, W, 3) uint8 BGR image with sides that are multiples of 8."""
        times = times or StageTimes()
        began = time.perf_counter()
        gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32) / 255.0
        tensor = torch.from_numpy(gray)[None, None].to(self.device)
        began = self._lap(times, "preprocess", began)
        maps: DenseMaps = self.network(tensor)
        began = self._lap(times, "network", began)
        xy, scores, descriptors = self._postprocess(maps)
        features = Features(xy.cpu().numpy(), scores.cpu().numpy(), descriptors.cpu().numpy(), gray.shape[::-1])
        self._lap(times, "keypoints", began)
        return features

    def _lap(self, times: StageTimes, stage: str, began: float) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        times.add(stage, now - began)
        return now

    def _postprocess(self, maps: DenseMaps) -> tuple[Tensor, Tensor, Tensor]:
        heat = functional.pixel_shuffle(maps.logits.softmax(1)[:, :-1], 8)
        heat = self._suppress(heat)[0, 0]
        height, width = heat.shape
        rows, columns = torch.nonzero(heat > self.threshold, as_tuple=True)
        scores = heat[rows, columns]
        inside = (rows >= self.BORDER) & (rows < height - self.BORDER)
        inside &= (columns >= self.BORDER) & (columns < width - self.BORDER)
        rows, columns, scores = rows[inside], columns[inside], scores[inside]
        scores, best = scores.topk(min(self.keypoints, len(scores)))
        xy = torch.stack([columns[best], rows[best]], dim=1).float()
        dense = functional.normalize(maps.descriptors, dim=1)
        grid = (xy + 0.5) / xy.new_tensor([width, height]) * 2 - 1
        sampled = functional.grid_sample(dense, grid[None, None], mode="bilinear", align_corners=False)
        return xy, scores, functional.normalize(sampled[0, :, 0].T, dim=1)

    def _suppress(self, heat: Tensor) -> Tensor:
        """Keep local maxima, then twice those among what no kept one covers."""

        def spread(values: Tensor) -> Tensor:
            return functional.max_pool2d(values, 2 * self.RADIUS + 1, stride=1, padding=self.RADIUS)

        nothing = torch.zeros_like(heat)
        kept = heat == spread(heat)
        for _ in range(2):
            covered = spread(kept.float()) > 0
            rest = torch.where(covered, nothing, heat)
            kept = kept | ((rest == spread(rest)) & ~covered)
        return torch.where(kept, heat, nothing)


def usual_case(model: ModelUnderTest, images: Sequence[UInt8Image], keypoints: int, device: str) -> Case:
    """The baseline: the same network in eager float32 PyTorch; the paper's without its refiner, as others deploy it.

    Raises:
        ConfigError: another network with a refiner, which no usual SuperPoint has.
    """
    network = load_network(model.source)[1]
    if network.refiner is not None:
        config, state = convert_state_dict(original_state_dict(network), model.label)
        network = SuperPointNet(config)
        network.load_state_dict(state)
    usual = UsualSuperPoint(network, keypoints, ExtractorConfig().detection_threshold, device)
    source = cycle(images)

    def call() -> Outcome:
        times = StageTimes()
        features = usual.extract(next(source), times)
        return Outcome(dict(times.ms), len(features))

    height, width = images[0].shape[:2]
    label = f"{USUAL} ({model.label})"
    return Case(label, call, "torch-eager", size=(width, height), keypoints=keypoints, ours=False)


def pair_case(
    extractor: SuperPoint, label: str, pair: tuple[str, str], images: Sequence[UInt8Image], *, keypoints: int = 1024
) -> Case:
    """Two images to their homography, in a process that is warm. Arguments as for :func:`extraction_case`."""
    from frontend.pipeline import MatchPipeline

    pipeline = MatchPipeline(extractor.configured(replace(extractor.config, max_keypoints=keypoints)))

    def call() -> None:
        pipeline.match(images[0], images[1])

    height, width = images[0].shape[:2]
    return Case(f"{label}, pair", call, *pair, stage="pair", size=(width, height), batch=2, keypoints=keypoints)


def random_features(count: int, dim: int, size: tuple[int, int], seed: int) -> Features:
    """Features without an image: points anywhere, unit descriptors in random directions."""
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(count, dim)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    points = rng.uniform((0, 0), np.array(size) - 1.0, (count, 2)).astype(np.float32)
    return Features(points, np.linspace(1, 0.1, count, dtype=np.float32), descriptors, size)


def planar_matches(count: int, outliers: float, seed: int) -> tuple[Float32Array, Float32Array]:
    """(N, 2) points of 640 x 480 and where a homography takes them, with noise of 1 px; a part of them anywhere."""
    rng = np.random.default_rng(seed)
    H = np.array([[0.9, -0.15, 60.0], [0.12, 1.05, -20.0], [1e-4, -5e-5, 1.0]])
    points0 = rng.uniform((0, 0), (640, 480), (count, 2))
    mapped = np.column_stack([points0, np.ones(count)]) @ H.T
    points1 = mapped[:, :2] / mapped[:, 2:] + rng.normal(0, 1.0, (count, 2))
    wrong = round(outliers * count)
    points1[:wrong] = rng.uniform((0, 0), (640, 480), (wrong, 2))
    return points0.astype(np.float32), points1.astype(np.float32)


def learned_cases(keypoints: int, device: str) -> list[Case | str]:
    """The released learned matchers on ``keypoints`` x ``keypoints`` random features: all layers always run.

    Returns:
        For each its case, or why there is none.
    """
    from frontend.matching.lightglue import LightGlue
    from frontend.matching.lightglue_weights import load_matcher

    cases: list[Case | str] = []
    for info in list_matchers().values():
        try:
            matcher = LightGlue.from_pretrained(info.features, device=device)
            config = load_matcher(resolve_matcher(info.features)).config
        except FrontendError as error:
            cases.append(str(error))
            continue
        features = [random_features(keypoints, matcher.input_dim, (640, 480), seed) for seed in (0, 1)]

        def match(matcher: LightGlue = matcher, features: list[Features] = features) -> None:
            matcher.match(*features)

        facts: Mapping[str, Any] = {"stage": "learned matching", "size": None, "keypoints": keypoints}
        label = f"LightGlue for {info.features}, {config.layers} layers of {config.dim}"
        cases.append(Case(label, match, matcher.runtime, **facts))
    return cases


def matching_cases(keypoints: int, dim: int, device: str) -> list[Case]:
    """Matching of ``keypoints`` x ``keypoints`` descriptors; homographies of as many matches, half of them wrong.

    OpenCV's USAC_MAGSAC, which is called as ours is, is what ours is compared with.
    """
    from frontend.homography_estimation import estimate_homography
    from frontend.kernels import load_kernels
    from frontend.matching import match_features
    from frontend.pipeline import PipelineConfig

    load_kernels()  # as an extractor does, whatever section runs first
    features = [random_features(keypoints, dim, (640, 480), seed) for seed in (0, 1)]
    points = cycle([planar_matches(keypoints, 0.5, seed) for seed in range(8)])
    default = PipelineConfig().ransac_method

    def match() -> None:
        match_features(*features, matcher="mnn", device=device)

    def fit(method: Any) -> Callable[[], None]:
        def call() -> None:
            estimate_homography(*next(points), method=method)

        return call

    facts: Mapping[str, Any] = {"size": None, "keypoints": keypoints}
    cases = [Case(f"mutual nearest neighbours, {dim}-d", match, "frontend", stage="matching", **facts)]
    for method in (default, *(name for name in ("ransac", "opencv") if name != default)):
        other = "homography, USAC_MAGSAC (OpenCV)" if method == "opencv" else f"homography, {method}"
        name = HOMOGRAPHY if method == default else other
        ours = method in (default, "ransac")
        cases.append(Case(name, fit(method), "frontend", stage="homography", ours=ours, **facts))
    return cases
