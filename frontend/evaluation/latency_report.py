"""What the latency benchmark says: tables, ratios and checks for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from frontend.evaluation.latency import END_TO_END, Row
from frontend.evaluation.latency_cases import HOMOGRAPHY, USUAL
from frontend.evaluation.latency_peers import SIFT, XFEAT
from frontend.evaluation.latency_process import EMPTY_CACHE, as_json
from frontend.evaluation.latency_ratios import (
    SIZE,
    STAGES,
    UNSHOWN,
    Ratio,
    best,
    cosine_of,
    end_to_end,
    fastest,
    is_same,
    ratios,
    stage_ratios,
)
from frontend.evaluation.latency_suite import Exponent, Parity, Suite

_LINEAR = 1.1
"""Exponent up to which growth counts as linear: caches make large images a little dearer."""


@dataclass(frozen=True)
class Check:
    """A promise.

    Attributes:
        name: what is to hold.
        limit: in words.
        value: what was measured, in words.
        holds: whether it does; None where it was not measured.
    """

    name: str
    limit: str
    value: str
    holds: bool | None


def _fastest(found: Sequence[Ratio]) -> list[Ratio]:
    """The one with the most times, as a list; empty where there is none."""
    return sorted(found, key=lambda ratio: -ratio.times)[:1]


def _at_least(name: str, least: float, found: Sequence[Ratio], beside: Sequence[Ratio]) -> Check:
    """A check of ratios; the fastest of those that do not count is told where it is ahead of them."""
    value = "; ".join(f"{ratio.times:.2f}x by {ratio.method}" for ratio in found) or "not measured"
    ahead = [ratio for ratio in _fastest(beside) if all(ratio.times > other.times for other in found)]
    value += "".join(f"; {UNSHOWN}: {ratio.times:.2f}x by {ratio.method}" for ratio in ahead)
    return Check(name, f">= {least:g}x", value, all(ratio.times >= least for ratio in found) if found else None)


def _at_most(name: str, limit: float, unit: str, values: dict[str, float]) -> Check:
    said = "; ".join(f"{key} {value:.3g}{unit}".strip() for key, value in values.items()) or "not measured"
    return Check(name, f"<= {limit:g}{unit}", said, max(values.values()) <= limit if values else None)


def checks(suite: Suite) -> list[Check]:
    """What must hold, and whether it does."""
    rows, keypoints = suite.rows, suite.config.keypoints
    found = [
        *(_checks_of_a_cpu if suite.config.device == "cpu" else _checks_of_a_gpu)(rows, keypoints, suite.parities),
        _at_most(
            f"matching {keypoints} x {keypoints} x 256",
            5.0,
            " ms",
            {row.method: row.ms_median for row in rows if row.stage == "matching" and row.ours},
        ),
        _at_most(
            f"homography of {keypoints} matches, half of them wrong",
            5.0,
            " ms",
            {row.method: row.ms_median for row in rows if row.method == HOMOGRAPHY},
        ),
        *_parity_checks(suite),
        _at_most(
            "superpoint-match on a VGA pair, whole process",
            1000.0,
            " ms",
            {row.method: row.ms_median for row in rows if row.stage == "process"},
        ),
        _growth("growth with pixels, end to end", "pixels", suite.exponents),
        _growth("growth with keypoints, end to end", "keypoints", suite.exponents),
    ]
    flat = [memory.flat for memory in suite.memories]
    said = "; ".join(f"{m.growth_mib:+.1f} of {m.resident_mib:.0f} MiB, {m.images} images" for m in suite.memories)
    found.append(Check("resident memory is flat", "<= 1 % growth", said or "not measured", all(flat) if flat else None))
    return found


def _checks_of_a_cpu(rows: Sequence[Row], keypoints: int, parities: Sequence[Parity]) -> list[Check]:
    """Ratios of what counts, see :func:`frontend.evaluation.latency_ratios.has_parity`."""
    every = ratios(rows, keypoints, parities)
    paper = [ratio for ratio in every if USUAL in ratio.peer]

    def released(name: str, least: float, peer: str) -> Check:
        own = [ratio for ratio in every if ratio.method.startswith("superpoint-") and ratio.peer == peer]
        return _at_least(name, least, _fastest([ratio for ratio in own if ratio.counts]), _not_counted(own))

    return [
        _at_least(
            "paper's network against the usual SuperPoint, end to end",
            3.0,
            [ratio for ratio in paper if ratio.counts],
            _not_counted(paper),
        ),
        released("the fastest released network against OpenCV's SIFT", 4.0, SIFT),
        released("the fastest released network against XFeat", 2.0, XFEAT),
        _at_most("post-processing as a part of the network", 10.0, " %", _post_processing(rows, keypoints, parities)),
    ]


def _not_counted(found: Sequence[Ratio]) -> list[Ratio]:
    return [ratio for ratio in found if not ratio.counts]


def _checks_of_a_gpu(rows: Sequence[Row], keypoints: int, parities: Sequence[Parity]) -> list[Check]:
    """Limits in milliseconds, as on an H100: one image there is a matter of launches and copies, not of arithmetic."""
    own = [row for row in end_to_end(rows, keypoints) if row.ours]
    counted, first = best(own, "superpoint-vgg", parities), fastest(own, "superpoint-vgg")
    pairs = {row.label: row.ms_median for row in rows if row.stage == "pair" and row.ours}
    check = _at_most(
        "the paper's network, one VGA image, end to end",
        1.5,
        " ms",
        {counted.label: counted.ms_median} if counted else {},
    )
    if first is not None and first != counted:
        check = replace(check, value=f"{check.value}; {UNSHOWN}: {first.label} {first.ms_median:.3g} ms")
    return [check, _at_most("a VGA pair to its homography, warm", 3.0, " ms", pairs)]


def _growth(name: str, against: str, exponents: Sequence[Exponent]) -> Check:
    values = {e.label: e.exponent for e in exponents if e.against == against and e.stage == END_TO_END}
    return _at_most(name, _LINEAR, "", values)


def _post_processing(rows: Sequence[Row], keypoints: int, parities: Sequence[Parity]) -> dict[str, float]:
    """Time of the keypoints in percent of the network's, of each model in its fastest runtime that counts.

    A refiner's network is part of the network.
    """
    found = {}
    whole = end_to_end(rows, keypoints)
    for method in dict.fromkeys(row.method for row in whole if row.ours):
        counted = best(whole, method, parities)
        if counted is None:
            continue
        stages: dict[str, float] = {}
        for row in rows:
            if row.label == counted.label and row.size == SIZE and row.batch == 1 and row.keypoints == keypoints:
                stages.setdefault(row.stage, row.ms_median)
        network = stages.get("network", 0.0) + stages.get("refinement", 0.0)
        if network > 0 and "keypoints" in stages:
            found[counted.label] = 100 * stages["keypoints"] / network
    return found


def _parity_checks(suite: Suite) -> list[Check]:
    found = []
    for parity in suite.parities:
        value = f"{100 * parity.same:.2f} % the same, cosine {parity.cosine:.5f}"
        wanted = f">= 99 %, {cosine_of(parity.precision):g}"
        found.append(Check(f"{parity.label} finds what torch float32 finds", wanted, value, is_same(parity)))
    return found or [Check("runtimes find what torch float32 finds", ">= 99 %, 0.999", "not measured", None)]


def format_report(suite: Suite, machine: dict[str, Any], commit: str | None) -> str:
    """Tables, ratios and checks."""
    keypoints = suite.config.keypoints
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {' '.join(machine['flags'])}",
        f"{versions}; commit {commit or 'unknown'}; load {machine['load_1min']}",
    ]
    if machine["gpu"]:
        lines.append(f"GPU: {machine['gpu']}")
    whole = sorted(end_to_end(suite.rows, keypoints), key=lambda row: row.ms_median)
    if whole:
        lines += ["", f"End to end, {SIZE}, {keypoints} keypoints asked for, one image, ms:"]
        lines += _table(
            ("method", "runtime", "precision", "median", "p95", "network", "keypoints", "found"),
            [
                (r.method, r.runtime, r.precision, _ms(r.ms_median), _ms(r.ms_p95), *_parts(suite.rows, r), _count(r))
                for r in whole
            ],
        )
    stages = (*STAGES, "pair", "process", EMPTY_CACHE)
    others = [row for row in suite.rows if row.stage in stages]
    if others:
        lines += [
            "",
            f"Matching and homographies of {keypoints} points; a VGA pair, warm and as a process of its own, ms:",
        ]
        lines += _table(
            ("stage", "method", "median", "p95"),
            [(row.stage, row.method, _ms(row.ms_median), _ms(row.ms_p95)) for row in others],
        )
    if suite.exponents:
        lines += ["", "Growth (exponent of a power law; 1 is linear):"]
        for e in suite.exponents:
            steps = ", ".join(f"{value:g}: {_ms(ms)}" for value, ms in zip(e.values, e.ms, strict=True))
            lines.append(f"  {e.label}, {e.stage} against {e.against}: {e.exponent:.2f}  ({steps} ms)")
    for m in suite.memories:
        lines += [
            "",
            f"Memory of {m.method} ({m.runtime} {m.precision}), {m.size}, {m.images} images: "
            f"{m.loaded_mib:.0f} MiB loaded, "
            f"{m.working_mib:+.0f} with images, peak {m.peak_mib:.0f}, growth {m.growth_mib:+.1f} MiB "
            f"({m.kib_per_image:+.2f} KiB an image)",
        ]
    if suite.skipped:
        lines += ["", "Not measured:", *(f"  {what}: {why}" for what, why in suite.skipped)]
    for what, compared in (
        ("end to end", ratios(suite.rows, keypoints, suite.parities)),
        (f"matching and homographies of {keypoints} points", stage_ratios(suite.rows)),
    ):
        if compared:
            lines += ["", f"Ratios of medians, {what}, in this run:", *(f"  {ratio}" for ratio in compared)]
    lines += ["", "Must hold:"]
    says: Callable[[bool | None], str] = {True: "holds", False: "FAILS", None: "-"}.__getitem__
    lines += [f"  {says(c.holds):<5}  {c.name}: {c.value} (expected {c.limit})" for c in checks(suite)]
    return "\n".join(lines) + "\n"


def _parts(rows: Sequence[Row], whole: Row) -> tuple[str, str]:
    def part(stage: str) -> str:
        found = (
            row.ms_median
            for row in rows
            if (row.label, row.size, row.batch, row.keypoints, row.stage)
            == (whole.label, whole.size, whole.batch, whole.keypoints, stage)
        )
        value = next(found, None)
        return "" if value is None else _ms(value)

    return part("network"), part("keypoints")


def _count(row: Row) -> str:
    return "" if row.keypoints_found is None else f"{row.keypoints_found:.0f}"


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(title), *(len(row[i]) for row in rows)) for i, title in enumerate(titles)]
    texts = ("method", "runtime", "precision", "stage")

    def line(cells: Sequence[str]) -> str:
        return "  " + "  ".join(
            f"{cell:<{w}}" if title in texts else f"{cell:>{w}}"
            for title, cell, w in zip(titles, cells, widths, strict=True)
        )

    return [line(titles).rstrip(), *(line(row).rstrip() for row in rows)]


def to_json(suite: Suite, machine: dict[str, Any], commit: str | None, command: Sequence[str]) -> str:
    """The JSON document: ``machine``, ``commit``, ``protocol``, ``rows`` and what follows from them."""
    config = suite.config
    compared = [*ratios(suite.rows, config.keypoints, suite.parities), *stage_ratios(suite.rows)]
    document = {
        "benchmark": "latency",
        "machine": machine,
        "commit": commit,
        "protocol": {
            "command": list(command),
            "models": list(config.models),
            "device": config.device,
            "sections": list(config.sections),
            "keypoints": config.keypoints,
            "effort": asdict(config.effort),
            "seconds": config.seconds,
            "order": "cases in turns within a section",
        },
        "rows": [{key: _rounded(value) for key, value in asdict(row).items()} for row in suite.rows],
        "ratios": [{**asdict(ratio), "times": round(ratio.times, 3)} for ratio in compared],
        "exponents": [asdict(exponent) for exponent in suite.exponents],
        "parity": [asdict(parity) for parity in suite.parities],
        "memory": [as_json(memory) for memory in suite.memories],
        "checks": [asdict(check) for check in checks(suite)],
        "skipped": [{"what": what, "why": why} for what, why in suite.skipped],
    }
    return json.dumps(document, indent=1, allow_nan=False)


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
