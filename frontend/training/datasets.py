"""Training data: a map from sample number to sample, a pure function of the seed.

So a run that is resumed at step n sees just what it would have seen, whatever the number of worker processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from frontend.errors import ConfigError, DataError, FrontendError
from frontend.heads import CELL
from frontend.homography import (
    HomographyConfig,
    prefiltered,
    sample_homography,
    scaling,
    valid_mask,
    warp_image,
    warp_points,
)
from frontend.training.augmentation import AugmentationConfig, augmented, repeated_weights
from frontend.training.device_views import draw_noise, finish_views
from frontend.training.labels import LabelledPhoto, content_digest, decode_heatmap, load_labelled_photos
from frontend.training.mixtoken import rectangle
from frontend.training.photometric import PhotometricConfig, photometric_noise
from frontend.training.soft_labels import soft_labels, warp_probabilities
from frontend.training.synthetic import Drawing, synthetic_drawing
from frontend.training.targets import cell_labels, cell_mask, spaced
from frontend.types import BoolArray, Float64Array, IntArray

VIEWS = 2
"""Goes up when a seed makes other samples: a part of what runs are described by, so that none goes on with others."""

Sample = dict[str, Tensor]
_NO_NOISE = PhotometricConfig(probability=0.0, exposure=0.0)


def with_plain_errors(batches: Iterable[Sample]) -> Iterator[Sample]:
    """Batches of a loader, whose worker processes hand errors on with a traceback in the message, without that.

    Raises:
        FrontendError: of the type that the data raised, in one line.
    """
    try:
        yield from batches
    except FrontendError as error:
        last = str(error).strip().splitlines()[-1]
        raise type(error)(last.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")) from None


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < 16 or size[0] % 8 or size[1] % 8:
        raise ConfigError(f"views are {size[0]} x {size[1]}; expected multiples of 8, 16 or more")


class SyntheticShapes(Dataset[Sample]):
    """Images of synthetic shapes with their corners (step 1, MagicPoint).

    A sample has ``image`` (H, W) uint8, ``labels`` (H/8, W/8) uint8 and ``mask`` (H/8, W/8) bool, and ``regions``
    (H, W) uint8 where asked for, see :class:`frontend.training.synthetic.Drawing`.

    Args:
        seed: of the whole set.
        size: (width, height), multiples of 8.
        noise: ranges of the photometric noise.
        augmentation: mosaics, rotation and scale; none where None.
        repeat_threshold: of :func:`frontend.training.augmentation.repeat_factors`; 0 repeats nothing.
        regions: whether samples have them.
    """

    def __init__(
        self,
        seed: int,
        size: tuple[int, int] = (160, 120),
        noise: PhotometricConfig | None = None,
        augmentation: AugmentationConfig | None = None,
        repeat_threshold: float = 0.0,
        regions: bool = False,
    ) -> None:
        _check_size(size)
        self.seed = seed
        self.size = size
        self.noise = noise or PhotometricConfig()
        self.augmentation = augmentation or AugmentationConfig()
        self.weights = repeated_weights(repeat_threshold, size)
        self.regions = regions

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index))

        def draw() -> Drawing:
            return synthetic_drawing(rng, self.size, weights=self.weights, regions=self.regions)

        drawing, known = augmented(draw, rng, self.augmentation)
        image = photometric_noise(drawing.image, rng, self.noise)
        sample = {
            "image": torch.from_numpy(image),
            "labels": torch.from_numpy(cell_labels(drawing.points, self.size, rng)),
            "mask": torch.from_numpy(cell_mask(known)),
        }
        if drawing.regions is not None:
            sample["regions"] = torch.from_numpy(drawing.regions)
        return sample


@dataclass(frozen=True)
class PairConfig:
    """How two views of one photograph are made.

    Attributes:
        size: (width, height) of the views, multiples of 8.
        photo_side: longest side that the photograph is brought to, pixels; up to a tenth longer ones stay as they are.
        zoom: largest scale of the first view relative to the photograph; the smallest shows the whole of it.
        first: homography of the first view.
        relative: homography between the views.
        any_rotation: share of the pairs whose relative rotation is anything up to 180 degrees.
        mirror: share of the photographs that are mirrored.
        noise: photometric noise on both views; none where None.
        label_threshold: least score of a label that counts.
        label_spacing: suppression radius among the labels of a view, pixels of the view; 0 keeps all.
        labelled_points: labelled correspondences of a pair, at most.
        random_points: random ones besides.
        soft: whether samples have soft labels, from the heat maps of the labels.
        mix_tokens: probability that a view is to have the tokens of a rectangle replaced (MixToken).
        on_device: whether the images of the views are made on the network's device, see :meth:`WarpedPairs.on_device`.
    """

    size: tuple[int, int] = (256, 192)
    photo_side: int = 480
    zoom: float = 1.15
    first: HomographyConfig = field(
        default_factory=lambda: HomographyConfig(patch=1.0, scale=0.0, rotation=0.35, perspective=0.15, overhang=0.05)
    )
    relative: HomographyConfig = field(
        default_factory=lambda: HomographyConfig(
            patch=0.85, scale=0.16, rotation=0.7, perspective=0.25, anisotropy=0.35, overhang=0.2
        )
    )
    any_rotation: float = 0.1
    mirror: float = 0.5
    noise: PhotometricConfig | None = field(default_factory=lambda: PhotometricConfig(exposure=2.5, jpeg=30))
    label_threshold: float = 0.0
    label_spacing: int = 4
    labelled_points: int = 200
    random_points: int = 100
    soft: bool = False
    mix_tokens: float = 0.0
    on_device: bool = False

    def __post_init__(self) -> None:
        _check_size(self.size)
        if self.photo_side < 16:
            raise ConfigError(f"photo_side is {self.photo_side}; expected 16 pixels or more")
        for name in ("any_rotation", "mirror", "label_threshold", "mix_tokens"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a value in [0, 1]")
        for name in ("random_points", "label_spacing"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more")


class WarpedPairs(Dataset[Sample]):
    """Pairs of views of labelled photographs (step 3, SuperPoint).

    A sample has ``image`` (2, H, W) uint8, ``labels`` (2, H/8, W/8) uint8, ``mask`` (2, H/8, W/8) bool, ``points``
    (2, N, 2) float32 correspondences, ``valid`` (N,) bool, ``labelled`` (N,) bool (the others are random points) and
    ``H`` (3, 3) float32 from the first view to the second.

    With ``config.soft`` it has ``soft`` (2, 65, H/8, W/8) float32 besides: see
    :func:`frontend.training.soft_labels.soft_labels`. With ``config.mix_tokens`` it has ``pasted`` (2, H/8, W/8) bool
    and ``partner`` (2,) int64: see :mod:`frontend.training.mixtoken`. The rest of the sample does not depend on either.

    Args:
        seed: of the whole set.
        images: folder of photographs.
        labels: folder that ``superpoint label`` made from it.
        config: how the views are made.
        photos: labelled photographs at hand already, instead of the two folders.

    Raises:
        DataError: there is no labelled photograph, or soft labels are asked for and a label has no heat map.
    """

    def __init__(
        self,
        seed: int,
        images: Path | None = None,
        labels: Path | None = None,
        config: PairConfig | None = None,
        photos: list[LabelledPhoto] | None = None,
    ) -> None:
        self.seed = seed
        self.config = config or PairConfig()
        if photos is None:
            if images is None or labels is None:
                raise DataError("pairs need a folder of photographs and a folder of labels; got none")
            photos = load_labelled_photos(
                images, labels, self.config.photo_side, self.config.label_threshold, self.config.soft
            )
        if not photos:
            raise DataError("pairs need at least one labelled photograph; got none")
        lacking = sum(photo.heatmap is None for photo in photos) if self.config.soft else 0
        if lacking:
            raise DataError(f"{lacking} of {len(photos)} photographs have no heat map; soft labels need one for each")
        self.photos = photos
        self._folders = (images, labels)
        self._shuffled: tuple[int, IntArray] | None = None
        self._side = max(max(photo.image.shape) for photo in photos)

    def content(self) -> str:
        """SHA-256 of the photographs and labels, hexadecimal: of what the files hold, not of where they lie."""
        images, labels = self._folders
        if images is not None and labels is not None:
            return content_digest(images, labels, self.config.soft)
        digest = hashlib.sha256()
        for photo in self.photos:
            for array in (photo.image, photo.points, photo.scores):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def on_device(self, batch: Sample) -> Sample:
        """What remains to be done to a batch where the network is: with ``config.on_device``, to make its images."""
        return finish_views(batch, self.config.size) if self.config.on_device else batch

    def _unfinished(self, index: int, photo: LabelledPhoto, homographies: list[Float64Array], border: int) -> Sample:
        """What the images of the views are made from, see :mod:`frontend.training.device_views`."""
        # a generator of its own: the labels' draws are those of views without noise
        rng = np.random.default_rng((self.seed, index, 2))
        padded = np.zeros((len(homographies), self._side, self._side), np.uint8)
        back, extents = [], []
        for target, H in zip(padded, homographies, strict=True):
            source, to_view = prefiltered(photo.image, H, self.config.size)
            height, width = source.shape
            target[:height, :width] = source
            back.append(np.linalg.inv(to_view))
            extents.append((width, height))
        drawn = [draw_noise(rng, self.config.size, self.config.noise or _NO_NOISE) for _ in homographies]
        return {
            "photo": torch.from_numpy(padded),
            "back": torch.from_numpy(np.stack([H / H[2, 2] for H in back]).astype(np.float32)),
            "extent": torch.tensor(extents),
            "reflect": torch.tensor(border == cv2.BORDER_REFLECT_101),
            "noise": torch.from_numpy(np.stack([row for row, _ in drawn])),
            "kernel": torch.from_numpy(np.stack([kernel for _, kernel in drawn])),
            "noise_seed": torch.from_numpy(rng.integers(1 << 31, size=len(drawn))),
        }

    def _order(self, epoch: int) -> IntArray:
        """Order of the photographs in an epoch; that of the last one asked for is kept."""
        if self._shuffled is None or self._shuffled[0] != epoch:
            rng = np.random.default_rng((self.seed, 1 << 40, epoch))
            self._shuffled = (epoch, rng.permutation(len(self.photos)))
        return self._shuffled[1]

    def _photo(self, index: int, rng: np.random.Generator) -> LabelledPhoto:
        epoch, place = divmod(index, len(self.photos))
        photo: LabelledPhoto = self.photos[self._order(epoch)[place]]
        if rng.random() >= self.config.mirror:
            return photo
        points = photo.points.copy()
        points[:, 0] = photo.image.shape[1] - 1 - points[:, 0]
        heatmap = None if photo.heatmap is None else cv2.flip(photo.heatmap, 1)
        return LabelledPhoto(cv2.flip(photo.image, 1), points, photo.scores, heatmap)

    def _homographies(self, rng: np.random.Generator, photo_size: tuple[int, int]) -> tuple[Float64Array, Float64Array]:
        """Photograph to first view, and first view to second."""
        config = self.config
        view, whole = np.array(config.size, np.float64), np.array(photo_size, np.float64)
        smallest = min(float((view / whole).max()), config.zoom)
        zoom = float(np.exp(rng.uniform(np.log(smallest), np.log(config.zoom))))
        room = whole - view / zoom
        corner = np.where(room > 0, rng.uniform(0, 1, 2) * room, room / 2)
        move = np.array([[1, 0, -corner[0]], [0, 1, -corner[1]], [0, 0, 1]])
        first = sample_homography(rng, config.size, config.first) @ scaling(zoom, zoom) @ move
        relative_config = config.relative
        if rng.random() < config.any_rotation:
            relative_config = dataclasses.replace(relative_config, rotation=np.pi)
        relative = sample_homography(rng, config.size, relative_config)
        # the draw zooms in on a crop; half of the pairs zoom out instead
        if rng.random() < 0.5:
            relative = np.asarray(np.linalg.inv(relative), np.float64)
        return first, relative

    def _correspondences(
        self, rng: np.random.Generator, photo: LabelledPhoto, H0: Float64Array, H1: Float64Array
    ) -> tuple[np.ndarray, BoolArray]:
        config = self.config
        picked = rng.permutation(len(photo.points))[: 2 * config.labelled_points]
        anywhere = rng.uniform(0, 1, (2 * config.random_points, 2)) * (np.array(config.size) - 1)
        groups = (
            (photo.points[picked], config.labelled_points),
            (warp_points(anywhere, np.linalg.inv(H0)), config.random_points),
        )
        limit, extent = np.array(config.size) - 1, np.array(photo.image.shape[::-1]) - 1
        pairs, valid = [], []
        for points, count in groups:
            both = np.stack([warp_points(points, H0), warp_points(points, H1)])
            seen = ((both >= 0) & (both <= limit)).all(axis=(0, 2)) & ((points >= 0) & (points <= extent)).all(axis=1)
            chosen = both[:, seen][:, :count]
            missing = count - chosen.shape[1]
            pairs.append(np.pad(chosen, ((0, 0), (0, missing), (0, 0))))
            valid.append(np.arange(count) < chosen.shape[1])
        return np.concatenate(pairs, axis=1).astype(np.float32), np.concatenate(valid)

    def _soft(self, photo: LabelledPhoto, homographies: tuple[Float64Array, ...]) -> Tensor:
        """Soft labels of the views, (2, 65, H/8, W/8) float32."""
        assert photo.heatmap is not None
        heat = decode_heatmap(photo.heatmap)
        to_photo = scaling(photo.image.shape[1] / heat.shape[1], photo.image.shape[0] / heat.shape[0])
        views = [soft_labels(warp_probabilities(heat, H @ to_photo, self.config.size)) for H in homographies]
        return torch.from_numpy(np.stack(views))

    def _pasting(self, index: int) -> Sample:
        # a generator of its own: with and without mixing, a sample shows the same views
        rng = np.random.default_rng((self.seed, index, 1))
        grid = (self.config.size[0] // CELL, self.config.size[1] // CELL)
        pasted = [rectangle(rng, grid, self.config.mix_tokens) for _ in range(2)]
        partner = rng.integers(1 << 31, size=2)
        return {"pasted": torch.from_numpy(np.stack(pasted)), "partner": torch.from_numpy(partner)}

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index))
        config = self.config
        photo = self._photo(index, rng)
        photo_size = (photo.image.shape[1], photo.image.shape[0])
        first, relative = self._homographies(rng, photo_size)
        border = cv2.BORDER_REFLECT_101 if rng.random() < 0.5 else cv2.BORDER_CONSTANT
        images, labels, masks = [], [], []
        for H in (first, relative @ first):
            if not config.on_device:
                view = warp_image(*prefiltered(photo.image, H, config.size), config.size, border=border)
                images.append(view if config.noise is None else photometric_noise(view, rng, config.noise))
            points = warp_points(photo.points, H)
            scores = photo.scores
            if config.label_spacing:
                apart = spaced(points, scores, config.size, config.label_spacing)
                points, scores = points[apart], scores[apart]
            labels.append(cell_labels(points, config.size, rng, scores))
            # beyond the photograph nothing is labelled, so nothing there may count as "no point"
            masks.append(cell_mask(valid_mask(H, photo_size, config.size)))
        pairs, valid = self._correspondences(rng, photo, first, relative @ first)
        made = self._unfinished(index, photo, [first, relative @ first], border) if config.on_device else {}
        sample = {
            **(made or {"image": torch.from_numpy(np.stack(images))}),
            "labels": torch.from_numpy(np.stack(labels)),
            "mask": torch.from_numpy(np.stack(masks)),
            "points": torch.from_numpy(pairs),
            "valid": torch.from_numpy(valid),
            "labelled": torch.arange(len(valid)) < config.labelled_points,
            "H": torch.from_numpy((relative / relative[2, 2]).astype(np.float32)),
        }
        if config.soft:
            sample["soft"] = self._soft(photo, (first, relative @ first))
        return {**sample, **self._pasting(index)} if config.mix_tokens else sample
