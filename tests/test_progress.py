from __future__ import annotations

import io

import pytest

from frontend.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_gets_a_line_every_interval() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(100, "label", stream=stream, interval_s=5, clock=clock) as progress:
        for _ in range(40):
            clock.now += 0.25
            progress.update(note="loss 1.5")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3  # after 5 s, after 10 s, and at the end
    assert "20/100" in lines[0]
    assert "4.0 it/s" in lines[0]
    assert "0:20 left" in lines[0]
    assert lines[0].endswith("loss 1.5")
    assert "40/100" in lines[-1]


def test_short_work_says_nothing_in_a_log() -> None:
    stream = io.StringIO()
    with Progress(3, "label", stream=stream, clock=Clock()) as progress:
        progress.update(3)
    assert stream.getvalue() == ""


def test_terminal_redraws_one_line_and_ends_it() -> None:
    clock, stream = Clock(), Terminal()
    with Progress(4, "label", unit="image", stream=stream, clock=clock) as progress:
        for step in range(4):
            clock.now += 2
            progress.update()
            if step == 1:
                progress.write("skipped a.png")
    shown = stream.getvalue()
    assert shown.count("\n") == 2
    assert "\r\x1b[Kskipped a.png\n" in shown
    last = shown.rstrip("\n").rsplit("\r\x1b[K", 1)[1]
    assert last == "label [########################] 4/4  2.0 s/image  0:08"


def test_resumed_work_counts_in_the_bar_but_not_in_the_rate() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(100, "label", start=50, stream=stream, interval_s=1, clock=clock) as progress:
        clock.now += 10
        progress.update(10)
    assert "60/100" in stream.getvalue()
    assert "1.0 it/s" in stream.getvalue()
    assert "0:40 left" in stream.getvalue()


@pytest.mark.parametrize("total", [None, 0])
def test_unknown_or_empty_total(total: int | None) -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(total, "scan", stream=stream, interval_s=1, clock=clock) as progress:
        clock.now += 3700
        progress.update(2)
    assert "scan" in stream.getvalue()
    assert "1:01:40" in stream.getvalue()
