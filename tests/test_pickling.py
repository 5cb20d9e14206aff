"""Extractors, pipelines and matchers in other processes: made again from what they were loaded from."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from runtime_networks import network, unfolded
from toy_matchers import SMALL, features, release
from toy_matchers import network as toy_network

from frontend.errors import ConfigError
from frontend.extraction import ExtractorConfig
from frontend.extractor import SuperPoint
from frontend.matching import find_matcher
from frontend.matching.lightglue import LightGlue
from frontend.pipeline import MatchPipeline, PipelineConfig
from frontend.weights import save_network


@pytest.fixture
def extractor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SuperPoint:
    """Of a file named from its folder, in which the copies are not made."""
    save_network(tmp_path / "net.safetensors", unfolded("edge"))
    monkeypatch.chdir(tmp_path)
    config = ExtractorConfig(detection_threshold=0.0, max_keypoints=30)
    extractor = SuperPoint.from_pretrained("net.safetensors", device="cpu", runtime="torch", precision="float32")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    return extractor.configured(config)


def test_what_was_loaded_can_be_pickled_and_copied(extractor: SuperPoint) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 80), dtype=np.uint8)
    expected = extractor.extract(image)
    for again in (pickle.loads(pickle.dumps(extractor)), copy.deepcopy(extractor), copy.copy(extractor)):
        assert (again.name, again.config) == (extractor.name, extractor.config)
        assert (again.runtime, again.precision, str(again.device)) == ("torch", "float32", "cpu")
        np.testing.assert_array_equal(again.extract(image).descriptors, expected.descriptors)
    pipeline = MatchPipeline(extractor, PipelineConfig(geometry="none", seed=3))
    again = pickle.loads(pickle.dumps(pipeline))
    assert again.config == pipeline.config
    np.testing.assert_array_equal(
        again.match(image, image).matches.matches, pipeline.match(image, image).matches.matches
    )


def test_networks_at_hand_cannot_be_pickled_or_copied(extractor: SuperPoint) -> None:
    made = SuperPoint(network("edge"), name="mine", device="cpu")
    for each in (made, SuperPoint.of(extractor.backend, name="mine"), made.configured(ExtractorConfig(9))):
        for act in (pickle.dumps, copy.deepcopy):
            with pytest.raises(
                ConfigError, match=r"^extractor 'mine' of a network at hand cannot be pickled or copied"
            ):
                act(each)
    with pytest.raises(ConfigError, match=r"^matcher 'lightglue' of a network at hand cannot be pickled or copied"):
        pickle.dumps(LightGlue.of(toy_network(SMALL)))


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_matchers_can_be_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    pytest.importorskip(runtime)
    monkeypatch.setenv("SUPERPOINT_WEIGHTS_DIR", str(tmp_path / "weights"))
    path = release(tmp_path / "weights")
    pair = features(20, 3), features(30, 3)
    matcher = LightGlue.from_pretrained(os.path.relpath(path), runtime=runtime, threshold=0.05)
    for again in (pickle.loads(pickle.dumps(matcher)), copy.deepcopy(matcher)):
        assert (again.runtime, again.threshold, again.name) == (runtime, 0.05, matcher.name)
        np.testing.assert_array_equal(again.match(*pair).matches, matcher.match(*pair).matches)
    for name in ("mnn", "lightglue", str(path)):
        found = find_matcher(name)
        again = pickle.loads(pickle.dumps(found))
        np.testing.assert_array_equal(again(*pair).matches, found(*pair).matches)
