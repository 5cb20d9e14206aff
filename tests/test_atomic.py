from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frontend.atomic import atomic_path, atomic_write, remove_leftovers


def test_file_appears_whole_and_folders_are_made(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert list(target.parent.glob("*.txt")) == []  # a search by ending does not find the half-written file
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    atomic_write(target, b"old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
    atomic_write(target, "neu\u00e4")
    assert target.read_text("utf-8") == "neu\u00e4"


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    for target in (tmp_path / "folder", Path("/proc/a.json")):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(OSError, match=re.escape(str(target))) as caught:
            atomic_write(target, "text")
        assert caught.value.filename == str(target)
        assert ".tmp" not in str(caught.value)


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    target = tmp_path / "a.npz"
    with pytest.raises(OSError, match="No space left") as caught, atomic_path(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as write() does
    assert caught.value.filename == str(target)
    with pytest.raises(OSError, match="No space left") as caught:
        atomic_write("/dev/full", "text")
    assert caught.value.filename == "/dev/full"


def test_what_another_file_is_at_fault_for_names_that(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "a.npz"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")
    with pytest.raises(OSError, match=r"^no code$"), atomic_path(tmp_path / "a.npz"):
        raise OSError("no code")


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    atomic_write(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "there" / "a.json", tmp_path / "link.json"
    target.parent.mkdir()
    link.symlink_to(target)
    for content in (b"first", b"second"):  # the target is not there at first
        atomic_write(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    atomic_write(pipe, b"content")
    assert reader.communicate(timeout=10)[0] == b"content"
    assert list(tmp_path.iterdir()) == [pipe]


def test_names_may_be_as_long_as_names_may_be(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 251 + ".npz")
    atomic_write(target, b"content")
    assert target.read_bytes() == b"content"


def test_kill_while_writing_leaves_no_target(tmp_path: Path) -> None:
    target = tmp_path / "a.npz"
    code = (
        "import os, signal, sys\n"
        "from frontend.atomic import atomic_path\n"
        "with atomic_path(sys.argv[1]) as p:\n"
        "    p.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert not target.exists()
    (leftover,) = tmp_path.iterdir()
    assert remove_leftovers(tmp_path) == 0  # too young: it may be another process's
    old = time.time() - 7200
    os.utime(leftover, (old, old))
    assert remove_leftovers(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []
    assert remove_leftovers(tmp_path / "missing") == 0
