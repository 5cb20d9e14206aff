"""``superpoint train``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from frontend.cli.options import Option, add_options, resolve_options
from frontend.cli.train_lightglue import add_lightglue, lightglue_options, train_lightglue
from frontend.errors import ConfigError

_MODELS = ("edge", "edge-dense", "edge-coarse", "slim", "slim-large", "slim-small", "vgg", "vgg-refined")
_COMMON = (
    Option("model", "", "network to train; where it is not given, that of --init, or edge", ("", *_MODELS)),
    Option("encoder", "", "specification of another encoder for it, see 'superpoint encoders'"),
    Option("steps", 2000, "optimiser steps"),
    Option("stop", 0, "step at which to end before the schedule does; 0 goes through with it"),
    Option("batch_size", 64, "samples of a step"),
    Option("learning_rate", 2e-3, "peak learning rate"),
    Option("warmup_steps", 200, "steps of linear warm-up"),
    Option("weight_decay", 1e-4, "of AdamW"),
    Option("precision", "auto", "of the arithmetic; auto is bf16 where it is fast", ("auto", "bf16", "fp32")),
    Option("seed", 0, "of data and initial weights"),
    Option("device", "auto", "auto, cpu, cuda or cuda:N"),
    Option("workers", 2, "processes that make the data"),
    Option("checkpoint_seconds", 60.0, "between checkpoints"),
    Option("log_every", 20, "steps between log entries"),
    Option("ema", 0.0, "decay of a moving average of the weights, such as 0.999, which is then the result; 0 is none"),
    Option("compile", False, "run encoder and heads through torch.compile, where that works"),
)
# at their defaults, these are not part of what a run is described by: runs from before there were any go on
_DETECTOR_OPTIONS = (
    Option("detector_loss", "ce", "of the detector", ("ce", "eql", "bags", "balanced")),
    Option("eql_threshold", 0.1, "eql: share of the cells below which a class is rare"),
    Option("eql_gamma", 0.9, "eql: probability that a rare class is ignored in a cell of another class"),
    Option("bags_ratio", 8.0, "bags: cells without a point per cell with one, in the group of the positions"),
    Option("freeze", "", "modules that stay as they are, comma-separated: encoder,contexts or encoder.stages.0"),
)
_SYNTHETIC_OPTIONS = (
    Option("repeat_threshold", 0.0, "share of the corners below which a shape is drawn more often; 0 is off"),
    Option("mosaic", 0.0, "probability that four images are joined in one"),
    Option("rotate", 0.0, "largest rotation of an image to either side, degrees"),
    Option("scale_jitter", 0.0, "S: images are scaled by 1 / (1 + S) to 1 + S"),
    Option("auxiliary_weight", 0.4, "of the context modules' own losses (ocr: regions; map_fusion: the map)"),
)
MAGICPOINT_OPTIONS = (
    *_COMMON,
    Option("width", 160, "of the images, pixels"),
    Option("height", 120, "of the images, pixels"),
    *_DETECTOR_OPTIONS,
    *_SYNTHETIC_OPTIONS,
)
_TOKEN_OPTIONS = (
    Option("token_weight", 0.0, "of the token-labelling loss; needs labels with heat maps"),
    Option("mix_tokens", 0.0, "probability that a rectangle of a view's tokens is another's (token encoders only)"),
    Option("soft_weight", 0.0, "share of the soft labels in the detector's loss; needs labels with heat maps"),
)
_PAIR_DEFAULTS = {"steps": 6000, "batch_size": 16}
_LATER_OPTIONS = (
    Option("scale", 0.16, "standard deviation of the log of the scale between the views of a pair"),
    Option("exposure", 2.5, "largest change of a view's exposure, stops"),
    Option("random_points", 100, "random points of a pair that descriptors learn from, besides up to 200 labels"),
    Option("near_weight", 0.0, "of the likeness of keypoints 4 to 9 pixels apart, in the loss on how they match"),
    Option("peak_weight", 0.0, "of the loss on how widely the heat map is spread about labels"),
)
SUPERPOINT_OPTIONS = (
    *(Option(o.name, _PAIR_DEFAULTS.get(o.name, o.default), o.help, o.choices) for o in _COMMON),
    Option("descriptor_dim", 0, "length of the descriptors; 0 is the network's"),
    Option("width", 256, "of the views, pixels"),
    Option("height", 192, "of the views, pixels"),
    Option("photo_side", 480, "longest side that photographs are brought to; a tenth more is left, pixels"),
    Option("label_threshold", 0.0, "least score of a label that counts"),
    Option("label_spacing", 4, "suppression radius among the labels of a view, pixels; 0 keeps all"),
    Option("descriptor_loss", "dual_softmax", "of the descriptor", ("dual_softmax", "hinge")),
    Option("descriptor_weight", 0.5, "of the descriptor's loss"),
    Option("lambda_d", 250.0, "weight of positive pairs in the hinge loss"),
    Option("temperature", 0.05, "of the dual softmax"),
    Option("position_weight", 0.0, "of the loss on the distance of corresponding keypoints"),
    Option("refined_points", 192, "keypoints of a view that the refiner learns from"),
    Option("anisotropy", 0.35, "standard deviation of the log ratio of the scales along two axes of a pair"),
    Option("rotation", 0.7, "largest relative rotation of a pair, radians"),
    Option("any_rotation", 0.1, "share of pairs rotated by anything up to 180 degrees"),
    Option("device_augment", "auto", "make the views on the network's device; auto is on a GPU", ("auto", "on", "off")),
    *_DETECTOR_OPTIONS,
    *_TOKEN_OPTIONS,
    *_LATER_OPTIONS,
)
# what rounds of self-training that earlier versions began know nothing of
LATER_OPTIONS = ("ema", "device_augment", "descriptor_dim", *(option.name for option in _LATER_OPTIONS))
LIGHTGLUE_OPTIONS = lightglue_options(_COMMON)
_TORCHRUN = """\
A run in the folder --out is resumed, from its newest checkpoint; one that goes on needs no --init. Several processes:
torchrun --nproc-per-node N -m frontend.cli.main train ...: they share the samples of each step (--batch-size is that
of all together), with gloo on CPUs and NCCL on GPUs. 'superpoint state' carries a run to another machine.
"""


def add_parser(subparsers: Any) -> None:
    """Add ``train`` to the command line."""
    parser = subparsers.add_parser("train", help="train a network")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")

    magicpoint = tasks.add_parser("magicpoint", help="step 1: the detector on synthetic shapes", description=_TORCHRUN)
    magicpoint.add_argument("--out", type=Path, required=True, help="folder of the run; a run in it is resumed")
    magicpoint.add_argument("--init", default=None, metavar="NAME|PATH", help="weights to start from")
    add_options(magicpoint, MAGICPOINT_OPTIONS)
    magicpoint.set_defaults(run=_run_magicpoint)

    superpoint = tasks.add_parser(
        "superpoint", help="step 3: detector and descriptor on warped pairs", description=_TORCHRUN
    )
    superpoint.add_argument("--images", type=Path, required=True, help="folder of photographs")
    superpoint.add_argument("--labels", type=Path, required=True, help="folder that 'superpoint label' made")
    superpoint.add_argument("--out", type=Path, required=True, help="folder of the run; a run in it is resumed")
    superpoint.add_argument("--init", default=None, metavar="NAME|PATH", help="weights to start from")
    superpoint.add_argument("--refiner", default=None, metavar="NAME|PATH", help="weights whose refiner to start from")
    add_options(superpoint, SUPERPOINT_OPTIONS)
    superpoint.set_defaults(run=_run_superpoint)

    add_lightglue(tasks, LIGHTGLUE_OPTIONS, _TORCHRUN).set_defaults(run=_run_lightglue)


def _model_config(own: Any, values: dict[str, Any]) -> Any:
    """The network that is asked for: a preset or, where none is named, ``own``, with what is to differ."""
    import dataclasses

    from frontend.model import MODEL_PRESETS

    preset = MODEL_PRESETS[values["model"]] if values["model"] else own
    if values.get("descriptor_dim", 0) < 0:
        raise ConfigError(f"descriptor_dim is {values['descriptor_dim']}; expected 0 or more")
    asked = {name: values[name] for name in ("encoder", "descriptor_dim") if values.get(name)}
    if (preset.refiner, preset.refiner_options) == (own.refiner, own.refiner_options):
        asked["refiner_passes"] = own.refiner_passes  # which presets do not know
    return dataclasses.replace(preset, **asked)


def _train_config(values: dict[str, Any], device: Any) -> Any:
    import dataclasses

    from frontend.training.trainer import TrainConfig

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    chosen = {name: value for name, value in values.items() if name in names}
    return TrainConfig(**{**chosen, "device": str(device)})


def _initial_network(args: argparse.Namespace, values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The network with its initial weights, and what describes them."""
    import torch

    from frontend.model import MODEL_PRESETS, ModelConfig, SuperPointNet, transfer
    from frontend.training.state import described_by
    from frontend.weights import load_network

    torch.manual_seed(values["seed"])
    begun = described_by(args.out)
    if args.init is None and begun is not None:
        # a run that goes on knows what it began with
        kept = ("init_sha256", "refiner_sha256")
        held: dict[str, Any] = {key: begun[key] for key in kept if key in begun}
        return SuperPointNet(_continued(ModelConfig.from_dict(begun["model"]), values, held)), held
    if args.init is None and values["freeze"]:
        raise ConfigError("freeze was given without weights to start from; expected --init NAME|PATH")
    if args.init is None:
        return SuperPointNet(_model_config(MODEL_PRESETS["edge"], values)), {}
    _, network = load_network(args.init, fold=False)
    wanted = _model_config(network.config, values)
    if network.config != wanted:
        source, network = network, SuperPointNet(wanted)
        fresh = transfer(source, network)
        print(f"--init {args.init} is another network: {len(fresh)} tensors start afresh", file=sys.stderr)
    return network, {"init_sha256": _identity(args.init)}


def _continued(config: Any, values: dict[str, Any], held: dict[str, Any]) -> Any:
    """The network of a run that goes on: its own; or what is asked for where that is another, which is then refused."""
    import dataclasses

    asked = _model_config(config, values)
    if "refiner_sha256" in held:  # it came with its settings, whatever the preset says
        asked = dataclasses.replace(
            asked,
            refiner=config.refiner,
            refiner_options=config.refiner_options,
            refiner_passes=config.refiner_passes,
        )
    return asked


def _identity(weights: str) -> str:
    """What a run remembers of the weights that it began with: a file's checksum, or a released name."""
    from frontend.weights import sha256_of

    path = Path(weights)
    return sha256_of(path) if path.is_file() else weights


def _with_refiner(network: Any, described: dict[str, Any], args: argparse.Namespace) -> Any:
    """The network with the refiner of the weights that ``--refiner`` names; a run that goes on has its own."""
    from frontend.model import adopt_refiner
    from frontend.weights import load_network

    if args.refiner is None:
        return network
    begun = "refiner_sha256" in described
    described["refiner_sha256"] = _identity(args.refiner)  # the trainer refuses another one than the run began with
    if begun:
        return network
    return adopt_refiner(load_network(args.refiner, fold=False)[1], network)


def _detector_loss(values: dict[str, Any]) -> Any:
    from frontend.training.detector_losses import make_detector_loss

    settings = {name: values[name] for name in ("eql_threshold", "eql_gamma", "bags_ratio")}
    return make_detector_loss(values["detector_loss"], **settings)


def _changed(values: dict[str, Any], options: tuple[Option, ...]) -> dict[str, Any]:
    """Those of the options that are not at their defaults."""
    return {option.name: values[option.name] for option in options if values[option.name] != option.default}


def _frozen(network: Any, values: dict[str, Any]) -> tuple[Any, ...]:
    names = [name.strip() for name in values["freeze"].split(",") if name.strip()]
    try:
        frozen = tuple(network.get_submodule(name) for name in names)
    except AttributeError:
        known = ", ".join(name for name, _ in network.named_modules() if name and name.count(".") < 2)
        raise ConfigError(f"freeze is '{values['freeze']}'; expected modules of the network: {known}") from None
    held = {id(parameter) for module in frozen for parameter in module.parameters()}
    if all(id(parameter) in held for parameter in network.parameters()):
        raise ConfigError(f"freeze is '{values['freeze']}', which leaves nothing to train; expected fewer modules")
    return frozen


def _run_magicpoint(args: argparse.Namespace) -> int:
    from frontend.training.distributed import joined
    from frontend.training.trainer import require_tensorboard

    require_tensorboard()
    values = resolve_options(args, MAGICPOINT_OPTIONS)
    with joined(values["device"]) as device:
        _train_config(values, device)  # refuses what is out of range before anything is read
        return _train_magicpoint(args, values, device)


def _run_superpoint(args: argparse.Namespace) -> int:
    from frontend.training.distributed import joined
    from frontend.training.trainer import require_tensorboard

    require_tensorboard()
    values = resolve_options(args, SUPERPOINT_OPTIONS)
    with joined(values["device"]) as device:
        _train_config(values, device)
        return _train_superpoint(args, values, device)


def _run_lightglue(args: argparse.Namespace) -> int:
    from frontend.training.distributed import joined
    from frontend.training.trainer import require_tensorboard

    require_tensorboard()
    values = resolve_options(args, LIGHTGLUE_OPTIONS)
    with joined(values["device"]) as device:
        _train_config(values, device)
        task, network, described = train_lightglue(args, values)
        return _train(task, network, args, values, device, described)


def _train(
    task: Any, network: Any, args: argparse.Namespace, values: dict[str, Any], device: Any, described: Any
) -> int:
    from frontend.training.distributed import rank
    from frontend.training.trainer import Trainer

    config = _train_config(values, device)
    frozen = _frozen(network, values) if "freeze" in values else ()
    weights = Trainer(task, network, config, args.out, described, frozen, values).run()
    if rank() == 0:
        print(weights)
    return 0


def _train_magicpoint(args: argparse.Namespace, values: dict[str, Any], device: Any) -> int:
    from frontend.training.augmentation import AugmentationConfig
    from frontend.training.datasets import VIEWS, SyntheticShapes
    from frontend.training.synthetic import SHAPES
    from frontend.training.tasks import MagicPointTask

    network, described = _initial_network(args, values)
    for context in network.contexts:
        classes = getattr(context, "classes", len(SHAPES) + 1)
        if classes <= len(SHAPES):
            raise ConfigError(f"ocr has {classes} regions; expected more than the {len(SHAPES)} kinds of shapes")
    size = (values["width"], values["height"])
    augmentation = AugmentationConfig(values["mosaic"], values["rotate"], values["scale_jitter"])
    data = SyntheticShapes(
        values["seed"],
        size,
        augmentation=augmentation,
        repeat_threshold=values["repeat_threshold"],
        regions=any(context.auxiliary for context in network.contexts),
    )
    task = MagicPointTask(data, _detector_loss(values), values["auxiliary_weight"])
    described |= {"size": list(size), "views": VIEWS, **_changed(values, _DETECTOR_OPTIONS + _SYNTHETIC_OPTIONS)}
    return _train(task, network, args, values, device, described)


def _pair_config(values: dict[str, Any], on_device: bool) -> Any:
    import dataclasses

    from frontend.training.datasets import PairConfig
    from frontend.training.photometric import PhotometricConfig

    config = PairConfig()
    return dataclasses.replace(
        config,
        size=(values["width"], values["height"]),
        photo_side=values["photo_side"],
        label_threshold=values["label_threshold"],
        label_spacing=values["label_spacing"],
        relative=dataclasses.replace(
            config.relative, **{name: values[name] for name in ("scale", "rotation", "anisotropy")}
        ),
        any_rotation=values["any_rotation"],
        noise=dataclasses.replace(config.noise or PhotometricConfig(), exposure=values["exposure"]),
        random_points=values["random_points"],
        soft=values["token_weight"] > 0 or values["soft_weight"] > 0,
        mix_tokens=values["mix_tokens"],
        on_device=on_device,
    )


def _superpoint_task(data: Any, values: dict[str, Any], token_labelling: Any) -> Any:
    from frontend.training.tasks import SuperPointTask

    return SuperPointTask(
        data,
        values["descriptor_loss"],
        values["descriptor_weight"],
        values["lambda_d"],
        values["temperature"],
        values["position_weight"],
        values["refined_points"],
        values["near_weight"],
        detector=_detector_loss(values),
        token_labelling=token_labelling,
        peak_weight=values["peak_weight"],
    )


def check_superpoint(network: Any, values: dict[str, Any], device: Any) -> None:
    """Refuse settings of ``superpoint train superpoint --init``, before there are labels.

    Args:
        network: that training would begin with.
        values: the settings.
        device: of the training.

    Raises:
        ConfigError: a setting is unknown, out of its range, or not for this network.
    """
    from frontend.model import SuperPointNet

    _train_config(values, device)
    _frozen(SuperPointNet(_model_config(network.config, values)), values)
    _pair_config(values, False)
    _superpoint_task((), values, None)


def _train_superpoint(args: argparse.Namespace, values: dict[str, Any], device: Any) -> int:
    from frontend.training.datasets import VIEWS, WarpedPairs
    from frontend.training.distributed import rank
    from frontend.training.labels import count_unused
    from frontend.training.state import described_by
    from frontend.training.token_labelling import TokenLabelling

    network, described = _initial_network(args, values)
    network = _with_refiner(network, described, args)
    # not stated where they are off: runs begun by earlier versions go on
    optional = _DETECTOR_OPTIONS + _TOKEN_OPTIONS + _LATER_OPTIONS
    left_out = {"device", "model", "encoder", "descriptor_dim", "ema", "compile", "device_augment"}
    left_out |= {option.name for option in optional}
    described |= {name: values[name] for name in values if name not in left_out}
    described |= _changed(values, optional)
    choice = values["device_augment"]
    begun = described_by(args.out)
    # one that goes on keeps to how it began, wherever it does
    own_choice = device.type == "cuda" if begun is None else bool(begun.get("device_augment", False))
    on_device = choice == "on" or (choice == "auto" and own_choice)
    if on_device:
        described["device_augment"] = True
    config = _pair_config(values, on_device)
    weights = {option.name: values[option.name] for option in _TOKEN_OPTIONS}
    token_labelling = TokenLabelling(network, **weights) if any(weights.values()) else None
    data = WarpedPairs(values["seed"], args.images, args.labels, config)
    if begun is None and rank() == 0 and (unused := count_unused(args.images, args.labels)):
        print(f"{unused} labels of {args.labels} have no photograph in {args.images}", file=sys.stderr)
    described |= {"photographs": len(data.photos), "views": VIEWS}
    task = _superpoint_task(data, values, token_labelling)
    return _train(task, network, args, values, device, described)
