"""What every registered encoder and context module has to do; a new one is tested by being registered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from frontend.encoders import CONTEXTS, ENCODERS, TokenEncoder, build_encoder, parse_spec
from frontend.model import ModelConfig, SuperPointNet
from frontend.weights import load_network, save_network

SPECS = [*ENCODERS, *(f"compact+{name}" for name in CONTEXTS)]


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(spec: str) -> SuperPointNet:
    torch.manual_seed(0)
    return SuperPointNet(ModelConfig(encoder=spec, detector="paper", descriptor="paper", descriptor_dim=32))


def features(network: SuperPointNet, image: Tensor) -> Tensor:
    found, _ = network.encode(image)
    return found


def test_the_first_line_and_the_paper_say_what_it_is(spec: str) -> None:
    part = parse_spec(spec)[-1]
    factory = (CONTEXTS if "+" in spec else ENCODERS).get(part.name)
    assert factory.__doc__
    assert factory.__doc__.splitlines()[0].endswith(".")
    assert factory.paper


def test_the_specification_survives_a_round_trip(spec: str) -> None:
    assert "+".join(map(str, parse_spec(spec))) == spec
    assert build(spec).config.encoder == spec


@pytest.mark.parametrize("size", [(16, 16), (16, 200), (120, 160), (480, 640)])
def test_any_size(spec: str, size: tuple[int, int]) -> None:
    network = build(spec).eval()
    with torch.inference_mode():
        found = features(network, torch.rand(1, 1, *size))
    channels = network.contexts[-1].out_channels if len(network.contexts) else network.encoder.out_channels
    assert found.shape == (1, channels, size[0] // 8, size[1] // 8)
    assert torch.isfinite(found).all()
    assert found.std() > 0


def test_batch_equals_single(spec: str) -> None:
    network = build(spec).eval()
    images = torch.rand(3, 1, 48, 72)
    with torch.inference_mode():
        together = features(network, images)
        for i in range(3):
            torch.testing.assert_close(features(network, images[i : i + 1])[0], together[i], rtol=1e-3, atol=1e-4)


def test_gradients_reach_every_parameter(spec: str) -> None:
    network = build(spec).train()
    for parameter in network.parameters():
        if not parameter.any():  # a layer that starts at zero lets nothing through yet
            torch.nn.init.normal_(parameter)
    image, raster = torch.rand(2, 1, 48, 64), torch.rand(2, 1, 48, 64)
    found, auxiliary = network.encode(image, raster)
    loss = (found * torch.randn_like(found)).sum()
    loss = loss + sum(((value * torch.randn_like(value)).sum() for value in auxiliary.values()), loss.new_zeros(()))
    loss.backward()
    parts = [*network.encoder.named_parameters(), *network.contexts.named_parameters()]
    assert [name for name, p in parts if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_folding_changes_nothing(spec: str) -> None:
    network = build(spec).train()
    with torch.no_grad():
        for _ in range(3):  # statistics that are not the initial ones
            network(torch.rand(4, 1, 48, 64))
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        network.eval().double()
        image = torch.rand(2, 1, 48, 64, dtype=torch.float64)
        before = network(image)
        after = network.fold()(image)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


def test_weights_survive_a_round_trip(spec: str, tmp_path: Path) -> None:
    network = build(spec).eval()
    save_network(tmp_path / "x.safetensors", network, {})
    _, again = load_network(tmp_path / "x.safetensors", fold=False)
    assert again.config == network.config
    image = torch.rand(1, 1, 32, 40)
    with torch.inference_mode():
        for a, b in zip(network(image), again.eval()(image), strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_onnx_export_is_the_same_network(spec: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = build(spec).fold()
    image = torch.rand(1, 1, 48, 64)
    path = tmp_path / "network.onnx"
    with torch.inference_mode():
        torch.onnx.export(network, (image,), str(path), dynamo=True, verbose=False)
        expected = network(image)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", list(ENCODERS))
def test_token_encoders_are_embedding_and_encoding(name: str) -> None:
    encoder, _ = build_encoder(name)
    if not isinstance(encoder, TokenEncoder):
        return
    encoder.eval()
    image = torch.rand(1, 1, 48, 64)
    with torch.inference_mode():
        tokens = encoder.embed(image)
        assert tokens.shape[2:] == (6, 8)
        torch.testing.assert_close(encoder.encode(tokens), encoder(image))
