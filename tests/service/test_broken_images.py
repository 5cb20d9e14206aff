"""Broken and odd images: a seeded sample of what benchmarks/service_broken.py posts by the thousand."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from broken_images import broken_images
from live import Live, live
from odd_images import Odd, encoded, odd_images

from frontend.image import decode_image

ODD = list(odd_images(np.random.default_rng(0)))


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(max_pixels_mp=4.0, max_body_mb=4.0) as made:
        yield made


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
def test_odd_images_show_what_they_show(odd: Odd) -> None:
    found = decode_image(odd.data, odd.name)
    expected = np.dstack([odd.picture] * 3) if found.ndim > odd.picture.ndim else odd.picture
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected)
    assert difference.mean() < 4  # any other orientation or channel order is beyond 20
    assert difference.max() == 0 or not odd.exact


def test_odd_images_give_the_features_of_what_they_show(server: Live) -> None:
    names = {"16-bit gray PNG", "palette GIF", "CMYK JPEG", "animated WebP", "JPEG of orientation 6"}
    chosen = [odd for odd in ODD if odd.name in names]
    assert len(chosen) == len(names)
    query = {"max_keypoints": 100, "descriptors": "none"}
    with httpx.Client(base_url=server.base, timeout=30) as client:
        for odd in chosen:
            found, plain = (
                client.post("/v1/features", content=data, params=query).json()
                for data in (odd.data, encoded(".png", odd.picture))
            )
            assert found["image_size"] == plain["image_size"] == list(odd.picture.shape[1::-1])
            a, b = np.array(found["keypoints"]), np.array(plain["keypoints"])
            assert len(a) > 20
            near = np.linalg.norm(a[:, None] - b, axis=2).min(axis=1) < 1
            assert near.mean() > 0.9, odd.name


def test_broken_images_are_refused_and_nothing_is_lost(server: Live) -> None:
    cases = list(broken_images(60, seed=1))
    assert len({case.name.split()[0] for case in cases}) > 15
    refused = 0
    with httpx.Client(base_url=server.base, timeout=20) as client:
        for case in cases:
            answer = client.post("/v1/features", content=case.data, headers={"content-type": case.kind})
            assert answer.status_code in (200, 400, 413, 422), (case.name, answer.text)
            if answer.status_code != 200:
                refused += 1
                assert answer.headers["content-type"] == "application/problem+json"
                assert "\n" not in answer.json()["detail"]
        assert refused > 30
        assert "superpoint_queue_depth 0.0" in client.get("/metrics").text
        assert client.post("/v1/features", content=encoded(".png", ODD[0].picture)).status_code == 200


def test_the_sample_is_the_same_each_time() -> None:
    assert list(broken_images(20, seed=3)) == list(broken_images(20, seed=3))
    assert list(broken_images(20, seed=3)) != list(broken_images(20, seed=4))
