"""Commands run in processes of their own, and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

LONGEST_S = 200


def start_python(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Python with these arguments and environment variables, single-threaded, its output captured."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    """What a process that succeeds has printed."""
    out, err = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 0, err
    return out


def kill_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """kill -9 as soon as ``ready``; the process must not have ended by then."""
    limit = time.monotonic() + LONGEST_S
    while not ready():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def start_on_a_full_disk(free: int, *arguments: str) -> subprocess.Popen[str]:
    """The command ``superpoint``, in a process whose files take no more than so many bytes each."""
    limited = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({free}, {free}));"
        "from frontend.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    return start_python("-c", limited, *arguments)


def refused(process: subprocess.Popen[str]) -> str:
    """The last line that a process has printed on stderr which refuses, with no traceback before it."""
    _, err = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    return err.splitlines()[-1]
