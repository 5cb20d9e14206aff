"""Clients in a process of their own, as light as they can be: requests are bytes made beforehand, answers are counted.

Run as a script it reads a job from standard input, a JSON object, and writes what it saw to standard output:

    {"host", "port", "requests": [files], "timeout_s", "mode": "closed", "clients", "count"}
    {..., "mode": "open", "rate", "seconds", "connections"}

Closed: each client sends its next request when it has the answer to the last, until ``count`` are answered. Open:
requests are sent at random times (a Poisson process of ``rate`` per second) whether or not others were answered; a
latency counts from the time at which its request was due.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any


class Connection(asyncio.Protocol):
    """One connection that is kept alive, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._head = b""
        self._left = -1
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.open = transport, True

    async def ask(self, request: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Send a request; its answer's status and head (in lower case). The body is received, and counted only."""
        if self._transport is None or not self.open:
            raise ConnectionResetError("closed")
        self._head, self._left = b"", -1
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await asyncio.wait_for(self._answer, timeout_s)
        except asyncio.TimeoutError:
            self.close()
            raise

    def data_received(self, data: bytes) -> None:
        if self._left < 0:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            data, self._head = self._head[end + 4 :], self._head[:end].lower()
            at = self._head.find(b"content-length:")
            self._left = int(self._head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        self._left -= len(data)
        if self._left <= 0 and self._answer is not None and not self._answer.done():
            if b"\r\nconnection: close" in self._head:
                self.close()
            self._answer.set_result((int(self._head[9:12]), self._head))

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed before the answer was complete"))

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.close()


class Load:
    """A job, see above, and what is seen of it.

    Args:
        job: see above.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.requests = [Path(name).read_bytes() for name in job["requests"]]
        self.statuses: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.refusals: list[float] = []
        self.ended: list[float] = []
        self.without_retry_after = 0
        self.sent = 0
        self.idle: list[Connection] = []
        self.connections = 0
        self.unsent = 0

    async def connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(Connection, self.job["host"], self.job["port"])
        return made

    async def one(self, connection: Connection, due: float) -> None:
        """Send the next request and note how it went."""
        request = self.requests[self.sent % len(self.requests)]
        self.sent += 1
        try:
            status, head = await connection.ask(request, self.job["timeout_s"])
        except Exception as error:
            self.errors[type(error).__name__] += 1
            return
        now = time.perf_counter()
        self.statuses[status] += 1
        (self.latencies if status == 200 else self.refusals).append(now - due)
        if status == 200:
            self.ended.append(now)
        elif status in (429, 503) and b"\r\nretry-after:" not in head:
            self.without_retry_after += 1

    async def closed(self) -> None:
        async def client() -> None:
            connection = await self.connect()
            while self.sent < self.job["count"]:
                if not connection.open:
                    connection = await self.connect()
                await self.one(connection, time.perf_counter())
            connection.close()

        await asyncio.gather(*(client() for _ in range(self.job["clients"])))

    async def open(self) -> None:
        chance = random.Random(0)
        tasks: set[asyncio.Task[None]] = set()
        began = due = time.perf_counter()
        while due - began < self.job["seconds"]:
            due += chance.expovariate(self.job["rate"])
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            task = asyncio.create_task(self._arrival(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _arrival(self, due: float) -> None:
        while self.idle and not self.idle[-1].open:
            self.idle.pop()
            self.connections -= 1
        if self.idle:
            connection = self.idle.pop()
        elif self.connections < self.job["connections"]:
            self.connections += 1
            try:
                connection = await self.connect()
            except OSError as error:
                self.connections -= 1
                self.errors[type(error).__name__] += 1
                return
        else:
            self.unsent += 1
            return
        await self.one(connection, due)
        self.idle.append(connection)

    async def run(self) -> dict[str, Any]:
        began, cpu = time.perf_counter(), _cpu_s()
        await (self.closed() if self.job["mode"] == "closed" else self.open())
        return {
            "sent": self.sent,
            "unsent": self.unsent,
            "statuses": dict(self.statuses),
            "errors": dict(self.errors),
            "latencies_s": self.latencies,
            "refusals_s": self.refusals,
            "ended_s": [moment - began for moment in self.ended],
            "without_retry_after": self.without_retry_after,
            "wall_s": time.perf_counter() - began,
            "cpu_s": _cpu_s() - cpu,
        }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def start_load(job: dict[str, Any]) -> subprocess.Popen[str]:
    """Start the clients of a job in a process of their own."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={}
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(job))
    process.stdin.close()
    process.stdin = None
    return process


def result_of(process: subprocess.Popen[str], timeout_s: float) -> dict[str, Any]:
    """What the clients saw, once they are done."""
    out, _ = process.communicate(timeout=timeout_s)
    if process.returncode != 0:
        raise SystemExit("the clients have failed")
    found: dict[str, Any] = json.loads(out)
    found["statuses"] = {int(status): count for status, count in found["statuses"].items()}
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Load(json.load(sys.stdin)).run())))
