"""Encoder specifications: ``shufflenetv2(width=1.0)+strip_pooling`` as text and as parts."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from frontend.encoders.base import CONTEXTS, ENCODERS, Encoder
from frontend.encoders.options import check_options
from frontend.errors import ConfigError, FrontendError, is_lack_of_memory
from frontend.registry import Registry

M = TypeVar("M", bound=nn.Module)

_EXAMPLE = "expected NAME, NAME(option=value, ...) or a chain ENCODER+CONTEXT+..."


@dataclass(frozen=True)
class Part:
    """One registered name with its options.

    Attributes:
        name: in the registry of encoders (the first part) or of context modules (the others).
        options: keyword arguments: numbers, booleans, None, strings, and lists of them.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}({', '.join(f'{key}={_format(value)}' for key, value in self.options.items())})"


def _format(value: Any) -> str:
    if isinstance(value, str) and value.isidentifier() and value not in ("True", "False", "None"):
        return value
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_format(item) for item in value) + "]"
    return repr(value)


def parse_spec(text: str) -> list[Part]:
    """Read a specification.

    Args:
        text: names joined by "+", each with optional keyword arguments in brackets. Values are Python literals; a
            bare word is a string.

    Returns:
        The encoder, then its context modules; ``"+".join(map(str, parts))`` is the same specification.

    Raises:
        ConfigError: the text is no specification. Whether the names exist is not looked at.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise ConfigError(f"encoder '{text}' cannot be read; {_EXAMPLE}") from None
    parts: list[Part] = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        parts.append(_part(tree.right, text))
        tree = tree.left
    return [_part(tree, text), *reversed(parts)]


def _part(node: ast.expr, text: str) -> Part:
    if isinstance(node, ast.Name):
        return Part(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        options = {keyword.arg: _value(keyword.value, text) for keyword in node.keywords if keyword.arg}
        if len(options) == len(node.keywords):
            return Part(node.func.id, options)
    raise ConfigError(f"encoder '{text}' cannot be read; {_EXAMPLE}")


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item, text) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ConfigError(f"encoder '{text}' has an option that is no literal; {_EXAMPLE}") from None


def build_encoder(spec: str) -> tuple[Encoder, nn.ModuleList]:
    """Make an encoder and the chain of its context modules.

    Args:
        spec: see :func:`parse_spec`.

    Returns:
        The encoder, and the context modules in their order; the channels of each fit the next.

    Raises:
        ConfigError: the specification cannot be read, an option does not fit its part, or a part of another package is
            not what an encoder or a context module has to be.
        RegistryError: a name is unknown; the message lists the known ones.
    """
    first, *others = parse_spec(spec)
    encoder = make_part(ENCODERS, first)
    contexts = nn.ModuleList()
    channels = encoder.out_channels
    for part in others:
        context = make_part(CONTEXTS, part, channels)
        contexts.append(context)
        channels = context.out_channels
    return encoder, contexts


def make_part(registry: Registry[Callable[..., M]], part: Part, *inputs: int) -> M:
    """Make an encoder or a context module.

    Args:
        registry: that has it.
        part: its name and options.
        inputs: channels of its input, of a context module.

    Raises:
        ConfigError: as of :func:`build_encoder`.
        RegistryError: the same.
    """
    factory = registry.get(part.name)
    named = f"{registry.kind} '{part}'"
    ours = str(getattr(factory, "__module__", "")).startswith("frontend.")
    if ours:
        check_options(part.name, factory, part.options)
    try:
        module = factory(*inputs, **part.options)
    except TypeError as error:
        raise ConfigError(f"options of {named} do not fit: {_line(error)}") from None
    except Exception as error:  # of whatever the layers say
        raise _refusal(f"{named} cannot be made", error) from error
    if not ours:
        _check_contract(named, module, *inputs)
    return module


def _check_contract(named: str, module: Any, *inputs: int) -> None:
    """Refuse a part of another package that is not what :class:`Encoder` or :class:`Context` say."""
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{named} is of the type {type(module).__name__}; expected a torch.nn.Module")
    channels = getattr(module, "out_channels", None)
    if not isinstance(channels, int) or channels < 1:
        has = "has no out_channels" if channels is None else f"has out_channels {channels!r}"
        raise ConfigError(f"{named} {has}; expected a whole number of 1 or more, see docs/encoders.md")
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            given = (torch.zeros(1, inputs[0], 2, 3), None) if inputs else (torch.zeros(1, 1, 16, 24),)
            found = module(*given)
    except Exception as error:  # another package's, of whatever kind
        raise _refusal(f"{named} cannot be run on an input of {tuple(given[0].shape)}", error) from error
    finally:
        for part, training in modes:
            part.training = training
    expected = f"(1, {channels}, 2, 3), out_channels at an eighth of the image's size"
    if inputs:
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
            raise ConfigError(f"{named} returns a {type(found).__name__}; expected features and a dict of outputs")
        found = found[0]
    if not isinstance(found, Tensor) or tuple(found.shape) != (1, channels, 2, 3):
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ConfigError(f"{named} returns {what}; expected {expected}")


def _refusal(told: str, error: Exception) -> Exception:
    """What is to be raised for what a part raised."""
    if isinstance(error, FrontendError) or is_lack_of_memory(error):
        return error
    return ConfigError(f"{told}: {type(error).__name__}: {_line(error)}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
