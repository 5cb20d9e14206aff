"""Training that uses the machine: averaged weights, compilation, several processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import LONGEST_S, finished, start_python
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_machine import (
    EXACT,
    PAIRS,
    TINY,
    Shapes,
    differing,
    pairs_command,
    single_thread,
    step_of,
    trainer,
    write_photographs,
)

from frontend.cli.main import main
from frontend.errors import ConfigError
from frontend.model import SuperPointNet
from frontend.training import compilation
from frontend.training.ema import WeightAverage
from frontend.training.state import read_checkpoint
from frontend.training.trainer import TrainConfig, TrainingError


@pytest.fixture(autouse=True)
def _single_threaded() -> Iterator[None]:
    with single_thread():
        yield


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("data"))


def test_averaged_weights_follow_the_recurrence() -> None:
    network = SuperPointNet(TINY)
    average = WeightAverage(network, 0.9)
    name = next(key for key, value in network.state_dict().items() if value.ndim == 4)
    expected = network.state_dict()[name].double().clone()
    mean_name = next((key for key in network.state_dict() if key.endswith("running_mean")), None)
    assert mean_name is not None
    expected_mean = network.state_dict()[mean_name].double().clone()
    for step in range(1, 40):
        with torch.no_grad():
            for tensor in network.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(torch.randn_like(tensor) * 0.1)
                else:
                    tensor += 1
        average.update(network, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.state_dict()[name].double()
        expected_mean = decay * expected_mean + (1 - decay) * network.state_dict()[mean_name].double()
    np.testing.assert_allclose(average.state_dict()[name].numpy(), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(average.state_dict()[mean_name].numpy(), expected_mean.numpy(), atol=1e-5)
    counts = [key for key in network.state_dict() if key.endswith("num_batches_tracked")]
    assert counts
    assert all(int(average.state_dict()[key]) == 39 for key in counts)


def test_averaged_weights_are_the_result_and_change_nothing_else(tmp_path: Path) -> None:
    trainer(tmp_path / "plain").run()
    averaged = trainer(tmp_path / "averaged", ema=0.99)
    averaged.run()
    plain = load_file(tmp_path / "plain" / "magicpoint.safetensors")
    assert differing(plain, dict(read_checkpoint(tmp_path / "averaged")["network"])) == []
    result = load_file(tmp_path / "averaged" / "magicpoint.safetensors")
    assert len(differing(plain, result)) > 10
    assert averaged.average is not None
    assert differing(averaged.average.state_dict(), result) == []


def test_averaged_weights_are_exact_after_a_stop(tmp_path: Path) -> None:
    trainer(tmp_path / "whole", ema=0.95).run()
    trainer(tmp_path / "parts", ema=0.95, stop=3).run()
    # further than it was to go at first
    trainer(tmp_path / "parts", ema=0.95).run()
    whole, parts = (load_file(tmp_path / name / "magicpoint.safetensors") for name in ("whole", "parts"))
    assert differing(whole, parts) == []


def test_checkpoints_from_before_there_were_averages_and_checksums_go_on(tmp_path: Path) -> None:
    trainer(tmp_path / "run", stop=3).run()
    state = read_checkpoint(tmp_path / "run")
    for key in ("content", "settings"):
        state.pop(key)
    assert not {"ema", "compile"} & set(state["described"])
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    trainer(tmp_path / "run", stop=3).run()
    with pytest.raises(TrainingError, match=r"ema = None; got 0\.9"):
        trainer(tmp_path / "run", stop=3, ema=0.9).run()


def test_other_data_are_refused(tmp_path: Path) -> None:
    trainer(tmp_path, stop=2).run()
    with pytest.raises(TrainingError, match="data with checksum abc; got xyz"):
        trainer(tmp_path, stop=2, data=Shapes("xyz")).run()


def test_compiled_parts_train_alike_and_their_files_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # tracing and differentiation are those of the real compiler; only the code generator is left out
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    trainer(tmp_path / "plain").run()
    compiled = trainer(tmp_path / "compiled", compile=True)
    compiled.run()
    assert compiled.network.encoder._compiled_call_impl is not None
    assert "torch.compile" not in capsys.readouterr().err
    plain, other = (load_file(tmp_path / name / "magicpoint.safetensors") for name in ("plain", "compiled"))
    assert plain.keys() == other.keys()
    for name, tensor in plain.items():
        np.testing.assert_allclose(tensor.numpy(), other[name].numpy(), rtol=2e-3, atol=2e-4)


def test_where_compilation_fails_training_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", lambda graph, inputs: 1 / 0)
    trainer(tmp_path / "plain").run()
    trainer(tmp_path / "failed", compile=True).run()
    lines = [line for line in capsys.readouterr().err.splitlines() if "torch.compile" in line]
    assert len(lines) == 1
    assert lines[0].startswith("torch.compile does not work here, going on without: ")
    plain, failed = (load_file(tmp_path / name / "magicpoint.safetensors") for name in ("plain", "failed"))
    assert differing(plain, failed) == []


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [*command, "-m", "frontend.cli.main", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_train_as_one_and_go_on_after_kill_9(photographs: Path, tmp_path: Path) -> None:
    """The weights of one process, to what rounding does to them in Adam's first steps; a kill changes nothing."""
    settings = [*PAIRS, *EXACT, "--learning-rate", "1e-4"]
    assert main(pairs_command(photographs, tmp_path / "one", *settings)) == 0
    process = torchrun(*pairs_command(photographs, tmp_path / "two", *settings, "--checkpoint-seconds", "0"))
    limit = time.monotonic() + LONGEST_S
    while step_of(tmp_path / "two") < 2:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.01)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    # torchrun first: it would end the other worker in an orderly way
    for pid in (process.pid, *map(int, workers)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert 2 <= step_of(tmp_path / "two") < 8
    assert not (tmp_path / "two" / "superpoint.safetensors").exists()
    out = finished(torchrun(*pairs_command(photographs, tmp_path / "two", *settings)))
    assert out.count("superpoint.safetensors") == 1
    one, two = (load_file(tmp_path / name / "superpoint.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        # each of 8 steps moves a weight by 1e-4 at most either way, and a gradient of zero has a random sign
        np.testing.assert_allclose(two[name].numpy(), tensor.numpy(), rtol=2e-2, atol=2e-3, err_msg=name)


def test_ranks_hold_the_same_and_compute_what_one_process_computes(tmp_path: Path) -> None:
    """Loss, gradients and statistics of the batch norms of one step, and the logged losses of three."""
    script = str(Path(__file__).with_name("training_rank.py"))
    finished(start_python(script, str(tmp_path / "alone")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        start_python(
            script, str(tmp_path / "both"), RANK=str(n), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
        for n in range(2)
    ]
    for process in ranks:
        finished(process)
    alone = torch.load(tmp_path / "alone" / "rank0.pt", weights_only=True)
    first, second = (torch.load(tmp_path / "both" / f"rank{n}.pt", weights_only=True) for n in range(2))
    for part in ("trained", "average", "buffers", "gradients"):
        assert differing(first[part], second[part]) == []
    assert first["loss"] != second["loss"]
    assert (first["loss"] + second["loss"]) / 2 == pytest.approx(alone["loss"], rel=1e-5)
    assert any(name.endswith("running_var") for name in alone["buffers"])
    for part in ("buffers", "gradients"):
        scale = max(float(tensor.abs().max()) for tensor in alone[part].values())
        for name, tensor in alone[part].items():
            np.testing.assert_allclose(first[part][name].numpy(), tensor.numpy(), rtol=1e-3, atol=1e-5 * scale)
    assert len(alone["gradients"]) > 20
    logs = [EventAccumulator(str(tmp_path / name / "run" / "tensorboard")) for name in ("alone", "both")]
    for log in logs:
        log.Reload()
    losses = [[event.value for event in log.Scalars("loss/total")] for log in logs]
    assert len(losses[0]) == len(losses[1]) == 3
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-3)


@pytest.mark.parametrize("wrong", [{"stop": -1}, {"warmup_steps": -5}])
def test_negative_steps_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is -"):
        TrainConfig(**wrong)  # type: ignore[arg-type]


def test_a_gradient_that_is_not_finite_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is that before the update: where only its gradient fails, it says nothing of the weights."""
    trainer(tmp_path, stop=3).run()
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    clip = torch.nn.utils.clip_grad_norm_

    def spoiled(parameters: list[torch.nn.Parameter], largest: float) -> torch.Tensor:
        parameters[0].grad.fill_(float("nan"))  # type: ignore[union-attr]
        return clip(parameters, largest)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoiled)
    with pytest.raises(TrainingError, match="not finite at step 4"):
        trainer(tmp_path, stop=4).run()
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


def test_what_killed_checkpoints_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".checkpoint.pt.1234-abcd.tmp"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    trainer(tmp_path, stop=2).run()
    assert not left.exists()
