"""Features of one image, and features kept on the server."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import StringConstraints

from service.bodies import read_images, split_masks
from service.errors import BadRequestError, FeaturesNotFoundError, StoreFullError
from service.routes.common import (
    IMAGE_PROBLEMS,
    Descriptors,
    Extractor,
    accepted,
    answer,
    core_of,
    features_document,
    parameters_known,
)
from service.schemas import StoredFeaturesDocument, images_body, problems, result
from service.store import FeatureStore, StoredFeatures

router = APIRouter(prefix="/v1", tags=["features"])

Collection = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9._-]{1,64}$")]


@router.post(
    "/features",
    operation_id="extract_features",
    summary="Features of one image",
    dependencies=[Depends(accepted)],
    responses={**result(StoredFeaturesDocument), **problems(*IMAGE_PROBLEMS, StoreFullError)},
    openapi_extra=images_body("image", raw=True, optional=("mask",)),
)
async def extract_features(
    request: Request,
    extractor: Extractor,
    descriptors: Descriptors = "float32",
    store: Annotated[
        bool, Query(description="Keep the features on the server, to match by the answer's `feature_id`.")
    ] = False,
    collection: Annotated[
        Collection, Query(description="Where they are kept; `/v1/match/many` searches a collection.")
    ] = "default",
) -> Response:
    """Keypoints, scores, standard deviations and descriptors of an image, best score first.

    With a form that has a `mask`, they lie where that is not black, and all that are asked for are spent there.

    With `store=true` they are kept until they have not been used for a time, with descriptors as float16.
    A full store refuses (429, `store_full`); nothing that is kept is pushed out.
    """
    core = core_of(request)
    if store:
        core.store.require_room()
    core.require_places(1)
    deadline = core.deadline()
    given = await read_images(request, ("image",), int(core.settings.max_body_mb * 1e6), optional=("mask",))
    images, masks = split_masks(given)
    slots = core.reserve(1, accepted=True)
    try:
        (found,) = await core.features(extractor, images, deadline, slots, masks)
    finally:
        for slot in slots:
            slot.release()
    document = {**features_document(found, descriptors), "feature_id": None, "expires_in_s": None}
    if store:
        document.update(_storage(core.store, core.store.put(found, collection)))
    return answer(request, document)


@router.get(
    "/features/{feature_id}",
    operation_id="get_features",
    summary="Stored features",
    dependencies=[Depends(accepted)],
    responses={**result(StoredFeaturesDocument), **problems(BadRequestError, FeaturesNotFoundError)},
)
async def get_features(request: Request, feature_id: str, descriptors: Descriptors = "float32") -> Response:
    """Features as they are kept: their descriptors have been rounded to float16. Their time to live starts again."""
    store = core_of(request).store
    stored = store.get(feature_id)
    return answer(request, {**features_document(stored.features(), descriptors), **_storage(store, stored)})


@router.delete(
    "/features/{feature_id}",
    operation_id="delete_features",
    summary="Forget stored features",
    status_code=204,
    response_class=Response,
    dependencies=[Depends(parameters_known)],
    responses={204: {"description": "They are gone."}, **problems(BadRequestError, FeaturesNotFoundError)},
)
async def delete_features(request: Request, feature_id: str) -> Response:
    """Free their memory before they expire."""
    core_of(request).store.delete(feature_id)
    return Response(status_code=204)


def _storage(store: FeatureStore, stored: StoredFeatures) -> dict[str, Any]:
    return {"feature_id": stored.feature_id, "expires_in_s": round(store.config.ttl_s, 3)}
