"""Views made on the device: the geometry of the path through OpenCV, and noise of its kinds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from frontend.cli.main import main
from frontend.folders import output_path
from frontend.training.datasets import PairConfig, WarpedPairs
from frontend.training.device_views import add_noise, compress, draw_noise, hash_normal, render
from frontend.training.labels import LabelledPhoto, write_labels
from frontend.training.photometric import PhotometricConfig
from frontend.training.state import read_checkpoint
from frontend.training.synthetic import synthetic_image

SIZE = (128, 96)


def photos() -> list[LabelledPhoto]:
    found = []
    for n, size in enumerate([(240, 180), (180, 240), (240, 100)]):
        image, points = synthetic_image(np.random.default_rng(n), size, shape="polygons")
        image = cv2.GaussianBlur(image, (0, 0), 1.0)
        found.append(LabelledPhoto(image, points, np.linspace(1, 0.1, len(points)).astype(np.float32)))
    return found


def both(**settings: object) -> tuple[WarpedPairs, WarpedPairs]:
    config = PairConfig(size=SIZE, photo_side=240, noise=None, **settings)  # type: ignore[arg-type]
    here = WarpedPairs(5, photos=photos(), config=config)
    return here, WarpedPairs(5, photos=photos(), config=dataclasses.replace(config, on_device=True))


def test_labels_masks_and_homographies_are_those_of_the_path_through_opencv() -> None:
    here, there = both(any_rotation=0.3)
    for index in range(12):
        a, b = here[index], there[index]
        for name in ("labels", "mask", "points", "valid", "labelled", "H"):
            assert torch.equal(a[name], b[name]), name
        assert "image" not in b


def test_images_are_those_of_the_path_through_opencv() -> None:
    """Also beyond the photograph, mirrored or black."""
    here, there = both(any_rotation=0.3)
    numbers = range(24)
    batch = there.on_device(default_collate([there[n] for n in numbers]))
    assert batch["image"].dtype == torch.uint8
    reflected, beyond = set(), 0
    for n in numbers:
        sample = here[n]
        difference = np.abs(sample["image"].numpy().astype(int) - batch["image"][n].numpy().astype(int))
        # OpenCV places its samples on a grid of 1/32 pixel
        assert difference.mean() < 0.8
        assert np.quantile(difference, 0.99) <= 8
        reflected.add(bool(there[n]["reflect"]))
        beyond += int((~sample["mask"]).sum())
    assert reflected == {True, False}
    assert beyond > 50
    assert set(batch) == {*here[0]}
    smaller = sum(int((there[n]["extent"].max(dim=-1).values < 240).any()) for n in numbers)
    assert smaller > 3  # some views are made from reduced photographs


def test_without_noise_a_view_is_only_rounded() -> None:
    row, kernel = draw_noise(np.random.default_rng(0), SIZE, PhotometricConfig(probability=0.0))
    image = torch.arange(96 * 128).reshape(1, 96, 128) % 251 + 0.25
    out = add_noise(image, torch.from_numpy(row)[None], torch.from_numpy(kernel)[None], torch.tensor([3]))
    assert torch.equal(out, image.round().to(torch.uint8))


def test_noise_has_the_ranges_of_its_configuration() -> None:
    config = PhotometricConfig(exposure=2.0, jpeg=40, probability=0.5)
    drawn = [draw_noise(np.random.default_rng(n), SIZE, config) for n in range(600)]
    rows, kernels = np.stack([row for row, _ in drawn]), np.stack([kernel for _, kernel in drawn])
    np.testing.assert_allclose(kernels.sum(axis=(1, 2)), 1, atol=1e-5)
    contrast, gain, shift, exponent, noise, quality = rows[:, :6].T
    assert 0.4 <= contrast.min() < 0.5 < 1.4 < contrast.max() <= 1.6
    assert 2 ** (-2 / 2.2) - 1e-3 <= gain.min() < 0.6 < 1.7 < gain.max() <= 2 ** (2 / 2.2) + 1e-3
    assert np.abs(shift).max() <= 60
    assert not ((gain != 1) & (shift != 0)).any()
    assert 1 / 1.8 - 1e-3 <= exponent.min() < exponent.max() <= 1.8 + 1e-3
    assert 10 < noise.max() <= 12
    assert set(quality[quality > 0].astype(int)) <= set(range(40, 96))
    for values, still in ((contrast, 1), (noise, 0)):
        assert 0.4 < (values != still).mean() < 0.6
    assert 0.2 < (quality > 0).mean() < 0.3


def test_each_effect_does_what_it_says() -> None:
    ys, xs = np.mgrid[:96, :128]
    gray = (((xs // 16 + ys // 16) % 2) * 100 + 60).astype(np.float32)
    image = torch.from_numpy(gray)[None]
    kernel = torch.zeros(1, 11, 11)
    kernel[0, 5, 5] = 1
    still = [1.0, 1, 0, 1, 0, 0, 0, 0, 1, 1, 0, 1, 1]

    def changed(**columns: float) -> np.ndarray:
        names = (
            "contrast",
            "gain",
            "shift",
            "exponent",
            "noise",
            "quality",
            "cx",
            "cy",
            "a",
            "b",
            "angle",
            "soft",
            "f",
        )
        row = torch.tensor([[columns.get(name, value) for name, value in zip(names, still, strict=True)]])
        return add_noise(image, row, kernel, torch.tensor([1]))[0].numpy().astype(np.float64)

    np.testing.assert_allclose(changed(contrast=0.5), (gray - gray.mean()) * 0.5 + gray.mean(), atol=0.51)
    np.testing.assert_allclose(changed(gain=1.8), np.clip(gray * 1.8, 0, 255), atol=0.51)
    np.testing.assert_allclose(changed(shift=-30), gray - 30, atol=0.51)
    np.testing.assert_allclose(changed(exponent=1.5), (gray / 255) ** 1.5 * 255, atol=0.51)
    noisy = changed(noise=8) - gray
    assert abs(noisy.mean()) < 0.4
    assert noisy.std() == pytest.approx(8, rel=0.05)
    shadow = changed(cx=64, cy=48, a=40, b=20, soft=2, f=0.5) / gray
    inside = ((xs - 64) / 40) ** 2 + ((ys - 48) / 20) ** 2
    np.testing.assert_allclose(shadow[inside < 0.6], 0.5, atol=0.02)
    np.testing.assert_allclose(shadow[inside > 1.6], 1.0, atol=0.02)
    kernel = torch.from_numpy(np.outer(k := cv2.getGaussianKernel(11, 1.1, cv2.CV_32F), k))[None]
    blurred = cv2.GaussianBlur(gray, (11, 11), 1.1)
    np.testing.assert_allclose(changed(), blurred, atol=0.51)


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_compression_is_that_of_jpeg(quality: int) -> None:
    image, _ = synthetic_image(np.random.default_rng(1), SIZE, shape="cube", noise=PhotometricConfig())
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    expected = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE).astype(float)
    got = compress(torch.from_numpy(image).float()[None], torch.tensor([float(quality)]))[0].numpy()
    loss = np.abs(expected - image).mean()
    assert loss > 0.3
    assert np.abs(got - expected).mean() < 0.15 * loss + 0.05
    assert torch.equal(
        compress(torch.from_numpy(image).float()[None], torch.zeros(1))[0], torch.from_numpy(image).float()
    )


def test_sensor_noise_is_normal_and_a_function_of_its_seed() -> None:
    values = hash_normal(torch.tensor([1, 2, 1]), 40_000).numpy()
    np.testing.assert_array_equal(values[0], values[2])
    assert abs(np.corrcoef(values[0], values[1])[0, 1]) < 0.02
    assert abs(np.corrcoef(values[0, :-1], values[0, 1:])[0, 1]) < 0.02
    assert abs(values.mean()) < 0.02
    assert values.std() == pytest.approx(1, abs=0.02)
    share = [(np.abs(values[0]) < k).mean() for k in (1, 2, 3)]
    np.testing.assert_allclose(share, [0.6827, 0.9545, 0.9973], atol=0.01)


def test_padding_is_never_seen() -> None:
    photo = torch.full((1, 40, 40), 77, dtype=torch.uint8)
    photo[:, 30:] = 0
    photo[:, :, 20:] = 0
    away = torch.tensor([[[[3.0, 0, -40], [0, 3, -40], [0, 0, 1]]]])
    views = render(photo, away, torch.tensor([[20, 30]]), torch.tensor([True]), (32, 32))
    assert torch.allclose(views, torch.full_like(views, 77.0))


def test_training_on_views_made_on_the_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n, photo in enumerate(photos()):
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"{n}.png"), photo.image)
        size = (photo.image.shape[1], photo.image.shape[0])
        path = output_path(tmp_path / "labels", Path(f"{n}.png"))
        write_labels(path, photo.points.astype(np.float32), photo.scores, size)
    folders = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]
    small = ["--model", "vgg", "--encoder", "vgg(channels=[8,8,8,16])", "--steps", "3", "--batch-size", "2"]
    options = ["--width", "64", "--height", "64", "--photo-side", "96", "--workers", "0", "--precision", "fp32"]
    command = ["train", "superpoint", *folders, *small, *options, "--device", "cpu", "--out"]
    assert main([*command, str(tmp_path / "on"), "--device-augment", "on"]) == 0
    assert read_checkpoint(tmp_path / "on")["described"]["device_augment"] is True
    assert main([*command, str(tmp_path / "auto")]) == 0
    assert "device_augment" not in read_checkpoint(tmp_path / "auto")["described"]
    assert main([*command, str(tmp_path / "auto"), "--device-augment", "on"]) == 2
    assert "device_augment = None; got True" in capsys.readouterr().err
