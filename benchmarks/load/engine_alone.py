"""The engine without a service around it, in a process of its own: what the same batches reach in process.

Run as a script it says a line of JSON when it is warm, and then, for each line with a number of images on standard
input, runs as many and says how fast. As many images as there are clients are kept in the queue.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]


def steady_rate(ended: list[float], skipped: int) -> float:
    """Images per second after the first ``skipped``: from the end of the last of these to the end of the last of all,
    so that both ends are those of batches.
    """
    ended = sorted(ended)
    return (len(ended) - skipped) / (ended[-1] - ended[skipped - 1])


class EngineAlone:
    """The other side: starts the process and asks it.

    Args:
        files: JPEGs.
        clients: images in the queue at a time.
        options: ``model``, ``device``, ``max_batch`` and ``decode`` ("once": images are decoded before, the device's
            thread alone is measured; "each": every image is decoded in the service's pool of threads first).
    """

    def __init__(self, files: list[str], clients: int, **options: object) -> None:
        job = json.dumps({"files": files, "clients": clients, **options})
        self._process = subprocess.Popen(
            [sys.executable, __file__, job], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the engine alone has failed")
        found: dict[str, Any] = json.loads(line)
        return found

    def run(self, count: int) -> dict[str, Any]:
        """Run ``count`` images: images per second, and processor seconds for each."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def _serve(job: dict[str, Any]) -> None:
    sys.path.insert(0, str(_ROOT))
    from concurrent.futures import ThreadPoolExecutor

    from frontend.extractor import SuperPoint
    from frontend.image import decode_image
    from frontend.types import Features
    from service.engine import Engine, EngineConfig

    extractor = SuperPoint.from_pretrained(job["model"], device=job["device"])
    images = [Path(name).read_bytes() for name in job["files"]]
    engine = Engine(EngineConfig(max_batch=job["max_batch"]))
    engine.start()
    pool = ThreadPoolExecutor(job["decode_threads"])
    ready = [extractor.prepare(decode_image(data, "image")) for data in images]

    def run(count: int) -> list[float]:
        ended: list[float] = []
        places = threading.Semaphore(job["clients"])
        done = threading.Semaphore(0)

        def end(future: Future[Features]) -> None:
            future.result()
            ended.append(time.perf_counter())
            places.release()
            done.release()

        def submit(index: int) -> None:
            index %= len(images)
            prepared = ready[index]
            if job["decode"] == "each":
                prepared = extractor.prepare(decode_image(images[index], "image"))
            (slot,) = engine.reserve()
            engine.submit(extractor, prepared, time.monotonic() + 600, slot).add_done_callback(end)

        for index in range(count):
            places.acquire()
            if job["decode"] == "each":
                pool.submit(submit, index)
            else:
                submit(index)
        for _ in range(count):
            done.acquire()
        return ended

    run(2 * job["clients"])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        before = resource.getrusage(resource.RUSAGE_SELF)
        ended = run(int(line))
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({"rate": steady_rate(ended, job["clients"]), "cpu_s": cpu / len(ended)}), flush=True)
    engine.stop(60)


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
