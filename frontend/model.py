"""The network: an encoder, a detector head and a descriptor head (DeTone et al. 2018, section 3)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from frontend.encoders import Part, TokenEncoder, build_encoder, parse_spec
from frontend.encoders.map_fusion import MapFusion
from frontend.errors import ConfigError
from frontend.heads import CELL, DESCRIPTOR_HEADS, DETECTOR_HEADS, DUSTBIN
from frontend.refinement import REFINERS, Refinement


class DenseMaps(NamedTuple):
    """What the network computes for every 8 x 8 cell.

    Attributes:
        logits: (B, 65, H/8, W/8); channel 8 * dy + dx scores the pixel (dx, dy) of the cell, channel 64 is the
            dustbin, "no point in this cell".
        descriptors: (B, D, H/8, W/8), not normalised; sampled at keypoints and normalised then.
    """

    logits: Tensor
    descriptors: Tensor


@dataclass(frozen=True)
class ModelConfig:
    """Which network to build; stored in the metadata of a weight file.

    Attributes:
        encoder: specification of the encoder and its context modules, see :func:`frontend.encoders.parse_spec`.
        detector: name in the detector-head registry.
        descriptor: name in the descriptor-head registry.
        descriptor_dim: D.
        detector_options: keyword arguments of the detector head.
        descriptor_options: keyword arguments of the descriptor head.
        refiner: name in the refiner registry; "" for none, as in the paper.
        refiner_options: keyword arguments of the refiner.
        refiner_passes: how often keypoints are refined at inference: at the pixel that one pass moves a keypoint to the
            next one cuts its patch. What a pass answers depends on where in the patch a structure lies, the less the
            nearer to the centre.
    """

    encoder: str = "compact"
    detector: str = "detail"
    descriptor: str = "context"
    descriptor_dim: int = 128
    detector_options: dict[str, Any] = field(default_factory=dict)
    descriptor_options: dict[str, Any] = field(default_factory=dict)
    refiner: str = ""
    refiner_options: dict[str, Any] = field(default_factory=dict)
    refiner_passes: int = 1

    def __post_init__(self) -> None:
        if self.refiner_passes < 1:
            raise ConfigError(f"refiner_passes is {self.refiner_passes}; expected 1 or more")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from a mapping.

        Raises:
            ConfigError: a key is unknown.
        """
        values = dict(values)
        # weight files of version 0.1 hold the encoder's options apart from its name
        options = values.pop("encoder_options", None)
        if options:
            values["encoder"] = str(Part(values["encoder"], options))
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise ConfigError(f"unknown model setting '{unknown[0]}'; expected {', '.join(cls.__dataclass_fields__)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        # not stated where it is one: earlier versions do not know it, and runs that they began go on
        return {name: value for name, value in asdict(self).items() if name != "refiner_passes" or value != 1}


_SMALL_PATCH: dict[str, Any] = {"size": 15, "channels": [16, 48], "kernels": [5, 3], "strides": [2, 2]}
_PAPER = ModelConfig(encoder="vgg", detector="paper", descriptor="paper", descriptor_dim=256)
_SLIM = ModelConfig(
    encoder="slim",
    detector="light",
    descriptor="light",
    descriptor_dim=96,
    refiner="patch",
    refiner_options=_SMALL_PATCH,
)
MODEL_PRESETS: dict[str, ModelConfig] = {
    "edge": ModelConfig(detector_options={"fine": 16}, refiner="patch"),
    "edge-dense": ModelConfig(detector_options={"fine": 16}),
    "edge-coarse": ModelConfig(),
    "slim": replace(
        _SLIM,
        descriptor_options={"dense": 2},
        refiner_options={"size": 13, "channels": [16, 32, 48], "kernels": [5, 3, 3], "strides": [2, 1, 1]},
    ),
    "slim-large": replace(
        _SLIM,
        descriptor_options={"dense": 3},
        refiner_options={"size": 15, "channels": [16, 32, 48], "kernels": [5, 3, 3], "strides": [2, 1, 1]},
    ),
    "slim-small": _SLIM,
    "vgg": _PAPER,
    "vgg-refined": replace(_PAPER, refiner="patch", refiner_options=_SMALL_PATCH),
}


class SuperPointNet(nn.Module):
    """Encoder, detector head and descriptor head as one pure module.

    Args:
        config: which parts.

    Raises:
        RegistryError: a part's name is unknown.
        ConfigError: an option does not fit its part.
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        self.encoder, self.contexts = build_encoder(config.encoder)
        channels = self.contexts[-1].out_channels if len(self.contexts) else self.encoder.out_channels
        try:
            self.detector = DETECTOR_HEADS.get(config.detector)(channels, **config.detector_options)
            self.descriptor = DESCRIPTOR_HEADS.get(config.descriptor)(
                channels, dim=config.descriptor_dim, **config.descriptor_options
            )
            self.refiner: nn.Module | None = None
            if config.refiner:
                self.refiner = REFINERS.get(config.refiner)(config.descriptor_dim, **config.refiner_options)
        except TypeError as error:
            raise ConfigError(f"options of a head do not fit: {error}") from None

    @property
    def map_layers(self) -> int:
        """M, layers of the map that a context module takes; 0 where none does."""
        return next((context.layers for context in self.contexts if isinstance(context, MapFusion)), 0)

    def encode(
        self, image: Tensor, raster: Tensor | None = None, mix: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the encoder and its context modules.

        Args:
            image: (B, 1, H, W) float in [0, 1]; H and W multiples of 8.
            raster: (B, M, H, W) float map layers in the image's frame, for the context modules that take one.
            mix: maps the tokens of the batch to tokens, between embedding and encoding (training only).

        Returns:
            Features (B, C, H/8, W/8), and the context modules' auxiliary outputs by name.

        Raises:
            ConfigError: tokens are to be mixed, and the encoder has none.
        """
        if mix is None:
            features = self.encoder(image)
        elif isinstance(self.encoder, TokenEncoder):
            features = self.encoder.encode(mix(self.encoder.embed(image)))
        else:
            raise ConfigError(f"encoder '{self.config.encoder}' has no tokens to mix")
        auxiliary: dict[str, Tensor] = {}
        for context in self.contexts:
            features, found = context(features, raster)
            auxiliary |= found
        return features, auxiliary

    def forward(self, image: Tensor, raster: Tensor | None = None) -> DenseMaps:
        """Compute the dense maps.

        Args:
            image: (B, 1, H, W) float in [0, 1]; H and W multiples of 8.
            raster: see :meth:`encode`.

        Returns:
            Logits (B, 65, H/8, W/8) and descriptors (B, D, H/8, W/8).
        """
        features, _ = self.encode(image, raster)
        return DenseMaps(self.detector(features, image), self.descriptor(features))

    def detect(self, image: Tensor, raster: Tensor | None = None) -> Tensor:
        """The detector alone: (B, 1, H, W) to (B, 65, H/8, W/8) logits (MagicPoint)."""
        features, _ = self.encode(image, raster)
        logits: Tensor = self.detector(features, image)
        return logits

    def refine(self, image: Tensor, keypoints: Tensor, scores: Tensor) -> Refinement | None:
        """One pass of the refiner over keypoints, from the pixels about them; None where the network has none.

        Args:
            image: (B, 1, H, W) float in [0, 1].
            keypoints: (B, K, 2) float32 integer pixels.
            scores: (B, K) float32 in [0, 1], of the detector.
        """
        if self.refiner is None:
            return None
        refinement: Refinement = self.refiner(image, keypoints, scores)
        return refinement

    def fold(self) -> SuperPointNet:
        """Bring the network to its inference form, in place: batch norms merged into convolutions, branches into one.

        Every module with a method ``fold`` takes part. Returns the network in evaluation mode.
        """
        self.eval()
        for module in list(self.modules()):
            if callable(getattr(module, "fold", None)) and module is not self:
                module.fold()  # type: ignore[operator]
        return self

    def reparameterize(self) -> SuperPointNet:
        """A network that computes the same in evaluation mode, with the plain encoder that a branched one folds to.

        Unlike after :meth:`fold`, its configuration describes it, so that it can be saved and loaded: ``dbb`` becomes
        ``vgg(channels=[...], norm=none)``. An encoder that has no ``reparameterize`` is kept, as is all the rest.

        Returns:
            A copy, in evaluation mode; this network is left as it is.
        """
        network = copy.deepcopy(self).eval()
        encoder = self.encoder
        if callable(getattr(encoder, "reparameterize", None)):
            network.encoder = encoder.reparameterize()  # type: ignore[operator]
            parts = [encoder.reparameterized, *parse_spec(self.config.encoder)[1:]]
            network.config = replace(self.config, encoder="+".join(map(str, parts)))
        return network


def transfer(source: SuperPointNet, target: SuperPointNet) -> list[str]:
    """Copy what two networks have in common, by name and shape; an encoder with a method ``take_over`` begins by that.

    Args:
        source: where the tensors come from.
        target: changed in place.

    Returns:
        The names of the target's tensors that kept their values.

    Raises:
        ConfigError: the encoders have nothing in common.
    """
    take_over = getattr(target.encoder, "take_over", None)
    taken = {f"encoder.{name}" for name in take_over(source.encoder)} if callable(take_over) else set()
    theirs, ours = source.state_dict(), target.state_dict()
    common = {name for name, tensor in ours.items() if name in theirs and theirs[name].shape == tensor.shape}
    if not taken and not any(name.startswith("encoder.") for name in common):
        raise ConfigError(f"a {source.config.encoder} network has no weights for a {target.config.encoder} network")
    target.load_state_dict({name: theirs[name] if name in common else tensor for name, tensor in ours.items()})
    return sorted(set(ours) - common - taken)


def adopt_refiner(source: SuperPointNet, target: SuperPointNet) -> SuperPointNet:
    """A network with another one's refiner: a refiner sees pixels and scores alone, so it serves any network.

    Where the descriptors are longer than the source's, the rows of the local part beyond its own are zero; where they
    are shorter, the last ones are left out.

    Args:
        source: whose refiner is taken.
        target: all else; left as it is.

    Returns:
        A new network, its configuration that of the target with the source's refiner.

    Raises:
        ConfigError: the source has no refiner.
    """
    if source.refiner is None:
        raise ConfigError("the weights that a refiner is to be taken from have none; expected a network with one")
    of_source = source.config
    ours = replace(
        target.config,
        refiner=of_source.refiner,
        refiner_options=of_source.refiner_options,
        refiner_passes=of_source.refiner_passes,
    )
    network = SuperPointNet(ours)
    assert network.refiner is not None
    held = {name: value for name, value in target.state_dict().items() if not name.startswith("refiner.")}
    for name, value in network.refiner.state_dict().items():
        theirs = source.refiner.state_dict()[name]
        if theirs.shape != value.shape:
            rows = min(len(theirs), len(value))
            theirs = torch.cat([theirs[:rows], torch.zeros_like(value[rows:])])
        held[f"refiner.{name}"] = theirs
    network.load_state_dict(held)
    return network


def heatmap(logits: Tensor) -> Tensor:
    """Detector logits to a full-resolution probability map (section 3.2).

    Args:
        logits: (B, 65, h, w).

    Returns:
        (B, 8h, 8w) float32 in [0, 1]: softmax over the 65 channels, the dustbin dropped, 8 x 8 pixel shuffle.
    """
    probabilities = logits.float().softmax(dim=1)[:, :DUSTBIN]
    return functional.pixel_shuffle(probabilities, CELL).squeeze(1)
