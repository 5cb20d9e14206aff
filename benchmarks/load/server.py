"""The real service in a process of its own, and what can be read of it from outside."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType

_ROOT = Path(__file__).resolve().parents[2]
_TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """``superpoint serve`` while it is needed; or one that runs already.

    Args:
        url: of one that runs already; its process is not known then.
        settings: further ``SUPERPOINT_`` variables, by their names in lower case.

    Attributes:
        url: of the service.
        start_s: seconds from its start until it said that it is ready.
    """

    def __init__(self, url: str | None = None, **settings: object) -> None:
        self._given = url
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the server)
        self.url = url or ""
        self.start_s = 0.0

    def __enter__(self) -> Server:
        if self._given is None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            self.url = f"http://127.0.0.1:{port}"
            variables = {f"SUPERPOINT_{name.upper()}": str(value) for name, value in self._settings.items()}
            path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
            command = [sys.executable, "-m", "frontend.cli.main", "serve", "--port", str(port)]
            environment = {**os.environ, **variables, "PYTHONPATH": path}
            self._process = subprocess.Popen(command, env=environment, stdout=self._log, stderr=self._log)
        began = time.perf_counter()
        try:
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.start_s = time.perf_counter() - began
        return self

    def _wait(self) -> None:
        limit = time.monotonic() + 300
        while not self._ready():
            if not self.alive():
                raise SystemExit(f"the service has ended:\n{self.log()}")
            if time.monotonic() > limit:
                raise SystemExit("the service does not become ready")
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            self.get("/readyz")
        except OSError:
            return False
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(40)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.removeprefix("http://").rstrip("/").partition(":")
        return host, int(port or 80)

    def log(self) -> str:
        """What it has written so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is None or self._process.poll() is None

    def get(self, path: str) -> bytes:
        """The body of an answer to GET."""
        request = urllib.request.Request(self.url + path, headers=_key())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())

    def stages(self) -> dict[str, tuple[float, float]]:
        """(seconds, count) of each stage since the start."""
        text = self.get("/metrics").decode()
        sums = dict(re.findall(r'^superpoint_stage_seconds_sum\{stage="(\w+)"\} (\S+)$', text, re.MULTILINE))
        counts = dict(re.findall(r'^superpoint_stage_seconds_count\{stage="(\w+)"\} (\S+)$', text, re.MULTILINE))
        return {name: (float(sums[name]), float(counts[name])) for name in sums}

    def batches(self) -> tuple[float, float]:
        """(images, batches) since the start."""
        text = self.get("/metrics").decode()
        found = [re.search(rf"^superpoint_batch_size_{part} (\S+)$", text, re.MULTILINE) for part in ("sum", "count")]
        images, batches = (float(match[1]) if match else 0.0 for match in found)
        return images, batches

    def resident_mb(self) -> float | None:
        """Memory of its process in RAM; None where that is not known."""
        if self._process is None or not Path("/proc/self/status").exists():
            return None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[1]) / 1024 if found else None

    def cpu_s(self) -> float | None:
        """Processor time that it has used; None where that is not known."""
        if self._process is None or not Path("/proc/self/stat").exists():
            return None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


def _key() -> dict[str, str]:
    key = os.environ.get("SUPERPOINT_API_KEY")
    return {"X-API-Key": key} if key else {}
