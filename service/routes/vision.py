"""Features, matches and homographies."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response

from frontend.errors import FrontendError
from frontend.extractor import SuperPoint
from frontend.pipeline import MatchPipeline, PipelineConfig
from frontend.ransac import estimate_homography
from frontend.types import Features, Fundamental, MatchResult
from service.bodies import declared_length, read_images
from service.core import Core
from service.errors import BadRequestError
from service.wire import FORMATS, JSON, decode, encode, negotiate

router = APIRouter(prefix="/v1")

Encoding = Literal["float32", "float16", "int8", "none"]
Geometry = Literal["homography", "fundamental", "none"]
Model = Annotated[str | None, Query(description="a served model; the default where it is not given")]
MaxKeypoints = Annotated[int | None, Query(ge=1, description="keypoints of an image, at most")]
Threshold = Annotated[float | None, Query(ge=0, lt=1, description="probability that a keypoint exceeds")]
Radius = Annotated[int | None, Query(ge=0, le=64, description="suppression radius, pixels")]
Resize = Annotated[int | None, Query(ge=8, le=8192, description="longest side the image is brought to, pixels")]
Descriptors = Annotated[Encoding, Query(description="type of the descriptors; int8 is 127 times their value")]


async def extractor_of(
    request: Request,
    model: Model = None,
    max_keypoints: MaxKeypoints = None,
    detection_threshold: Threshold = None,
    nms_radius: Radius = None,
    resize: Resize = None,
) -> SuperPoint:
    """The extractor that a request's query asks for."""
    return core_of(request).extractor(
        model,
        max_keypoints=max_keypoints,
        detection_threshold=detection_threshold,
        nms_radius=nms_radius,
        resize=resize,
    )


Extractor = Annotated[SuperPoint, Depends(extractor_of)]

_IMAGE = {"type": "string", "format": "binary", "description": "JPEG, PNG, TIFF, WebP, ..."}
_RESULTS = {
    200: {
        "description": "The result; by Accept as JSON, MessagePack or NPZ.",
        "content": {kind: {} for kind in FORMATS},
    }
}


def _form(*names: str, raw: bool = False) -> dict[str, Any]:
    schema = {"type": "object", "properties": dict.fromkeys(names, _IMAGE), "required": list(names)}
    content: dict[str, Any] = {"multipart/form-data": {"schema": schema}}
    if raw:
        content["application/octet-stream"] = {"schema": _IMAGE}
    return {"requestBody": {"required": True, "content": content}}


def core_of(request: Request) -> Core:
    """The application's state."""
    core: Core = request.app.state.core
    return core


def answer(request: Request, result: dict[str, Any]) -> Response:
    """A result in the format that the request accepts.

    Raises:
        BadRequestError: it accepts none of ours.
    """
    kind = negotiate(request.headers.get("accept"))
    if kind is None:
        raise BadRequestError(f"Accept allows none of our formats; expected one of: {', '.join(FORMATS)}")
    return Response(encode(result, kind), media_type=kind)


def features_document(features: Features, descriptors: Encoding) -> dict[str, Any]:
    """What a client gets of features."""
    found: np.ndarray | None = features.descriptors
    if descriptors == "none":
        found = None
    elif descriptors == "int8":
        found = np.rint(features.descriptors * 127).astype(np.int8)
    elif descriptors == "float16":
        found = features.descriptors.astype(np.float16)
    return {
        "model": features.model,
        "image_size": list(features.image_size),
        "keypoints": features.keypoints,
        "scores": features.scores,
        "sigmas": features.sigmas,
        "descriptors": found,
    }


@router.post("/features", responses=_RESULTS, openapi_extra=_form("image", raw=True))  # type: ignore[arg-type]
async def features(
    request: Request,
    extractor: Extractor,
    descriptors: Descriptors = "float32",
) -> Response:
    """Keypoints, scores, standard deviations and descriptors of one image."""
    core = core_of(request)
    deadline, slots = core.deadline(), core.reserve(1)
    try:
        images = await read_images(request, ("image",), int(core.settings.max_body_mb * 1e6))
        (found,) = await core.features(extractor, images, deadline, slots)
    finally:
        for slot in slots:
            slot.release()
    return answer(request, features_document(found, descriptors))


def _geometry_document(result: MatchResult) -> dict[str, Any]:
    geometry = result.geometry
    return {
        "matches": result.matches.matches,
        "match_scores": result.matches.match_scores,
        "inliers": geometry.inliers,
        "fundamental" if isinstance(geometry, Fundamental) else "homography": geometry.matrix,
        "status": geometry.status.value,
    }


@router.post("/match", responses=_RESULTS, openapi_extra=_form("image0", "image1"))  # type: ignore[arg-type]
async def match(
    request: Request,
    extractor: Extractor,
    ratio: Annotated[float | None, Query(gt=0, le=1, description="of the ratio test; none where not given")] = None,
    min_similarity: Annotated[float | None, Query(ge=-1, le=1, description="of a match, cosine")] = None,
    geometry: Annotated[Geometry, Query(description="model fitted to the matches")] = "homography",
    threshold: Annotated[float, Query(gt=0, le=1000, description="largest error of an inlier, pixels")] = 3.0,
    descriptors: Descriptors = "none",
) -> Response:
    """Matches of two images, and the geometry between them."""
    core = core_of(request)
    settings = PipelineConfig(ratio=ratio, min_similarity=min_similarity, geometry=geometry, ransac_threshold=threshold)
    deadline, slots = core.deadline(), core.reserve(2)
    began = time.perf_counter()
    try:
        images = await read_images(request, ("image0", "image1"), int(core.settings.max_body_mb * 1e6))
        first, second = await core.features(extractor, images, deadline, slots)
        pipeline = MatchPipeline(extractor, settings)
        result = await core.on_device(pipeline.match_features, first, second, deadline=deadline)
    finally:
        for slot in slots:
            slot.release()
    timings = {**{k: round(v, 3) for k, v in result.timings_ms.items()}, "total": (time.perf_counter() - began) * 1e3}
    document = {
        "image0": features_document(first, descriptors),
        "image1": features_document(second, descriptors),
        **_geometry_document(result),
        "timings_ms": timings,
    }
    return answer(request, document)


@router.post("/homography", responses=_RESULTS)  # type: ignore[arg-type]
async def homography(
    request: Request,
    method: Annotated[Literal["ransac", "opencv"], Query(description="ours on the device, or USAC_MAGSAC")] = "ransac",
    threshold: Annotated[float, Query(gt=0, le=1000, description="largest error of an inlier, pixels")] = 3.0,
    confidence: Annotated[float, Query(gt=0, lt=1)] = 0.999,
    max_iterations: Annotated[int, Query(ge=1, le=100_000)] = 10_000,
    seed: Annotated[int, Query(ge=0, lt=2**63)] = 0,
) -> Response:
    """The homography of matched points: `points0` and `points1`, (M, 2) each, as JSON, MessagePack or NPZ."""
    core = core_of(request)
    limit = int(core.settings.max_body_mb * 1e6)
    declared_length(request, limit)
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind not in FORMATS:
        raise BadRequestError(f"content type is '{kind}'; expected one of: {', '.join(FORMATS)}")
    deadline, (slot,) = core.deadline(), core.reserve(1)
    try:
        points0, points1 = _points(decode(await request.body(), kind))
        settings = {"threshold": threshold, "confidence": confidence, "max_iterations": max_iterations, "seed": seed}
        device = str(core.models[core.settings.model].device)
        found = await core.on_device(
            estimate_homography, points0, points1, method=method, device=device, deadline=deadline, **settings
        )
    except (ValueError, FrontendError) as error:
        raise BadRequestError(str(error)) from None
    finally:
        slot.release()
    return answer(request, {"homography": found.H, "inliers": found.inliers, "status": found.status.value})


def _points(body: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for name in ("points0", "points1"):
        if name not in body:
            raise BadRequestError(f"body has no '{name}'; expected points0 and points1, (M, 2) each")
        try:
            array = np.asarray(body[name], np.float64)
        except (ValueError, TypeError):
            raise BadRequestError(f"'{name}' is no array of numbers; expected (M, 2)") from None
        # an empty list of JSON has lost its second axis
        arrays.append(array.reshape(0, 2) if array.size == 0 else array)
    return arrays[0], arrays[1]
