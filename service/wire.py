"""Wire formats of results: JSON for people, MessagePack and NPZ for robots.

A result is a mapping of names to arrays, numbers, texts, None, and lists and mappings of these. In MessagePack an array
is a map ``{"dtype": "<f4", "shape": [N, 2], "data": bytes}``, little-endian, in C order; in NPZ an array is a member of
its own, nested names (and indices of lists) joined by "/", and everything else is in the member ``meta``, JSON as UTF-8
bytes.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

JSON = "application/json"
MSGPACK = "application/msgpack"
NPZ = "application/x-npz"
FORMATS = (JSON, MSGPACK, NPZ)


def negotiate(accept: str | None) -> str | None:
    """The format for an Accept header, the first of ours that it allows with the highest quality; None where none is.

    Args:
        accept: the header; absent means any.
    """
    if not accept:
        return JSON
    best: tuple[float, str] | None = None
    for part in accept.split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        allowed = [f for f in FORMATS if kind in (f, "*/*") or (kind.endswith("/*") and f.startswith(kind[:-1]))]
        if allowed and math.isfinite(quality) and quality > 0 and (best is None or quality > best[0]):
            best = (quality, allowed[0])
    return best and best[1]


def encode(result: Mapping[str, Any], kind: str) -> bytes:
    """Encode a result.

    Args:
        result: see above.
        kind: one of :data:`FORMATS`.
    """
    if kind == MSGPACK:
        packed: bytes = msgpack.packb(_packed(result), use_bin_type=True)
        return packed
    if kind == NPZ:
        return _npz(result)
    return json.dumps(_listed(result), allow_nan=False, separators=(",", ":")).encode()


def decode(body: bytes, kind: str) -> dict[str, Any]:
    """What :func:`encode` wrote; arrays of JSON stay lists.

    Raises:
        ValueError: the body is none of this format.
    """
    try:
        if kind == MSGPACK:
            return dict(_unpacked(msgpack.unpackb(body, raw=False)))
        if kind == NPZ:
            return _from_npz(body)
        found = json.loads(body)
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, msgpack.UnpackException) as error:
        raise ValueError(f"body is not {kind}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"body is not an object of {kind}")
    return found


def little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """The array in C order, its bytes little-endian whatever the machine's order is."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        array = little_endian(value)
        return {"dtype": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}
    if isinstance(value, Mapping):
        return {key: _packed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_packed(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"dtype", "shape", "data"}:
            return np.frombuffer(value["data"], np.dtype(value["dtype"])).reshape(value["shape"])
        return {key: _unpacked(item) for key, item in value.items()}
    return [_unpacked(item) for item in value] if isinstance(value, list) else value


def _listed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "f":
            # the shortest decimals that give the same value in the array's own precision
            return _shortest(value)
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_listed(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _shortest(array: NDArray[Any]) -> Any:
    if array.ndim > 1:
        return [_shortest(row) for row in array]
    return [float(str(value)) for value in array]


def _npz(result: Mapping[str, Any]) -> bytes:
    arrays: dict[str, NDArray[Any]] = {}

    def split(value: Any, name: str) -> Any:
        if isinstance(value, np.ndarray):
            arrays[name] = little_endian(value)
            return None
        if isinstance(value, Mapping):
            return {key: split(item, f"{name}/{key}" if name else key) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [split(item, f"{name}/{index}") for index, item in enumerate(value)]
        return value.item() if isinstance(value, np.generic) else value

    meta = json.dumps(split(result, ""), allow_nan=False).encode()
    buffer = io.BytesIO()
    np.savez(buffer, meta=np.frombuffer(meta, np.uint8), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _from_npz(body: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(body), allow_pickle=False) as file:
        result: dict[str, Any] = json.loads(file["meta"].tobytes())
        for name in file.files:
            if name == "meta":
                continue
            *path, last = name.split("/")
            inner: Any = result
            for key in path:
                inner = inner[int(key)] if isinstance(inner, list) else inner[key]
            inner[int(last) if isinstance(inner, list) else last] = file[name]
    return result
