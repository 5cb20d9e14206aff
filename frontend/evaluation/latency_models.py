"""Images and models that the latency benchmark runs on; torch is loaded by what needs it alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from frontend.errors import ConfigError, ImageError
from frontend.extractor import ExtractorConfig, SuperPoint
from frontend.image import is_image_name, read_image
from frontend.runtime import PRECISIONS, RUNTIMES, available_runtimes, precisions_of
from frontend.weights import DEFAULT_MODEL, list_models, resolve, save_network

UInt8Image = NDArray[np.uint8]
SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "rocket_0.jpg"
_VIEWS = 4


class ImageSource:
    """Images of any size, a few different ones of each.

    Args:
        paths: image files; the bundled sample where empty.
    """

    def __init__(self, paths: Sequence[Path] = ()) -> None:
        self._images = [np.asarray(read_image(path), np.uint8) for path in paths or [SAMPLE]]
        self._made: dict[tuple[int, int], list[UInt8Image]] = {}

    @classmethod
    def of(cls, path: Path | None) -> ImageSource:
        """Of a file, of the images in a folder, or of the bundled sample.

        Raises:
            ImageError: there is no such file, or no image in the folder.
        """
        if path is None or not path.is_dir():
            return cls([] if path is None else [path])
        paths = sorted(entry for entry in path.iterdir() if entry.is_file() and is_image_name(entry))[:16]
        if not paths:
            raise ImageError(f"{path}: has no images")
        return cls(paths)

    def of_size(self, size: tuple[int, int]) -> list[UInt8Image]:
        """(H, W, 3) uint8 BGR images of (width, height), with texture everywhere, so that there are keypoints."""
        if size not in self._made:
            sources = [self._images[i % len(self._images)] for i in range(max(_VIEWS, len(self._images)))]
            self._made[size] = [_textured(image, size, seed) for seed, image in enumerate(sources)]
        return self._made[size]


def _textured(image: UInt8Image, size: tuple[int, int], seed: int) -> UInt8Image:
    """The image at another size, blended with polygons and noise."""
    rng = np.random.default_rng(seed)
    if image.ndim == 2:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), np.uint8)
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if size[0] < image.shape[1] else cv2.INTER_LINEAR)
    shapes = np.full_like(resized, 128)
    for _ in range(size[0] * size[1] // 600):
        corners = rng.uniform((0, 0), size) + rng.uniform(-24, 24, (int(rng.integers(3, 6)), 2))
        cv2.fillPoly(shapes, [np.rint(corners).astype(np.int32)], rng.integers(0, 256, 3).tolist())
    mixed = 0.5 * resized + 0.5 * shapes + rng.normal(0, 4, resized.shape)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class ModelUnderTest:
    """A model, by a name that loads.

    Attributes:
        label: for the tables.
        source: released name, or weight file.
        trained: False for random weights.
    """

    label: str
    source: str
    trained: bool = True


def find_model(name: str, folder: Path) -> ModelUnderTest:
    """A released model, a weight file, or a preset with random weights (seed 0), whose times are those of any weights.

    Args:
        name: of any of these.
        folder: where random weights are written to.

    Raises:
        WeightsError: there are no such weights.
    """
    import torch

    from frontend.model import MODEL_PRESETS, SuperPointNet

    if name in list_models() or name not in MODEL_PRESETS:
        resolve(name)
        return ModelUnderTest(Path(name).stem if Path(name).suffix else name, name)
    path = folder / f"{name}-random.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SuperPointNet(MODEL_PRESETS[name])
    save_network(path, network.eval())
    return ModelUnderTest(f"{name}, random weights", str(path), trained=False)


def find_models(names: Sequence[str], folder: Path) -> list[ModelUnderTest]:
    """Each as :func:`find_model` finds it; what would have one label has its name for one, as it was given."""
    found = [find_model(name, folder) for name in names]
    labels = Counter(model.label for model in found)
    return [
        replace(model, label=name) if labels[model.label] > 1 else model
        for model, name in zip(found, names, strict=True)
    ]


def default_models(*, distinct: bool = False) -> list[str]:
    """The released models, the default one first; and vgg with random weights where none is the paper's network.

    Args:
        distinct: of those with one network, whose times are the same, only the first.
    """
    known = list_models()
    released = list(dict.fromkeys([DEFAULT_MODEL, *known]))
    if distinct:
        networks = {(known[name].encoder, known[name].descriptor_dim): name for name in reversed(released)}
        released = [name for name in released if name in networks.values()]
    return released if "superpoint-vgg" in released else [*released, "vgg"]


def runtimes_for(
    device: str, runtimes: Sequence[str] = (), precisions: Sequence[str] = (), *, brief: bool = False
) -> list[tuple[str, str]]:
    """Pairs of runtime and precision that this machine computes at speed, of those wanted (all where empty).

    Args:
        device: "cpu", "cuda" or "cuda:N".
        runtimes: wanted.
        precisions: wanted.
        brief: leave out, where none are named, half precision on a CPU but for OpenVINO's bf16, the fastest of them.

    Raises:
        ConfigError: a name is unknown, or none is left.
    """
    for what, wanted, (_auto, *real) in (("runtime", runtimes, RUNTIMES), ("precision", precisions, PRECISIONS)):
        unknown = [name for name in wanted if name not in real]
        if unknown:
            raise ConfigError(f"{what} is '{unknown[0]}'; expected of: {', '.join(real)}")
    if device != "cpu":
        pairs = [("torch", "float32"), ("torch", "bf16"), ("torch", "fp16")]
    else:
        # PyTorch first: it is the reference, and loads without an export
        names = sorted(available_runtimes(), key=lambda name: name != "torch")
        pairs = [(name, precision) for name in names for precision in precisions_of(name)]
        if brief and not (runtimes or precisions):
            pairs = [pair for pair in pairs if pair[1] in ("float32", "int8") or pair == ("openvino", "bf16")]
    found = [
        (runtime, precision)
        for runtime, precision in pairs
        if (not runtimes or runtime in runtimes) and (not precisions or precision in precisions)
    ]
    if not found:
        known = ", ".join(" ".join(pair) for pair in pairs)
        raise ConfigError(f"no runtime of {list(runtimes)} in {list(precisions)} is to be had; expected of: {known}")
    return found


def open_extractor(
    model: ModelUnderTest, runtime: str, precision: str, device: str, config: ExtractorConfig | None = None
) -> SuperPoint:
    """Load a model into a runtime.

    Raises:
        ConfigError: the runtime or the precision is not to be had, or does not compute the network.
    """
    return SuperPoint.from_pretrained(model.source, device=device, config=config, runtime=runtime, precision=precision)
