"""Features of a folder to the matches of its images, in a file that a map builder reads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from frontend.errors import ConfigError, DataError
from frontend.io.exif import Focal
from frontend.io.feature_folder import FeatureFolder, Stamp
from frontend.io.matched_pair import MatchConfig, MatchedPair, check_matching, match_pair
from frontend.io.pairs import Pairs
from frontend.progress import Progress
from frontend.threads import settle_threads
from frontend.types import Features

LAYOUTS = ("colmap", "hloc")

COMMIT_S = 2.0
"""Seconds of work that a kill may cost."""
_AHEAD = 4  # pairs for each thread that are being matched or wait to be written


class Store(Protocol):
    """Where images and pairs go; both are named by places in the list of images."""

    def has_image(self, index: int) -> bool: ...

    def stamp(self, index: int) -> Stamp | None: ...

    def add_images(self, images: Iterable[tuple[int, Features, Stamp]]) -> None: ...

    def ordered(self, first: int, second: int) -> tuple[int, int]: ...

    def has_pair(self, first: int, second: int) -> bool: ...

    def add_pair(self, first: int, second: int, pair: MatchedPair) -> None: ...

    def commit(self) -> None: ...

    def finish(self, pairs: Iterable[tuple[int, int]]) -> None: ...

    def close(self) -> None: ...


@dataclass
class MatchReport:
    """What became of the pairs.

    Attributes:
        images: images whose features were there.
        matched: pairs that were matched.
        kept: pairs that had been before.
        related: of those matched, the pairs with a geometry; with matches, where none was asked for.
        matches: of those related, that fit it, in all.
    """

    images: int = 0
    matched: int = 0
    kept: int = 0
    related: int = 0
    matches: int = 0

    def count(self, pair: MatchedPair) -> None:
        """Count a pair that was matched."""
        fitting = len(pair.matches) if pair.geometry is None else pair.geometry.num_inliers
        self.matched += 1
        self.related += fitting > 0
        self.matches += fitting

    def summary(self, geometry: str) -> str:
        """One line."""
        mean = round(self.matches / self.related) if self.related else 0
        what = "matches" if geometry == "none" else f"{'an' if geometry == 'essential' else 'a'} {geometry} geometry"
        return (
            f"matched {self.matched} pairs of {self.images} images, of which {self.related} have {what}, with {mean} "
            f"matches each; {self.kept} had been before"
        )


def open_store(
    layout: str,
    out: Path,
    folder: FeatureFolder,
    config: MatchConfig,
    *,
    single_camera: bool = False,
    focals: Mapping[str, Focal] | None = None,
) -> Store:
    """Open the file or folder that matches go to.

    Args:
        layout: "colmap" for a database (:class:`frontend.io.colmap.ColmapDatabase`), "hloc" for a folder
            (:class:`frontend.io.hloc.HlocFolder`).
        out: its path.
        folder: the features.
        config: how they are matched.
        single_camera: whether one camera took all images; hloc's files do not say.
        focals: focal lengths that images state, by name (:func:`frontend.io.exif.read_focals`); the same.

    Raises:
        DataError: what is there was made with other settings, or of other images, or by something else, or is where
            the features are; images of one camera have several sizes; or another run is writing there.
        ConfigError: the layout is unknown, or what it needs is not installed.
        FrontendError: the matcher cannot match such features.
    """
    if out.exists() and out.samefile(folder.folder):
        raise DataError(f"{out} is the folder of the features; expected another --out")
    # before anything is made, and bound to what it was made with
    check_matching(folder.read(0), config)
    if single_camera or config.camera is not None:
        folder.check_sizes()
    settings = _settings(folder, config, single_camera)
    if layout == "hloc":
        from frontend.io.hloc import HlocFolder

        return HlocFolder(out, folder.names, settings)
    if layout != "colmap":
        raise ConfigError(f"format is '{layout}'; expected one of: {', '.join(LAYOUTS)}")
    from frontend.io.colmap import ColmapDatabase

    return ColmapDatabase(out, folder.names, settings, camera=config.camera, single_camera=single_camera, focals=focals)


def _settings(folder: FeatureFolder, config: MatchConfig, single_camera: bool) -> dict[str, object]:
    """All that decides what matches are found, in values that JSON has."""
    from frontend.weights import sha256_of

    first, camera, weights = folder.read(0), config.camera, Path(config.matcher)
    return {
        "model": first.model,
        "descriptor_dim": first.descriptors.shape[1],
        "matcher": config.matcher,
        "matcher_sha256": sha256_of(weights) if weights.is_file() else None,
        "ratio": config.ratio,
        "min_similarity": config.min_similarity,
        "geometry": config.geometry,
        "threshold": None if config.geometry == "none" else config.threshold,
        "camera": None if camera is None else [camera.model, *camera.K.ravel().tolist(), *camera.distortion],
        "single_camera": single_camera or camera is not None,
        **{f"features: {name}": value for name, value in folder.settings.items()},
    }


def match_folder(folder: FeatureFolder, store: Store, pairs: Pairs, config: MatchConfig) -> MatchReport:
    """Match pairs of images; go on where an earlier run stopped.

    What is done is made to last every two seconds. Features are read when they are needed, so that the memory does not
    grow with the number of images. Pairs share the CPU's cores, a thread each; a learned matcher and a GPU have threads
    of their own.

    Args:
        folder: the features.
        store: where matches go; it is finished, and left open.
        pairs: which images are matched.
        config: how.

    Raises:
        DataError: features are of several models, cannot be read or have changed, or the store cannot be written.
        FrontendError: the matcher cannot match such features.
    """
    images = range(len(folder.names))
    new = [index for index in images if not store.has_image(index)]
    # also where every pair is there already: a map would be built of what no longer is
    _check_unchanged(folder, store, sorted(set(images).difference(new)))
    if new:
        store.add_images(_read(folder, new))
    report = MatchReport(images=len(folder.names), kept=sum(store.has_pair(*pair) for pair in pairs))
    todo = (store.ordered(*pair) for pair in pairs if not store.has_pair(*pair))
    lasting = time.monotonic()
    try:
        with (
            Progress(len(pairs), "match", start=report.kept, unit="pair") as progress,
            closing(_matched(folder.read, todo, config)) as found,
        ):
            for first, second, pair in found:
                store.add_pair(first, second, pair)
                report.count(pair)
                progress.update()
                if time.monotonic() - lasting >= COMMIT_S:
                    store.commit()
                    lasting = time.monotonic()
        store.commit()
    except BaseException:
        # what is done stays done, whatever has ended the run
        store.commit()
        raise
    store.finish(pairs)
    return report


def _check_unchanged(folder: FeatureFolder, store: Store, indices: Sequence[int]) -> None:
    """Refuse images whose feature files are not those that they were added from."""
    for index in indices:
        stamp = store.stamp(index)
        if stamp is None or not folder.is_as(index, stamp):
            raise DataError(
                f"{folder.path(index)} has other features of image '{folder.names[index]}' than the matches that are "
                "there were made of (give another --out)"
            )


def _read(folder: FeatureFolder, indices: Sequence[int]) -> Iterator[tuple[int, Features, Stamp]]:
    """Images with their features and what tells their files, beside a bar."""
    with Progress(len(indices), "read", unit="image") as progress:
        for index in indices:
            yield index, folder.read(index), folder.stamp(index)
            progress.update()


def _matched(
    features: Callable[[int], Features], pairs: Iterable[tuple[int, int]], config: MatchConfig
) -> Generator[tuple[int, int, MatchedPair], None, None]:
    """Pairs with what was found, in order; a few at a time are in the threads."""
    threads = settle_threads()
    if config.matcher != "mnn" or config.device != "cpu":
        threads = 1
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[int, int, Future[MatchedPair]]] = deque()

        def oldest() -> tuple[int, int, MatchedPair]:
            first, second, future = waiting.popleft()
            return first, second, future.result()

        try:
            for first, second in pairs:
                waiting.append((first, second, pool.submit(match_pair, features(first), features(second), config)))
                if len(waiting) >= _AHEAD * threads:
                    yield oldest()
            while waiting:
                yield oldest()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
