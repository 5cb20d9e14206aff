"""What both commands do with their streams, and with what ends them: one line, and an exit code."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from frontend.cli import extract
from frontend.cli.console import run_command
from frontend.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
PATHS = os.pathsep.join((str(ROOT), str(ROOT / "tests")))


def process(script: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, for which the tests' stand-ins can be imported; its output as text."""
    variables = {**os.environ, "PYTHONPATH": PATHS, **options.pop("variables", {})}  # type: ignore[dict-item]
    return subprocess.run(
        [sys.executable, "-c", script],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "check": False, **options},  # type: ignore[call-overload]
        env=variables,
    )


def matching(*arguments: object) -> str:
    """A script that matches with the stand-in of match_standins.py."""
    return (
        "import sys, match_standins as tests; from frontend.cli import match\n"
        "match._load = lambda args, brief: tests.FakePipeline(args.geometry)\n"
        f"sys.exit(match.main({[str(argument) for argument in arguments]}))"
    )


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "many" / f"{name}.png" for name in "abc"]
    paths[0].parent.mkdir()
    for path in paths:
        cv2.imwrite(str(path), np.full((30, 40, 3), 60, np.uint8))
    return paths


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ([], "superpoint"),
        (["nosuch"], "superpoint"),
        (["match", "a.jpg", "b.jpg"], "superpoint"),
        (["extract"], "superpoint extract"),
        (["extract", "images", "--out", "out", "--batch", "many"], "superpoint extract"),
        (["train", "superpoint", "--out"], "superpoint train superpoint"),
        (["eval", "homography", "photos", "--kind", "other"], "superpoint eval homography"),
        (["serve", "--port", "http"], "superpoint serve"),
        (["bench", "--nosuch"], "superpoint"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{command}: ")
    assert err.endswith(f" (see {command} --help)\n")
    assert err.count("\n") == 1


def test_the_command_for_images_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["match", "a.jpg", "b.jpg"])
    told = capsys.readouterr().err
    assert "superpoint-match IMG0 IMG1" in told
    assert "superpoint match-features" in told


def test_a_lack_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise MemoryError

    monkeypatch.setattr(extract, "_run", fail)
    assert main(["extract", "images", "--out", "out"]) == 2
    assert capsys.readouterr().err == "superpoint extract: out of memory; smaller images or batches need less\n"


def test_errors_of_several_lines_are_one(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise OSError("Exception from core:\n   in a  b.png:\n")

    assert run_command("command", fail) == 2
    assert capsys.readouterr().err == "command: Exception from core: in a  b.png:\n"


def test_a_file_where_a_folder_should_be_is_told_with_what_was_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").touch()
    assert run_command("command", lambda: (tmp_path / "a").mkdir(exist_ok=True) or 0) == 2
    assert capsys.readouterr().err == f"command: {tmp_path / 'a'}: File exists, and is no folder; expected one\n"


def test_what_the_library_has_to_say_is_a_line_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("superpoint")
    before = (log.level, list(log.handlers))

    def work() -> int:
        log.info("preparing %s for this machine, once", "superpoint-edge")
        return 0

    assert run_command("superpoint-match", work) == 0
    assert capsys.readouterr().err == "superpoint-match: preparing superpoint-edge for this machine, once\n"
    assert (log.level, log.handlers) == before


# ---- streams that are closed, have no reader, or lack characters ------------------------------------------------


@pytest.mark.parametrize("closed", [1, 2])
def test_closed_streams_end_no_work(images: list[Path], tmp_path: Path, closed: int) -> None:
    script = matching(*images[:2], "--json", tmp_path / "r.json")
    done = process(script, preexec_fn=lambda: os.close(closed), stdout=None if closed == 1 else subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "r.json").exists()
    refused = process(matching("missing.png", images[0]), preexec_fn=lambda: os.close(closed))
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr


def test_superpoint_with_closed_streams(images: list[Path], tmp_path: Path) -> None:
    arguments = ["eval", "homography", str(images[0].parent), "--methods", "orb", "--json", str(tmp_path / "r.json")]
    script = f"import sys; from frontend.cli.main import main; sys.exit(main({arguments}))"
    done = process(script, preexec_fn=lambda: (os.close(1), os.close(2)))
    assert done.returncode == 0
    assert (tmp_path / "r.json").exists()


@pytest.mark.parametrize("gone", ["stdout", "stderr"])
def test_readers_that_have_gone_end_no_work(images: list[Path], tmp_path: Path, gone: str) -> None:
    """With a bar that is shown at each image, and an image that is skipped."""
    images[1].write_bytes(b"no picture")
    for name in "defg":
        images.append(tmp_path / "many" / f"{name}.png")
        images[-1].write_bytes(images[0].read_bytes())
    script = "from frontend import progress; progress.Progress.__init__.__kwdefaults__['interval_s'] = 0.0\n"
    script += matching(images[0], images[0].parent, "-o", tmp_path / "out", "--json", tmp_path / "r.json")
    reading, writing = os.pipe()
    os.close(reading)
    done = process(script, **{gone: writing})
    os.close(writing)
    assert done.returncode == 0
    assert not done.stderr or "Broken" not in done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 5
    assert (tmp_path / "r.json").exists()


@pytest.mark.parametrize("lines", [1, 10_000])
def test_superpoint_without_a_reader_is_141(lines: int) -> None:
    script = "import argparse, sys; from frontend.cli import encoders, main\n"
    script += f"encoders._run = lambda args: [print('a line') for _ in range({lines})] and 0\n"
    script += "sys.exit(main.main(['encoders']))"
    reading, writing = os.pipe()
    os.close(reading)
    done = process(script, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("command", ["match", "superpoint"])
def test_a_full_disk_behind_stdout_is_told_as_that(images: list[Path], command: str) -> None:
    script = "import sys; from frontend.cli.main import main; sys.exit(main(['encoders']))"
    if command == "match":
        script = matching(*images[:2], "--json", "-")
    with open("/dev/full", "w") as full:
        done = process(script, stdout=full)
    name = {"match": "superpoint-match", "superpoint": "superpoint encoders"}[command]
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"{name}: standard output: No space left on device"
    assert "Traceback" not in done.stderr


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path: Path) -> None:
    out = tmp_path / "é.safetensors"
    arguments = ["export", "--model", "superpoint-slim", "--format", "weights-float16", "--out", str(out)]
    script = f"import sys; from frontend.cli.main import main; sys.exit(main({arguments}))"
    done = process(script, variables={"PYTHONIOENCODING": "ascii:strict"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {tmp_path}/\\xe9.safetensors\n"
    assert out.exists()
