"""Masks that are files, on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage
from runtime_networks import unfolded

from frontend.cli import match
from frontend.cli.main import main
from frontend.errors import DataError, ImageError
from frontend.feature_files import read_features
from frontend.masks import masks_of, read_mask
from frontend.runtime.parity import scene
from frontend.weights import save_network

HEIGHT, WIDTH = 120, 160


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "left").mkdir(parents=True)
    for n, name in enumerate(("left/a.png", "left/b.jpg", "c.png")):
        assert cv2.imwrite(str(folder / name), (255 * scene(HEIGHT, WIDTH, n)).astype(np.uint8))
    save_network(tmp_path / "net.safetensors", unfolded("edge"))
    return folder


def right_half(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    """A mask that is black on the left, in colour."""
    mask = np.zeros((*size, 3), np.uint8)
    mask[:, size[1] // 2 :, 1] = 200
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), mask)
    return path


def extract(images: Path, *more: object) -> int:
    base = images.parent
    command = ["extract", images, "--out", base / "out", "--model", base / "net.safetensors", "--max-keypoints", 200]
    return main([str(word) for word in (*command, "--device", "cpu", "--runtime", "torch", *more)])


def leftmost(out: Path, name: str) -> float:
    return float(read_features(out / f"{name}.npz").keypoints[:, 0].min())


def test_one_mask_for_all_images(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = right_half(tmp_path / "mask.png")
    assert extract(images, "--masks", mask) == 0
    assert all(leftmost(tmp_path / "out", name) >= WIDTH // 2 - 0.5 for name in ("left/a.png", "left/b.jpg", "c.png"))
    # with another mask, or none, they would be other features
    cv2.imwrite(str(mask), np.full((HEIGHT, WIDTH), 255, np.uint8))
    for more in (("--masks", mask), ()):
        assert extract(images, *more) == 2
        assert "holds features made with masks = " in capsys.readouterr().err


def test_a_folder_has_a_mask_for_those_images_that_need_one(images: Path, tmp_path: Path) -> None:
    right_half(tmp_path / "masks" / "left" / "a.png.png")
    right_half(tmp_path / "masks" / "left" / "b.png")
    assert extract(images, "--masks", tmp_path / "masks") == 0
    for name, masked in (("left/a.png", True), ("left/b.jpg", True), ("c.png", False)):
        assert (leftmost(tmp_path / "out", name) >= WIDTH // 2 - 0.5) == masked, name


def test_an_image_whose_mask_does_not_fit_is_left_out(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right_half(tmp_path / "masks" / "c.png", (60, 80))
    assert extract(images, "--masks", tmp_path / "masks") == 0
    printed = capsys.readouterr()
    assert f"skipped: {images}/c.png: mask is (60, 80) uint8; expected (120, 160) bool or uint8" in printed.err
    assert "extracted 2 images" in printed.out


def test_masks_that_are_none_are_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(ImageError, match=r"black\.png: is black everywhere"):
        read_mask(tmp_path / "black.png")
    with pytest.raises(DataError, match=r"masks .*nothing are not there"):
        masks_of(images, tmp_path / "nothing", [Path("c.png")])
    assert extract(images, "--masks", tmp_path / "nothing") == 2
    assert not (tmp_path / "out").exists()
    assert "are not there; expected an image, or a folder of them" in capsys.readouterr().err
    # of other images, such as a folder too high
    right_half(tmp_path / "masks" / "images" / "c.png")
    assert extract(images, "--masks", tmp_path / "masks") == 2
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().err == (
        f"superpoint extract: masks {tmp_path}/masks have none for any image of {images}; expected files such as "
        "c.png.png\n"
    )


def test_masks_that_have_changed_are_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, out = tmp_path / "masks", tmp_path / "out"
    mask = right_half(masks / "c.png")
    right_half(masks / "left" / "a.png")
    assert extract(images, "--masks", masks) == 0
    assert "3 images" in (printed := capsys.readouterr().out)
    assert printed.endswith("; 2 of 3 have masks\n")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def refused(name: str) -> None:
        assert extract(images, "--masks", masks) == 2
        assert capsys.readouterr().err == (
            f"superpoint extract: {out} holds features of {name} made with another mask, or none (give another --out)\n"
        )
        assert {path: path.read_bytes() for path in before} == before

    right_half(masks / "left" / "b.png")
    refused("left/b.jpg")
    (masks / "left" / "b.png").unlink()
    held = mask.read_bytes()
    cv2.imwrite(str(mask), np.full((HEIGHT, WIDTH), 255, np.uint8))
    refused("c.png")
    mask.unlink()
    refused("c.png")
    # the same under another name, or another time
    (masks / "c.png.png").write_bytes(held)
    assert extract(images, "--masks", masks) == 0
    # with as many bytes and the same time it is not read
    monkeypatch.setattr("frontend.masks.sha256", lambda _: pytest.fail("a mask is read again"))
    assert extract(images, "--masks", masks) == 0
    monkeypatch.undo()
    # what has no features yet may have any
    (out / "c.png.npz").unlink()
    right_half(masks / "c.png.png", (HEIGHT, WIDTH))
    cv2.imwrite(str(images / "d.png"), (255 * scene(HEIGHT, WIDTH, 4)).astype(np.uint8))
    right_half(masks / "d.png")
    capsys.readouterr()
    assert extract(images, "--masks", masks) == 0
    assert capsys.readouterr().out.endswith("2 had features; 0 skipped as unreadable; 3 of 4 have masks\n")
    (out / ".masks.json").write_text("{")
    assert extract(images, "--masks", masks) == 2
    assert f"{out}/.masks.json cannot be read" in capsys.readouterr().err


def test_masks_lie_on_images_as_both_are_stored(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images and masks that a viewer turns by a quarter."""
    exif = PilImage.Exif()
    exif[0x0112] = 6
    for n, name in enumerate(("left/a.png", "left/b.jpg")):
        image = PilImage.fromarray((255 * scene(HEIGHT, WIDTH, n)).astype(np.uint8))
        image.save(images / name, exif=exif)
    PilImage.open(right_half(tmp_path / "mask.png")).save(tmp_path / "turned.png", exif=exif)
    out = tmp_path / "out"
    assert extract(images, "--masks", tmp_path / "turned.png", "--stored-orientation") == 0
    for name in ("left/a.png", "left/b.jpg", "c.png"):
        features = read_features(out / f"{name}.npz")
        assert features.image_size == (WIDTH, HEIGHT), name
        assert leftmost(out, name) >= WIDTH // 2 - 0.5
    assert json.loads((out / "settings.json").read_text())["stored_orientation"] is True
    capsys.readouterr()
    assert extract(images, "--masks", tmp_path / "turned.png") == 2
    assert "holds features made with stored_orientation = True; got False" in capsys.readouterr().err
    shutil.rmtree(out)
    assert extract(images) == 0
    assert read_features(out / "left/a.png.npz").image_size == (HEIGHT, WIDTH)
    # as earlier versions wrote them
    settings = json.loads((out / "settings.json").read_text())
    del settings["stored_orientation"]
    (out / "settings.json").write_text(json.dumps(settings))
    assert extract(images) == 0
    capsys.readouterr()
    assert extract(images, "--stored-orientation") == 2
    assert "holds features made with stored_orientation = False; got True" in capsys.readouterr().err


def test_pairs_with_masks(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = str(right_half(tmp_path / "mask.png"))
    pair, out = [str(images / "c.png"), str(images / "left" / "a.png")], tmp_path / "x.json"
    settings = ["--model", str(tmp_path / "net.safetensors"), "--device", "cpu", "--runtime", "torch"]
    settings += ["--geometry", "none", "--json", str(out)]
    for one, many in ((pair, False), ([pair[0], str(images / "left")], True)):
        assert match.main([*one, *settings, "--mask0", mask, "--mask1", mask]) in (0, 3)
        found = json.loads(out.read_text())
        for document in found if many else [found]:
            for name in ("keypoints0", "keypoints1"):
                assert len(document[name]) > 50
                assert min(x for x, _ in document[name]) >= WIDTH // 2 - 0.5
    small = str(right_half(tmp_path / "small.png", (60, 80)))
    capsys.readouterr()
    assert match.main([*pair, *settings, "--mask1", small]) == 2
    assert f"{pair[1]}: mask {small} is 80 x 60; expected 160 x 120, as the image" in capsys.readouterr().err


def test_labels_of_16_bits_are_all_allowed(tmp_path: Path) -> None:
    labels = np.zeros((30, 40), np.uint16)
    labels[:, 10:], labels[:, 20:], labels[:, 30:] = 1, 256, 20000
    cv2.imwrite(str(tmp_path / "labels.png"), labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "labels.png") != 0, labels != 0)
