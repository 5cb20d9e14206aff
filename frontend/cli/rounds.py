"""Self-training: rounds of homographic adaptation, each with the network that the last one trained.

The iterations of DeTone et al. 2018, section 5: the network trained on a detector's labels is the next detector.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontend.cli import train
from frontend.cli.options import read_toml, resolve_options
from frontend.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from frontend.training.adaptation import AdaptationConfig


def _training(arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments of ``superpoint train superpoint``."""
    parser = argparse.ArgumentParser(prog="superpoint")
    train.add_parser(parser.add_subparsers(required=True))
    return parser.parse_args(["train", "superpoint", *arguments])


def run_rounds(
    images: Path,
    out: Path,
    model: str,
    rounds: int,
    config: AdaptationConfig,
    device: torch.device,
    train_config: Path,
) -> Path:
    """Label and train in turns; go on where an earlier run stopped.

    A round is finished once its weights are there, which are written last and at once; until then each of its two steps
    resumes as it does by itself. What decides the result is recorded in ``out`` and compared when a run goes on.

    Args:
        images: folder of photographs.
        out: folder of the rounds, made if missing.
        model: name or path of the first detector.
        rounds: how many, 1 or more.
        config: of the labelling.
        device: of the labelling, and of the training where its settings name none.
        train_config: TOML file of the training's settings.

    Returns:
        The path of the last round's weights.

    Raises:
        ConfigError: the training's settings do not fit.
        DataError: ``out`` holds rounds made with other settings.
    """
    from frontend.training.adaptation import check_label_settings, label_folder, label_settings
    from frontend.training.trainer import FREE_TO_CHANGE
    from frontend.weights import load_network

    fixed = ["--images", str(images), "--config", str(train_config)]
    if "device" not in read_toml(train_config):
        fixed += ["--device", str(device)]
    values: dict[str, Any] = resolve_options(
        _training([*fixed, "--labels", str(out), "--out", str(out)]), train.SUPERPOINT_OPTIONS
    )
    if (values["token_weight"] or values["soft_weight"]) and not config.heatmaps:
        raise ConfigError(f"{train_config} asks for soft labels; they need labels with heat maps (give --heatmaps)")
    name, network = load_network(model)
    train.check_superpoint(network, values, device)  # not once the first labels are made, which takes hours
    out.mkdir(parents=True, exist_ok=True)
    # those that came later are left out at their defaults: rounds begun by earlier versions go on
    defaults = {option.name: option.default for option in train.SUPERPOINT_OPTIONS}
    later = {name for name in train.LATER_OPTIONS if values[name] == defaults[name]}
    decisive = {f"training's {key}": value for key, value in values.items() if key not in FREE_TO_CHANGE | later}
    check_label_settings(out, {**label_settings(network, name, config), **decisive})
    newest = model
    for number in range(1, rounds + 1):
        labels, run = out / f"round{number}" / "labels", out / f"round{number}" / "train"
        weights = run / "superpoint.safetensors"
        if weights.is_file():
            print(f"round {number}: finished before")
        else:
            name, network = load_network(newest)
            report = label_folder(network, name, images, labels, config, device)
            print(f"round {number}: {report.summary()}", flush=True)
            arguments = _training([*fixed, "--labels", str(labels), "--out", str(run), "--init", newest])
            arguments.run(arguments)
        newest = str(weights)
    return Path(newest)
