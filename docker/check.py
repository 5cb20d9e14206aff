"""Checks an image from the inside: python check.py SAMPLES [MAX_MB]. Started by check.sh, as the image's user.

Starts the service as the image does, asks it, and ends it; prints a line for each check, and exits 1 at the first that
fails. Nothing but Python is needed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

COMMAND = ("superpoint", "serve")
OURS = Path("/opt/superpoint")
# of the kernel, of the engine, and tmpfs
NOT_IMAGE = ("/proc", "/sys", "/dev", "/tmp", "/run", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
START_S, STOP_S, REQUEST_S = 240, 60, 60


def check(what: str, holds: object, seen: object = "") -> None:
    """One check, printed."""
    print(f"{'ok' if holds else 'FAILED'}: {what}{f' ({seen})' if seen != '' else ''}", flush=True)
    if not holds:
        sys.exit(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def image_files(mounted: Path) -> Iterator[os.DirEntry[str]]:
    """Files and folders of the image, without mounts."""
    left = ["/"]
    while left:
        try:
            entries = list(os.scandir(left.pop()))
        except PermissionError:  # then this user cannot write there either
            continue
        for entry in entries:
            if entry.path in NOT_IMAGE or Path(entry.path) in (mounted, Path(__file__).parent):
                continue
            yield entry
            if entry.is_dir(follow_symlinks=False):
                left.append(entry.path)


def sizes(mounted: Path) -> dict[str, int]:
    """Bytes of the image's files, links counted once, by top folder; below /opt/superpoint by package."""
    found: dict[str, int] = {}
    seen = set()
    site = next(OURS.glob("venv/lib/python*/site-packages"))
    for entry in image_files(mounted):
        if not entry.is_file(follow_symlinks=False):
            continue
        about = entry.stat(follow_symlinks=False)
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        parts = Path(entry.path).parts
        depth = len(site.parts) + 1 if entry.path.startswith(f"{site}/") else 4 if parts[1] == "opt" else 3
        name = "/".join(parts[:depth])[1:]
        found[name] = found.get(name, 0) + about.st_size
    return found


class Service:
    """The image's command, running.

    Args:
        environment: on top of the image's.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the process)
        self.port = free_port()
        self.process = subprocess.Popen(
            COMMAND,
            env={**os.environ, **environment, "SUPERPOINT_PORT": str(self.port)},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def ask(self, path: str, key: str | None = None, **images: Path) -> tuple[int, bytes]:
        """Status and body; with images, a POST of multipart/form-data."""
        boundary = secrets.token_hex(16)
        body = b"".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{file.name}"\r\n\r\n'.encode()
            + file.read_bytes()
            + b"\r\n"
            for name, file in images.items()
        )
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if images:
            request.data = body + f"--{boundary}--\r\n".encode()
            request.add_header("Content-Type", f"multipart/form-data; boundary={boundary}")
        if key is not None:
            request.add_header("X-API-Key", key)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=REQUEST_S) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def wait_ready(self) -> float:
        """Seconds until it is ready."""
        began = time.monotonic()
        while time.monotonic() < began + START_S:
            if self.process.poll() is not None:
                break
            try:
                if self.ask("/readyz")[0] == 200:
                    return time.monotonic() - began
            except OSError:
                pass
            time.sleep(0.1)
        check("the service becomes ready", False, self.said()[-2000:])
        raise AssertionError


def check_user() -> None:
    check("the user is not root", os.getuid() != 0 and os.getgid() != 0, f"uid {os.getuid()}, gid {os.getgid()}")
    capabilities = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")]
    check("it has no capabilities", int(capabilities[0].split()[1], 16) == 0, capabilities[0].split()[1])


def check_contents() -> None:
    ours = sys.prefix == str(OURS / "venv") and str(find_spec("torch").origin).startswith(sys.prefix)  # type: ignore
    tools = [tool for tool in ("cc", "gcc", "g++", "clang", "nvcc", "make", "ld") if shutil.which(tool)]
    check("there are no compilers, or the base's", not tools or not ours, ", ".join(tools))
    left = [str(path) for path in OURS.rglob("*") if path.name in {"pip", "include", "__pycache__", "test", ".cache"}]
    left = [path for path in left if path.count("site-packages/") and path.count("/") < 9]
    check("nothing is left of the installation", not left, ", ".join(left[:5]))


def check_read_only(mounted: Path) -> None:
    writable = [
        entry.path
        for entry in image_files(mounted)
        if not entry.is_symlink() and os.access(entry.path, os.W_OK) and entry.path not in ("/var/tmp", "/var/lock")
    ]
    check("nothing of the image can be written", not writable, ", ".join(writable[:10]))


def check_refusal() -> None:
    closed = Service({"SUPERPOINT_API_KEYS": "", "SUPERPOINT_NO_AUTH": ""})
    code = closed.process.wait(START_S)
    check("without keys it does not start", code == 2 and "SUPERPOINT_API_KEYS" in closed.said(), f"exit code {code}")


def check_answers(service: Service, key: str, first: Path, second: Path) -> None:
    status, _ = service.ask("/v1/features", image=first)
    check("without a key: 401", status == 401, status)
    status, body = service.ask("/v1/features?descriptors=none&max_keypoints=500", key, image=first)
    keypoints = json.loads(body)["keypoints"] if status == 200 else []
    check("features of a photograph", status == 200 and len(keypoints) > 200, f"{status}, {len(keypoints)} keypoints")
    status, body = service.ask("/v1/match", key, image0=first, image1=second)
    found = json.loads(body) if status == 200 else {}
    inliers = sum(found.get("inliers") or ())
    check("match of the pair", found.get("status") == "ok" and inliers > 50, f"{status}, {inliers} inliers")
    status, body = service.ask("/metrics", key)
    counted = any(line.startswith(b"superpoint_requests_total{") for line in body.splitlines())
    check("metrics", status == 200 and counted, status)
    environment = {**os.environ, "SUPERPOINT_PORT": str(service.port)}
    health = subprocess.run([sys.executable, str(OURS / "healthcheck.py")], env=environment, timeout=30)
    check("healthcheck", health.returncode == 0, f"exit code {health.returncode}")
    with socket.socket() as nobody:  # bound, not listening
        nobody.bind(("127.0.0.1", 0))
        environment["SUPERPOINT_PORT"] = str(nobody.getsockname()[1])
        health = subprocess.run([sys.executable, str(OURS / "healthcheck.py")], env=environment, timeout=30)
    check("healthcheck without the service", health.returncode == 1, f"exit code {health.returncode}")


def check_end(service: Service, key: str, first: Path, second: Path) -> None:
    answers: list[int] = []
    asking = [
        threading.Thread(target=lambda: answers.append(service.ask("/v1/match", key, image0=first, image1=second)[0]))
        for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    time.sleep(0.2)  # all are admitted, and the device is at work
    under_way = 4 - len(answers)
    began = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    try:
        code = service.process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        service.process.kill()
        code = None
    seconds = time.monotonic() - began
    for thread in asking:
        thread.join()
    # as process 1 it ends with 0; elsewhere uvicorn passes the signal on when everything is done
    graceful = code in (0, -signal.SIGTERM) and "Application shutdown complete" in service.said()
    check("SIGTERM ends it", graceful, f"exit code {code}, {seconds:.1f} s")
    check("what was accepted is answered", answers == [200] * 4, f"{answers}, {under_way} under way at the signal")


def main() -> None:
    samples = Path(sys.argv[1])
    first, second = samples / "rocket_0.jpg", samples / "rocket_1.jpg"
    check_user()
    check_contents()
    check_read_only(samples)
    command = ["superpoint-match", str(first), str(second), "-o", "/tmp/matches.png"]
    check("superpoint-match", subprocess.run(command, stdout=subprocess.DEVNULL, timeout=START_S).returncode == 0)
    check_refusal()

    started = time.time()
    key = secrets.token_hex(16)
    service = Service({"SUPERPOINT_API_KEYS": f"another,{key}"})
    try:
        check("the service is ready", True, f"after {service.wait_ready():.1f} s")
        owner = os.stat(f"/proc/{service.process.pid}").st_uid
        check("its process is not root's", owner != 0, f"uid {owner}")
        check_answers(service, key, first, second)
        check_end(service, key, first, second)
    finally:
        service.process.kill()
    newer = [e.path for e in image_files(samples) if e.stat(follow_symlinks=False).st_mtime > started]
    check("nothing was written outside /tmp", not newer, ", ".join(newer[:10]))

    measured = sizes(samples)
    total = sum(measured.values()) / 1e6
    for name, size in sorted(measured.items(), key=lambda item: -item[1])[:15]:
        print(f"{size / 1e6:8.1f} MB  {name}")
    limit = float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")
    check("files of the image", total < limit, f"{total:.0f} MB")


if __name__ == "__main__":
    main()
