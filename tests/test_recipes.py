"""The recipes of the released weights are ones that the commands accept, and the script runs each of them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from frontend.cli.label import LABEL_OPTIONS
from frontend.cli.options import Option, resolve_options
from frontend.cli.train import LIGHTGLUE_OPTIONS, MAGICPOINT_OPTIONS, SUPERPOINT_OPTIONS

RECIPES = Path(__file__).resolve().parent.parent / "weights" / "recipes"
OPTIONS = {
    "magicpoint": MAGICPOINT_OPTIONS,
    "label": LABEL_OPTIONS,
    "superpoint": SUPERPOINT_OPTIONS,
    "lightglue": LIGHTGLUE_OPTIONS,
}


def options_of(path: Path) -> tuple[Option, ...]:
    return OPTIONS[re.sub(r"\d", "", path.stem.split("-")[1])]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_hold_known_settings(path: Path) -> None:
    options = options_of(path)
    nothing_given = {option.name: None for option in options}
    values = resolve_options(argparse.Namespace(config=path, **nothing_given), options)
    assert values != {option.name: option.default for option in options}


@pytest.mark.parametrize("model", sorted({path.stem.split("-")[0] for path in RECIPES.glob("*.toml")}))
def test_a_model_has_a_script_that_runs_each_of_its_recipes_once(model: str) -> None:
    text = (RECIPES / f"train-{model}.sh").read_text(encoding="utf-8")
    assert sorted(re.findall(r"[\w-]+\.toml", text)) == sorted(path.name for path in RECIPES.glob(f"{model}-*.toml"))
