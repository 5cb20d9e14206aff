"""Exported graphs in the user's cache directory, and those that came with the package.

A network's folder holds its files under names with their checksums, and ``index.json`` that lists them. Files come
first and the index last, each under a temporary name that is renamed: whatever process is killed or runs beside
another, an index names whole files, and one that adds a graph leaves those that others have added. What does not fit
its checksum counts as not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from frontend import __version__
from frontend.atomic import atomic_write, remove_leftovers
from frontend.runtime.base import NetworkInfo

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
"""Of the graphs and of the index; another one is not read."""

SHIPPED = Path(__file__).resolve().parent.parent / "_graphs"
"""Where graphs may have been installed with the package, laid out as in the cache; the container image has them."""

_INDEX = "index.json"
_LOCK = ".lock"


@dataclass(frozen=True)
class Graphs:
    """A network, exported.

    Attributes:
        info: what callers have to know of it.
        files: by name: the ONNX models "dense", "refine" (with a refiner) and "dense-int8" (where it was calibrated),
            "ncnn-param" and "ncnn-bin" (where ncnn is installed), and "probe", see :mod:`frontend.runtime.parity`.
    """

    info: NetworkInfo
    files: Mapping[str, bytes]


def cache_dir() -> Path:
    """Where exported graphs lie: $XDG_CACHE_HOME, ~/Library/Caches or ~/.cache, and there superpoint-frontend."""
    root = os.environ.get("XDG_CACHE_HOME")
    if root and Path(root).is_absolute():
        return Path(root) / "superpoint-frontend"
    home = Path.home()
    return (home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache") / "superpoint-frontend"


def folder_of(weights_sha256: str, root: Path | None = None) -> Path:
    """The folder of a weight file's graphs, by this version: below ``root``, or in the cache."""
    return (root or cache_dir()) / f"{weights_sha256[:32]}-{__version__}-{FORMAT}"


def load(weights_sha256: str) -> Graphs | None:
    """The graphs of a weight file, from the cache or the package; None where there are none, or they are damaged."""
    return _read(folder_of(weights_sha256)) or _read(folder_of(weights_sha256, SHIPPED))


def _read(folder: Path) -> Graphs | None:
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        info = NetworkInfo(**index["info"])
        files = {name: (folder / entry["file"]).read_bytes() for name, entry in index["files"].items()}
        whole = all(_digest(data) == index["files"][name]["sha256"] for name, data in files.items())
        wanted = {"dense", "probe", *(("refine",) if info.patch else ())}
        return Graphs(info, files) if whole and wanted <= set(files) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def save(weights_sha256: str, graphs: Graphs, root: Path | None = None, *, new: Collection[str] | None = None) -> bool:
    """Store graphs, in the cache or below ``root``.

    Args:
        weights_sha256: of the weight file that they are of.
        graphs: all that are at hand.
        root: instead of the cache.
        new: names of those that were made just now; all where None. Of any other name what has been stored stays, as
            another process may have made it since these were loaded.

    Returns:
        False where the folder cannot be written, which is no reason to stop.
    """
    folder = folder_of(weights_sha256, root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            remove_leftovers(folder)
            stored = _read(folder)
            kept = dict(stored.files) if stored is not None else {}
            entries = {}
            for name, data in {**graphs.files, **kept, **_only(graphs.files, new)}.items():
                digest = _digest(data)
                entries[name] = {"file": f"{name}-{digest[:16]}", "sha256": digest}
                path = folder / entries[name]["file"]
                if not (path.is_file() and _digest(path.read_bytes()) == digest):
                    atomic_write(path, data)
            atomic_write(folder / _INDEX, json.dumps({"info": asdict(graphs.info), "files": entries}, indent=1))
    except OSError:
        return False
    return True


def _only(files: Mapping[str, bytes], names: Collection[str] | None) -> Mapping[str, bytes]:
    return files if names is None else {name: files[name] for name in names}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from changing a folder's index; the system lets go of it where this one is killed."""
    with open(folder / _LOCK, "ab") as file:
        if fcntl is not None:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def load_note(weights_sha256: str, name: str) -> dict[str, Any] | None:
    """A small document beside the graphs, as JSON; None where there is none, or it is damaged."""
    try:
        note = json.loads((folder_of(weights_sha256) / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None


def save_note(weights_sha256: str, name: str, note: Mapping[str, Any]) -> None:
    """Store such a document, where the cache can be written."""
    folder = folder_of(weights_sha256)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / f"{name}.json", json.dumps(dict(note), indent=1))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
