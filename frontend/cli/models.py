"""``superpoint models``: what is released, as the manifest of the weights states it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from frontend.weights import MatcherInfo, ModelInfo, list_matchers, list_models

_MODEL_COLUMNS = ("model", "version", "encoder", "descriptors", "int8", "MB", "licence", "rights in its images")
_MATCHER_COLUMNS = ("matcher", "version", "of features of", "MB", "licence", "rights in its images")


def add_parser(subparsers: Any) -> None:
    """Add ``models`` to the command line."""
    parser = subparsers.add_parser(
        "models",
        help="list the released models and matchers",
        description="List the released models and matchers. int8: whether --precision int8 needs no export. MB: of "
        "the weight file. The last column tells whose the images are that it was trained on; 'trained_on' of --json "
        "says more, and weights/MODEL_CARD.md all.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_run)


def describe() -> list[dict[str, Any]]:
    """One entry for each released model, then for each learned matcher.

    Returns:
        Keys kind ("model" or "matcher"), name, version, path and bytes of the weight file (None where it is missing),
        sha256, licence, trained_on, rights and recipe; of a model encoder, descriptor_dim and int8 (whether such a
        graph was released), of a matcher features.

    Raises:
        WeightsError: the manifest is missing or malformed.
    """
    entries: list[dict[str, Any]] = []
    for model in list_models().values():
        own = {"encoder": model.encoder, "descriptor_dim": model.descriptor_dim, "int8": model.int8 is not None}
        entries.append(_entry("model", model, own))
    entries += [_entry("matcher", info, {"features": info.features}) for info in list_matchers().values()]
    return entries


def _entry(kind: str, info: ModelInfo | MatcherInfo, own: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": info.name,
        "version": info.version,
        **own,
        "path": str(info.path),
        "bytes": _size(info.path),
        "sha256": info.sha256,
        "licence": info.licence,
        "trained_on": info.trained_on,
        "rights": info.rights,
        "recipe": info.recipe,
    }


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    size = "missing" if entry["bytes"] is None else f"{entry['bytes'] / 1e6:.2f}"
    own = [entry["features"]] if entry["kind"] == "matcher" else [entry["encoder"], f"{entry['descriptor_dim']}-d"]
    if entry["kind"] == "model":
        own.append("yes" if entry["int8"] else "no")
    return entry["name"], entry["version"], *own, size, entry["licence"], entry["rights"] or "not stated"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    return "".join(f"{line}\n" for line in lines)


def _run(args: argparse.Namespace) -> int:
    entries = describe()
    if args.json:
        print(json.dumps(entries, indent=1))
        return 0
    tables = []
    for kind, columns in (("model", _MODEL_COLUMNS), ("matcher", _MATCHER_COLUMNS)):
        rows = [_row(entry) for entry in entries if entry["kind"] == kind]
        if rows:
            tables.append(_table(columns, rows))
    print("\n".join(tables) or "no model is released\n", end="")
    return 0
