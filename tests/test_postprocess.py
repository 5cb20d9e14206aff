"""The CPU's keypoints, NumPy's and the compiled ones, against the reference in PyTorch and against plain loops."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch

from frontend import keypoints as reference
from frontend import native, postprocess
from frontend.errors import ConfigError
from frontend.image import to_gray
from frontend.kernels import Kernels, load_kernels
from frontend.refinement import gather_patches


def heat(height: int = 72, width: int = 104, seed: int = 0, sigma: float = 0.8) -> np.ndarray:
    noise = np.random.default_rng(seed).random((height, width), np.float32) ** 4
    return np.ascontiguousarray(cv2.GaussianBlur(noise, (0, 0), sigma))


@pytest.fixture(params=[postprocess, native], ids=["numpy", "numba"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return request.param


@pytest.mark.parametrize("radius", [0, 1, 3, 4, 8])
def test_suppression_is_that_of_the_reference(radius: int) -> None:
    # steps of a tenth make plateaus, whose pixels are all maxima
    for maps in (heat(), np.round(heat(seed=1), 1), np.zeros((16, 24), np.float32)):
        expected = reference.non_maximum_suppression(torch.from_numpy(maps)[None], radius)[0].numpy()
        got = np.where(postprocess.survivors(maps, radius) > 0, maps, 0)
        np.testing.assert_array_equal(got, expected)


def test_a_negative_radius_is_refused(kernels: Kernels) -> None:
    with pytest.raises(ConfigError, match="nms_radius is -1"):
        kernels.find_peaks(heat(), radius=-1, border=0, size=(104, 72), threshold=0.1, count=10)


@pytest.mark.parametrize("steps", [0, 20], ids=["distinct", "plateaus"])
@pytest.mark.parametrize(
    ("radius", "border", "count"), [(3, 4, 40), (0, 0, 500), (4, 7, 10_000), (2, 36, 9), (2, 60, 9), (9, 0, 3000)]
)
def test_peaks_are_those_of_the_reference(kernels: Kernels, radius: int, border: int, count: int, steps: int) -> None:
    maps, size = heat(seed=2), (99, 70)
    if steps:
        maps = np.round(maps * steps) / np.float32(steps)
    tensor = torch.from_numpy(maps)[None]
    kept = reference.inside_border(reference.non_maximum_suppression(tensor, radius), border, torch.tensor([size]))
    expected = reference.top_k(kept, count, 0.05, radius)
    n = int(expected.valid.sum())
    got = kernels.find_peaks(maps, radius=radius, border=border, size=size, threshold=0.05, count=count)
    assert (n > 0) == (border < 30)
    if steps:
        # of neighbours of equal scores the reference's search over blocks takes one
        kept[kept <= 0.05] = 0
        ys, xs = np.nonzero(kept[0].numpy())
        scores = kept[0].numpy()[ys, xs]
        best = np.argsort(-scores, kind="stable")[:count]
        np.testing.assert_array_equal(got.scores, scores[best])
        assert set(zip(got.x.tolist(), got.y.tolist(), strict=True)) <= set(zip(xs.tolist(), ys.tolist(), strict=True))
        return
    assert len(got.x) == n
    np.testing.assert_array_equal(got.scores, expected.scores[0, :n].numpy())
    np.testing.assert_array_equal(np.stack([got.x, got.y], 1), expected.keypoints[0, :n].numpy())


@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.3, 0.9])
@pytest.mark.parametrize("radius", [1, 3, 5])
def test_compiled_peaks_are_numpy_s(radius: int, threshold: float) -> None:
    """To the same order, at any threshold, also where many scores are equal, in maps of different sizes in turn."""
    for seed in range(6):
        maps = heat(64 + 8 * seed, 120, seed, sigma=0.6 + 0.3 * seed)
        for given in (maps, np.round(maps, 1), np.round(maps, 2)):
            settings = {"radius": radius, "border": 3, "size": (115, 61), "threshold": threshold, "count": 100}
            for a, b in zip(
                postprocess.find_peaks(given, **settings), native.find_peaks(given, **settings), strict=True
            ):
                np.testing.assert_array_equal(a, b)


def test_threads_do_not_share_their_workspace() -> None:
    settings = {"radius": 3, "border": 4, "size": (640, 480), "threshold": 0.01, "count": 1000}
    maps = [heat(480, 640, seed) for seed in range(4)]
    expected = [postprocess.find_peaks(given, **settings) for given in maps]

    def work(n: int) -> int:
        """How often the answer is wrong."""
        found = [native.find_peaks(maps[n], **settings) for _ in range(15)]
        return sum((a != b).any() for got in found for a, b in zip(got, expected[n], strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0, 0, 0, 0]


def test_which_kernels_are_taken() -> None:
    assert load_kernels() is native
    assert load_kernels(brief=True) is postprocess
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from frontend import postprocess; from frontend.kernels import load_kernels\n"
        "assert load_kernels() is postprocess\n"
        "from frontend import homography_cpu; from frontend.kernels import homography_kernels\n"
        "assert homography_kernels() is homography_cpu"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_folder_for_its_cache_numba_compiles_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []

    def njit(signature: object, cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        made.append(cache)
        return lambda function: function

    monkeypatch.setattr(native, "njit", njit)
    assert native.compiled(None)(len) is len
    assert made == [False]


def test_equal_scores_come_in_the_order_of_rows(kernels: Kernels) -> None:
    maps = np.zeros((16, 16), np.float32)
    maps[[2, 2, 9, 13], [12, 3, 7, 1]] = [0.5, 0.5, 0.9, 0.5]
    got = kernels.find_peaks(maps, radius=1, border=0, size=(16, 16), threshold=0.1, count=10)
    assert list(zip(got.x.tolist(), got.y.tolist(), strict=True)) == [(7, 9), (3, 2), (12, 2), (1, 13)]


@pytest.fixture
def peaks() -> postprocess.Peaks:
    random = np.random.default_rng(3)
    x, y = random.integers(0, 104, 50), random.integers(0, 72, 50)
    x[:4], y[:4] = [0, 103, 0, 103], [0, 0, 71, 71]
    return postprocess.Peaks(x, y, np.ones(50, np.float32))


def points_of(peaks: postprocess.Peaks) -> torch.Tensor:
    return torch.from_numpy(np.stack([peaks.x, peaks.y], axis=1).astype(np.float32))[None]


def test_centre_of_mass_is_that_of_the_reference(peaks: postprocess.Peaks) -> None:
    maps = heat(seed=4)
    expected = reference.refine_subpixel(torch.from_numpy(maps)[None], points_of(peaks))[0].numpy()
    np.testing.assert_allclose(postprocess.centre_of_mass(maps, peaks), expected, atol=1e-4)


def test_patches_are_those_of_the_reference(kernels: Kernels, peaks: postprocess.Peaks) -> None:
    gray = heat(seed=5)
    expected = gather_patches(torch.from_numpy(gray)[None, None], points_of(peaks), 17)[:, 0].numpy()
    np.testing.assert_array_equal(kernels.cut_patches(gray, peaks, 17), expected)
    levels = (255 * gray).astype(np.uint8)
    expected = kernels.cut_patches(to_gray(levels), peaks, 17)
    np.testing.assert_array_equal(kernels.cut_patches(levels, peaks, 17), expected)
    assert 0.5 < expected.max() <= 1


def test_the_best_are_those_of_a_stable_sort() -> None:
    random = np.random.default_rng(8)
    for scores in (
        random.choice(np.linspace(-2, 3, 40), 500),  # many of them equal
        random.normal(size=500) * 10.0 ** random.integers(-30, 30, 500),
        np.array([0.0, 1.0, np.inf, 0.5, 1.0, -np.inf, -1.0]),
        np.zeros(0),
    ):
        flat = np.sort(random.choice(640 * 480, len(scores), replace=False))
        order = np.argsort(-scores.astype(np.float32), kind="stable")
        for count in (0, 3, 200, 1000):
            got = postprocess.best_peaks(flat, scores.astype(np.float32), count, 640)
            np.testing.assert_array_equal(got.y * 640 + got.x, flat[order[:count]])
            np.testing.assert_array_equal(got.scores, scores.astype(np.float32)[order[:count]])


@pytest.mark.parametrize("subpixel", [True, False])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_refined_keypoints_are_arranged_best_first(kernels: Kernels, count: int, subpixel: bool) -> None:
    """By plain loops; a stable sort decides between equal probabilities."""
    rng = np.random.default_rng(count)
    x, y = rng.integers(0, 640, count), rng.integers(0, 480, count)
    found = postprocess.Peaks(x, y, rng.random(count).astype(np.float32))
    position = rng.random((count, 4)).astype(np.float32) * 2 - 1
    position[:, 3] = rng.integers(0, 20, count) / np.float32(20)
    points, scores, sigmas = np.zeros((count, 2), np.float32), *np.zeros((2, count), np.float32)
    order = kernels.arrange(found, position, points, scores, sigmas, subpixel=subpixel)
    assert order.tolist() == sorted(range(count), key=lambda n: -position[n, 3])
    for row, n in enumerate(order):
        moved = position[n, :2] if subpixel else (np.float32(0), np.float32(0))
        assert tuple(points[row]) == (np.float32(x[n]) + moved[0], np.float32(y[n]) + moved[1])
        assert (sigmas[row], scores[row]) == (position[n, 2], position[n, 3])


@pytest.mark.parametrize("cells", [(9, 13), (1, 5), (4, 1), (1, 1)])
def test_descriptors_are_those_of_the_reference(kernels: Kernels, cells: tuple[int, int]) -> None:
    random = np.random.default_rng(6)
    maps = random.normal(size=(*cells, 32)).astype(np.float32)
    size = (8 * cells[1], 8 * cells[0])
    points = random.uniform(-0.5, np.array(size) - 0.5, (60, 2)).astype(np.float32)
    points[0], points[1] = (0, 0), (size[0] - 1, size[1] - 1)
    tensor = torch.from_numpy(maps).permute(2, 0, 1)[None].contiguous()
    expected = reference.sample_descriptors(tensor, torch.from_numpy(points)[None], size)[0].numpy()
    np.testing.assert_allclose(kernels.describe(maps, points, size), expected, atol=2e-5)
    local, order = random.normal(size=(70, 32)).astype(np.float32), random.permutation(70)[:60]
    whole = expected.astype(np.float64) + local[order]
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(kernels.describe(maps, points, size, local, order), whole, atol=2e-5)


def test_descriptors_of_zeros_are_zeros(kernels: Kernels) -> None:
    points = np.array([[3.0, 9.0]], np.float32)
    assert not kernels.describe(np.zeros((4, 4, 16), np.float32), points, (32, 32)).any()


def test_positions_that_are_no_numbers_are_described_by_none(kernels: Kernels) -> None:
    maps = np.random.default_rng(0).random((6, 8, 16)).astype(np.float32)
    points = np.array([[np.nan, 3], [5, np.nan], [np.inf, 3], [5, -np.inf], [5, 3]], np.float32)
    finite = np.isfinite(kernels.describe(maps, points, (64, 48))).all(axis=1)
    assert finite.tolist() == [False, False, True, True, True]


def test_of_equal_scores_the_first_in_rows_are_the_best() -> None:
    found = postprocess.best_peaks(np.arange(0, 90, 10), np.float32([1, 2, 1, 2, 1, 3, 1, 1, 2]), 6, 20)
    assert (found.x + 20 * found.y).tolist() == [50, 10, 30, 80, 0, 20]
