"""Tuning for int8: that rounding is what the graph does, and that a tuned network's graph is nearer to float32."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from runtime_networks import network
from torch.nn.utils import parametrize

from frontend.errors import ConfigError
from frontend.evaluation.int8_graph import Steps, convolution_steps, quantise_dense
from frontend.model import DenseMaps
from frontend.runtime import runtime_for, select
from frontend.runtime.graphs import export_parts
from frontend.runtime.onnx_runtime import OnnxRuntime
from frontend.runtime.parity import scene
from frontend.training.int8_tuning import (
    TuningConfig,
    distances,
    in_int8,
    rounded_activations,
    rounded_weights,
    tune_for_int8,
)

IMAGES = [scene(96, 128, seed)[None, None] for seed in range(6)]
OTHERS = np.concatenate([scene(96, 128, seed)[None, None] for seed in range(10, 14)])
SHORT = TuningConfig(steps=40, batch_size=2, crop=(64, 96), learning_rate=3e-4)


@pytest.mark.parametrize("steps", [Steps(0.05, 0), Steps(0.03, 117)])
def test_activations_are_rounded_as_the_operators_round_them(steps: Steps) -> None:
    values = np.linspace(-9, 15, 4001, dtype=np.float32)
    values = np.concatenate([values, (np.arange(-20, 20) + 0.5).astype(np.float32) * np.float32(steps.scale)])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "round",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [len(values)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(values)])],
        [
            numpy_helper.from_array(np.array(steps.scale, np.float32), "scale"),
            numpy_helper.from_array(np.array(steps.zero_point, np.uint8), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": values})[0]
    got = rounded_activations(torch.from_numpy(values), steps).numpy()
    # a value half way between two steps may go either way: the quotient is rounded before it is
    assert (np.abs(got - expected) > 1e-5).mean() < 0.005
    assert np.abs(got - expected).max() <= steps.scale * 1.001


def test_the_gradient_of_rounding_is_that_of_values_within_the_range() -> None:
    values = torch.tensor([-0.2, 0.02, 3.0, 12.6, 13.0], requires_grad=True)
    rounded_activations(values, Steps(0.05, 0)).sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]))


def test_weights_are_rounded_as_in_the_graph() -> None:
    net = network("slim")
    model = onnx.load_from_string(quantise_dense(select.export(net).files["dense"], IMAGES[:2]))
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    checked = 0
    for name, module in net.named_modules():
        whole = held.get(f"network.{name}.weight_quantized")
        if whole is None:
            continue
        assert isinstance(module, torch.nn.Conv2d)
        scale = held[f"network.{name}.weight_scale"][:, None, None, None]
        got = rounded_weights(module.weight.detach()).numpy()
        np.testing.assert_allclose(got, whole.astype(np.float32) * scale, atol=1e-6 * float(np.abs(got).max()) + 1e-7)
        assert np.abs(got - module.weight.detach().numpy()).max() > 0
        checked += 1
    assert checked > 10


def test_a_tuned_network_gives_in_int8_more_of_what_it_gives_in_float32() -> None:
    net = network("slim")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    graphs = select.export(net)
    int8 = quantise_dense(graphs.files["dense"], IMAGES)
    steps = convolution_steps(int8)
    tuned = tune_for_int8(net, steps, IMAGES, SHORT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert set(tuned.state_dict()) == set(before)  # nothing of the tuning is left
    changed = {name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.rsplit(".", 1)[0] for name in changed} == set(steps)
    assert not any(parametrize.is_parametrized(module) for module in tuned.modules())
    expected = runtime_for(net, "onnxruntime", "float32").dense(OTHERS)

    def cosine(dense: bytes) -> float:
        got = OnnxRuntime(graphs.info, {**graphs.files, "dense-int8": dense}, "int8").dense(OTHERS).descriptors
        a, b = expected.descriptors, got
        return float(np.mean((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)))

    plain, learnt = cosine(int8), cosine(quantise_dense(export_parts(tuned)["dense"], IMAGES))
    assert 1 - learnt < 0.8 * (1 - plain)


def test_what_is_tuned_is_what_the_graph_computes() -> None:
    """Rounded in PyTorch, a network gives what its graph gives in int8, and afterwards what it gave before."""
    net = network("vgg")
    graphs = select.export(net)
    int8 = quantise_dense(graphs.files["dense"], IMAGES)
    got = OnnxRuntime(graphs.info, {**graphs.files, "dense-int8": int8}, "int8").dense(OTHERS)
    batch = torch.from_numpy(OTHERS)
    with torch.no_grad():
        exact = net(batch).descriptors
        with in_int8(net, convolution_steps(int8)) as convolutions:
            rounded = net(batch).descriptors
        assert torch.equal(net(batch).descriptors, exact)
    assert len(convolutions) == 9
    graph = torch.from_numpy(np.array(got.descriptors)).permute(0, 3, 1, 2)
    assert (rounded - graph).abs().mean() < 0.25 * (exact - graph).abs().mean()


def test_the_distance_of_maps_is_none_from_themselves_and_grows() -> None:
    torch.manual_seed(0)
    wanted = DenseMaps(torch.randn(2, 65, 3, 4), torch.randn(2, 8, 3, 4))
    assert [float(value) for value in distances(wanted, wanted)] == pytest.approx([0, 0, 0], abs=1e-6)
    longer = DenseMaps(wanted.logits + 1, wanted.descriptors * 1.1)
    assert [float(value) for value in distances(wanted, longer)] == pytest.approx([0, 0, 0.01], abs=1e-5)
    other = DenseMaps(wanted.logits * 1.1, wanted.descriptors + torch.randn(2, 8, 3, 4))
    heat, descriptors, _ = distances(wanted, other)
    # plain loops, in float64
    p, q = (maps.logits.double().softmax(1).numpy() for maps in (wanted, other))
    total = weight = 0.0
    cosines = []
    for b in range(2):
        for y in range(3):
            for x in range(4):
                w = 1.05 - p[b, 64, y, x]
                total += w * float(sum(a * np.log(a / c) for a, c in zip(p[b, :, y, x], q[b, :, y, x], strict=True)))
                weight += w
                u, v = (maps.descriptors[b, :, y, x].double().numpy() for maps in (wanted, other))
                cosines.append(1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v))
    assert float(heat) == pytest.approx(total / weight, rel=1e-4)
    assert float(descriptors) == pytest.approx(float(np.mean(cosines)), rel=1e-4)


def test_a_graph_of_another_network_is_refused() -> None:
    steps = convolution_steps(quantise_dense(select.export(network("slim")).files["dense"], IMAGES[:1]))
    with pytest.raises(ConfigError, match="no convolution of this network's int8 graph can be tuned"):
        tune_for_int8(network("vgg"), {f"other.{name}": found for name, found in steps.items()}, IMAGES, SHORT)
