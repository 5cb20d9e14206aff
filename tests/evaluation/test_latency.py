"""Timing in turns, power laws, parity and memory: against clocks and data whose truth is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from frontend.errors import ConfigError
from frontend.evaluation.latency import Budget, Case, Effort, Outcome, interleave, scaling_exponent
from frontend.evaluation.latency_process import summarize_memory
from frontend.evaluation.latency_suite import compare
from frontend.types import Features


class Machine:
    """A clock, and calls that take a known time on it; it slows down as it goes."""

    def __init__(self, drift: float = 0.0) -> None:
        self.now = 0.0
        self.drift = drift
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def case(self, name: str, seconds: float, stages: dict[str, float] | None = None) -> Case:
        def call() -> Outcome:
            self.log.append(name)
            self.now += seconds * (1 + self.drift * len(self.log))
            return Outcome(stages or {}, keypoints=7)

        return Case(name, call)


def test_cases_take_turns_after_warming_up() -> None:
    machine = Machine()
    rows = interleave([machine.case("a", 0.1), machine.case("b", 0.7)], Effort(3, 100.0, 3), clock=machine.clock)
    # a is fast: it warms up four times, and once more before each call that counts
    assert machine.log == ["a"] * 4 + ["b", *"aab" * 3]
    assert [(row.method, row.samples) for row in rows] == [("a", 3), ("b", 3)]
    assert rows[0].ms_median == pytest.approx(100.0)
    assert rows[1].ms_median == pytest.approx(700.0)
    assert rows[0].keypoints_found == 7
    assert rows[0].size == "640x480"


def test_a_call_that_prepares_itself_after_some_calls_is_not_timed_doing_so() -> None:
    machine = Machine()
    counter = itertools.count(1)

    def call() -> None:  # OpenVINO compiles a network for a size when it has come four times
        machine.now += 1.1 if next(counter) == 4 else 0.05

    (row,) = interleave([Case("a", call)], Effort(1, 1.0, 1), clock=machine.clock)
    assert (row.samples, row.ms_median) == (1, pytest.approx(50.0))


def test_warm_cases_are_not_warmed_up() -> None:
    machine = Machine()
    cases = [machine.case("a", 1.0), replace(machine.case("b", 1.0), warm=True)]
    interleave(cases, Effort(2, 100.0, 2), clock=machine.clock)
    assert machine.log == ["a", *"abab"]


def test_drift_cancels_in_ratios() -> None:
    machine = Machine(drift=0.1)  # the last call takes five times as long as the first
    a, b = interleave([machine.case("a", 0.1), machine.case("b", 0.3)], Effort(21, 1e9, 3), clock=machine.clock)
    assert a.ms_p95 > 1.3 * a.ms_median
    assert b.ms_median / a.ms_median == pytest.approx(3.0, rel=0.05)


def test_percentiles_are_those_of_the_samples() -> None:
    values = [7.0, *(1.0 + 0.1 * k for k in range(20))]
    clock = itertools.chain.from_iterable((0.0, t) for t in [0.6, *values])  # the first is the warm-up
    (row,) = interleave([Case("a", lambda: None)], Effort(21, 1e9, 21), clock=lambda: next(clock))
    assert row.samples == 21
    assert row.ms_median == pytest.approx(2000.0)
    assert row.ms_p95 == pytest.approx(2900.0)
    assert row.ms_min == pytest.approx(1000.0)


def test_slow_cases_sit_out_and_budgets_end() -> None:
    machine = Machine()
    cases = [machine.case("slow", 2.0), machine.case("fast", 0.01)]
    slow, fast = interleave(cases, Effort(50, 5.0, 2), clock=machine.clock)
    assert slow.samples == 3  # 2, 4, 6 s
    assert fast.samples == 50
    machine = Machine()
    budget = Budget(30.0, machine.clock)
    cases = [machine.case("a", 4.0), machine.case("b", 5.0)]
    a, b = interleave(cases, Effort(50, 1e9, 5), budget, machine.clock)
    # 9 s of warm-up, then 9 s a turn; neither would have ended a third time before the limit
    assert (a.samples, b.samples) == (2, 2)
    assert machine.now == 27.0


def test_what_fails_sits_out_and_the_others_are_measured() -> None:
    machine = Machine()
    counter = itertools.count(1)

    def fail() -> None:
        machine.now += 1.0
        if next(counter) > 2:
            raise RuntimeError("out of memory\nat 0x0")

    cases = [Case("late", fail), machine.case("a", 1.0), Case("early", lambda: print(1 / 0), "torch", batch=4)]
    failed: list[tuple[str, str]] = []
    rows = interleave(cases, Effort(3, 100.0, 3), clock=machine.clock, failed=failed)
    assert [(row.method, row.samples) for row in rows] == [("late", 1), ("a", 3)]
    assert failed == [
        ("early (torch float32, 640x480, batch 4)", "division by zero"),
        ("late (torch float32, 640x480)", "out of memory"),
    ]
    with pytest.raises(ZeroDivisionError):
        interleave(cases[2:], Effort(3, 100.0, 3), clock=machine.clock)


def test_every_case_is_measured_even_without_time() -> None:
    machine = Machine()
    rows = interleave(
        [machine.case("a", 4.0), machine.case("b", 5.0)], Effort(), Budget(1.0, machine.clock), machine.clock
    )
    assert [row.samples for row in rows] == [1, 1]


def test_parts_become_rows() -> None:
    machine = Machine()
    case = machine.case("a", 0.02, {"network": 12.0, "keypoints": 3.0})
    rows = interleave([case], Effort(4, 1e9, 1), clock=machine.clock)
    assert [(row.stage, round(row.ms_median, 6)) for row in rows] == [
        ("end_to_end", 20.0),
        ("network", 12.0),
        ("keypoints", 3.0),
    ]


def test_budgets() -> None:
    machine = Machine()
    budget = Budget(10.0, machine.clock)
    machine.now = 4.0
    assert budget.left == 6.0
    assert budget.part(2.0).left == 2.0
    assert budget.part(20.0).left == 6.0
    machine.now = 11.0
    assert budget.left == 0.0
    assert budget.part(5.0).left < 1e-6
    assert Budget(None).part(math.inf).left == math.inf
    with pytest.raises(ConfigError, match="time limit is 0"):
        Budget(0)
    with pytest.raises(ConfigError, match="at least one round"):
        Effort(rounds=0)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_scaling_exponent_of_power_laws(power: float) -> None:
    sizes = [100.0, 250.0, 900.0, 4000.0]
    assert scaling_exponent(sizes, [3.0 * size**power for size in sizes]) == pytest.approx(power, abs=1e-12)


def test_scaling_exponent_is_the_least_squares_slope(rng: np.random.Generator) -> None:
    sizes = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    costs = sizes * np.exp(rng.normal(0, 0.2, 5))
    expected = np.polyfit(np.log(sizes), np.log(costs), 1)[0]
    assert scaling_exponent(sizes.tolist(), costs.tolist()) == pytest.approx(expected, abs=1e-12)
    for wrong in ([1.0, 1.0], [1.0, 0.0], [1.0]):
        with pytest.raises(ConfigError, match="expected two or more, positive"):
            scaling_exponent(wrong, [1.0] * len(wrong))


def memory(samples: Iterator[float] | list[float]) -> tuple[float, float, bool]:
    found = summarize_memory(90.0, list(samples), "m", ("torch", "float32"), (640, 480))
    return found.growth_mib, found.kib_per_image, found.flat


def test_memory_that_settles_is_flat_and_a_leak_is_not(rng: np.random.Generator) -> None:
    settled = [150.0 + min(i, 5) * 10 + float(rng.uniform(-0.2, 0.2)) for i in range(100)]
    growth, slope, flat = memory(settled)
    assert flat
    assert abs(growth) < 0.3
    assert abs(slope) < 10
    # 50 KiB an image
    growth, slope, flat = memory([200.0 + i * 50 / 1024 for i in range(100)])
    assert not flat
    assert growth == pytest.approx(50 * 50 / 1024)
    assert slope == pytest.approx(50.0)
    with pytest.raises(ConfigError, match="expected 8 or more"):
        memory([1.0] * 7)


def features(keypoints: np.ndarray, descriptors: np.ndarray) -> Features:
    unit = descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)
    return Features(
        keypoints.astype(np.float32), np.ones(len(keypoints), np.float32), unit.astype(np.float32), (640, 480)
    )


def test_parity_counts_both_ways(rng: np.random.Generator) -> None:
    points, descriptors = rng.permutation(1000)[:100, None] * np.array([[0.5, 0.3]]) + 5, rng.normal(size=(100, 16))
    reference = features(points, descriptors)
    assert compare("same", "float32", [reference], [reference]).same == 1.0
    assert compare("same", "float32", [reference], [reference]).cosine == pytest.approx(1.0, abs=1e-6)
    # ten of them elsewhere, in another order
    moved = points.copy()
    moved[:10] += 2000
    order = rng.permutation(100)
    other = compare("other", "bf16", [reference], [features(moved[order], descriptors[order])])
    assert other.same == pytest.approx(0.9)
    assert other.cosine == pytest.approx(1.0, abs=1e-6)
    # half as many: all of those are in the reference, half of the reference is in those
    assert compare("half", "bf16", [reference], [features(points[:50], descriptors[:50])]).same == pytest.approx(
        100 / 150
    )
    turned = compare("turned", "int8", [reference], [features(points, -descriptors)])
    assert turned.cosine == pytest.approx(-1.0, abs=1e-6)
    nothing = features(np.zeros((0, 2)), np.zeros((0, 16)))
    assert compare("nothing", "int8", [reference], [nothing]).same == 0.0
