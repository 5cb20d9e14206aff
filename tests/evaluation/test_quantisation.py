"""int8: what is quantised, that it still computes the network, and that a loss of accuracy is refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from released_networks import write_manifest
from runtime_networks import unfolded

from frontend.cli.main import main
from frontend.errors import ConfigError, WeightsError
from frontend.evaluation import quantisation
from frontend.runtime import load_runtime
from frontend.runtime.parity import scene
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
    almost.mkdir()
    for file in sorted(photographs.iterdir())[:7]:
        (almost / file.name).write_bytes(file.read_bytes())
    (almost / "00.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match="has 7 photographs; expected 8"):
        quantisation.quantise_model(tmp_path / "net.safetensors", almost)
    for missing, message in ((tmp_path, "has 0 photographs; expected 8"), (tmp_path / "no", "is no folder")):
        with pytest.raises(ConfigError, match=message):
            quantisation.quantise_model(tmp_path / "net.safetensors", missing)
