"""Runtimes against the network in PyTorch, over presets, sizes and batches."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from runtime_networks import network, unfolded

from frontend.errors import ConfigError
from frontend.extractor import ExtractorConfig, StageTimes, SuperPoint
from frontend.model import ModelConfig, SuperPointNet, heatmap
from frontend.runtime import available_runtimes, load_runtime, precisions_of, runtime_for, select
from frontend.runtime.parity import scene
from frontend.threads import VARIABLE, settle_threads, wanted_threads
from frontend.torch_backend import TorchBackend
from frontend.weights import save_network

PRESETS = ("edge", "vgg")
NAMES = ("torch", "onnxruntime", "openvino", "ncnn")


def images(height: int, width: int, count: int = 1) -> np.ndarray:
    return np.stack([scene(height, width, seed) for seed in range(10, 10 + count)])[:, None]


@pytest.mark.parametrize("preset", [*PRESETS, "slim"])
@pytest.mark.parametrize("name", NAMES)
def test_dense_maps_are_those_of_the_network(name: str, preset: str) -> None:
    runtime = runtime_for(network(preset), name, "float32")
    assert (runtime.name, runtime.precision) == (name, "float32")
    for shape in ((64, 96, 1), (120, 88, 2), (16, 16, 1)):
        given = images(*shape)
        with torch.no_grad():
            maps = network(preset)(torch.from_numpy(given))
        got = runtime.dense(given)
        np.testing.assert_allclose(got.heat, heatmap(maps.logits).numpy(), atol=1e-4)
        expected = maps.descriptors.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(got.descriptors, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_refinement_is_that_of_the_network(name: str) -> None:
    runtime = runtime_for(network("edge"), name, "float32")
    gray = torch.from_numpy(images(64, 64))
    points = torch.tensor([[[20.0, 9.0], [40, 33], [8, 55]]])
    scores = torch.tensor([[0.3, 0.7, 0.01]])
    with torch.no_grad():
        expected = network("edge").refine(gray, points, scores)
    assert expected is not None
    patches = [gray[0, :, int(y) - 8 : int(y) + 9, int(x) - 8 : int(x) + 9] for x, y in points[0]]
    got = runtime.refine(torch.stack(patches).numpy(), scores[0].numpy())
    np.testing.assert_allclose(got.position[:, :2], expected.offsets[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(got.position[:, 2], expected.log_sigmas[0].exp().numpy(), rtol=1e-4)
    np.testing.assert_allclose(got.position[:, 3], expected.logits[0].sigmoid().numpy(), atol=1e-5)
    np.testing.assert_allclose(got.local, expected.descriptors[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("preset", [*PRESETS, "edge-twice"])
@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_the_reference(name: str, preset: str) -> None:
    """99 % of the keypoints within half a pixel, descriptors with a cosine of 0.999: what every fast path must hold."""
    config = ExtractorConfig(max_keypoints=100, detection_threshold=0.0)
    given = [(image[0] * 255).astype(np.uint8) for image in images(97, 131, 2)]
    expected = SuperPoint.of(TorchBackend(network(preset), "cpu"), config=config).extract_batch(given)
    fast = SuperPoint(network(preset), config=config, device="cpu", runtime=name)
    assert (fast.runtime, fast.encoder, fast.refines) == (name, network(preset).config.encoder, preset != "vgg")
    times = StageTimes()
    for a, b in zip(expected, fast.extract_batch(given, times), strict=True):
        assert len(a) == len(b) == 100
        apart = np.linalg.norm(a.keypoints[:, None] - b.keypoints, axis=2)
        nearest = apart.argmin(axis=1)
        same = apart.min(axis=1) < 0.5
        assert same.mean() >= 0.99
        assert (a.descriptors * b.descriptors[nearest]).sum(axis=1)[same].min() >= 0.999
        np.testing.assert_allclose(a.scores[same], b.scores[nearest][same], atol=1e-3)
        if a.sigmas is not None:
            assert b.sigmas is not None
            np.testing.assert_allclose(a.sigmas[same], b.sigmas[nearest][same], rtol=1e-2)
    assert set(times.ms) == {"preprocess", "network", "keypoints", *(("refinement",) if preset != "vgg" else ())}
    assert min(times.ms.values()) > 0


def test_auto_takes_one_that_is_installed() -> None:
    assert set(available_runtimes()) == set(NAMES)
    runtime = runtime_for(network("edge"))
    assert runtime.name in NAMES
    assert runtime.precision in precisions_of(runtime.name)


def test_a_network_that_cannot_be_exported_runs_in_torch() -> None:
    torch.manual_seed(0)
    takes_a_map = SuperPointNet(ModelConfig(encoder="compact+map_fusion")).fold()
    assert takes_a_map.map_layers > 0
    assert runtime_for(takes_a_map).name == "torch"
    with pytest.raises(ConfigError, match="a network that takes a map runs in torch alone"):
        runtime_for(takes_a_map, "onnxruntime")


def test_what_ncnn_cannot_have_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    torch.manual_seed(0)
    takes_a_map = SuperPointNet(ModelConfig(encoder="compact+map_fusion")).fold()
    with pytest.raises(ConfigError, match="a network that takes a map runs in torch alone"):
        runtime_for(takes_a_map, "ncnn")
    mixer = SuperPointNet(ModelConfig(encoder="mlp_mixer")).fold()
    with pytest.raises(ConfigError, match="the network cannot be converted to ncnn, which has no pnnx"):
        runtime_for(mixer, "ncnn")
    with pytest.raises(ConfigError, match="ncnn on this CPU has no instructions for it"):
        runtime_for(network("edge"), "ncnn", "int8")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pnnx", None)
        with pytest.raises(ConfigError, match=r"conversion to ncnn needs: pip install 'superpoint-frontend\[ncnn\]'"):
            runtime_for(network("edge"), "ncnn")
    monkeypatch.setattr("pnnx.EXEC_PATH", "/no/such/program")
    with pytest.raises(ConfigError, match=r"the network cannot be converted to ncnn: .*No such file"):
        runtime_for(network("edge"), "ncnn")


def test_emulated_precisions_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.runtime.openvino_runtime.native_precisions", lambda: ("float32",))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    for name in NAMES:
        assert "bf16" not in precisions_of(name)
        with pytest.raises(ConfigError, match=r"precision is 'bf16'; .* no instructions for it"):
            runtime_for(network("edge"), name, "bf16")


def test_unknown_names_and_what_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="runtime is 'tensorrt'; expected one of: auto, torch"):
        SuperPoint(network("edge"), runtime="tensorrt")
    with pytest.raises(ConfigError, match="precision is 'fp8'; expected one of: auto, float32"):
        SuperPoint(network("edge"), precision="fp8")
    with pytest.raises(ConfigError, match="has no such graph"):
        runtime_for(network("edge"), "onnxruntime", "int8")
    extractor = SuperPoint(network("edge"), device="cpu", runtime="onnxruntime")
    with pytest.raises(ConfigError, match="expected runtime 'torch'"):
        _ = extractor.network


def test_a_runtime_that_is_not_installed_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.runtime.select.available_runtimes", lambda: ("torch",))
    monkeypatch.setitem(sys.modules, "openvino", None)
    for precision in ("auto", "bf16"):
        with pytest.raises(ConfigError, match="runtime is 'openvino', which is not installed: pip install openvino"):
            runtime_for(network("edge"), "openvino", precision)


def test_auto_says_what_is_missing_for_int8() -> None:
    with pytest.raises(ConfigError, match="this model has no such graph: expected one made by 'superpoint export"):
        runtime_for(network("edge"), "auto", "int8")


def test_torch_is_told_its_threads_when_it_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr("frontend.threads.thread_count", lambda: 2)
    monkeypatch.setattr(cv2, "setNumThreads", lambda count: None)
    monkeypatch.setenv(VARIABLE, "2")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        assert settle_threads() == 2
    stand_in = SimpleNamespace(get_num_threads=lambda: 8, set_num_threads=told.append)
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    assert settle_threads() == 2
    assert told == [2]


def test_threads_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "3")
    assert wanted_threads() == 3
    monkeypatch.setenv(VARIABLE, "none")
    with pytest.raises(ConfigError, match=f"{VARIABLE} is 'none'"):
        wanted_threads()
    monkeypatch.delenv(VARIABLE)
    assert wanted_threads() >= 1


def test_a_graph_that_computes_something_else_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime with a wrong kernel: "auto" passes it over, and by name it is an error."""
    from frontend.runtime import onnx_runtime

    true = onnx_runtime.OnnxRuntime.dense

    def wrong(self: onnx_runtime.OnnxRuntime, given: np.ndarray, raster: None = None):  # type: ignore[no-untyped-def]
        maps = true(self, given)
        return maps._replace(heat=np.roll(maps.heat, 1, axis=2))

    monkeypatch.setattr(onnx_runtime.OnnxRuntime, "dense", wrong)
    save_network(tmp_path / "net.safetensors", unfolded("edge"))
    with pytest.raises(ConfigError, match="runtime 'onnxruntime' in float32 does not compute this network: heat"):
        load_runtime(tmp_path / "net.safetensors", "onnxruntime")
    assert load_runtime(tmp_path / "net.safetensors").name in ("torch", "openvino", "ncnn")


class Racer:
    """Takes the seconds that it is given, call by call, and the last of them from then on."""

    def __init__(self, clock: list[float], *seconds: float) -> None:
        self.clock, self.seconds, self.calls = clock, seconds, 0

    def dense(self, _: object) -> None:
        self.clock[0] += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1


def race(*schedules: tuple[float, ...]) -> tuple[list[Racer], list[tuple[float, float] | None]]:
    clock = [0.0]
    racers = [Racer(clock, *schedule) for schedule in schedules]
    return racers, select._race(racers, np.zeros(1), lambda: clock[0])  # type: ignore[arg-type]


def test_runtimes_are_timed_when_they_have_prepared_themselves() -> None:
    # the first one compiles at its fourth call, as OpenVINO does, and is the faster from then on; something else runs
    # during the second one's first turns
    racers, times = race((0.011, 0.010, 0.010, 0.2, 0.005), (0.02,) * 8 + (0.008,), (0.02, 0.01, 0.05))
    assert times == [(5.0, 21.0), (8.0, 40.0), (10.0, 30.0)]
    assert [racer.calls for racer in racers] == [14, 14, 14]


def test_runtimes_that_cannot_win_are_not_waited_for() -> None:
    racers, times = race((0.4, 0.3), (1.5, 1.0), (0.9, 0.8))
    assert times == [(300.0, 700.0), (1000.0, 2500.0), (800.0, 1700.0)]
    # after its first two calls one is left out, and the second turn of the others takes more than a second
    assert [racer.calls for racer in racers] == [10, 2, 10]


def test_a_busy_machine_is_not_waited_for() -> None:
    # what has not been timed when the time is over is not taken, and what has been is not timed again
    racers, times = race((6.0, 5.0), (3.0, 2.0), (1.0,))
    assert times == [(5000.0, 11000.0), (2000.0, 5000.0), None]
    assert [racer.calls for racer in racers] == [2, 2, 0]
    racers, times = race((20.0,), (1.0,))
    assert times == [(20000.0, 40000.0), None]
    # nor is the first turn longer
    racers, times = race((2.0, 1.5), (2.0, 1.5))
    assert [racer.calls for racer in racers] == [6, 4]
    assert times == [(1500.0, 3500.0), (1500.0, 3500.0)]


@pytest.mark.parametrize("broken", ["import", "model"])
def test_an_installed_runtime_that_does_not_load_is_passed_over(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """A library that is missing, a plugin, an operator: "auto" takes another, and by name it is one line."""
    if broken == "import":
        monkeypatch.setitem(sys.modules, "frontend.runtime.openvino_runtime", None)
    else:

        def fail(*_: object) -> None:
            raise RuntimeError("Exception from core.cpp:112:\nno plugin")

        monkeypatch.setattr("frontend.runtime.openvino_runtime.OpenVinoRuntime.__init__", fail)
    assert "openvino" in available_runtimes()
    assert runtime_for(network("slim")).name in ("torch", "onnxruntime", "ncnn")
    with pytest.raises(ConfigError, match="runtime 'openvino' is installed, but cannot be used: ") as caught:
        runtime_for(network("slim"), "openvino", "float32")
    assert "\n" not in str(caught.value)

    def exhaust(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("frontend.runtime.onnx_runtime.OnnxRuntime.__init__", exhaust)
    with pytest.raises(MemoryError):
        runtime_for(network("slim"), "onnxruntime", "float32")
