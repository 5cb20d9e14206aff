"""What is timed computes what it should: the usual SuperPoint against loops, images with texture, peers' cases."""

from __future__ import annotations

import functools
import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import torch

from frontend.errors import ConfigError, ImageError
from frontend.evaluation import latency_peers
from frontend.evaluation.latency import Case
from frontend.evaluation.latency_cases import (
    UsualSuperPoint,
    extraction_case,
    learned_cases,
    matching_cases,
    pair_case,
    planar_matches,
    usual_case,
)
from frontend.evaluation.latency_models import (
    ImageSource,
    default_models,
    find_model,
    find_models,
    open_extractor,
    runtimes_for,
)
from frontend.evaluation.latency_process import cold_start_cases, commit, machine, measure_memory
from frontend.matching.lightglue import LightGlue
from frontend.matching.lightglue_weights import load_matcher
from frontend.model import DenseMaps, ModelConfig, SuperPointNet
from frontend.pipeline import MatchPipeline
from frontend.weights import list_matchers, resolve_matcher, save_network

TINY = ModelConfig(encoder="vgg(channels=[8, 8, 16, 16])", detector="paper", descriptor="paper", descriptor_dim=32)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    save_network(path, SuperPointNet(TINY).eval())
    return path


def test_images_have_texture_everywhere(tmp_path: Path) -> None:
    source = ImageSource()
    images = source.of_size((320, 240))
    assert len(images) == 4
    assert len({image.tobytes() for image in images}) == 4
    for image in images:
        assert (image.shape, image.dtype) == ((240, 320, 3), np.uint8)
        blocks = image[..., 1].reshape(6, 40, 8, 40).std(axis=(1, 3))
        assert blocks.min() > 5
    assert source.of_size((320, 240)) is images
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((50, 60), np.uint8))  # gray
    assert ImageSource.of(tmp_path).of_size((64, 48))[0].shape == (48, 64, 3)
    assert ImageSource.of(tmp_path / "a.png").of_size((64, 48))[0].shape == (48, 64, 3)
    (tmp_path / "none").mkdir()
    with pytest.raises(ImageError, match="has no images"):
        ImageSource.of(tmp_path / "none")


def loop_keypoints(heat: np.ndarray, threshold: float, border: int, radius: int) -> list[tuple[int, int]]:
    """Local maxima, then twice the maxima of what no kept pixel covers; pixel by pixel."""
    height, width = heat.shape
    kept: set[tuple[int, int]] = set()

    def window(y: int, x: int) -> list[tuple[int, int]]:
        rows = range(max(0, y - radius), min(height, y + radius + 1))
        return [(v, u) for v in rows for u in range(max(0, x - radius), min(width, x + radius + 1))]

    for _ in range(3):
        covered = {place for point in kept for place in window(*point)}
        free = {(y, x): heat[y, x] for y in range(height) for x in range(width) if (y, x) not in covered}
        kept |= {
            (y, x)
            for (y, x), value in free.items()
            if value >= max(free.get(place, 0.0) for place in window(y, x)) and value > 0
        }
    inside = [
        (y, x)
        for y, x in kept
        if border <= y < height - border and border <= x < width - border and heat[y, x] > threshold
    ]
    return sorted(inside, key=lambda point: -heat[point])


def test_the_usual_superpoint_equals_loops() -> None:
    torch.manual_seed(1)
    network = SuperPointNet(TINY).eval()
    logits, descriptors = torch.randn(1, 65, 5, 6) * 2, torch.randn(1, 32, 5, 6)
    usual = UsualSuperPoint(network, keypoints=12, threshold=0.02)
    found = [part.numpy() for part in usual._postprocess(DenseMaps(logits, descriptors))]
    exponents = np.exp(logits[0].numpy().astype(np.float64))
    probabilities = exponents / exponents.sum(axis=0)
    heat = np.zeros((40, 48))
    for y in range(40):
        for x in range(48):
            heat[y, x] = probabilities[8 * (y % 8) + x % 8, y // 8, x // 8]
    expected = loop_keypoints(heat, 0.02, 4, 4)
    assert len(expected) > 12
    np.testing.assert_array_equal(found[0], [(x, y) for y, x in expected[:12]])
    np.testing.assert_allclose(found[1], [heat[point] for point in expected[:12]], rtol=1e-5)
    dense = descriptors[0].numpy().astype(np.float64)
    dense /= np.linalg.norm(dense, axis=0)
    for (y, x), row in zip(expected[:12], found[2], strict=True):
        # cell centres lie at 3.5, 11.5, ...; beyond the outermost the map is zero
        v, u = (y - 3.5) / 8, (x - 3.5) / 8
        value = np.zeros(32)
        for i in range(5):
            for j in range(6):
                value += max(0.0, 1 - abs(v - i)) * max(0.0, 1 - abs(u - j)) * dense[:, i, j]
        np.testing.assert_allclose(row, value / np.linalg.norm(value), atol=1e-5)


def test_cases_of_a_model(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = find_model(str(tiny), tmp_path)
    assert model.label == "tiny"
    images = ImageSource().of_size((160, 120))
    extractor = open_extractor(model, "torch", "float32", "cpu")
    case = extraction_case(extractor, model.label, ("torch", "float32"), images, keypoints=50, batch=3)
    outcome = case.call()
    assert outcome is not None
    assert outcome.keypoints == 50
    assert {"preprocess", "network", "keypoints"} <= set(outcome.stages)
    assert (case.size, case.batch, case.keypoints, case.ours) == ((160, 120), 3, 50, True)
    both = pair_case(extractor, model.label, ("torch", "float32"), images, keypoints=60)
    found: list[int] = []
    match = MatchPipeline.match
    with monkeypatch.context() as patch:
        patch.setattr(MatchPipeline, "match", lambda *given: found.append(len(match(*given).features0)))
        assert both.call() is None
    assert (both.stage, both.batch, both.keypoints, found) == ("pair", 2, 60, [60])
    usual = usual_case(model, images, 50, "cpu")
    outcome = usual.call()
    assert outcome is not None
    assert outcome.keypoints == 50
    assert not usual.ours
    assert usual.method == "usual SuperPoint (tiny)"
    with pytest.raises(ConfigError, match="no refiner"):
        UsualSuperPoint(SuperPointNet(ModelConfig(refiner="patch")), 10, 0.1)


def test_the_paper_s_network_is_usual_without_its_refiner(tmp_path: Path) -> None:
    images = ImageSource().of_size((160, 120))
    outcome = usual_case(find_model("vgg-refined", tmp_path), images, 50, "cpu").call()
    assert outcome is not None
    assert set(outcome.stages) == {"preprocess", "network", "keypoints"}
    with pytest.raises(ConfigError, match="encoder 'compact' has no superpoint_v1 layout"):
        usual_case(find_model("edge", tmp_path), images, 50, "cpu")


def test_presets_get_the_same_random_weights(tmp_path: Path) -> None:
    first = find_model("edge-coarse", tmp_path)
    weights = Path(first.source).read_bytes()
    torch.manual_seed(5)
    assert Path(find_model("edge-coarse", tmp_path).source).read_bytes() == weights
    assert first.label == "edge-coarse, random weights"
    assert not first.trained


def test_what_is_measured_by_default() -> None:
    assert default_models()[0] == "superpoint-edge"
    assert {"superpoint-vgg", "vgg"} & set(default_models())
    assert default_models(distinct=True) == [name for name in default_models() if name != "superpoint-synthetic"]
    pairs = runtimes_for("cpu")
    assert pairs[0] == ("torch", "float32")
    assert len(set(pairs)) == len(pairs)
    brief = runtimes_for("cpu", brief=True)
    assert set(brief) <= set(pairs)
    assert {name for name, _ in brief} == {name for name, _ in pairs}
    assert {precision for _, precision in brief} <= {"float32", "int8", "bf16"}
    assert ("torch", "bf16") not in brief
    assert ("torch", "bf16") not in pairs or ("torch", "bf16") in runtimes_for("cpu", ["torch"], brief=True)
    assert runtimes_for("cpu", ["torch"], ["float32"]) == [("torch", "float32")]
    assert ("torch", "bf16") in runtimes_for("cuda")
    with pytest.raises(ConfigError, match=r"no runtime of \['torch'\] in \['fp16'\]"):
        runtimes_for("cpu", ["torch"], ["fp16"])
    with pytest.raises(ConfigError, match="precision is 'fp61'; expected of: float32, bf16, fp16, int8"):
        runtimes_for("cuda", (), ["fp16", "fp61"])
    with pytest.raises(ConfigError, match="runtime is 'onnx'; expected of: torch, onnxruntime, openvino, ncnn"):
        runtimes_for("cpu", ["torch", "onnx"])


def test_models_of_one_name_are_told_apart(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / tiny.name
    other.parent.mkdir()
    other.write_bytes(tiny.read_bytes())
    names = [str(tiny), str(other), "superpoint-slim"]
    assert [model.label for model in find_models(names, tmp_path)] == names
    assert [model.label for model in find_models(names[:1], tmp_path)] == [tiny.stem]


def test_planar_matches_are_of_one_homography() -> None:
    points0, points1 = planar_matches(400, 0.5, 0)
    found, mask = cv2.findHomography(points0, points1, cv2.USAC_MAGSAC, 3.0)
    assert found is not None
    assert 0.45 < mask.mean() < 0.55
    assert not mask[:200].mean() > 0.1


@pytest.mark.parametrize("name", ["sift", "orb"])
def test_peers_find_keypoints(name: str) -> None:
    case = latency_peers.extractor_case(name, ImageSource().of_size((320, 240)), 100, "cpu")
    assert isinstance(case, Case)
    outcome = case.call()
    assert outcome is not None
    assert 90 <= (outcome.keypoints or 0) <= 110


@pytest.mark.parametrize("name", ["xfeat", "aliked", "disk"])
def test_networks_of_others_find_keypoints(name: str) -> None:
    pytest.importorskip("kornia")
    images = ImageSource().of_size((96, 64))
    case = latency_peers.extractor_case(name, images, 20, "cpu")
    assert isinstance(case, Case), case
    outcome = case.call()
    assert outcome is not None
    assert outcome.keypoints == 20


def test_a_peer_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Case:
        raise RuntimeError("first line\nsecond")

    images = ImageSource().of_size((64, 48))
    monkeypatch.setitem(latency_peers.EXTRACTORS, "broken", ("cv2", broken))
    monkeypatch.setitem(latency_peers.EXTRACTORS, "absent", ("no_such_package", broken))
    assert latency_peers.extractor_case("broken", images, 10, "cpu") == "RuntimeError: first line"
    assert latency_peers.extractor_case("absent", images, 10, "cpu") == "no_such_package is not installed"


def test_matchers(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = matching_cases(64, 32, "cpu")
    assert [case.stage for case in cases] == ["matching", "homography", "homography"]
    assert [(case.method, case.ours) for case in cases[1:]] == [
        ("homography, default", True),
        ("homography, USAC_MAGSAC (OpenCV)", False),
    ]
    for case in cases:
        case.call()
    for name in ("bfmatcher", "match_mnn"):
        case_ = latency_peers.matcher_case(name, 64, 32, "cpu")
        assert isinstance(case_, Case)
        assert (case_.stage, case_.size, case_.ours) == ("matching", None, False)


def test_learned_matchers_say_how_large_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    in_torch = functools.partial(LightGlue.from_pretrained, runtime="torch")  # without an export
    monkeypatch.setattr(LightGlue, "from_pretrained", in_torch)
    cases = learned_cases(16, "cpu")
    assert len(cases) == len(list_matchers())
    for case, info in zip(cases, list_matchers().values(), strict=True):
        config = load_matcher(resolve_matcher(info.features)).config
        assert isinstance(case, Case), case
        assert case.method == f"LightGlue for {info.features}, {config.layers} layers of {config.dim}"
        assert (case.stage, case.ours) == ("learned matching", True)


def test_kornias_lightglue_runs_all_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    feature = pytest.importorskip("kornia.feature")
    calls: list[int] = []
    layer = type(feature.LightGlue(features=None, input_dim=32).transformers[0])
    forward = layer.forward

    def counted(*given: Any, **options: Any) -> Any:
        calls.append(1)
        return forward(*given, **options)

    monkeypatch.setattr(layer, "forward", counted)
    case = latency_peers.matcher_case("lightglue-kornia", 64, 32, "cpu")
    assert isinstance(case, Case), case
    assert (case.stage, case.ours, case.method) == (
        "learned matching",
        False,
        "LightGlue, 9 layers of 256 (kornia, random weights)",
    )
    assert len(calls) == 9  # that it works was tried once


class Recorder(torch.nn.Module):
    """Stands in for another project's matcher: keeps what it was made with and called with."""

    made: ClassVar[list[dict[str, object]]] = []
    called: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__()
        self.made.append({"arguments": arguments, **options})

    def forward(self, data: dict[str, Any]) -> dict[str, torch.Tensor]:
        self.called.append(data)
        return {"matches0": torch.zeros(1, 64, dtype=torch.long)}


def test_matchers_of_projects_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, attribute in (
        ("lightglue", "LightGlue"),
        ("hloc", ""),
        ("hloc.matchers.nearest_neighbor", "NearestNeighbor"),
    ):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        if attribute:
            setattr(module, attribute, Recorder)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setattr(Recorder, "called", [])
    learned = latency_peers.matcher_case("lightglue", 64, 32, "cpu")
    assert isinstance(learned, Case)
    assert learned.stage == "learned matching"
    assert isinstance(latency_peers.matcher_case("hloc", 64, 32, "cpu"), Case)
    # no weights are asked for, and no layer is left out
    assert Recorder.made[0] == {
        "arguments": (),
        "features": None,
        "input_dim": 32,
        "depth_confidence": -1,
        "width_confidence": -1,
    }
    view = Recorder.called[0]["image1"]
    assert view["keypoints"].shape == (1, 64, 2)
    assert view["descriptors"].shape == (1, 64, 32)
    assert view["image_size"].tolist() == [[640, 480]]
    assert Recorder.called[1]["descriptors0"].shape == (1, 32, 64)


def test_whole_processes(tiny: Path, tmp_path: Path) -> None:
    images = ImageSource().of_size((160, 120))
    (case,) = cold_start_cases(images, tmp_path, str(tiny))
    assert case.call() is None
    (other,) = cold_start_cases(images, tmp_path, str(tiny), ("onnxruntime", "bf16"))
    with pytest.raises(ConfigError, match="onnxruntime on this CPU has no instructions for it"):
        other.call()
    (slow,) = cold_start_cases(images, tmp_path, str(tiny), limit_s=0.01)
    with pytest.raises(ConfigError, match="superpoint-match had not ended after 0 s"):
        slow.call()
    (broken,) = cold_start_cases(images, tmp_path, str(tiny), keypoints=0)
    with pytest.raises(ConfigError, match=r"superpoint-match ended with 2: .*--max-keypoints: '0' given"):
        broken.call()
    memory = measure_memory(("tiny", str(tiny)), ("torch", "float32"), "cpu", (160, 120), 8, None)
    assert memory.images == 8
    assert 20 < memory.loaded_mib < memory.peak_mib < 4000
    with pytest.raises(ConfigError, match="took more than"):
        measure_memory(("tiny", str(tiny)), ("torch", "float32"), "cpu", (160, 120), 8, 0.01)


def test_the_machine_and_the_commit_are_named() -> None:
    found = machine()
    assert found["cpu"]
    assert found["cores"] >= 1
    assert torch.__version__.split("+")[0] == found["versions"]["torch"].split("+")[0]
    name = commit()
    assert name is None or len(name.split("-")[0]) == 40
