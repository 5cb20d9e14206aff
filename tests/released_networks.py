"""A folder of released weights with an int8 graph, for tests."""

from __future__ import annotations

import hashlib
from pathlib import Path

_MANIFEST = """
[models.net]
file = "net.safetensors"
sha256 = "{}"
int8 = "int8.onnx.gz"
int8_sha256 = "{}"
version = "1.2"
encoder = "compact"
descriptor_dim = 128
licence = "Apache-2.0"
trained_on = "nothing"
recipe = "none"
"""


def write_manifest(folder: Path) -> None:
    """Release the ``net.safetensors`` and ``int8.onnx.gz`` that lie in a folder as model "net"."""
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("net.safetensors", "int8.onnx.gz")]
    (folder / "manifest.toml").write_text(_MANIFEST.format(*digests))
