"""Which functions pick and describe keypoints and fit homographies on the CPU: NumPy's, or numba's."""

from __future__ import annotations

from typing import Protocol

from frontend import homography_cpu, postprocess
from frontend.postprocess import Gray, Peaks
from frontend.types import Float32Array, IntArray


class Kernels(Protocol):
    """See :mod:`frontend.postprocess`, whose functions these are."""

    def find_peaks(
        self, heat: Float32Array, *, radius: int, border: int, size: tuple[int, int], threshold: float, count: int
    ) -> Peaks: ...

    def cut_patches(self, gray: Gray, peaks: Peaks, side: int) -> Float32Array: ...

    def arrange(
        self,
        peaks: Peaks,
        position: Float32Array,
        points: Float32Array,
        scores: Float32Array,
        sigmas: Float32Array,
        *,
        subpixel: bool,
    ) -> IntArray: ...

    def describe(
        self,
        cells: Float32Array,
        points: Float32Array,
        size: tuple[int, int],
        local: Float32Array | None = None,
        order: IntArray | None = None,
    ) -> Float32Array: ...


class HomographyKernels(Protocol):
    """See :mod:`frontend.homography_cpu`, whose class and function these are."""

    @property
    def GaussNewton(self) -> type[homography_cpu.GaussNewton]: ...

    def score(
        self, h: Float32Array, points0: Float32Array, points1: Float32Array, limits: tuple[float, float]
    ) -> Float32Array: ...


_homography: HomographyKernels = homography_cpu


def load_kernels(brief: bool = False) -> Kernels:
    """The fastest kernels at hand; those for homographies, see :func:`homography_kernels`, come with them.

    Args:
        brief: whether a few images are all that is to come: numba takes half a second to load.
    """
    global _homography
    if brief:
        return postprocess
    try:
        from frontend import homography_native, native
    except ImportError:
        return postprocess
    _homography = homography_native
    return native


def homography_kernels() -> HomographyKernels:
    """The fastest ones that are loaded: numba's in a process that has called :func:`load_kernels`.

    A homography alone does not load them: it takes a hundredth of the time that this takes.
    """
    return _homography
