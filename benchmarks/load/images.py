"""VGA JPEGs, and the requests that carry them, as bytes that go over the wire unchanged."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from frontend import read_image
from frontend.errors import ImageError

SIZE = (640, 480)
SAMPLES = Path(__file__).resolve().parents[2] / "frontend" / "samples"
_QUALITY = 90
_BOUNDARY = "b0undary"


def vga_jpegs(folder: Path, count: int) -> list[bytes]:
    """JPEGs of 640 x 480 in colour.

    Args:
        folder: of photographs, each scaled to fill the frame; where they are fewer than ``count``, each is used again
            in another perspective.
        count: how many.
    """
    photographs = []
    for path in sorted(folder.iterdir()):
        try:
            photographs.append(read_image(path))
        except ImageError:
            continue
        if len(photographs) == count:
            break
    if not photographs:
        raise SystemExit(f"{folder} has no images")
    random = np.random.default_rng(0)
    made = []
    for index in range(count):
        frame = _filled(photographs[index % len(photographs)])
        if index >= len(photographs):
            corners = np.float32([(0, 0), (640, 0), (640, 480), (0, 480)])
            moved = corners + random.uniform(-40, 40, (4, 2)).astype(np.float32)
            frame = cv2.warpPerspective(
                frame, cv2.getPerspectiveTransform(corners, moved), SIZE, borderMode=cv2.BORDER_REFLECT
            )
        made.append(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes())
    return made


def _filled(image: np.ndarray) -> np.ndarray:
    """The middle of an image, scaled to the frame; in colour."""
    height, width = image.shape[:2]
    scale = max(SIZE[0] / width, SIZE[1] / height)
    size = (max(SIZE[0], round(width * scale)), max(SIZE[1], round(height * scale)))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = (image.shape[1] - SIZE[0]) // 2, (image.shape[0] - SIZE[1]) // 2
    image = image[top : top + SIZE[1], left : left + SIZE[0]]
    return image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)


def features_request(jpeg: bytes, accept: str, key: str | None = None, query: str = "") -> bytes:
    """``POST /v1/features`` with an image as its body."""
    return _request("/v1/features" + query, jpeg, "image/jpeg", accept, key)


def match_request(first: bytes, second: bytes, accept: str, key: str | None = None) -> bytes:
    """``POST /v1/match`` with a form of two images."""
    body = b""
    for name, jpeg in (("image0", first), ("image1", second)):
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}.jpg"\r\n'
        body += head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + jpeg + b"\r\n"
    body += f"--{_BOUNDARY}--\r\n".encode()
    return _request("/v1/match", body, f"multipart/form-data; boundary={_BOUNDARY}", accept, key)


def _request(path: str, body: bytes, kind: str, accept: str, key: str | None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: benchmark", f"Content-Length: {len(body)}", f"Content-Type: {kind}"]
    lines += [f"Accept: {accept}", *([f"X-API-Key: {key}"] if key else []), "", ""]
    return "\r\n".join(lines).encode() + body
