"""The runtimes keep no account of their users."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_CODE = """
from frontend.runtime.onnx_runtime import open_session
from frontend.runtime.openvino_runtime import native_precisions

assert "float32" in native_precisions()
try:
    open_session(b"no model")
except Exception:
    pass
"""


def test_nothing_is_kept_about_the_user(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-B", "-c", _CODE], env=environment, check=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
