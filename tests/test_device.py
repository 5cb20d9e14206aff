"""Devices and arithmetic by name."""

from __future__ import annotations

import pytest
import torch

from frontend import device
from frontend.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "fast", "expected"),
    [("auto", True, True), ("auto", False, False), ("bf16", False, True), ("fp32", True, False)],
)
def test_auto_is_bf16_only_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, name: str, fast: bool, expected: bool
) -> None:
    monkeypatch.setattr(device, "_cpu_has_bf16", lambda: fast)
    with device.autocast(name, torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") == expected
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == (
            torch.bfloat16 if expected else torch.float32
        )


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision is 'half'; expected auto, bf16 or fp32"):
        device.autocast("half", torch.device("cpu"))


def test_unknown_devices_are_refused() -> None:
    for name in ("tpu", "cpu:0", "cuda:x"):
        with pytest.raises(ConfigError, match=f"device is '{name}'"):
            device.pick_device(name)


@pytest.mark.parametrize(
    ("instructions", "tiles", "intel", "expected"),
    [
        (False, False, False, False),
        (True, False, False, True),  # AMD from Zen 4 on
        (True, False, True, False),  # Intel without AMX: as many products as in float32, and conversions
        (True, True, True, True),
    ],
)
def test_which_cpus_are_fast_in_bf16(
    monkeypatch: pytest.MonkeyPatch, instructions: bool, tiles: bool, intel: bool, expected: bool
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: instructions)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(device, "_is_intel", lambda: intel)
    assert device._cpu_has_bf16() is expected
