"""The networks: shapes, the paper's layout, folding, third-party checkpoints, registries."""

from __future__ import annotations

import itertools

import pytest
import torch

from frontend.converters import convert_state_dict
from frontend.encoders import ENCODERS, ConvBlock
from frontend.errors import ConfigError, RegistryError, WeightsError
from frontend.model import MODEL_PRESETS, ModelConfig, SuperPointNet, transfer
from frontend.registry import Registry


def randomise_norms(network: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


@pytest.fixture(params=sorted(MODEL_PRESETS))
def preset(request: pytest.FixtureRequest) -> ModelConfig:
    return MODEL_PRESETS[request.param]


@pytest.mark.parametrize("size", [(16, 16), (8, 40), (120, 160), (96, 200)])
def test_any_multiple_of_eight(preset: ModelConfig, size: tuple[int, int]) -> None:
    network = SuperPointNet(preset).eval()
    with torch.inference_mode():
        logits, descriptors = network(torch.rand(2, 1, *size))
    assert logits.shape == (2, 65, size[0] // 8, size[1] // 8)
    assert descriptors.shape == (2, preset.descriptor_dim, size[0] // 8, size[1] // 8)


@pytest.mark.parametrize("name", list(ENCODERS))
def test_encoders_declare_what_they_return(name: str) -> None:
    encoder = ENCODERS.get(name)().eval()
    assert encoder(torch.rand(1, 1, 32, 48)).shape == (1, encoder.out_channels, 4, 6)
    assert encoder.stride == 8


def test_batch_equals_single(preset: ModelConfig) -> None:
    network = SuperPointNet(preset).eval()
    images = torch.rand(3, 1, 48, 64)
    with torch.inference_mode():
        together = network(images)
        for i in range(3):
            for a, b in zip(network(images[i : i + 1]), together, strict=True):
                torch.testing.assert_close(a[0], b[i], rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter(preset: ModelConfig) -> None:
    network = SuperPointNet(preset)
    for parameter in network.parameters():
        if not parameter.any():  # a layer that starts at zero lets nothing through yet
            torch.nn.init.normal_(parameter)
    images = torch.rand(2, 1, 32, 32)
    maps = network(images)
    loss = maps.logits.square().sum() + maps.descriptors.square().sum()
    refined = network.refine(images, torch.randint(0, 32, (2, 5, 2)).float(), torch.rand(2, 5))
    if refined is not None:
        loss = loss + sum(values.square().sum() for values in refined)
    loss.backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_folding_changes_nothing(preset: ModelConfig) -> None:
    network = SuperPointNet(preset).double()
    randomise_norms(network)
    network.eval()
    images = torch.rand(2, 1, 48, 64, dtype=torch.float64)
    with torch.no_grad():
        before = network(images)
        after = network.fold()(images)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("preset", ["slim", "edge", "vgg"])
def test_scores_are_not_computed_in_half_precision(preset: str) -> None:
    """Neighbouring pixels would have equal ones, and both would be keypoints."""
    torch.manual_seed(0)
    network = SuperPointNet(MODEL_PRESETS[preset]).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.rand(1, 1, 64, 64)).logits
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16()).float().mean() > 0.9


def test_norm_behind_a_relu_is_not_folded() -> None:
    block = ConvBlock(3, 4, norm="relu_bn").double()
    randomise_norms(block)
    block.eval()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    before = block(x)
    block.fold()
    assert isinstance(block.norm, torch.nn.BatchNorm2d)
    torch.testing.assert_close(block(x), before)


def vgg_shapes() -> list[tuple[int, int, int]]:
    """(in, out, kernel) of the paper's twelve convolutions."""
    widths = [1, 64, 64, 64, 64, 128, 128, 128, 128]
    trunk = [(a, b, 3) for a, b in itertools.pairwise(widths)]
    return [*trunk, (128, 256, 3), (256, 65, 1), (128, 256, 3), (256, 256, 1)]


MAGIC_LEAP = [f"conv{s}{c}" for s in "1234" for c in "ab"] + ["convPa", "convPb", "convDa", "convDb"]
TRANSFORMERS = [f"encoder.conv_blocks.{s}.conv_{c}" for s in range(4) for c in "ab"] + [
    "keypoint_decoder.conv_score_a",
    "keypoint_decoder.conv_score_b",
    "descriptor_decoder.conv_descriptor_a",
    "descriptor_decoder.conv_descriptor_b",
]
OPEN = [f"backbone.{s}.{c}" for s in range(4) for c in range(2)] + [
    f"{head}.{c}" for head in ("detector", "descriptor") for c in range(2)
]


def plain_state(names: list[str]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (i, o, k) in zip(names, vgg_shapes(), strict=True):
        state[f"{name}.weight"] = torch.randn(o, i, k, k, generator=generator) * (2 / (i * k * k)) ** 0.5
        state[f"{name}.bias"] = torch.randn(o, generator=generator) * 0.1
    return state


def open_state() -> dict[str, torch.Tensor]:
    state = {}
    for key, tensor in plain_state(OPEN).items():
        name, part = key.rsplit(".", 1)
        state[f"{name}.conv.{part}"] = tensor
    generator = torch.Generator().manual_seed(1)
    for name, (_, o, _) in zip(OPEN, vgg_shapes(), strict=True):
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.bn.{part}"] = torch.rand(o, generator=generator) + 0.5
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)
    return state


def plain_forward(
    image: torch.Tensor, state: dict[str, torch.Tensor], names: list[str], norm: bool
) -> list[torch.Tensor]:
    """The network written out with functions, straight from the checkpoint."""
    f = torch.nn.functional

    def layer(x: torch.Tensor, name: str, relu: bool) -> torch.Tensor:
        prefix = f"{name}.conv" if norm else name
        weight = state[f"{prefix}.weight"]
        x = f.conv2d(x, weight, state[f"{prefix}.bias"], padding=weight.shape[-1] // 2)
        x = f.relu(x) if relu else x
        if norm:
            bn = [state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
            x = f.batch_norm(x, *bn, eps=1e-3)
        return x

    x = image
    for n in range(8):
        x = f.max_pool2d(x, 2) if n in (2, 4, 6) else x
        x = layer(x, names[n], True)
    heads = [(names[8], names[9]), (names[10], names[11])]
    return [layer(layer(x, a, True), b, False) for a, b in heads]


@pytest.mark.parametrize(
    ("names", "norm"), [(MAGIC_LEAP, False), (TRANSFORMERS, False), (OPEN, True)], ids=["v1", "transformers", "open"]
)
def test_third_party_checkpoints_give_their_own_network(names: list[str], norm: bool) -> None:
    state = open_state() if norm else plain_state(names)
    config, renamed = convert_state_dict(state, "x.pth")
    network = SuperPointNet(config)
    network.load_state_dict(renamed, strict=True)
    network.fold()
    image = torch.rand(1, 1, 48, 64)
    with torch.no_grad():
        for got, expected in zip(network(image), plain_forward(image, state, names, norm), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_checkpoints_without_batch_counters_load() -> None:
    state = {k: v for k, v in open_state().items() if not k.endswith("num_batches_tracked")}
    config, renamed = convert_state_dict(state, "x.pth")
    SuperPointNet(config).load_state_dict(renamed, strict=True)


def test_unknown_layouts_are_refused() -> None:
    state = plain_state(MAGIC_LEAP)
    with pytest.raises(WeightsError, match="unknown layout of 25 tensors"):
        convert_state_dict({**state, "extra": torch.zeros(1)}, "x.pth")
    del state["convDb.bias"]
    with pytest.raises(WeightsError, match=r"x\.pth have an unknown layout"):
        convert_state_dict(state, "x.pth")


def test_configuration_errors() -> None:
    with pytest.raises(RegistryError, match=r"unknown encoder 'resnet'; expected one of: .*compact.*vgg"):
        SuperPointNet(ModelConfig(encoder="resnet"))
    with pytest.raises(ConfigError, match="unknown model setting 'colour'"):
        ModelConfig.from_dict({"colour": 1})
    with pytest.raises(ConfigError, match="options of encoder 'compact\\(depth=3\\)' do not fit"):
        SuperPointNet(ModelConfig(encoder="compact(depth=3)"))
    with pytest.raises(ConfigError, match="3 channel widths"):
        SuperPointNet(ModelConfig(encoder="vgg(channels=[8, 8, 8])"))


def test_the_fine_branch_starts_without_effect_and_treats_all_pixels_alike() -> None:
    coarse, fine = SuperPointNet(MODEL_PRESETS["edge-coarse"]), SuperPointNet(MODEL_PRESETS["edge-dense"])
    fresh = transfer(coarse, fine)
    assert fresh
    assert all(name.startswith("detector.fine.") for name in fresh)
    image = torch.rand(1, 1, 64, 80)
    coarse.eval()
    fine.eval()
    with torch.inference_mode():
        torch.testing.assert_close(coarse(image).logits, fine(image).logits, rtol=0, atol=0)
    for parameter in fine.detector.fine[-1].parameters():
        torch.nn.init.normal_(parameter)
    with torch.inference_mode():
        added = heatmap_of(fine(image).logits - coarse(image).logits)
        moved = heatmap_of(fine(image.roll(2, 3)).logits - coarse(image.roll(2, 3)).logits)
    assert added.std() > 0.1
    torch.testing.assert_close(moved[..., 16:48, 18:64], added.roll(2, 2)[..., 16:48, 18:64], rtol=1e-3, atol=1e-3)


def heatmap_of(logits: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pixel_shuffle(logits[:, :64], 8)[:, 0]


def test_transfer_needs_something_in_common() -> None:
    narrow = ModelConfig(encoder="compact(width=0.5)", detector="paper", descriptor="paper")
    with pytest.raises(ConfigError, match="no weights for a vgg network"):
        transfer(SuperPointNet(narrow), SuperPointNet(MODEL_PRESETS["vgg"]))


def test_registry_refuses_doubles_and_names_the_known() -> None:
    registry: Registry[int] = Registry("number", "superpoint.test_numbers")
    registry.register("one")(1)
    with pytest.raises(RegistryError, match="number 'one' is registered twice"):
        registry.register("one")(2)
    with pytest.raises(RegistryError, match="unknown number 'two'; expected one of: one"):
        registry.get("two")
    assert "one" in registry
    assert list(registry) == ["one"]


def test_paper_network_has_the_published_size() -> None:
    config = ModelConfig("vgg(norm=none)", "paper", "paper", 256, {"norm": "none"}, {"norm": "none"})
    parameters = sum(p.numel() for p in SuperPointNet(config).parameters())
    assert parameters == sum(i * o * k * k + o for i, o, k in vgg_shapes()) == 1_300_865
