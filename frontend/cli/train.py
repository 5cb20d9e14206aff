"""``superpoint train magicpoint`` and ``superpoint train superpoint``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from frontend.cli.options import Option, add_options, resolve_options

_MODELS = ("edge", "edge-dense", "edge-coarse", "vgg")
_COMMON = (
    Option("model", "edge", "network to train", _MODELS),
    Option("steps", 2000, "optimiser steps"),
    Option("stop", 0, "step at which to end before the schedule does; 0 goes through with it"),
    Option("batch_size", 64, "samples of a step"),
    Option("learning_rate", 2e-3, "peak learning rate"),
    Option("warmup_steps", 200, "steps of linear warm-up"),
    Option("weight_decay", 1e-4, "of AdamW"),
    Option("precision", "bf16", "of the arithmetic", ("bf16", "fp32")),
    Option("seed", 0, "of data and initial weights"),
    Option("device", "auto", "auto, cpu, cuda or cuda:N"),
    Option("workers", 2, "processes that make the data"),
    Option("checkpoint_seconds", 60.0, "between checkpoints"),
    Option("log_every", 20, "steps between log entries"),
)
MAGICPOINT_OPTIONS = (
    *_COMMON,
    Option("width", 160, "of the images, pixels"),
    Option("height", 120, "of the images, pixels"),
)
_TOKEN_OPTIONS = (
    Option("token_weight", 0.0, "of the token-labelling loss; needs labels with heat maps"),
    Option("mix_tokens", 0.0, "probability that a rectangle of a view's tokens is another's (token encoders only)"),
    Option("soft_weight", 0.0, "share of the soft labels in the detector's loss; needs labels with heat maps"),
)
_PAIR_DEFAULTS = {"steps": 6000, "batch_size": 16}
SUPERPOINT_OPTIONS = (
    *(Option(o.name, _PAIR_DEFAULTS.get(o.name, o.default), o.help, o.choices) for o in _COMMON if o.name != "model"),
    Option("model", "", "network to train; that of --init where it is not given", ("", *_MODELS)),
    Option("width", 256, "of the views, pixels"),
    Option("height", 192, "of the views, pixels"),
    Option("photo_side", 480, "longest side that photographs are brought to, pixels"),
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
    *_TOKEN_OPTIONS,
)
_TOKEN_NAMES = frozenset(option.name for option in _TOKEN_OPTIONS)


def add_parser(subparsers: Any) -> None:
    """Add ``train`` to the command line."""
    parser = subparsers.add_parser("train", help="train a network")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")

    magicpoint = tasks.add_parser("magicpoint", help="step 1: the detector on synthetic shapes")
    magicpoint.add_argument("--out", type=Path, required=True, help="folder of the run; a run in it is resumed")
    add_options(magicpoint, MAGICPOINT_OPTIONS)
    magicpoint.set_defaults(run=_run_magicpoint)

    superpoint = tasks.add_parser("superpoint", help="step 3: detector and descriptor on warped pairs")
    superpoint.add_argument("--images", type=Path, required=True, help="folder of photographs")
    superpoint.add_argument("--labels", type=Path, required=True, help="folder that 'superpoint label' made")
    superpoint.add_argument("--out", type=Path, required=True, help="folder of the run; a run in it is resumed")
    superpoint.add_argument("--init", default=None, metavar="NAME|PATH", help="weights to start from")
    add_options(superpoint, SUPERPOINT_OPTIONS)
    superpoint.set_defaults(run=_run_superpoint)


def _train_config(values: dict[str, Any]) -> Any:
    import dataclasses

    from frontend.device import pick_device
    from frontend.training.trainer import TrainConfig

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    chosen = {name: value for name, value in values.items() if name in names}
    return TrainConfig(**{**chosen, "device": str(pick_device(values["device"]))})


def _run_magicpoint(args: argparse.Namespace) -> int:
    import torch

    from frontend.model import MODEL_PRESETS, SuperPointNet
    from frontend.training.datasets import SyntheticShapes
    from frontend.training.tasks import MagicPointTask
    from frontend.training.trainer import Trainer

    values = resolve_options(args, MAGICPOINT_OPTIONS)
    torch.manual_seed(values["seed"])
    network = SuperPointNet(MODEL_PRESETS[values["model"]])
    size = (values["width"], values["height"])
    task = MagicPointTask(SyntheticShapes(values["seed"], size))
    print(Trainer(task, network, _train_config(values), args.out, {"size": list(size)}).run())
    return 0


def _run_superpoint(args: argparse.Namespace) -> int:
    import dataclasses

    import torch

    from frontend.model import MODEL_PRESETS, SuperPointNet, transfer
    from frontend.training.datasets import PairConfig, WarpedPairs
    from frontend.training.tasks import SuperPointTask
    from frontend.training.token_labelling import TokenLabelling
    from frontend.training.trainer import Trainer
    from frontend.weights import load_network, sha256_of

    values = resolve_options(args, SUPERPOINT_OPTIONS)
    torch.manual_seed(values["seed"])
    described: dict[str, Any] = {name: values[name] for name in values if name not in ("device", "model")}
    # not stated where they are off: runs begun by earlier versions go on
    described = {name: described[name] for name in described if name not in _TOKEN_NAMES or described[name]}
    if args.init is None:
        network = SuperPointNet(MODEL_PRESETS[values["model"] or "edge"])
    else:
        _, network = load_network(args.init, fold=False)
        if values["model"] and network.config != MODEL_PRESETS[values["model"]]:
            source, network = network, SuperPointNet(MODEL_PRESETS[values["model"]])
            fresh = transfer(source, network)
            print(f"--init {args.init} is another network: {len(fresh)} tensors start afresh", file=sys.stderr)
        path = Path(args.init)
        described["init_sha256"] = sha256_of(path) if path.is_file() else args.init
    config = PairConfig()
    config = dataclasses.replace(
        config,
        size=(values["width"], values["height"]),
        photo_side=values["photo_side"],
        label_threshold=values["label_threshold"],
        label_spacing=values["label_spacing"],
        relative=dataclasses.replace(config.relative, rotation=values["rotation"], anisotropy=values["anisotropy"]),
        any_rotation=values["any_rotation"],
        soft=values["token_weight"] > 0 or values["soft_weight"] > 0,
        mix_tokens=values["mix_tokens"],
    )
    weights = {name: values[name] for name in _TOKEN_NAMES}
    token_labelling = TokenLabelling(network, **weights) if any(weights.values()) else None
    data = WarpedPairs(values["seed"], args.images, args.labels, config)
    described["photographs"] = len(data.photos)
    task = SuperPointTask(
        data,
        values["descriptor_loss"],
        values["descriptor_weight"],
        values["lambda_d"],
        values["temperature"],
        values["position_weight"],
        values["refined_points"],
        token_labelling,
    )
    print(Trainer(task, network, _train_config(values), args.out, described).run())
    return 0
