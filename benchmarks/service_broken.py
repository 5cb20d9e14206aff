"""Broken images, bombs, odd but right images and cut forms, posted to the real server, in two passes.

Every answer has to come in time and be a result or a refusal (no 5xx); the server's memory must not grow from the first
pass to the second; and what is odd but right has to give the features of the plain picture that it shows.

    python benchmarks/service_broken.py --count 1000           # 2 minutes on a CPU
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np

_ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_ROOT), str(_ROOT / "tests" / "service")]

from broken_images import Broken, broken_images  # noqa: E402
from load.server import Server  # noqa: E402
from odd_images import Odd, encoded, odd_images  # noqa: E402

EXPECTED = {200, 400, 413, 422}


def share_found(first: Any, second: Any) -> float:
    """The share of the keypoints of one answer that another has within 1 px; 0 where the images' sizes differ."""
    if first["image_size"] != second["image_size"]:
        return 0.0
    a, b = (np.reshape(found["keypoints"], (-1, 2)) for found in (first, second))
    if not len(a) or not len(b):
        return 0.0
    return float((np.linalg.norm(a[:, None] - b, axis=2).min(axis=1) < 1).mean())


def check_odd(client: httpx.Client, odd: Odd) -> float:
    """How much of what the plain picture gives an odd image gives."""
    query = {"max_keypoints": 100, "descriptors": "none"}
    found = client.post("/v1/features", content=odd.data, params=query)
    plain = client.post("/v1/features", content=encoded(".png", odd.picture), params=query)
    return share_found(plain.json(), found.json()) if found.status_code == 200 else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=30.0, help="seconds that an answer may take")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep", type=Path, help="folder where bodies that were not answered as expected are left")
    args = parser.parse_args()
    cases = list(broken_images(args.count, args.seed))
    statuses: Counter[int] = Counter()
    failures: list[str] = []
    slowest: list[tuple[float, str]] = []

    def post(case: Broken) -> None:
        began = time.perf_counter()
        try:
            answer = client.post("/v1/features", content=case.data, headers={"content-type": case.kind})
            status, text = answer.status_code, answer.text[:200]
        except httpx.HTTPError as error:
            status, text = 0, repr(error)
        statuses[status] += 1
        slowest.append((round(time.perf_counter() - began, 2), case.name))
        if status not in EXPECTED:
            failures.append(f"{status} {case.name}: {text}")
            if args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
                (args.keep / f"{len(failures)}").write_bytes(case.data)

    memory: list[float | None] = []
    with Server(device=args.device) as server, httpx.Client(base_url=server.url, timeout=args.limit) as client:
        with ThreadPoolExecutor(args.clients) as threads:
            memory.append(server.resident_mb())
            for _ in range(2):
                list(threads.map(post, cases))
                memory.append(server.resident_mb())
        shares = {odd.name: check_odd(client, odd) for odd in odd_images(np.random.default_rng(args.seed))}
        client.get("/readyz").raise_for_status()
        depth = "superpoint_queue_depth 0.0" in client.get("/metrics").text
        traces = server.log().count("Traceback")
    wrong = [
        f"{name}: {share:.0%} of the keypoints" for name, share in shares.items() if share < 0.8
    ]  # lossy formats move a few
    growth = memory[2] / memory[1] - 1 if memory[1] and memory[2] else None
    for line in failures + wrong:
        print(line, file=sys.stderr)
    line = {
        "images": args.count,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "failures": len(failures),
        "odd": len(shares),
        "odd_wrong": len(wrong),
        "slowest": sorted(slowest, reverse=True)[:5],
        "resident_mb": [None if mb is None else round(mb) for mb in memory],
        "growth": None if growth is None else round(growth, 4),
        "queue_empty": depth,
        "tracebacks": traces,
        "cores": os.cpu_count(),
    }
    print(json.dumps(line))
    return 1 if failures or wrong or traces or not depth or (growth or 0) > 0.05 else 0


if __name__ == "__main__":
    sys.exit(main())
