"""int8: what is quantised, that it still computes the network, and that a loss of accuracy is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import cv2
import numpy as np
import pytest
from released_networks import write_manifest
from runtime_networks import unfolded

from frontend.cli.main import main
from frontend.errors import ConfigError, DataError, WeightsError
from frontend.evaluation import quantisation
from frontend.evaluation.homography import MMA_THRESHOLDS, PairResult
from frontend.runtime import load_runtime
from frontend.runtime.parity import scene
from frontend.runtime.store import Graphs
from frontend.types import Features
from frontend.weights import save_network


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(8):
        cv2.imwrite(str(folder / f"{seed}.png"), (scene(120, 160, seed) * 255).astype(np.uint8))
    return folder


def test_a_model_is_quantised_measured_and_used(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(quantisation, "_PAIRS", 8)
    monkeypatch.setattr(quantisation, "_MOST_PAIRS", 8)
    weights = tmp_path / "net.safetensors"
    save_network(weights, unfolded("edge"))
    command = ["export", "--model", str(weights), "--precision", "int8", "--calibration", str(photographs)]
    command += ["--tuning-steps", "2"]
    monkeypatch.setattr(quantisation, "_LARGEST_DROP", -2.0)
    assert main(command) == 2
    assert "int8 is refused: homography accuracy drops by" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="has no such graph"):
        load_runtime(weights, "onnxruntime", "int8")
    monkeypatch.setattr(quantisation, "_LARGEST_DROP", 1.0)
    assert main([*command, "--out", str(tmp_path / "int8.pth")]) == 2
    assert "int8.pth: expected a file that ends in .onnx" in capsys.readouterr().err
    released = tmp_path / "int8.onnx.gz"
    assert main([*command, "--out", str(released)]) == 0
    told = capsys.readouterr().out
    assert "net in int8: 8 pairs, " in told
    assert "% of float32's keypoints" in told
    assert "difference in points (standard error): " in told
    untuned = tmp_path / "untuned.onnx.gz"
    assert main([*command[:-1], "0", "--out", str(untuned)]) == 0
    assert untuned.read_bytes() != released.read_bytes()
    assert main([*command[:-1], "-1"]) == 2
    assert "tuning steps are -1; expected 0 or more" in capsys.readouterr().err
    assert main([*command, "--keep-float", "encoder, head"]) == 2
    assert "'head' is no module of this network" in capsys.readouterr().err
    assert load_runtime(weights, "onnxruntime", "int8").precision == "int8"

    # elsewhere, where it came with the weights
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match="has no such graph"):
        load_runtime(weights, "onnxruntime", "int8")
    graph = released.read_bytes()
    assert graph[4:8] == bytes(4)  # no time, so that the same graph gives the same bytes
    write_manifest(tmp_path)
    monkeypatch.setenv("SUPERPOINT_WEIGHTS_DIR", str(tmp_path))
    assert load_runtime("net", "onnxruntime", "int8").precision == "int8"
    released.write_bytes(graph[:-1])
    with pytest.raises(WeightsError, match=r"int8.onnx.gz: sha256 is .*; the manifest expects"):
        load_runtime("net", "openvino", "int8")
    released.unlink()
    with pytest.raises(WeightsError, match="int8 graph of 'net' is missing"):
        load_runtime("net", "openvino", "int8")


def test_too_few_photographs_are_refused(photographs: Path, tmp_path: Path) -> None:
    save_network(tmp_path / "net.safetensors", unfolded("edge"))
    # one that cannot be read does not count, wherever it comes in the order
    almost = tmp_path / "almost"
    for n, file in enumerate(sorted(photographs.iterdir())[:7]):
        target = almost / ("", "below", "below/that")[n % 3] / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    (almost / "00.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match="has 7 photographs; expected 8"):
        quantisation.quantise_model(tmp_path / "net.safetensors", almost)
    (tmp_path / "empty").mkdir()
    for missing, message in ((tmp_path / "empty", "has no image"), (tmp_path / "no", "is missing")):
        with pytest.raises(DataError, match=message):
            quantisation.quantise_model(tmp_path / "net.safetensors", missing)


def _result(error: float) -> PairResult:
    return PairResult("a", "viewpoint", 1, 1, 1, 1, 1.0, 1.0, 1.0, 1.0, np.ones(len(MMA_THRESHOLDS)), error)


def test_losses_and_their_errors_are_of_pairs() -> None:
    random = np.random.default_rng(0)
    float32, int8 = random.exponential(2.0, (2, 50))
    int8[:5] = np.inf  # no homography
    drops, errors = quantisation.paired_drops([_result(e) for e in float32], [_result(e) for e in int8])
    for k, threshold in enumerate((1.0, 3.0, 5.0)):
        differences = [float(a <= threshold) - float(b <= threshold) for a, b in zip(float32, int8, strict=True)]
        mean = sum(differences) / 50
        variance = sum((d - mean) ** 2 for d in differences) / 49
        assert drops[k] == pytest.approx(mean)
        assert errors[k] == pytest.approx((variance / 50) ** 0.5)
    assert (errors > 0).all()


@pytest.mark.parametrize(
    ("every", "pairs"),
    # none lost; a fifth; one in 67, 1.5 points, which 200 pairs cannot tell from one; half a point, nor that
    [(0, 208), (5, 208), (67, 1008), (200, 1008)],
)
def test_as_many_pairs_are_measured_as_it_takes(
    every: int, pairs: int, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def evaluated(*_: object) -> PairResult:
        pair, is_int8 = divmod(next(calls), 2)
        return _result(9.0 if is_int8 and every and pair % every == 0 else 0.5)

    none = Features(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, 8), np.float32), (160, 120))
    monkeypatch.setattr(quantisation, "evaluate_pair", evaluated)
    monkeypatch.setattr(quantisation.select, "build", lambda *_: None)
    monkeypatch.setattr(quantisation, "CpuBackend", lambda _: None)
    monkeypatch.setattr(quantisation.SuperPoint, "of", lambda *_, **__: SimpleNamespace(extract=lambda _: none))
    found = quantisation.measure("net", cast(Graphs, None), sorted(photographs.iterdir()), "onnxruntime")
    assert found.pairs == pairs
    assert found.drop == pytest.approx(len(range(0, pairs, every)) / pairs if every else 0)
