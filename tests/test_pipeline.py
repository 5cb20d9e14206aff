"""What the pipeline refuses, and what it hands on to the estimators."""

from __future__ import annotations

import math

import numpy as np
import pytest
from runtime_networks import network

from frontend import pipeline as pipelines
from frontend.camera import Camera
from frontend.errors import ConfigError, RegistryError, ShapeError, WeightsError
from frontend.extractor import SuperPoint
from frontend.pipeline import MatchPipeline, PipelineConfig
from frontend.types import Features, Homography, Status


@pytest.fixture(scope="module")
def extractor() -> SuperPoint:
    return SuperPoint(network("edge"), device="cpu")


@pytest.mark.parametrize("rotations", [1, 4])
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (None, "image is a NoneType, expected a NumPy array"),  # what cv2.imread gives for a missing file
        (np.zeros(64, np.uint8), r"image has shape \(64,\), expected \(H, W\)"),
    ],
)
def test_what_is_no_image_is_refused(
    extractor: SuperPoint, wrong: np.ndarray | None, said: str, position: int, rotations: int
) -> None:
    pair = [np.zeros((64, 64), np.uint8)] * 2
    pair[position] = wrong  # type: ignore[call-overload]
    pipeline = MatchPipeline(extractor, PipelineConfig(rotations=rotations))
    with pytest.raises(ShapeError, match=said):
        pipeline.match(*pair)
    if position == 1:
        with pytest.raises(ShapeError, match=said):
            pipeline.match(*pair, extractor.extract(pair[0]))


@pytest.mark.parametrize("rotations", [1, 4])
@pytest.mark.parametrize("name", ["mask0", "mask1"])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([[1]], "mask is a list"),
        (np.ones(5, np.bool_), r"mask is \(5,\) bool"),
        (np.ones((80, 64), np.bool_), r"mask is \(80, 64\) bool"),
        (np.ones((64, 80), np.float32), r"mask is \(64, 80\) float32"),
    ],
)
def test_what_is_no_mask_is_refused(
    extractor: SuperPoint, wrong: np.ndarray, said: str, name: str, rotations: int
) -> None:
    pipeline = MatchPipeline(extractor, PipelineConfig(rotations=rotations))
    with pytest.raises(ShapeError, match=rf"^{said}; expected \(64, 80\) bool or uint8$"):
        pipeline.match(*[np.zeros((64, 80), np.uint8)] * 2, **{name: wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        *(({"ransac_threshold": t}, "threshold is .*; expected") for t in (math.inf, math.nan, 1e200, 0.0, 1e-9)),
        *(({"ratio": r}, "ratio is .*; expected") for r in (3.0, 0.0, math.nan)),
        ({"min_similarity": 2.0}, r"min_similarity is 2\.0; expected"),
        ({"seed": -1}, "seed is -1; expected"),
        ({"seed": 2**63}, "seed is .*; expected"),
        ({"seed": 1.5}, r"^seed is 1\.5; expected a whole number$"),
        ({"ransac_threshold": "3"}, "^ransac_threshold is '3'; expected a number of pixels$"),
        ({"ratio": "a"}, "^ratio is 'a'; expected a number$"),
        ({"matcher": "lightglue", "ratio": 0.8}, r"^ratio is 0\.8; a learned matcher has none, matcher 'mnn' does$"),
        ({"matcher": __file__, "ratio": 0.8}, r"^ratio is 0\.8; a learned matcher has none, matcher 'mnn' does$"),
        ({"matcher": "lightglue", "min_similarity": 1.0}, r"^min_similarity is 1\.0; expected a probability below 1"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PipelineConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, 3, ["mnn"]])
def test_what_is_no_name_of_a_matcher_is_refused(wrong: object) -> None:
    with pytest.raises(RegistryError, match=r"^matcher is .*; expected a matcher's name or its weight file$"):
        PipelineConfig(matcher=wrong)  # type: ignore[arg-type]


def test_a_model_without_a_learned_matcher_is_refused_before_it_extracts(
    extractor: SuperPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SuperPoint, "extract_batch", lambda *_, **__: pytest.fail("it extracts"))
    pipeline = MatchPipeline(extractor, PipelineConfig(matcher="lightglue"))
    image = np.zeros((64, 64), np.uint8)
    said = f"there is no learned matcher for features of '{extractor.name}'; expected those of: "
    with pytest.raises(WeightsError, match=said):
        pipeline.match(image, image)


@pytest.mark.parametrize("geometry", ["homography", "fundamental", "essential"])
def test_settings_reach_the_estimator(monkeypatch: pytest.MonkeyPatch, geometry: str) -> None:
    given: dict[str, object] = {}

    def estimate(points0: np.ndarray, *_: object, **settings: object) -> Homography:
        given.update(settings)
        return Homography(None, np.zeros(len(points0), dtype=bool), Status.NO_MODEL)

    monkeypatch.setattr(pipelines, f"estimate_{geometry}", estimate)

    class Extractor:
        device = "cpu"

    config = PipelineConfig(geometry=geometry, ransac_method="opencv", ransac_threshold=2.5, seed=7)
    camera = Camera(np.diag([100.0, 100, 1]))
    features = Features(
        np.zeros((4, 2), np.float32), np.ones(4, np.float32), np.eye(4, dtype=np.float32), (64, 48), "x"
    )
    MatchPipeline(Extractor(), config, (camera, camera)).match_features(features, features)  # type: ignore[arg-type]
    assert (given["threshold"], given["seed"]) == (2.5, 7)
    # the others have one method
    assert given.get("method") == ("opencv" if geometry == "homography" else None)
