"""External attention beside softmax self-attention: time against the number of tokens.

Each is the whole block of one image's tokens, projections in and out included: external attention (linear in N),
self-attention by its formula, which holds the N x N matrix, and by PyTorch's fused kernel, which does not (both
quadratic in N). Single precision, no gradients. Times are wall-clock milliseconds, the median and the 10th and 90th
percentile of ``--repeats`` after a warm-up. One JSON line.

    python benchmarks/external_attention.py --threads 1
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from frontend.encoders.external_attention import ExternalAttentionBlock

GRIDS = {300: (15, 20), 1200: (30, 40), 4800: (60, 80)}
"""Tokens of 120 x 160, 240 x 320 and 480 x 640 images."""


class SelfAttentionBlock(nn.Module):
    """softmax(Q K^T / sqrt(d)) V for (B, C, h, w) maps, between 1 x 1 convolutions, with a skip."""

    def __init__(self, dim: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.qkv(x).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = tokens.transpose(3, 4).unbind(1)  # (B, heads, N, d)
        if self.fused:
            attended = functional.scaled_dot_product_attention(q, k, v)
        else:
            attended = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
        out: Tensor = x + self.out(attended.transpose(2, 3).reshape(x.shape))
        return out


def timed(function: Callable[[], object], repeats: int, device: str) -> dict[str, float]:
    """Milliseconds of a call, the device's work included, after a warm-up of two calls."""
    times = []
    for _ in range(repeats + 2):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    low, median, high = np.percentile(times[2:], (10, 50, 90))
    return {"median": round(median, 3), "p10": round(low, 3), "p90": round(high, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=128, help="channels")
    parser.add_argument("--memory", type=int, default=64, help="units of the external memory")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch on the CPU")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    blocks = {
        "external": ExternalAttentionBlock(args.dim, args.memory, args.heads),
        "softmax": SelfAttentionBlock(args.dim, args.heads, fused=False),
        "softmax_fused": SelfAttentionBlock(args.dim, args.heads, fused=True),
    }
    rows = []
    for tokens, grid in GRIDS.items():
        x = torch.rand(1, args.dim, *grid, device=args.device)
        row: dict[str, object] = {"tokens": tokens}
        for name, block in blocks.items():
            block.eval().to(args.device)
            with torch.inference_mode():
                row[f"{name}_ms"] = timed(lambda: block(x), args.repeats, args.device)  # noqa: B023
        rows.append(row)
    protocol = {
        "dim": args.dim,
        "memory": args.memory,
        "heads": args.heads,
        "repeats": args.repeats,
        "threads": args.threads,
        "device": torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps({**protocol, "rows": rows}))


if __name__ == "__main__":
    main()
