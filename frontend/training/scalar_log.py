"""TensorBoard's log of a training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class ScalarLog:
    """TensorBoard's log of a run; a context manager.

    Args:
        folder: of the log.
        step: that the run goes on from; what a log has of later ones is dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step)

    def __enter__(self) -> ScalarLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars of a step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
