"""What the client asks of the service: every call as data, without a transport.

A function here makes the :class:`Call` of one request; :func:`result_of` reads its answer. ``Client`` and
``AsyncClient`` send the same calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike

from frontend.errors import ConfigError
from frontend.types import Features, Homography, MatchResult
from service.client import results
from service.client.cameras import Calibration, camera_query
from service.client.faults import BadAnswer, fault_of_answer
from service.client.images import Image, encoded, encoded_mask
from service.client.results import ManyMatches, Model, StoredFeatures
from service.wire import FORMATS, JSON, MSGPACK, decode, encode

T = TypeVar("T")
Encoding = Literal["float32", "float16", "int8", "none"]
Geometry = Literal["homography", "fundamental", "essential", "none"]
Matcher = Literal["mnn", "lightglue"]


@dataclass(frozen=True)
class Context:
    """What all calls of a client, or of a sequence, have in common.

    Attributes:
        quality: of the JPEGs that pixels become; None for PNG.
        sequence_id: of the sequence; empty for other calls.
    """

    quality: int | None = None
    sequence_id: str = ""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how its answer is read.

    Attributes:
        method: of HTTP.
        path: from the service's root.
        read: makes the result of the answer's document.
        query: names and values; a name may come several times.
        body: of the request.
        content_type: of the body.
        files: of a multipart form, instead of a body.
        repeatable: whether doing it twice does the same as once.
        then: make, of the result, the calls without which this one is not complete, in this order.
    """

    method: str
    path: str
    read: Callable[[Mapping[str, Any]], T]
    query: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    content_type: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    repeatable: bool = False
    then: tuple[Callable[[T], Call[None]], ...] = ()

    def request(self) -> dict[str, Any]:
        """Arguments of the same names of ``httpx.Client.request``."""
        headers = {"accept": f"{MSGPACK}, {JSON};q=0.5"}
        content: dict[str, Any] = {}
        if self.files:
            content["files"] = dict(self.files)
        elif self.content_type:
            headers["content-type"] = self.content_type
            content["content"] = self.body
        return {"method": self.method, "url": self.path, "params": self.query, "headers": headers, **content}


def result_of(call: Call[T], status: int, headers: Mapping[str, str], body: bytes) -> T:
    """The result that an answer brings.

    Args:
        call: what was asked.
        status: of the answer.
        headers: with names that may be asked for in lower case.
        body: of the answer.

    Raises:
        ServiceFault: the answer is a refusal, or cannot be read.
    """
    if not 200 <= status < 300:
        raise fault_of_answer(status, headers, body)
    try:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and kind not in FORMATS:
            raise ValueError(f"its content type is '{kind}'")
        return call.read(decode(body, kind) if body else {})
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        detail = f"{call.method} {call.path}: the answer cannot be read: {reason}"
        raise BadAnswer(status, "bad_answer", detail, headers.get("x-request-id", ""), maybe_processed=True) from None


def pairs(**values: Any) -> tuple[tuple[str, str], ...]:
    """A query; None is left out, a list is a name that comes several times."""
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        several = value if isinstance(value, (list, tuple)) else [value]
        texts = [str(one).lower() if isinstance(one, bool) else str(one) for one in several if one is not None]
        found += [(name, text) for text in texts]
    return tuple(found)


def nothing(_: Mapping[str, Any]) -> None:
    """Of an answer that has no content of interest."""
    return None


def v1(*parts: str) -> str:
    """A path of the interface's first version."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def features(
    context: Context,
    image: Image,
    *,
    mask: Image | None = None,
    model: str | None = None,
    max_keypoints: int | None = None,
    detection_threshold: float | None = None,
    nms_radius: int | None = None,
    resize: int | None = None,
    white: int | None = None,
    descriptors: Encoding = "float32",
    store: bool = False,
    collection: str | None = None,
) -> Call[StoredFeatures]:
    """Keypoints, scores, standard deviations and descriptors of an image.

    Args:
        image: see :data:`service.client.images.Image`.
        mask: an image of the same size, pixels may be bool: keypoints lie where it is not black. Anywhere where None.
        model: a served one; the service's default where None.
        max_keypoints: at most.
        detection_threshold: probability that a keypoint exceeds, in [0, 1).
        nms_radius: suppression radius, pixels.
        resize: longest side that the image is brought to, pixels; keypoints stay in pixels of the given image.
        white: value of white in images of 16 bits, 4095 for a camera of 12, say; by the image's own where None.
        descriptors: how they are sent; the result is float32 either way, (N, 0) for "none".
        store: whether the service keeps them, so that later calls can name them.
        collection: that they are kept in, for ``match_many``.
    """
    query = pairs(
        model=model,
        max_keypoints=max_keypoints,
        detection_threshold=detection_threshold,
        nms_radius=nms_radius,
        resize=resize,
        white=white,
        descriptors=descriptors,
        store=store or None,
        collection=collection,
    )
    call = Call("POST", "/v1/features", results.features, query, repeatable=not store)
    return with_image(call, encoded(image, context.quality), mask)


def with_image(call: Call[T], image: bytes, mask: Image | None, **others: bytes) -> Call[T]:
    """A call that brings an image: as its body, or in a form where a mask or others come with it."""
    files = {"image": image, **others, **({} if mask is None else {"mask": encoded_mask(mask)})}
    if len(files) > 1:
        return dataclasses.replace(call, files=files)
    return dataclasses.replace(call, body=image, content_type="application/octet-stream")


def get_features(_: Context, feature_id: str, *, descriptors: Encoding = "float32") -> Call[StoredFeatures]:
    """Stored features; FeaturesLost where the service no longer has them."""
    query = pairs(descriptors=descriptors)
    return Call("GET", v1("features", feature_id), results.features, query, repeatable=True)


def delete_features(_: Context, feature_id: str) -> Call[None]:
    """Have the service forget stored features."""
    return Call("DELETE", v1("features", feature_id), nothing)


def _id_of(image: Image | str | StoredFeatures) -> str | None:
    """The feature id that stands for an image, if it is one."""
    if isinstance(image, Features):
        if not isinstance(image, StoredFeatures) or image.feature_id is None:
            raise ConfigError("features are not stored; expected those of features(..., store=True), or an image")
        return image.feature_id
    if not isinstance(image, str):
        return None
    if not image or not image.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"'{image}' is no feature id; expected one, and for the file of an image a pathlib.Path")
    return image


def match(
    context: Context,
    image0: Image | str | StoredFeatures,
    image1: Image | str | StoredFeatures,
    *,
    mask0: Image | None = None,
    mask1: Image | None = None,
    model: str | None = None,
    max_keypoints: int | None = None,
    detection_threshold: float | None = None,
    nms_radius: int | None = None,
    resize: int | None = None,
    white: int | None = None,
    matcher: Matcher = "mnn",
    ratio: float | None = None,
    min_similarity: float | None = None,
    geometry: Geometry = "homography",
    threshold: float | None = None,
    camera0: Calibration | None = None,
    camera1: Calibration | None = None,
    descriptors: Encoding = "none",
) -> Call[MatchResult]:
    """Matches of two images, and the geometry between them.

    Args:
        image0: an image, or stored features or their id (a str is always an id).
        image1: the same.
        mask0: of image 0, see :func:`features`; stored features have been made with theirs.
        mask1: of image 1.
        model: see :func:`features`, and the following.
        max_keypoints: of each image.
        detection_threshold: see there.
        nms_radius: see there.
        resize: see there.
        white: see there.
        matcher: "mnn" for mutual nearest neighbours, whose scores are cosines in [-1, 1]; "lightglue" for the learned
            matcher, whose scores are probabilities, where ``models()`` tells that the model has one.
            A service that is too old to know of matchers takes "mnn".
        ratio: of the ratio test, in (0, 1]; none where None. With "mnn" alone.
        min_similarity: of a match; with "mnn" its cosine, in [-1, 1], none where None; with "lightglue" its
            probability, in [0, 1), .1 where None.
        geometry: the model that is fitted; "essential" needs ``camera0``.
        threshold: largest error of an inlier, pixels.
        camera0: of image 0.
        camera1: of image 1; ``camera0`` where None.
        descriptors: how the features' are sent.
    """
    ids = {"features0": _id_of(image0), "features1": _id_of(image1)}
    query = pairs(
        model=model,
        max_keypoints=max_keypoints,
        detection_threshold=detection_threshold,
        nms_radius=nms_radius,
        resize=resize,
        white=white,
        **ids,
        **_match_query(matcher, ratio, min_similarity, geometry, threshold, camera0, camera1),
        descriptors=descriptors,
    )
    files: dict[str, bytes] = {}
    given: list[tuple[Any, Image | None]] = [(image0, mask0), (image1, mask1)]
    for index, (image, mask) in enumerate(given):
        if ids[f"features{index}"] is None:
            files[f"image{index}"] = encoded(image, context.quality)
            if mask is not None:
                files[f"mask{index}"] = encoded_mask(mask)
        else:
            _refuse_mask(f"mask{index}", mask)
    return Call("POST", "/v1/match", results.match, query, files=files, repeatable=True)


def _refuse_mask(name: str, mask: Image | None) -> None:
    if mask is not None:
        raise ConfigError(f"{name} is given with stored features; expected it with an image")


def _match_query(
    matcher: Matcher,
    ratio: float | None,
    min_similarity: float | None,
    geometry: Geometry,
    threshold: float | None,
    camera0: Calibration | None,
    camera1: Calibration | None,
) -> dict[str, Any]:
    return {
        "matcher": None if matcher == "mnn" else matcher,  # the default needs no mention, which older services have not
        "ratio": ratio,
        "min_similarity": min_similarity,
        "geometry": geometry,
        "threshold": threshold,
        "camera0": None if camera0 is None else camera_query(camera0),
        "camera1": None if camera1 is None else camera_query(camera1),
    }


def match_many(
    context: Context,
    image: Image | str | StoredFeatures,
    *,
    mask: Image | None = None,
    against: Iterable[str | StoredFeatures] | None = None,
    collection: str | None = None,
    limit: int | None = None,
    model: str | None = None,
    max_keypoints: int | None = None,
    detection_threshold: float | None = None,
    nms_radius: int | None = None,
    resize: int | None = None,
    white: int | None = None,
    matcher: Matcher = "mnn",
    ratio: float | None = None,
    min_similarity: float | None = None,
    geometry: Geometry = "homography",
    threshold: float | None = None,
    camera0: Calibration | None = None,
    camera1: Calibration | None = None,
    descriptors: Encoding = "none",
) -> Call[ManyMatches]:
    """An image matched with stored ones, best first.

    Args:
        image: an image, or stored features or their id.
        mask: of an image, see :func:`features`.
        against: stored features or their ids; a whole collection where None.
        collection: which one; the service's default where None.
        limit: results, at most.
        model: see :func:`match`, and the following.
        max_keypoints: see there.
        detection_threshold: see there.
        nms_radius: see there.
        resize: see there.
        white: see there.
        matcher: see there; with "lightglue" the time for each stored image is far longer.
        ratio: see there.
        min_similarity: see there.
        geometry: see there.
        threshold: see there.
        camera0: of ``image``.
        camera1: of the stored images.
        descriptors: how the features' are sent.
    """
    known = _id_of(image)
    ids = None if against is None else [_id_of(one) for one in against]
    if ids == []:
        raise ConfigError("against has no features; expected at least one, or None for a whole collection")
    query = pairs(
        features=known,
        against=ids,
        collection=collection,
        limit=limit,
        model=model,
        max_keypoints=max_keypoints,
        detection_threshold=detection_threshold,
        nms_radius=nms_radius,
        resize=resize,
        white=white,
        **_match_query(matcher, ratio, min_similarity, geometry, threshold, camera0, camera1),
        descriptors=descriptors,
    )
    call = Call("POST", "/v1/match/many", results.many_matches, query, repeatable=True)
    if known is not None:
        _refuse_mask("mask", mask)
        return call
    pixels: Any = image
    return with_image(call, encoded(pixels, context.quality), mask)


def homography(
    _: Context,
    points0: ArrayLike,
    points1: ArrayLike,
    *,
    sigmas: ArrayLike | None = None,
    method: Literal["ransac", "opencv"] = "ransac",
    threshold: float | None = None,
    confidence: float | None = None,
    max_iterations: int | None = None,
    min_inliers: int | None = None,
    seed: int | None = None,
) -> Call[Homography]:
    """The homography of matched points.

    Args:
        points0: (M, 2) pixels of image 0.
        points1: (M, 2) pixels of image 1.
        sigmas: (M,) standard deviations of the matches' positions, ``np.hypot(sigmas0, sigmas1)`` of their keypoints.
        method: "ransac" is LO-RANSAC; or OpenCV's USAC_MAGSAC.
        threshold: largest error of an inlier, pixels.
        confidence: that the best model is found, in (0, 1).
        max_iterations: of RANSAC, at most.
        min_inliers: inliers below which there is no homography, at least 4; 8 where None.
        seed: of its random numbers.
    """
    settings = {"confidence": confidence, "max_iterations": max_iterations, "min_inliers": min_inliers, "seed": seed}
    query = pairs(method=method, threshold=threshold, **settings)
    points = {"points0": np.asarray(points0, np.float64), "points1": np.asarray(points1, np.float64)}
    if sigmas is not None:
        points["sigmas"] = np.asarray(sigmas, np.float64)
    body = encode(points, MSGPACK)
    return Call("POST", "/v1/homography", results.homography, query, body, MSGPACK, repeatable=True)


def models(_: Context) -> Call[list[Model]]:
    """The models that calls may name."""
    return Call("GET", "/v1/models", results.models, repeatable=True)


def readiness() -> Call[None]:
    """Nothing where the service is ready; Unavailable where it is not."""
    return Call("GET", "/readyz", nothing, repeatable=True)
