"""Essential matrices and relative poses against known motions and plain references."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from frontend.camera import Camera
from frontend.errors import ConfigError, ShapeError
from frontend.geometry import estimate_essential
from frontend.motion import estimate_motion
from frontend.relative_pose import decompose_essential, essential_matrix, ray_depths, refine_pose, skew
from frontend.types import Pose, Status

FIRST = Camera(np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]]), (-0.2, 0.05, 0.001, -0.001))
SECOND = Camera(np.array([[620.0, 0, 400], [0, 620, 300], [0, 0, 1]]))


def rotation(vector: np.ndarray) -> np.ndarray:
    """Rodrigues' formula, by its series: independent of OpenCV."""
    matrix = np.array([[0, -vector[2], vector[1]], [vector[2], 0, -vector[0]], [-vector[1], vector[0], 0]])
    total, term = np.eye(3), np.eye(3)
    for n in range(1, 30):
        term = term @ matrix / n
        total = total + term
    return total


def project(camera: Camera, points: np.ndarray) -> np.ndarray:
    """Pinhole and Brown's distortion, written out."""
    k1, k2, p1, p2 = (*camera.distortion, 0, 0, 0, 0)[:4]
    x, y = (points[:, :2] / points[:, 2:]).T
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2 * r2
    xd = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    yd = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return np.column_stack([camera.K[0, 0] * xd + camera.K[0, 2], camera.K[1, 1] * yd + camera.K[1, 2]])


def scene(rng: np.random.Generator, count: int = 300, plane: bool = False) -> tuple[np.ndarray, Pose]:
    depth = np.full(count, 5.0) if plane else rng.uniform(3, 9, count)
    points = np.column_stack([rng.uniform(-0.5, 0.5, (count, 2)) * depth[:, None], depth])
    t = np.array([0.6, -0.2, 0.3])
    return points, Pose(rotation(np.array([0.05, -0.12, 0.08])), t / np.linalg.norm(t))


def poses_of_plane(pose: Pose, depth: float) -> list[Pose]:
    """The motions that explain all images of the plane z = depth: a homography has two that see it from the front."""
    H = pose.R + np.outer(pose.t, [0, 0, 1]) / depth
    _, rotations, translations, normals = cv2.decomposeHomographyMat(H, np.eye(3))
    found = [Pose(R, t[:, 0]) for R, t, n in zip(rotations, translations, normals, strict=True) if n[2, 0] > 0]
    assert any(degrees(one.R, pose.R) < 1e-4 for one in found)
    return found


def degrees(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(a @ b.T) - 1) / 2, -1, 1))))


def angle(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))))


@pytest.mark.parametrize("plane", [False, True])
@pytest.mark.parametrize("wrong", [0.0, 0.5])
def test_known_motion_is_found_through_distortion(rng: np.random.Generator, plane: bool, wrong: float) -> None:
    points, pose = scene(rng, plane=plane)
    x0 = project(FIRST, points) + rng.normal(0, 0.3, (len(points), 2))
    x1 = project(SECOND, points @ pose.R.T + pose.t) + rng.normal(0, 0.3, (len(points), 2))
    outliers = int(wrong * len(points))
    x1[:outliers] = rng.uniform((0, 0), (800, 600), (outliers, 2))
    found = estimate_essential(x0, x1, FIRST, SECOND)
    assert found.status is Status.OK
    assert found.R is not None
    assert found.t is not None
    assert found.E is not None
    allowed = poses_of_plane(pose, 5.0) if plane else [pose]
    assert any(degrees(found.R, one.R) < 0.5 and angle(found.t, one.t) < 4 for one in allowed)
    np.testing.assert_allclose(np.linalg.norm(found.t), 1)
    np.testing.assert_allclose(np.linalg.norm(found.E), 1)
    np.testing.assert_allclose(found.R @ found.R.T, np.eye(3), atol=1e-9)
    assert found.inliers[outliers:].mean() > 0.97
    assert found.inliers[:outliers].sum() <= 0.05 * outliers


def test_known_sigmas_make_the_motion_more_exact(rng: np.random.Generator) -> None:
    errors = []
    for _ in range(12):
        points, pose = scene(rng)
        sigmas = np.exp(rng.uniform(np.log(0.1), np.log(1.5), len(points)))
        x0 = project(FIRST, points) + sigmas[:, None] * rng.normal(0, 0.7, (len(points), 2))
        x1 = project(SECOND, points @ pose.R.T + pose.t) + sigmas[:, None] * rng.normal(0, 0.7, (len(points), 2))
        x1[:60] = rng.uniform((0, 0), (800, 600), (60, 2))
        for known in (None, sigmas):
            found = estimate_essential(x0, x1, FIRST, SECOND, sigmas=known)
            assert found.t is not None
            errors.append(angle(found.t, pose.t))
    plain, weighted = np.mean(np.reshape(errors, (-1, 2)), axis=0)
    assert weighted < 0.75 * plain


def test_without_noise_the_epipolar_constraint_holds_exactly(rng: np.random.Generator) -> None:
    points, pose = scene(rng, 60)
    moved = points @ pose.R.T + pose.t
    found = estimate_essential(project(FIRST, points), project(SECOND, moved), FIRST, SECOND)
    assert found.E is not None
    for a, b in zip(points, moved, strict=True):
        y0, y1 = a / a[2], b / b[2]
        assert abs(sum(y1[i] * found.E[i, j] * y0[j] for i in range(3) for j in range(3))) < 1e-6


def test_random_matches_are_no_motion(rng: np.random.Generator) -> None:
    x0, x1 = rng.uniform(0, 480, (2, 200, 2))
    found = estimate_essential(x0, x1, FIRST, SECOND)
    assert (found.E, found.R, found.t, found.status) == (None, None, None, Status.NO_MODEL)
    assert not found.inliers.any()


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few(rng: np.random.Generator, count: int) -> None:
    found = estimate_essential(rng.uniform(0, 480, (count, 2)), rng.uniform(0, 480, (count, 2)), FIRST, SECOND)
    assert found.status is Status.TOO_FEW_MATCHES
    assert found.inliers.shape == (count,)


def test_what_is_not_finite_is_an_outlier(rng: np.random.Generator) -> None:
    points, pose = scene(rng, 100)
    x0, x1 = project(FIRST, points), project(SECOND, points @ pose.R.T + pose.t)
    x0[3, 0], x1[5, 1] = np.nan, np.inf
    found = estimate_essential(x0, x1, FIRST, SECOND)
    assert found.status is Status.OK
    assert not found.inliers[[3, 5]].any()
    assert found.inliers.sum() == 98


def test_repeated_matches_are_no_further_evidence(rng: np.random.Generator) -> None:
    for _ in range(10):
        x0, x1 = np.repeat(rng.uniform(0, 480, (2, 8, 2)), 4, axis=1)
        assert estimate_essential(x0, x1, FIRST, SECOND).E is None
    points, pose = scene(rng, 60)
    x0, x1 = project(FIRST, points), project(SECOND, points @ pose.R.T + pose.t)
    twice = estimate_essential(np.repeat(x0, 2, axis=0), np.repeat(x1, 2, axis=0), FIRST, SECOND)
    assert twice.inliers.sum() == 120


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("far", [1e8, 1e110, 1e160, 1e300, np.inf])
def test_a_match_far_away_changes_nothing(rng: np.random.Generator, far: float) -> None:
    points, pose = scene(rng, 100)
    x0, x1 = project(FIRST, points), project(SECOND, points @ pose.R.T + pose.t)
    x0 += rng.normal(0, 0.5, x0.shape)
    alone = estimate_essential(x0[1:], x1[1:], FIRST, SECOND)
    x0[0, 0] = far
    found = estimate_essential(x0, x1, FIRST, SECOND)
    assert not found.inliers[0]
    np.testing.assert_array_equal(found.R, alone.R)
    np.testing.assert_array_equal(found.t, alone.t)
    for camera in (None, SECOND):
        assert estimate_motion(x0, x1, camera=camera).inliers.sum() > 50


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="threshold"):
        estimate_essential(np.zeros((9, 2)), np.zeros((9, 2)), FIRST, SECOND, threshold=0)
    with pytest.raises(ShapeError):
        estimate_essential(np.zeros((9, 3)), np.zeros((9, 2)), FIRST, SECOND)


def test_depths_are_those_of_the_points(rng: np.random.Generator) -> None:
    points, pose = scene(rng, 40)
    moved = points @ pose.R.T + pose.t
    z0, z1 = ray_depths(pose, points[:, :2] / points[:, 2:], moved[:, :2] / moved[:, 2:])
    np.testing.assert_allclose(z0, points[:, 2], rtol=1e-9)
    np.testing.assert_allclose(z1, moved[:, 2], rtol=1e-9)
    z0, _ = ray_depths(Pose(np.eye(3), np.array([1.0, 0, 0])), np.zeros((1, 2)), np.zeros((1, 2)))
    assert np.isinf(z0).all()


def test_of_four_poses_the_one_in_front_is_taken(rng: np.random.Generator) -> None:
    points, pose = scene(rng, 40)
    moved = points @ pose.R.T + pose.t
    matrix = essential_matrix(pose)
    cross = np.array([np.cross(pose.t, column) for column in pose.R.T]).T
    np.testing.assert_allclose(matrix, cross / np.linalg.norm(cross), atol=1e-12)
    for sign in (1, -1):
        found = decompose_essential(sign * matrix, points[:, :2] / points[:, 2:], moved[:, :2] / moved[:, 2:])
        np.testing.assert_allclose(found.R, pose.R, atol=1e-9)
        np.testing.assert_allclose(found.t, pose.t, atol=1e-9)


def test_refinement_finds_back_from_a_disturbed_start(rng: np.random.Generator) -> None:
    points, pose = scene(rng, 200)
    moved = points @ pose.R.T + pose.t
    y0, y1 = points[:, :2] / points[:, 2:], moved[:, :2] / moved[:, 2:]
    t = pose.t + np.array([0.02, 0.02, -0.02])
    start = Pose(rotation(np.array([0.002, -0.001, 0.002])) @ pose.R, t / np.linalg.norm(t))
    found = refine_pose(start, y0, y1, focals=(500, 600), threshold=10)
    assert degrees(found.R, pose.R) < 1e-4
    assert angle(found.t, pose.t) < 1e-3


def test_skew_is_the_cross_product(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 3))
    np.testing.assert_allclose(skew(a) @ b, np.cross(a, b))


def test_cameras_from_text() -> None:
    camera = Camera.parse("500,510,320,240,-0.2,0.05,0.001,-0.001")
    np.testing.assert_array_equal(camera.K, FIRST.K)
    assert camera.distortion == FIRST.distortion
    for text in ("", "500,500,320", "a,b,c,d", "500,500,320,240,1", "0,500,320,240", "nan,1,2,3"):
        with pytest.raises(ConfigError):
            Camera.parse(text)


def test_undistortion_inverts_the_projection(rng: np.random.Generator) -> None:
    points, _ = scene(rng, 50)
    np.testing.assert_allclose(FIRST.normalise(project(FIRST, points)), points[:, :2] / points[:, 2:], atol=1e-5)
