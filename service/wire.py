"""Wire formats of results: JSON for people, MessagePack and NPZ for robots.

A result is a mapping of names to arrays, numbers, texts, None, and lists and mappings of these. In MessagePack an array
is a map ``{"dtype": "<f4", "shape": [N, 2], "data": bytes}``, little-endian, in C order; in NPZ an array is a member of
its own, nested names (and indices of lists) joined by "/", and everything else is in the member ``meta``, JSON as UTF-8
bytes. In JSON what is not finite is null.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import msgpack
import numpy as np
import orjson
from numpy.typing import NDArray

JSON = "application/json"
MSGPACK = "application/msgpack"
NPZ = "application/x-npz"
FORMATS = (JSON, MSGPACK, NPZ)
_MAX_DTYPE = 16  # characters; a long text is a type of many fields
_MEMBER = b"PK\x01\x02"  # begins what the directory of an archive says of a member


def negotiate(accept: str | None) -> str | None:
    """The format for an Accept header, the first of ours that it allows with the highest quality; None where none is.

    Args:
        accept: the header; absent means any.
    """
    if not accept:
        return JSON
    ranges = [_range(part) for part in accept.split(",")]
    chosen, best = None, (0.0, 0)
    for form in FORMATS:
        # the closest range has the say: what it excludes no wildcard allows
        names = (form, form.partition("/")[0] + "/*", "*/*")
        fitting = [(-names.index(kind), quality, -n) for n, (kind, quality) in enumerate(ranges) if kind in names]
        offer = max(fitting, default=(0, 0.0, 0))[1:]
        if offer > best:
            chosen, best = form, offer
    return chosen


def _range(part: str) -> tuple[str, float]:
    """Kind and quality of a part of an Accept header."""
    kind, *parameters = (piece.strip() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 0.0
    return kind, quality if math.isfinite(quality) else 0.0


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
    return orjson.dumps(result, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)


def decode(body: bytes, kind: str, most: int | None = None) -> dict[str, Any]:
    """What :func:`encode` wrote; arrays of JSON stay lists.

    Args:
        body: that was received.
        kind: one of :data:`FORMATS`.
        most: values that a stranger's body may have, those in arrays of the binary formats not counted: as empty lists
            they take 64 times its bytes. None for any number.

    Raises:
        ValueError: the body is none of this format, or has more values.
    """
    try:
        if kind == MSGPACK:
            return dict(_unpacked(unpack(body, most)))
        if kind == NPZ:
            return _from_npz(body, most)
        found = _from_json(body, most)
    except Exception as error:  # of three parsers fed by strangers; whatever they raise, the body is at fault
        beside = "" if kind == JSON else " beside those in arrays"
        expected = kind if most is None else f"{kind} of at most {most} values{beside}"
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"body is not {expected}: {reason}") from None
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
            if not isinstance(value["dtype"], str) or len(value["dtype"]) > _MAX_DTYPE:
                raise ValueError("the dtype of an array is no name of one")
            return np.frombuffer(value["data"], np.dtype(value["dtype"])).reshape(value["shape"])
        return {key: _unpacked(item) for key, item in value.items()}
    return [_unpacked(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """What the JSON encoder does not take as it is: arrays of foreign byte order or with gaps, and mappings."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


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

    meta = orjson.dumps(split(result, ""))
    buffer = io.BytesIO()
    np.savez(buffer, meta=np.frombuffer(meta, np.uint8), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _check_member(stream: IO[bytes], size: int) -> None:
    """Refuse an array that claims more bytes than there are: NumPy allocates what the header says."""
    with stream:
        major, _ = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"an array claims the shape {shape} in {size} bytes")


def _from_json(text: bytes, most: int | None) -> Any:
    if most is not None:
        # a value follows a bracket or a comma
        found = sum(text.count(mark) for mark in (b"[", b"{", b","))
        if found > most:
            raise ValueError(f"it has up to {found}")
    return orjson.loads(text)


def unpack(body: bytes, most: int | None) -> Any:
    """What MessagePack says, arrays still as the maps that they are packed in; ``most`` as for :func:`decode`.

    Raises:
        Exception: of the parser's choice; or ValueError, there are more values.
    """
    if most is None:
        return msgpack.unpackb(body, raw=False)
    found = 0

    def count(values: Any) -> Any:
        nonlocal found
        found += len(values)
        if found > most:
            raise ValueError(f"it has {found} or more")
        return values

    # the lengths as well: room is made for what they claim, before it is there
    return msgpack.unpackb(body, raw=False, max_array_len=most, max_map_len=most, list_hook=count, object_hook=count)


def _from_npz(body: bytes, most: int | None) -> dict[str, Any]:
    if most is not None and (found := body.count(_MEMBER)) > most:
        raise ValueError(f"it has up to {found}")
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        for member in archive.infolist():
            # np.savez stores; what is compressed could be any number of times as large as the body
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(body):
                raise ValueError(f"member {member.filename} is compressed; expected an archive of np.savez")
            _check_member(archive.open(member), member.file_size)
    with np.load(io.BytesIO(body), allow_pickle=False) as file:
        result: dict[str, Any] = _from_json(file["meta"].tobytes(), most)
        for name in file.files:
            if name == "meta":
                continue
            *path, last = name.split("/")
            inner: Any = result
            for key in path:
                inner = inner[int(key)] if isinstance(inner, list) else inner[key]
            inner[int(last) if isinstance(inner, list) else last] = file[name]
    return result
