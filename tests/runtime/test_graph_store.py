"""Exported graphs in the cache: keyed by the weights, whole or not there, and used without torch."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from runtime_networks import unfolded

from frontend.errors import ConfigError, WeightsError
from frontend.model import SuperPointNet
from frontend.runtime import load_runtime, parity, select, store
from frontend.weights import load_network, save_network, sha256_of

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weight file, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_network(tmp_path / "net.safetensors", unfolded("edge"))
    return tmp_path / "net.safetensors"


def no_export(_: object) -> store.Graphs:
    raise AssertionError("exported again")


def test_a_second_load_exports_nothing(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_runtime(weights, "onnxruntime")
    folder = store.folder_of(sha256_of(weights))
    assert folder.is_relative_to(weights.parent / "cache" / "superpoint-frontend")
    monkeypatch.setattr(select, "export", no_export)
    given = np.full((1, 1, 16, 24), 0.5, np.float32)
    a, b = (load_runtime(weights, name, "float32").dense(given) for name in ("onnxruntime", "openvino"))
    np.testing.assert_allclose(a.heat, b.heat, atol=1e-5)
    # other weights have other graphs
    save_network(weights, unfolded("edge-dense"))
    with pytest.raises(AssertionError, match="exported again"):
        load_runtime(weights, "onnxruntime")


def test_what_ncnn_loads_is_added_to_the_graphs_at_hand(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_runtime(weights, "onnxruntime")
    digest = sha256_of(weights)
    before = store.load(digest)
    assert before is not None
    assert "ncnn-bin" not in before.files
    load_runtime(weights, "ncnn")
    after = store.load(digest)
    assert after is not None
    assert set(after.files) == {*before.files, "ncnn-param", "ncnn-bin"}
    assert all(after.files[name] == data for name, data in before.files.items())
    monkeypatch.setattr("frontend.runtime.ncnn_graph.export_ncnn", no_export)
    assert load_runtime(weights, "ncnn").name == "ncnn"


def test_graphs_that_came_with_the_package(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container: nothing is exported, what is fastest is noted in the cache, and the cache comes first."""
    digest = sha256_of(weights)
    shipped = tmp_path / "package"
    monkeypatch.setattr(store, "SHIPPED", shipped)
    made = select.export(load_network(weights)[1])
    assert store.save(digest, made, shipped)
    monkeypatch.setattr(select, "export", no_export)
    monkeypatch.setattr(select, "available_runtimes", lambda: ("openvino", "onnxruntime"))
    chosen = load_runtime(weights)
    folder = store.folder_of(digest)
    assert [path.name.partition("-")[0] for path in folder.iterdir()] == ["fastest"]
    monkeypatch.setattr(select, "_timed", no_export)
    again = load_runtime(weights)
    assert (again.name, again.precision) == (chosen.name, chosen.precision)

    assert store.save(digest, dataclasses.replace(made, files={**made.files, "dense-int8": b"calibrated here"}))
    found = store.load(digest)
    assert found is not None
    assert "dense-int8" in found.files


def test_what_another_process_has_added_stays(weights: Path) -> None:
    digest = sha256_of(weights)
    made = select.export(load_network(weights)[1])
    mine = dataclasses.replace(made, files={**made.files, "dense-int8": b"calibrated long ago"})
    assert store.save(digest, mine)
    # while this one converts, another one calibrates, and this one knows of it as little as of what came before
    assert store.save(digest, dataclasses.replace(made, files={**made.files, "dense-int8": b"calibrated now"}))
    for loaded in (mine, made):
        converted = dataclasses.replace(loaded, files={**loaded.files, "ncnn-bin": b"converted"})
        assert store.save(digest, converted, new=("ncnn-bin",))
        found = store.load(digest)
        assert found is not None
        assert found.files == {**made.files, "dense-int8": b"calibrated now", "ncnn-bin": b"converted"}


def test_processes_that_save_at_the_same_time_lose_nothing(weights: Path) -> None:
    digest = sha256_of(weights)
    made = select.export(load_network(weights)[1])
    assert store.save(digest, made)
    code = (
        "import dataclasses, sys\nfrom frontend.runtime import store\n"
        f"made = store.load({digest!r})\nprint('loaded', flush=True)\nsys.stdin.readline()\n"
        "for n in range(20):\n    name = f'graph-{sys.argv[1]}-{n}'\n"
        f"    assert store.save({digest!r}, dataclasses.replace(made, files={{**made.files, name: b'a'}}), new=(name,))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(k)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for k in range(3)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loaded\n"
        process.stdout.close()
    for process in running:
        assert process.stdin is not None
        process.stdin.close()  # all at once
    assert [process.wait(200) for process in running] == [0, 0, 0]
    found = store.load(digest)
    assert found is not None
    assert {name for name in found.files if name.startswith("graph")} == {
        f"graph-{k}-{n}" for k in range(3) for n in range(20)
    }


def test_graphs_of_a_file_that_is_replaced_meanwhile_are_not_kept(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a training does that writes its weights while they are loaded."""
    digest = sha256_of(weights)

    def load_what_came_instead(source: Path) -> tuple[str, SuperPointNet]:
        save_network(weights, unfolded("edge-dense"))
        return load_network(source)

    monkeypatch.setattr(select, "load_network", load_what_came_instead)
    assert load_runtime(weights, "onnxruntime").info.patch == 0
    assert store.load(digest) is None


@pytest.mark.parametrize("damage", ["cut", "swapped", "missing", "index", "empty index", "other index"])
def test_damaged_graphs_are_made_again(weights: Path, damage: str) -> None:
    load_runtime(weights, "onnxruntime")
    digest = sha256_of(weights)
    folder = store.folder_of(digest)
    index = json.loads((folder / "index.json").read_text())
    dense = folder / index["files"]["dense"]["file"]
    if damage == "cut":
        dense.write_bytes(dense.read_bytes()[:1000])
    elif damage == "swapped":
        dense.write_bytes((folder / index["files"]["refine"]["file"]).read_bytes())
    elif damage == "missing":
        dense.unlink()
    else:
        (folder / "index.json").write_text({"index": "{", "empty index": "", "other index": '{"files": []}'}[damage])
    assert store.load(digest) is None
    load_runtime(weights, "onnxruntime")
    assert store.load(digest) is not None
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_a_cache_that_cannot_be_written_stops_nothing_and_is_told_of(
    weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = weights.parent / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert load_runtime(weights, "openvino").name == "openvino"
    (line,) = caplog.messages
    assert "cannot be kept in " + str(blocked) in line


@pytest.mark.parametrize(("wrong", "precision"), [("precision", "fp16"), ("file", "auto")])
def test_what_is_refused_is_not_prepared_for(
    weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrong: str, precision: str
) -> None:
    monkeypatch.setattr(select, "precisions_of", lambda _: ("float32",))
    monkeypatch.setattr(select, "export", no_export)
    caplog.set_level(logging.INFO, "superpoint")
    if wrong == "file":
        weights.write_bytes(b"no weights")
    with pytest.raises((ConfigError, WeightsError), match=r"^precision is 'fp16'; |are corrupt"):
        load_runtime(weights, "auto", precision)
    assert caplog.messages == []


@pytest.mark.parametrize("runtime", ["onnxruntime", "auto"])
def test_seconds_of_preparation_are_told_of_once(
    weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, runtime: str
) -> None:
    monkeypatch.setattr(parity, "TRIAL", (64, 96))
    caplog.set_level(logging.INFO, "superpoint")
    load_runtime(weights, runtime)
    assert caplog.messages == [f"preparing {weights.stem} for this machine, once"]
    load_runtime(weights, runtime)
    assert len(caplog.messages) == 1
    load_runtime(weights, "torch")
    assert len(caplog.messages) == 1


def test_a_note_of_what_is_fastest_may_be_damaged(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "TRIAL", (64, 96))
    first = load_runtime(weights)
    folder = store.folder_of(sha256_of(weights))
    (note,) = folder.glob("fastest-*.json")
    assert json.loads(note.read_text())["order"][0] == [first.name, first.precision]
    note.write_text('{"order": [["torch", "float32"]]}')
    assert load_runtime(weights).name == "torch"
    for text in ("[", "[]", '{"order": 3}', '{"order": [["onnxruntime"]]}'):
        note.write_text(text)
        assert select._remembered(sha256_of(weights), note.stem) == []
    note.write_text('{"order": [["what", "float32"], ["onnxruntime", "float32"]]}')
    assert load_runtime(weights).name == "onnxruntime"


def test_processes_that_export_at_the_same_time_leave_whole_graphs(weights: Path) -> None:
    code = f"from frontend.runtime import load_runtime\nload_runtime({str(weights)!r}, 'onnxruntime')"
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    assert [process.wait(200) for process in running] == [0, 0]
    assert store.load(sha256_of(weights)) is not None


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "ncnn"])
def test_the_command_line_loads_no_torch_with_a_graph_at_hand(weights: Path, name: str, make_scene) -> None:
    load_runtime(weights, name)
    cv2.imwrite(str(weights.parent / "a.png"), make_scene(120, 160))
    image = str(weights.parent / "a.png")
    arguments = [image, image, "--model", str(weights), "--device", "cpu", "--runtime", name]
    code = (
        "import sys\nfrom frontend.cli.match import main\n"
        f"code = main({arguments!r})\nassert 'torch' not in sys.modules\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr
    assert "keypoints" in done.stdout
