"""The zoo: every encoder trained with one budget and measured in one way."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frontend.atomic import atomic_write
from frontend.errors import ConfigError, DataError
from frontend.evaluation.datasets import open_dataset
from frontend.evaluation.detector import synthetic_map
from frontend.evaluation.homography import BenchmarkConfig, run_benchmark
from frontend.extractor import ExtractorConfig, SuperPoint
from frontend.model import MODEL_PRESETS, ModelConfig, SuperPointNet
from frontend.training.datasets import VIEWS, PairConfig, SyntheticShapes, WarpedPairs
from frontend.training.tasks import MagicPointTask, SuperPointTask, Task
from frontend.training.trainer import TrainConfig, Trainer
from frontend.weights import load_network

ENTRIES = (
    "compact",
    "compact+strip_pooling",
    "compact+mixed_pooling",
    "compact+ocr",
    "compact+external_attention",
    "shufflenetv2",
    "vgg(channels=[32, 32, 64, 64])",
    "dbb(channels=[32, 32, 64, 64])",
    "vgg",
    "external_attention",
    "repmlp",
    "mlp_mixer",
    "feed_forward",
    "lv_vit",
)
"""What is compared. map_fusion is left out: without a map it passes its input through."""

HEADS = {"edge": MODEL_PRESETS["edge-dense"], "paper": ModelConfig(detector="paper", descriptor="paper")}
_VGA = (480, 640)
# shares of the budget: corners of shapes first, then pairs of photographs
_SHARES = {"magicpoint": 0.35, "superpoint": 0.65}


@dataclass(frozen=True)
class ZooConfig:
    """What all entries share.

    Attributes:
        seconds: training time of each entry, both steps together; the optimiser steps follow from a short trial.
        steps: optimiser steps of both steps of the training, instead: the same images for all; (0, 0) goes by time.
        heads: "edge" (this project's, with the fine branch, without the refiner) or "paper".
        pairs: photographs of the evaluation; each gives a viewpoint and an illumination pair.
        shapes: held-out synthetic images of each class.
        max_keypoints: budget of the evaluation.
        seed: of data and initial weights.
        device: of training and evaluation.
        workers: processes that make the training data.
    """

    seconds: float = 240.0
    steps: tuple[int, int] = (0, 0)
    heads: str = "edge"
    pairs: int = 50
    shapes: int = 20
    max_keypoints: int = 1024
    seed: int = 0
    device: str = "cpu"
    workers: int = 1

    def __post_init__(self) -> None:
        if self.heads not in HEADS:
            raise ConfigError(f"heads are '{self.heads}'; expected one of: {', '.join(HEADS)}")
        if not self.seconds > 0:
            raise ConfigError(f"seconds is {self.seconds}; expected more than 0")
        if len(self.steps) != 2 or min(self.steps) < 0 or (min(self.steps) == 0) != (max(self.steps) == 0):
            raise ConfigError(f"steps are {list(self.steps)}; expected two numbers above 0, or none")
        for name in ("pairs", "shapes", "max_keypoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")


def slug(spec: str) -> str:
    """A folder name for a specification."""
    return "".join(c if c.isalnum() or c in "+_" else "-" for c in spec.replace(" ", "")).strip("-")


def gmac(network: SuperPointNet) -> float:
    """Multiply-adds of the dense maps of a 640 x 480 image, in 1e9, counted by PyTorch."""
    from torch.utils.flop_counter import FlopCounterMode

    # attention in its plain form: the CPU's fused operator is not counted
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with plain, FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, *_VGA, device=next(network.parameters()).device))
    return float(counter.get_total_flops() / 2e9)


def milliseconds(network: SuperPointNet, repeats: int = 7) -> float:
    """Median time of the dense maps of a 640 x 480 image, in float32, after two runs of warm-up."""
    parameter = next(network.parameters())
    image = torch.rand(1, 1, *_VGA, device=parameter.device).contiguous(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 2):
            began = time.perf_counter()
            network(image)
            if parameter.device.type == "cuda":
                torch.cuda.synchronize(parameter.device)
            times.append(time.perf_counter() - began)
    return statistics.median(times[2:]) * 1e3


def _listing(folder: Path) -> str:
    """A checksum of the names and sizes of a folder's files."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    lines = (f"{file.relative_to(folder).as_posix()} {file.stat().st_size}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


class Zoo:
    """Trains and measures entries; what is done is kept, so that a run can be started again.

    Args:
        photographs: folder to train on.
        labels: folder that ``superpoint label`` made from it.
        evaluation: folder of other photographs, for the pairs of the evaluation.
        out: folder of the results; one sub-folder for each entry.
        config: settings.

    Raises:
        DataError: one of the two folders of photographs is within the other.
        ConfigError: ``out`` holds a run with other settings.
    """

    def __init__(
        self, photographs: Path, labels: Path, evaluation: Path, out: Path, config: ZooConfig | None = None
    ) -> None:
        folders = photographs.resolve(), evaluation.resolve()
        if folders[0].is_relative_to(folders[1]) or folders[1].is_relative_to(folders[0]):
            raise DataError(
                f"the evaluation has to be on other photographs than the training; got {photographs} and {evaluation}"
            )
        self.photographs, self.labels, self.evaluation, self.out = photographs, labels, evaluation, out
        self.config = config or ZooConfig()
        self._pairs: WarpedPairs | None = None
        settings = {key: value for key, value in asdict(self.config).items() if key not in ("workers", "device")}
        settings |= {"steps": list(self.config.steps), "views": VIEWS}
        folders_given = {"photographs": photographs, "labels": labels, "evaluation": evaluation}
        settings |= {name: _listing(folder) for name, folder in folders_given.items()}
        path = out / "settings.json"
        if path.is_file():
            # earlier versions did not state the folders, and made the first kind of views
            before = {**dict.fromkeys(folders_given), "views": 1, **json.loads(path.read_text())}
            before = {name: settings[name] if value is None else value for name, value in before.items()}
            if before != settings:
                raise ConfigError(f"{out} holds a run with {before}; got {settings} (give another --out)")
        else:
            out.mkdir(parents=True, exist_ok=True)
            atomic_write(path, json.dumps(settings, indent=1) + "\n")

    def _task(self, name: str) -> tuple[Task, TrainConfig]:
        config = self.config
        common: dict[str, Any] = {"seed": config.seed, "device": config.device, "workers": config.workers}
        if name == "magicpoint":
            return MagicPointTask(SyntheticShapes(config.seed)), TrainConfig(batch_size=32, **common)
        if self._pairs is None:
            pairs = PairConfig(size=(192, 144), photo_side=320)
            self._pairs = WarpedPairs(config.seed, self.photographs, self.labels, pairs)
        return SuperPointTask(self._pairs), TrainConfig(batch_size=8, **common)

    def _network(self, spec: str) -> SuperPointNet:
        torch.manual_seed(self.config.seed)
        return SuperPointNet(replace(HEADS[self.config.heads], encoder=spec))

    def _train(self, spec: str, folder: Path) -> tuple[Path, dict[str, int], float]:
        """Both steps of the training; the weights, the optimiser steps and the seconds of each."""
        plan_path = folder / "plan.json"
        if not plan_path.is_file():
            plan = {}
            for (name, share), steps in zip(_SHARES.items(), self.config.steps, strict=True):
                if steps:
                    plan[name] = steps
                    continue
                task, train = self._task(name)
                probe = Trainer(task, self._network(spec), train, folder / name, {}).probe()
                plan[name] = max(int(self.config.seconds * share / probe), 4)
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(plan_path, json.dumps(plan) + "\n")
        plan = json.loads(plan_path.read_text())
        network, seconds = self._network(spec), 0.0
        path = folder
        for name, steps in plan.items():
            task, train = self._task(name)
            rate = {"steps": steps, "warmup_steps": max(steps // 10, 1), "learning_rate": 2e-3}
            trainer = Trainer(task, network, TrainConfig(**{**asdict(train), **rate}), folder / name, {"spec": spec})
            path = trainer.run()
            seconds += trainer.seconds
            _, network = load_network(path, fold=False)
        return path, plan, seconds

    def run(self, spec: str) -> dict[str, Any]:
        """Train and measure one entry, or read its result where there is one.

        Returns:
            Keys spec, parameters (of the inference form), gmac, ms, steps, seconds, map (of the detector after the
            first step), and for viewpoint and illumination repeatability, h1, h3, h5, auc5 and mma3.
        """
        folder = self.out / slug(spec)
        path = folder / "result.json"
        if path.is_file():
            stored: dict[str, Any] = json.loads(path.read_text())
            return stored
        weights, steps, seconds = self._train(spec, folder)
        config = self.config
        _, network = load_network(weights)
        # on shapes the network of the first step is measured: the second step makes it forget them
        _, corners = load_network(folder / "magicpoint" / "magicpoint.safetensors")
        low = ExtractorConfig(max_keypoints=512, detection_threshold=1e-3)
        result: dict[str, Any] = {
            "spec": spec,
            "parameters": sum(p.numel() for p in network.parameters()),
            "gmac": gmac(network),
            "ms": milliseconds(SuperPoint(network, device=config.device).network),
            "steps": steps,
            "seconds": round(seconds),
            "map": synthetic_map(SuperPoint(corners, config=low, device=config.device).extract, images=config.shapes),
        }
        dataset = open_dataset(self.evaluation, kind="photos", resize=640, limit=config.pairs)
        settings = ExtractorConfig(max_keypoints=config.max_keypoints)
        methods = {spec: SuperPoint(network, config=settings, device=config.device).extract}
        benchmark = run_benchmark(dataset, methods, BenchmarkConfig(), max_keypoints=config.max_keypoints)
        for kind in benchmark.kinds():
            found = benchmark.summary(spec, kind)
            result[kind] = {
                "repeatability": found.repeatability,
                "h1": found.homography_accuracy_1,
                "h3": found.homography_accuracy_3,
                "h5": found.homography_accuracy_5,
                "auc5": found.auc_5,
                "mma3": found.mma_3,
            }
        atomic_write(path, json.dumps(result, indent=1) + "\n")
        return result


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table, best viewpoint homography accuracy first."""
    head = (
        "| encoder | parameters | GMAC | ms | steps | mAP | rep. (v / i) | H@3 (v / i) | MMA@3 (v / i) |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    rows = []
    for r in sorted(results, key=lambda r: (-r["viewpoint"]["h3"], -r["map"]["mean"])):
        v, i = r["viewpoint"], r["illumination"]
        steps = " + ".join(str(n) for n in r["steps"].values())
        pairs = (f"{v[key]:.3f} / {i[key]:.3f}" for key in ("repeatability", "h3", "mma3"))
        rows.append(
            f"| `{r['spec']}` | {r['parameters']:,} | {r['gmac']:.2f} | {r['ms']:.0f} | {steps} | "
            f"{r['map']['mean']:.3f} | {' | '.join(pairs)} |\n"
        )
    return head + "".join(rows)


def save_plot(results: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over time, a point for each entry."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    from frontend.atomic import atomic_path

    figure = Figure(figsize=(13.0, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    ms = np.array([r["ms"] for r in results])
    area = 20 + 60 * np.array([r["parameters"] for r in results]) / 1e6
    colours = [f"C{number % 10}" for number in range(len(results))]
    for ax, (title, values) in zip(
        axes,
        (
            ("synthetic shapes: detector mAP", [r["map"]["mean"] for r in results]),
            ("photographs, viewpoint: homography accuracy at 3 px", [r["viewpoint"]["h3"] for r in results]),
        ),
        strict=True,
    ):
        for number, (x, y, size, colour) in enumerate(zip(ms, values, area, colours, strict=True), start=1):
            label = f"{number}  {results[number - 1]['spec']}"
            ax.scatter(x, y, s=size, color=colour, alpha=0.6, label=label)
            ax.annotate(str(number), (x, y), fontsize=8, xytext=(5, 4), textcoords="offset points")
        ax.set(xscale="log", title=title, xlabel="milliseconds at 640 x 480 (area: parameters)", ylim=(-0.02, 1))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.lower()[1:])
