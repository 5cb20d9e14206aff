"""The latency benchmark as a whole: which cases, in which order, within which time."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from frontend.errors import ConfigError, FrontendError
from frontend.evaluation import latency_peers
from frontend.evaluation.latency import END_TO_END, Budget, Case, Effort, Row, interleave, scaling_exponent
from frontend.evaluation.latency_cases import extraction_case, learned_cases, matching_cases, pair_case, usual_case
from frontend.evaluation.latency_models import ImageSource, ModelUnderTest, find_models, open_extractor
from frontend.evaluation.latency_process import EMPTY_CACHE, Memory, cold_start_cases, measure_memory
from frontend.extractor import SuperPoint
from frontend.types import Features

VGA = (640, 480)
SIZES = ((320, 240), VGA, (1280, 720), (1920, 1080))
KEYPOINTS = (256, 512, 1024, 2048, 4096)
SHARES = {
    "extraction": 0.45,
    "parity": 0.15,
    "matching": 0.1,
    "process": 0.15,
    "sizes": 0.1,
    "keypoints": 0.1,
    "batches": 0.1,
    "memory": 0.2,
}
"""Sections in their order, and the most of a limited time that each may take; what one leaves, the next may use.

Parity comes while extraction's networks are at hand: it says which of their times count.
"""

RESERVED = {"parity": 0.15, "memory": 0.15}
"""Parts of a limited time that sections before these leave to them."""

OPENING = 0.3
"""Part of a limited time after which no network is exported or compiled any more."""

SECTIONS = tuple(SHARES)

EXACT = ("torch", "float32")
"""Runtime and precision that the others are compared with."""

NEAR_PX = 0.5
"""Distance within which two runtimes found the same keypoint."""


@dataclass(frozen=True)
class SuiteConfig:
    """What to measure, and how long.

    Attributes:
        models: released names, weight files, or presets that get random weights; the first is the one that sizes,
            numbers of keypoints, batches, cold start and memory are measured of.
        device: "cpu", "cuda" or "cuda:N".
        pairs: (runtime, precision) to measure, for each model.
        sections: of :data:`SECTIONS`.
        keypoints: of an image, where not varied.
        peers: names of :data:`frontend.evaluation.latency_peers.EXTRACTORS`.
        matchers: names of :data:`frontend.evaluation.latency_peers.MATCHERS`.
        batches: images of a call.
        effort: of each section.
        seconds: limit of the whole run; None without.
        memory_images: images that memory is measured over; 8 or more.
        empty_caches: calls of superpoint-match that find an empty cache; 0 leaves them out.
    """

    models: tuple[str, ...]
    device: str = "cpu"
    pairs: tuple[tuple[str, str], ...] = (("torch", "float32"),)
    sections: tuple[str, ...] = SECTIONS
    keypoints: int = 1024
    peers: tuple[str, ...] = tuple(latency_peers.EXTRACTORS)
    matchers: tuple[str, ...] = tuple(latency_peers.MATCHERS)
    batches: tuple[int, ...] = (1, 2, 4, 8)
    effort: Effort = field(default_factory=Effort)
    seconds: float | None = None
    memory_images: int = 500
    empty_caches: int = 2

    def __post_init__(self) -> None:
        known: tuple[tuple[str, Collection[str]], ...] = (
            ("section", SECTIONS),
            ("peer", latency_peers.EXTRACTORS),
            ("matcher", latency_peers.MATCHERS),
        )
        for (name, options), given in zip(known, (self.sections, self.peers, self.matchers), strict=True):
            unknown = [value for value in given if value not in options]
            if unknown:
                raise ConfigError(f"{name} is '{unknown[0]}'; expected one of: {', '.join(options)}")
        if not self.models:
            raise ConfigError("no model to measure; expected a released name, a weight file or a preset")
        if self.keypoints < 1:
            raise ConfigError(f"keypoints is {self.keypoints}; expected 1 or more")
        if self.memory_images < 8:
            raise ConfigError(f"memory_images is {self.memory_images}; expected 8 or more")


@dataclass(frozen=True)
class Exponent:
    """How a cost grows: ``ms ~ against ** exponent``.

    Attributes:
        label: whose.
        stage: of what.
        against: "pixels", "keypoints" or "images".
        exponent: of the power law.
        values: what was varied.
        ms: cost of each, milliseconds.
    """

    label: str
    stage: str
    against: str
    exponent: float
    values: tuple[float, ...]
    ms: tuple[float, ...]


@dataclass(frozen=True)
class Parity:
    """A runtime against PyTorch in float32, on the same images.

    Attributes:
        label: model, runtime and precision.
        precision: of the arithmetic.
        same: part of the keypoints that the other found too, within :data:`NEAR_PX`, both ways.
        cosine: of the descriptors of those, the value that 99 % exceed.
    """

    label: str
    precision: str
    same: float
    cosine: float


@dataclass
class Suite:
    """A run and what it found.

    Attributes:
        config: settings.
        images: where images come from.
        folder: for files of the run.
        rows: all measured stages.
        exponents, parities, memories: further results.
        skipped: what was not measured, and why.
    """

    config: SuiteConfig
    images: ImageSource
    folder: Path
    rows: list[Row] = field(default_factory=list)
    exponents: list[Exponent] = field(default_factory=list)
    parities: list[Parity] = field(default_factory=list)
    memories: list[Memory] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    _extractors: dict[tuple[str, str, str], SuperPoint] = field(default_factory=dict)
    _budget: Budget = field(default_factory=lambda: Budget(None))
    _section: Budget = field(default_factory=lambda: Budget(None))
    _opening: Budget = field(default_factory=lambda: Budget(None))
    _models: list[ModelUnderTest] = field(default_factory=list)

    def run(self) -> None:
        """Run all sections, with a line on stderr for each.

        Raises:
            WeightsError: a model's weights are not there.
        """
        limit = self.config.seconds
        self._budget = Budget(limit)
        self._opening = self._budget.part(math.inf if limit is None else OPENING * limit)
        self._models = find_models(self.config.models, self.folder)
        sections: dict[str, Callable[[], None]] = {
            "extraction": self._extraction,
            "parity": self._parity,
            "matching": self._matching,
            "process": self._process,
            "sizes": self._sizes,
            "keypoints": self._keypoints,
            "batches": self._batches,
            "memory": self._memory,
        }
        wanted = [name for name in SECTIONS if name in self.config.sections]
        for i, name in enumerate(wanted):
            left, share = self._budget.left, math.inf
            if limit is not None:
                left -= limit * sum(RESERVED.get(later, 0.0) for later in wanted[i + 1 :])
                share = SHARES[name] * limit
            if left <= 0:
                self.skipped.append((name, "no time left"))
                continue
            print(f"bench: {name}", file=sys.stderr, flush=True)
            self._section = self._budget.part(min(left, share))
            sections[name]()

    def extractor(self, model: ModelUnderTest, pair: tuple[str, str]) -> SuperPoint | None:
        """A loaded model; None, and a note, where this runtime cannot have it, or there is no time to export it."""
        key = (model.source, *pair)
        if key not in self._extractors:
            try:
                # PyTorch's needs no export, and one of them there has to be
                if self._extractors and pair != EXACT and not self._opening.left:
                    raise ConfigError("no time left to open it")
                self._extractors[key] = open_extractor(model, *pair, self.config.device)
            except FrontendError as error:
                note = (f"{model.label} ({' '.join(pair)})", str(error))
                if note[0] not in (what for what, _ in self.skipped):
                    self.skipped.append(note)
                return None
        return self._extractors[key]

    def best_pair(self, model: ModelUnderTest) -> tuple[str, str]:
        """Runtime and precision that were fastest end to end, int8 aside; tried briefly where none was measured yet."""
        pairs = [pair for pair in self.config.pairs if pair[1] != "int8"]
        if len(pairs) < 2:
            return (pairs or self.config.pairs)[0]
        rows = [row for row in self.rows if row.stage == END_TO_END and row.method == model.label]
        if not rows:
            opened = [(pair, self.extractor(model, pair)) for pair in pairs]
            images = self.images.of_size(VGA)
            keypoints = self.config.keypoints
            cases = [
                extraction_case(found, model.label, pair, images, keypoints=keypoints)
                for pair, found in opened
                if found is not None
            ]
            rows = interleave(cases, Effort(3, 1.0, 1), self._section, failed=self.skipped)
            rows = [row for row in rows if row.stage == END_TO_END]
        rows = [row for row in rows if row.precision != "int8"]
        if not rows:
            return pairs[0]
        best = min(rows, key=lambda row: row.ms_median)
        return best.runtime, best.precision

    def _time(self, cases: Sequence[Case]) -> list[Row]:
        rows = interleave(cases, self.config.effort, self._section, failed=self.skipped)
        self.rows += rows
        return rows

    def _extraction(self) -> None:
        """End to end with stages: all models and runtimes, the usual SuperPoint, and peers, in turns."""
        config, images = self.config, self.images.of_size(VGA)
        cases = []
        for model in self._models if EXACT in config.pairs else ():
            self.extractor(model, EXACT)  # before exports take their time
        for model in self._models:
            for pair in config.pairs:
                extractor = self.extractor(model, pair)
                if extractor is not None:
                    cases.append(extraction_case(extractor, model.label, pair, images, keypoints=config.keypoints))
            try:
                cases.append(usual_case(model, images, config.keypoints, config.device))
            except ConfigError as error:
                self.skipped.append((f"usual SuperPoint ({model.label})", str(error)))
        for name in config.peers:
            self._add_peer(name, latency_peers.extractor_case(name, images, config.keypoints, config.device), cases)
        self._time(cases)

    def _add_peer(self, name: str, case: Case | str, cases: list[Case]) -> None:
        if isinstance(case, str):
            self.skipped.append((name, case))
        else:
            cases.append(case)

    def _matching(self) -> None:
        config = self.config
        cases = matching_cases(config.keypoints, 256, config.device)
        for case in learned_cases(config.keypoints, config.device):
            self._add_peer("LightGlue", case, cases)
        for name in config.matchers:
            self._add_peer(name, latency_peers.matcher_case(name, config.keypoints, 256, config.device), cases)
        self._time(cases)

    def _process(self) -> None:
        """A pair of images: in a warm process, and as a process of its own."""
        model, images = self._models[0], self.images.of_size(VGA)[:2]
        pair = self.best_pair(model)
        extractor = self.extractor(model, pair)
        keypoints = self.config.keypoints
        cases = [] if extractor is None else [pair_case(extractor, model.label, pair, images, keypoints=keypoints)]
        # what superpoint-match takes by itself, but where one was asked for
        asked = self.config.pairs[0] if len(self.config.pairs) == 1 else ("auto", "auto")
        limit = None if self.config.seconds is None else max(5.0, self._budget.left)
        facts = (images, self.folder, model.source, asked, self.config.device)
        cold = partial(cold_start_cases, *facts, limit_s=limit, keypoints=keypoints)
        self._time([*cases, *cold()])
        calls = self.config.empty_caches
        if calls and not self._section.left:
            self.skipped.append((EMPTY_CACHE, "no time left"))
        elif calls:  # seconds each: so often and no more
            effort = Effort(calls, math.inf, calls)
            self.rows += interleave(cold(empty_cache=True), effort, self._section, failed=self.skipped)

    def _vary(self, cases: Sequence[Case], against: str, values: Sequence[float], stages: Sequence[str]) -> None:
        rows = self._time(cases)
        for stage in stages:
            ms = [row.ms_median for row in rows if row.stage == stage]
            if len(ms) == len(values) and len(set(values)) > 1:
                exponent = scaling_exponent(values, ms)
                label = next(row.label for row in rows)
                self.exponents.append(Exponent(label, stage, against, exponent, tuple(values), tuple(ms)))

    def _sizes(self) -> None:
        model = self._models[0]
        pair = self.best_pair(model)
        extractor = self.extractor(model, pair)
        if extractor is not None:
            cases = [
                extraction_case(
                    extractor, model.label, pair, self.images.of_size(size), keypoints=self.config.keypoints
                )
                for size in SIZES
            ]
            pixels = [float(width * height) for width, height in SIZES]
            self._vary(cases, "pixels", pixels, (END_TO_END, "network", "keypoints"))

    def _keypoints(self) -> None:
        model = self._models[0]
        pair = self.best_pair(model)
        extractor = self.extractor(model, pair)
        if extractor is not None:
            images = self.images.of_size(VGA)
            cases = [extraction_case(extractor, model.label, pair, images, keypoints=count) for count in KEYPOINTS]
            self._vary(cases, "keypoints", [float(count) for count in KEYPOINTS], (END_TO_END, "keypoints"))

    def _batches(self) -> None:
        model = self._models[0]
        pair = self.best_pair(model)
        extractor = self.extractor(model, pair)
        if extractor is not None:
            images, keypoints = self.images.of_size(VGA), self.config.keypoints
            cases = [
                extraction_case(extractor, model.label, pair, images, keypoints=keypoints, batch=batch)
                for batch in self.config.batches
            ]
            self._vary(cases, "images", [float(batch) for batch in self.config.batches], (END_TO_END,))

    def _parity(self) -> None:
        """Every runtime against PyTorch in float32, which is loaded for it where it was not wanted."""
        images = self.images.of_size(VGA)
        for model in self._models:
            expected: list[Features] = []
            for pair in (pair for pair in self.config.pairs if pair != EXACT):
                label = f"{model.label} ({' '.join(pair)})"
                if not self._section.left:
                    self.skipped.append((f"parity from {label} on", "no time left"))
                    return
                reference, extractor = self.extractor(model, EXACT), self.extractor(model, pair)
                if reference is not None and extractor is not None:
                    expected = expected or [reference.extract(image) for image in images]
                    found = [extractor.extract(image) for image in images]
                    self.parities.append(compare(label, pair[1], expected, found))

    def _memory(self) -> None:
        model = self._models[0]
        pair = self.best_pair(model)
        limit = None if self.config.seconds is None else max(5.0, self._budget.left)
        names = (model.label, model.source)
        try:
            memory = measure_memory(
                names, pair, self.config.device, VGA, self.config.memory_images, limit, self.config.keypoints
            )
        except ConfigError as error:
            self.skipped.append(("memory", str(error)))
        else:
            self.memories.append(memory)


def compare(label: str, precision: str, expected: Sequence[Features], found: Sequence[Features]) -> Parity:
    """Keypoints and descriptors of a runtime against those of the reference.

    Args:
        label: model, runtime and precision.
        precision: of the arithmetic.
        expected: features of several images.
        found: of the same images.
    """
    near, total, cosines = 0, 0, [np.ones(0)]
    for first, second in zip(expected, found, strict=True):
        for a, b in ((first, second), (second, first)):
            total += len(a)
            if not len(a) or not len(b):
                continue
            distances = np.linalg.norm(a.keypoints[:, None] - b.keypoints[None], axis=2)
            nearest = distances.argmin(axis=1)
            same = distances[np.arange(len(a)), nearest] <= NEAR_PX
            near += int(same.sum())
            cosines.append((a.descriptors[same] * b.descriptors[nearest[same]]).sum(axis=1))
    values = np.concatenate(cosines)
    cosine = float(np.quantile(values, 0.01)) if len(values) else 0.0
    return Parity(label, precision, near / max(1, total), cosine)
