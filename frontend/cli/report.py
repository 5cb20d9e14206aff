"""What ``superpoint-match`` says: the summary of a pair, the table of many, and the JSON document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from frontend.types import MatchResult


@dataclass(frozen=True)
class Report:
    """One matched pair, ready to be told.

    Attributes:
        path0: image 0 as it was named.
        path1: image 1 as it was named.
        result: the match.
        model: name of the model.
        matcher: name or file of the matcher.
        timings_ms: milliseconds by stage, reading and (for a single pair) loading included.
    """

    path0: str
    path1: str
    result: MatchResult
    model: str
    matcher: str
    timings_ms: dict[str, float]

    @property
    def matched(self) -> bool:
        """Whether a geometry was found; where none was asked for, whether there is any match."""
        status = self.result.geometry.status.value
        return status == "ok" or (status == "not_requested" and len(self.result.matches) > 0)


@dataclass(frozen=True)
class Row:
    """What the table of a one-against-many run keeps of a pair."""

    path: str
    keypoints: int
    matches: int
    inliers: int
    status: str
    milliseconds: float

    @classmethod
    def of(cls, report: Report) -> Row:
        """Take the figures of a report and let its arrays go."""
        result = report.result
        return cls(
            path=report.path1,
            keypoints=len(result.features1),
            matches=len(result.matches),
            inliers=result.geometry.num_inliers,
            status=result.geometry.status.value,
            milliseconds=sum(report.timings_ms.values()),
        )

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Sort key, smallest best: those with a geometry first, then by inliers, then by matches."""
        return (self.status not in ("ok", "not_requested"), -self.inliers, -self.matches)


def to_json(report: Report) -> dict[str, Any]:
    """The JSON document of a pair; coordinates keep every digit of their float32 value.

    Returns:
        Keys image0 and image1 (path, width, height, num_keypoints), keypoints0, keypoints1 (N, 2), scores0,
        scores1, sigmas0, sigmas1 (N; null where the model does not know them), matches (M, 2), match_scores,
        inliers (M booleans), homography (3 x 3 or null), status, timings_ms, model and matcher; with a fundamental
        matrix asked for, also fundamental (3 x 3 or null); with an essential matrix, also essential and R (3 x 3 or
        null) and t (3 or null).
    """
    from frontend.types import Essential, Fundamental, Homography

    result = report.result
    geometry = result.geometry
    document: dict[str, Any] = {}
    for key, path, features in (
        ("image0", report.path0, result.features0),
        ("image1", report.path1, result.features1),
    ):
        width, height = features.image_size
        document[key] = {"path": path, "width": width, "height": height, "num_keypoints": len(features)}
    document["keypoints0"] = _floats(result.features0.keypoints)
    document["keypoints1"] = _floats(result.features1.keypoints)
    document["scores0"] = _floats(result.features0.scores)
    document["scores1"] = _floats(result.features1.scores)
    for key, sigmas in (("sigmas0", result.features0.sigmas), ("sigmas1", result.features1.sigmas)):
        document[key] = None if sigmas is None else _floats(sigmas)
    document["matches"] = result.matches.matches.tolist()
    document["match_scores"] = _floats(result.matches.match_scores)
    document["inliers"] = geometry.inliers.tolist()
    document["homography"] = _rows(geometry.matrix if isinstance(geometry, Homography) else None)
    if isinstance(geometry, Fundamental):
        document["fundamental"] = _rows(geometry.F)
    elif isinstance(geometry, Essential):
        document |= {"essential": _rows(geometry.E), "R": _rows(geometry.R), "t": _rows(geometry.t)}
    document["status"] = geometry.status.value
    document["timings_ms"] = {stage: round(ms, 3) for stage, ms in report.timings_ms.items()}
    document["model"] = report.model
    document["matcher"] = report.matcher
    return document


def _rows(array: NDArray[np.float64] | None) -> Any:
    return None if array is None else array.tolist()


def _floats(array: NDArray[np.float32]) -> Any:
    """Nested lists with the shortest decimals that give the same float32 (12.3, not 12.300000190734863)."""
    if array.ndim > 1:
        return [_floats(row) for row in array]
    return [float(str(value)) for value in array]


def summary(report: Report) -> str:
    """A few lines for a person."""
    from frontend.types import Essential, Status

    result = report.result
    geometry = result.geometry
    lines = []
    for label, path, features in (
        ("image 0", report.path0, result.features0),
        ("image 1", report.path1, result.features1),
    ):
        width, height = features.image_size
        lines.append(f"{label}    {path}  {width} x {height}  {len(features)} keypoints")
    total = len(result.matches)
    lines.append(f"matches    {total}")
    if geometry.status is not Status.NOT_REQUESTED:
        share = f" ({100 * geometry.num_inliers / total:.0f} %)" if total else ""
        lines.append(f"inliers    {geometry.num_inliers}{share}")
        if geometry.matrix is None:
            lines.append(f"no match   no {geometry.kind} found ({geometry.status.value.replace('_', ' ')})")
        elif isinstance(geometry, Essential) and geometry.R is not None and geometry.t is not None:
            lines += _matrix_lines("R", geometry.R.tolist()) + _matrix_lines("t", [geometry.t.tolist()])
        else:
            lines += _matrix_lines(geometry.symbol, geometry.matrix.tolist())
    elif not total:
        lines.append("no match   no feature of one image was found in the other")
    stages = ", ".join(f"{stage} {ms:.0f}" for stage, ms in report.timings_ms.items())
    lines.append(f"time       {sum(report.timings_ms.values()):.0f} ms ({stages})")
    lines.append(f"model      {report.model}")
    if report.matcher != "mnn":
        lines.append(f"matcher    {report.matcher}")
    return "\n".join(lines) + "\n"


def _matrix_lines(name: str, rows: list[list[float]]) -> list[str]:
    return [f"{name if i == 0 else '':<10}" + "".join(f"{value:>14.6g}" for value in row) for i, row in enumerate(rows)]


def table(rows: list[Row]) -> str:
    """One line for each image, in the given order, with a heading."""
    lines = [f"{'inliers':>7}  {'matches':>7}  {'keypoints':>9}  {'ms':>6}  {'status':<15}  image"]
    for row in rows:
        figures = f"{row.inliers:>7}  {row.matches:>7}  {row.keypoints:>9}  {row.milliseconds:>6.0f}"
        lines.append(f"{figures}  {row.status:<15}  {row.path}")
    return "\n".join(lines) + "\n"
