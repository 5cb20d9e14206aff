"""The curves of the homography benchmark as a picture; matplotlib is imported when it is drawn."""

from __future__ import annotations

import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from frontend.atomic import atomic_path
from frontend.errors import ConfigError
from frontend.evaluation import metrics
from frontend.evaluation.homography import MMA_THRESHOLDS, BenchmarkResult
from frontend.evaluation.report import protocol_line

_FORMATS = (".png", ".pdf", ".svg")


def require_matplotlib() -> None:
    """Refuse before a run what would fail after it.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("a plot needs matplotlib: pip install 'superpoint-frontend[eval]'")


def check_plot_path(path: Path) -> None:
    """Refuse endings that no picture has.

    Raises:
        ConfigError: the file does not end in .png, .pdf or .svg.
    """
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"plot file is '{path}'; expected a name that ends in {', '.join(_FORMATS)}")


def save_plot(result: BenchmarkResult, path: Path) -> None:
    """Draw MMA and homography accuracy over their thresholds, a row for each kind of pairs.

    Args:
        result: of a run.
        path: .png, .pdf or .svg file; replaced if it exists.

    Raises:
        ConfigError: matplotlib is not installed, or the ending is unknown.
    """
    require_matplotlib()
    check_plot_path(path)
    # Figure without pyplot: no global state, and no display is ever asked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = result.kinds()
    figure = Figure(figsize=(10.0, 1.0 + 3.6 * len(kinds)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(kinds), 2, squeeze=False)
    corner_thresholds = np.linspace(0.0, 10.0, 201)
    for row, kind in zip(grid, kinds, strict=True):
        for name in result.pairs:
            summary = result.summary(name, kind)
            row[0].plot(MMA_THRESHOLDS, summary.mma, marker=".", label=f"{name} ({summary.mma_3:.3f} at 3 px)")
            errors = np.array([pair.corner_error for pair in result.of(name, kind)])
            curve = metrics.accuracy(errors, corner_thresholds)
            label = f"{name} ({summary.homography_accuracy_3:.3f} at 3 px, AUC@5 {summary.auc_5:.3f})"
            row[1].plot(corner_thresholds, curve, label=label)
        row[0].set(title=f"{kind}: mean matching accuracy", xlabel="reprojection error, px", ylabel="MMA")
        row[1].set(title=f"{kind}: homography accuracy", xlabel="mean corner error, px", ylabel="part of the pairs")
        for axes in row:
            axes.set(xlim=(0.0, 10.0), ylim=(0.0, 1.0))
            axes.axvline(3.0, color="0.8", linewidth=1.0, zorder=0)
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small", loc="lower right", framealpha=0.6)
    figure.supxlabel(textwrap.fill(protocol_line(result), 180), fontsize=6, color="0.4")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.lower()[1:])
