"""The documents of the service in JSON, and how OpenAPI tells of them.

Results are not made or checked by these models, since arrays stay arrays until they are encoded; tests hold the actual
answers against them. In the binary formats the same names hold arrays, see :mod:`service.wire`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from service.bodies import MASK
from service.errors import PROBLEM_TYPE, ServiceError, UnauthorizedError
from service.wire import MSGPACK, NPZ

Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
IndexPair = Annotated[list[int], Field(min_length=2, max_length=2)]
Vector3 = Annotated[list[float], Field(min_length=3, max_length=3)]
Matrix3 = Annotated[list[Vector3], Field(min_length=3, max_length=3)]
Timings = Annotated[dict[str, float], Field(description="Milliseconds of each stage, by name.")]

_FEATURES: dict[str, Any] = {
    "model": "superpoint-edge",
    "image_size": [640, 480],
    "keypoints": [[311.52, 204.87], [87.3, 402.11]],
    "scores": [0.91, 0.62],
    "sigmas": [0.41, 0.78],
    "descriptors": None,
}
_MATCHES: dict[str, Any] = {
    "matches": [[0, 1], [1, 0], [3, 2], [4, 4]],
    "match_scores": [0.97, 0.94, 0.91, 0.88],
    "inliers": [True, True, True, True],
    "status": "ok",
    "homography": [[1.02, 0.03, -14.2], [-0.02, 0.99, 8.5], [0.00001, -0.00002, 1.0]],
}


class FeaturesDocument(BaseModel):
    """Keypoints of one image, best score first."""

    model: str = Field(description="Model that made them.")
    image_size: IndexPair = Field(description="Width and height of the image as it was given, pixels.")
    keypoints: list[Pair] = Field(
        description="(N, 2): x, y in pixels of the image as it was given; (0, 0) is the centre of its top-left pixel."
    )
    scores: list[float] = Field(description="(N,): probability of each, in (0, 1], never increasing.")
    sigmas: list[float] | None = Field(
        description="(N,): standard deviation of the position along an axis, pixels; null where the model has none."
    )
    descriptors: list[list[float]] | None = Field(
        description="(N, D) of unit norm, integers of 127 times that with `descriptors=int8`; null for `none`."
    )


class StoredFeaturesDocument(FeaturesDocument):
    """Keypoints of one image, and where the server keeps them."""

    model_config = ConfigDict(
        json_schema_extra={"example": {**_FEATURES, "feature_id": "8Vb2jJ0qTq6mWZkO4l1f3w", "expires_in_s": 3600.0}}
    )

    feature_id: str | None = Field(description="Names them in other requests; null where they are not stored.")
    expires_in_s: float | None = Field(
        description="Seconds until they are forgotten unless they are used before; null where they are not stored."
    )


class GeometryDocument(BaseModel):
    """Matches of two images, and the geometry between them. Of the matrices only those asked for are present."""

    matches: list[IndexPair] = Field(
        description="(M, 2): index of a keypoint of the first image, and of one of the second."
    )
    match_scores: list[float] = Field(
        description="(M,): cosine of the descriptors, in [-1, 1]; with `matcher=lightglue` probability of the match, "
        "above `min_similarity` (0.1 where it is not given), at most 1."
    )
    inliers: list[bool] = Field(description="(M,): whether a match fits the geometry.")
    status: Annotated[str, Field(pattern="^(ok|too_few_matches|no_model|not_requested)$")] = Field(
        description="Why there is a geometry, or none: ok, too_few_matches, no_model, or not_requested."
    )
    homography: Matrix3 | None = Field(
        default=None,
        description="(3, 3), first image to second, 1 in its corner; null where none was found or requested. "
        "Present with `geometry=homography` and `none`.",
    )
    fundamental: Matrix3 | None = Field(
        default=None,
        description="(3, 3): x1^T F x0 = 0 for pixels, of unit norm; null where none was found. "
        "Present with `geometry=fundamental`.",
    )
    essential: Matrix3 | None = Field(
        default=None,
        description="(3, 3): y1^T E y0 = 0 for undistorted normalised coordinates, of unit norm; null where none was "
        "found. Present, as R and t, with `geometry=essential`.",
    )
    R: Matrix3 | None = Field(default=None, description="(3, 3) rotation of X1 = R X0 + t; null where none was found.")
    t: Vector3 | None = Field(
        default=None,
        description="(3,) translation of X1 = R X0 + t, of unit norm since two images do not tell its length; "
        "null where none was found.",
    )


class MatchDocument(GeometryDocument):
    """Two images matched."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "image0": _FEATURES,
                "image1": _FEATURES,
                **_MATCHES,
                "timings_ms": {"matching": 4.1, "geometry": 8.2, "total": 96.5},
            }
        }
    )

    image0: FeaturesDocument
    image1: FeaturesDocument
    timings_ms: Timings


class CandidateDocument(GeometryDocument):
    """One of the stored images, matched. The first image is the request's, the second is this one."""

    feature_id: str = Field(description="Of the stored image.")
    num_matches: int = Field(ge=0, description="M.")
    num_inliers: int = Field(ge=0, description="Matches that fit the geometry.")


class MatchManyDocument(BaseModel):
    """One image matched against stored ones."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "image": _FEATURES,
                "results": [{"feature_id": "8Vb2jJ0qTq6mWZkO4l1f3w", "num_matches": 4, "num_inliers": 4, **_MATCHES}],
                "timings_ms": {"matching": 41.0, "geometry": 82.0, "total": 190.4},
            }
        }
    )

    image: FeaturesDocument
    results: list[CandidateDocument] = Field(
        description="Best first: most inliers, then most matches, then first stored (or first named)."
    )
    timings_ms: Timings


class PointsDocument(BaseModel):
    """Matched points of two images."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "points0": [[0, 0], [600, 0], [600, 400], [0, 400], [300, 200], [150, 320], [420, 80], [510, 260]],
                "points1": [[5, -7], [665, -7], [665, 353], [5, 353], [335, 173], [170, 281], [467, 65], [566, 227]],
            }
        },
    )

    points0: list[Pair] = Field(description="(M, 2): x, y in pixels of image 0; finite.")
    points1: list[Pair] = Field(description="(M, 2): the same of image 1, row by row.")
    sigmas: list[float] | None = Field(
        None,
        description="(M,): standard deviations of the matches' positions, of which the ratios matter; positive. "
        "For keypoints with sigmas: sqrt(sigma0^2 + sigma1^2). Method opencv has no use for them.",
    )


class HomographyDocument(BaseModel):
    """The homography of matched points."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "homography": [[1.1, 0.0, 5.0], [0.0, 0.9, -7.0], [0.0, 0.0, 1.0]],
                "inliers": [True] * 8,
                "status": "ok",
            }
        }
    )

    homography: Matrix3 | None = Field(description="(3, 3), image 0 to image 1, 1 in its corner; null for none.")
    inliers: list[bool] = Field(description="(M,): whether a match fits.")
    status: Annotated[str, Field(pattern="^(ok|too_few_matches|no_model)$")] = Field(
        description="Why there is a homography, or none: ok, too_few_matches (fewer than four), or no_model (none with "
        "`min_inliers` inliers, and more than chance would give)."
    )


class ModelDocument(BaseModel):
    """A served model."""

    name: str = Field(description="For the query parameter `model`.")
    version: str | None = Field(description="Of its weights, such as `0.4`; null where they are a file of one's own.")
    encoder: str = Field(description="Kind of its encoder.")
    descriptor_dim: int = Field(ge=1, description="D, the length of its descriptors.")
    sigmas: bool = Field(description="Whether it tells standard deviations of keypoints.")
    device: str = Field(description="Where it runs.")
    matchers: list[str] = Field(
        description="For the query parameter `matcher`: `mnn`, and `lightglue` where there is a learned matcher for "
        "features of this model."
    )


class ModelsDocument(BaseModel):
    """The served models."""

    default: str = Field(description="Taken where a request names none.")
    models: list[ModelDocument]


class HealthDocument(BaseModel):
    """How the service is."""

    status: str = Field(description="`ok` or `ready`.")


class Problem(BaseModel):
    """A refusal, as RFC 9457 defines it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "about:blank",
                "title": "Not Found",
                "status": 404,
                "code": "features_not_found",
                "detail": "features '8Vb2jJ0qTq6mWZkO4l1f3w' are not stored, or no longer",
                "instance": "/v1/features/8Vb2jJ0qTq6mWZkO4l1f3w",
                "request_id": "5f0c1f7be2a94d3c",
            }
        }
    )

    type: str = Field(description="Always `about:blank`: the code tells more than the status.")
    title: str = Field(description="Of the HTTP status.")
    status: int = Field(ge=400, le=599, description="HTTP status.")
    code: str = Field(description="For programs, in snake case.")
    detail: str = Field(description="For people: what was given, and what was expected. One line.")
    instance: str = Field(description="Path of the request.")
    request_id: str = Field(description="The log has the request under it; also the header `X-Request-Id`.")


_BINARY = {"type": "string", "format": "binary"}
_IMAGE = {**_BINARY, "description": "JPEG, PNG, TIFF, WebP, ..."}
_MASK = {**_BINARY, "description": "An image of its image's size (PNG, ...): keypoints lie where it is not black."}
_PROBLEM = {"content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
_MSGPACK_TEXT = "The same document; an array is a map of dtype, shape and data (its bytes, little-endian, in C order)."
_NPZ_TEXT = "The arrays by their names, nested names joined by /; the rest as JSON in the bytes of the member `meta`."

Responses = dict[int | str, dict[str, Any]]


def _binaries() -> dict[str, Any]:
    return {
        MSGPACK: {"schema": {**_BINARY, "description": _MSGPACK_TEXT}},
        NPZ: {"schema": {**_BINARY, "description": _NPZ_TEXT}},
    }


def result(model: type[BaseModel]) -> Responses:
    """How a route tells of its result: JSON by a model, and the binary formats in words."""
    return {200: {"model": model, "description": "The result, by Accept.", "content": _binaries()}}


def problems(*errors: type[ServiceError]) -> Responses:
    """How a route tells of its refusals: those given, a missing key, and that there may be others."""
    responses: Responses = {"default": {"description": "Any other refusal.", **_PROBLEM}}
    every: list[type[ServiceError]] = [UnauthorizedError, *errors]
    for error in every:
        text = f"`{error.code}`: {(error.__doc__ or '').strip()}"
        known = responses.get(int(error.status))
        description = text if known is None else f"{known['description']} {text}"
        responses[int(error.status)] = {"description": description, **_PROBLEM}
    return responses


def images_body(
    *names: str, raw: bool = False, required: bool = True, optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """How a route tells of a form with images.

    Args:
        names: of the form's files.
        raw: whether the bytes of one image may be the body as well.
        required: whether there has to be a body, and each of the files in it.
        optional: files that a form may have besides.
    """
    properties = {name: _MASK if name.startswith(MASK) else _IMAGE for name in (*names, *optional)}
    schema = {"type": "object", "properties": properties, "required": list(names) if required else []}
    content: dict[str, Any] = {"multipart/form-data": {"schema": schema}}
    if raw:
        content |= {kind: {"schema": properties[names[0]]} for kind in ("application/octet-stream", "image/*")}
    return {"requestBody": {"required": required, "content": content}}


def points_body() -> dict[str, Any]:
    """How a route tells of matched points."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/PointsDocument"}}, **_binaries()}
    return {"requestBody": {"required": True, "content": content}}


def document_components(app: FastAPI) -> None:
    """Add to OpenAPI the models that routes refer to by name alone (FastAPI lists those it makes), and the API key."""
    made: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:  # requests ask for it: it is made once
            return app.openapi_schema
        document = made()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (Problem, PointsDocument):
            schemas[model.__name__] = model.model_json_schema(ref_template="#/components/schemas/{model}")
        key = {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "Where the service asks for one."}
        document["components"]["securitySchemes"] = {"ApiKey": key}
        document["security"] = [{}, {"ApiKey": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
