"""Features of many images: extraction that reads ahead, and files that hold one image's features each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from frontend.atomic import atomic_path, remove_leftovers
from frontend.errors import ConfigError, DataError, FrontendError, ImageError, ShapeError, is_lack_of_memory
from frontend.extraction import Prepared
from frontend.extractor import SuperPoint
from frontend.folders import check_settings, find_images, output_path, read_ahead, read_quietly, reading_npz
from frontend.image import read_image
from frontend.masks import MaskOf, check_masks, masks_of
from frontend.progress import Progress
from frontend.terminal import own_stderr
from frontend.types import Features


def extract_files(
    extractor: SuperPoint,
    paths: Iterable[Path],
    *,
    batch: int = 1,
    read: Callable[[Path], NDArray[np.uint8]] | None = None,
    mask_of: MaskOf | None = None,
) -> Generator[tuple[Path, Features | FrontendError], None, None]:
    """Features of image files: while the network runs, the next images are read, decoded and resized.

    Args:
        extractor: what makes the features.
        paths: of the images; taken as they are needed.
        batch: images that go through the network together, where neighbours in ``paths`` have one padded size. More
            than 1 gains on a GPU and next to nothing on a CPU.
        read: reads an image, in a thread of its own; :func:`frontend.image.read_image` where None.
        mask_of: gives an image's mask, in that thread, see :class:`frontend.masks.Masks`; anywhere where None.

    Yields:
        Each path with its features, or with the error of an image that cannot be read or is too large for the memory,
        in order.

    Raises:
        ConfigError: batch is less than 1.
    """
    _check_batch(batch)
    group: list[tuple[Path, Prepared]] = []

    def finish() -> Iterator[tuple[Path, Features | FrontendError]]:
        yield from _of_batch(extractor, group)
        group.clear()

    def prepare(path: Path) -> Prepared:
        try:
            image = read_image(path, white=extractor.config.white) if read is None else read(path)
            return extractor.prepare(image, mask=None if mask_of is None else mask_of(path))
        except ShapeError as error:  # of the mask: what is read is an image
            raise ImageError(f"{path}: {error}") from None
        except Exception as error:
            if not is_lack_of_memory(error):
                raise
            # its size may not be known yet
            raise ImageError(f"{path}: out of memory; a smaller --resize needs less") from None

    for path, prepared in read_ahead(prepare, paths, ahead=batch + 3):
        if isinstance(prepared, FrontendError):
            yield from finish()
            yield path, prepared
            continue
        if group and group[0][1].gray.shape != prepared.gray.shape:
            yield from finish()
        group.append((path, prepared))
        if len(group) == batch:
            yield from finish()
    yield from finish()


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise ConfigError(f"batch is {batch}; expected 1 or more")


def _of_batch(
    extractor: SuperPoint, group: Sequence[tuple[Path, Prepared]]
) -> list[tuple[Path, Features | FrontendError]]:
    """Features of images of one size; where the memory does not suffice for all at once, of one after another."""
    if not group:
        return []
    paths = [path for path, _ in group]
    try:
        stacked = extractor.stack([prepared for _, prepared in group])
        features = extractor.collect(extractor.postprocess(extractor.forward(stacked), stacked), stacked)
        return list(zip(paths, features, strict=True))
    except Exception as error:
        if not is_lack_of_memory(error):
            raise
    # the error is gone by now, and with it what the batch held
    if len(group) > 1:
        return [found for member in group for found in _of_batch(extractor, [member])]
    width, height = group[0][1].geometry.resized
    reason = f"out of memory at {width} x {height}; a smaller --resize needs less"
    return [(paths[0], ImageError(f"{paths[0]}: {reason}"))]


def write_features(path: str | Path, features: Features, *, half: bool = False) -> None:
    """Write a feature file, atomically.

    Args:
        path: of the file, an NPZ with ``keypoints`` (N, 2), ``scores`` (N,), ``descriptors`` (N, D), ``image_size``
            (2,), ``model``, and ``sigmas`` (N,) where there are any; its folder is made.
        features: of an image.
        half: whether descriptors are stored in float16, which costs their products 0.001 at most.
    """
    arrays = {
        "keypoints": features.keypoints,
        "scores": features.scores,
        "descriptors": features.descriptors.astype(np.float16) if half else features.descriptors,
        "image_size": np.array(features.image_size, np.int32),
        "model": np.array(features.model),
    }
    if features.sigmas is not None:
        arrays["sigmas"] = features.sigmas
    with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_features(path: str | Path) -> Features:
    """Read a feature file; descriptors in float16 become float32 of unit norm again.

    Args:
        path: of the file, see :func:`write_features`; its numbers may be real ones of any width.

    Raises:
        DataError: the file is no feature file, its arrays do not belong together, are no real numbers, or have one that
            is NaN or infinite, or the image has no size.
    """
    path = Path(path)
    with reading_npz(path, "feature file") as file:
        arrays = {name: file[name] for name in ("keypoints", "scores", "descriptors", "image_size")}
        if "sigmas" in file:
            arrays["sigmas"] = file["sigmas"]
        _check_arrays(path, arrays)
        width, height = (int(value) for value in arrays.pop("image_size"))
        half = arrays["descriptors"].dtype == np.float16
        with np.errstate(over="ignore"):  # what float32 does not hold is infinite there, and refused so
            numbers = {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}
        _check_finite(path, numbers)
        descriptors = numbers["descriptors"]
        if half:
            descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-12)
        return Features(
            numbers["keypoints"],
            numbers["scores"],
            descriptors,
            (width, height),
            str(file["model"]),
            numbers.get("sigmas"),
        )


def _check_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse arrays of a feature file that are not of one image: all but the size have a row for each keypoint."""

    def refuse(name: str, expected: str) -> NoReturn:
        raise DataError(f"feature file {path} has {name} of shape {arrays[name].shape}; expected {expected}")

    keypoints = arrays["keypoints"]
    if keypoints.ndim != 2 or keypoints.shape[1] != 2:
        refuse("keypoints", "(N, 2)")
    count = len(keypoints)
    for name in ("scores", "sigmas"):
        if name in arrays and arrays[name].shape != (count,):
            refuse(name, f"({count},)")
    if arrays["descriptors"].ndim != 2 or len(arrays["descriptors"]) != count:
        refuse("descriptors", f"({count}, D)")
    if arrays["image_size"].shape != (2,):
        refuse("image_size", "(2,)")
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise DataError(f"feature file {path} has {name} of {array.dtype}; expected real numbers")
    size = arrays["image_size"]
    if not all(float(side).is_integer() and side > 0 for side in size):
        raise DataError(f"feature file {path} has image_size {size.tolist()}; expected whole pixels, 1 or more")


def _check_finite(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse numbers that are none: matches of them would go on to map builders."""
    for name, array in arrays.items():
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            raise DataError(
                f"feature file {path} has {bad} of {array.size} {name} that are NaN or infinite; expected finite ones"
            )


@dataclass
class ExtractionReport:
    """What became of a folder's images.

    Attributes:
        extracted: images whose features were written.
        kept: images that had a feature file already.
        keypoints: of those extracted, in all.
        failed: one line for each image that could not be read.
        damaged: of those extracted, how many have pixels that are not the photograph's, as their decoder says.
        masked: of all, how many have a mask in the folder of masks; None where there is no such folder.
    """

    extracted: int = 0
    kept: int = 0
    keypoints: int = 0
    failed: list[str] = field(default_factory=list)
    damaged: int = 0
    masked: int | None = None

    def summary(self) -> str:
        """One line."""
        mean = round(self.keypoints / self.extracted) if self.extracted else 0
        damaged = f"; parts of {self.damaged} are damaged" if self.damaged else ""
        images = self.extracted + self.kept + len(self.failed)
        masked = "" if self.masked is None else f"; {self.masked} of {images} have masks"
        return (
            f"extracted {self.extracted} images with {mean} keypoints each; {self.kept} had features; "
            f"{len(self.failed)} skipped as unreadable{damaged}{masked}"
        )


def extract_folder(
    extractor: SuperPoint,
    images: Path,
    out: Path,
    *,
    batch: int = 1,
    half: bool = False,
    weights_sha256: str | None = None,
    masks: Path | None = None,
    oriented: bool = True,
) -> ExtractionReport:
    """Extract all images below a folder; go on where an earlier run stopped.

    Feature files lie in ``out`` under the images' relative names, each whole or not there. An image that cannot be read
    is reported and skipped; one of which parts are damaged is named. What decoders write to stderr meanwhile is kept
    from it, for the whole process.

    Args:
        extractor: what makes the features.
        images: folder of images.
        out: folder of the feature files, made if missing.
        batch: see :func:`extract_files`.
        half: see :func:`write_features`.
        weights_sha256: of the model's weight file, recorded with the settings where it is known.
        masks: see :func:`frontend.masks.masks_of`.
        oriented: whether images and masks are turned as EXIF says, see :func:`frontend.image.decode_image`.

    Raises:
        ConfigError: batch is less than 1.
        ImageError: the mask of all images cannot be read.
        DataError: there are no images or no masks, or ``out`` holds features made with other settings or masks.
    """
    _check_batch(batch)  # before anything is recorded
    names = find_images(images)
    masked = None if masks is None else masks_of(images, masks, names, oriented=oriented)
    out.mkdir(parents=True, exist_ok=True)
    made_with = {"model": extractor.name, "weights_sha256": weights_sha256, "half": half, **asdict(extractor.config)}
    unstated = {"precision": extractor.precision, "masks": None, "stored_orientation": False}
    later = {**unstated, "masks": None if masked is None else masked.said, "stored_orientation": not oriented}
    check_settings(out, {**made_with, **later}, "features", unstated=unstated)
    todo = [name for name in names if not output_path(out, name).is_file()]
    report = ExtractionReport(kept=len(names) - len(todo))
    if masked is not None and masked.files is not None:
        report.masked = masked.masked
        kept = set(masked.files).difference(name.as_posix() for name in todo)
        check_masks(out, masked.files, kept)
    for folder in {output_path(out, name).parent for name in todo}:
        remove_leftovers(folder)
    mask_of = None if masked is None else masked.mask_of
    damage: dict[Path, str] = {}

    def read(path: Path) -> NDArray[np.uint8]:
        image, said = read_quietly(path, white=extractor.config.white, oriented=oriented)
        if said:
            damage[path] = said
        return image

    paths = (images / name for name in todo)
    extracted = extract_files(extractor, paths, batch=batch, read=read, mask_of=mask_of)
    # closed within: while it reads, nothing else is seen of what is written to stderr
    with own_stderr(), Progress(len(names), "extract", start=report.kept, unit="image") as progress, closing(extracted):
        for path, found in extracted:
            if isinstance(found, FrontendError):
                report.failed.append(str(found))
                progress.write(f"skipped: {found}")
            else:
                write_features(output_path(out, path.relative_to(images)), found, half=half)
                if path in damage:
                    report.damaged += 1
                    progress.write(f"damaged: {path}: {damage[path]}")
                report.extracted += 1
                report.keypoints += len(found)
            progress.update()
    return report
