"""Servers of sequences with settings of their own: expiry, memory, keys, and a kill -9."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from live import live, raw_stream
from moving import HEIGHT, WIDTH, view
from websockets.exceptions import ConnectionClosed, InvalidStatus

from service.client import (
    Client,
    Retry,
    SequenceFrame,
    SequenceLost,
    Unauthorized,
)

ONCE = Retry(attempts=1)


def test_expired_sequences_vanish_without_traffic_and_close_their_streams() -> None:
    with (
        live(sequence_ttl_s=30.0) as server,
        Client(server.base, retry=ONCE) as client,
        client.sequence() as brief,
        client.sequence() as lasting,
        brief.stream() as stream,
    ):
        stream.send(view(0), 1)
        assert isinstance(stream.receive(), SequenceFrame)
        server.core.sessions.get(brief.id).ttl_s = 0.0
        with pytest.raises(ConnectionClosed) as caught:
            stream._connection.recv(20)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 4404
        # nobody has asked for it
        assert list(server.core.sessions._sessions) == [lasting.id]
        with pytest.raises(SequenceLost):
            brief.track(view(0), 2)
        assert server.metric('superpoint_sequences_closed_total{reason="expired"}') == 1
        assert server.metric("superpoint_sequences") == 1


def test_a_hundred_sequences_stay_within_their_memory() -> None:
    limit_mb = 30.0
    settings = {"sequence_max": 100, "sequence_max_mb": limit_mb, "warmup": (f"{WIDTH}x{HEIGHT}",)}
    with live(**settings) as server, Client(server.base, retry=ONCE) as client:
        policy = {"max_tracks": 500, "max_gap": 100}
        every = [client.sequence(policy=policy, max_keypoints=128, camera_id=str(n)) for n in range(100)]
        for sequence in every:
            sequence.open()
        # some are filled as far as it goes: new scenery with each frame, and tracks that are not given up
        for n in range(6):
            for sequence in every[:: 10 if n < 1 else 50]:
                sequence.track(view(0, seed=n), n)
        status = {found.id: found for found in client.sequences()}
        assert len(status) == 100
        per_track = 4 * 8 + 2 * 16 + 128 * 4
        most = 500 * per_track + 128 * 24
        full = status[every[0].id].bytes
        assert 400 * per_track < full <= most
        total = sum(found.bytes for found in status.values())
        assert server.metric("superpoint_sequence_bytes") == total
        assert total <= server.metric("superpoint_sequence_reserved_bytes") == 100 * most
        assert 100 * most <= server.metric("superpoint_sequence_limit_bytes") == limit_mb * 1e6
        answer = httpx.post(f"{server.base}/v1/sequences", json={})
        assert (answer.status_code, answer.json()["code"]) == (429, "sequences_full")
        assert 0 < int(answer.headers["retry-after"]) <= 300
        every[3].close()
        # there is a place, but not the memory for more than 500 tracks
        answer = httpx.post(f"{server.base}/v1/sequences", json={"policy": {"max_tracks": 16384}})
        assert (answer.status_code, answer.json()["code"]) == (429, "sequences_full")
        answer = httpx.post(f"{server.base}/v1/sequences", json={"policy": policy, "max_keypoints": 128})
        assert answer.status_code == 201
        assert server.metric("superpoint_sequences_full_total") == 2


def test_keys_open_streams_by_header_and_by_subprotocol() -> None:
    key = "pa?s/wörd"
    with (
        live(api_keys=(key, "plain")) as server,
        Client(server.base, api_key="plain", retry=ONCE) as client,
        client.sequence() as sequence,
    ):
        with sequence.stream() as stream:
            stream.send(view(0), 1)
            assert isinstance(stream.receive(), SequenceFrame)
        token = base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")
        with raw_stream(server, sequence.id, subprotocols=["superpoint", f"key.{token}"]) as stream:
            assert stream.subprotocol == "superpoint"
        for wrong in ([], ["superpoint", "key.AAAA"], ["superpoint", "key.!"], ["key."]):
            with pytest.raises(InvalidStatus) as caught:
                raw_stream(server, sequence.id, subprotocols=wrong or None)
            assert caught.value.response.status_code == 401
        with Client(server.base, api_key="other", retry=ONCE) as stranger:
            lost = stranger.sequence()
            lost.context = sequence.context
            with pytest.raises(Unauthorized), lost.stream():
                pass


def serve(port: int, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "SUPERPOINT_WARMUP": "64x64", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "frontend.cli.main", "serve", "--port", str(port), "--device", "cpu"]
    with log.open("ab") as file:
        return subprocess.Popen(command, env=environment, stderr=file, stdout=file)


def test_kill_and_restart_lose_sequences_in_a_way_that_clients_understand(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = serve(port, log)
    try:
        with Client(f"http://127.0.0.1:{port}", timeout_s=60) as client:
            client.wait_ready()
            sequence = client.sequence()
            sequence.open()
            sequence.track(view(0), 1)
            process.send_signal(signal.SIGKILL)
            process.wait(20)
            process = serve(port, log)
            client.wait_ready()
            with pytest.raises(SequenceLost) as caught:
                sequence.track(view(3), 2)
            assert (caught.value.status, caught.value.code) == (404, "sequence_not_found")
            with pytest.raises(SequenceLost), sequence.stream():
                pass
            # a polite end answers what it has, and says that it restarts
            with client.sequence() as sequence, sequence.stream() as stream:
                stream.send(view(0), 1)
                stream.receive()
                for n in range(2, 4):
                    stream.send(view(3 * n), n)
                time.sleep(0.3)  # read, and perhaps answered
                process.send_signal(signal.SIGTERM)
                answers = [stream.receive() for _ in range(2)]
                assert all(isinstance(answer, SequenceFrame) for answer in answers)
                with pytest.raises(ConnectionClosed) as closed:
                    stream._connection.recv(20)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1012
            assert process.wait(30) in (0, -signal.SIGTERM)
            assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait(20)
