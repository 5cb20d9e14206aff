"""int8: what is quantised, that it still computes the network, and that a loss of accuracy is refused."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from runtime_networks import network, unfolded

from frontend.cli.main import main
from frontend.errors import ConfigError, WeightsError
from frontend.evaluation import quantisation
from frontend.runtime import load_runtime, runtime_for, select
from frontend.runtime.parity import scene
from frontend.weights import save_network

MANIFEST = """
[models.net]
file = "net.safetensors"
sha256 = "{}"
int8 = "int8.onnx.gz"
int8_sha256 = "{}"
version = "1.2"
encoder = "compact"
descriptor_dim = 128
licence = "Apache-2.0"
trained_on = "nothing"
recipe = "none"
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(8):
        cv2.imwrite(str(folder / f"{seed}.png"), (scene(120, 160, seed) * 255).astype(np.uint8))
    return folder


def test_convolutions_in_the_middle_are_quantised_and_nearly_exact() -> None:
    graphs = select.export(network("vgg"))
    images = [scene(64, 96, seed)[None, None] for seed in range(4)]
    int8 = quantisation.quantise_dense(graphs.files["dense"], images)
    assert len(int8) < 0.5 * len(graphs.files["dense"])
    model = onnx.load_from_string(int8)
    initial = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    # the first one and the two before the outputs keep their float32 weights
    assert sum(initial.get(node.input[1]) == onnx.TensorProto.FLOAT for node in convolutions) == 3
    assert len(convolutions) == 12
    given = scene(80, 104, 9)[None, None]
    expected = runtime_for(network("vgg"), "torch", "float32").dense(given).descriptors
    for name in ("onnxruntime", "openvino"):
        quantised = replace(graphs, files={**graphs.files, "dense-int8": int8})
        got = select.build(quantised, name, "int8").dense(given).descriptors
        cosine = (expected * got).sum(-1) / np.linalg.norm(expected, axis=-1) / np.linalg.norm(got, axis=-1)
        assert 0.98 < np.median(cosine) < 0.999999


def _quantised_weights(int8: bytes, part: str) -> list[bool]:
    """Whether the weights of a part's convolutions are in int8, in the order of the graph."""
    model = onnx.load_from_string(int8)
    initial = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Conv" and part in node.name]
    return [initial.get(node.input[1]) != onnx.TensorProto.FLOAT for node in nodes]


def test_a_light_detector_stays_in_float32() -> None:
    images = [scene(64, 96, seed)[None, None] for seed in range(2)]
    slim, edge = (
        quantisation.quantise_dense(select.export(network(preset)).files["dense"], images)
        for preset in ("slim", "edge")
    )
    assert _quantised_weights(slim, "/detector/") == [False] * 4
    assert sum(_quantised_weights(slim, "/descriptor/")) > 5
    assert sum(_quantised_weights(edge, "/detector/hidden")) == 1  # 184,320 weights


def test_one_odd_image_does_not_coarsen_the_steps_for_all() -> None:
    """Ranges are means over the images that calibrate: one of six with five times the range makes it 10 / 6."""
    dense = select.export(network("vgg")).files["dense"]
    images = [scene(64, 96, seed)[None, None] * 0.2 for seed in range(6)]
    odd = [*images[:5], images[5] * 5]

    def scales(given: list[np.ndarray]) -> list[float]:
        model = onnx.load_from_string(quantisation.quantise_dense(dense, given))
        held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        return [float(value) for name, value in held.items() if value.ndim == 0 and name.endswith("_scale")]

    plain, changed = np.array(scales(images)), np.array(scales(odd))
    assert len(plain) == len(changed) > 5
    assert np.median(changed / plain) == pytest.approx(10 / 6, rel=0.05)


def test_a_model_is_quantised_measured_and_used(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(quantisation, "_PAIRS", 8)
    weights = tmp_path / "net.safetensors"
    save_network(weights, unfolded("edge"))
    command = ["export", "--model", str(weights), "--precision", "int8", "--calibration", str(photographs)]
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
    assert "net in int8: 8 pairs" in capsys.readouterr().out
    assert load_runtime(weights, "onnxruntime", "int8").precision == "int8"

    # elsewhere, where it came with the weights
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match="has no such graph"):
        load_runtime(weights, "onnxruntime", "int8")
    graph = released.read_bytes()
    assert graph[4:8] == bytes(4)  # no time, so that the same graph gives the same bytes
    digests = [hashlib.sha256(data).hexdigest() for data in (weights.read_bytes(), graph)]
    (tmp_path / "manifest.toml").write_text(MANIFEST.format(*digests))
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
