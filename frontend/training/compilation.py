"""``torch.compile`` for a training, where it works."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
from torch import nn

BACKEND = "inductor"


def compile_parts(network: nn.Module, parts: tuple[str, ...], trial: Callable[[], torch.Tensor]) -> bool:
    """Compile parts of a network in place and try them; take it back where that fails, and say so in a line.

    Names and tensors of the network stay as they are, so its state can be saved and loaded as before.

    Args:
        network: in the mode that it will run in.
        parts: names of sub-modules; those that are missing or None are left out.
        trial: runs the network and returns a scalar to differentiate. What that does to statistics and gradients is
            undone.

    Returns:
        Whether the parts are compiled.
    """
    chosen = [part for part in (getattr(network, name, None) for name in parts) if isinstance(part, nn.Module)]
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        with warnings.catch_warnings():
            # of the compiler, about itself
            warnings.simplefilter("ignore")
            for part in chosen:
                part.compile(backend=BACKEND)
            trial().backward()  # type: ignore[no-untyped-call]
    # whatever a compiler may raise: a missing C++ compiler, an operator without a rule, a bug
    except Exception as error:
        for part in chosen:
            part._compiled_call_impl = None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        print(f"torch.compile does not work here, going on without: {reason}", file=sys.stderr)
        return False
    finally:
        network.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
    return True
