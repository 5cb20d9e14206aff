"""int8 by itself: "auto" takes a graph that is there, is the fastest and finds the same; and sizes that stay open."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnx
import pytest
from released_networks import write_manifest
from runtime_networks import network, unfolded

from frontend.errors import WeightsError
from frontend.runtime import load_runtime, runtime_for, select
from frontend.runtime.base import Maps
from frontend.runtime.openvino_runtime import OpenVinoRuntime
from frontend.runtime.parity import finds_the_same, same_descriptors
from frontend.weights import save_network


def turned(graph: bytes) -> bytes:
    """A graph with other descriptors: its last convolution's weights have changed sides."""
    model = onnx.load_from_string(graph)
    name = next(
        held.name for held in model.graph.initializer if "descriptor.out" in held.name and "weight" in held.name
    )
    for held in model.graph.initializer:
        if held.name == name:
            held.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(held)[::-1].copy(), name))
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights with an int8 graph that computes what float32 does; int8 wins every race."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SUPERPOINT_WEIGHTS_DIR", str(tmp_path))
    save_network(tmp_path / "net.safetensors", unfolded("edge"))
    release(tmp_path, select.export(network("edge")).files["dense"])

    def race(runtimes: list[select.Runtime], image: np.ndarray) -> list[tuple[float, float]]:
        return [(1.0, 1.0) if runtime.precision == "int8" else (2.0, 2.0) for runtime in runtimes]

    monkeypatch.setattr(select, "_race", race)
    # not asked of untrained networks: to the probe they answer with logits in the hundreds
    monkeypatch.setattr("frontend.runtime.parity.difference", lambda *_: None)
    return tmp_path


def release(folder: Path, graph: bytes) -> None:
    (folder / "int8.onnx.gz").write_bytes(gzip.compress(graph, mtime=0))
    write_manifest(folder)


def test_auto_takes_a_graph_that_finds_the_same_and_is_the_fastest(released: Path) -> None:
    assert load_runtime("net").precision == "int8"
    assert load_runtime("net", "onnxruntime").precision == "float32"  # a runtime by name races nobody
    # one that comes to be missing or damaged is passed over, and by name it is an error
    whole = (released / "int8.onnx.gz").read_bytes()
    (released / "int8.onnx.gz").write_bytes(whole[:-1])
    assert load_runtime("net").precision != "int8"
    with pytest.raises(WeightsError, match=r"int8.onnx.gz: sha256 is .*; the manifest expects"):
        load_runtime("net", precision="int8")
    (released / "int8.onnx.gz").unlink()
    assert load_runtime("net").precision != "int8"
    with pytest.raises(WeightsError, match="int8 graph of 'net' is missing"):
        load_runtime("net", precision="int8")


def test_what_was_right_of_one_graph_is_not_believed_of_another(released: Path) -> None:
    assert load_runtime("net").precision == "int8"
    release(released, turned(select.export(network("edge")).files["dense"]))
    assert load_runtime("net").precision != "int8"
    assert load_runtime("net", precision="int8").precision == "int8"


def test_a_network_at_hand_needs_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERPOINT_WEIGHTS_DIR", str(tmp_path / "nowhere"))
    assert runtime_for(network("slim")).precision in ("float32", "bf16")


def test_what_is_found_is_compared_on_several_images() -> None:
    """One that passes by itself does not make up for others, nor does one that fails spoil all."""
    random = np.random.default_rng(0)

    def maps(wrong: int) -> Maps:
        heat = np.zeros((1, 240, 320), np.float32)
        heat[0, 8:232:10, 8:312:10] = 1 + np.arange(23 * 31).reshape(23, 31) / 1e4
        heat[0, 8 : 8 + 10 * wrong : 10, 308] = 0
        heat[0, 8 : 8 + 10 * wrong : 10, 303] = 2
        return Maps(heat, np.ones((1, 30, 40, 8), np.float32))

    exact = [maps(0)] * 4
    assert finds_the_same(exact, [maps(0), maps(0), maps(0), maps(12)], "bf16")
    assert not finds_the_same(exact, [maps(0), maps(12), maps(12), maps(12)], "bf16")
    other = maps(0)._replace(descriptors=random.standard_normal((1, 30, 40, 8)).astype(np.float32))
    assert finds_the_same(exact, [other] * 4, "bf16")
    assert not finds_the_same(exact, [*exact[:3], other], "int8")
    assert not finds_the_same([], exact, "int8")
    assert finds_the_same([], exact, "float32")


def test_descriptors_are_the_same_where_all_but_one_of_a_hundred_are() -> None:
    random = np.random.default_rng(0)
    heat = np.zeros((1, 80, 160), np.float32)
    ours = random.standard_normal((1, 10, 20, 16)).astype(np.float32)
    theirs = 3 * ours  # lengths are of no account
    theirs[0, 0, :2] *= -1
    assert same_descriptors(Maps(heat, ours), Maps(heat, theirs))
    theirs[0, 0, 2] *= -1
    assert not same_descriptors(Maps(heat, ours), Maps(heat, theirs))


@pytest.mark.parametrize("model", ["superpoint-slim", "superpoint-edge"])
def test_sizes_stay_open_in_int8_where_that_is_right(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the answers for open sizes are right, a new size costs no compilation; where they are wrong, every one."""
    runtime = load_runtime(model, "openvino", "int8")
    assert isinstance(runtime, OpenVinoRuntime)
    exact = load_runtime(model, "onnxruntime", "int8")
    compiled: list[object] = []
    compile_one = runtime._dense._compile
    monkeypatch.setattr(runtime._dense, "_compile", lambda shapes: compiled.append(shapes) or compile_one(shapes))
    random = np.random.default_rng(0)
    for height, width in ((64, 96), (96, 64), (72, 80)):
        given = random.random((1, 1, height, width)).astype(np.float32)
        got, expected = runtime.dense(given).descriptors, exact.dense(given).descriptors
        cosine = (got * expected).sum(-1) / np.linalg.norm(got, axis=-1) / np.linalg.norm(expected, axis=-1)
        assert np.percentile(cosine, 5) > 0.99
    assert len(compiled) == (0 if model == "superpoint-slim" else 3)


@pytest.mark.parametrize("model", ["superpoint-edge", "superpoint-slim"])
def test_images_of_a_batch_are_not_compiled_for_by_their_number(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = load_runtime(model, "openvino", "int8")
    assert isinstance(runtime, OpenVinoRuntime)
    random = np.random.default_rng(0)
    given = random.random((5, 1, 64, 96)).astype(np.float32)
    alone = [Maps(*(np.array(value) for value in runtime.dense(image[None]))) for image in given]
    compiled: list[object] = []
    compile_one = runtime._dense._compile
    monkeypatch.setattr(runtime._dense, "_compile", lambda shapes: compiled.append(shapes) or compile_one(shapes))
    for count in (2, 5, 3):
        together = runtime.dense(given[:count])
        for index in range(count):
            np.testing.assert_allclose(together.heat[index], alone[index].heat[0], atol=1e-5)
            np.testing.assert_allclose(together.descriptors[index], alone[index].descriptors[0], rtol=1e-3, atol=1e-3)
    assert not compiled
    assert runtime.dense(given[:0]).heat.shape == (0, 64, 96)
