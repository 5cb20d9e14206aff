"""Weight files made of weight files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_layers import randomise
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frontend.cli.main import main
from frontend.errors import WeightsError
from frontend.matching.lightglue_network import LightGlueConfig, LightGlueNet
from frontend.matching.lightglue_weights import load_matcher, save_matcher
from frontend.model import MODEL_PRESETS, ModelConfig, SuperPointNet
from frontend.weight_files import write_small
from frontend.weights import FORMAT, load_network, save_network


def test_half_the_size_is_nearly_the_same_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half, whole = tmp_path / "new" / "half.safetensors", tmp_path / "whole.safetensors"
    torch.manual_seed(0)
    save_network(whole, SuperPointNet(MODEL_PRESETS["slim"]).eval())
    assert main(["export", "--model", str(whole), "--format", "weights-float16", "--out", str(half)]) == 0
    assert capsys.readouterr().out == f"wrote {half}\n"
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    given = torch.rand(1, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = (load_network(path)[1](given) for path in (whole, half))
    assert got.logits.dtype == torch.float32
    assert 0 < (got.logits - expected.logits).abs().max() < 0.05
    write_small(half, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == half.read_bytes()


def test_half_of_what_has_no_half_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = SuperPointNet(MODEL_PRESETS["slim"])
    with torch.no_grad():
        next(p for p in large.parameters() if p.ndim == 4).fill_(1e5)
    save_network(tmp_path / "large.safetensors", large)
    with pytest.raises(WeightsError, match="has values that float16 has not"):
        write_small(tmp_path / "large.safetensors", tmp_path / "half.safetensors")
    save_file({"a": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="are not of this project"):
        write_small(tmp_path / "other.safetensors", tmp_path / "half.safetensors")
    command = ["export", "--model", "superpoint-slim", "--format", "weights-float16"]
    for arguments, part in (
        (["--out", str(tmp_path / "half.onnx")], "expected a name that ends in .safetensors"),
        (["--out", str(tmp_path / "half.safetensors"), "--size", "64x64"], "--size has no effect"),
    ):
        assert main([*command, *arguments]) == 2
        assert part in capsys.readouterr().err
    assert not list(tmp_path.glob("half*"))


def test_branches_are_written_as_the_plain_network_that_they_fold_to(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = SuperPointNet(ModelConfig(encoder="dbb(width=0.125)", descriptor_dim=32, refiner="patch"))
    randomise(network)
    save_network(tmp_path / "branches.safetensors", network, training={"seed": 4})
    write_small(tmp_path / "branches.safetensors", tmp_path / "plain.safetensors", refiner_passes=2)
    _, plain = load_network(tmp_path / "plain.safetensors", fold=False)
    assert plain.config.encoder == "vgg(channels=[8, 8, 16, 16], norm=none)"
    assert plain.config.refiner_passes == 2
    with safe_open(tmp_path / "plain.safetensors", "pt") as file:
        assert json.loads(file.metadata()["training"]) == {"seed": 4}
    given = torch.rand(1, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = network.eval()(given), plain(given)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.01 * float(theirs.std()))
    damaged = load_file(tmp_path / "branches.safetensors")
    damaged.pop("encoder.stages.0.0.square.conv.weight")
    model = {"format": FORMAT, "model": json.dumps(network.config.to_dict())}
    save_file(damaged, tmp_path / "damaged.safetensors", model)
    with pytest.raises(WeightsError, match=r"do not fit their network: .*square"):
        write_small(tmp_path / "damaged.safetensors", tmp_path / "never.safetensors")
    assert not (tmp_path / "never.safetensors").exists()


def _network(seed: int, preset: str = "slim") -> SuperPointNet:
    torch.manual_seed(seed)
    network = SuperPointNet(MODEL_PRESETS[preset]).eval()
    for name, values in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            values.uniform_(0.5, 1.5)
    return network


def test_the_mean_of_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for seed, path in enumerate(paths):
        save_network(path, _network(seed), training={"seed": seed})
    out = tmp_path / "mean.safetensors"
    command = ["export", "--format", "weights-float16", "--model", str(paths[0]), "--average", str(paths[1])]
    assert main([*command, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    one, other, found = (load_file(path) for path in (*paths, out))
    assert set(found) == set(one)
    for name, tensor in found.items():
        expected = np.asarray(one[name], np.float64)
        if tensor.is_floating_point():
            expected = (expected + np.asarray(other[name], np.float64)) / 2
        # float16 has eleven significant bits, float32 twenty-four
        error = 2.0**-11 if tensor.dtype == torch.float16 else 2.0**-24
        np.testing.assert_allclose(np.asarray(tensor, np.float64), expected, rtol=1.01 * error, atol=1e-7, err_msg=name)
    with safe_open(out, "pt") as file:
        told = {"average_of": [{"seed": 0}, {"seed": 1}], "shares": [0.5, 0.5]}
        assert json.loads(file.metadata()["training"]) == told
    assert load_network(out)[1].config == MODEL_PRESETS["slim"]


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_a_mean_with_shares(share: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for seed, path in enumerate(paths):
        save_network(path, _network(seed))
    out = tmp_path / "mean.safetensors"
    command = ["export", "--format", "weights-float16", "--model", str(paths[0]), "--out", str(out)]
    shared = [*command, "--average", str(paths[1]), "--average-share"]
    assert main([*shared, str(share)]) == 0
    one, other, found = (load_file(path) for path in (*paths, out))
    differ = 0
    for name, tensor in found.items():
        if tensor.is_floating_point():
            a, b = (np.asarray(held[name], np.float64) for held in (one, other))
            np.testing.assert_allclose(
                np.asarray(tensor, np.float64), a * (1 - share) + b * share, rtol=1e-3, atol=1e-6
            )
            differ += int(not np.array_equal(a, b))
    assert differ > 10
    capsys.readouterr()
    for wrong, reason in (
        ([*shared, "1.5"], "average_share is 1.5; expected a number from 0 to 1"),
        ([*command, "--average-share", "0.7"], "--average-share without --average; expected both or neither"),
    ):
        assert main(wrong) == 2
        assert reason in capsys.readouterr().err


def test_files_of_earlier_versions_say_less_of_the_same_network(tmp_path: Path) -> None:
    """Settings at their defaults that one file states and the other does not know."""
    slim, matcher = (tmp_path / f"{name}.safetensors" for name in ("slim", "matcher"))
    save_network(slim, _network(0))
    save_matcher(matcher, LightGlueNet(LightGlueConfig(input_dim=8, dim=8, layers=1, heads=1)))
    for path, key, setting in ((slim, "model", {"refiner_passes": 1}), (matcher, "matcher", {"project": False})):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        stated = json.loads(metadata[key])
        shorter, longer = {k: v for k, v in stated.items() if k not in setting}, {**stated, **setting}
        older, out = tmp_path / "older.safetensors", tmp_path / "out.safetensors"
        save_file(load_file(path), older, {**metadata, key: json.dumps(longer if shorter == stated else shorter)})
        for one, other in ((path, older), (older, path)):
            write_small(one, out, average=other)
            assert set(load_file(out)) == set(load_file(path))


def test_means_of_different_networks_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slim, other = tmp_path / "slim.safetensors", tmp_path / "other.safetensors"
    save_network(slim, _network(0))
    save_network(other, _network(0, "slim-small"))
    out = tmp_path / "out.safetensors"
    with pytest.raises(WeightsError, match=r"other\.safetensors cannot be averaged with .*slim\.safetensors: model is"):
        write_small(slim, out, average=other)
    matcher = tmp_path / "matcher.safetensors"
    save_matcher(matcher, LightGlueNet(LightGlueConfig(input_dim=8, dim=8, layers=1, heads=1)))
    with pytest.raises(WeightsError, match=r"cannot be averaged with .*: format is superpoint-frontend matcher"):
        write_small(slim, out, average=matcher)
    # of one configuration by its words, and another by its tensors
    with safe_open(slim, "pt") as file:
        metadata = file.metadata()
    save_file({**load_file(slim), "more": torch.zeros(2)}, other, metadata)
    with pytest.raises(WeightsError, match="have other tensors than"):
        write_small(slim, out, average=other)
    assert main(["export", "--average", str(other), "--out", str(out.with_suffix(".onnx"))]) == 2
    assert "--average without --format weights-*; expected both or neither" in capsys.readouterr().err
    assert not out.exists()


def test_a_matcher_in_int8_is_a_third_and_nearly_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    whole, small, again = (tmp_path / f"{name}.safetensors" for name in ("whole", "small", "again"))
    save_matcher(whole, LightGlueNet(LightGlueConfig(64, 64, 3, 2)))
    command = ["export", "--format", "weights-int8", "--out"]
    assert main([*command, str(small), "--model", str(whole)]) == 0
    assert small.stat().st_size < 0.4 * whole.stat().st_size
    stored = load_file(small)
    assert stored["transformers.0.cross_attn.to_qk.weight"].dtype == torch.int8
    assert stored["log_assignment.2.final_proj.weight"].dtype == torch.float16
    assert any(name.startswith("log_assignment.0") for name in stored)  # which training on learns by
    got, expected = (load_matcher(path).state_dict() for path in (small, whole))
    for name, tensor in expected.items():
        if name.startswith("transformers.") and tensor.ndim == 2:
            # half a step of its row, whose largest value is 127 of them
            off = (got[name] - tensor).abs() / tensor.abs().amax(dim=1, keepdim=True)
            assert 0 < float(off.max()) <= 0.5 / 127 * 1.001
    # what was in int8 is in int8 again, to the bit
    assert main([*command, str(again), "--model", str(small)]) == 0
    for name, tensor in load_file(again).items():
        torch.testing.assert_close(tensor, stored[name], rtol=1e-6, atol=0)
    name = "transformers.0.cross_attn.to_qk.weight.steps"
    for wrong in ({name: stored[name][:-1]}, {"posenc.steps": stored[name].clone()}):
        with safe_open(small, framework="pt") as file:
            save_file({**stored, **wrong}, again, file.metadata())
        with pytest.raises(WeightsError, match="is not the steps of a matrix's rows"):
            load_matcher(again)
    capsys.readouterr()
    assert main([*command, str(again), "--model", "superpoint-slim"]) == 2
    assert "are no matcher; expected one for 8 bits" in capsys.readouterr().err
