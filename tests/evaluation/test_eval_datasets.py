"""Folders told apart by their content, homographies carried through resizing, refusals worth reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from frontend.errors import ConfigError, DataError
from frontend.evaluation.datasets import open_dataset

Scene = Callable[..., np.ndarray]
H = np.array([[0.9, 0.1, 12.0], [-0.05, 1.05, 4.0], [1e-4, -2e-4, 1.0]])


def write_sequence(folder: Path, scene: np.ndarray, image: str, matrix: str, numbers: tuple[int, ...] = (2, 3)) -> None:
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / image.format(1)), scene)
    for number in numbers:
        warp = np.linalg.matrix_power(H, number - 1)
        cv2.imwrite(str(folder / image.format(number)), cv2.warpPerspective(scene, warp, scene.shape[1::-1]))
        np.savetxt(folder / matrix.format(number), warp)


def test_hpatches(make_scene: Scene, tmp_path: Path) -> None:
    for name in ("v_b", "v_a", "i_c"):
        write_sequence(tmp_path / name, make_scene(96, 128), "{}.ppm", "H_1_{}", (2, 3, 4, 5, 6))
    dataset = open_dataset(tmp_path)
    assert (dataset.kind, dataset.counts, len(dataset)) == ("hpatches", {"viewpoint": 10, "illumination": 5}, 15)
    pairs = list(dataset)
    assert [pair.name for pair in pairs[:6]] == ["v_a/2", "v_a/3", "v_a/4", "v_a/5", "v_a/6", "v_b/2"]
    assert all(pair.image0 is pairs[0].image0 for pair in pairs[:5])
    assert pairs[5].image0 is not pairs[0].image0
    np.testing.assert_allclose(pairs[1].H, H @ H / (H @ H)[2, 2], atol=1e-12)
    assert [pair.kind for pair in open_dataset(tmp_path, pairs="illumination")] == ["illumination"] * 5
    assert open_dataset(tmp_path, limit=1).counts == {"viewpoint": 5, "illumination": 5}


def test_oxford_parent_and_single_folder(make_scene: Scene, tmp_path: Path) -> None:
    write_sequence(tmp_path / "graf", make_scene(96, 128), "img{}.ppm", "H1to{}p")
    write_sequence(tmp_path / "leuven", make_scene(96, 128), "img{}.png", "H1to{}p")
    dataset = open_dataset(tmp_path)
    assert (dataset.kind, dataset.counts) == ("oxford", {"viewpoint": 2, "illumination": 2})
    single = open_dataset(tmp_path / "leuven")
    assert (single.kind, single.counts) == ("oxford", {"illumination": 2})
    assert [pair.name for pair in single] == ["leuven/2", "leuven/3"]


def test_homographies_follow_the_resize(make_scene: Scene, tmp_path: Path) -> None:
    write_sequence(tmp_path / "graf", make_scene(300, 401), "img{}.ppm", "H1to{}p", (2,))
    pair = next(iter(open_dataset(tmp_path, resize=200)))
    assert pair.image0.shape == (150, 200, 3)
    for x, y in ((10.0, 20.0), (350.0, 40.0), (200.0, 290.0)):
        w = H[2] @ [x, y, 1]
        there = (H[0] @ [x, y, 1] / w, H[1] @ [x, y, 1] / w)
        sx, sy = 200 / 401, 150 / 300
        small = np.array([(x + 0.5) * sx - 0.5, (y + 0.5) * sy - 0.5, 1.0])
        found = pair.H @ small
        expected = ((there[0] + 0.5) * sx - 0.5, (there[1] + 0.5) * sy - 0.5)
        assert tuple(found[:2] / found[2]) == pytest.approx(expected, abs=1e-9)


def test_photographs(make_scene: Scene, tmp_path: Path) -> None:
    # named like an Oxford sequence, but without homographies
    for number in (1, 2, 3):
        cv2.imwrite(str(tmp_path / f"img{number}.jpg"), make_scene(96, 128, number))
    (tmp_path / "README.md").write_text("photographs")
    dataset = open_dataset(tmp_path, limit=2)
    assert (dataset.kind, dataset.counts) == ("photos", {"viewpoint": 2, "illumination": 2})
    assert [pair.name for pair in dataset] == ["v_img1.jpg", "i_img1.jpg", "v_img2.jpg", "i_img2.jpg"]
    assert max(next(iter(open_dataset(tmp_path, resize=64))).image1.shape) == 64


def test_iterating_twice_gives_the_same(make_scene: Scene, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), make_scene(96, 128))
    dataset = open_dataset(tmp_path)
    for first, second in zip(dataset, dataset, strict=True):
        np.testing.assert_array_equal(first.image1, second.image1)


def test_refusals(make_scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(tmp_path / "missing")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        open_dataset(tmp_path / "file.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is empty"):
        open_dataset(tmp_path / "empty")
    with pytest.raises(DataError, match="has no pairs of kind 'auto'"):
        open_dataset(tmp_path)
    cv2.imwrite(str(tmp_path / "a.png"), make_scene(32, 32))
    with pytest.raises(DataError, match="has no pairs of kind 'hpatches'"):
        open_dataset(tmp_path, kind="hpatches")
    write_sequence(tmp_path / "v_x", make_scene(96, 128), "{}.ppm", "H_1_{}")
    with pytest.raises(DataError, match="no illumination sequences"):
        open_dataset(tmp_path, pairs="illumination")
    (tmp_path / "v_x" / "H_1_2").unlink()
    with pytest.raises(DataError, match="H_1_2"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("text", ["1 0 0 0 1 0", "1 0 0 0 1 0 0 0 x", "nan 0 0 0 1 0 0 0 1", "1 0 0 1 0 0 0 0 1"])
def test_bad_homography_files(text: str, make_scene: Scene, tmp_path: Path) -> None:
    write_sequence(tmp_path / "graf", make_scene(96, 128), "img{}.ppm", "H1to{}p")
    (tmp_path / "graf" / "H1to2p").write_text(text)
    with pytest.raises(DataError, match="H1to2p"):
        next(iter(open_dataset(tmp_path)))


@pytest.mark.parametrize(
    "settings", [{"kind": "kitti"}, {"pairs": "all"}, {"limit": 0}, {"resize": 3}], ids=lambda s: next(iter(s))
)
def test_settings_out_of_range(settings: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        open_dataset(tmp_path, **settings)  # type: ignore[arg-type]
