"""Losses on the auxiliary outputs of context modules."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from frontend.errors import ShapeError
from frontend.training.losses import masked_mean


def region_loss(logits: Tensor, regions: Tensor) -> Tensor:
    """Cross-entropy of soft object regions (Yuan et al. 2020, section 3.2).

    The class of a cell is that of the pixel nearest its centre; of the four that are equally near, the lower right
    one. A majority would never teach a shape thinner than half a cell; the centre meets it as often as it covers
    cells.

    Args:
        logits: (B, K, h, w) float.
        regions: (B, H, W) int64, H and W the same multiple of h and w: class in [0, K) of the shape at each pixel.
            Negative ones do not count.

    Returns:
        Scalar: the mean over the cells that count; 0 where none does.

    Raises:
        ShapeError: the shapes do not fit, or the classes are no integers.
    """
    if regions.ndim != 3 or regions.is_floating_point():
        raise ShapeError(f"regions are {regions.dtype} of shape {tuple(regions.shape)}, expected int64 (B, H, W)")
    step = _pixels_per_cell(logits, regions)
    classes = regions[:, step // 2 :: step, step // 2 :: step].long()
    losses = functional.cross_entropy(logits.float(), classes.clamp_min(0), reduction="none")
    return masked_mean(losses, classes >= 0)


def map_loss(logits: Tensor, raster: Tensor) -> Tensor:
    """Binary cross-entropy of a predicted map (MapSeg, Fang et al. 2021).

    Args:
        logits: (B, M, h, w) float.
        raster: (B, M, H, W) in [0, 1], H and W the same multiple of h and w; its mean over a cell is the target.

    Returns:
        Scalar: the mean over cells and layers.

    Raises:
        ShapeError: the shapes do not fit.
    """
    if raster.ndim != 4 or raster.shape[1] != logits.shape[1]:
        raise ShapeError(f"raster has shape {tuple(raster.shape)}, expected (B, {logits.shape[1]}, H, W)")
    target = functional.avg_pool2d(raster.float(), _pixels_per_cell(logits, raster))
    return functional.binary_cross_entropy_with_logits(logits.float(), target)


def auxiliary_losses(
    auxiliary: dict[str, Tensor], regions: Tensor | None = None, raster: Tensor | None = None
) -> dict[str, Tensor]:
    """Losses on what a network's context modules return beside the features.

    Args:
        auxiliary: by name, see :meth:`frontend.model.SuperPointNet.encode`.
        regions: target of "ocr/regions", see :func:`region_loss`.
        raster: target of "map_fusion/layers", see :func:`map_loss`.

    Returns:
        Scalars "loss/regions" and "loss/map"; those without an output or a target are left out.
    """
    losses: dict[str, Tensor] = {}
    if regions is not None and "ocr/regions" in auxiliary:
        losses["loss/regions"] = region_loss(auxiliary["ocr/regions"], regions)
    if raster is not None and "map_fusion/layers" in auxiliary:
        losses["loss/map"] = map_loss(auxiliary["map_fusion/layers"], raster)
    return losses


def _pixels_per_cell(logits: Tensor, target: Tensor) -> int:
    batch, _, height, width = logits.shape
    step = target.shape[-2] // height
    if step < 1 or target.shape[0] != batch or target.shape[-2:] != (step * height, step * width):
        raise ShapeError(
            f"target has shape {tuple(target.shape)}, expected a batch of {batch} at a multiple of {height} x {width}"
        )
    return step
