"""How much faster one method is than another in a run, and which of a method's runtimes may be counted.

A runtime counts that finds what PyTorch finds in float32: by the comparison of the same run (:class:`Parity`), and
where there was none, if it computes in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frontend.evaluation.latency import END_TO_END, Row
from frontend.evaluation.latency_cases import USUAL
from frontend.evaluation.latency_suite import VGA, Parity
from frontend.runtime.parity import INT8_COSINE

SIZE = f"{VGA[0]}x{VGA[1]}"
SAME = 0.99
"""Part of the keypoints that a runtime has to have in common with PyTorch in float32."""

COSINE = 0.999
"""Cosine that 99 % of their descriptors have to exceed."""

STAGES = ("matching", "learned matching", "homography")
"""Stages beside :data:`END_TO_END` in which other projects' are measured as well."""

UNSHOWN = "parity not shown"


@dataclass(frozen=True)
class Ratio:
    """How much faster one method is than another, in one run.

    Attributes:
        method: ours, with its runtime and precision where it has several.
        peer: the other's label.
        times: its median time over ours; below 1 it is the faster one.
        stage: what both do, :data:`END_TO_END` or one of :data:`STAGES`.
        counts: whether ours finds what PyTorch finds in float32, see :func:`has_parity`.
    """

    method: str
    peer: str
    times: float
    stage: str = END_TO_END
    counts: bool = True

    def __str__(self) -> str:
        stage = "" if self.stage == END_TO_END or self.method.startswith(self.stage) else f"{self.stage}, "
        end = "" if self.counts else f" ({UNSHOWN})"
        if self.times >= 1:
            return f"{stage}{self.method}: {self.times:.1f}x faster than {self.peer}{end}"
        return f"{stage}{self.method}: {1 / self.times:.1f}x slower than {self.peer}{end}"


def end_to_end(rows: Sequence[Row], keypoints: int) -> list[Row]:
    """Whole calls of one VGA image, each method once: the sections that vary something measure them again."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.stage == END_TO_END and row.size == SIZE and row.batch == 1 and row.keypoints == keypoints:
            found.setdefault(row.label, row)
    return list(found.values())


def has_parity(row: Row, parities: Sequence[Parity]) -> bool:
    """Whether a row's runtime and precision find what PyTorch finds in float32.

    By this run's comparison; float32 that was not compared (PyTorch's own, or any where time ended) is taken for the
    same, anything else that was not is not.
    """
    found = next((parity for parity in parities if parity.label == row.label), None)
    return row.precision == "float32" if found is None else is_same(found)


def is_same(parity: Parity) -> bool:
    """Whether keypoints and descriptors are those of float32: within :data:`SAME` and :func:`cosine_of`."""
    return parity.same >= SAME and parity.cosine >= cosine_of(parity.precision)


def cosine_of(precision: str) -> float:
    """:data:`COSINE`, and less in int8."""
    return INT8_COSINE if precision == "int8" else COSINE


def best(rows: Sequence[Row], method: str, parities: Sequence[Parity]) -> Row | None:
    """A method's fastest runtime of those with :func:`has_parity`; None where there is none."""
    return fastest([row for row in rows if has_parity(row, parities)], method)


def fastest(rows: Sequence[Row], method: str) -> Row | None:
    """A method's fastest runtime, whatever it finds."""
    return min((row for row in rows if row.method == method), key=lambda row: row.ms_median, default=None)


def ratios(rows: Sequence[Row], keypoints: int, parities: Sequence[Parity] = ()) -> list[Ratio]:
    """Our methods, end to end, against everything else in the run.

    Args:
        rows: of the run.
        keypoints: asked for.
        parities: of the run.

    Returns:
        For each method those of its fastest runtime that counts, then, where another is faster, that one's.
    """
    whole = end_to_end(rows, keypoints)
    found = []
    for method in dict.fromkeys(row.method for row in whole if row.ours):
        others = [row for row in whole if not row.ours and (USUAL not in row.method or f"({method})" in row.method)]
        for ours in dict.fromkeys((best(whole, method, parities), fastest(whole, method))):
            if ours is not None:
                counts = has_parity(ours, parities)
                found += [
                    Ratio(ours.label, row.method, row.ms_median / ours.ms_median, counts=counts) for row in others
                ]
    return found


def stage_ratios(rows: Sequence[Row]) -> list[Ratio]:
    """Our matching, learned matching and homographies against other projects' in the run, each against each."""
    found = []
    for stage in STAGES:
        measured = [row for row in rows if row.stage == stage]
        for ours in (row for row in measured if row.ours):
            others = (row for row in measured if not row.ours and row.keypoints == ours.keypoints)
            found += [Ratio(ours.method, row.method, row.ms_median / ours.ms_median, stage) for row in others]
    return found
