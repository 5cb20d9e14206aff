"""The training loop: mixed precision, schedule, checkpoints, exact resume."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from frontend.atomic import remove_leftovers
from frontend.device import autocast, check_precision
from frontend.errors import ConfigError, FrontendError, WeightsError
from frontend.model import SuperPointNet
from frontend.progress import Progress
from frontend.runtime.memory import keep_large_blocks
from frontend.training import distributed
from frontend.training.compilation import compile_parts
from frontend.training.datasets import Sample, with_plain_errors
from frontend.training.ema import WeightAverage
from frontend.training.scalar_log import ScalarLog
from frontend.training.state import CHECKPOINT, read_checkpoint, write_checkpoint
from frontend.training.tasks import Task
from frontend.weights import read_safetensors, save_network

# settings that may differ between a run and its resumption: they change where, how fast and how far it runs
FREE_TO_CHANGE = frozenset({"workers", "device", "checkpoint_seconds", "log_every", "compile", "stop"})


class TrainingError(FrontendError):
    """A training cannot go on."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Attributes:
        steps: optimiser steps of the schedule.
        stop: step at which to end, before the schedule does; 0 goes through with it.
        batch_size: samples of a step.
        learning_rate: peak of the schedule.
        final_ratio: learning rate at the end, relative to the peak (cosine).
        warmup_steps: of linear warm-up.
        weight_decay: of AdamW.
        gradient_clip: largest norm of the gradient.
        precision: see :func:`frontend.device.autocast`.
        seed: of data and initial weights.
        device: where the network runs.
        workers: processes that make the data.
        checkpoint_seconds: between checkpoints.
        log_every: steps between log entries.
        ema: decay of the moving average of the weights, which is what the run gives then; 0 for none (``ema.py``).
        compile: whether encoder and heads run through ``torch.compile``, where that works.
    """

    steps: int = 2000
    stop: int = 0
    batch_size: int = 64
    learning_rate: float = 2e-3
    final_ratio: float = 0.02
    warmup_steps: int = 200
    weight_decay: float = 1e-4
    gradient_clip: float = 5.0
    precision: str = "auto"
    seed: int = 0
    device: str = "cpu"
    workers: int = 2
    checkpoint_seconds: float = 60.0
    log_every: int = 20
    ema: float = 0.0
    compile: bool = False

    def __post_init__(self) -> None:
        check_precision(self.precision)
        for name in ("steps", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
        for name in ("workers", "learning_rate", "weight_decay", "warmup_steps", "stop", "checkpoint_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more, finite")
        if not 0 <= self.seed < 1 << 63:  # PyTorch's are that long
            raise ConfigError(f"seed is {self.seed}; expected 0 or more, below 2^63")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema is {self.ema}; expected a decay between 0 and 1, or 0 for none")

    @property
    def last_step(self) -> int:
        """The step at which the run ends."""
        return min(self.stop or self.steps, self.steps)

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then cosine down to ``final_ratio``."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        cosine = (1 + math.cos(math.pi * min(share, 1.0))) / 2
        return self.learning_rate * (self.final_ratio + (1 - self.final_ratio) * cosine)


def require_tensorboard() -> None:
    """Refuse before data are read what would fail after it.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError("training needs tensorboard: pip install 'superpoint-frontend[train]'")


class _NumberedBatches:
    """Batch sampler: batch n holds samples n * size to (n + 1) * size - 1; a rank gets its part of them."""

    def __init__(self, first: int, last: int, size: int, rank: int = 0, ranks: int = 1) -> None:
        self.first, self.last, self.size = first, last, size
        self.own = range(size * rank // ranks, size * (rank + 1) // ranks)

    def __iter__(self) -> Iterator[list[int]]:
        for n in range(self.first, self.last):
            yield [n * self.size + k for k in self.own]

    def __len__(self) -> int:
        return self.last - self.first


def _start_worker(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)
    # the network's threads are what limits a run on a CPU; data may lag a little, the queue evens it out
    os.nice(5)


class Trainer:
    """Runs a task to its end, through kills.

    The output folder holds ``checkpoint.pt`` (the newest state), TensorBoard logs, and, at the end,
    ``NAME.safetensors``, the trained network with its batch norms. A task's ``auxiliary`` module, where it has one, is
    trained along; it is in the checkpoint and not in the weights. A run that is started again with the same
    settings goes on from its newest checkpoint. Within :func:`frontend.training.distributed.joined` the processes share
    the work, and rank 0 alone reads and writes the folder.

    A task's data may have ``content()``, a checksum of what the samples are made from, kept in the checkpoint and
    compared on resumption, and ``on_device(batch)``, what remains to be done to a batch on the network's device.

    Args:
        task: what to train.
        network: with its initial weights.
        config: settings.
        out: output folder.
        described: what else decides the result (data, initial weights); stored with the weights, and compared
            on resumption.
        frozen: modules of the network that stay as they are: no gradients, and batch norms in evaluation mode.
        settings: options of the command that began the run; kept in the checkpoint for the user alone.

    Raises:
        ConfigError: the samples of a step do not divide among the processes.
    """

    def __init__(
        self,
        task: Task,
        network: SuperPointNet,
        config: TrainConfig,
        out: Path,
        described: dict[str, Any],
        frozen: Sequence[nn.Module] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if config.batch_size % distributed.world_size():
            raise ConfigError(
                f"batch_size is {config.batch_size}; expected a multiple of the {distributed.world_size()} processes"
            )
        self.task = task
        self.config = config
        self.out = out
        self.device = torch.device(config.device)
        if self.device.type == "cpu":
            keep_large_blocks()
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.frozen = frozen
        for module in frozen:
            module.requires_grad_(False)
        self.average = WeightAverage(self.network, config.ema) if config.ema else None
        distributed.share_batch_norms(self.network)
        # what a task trains beside the network and nobody needs afterwards; most have nothing
        self.auxiliary: torch.nn.Module | None = getattr(task, "auxiliary", None)
        self.parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        if self.auxiliary is not None:
            self.parameters += self.auxiliary.to(self.device).parameters()
        rate, decay = config.learning_rate, config.weight_decay
        # None lets PyTorch choose; one kernel for all tensors where there is one
        self._fused = True if self.device.type == "cuda" else None
        self.optimiser = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=decay, fused=self._fused)
        self.step = 0
        self.seconds = 0.0
        self.settings = dict(settings or {})
        content = getattr(task.data, "content", None)
        self.content: str | None = content() if content is not None else None
        # not stated where it is off: runs begun by earlier versions go on
        values = {name: value for name, value in asdict(config).items() if name not in ("ema", "compile") or value}
        self.described = {**described, "task": task.name, **values, "model": network.config.to_dict()}

    @property
    def weights_path(self) -> Path:
        """Where the trained network goes."""
        return self.out / f"{self.task.name}.safetensors"

    def _restore(self) -> None:
        path = self.out / CHECKPOINT
        leads = distributed.rank() == 0
        held = read_checkpoint(self.out) if leads and path.is_file() else None
        state = distributed.share(held)
        if state is None:
            modules = [self.network, self.auxiliary, self.average and self.average.network]
            for module in filter(None, modules):
                distributed.share_tensors(module.state_dict().values())
            return
        before = state["described"]
        # the task first: of another one everything else differs, too
        for key in sorted((set(before) | set(self.described)) - FREE_TO_CHANGE, key=lambda key: (key != "task", key)):
            if before.get(key) != self.described.get(key):
                raise TrainingError(
                    f"{path} was trained with {key} = {before.get(key)}; got {self.described.get(key)}"
                    " (give another --out, or the same settings)"
                )
        if state.get("content") and self.content and state["content"] != self.content:
            raise TrainingError(
                f"{path} was trained on data with checksum {state['content'][:12]}; got {self.content[:12]}"
                " (give the same images and labels; they may lie elsewhere)"
            )
        self.network.load_state_dict(state["network"])
        if self.auxiliary is not None:
            self.auxiliary.load_state_dict(state.get("auxiliary", {}))  # a carried one without tensors is none
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for group in state["optimiser"]["param_groups"]:
            group["fused"] = self._fused  # of this device, not of the one that the run comes from
        self.optimiser.load_state_dict(state["optimiser"])
        # the memory layout of the weights, which loading loses, decides the last bit of some sums
        for parameter, values in self.optimiser.state.items():
            for name, value in values.items():
                if value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter).copy_(value)
        self.step, self.seconds = state["step"], state["seconds"]

    def _checkpoint(self) -> None:
        if distributed.rank():
            return
        state = {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "described": self.described,
            "content": self.content,
            "settings": self.settings,
        }
        if self.auxiliary is not None:
            state["auxiliary"] = self.auxiliary.state_dict()
        if self.average is not None:
            state["average"] = self.average.state_dict()
        write_checkpoint(self.out, state)

    def _batches(self) -> DataLoader[Sample]:
        config = self.config
        return DataLoader(
            self.task.data,
            batch_sampler=_NumberedBatches(
                self.step, config.last_step, config.batch_size, distributed.rank(), distributed.world_size()
            ),
            num_workers=config.workers,
            worker_init_fn=_start_worker if config.workers else None,
            prefetch_factor=4 if config.workers else None,
            pin_memory=self.device.type == "cuda",
        )

    def _train_step(self, batch: Sample) -> dict[str, Tensor]:
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate_at(self.step)
        loss, logged = self._loss(batch)
        if self.device.type == "cpu":  # a GPU would be waited for; in it, all ranks end as one does
            self._check_finite([distributed.sum_over_ranks(loss)], self.step + 1)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        distributed.average_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.gradient_clip)
        self.optimiser.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.network, self.step)
        return {**logged, "loss/total": loss.detach(), "gradient_norm": norm}

    def _loss(self, batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        moved = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        finish = getattr(self.task.data, "on_device", None)
        if finish is not None:
            moved = finish(moved)
        with autocast(self.config.precision, self.device):
            outputs = self.task.forward(self.network, moved)
        return self.task.loss(tuple(output.float() for output in outputs), moved)

    def _start(self) -> None:
        """Bring the network to its training form, compiled where asked for."""
        self.network.train()
        for module in self.frozen:
            module.eval()
        if self.device.type == "cuda":
            # all batches have one shape: the fastest algorithm is searched once
            torch.backends.cudnn.benchmark = True
        if self.config.compile and self.step < self.config.last_step:
            batch = next(iter(self._batches()))
            compile_parts(self.network, ("encoder", "detector", "descriptor"), lambda: self._loss(batch)[0])
            self.optimiser.zero_grad(set_to_none=True)

    def probe(self, steps: int = 6) -> float:
        """Seconds of a training step, measured on the first batches.

        It trains without keeping anything, so the trainer and its network are of no further use.

        Args:
            steps: that are timed, after two that are not.
        """
        self._start()
        began = 0.0
        for number, batch in enumerate(self._batches()):
            if number == 2:
                self._synchronize()
                began = time.monotonic()
            if number == steps + 2:
                break
            self._train_step(batch)
        self._synchronize()
        return (time.monotonic() - began) / steps

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def run(self) -> Path:
        """Train to the end; returns the path of the weights.

        Raises:
            TrainingError: the folder holds a run with other settings, or the loss is no longer finite.
        """
        leads = distributed.rank() == 0
        if leads:
            self.out.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.out)
        self._restore()
        if distributed.share(leads and self.step >= self.config.last_step and self._written()):
            return self.weights_path
        self._start()
        began, saved = time.monotonic() - self.seconds, time.monotonic()
        sums: dict[str, Tensor] = {}
        counted = 0
        log = ScalarLog(self.out / "tensorboard", self.step) if leads else None
        label = f"train {self.task.name}"
        stream = sys.stderr if leads else io.StringIO()
        progress = Progress(self.config.last_step, label, start=self.step, unit="step", stream=stream, interval_s=30)
        with log or nullcontext(), progress:
            for batch in with_plain_errors(self._batches()):
                # summed where they are: reading a value off a GPU would wait for it at every step
                for key, value in self._train_step(batch).items():
                    sums[key] = sums.get(key, 0.0) + value.detach().double()
                counted += 1
                note = ""
                due = time.monotonic() - saved >= self.config.checkpoint_seconds
                if due or self.step % self.config.log_every == 0 or self.step == self.config.last_step:
                    self._check_finite([sums[name] for name in ("loss/total", "gradient_norm")], self.step)
                if self.step % self.config.log_every == 0 or self.step == self.config.last_step:
                    total = distributed.mean_over_ranks(torch.stack([value.to(self.device) for value in sums.values()]))
                    means = dict(zip(sums, (total / counted).tolist(), strict=True))
                    if log is not None:
                        log.add({**means, "learning_rate": self.config.learning_rate_at(self.step - 1)}, self.step)
                    note = "  ".join(f"{key.removeprefix('loss/')} {mean:.4f}" for key, mean in means.items())
                    sums, counted = {}, 0
                progress.update(note=note)
                self.seconds = time.monotonic() - began
                if due:
                    self._checkpoint()
                    saved = time.monotonic()
        self._checkpoint()
        if leads:
            result = self.network if self.average is None else self.average.network
            save = getattr(self.task, "save", save_network)
            save(self.weights_path, result, {**self.described, "step": self.step, "seconds": round(self.seconds)})
        # nobody goes on before the weights are there
        distributed.share(None)
        return self.weights_path

    def _written(self) -> bool:
        """Whether the weights of this step are there, and not those that the run had before it was prolonged."""
        if not self.weights_path.is_file():
            return False
        try:
            training = json.loads(read_safetensors(self.weights_path)[1].get("training", "{}"))
        except WeightsError:  # damaged; the checkpoint has them
            return False
        return bool(training.get("step", self.step) == self.step)

    def _check_finite(self, values: Sequence[Tensor], step: int) -> None:
        if not all(math.isfinite(float(value.detach())) for value in values):
            raise TrainingError(f"the loss is not finite at step {step}; try a lower learning rate")
