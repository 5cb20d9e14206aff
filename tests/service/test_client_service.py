"""The clients and the service itself, over a real port."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import BOTH
from live import live

import frontend
from frontend import SuperPoint, read_image
from frontend.homography import corner_error
from frontend.homography_estimation import estimate_homography
from frontend.image import decode_image
from frontend.types import Features, Fundamental, Homography, Status
from service.client import BadImage, BadRequest, Client, FeaturesLost, NotFound, Unauthorized

SAMPLES = Path(frontend.__file__).parent / "samples"
FIRST, SECOND = SAMPLES / "rocket_0.jpg", SAMPLES / "rocket_1.jpg"
ROOT = Path(frontend.__file__).parent.parent
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live(api_keys=("secret",), max_queue=256) as server:
        yield server.base


@pytest.fixture(params=BOTH)
def ask(request: pytest.FixtureRequest, url: str) -> Ask:
    """A function that asks the service."""
    return lambda what, **settings: request.param(url, what, **{"api_key": "secret", **settings})


def test_features_are_those_of_the_library(ask: Ask) -> None:
    found = ask(lambda client: client.features(FIRST, max_keypoints=200))
    extractor = SuperPoint.from_pretrained(device="cpu")
    config = type(extractor.config)(**{**extractor.config.__dict__, "max_keypoints": 200})
    expected = extractor.configured(config).extract(read_image(FIRST))
    assert isinstance(found, Features)
    assert (found.image_size, found.model) == (expected.image_size, expected.model)
    assert found.feature_id is None
    for name in ("keypoints", "scores", "sigmas", "descriptors"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-2)


def test_bytes_a_file_and_pixels_are_the_same_image(ask: Ask) -> None:
    data = FIRST.read_bytes()
    pixels = decode_image(data, "a")
    found = [
        ask(lambda client, image=image: client.features(image, max_keypoints=50)) for image in (data, FIRST, pixels)
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other.keypoints, found[0].keypoints)
        np.testing.assert_array_equal(other.descriptors, found[0].descriptors)
    lossy = ask(lambda client: client.features(pixels, max_keypoints=50), quality=20)
    assert not np.array_equal(lossy.scores, found[0].scores)


def test_two_images_match(ask: Ask) -> None:
    found = ask(lambda client: client.match(FIRST, SECOND, max_keypoints=512, descriptors="float16"))
    assert isinstance(found.geometry, Homography)
    assert found.geometry.status is Status.OK
    assert found.geometry.num_inliers > 150
    assert found.matches.matches.max(axis=0)[0] < len(found.features0)
    assert found.features1.descriptors.shape == (len(found.features1), 128)
    rows = found.matches.matches[found.geometry.inliers]
    points = np.c_[found.features0.keypoints[rows[:, 0]], np.ones(len(rows))] @ found.geometry.H.T
    errors = points[:, :2] / points[:, 2:] - found.features1.keypoints[rows[:, 1]]
    assert np.linalg.norm(errors, axis=1).max() < 3.5
    assert found.timings_ms["total"] > 0
    fundamental = ask(lambda client: client.match(FIRST, SECOND, max_keypoints=256, geometry="fundamental"))
    assert isinstance(fundamental.geometry, Fundamental)


def test_matched_points_have_a_homography(ask: Ask, rng: np.random.Generator) -> None:
    H = np.array([[0.9, 0.1, 5], [-0.1, 1.1, -3], [1e-4, 2e-4, 1]])
    points0 = rng.uniform(0, 500, (50, 2))
    mapped = np.c_[points0, np.ones(50)] @ H.T
    points1 = mapped[:, :2] / mapped[:, 2:]
    points1[:10] += 100
    found = ask(lambda client: client.homography(points0, points1, threshold=1.0, seed=3))
    np.testing.assert_allclose(found.H, H, atol=1e-3)
    np.testing.assert_array_equal(found.inliers, np.arange(50) >= 10)
    sigmas = rng.uniform(0.2, 2.0, 50)
    noisy = points1 + sigmas[:, None] * rng.normal(0, 1, (50, 2))
    plain, weighted = (
        ask(lambda client, known=known: client.homography(points0, noisy, sigmas=known)).H for known in (None, sigmas)
    )
    np.testing.assert_allclose(weighted, estimate_homography(points0, noisy, sigmas=sigmas).H, rtol=1e-6)
    assert corner_error(plain, weighted, (500, 500)) > 0.01
    empty = ask(lambda client: client.homography([], []))
    assert (empty.H, empty.status) == (None, Status.TOO_FEW_MATCHES)


def test_models_are_named(ask: Ask) -> None:
    (model,) = ask(lambda client: client.models())
    assert (model.name, model.default, model.descriptor_dim) == ("superpoint-edge", True, 128)
    assert ask(lambda client: client.ready()) is True


def test_refusals_are_typed(ask: Ask) -> None:
    with pytest.raises(BadImage, match="422 bad_image"):
        ask(lambda client: client.features(b"no image"))
    with pytest.raises(NotFound, match="nobody"):
        ask(lambda client: client.features(FIRST, model="nobody"))
    with pytest.raises(BadRequest, match="max_keypoints"):
        ask(lambda client: client.features(FIRST, max_keypoints=-1))
    with pytest.raises(Unauthorized) as caught:
        ask(lambda client: client.models(), api_key="wrong")
    assert caught.value.request_id


def test_threads_share_a_client(url: str) -> None:
    with Client(url, api_key="secret", max_connections=4) as client, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: client.features(FIRST, max_keypoints=20, resize=160), range(16)))
    for other in found[1:]:
        np.testing.assert_allclose(other.keypoints, found[0].keypoints, atol=1e-2)


def test_neither_torch_nor_the_server_is_needed(url: str) -> None:
    script = f"""
import sys
from pathlib import Path

absent = ("torch", "fastapi", "starlette", "uvicorn", "cv2", "pydantic", "prometheus_client")

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from service.client import AsyncClient, Client
with Client({url!r}, api_key="secret") as client:
    print(len(client.features(Path({str(FIRST)!r}), max_keypoints=33)))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout == "33\n"


def test_stored_features_are_matched_by_id(ask: Ask) -> None:
    first, second, other = (
        ask(lambda client, image=image: client.features(image, max_keypoints=256, store=True, collection="shelf"))
        for image in (FIRST, SECOND, np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    )
    assert first.feature_id != second.feature_id
    assert first.expires_in_s > 0
    again = ask(lambda client: client.get_features(first.feature_id))
    np.testing.assert_array_equal(again.keypoints, first.keypoints)
    np.testing.assert_allclose(again.descriptors, first.descriptors, atol=1e-3)

    pair = ask(lambda client: client.match(first, second.feature_id))
    mixed = ask(lambda client: client.match(first, SECOND, max_keypoints=256))
    assert pair.geometry.num_inliers > 80
    assert abs(pair.geometry.num_inliers - mixed.geometry.num_inliers) < 10

    best = ask(lambda client: client.match_many(FIRST, collection="shelf", max_keypoints=256, limit=2))
    assert [found.feature_id for found in best.results] == [first.feature_id, second.feature_id]
    assert best.results[0].geometry.num_inliers > best.results[1].geometry.num_inliers > 80
    named = ask(lambda client: client.match_many(first, against=[other, second]))
    assert [found.feature_id for found in named.results] == [second.feature_id, other.feature_id]

    for stored in (first, second, other):
        assert ask(lambda client, stored=stored: client.delete_features(stored.feature_id)) is None
    with pytest.raises(FeaturesLost, match="404 features_not_found"):
        ask(lambda client: client.match(first, second))
