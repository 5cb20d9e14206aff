"""``superpoint state``: carry a training run to another machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_ABOUT = """\
A run's state, its weights, the optimiser's moments, step, settings and the checksum of its data, as one file. On the
other machine 'superpoint state import FILE --out RUN' makes the folder from which the training goes on:
'superpoint train TASK --out RUN --config RUN/settings.toml', with --images and --labels where they lie there. Other
images or labels are refused. Exact by default: the result is that of a run that was never interrupted.
"""


def add_parser(subparsers: Any) -> None:
    """Add ``state`` to the command line."""
    parser = subparsers.add_parser("state", help="carry a training run to another machine", description=_ABOUT)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    export = actions.add_parser("export", help="write the state of a run to one file", description=_ABOUT)
    export.add_argument("run_folder", type=Path, metavar="RUN", help="folder of the run, ended or not")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    export.add_argument(
        "--compact", action="store_true", help="moments in bfloat16: two thirds of the size, no longer exact"
    )
    export.set_defaults(run=_export)

    load = actions.add_parser("import", help="make a folder from which the run goes on", description=_ABOUT)
    load.add_argument("file", type=Path, metavar="FILE", help="file of 'superpoint state export'")
    load.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder to make")
    load.set_defaults(run=_import)

    show = actions.add_parser("show", help="say what a file of a state holds")
    show.add_argument("file", type=Path, metavar="FILE", help="file of 'superpoint state export'")
    show.set_defaults(run=_show)


def _export(args: argparse.Namespace) -> int:
    from frontend.training.state import export_state

    size = export_state(args.run_folder, args.out, compact=args.compact)
    print(f"{args.out}: {size / 1e6:.2f} MB, {'compact' if args.compact else 'exact'}")
    return 0


def _import(args: argparse.Namespace) -> int:
    from frontend.training.state import import_state

    facts = import_state(args.file, args.out)
    print(f"{args.out}: step {facts['step']} of {facts['described']['steps']}, task {facts['described']['task']}")
    return 0


def _show(args: argparse.Namespace) -> int:
    import json

    from frontend.training.state import read_state

    facts, tensors = read_state(args.file)
    parameters = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("network/"))
    shown = {key: facts.get(key) for key in ("step", "seconds", "content", "compact", "described", "settings")}
    print(json.dumps({**shown, "values_of_the_network": parameters}, indent=1))
    return 0
