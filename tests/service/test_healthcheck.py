"""The command that the container's HEALTHCHECK runs, against a real server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
from live import live, wait_until

SCRIPT = Path(__file__).resolve().parents[2] / "docker" / "healthcheck.py"


def healthcheck(port: int) -> int:
    # a proxy that does not exist: it is not asked
    environment = {**os.environ, "SUPERPOINT_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-S", str(SCRIPT)], env=environment, capture_output=True, timeout=30)
    assert not done.stderr
    return done.returncode


def test_healthy_while_ready() -> None:
    with live(heartbeat_limit_s=0.5) as server:
        wait_until(lambda: healthcheck(server.port) == 0)
        with server.held():  # the device is silent for longer than it may
            wait_until(lambda: httpx.get(f"{server.base}/readyz").status_code == 503)
            assert healthcheck(server.port) == 1


def test_unhealthy_where_nobody_answers() -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        assert healthcheck(bound.getsockname()[1]) == 1
