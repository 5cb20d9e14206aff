"""``superpoint train lightglue``: a matcher for the features of one model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from frontend.cli.options import Option, add_options
from frontend.errors import ConfigError

_ABOUT = """\
LightGlue on groups of views that 'superpoint make-views' made. The result, OUT/lightglue.safetensors, matches features
of that model: superpoint-match --matcher OUT/lightglue.safetensors.
"""


def lightglue_options(common: tuple[Option, ...]) -> tuple[Option, ...]:
    """The settings, with those that all trainings have."""
    defaults = {"steps": 60000, "batch_size": 16, "learning_rate": 1e-3, "warmup_steps": 500, "ema": 0.999}
    shared = (
        Option(o.name, defaults.get(o.name, o.default), o.help, o.choices)
        for o in common
        if o.name not in ("model", "encoder", "compile")
    )
    return (
        *shared,
        Option("dim", 128, "of its tokens"),
        Option("layers", 5, "of self- and cross-attention"),
        Option("heads", 2, "of the attention"),
        Option("keypoints", 256, "of each view in a sample"),
        Option("strongest", 768, "a sample's keypoints are among at most this many, the best of the view"),
        Option("least_matches", 10, "pairs of views with fewer are passed over"),
        Option("hardest_of", 1, "of so many pairs of views of a group the one with the fewest matches is taken"),
        Option("freeze", "", "modules that stay as they are, comma-separated: transformers,log_assignment,posenc"),
    )


def add_lightglue(tasks: Any, options: tuple[Option, ...], description: str) -> argparse.ArgumentParser:
    """Add ``train lightglue``."""
    parser: argparse.ArgumentParser = tasks.add_parser(
        "lightglue", help="a learned matcher on groups of views", description=_ABOUT + description
    )
    parser.add_argument("--views", type=Path, required=True, help="folder that 'superpoint make-views' made")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; a run in it is resumed")
    parser.add_argument("--init", default=None, metavar="NAME|PATH", help="matcher to start from")
    add_options(parser, options)
    return parser


def train_lightglue(args: argparse.Namespace, values: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The task, the network with its initial weights, and what describes them."""
    import torch

    from frontend.folders import read_settings
    from frontend.matching.lightglue_network import LightGlueConfig, LightGlueNet
    from frontend.matching.lightglue_weights import load_matcher
    from frontend.training.matching_task import MatchingConfig, MatchingTask, ViewPairs
    from frontend.training.state import described_by
    from frontend.weights import find_matcher_file, sha256_of

    data = ViewPairs(
        values["seed"],
        args.views,
        MatchingConfig(values["keypoints"], values["strongest"], values["least_matches"], values["hardest_of"]),
    )
    features = str(read_settings(args.views).get("model", ""))
    described = {name: values[name] for name in ("keypoints", "strongest", "least_matches")}
    for name, default in (("freeze", ""), ("hardest_of", 1)):
        if values[name] != default:  # at its default not part of what a run is described by: runs from before go on
            described[name] = values[name]
    begun = described_by(args.out)
    if begun is None and args.init is None and values["freeze"]:
        raise ConfigError("freeze was given without a matcher to start from; expected --init NAME|PATH")
    if begun is not None and args.init is None:
        described |= {key: begun[key] for key in ("init_sha256", "project") if key in begun}
    source = None if args.init is None else find_matcher_file(args.init)
    started = None if source is None else load_matcher(source)
    if started is not None and started.config.project:
        described["project"] = True
    project = bool(described.get("project", False))
    wanted = LightGlueConfig(data.descriptor_dim, values["dim"], values["layers"], values["heads"], features, project)
    torch.manual_seed(values["seed"])
    network = LightGlueNet(wanted)
    if source is not None and started is not None:
        if (held := started.config.to_dict() | {"features": features}) != wanted.to_dict():
            raise ConfigError(f"--init {args.init} is a matcher of {held}; expected {wanted.to_dict()}")
        network.load_state_dict(started.state_dict())
        described["init_sha256"] = sha256_of(source)
    described |= {"groups": len(data.groups)}
    return MatchingTask(data), network, described
