"""External attention, MLP-Mixer, feed-forward and LV-ViT against loops in float64, and tokens from grid to grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from frontend.encoders import TokenEncoder, build_encoder
from frontend.encoders.external_attention import (
    ExternalAttention,
    ExternalAttentionBlock,
    ExternalAttentionContext,
    double_normalise,
)
from frontend.encoders.feed_forward import FeedForward, FeedForwardBlock
from frontend.encoders.lv_vit import LVViT, ScaledResidualBlock
from frontend.encoders.mlp_mixer import MixerBlock, MLPMixer
from frontend.encoders.token_grid import MLP, interpolation_matrix, resample, to_map, to_sequence
from frontend.errors import ConfigError

Array = np.ndarray
NATIVE = (2, 3)
OTHER = (5, 4)


def randomised(module: Any, seed: int = 0) -> Any:
    """The module in float64 and evaluation mode, every number in it random, gains and statistics too."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / 2)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_var.copy_(part.running_var.abs() + 0.5)
    return module


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_array(tensor: Tensor | None) -> Array:
    assert tensor is not None
    return np.asarray(tensor.detach().double())


def norm_of(vector: Array, layer: Any) -> Array:
    mean = sum(vector) / len(vector)
    variance = sum((v - mean) ** 2 for v in vector) / len(vector)
    return (vector - mean) / math.sqrt(variance + 1e-5) * as_array(layer.weight) + as_array(layer.bias)


def linear_of(vector: Array, layer: Any) -> Array:
    weight = as_array(layer.weight)
    out = np.array([sum(weight[o, i] * vector[i] for i in range(len(vector))) for o in range(len(weight))])
    return out if layer.bias is None else out + as_array(layer.bias)


def mlp_of(vector: Array, mlp: MLP) -> Array:
    hidden = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in linear_of(vector, mlp.expand)]
    return linear_of(np.array(hidden), mlp.contract)


def interpolation(source: int, target: int) -> Array:
    """Each target cell under a triangle, in units of the source's cells."""
    weights = np.zeros((target, source))
    reach = max(source / target, 1)
    for t, s in np.ndindex(target, source):
        middle = (t + 0.5) * source / target
        weights[t, s] = max(0, 1 - abs(s + 0.5 - middle) / reach)
    for t in range(target):
        weights[t] /= sum(weights[t])
    return weights


def between_grids(source: tuple[int, int], target: tuple[int, int]) -> Array:
    """(target cells, source cells): what resampling does to rows of tokens."""
    rows, columns = interpolation(source[0], target[0]), interpolation(source[1], target[1])
    matrix = np.zeros((target[0] * target[1], source[0] * source[1]))
    for i, j, k, m in np.ndindex(*target, *source):
        matrix[i * target[1] + j, k * source[1] + m] = rows[i, k] * columns[j, m]
    return matrix


# resampling


@pytest.mark.parametrize(("source", "target"), [(6, 6), (6, 3), (7, 3), (3, 8), (15, 60), (15, 2), (1, 4), (4, 1)])
def test_interpolation_equals_a_loop(source: int, target: int) -> None:
    found = interpolation_matrix(source, target, numbers(1))
    np.testing.assert_allclose(found.numpy(), interpolation(source, target), rtol=1e-12, atol=1e-12)


def test_resampling_to_the_same_grid_is_exact() -> None:
    x = numbers(2, 3, 15, 20)
    assert torch.equal(resample(x, (15, 20)), x)
    # the matrices themselves would change nothing either
    torch.testing.assert_close(interpolation_matrix(15, 15, x), torch.eye(15, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(2, 2), (15, 25), (60, 80), (7, 100)])
def test_resampling_keeps_constants_and_ramps(size: tuple[int, int]) -> None:
    constant = torch.full((1, 2, 15, 20), 3.5, dtype=torch.float64)
    torch.testing.assert_close(resample(constant, size), torch.full((1, 2, *size), 3.5, dtype=torch.float64))
    if size[1] > 20:  # away from the ends, where the last cell is repeated
        ramp = ((torch.arange(20, dtype=torch.float64) + 0.5) / 20).expand(1, 1, 15, 20)
        expected = (torch.arange(size[1], dtype=torch.float64) + 0.5) / size[1]
        inside = slice(size[1] // 20 + 1, -(size[1] // 20) - 1)
        torch.testing.assert_close(resample(ramp, size)[0, 0, 0, inside], expected[inside])


def test_sequences_run_row_by_row() -> None:
    x = numbers(2, 4, 3, 5)
    sequence = to_sequence(x)
    for i, j in np.ndindex(3, 5):
        assert torch.equal(sequence[:, i * 5 + j], x[:, :, i, j])
    assert torch.equal(to_map(sequence, (3, 5)), x)


# external attention


def normalised(logits: Array) -> Array:
    """Softmax over the N tokens (columns), then shares of the S units (rows)."""
    units, tokens = logits.shape
    out = np.zeros((units, tokens))
    for s, n in np.ndindex(units, tokens):
        out[s, n] = math.exp(logits[s, n]) / sum(math.exp(logits[s, m]) for m in range(tokens))
    for n in range(tokens):
        out[:, n] = out[:, n] / sum(out[:, n])
    return out


def attended(x: Array, module: ExternalAttention) -> Array:
    """(C, N) tokens, by head."""
    keys, values = as_array(module.keys), as_array(module.values)
    width = keys.shape[1]
    out = np.zeros_like(x)
    for head in range(module.heads):
        part = x[head * width : (head + 1) * width]
        logits = np.zeros((len(keys), x.shape[1]))
        for s, n in np.ndindex(*logits.shape):
            logits[s, n] = sum(part[c, n] * keys[s, c] for c in range(width))
        weights = normalised(logits)
        for c, n in np.ndindex(width, x.shape[1]):
            out[head * width + c, n] = sum(weights[s, n] * values[s, c] for s in range(len(keys)))
    return out


def test_double_normalisation_equals_a_loop() -> None:
    logits = 2 * numbers(2, 5, 7)
    found = double_normalise(logits)
    for b in range(2):
        np.testing.assert_allclose(found[b].numpy(), normalised(logits[b].numpy()), rtol=1e-12)


def test_double_normalisation_survives_underflow() -> None:
    logits = numbers(4, 6)
    logits[:, 2] -= 200  # its softmax over the tokens is zero in float32, in all units
    found = double_normalise(logits.float())
    np.testing.assert_allclose(found.numpy(), normalised(logits.numpy()), rtol=1e-3)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(6))


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_external_attention_equals_a_loop(heads: int) -> None:
    module = randomised(ExternalAttention(6, memory=4, heads=heads))
    assert module.keys.shape == module.values.shape == (4, 6 // heads)
    x = 2 * numbers(2, 6, 2, 3)
    found = module(x)
    for b in range(2):
        expected = attended(x[b].flatten(1).numpy(), module).reshape(6, 2, 3)
        np.testing.assert_allclose(as_array(found[b]), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("relu", [True, False])
def test_external_attention_block_equals_a_loop(relu: bool) -> None:
    block = randomised(ExternalAttentionBlock(6, memory=4, heads=2, relu=relu))
    x = numbers(1, 6, 2, 3)
    tokens = x[0].flatten(1).numpy()
    query = as_array(block.query.weight)[:, :, 0, 0] @ tokens
    out = as_array(block.out.conv.weight)[:, :, 0, 0] @ attended(query, block.attention)
    norm: Any = block.out.norm
    mean, variance, gain, shift = map(as_array, (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    for c in range(6):
        scaled = (out[c] - mean[c]) / math.sqrt(variance[c] + 1e-5)
        out[c] = scaled * gain[c] + shift[c] + tokens[c]
    assert (out < 0).any()
    expected = np.maximum(out, 0) if relu else out
    np.testing.assert_allclose(as_array(block(x)[0]).reshape(6, 6), expected, rtol=1e-10, atol=1e-12)


def flops_of(function: Callable[[Tensor], object], tokens: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        function(torch.rand(1, 32, tokens // 20, 20))
    return int(counter.get_total_flops())


def test_cost_is_linear_in_the_number_of_tokens() -> None:
    block = ExternalAttentionBlock(32, memory=16, heads=4).eval()

    def quadratic(x: Tensor) -> Tensor:
        tokens = to_sequence(x)
        return (tokens @ tokens.transpose(1, 2)).softmax(dim=-1) @ tokens

    assert flops_of(block, 300) == 2 * 300 * (2 * 32 * 32 + 2 * 16 * 32)
    assert flops_of(block, 1200) == 4 * flops_of(block, 300)
    assert flops_of(block, 4800) == 16 * flops_of(block, 300)
    assert flops_of(quadratic, 1200) == 16 * flops_of(quadratic, 300)  # so the counter would have seen it


def test_the_context_starts_as_the_identity() -> None:
    context = ExternalAttentionContext(6, memory=4, heads=2)
    for module in (context.train(), context.eval()):
        features = numbers(2, 6, 3, 4).float()
        found, auxiliary = module(features)
        assert torch.equal(found, features)
        assert auxiliary == {}
    norm: Any = context.block.out.norm
    nn.init.ones_(norm.weight)
    assert not torch.allclose(context.train()(features)[0], features, atol=0.1)


# MLP-Mixer


def mixed_by_mixer(x: Array, block: MixerBlock, size: tuple[int, int]) -> Array:
    """(N, C) to (N, C): the token-mixing branch with its weights resampled."""
    native = between_grids(size, NATIVE) @ x
    normed = np.stack([norm_of(token, block.token_norm) for token in native])
    mixed = np.stack([mlp_of(normed[:, c], block.token_mixing) for c in range(x.shape[1])], axis=1)
    return between_grids(NATIVE, size) @ mixed


@pytest.mark.parametrize("size", [NATIVE, OTHER])
def test_mixer_block_equals_a_loop(size: tuple[int, int]) -> None:
    block = randomised(MixerBlock(4, NATIVE, token_hidden=5, channel_hidden=7))
    x = numbers(2, size[0] * size[1], 4)
    found = block(x, size)
    for b in range(2):
        between = x[b].numpy() + mixed_by_mixer(x[b].numpy(), block, size)
        expected = [token + mlp_of(norm_of(token, block.channel_norm), block.channel_mixing) for token in between]
        np.testing.assert_allclose(as_array(found[b]), np.stack(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("encoder", [MLPMixer, FeedForward])
def test_tokens_are_linear_maps_of_patches(encoder: Callable[..., TokenEncoder]) -> None:
    network: Any = randomised(encoder(dim=5, depth=0, grid=NATIVE))
    image = numbers(1, 1, 16, 24)
    tokens = as_array(network.embed(image)[0])
    for c, i, j in np.ndindex(5, 2, 3):
        patch = image[0, 0, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].numpy()
        expected = (as_array(network.patches.weight[c, 0]) * patch).sum() + as_array(network.patches.bias)[c]
        assert tokens[c, i, j] == pytest.approx(expected, rel=1e-10)


# feed-forward


def mixed_by_feed_forward(x: Array, block: FeedForwardBlock, size: tuple[int, int]) -> Array:
    """(1 + N, C) to (1 + N, C), the class token first."""
    native = np.concatenate([x[:1], between_grids(size, NATIVE) @ x[1:]])
    mixed = np.zeros_like(native)
    for c in range(x.shape[1]):
        mixed[:, c] = mlp_of(norm_of(native[:, c], block.token_norm), block.over_tokens)
    return np.concatenate([mixed[:1], between_grids(NATIVE, size) @ mixed[1:]])


@pytest.mark.parametrize("size", [NATIVE, OTHER])
def test_feed_forward_block_equals_a_loop(size: tuple[int, int]) -> None:
    block = randomised(FeedForwardBlock(4, NATIVE, ratio=2.0, token_ratio=3.0))
    assert block.over_channels.expand.out_features == 8
    assert block.over_tokens.expand.out_features == 3 * (6 + 1)
    x = numbers(2, 1 + size[0] * size[1], 4)
    found = block(x, size)
    for b in range(2):
        between = [t + mlp_of(norm_of(t, block.channel_norm), block.over_channels) for t in x[b].numpy()]
        expected = np.stack(between) + mixed_by_feed_forward(np.stack(between), block, size)
        np.testing.assert_allclose(as_array(found[b]), expected, rtol=1e-10, atol=1e-12)


def test_the_class_token_takes_part() -> None:
    network = randomised(FeedForward(dim=4, depth=1, grid=NATIVE))
    tokens = numbers(2, 4, *NATIVE)
    block = network.blocks[0]
    sequence = to_sequence(tokens + network.position)
    whole = block(torch.cat([network.class_token.expand(2, 1, 4), sequence], dim=1), NATIVE)
    for b, n in np.ndindex(2, 6):
        expected = norm_of(as_array(whole[b, 1 + n]), network.norm)
        np.testing.assert_allclose(as_array(network.encode(tokens)[b, :, n // 3, n % 3]), expected, rtol=1e-10)


# LV-ViT


@pytest.mark.parametrize("alpha", [2.0, 3.0])
def test_scaled_residual_block_equals_a_loop(alpha: float) -> None:
    block = randomised(ScaledResidualBlock(6, heads=2, mlp_ratio=1.5, alpha=alpha))
    x = numbers(1, 5, 6)
    normed = np.stack([norm_of(t, block.attention_norm) for t in x[0].numpy()])
    qkv = np.stack([linear_of(t, block.attention.qkv) for t in normed])
    gathered = np.zeros((5, 6))
    for head in range(2):
        channels = slice(3 * head, 3 * head + 3)
        q, k, v = qkv[:, :6][:, channels], qkv[:, 6:12][:, channels], qkv[:, 12:][:, channels]
        for n in range(5):
            weights = [math.exp(sum(q[n, c] * k[m, c] for c in range(3)) / math.sqrt(3)) for m in range(5)]
            gathered[n, channels] = sum(weights[m] * v[m] for m in range(5)) / sum(weights)
    between = x[0].numpy() + np.stack([linear_of(t, block.attention.project) for t in gathered]) / alpha
    expected = [t + mlp_of(norm_of(t, block.mlp_norm), block.mlp) / alpha for t in between]
    np.testing.assert_allclose(as_array(block(x)[0]), np.stack(expected), rtol=1e-10, atol=1e-12)


def test_the_alpha_of_the_encoder_reaches_its_blocks() -> None:
    tokens = numbers(1, 8, 3, 4)
    once, twice = (randomised(LVViT(dim=8, depth=1, heads=2, grid=NATIVE, alpha=a)) for a in (1.0, 2.0))
    with torch.no_grad():
        for layer in (twice.blocks[0].attention.project, twice.blocks[0].mlp.contract):
            layer.weight.mul_(2)
            layer.bias.mul_(2)
    torch.testing.assert_close(twice.encode(tokens), once.encode(tokens))


def test_convolutional_tokens_move_with_the_image() -> None:
    network = randomised(LVViT(dim=6, depth=0, heads=1, grid=NATIVE, stem=8))
    image = numbers(1, 1, 64, 80)
    tokens, moved = network.embed(image), network.embed(image.roll((8, 16), dims=(2, 3)))
    # two cells from the border the zero padding is not seen
    torch.testing.assert_close(moved[:, :, 3:-2, 4:-2], tokens[:, :, 2:-3, 2:-4])
    assert tokens.std() > 0


@pytest.mark.parametrize("encoder", [FeedForward, LVViT])
@pytest.mark.parametrize("size", [NATIVE, OTHER])
def test_positions_are_resampled(encoder: Callable[..., TokenEncoder], size: tuple[int, int]) -> None:
    network: Any = randomised(encoder(dim=4, depth=0, grid=NATIVE))
    tokens = numbers(1, 4, *size)
    position = between_grids(NATIVE, size) @ as_array(to_sequence(network.position)[0])
    found = to_sequence(network.encode(tokens))[0]
    for n, token in enumerate(to_sequence(tokens)[0].numpy()):
        np.testing.assert_allclose(as_array(found[n]), norm_of(token + position[n], network.norm), rtol=1e-10)


# all of them


def correlation(a: Tensor, b: Tensor) -> float:
    """Of two maps (C, h, w) without the mean of each channel."""
    a, b = (x - x.mean(dim=(1, 2), keepdim=True) for x in (a, b))
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.mark.parametrize("spec", ["mlp_mixer", "feed_forward", "lv_vit"])
def test_a_larger_image_gives_similar_features(spec: str) -> None:
    torch.manual_seed(0)
    encoder, _ = build_encoder(spec)
    encoder.eval()
    blobs = nn.functional.interpolate(torch.rand(2, 1, 6, 8), (120, 160), mode="bicubic").clamp(0, 1)
    larger = nn.functional.interpolate(blobs, (240, 320), mode="bilinear")
    with torch.inference_mode():
        native, other = encoder(blobs), encoder(larger)
    assert other.shape[2:] == (30, 40)
    pooled = nn.functional.avg_pool2d(other, 2)
    # of the difference of two images, as positions give features in common; weights that are not learned yet are not
    # smooth over the grid, which interpolation is
    assert correlation(native[0] - native[1], pooled[0] - pooled[1]) > 0.6
    assert correlation(native[0], pooled[0]) > 0.7
    # neither the differences between the cells nor those between the channels die out or grow
    for axis in ((2, 3), 1):
        assert 0.6 < float(other.std(dim=axis).mean() / native.std(dim=axis).mean()) < 1.2


def test_smooth_token_mixing_is_the_same_on_every_grid() -> None:
    torch.manual_seed(0)
    block = MixerBlock(8, (15, 20), token_hidden=16, channel_hidden=8).double()

    def smooth(*shape: int) -> Tensor:
        return nn.functional.interpolate(numbers(*shape, 3, 4), (60, 80), mode="bicubic")

    with torch.no_grad():
        block.token_mixing.expand.weight.copy_(resample(smooth(16, 1), (15, 20)).flatten(1) / 10)
        block.token_mixing.contract.weight.copy_(resample(smooth(1, 16), (15, 20))[0].flatten(1).T)
        tokens = smooth(1, 8)
        expected = to_map(block.mix_tokens(to_sequence(tokens), (60, 80)), (60, 80))
        assert float(expected.std()) > 0.1
        for size in ((15, 20), (30, 40), (24, 50)):
            found = to_map(block.mix_tokens(to_sequence(resample(tokens, size)), size), size)
            wanted = resample(expected, size)
            assert correlation(found[0], wanted[0]) > 0.99
            assert float((found - wanted).norm() / wanted.norm()) < 0.1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mlp_mixer(grid=[15])", "mlp_mixer got grid \\[15\\]; expected rows and columns"),
        ("feed_forward(grid=[15, 0])", "feed_forward got grid \\[15, 0\\]; expected a list of whole numbers"),
        ("lv_vit(grid=[15, 2.5])", "lv_vit got grid \\[15, 2.5\\]; expected a list of whole numbers"),
        ("lv_vit(heads=3)", "lv_vit got 3 heads; expected a divisor of the 128 channels"),
        ("lv_vit(alpha=0.0)", "lv_vit got alpha 0.0; expected a positive number"),
        ("external_attention(heads=3)", "external_attention got 3 heads; expected a divisor of the 128 channels"),
        ("external_attention(heads=0)", "external_attention got heads 0; expected a whole number of 1 or more"),
        ("compact+external_attention(heads=5)", "external_attention got 5 heads; expected a divisor of the 96"),
        ("external_attention(memory=0)", "external_attention got memory 0; expected a whole number of 1 or more"),
    ],
)
def test_wrong_options_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_encoder(spec)
