"""What the routes share: the state, query parameters, features as documents, and answers by Accept."""

from __future__ import annotations

import time
from collections import Counter
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Depends, Query, Request, Response
from starlette.requests import HTTPConnection

from frontend.extractor import SuperPoint
from frontend.types import Features
from service.core import Core
from service.errors import (
    BadImageError,
    BadRequestError,
    DeadlineError,
    NotFoundError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
)
from service.wire import FORMATS, encode, negotiate

WORK_PROBLEMS = (BadRequestError, TooLargeError, OverloadedError, UnavailableError, DeadlineError)
"""Refusals of every route that brings work for the device."""
IMAGE_PROBLEMS = (*WORK_PROBLEMS, NotFoundError, BadImageError)
"""And of those that take images and name a model."""

Encoding = Literal["float32", "float16", "int8", "none"]
Model = Annotated[
    str | None, Query(description="A served model, see `/v1/models`; the default one where it is not given.")
]
MaxKeypoints = Annotated[int | None, Query(ge=1, description="Most keypoints of an image.", examples=[1024])]
Threshold = Annotated[
    float | None,
    Query(ge=0, lt=1, description="Probability that a keypoint exceeds in the detector's heat map.", examples=[0.005]),
]
Radius = Annotated[
    int | None, Query(ge=0, le=64, description="Radius of non-maximum suppression, pixels.", examples=[4])
]
Resize = Annotated[
    int | None,
    Query(
        ge=8,
        le=8192,
        description="Longest side that the network sees, pixels; keypoints stay in pixels of the image as given.",
    ),
]
White = Annotated[
    int | None,
    Query(
        ge=255,
        lt=2**32,
        description="Value of white in images of 16 bits; the least of 8, 10, 12, 14 or 16 bits that holds all values "
        "of the image where it is not given.",
        examples=[4095],
    ),
]
Descriptors = Annotated[
    Encoding, Query(description="Type of the descriptors in the answer; int8 is 127 times their value.")
]


def core_of(request: Request) -> Core:
    """The application's state."""
    core: Core = request.app.state.core
    return core


async def extractor_of(
    request: Request,
    model: Model = None,
    max_keypoints: MaxKeypoints = None,
    detection_threshold: Threshold = None,
    nms_radius: Radius = None,
    resize: Resize = None,
    white: White = None,
) -> SuperPoint:
    """The extractor that a request's query asks for."""
    return core_of(request).extractor(
        model,
        max_keypoints=max_keypoints,
        detection_threshold=detection_threshold,
        nms_radius=nms_radius,
        resize=resize,
        white=white,
    )


Extractor = Annotated[SuperPoint, Depends(extractor_of)]


def format_of(request: Request) -> str:
    """The format of the answer that a request accepts.

    Raises:
        BadRequestError: it accepts none of ours.
    """
    kind = negotiate(request.headers.get("accept"))
    if kind is None:
        raise BadRequestError(f"Accept allows none of our formats; expected one of: {', '.join(FORMATS)}")
    return kind


async def accepted(request: Request) -> None:
    """Refuse by the Accept header and by parameters, see below, as a dependency: before any work is done.

    Raises:
        BadRequestError: no format of ours is accepted, or a parameter is misspelt or repeated.
    """
    format_of(request)
    await parameters_known(request)


async def parameters_known(request: HTTPConnection) -> None:
    """Refuse parameters that there are not, and those that are given twice and no lists; alone where the answer has no
    content.

    Raises:
        BadRequestError: a parameter is misspelt or repeated.
    """
    given = Counter(name for name, _ in request.query_params.multi_items())
    known = _parameters_of(request) if given else {}
    for name, count in given.items():
        if name not in known:
            raise BadRequestError(f"there is no parameter {name[:64]!r}; expected: {', '.join(known) or 'none'}")
        if count > 1 and not known[name]:
            raise BadRequestError(f"parameter '{name}' is given {count} times; expected it once")


def _parameters_of(request: HTTPConnection) -> dict[str, bool]:
    """The query parameters of a request's route, as its interface states them, and whether they are lists.

    A stream's are those of the plain request at its path.
    """
    operation = request.app.openapi()["paths"][request.scope["route"].path][request.scope.get("method", "get").lower()]
    found = [parameter for parameter in operation.get("parameters", ()) if parameter["in"] == "query"]
    return {parameter["name"]: _is_list(parameter["schema"]) for parameter in found}


def _is_list(schema: dict[str, Any]) -> bool:
    return any(kind.get("type") == "array" for kind in schema.get("anyOf", [schema]))


def answer(request: Request, result: dict[str, Any], status: int = 200) -> Response:
    """A result in the format that the request accepts.

    Raises:
        BadRequestError: it accepts none of ours.
    """
    kind = format_of(request)
    began = time.perf_counter()
    body = encode(result, kind)
    core_of(request).metrics.stage.labels("encode").observe(time.perf_counter() - began)
    return Response(body, status, media_type=kind)


def encoded_descriptors(features: Features, descriptors: Encoding) -> np.ndarray | None:
    """Descriptors in the type that is asked for."""
    if descriptors == "none":
        return None
    if descriptors == "int8":
        return np.rint(features.descriptors * 127).astype(np.int8)
    return features.descriptors.astype(descriptors)


def features_document(features: Features, descriptors: Encoding) -> dict[str, Any]:
    """What a client gets of features, see :class:`service.schemas.FeaturesDocument`."""
    return {
        "model": features.model,
        "image_size": list(features.image_size),
        "keypoints": features.keypoints,
        "scores": features.scores,
        "sigmas": features.sigmas,
        "descriptors": encoded_descriptors(features, descriptors),
    }
