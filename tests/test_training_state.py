"""State of a training that is carried: to other folders, compact, and what is no such state."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from processes import kill_when, start_python
from safetensors.torch import load_file
from training_machine import EXACT, PAIRS, differing, pairs_command, single_thread, step_of, trainer, write_photographs

from frontend.cli.main import main
from frontend.errors import DataError
from frontend.model import MODEL_PRESETS, SuperPointNet
from frontend.training.state import export_state, import_state, read_checkpoint
from frontend.training.trainer import Trainer
from frontend.weights import save_network


@pytest.fixture(autouse=True)
def _single_threaded() -> Iterator[None]:
    with single_thread():
        yield


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("data"))


def test_a_run_is_carried_to_another_folder_with_the_data_elsewhere(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*PAIRS, *EXACT, "--ema", "0.9"]
    assert main(pairs_command(photographs, tmp_path / "whole", *settings)) == 0
    first = pairs_command(photographs, tmp_path / "here", *settings, "--checkpoint-seconds", "0")
    kill_when(start_python("-m", "frontend.cli.main", *first), lambda: step_of(tmp_path / "here") >= 3)
    assert 3 <= step_of(tmp_path / "here") < 8

    file = tmp_path / "run.state"
    assert main(["state", "export", str(tmp_path / "here"), "--out", str(file)]) == 0
    elsewhere = tmp_path / "other machine"
    shutil.copytree(photographs / "images", elsewhere / "images")
    shutil.copytree(photographs / "labels", elsewhere / "labels")
    assert main(["state", "import", str(file), "--out", str(elsewhere / "run")]) == 0
    again = pairs_command(elsewhere, elsewhere / "run", "--config", str(elsewhere / "run" / "settings.toml"))
    assert main([*again, "--device", "cpu", "--workers", "0"]) == 0
    whole, carried = (load_file(run / "superpoint.safetensors") for run in (tmp_path / "whole", elsewhere / "run"))
    assert differing(whole, carried) == []

    capsys.readouterr()
    assert main(["state", "import", str(file), "--out", str(elsewhere / "run")]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main(["state", "import", str(file), "--out", str(elsewhere / "third")]) == 0
    image = sorted((elsewhere / "images").iterdir())[4]
    cv2.imwrite(str(image), 255 - cv2.imread(str(image), cv2.IMREAD_UNCHANGED))
    again[again.index(str(elsewhere / "run"))] = str(elsewhere / "third")
    assert main([*again, "--device", "cpu", "--workers", "0"]) == 2
    assert "was trained on data with checksum" in capsys.readouterr().err


@pytest.mark.parametrize("begun_with", ["init", "refiner"])
def test_a_run_goes_on_without_the_weights_that_it_began_with(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], begun_with: str
) -> None:
    """Also one that named its network besides, as the released recipes do."""
    torch.manual_seed(0)
    small = replace(MODEL_PRESETS["vgg-refined"], encoder="vgg(channels=[8,8,8,16])")
    save_network(tmp_path / "began.safetensors", SuperPointNet(small))
    base = [*PAIRS, *EXACT]
    base[base.index("--model") + 1] = "vgg" if begun_with == "refiner" else "vgg-refined"
    out = tmp_path / "run"
    began = pairs_command(photographs, out, *base, f"--{begun_with}", str(tmp_path / "began.safetensors"))
    assert main([*began, "--stop", "2"]) == 0
    file = tmp_path / "run.state"
    assert main(["state", "export", str(out), "--out", str(file)]) == 0
    assert main(["state", "import", str(file), "--out", str(tmp_path / "there")]) == 0
    (tmp_path / "began.safetensors").unlink()
    there = tmp_path / "there"
    again = pairs_command(photographs, there, "--config", str(there / "settings.toml"), "--device", "cpu")
    assert main([*again, "--workers", "0"]) == 0
    assert step_of(there) == 8  # where it was to stop stays behind
    capsys.readouterr()
    assert main([*again, "--workers", "0", "--model", "edge", "--encoder", "compact"]) == 2
    assert "was trained with model = " in capsys.readouterr().err


def test_a_run_keeps_to_where_its_views_are_made(photographs: Path, tmp_path: Path) -> None:
    command = pairs_command(photographs, tmp_path / "run", *PAIRS, *EXACT, "--stop", "1", "--device-augment", "on")
    assert main(command) == 0
    command[command.index("on")] = "auto"  # which is off on a CPU, for a run that begins there
    assert main(command) == 0


def test_compact_states_are_smaller_and_nearly_exact(tmp_path: Path) -> None:
    trainer(tmp_path / "run", ema=0.9).run()
    exact, compact = tmp_path / "exact", tmp_path / "compact"
    sizes = [export_state(tmp_path / "run", exact), export_state(tmp_path / "run", compact, compact=True)]
    assert sizes == [exact.stat().st_size, compact.stat().st_size]
    state = read_checkpoint(tmp_path / "run")
    values = sum(tensor.numel() for tensor in state["network"].values())
    assert sizes[0] > 15 * values
    assert sizes[1] < 10 * values + 30_000
    import_state(exact, tmp_path / "a")
    import_state(compact, tmp_path / "b")
    a, b = read_checkpoint(tmp_path / "a"), read_checkpoint(tmp_path / "b")
    for other in (a, b):
        assert {key: other[key] for key in ("step", "described", "content")} == {
            key: state[key] for key in ("step", "described", "content")
        }
        assert differing(state["network"], other["network"]) == []
        assert other["optimiser"]["param_groups"] == state["optimiser"]["param_groups"]
    assert differing(state["average"], a["average"]) == []
    for index, moments in state["optimiser"]["state"].items():
        assert differing(moments, a["optimiser"]["state"][index]) == []
        for name, tensor in b["optimiser"]["state"][index].items():
            np.testing.assert_allclose(tensor.numpy(), moments[name].numpy(), rtol=1 / 256, atol=1e-12)
    for name, tensor in b["average"].items():
        distance = (state["average"][name] - state["network"][name]).abs().numpy()
        assert (np.abs(tensor.numpy() - state["average"][name].numpy()) <= distance / 200 + 1e-6).all()


def test_a_checkpoint_of_something_else_is_refused_in_our_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(bytes(range(256)) * 9)
    assert main(["state", "export", str(tmp_path), "--out", str(tmp_path / "file")]) == 2
    expected = f"superpoint state: {path} cannot be read: it is no PyTorch file, or holds more than tensors\n"
    assert capsys.readouterr().err == expected


def test_a_bit_that_changed_in_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    weights = max(read_checkpoint(tmp_path)["network"].values(), key=torch.numel)
    place = whole.index(bytes(weights.untyped_storage())[:64])
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(DataError, match=r"checkpoint\.pt cannot be read: .*data/\d+ is damaged"):
        read_checkpoint(tmp_path)


def test_a_stop_in_a_state_of_an_earlier_version_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path / "run", stop=3)
    made.settings = {"steps": 6, "stop": 3, "workers": 0, "device": "cpu"}
    made.run()
    with monkeypatch.context() as patch:
        patch.setattr("frontend.training.state._LOCAL", {"device", "workers"})
        export_state(tmp_path / "run", tmp_path / "state")
    import_state(tmp_path / "state", tmp_path / "there")
    assert (tmp_path / "there" / "settings.toml").read_text() == "steps = 6\n"


def test_what_is_no_state_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("no state")
    assert main(["state", "import", str(tmp_path / "text"), "--out", str(tmp_path / "run")]) == 2
    assert main(["state", "export", str(tmp_path), "--out", str(tmp_path / "file")]) == 2
    trainer(tmp_path / "made").run()
    weights = tmp_path / "made" / "magicpoint.safetensors"
    assert main(["state", "show", str(weights)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "cannot be read as a training state" in errors[0]
    assert "has no checkpoint.pt" in errors[1]
    assert "is no training state" in errors[2]


def test_weights_of_before_a_run_was_prolonged_are_not_taken_for_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_file(trainer(tmp_path / "whole").run())
    short = load_file(trainer(tmp_path / "run", stop=3).run())
    assert differing(whole, short)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("frontend.training.trainer.save_network", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path / "run").run()
    assert step_of(tmp_path / "run") == 6
    assert differing(whole, load_file(trainer(tmp_path / "run").run())) == []


def test_a_state_with_a_module_of_no_tensors_is_carried(tmp_path: Path) -> None:
    def with_nothing(run: str, stop: int) -> Trainer:
        made = trainer(tmp_path / run, stop=stop)
        made.auxiliary = torch.nn.Identity()
        return made

    with_nothing("here", 3).run()
    export_state(tmp_path / "here", tmp_path / "state")
    import_state(tmp_path / "state", tmp_path / "there")
    here, there = (load_file(with_nothing(run, 0).run()) for run in ("here", "there"))
    assert differing(here, there) == []


def test_an_import_that_was_interrupted_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(tmp_path / "run").run()
    export_state(tmp_path / "run", tmp_path / "state")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    for name in ("frontend.training.state.atomic_write", "frontend.training.state.torch.save"):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
            with pytest.raises(OSError, match="no space"):
                import_state(tmp_path / "state", tmp_path / "there")
    import_state(tmp_path / "state", tmp_path / "there")
    assert (tmp_path / "there" / "settings.toml").is_file()
    assert step_of(tmp_path / "there") == 6
