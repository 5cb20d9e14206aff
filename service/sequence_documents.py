"""The documents of sequences in JSON; see :mod:`service.schemas`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from frontend.camera import Camera
from frontend.errors import ConfigError
from service.schemas import IndexPair, Matrix3, Pair, Timings, Vector3

Finite = Annotated[float, Field(allow_inf_nan=False)]
GivenRow = Annotated[list[Finite], Field(min_length=3, max_length=3)]
GivenMatrix = Annotated[list[GivenRow], Field(min_length=3, max_length=3)]
MAX_TRACKS = 16_384
_STRICT = ConfigDict(extra="forbid", strict=True)
_K: list[Any] = [[525.0, 0.0, 319.5], [0.0, 525.0, 239.5], [0.0, 0.0, 1.0]]


class CameraDocument(BaseModel):
    """A calibrated pinhole camera."""

    model_config = _STRICT

    K: GivenMatrix = Field(description="(3, 3) intrinsics, pixels.")
    distortion: list[Finite] = Field(
        default=[],
        max_length=14,
        description="OpenCV's k1, k2, p1, p2[, k3[, ...]], empty for none; k1, k2, k3, k4 of a fisheye.",
    )
    model: Literal["opencv", "fisheye"] = Field(
        default="opencv", description="Radial and tangential, or a fisheye (Kalibr and ROS: equidistant)."
    )


def _document_of_text(value: Any) -> Any:
    """The document of a camera that is given as text; documents as they are."""
    if isinstance(value, (dict, CameraDocument)):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError(
            "camera_type", "expected an object with K, or text: fx,fy,cx,cy[,k1,k2,p1,p2[,k3...]]"
        )
    try:
        camera = Camera.parse(value)
    except ConfigError as error:
        raise PydanticCustomError("camera", "{error}", {"error": str(error)}) from None
    return {"K": camera.K.tolist(), "distortion": list(camera.distortion), "model": camera.model}


CameraText = Annotated[
    str,
    Field(
        description="`fx,fy,cx,cy[,k1,k2,p1,p2[,k3,...]]` or `fisheye:fx,fy,cx,cy,k1,k2,k3,k4`, as in queries.",
        examples=["525,525,319.5,239.5"],
    ),
]
GivenCamera = Annotated[
    CameraDocument, BeforeValidator(_document_of_text, json_schema_input_type=CameraDocument | CameraText)
]


class StereoDocument(BaseModel):
    """The right camera of a calibrated pair: X_right = R X_left + t."""

    model_config = _STRICT

    camera: GivenCamera
    R: GivenMatrix = Field(description="(3, 3) rotation.")
    t: GivenRow = Field(description="(3,) metres.")


class PolicyDocument(BaseModel):
    """Settings of the tracker; what is not given has its default."""

    model_config = _STRICT

    min_similarity: float | None = Field(default=None, ge=-1, le=1, description="Least cosine of a track's keypoints.")
    search_radius: float | None = Field(
        default=None, gt=0, le=10, description="Largest distance from the expected place, share of the longest side."
    )
    max_gap: int | None = Field(default=None, ge=0, le=10_000, description="Frames that a track may go unseen.")
    max_tracks: int | None = Field(default=None, ge=1, le=MAX_TRACKS, description="Tracks that are remembered.")
    threshold: float | None = Field(
        default=None, ge=1e-3, le=1000, description="Largest error of an inlier of the motion, pixels."
    )
    keyframe_share: float | None = Field(
        default=None, ge=0, le=1, description="A keyframe sees less than this share of the last keyframe's tracks."
    )
    keyframe_parallax: float | None = Field(
        default=None, gt=0, le=10, description="Or has moved by more than this on median, share of the longest side."
    )


class OpenSequence(BaseModel):
    """A sequence to be opened; every member may be left out."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "example": {
                "camera_id": "front",
                "camera": {"K": _K, "distortion": [-0.28, 0.07, 0.0002, 0.00002]},
                "policy": {"max_gap": 2, "threshold": 3.0},
                "max_keypoints": 512,
            }
        },
    )

    camera_id: str | None = Field(default=None, max_length=256, description="Echoed with each frame.")
    camera: GivenCamera | None = Field(
        default=None, description="Without it there are no normalised coordinates and no poses."
    )
    stereo: StereoDocument | None = Field(
        default=None, description="For points in space of frames with a right image; needs `camera`."
    )
    policy: PolicyDocument | None = None
    model: str | None = Field(default=None, description="A served model, see `/v1/models`.")
    max_keypoints: int | None = Field(default=None, ge=1, description="Most keypoints of a frame.")
    detection_threshold: float | None = Field(default=None, ge=0, lt=1, description="As for `/v1/features`.")
    nms_radius: int | None = Field(default=None, ge=0, le=64, description="The same.")
    resize: int | None = Field(default=None, ge=8, le=8192, description="The same.")
    white: int | None = Field(
        default=None, ge=255, lt=2**32, description="The same; without it frames of 16 bits may differ in brightness."
    )
    ttl_s: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Seconds without a frame until it expires, if fewer."
    )


class OpenedDocument(BaseModel):
    """A sequence that has been opened."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "8Vb2jJ0qTq6mWZkO4l1f3w",
                "camera_id": "front",
                "model": "superpoint-edge",
                "expires_in_s": 300.0,
                "policy": {
                    "min_similarity": 0.5,
                    "search_radius": 0.2,
                    "max_gap": 2,
                    "max_tracks": 4096,
                    "threshold": 3.0,
                    "keyframe_share": 0.6,
                    "keyframe_parallax": 0.1,
                },
            }
        }
    )

    id: str = Field(description="Names it in other requests.")
    camera_id: str | None = Field(description="As it was given.")
    model: str = Field(description="That extracts its features.")
    expires_in_s: float = Field(description="Seconds until it is forgotten, unless a frame comes.")
    policy: PolicyDocument = Field(description="The settings in force.")


class SequenceDocument(BaseModel):
    """A sequence that is open."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "8Vb2jJ0qTq6mWZkO4l1f3w",
                "camera_id": "front",
                "model": "superpoint-edge",
                "frames": 120,
                "tracks": 5231,
                "mean_track_length": 11.7,
                "last_stamp_ns": 1403636579763555584,
                "bytes": 1204224,
                "expires_in_s": 299.2,
            }
        }
    )

    id: str = Field(description="Names it.")
    camera_id: str | None = Field(description="As it was given.")
    model: str = Field(description="That extracts its features.")
    frames: int = Field(ge=0, description="That it has had.")
    tracks: int = Field(ge=0, description="That it has seen.")
    mean_track_length: float = Field(ge=0, description="Frames of a track.")
    last_stamp_ns: int | None = Field(description="Of the last frame, nanoseconds; null before the first.")
    bytes: int = Field(ge=0, description="That its state takes.")
    expires_in_s: float = Field(description="Seconds until it is forgotten, unless another frame comes.")


class SequencesDocument(BaseModel):
    """The sequences that are open, the oldest first."""

    sequences: list[SequenceDocument]


class PoseDocument(BaseModel):
    """A rigid motion: X1 = R X0 + t."""

    R: Matrix3 = Field(description="(3, 3) rotation.")
    t: Vector3 = Field(description="(3,), of unit norm: images do not tell its length; zero where it only turned.")


class StereoPointsDocument(BaseModel):
    """What the right image adds."""

    rows: list[int] = Field(description="(M,): keypoints of the left image that were found in the right one.")
    keypoints: list[Pair] = Field(description="(M, 2): pixels of the right image.")
    points: list[Vector3] | None = Field(
        description="(M, 3): in the left camera's frame, metres; null where the pair is not calibrated."
    )


_FRAME: dict[str, Any] = {
    "sequence_id": "8Vb2jJ0qTq6mWZkO4l1f3w",
    "camera_id": "front",
    "frame_id": "cam0/000017",
    "index": 17,
    "stamp_ns": 1403636579763555584,
    "image_size": [640, 480],
    "track_ids": [7, 912],
    "ages": [18, 1],
    "keypoints": [[311.52, 204.87], [87.3, 402.11]],
    "scores": [0.91, 0.62],
    "sigmas": [0.41, 0.78],
    "normalised": [[-0.0152, -0.0659], [-0.4423, 0.3097]],
    "velocities": [[42.1, -3.9], [0.0, 0.0]],
    "new": [False, True],
    "lost": [3, 5],
    "keyframe": False,
    "motion": "essential",
    "matrix": [[0.0, -0.07, 0.02], [0.09, 0.01, -0.7], [-0.02, 0.7, 0.01]],
    "inlier_share": 0.94,
    "pose": {"R": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], "t": [0.99, 0.03, 0.1]},
    "stereo": None,
    "descriptors": None,
    "timings_ms": {"features": 21.0, "turn": 0.1, "tracking": 9.3, "total": 30.5},
}


class TrackedFrameDocument(BaseModel):
    """A frame with its tracks: row by row a keypoint, best score first."""

    model_config = ConfigDict(json_schema_extra={"example": _FRAME})

    sequence_id: str = Field(description="Of its sequence.")
    camera_id: str | None = Field(description="Of its sequence.")
    frame_id: str | None = Field(description="As it was given with the frame.")
    index: int = Field(ge=0, description="Of the frame, from 0.")
    stamp_ns: int = Field(description="As it was given, nanoseconds.")
    image_size: IndexPair = Field(description="Width and height, pixels.")
    track_ids: list[int] = Field(description="(N,): never used again in a sequence.")
    ages: list[int] = Field(description="(N,): frames in which the track has been seen, this one included.")
    keypoints: list[Pair] = Field(description="(N, 2): x, y in pixels; (0, 0) is the centre of the top-left pixel.")
    scores: list[float] = Field(description="(N,): as for `/v1/features`.")
    sigmas: list[float] | None = Field(description="(N,): the same.")
    normalised: list[list[float | None]] | None = Field(
        description="(N, 2): undistorted, x/z and y/z in the camera's frame, null where the distortion has no "
        "inverse; null without a camera."
    )
    velocities: list[Pair] = Field(description="(N, 2): pixels a second since the track was last seen; 0 for new ones.")
    new: list[bool] = Field(description="(N,): tracks that start here.")
    lost: list[int] = Field(description="(L,): tracks that have been given up with this frame.")
    keyframe: bool = Field(description="Whether it is one.")
    motion: Annotated[str, Field(pattern="^(homography|fundamental|essential|none)$")] = Field(
        description="Model of the motion since the frame before."
    )
    matrix: Matrix3 | None = Field(
        description="(3, 3) of that model, frame before to this one; an essential matrix is of normalised coordinates, "
        "the others are of pixels, undistorted ones where the camera has distortion."
    )
    inlier_share: float = Field(ge=0, le=1, description="Of the matches with the frame before, those that it explains.")
    pose: PoseDocument | None = Field(
        description="Relative to the frame before; null without a camera, without a model, or where that is a "
        "fundamental matrix."
    )
    stereo: StereoPointsDocument | None = Field(description="Of the right image; null without one.")
    descriptors: list[list[float]] | None = Field(description="(N, D), as for `/v1/features`; null for `none`.")
    timings_ms: Timings
