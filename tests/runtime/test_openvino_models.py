"""What the OpenVINO runtime does to its models: sizes that they are compiled for, grey levels, and whose refiner."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino
import pytest
from runtime_networks import network

from frontend.cpu_backend import CpuBackend
from frontend.extractor import ExtractorConfig, SuperPoint
from frontend.image import to_gray
from frontend.model import ModelConfig, SuperPointNet
from frontend.runtime import load_runtime, openvino_runtime, runtime_for
from frontend.runtime.graphs import export_parts
from frontend.runtime.openvino_runtime import OpenVinoRuntime, _keep_exact, _take_grey_levels, native_precisions
from frontend.runtime.parity import scene


def image(height: int, width: int, seed: int = 3) -> np.ndarray:
    return scene(height, width, seed)[None, None]


def test_sizes_that_keep_coming_are_compiled_for_and_give_the_same() -> None:
    runtime = runtime_for(network("slim"), "openvino", "float32")
    assert isinstance(runtime, OpenVinoRuntime)
    model = runtime._dense
    sizes = [(64, 96), (72, 96), (80, 96), (88, 96), (96, 96), (104, 96), (112, 96)]
    # copies: the next call overwrites what one gives
    first = {size: [value.copy() for value in runtime.dense(image(*size))] for size in sizes}
    assert not model._sized
    for _ in range(6):
        for size in sizes:
            got = runtime.dense(image(*size))
            np.testing.assert_allclose(got.heat, first[size][0], atol=1e-5)
            np.testing.assert_allclose(got.descriptors, first[size][1], atol=1e-4 * np.abs(first[size][1]).max())
    # the first five, and no more: the others go on as they were
    assert [dict(key)["image"][2:] for key in model._sized] == sizes[:5]


def test_in_half_precision_the_same_image_always_gives_the_same() -> None:
    if "bf16" not in native_precisions():
        pytest.skip("this CPU has no bf16")
    runtime = runtime_for(network("slim-small"), "openvino", "bf16")
    assert isinstance(runtime, OpenVinoRuntime)
    # more than a model is compiled for at a time
    sizes = [(64 + 8 * n, 96) for n in range(11)]
    first = {size: [value.copy() for value in runtime.dense(image(*size))] for size in sizes}
    for order in (sizes, sizes[::-1], sizes[3:7], sizes):
        for size in order:
            for value, expected in zip(runtime.dense(image(*size)), first[size], strict=True):
                np.testing.assert_array_equal(value, expected)
    assert len(runtime._dense._sized) == len(runtime._dense._mine.__dict__) == 8
    # and what a process has not seen before, as the one that has
    fresh = runtime_for(network("slim-small"), "openvino", "bf16")
    for value, expected in zip(fresh.dense(image(*sizes[-1])), first[sizes[-1]], strict=True):
        np.testing.assert_array_equal(value, expected)


def test_threads_share_a_model_and_not_its_results() -> None:
    runtime = runtime_for(network("slim"), "openvino", "float32")
    given = [image(64, 96, seed) for seed in range(4)]
    expected = [runtime.dense(x).descriptors.copy() for x in given]

    def work(n: int) -> int:
        """How often the answer is wrong."""
        limit = 1e-4 * np.abs(expected[n]).max()
        return sum(not np.allclose(runtime.dense(given[n]).descriptors, expected[n], atol=limit) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0, 0, 0, 0]


@pytest.mark.parametrize("preset", ["slim", "edge", "vgg"])
def test_models_of_grey_levels_compute_the_same(preset: str) -> None:
    core = openvino.Core()
    source = export_parts(network(preset))["dense"]
    plain, scaled = core.read_model(source), core.read_model(source)
    assert _take_grey_levels(scaled)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    given = image(64, 96)
    a = core.compile_model(plain, "CPU", settings)({"image": given})
    b = core.compile_model(scaled, "CPU", settings)({"image": given * 255})
    for name in ("heat", "descriptors"):
        np.testing.assert_allclose(a[name], b[name], atol=1e-4 * np.abs(a[name]).max())


def test_a_model_whose_image_goes_elsewhere_is_left_alone() -> None:
    from openvino import Model, opset13

    parameter = opset13.parameter([1, 1, 16, 16], np.float32, name="image")
    weights = opset13.constant(np.ones((2, 1, 3, 3), np.float32))
    convolved = opset13.convolution(parameter, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    model = Model([convolved.output(0), opset13.exp(parameter).output(0)], [parameter])
    assert not _take_grey_levels(model)
    given = np.full((1, 1, 16, 16), 0.5, np.float32)
    got = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given)
    assert got[0].max() == pytest.approx(4.5, rel=1e-5)
    assert got[1].max() == pytest.approx(np.exp(0.5), rel=1e-5)


def test_images_of_bytes_give_what_floats_give() -> None:
    """They stay bytes until the network, which takes them so in half precision; beside floats they become such."""
    random = np.random.default_rng(0)
    levels = [random.integers(0, 256, (64, 96), np.uint8) for _ in range(2)]
    floats = [to_gray(image) for image in levels]
    for precision in ("float32", *(p for p in ("bf16",) if p in native_precisions())):
        backend = CpuBackend(runtime_for(network("slim-small"), "openvino", precision))
        assert backend.runner.takes_bytes == (precision == "bf16")
        extractor = SuperPoint.of(backend)
        expected = extractor.extract_batch(floats)
        assert len(expected[0]) > 20
        for images in (levels, [levels[0], floats[1]]):
            for got, feature in zip(extractor.extract_batch(images), expected, strict=True):
                np.testing.assert_array_equal(got.keypoints, feature.keypoints)
                np.testing.assert_array_equal(got.descriptors, feature.descriptors)
        assert extractor.prepare(levels[0]).gray.dtype == np.uint8


def test_half_precision_sees_grey_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever instructions the CPU has: the runtime scales what it gives a model that was changed."""
    seen: list[float] = []

    class Model:
        levels = True

        def __init__(self, *_: object, quantised: bool = False) -> None: ...

        def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            seen.append(float(inputs["image"].max()))
            return {"heat": inputs["image"][:, 0], "descriptors": inputs["image"]}

    monkeypatch.setattr(openvino_runtime, "_Model", Model)
    net = SuperPointNet(ModelConfig())
    runtime = OpenVinoRuntime(runtime_for(net.eval(), "torch").info, {"dense": b"", "refine": b""}, "bf16")
    given = np.full((1, 1, 8, 8), 200 / 255, np.float32)
    runtime.dense(given)
    runtime.dense(np.full((1, 1, 8, 8), 200, np.uint8))
    Model.levels = False
    runtime.dense(given)
    assert seen == [pytest.approx(200), 200, pytest.approx(200 / 255)]


@pytest.mark.parametrize(("preset", "kept"), [("edge", 5), ("vgg", 1), ("slim", 1)])
def test_the_last_layers_before_the_peaks_stay_in_float32(preset: str, kept: int) -> None:
    """All convolutions of the detector's output and fine branch, no other one; computed as before."""
    core = openvino.Core()
    plain = core.read_model(export_parts(network(preset))["dense"])
    exact = _keep_exact(plain)
    marked = [
        op.get_friendly_name()
        for op in exact.get_ops()
        if op.get_type_name() == "Convolution" and {*op.get_rt_info()} & {"precise_0", "DisablePrecisionConversion_0"}
    ]
    assert len(marked) == kept
    assert all("/detector/" in name for name in marked)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    given = image(64, 96)
    a, b = (core.compile_model(model, "CPU", settings)({"image": given}) for model in (plain, exact))
    for name in ("heat", "descriptors"):
        np.testing.assert_array_equal(a[name], b[name])
    if "bf16" not in native_precisions():
        return
    compiled = core.compile_model(exact, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    computed = {
        op.get_friendly_name(): str(op.get_rt_info()["runtimePrecision"].value)
        for op in compiled.get_runtime_model().get_ops()
        if op.get_rt_info()["layerType"].value == "Convolution"
    }
    assert {name for name, precision in computed.items() if precision == "f32"} >= {*marked}
    assert sum(precision == "bf16" for precision in computed.values()) >= len(computed) - kept - 1


def test_the_refiner_is_the_same_with_and_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    given = np.stack([scene(17, 17, seed) for seed in range(70)])[:, None]
    scores = np.linspace(0.01, 0.9, 70, dtype=np.float32)
    with_it = runtime_for(network("edge"), "openvino", "float32").refine(given, scores)
    monkeypatch.setattr(openvino_runtime, "find_spec", lambda name: None)
    without = runtime_for(network("edge"), "openvino", "float32").refine(given, scores)
    np.testing.assert_allclose(with_it.position, without.position, atol=1e-4)
    np.testing.assert_allclose(with_it.local, without.local, atol=1e-4)
    assert np.abs(with_it.local).max() > 0.01


def test_two_passes_are_the_same_with_and_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first pass says of keypoints that stay is kept while the second one runs."""
    config = ExtractorConfig(max_keypoints=150, detection_threshold=0.0)
    given = [np.rint(255 * scene(96, 128, seed)).astype(np.uint8) for seed in (3, 4)]
    with_it = SuperPoint(network("edge-twice"), config=config, device="cpu", runtime="openvino")
    monkeypatch.setattr(openvino_runtime, "find_spec", lambda name: None)
    without = SuperPoint(network("edge-twice"), config=config, device="cpu", runtime="openvino")
    for _ in range(5):  # models are compiled anew for sizes that keep coming
        for image in given:
            expected, found = with_it.extract(image), without.extract(image)
            np.testing.assert_allclose(found.keypoints, expected.keypoints, atol=1e-3)
            np.testing.assert_allclose(found.sigmas, expected.sigmas, rtol=1e-3)
            np.testing.assert_allclose(found.descriptors, expected.descriptors, atol=1e-3)


@pytest.mark.parametrize("model", ["superpoint-edge", "superpoint-slim"])
def test_released_int8_graphs_are_the_same_in_both_runtimes(model: str) -> None:
    """Which they are not where OpenVINO leaves their sizes open."""
    one, other = (load_runtime(model, name, "int8") for name in ("onnxruntime", "openvino"))
    for height, width in ((120, 160), (96, 128), (120, 160)):
        given = image(height, width)
        expected, got = one.dense(given), other.dense(given)
        assert np.abs(expected.heat - got.heat).max() < 0.05
        cosine = (expected.descriptors * got.descriptors).sum(-1)
        cosine /= np.linalg.norm(expected.descriptors, axis=-1) * np.linalg.norm(got.descriptors, axis=-1)
        assert np.percentile(cosine, 1) > 0.995
