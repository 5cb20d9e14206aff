"""Features of folders: the same as one image at a time, read ahead, written whole, resumed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from processes import kill_when
from runtime_networks import network, unfolded

from frontend.cli.main import main
from frontend.errors import ConfigError, DataError, FrontendError, ImageError
from frontend.extraction import Batch
from frontend.extractor import ExtractorConfig, SuperPoint
from frontend.feature_files import extract_files, extract_folder, read_features, write_features
from frontend.folders import read_ahead
from frontend.image import read_image
from frontend.types import Features
from frontend.weights import save_network

ROOT = Path(__file__).resolve().parent.parent
SIZES = ((64, 96), (64, 96), (64, 96), (72, 64), (64, 96))


@pytest.fixture
def folder(tmp_path: Path, make_scene) -> Path:
    """Five readable images, of which the second last is of another size, and one that is none."""
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for i, size in enumerate(SIZES):
        cv2.imwrite(str(images / ("sub" if i > 2 else "") / f"{i}.png"), np.roll(make_scene(*size), 7 * i, axis=1))
    (images / "1b.jpg").write_bytes(b"no image")
    return images


@pytest.fixture(scope="module")
def extractor() -> SuperPoint:
    return SuperPoint(network("edge"), device="cpu", config=ExtractorConfig(max_keypoints=40, detection_threshold=0.0))


def assert_same(a: Features, b: Features, atol: float = 0.0) -> None:
    assert (a.image_size, a.model) == (b.image_size, b.model)
    for name in ("keypoints", "scores", "descriptors", "sigmas"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=atol)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_files_give_the_features_of_one_image_at_a_time(folder: Path, extractor: SuperPoint, batch: int) -> None:
    paths = sorted(folder.rglob("*.*"))
    assert len(paths) == 6
    found = list(extract_files(extractor, iter(paths), batch=batch))
    assert [path for path, _ in found] == paths
    for path, features in found:
        if path.name == "1b.jpg":
            assert isinstance(features, ImageError)
            assert "1b.jpg" in str(features)
        else:
            assert isinstance(features, Features)
            assert_same(features, extractor.extract(read_image(path)), atol=1e-4)


def test_a_batch_of_none_is_refused(extractor: SuperPoint) -> None:
    with pytest.raises(ConfigError, match="batch is 0; expected 1 or more"):
        next(extract_files(extractor, [], batch=0))


def test_reading_goes_ahead_but_not_far() -> None:
    begun: list[int] = []
    second = threading.Event()

    def read(item: int) -> int:
        begun.append(item)
        if item == 2:
            second.set()
        if item == 5:
            raise FrontendError("five")
        return 10 * item

    ahead = read_ahead(read, range(100), ahead=3)
    assert next(ahead) == (0, 0)
    # 1 and 2 are made although nobody has asked for them, and 3 that took the place of 0; no more
    assert second.wait(5)
    time.sleep(0.05)
    assert set(begun) <= {0, 1, 2, 3}
    rest = [value for item, value in ahead if item < 8]
    assert rest[:4] == [10, 20, 30, 40]
    assert str(rest[4]) == "five"
    assert rest[5:] == [60, 70]
    assert begun == list(range(100))


def test_who_stops_early_waits_for_nothing() -> None:
    begun: list[int] = []
    ahead = read_ahead(lambda item: begun.append(item), range(50), ahead=2)
    next(ahead)
    ahead.close()
    time.sleep(0.05)
    assert len(begun) <= 3


def test_what_is_too_large_for_the_memory_ends_nothing_else() -> None:
    def read(name: str) -> str:
        if name == "b.png":
            raise MemoryError
        return name

    found = dict(read_ahead(read, ["a.png", "b.png", "c.png"]))
    assert (found["a.png"], found["c.png"]) == ("a.png", "c.png")
    assert isinstance(found["b.png"], ImageError)
    assert str(found["b.png"]) == "b.png: out of memory"


def test_an_error_of_the_program_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda item: 1 // item, [1, 0]))


@pytest.mark.parametrize("half", [False, True])
def test_files_round_trip(tmp_path: Path, half: bool) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((9, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    points, scores = rng.uniform(0, 60, (9, 2)).astype(np.float32), np.linspace(1, 0.1, 9, dtype=np.float32)
    given = Features(points, scores, rows, (64, 48), "m", scores + 1)
    write_features(tmp_path / "sub" / "a.npz", given, half=half)
    got = read_features(tmp_path / "sub" / "a.npz")
    assert_same(got, given, atol=1e-3 if half else 0)
    np.testing.assert_allclose(np.linalg.norm(got.descriptors, axis=1), 1, atol=1e-6)
    assert got.descriptors.dtype == np.float32
    write_features(tmp_path / "b.npz", replace(given, sigmas=None))
    assert read_features(tmp_path / "b.npz").sigmas is None
    whole = (tmp_path / "b.npz").read_bytes()
    np.save(tmp_path / "array.npy", rows)
    for data in (b"", whole[: len(whole) // 2], b"PK", (tmp_path / "array.npy").read_bytes()):
        (tmp_path / "b.npz").write_bytes(data)
        with pytest.raises(DataError, match=r"feature file .*b.npz cannot be read"):
            read_features(tmp_path / "b.npz")


def test_a_folder_is_extracted_once(folder: Path, extractor: SuperPoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = extract_folder(extractor, folder, out, batch=2)
    assert (report.extracted, report.kept, len(report.failed)) == (5, 0, 1)
    assert "extracted 5 images with 40 keypoints each; 0 had features; 1 skipped" in report.summary()
    assert_same(read_features(out / "sub" / "3.png.npz"), extractor.extract(read_image(folder / "sub" / "3.png")), 1e-4)
    (out / "0.png.npz").unlink()
    again = extract_folder(extractor, folder, out)
    assert (again.extracted, again.kept) == (1, 4)
    other = extractor.configured(ExtractorConfig(max_keypoints=41, detection_threshold=0.0))
    with pytest.raises(DataError, match=r"holds features made with max_keypoints = 40; got 41 \(give another --out\)"):
        extract_folder(other, folder, out)
    settings = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps({**settings, "precision": "int8"}))
    with pytest.raises(DataError, match=r"holds features made with precision = int8; got float32"):
        extract_folder(extractor, folder, out)
    del settings["precision"]  # as earlier versions wrote them
    (out / "settings.json").write_text(json.dumps(settings))
    assert extract_folder(extractor, folder, out).kept == 5
    (out / "settings.json").write_text("{")
    with pytest.raises(DataError, match=r"settings.json cannot be read"):
        extract_folder(extractor, folder, out)


def test_the_command_goes_on_after_kill_9(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(60):
        cv2.imwrite(str(folder / f"more{i}.png"), cv2.imread(str(folder / "0.png")))
    weights, out = tmp_path / "net.safetensors", tmp_path / "out"
    save_network(weights, unfolded("edge"))
    arguments = ["extract", str(folder), "--out", str(out), "--model", str(weights), "--device", "cpu"]
    arguments += ["--runtime", "torch", "--max-keypoints", "30"]
    running = subprocess.Popen([sys.executable, "-m", "frontend.cli.main", *arguments], cwd=ROOT)
    kill_when(running, lambda: len(list(out.rglob("*.npz"))) >= 5)
    before = len(list(out.rglob("*.npz")))
    assert 5 <= before < 65
    assert main(arguments) == 0
    assert f"{before} had features; 1 skipped as unreadable" in capsys.readouterr().out
    assert len(list(out.rglob("*.npz"))) == 65
    assert all(len(read_features(path)) == 30 for path in out.rglob("*.npz"))
    assert main([*arguments, "--out", str(weights)]) == 2
    expected = f"superpoint extract: {weights}: File exists, and is no folder; expected one"
    assert capsys.readouterr().err.splitlines()[-1] == expected
    assert main([*arguments, "--half"]) == 2
    assert "holds features made with half = False; got True" in capsys.readouterr().err


@pytest.mark.parametrize(("stage", "where"), [("forward", " at 128 x 128"), ("prepare", ""), ("imdecode", "")])
def test_an_image_without_memory_for_it_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, where: str
) -> None:
    extractor = SuperPoint(network("edge"), device="cpu")
    for name, size in (("a", 64), ("b", 128), ("c", 64)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((size, size), 90, np.uint8))
    forward, prepare, imdecode = SuperPoint.forward, SuperPoint.prepare, cv2.imdecode

    def forward_small(self: SuperPoint, batch: Batch) -> object:
        if batch.images.shape[-1] > 100:
            raise MemoryError
        return forward(self, batch)

    def prepare_small(self: SuperPoint, image: np.ndarray, **masks: None) -> object:
        if image.shape[1] > 100:
            raise MemoryError
        return prepare(self, image, **masks)

    def decode_small(data: np.ndarray, flags: int) -> np.ndarray:
        image = imdecode(data, flags)
        if image.shape[1] > 100:
            error = cv2.error("Failed to allocate 16384 bytes")
            error.code = -4  # cv2.Error.StsNoMem
            raise error
        return image

    if stage == "imdecode":
        monkeypatch.setattr(cv2, "imdecode", decode_small)
    else:
        monkeypatch.setattr(SuperPoint, stage, forward_small if stage == "forward" else prepare_small)
    found = list(extract_files(extractor, [tmp_path / f"{name}.png" for name in "abc"]))
    assert [type(result).__name__ for _, result in found] == ["Features", "ImageError", "Features"]
    assert str(found[1][1]).endswith(f"b.png: out of memory{where}; a smaller --resize needs less")


def test_a_batch_without_memory_for_it_is_taken_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = SuperPoint(network("edge"), device="cpu")
    paths = [tmp_path / f"{name}.png" for name in "abcde"]
    for path, size in zip(paths, (64, 64, 64, 64, 128), strict=True):
        cv2.imwrite(str(path), np.full((size, size), 90, np.uint8))
    sizes: list[int] = []
    forward = SuperPoint.forward

    def forward_few(self: SuperPoint, batch: Batch) -> object:
        sizes.append(len(batch.images))
        if len(batch.images) > 2 or batch.images.shape[-1] > 100:
            raise RuntimeError("Failed to allocate 2500000000 bytes of memory")
        return forward(self, batch)

    monkeypatch.setattr(SuperPoint, "forward", forward_few)
    found = list(extract_files(extractor, paths, batch=4))
    assert [path for path, _ in found] == paths
    assert [type(result).__name__ for _, result in found] == ["Features"] * 4 + ["ImageError"]
    assert str(found[4][1]).endswith("e.png: out of memory at 128 x 128; a smaller --resize needs less")
    assert sizes == [4, 1, 1, 1, 1, 1]


def test_another_error_while_an_image_is_prepared_is_not_hidden(
    folder: Path, extractor: SuperPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SuperPoint, image: np.ndarray, **masks: None) -> object:
        raise ZeroDivisionError

    monkeypatch.setattr(SuperPoint, "prepare", fail)
    with pytest.raises(ZeroDivisionError):
        list(extract_files(extractor, [folder / "0.png"]))


def stored(**other: np.ndarray | None) -> dict[str, np.ndarray]:
    """What a file of five keypoints holds, some of it replaced."""
    rng = np.random.default_rng(0)
    arrays = {
        "keypoints": rng.uniform(0, 60, (5, 2)).astype(np.float32),
        "scores": np.linspace(1, 0.1, 5, dtype=np.float32),
        "descriptors": np.eye(5, 16, dtype=np.float32),
        "sigmas": np.full(5, 0.5, np.float32),
        "image_size": np.array([64, 48], np.int32),
        "model": np.array("m"),
    }
    return {name: array for name, array in {**arrays, **other}.items() if array is not None}


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("keypoints", (5, 3), "(N, 2)"),
        ("keypoints", (5,), "(N, 2)"),
        ("scores", (30,), "(5,)"),
        ("scores", (5, 1), "(5,)"),
        ("descriptors", (30, 16), "(5, D)"),
        ("descriptors", (5,), "(5, D)"),
        ("sigmas", (4,), "(5,)"),
        ("image_size", (3,), "(2,)"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...], expected: str
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **stored(**{name: np.ones(shape, np.float16)}))
    with pytest.raises(DataError) as caught:
        read_features(path)
    assert str(caught.value) == f"feature file {path} has {name} of shape {shape}; expected {expected}"


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("keypoints", np.ones((5, 2), np.complex64), "keypoints of complex64; expected real numbers"),
        ("scores", np.zeros(5, "M8[s]"), r"scores of datetime64\[s\]; expected real numbers"),
        ("sigmas", np.ones(5, np.bool_), "sigmas of bool; expected real numbers"),
        ("descriptors", np.full((5, 16), "a"), "descriptors of <U1; expected real numbers"),
        *(
            ("image_size", np.array(size), "image_size .*; expected whole pixels, 1 or more")
            for size in ((-1, 160), (240.5, 160), (0, 160), (np.nan, 160), (240, np.inf))
        ),
    ],
)
def test_what_is_no_real_number_or_no_size_is_refused(tmp_path: Path, name: str, array: np.ndarray, said: str) -> None:
    np.savez(tmp_path / "a.npz", **stored(**{name: array}))
    with pytest.raises(DataError, match=said):
        read_features(tmp_path / "a.npz")


def test_a_number_beyond_float32_is_refused_without_a_warning(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **stored(scores=np.full(5, 1e300)))
    with pytest.raises(DataError, match="has 5 of 5 scores that are NaN or infinite"):
        read_features(tmp_path / "a.npz")


def test_a_path_may_be_text(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **stored())
    features = read_features(str(tmp_path / "a.npz"))
    write_features(str(tmp_path / "b.npz"), features)
    assert_same(read_features(str(tmp_path / "b.npz")), features)


@pytest.mark.parametrize("name", ["keypoints", "scores", "descriptors", "sigmas"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    path = tmp_path / "a.npz"
    array = stored()[name].astype(np.float32)
    array.flat[-1] = value
    np.savez(path, **stored(**{name: array}))
    with pytest.raises(DataError) as caught:
        read_features(path)
    given = f"feature file {path} has 1 of {array.size} {name} that are NaN or infinite"
    assert str(caught.value) == f"{given}; expected finite ones"


def test_numbers_of_any_width_become_float32(tmp_path: Path) -> None:
    expected = stored()
    other = {name: expected[name].astype(np.float64) for name in ("keypoints", "scores", "sigmas")}
    np.savez(tmp_path / "a.npz", **stored(**other))
    got = read_features(tmp_path / "a.npz")
    for name in other:
        assert getattr(got, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(got, name), expected[name])
    np.savez(tmp_path / "a.npz", **stored(sigmas=None))
    assert read_features(tmp_path / "a.npz").sigmas is None
