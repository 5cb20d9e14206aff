"""Which errors mean that the memory did not suffice."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from frontend.errors import is_lack_of_memory


def opencv(call) -> cv2.error:
    with pytest.raises(cv2.error) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        RuntimeError("Exception from src/core.cpp:9:\nFailed to allocate 2500000000 bytes of memory\n"),
        RuntimeError("Exception from src/core.cpp:9:\nstd::bad_alloc\n"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_a_lack_of_memory(error: Exception) -> None:
    assert is_lack_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), ValueError("Failed to allocate 9 bytes of memory"), OSError(12, "")]
)
def test_something_else(error: Exception) -> None:
    assert not is_lack_of_memory(error)


def test_errors_of_opencv_are_told_apart_though_it_has_one_code_for_all() -> None:
    # more than there are addresses; memory of this size cannot be had anywhere
    large = opencv(lambda: cv2.resize(np.zeros((1, 1), np.float64), (2**31 - 1, 2**15)))
    assert is_lack_of_memory(large)
    other = opencv(lambda: cv2.resize(np.zeros((1, 1), np.float64), (-1, -1)))
    assert not is_lack_of_memory(other)
    assert is_lack_of_memory(large)
    opencv(lambda: cv2.resize(np.zeros((1, 1), np.float64), (2**31 - 1, 2**15)))
    assert not is_lack_of_memory(other)
