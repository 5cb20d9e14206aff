"""The state of a training as one file that can be carried to another machine.

A safetensors file: the tensors of the checkpoint, and as JSON all that describes the run: step, settings, the checksum
of the data. Paths are no part of it; images and labels may lie elsewhere, but have to be the same.

In the exact form nothing is lost, and a run that goes on from it gives the same weights, bit for bit, on the same kind
of processor. In the compact form the optimiser's moments, and the distance of the averaged weights from the weights,
are in bfloat16 (relative error at most 1/256); the weights themselves stay exact. It takes 8 bytes a parameter instead
of 12, with averaged weights 10 instead of 16.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frontend.atomic import atomic_write
from frontend.errors import ConfigError, DataError, is_lack_of_memory

CHECKPOINT = "checkpoint.pt"
SETTINGS = "settings.toml"
_FORMAT = "superpoint-frontend training state 1"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_REQUIRED = ("described", "network", "optimiser", "step", "seconds")
# settings that belong to a machine, or to the command that was to end there
_LOCAL = frozenset({"device", "workers", "stop"})


def read_checkpoint(run: Path) -> dict[str, Any]:
    """The newest checkpoint of a run, its tensors on the CPU.

    Raises:
        DataError: the folder has none, it cannot be read, or it is something else.
    """
    path = run / CHECKPOINT
    if not path.is_file():
        raise DataError(f"{run} has no {CHECKPOINT}; expected the folder of a training run")
    if (damaged := _damaged_record(path)) is not None:
        raise DataError(f"{path} cannot be read: {damaged} is damaged (another checksum)")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever reading other content as a pickle ends in
        if is_lack_of_memory(error):
            raise
        reason = "it is no PyTorch file, or holds more than tensors"
        if isinstance(error, (OSError, RuntimeError, EOFError, ValueError)):
            # of PyTorch's text the first sentence; advice follows
            reason = (str(error).splitlines() or ["damaged"])[0].partition(". ")[0]
        raise DataError(f"{path} cannot be read: {reason}") from None
    lacking = [key for key in _REQUIRED if not isinstance(state, dict) or key not in state]
    if lacking:
        found = f"a dict without '{lacking[0]}'" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise DataError(f"{path} holds {found}; expected the checkpoint of a training run")
    return state


def _damaged_record(path: Path) -> str | None:
    """The first record of a PyTorch file that is not as it was written, which torch.load does not notice."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except zipfile.BadZipFile:
        return None  # torch.load refuses what is no archive


def write_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint of a run, atomically.

    Raises:
        OSError: it cannot be written.
    """
    # PyTorch's own writing to a file knows no OSError: a full disk would be an error of the program
    data = io.BytesIO()
    torch.save(state, data)
    atomic_write(run / CHECKPOINT, data.getvalue())


def described_by(run: Path) -> dict[str, Any] | None:
    """What describes the run in a folder; None where there is no run."""
    if not (run / CHECKPOINT).is_file():
        return None
    described: dict[str, Any] = read_checkpoint(run)["described"]
    return described


def export_state(run: Path, file: Path, *, compact: bool = False) -> int:
    """Write the state of a run to one file.

    Args:
        run: folder of the run; it need not have ended.
        file: to write.
        compact: see above.

    Returns:
        Size of the file, bytes.

    Raises:
        DataError: the folder has no checkpoint.
    """
    from safetensors.torch import save

    state = read_checkpoint(run)
    tensors: dict[str, Tensor] = {}
    for part in ("network", "auxiliary"):
        tensors |= {f"{part}/{name}": tensor for name, tensor in state.get(part, {}).items()}
    for name, tensor in state.get("average", {}).items():
        if compact and tensor.is_floating_point():
            tensors[f"average-difference/{name}"] = (tensor - state["network"][name]).to(torch.bfloat16)
        else:
            tensors[f"average/{name}"] = tensor
    for index, values in state["optimiser"]["state"].items():
        for name, tensor in values.items():
            half = compact and name in _MOMENTS
            tensors[f"optimiser/{index}/{name}"] = tensor.to(torch.bfloat16) if half else tensor
    facts = {
        **{key: value for key, value in state.items() if key in ("step", "seconds", "described", "content")},
        "settings": {key: value for key, value in state.get("settings", {}).items() if key not in _LOCAL},
        "groups": state["optimiser"]["param_groups"],
        "compact": compact,
    }
    metadata = {"format": _FORMAT, "state": json.dumps(facts)}
    # safetensors knows neither shared nor strided memory
    data = save(
        {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        metadata,
    )
    atomic_write(file, data)
    return len(data)


def read_state(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file of :func:`export_state` says about the run, and its tensors.

    Raises:
        DataError: it is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise DataError(f"{file} is no training state; expected a file of 'superpoint state export'")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as a training state: {error}") from None
    facts: dict[str, Any] = json.loads(metadata["state"])
    return facts, tensors


def import_state(file: Path, run: Path) -> dict[str, Any]:
    """Make a folder from which a training goes on.

    Args:
        file: of :func:`export_state`.
        run: folder to make. It gets the checkpoint and ``settings.toml``, the settings of the command that began the
            run, to be given back by ``--config``.

    Returns:
        What the file says about the run.

    Raises:
        DataError: the file is no training state.
        ConfigError: the folder holds a run already.
    """
    facts, tensors = read_state(file)
    if (run / CHECKPOINT).exists():
        raise ConfigError(f"{run} holds a run already; expected a new folder")
    parts: dict[str, dict[str, Tensor]] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, key = name.split("/", 1)
        if part == "optimiser":
            index, moment = key.split("/")
            moments.setdefault(int(index), {})[moment] = tensor.float()
        else:
            parts.setdefault(part, {})[key] = tensor
    for key, tensor in parts.pop("average-difference", {}).items():
        parts.setdefault("average", {})[key] = parts["network"][key] + tensor.float()
    groups = [{**group, "betas": tuple(group["betas"])} for group in facts["groups"]]
    state: dict[str, Any] = {
        **parts,
        **{key: facts[key] for key in ("step", "seconds", "described", "content", "settings") if key in facts},
        "optimiser": {"state": moments, "param_groups": groups},
    }
    # JSON writes truth values, numbers and strings as TOML does
    # a file of an earlier version may hold what stays behind now
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in facts["settings"].items() if key not in _LOCAL]
    atomic_write(run / SETTINGS, "".join(lines))
    # last: it is what makes the folder a run, which an import that was interrupted did not
    write_checkpoint(run, state)
    return facts
