"""The learned matcher: its network against kornia's and plain equations, its files, and matching with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_matchers import SMALL, certain, features, inputs, network, release

from frontend.cli.main import main
from frontend.errors import ConfigError, RegistryError, ShapeError, WeightsError
from frontend.evaluation.methods import create_method, matchers_of, split_method
from frontend.extractor import SuperPoint
from frontend.matching import check_matcher, match_features
from frontend.matching.lightglue import LightGlue, normalised
from frontend.matching.lightglue_network import (
    Assignment,
    LightGlueConfig,
    MatchGraph,
    from_interleaved,
    normalise_positions,
    to_interleaved,
)
from frontend.matching.lightglue_weights import load_matcher, save_matcher
from frontend.pipeline import MatchPipeline, PipelineConfig
from frontend.weight_files import write_small
from frontend.weights import list_matchers, resolve_matcher


@pytest.mark.parametrize(("input_dim", "dim", "heads"), [(32, 32, 2), (16, 32, 4), (128, 64, 1)])
@pytest.mark.parametrize(("count0", "count1"), [(40, 40), (33, 50)])
def test_is_kornias_network_in_another_layout(input_dim: int, dim: int, heads: int, count0: int, count1: int) -> None:
    from kornia.feature import LightGlue as Kornia

    ours = network(LightGlueConfig(input_dim, dim, 3, heads))
    theirs = Kornia(
        None,
        input_dim=input_dim,
        descriptor_dim=dim,
        n_layers=3,
        num_heads=heads,
        depth_confidence=-1,
        width_confidence=-1,
        flash=False,
        filter_threshold=0.0,
    ).eval()
    missing, unexpected = theirs.load_state_dict(to_interleaved(ours), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} <= {"token_confidence", "confidence_thresholds"}
    d0, p0, d1, p1 = inputs(count0, count1, input_dim, batch=2)
    size = torch.tensor([[640, 480]] * 2)
    with torch.no_grad():
        got = ours(d0, normalise_positions(p0, size), d1, normalise_positions(p1, size)).log_scores()
        expected = theirs(
            {
                "image0": {"keypoints": p0, "descriptors": d0, "image_size": size},
                "image1": {"keypoints": p1, "descriptors": d1, "image_size": size},
            }
        )
    assert float(got.std()) > 0.1
    torch.testing.assert_close(got, expected["log_assignment"][:, :-1, :-1], atol=2e-5, rtol=1e-5)


def test_layouts_round_trip() -> None:
    ours = network()
    back = from_interleaved(to_interleaved(ours), ours.config)
    assert any(not torch.equal(a, b) for a, b in zip(back.values(), to_interleaved(ours).values(), strict=True))
    for name, tensor in ours.state_dict().items():
        assert torch.equal(back[name], tensor)


def test_assignment_is_equation_6_in_float64() -> None:
    rng = np.random.default_rng(0)
    similarity, z0, z1 = rng.normal(size=(5, 7)) * 3, rng.normal(size=5), rng.normal(size=7)
    rows = np.exp(similarity) / np.exp(similarity).sum(1, keepdims=True)
    columns = np.exp(similarity) / np.exp(similarity).sum(0, keepdims=True)
    expected = np.log(rows * columns / (1 + np.exp(-z0[:, None])) / (1 + np.exp(-z1[None])))
    got = Assignment(*(torch.from_numpy(x)[None] for x in (similarity, z0, z1))).log_scores()
    np.testing.assert_allclose(got[0].numpy(), expected, atol=1e-5)


def test_order_of_keypoints_does_not_matter() -> None:
    net, (d0, p0, d1, p1) = network(), inputs(20, 30, 16)
    order = torch.randperm(30)
    with torch.no_grad():
        plain = net(d0, p0 / 320 - 1, d1, p1 / 320 - 1).log_scores()
        turned = net(d0, p0 / 320 - 1, d1[:, order], p1[:, order] / 320 - 1).log_scores()
    torch.testing.assert_close(turned, plain[..., order], atol=1e-5, rtol=1e-5)


def test_the_last_of_all_layers_is_the_result_and_a_batch_is_its_pairs() -> None:
    net, (d0, p0, d1, p1) = network(), inputs(20, 30, 16, batch=3)
    with torch.no_grad():
        layers = net.all_layers(d0, p0, d1, p1)
        assert len(layers) == 2
        whole = net(d0, p0, d1, p1).log_scores()
        torch.testing.assert_close(layers[-1].log_scores(), whole)
        assert not torch.allclose(layers[0].log_scores(), whole, atol=1e-2)
        lone = net(d0[1:2], p0[1:2], d1[1:2], p1[1:2]).log_scores()
    torch.testing.assert_close(lone[0], whole[1], atol=1e-5, rtol=1e-5)


def test_matches_are_mutual_maxima() -> None:
    net, (d0, p0, d1, p1) = network(), inputs(40, 30, 16)
    with torch.no_grad():
        probability = net(d0, p0, d1, p1).log_scores()[0].exp().numpy()
        partner, scores = (t[0].numpy() for t in MatchGraph(net)(d0, p0, d1, p1))
    expected = {i: int(row.argmax()) for i, row in enumerate(probability) if probability[:, row.argmax()].argmax() == i}
    assert 3 < len(expected) < 30
    assert {i: int(j) for i, j in enumerate(partner) if j >= 0} == expected
    for i, j in expected.items():
        assert scores[i] == pytest.approx(probability[i, j], abs=1e-6)
    assert (scores[partner < 0] == 0).all()


def test_positions_are_relative_to_the_longer_side() -> None:
    f = features(3, 0)
    points = torch.from_numpy(f.keypoints)
    expected = (f.keypoints.astype(np.float64) - [320, 240]) / 320
    np.testing.assert_allclose(normalised(f), expected, atol=1e-6)
    np.testing.assert_allclose(normalise_positions(points, torch.tensor([640, 480])).numpy(), expected, atol=1e-6)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPERPOINT_WEIGHTS_DIR", str(tmp_path / "weights"))
    return release(tmp_path / "weights")


@pytest.mark.parametrize(("count0", "count1"), [(0, 5), (5, 0), (0, 0), (1, 1), (2, 1), (1, 9), (30, 20)])
def test_by_name_and_by_file_it_is_the_same_matcher(weights: Path, count0: int, count1: int) -> None:
    second = features(count1, 0)
    pair = features(count0, 0), second
    released = match_features(*pair, matcher="lightglue")
    own = match_features(*pair, matcher=str(weights))
    direct = LightGlue.from_pretrained("toy").match(*pair)
    for found in (own, direct):
        np.testing.assert_array_equal(found.matches, released.matches)
        np.testing.assert_array_equal(found.match_scores, released.match_scores)
    assert released.matches.tolist() == [[i, i] for i in range(min(count0, count1))]
    assert released.matches.shape == (len(released.match_scores), 2)
    assert (np.diff(released.matches[:, 0]) > 0).all()


def test_a_lower_threshold_matches_more(weights: Path) -> None:
    pair = features(60, 0), features(60, 0)
    counts = [len(LightGlue.of(network(), threshold=t).match(*pair)) for t in (0.0, 3e-4, 0.999)]
    assert counts[0] > counts[1] > counts[2] == 0
    with pytest.raises(ConfigError, match=r"threshold is 1\.0; expected a probability below 1"):
        LightGlue.of(load_matcher(weights), threshold=1.0)


def test_least_similarity_is_the_least_probability(weights: Path) -> None:
    pair = features(60, 0), features(60, 1)
    every = match_features(*pair, matcher=str(weights), min_similarity=0.0)
    least = float(np.median(every.match_scores))
    some = match_features(*pair, matcher=str(weights), min_similarity=least)
    kept = every.match_scores > np.float32(least)
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(some.matches, every.matches[kept])
    np.testing.assert_array_equal(some.match_scores, every.match_scores[kept])
    default = match_features(*pair, matcher=str(weights))
    assert len(default) == (every.match_scores > 0.1).sum()


def test_manifest_lists_matchers_and_checks_their_files(weights: Path) -> None:
    info = list_matchers()["glue"]
    assert (info.features, info.path, info.licence, info.version) == ("toy", weights, "x", "1.2")
    assert resolve_matcher("toy") == weights
    with pytest.raises(WeightsError, match=r"sha256 is .*; the manifest expects 000000000000"):
        resolve_matcher("changed")
    with pytest.raises(WeightsError, match="weights of matcher 'third' are missing"):
        resolve_matcher("gone")
    with pytest.raises(WeightsError, match="no learned matcher for features of 'none'; expected those of: changed, go"):
        match_features(features(2, 0, model="none"), features(2, 1, model="none"), matcher="lightglue")


def test_errors_say_what_was_given(weights: Path, tmp_path: Path) -> None:
    pair = features(5, 0), features(5, 1)
    with pytest.raises(ConfigError, match=r"ratio is 0\.8; a learned matcher has none, matcher 'mnn' does"):
        match_features(*pair, matcher="lightglue", ratio=0.8)
    for least in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=rf"min_similarity is {least}; expected a probability below 1"):
            match_features(*pair, matcher="lightglue", min_similarity=least)
    with pytest.raises(ShapeError, match="descriptors of toy have 8 dimensions; matcher 'toy' expects 16"):
        match_features(features(5, 0, 8), features(5, 1, 8), matcher="lightglue")
    with pytest.raises(RegistryError, match="unknown matcher 'nope'; expected a matcher's weight file or one of: li"):
        check_matcher("nope")
    with pytest.raises(RegistryError, match="unknown matcher"):
        PipelineConfig(matcher=str(tmp_path / "nothing.safetensors"))
    assert PipelineConfig(matcher=str(weights)).matcher == str(weights)
    with pytest.raises(ConfigError, match="dim is 30 with 2 heads; expected a multiple of 4"):
        LightGlueConfig(dim=30, heads=2)
    with pytest.raises(ConfigError, match="layers is 0; expected 1 or more"):
        LightGlueConfig(layers=0)


def test_bad_files_are_refused(weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    save_file(tensors, tmp_path / "plain.safetensors")
    with pytest.raises(WeightsError, match="are no matcher; expected a file of 'superpoint train lightglue'"):
        load_matcher(tmp_path / "plain.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:200])
    with pytest.raises(WeightsError, match="corrupt or no safetensors file"):
        load_matcher(tmp_path / "cut.safetensors")
    with pytest.raises(WeightsError, match=r"none\.safetensors are missing; expected a safetensors file$"):
        load_matcher(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match=r"are a folder; expected a safetensors file$"):
        load_matcher(tmp_path)
    large = network(LightGlueConfig(16, 32, 3, 2, "toy"))
    large.config = SMALL  # says two layers, holds three
    save_matcher(tmp_path / "wrong.safetensors", large)
    with pytest.raises(WeightsError, match="describe no known matcher"):
        load_matcher(tmp_path / "wrong.safetensors")


def test_a_file_that_is_written_again_is_loaded_again(weights: Path, tmp_path: Path) -> None:
    path, pair = tmp_path / "own.safetensors", (features(40, 0), features(40, 0))
    save_matcher(path, certain())
    assert len(match_features(*pair, matcher=str(path))) > 10
    with torch.no_grad():
        doubtful = certain()
        doubtful.log_assignment[-1].matchability.bias.fill_(-50.0)  # type: ignore[union-attr, operator]
    save_matcher(path, doubtful)
    assert len(match_features(*pair, matcher=str(path))) == 0
    path.unlink()
    with pytest.raises(RegistryError, match="unknown matcher"):
        match_features(*pair, matcher=str(path))


def test_released_models_have_matchers_of_their_own(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    save_matcher(path, network(LightGlueConfig(16, 32, 1, 2, "toy")))
    entry = '[models.{}]\nfile = "x"\nsha256 = "x"\nencoder = "compact"\ndescriptor_dim = 16\n'
    entry += 'version = "1.2"\nlicence = "x"\ntrained_on = "x"\nrecipe = "x"\n'
    with weights.with_name("manifest.toml").open("a") as manifest:
        manifest.write(entry.format("toy") + entry.format("others"))
    for runtime in ("auto", "torch"):
        matcher = LightGlue.from_pretrained(path, runtime=runtime)
        assert matcher.features == "toy"
        for model in ("toy", "my-own"):
            matcher.match(features(5, 0, model=model), features(5, 1, model=model))
        with pytest.raises(WeightsError, match="matcher 'theirs' is for features of 'toy'; got those of 'others'"):
            matcher.match(features(5, 0, model="others"), features(5, 1, model="others"))


def test_too_many_keypoints_are_refused(weights: Path) -> None:
    many = features(9000, 0)
    with pytest.raises(ConfigError, match="got 9000 and 9000 keypoints; a learned matcher takes at most 64,000,000"):
        match_features(many, many, matcher="lightglue")


def test_rotated_images_are_matched_as_they_were_seen(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (20, 30), dtype=np.uint8), np.ones((8, 8), np.uint8))
    extractor = SuperPoint.from_pretrained(Path(__file__).parent.parent / "weights" / "superpoint-slim.safetensors")
    seen = []
    monkeypatch.setattr(
        "frontend.pipeline.match_features",
        lambda first, second, **options: seen.append(second) or match_features(first, second, matcher="mnn"),
    )
    result = MatchPipeline(extractor, PipelineConfig(rotations=4)).match(image, np.ascontiguousarray(np.rot90(image)))
    assert [f.image_size for f in seen] == [(160, 240), (240, 160)] * 2
    for turn, features_seen in enumerate(seen):
        expected = extractor.extract(np.ascontiguousarray(np.rot90(np.rot90(image), turn)))
        # of equal scores either may come first
        apart = np.linalg.norm(features_seen.keypoints[:, None] - expected.keypoints[None], axis=2)
        assert apart.shape[0] == apart.shape[1]
        assert max(apart.min(axis=0).max(), apart.min(axis=1).max()) < 1e-3
    assert result.features1.image_size == (160, 240)
    assert result.geometry.num_inliers > 30


def test_half_precision_files(weights: Path, tmp_path: Path) -> None:
    write_small(weights, tmp_path / "half.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size < 0.65 * weights.stat().st_size
    half, whole = load_matcher(tmp_path / "half.safetensors"), load_matcher(weights)
    assert half.config == whole.config
    for name, tensor in whole.state_dict().items():
        assert half.state_dict()[name].dtype == torch.float32
        torch.testing.assert_close(half.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)


def test_methods_of_benchmarks_name_a_matcher(weights: Path) -> None:
    assert split_method("superpoint-edge+lightglue") == ("superpoint-edge", "lightglue")
    assert split_method("run+1/edge.safetensors+lightglue") == ("run+1/edge.safetensors", "lightglue")
    assert matchers_of(["sift", "sift+lightglue"]) == {"sift+lightglue": "lightglue"}
    assert split_method("sift") == ("sift", "mnn")
    odd = weights.with_name("a+b.safetensors")
    odd.write_bytes(weights.read_bytes())
    assert split_method(str(odd)) == (str(odd), "mnn")
    with pytest.raises(RegistryError, match="unknown matcher 'nope'"):
        create_method("sift+nope")


def test_half_by_the_command(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "half.safetensors"
    assert main(["export", "--model", str(weights), "--format", "weights-float16", "--out", str(out)]) == 0
    assert load_matcher(out).config == SMALL
    assert str(out) in capsys.readouterr().out
