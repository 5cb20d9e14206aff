"""Homographic adaptation: interest points of photographs from a detector's own answers (DeTone et al. 2018, section 5).

The detector looks at an image under many random homographies; its heat maps are warped back and averaged over the
views that saw a pixel. What fires under all of them is an interest point.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from frontend.atomic import remove_leftovers
from frontend.device import autocast, check_precision
from frontend.errors import ConfigError, FrontendError
from frontend.extraction import MEETING
from frontend.folders import check_settings, find_images, output_path, read_ahead, read_quietly
from frontend.homography import HomographyConfig, erode_mask, sample_homography, valid_mask, warp_image, warp_images
from frontend.image import pad_to_multiple, rescale_points, to_gray
from frontend.keypoints import inside_border, non_maximum_suppression, refine_subpixel, top_k
from frontend.model import SuperPointNet, heatmap
from frontend.progress import Progress
from frontend.terminal import own_stderr
from frontend.training.labels import KEPT_TO, reduced_to, write_labels
from frontend.types import Float32Array, Float64Array

# settings that folders of earlier versions do not state, and what they were
_UNSTATED = {"heatmaps": False, "refiner_crc32": None, "kept_to": 1.0}
# after four moves two in a hundred points still move by more than half a pixel
_MOVES = 4


@dataclass(frozen=True)
class AdaptationConfig:
    """Settings of homographic adaptation.

    Attributes:
        homographies: N_h, the number of views; the first is the image itself.
        side: longest side that an image is brought to, pixels; up to a tenth longer ones stay as they are.
        threshold: least mean probability of a point.
        max_points: points kept of an image, the best ones.
        nms_radius: pixels.
        border: pixels along the image's edge without points.
        rotation: largest rotation of a view, radians.
        margin: pixels taken off the border of a view's valid area.
        least_views: share of the views that must have seen a pixel.
        batch_size: views in a batch.
        precision: see :func:`frontend.device.autocast`.
        seed: of the homographies; those of an image depend on the seed and the image's name alone.
        heatmaps: whether the labels hold the aggregated heat maps too.
    """

    homographies: int = 24
    side: int = 480
    threshold: float = 0.004
    max_points: int = 600
    nms_radius: int = 4
    border: int = 4
    rotation: float = 1.2
    margin: int = 3
    least_views: float = 0.25
    batch_size: int = 8
    precision: str = "auto"
    seed: int = 0
    heatmaps: bool = False

    def __post_init__(self) -> None:
        for name in ("homographies", "max_points", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; expected 0 or more")
        if self.side < 16:
            raise ConfigError(f"side is {self.side}; expected 16 pixels or more")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}; expected a probability in [0, 1]")
        if self.nms_radius < 0:
            raise ConfigError(f"nms_radius is {self.nms_radius}; expected 0 or more")
        check_precision(self.precision)
        _ = self.views

    @property
    def views(self) -> HomographyConfig:
        """The range of the homographies."""
        return HomographyConfig(patch=0.8, scale=0.25 / 2, rotation=self.rotation, perspective=0.25, overhang=0.1)


def _warp_batch(images: Tensor, H: Float64Array) -> Tensor:
    """Warp (B, 1, H, W) images by (B, 3, 3) homographies, on their device."""
    if images.device.type != "cpu":
        return warp_images(images, torch.from_numpy(H).to(images.device))
    # OpenCV's warp is an order of magnitude faster than grid_sample on a CPU
    size = (images.shape[-1], images.shape[-2])
    warped = [warp_image(image[0], h, size) for image, h in zip(images.numpy(), H, strict=True)]
    return torch.from_numpy(np.stack(warped))[:, None]


@torch.inference_mode()
def adapt(network: SuperPointNet, gray: Float32Array, config: AdaptationConfig, rng: np.random.Generator) -> Tensor:
    """The aggregated heat map of an image (equation 10; the mean is over the views that saw a pixel).

    Args:
        network: the detector, in evaluation mode, on the device to use.
        gray: (H, W) float32 in [0, 1], sides multiples of 8.
        config: settings.
        rng: source of the homographies.

    Returns:
        (H, W) float32 on the network's device; 0 where too few views saw a pixel.
    """
    device = next(network.parameters()).device
    size = (gray.shape[1], gray.shape[0])
    drawn = [np.eye(3)] + [sample_homography(rng, size, config.views) for _ in range(config.homographies - 1)]
    H = np.stack(drawn)
    image = torch.from_numpy(gray).to(device)[None, None]
    total = torch.zeros(gray.shape, device=device)
    count = torch.zeros(gray.shape, device=device)
    for start in range(0, len(H), config.batch_size):
        block = H[start : start + config.batch_size]
        warped = _warp_batch(image.expand(len(block), -1, -1, -1), block)
        with autocast(config.precision, device):
            logits = network.detect(warped.contiguous(memory_format=torch.channels_last))
        seen = [erode_mask(valid_mask(h, size, size).astype(np.uint8), config.margin) for h in block]
        masks = torch.from_numpy(np.stack(seen)).to(device, torch.float32)
        both = torch.cat([heatmap(logits) * masks, masks])[:, None]
        back = np.linalg.inv(np.concatenate([block, block]))
        unwarped = _warp_batch(both, back)[:, 0]
        total += unwarped[: len(block)].sum(0)
        count += unwarped[len(block) :].sum(0)
    enough = count >= config.least_views * config.homographies
    return torch.where(enough, total / count.clamp_min(1e-6), torch.zeros_like(total))


@torch.inference_mode()
def settle(refiner: SuperPointNet, image: Tensor, points: Tensor, scores: Tensor) -> Tensor:
    """Move points to where a refiner leaves them: the pixel that it moves a point to is refined again, and so on.

    Its answer depends on where in its patch a structure lies; the place where it lets a point stay does not.

    Args:
        refiner: a network with a refiner, in evaluation mode, on the device of the image.
        image: (H, W) float32 in [0, 1].
        points: (N, 2) float32 pixels.
        scores: (N,) float32 in [0, 1].

    Returns:
        (N, 2) float32 pixels, inside the image.
    """
    limit = torch.tensor([image.shape[1] - 1, image.shape[0] - 1], device=image.device)
    for _ in range(_MOVES if len(points) else 0):
        pixels = points.round().clamp(min=0).minimum(limit)
        refinement = refiner.refine(image[None, None], pixels[None], scores[None])
        assert refinement is not None
        points = (pixels + refinement.offsets[0]).clamp(min=0).minimum(limit)
    return points


def label_image(
    network: SuperPointNet,
    image: np.ndarray,
    config: AdaptationConfig,
    rng: np.random.Generator,
    refiner: SuperPointNet | None = None,
) -> tuple[Float32Array, Float32Array, Tensor]:
    """Interest points of one photograph.

    Args:
        network: the detector, in evaluation mode.
        image: as :func:`frontend.image.read_image` returns it.
        config: settings.
        rng: source of the homographies.
        refiner: a network with a refiner, which settles the points, see :func:`settle`; of those that meet the best
            stays.

    Returns:
        Points (N, 2) float32 in pixels of ``image`` with sub-pixel precision, and scores (N,) float32,
        best first; and the aggregated heat map at the resolution of the labelling, (H', W') float32 on the
        network's device.
    """
    gray, scale = reduced_to(to_gray(image), config.side)
    height, width = gray.shape
    mean = adapt(network, pad_to_multiple(gray), config, rng)[None]
    size = torch.tensor([[width, height]], device=mean.device)
    kept = inside_border(non_maximum_suppression(mean, config.nms_radius), config.border, size)
    found = top_k(kept, config.max_points, config.threshold, config.nms_radius)
    refined, scores = refine_subpixel(mean, found.keypoints)[found.valid], found.scores[found.valid]
    if refiner is not None:
        refined = settle(refiner, torch.from_numpy(gray).to(mean.device), refined, scores)
        apart = (refined[:, None] - refined[None]).abs().amax(dim=2)
        alone = ~(apart <= MEETING).tril(-1).any(dim=1)  # of those that have met the first, which is the best
        refined, scores = refined[alone], scores[alone]
    points = rescale_points(refined.cpu().numpy().astype(np.float64), (1 / scale[0], 1 / scale[1]))
    return points.astype(np.float32), scores.cpu().numpy(), mean[0, :height, :width]


@dataclass
class LabelReport:
    """What a run of :func:`label_folder` did.

    Attributes:
        labelled: images labelled by this run.
        kept: images that had a label already.
        points: in the labels of this run.
        damaged: images labelled by this run that have damaged parts.
        failed: images that could not be read, with the reason.
    """

    labelled: int = 0
    kept: int = 0
    points: int = 0
    damaged: int = 0
    failed: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line."""
        mean = self.points / self.labelled if self.labelled else 0.0
        damaged = f"; parts of {self.damaged} are damaged" if self.damaged else ""
        return (
            f"labelled {self.labelled} images with {mean:.0f} points each; {self.kept} had labels; "
            f"{len(self.failed)} skipped as unreadable{damaged}"
        )


def label_settings(
    network: SuperPointNet, name: str, config: AdaptationConfig, refiner: SuperPointNet | None = None
) -> dict[str, object]:
    """What decides the labels: the detector, the refiner that settles them, and the settings, by name."""
    settings = {key: value for key, value in asdict(config).items() if key != "batch_size"}
    settled = None if refiner is None else _weights_digest(refiner)
    return {
        "model": name,
        "weights_crc32": _weights_digest(network),
        "refiner_crc32": settled,
        "kept_to": KEPT_TO,
        **settings,
    }


def check_label_settings(out: Path, settings: dict[str, object]) -> None:
    """Record what a folder of labels is made with, or compare: :func:`frontend.folders.check_settings`."""
    check_settings(out, settings, "labels", _UNSTATED)


def _weights_digest(network: SuperPointNet) -> str:
    digest = 0
    for tensor in network.state_dict().values():
        digest = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), digest)
    return f"{digest:08x}"


def _photographs(
    images: Path, names: Iterable[Path]
) -> Generator[tuple[Path, tuple[np.ndarray, str] | FrontendError], None, None]:
    """Read ahead.

    Yields:
        Each name with its image and what the decoder said of damage to it, as :func:`frontend.folders.read_quietly`
        returns them; or with why there is none.
    """
    yield from read_ahead(lambda name: read_quietly(images / name), names)


def label_folder(
    network: SuperPointNet,
    name: str,
    images: Path,
    out: Path,
    config: AdaptationConfig,
    device: torch.device,
    refiner: SuperPointNet | None = None,
) -> LabelReport:
    """Label all photographs below a folder; go on where an earlier run stopped.

    Labels lie in ``out`` under the images' relative names; each is written whole or not at all. An image that
    cannot be read is reported and skipped.

    Args:
        network: the detector.
        name: its name, recorded beside the labels.
        images: folder of photographs.
        out: folder of the labels, made if missing.
        config: settings.
        device: where to run.
        refiner: a network whose refiner settles the points, see :func:`settle`.

    Raises:
        ConfigError: the network that is to settle the points has no refiner.
        DataError: there are no images, or ``out`` holds labels made with other settings.
    """
    names = find_images(images)
    if refiner is not None:
        if refiner.refiner is None:
            raise ConfigError("the weights that are to settle the points have no refiner; expected a network with one")
        refiner = refiner.eval().to(device)
    network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    out.mkdir(parents=True, exist_ok=True)
    check_label_settings(out, label_settings(network, name, config, refiner))
    report = LabelReport()
    todo = [image for image in names if not output_path(out, image).is_file()]
    report.kept = len(names) - len(todo)
    for folder in {output_path(out, image).parent for image in todo}:
        remove_leftovers(folder)
    # closed within: while it reads, nothing else is seen of what is written to stderr
    with (
        own_stderr(),
        Progress(len(names), "label", start=report.kept, unit="image", interval_s=15) as progress,
        closing(_photographs(images, todo)) as photographs,
    ):
        for image, read in photographs:
            if isinstance(read, FrontendError):
                report.failed.append(str(read))
                progress.write(f"skipped: {read}")
            else:
                pixels, damage = read
                rng = np.random.default_rng((config.seed, zlib.crc32(image.as_posix().encode())))
                points, scores, mean = label_image(network, pixels, config, rng, refiner)
                heat = mean.cpu().numpy() if config.heatmaps else None
                write_labels(output_path(out, image), points, scores, (pixels.shape[1], pixels.shape[0]), heat)
                if damage:
                    report.damaged += 1
                    progress.write(f"damaged: {images / image}: {damage}")
                report.labelled += 1
                report.points += len(points)
            progress.update()
    return report
