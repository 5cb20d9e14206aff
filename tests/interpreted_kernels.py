"""Compares the Triton kernels with PyTorch's operators; run by test_cuda_parts.py in a process of its own.

Triton decides whether to interpret kernels when they are defined, by the environment.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from frontend import cuda_kernels
from frontend.keypoints import non_maximum_suppression, sample_descriptors
from frontend.refinement import gather_patches


def main() -> None:
    torch.manual_seed(0)
    for radius in (1, 3, 4):
        for iterations in (0, 2):
            maps = (torch.rand(2, 40, 56) * 50).round() / 50  # with ties
            maps[maps < 0.5] = 0
            expected = non_maximum_suppression(maps, radius, iterations)
            assert torch.equal(cuda_kernels.suppress(maps, radius, iterations), expected), radius
    broken = torch.full((1, 16, 16), float("nan"))
    broken[0, :8] = torch.rand(8, 16)
    found = cuda_kernels.suppress(broken, 3, 2)
    assert found[0, :8].any()
    assert not found[0, 8:].any()  # and so no NaN
    for shape in ((2, 5, 8, 12), (1, 3, 2, 2)):
        x = torch.randn(shape)
        assert torch.equal(cuda_kernels.halve(x), functional.max_pool2d(x, 2))
    images = torch.rand(2, 1, 40, 56)
    corners = torch.tensor([[0.0, 0.0], [55.0, 0.0], [0.0, 39.0], [55.0, 39.0]]).expand(2, 4, 2)
    inside = torch.stack([torch.randint(0, 56, (2, 20)), torch.randint(0, 40, (2, 20))], dim=-1).float()
    keypoints = torch.cat([corners, inside], dim=1)
    for size in (15, 17):
        assert torch.equal(cuda_kernels.cut_patches(images, keypoints, size), gather_patches(images, keypoints, size))
    maps = torch.randn(2, 96, 5, 7)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = cuda_kernels.sample(maps.contiguous(memory_format=layout), keypoints + 0.3, (56, 40))
        torch.testing.assert_close(found, sample_descriptors(maps, keypoints + 0.3, (56, 40)), atol=1e-5, rtol=0)
    print("the same")


if __name__ == "__main__":
    main()
