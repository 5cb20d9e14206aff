"""Which functions pick and describe keypoints on the CPU: NumPy's, or those that numba compiles."""

from __future__ import annotations

from typing import Protocol

from frontend import postprocess
from frontend.postprocess import Peaks
from frontend.types import Float32Array, IntArray


class Kernels(Protocol):
    """See :mod:`frontend.postprocess`, whose functions these are."""

    def find_peaks(
        self, heat: Float32Array, *, radius: int, border: int, size: tuple[int, int], threshold: float, count: int
    ) -> Peaks: ...

    def cut_patches(self, gray: Float32Array, peaks: Peaks, side: int) -> Float32Array: ...

    def describe(
        self,
        cells: Float32Array,
        points: Float32Array,
        size: tuple[int, int],
        local: Float32Array | None = None,
        order: IntArray | None = None,
    ) -> Float32Array: ...


def load_kernels(brief: bool = False) -> Kernels:
    """The fastest kernels at hand.

    Args:
        brief: whether a few images are all that is to come: numba takes half a second to load.
    """
    if brief:
        return postprocess
    try:
        from frontend import native
    except ImportError:
        return postprocess
    return native
