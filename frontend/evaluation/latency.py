"""Timing: methods in turns, so that drift of the machine cancels, with median and spread; and how cost grows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from frontend.errors import ConfigError

END_TO_END = "end_to_end"
"""The stage of a whole call: image in, keypoints and descriptors on the host out."""

_FAST = 0.2  # seconds below which what ran before may disturb a call
_SETTLE = 0.012  # seconds after which OpenMP's threads of another case have stopped spinning
_WARM = 0.5  # seconds of warming up after which there is no further call for it
_CALLS = 4  # some runtimes settle on the second call, OpenVINO compiles a network for a size on the fourth
_REPEATS = 10  # calls that fill these seconds, at most


@dataclass(frozen=True)
class Outcome:
    """What a call may say of itself.

    Attributes:
        stages: milliseconds of its parts.
        keypoints: number found in one image.
    """

    stages: Mapping[str, float] = field(default_factory=dict)
    keypoints: int | None = None


@dataclass(frozen=True)
class Case:
    """Something to be timed.

    Attributes:
        method: whose it is.
        call: does it once; returns when the result is on the host.
        runtime: what computes it, "opencv" for instance.
        precision: of its arithmetic.
        stage: what it is, :data:`END_TO_END` or a part of it.
        size: (width, height) of its images, pixels; None where there are none.
        batch: images of one call.
        keypoints: asked for in each image; 0 where there are none.
        ours: False for what this project is compared with.
        warm: whether it has been called already.
    """

    method: str
    call: Callable[[], Outcome | None]
    runtime: str = "torch"
    precision: str = "float32"
    stage: str = END_TO_END
    size: tuple[int, int] | None = (640, 480)
    batch: int = 1
    keypoints: int = 1024
    ours: bool = True
    warm: bool = False

    @property
    def label(self) -> str:
        """Method, runtime and what it is called with, in words."""
        size = "" if self.size is None else f", {self.size[0]}x{self.size[1]}"
        batch = "" if self.batch == 1 else f", batch {self.batch}"
        return f"{self.method} ({self.runtime} {self.precision}{size}{batch})"


@dataclass(frozen=True)
class Row:
    """A measured stage of a case.

    Attributes:
        method, runtime, precision, stage, batch, keypoints, ours: see :class:`Case`.
        size: "WIDTHxHEIGHT", empty where there are no images.
        keypoints_found: mean number in an image; None where the call does not say.
        samples: number of calls.
        ms_median: of one call, milliseconds.
        ms_p95: 95th percentile.
        ms_min: the fastest.
    """

    method: str
    runtime: str
    precision: str
    stage: str
    size: str
    batch: int
    keypoints: int
    ms_median: float
    ms_p95: float
    ms_min: float
    samples: int
    keypoints_found: float | None = None
    ours: bool = True

    @property
    def label(self) -> str:
        """Method, runtime and precision in words."""
        return f"{self.method} ({self.runtime} {self.precision})"


class Budget:
    """Seconds that may be spent.

    Args:
        seconds: in all; None without limit.
        clock: monotonic seconds.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        if seconds is not None and not seconds > 0:
            raise ConfigError(f"time limit is {seconds} s; expected more than 0")
        self._clock = clock
        self._end = math.inf if seconds is None else clock() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left; infinite without limit, never negative."""
        return max(0.0, self._end - self._clock())

    def part(self, seconds: float) -> Budget:
        """A budget of so many seconds, or of what is left where that is less."""
        left = min(seconds, self.left)
        return Budget(None if math.isinf(left) else max(left, 1e-9), self._clock)


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: calls of each case at most.
        seconds: a case that has spent so much sits out the rounds that follow.
        least: calls of each case whatever they take, as long as the budget lasts.
    """

    rounds: int = 50
    seconds: float = 10.0
    least: int = 5

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.least < 1 or not self.seconds > 0:
            raise ConfigError(f"effort is {self}; expected at least one round and more than 0 seconds")


class _Failed(Exception):
    """A case's call raised, which has been told."""


def interleave(
    cases: Sequence[Case],
    effort: Effort,
    budget: Budget | None = None,
    clock: Callable[[], float] = time.perf_counter,
    failed: list[tuple[str, str]] | None = None,
) -> list[Row]:
    """Time cases in turns: A B C A B C ...

    Every case that is not warm is called before, once, or up to four times while that stays under half a second,
    without being counted; and a fast case is called again, for some milliseconds, before each call that counts, so that
    neither another case's threads, which wait for work by spinning, nor its data in the caches are in the way. When the
    budget ends, what was measured by then is what is returned; every case is measured once at least.

    Args:
        cases: what to time.
        effort: how long.
        budget: of the whole run.
        clock: seconds.
        failed: is told of cases whose call raises, and why: they sit out the rest, and the others are measured.
            Without it the exception is the caller's.

    Returns:
        Rows of each case: the whole call, then its parts in their order.
    """
    budget = budget or Budget(None)
    samples: list[list[float]] = [[] for _ in cases]
    outcomes: list[list[Outcome]] = [[] for _ in cases]
    typical = [math.inf for _ in cases]
    lost: set[int] = set()

    def call(i: int) -> Outcome:
        try:
            return cases[i].call() or Outcome()
        except Exception as error:  # other projects' own among them
            if failed is None:
                raise
            lost.add(i)
            failed.append((cases[i].label, (str(error).strip() or type(error).__name__).splitlines()[0]))
            raise _Failed from error

    def warm_up(i: int) -> None:
        spent = 0.0
        for _ in range(_CALLS):
            began = clock()
            call(i)
            typical[i] = clock() - began
            spent += typical[i]
            if spent >= min(_WARM, budget.left):
                return

    def measure(i: int) -> None:
        if typical[i] < _FAST:
            for _ in range(min(max(math.ceil(_SETTLE / typical[i]), 1), _REPEATS)):
                call(i)
        began = clock()
        outcome = call(i)
        samples[i].append(clock() - began)
        outcomes[i].append(outcome)
        typical[i] = min(samples[i])

    for i, case in enumerate(cases):
        if not case.warm:
            with suppress(_Failed):
                warm_up(i)
    for turn in range(effort.rounds):
        if turn and not budget.left:
            break
        for i, times in enumerate(samples):
            over = turn >= effort.least and sum(times) > effort.seconds
            if i in lost or over or (times and min(times) > budget.left):
                continue
            with suppress(_Failed):
                measure(i)
    measured = zip(cases, samples, outcomes, strict=True)
    return [row for case, times, found in measured if times for row in _rows(case, times, found)]


def _rows(case: Case, seconds: list[float], outcomes: list[Outcome]) -> list[Row]:
    parts = {case.stage: [1e3 * value for value in seconds]}
    for outcome in outcomes:
        for stage, value in outcome.stages.items():
            parts.setdefault(stage, []).append(value)
    found = [outcome.keypoints for outcome in outcomes if outcome.keypoints is not None]
    return [
        Row(
            method=case.method,
            runtime=case.runtime,
            precision=case.precision,
            stage=stage,
            size="" if case.size is None else f"{case.size[0]}x{case.size[1]}",
            batch=case.batch,
            keypoints=case.keypoints,
            ms_median=float(np.median(values)),
            ms_p95=float(np.percentile(values, 95)),
            ms_min=min(values),
            samples=len(values),
            keypoints_found=float(np.mean(found)) if found else None,
            ours=case.ours,
        )
        for stage, values in parts.items()
    ]


def scaling_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """p of the power law ``cost ~ size ** p``: slope of the least-squares line through the logarithms.

    Args:
        sizes: pixels, keypoints or images; two different ones at least, > 0.
        costs: of each, > 0.

    Raises:
        ConfigError: fewer than two different sizes, or values that are not positive.
    """
    if len(sizes) != len(costs) or len(set(sizes)) < 2 or min(*sizes, *costs) <= 0:
        raise ConfigError(f"got sizes {list(sizes)} and costs {list(costs)}; expected two or more, positive")
    x, y = np.log(np.asarray(sizes, np.float64)), np.log(np.asarray(costs, np.float64))
    x -= x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())
