"""int8 graphs: which convolutions are quantised, how steps are spent, and that they still compute the network."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from runtime_networks import network

from frontend.errors import ConfigError
from frontend.evaluation.int8_graph import Steps, convolution_steps, quantise_dense
from frontend.runtime import runtime_for, select
from frontend.runtime.base import Maps
from frontend.runtime.onnx_runtime import OnnxRuntime
from frontend.runtime.openvino_runtime import OpenVinoRuntime
from frontend.runtime.parity import scene

IMAGES = [scene(64, 96, seed)[None, None] for seed in range(4)]
GIVEN = scene(80, 104, 9)[None, None]


def dense_of(preset: str) -> bytes:
    return select.export(network(preset)).files["dense"]


def maps_of(preset: str, int8: bytes, runtime: str = "onnxruntime") -> Maps:
    graphs = select.export(network(preset))
    # not by select.build: to its probe an untrained network answers with logits in the hundreds, one step off the other
    kind = OpenVinoRuntime if runtime == "openvino" else OnnxRuntime
    built = kind(graphs.info, {**graphs.files, "dense-int8": int8}, "int8")
    return Maps(*(np.array(value) for value in built.dense(GIVEN)))


def initial(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def quantised_weights(int8: bytes, part: str) -> list[bool]:
    """Whether the weights of a part's convolutions are in int8, in the order of the graph."""
    model = onnx.load_from_string(int8)
    held = initial(model)
    nodes = [node for node in model.graph.node if node.op_type == "Conv" and part in node.name]
    return [node.input[1] not in held for node in nodes]


def test_convolutions_in_the_middle_are_quantised_and_nearly_exact() -> None:
    dense = dense_of("vgg")
    int8 = quantise_dense(dense, IMAGES)
    assert len(int8) < 0.5 * len(dense)
    # the first one and the two before the outputs keep their float32 weights
    assert sorted(quantised_weights(int8, "")) == [False] * 3 + [True] * 9
    expected = runtime_for(network("vgg"), "torch", "float32").dense(GIVEN).descriptors
    for name in ("onnxruntime", "openvino"):
        got = maps_of("vgg", int8, name).descriptors
        cosine = (expected * got).sum(-1) / np.linalg.norm(expected, axis=-1) / np.linalg.norm(got, axis=-1)
        assert 0.98 < np.median(cosine) < 0.999999


def test_a_light_detector_stays_in_float32() -> None:
    slim, edge = (quantise_dense(dense_of(preset), IMAGES[:2]) for preset in ("slim", "edge"))
    assert quantised_weights(slim, "/detector/") == [False] * 4
    assert sum(quantised_weights(slim, "/descriptor/")) > 5
    assert sum(quantised_weights(edge, "/detector/hidden")) == 1  # 184,320 weights


def test_modules_that_are_named_stay_in_float32_and_what_they_feed_is_exact() -> None:
    """The detector reads what the encoder made, though a quantised convolution reads it, too, in steps."""
    dense = dense_of("slim")
    int8 = quantise_dense(dense, IMAGES, keep_float=["encoder"])
    assert not any(quantised_weights(int8, "/encoder/"))
    assert sum(quantised_weights(int8, "/descriptor/")) > 5
    expected = runtime_for(network("slim"), "onnxruntime", "float32").dense(GIVEN)
    got = maps_of("slim", int8)
    assert np.abs(expected.heat - got.heat).max() < 1e-3
    assert np.abs(expected.descriptors - got.descriptors).max() > 1e-3
    everywhere = maps_of("slim", quantise_dense(dense, IMAGES))
    assert np.abs(expected.heat - everywhere.heat).max() > 0.05


@pytest.mark.parametrize(
    ("keep_float", "message"),
    [
        (["enc"], "'enc' is no module of this network with convolutions"),
        (["encoder", "detector", "descriptor"], "every convolution would stay in float32"),
    ],
)
def test_modules_that_are_none_or_all_are_refused(keep_float: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantise_dense(dense_of("slim"), IMAGES[:1], keep_float)


def test_no_step_is_spent_on_what_a_relu_cuts_off() -> None:
    """A quantised convolution with a ReLU behind it gives steps of 0 and more; before, half of them were below."""
    plain, int8 = (onnx.load_from_string(data) for data in (dense_of("vgg"), quantise_dense(dense_of("vgg"), IMAGES)))
    cut = {node.input[0] for node in plain.graph.node if node.op_type == "Relu"}
    behind_relu = {node.name for node in plain.graph.node if node.op_type == "Conv" and node.output[0] in cut}
    held = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in initial(int8).items()}
    users = {name: node for node in int8.graph.node for name in node.input}
    zero_points = []
    for node in int8.graph.node:
        if node.op_type == "Conv" and node.name in behind_relu and node.input[1] not in held:
            user = users[node.output[0]]
            assert user.op_type == "QuantizeLinear", node.name
            zero_points.append(int(held[user.input[2]]))
    assert len(zero_points) == 9
    assert set(zero_points) == {0}


def test_one_odd_image_does_not_coarsen_the_steps_for_all() -> None:
    """Ranges are means over the images that calibrate: one of six with five times the range makes it 10 / 6."""
    dense = dense_of("vgg")
    images = [scene(64, 96, seed)[None, None] * 0.2 for seed in range(6)]
    odd = [*images[:5], images[5] * 5]
    plain, changed = (convolution_steps(quantise_dense(dense, given)) for given in (images, odd))
    assert len(plain) == len(changed) == 9
    ratios = [changed[name].input.scale / plain[name].input.scale for name in plain]
    assert np.median(ratios) == pytest.approx(10 / 6, rel=0.05)


def test_the_steps_of_a_graph_are_read_by_the_names_of_modules() -> None:
    found = convolution_steps(quantise_dense(dense_of("slim"), IMAGES))
    modules = dict(network("slim").named_modules())
    assert set(found) <= set(modules)
    pointwise, depthwise = (found[f"encoder.blocks.0.{kind}.conv"] for kind in ("pointwise", "depthwise"))
    assert pointwise.input == depthwise.output  # one tensor
    assert depthwise.output is not None
    assert depthwise.output.zero_point > 0  # no ReLU there
    assert isinstance(pointwise.output, Steps)
    assert pointwise.output.zero_point == 0
    assert all(steps.input.scale > 0 for steps in found.values())
