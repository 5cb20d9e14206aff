"""What the runtimes would tell their makers, which this project's users have not been asked about."""

from __future__ import annotations

import os
import sys
from typing import Any


def without_telemetry() -> None:
    """Keep ONNX Runtime and OpenVINO from reporting their use; to be called before either is imported.

    ONNX Runtime would keep an id of the machine and events in the user's cache folder and send them; OpenVINO an id in
    the home folder. A user who has set ``ORT_DISABLE_TELEMETRY``, or imported them before, has decided already.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)  # its import fails then, which OpenVINO allows for
