"""Matches of images, given as files or as stored features, and the geometry between them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from frontend.camera import Camera
from frontend.errors import ConfigError, WeightsError
from frontend.extractor import StageTimes
from frontend.pipeline import MatchPipeline, PipelineConfig
from frontend.types import Essential, Features, Fundamental, MatchResult
from service.bodies import read_images, split_masks
from service.errors import BadRequestError, FeaturesNotFoundError, MatcherUnavailableError
from service.matchers import LEARNED, PLAIN, MatcherName, unavailable
from service.routes.common import IMAGE_PROBLEMS, Descriptors, Extractor, accepted, answer, core_of, features_document
from service.routes.features import Collection
from service.schemas import MatchDocument, MatchManyDocument, images_body, problems, result
from service.store import StoredFeatures

router = APIRouter(prefix="/v1", tags=["matching"])
_LOG = logging.getLogger("superpoint")
_PROBLEMS = (*IMAGE_PROBLEMS, FeaturesNotFoundError, MatcherUnavailableError)
_AHEAD = 4  # candidates of a search that are at the device at once

Geometry = Literal["homography", "fundamental", "essential", "none"]
Matcher = Annotated[
    MatcherName,
    Query(
        description="`mnn`: mutual nearest neighbours. `lightglue`: a network that has learned to match, and looks at "
        "all keypoints of both images. It takes far longer, has no `ratio`, and is there for "
        "the models of which `/v1/models` tells so."
    ),
]
Ratio = Annotated[
    float | None,
    Query(
        gt=0,
        le=1,
        description="Of the ratio test; none where it is not given. With `matcher=mnn` alone.",
        examples=[0.9],
    ),
]
MinSimilarity = Annotated[
    float | None,
    Query(
        ge=-1,
        le=1,
        description="Of a match: with `matcher=mnn` its least cosine, with `lightglue` its least probability, from 0 "
        "to below 1, 0.1 where it is not given.",
        examples=[0.7],
    ),
]
Threshold = Annotated[float, Query(ge=1e-3, le=1000, description="Largest error of an inlier, pixels.")]
CameraText = Annotated[
    str | None,
    Query(
        description="`fx,fy,cx,cy` in pixels, then OpenCV's distortion where there is one: `k1,k2,p1,p2[,k3,...]`; "
        "of a fisheye (equidistant) `fisheye:fx,fy,cx,cy,k1,k2,k3,k4`. "
        "`geometry=essential` needs camera0; camera1 is the same where it is not given.",
        examples=["525,525,319.5,239.5"],
    ),
]
FeaturesId = Annotated[
    str | None, Query(description="`feature_id` of stored features, instead of the file.", min_length=1)
]


@dataclass(frozen=True)
class Matching:
    """What a request's query asks of the matching.

    Attributes:
        config: of the pipeline.
        cameras: of the first image and of the second; None where the query has none.
    """

    config: PipelineConfig
    cameras: tuple[Camera, Camera] | None


async def matching_of(
    matcher: Matcher = PLAIN,
    ratio: Ratio = None,
    min_similarity: MinSimilarity = None,
    geometry: Annotated[Geometry, Query(description="The model that is fitted to the matches.")] = "homography",
    threshold: Threshold = 3.0,
    camera0: CameraText = None,
    camera1: CameraText = None,
) -> Matching:
    """The matching that a request's query asks for.

    Raises:
        BadRequestError: a camera is missing, or cannot be understood; or the matcher has no such limit.
    """
    if matcher == LEARNED and ratio is not None:
        raise BadRequestError(f"ratio is {ratio:g} with matcher '{matcher}'; expected it with '{PLAIN}' alone")
    if matcher == LEARNED and min_similarity is not None and not 0 <= min_similarity < 1:
        raise BadRequestError(
            f"min_similarity is {min_similarity:g} with matcher '{matcher}'; expected a probability below 1"
        )
    first, second = _camera("camera0", camera0), _camera("camera1", camera1)
    if geometry == "essential" and first is None:
        raise BadRequestError("geometry is 'essential' without a camera; expected camera0=fx,fy,cx,cy[,k1,k2,p1,p2]")
    config = PipelineConfig(
        matcher=matcher,
        ratio=ratio,
        min_similarity=min_similarity,
        geometry=geometry,
        ransac_threshold=threshold,
    )
    return Matching(config, None if first is None else (first, second or first))


def _camera(name: str, text: str | None) -> Camera | None:
    try:
        return None if text is None else Camera.parse(text)
    except ConfigError as error:
        raise BadRequestError(f"{name}: {error}") from None


MatchingOf = Annotated[Matching, Depends(matching_of)]


@router.post(
    "/match",
    operation_id="match_images",
    summary="Match two images",
    dependencies=[Depends(accepted)],
    responses={**result(MatchDocument), **problems(*_PROBLEMS)},
    openapi_extra=images_body("image0", "image1", required=False, optional=("mask0", "mask1")),
)
async def match_images(
    request: Request,
    extractor: Extractor,
    matching: MatchingOf,
    features0: FeaturesId = None,
    features1: FeaturesId = None,
    descriptors: Descriptors = "none",
) -> Response:
    """Matches of two images, and the geometry between them.

    Each image is either a file of the form or, by `features0` or `features1`, stored features; with one file left it
    may be the body itself, with none there is no body. Extraction's parameters say nothing about stored features, but
    both images have to be of one model. Keypoints of the files `image0` and `image1` lie where the form's `mask0` and
    `mask1` are not black, where there are such; stored features have no mask but the one that they were made with.
    """
    core = core_of(request)
    given = [None if name is None else core.store.get(name) for name in (features0, features1)]
    wanted = tuple(f"image{index}" for index, stored in enumerate(given) if stored is None)
    model = _common_model([stored for stored in given if stored is not None], extractor.name if wanted else None)
    core.matchers.require(matching.config.matcher, model)
    count, searches = max(len(wanted), 1), not wanted
    core.require_places(count, searches=searches)
    deadline, began = core.deadline(), time.perf_counter()
    pipeline = MatchPipeline(extractor, matching.config, cameras=matching.cameras)
    files = await read_images(request, wanted, int(core.settings.max_body_mb * 1e6), optional=("mask0", "mask1"))
    images, masks = split_masks(files)
    slots = core.reserve(count, searches=searches, accepted=True)
    try:
        made = iter(await core.features(extractor, images, deadline, slots, masks) if wanted else [])
        pair = [next(made) if stored is None else stored for stored in given]
        # images have waited in the queue already
        found = await core.on_device(
            _match,
            pipeline,
            pair[0],
            pair[1],
            StageTimes(),
            deadline=deadline,
            urgent=bool(wanted),
            extractor=extractor,
        )
        for slot in slots:
            slot.release(served=True)
    finally:
        for slot in slots:
            slot.release()
    document = {
        "image0": features_document(found.features0, descriptors),
        "image1": features_document(found.features1, descriptors),
        **_geometry_document(found),
        "timings_ms": _timings(found.timings_ms, began),
    }
    return answer(request, document)


@router.post(
    "/match/many",
    operation_id="match_many",
    summary="Match an image against stored ones",
    dependencies=[Depends(accepted)],
    responses={**result(MatchManyDocument), **problems(*_PROBLEMS)},
    openapi_extra=images_body("image", raw=True, required=False, optional=("mask",)),
)
async def match_many(
    request: Request,
    extractor: Extractor,
    matching: MatchingOf,
    features: FeaturesId = None,
    collection: Annotated[
        Collection | None, Query(description="Stored images to match against; `default` where nothing is given.")
    ] = None,
    against: Annotated[
        list[str] | None, Query(max_length=1000, description="`feature_id`s to match against, instead of a collection.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most results.")] = 10,
    descriptors: Descriptors = "none",
) -> Response:
    """One image against the stored images of a collection, or those named; best first.

    The image is a file of the form, the body itself, or, by `features`, stored; a stored image is not matched with
    itself unless it is named. With a `mask` beside the image in the form its keypoints lie where that is not black.

    Every candidate is matched and verified, so time grows with the collection, and with `matcher=lightglue` much
    faster; a search that is not done by the service's deadline ends with 504.
    """
    core = core_of(request)
    if against is not None and collection is not None:
        raise BadRequestError("against and collection are both given; expected one of them")
    stored = None if features is None else core.store.get(features)
    candidates = (
        [core.store.get(feature_id) for feature_id in dict.fromkeys(against)]
        if against is not None
        else [found for found in core.store.collection(collection or "default") if found.feature_id != features]
    )
    taking_part = [*([] if stored is None else [stored]), *candidates]
    model = _common_model(taking_part, extractor.name if stored is None else None)
    core.matchers.require(matching.config.matcher, model)
    wanted = ("image",) if stored is None else ()
    core.require_places(1, searches=True)
    if wanted:
        core.require_places(1)
    deadline, began = core.deadline(), time.perf_counter()
    pipeline, times = MatchPipeline(extractor, matching.config, cameras=matching.cameras), StageTimes()
    files = await read_images(request, wanted, int(core.settings.max_body_mb * 1e6), optional=("mask",))
    images, masks = split_masks(files)
    # held until the search is done; that of an image is given back when its features are there
    slots = core.reserve(1, searches=True, accepted=True)
    results: list[dict[str, Any]] = []
    try:
        if stored is None:
            slots += core.reserve(1, accepted=True)
            (image,) = await core.features(extractor, images, deadline, slots[1:], masks)
        else:
            image = stored.features()
        settings: dict[str, Any] = {"deadline": deadline, "urgent": False, "extractor": extractor}
        one = partial(core.on_device, _search, pipeline, image, times=times, **settings)
        async with aclosing(_each(one, candidates)) as matched:
            async for found in matched:
                results.append(found)
                # the sort is stable, so equals stay in the order of the candidates
                results.sort(key=lambda document: (document["num_inliers"], document["num_matches"]), reverse=True)
                del results[limit:]
    finally:
        for slot in slots:
            slot.release(served=bool(results))
    document = {
        "image": features_document(image, descriptors),
        "results": results,
        "timings_ms": _timings(times.ms, began),
    }
    return answer(request, document)


async def _each(
    search: Callable[[StoredFeatures], Coroutine[Any, Any, dict[str, Any]]], candidates: list[StoredFeatures]
) -> AsyncGenerator[dict[str, Any], None]:
    """Match candidates in their order, a few queued ahead: who brings one at a time finds others before each."""
    remaining, queued = iter(candidates), deque[asyncio.Task[dict[str, Any]]]()
    try:
        while True:
            for candidate in islice(remaining, _AHEAD - len(queued)):
                queued.append(asyncio.create_task(search(candidate)))
            if not queued:
                return
            yield await queued.popleft()
    finally:
        for task in queued:
            task.cancel()
        await asyncio.gather(*queued, return_exceptions=True)


def _common_model(stored: list[StoredFeatures], model: str | None) -> str:
    """The model of all features; descriptors that cannot be compared are refused.

    Args:
        stored: features that take part.
        model: of an image that is not extracted yet; None where there is none.

    Raises:
        BadRequestError: they are not of one model.
    """
    expected = model or stored[0].model
    for found in stored:
        if found.model != expected:
            raise BadRequestError(
                f"features '{found.feature_id}' are of model '{found.model}'; expected '{expected}', as the others"
            )
    return expected


def _match(
    pipeline: MatchPipeline, first: Features | StoredFeatures, second: Features | StoredFeatures, times: StageTimes
) -> MatchResult:
    """Match in the device's thread, where stored features are unpacked as well.

    Raises:
        MatcherUnavailableError: the learned matcher's file has been damaged or removed since it was loaded.
    """
    features = [item.features() if isinstance(item, StoredFeatures) else item for item in (first, second)]
    try:
        return pipeline.match_features(features[0], features[1], times)
    except (WeightsError, OSError) as error:
        if pipeline.config.matcher != LEARNED:
            raise
        _LOG.error("the learned matcher of model '%s' cannot be used: %s", features[0].model, error)
        raise unavailable(features[0].model) from error


def _search(
    pipeline: MatchPipeline, image: Features | StoredFeatures, candidate: StoredFeatures, times: StageTimes
) -> dict[str, Any]:
    """What a search answers of a candidate, see :func:`_match`; its features, unpacked, do not leave this thread."""
    found = _match(pipeline, image, candidate, times)
    return {
        "feature_id": candidate.feature_id,
        "num_matches": len(found.matches),
        "num_inliers": found.geometry.num_inliers,
        **_geometry_document(found),
    }


def _geometry_document(found: MatchResult) -> dict[str, Any]:
    geometry = found.geometry
    document = {
        "matches": found.matches.matches,
        "match_scores": found.matches.match_scores,
        "inliers": geometry.inliers,
        "status": geometry.status.value,
    }
    if isinstance(geometry, Essential):
        return {**document, "essential": geometry.E, "R": geometry.R, "t": geometry.t}
    return {**document, "fundamental" if isinstance(geometry, Fundamental) else "homography": geometry.matrix}


def _timings(stages: dict[str, float], began: float) -> dict[str, float]:
    return {name: round(ms, 3) for name, ms in {**stages, "total": (time.perf_counter() - began) * 1e3}.items()}
