"""Made scenes: deterministic, textured at all scales, true to their camera, and resumable."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from frontend.cli.main import main
from frontend.training.scene_faces import prism_faces, rectangle
from frontend.training.scene_painter import Light, Painter, Texture, View
from frontend.training.scene_textures import TEXTURES
from frontend.training.scenes import LAYOUTS, scene

SMALL = (320, 240)


def test_a_scene_is_a_function_of_seed_and_number() -> None:
    first = scene(1, 5, SMALL)
    assert first.shape == (240, 320)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, scene(1, 5, SMALL))
    assert np.abs(first.astype(int) - scene(1, 6, SMALL)).mean() > 5
    assert np.abs(first.astype(int) - scene(2, 5, SMALL)).mean() > 5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scenes_have_contrast_and_corners_at_all_scales(layout: str) -> None:
    for number in range(3):
        image = scene(3, number, layout=layout)
        assert 50 < image.mean() < 190
        assert image.std() > 15
        for factor in (1, 2, 4):
            small = cv2.resize(image, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
            smooth = cv2.GaussianBlur(small, (0, 0), 1.2)
            corners = cv2.goodFeaturesToTrack(smooth, 1000, 0.02, 4)
            assert corners is not None
            assert len(corners) > (40, 30, 20)[(1, 2, 4).index(factor)]


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_are_reflectances(name: str) -> None:
    texture = TEXTURES[name](np.random.default_rng(0), 256)
    assert texture.shape == (256, 256)
    assert texture.dtype == np.float32
    assert texture.min() >= 0
    assert texture.max() <= 1
    assert texture.std() > 0.02


def painter(view: View, light: Light, occluders: list[np.ndarray] | None = None) -> Painter:
    squares = np.kron(np.add.outer(np.arange(8), np.arange(8)) % 2, np.ones((64, 64))).astype(np.float32)
    textures = [
        Texture(np.float32(0.2) + np.float32(0.6) * squares),
        Texture(np.full((512, 512), 0.8, np.float32)),
    ]
    return Painter(view, light, textures, occluders or [], np.zeros(view.size[::-1], np.uint8))


def test_a_face_is_painted_where_the_pinhole_camera_sees_it() -> None:
    """The squares of a checkerboard have their corners where their 3D points project."""
    view = View.looking(np.array([0.3, -3.0, 1.5]), np.array([0.0, 1.0, 0.0]), 0.2, 0.9, (480, 360))
    flat = Light(1.0, 0.0, None, np.array([0.0, 0, 5]))
    canvas = painter(view, flat)
    origin, across, down = np.array([-2.0, 2.0, 0.0]), np.array([4.0, 0, 0]), np.array([0, -4.0, 0])
    canvas.face(rectangle(origin, across, down, 0, 4.0))
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 50, 0.001)
    errors = []
    for i in range(1, 8):
        for j in range(1, 8):
            # texel k ends where its neighbour begins: square edges are half a texel before the 64th
            s, t = (64 * i - 0.5) / 512, (64 * j - 0.5) / 512
            x, y, z = view.K @ view.R @ (origin + s * across + t * down - view.centre)
            start = np.array([[x / z, y / z]], np.float32)
            if not ((start > 8).all() and (start < np.array(view.size) - 9).all()):
                continue
            refined = cv2.cornerSubPix(canvas.canvas, start.copy(), (3, 3), (-1, -1), criteria)
            errors.append(np.linalg.norm(refined - start))
    assert len(errors) > 15
    assert np.median(errors) < 0.2
    assert max(errors) < 1.0


def test_a_box_casts_its_shadow_away_from_the_sun_and_shows_its_near_faces() -> None:
    view = View.looking(np.array([0.0, 0.0, 8.0]), np.array([0.0, 0.01, 0.0]), 0.0, 0.8, (400, 400))
    sun = np.array([1.0, 0.0, 1.0]) / 2**0.5
    light = Light(0.3, 0.7, sun, np.zeros(3), softness=0.0)
    base = np.array([[-0.5, -0.5, 0.0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
    up = np.array([0.0, 0, 1.0])
    scene_ = painter(view, light, [np.concatenate([base, base + up])])
    scene_.face(rectangle(np.array([-4.0, 4.0, 0]), np.array([8.0, 0, 0]), np.array([0, -8.0, 0]), 1, 1.0, 256))

    def level(x: float, y: float, z: float) -> int:
        p = view.K @ view.R @ (np.array([x, y, z]) - view.centre)
        u, v = np.rint(p[:2] / p[2]).astype(int)
        return int(scene_.canvas[v, u])

    lit, dark = round(255 * 0.8 * (0.3 + 0.7 * sun[2])), round(255 * 0.8 * 0.3)
    # a box of height 1 under a sun at 45 degrees: its shadow reaches one metre beyond it
    assert level(1.2, 0, 0) == pytest.approx(lit, abs=3)
    assert level(-1.2, 0, 0) == pytest.approx(dark, abs=3)
    assert level(-1.8, 0, 0) == pytest.approx(lit, abs=3)
    assert level(-1.2, 0.8, 0) == pytest.approx(lit, abs=3)
    faces = prism_faces(base, up, (1, 1), 1.0, np.zeros(2))
    seen = [tuple(np.rint(face.normal).astype(int)) for face in faces if scene_.faces(face)]
    assert seen == [(0, 0, 1)]
    assert {tuple(np.rint(face.normal).astype(int)) for face in faces} == {
        (1, 0, 0),
        (-1, 0, 0),
        (0, 1, 0),
        (0, -1, 0),
        (0, 0, 1),
        (0, 0, -1),
    }


def test_the_command_makes_images_goes_on_and_refuses_nonsense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["make-scenes", str(tmp_path), "--seed", "4", "--width", "160", "--height", "120"]
    assert main([*command, "--count", "3"]) == 0
    assert "made 3 images, 0 were there" in capsys.readouterr().out
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"scene-4-160x120-{n:06}.jpg" for n in range(3)]
    image = cv2.imread(str(tmp_path / names[1]), cv2.IMREAD_UNCHANGED)
    assert image.shape == (120, 160)
    assert np.abs(image.astype(int) - scene(4, 1, (160, 120))).mean() < 4
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    before.pop(tmp_path / names[2])
    (tmp_path / names[2]).unlink()
    assert main([*command, "--count", "4", "--workers", "2"]) == 0
    assert "made 2 images, 2 were there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert main([*command, "--count", "0"]) == 2
    assert capsys.readouterr().err.endswith("count is 0; expected 1 or more\n")
    assert main([*command, "--count", "1", "--width", "63"]) == 2
    assert "size is 63 x 120; expected at least 64 x 64" in capsys.readouterr().err
