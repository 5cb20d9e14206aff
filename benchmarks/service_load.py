"""What the service must hold under load, measured on the real server, its clients in processes of their own.

    first       the first request after /readyz says ready beside the hundredth, over several starts of the server
    throughput  concurrent clients over HTTP beside the engine alone in process: same images, same batches
    lone        one request at a time: what it takes beyond the model, by stage
    overload    requests at random times, many times more than the service can serve

Images are VGA JPEGs made from the samples, or from the photographs of --images; answers are binary (MessagePack).
Throughput alternates between the engine alone and HTTP, and the ratio is the median over rounds: what else the machine
does in the meantime meets both. Clients share the machine with the service; the processor time that they take is
reported, and the ratio is not corrected for it. Standard output ends with one line of JSON.

    python benchmarks/service_load.py                          # all, on the CPU 7 minutes
    python benchmarks/service_load.py --only throughput lone
    python benchmarks/service_load.py --url http://127.0.0.1:8000 --only lone overload
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from load.clients import result_of, start_load
from load.engine_alone import EngineAlone, steady_rate
from load.images import SAMPLES, features_request, match_request, vga_jpegs
from load.server import Server

BINARY = "application/msgpack"
_TIMEOUT_S = 120.0


class Bench:
    """What all measurements share.

    Args:
        args: of the command line.
        folder: for images and requests.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args = args
        jpegs = vga_jpegs(args.images, 16)
        key = os.environ.get("SUPERPOINT_API_KEY")
        self.jpegs = [_written(folder / f"{i}.jpg", data) for i, data in enumerate(jpegs)]
        features = [features_request(data, BINARY, key) for data in jpegs]
        matches = [match_request(first, second, BINARY, key) for first, second in pairwise(jpegs)]
        self.requests = {
            "features": [_written(folder / f"{i}.features", data) for i, data in enumerate(features)],
            "match": [_written(folder / f"{i}.match", data) for i, data in enumerate(matches)],
        }

    def server(self, **settings: Any) -> Server:
        """The service, started or given."""
        args = self.args
        return Server(args.url, model=args.model, device=args.device, max_batch=args.max_batch, **settings)

    def load(self, server: Server, what: str = "features", **job: Any) -> Any:
        """Start clients."""
        host, port = server.address
        job = {"host": host, "port": port, "requests": self.requests[what], "timeout_s": _TIMEOUT_S, **job}
        return start_load(job)

    def closed(self, server: Server, clients: int, count: int, what: str = "features") -> dict[str, Any]:
        """Run ``count`` requests of clients that each wait for the answer to their last one."""
        found = result_of(self.load(server, what, mode="closed", clients=clients, count=count), 600)
        if set(found["statuses"]) != {200} or found["errors"]:
            raise SystemExit(f"requests have failed: {found['statuses']} {found['errors']}\n{server.log()[-2000:]}")
        return found


def _written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def first(bench: Bench) -> dict[str, Any]:
    """The first request after a start beside the hundredth."""
    if bench.args.url:
        raise SystemExit("the first request needs a server that is started here; expected --only without 'first'")
    rows: dict[str, Any] = {}
    for what in ("features", "match"):
        firsts, hundredths, starts = [], [], []
        for _ in range(bench.args.starts):
            with bench.server() as server:
                starts.append(server.start_s)
                taken = bench.closed(server, 1, 110, what)["latencies_s"]
            firsts.append(taken[0] * 1e3)
            hundredths.append(median(taken[90:110]) * 1e3)
        rows[what] = {
            "first_ms": median(firsts),
            "hundredth_ms": median(hundredths),
            "ratio": median(firsts) / median(hundredths),
            "ratio_of_each_start": [round(a / b, 3) for a, b in zip(firsts, hundredths, strict=True)],
            "start_s": median(starts),
        }
    return rows


def throughput(bench: Bench) -> dict[str, Any]:
    """Concurrent clients beside the engine alone."""
    args = bench.args
    options = {"model": args.model, "device": args.device, "max_batch": args.max_batch, "decode_threads": 4}
    alone = {kind: EngineAlone(bench.jpegs, args.clients, decode=kind, **options) for kind in ("once", "each")}
    rounds = []
    # on a slow machine the clients' images would else be too many for the deadline, and some refused
    with bench.server(deadline_s=300) as server:
        bench.closed(server, args.clients, 2 * args.clients)
        for _ in range(args.rounds):
            before = alone["once"].run(args.count)
            each = alone["each"].run(args.count)
            cpu, batches = server.cpu_s(), server.batches()
            found = bench.closed(server, args.clients, args.count)
            images, runs = (new - old for new, old in zip(server.batches(), batches, strict=True))
            used = None if cpu is None else (server.cpu_s() or 0) - cpu
            rate = steady_rate(found["ended_s"], args.clients)
            rounds.append(
                {
                    "engine": before["rate"],
                    "engine_with_decoding": each["rate"],
                    "http": rate,
                    "ratio": rate / before["rate"],
                    "ratio_with_decoding": rate / each["rate"],
                    "batch": images / runs,
                    "engine_cpu_ms": before["cpu_s"] * 1e3,
                    "server_cpu_ms": None if used is None else used / args.count * 1e3,
                    "client_cpu_ms": found["cpu_s"] / args.count * 1e3,
                    "latencies_s": found["latencies_s"],
                }
            )
    for engine in alone.values():
        engine.close()
    taken = sorted(x for row in rounds for x in row.pop("latencies_s"))
    return {
        **{key: None if rounds[0][key] is None else median(row[key] for row in rounds) for key in rounds[0]},
        "clients": args.clients,
        "p50_ms": taken[len(taken) // 2] * 1e3,
        "p99_ms": taken[int(len(taken) * 0.99)] * 1e3,
        "ratio_of_each_round": [round(row["ratio"], 3) for row in rounds],
    }


def lone(bench: Bench) -> dict[str, Any]:
    """One request at a time."""
    chunks: list[dict[str, float]] = []
    with bench.server() as server:
        bench.closed(server, 1, 10)
        for _ in range(bench.args.chunks):
            before = server.stages()
            found = bench.closed(server, 1, 10)
            after = server.stages()
            row = {"total": sum(found["latencies_s"]) / 10 * 1e3}
            for stage, (seconds, count) in after.items():
                old_seconds, old_count = before.get(stage, (0.0, 0.0))
                if count > old_count:
                    row[stage] = (seconds - old_seconds) / (count - old_count) * 1e3
            row["elsewhere"] = row["total"] - sum(ms for stage, ms in row.items() if stage != "total")
            chunks.append(row)
    stages = {f"{stage}_ms": median(row[stage] for row in chunks) for stage in chunks[0]}
    overhead = median(row["total"] - row["device"] for row in chunks)
    model = stages["device_ms"]
    return {
        "overhead_ms": overhead,
        "limit_ms": max(0.15 * model, 5.0),
        "share_of_model": overhead / model,
        **stages,
    }


def overload(bench: Bench) -> dict[str, Any]:
    """Far more requests than can be served."""
    args = bench.args
    with bench.server(deadline_s=args.deadline) as server:
        measured = bench.closed(server, args.max_batch, 6 * args.max_batch)
        capacity = steady_rate(measured["ended_s"], args.max_batch)
        rate = args.factor * capacity
        job = {"mode": "open", "rate": rate, "seconds": args.seconds, "connections": 4096}
        process, began, memory = bench.load(server, **job), time.monotonic(), []
        while process.poll() is None and (passed := time.monotonic() - began) < args.seconds:
            memory.append((passed, server.resident_mb()))
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        found = result_of(process, 300)
        server.get("/readyz")
        alive = server.alive()
    # A batch needs memory while it runs, so peaks are compared, those of quarters of the time; the first one is the
    # warm period: buffers, threads and connections grow to what this load needs.
    peaks = [
        max((mb for passed, mb in memory if mb and quarter <= passed * 4 / args.seconds < quarter + 1), default=0.0)
        for quarter in range(1, 4)
    ]
    statuses, taken = found["statuses"], sorted(found["latencies_s"])
    cuts = quantiles(taken, n=100) if len(taken) > 1 else [0.0] * 99
    return {
        "capacity": capacity,
        "offered": (found["sent"] + found["unsent"]) / args.seconds,
        "served": statuses.get(200, 0) / found["wall_s"],
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "unsent": found["unsent"],
        "errors": found["errors"],
        "server_errors": sum(count for status, count in statuses.items() if status >= 500),
        "without_retry_after": found["without_retry_after"],
        "p50_s": cuts[49],
        "p99_s": cuts[98],
        "refusal_p99_ms": quantiles(found["refusals_s"], n=100)[98] * 1e3 if len(found["refusals_s"]) > 1 else 0.0,
        "deadline_s": args.deadline,
        "resident_mb": peaks if all(peaks) else None,
        "resident_span": max(peaks) / min(peaks) - 1 if all(peaks) else None,
        "alive": alive,
    }


MEASURES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "first": first,
    "throughput": throughput,
    "lone": lone,
    "overload": overload,
}


def verdicts(results: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """(what, figures, whether it holds) for each requirement that was measured."""
    lines = []
    for what, row in results.get("first", {}).items():
        text = f"first {row['first_ms']:.1f} ms, hundredth {row['hundredth_ms']:.1f} ms, ratio {row['ratio']:.3f}"
        lines.append((f"first {what} / hundredth <= 1.1", text, row["ratio"] <= 1.1))
    if row := results.get("throughput"):
        text = (
            f"{row['http']:.2f} of {row['engine']:.2f} images/s (with decoding {row['engine_with_decoding']:.2f}), "
            f"ratio {row['ratio']:.3f}, batch {row['batch']:.1f}, client {row['client_cpu_ms']:.1f} ms of CPU an image"
        )
        lines.append((f"HTTP / engine at {row['clients']} clients >= 0.85", text, row["ratio"] >= 0.85))
    if row := results.get("lone"):
        stages = ", ".join(f"{k[:-3]} {row[k]:.2f}" for k in row if k.endswith("_ms") and k[:-3] not in _NO_STAGE)
        text = f"{row['overhead_ms']:.2f} of {row['limit_ms']:.2f} ms; total {row['total_ms']:.1f}: {stages}"
        lines.append(("overhead of one < 15 % or 5 ms", text, row["overhead_ms"] < row["limit_ms"]))
    if row := results.get("overload"):
        text = f"{row['offered']:.0f}/s offered, capacity {row['capacity']:.1f}/s: {row['statuses']} {row['errors']}"
        sound = row["server_errors"] == 0 and not row["errors"] and row["statuses"].get("429", 0) > 0
        lines.append(("overload: 200 and 429 alone", text, sound and row["alive"]))
        text = f"p50 {row['p50_s']:.1f} s, p99 {row['p99_s']:.1f} s of {row['deadline_s']:.0f} s"
        lines.append(("overload: p99 of accepted in time", text, row["p99_s"] < row["deadline_s"]))
        text = f"{row['without_retry_after']} refusals without"
        lines.append(("overload: Retry-After", text, row["without_retry_after"] == 0))
        if row["resident_mb"]:
            text = f"peaks {', '.join(f'{mb:.0f}' for mb in row['resident_mb'])} MB, {row['resident_span']:.1%}"
            lines.append(("overload: memory within 5 %", text, row["resident_span"] <= 0.05))
    return lines


_NO_STAGE = ("overhead", "limit", "total")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--url", help="of a service that runs already, with the settings that --max-batch, ... tell of")
    parser.add_argument("--images", type=Path, default=SAMPLES, help="folder of photographs")
    parser.add_argument("--model", default="superpoint-edge")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--starts", type=int, default=5, help="of the server, for 'first', with each kind of request")
    parser.add_argument("--rounds", type=int, default=3, help="of 'throughput'")
    parser.add_argument("--count", type=int, default=160, help="images of a round")
    parser.add_argument("--chunks", type=int, default=20, help="of ten requests, for 'lone'")
    parser.add_argument("--factor", type=float, default=10.0, help="offered load over capacity, for 'overload'")
    parser.add_argument("--seconds", type=float, default=120.0, help="of 'overload'")
    parser.add_argument("--deadline", type=float, default=30.0, help="of the service, seconds")
    parser.add_argument("--json", type=Path, help="write the line of JSON here, too")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        for name in args.only:
            began = time.monotonic()
            results[name] = MEASURES[name](bench)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    found = verdicts(results)
    for what, text, holds in found:
        print(f"{'holds' if holds else 'FAILS'}  {what:<38} {text}")
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "device": args.device, "model": args.model}
    line = json.dumps({**machine, **_rounded(results)})
    print(line)
    if args.json:
        args.json.write_text(line + "\n")
    return 0 if all(holds for *_, holds in found) else 1


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
