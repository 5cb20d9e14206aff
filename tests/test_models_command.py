"""``superpoint models``: what is released, and that each option of the commands tells its default."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_layout import loaded_by

from frontend.cli import match
from frontend.cli.main import build_parser, main
from frontend.weights import list_matchers, list_models

MANIFEST = """
[models.mine]
file = "mine.safetensors"
sha256 = "00"
version = "2.10"
encoder = "slim"
descriptor_dim = 96
licence = "MIT"
trained_on = "photographs of a garden"
rights = "the gardener's"
recipe = "train.sh"
int8 = "mine.onnx.gz"
int8_sha256 = "00"

[models.gone]
file = "gone.safetensors"
sha256 = "00"
version = "1"
encoder = "compact"
descriptor_dim = 128
licence = "Apache-2.0"
trained_on = "nothing"
recipe = "none"

[matchers.glue]
file = "glue.safetensors"
sha256 = "00"
version = "0.7"
features = "mine"
licence = "MIT"
trained_on = "features of mine"
recipe = "train.sh"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPERPOINT_WEIGHTS_DIR", str(tmp_path))
    (tmp_path / "manifest.toml").write_text(MANIFEST)
    (tmp_path / "mine.safetensors").write_bytes(bytes(1_260_000))
    (tmp_path / "glue.safetensors").write_bytes(bytes(300))
    return tmp_path


def test_a_table_of_what_the_manifest_states(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        ["model", "version", "encoder", "descriptors", "int8", "MB", "licence", "rights in its images"],
        ["mine", "2.10", "slim", "96-d", "yes", "1.26", "MIT", "the gardener's"],
        ["gone", "1", "compact", "128-d", "no", "missing", "Apache-2.0", "not stated"],
        [],
        ["matcher", "version", "of features of", "MB", "licence", "rights in its images"],
        ["glue", "0.7", "mine", "0.00", "MIT", "not stated"],
    ]


def test_json_of_what_the_manifest_states(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    mine, gone, glue = json.loads(capsys.readouterr().out)
    assert mine == {
        "kind": "model",
        "name": "mine",
        "version": "2.10",
        "encoder": "slim",
        "descriptor_dim": 96,
        "int8": True,
        "path": str(folder / "mine.safetensors"),
        "bytes": 1_260_000,
        "sha256": "00",
        "licence": "MIT",
        "trained_on": "photographs of a garden",
        "rights": "the gardener's",
        "recipe": "train.sh",
    }
    assert (gone["bytes"], gone["int8"], gone["rights"]) == (None, False, "")
    assert set(glue) == {*mine, "features"} - {"encoder", "descriptor_dim", "int8"}
    assert (glue["kind"], glue["features"]) == ("matcher", "mine")


def test_a_bad_manifest_is_told_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, part in (
        (MANIFEST.replace('version = "0.7"', ""), "malformed: 'glue': there is no 'version'"),
        (MANIFEST.replace('"the gardener\'s"', "1"), "malformed: 'mine': rights is 1; expected text in quotes"),
        ("models", "malformed"),
    ):
        (folder / "manifest.toml").write_text(text)
        assert main(["models"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("superpoint models: weights manifest ")
        assert part in err
        assert err.count("\n") == 1


def test_without_a_release_the_tables_are_empty(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "manifest.toml").write_text("")
    assert main(["models"]) == 0
    assert capsys.readouterr().out == "no model is released\n"
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_what_is_released(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("SUPERPOINT_WEIGHTS_DIR", raising=False)
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    for name, info in {**list_models(), **list_matchers()}.items():
        (line,) = (line for line in printed.splitlines() if line.startswith(f"{name} "))
        assert info.version in line
        # who owns the images is also told in full
        assert info.rights in line
        assert info.rights == ("this project's" if "no rights of others" in info.trained_on else "photographers'")


def test_nothing_heavy_is_loaded() -> None:
    loaded = loaded_by(
        "import contextlib, io\nfrom frontend.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n    assert main(['models']) == 0"
    )
    assert "frontend.weights" in loaded
    assert not loaded & {"torch", "cv2", "numpy", "safetensors"}


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Those of a command and of all below it, each with the command's name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from options(below)
        elif action.option_strings:
            yield parser.prog, action


def test_options_tell_their_defaults() -> None:
    given = [
        (f"{command} {action.option_strings[0]}", action.help or "")
        for parser in (build_parser(), match.build_parser())
        for command, action in options(parser)
        if action.default not in (None, False, argparse.SUPPRESS)
    ]
    assert len(given) > 30
    assert [name for name, told in given if "(default: " not in told and "[%(default)s]" not in told] == []
