"""``superpoint encoders``: what an encoder specification may name."""

from __future__ import annotations

import argparse
import inspect
import json
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add ``encoders`` to the command line."""
    parser = subparsers.add_parser(
        "encoders",
        help="list encoders and context modules",
        description="List encoders and context modules. A specification is ENCODER(option=value,...)+CONTEXT(...)+...",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_run)


def describe() -> list[dict[str, Any]]:
    """One entry for each registered encoder, then for each context module.

    Returns:
        Keys kind ("encoder" or "context"), name, summary, paper, options (name to default; a default that is no JSON
        value is given as text), out_channels and parameters (of the default; a context module's on 96 channels), and
        problem: why one of another package cannot be used, which then has nothing but kind and name; else None.
    """
    from frontend.encoders import CONTEXTS, ENCODERS

    entries: list[dict[str, Any]] = []
    for kind, registry, inputs in (("encoder", ENCODERS, ()), ("context", CONTEXTS, (96,))):
        entries += [{"kind": kind, "name": name, **_facts(registry, name, inputs)} for name in registry]
        broken = registry.problems.items()
        entries += [{"kind": kind, "name": name, **_NOTHING, "problem": problem} for name, problem in broken]
    return entries


_NOTHING: dict[str, Any] = {"summary": "", "paper": "", "options": {}, "out_channels": None, "parameters": None}


def _facts(registry: Any, name: str, inputs: tuple[int, ...]) -> dict[str, Any]:
    from frontend.encoders import Part
    from frontend.encoders.spec import make_part
    from frontend.errors import FrontendError

    try:
        module, factory = make_part(registry, Part(name), *inputs), registry.get(name)
    except FrontendError as error:
        return {**_NOTHING, "problem": str(error)}
    parameters = list(inspect.signature(factory).parameters.values())[len(inputs) :]
    options = {p.name: _plain(p.default) for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return {
        "summary": (inspect.getdoc(factory) or "").partition("\n")[0],
        "paper": str(getattr(module, "paper", "")),
        "options": options,
        "out_channels": module.out_channels,
        "parameters": sum(p.numel() for p in module.parameters()),
        "problem": None,
    }


def _plain(value: Any) -> Any:
    if value is inspect.Parameter.empty:
        return None
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, (bool, int, float, str, list, type(None))) else str(value)


def _run(args: argparse.Namespace) -> int:
    entries = describe()
    if args.json:
        print(json.dumps(entries, indent=1))
        return 0
    from frontend.encoders import Part

    for kind, title in (("encoder", "Encoders"), ("context", "Context modules (parameters on 96 channels)")):
        print(f"{title}\n")
        for entry in entries:
            if entry["kind"] == kind:
                print(f"  {Part(entry['name'], entry['options'])}")
                if entry["problem"]:
                    print(f"      cannot be used: {entry['problem']}\n")
                    continue
                print(f"      {entry['summary']}")
                paper = f"{entry['paper']}; " if entry["paper"] else ""
                print(f"      {paper}{entry['parameters']:,} parameters, {entry['out_channels']} channels\n")
    return 0
