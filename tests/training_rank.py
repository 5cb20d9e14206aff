"""A process of its own for tests: one rank of a small training, or the whole of it where there are no ranks.

Leaves ``rankN.pt`` in the folder given: loss, gradients and buffers of one step, and the state after three.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from frontend.model import ModelConfig, SuperPointNet
from frontend.training.datasets import SyntheticShapes
from frontend.training.distributed import average_gradients, joined, rank
from frontend.training.tasks import MagicPointTask
from frontend.training.trainer import TrainConfig, Trainer

TINY = ModelConfig(detector_options={"fine": 0}, descriptor_dim=16)


def main(out: Path) -> None:
    out.mkdir(exist_ok=True)
    with joined("cpu"):
        # masks of all sizes: the ranks' shares of the cells that count differ
        data = SyntheticShapes(0, (64, 64))
        data.augmentation = type(data.augmentation)(rotate=60.0)
        config = TrainConfig(steps=3, batch_size=4, precision="fp32", workers=0, log_every=1, ema=0.9, warmup_steps=1)
        torch.manual_seed(0)
        probe = Trainer(MagicPointTask(data), SuperPointNet(TINY), config, out, {})
        probe.network.train()
        loss, _ = probe._loss(next(iter(probe._batches())))
        loss.backward()
        average_gradients(probe.parameters)
        torch.manual_seed(rank())
        trainer = Trainer(MagicPointTask(data), SuperPointNet(TINY), config, out / "run", {})
        trainer.run()
        assert trainer.average is not None
        found = {
            "loss": loss.item(),
            "gradients": {n: p.grad for n, p in probe.network.named_parameters() if p.grad is not None},
            "buffers": dict(probe.network.named_buffers()),
            "trained": trainer.network.state_dict(),
            "average": trainer.average.state_dict(),
        }
        torch.save(found, out / f"rank{rank()}.pt")


main(Path(sys.argv[1]))
