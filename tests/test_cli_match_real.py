"""``superpoint-match`` for real, with an untrained network, and as a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from frontend.cli.match import main
from frontend.image import read_image
from frontend.model import SuperPointNet
from frontend.weights import save_network

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "frontend.cli.match")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def told(err: str) -> list[str]:
    """Lines on stderr, without the one of the first run with a network."""
    return [line for line in err.splitlines() if not line.startswith("superpoint-match: preparing ")]


def refused(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that has to fail on its input; return the one line that it prints."""
    assert run(*arguments) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    (line,) = told(printed.err)
    assert line.startswith("superpoint-match: ")
    return line


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder with a manifest and one untrained network, right and with a wrong checksum."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    network = SuperPointNet()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):  # torch's own initialisation fades: all descriptors would be one
            torch.nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    save_network(folder / "untrained.safetensors", network)
    digest = hashlib.sha256((folder / "untrained.safetensors").read_bytes()).hexdigest()
    entries = []
    for name, checksum in (("untrained", digest), ("forged", "0" * 64)):
        entries.append(
            f'[models.{name}]\nfile = "untrained.safetensors"\nsha256 = "{checksum}"\nencoder = "compact"\n'
            'version = "1.2"\ndescriptor_dim = 128\nlicence = "Apache-2.0"\ntrained_on = "nothing"\nrecipe = "none"\n'
        )
    (folder / "manifest.toml").write_text("\n".join(entries))
    return folder


@pytest.fixture
def real(released: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPERPOINT_WEIGHTS_DIR", str(released))
    return released


def test_real_match_of_an_image_with_itself(
    real: Path, tmp_path: Path, make_scene, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), make_scene(120, 160))
    flags = ("--model", "untrained", "--device", "cpu", "--max-keypoints", "200")
    assert run(path, path, *flags, "--json", "-", "-o", tmp_path / "o.png") == 0
    document = json.loads(capfd.readouterr().out)
    assert document["model"] == "untrained"
    assert document["image0"]["num_keypoints"] > 50
    np.testing.assert_allclose(document["homography"], np.eye(3), atol=1e-3)
    assert all(i == j for i, j in document["matches"])
    assert read_image(tmp_path / "o.png").shape[1] == 328


def test_real_many_and_path_as_model(real: Path, tmp_path: Path, make_scene, capfd: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        (tmp_path / "many").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "many" / f"{seed}.png"), make_scene(120, 160, seed))
    cv2.imwrite(str(tmp_path / "q.png"), make_scene(120, 160, 1))
    flags = ("--model", real / "untrained.safetensors", "--max-keypoints", "200")
    assert run(tmp_path / "q.png", tmp_path / "many", *flags) == 0
    assert capfd.readouterr().out.splitlines()[1].endswith("1.png")


@pytest.mark.parametrize("kind", ["tiny", "black"])
def test_honest_no_match(real: Path, tmp_path: Path, make_scene, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    image = {"tiny": make_scene(16, 16), "black": np.zeros((120, 160), np.uint8)}[kind]
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image)
    flags = ("--model", "untrained", "-o", tmp_path / "o.png", "--warp", tmp_path / "w.png")
    assert run(path, path, *flags) == 3
    out, err = capfd.readouterr()
    assert told(err) == []
    assert "no homography found" in out
    assert out.endswith("no overlay: no homography\n")
    assert (tmp_path / "o.png").exists()
    assert not (tmp_path / "w.png").exists()


def test_bad_models_matchers_and_devices(
    real: Path, tmp_path: Path, make_scene, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), make_scene(64, 64))
    assert "unknown model 'nosuch'" in refused(capfd, path, path, "--model", "nosuch")
    assert "sha256" in refused(capfd, path, path, "--model", "forged")
    whole = (real / "untrained.safetensors").read_bytes()
    for name, data in (
        ("cut.safetensors", whole[: len(whole) // 2]),
        ("noise.safetensors", bytes(range(256)) * 9),
        ("noise.pth", bytes(range(256)) * 9),
        ("empty.pth", b""),
    ):
        (tmp_path / name).write_bytes(data)
        assert str(tmp_path / name) in refused(capfd, path, path, "--model", tmp_path / name)
    assert "matcher" in refused(capfd, path, path, "--model", "untrained", "--matcher", "nosuch")
    missing = f"cuda:{torch.cuda.device_count() if torch.cuda.is_available() else 0}"
    assert missing in refused(capfd, path, path, "--model", "untrained", "--device", missing)


# ---- with the released weights -----------------------------------------------------------------------------------

needs_weights = pytest.mark.skipif(
    not (ROOT / "weights" / "superpoint-edge.safetensors").exists(), reason="no weights are released yet"
)
SAMPLES = ROOT / "frontend" / "samples"
SAMPLE_H = np.array(  # frontend/samples/README.md
    [[1.073304145, 0.183825572, -100.582237055], [-0.111314463, 1.143113907, -1.190208487], [-5.8413e-5, 1.50968e-4, 1]]
)


@needs_weights
def test_sample_pair_is_matched_where_it_should_be(tmp_path: Path) -> None:
    names = (SAMPLES / "rocket_0.jpg", SAMPLES / "rocket_1.jpg")
    assert run(*names, "--json", tmp_path / "r.json", "-o", tmp_path / "o.png") == 0
    document = json.loads((tmp_path / "r.json").read_text())
    corners = np.array([[[0, 0], [639, 0], [639, 426], [0, 426]]], np.float64)
    expected, found = (cv2.perspectiveTransform(corners, np.array(H)) for H in (SAMPLE_H, document["homography"]))
    assert np.linalg.norm(expected - found, axis=2).mean() < 3
    assert sum(document["inliers"]) > 50


@needs_weights
@pytest.mark.parametrize("other", ["astronaut", "coffee", "brick", "chelsea"])
def test_unrelated_photographs_do_not_match(tmp_path: Path, other: str, capfd: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "b.png"), getattr(skimage.data, other)())
    assert run(SAMPLES / "rocket_0.jpg", tmp_path / "b.png") == 3
    assert "no homography found" in capfd.readouterr().out


@needs_weights
def test_tiny_and_black_images_do_not_match(tmp_path: Path, make_scene) -> None:
    for name, image in (("tiny", make_scene(16, 16)), ("black", np.zeros((480, 640), np.uint8))):
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), image)
        assert run(path, path) == 3


# ---- the process -------------------------------------------------------------------------------------------------


def test_help_answers_at_once() -> None:
    """It imports nothing that takes long."""
    script = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
    script += "from frontend.cli.match import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "exit codes" in done.stdout
    imported = set(done.stderr.split())
    assert "frontend.cli.match" in imported
    assert not imported & {"torch", "cv2", "numpy", "numba", "onnxruntime", "openvino"}


def test_closed_pipe_is_no_error(real: Path, tmp_path: Path, make_scene) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), make_scene(120, 160))
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, str(path), str(path), "--model", "untrained", "--json", "-"],
        cwd=ROOT,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_in_one_line(real: Path, tmp_path: Path, make_scene) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for seed in range(400):
        cv2.imwrite(str(many / f"{seed}.png"), make_scene(240, 320, seed % 3))
    process = subprocess.Popen(
        [*COMMAND, str(many / "0.png"), str(many), "--model", "untrained", "-o", str(tmp_path / "out")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a test run in the background inherits "ignore"
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and len(list((tmp_path / "out").glob("*.png"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told(err) == ["superpoint-match: interrupted"]
    # what was done by then is not lost
    assert 0 < len(out.splitlines()) - 1 <= len(list((tmp_path / "out").iterdir())) < 400
    for picture in (tmp_path / "out").iterdir():
        assert picture.suffix == ".png"
        read_image(picture)  # whole, every one
