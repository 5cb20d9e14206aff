"""What the benchmark runs, in which order and within which time; processes that find an empty cache."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from frontend.evaluation import latency_process, latency_suite
from frontend.evaluation.latency import Budget, Case, Effort, Row
from frontend.evaluation.latency_models import ImageSource, ModelUnderTest, find_model, open_extractor
from frontend.evaluation.latency_process import cold_start_cases
from frontend.evaluation.latency_suite import SECTIONS, Suite, SuiteConfig
from frontend.model import ModelConfig, SuperPointNet
from frontend.weights import save_network

TINY = ModelConfig(encoder="vgg(channels=[8, 8, 16, 16])", detector="paper", descriptor="paper", descriptor_dim=32)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    save_network(path, SuperPointNet(TINY).eval())
    return path


def test_parity_ends_with_the_time(tiny: Path, tmp_path: Path) -> None:
    pairs = (("torch", "float32"), ("onnxruntime", "float32"))
    suite = Suite(SuiteConfig((str(tiny),), pairs=pairs, sections=("parity",)), ImageSource(), tmp_path)
    suite.run()
    assert [parity.label for parity in suite.parities] == ["tiny (onnxruntime float32)"]
    assert suite.parities[0].same > 0.99
    suite._section = Budget(1e-9)
    suite._parity()
    assert len(suite.parities) == 1
    assert suite.skipped == [("parity from tiny (onnxruntime float32) on", "no time left")]


def test_what_cannot_be_opened_is_told_once(tiny: Path, tmp_path: Path) -> None:
    pairs = (("torch", "float32"), ("onnxruntime", "int8"))
    suite = Suite(SuiteConfig((str(tiny),), pairs=pairs, seconds=50.0), ImageSource(), tmp_path)
    model = find_model(str(tiny), tmp_path)
    assert suite.extractor(model, pairs[0]) is not None
    assert suite.extractor(model, pairs[1]) is None
    suite._opening = Budget(1e-9)
    assert suite.extractor(model, pairs[1]) is None
    ((what, why),) = suite.skipped
    assert what == "tiny (onnxruntime int8)"
    assert "no such graph" in why


def test_an_empty_cache_is_another_one_each_time(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    monkeypatch.setenv("XDG_CACHE_HOME", str(mine))
    caches: list[tuple[Path, list[Path]]] = []

    def run(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        root = Path(env["XDG_CACHE_HOME"])
        caches.append((root, list(root.iterdir()) if root != mine else []))
        (root / "graphs").mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(latency_process.subprocess, "run", run)
    images = ImageSource().of_size((160, 120))
    (warm,) = cold_start_cases(images, tmp_path, str(tiny))
    (empty,) = cold_start_cases(images, tmp_path, str(tiny), empty_cache=True)
    assert (warm.stage, warm.warm) == ("process", False)
    assert (empty.stage, empty.warm) == ("process, empty cache", True)  # it must not be called just to warm it up
    for case in (warm, empty, empty):
        case.call()
    assert caches[0][0] == mine
    assert len({root for root, _ in caches}) == 3
    assert all(content == [] for _, content in caches)
    assert not any(root.exists() for root, _ in caches[1:])


@pytest.mark.parametrize("runs", [0, 2])
def test_the_empty_cache_is_measured_as_often_as_asked(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: int
) -> None:
    called: list[str] = []

    def cases(*_: object, empty_cache: bool = False, **__: object) -> list[Case]:
        stage = "process, empty cache" if empty_cache else "process"

        def call() -> None:
            time.sleep(0.21)  # as a process takes: fast calls are repeated
            called.append(stage)

        return [Case("superpoint-match", call, stage=stage, warm=empty_cache)]

    monkeypatch.setattr(latency_suite, "cold_start_cases", cases)
    config = SuiteConfig((str(tiny),), sections=("process",), effort=Effort(1, 0.01, 1), empty_caches=runs)
    suite = Suite(config, ImageSource(), tmp_path)
    suite.run()
    assert called.count("process, empty cache") == runs
    assert [row.samples for row in suite.rows if row.stage == "process, empty cache"] == [runs] * (runs > 0)
    suite._section = Budget(1e-9)
    suite._process()
    assert called.count("process, empty cache") == runs
    assert suite.skipped == [("process, empty cache", "no time left")] * (runs > 0)


def test_a_limited_run_leaves_time_for_parity_and_memory(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each export takes 12 s of a clock of its own, and measuring takes 6 s more than a section was given."""
    now = [0.0]

    def open_slowly(model: ModelUnderTest, runtime: str, *given: str) -> object:
        now[0] += 12.0 if runtime != "torch" else 1.0
        opened.append((model.label, runtime))
        return open_extractor(model, "torch", "float32", "cpu")

    opened: list[tuple[str, str]] = []
    spans: dict[str, float] = {}

    def section(name: str) -> Callable[[Suite], None]:
        def run(suite: Suite) -> None:
            spans[name] = suite._section.left
            now[0] += suite._section.left + 2.0

        return run

    def timed(suite: Suite, cases: Sequence[Case]) -> list[Row]:
        spans["extraction"] = suite._section.left
        now[0] += suite._section.left + 6.0
        return []

    monkeypatch.setattr(latency_suite, "open_extractor", open_slowly)
    monkeypatch.setattr(latency_suite, "Budget", lambda seconds: Budget(seconds, lambda: now[0]))
    monkeypatch.setattr(Suite, "_time", timed)
    for name in SECTIONS[1:]:
        monkeypatch.setattr(Suite, f"_{name}", section(name))
    other = tmp_path / "other.safetensors"
    other.write_bytes(tiny.read_bytes())
    pairs = (("torch", "float32"), ("onnxruntime", "float32"), ("openvino", "float32"))
    config = SuiteConfig((str(tiny), str(other)), pairs=pairs, seconds=50.0, peers=())
    suite = Suite(config, ImageSource(), tmp_path)
    suite.run()
    assert opened[:2] == [("tiny", "torch"), ("other", "torch")]  # what needs no export first
    assert 3 <= len(opened) <= 4
    assert any("no time left to open it" in why for _, why in suite.skipped)
    assert spans["parity"] >= 5.0
    assert spans["memory"] >= 5.0
    assert now[0] <= 60.0
