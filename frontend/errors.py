"""Errors of the front-end: typed, and one line for the user.

Every message names what was given and what was expected. All derive from :class:`FrontendError`, so a caller
can tell the library's refusals from its bugs.
"""

from __future__ import annotations

import operator
import re


class FrontendError(Exception):
    """Base of every error that this library raises on purpose."""


class ImageError(FrontendError):
    """An image cannot be read, or its content cannot be used."""


class ShapeError(FrontendError):
    """An array has the wrong shape or data type."""


class WeightsError(FrontendError):
    """A weight file is missing, corrupt, of an unknown layout, or not what the manifest says."""


class RegistryError(FrontendError):
    """A name is not registered, or registered twice."""


class ConfigError(FrontendError):
    """A setting is unknown or out of its range."""


class DataError(FrontendError):
    """A dataset or a label folder is missing, empty, or not laid out as expected."""


class SequenceError(FrontendError):
    """A frame does not continue its sequence."""


# of a RuntimeError: PyTorch's on the CPU and on a GPU, and OpenVINO's
_NO_MEMORY = re.compile(r"allocate (\d+ bytes of )?memory|not enough memory|out of memory|bad_alloc")
# OpenCV's code; as an attribute it is that of whatever error was the last, in any thread
_NO_MEMORY_OF_OPENCV = re.compile(r"\(-4:|Failed to allocate \d+ bytes")


def is_lack_of_memory(error: Exception) -> bool:
    """Python's own, CUDA's in torch, the CPU's in torch, a runtime's, or OpenCV's, none of which is imported for it."""
    package = type(error).__module__.partition(".")[0]
    return (
        isinstance(error, MemoryError)
        or (package == "onnxruntime" and "alloc" in str(error))
        or type(error).__name__ == "OutOfMemoryError"
        or (package == "cv2" and _NO_MEMORY_OF_OPENCV.search(str(error)) is not None)
        or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None)
    )


def whole_nanoseconds(stamp_ns: int, refusal: type[FrontendError]) -> int:
    """A stamp as an integer of Python; seconds as a float would be taken for a few nanoseconds.

    Args:
        stamp_ns: as a caller gave it.
        refusal: raised where it is no whole number, or one of more than 64 bits.
    """
    try:
        whole = operator.index(stamp_ns)
    except TypeError:
        raise refusal(f"stamp_ns is {stamp_ns}; expected nanoseconds, a whole number") from None
    if not -(2**63) <= whole < 2**63:
        raise refusal(f"stamp_ns is {whole}; expected nanoseconds, of 64 bits")
    return whole
