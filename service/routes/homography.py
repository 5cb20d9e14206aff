"""Homographies of matched points, for stacks that bring their own features."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response

from frontend.errors import FrontendError
from frontend.homography_estimation import estimate_homography
from frontend.ransac_config import SAMPLE_SIZE, RansacConfig, as_variances
from frontend.types import Float64Array
from service.bodies import content_type, refuse_members, wrong_kind
from service.errors import BadRequestError
from service.routes.common import WORK_PROBLEMS, accepted, answer, core_of
from service.schemas import HomographyDocument, PointsDocument, points_body, problems, result
from service.wire import FORMATS, JSON, MSGPACK, NPZ, decode

# they keep the device from the images of others: 2e9 matches times samples are about a second
_MOST_MATCHES = 200_000
_MOST_WORK = 2_000_000_000
# of JSON a match with its sigma has 7; in the other formats an array is a few, whatever its size
_MOST_VALUES = {JSON: 8 * _MOST_MATCHES, MSGPACK: 64, NPZ: 64}

router = APIRouter(prefix="/v1", tags=["matching"])


@router.post(
    "/homography",
    operation_id="estimate_homography",
    summary="Homography of matched points",
    dependencies=[Depends(accepted)],
    responses={**result(HomographyDocument), **problems(*WORK_PROBLEMS)},
    openapi_extra=points_body(),
)
async def homography(
    request: Request,
    method: Annotated[Literal["ransac", "opencv"], Query(description="LO-RANSAC, or OpenCV's USAC_MAGSAC.")] = "ransac",
    threshold: Annotated[float, Query(ge=1e-3, le=1000, description="Largest error of an inlier, pixels.")] = 3.0,
    confidence: Annotated[
        float, Query(gt=0, lt=1, description="Probability of one sample without outliers at which drawing stops.")
    ] = 0.999,
    max_iterations: Annotated[int, Query(ge=1, le=100_000, description="Most samples that are drawn.")] = 10_000,
    min_inliers: Annotated[
        int,
        Query(
            ge=SAMPLE_SIZE,
            le=_MOST_MATCHES,
            description="Inliers below which there is no homography. As many as chance would give are none either, "
            "whatever this is: four matches always fit.",
        ),
    ] = RansacConfig.min_inliers,
    seed: Annotated[int, Query(ge=0, lt=2**63, description="Of the drawing; the same seed, the same result.")] = 0,
) -> Response:
    """`points0` and `points1`, (M, 2) each, row by row a match, and `sigmas` (M,) where they are known; as JSON,
    MessagePack or NPZ by Content-Type."""
    core = core_of(request)
    kind = content_type(request) or JSON
    if kind not in FORMATS:
        raise wrong_kind(kind, f"one of: {', '.join(FORMATS)}")
    core.require_places(1, searches=True)
    deadline, body = core.deadline(), await request.body()
    (slot,) = core.reserve(1, searches=True, accepted=True)
    try:
        # in a thread: a body may hold a million numbers
        points0, points1, sigmas = await core.in_thread(partial(_matches, body, kind), deadline)
        if len(points0) * max_iterations > _MOST_WORK:
            most = _MOST_WORK // len(points0)
            raise BadRequestError(
                f"max_iterations is {max_iterations} for {len(points0)} matches; expected at most {most}"
            )
        settings: dict[str, Any] = {"threshold": threshold, "confidence": confidence, "seed": seed}
        settings |= {"max_iterations": max_iterations, "min_inliers": min_inliers, "sigmas": sigmas, "method": method}
        found = await core.on_device(estimate_homography, points0, points1, deadline=deadline, urgent=False, **settings)
        slot.release(served=True)
    except (ValueError, FrontendError) as error:
        raise BadRequestError(str(error)) from None
    finally:
        slot.release()
    return answer(request, {"homography": found.H, "inliers": found.inliers, "status": found.status.value})


def _matches(data: bytes, kind: str) -> tuple[Float64Array, Float64Array, Float64Array | None]:
    body = decode(data, kind, _MOST_VALUES[kind])
    refuse_members("body", body, PointsDocument.model_fields)
    points0, points1 = _points(body)
    return points0, points1, _sigmas(body, len(points0))


def _holds_numbers(value: Any) -> bool:
    """Whether a value is an array, or lists of numbers alone: texts NumPy would make as long as the longest of them."""
    if isinstance(value, np.ndarray):
        return True
    rows = value if isinstance(value, list) else [value]
    numbers = chain.from_iterable(row if isinstance(row, list) else (row,) for row in rows)
    return set(map(type, numbers)) <= {int, float}


def _sigmas(body: dict[str, Any], count: int) -> Float64Array | None:
    given = body.get("sigmas")
    if given is None:
        return None
    if not _holds_numbers(given):
        raise BadRequestError(f"'sigmas' is no list of numbers; expected {count} of them")
    try:
        return np.sqrt(as_variances(given, count))
    except ValueError:  # rows of different lengths
        raise BadRequestError(f"'sigmas' has rows of different lengths; expected {count} numbers") from None


def _points(body: dict[str, Any]) -> tuple[Float64Array, Float64Array]:
    arrays = []
    for name in ("points0", "points1"):
        if name not in body:
            raise BadRequestError(f"body has no '{name}'; expected points0 and points1, (M, 2) each")
        try:
            given = np.asarray(body[name]) if _holds_numbers(body[name]) else np.empty(0, object)
        except ValueError:  # rows of different lengths
            given = np.empty(0, object)
        # an empty list of JSON has lost its second axis, and its type
        array = np.zeros((0, 2)) if given.size == 0 and given.dtype.kind == "f" else given
        if array.dtype.kind not in "iuf" or array.ndim != 2 or array.shape[1] != 2:
            raise BadRequestError(f"'{name}' is no array of numbers, or has another shape; expected (M, 2)")
        if len(array) > _MOST_MATCHES:  # before it is copied as float64
            raise BadRequestError(f"there are {len(array)} matches; expected at most {_MOST_MATCHES}")
        if not np.isfinite(array).all():
            raise BadRequestError(f"'{name}' has values that are not finite; expected (M, 2) pixels")
        arrays.append(array.astype(np.float64))
    if len(arrays[0]) != len(arrays[1]):
        raise BadRequestError(f"points0 has {len(arrays[0])} rows, points1 {len(arrays[1])}; expected as many")
    return arrays[0], arrays[1]
