"""Relative-pose benchmark: known motions, known errors, known areas, and the command line on a rendered pair."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from frontend.camera import Camera
from frontend.cli.main import main
from frontend.errors import ConfigError, DataError
from frontend.evaluation.pose import (
    PoseConfig,
    PoseErrors,
    auc,
    estimate_pair,
    load_view,
    read_pairs,
    turned_back,
)
from frontend.evaluation.pose_estimators import ESTIMATORS, rotation_error, translation_error
from frontend.types import Pose

Scene = Callable[..., np.ndarray]
K = np.array([[300.0, 0, 159.5], [0, 310.0, 119.5], [0, 0, 1]])


def turn(axis: tuple[float, float, float], degrees: float) -> np.ndarray:
    """Rodrigues' formula, term by term."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return c * np.eye(3) + s * cross + (1 - c) * np.outer((x, y, z), (x, y, z))


TRUTH = Pose(turn((0.2, 1.0, 0.1), 8.0), np.array([0.3, 0.02, 0.05]))


def project(points: np.ndarray, pose: Pose | None = None, matrix: np.ndarray = K) -> np.ndarray:
    moved = points if pose is None else points @ pose.R.T + pose.t
    image = moved @ matrix.T
    return image[:, :2] / image[:, 2:]


@pytest.fixture
def matched(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """120 matches of a scene with depth, a quarter of them wrong."""
    points = np.column_stack([rng.uniform(-1, 1, (120, 2)), rng.uniform(2, 5, 120)])
    x0, x1 = project(points), project(points, TRUTH)
    x1[:30] = rng.uniform(0, 300, (30, 2))
    return x0 + rng.normal(0, 0.2, x0.shape), x1 + rng.normal(0, 0.2, x1.shape)


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 0.5, 90.0, 179.0, 180.0])
def test_rotation_error_is_the_angle(degrees: float) -> None:
    start = turn((1, 2, 3), 33.0)
    assert rotation_error(turn((3, -1, 2), degrees) @ start, start) == pytest.approx(degrees, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("degrees", "expected"), [(0, 0), (1e-5, 1e-5), (30, 30), (90, 90), (150, 30), (180, 0)])
def test_translation_error_is_the_angle_up_to_sign(degrees: float, expected: float) -> None:
    direction = np.array([0.3, -1.0, 2.0])
    turned = turn((2.0, 0.0, -0.3), degrees) @ direction  # about an axis across the direction
    assert translation_error(5.0 * turned, direction) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_estimators_find_a_known_motion(name: str, matched: tuple[np.ndarray, np.ndarray]) -> None:
    if name == "poselib":
        pytest.importorskip("poselib")
    camera = Camera(K)
    config = PoseConfig((name,), threshold=1.0, seeds=3)
    errors = estimate_pair(name, *matched, (camera, camera), TRUTH, config)
    assert errors.pose.shape == (3,)
    # OpenCV's own model is not refined over all inliers
    loose = 3.0 if name == "opencv" else 1.0
    assert errors.rotation.max() < 0.5 * loose
    assert errors.translation.max() < 2.0 * loose
    np.testing.assert_array_equal(errors.pose, np.maximum(errors.rotation, errors.translation))
    assert 70 <= errors.inliers.min() <= errors.inliers.max() <= 100


@pytest.mark.parametrize("count", [0, 3, 7])
def test_too_few_matches_are_failures(count: int, matched: tuple[np.ndarray, np.ndarray]) -> None:
    x0, x1 = (points[-count:] if count else points[:0] for points in matched)
    camera = Camera(K)
    errors = estimate_pair("frontend", x0, x1, (camera, camera), TRUTH, PoseConfig(seeds=2))
    assert np.isinf(errors.pose).all()
    assert (errors.inliers == 0).all()


def plain_auc(errors: list[float], limit: float) -> float:
    """The area under the polygon (0, 0), (e1, 1/n), (e2, 2/n) ... level from the last error below the limit."""
    corners = [(0.0, 0.0)]
    for rank, error in enumerate(sorted(errors), 1):
        if error < limit:
            corners.append((error, rank / len(errors)))
    corners.append((limit, corners[-1][1]))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def test_auc_equals_trapezoids_for_each_seed(rng: np.random.Generator) -> None:
    pairs = [PoseErrors(rng.exponential(6.0, 3), rng.exponential(6.0, 3), np.ones(3)) for _ in range(20)]
    pairs[4] = PoseErrors(np.full(3, np.inf), np.full(3, np.inf), np.zeros(3))
    found = auc(pairs)
    assert found.shape == (3, 3)
    for seed in range(3):
        errors = [max(float(e.rotation[seed]), float(e.translation[seed])) for e in pairs]
        for column, limit in enumerate((5.0, 10.0, 20.0)):
            assert found[seed, column] == pytest.approx(plain_auc(errors, limit), abs=1e-12)


def test_auc_of_known_errors() -> None:
    def single(*values: float) -> list[PoseErrors]:
        return [PoseErrors(np.array([value]), np.array([0.0]), np.ones(1)) for value in values]

    # one pair, 4 degrees: a ramp up to 4, then level: (2 + 1) / 5, (2 + 6) / 10, (2 + 16) / 20
    np.testing.assert_allclose(auc(single(4.0)), [[0.6, 0.8, 0.9]])
    # a second pair that fails halves it
    np.testing.assert_allclose(auc(single(4.0, math.inf)), [[0.3, 0.4, 0.45]])


def test_keypoints_are_turned_back() -> None:
    image = np.zeros((4, 7), np.uint8)
    image[1, 5] = 1
    for turns in range(4):
        y, x = np.argwhere(np.rot90(image, turns))[0]
        np.testing.assert_array_equal(turned_back(np.array([[x, y]]), turns, (7, 4)), [[5.0, 1.0]])


def test_cameras_shrink_about_pixel_centres(make_scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), make_scene(240, 320))
    view = load_view(path, 1, Camera(K), 160)
    assert view.image.shape == (160, 120, 3)
    # a ray through pixel p of the given image goes through (p + .5) / 2 - .5 of the reduced one
    ray = np.array([[0.3, -0.2, 1.0]])
    np.testing.assert_allclose(project(ray, None, view.camera.K), (project(ray) + 0.5) / 2 - 0.5, atol=1e-12)


def line(name0: str, name1: str, turns: tuple[int, int] = (0, 0), pose: Pose = TRUTH, matrix: np.ndarray = K) -> str:
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = pose.R, pose.t
    numbers = [*matrix.ravel(), *matrix.ravel(), *motion.ravel()]
    return " ".join([name0, name1, *map(str, turns), *(f"{value:.9g}" for value in numbers)])


def test_read_pairs(tmp_path: Path) -> None:
    (tmp_path / "pairs_with_gt.txt").write_text(line("a.png", "b.png", (1, 7)) + "\n\n", encoding="utf-8")
    (pair,) = read_pairs(tmp_path)
    assert pair.image0 == tmp_path / "a.png"
    assert (pair.turns0, pair.turns1) == (1, 3)
    np.testing.assert_allclose(pair.camera1.K, K)
    np.testing.assert_allclose(pair.pose.R, TRUTH.R, atol=1e-8)
    np.testing.assert_allclose(pair.pose.t, TRUTH.t, atol=1e-8)
    (again,) = read_pairs(tmp_path / "pairs_with_gt.txt")
    assert again.name == "a.png b.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a.png b.png 0 0 1 2 3", "line 1: has 7 values; expected 38"),
        (line("a", "b").replace(" 0 0 ", " x 0 ", 1), "line 1: invalid literal"),
        (line("a", "b", pose=Pose(2 * TRUTH.R, TRUTH.t)), "no rotation"),
        (line("a", "b", pose=Pose(-TRUTH.R, TRUTH.t)), "no rotation"),
        (line("a", "b", pose=Pose(TRUTH.R, np.zeros(3))), "no translation"),
        (line("a", "b", matrix=-K), "focal lengths"),
    ],
)
def test_bad_pairs_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs_with_gt.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path)


def test_settings_are_refused() -> None:
    for settings, message in (
        ({"estimators": ("magic",)}, "estimator is 'magic'"),
        ({"estimators": ()}, "estimator is empty"),
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"seeds": 0}, "seeds is 0"),
        ({"resize": 8}, "resize is 8"),
    ):
        with pytest.raises(ConfigError, match=message):
            PoseConfig(**settings)  # type: ignore[arg-type]


@pytest.fixture
def rendered(make_scene: Scene, tmp_path: Path) -> Path:
    """A pair of images of two textured walls that meet at an angle, and a line that says how the camera moved.

    Image 1 is rendered ray by ray; image 0 shows the walls' textures where their points project to.
    """
    textures = [make_scene(480, 640, seed) for seed in (3, 4)]
    # walls y = any, through (0, 0, 4): n . X = d
    walls = [(np.array([math.sin(a), 0.0, math.cos(a)]), 4.0 * math.cos(a)) for a in (0.6, -0.6)]
    y, x = np.mgrid[0:240, 0:320].astype(np.float64)
    rays = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1) @ np.linalg.inv(K).T
    for name, pose in (("a.png", Pose(np.eye(3), np.zeros(3))), ("b.png", TRUTH)):
        centre, directions = -pose.R.T @ pose.t, rays @ pose.R
        depths = [(d - n @ centre) / (directions @ n) for n, d in walls]
        nearest = np.minimum(*depths)
        points = centre + directions * nearest[:, None]
        image = np.zeros((240, 320, 3), np.uint8)
        for texture, depth in zip(textures, depths, strict=True):
            u = (points[:, 0] * 110 + 320).reshape(240, 320).astype(np.float32)
            v = (points[:, 1] * 110 + 240).reshape(240, 320).astype(np.float32)
            seen = (depth == nearest).reshape(240, 320)
            image[seen] = cv2.remap(texture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)[seen]
        cv2.imwrite(str(tmp_path / name), image)
    (tmp_path / "pairs_with_gt.txt").write_text(line("a.png", "b.png"), encoding="utf-8")
    return tmp_path


def test_command_line_on_a_rendered_pair(rendered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--methods", "sift,orb", "--seeds", "2", "--estimators", "opencv,frontend", "--json", "-"]
    assert main(["eval", "pose", str(rendered), *options]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["protocol"]["estimators"] == ["opencv", "frontend"]
    assert "estimator frontend" in captured.err
    sift = document["metrics"]["sift"]
    assert sift["frontend"]["rotation_median"] < 1.0
    assert sift["frontend"]["auc_10"] > 0.6
    assert sift["opencv"]["failures"] == 0
    assert sift["opencv"]["precision"] > 0.7
    (pair,) = document["pairs"]["sift"]
    assert pair["matches"] >= pair["correct"] > 50
    assert len(pair["errors"]["opencv"]["rotation"]) == 2
    # the same again
    assert main(["eval", "pose", str(rendered), *options]) == 0
    assert json.loads(capsys.readouterr().out) == document


def test_an_image_on_its_side_is_set_upright(rendered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keypoints of ORB's upright corners would not be found again; K and pose stay those of the file."""
    image = cv2.imread(str(rendered / "b.png"))
    cv2.imwrite(str(rendered / "b.png"), np.rot90(image, -1))
    # the camera turned by 90 degrees about its axis: pixel (x, y) became (239 - y, x)
    spin = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    turned = np.array([[310.0, 0, 119.5], [0, 300.0, 159.5], [0, 0, 1]])
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = spin @ TRUTH.R, spin @ TRUTH.t
    numbers = [*K.ravel(), *turned.ravel(), *motion.ravel()]
    text = " ".join(["a.png", "b.png", "0", "1", *(f"{value:.9g}" for value in numbers)])
    (rendered / "pairs_with_gt.txt").write_text(text, encoding="utf-8")
    options = ["--methods", "sift", "--seeds", "1", "--estimators", "frontend", "--json", "-"]
    assert main(["eval", "pose", str(rendered), *options]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]["sift"]["frontend"]
    assert metrics["rotation_median"] < 1.0
    assert metrics["precision"] > 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/missing"], "cannot be read"),
        (["{}", "--methods", ","], "--methods is empty"),
        (["{}", "--methods", "sift", "--limit", "0"], "limit is 0"),
        (["{}", "--methods", "sift", "--estimators", "magic"], "estimator is 'magic'"),
        (["{}", "--methods", "sift", "--json", "{}/none/a.json"], "existing folder"),
        (["{}", "--methods", "surf"], "unknown method 'surf'"),
        (["{}", "--methods", "sift"], "a.png"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs_with_gt.txt").write_text(line("a.png", "b.png"), encoding="utf-8")
    assert main(["eval", "pose", *(argument.format(tmp_path) for argument in arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("superpoint eval: ")
    assert message in lines[-1]
