"""Errors of the front-end: typed, and one line for the user.

Every message names what was given and what was expected. All derive from :class:`FrontendError`, so a caller
can tell the library's refusals from its bugs.
"""


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


_NO_MEMORY = -4  # of cv2.error


def is_lack_of_memory(error: Exception) -> bool:
    """Python's own, CUDA's in torch, the CPU's in torch, a runtime's, or OpenCV's, none of which is imported for it."""
    package = type(error).__module__.partition(".")[0]
    return (
        isinstance(error, MemoryError)
        or (package == "onnxruntime" and "alloc" in str(error))
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
        or getattr(error, "code", 0) == _NO_MEMORY
    )
