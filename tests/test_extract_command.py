"""``superpoint extract``: what a folder of features was begun with, and how it goes on."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
from runtime_networks import network, unfolded

from frontend.cli.main import main
from frontend.errors import ConfigError, DataError
from frontend.extractor import SuperPoint
from frontend.folders import check_settings
from frontend.terminal import own_stderr
from frontend.weights import save_network

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def images(tmp_path: Path, make_scene) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.jpg"), make_scene(64, 96, i))
    return folder


@pytest.fixture
def command(images: Path, tmp_path: Path) -> list[str]:
    """Extracts those images by an untrained network to the folder "out"."""
    save_network(tmp_path / "net.safetensors", unfolded("edge"))
    flags = ["--device", "cpu", "--max-keypoints", "30"]
    return [
        "extract",
        str(images),
        "--out",
        str(tmp_path / "out"),
        "--model",
        str(tmp_path / "net.safetensors"),
        *flags,
    ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The precisions that extractors are asked for; "int8" is not to be had."""
    precisions: list[str] = []

    def pretend(model: str, *, config: Any, precision: str, **_: str) -> SuperPoint:
        precisions.append(precision)
        if precision == "int8":
            raise ConfigError("precision is 'int8'; expected one of: float32")
        return SuperPoint(network("edge"), device="cpu", config=config)

    monkeypatch.setattr(SuperPoint, "from_pretrained", pretend)
    return precisions


def change(settings: Path, **values: object) -> None:
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **values}))


def test_auto_goes_on_with_the_precision_that_was_recorded(
    command: list[str], tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    assert main(command) == 0
    assert asked == ["auto", "float32"]
    settings = tmp_path / "out" / "settings.json"
    change(settings, precision="int8")
    capsys.readouterr()
    assert main(command) == 2
    assert capsys.readouterr().err == (
        f"superpoint extract: precision is 'int8'; expected one of: float32 ({tmp_path}/out holds features made with "
        "precision = int8; give another --out where that is not to be had)\n"
    )
    assert main([*command, "--precision", "float32"]) == 2
    assert "made with precision = int8; got float32" in capsys.readouterr().err
    old = json.loads(settings.read_text())
    del old["precision"]  # as earlier versions wrote them
    settings.write_text(json.dumps(old))
    assert main(command) == 0
    assert asked == ["auto", "float32", "int8", "float32", "auto"]


def test_a_record_of_nothing_binds_nobody(
    command: list[str], tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that another command has left, which was refused for another reason."""
    assert main([*command, "--batch", "0"]) == 2
    assert "batch is 0; expected 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "out" / "settings.json").exists()
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "settings.json").write_text(json.dumps({"half": False, "precision": "int8"}))
    assert main([*command, "--half"]) == 0
    assert asked[-1] == "auto"
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["half"] is True


def test_settings_are_those_of_what_the_folder_holds(tmp_path: Path) -> None:
    check_settings(tmp_path, {"k": 1}, "things")
    (tmp_path / ".12-ab.tmp").write_text("left by a process that was killed")
    (tmp_path / "sub").mkdir()
    check_settings(tmp_path, {"k": 2}, "things")
    (tmp_path / "sub" / "thing").write_text("")
    check_settings(tmp_path, {"k": 2}, "things")
    with pytest.raises(DataError, match=r"holds things made with k = 2; got 3 \(give another --out\)"):
        check_settings(tmp_path, {"k": 3}, "things")


def damage(path: Path) -> None:
    """Change some of a JPEG's coded pixels; libjpeg then says so."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(range(1, 41))
    path.write_bytes(data)


def test_damaged_images_are_named_and_counted(images: Path, command: list[str], tmp_path: Path) -> None:
    """In a process of its own, whose stderr is what libjpeg writes to."""
    damage(images / "1.jpg")
    (images / "3.png").write_bytes(b"no image")
    done = subprocess.run(
        [sys.executable, "-m", "frontend.cli.main", *command, "--runtime", "torch"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # on a slow machine the bar is shown, too
    first, second = (line for line in done.stderr.splitlines() if not line.startswith("extract ["))
    assert first.startswith(f"damaged: {images}/1.jpg: ")
    assert "JPEG" in first
    assert second == f"skipped: {images}/3.png: is not an image in a format that OpenCV reads"
    assert done.stdout.endswith("; 0 had features; 1 skipped as unreadable; parts of 1 are damaged\n")
    assert (tmp_path / "out" / "1.jpg.npz").exists()


def test_the_bar_and_warnings_are_seen_while_decoders_are_kept_quiet(tmp_path: Path) -> None:
    """What Python writes in one thread, while another thread holds the file descriptor of stderr aside."""
    script = (
        "import os, sys, threading\n"
        "from frontend.image import quiet_decoders\n"
        "from frontend.terminal import own_stderr\n"
        "before, inside, over = sys.stderr, threading.Event(), threading.Event()\n"
        "def read():\n"
        "    with quiet_decoders() as damage:\n"
        "        os.write(2, b'Corrupt JPEG data\\n')\n"
        "        inside.set(); over.wait()\n"
        "    print(damage)\n"
        "with own_stderr():\n"
        "    thread = threading.Thread(target=read); thread.start(); inside.wait()\n"
        "    print('a line', file=sys.stderr)\n"
        "    over.set(); thread.join()\n"
        "assert sys.stderr is before\n"
        "print('the end', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("['Corrupt JPEG data']\n", "a line\nthe end\n")


def test_a_stderr_that_is_no_file_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        with own_stderr():
            assert sys.stderr is stream
