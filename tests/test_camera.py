"""Pixels to normalised coordinates, against the distortion model written out."""

from __future__ import annotations

import numpy as np
import pytest

from frontend.camera import Camera
from frontend.errors import ConfigError, ShapeError

K = np.array([[300.0, 0, 320], [0, 310, 240], [0, 0, 1]])


def distort(x: np.ndarray, k1: float, k2: float, p1: float, p2: float) -> np.ndarray:
    """Brown's model as OpenCV has it, to pixels of K."""
    a, b = x.T
    r2 = a * a + b * b
    radial = 1 + k1 * r2 + k2 * r2**2
    u = a * radial + 2 * p1 * a * b + p2 * (r2 + 2 * a * a)
    v = b * radial + p1 * (r2 + 2 * b * b) + 2 * p2 * a * b
    return np.stack([300 * u + 320, 310 * v + 240], axis=1)


def test_what_was_distorted_comes_back(rng: np.random.Generator) -> None:
    rays = rng.uniform(-0.7, 0.7, (200, 2))
    given = (-0.28, 0.07, 0.001, -0.0005)
    np.testing.assert_allclose(Camera(K, given).normalise(distort(rays, *given)), rays, atol=1e-7)
    np.testing.assert_allclose(Camera(K).normalise(distort(rays, 0, 0, 0, 0)), rays, atol=1e-12)
    assert Camera(K, given).normalise(np.zeros((0, 2))).shape == (0, 2)


def test_where_the_distortion_has_no_inverse_a_point_is_not_a_number() -> None:
    # r (1 - r^2 / 2) is at most .544, at r = .816: no ray comes to a radius beyond
    radii = np.array([0.1, 0.4, 0.53, 0.6, 0.7, 1.4])
    pixels = np.stack([300 * radii + 320, np.full(6, 240.0)], axis=1)
    found = Camera(K, (-0.5, 0, 0, 0)).normalise(pixels)
    assert np.isfinite(found).all(axis=1).tolist() == [True, True, True, False, False, False]
    assert np.isnan(found[3:]).all()
    np.testing.assert_allclose(distort(found[:3], -0.5, 0, 0, 0), pixels[:3], atol=0.1)


@pytest.mark.parametrize(
    ("model", "distortion"),
    [
        ("opencv", (-0.35, 0.05, 0, 0)),
        ("opencv", (-0.5, 0.1, 0, 0)),
        ("opencv", (-0.3, 0.03, 0, 0, 0.002)),
        ("opencv", (0.1, -0.2, 0, 0, 0.01, 0.3, 0.05, 0.0)),
        ("fisheye", (-0.25, 0.01, 0.0, 0.0)),
    ],
)
def test_beyond_its_fold_a_lens_shows_nothing(model: str, distortion: tuple[float, ...]) -> None:
    """Found by walking outwards until the distorted radius no longer grows."""
    k = np.zeros(8)
    k[: len(distortion)] = distortion
    walk = np.linspace(0, np.pi / 2 if model == "fisheye" else 6, 600_001)
    if model == "fisheye":
        bent = walk * (1 + sum(c * walk ** (2 * n + 2) for n, c in enumerate(k[:4])))
    else:
        s = walk**2
        bent = walk * (1 + k[0] * s + k[1] * s**2 + k[4] * s**3) / (1 + k[5] * s + k[6] * s**2 + k[7] * s**3)
    turn = int(np.argmax(np.diff(bent) <= 0))
    assert 0 < turn < len(walk) - 1
    radii = np.linspace(0.01, 1.6, 60) * bent[turn]
    found = Camera(K, distortion, model).normalise(np.stack([300 * radii + 320, np.full(60, 240.0)], axis=1))[:, 0]
    within = radii < 0.995 * bent[turn]
    there = np.interp(radii[within], bent[: turn + 1], walk[: turn + 1])
    np.testing.assert_allclose(found[within], np.tan(there) if model == "fisheye" else there, rtol=1e-3)
    assert np.isnan(found[radii > 1.002 * bent[turn]]).all()


def test_points_and_intrinsics_of_another_kind_are_refused() -> None:
    for camera in (Camera(K), Camera(K, (-0.1, 0, 0, 0))):
        for points in (np.zeros((2, 3)), np.zeros((1, 1, 2)), np.zeros(2)):
            for method in (camera.normalise, camera.undistort):
                with pytest.raises(ShapeError, match="expected \\(N, 2\\)"):
                    method(points)
    for wrong in ("x", [[1, 2], [3]]):
        with pytest.raises(ConfigError, match="expected \\(3, 3\\) intrinsics"):
            Camera(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((K, "x"), "^distortion is 'x'; expected numbers$"),
        ((K, [[1], [2, 3]]), r"^distortion is \[\[1\], \[2, 3\]\]; expected numbers$"),
        ((K, (0.1j, 0, 0, 0)), "^distortion is .*; expected numbers$"),
        ((K + 0j,), r"^K is array\(.*; expected \(3, 3\) intrinsics$"),
        ((np.full((3, 3), "a"),), r"^K is array\(.*; expected \(3, 3\) intrinsics$"),
        ((K, (), ["opencv"]), r"^camera model is \['opencv'\]; expected one of: opencv, fisheye$"),
    ],
)
def test_errors_of_cameras_name_what_is_wrong_in_one_line(given: tuple[object, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Camera(*given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_camera_shares_no_memory() -> None:
    intrinsics = K.copy()
    camera = Camera(intrinsics)
    intrinsics[0, 0] = 999
    assert camera.K[0, 0] == 300
    with pytest.raises(ValueError, match="read-only"):
        camera.K[0, 0] = 1
    points = np.ones((3, 2))
    camera.undistort(points)[:] = 7
    assert (points == 1).all()


def test_a_fisheye_s_radius_is_a_polynomial_of_the_angle(rng: np.random.Generator) -> None:
    """Kannala and Brandt 2006, eq. 6, with OpenCV's names."""
    given = (-0.01, 0.03, -0.02, 0.004)
    rays = rng.uniform(-2.0, 2.0, (200, 2))  # up to 70 degrees from the axis
    radius = np.linalg.norm(rays, axis=1)
    angle = np.arctan(radius)
    bent = angle * (1 + sum(k * angle ** (2 * n + 2) for n, k in enumerate(given)))
    pixels = rays / radius[:, None] * bent[:, None] * [300, 310] + [320, 240]
    camera = Camera.parse("fisheye:300,310,320,240,-0.01,0.03,-0.02,0.004")
    assert (camera.model, camera.distortion) == ("fisheye", given)
    np.testing.assert_allclose(camera.normalise(pixels), rays, atol=1e-6)
    beside = camera.normalise(np.array([[320 + 300 * 1.7, 240], [320, 240]]))  # more than 90 degrees from the axis
    assert np.isfinite(beside).all(axis=1).tolist() == [False, True]
    assert not camera.same_as(Camera(camera.K, given))
    assert camera.same_as(Camera(camera.K.copy(), given, "fisheye"))


def test_models_have_their_numbers_of_parameters() -> None:
    with pytest.raises(ConfigError, match="distortion of the model 'fisheye' has 0 values; expected one of"):
        Camera(K, (), "fisheye")
    with pytest.raises(ConfigError, match="camera model is 'radtan'; expected one of: opencv, fisheye"):
        Camera.parse("radtan:1,1,0,0,0,0,0,0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (((0, 1), 50.0), "K has a skew of 50; expected 0"),
        (((0, 0), 0.0), "^K has focal lengths of 0 and 310 pixels; expected 0.001 to 1e.09$"),
        (((1, 1), -310.0), "^K has focal lengths of .* and -310 pixels; expected 0.001 to 1e.09$"),
        (((1, 1), np.nan), r"^K has the rows .*nan.*; expected finite intrinsics$"),
        (((0, 0), 1e-300), "focal lengths of 1e-300 and 310 pixels; expected"),
        (((2, 0), 1.0), "expected an upper triangle"),
    ],
)
def test_what_is_no_such_camera_is_refused(change: tuple[tuple[int, int], float], message: str) -> None:
    wrong = K.copy()
    wrong[change[0]] = change[1]
    with pytest.raises(ConfigError, match=message):
        Camera(wrong)


def test_intrinsics_of_another_shape_are_refused_by_it() -> None:
    with pytest.raises(ConfigError, match=r"^K has shape \(2, 3\); expected \(3, 3\) intrinsics$"):
        Camera(K[:2])


def test_a_camera_of_several_lines_is_refused_in_one() -> None:
    with pytest.raises(ConfigError) as refused:
        Camera.parse("525,525\n319.5,239.5\r\n")
    assert len(str(refused.value).splitlines()) == 1
