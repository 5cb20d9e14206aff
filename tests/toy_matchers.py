"""Learned matchers that are small and need no training, features for them, and groups of views to train some on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frontend.matching.lightglue_network import LightGlueConfig, LightGlueNet
from frontend.matching.lightglue_weights import save_matcher
from frontend.training.view_groups import NO_MATCH, ViewGroup
from frontend.types import Features

SMALL = LightGlueConfig(input_dim=16, dim=32, layers=2, heads=2, features="toy")


def network(config: LightGlueConfig = SMALL) -> LightGlueNet:
    torch.manual_seed(0)
    return LightGlueNet(config).eval()


def certain() -> LightGlueNet:
    """One that matches what looks alike, without training: similarities as they come, made sharp."""
    net = network()
    with torch.no_grad():
        for parameter in net.transformers.parameters():
            parameter.zero_()
        projection: Any = net.input_proj
        projection.weight.copy_(torch.eye(32)[:, :16])
        projection.bias.zero_()
        head: Any = net.log_assignment[-1]
        head.final_proj.weight.copy_(torch.eye(32) * 30)
        head.final_proj.bias.zero_()
        head.matchability.weight.zero_()
        head.matchability.bias.fill_(9.0)
    return net


def inputs(count0: int, count1: int, dim: int, batch: int = 1) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    described = [torch.nn.functional.normalize(torch.randn(batch, n, dim), dim=-1) for n in (count0, count1)]
    placed = [torch.rand(batch, n, 2) * torch.tensor([639.0, 479.0]) for n in (count0, count1)]
    return described[0], placed[0], described[1], placed[1]


def features(count: int, seed: int, dim: int = 16, model: str = "toy") -> Features:
    rng = np.random.default_rng(seed)
    described = rng.normal(size=(count, dim)).astype(np.float32)
    described /= np.linalg.norm(described, axis=1, keepdims=True)
    points = rng.uniform(0, [639, 479], (count, 2)).astype(np.float32)
    return Features(points, np.ones(count, np.float32), described, (640, 480), model)


def release(folder: Path) -> Path:
    """Fill a folder with a manifest and the weights of its matcher "glue", which is for features of "toy".

    Two others are listed: "other", whose file is not the one that was released, and "third", whose file is missing.
    """
    folder.mkdir()
    path = folder / "toy.safetensors"
    save_matcher(path, certain(), {"steps": 3})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = '[matchers.{}]\nfile = "{}"\nsha256 = "{}"\nversion = "1.2"\nfeatures = "{}"\n'
    entry += 'licence = "x"\ntrained_on = "x"\nrecipe = "x"\n'
    (folder / "manifest.toml").write_text(
        entry.format("glue", path.name, digest, "toy")
        + entry.format("other", path.name, "0" * 64, "changed")
        + entry.format("third", "gone.safetensors", digest, "gone")
    )
    return path


def toy_group(rng: np.random.Generator, views: int = 3, count: int = 80, dim: int = 16) -> ViewGroup:
    """Points that move by a shift, with descriptors that stay but for noise; a fifth of them has no match."""
    world = rng.uniform(40, 600, (count, 2))
    described = rng.normal(size=(count, dim))
    points, descriptors, ids = [], [], []
    for view in range(views):
        order = rng.permutation(count)
        points.append(world[order] + 30 * view)
        noisy = described[order] + rng.normal(0, 0.3, (count, dim))
        lost = rng.random(count) < 0.2
        noisy[lost] = rng.normal(size=(int(lost.sum()), dim))
        descriptors.append(noisy / np.linalg.norm(noisy, axis=1, keepdims=True))
        ids.append(np.where(lost, -1, order))
    matches = np.full((views, views, count), NO_MATCH, np.int16)
    for i in range(views):
        for j in range(views):
            for k, number in enumerate(ids[i]):
                place = np.flatnonzero(ids[j] == number) if number >= 0 else []
                if i != j and len(place):
                    matches[i, j, k] = place[0]
    return ViewGroup(
        np.stack(points).astype(np.float32),
        np.stack(descriptors).astype(np.float16),
        np.full(views, count),
        np.tile([640, 480], (views, 1)),
        matches,
    )


def write_groups(folder: Path, dim: int = 16) -> Path:
    """Fill a folder with groups of views, as 'superpoint make-views' does."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(6):
        toy_group(rng, dim=dim).save(folder / f"scene-0-3-{n:06}.npz")
    (folder / "settings.json").write_text('{"model": "toy", "max_keypoints": 80}')
    return folder
