"""Graphs of the learned matcher: they match the same, are cached, and passed over where they compute something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import finished, start_python
from toy_matchers import SMALL, features, release

from frontend.errors import ConfigError, ShapeError
from frontend.matching import load_matcher_of, match_features
from frontend.matching.lightglue import LightGlue
from frontend.matching.lightglue_graph import export_graph, load_graph, open_graph
from frontend.matching.lightglue_network import LightGlueNet
from frontend.matching.lightglue_weights import save_matcher
from frontend.runtime.store import folder_of
from frontend.weights import sha256_of


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPERPOINT_WEIGHTS_DIR", str(tmp_path / "weights"))
    return release(tmp_path / "weights")


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_exported_graphs_match_the_same(weights: Path, runtime: str) -> None:
    pytest.importorskip(runtime)
    reference = LightGlue.from_pretrained(weights, runtime="torch", threshold=0.0)
    exported = LightGlue.from_pretrained(weights, runtime=runtime, threshold=0.0)
    assert (reference.runtime, exported.runtime) == ("torch", runtime)
    for count0, count1 in ((70, 70), (1, 90), (45, 2), (33, 58)):
        pair = features(count0, 3), features(count1, 4)
        expected, got = reference.match(*pair), exported.match(*pair)
        assert len(expected)
        np.testing.assert_array_equal(got.matches, expected.matches)
        np.testing.assert_allclose(got.match_scores, expected.match_scores, atol=1e-5)


@pytest.mark.parametrize("runtime", ["torch", "openvino", "onnxruntime"])
def test_a_keypoint_that_is_not_finite_has_no_match_and_spoils_no_other(weights: Path, runtime: str) -> None:
    pytest.importorskip(runtime)
    matcher = LightGlue.from_pretrained(weights, runtime=runtime)
    whole, order = features(40, 3), np.random.default_rng(0).permutation(40)
    turned = replace(whole, keypoints=whole.keypoints[order], descriptors=whole.descriptors[order])
    descriptors, keypoints = whole.descriptors.copy(), whole.keypoints.copy()
    descriptors[3], descriptors[5, 2], keypoints[8, 1] = np.nan, np.inf, np.nan
    broken, kept = replace(whole, descriptors=descriptors, keypoints=keypoints), np.delete(np.arange(40), [3, 5, 8])
    partner = np.argsort(order)[kept]
    got = matcher.match(broken, turned)
    np.testing.assert_array_equal(got.matches, np.stack([kept, partner], axis=1))
    assert ((got.match_scores > 0.5) & (got.match_scores <= 1)).all()
    back = matcher.match(turned, broken)
    np.testing.assert_array_equal(back.matches[np.argsort(back.matches[:, 1])], np.stack([partner, kept], axis=1))
    assert len(matcher.match(replace(whole, descriptors=descriptors * np.float32(np.nan)), turned)) == 0
    with pytest.raises(ShapeError, match=r"image_size is \(0, 0\); expected \(width, height\) of an image"):
        matcher.match(replace(whole, image_size=(0, 0)), turned)


def test_graphs_are_cached_and_torch_is_not_needed_then(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pytest.importorskip("openvino")
    script = (
        "import sys; from frontend.matching.lightglue import LightGlue; "
        f"m = LightGlue.from_pretrained({str(weights)!r}); print(m.runtime, 'torch' in sys.modules)"
    )
    assert finished(start_python("-c", script)).split() == ["openvino", "True"]
    assert finished(start_python("-c", script)).split() == ["openvino", "False"]
    stored = folder_of(sha256_of(weights)) / "lightglue-1.npz"
    stored.write_bytes(stored.read_bytes()[:-100])
    assert load_graph(sha256_of(weights)) is None
    assert finished(start_python("-c", script)).split() == ["openvino", "True"]
    assert load_graph(sha256_of(weights)) is not None


def test_a_graph_that_computes_something_else_is_passed_over(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pytest.importorskip("openvino")
    torch.manual_seed(7)
    save_matcher(tmp_path / "other.safetensors", LightGlueNet(SMALL))
    right = export_graph(weights, sha256_of(weights))
    wrong = export_graph(tmp_path / "other.safetensors", "0" * 64)
    with pytest.raises(ConfigError, match="runtime 'openvino' does not compute this matcher: probabilities are off by"):
        open_graph(replace(right, model=wrong.model), "openvino")
    with pytest.raises(ConfigError, match="runtime 'openvino' is installed, but cannot be used: "):
        open_graph(replace(right, model=b"no graph"), "openvino")
    # its answers under the right weights' checksum
    damaged = folder_of(sha256_of(weights)) / "lightglue-1.npz"
    with np.load(damaged) as held:
        arrays = dict(held)
    np.savez(damaged, **{**arrays, "model": np.frombuffer(wrong.model, np.uint8)})
    assert LightGlue.from_pretrained(weights).runtime == "torch"
    with pytest.raises(ConfigError, match="does not compute this matcher"):
        LightGlue.from_pretrained(weights, runtime="openvino")


def test_runtimes_that_are_not_there_are_refused(weights: Path) -> None:
    with pytest.raises(ConfigError, match="runtime of the matcher is 'ncnn'; expected auto or one of: torch"):
        LightGlue.from_pretrained(weights, runtime="ncnn")
    with pytest.raises(ConfigError, match="device is 'cuda:99'; this machine has"):
        LightGlue.from_pretrained(weights, device="cuda:99")


def test_a_brief_use_loads_what_is_there_soonest(weights: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    assert LightGlue.from_pretrained(weights).runtime == "openvino"
    assert LightGlue.from_pretrained(weights, brief=True).runtime == "onnxruntime"
    load_matcher_of("toy", 16, matcher="lightglue", brief=True)
    load_matcher_of("toy", 16, matcher="lightglue")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LightGlue, "from_pretrained", lambda *_, **__: pytest.fail("it is loaded already"))
        assert len(match_features(features(9, 0), features(9, 0), matcher="lightglue")) == 9
