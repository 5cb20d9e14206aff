"""Mutual nearest neighbours against loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from frontend.end_to_end import PairGraph
from frontend.errors import ConfigError, RegistryError, ShapeError
from frontend.matching import MATCHERS, match_features, nearest, nearest_cpu
from frontend.matching.nearest import mutual_nearest_neighbours
from frontend.types import Features


def unit(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


def reference(d0: np.ndarray, d1: np.ndarray, ratio: float | None = None, least: float | None = None) -> dict[int, int]:
    """Loops in float64; distances, not similarities."""
    distance = np.array([[np.linalg.norm(a - b) for b in d1] for a in d0.astype(np.float64)])
    matches = {}
    for i, row in enumerate(distance):
        j = int(row.argmin())
        if int(distance[:, j].argmin()) != i:
            continue
        if ratio is not None and len(row) > 1 and row[j] >= ratio * np.sort(row)[1]:
            continue
        if least is not None and float(d0[i] @ d1[j]) < least:
            continue
        matches[i] = j
    return matches


@pytest.mark.parametrize(("ratio", "least"), [(None, None), (0.9, None), (None, 0.3), (0.95, 0.2)])
@pytest.mark.parametrize("block", [10**9, 45 * 3, 1])
def test_equals_loops_whatever_the_block(ratio: float | None, least: float | None, block: int) -> None:
    d0, d1 = unit((2, 60, 16), 0), unit((2, 45, 16), 1)
    valid0, valid1 = torch.rand(2, 60) > 0.2, torch.rand(2, 45) > 0.2
    got = mutual_nearest_neighbours(d0, valid0, d1, valid1, ratio=ratio, min_similarity=least, block=block)
    for b in range(2):
        rows, columns = np.flatnonzero(valid0[b]), np.flatnonzero(valid1[b])
        expected = reference(d0[b].numpy()[rows], d1[b].numpy()[columns], ratio, least)
        assert expected
        pairs = {int(rows[i]): int(columns[j]) for i, j in expected.items()}
        assert {i: int(j) for i, j in enumerate(got.index[b]) if j >= 0} == pairs
        for i, j in pairs.items():
            assert float(got.scores[b, i]) == pytest.approx(float(d0[b, i] @ d1[b, j]), abs=1e-6)


@pytest.mark.parametrize(("k0", "k1"), [(0, 5), (5, 0), (0, 0), (1, 1), (1, 7), (3, 1)])
def test_few_keypoints(k0: int, k1: int) -> None:
    d0, d1 = unit((1, k0, 8), 2), unit((1, k1, 8), 3)
    got = mutual_nearest_neighbours(
        d0, torch.ones(1, k0, dtype=torch.bool), d1, torch.ones(1, k1, dtype=torch.bool), ratio=0.999
    )
    assert got.index.shape == (1, k0)
    expected = len(reference(d0[0].numpy(), d1[0].numpy(), 0.999)) if k0 and k1 else 0
    assert int((got.index >= 0).sum()) == expected


def test_padding_never_matches() -> None:
    d = unit((1, 10, 8), 4)
    got = mutual_nearest_neighbours(d, torch.zeros(1, 10, dtype=torch.bool), d, torch.ones(1, 10, dtype=torch.bool))
    assert (got.index == -1).all()
    assert (got.scores == 0).all()


def test_permutation_is_found() -> None:
    d = unit((1, 500, 32), 5)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(1, 500, dtype=torch.bool)
    got = mutual_nearest_neighbours(d, ones, d[:, order], ones)
    assert torch.equal(order[got.index[0]], torch.arange(500))


def features(descriptors: np.ndarray) -> Features:
    n = len(descriptors)
    return Features(np.zeros((n, 2), np.float32), np.ones(n, np.float32), descriptors, (64, 48))


def test_match_features_returns_index_pairs() -> None:
    d = unit((6, 8), 6).numpy()
    matches = match_features(features(d), features(d[::-1].copy()))
    assert matches.matches.tolist() == [[i, 5 - i] for i in range(6)]
    np.testing.assert_allclose(matches.match_scores, 1, atol=1e-6)
    assert len(match_features(features(d), features(d[:0]))) == 0


def test_errors_say_what_was_given() -> None:
    ones = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(ShapeError, match="got descriptors"):
        mutual_nearest_neighbours(unit((1, 4, 8), 0), ones, unit((1, 4, 9), 0), ones)
    with pytest.raises(ConfigError, match=r"ratio is 1\.5"):
        mutual_nearest_neighbours(unit((1, 4, 8), 0), ones, unit((1, 4, 8), 0), ones, ratio=1.5)
    with pytest.raises(ConfigError, match="min_similarity is 2"):
        mutual_nearest_neighbours(unit((1, 4, 8), 0), ones, unit((1, 4, 8), 0), ones, min_similarity=2)
    with pytest.raises(ShapeError, match="8 dimensions and of image 1 9"):
        match_features(features(unit((4, 8), 0).numpy()), features(unit((4, 9), 0).numpy()))
    with pytest.raises(RegistryError, match="unknown matcher 'nope'; expected one of: lightglue, mnn"):
        MATCHERS.get("nope")


@pytest.mark.parametrize("block", [64, 10**6])
@pytest.mark.parametrize(("ratio", "least"), [(None, None), (0.95, None), (None, 0.3), (0.99, 0.2)])
def test_numpy_on_a_cpu_matches_what_torch_matches(ratio: float | None, least: float | None, block: int) -> None:
    rng = np.random.default_rng(0)
    first, second = (d / np.linalg.norm(d, axis=1, keepdims=True) for d in rng.normal(size=(2, 90, 16)))
    second[:40] = first[20:60] + rng.normal(0, 0.1, (40, 16))
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    first, second = first.astype(np.float32), second.astype(np.float32)[:77]
    expected = mutual_nearest_neighbours(
        torch.from_numpy(first)[None],
        torch.ones(1, 90, dtype=torch.bool),
        torch.from_numpy(second)[None],
        torch.ones(1, 77, dtype=torch.bool),
        ratio=ratio,
        min_similarity=least,
    )
    got = nearest_cpu.mutual_nearest_neighbours(first, second, ratio=ratio, min_similarity=least, block=block)
    index = expected.index[0].numpy()
    assert 20 < len(got) < 77
    np.testing.assert_array_equal(got.matches[:, 0], np.flatnonzero(index >= 0))
    np.testing.assert_array_equal(got.matches[:, 1], index[index >= 0])
    np.testing.assert_allclose(got.match_scores, expected.scores[0].numpy()[index >= 0], atol=1e-6)


def test_equal_descriptors_match_once() -> None:
    same = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 1]]
    got = nearest_cpu.mutual_nearest_neighbours(same, same)
    np.testing.assert_array_equal(got.matches, [[0, 0], [2, 2]])
    lone = nearest_cpu.mutual_nearest_neighbours(same[:1], same[:1], ratio=0.8)
    assert len(lone) == 1


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_the_ratio_test_refuses_what_is_there_twice(noise: float) -> None:
    """Both distances are then nothing but what rounding makes of them."""
    d0 = unit((1, 300, 128), 3)
    twice = torch.cat([d0, d0], 1) + noise * unit((1, 600, 128), 4)
    d1 = torch.cat([twice / twice.norm(dim=2, keepdim=True), unit((1, 100, 128), 5)], 1)
    alone = torch.cat([d0, unit((1, 100, 128), 5)], 1)
    for image1, expected in ((d1, 0), (alone, 300)):
        valid0, valid1 = torch.ones(1, 300, dtype=torch.bool), torch.ones(1, image1.shape[1], dtype=torch.bool)
        found = mutual_nearest_neighbours(d0, valid0, image1, valid1, ratio=0.8)
        assert int((found.index >= 0).sum()) == expected
        assert (
            len(nearest_cpu.mutual_nearest_neighbours(d0[0].numpy(), image1[0].numpy(), ratio=0.8).matches) == expected
        )


def test_features_of_different_models_are_not_matched() -> None:
    one = Features(np.zeros((2, 2), np.float32), np.ones(2, np.float32), np.eye(2, dtype=np.float32), (64, 48), "a")
    with pytest.raises(ConfigError, match="are of model 'a' and of image 1 of 'b'; expected the same"):
        match_features(one, replace(one, model="b"))


@pytest.mark.parametrize("block", [10**9, 64])
@pytest.mark.parametrize("ratio", [None, 0.9])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("image", [0, 1])
def test_a_descriptor_that_is_not_finite_spoils_no_other(
    image: int, bad: float, ratio: float | None, block: int
) -> None:
    d0 = unit((1, 50, 64), 7)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    pair = [d0.clone(), d0[:, order]]
    pair[image][0, 17, 3] = bad
    lost = 17 if image == 0 else int(order[17])
    kept = np.delete(np.arange(50), lost)
    ones = torch.ones(1, 50, dtype=torch.bool)
    batched = mutual_nearest_neighbours(pair[0], ones, pair[1], ones, ratio=ratio, block=block)
    index = batched.index[0].numpy()
    np.testing.assert_array_equal(np.flatnonzero(index >= 0), kept)
    np.testing.assert_array_equal(order.numpy()[index[kept]], kept)
    np.testing.assert_allclose(batched.scores[0].numpy()[kept], 1, atol=1e-6)
    assert batched.scores[0, lost] == 0
    found = nearest_cpu.mutual_nearest_neighbours(pair[0][0].numpy(), pair[1][0].numpy(), ratio=ratio, block=block)
    np.testing.assert_array_equal(found.matches, np.stack([kept, index[kept]], axis=1))
    np.testing.assert_allclose(found.match_scores, 1, atol=1e-6)


def test_a_whole_descriptor_that_is_infinite_is_no_warning() -> None:
    d = unit((50, 64), 7).numpy()
    broken = d.copy()
    broken[3], broken[5] = np.nan, np.inf
    kept = np.delete(np.arange(50), [3, 5])
    for pair in ((d, broken), (broken, d), (broken, broken)):
        found = nearest_cpu.mutual_nearest_neighbours(*pair)
        np.testing.assert_array_equal(found.matches, np.stack([kept, kept], axis=1))


def test_descriptors_none_of_which_is_finite_match_nothing() -> None:
    d, none, ones = unit((1, 9, 8), 0), torch.full((1, 9, 8), torch.nan), torch.ones(1, 9, dtype=torch.bool)
    for first, second in ((d, none), (none, d), (none, none)):
        assert (mutual_nearest_neighbours(first, ones, second, ones).index == -1).all()
        assert len(nearest_cpu.mutual_nearest_neighbours(first[0].numpy(), second[0].numpy())) == 0


def test_a_broken_descriptor_is_nobodys_neighbour_in_the_exported_graph_either(rng: np.random.Generator) -> None:
    descriptors = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(1, 50, 16))).float(), dim=2)
    broken = descriptors.clone()
    broken[0, 7, 3] = torch.nan
    keypoints, scores = torch.zeros(1, 50, 2), torch.ones(1, 50)
    for first, second in ((descriptors, broken), (broken, descriptors)):
        given = iter([(keypoints, scores, first), (keypoints, scores, second)])
        graph = PairGraph(torch.nn.Module())  # type: ignore[arg-type]
        graph.features.forward = lambda *_, given=given: next(given)  # type: ignore[method-assign]
        matches, matched = graph(torch.zeros(1), torch.zeros(1))[-2:]
        expected = torch.arange(50)
        expected[7] = -1
        assert torch.equal(matches[0], expected)
        assert (matched[0] > 0).sum() == 49


def test_a_device_that_is_not_there_is_refused() -> None:
    one = features(np.eye(4, dtype=np.float32))
    with pytest.raises(ConfigError, match="device is 'xx'; expected auto, cpu, cuda or cuda:N"):
        match_features(one, one, device="xx")


def test_where_there_is_no_gpu_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(nearest, "mutual_nearest_neighbours", None)  # of torch
    one = features(np.eye(4, dtype=np.float32))
    assert len(match_features(one, one, device="auto")) == 4
