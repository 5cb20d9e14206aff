"""Trainings that cannot go on say so in one line, and end as a command ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import finished, refused, start_on_a_full_disk, start_python
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file
from training_machine import EXACT, differing, trainer

from frontend.cli.main import main
from frontend.training.state import export_state
from frontend.training.trainer import TrainingError

_SAMPLING = """
import torch
from frontend.keypoints import sample_descriptors
maps = torch.rand(4, 96, 8, 12, requires_grad=True)
points = torch.rand(4, 192, 2) * 60
points[1, 7:] = float("nan")
points[2, 3] = float("inf")
sample_descriptors(maps, points, (96, 64)).sum().backward()
print(bool(maps.grad.isfinite().all()))
"""


def test_sampling_at_places_that_are_no_numbers_does_not_end_the_process() -> None:
    """In a process of its own, which it would end: PyTorch's backward on CPUs takes NaN for an address."""
    assert finished(start_python("-c", _SAMPLING)) == "True\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training_at_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Before anything is made of it, and however seldom the run is logged."""
    made = trainer(tmp_path, steps=9, log_every=100)
    plain = made.task.loss

    def diverging(*given: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, logged = plain(*given)  # type: ignore[arg-type]
        return (loss * value if made.step == 3 else loss), logged

    monkeypatch.setattr(made.task, "loss", diverging)
    with pytest.raises(TrainingError, match=r"^the loss is not finite at step 4; try a lower learning rate$"):
        made.run()
    assert made.step == 3
    assert all(bool(parameter.isfinite().all()) for parameter in made.network.parameters())


def test_a_checkpoint_that_finds_no_room_is_told_with_its_name(tmp_path: Path) -> None:
    trainer(tmp_path / "run").run()
    export_state(tmp_path / "run", tmp_path / "state")
    there = tmp_path / "there"
    imported = start_on_a_full_disk(20_000, "state", "import", str(tmp_path / "state"), "--out", str(there))
    small = ["--model", "slim-small", "--steps", "1", "--batch-size", "1", "--width", "32", "--height", "32"]
    begun = start_on_a_full_disk(20_000, "train", "magicpoint", "--out", str(tmp_path / "new"), *small, *EXACT)
    expected = "superpoint state: {}/checkpoint.pt: File too large"
    assert refused(imported) == expected.format(there)
    assert refused(begun) == expected.format(tmp_path / "new").replace("state", "train", 1)
    for run in (there, tmp_path / "new"):
        assert not [path.name for path in run.iterdir() if path.name.endswith((".pt", ".tmp"))]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hello world", "cannot be read: it is no PyTorch file, or holds more than tensors"),
        (b"steps = 1\n", "cannot be read: it is no PyTorch file, or holds more than tensors"),
        (b"", "cannot be read: damaged"),
        ("cut", "cannot be read: PytorchStreamReader failed reading zip archive: failed finding central directory"),
        ([1, 2], "holds a list; expected the checkpoint of a training run"),
        ({"step": 1}, "holds a dict without 'described'; expected the checkpoint of a training run"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, reason: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(torch.ones(99) if content == "cut" else content, path)
    if content == "cut":
        path.write_bytes(path.read_bytes()[:800])
    for command in (["state", "export", str(tmp_path)], ["train", "magicpoint"]):
        out = tmp_path / "file" if command[0] == "state" else tmp_path
        assert main([*command, "--out", str(out)]) == 2
        assert capsys.readouterr().err == f"superpoint {command[0]}: {path} {reason}\n"


def test_a_checkpoint_that_the_memory_does_not_hold_is_not_called_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    (tmp_path / "checkpoint.pt").touch()
    monkeypatch.setattr("frontend.training.state.torch.load", full)
    assert main(["state", "export", str(tmp_path), "--out", str(tmp_path / "file")]) == 2
    assert "out of memory" in capsys.readouterr().err


def test_weights_that_are_damaged_are_written_again_from_the_checkpoint(tmp_path: Path) -> None:
    path = trainer(tmp_path).run()
    whole = path.read_bytes()
    for damaged in (whole[:500], b"", b"no weights at all"):
        path.write_bytes(damaged)
        assert trainer(tmp_path).run() == path
        assert differing(load_file(path), load_tensors(whole)) == []


def test_a_run_of_another_task_is_told_by_its_task(tmp_path: Path) -> None:
    trainer(tmp_path, steps=2).run()
    other = trainer(tmp_path, steps=3, learning_rate=1.0)
    other.described |= {"anisotropy": 0.5, "task": "superpoint"}
    with pytest.raises(TrainingError, match="was trained with task = magicpoint; got superpoint "):
        other.run()
