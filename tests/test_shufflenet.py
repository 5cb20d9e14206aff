"""ShuffleNet V2: the shuffle and both units against loops in float64, and the grouped, dilated ConvBlock."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_layers import array, convolve, normalise, randomise
from torch import nn

from frontend.encoders import ConvBlock
from frontend.encoders.shufflenetv2 import BasicUnit, DownsamplingUnit, ShuffleNetV2, channel_shuffle
from frontend.errors import ConfigError, ShapeError


def looped_shuffle(x: np.ndarray, groups: int) -> np.ndarray:
    """Deals the channels of (C, H, W) out: the first of each group, the second of each group, and so on."""
    each = len(x) // groups
    return np.array([x[g * each + i] for i in range(each) for g in range(groups)])


def looped(x: np.ndarray, block: nn.Module, **options: int) -> np.ndarray:
    """Convolution, batch norm, and a ReLU where the block has one."""
    assert isinstance(block, ConvBlock)
    x = normalise(convolve(x, array(block.conv.weight), **options), block.norm)
    return np.maximum(x, 0) if isinstance(block.relu, nn.ReLU) else x


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_channels_are_dealt_out(rng: np.random.Generator, groups: int) -> None:
    x = rng.normal(size=(2, 12, 3, 2))
    found = channel_shuffle(torch.from_numpy(x), groups).numpy()
    np.testing.assert_array_equal(found, np.array([looped_shuffle(image, groups) for image in x]))
    with pytest.raises(ShapeError, match="channel shuffle got 12 channels; expected a multiple of 5"):
        channel_shuffle(torch.from_numpy(x), 5)


@pytest.mark.parametrize("dilation", [1, 2])
def test_the_basic_unit_passes_half_of_its_channels(rng: np.random.Generator, dilation: int) -> None:
    torch.manual_seed(0)
    unit = BasicUnit(8, dilation).double().eval()
    randomise(unit)
    x = rng.normal(size=(8, 5, 6))
    first, depthwise, last = unit.right
    right = looped(looped(looped(x[4:], first), depthwise, groups=4, dilation=dilation), last)
    assert isinstance(depthwise, ConvBlock)
    assert isinstance(depthwise.relu, nn.Identity)
    found = array(unit(torch.from_numpy(x)[None]))[0]
    np.testing.assert_allclose(found, looped_shuffle(np.concatenate([x[:4], right]), 2), atol=1e-9)
    np.testing.assert_array_equal(found[::2], x[:4])


@pytest.mark.parametrize(("stride", "dilation"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_the_downsampling_unit_convolves_both_branches(
    rng: np.random.Generator, stride: int, dilation: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    unit = DownsamplingUnit(4, 12, stride, dilation).double().eval()
    randomise(unit)
    x = rng.normal(size=(4, *size))
    left = looped(looped(x, unit.left[0], groups=4, stride=stride, dilation=dilation), unit.left[1])
    middle = looped(looped(x, unit.right[0]), unit.right[1], groups=6, stride=stride, dilation=dilation)
    expected = looped_shuffle(np.concatenate([left, looped(middle, unit.right[2])]), 2)
    found = array(unit(torch.from_numpy(x)[None]))[0]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("groups", "dilation"), [(1, 1), (2, 1), (4, 2), (1, 3)])
def test_a_grouped_and_dilated_block_folds(
    rng: np.random.Generator, groups: int, dilation: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    block = ConvBlock(4, 8, groups=groups, dilation=dilation).to(dtype).eval()
    randomise(block)
    x = rng.normal(size=(4, 7, 6))
    expected = looped(x, block, groups=groups, dilation=dilation)
    assert expected.shape == (8, 7, 6)
    for _ in range(2):
        found = array(block(torch.from_numpy(x).to(dtype)[None]))[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        block.fold()
    assert isinstance(block.norm, nn.Identity)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_every_batch_norm_of_the_encoder_folds(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    encoder = ShuffleNetV2().to(dtype).eval()
    randomise(encoder)
    x = torch.rand(2, 1, 40, 56, dtype=dtype)
    with torch.no_grad():
        before = encoder(x)
        for module in encoder.modules():
            if isinstance(module, ConvBlock):
                module.fold()
        torch.testing.assert_close(encoder(x), before, rtol=0, atol=tolerance)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    assert before.std() > 0.1


@pytest.mark.parametrize(
    ("width", "stages", "channels"),
    [(0.5, 1, 48), (0.5, 2, 96), (0.5, 3, 192), (1.0, 1, 116), (1.0, 3, 464), (1.5, 2, 352), (2.0, 2, 488)],
)
def test_widths_and_stages_are_those_of_the_paper(width: float, stages: int, channels: int) -> None:
    encoder = ShuffleNetV2(width, stages).eval()
    assert encoder.out_channels == channels
    assert encoder(torch.rand(1, 1, 16, 24)).shape == (1, channels, 2, 3)
    assert [len(stage) for stage in encoder.stages] == [4, 8, 4][:stages]  # type: ignore[arg-type]
    for stage, first, others in zip(encoder.stages, (1, 1, 2), (1, 2, 4), strict=False):
        depthwise = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
        assert [m.dilation[0] for m in depthwise] == [first] * 2 + [others] * (len(depthwise) - 2)


def test_the_stem_has_half_the_stride_of_the_encoder() -> None:
    encoder = ShuffleNetV2().eval()
    assert encoder.stem(torch.rand(1, 1, 48, 64)).shape == (1, 24, 12, 16)


def test_options_outside_the_paper_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"shufflenetv2 got width 0.75; expected one of: 0.5, 1.0, 1.5, 2.0"):
        ShuffleNetV2(width=0.75)
    for stages in (0, 4):
        with pytest.raises(ConfigError, match=f"shufflenetv2 got {stages} stages; expected 1 to 3"):
            ShuffleNetV2(stages=stages)
