"""Carrying a matcher over to other features, and matchers stored as what differs from another."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from toy_matchers import SMALL, certain, features, inputs, network, write_groups

from frontend.cli.main import main
from frontend.errors import ConfigError, DataError, WeightsError
from frontend.extractor import ExtractorConfig, SuperPoint
from frontend.matching.lightglue import LightGlue
from frontend.matching.lightglue_network import LightGlueConfig, LightGlueNet
from frontend.matching.lightglue_weights import load_matcher, save_matcher
from frontend.model import MODEL_PRESETS, SuperPointNet
from frontend.torch_backend import TorchBackend
from frontend.training.matcher_alignment import (
    Alignment,
    align_matcher,
    descriptor_pairs,
    descriptors_at,
    fit_alignment,
)
from frontend.weight_files import write_small
from frontend.weights import save_network


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def rotation(dim: int, seed: int = 0) -> np.ndarray:
    return np.asarray(np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0], np.float32)


def test_the_map_is_least_squares_brought_to_unit_norm() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 4))
    sources = [unit(rng.normal(size=(200, 6))) for _ in range(4)]
    pairs = [(s, unit(s @ mix + rng.normal(0, 0.5, (200, 4)))) for s in sources]
    found = fit_alignment(pairs)
    # the normal equations, on the first and third image
    source, target = (np.concatenate([pairs[0][k], pairs[2][k]]).astype(np.float64) for k in (0, 1))
    solution = np.linalg.solve(source.T @ source, source.T @ target)
    mapped = source @ solution
    solution /= np.mean(np.sqrt((mapped**2).sum(1)))
    np.testing.assert_allclose(found.weight, solution.T, atol=1e-6)
    other, truth = (np.concatenate([pairs[1][k], pairs[3][k]]) for k in (0, 1))
    assert found.similarity == pytest.approx(float((unit(other @ solution) * truth).sum(1).mean()), abs=1e-6)
    assert 0.5 < found.similarity < 0.95
    assert np.isnan(found.unmapped)


def test_what_the_map_gains_is_told() -> None:
    turn = rotation(8)
    rng = np.random.default_rng(1)
    sources = [unit(rng.normal(size=(100, 8))) for _ in range(3)]
    found = fit_alignment((s, s @ turn) for s in sources)
    np.testing.assert_allclose(found.weight, turn.T, atol=1e-5)
    assert found.similarity == pytest.approx(1, abs=1e-6)
    assert found.unmapped == pytest.approx(float((sources[1] * (sources[1] @ turn)).sum(1).mean()), abs=1e-6)


@pytest.mark.parametrize("counts", [[], [100], [100, 31], [31, 100]])
def test_too_few_points_are_refused(counts: list[int]) -> None:
    rng = np.random.default_rng(0)
    rows = [unit(rng.normal(size=(n, 8))) for n in counts]
    with pytest.raises(DataError, match=rf"{len(counts)} images with \d+ keypoints in a half of them; expected at "):
        fit_alignment((r, r) for r in rows)
    assert fit_alignment((r, r) for r in [*rows, *(unit(rng.normal(size=(32, 8))) for _ in range(2))]).similarity > 0.99


@pytest.mark.parametrize("dim", [16, 32, 24])
def test_a_carried_matcher_says_of_the_new_features_what_it_said_of_the_old(dim: int) -> None:
    """Old descriptors that are a linear map of new ones: both matchers compute the same."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(16, dim)).astype(np.float32)
    old = certain()
    assert old.config.input_dim == 16
    new = align_matcher(old, Alignment(weight, 1.0, float("nan")), "other")
    assert new.config == replace(old.config, input_dim=dim, features="other", project=dim == 32)
    d0, p0, d1, p1 = inputs(20, 30, dim)
    map_ = torch.from_numpy(weight).T
    with torch.no_grad():
        expected = old(d0 @ map_, p0 / 320 - 1, d1 @ map_, p1 / 320 - 1)
        found = new(d0, p0 / 320 - 1, d1, p1 / 320 - 1)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_a_matcher_without_a_projection_gets_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = LightGlueNet(LightGlueConfig(32, 32, 2, 2, "toy")).eval()
    turn = rotation(32)
    new = align_matcher(old, Alignment(turn.T, 1.0, 0.0), "turned")
    assert new.config.project
    assert sum(p.numel() for p in new.parameters()) == sum(p.numel() for p in old.parameters()) + 33 * 32
    save_matcher(tmp_path / "new.safetensors", new)
    pair = features(50, 0, 32), features(50, 0, 32)
    turned = [replace(f, descriptors=f.descriptors @ turn.T, model="turned") for f in pair]
    again = LightGlue.from_pretrained(tmp_path / "new.safetensors", threshold=0.0, runtime="torch")
    expected, found = LightGlue.of(old, threshold=0.0).match(*pair), again.match(*turned)
    np.testing.assert_array_equal(found.matches, expected.matches)
    np.testing.assert_allclose(found.match_scores, expected.match_scores, rtol=1e-4)
    assert len(found.matches) > 10


def pictures(folder: Path, count: int) -> list[np.ndarray]:
    folder.mkdir()
    made = []
    for n in range(count):
        rng = np.random.default_rng(n)
        image = cv2.resize(rng.integers(0, 256, (12, 16), dtype=np.uint8), (165, 123), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / f"{n}.png"), image)
        made.append(image)
    return made


def saved(path: Path, preset: str, seed: int) -> SuperPointNet:
    torch.manual_seed(seed)
    made = SuperPointNet(MODEL_PRESETS[preset]).eval()
    save_network(path, made)
    return made.fold()


def test_pairs_are_of_the_same_points(tmp_path: Path) -> None:
    """A network beside itself, its refiner hardly moving points, gives the extractor's own descriptors."""
    images = pictures(tmp_path / "images", 2)
    net = saved(tmp_path / "slim.safetensors", "slim", 0)
    with torch.no_grad():
        for parameter in net.refiner.position_out.parameters():  # type: ignore[union-attr]
            parameter.mul_(0.01)  # so that the pixel that a patch was cut at is the nearest one still
    extractor = SuperPoint.of(TorchBackend(net, "cpu"), config=ExtractorConfig(200))
    pairs = list(descriptor_pairs(extractor, net, images))
    assert len(pairs) == 2
    blind = extractor.configured(ExtractorConfig(200, detection_threshold=0.99))
    assert list(descriptor_pairs(blind, net, images)) == []
    points = torch.zeros(1, 0, 2)
    assert descriptors_at(net, torch.rand(1, 1, 64, 64), points, points[..., 0]).shape == (1, 0, 96)
    assert [one.shape for one, _ in pairs] == [other.shape for _, other in pairs]
    for one, other in pairs:
        assert len(one) > 50
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_align_matcher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "images", 4)
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    saved(old, "slim", 0)
    saved(new, "slim", 1)
    matcher, out = tmp_path / "matcher.safetensors", tmp_path / "made" / "aligned.safetensors"
    save_matcher(matcher, network(LightGlueConfig(96, 32, 2, 2, "old")))
    command = ["align-matcher", "--from", str(old), "--to", str(new), "--matcher", str(matcher)]
    command += ["--images", str(tmp_path / "images"), "--out"]
    assert main([*command, str(out)]) == 0
    text, told = capsys.readouterr()
    assert "skipped" in told
    assert "broken.png" in told
    assert text.startswith(f"wrote {out}: mean cosine to the descriptors of {old} ")
    assert text.endswith(" unmapped)\n")
    carried = load_matcher(out)
    assert carried.config == LightGlueConfig(96, 32, 2, 2, "new")
    for name, tensor in network(LightGlueConfig(96, 32, 2, 2, "old")).state_dict().items():
        assert torch.equal(carried.state_dict()[name], tensor) == (name != "input_proj.weight")

    def refused(*more: str) -> str:
        assert main([*command, *more]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "expected a name that ends in .safetensors" in refused(str(tmp_path / "x.pth"))
    assert "--limit is 1; expected 2 or more" in refused(str(out), "--limit", "1")
    save_matcher(matcher, network(LightGlueConfig(96, 32, 2, 2, "another")))
    assert "is for features of 'another'; expected 'old', of --from" in refused(str(out))
    assert "there is no matcher 'nothing': expected a weight file's path or" in refused(
        str(out), "--matcher", "nothing"
    )
    save_matcher(matcher, network())
    assert "takes descriptors of 16 values; expected 96, those of --from" in refused(str(out))
    for path in (tmp_path / "images").iterdir():
        if path.name != "0.png":
            path.unlink()
    save_matcher(matcher, network(LightGlueConfig(96, 32, 2, 2, "old")))
    assert "has 1 images; expected 2 or more" in refused(str(out))


def test_training_goes_on_from_a_carried_matcher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = write_groups(tmp_path / "groups", dim=32)
    start = tmp_path / "start.safetensors"
    save_matcher(start, align_matcher(network(LightGlueConfig(32, 32, 2, 2)), Alignment(rotation(32), 1.0, 0), "toy"))
    command = ["train", "lightglue", "--views", str(groups), "--dim", "32", "--layers", "2", "--keypoints", "40"]
    command += ["--strongest", "60", "--least-matches", "5", "--batch-size", "2", "--workers", "0", "--ema", "0"]
    command += ["--warmup-steps", "1", "--device", "cpu", "--precision", "fp32", "--steps", "4", "--seed", "1"]
    frozen = ["--freeze", "transformers,log_assignment,posenc"]
    out = tmp_path / "run"
    assert main([*command, *frozen, "--out", str(out)]) == 2
    assert "freeze was given without a matcher to start from" in capsys.readouterr().err
    assert main([*command, *frozen, "--out", str(out), "--init", str(start), "--stop", "2"]) == 0
    assert main([*command, *frozen, "--out", str(out)]) == 0  # goes on without --init
    whole = tmp_path / "whole"
    assert main([*command, *frozen, "--out", str(whole), "--init", str(start)]) == 0
    before = load_matcher(start).state_dict()
    after, same = (load_matcher(folder / "lightglue.safetensors") for folder in (out, whole))
    assert after.config == LightGlueConfig(32, 32, 2, 2, "toy", project=True)
    for name, tensor in after.state_dict().items():
        assert torch.equal(tensor, before[name]) == (not name.startswith("input_proj.")), name
        assert torch.equal(tensor, same.state_dict()[name]), name
    save_matcher(start, network(LightGlueConfig(32, 32, 2, 2, "toy")))
    assert main([*command, *frozen, "--out", str(tmp_path / "none"), "--init", str(start)]) == 2
    assert "which leaves nothing to train; expected fewer modules" in capsys.readouterr().err
    assert main([*command, "--out", str(out)]) == 2  # without what it was begun with
    assert "freeze" in capsys.readouterr().err


def test_matchers_without_a_map_are_described_as_before_there_were_any() -> None:
    """So that files stay the same bytes, and runs that earlier versions began go on."""
    assert "project" not in SMALL.to_dict()
    for config in (SMALL, LightGlueConfig(32, 32, project=True)):
        assert LightGlueConfig.from_dict(config.to_dict()) == config
    assert replace(SMALL, project=True) == SMALL  # projected anyhow


@pytest.fixture
def body(tmp_path: Path) -> Path:
    save_matcher(tmp_path / "full.safetensors", network())
    path = tmp_path / "body.safetensors"
    write_small(tmp_path / "full.safetensors", path)
    return path


def test_a_difference_is_small_and_the_same_matcher(
    body: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    save_matcher(tmp_path / "new.safetensors", align_matcher(load_matcher(body), Alignment(weight, 1, 0), "other"))
    out, complete = tmp_path / "other.safetensors", tmp_path / "complete.safetensors"
    command = ["export", "--format", "weights-float16", "--model", str(tmp_path / "new.safetensors")]
    assert main([*command, "--base", str(body), "--out", str(out)]) == 0
    assert main([*command, "--out", str(complete)]) == 0
    assert set(load_file(out)) == {"input_proj.weight"}
    assert out.stat().st_size < 0.2 * complete.stat().st_size
    found, expected = load_matcher(out), load_matcher(complete)
    assert found.config == expected.config == replace(SMALL, input_dim=24, features="other")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    # a difference can be written again, in full
    assert main(["export", "--format", "weights-float16", "--model", str(out), "--out", str(complete)]) == 0
    assert torch.equal(
        load_matcher(complete).state_dict()["input_proj.weight"], found.state_dict()["input_proj.weight"]
    )
    assert set(load_file(complete)) == set(load_file(body))

    # the base is looked for beside the file, and among the released weights
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = out.rename(elsewhere / out.name)
    digest = hashlib.sha256(body.read_bytes()).hexdigest()[:12]
    with pytest.raises(
        WeightsError, match=rf"other\.safetensors need body\.safetensors beside them, of .*{digest}.*: the"
    ):
        load_matcher(moved)
    monkeypatch.setenv("SUPERPOINT_WEIGHTS_DIR", str(tmp_path))
    assert torch.equal(load_matcher(moved).state_dict()["input_proj.weight"], found.state_dict()["input_proj.weight"])
    (elsewhere / body.name).write_bytes(complete.read_bytes())  # another one of that name does not hide it
    assert load_matcher(moved).config == found.config
    body.unlink()
    with pytest.raises(WeightsError, match=r"need body\.safetensors beside them, .*elsewhere/body\.safetensors has "):
        load_matcher(moved)
    capsys.readouterr()


def test_what_a_difference_needs(body: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    torch.manual_seed(1)
    save_matcher(tmp_path / "another.safetensors", LightGlueNet(SMALL))
    with pytest.raises(
        WeightsError, match=r"of the matcher's \d+ values \d+ are in other tensors .*; expected at most half"
    ):
        write_small(tmp_path / "another.safetensors", out, base=body)
    save_matcher(tmp_path / "deep.safetensors", LightGlueNet(replace(SMALL, layers=3)))
    with pytest.raises(WeightsError, match=r"have tensors that the matcher has not, such as 'log_assignment\.2\."):
        write_small(body, out, base=tmp_path / "deep.safetensors")
    saved(tmp_path / "slim.safetensors", "slim", 0)
    with pytest.raises(WeightsError, match=r"slim\.safetensors are no complete matcher"):
        write_small(body, out, base=tmp_path / "slim.safetensors")
    with pytest.raises(WeightsError, match="these weights are no matcher"):
        write_small(tmp_path / "slim.safetensors", out, base=body)
    write_small(tmp_path / "full.safetensors", out, base=body)
    with pytest.raises(WeightsError, match=r"out\.safetensors are no complete matcher"):
        write_small(body, tmp_path / "more.safetensors", base=out)
    with pytest.raises(ConfigError, match=r"has the name of the file to write, .*; expected another name"):
        write_small(tmp_path / "full.safetensors", body, base=body)
    assert load_matcher(body).config == SMALL
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["base"])["file"] == "body.safetensors"
    assert main(["export", "--base", str(body), "--out", str(tmp_path / "x.onnx")]) == 2
    assert "--base without --format weights-*; expected both or neither" in capsys.readouterr().err
