"""Which runtime and which precision: what is installed, what the CPU has instructions for, and what is fastest."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from frontend.errors import ConfigError, FrontendError, WeightsError
from frontend.runtime import parity, store
from frontend.runtime.base import Maps, Runtime, check_names, loading
from frontend.threads import thread_count
from frontend.weights import load_network, released_int8, released_int8_sha256, resolve, sha256_of

if TYPE_CHECKING:
    from frontend.model import SuperPointNet

_LOG = logging.getLogger("superpoint")
# what each needs, its own package first: ncnn leaves refiners to ONNX Runtime
_NEEDED = {
    "openvino": ("openvino",),
    "ncnn": ("ncnn", "onnxruntime"),
    "onnxruntime": ("onnxruntime",),
    "torch": ("torch",),
}
_SIZE = (480, 640)  # of the image that is timed, the size that most cameras' images are brought to
_TURNS = 3
_CALLS = 4  # of a turn: OpenVINO compiles a network for a size when that has come four times
_PATIENCE = 1.0  # seconds for the turns after the first
_LIMIT = 15.0  # seconds for all of it: several times what they take, unless the machine is busy with something else
_HOPELESS = 3.0  # times the fastest one's time after two calls: no preparation gains as much
_TORCH_IMPORT_MS = 2000.0  # torch is loaded where it exports, so that its import cannot be timed there


def available_runtimes() -> tuple[str, ...]:
    """The runtimes that are installed; loads none."""
    return tuple(name for name, needed in _NEEDED.items() if all(find_spec(module) is not None for module in needed))


def precisions_of(runtime: str) -> tuple[str, ...]:
    """Precisions that a runtime computes on this CPU by instructions of its own; int8 needs calibration besides.

    An emulated precision is hundreds of times slower, so it is not offered.
    """
    if runtime == "openvino":
        with loading(runtime):
            from frontend.runtime.openvino_runtime import native_precisions

            return (*native_precisions(), "int8")
    if runtime == "onnxruntime":
        return ("float32", "int8")
    if runtime == "ncnn":
        return ("float32",)
    import torch

    return ("float32", "bf16") if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ("float32",)


def _check_installed(runtime: str) -> None:
    if runtime not in available_runtimes():
        raise ConfigError(f"runtime is '{runtime}', which is not installed: pip install {' '.join(_NEEDED[runtime])}")


def _check(runtime: str, precision: str) -> None:
    check_names(runtime, precision)
    _check_installed(runtime)
    known = precisions_of(runtime)
    if precision not in known:
        raise ConfigError(
            f"precision is '{precision}'; {runtime} on this CPU has no instructions for it, expected one of: "
            f"{', '.join(known)}"
        )


def build(graphs: store.Graphs, runtime: str, precision: str) -> Runtime:
    """Load exported graphs, and check that they compute what they should.

    Raises:
        ConfigError: they do not; the runtime is not installed; or the precision is not to be had.
    """
    _check(runtime, precision)
    if precision == "int8" and "dense-int8" not in graphs.files:
        raise ConfigError(
            "precision is 'int8', and this model has no such graph: expected one made by "
            "'superpoint export --precision int8 --calibration DIR'"
        )
    made: Runtime
    with loading(runtime):
        if runtime == "openvino":
            from frontend.runtime.openvino_runtime import OpenVinoRuntime

            made = OpenVinoRuntime(graphs.info, graphs.files, precision)
        elif runtime == "ncnn":
            from frontend.runtime.ncnn_runtime import NcnnRuntime

            made = NcnnRuntime(graphs.info, graphs.files, precision)
        else:
            from frontend.runtime.onnx_runtime import OnnxRuntime

            made = OnnxRuntime(graphs.info, graphs.files, precision)
        found = parity.ask(made)
    wrong = parity.difference(parity.unpack(graphs.files["probe"]), found, precision)
    if wrong is not None:
        raise ConfigError(f"runtime '{runtime}' in {precision} does not compute this network: {wrong}")
    return made


def export(network: SuperPointNet) -> store.Graphs:
    """Export a network, with PyTorch's answers to the probe.

    Raises:
        ConfigError: it cannot be exported.
    """
    from frontend.runtime.graphs import export_parts
    from frontend.runtime.torch_runtime import TorchRuntime

    reference = TorchRuntime(network)
    probe = parity.pack(parity.ask(reference))
    return store.Graphs(reference.info, {**export_parts(network), "probe": probe})


@cache
def _tell_unkept(folder: Path) -> None:
    """Once, though graphs are kept again when some are added."""
    _LOG.warning("exported graphs cannot be kept in %s: every start exports them again", folder)


class _Network:
    """A network that is loaded when it is first needed, and its graphs."""

    def __init__(self, network: SuperPointNet | None, source: str | Path | None = None, digest: str = "") -> None:
        self._network = network
        self._source = source
        self.digest = digest
        self._graphs = store.load(digest) if digest else None
        self._told = False

    def tell(self) -> None:
        """Once, before some seconds of work for a weight file; the result is kept where that can be written."""
        if self.digest and not self._told:
            if self._graphs is None:
                self._network = self.network  # what is no weight file is refused before
            self._told = True
            _LOG.info("preparing %s for this machine, once", resolve(self._source or "")[0])

    @property
    def network(self) -> SuperPointNet:
        if self._network is None:
            self._network = load_network(self._source or "")[1]
        return self._network

    @property
    def graphs(self) -> store.Graphs:
        if self._graphs is None:
            self.tell()
            self._graphs = export(self.network)
            self._keep()
        return self._graphs

    def _keep(self, new: Collection[str] | None = None) -> None:
        # of a file that was replaced while it was loaded, the graphs are not those of the checksum
        if not self.digest or sha256_of(resolve(self._source or "")[1]) != self.digest:
            return
        if not store.save(self.digest, self.graphs, new=new):
            _tell_unkept(store.folder_of(self.digest))

    def prepare(self, runtime: str) -> None:
        """Make what a runtime loads, where it is not at hand."""
        if runtime == "torch":
            return
        graphs = self.graphs
        if runtime != "ncnn" or "ncnn-param" in graphs.files:
            return
        from frontend.runtime.ncnn_graph import export_ncnn

        self.tell()
        made = export_ncnn(self.network)
        self._graphs = replace(graphs, files={**graphs.files, **made})
        self._keep(made)

    @property
    def int8_sha256(self) -> str:
        """Of the int8 graph made on this machine, or of the file of the one released; empty where there is none."""
        if self._graphs is not None and "dense-int8" in self._graphs.files:
            return hashlib.sha256(self._graphs.files["dense-int8"]).hexdigest()
        return released_int8_sha256(self.digest) if self.digest else ""

    def build(self, runtime: str, precision: str) -> Runtime:
        if runtime != "torch":
            _check(runtime, precision)
            self.prepare(runtime)
            if precision == "int8" and "dense-int8" not in self.graphs.files:
                released = released_int8(self.digest)
                if released is not None:
                    self._graphs = replace(self.graphs, files={**self.graphs.files, "dense-int8": released})
            return build(self.graphs, runtime, precision)
        from frontend.runtime.torch_runtime import TorchRuntime

        _check(runtime, precision)
        return TorchRuntime(self.network, precision)


def load_runtime(
    name_or_path: str | Path, runtime: str = "auto", precision: str = "auto", *, brief: bool = False
) -> Runtime:
    """The runtime of a released model or a weight file.

    With exported graphs in the cache, torch is not loaded unless it is asked for.

    Args:
        name_or_path: see :func:`frontend.weights.load_network`.
        runtime: a name of ``RUNTIMES``; "auto" is the fastest of those installed that compute the network right.
        precision: a name of ``PRECISIONS``; "auto" is what is fast on this CPU and finds the same keypoints.
        brief: whether a pair of images is all that is to come, so that the time to load counts too.

    Raises:
        WeightsError: there are no such weights, or they cannot be used.
        ConfigError: the runtime or the precision is not to be had here, or does not compute the network.
    """
    _, path = resolve(name_or_path)
    return _choose(_Network(None, name_or_path, sha256_of(path)), runtime, precision, brief)


def runtime_for(network: SuperPointNet, runtime: str = "auto", precision: str = "auto") -> Runtime:
    """The runtime of a network at hand; as :func:`load_runtime`, without the cache."""
    return _choose(_Network(network), runtime, precision)


def _choose(source: _Network, runtime: str, precision: str, brief: bool = False) -> Runtime:
    if runtime != "auto":
        _check_installed(runtime)
    installed = available_runtimes() if runtime == "auto" else (runtime,)
    if installed == ("torch",) and precision in ("auto", "float32"):
        return source.build("torch", "float32")
    if runtime != "auto" and (precision != "auto" or set(precisions_of(runtime)) <= {"float32", "int8"}):
        return source.build(runtime, "float32" if precision == "auto" else precision)
    note = _note_name(installed, precision, source.int8_sha256)
    for name, kind in _remembered(source.digest, note, "brief" if brief else "order"):
        # what was right once may be broken by now
        with suppress(*_passed_over(precision, kind)):
            return source.build(name, kind)
    timed = _timed(source, installed, precision)
    order = [t[:2] for t in sorted(timed, key=lambda t: t.ms)]
    sooner = [t[:2] for t in sorted(timed, key=lambda t: t.load_ms + t.pair_ms)]
    if source.digest:
        store.save_note(source.digest, note, {"order": order, "brief": sooner, "timed": timed})
    return source.build(*(sooner if brief else order)[0])


def _passed_over(precision: str, kind: str) -> tuple[type[FrontendError], ...]:
    """Errors of a candidate that "auto" leaves it for others for; of int8 also that the released graph is damaged."""
    return (ConfigError, WeightsError) if precision == "auto" and kind == "int8" else (ConfigError,)


def _remembered(digest: str, note: str, key: str = "order") -> list[tuple[str, str]]:
    """Runtimes and precisions that have been timed before, the fastest first."""
    order = (store.load_note(digest, note) or {}).get(key) if digest else None
    pairs = order if isinstance(order, list) else []
    return [(pair[0], pair[1]) for pair in pairs if isinstance(pair, list) and len(pair) == 2]


def _note_name(runtimes: tuple[str, ...], precision: str, int8_sha256: str) -> str:
    """A name that changes with whatever may change what is fastest."""
    versions = [_version(name) for name in runtimes]
    facts = json.dumps([_cpu(), thread_count(), runtimes, versions, precision, int8_sha256, _SIZE])
    return f"fastest-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"


def _version(runtime: str) -> str:
    try:
        return version(_NEEDED[runtime][0])
    except PackageNotFoundError:  # installed without metadata
        return "?"


def _cpu() -> str:
    """The CPU's model and instructions, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        import platform

        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


class _Timed(NamedTuple):
    """A candidate with the milliseconds of an image of 640 x 480, of its load, and of the first two such images."""

    runtime: str
    precision: str
    ms: float
    load_ms: float
    pair_ms: float


def _timed(source: _Network, runtimes: tuple[str, ...], precision: str) -> list[_Timed]:
    """Candidates that compute the network right, with their times.

    Raises:
        ConfigError: there is none; that of the first one.
    """
    reference: list[Maps] = []
    right: list[tuple[Runtime, float]] = []
    offered: dict[str, tuple[str, ...]] = {}
    for name in runtimes:
        with suppress(ConfigError):  # one that does not load is left out
            offered[name] = precisions_of(name)
    having = [name for name, kinds in offered.items() if precision == "auto" or precision in kinds]
    if offered and not having:
        _check(next(iter(offered)), precision)  # which refuses, before seconds are spent
    source.tell()
    for name in having:
        with suppress(ConfigError):  # what cannot be exported says so below
            source.prepare(name)  # before the clock runs
    failure: ConfigError | None = None
    images, quantised = parity.trial_images(), bool(source.int8_sha256)
    for name in having:
        able = [kind for kind in offered[name] if kind != "int8" or quantised]
        for kind in able if precision == "auto" else [precision]:
            began = time.perf_counter()
            try:
                made = source.build(name, kind)
            except _passed_over(precision, kind) as error:
                failure = failure or ConfigError(str(error))
                continue
            load_ms = _TORCH_IMPORT_MS if name == "torch" else round((time.perf_counter() - began) * 1e3, 3)
            if precision == "auto":
                got = [Maps(*(np.array(value) for value in made.dense(image))) for image in images]
                if kind == "float32" and not reference:
                    reference = got
                if not parity.finds_the_same(reference, got, kind):
                    failure = failure or ConfigError(f"{name} in {kind} finds other keypoints than float32")
                    continue
            right.append((made, load_ms))
    if not right:
        raise failure or ConfigError("no runtime is installed: pip install torch")
    times = _race([made for made, _ in right], parity.scene(*_SIZE)[None, None])
    return [
        _Timed(made.name, made.precision, ms, load_ms, pair_ms)
        for (made, load_ms), taken in zip(right, times, strict=True)
        if taken is not None
        for ms, pair_ms in (taken,)
    ]


def _race(
    runtimes: Sequence[Runtime], image: np.ndarray, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, float] | None]:
    """Milliseconds that each takes for an image once it has prepared itself, its fastest call; and for its first two.

    None of those whose first turn has not come when the time is over; the first one's always comes.

    They take turns, so that what else the machine does falls on all of them, of several calls each, since the threads
    of some wait by spinning when their call has ended, which is at the cost of whose turn is next.
    """

    def run(i: int) -> float:
        began = clock()
        runtimes[i].dense(image)
        return clock() - began

    limit = deadline = clock() + _LIMIT
    pairs: dict[int, tuple[float, float]] = {}
    for i in range(len(runtimes)):
        if not pairs or clock() < limit:
            pairs[i] = (run(i), run(i))
    best = {i: min(pair) for i, pair in pairs.items()}
    running = [i for i in best if best[i] <= _HOPELESS * min(best.values())]
    for turn in range(_TURNS):
        for i in running:
            for _ in range(_CALLS):
                if clock() < limit:
                    best[i] = min(best[i], run(i))
        if clock() >= deadline:
            break
        if turn == 0:
            deadline = min(limit, clock() + _PATIENCE)
    return [
        (round(best[i] * 1e3, 3), round(sum(pairs[i]) * 1e3, 3)) if i in pairs else None for i in range(len(runtimes))
    ]
