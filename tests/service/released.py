"""Released models with learned matchers, in a folder of the test's own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from frontend.matching.lightglue_network import LightGlueConfig, LightGlueNet
from frontend.matching.lightglue_weights import save_matcher
from frontend.weights import WEIGHTS_DIR_VARIABLE, list_models

EDGE, SLIM = "superpoint-edge", "superpoint-slim"
SETTINGS = {"model": EDGE, "models": SLIM, "runtime": "torch", "device": "cpu", "warmup": ("64x64",)}
MATCHER = "matcher.safetensors"


def dual_softmax(dim: int = 128, features: str = EDGE) -> LightGlueNet:
    """A matcher that was never trained and yet matches: no layer changes its tokens, so it compares descriptors."""
    torch.manual_seed(0)
    network = LightGlueNet(LightGlueConfig(input_dim=dim, dim=dim, layers=2, heads=2, features=features)).eval()
    with torch.no_grad():
        for layer in network.transformers:
            for block in (layer.self_attn, layer.cross_attn):
                block.ffn[-1].weight.zero_()
                block.ffn[-1].bias.zero_()
        for head in network.log_assignment:
            # similarities are 30 times cosines, and nearly every keypoint may have a match
            head.final_proj.weight.copy_((30 * dim**0.5) ** 0.5 * torch.eye(dim))
            head.final_proj.bias.zero_()
            head.matchability.weight.zero_()
            head.matchability.bias.fill_(5.0)
    return network


def release(folder: Path, *, matcher: bytes | None = b"", sha256: str = "", entry: bool = True) -> dict[str, str]:
    """Write a manifest of the released models, and of a matcher for superpoint-edge.

    Args:
        folder: for the manifest and the matcher.
        matcher: what its file holds; a matcher that works where it is empty, no file where None.
        sha256: of the matcher's entry; that of its file where empty.
        entry: whether it has one.

    Returns:
        Environment variables with which it is found.
    """
    models = {name: info for name, info in list_models().items() if name in (EDGE, SLIM)}
    lines = []
    for name, info in models.items():
        lines += [f"[models.{name}]", f'file = "{info.path}"', f'sha256 = "{info.sha256}"']
        lines += [f'encoder = "{info.encoder}"', f"descriptor_dim = {info.descriptor_dim}"]
        lines += [
            f'version = "{info.version}"',
            'licence = "Apache-2.0"',
            'trained_on = "see there"',
            'recipe = "see there"',
        ]
    path = folder / MATCHER
    if matcher == b"":
        save_matcher(path, dual_softmax())
    elif matcher is not None:
        path.write_bytes(matcher)
    digest = sha256 or (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "0" * 64)
    if entry:
        lines += ["[matchers.edge-lightglue]", f'file = "{MATCHER}"', f'sha256 = "{digest}"', f'features = "{EDGE}"']
        lines += ['version = "1.2"', 'licence = "Apache-2.0"', 'trained_on = "nothing"', 'recipe = "none"']
    (folder / "manifest.toml").write_text("\n".join(lines))
    return {WEIGHTS_DIR_VARIABLE: str(folder)}
