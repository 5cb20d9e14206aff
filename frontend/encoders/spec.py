"""Encoder specifications: ``shufflenetv2(width=1.0)+strip_pooling`` as text and as parts."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from frontend.encoders.base import CONTEXTS, ENCODERS, Encoder
from frontend.errors import ConfigError

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
        ConfigError: the specification cannot be read, or an option does not fit its part.
        RegistryError: a name is unknown; the message lists the known ones.
    """
    first, *others = parse_spec(spec)
    factory = ENCODERS.get(first.name)
    try:
        encoder = factory(**first.options)
    except TypeError as error:
        raise ConfigError(f"options of encoder '{first}' do not fit: {error}") from None
    contexts = nn.ModuleList()
    channels = encoder.out_channels
    for part in others:
        context_factory = CONTEXTS.get(part.name)
        try:
            context = context_factory(channels, **part.options)
        except TypeError as error:
            raise ConfigError(f"options of context module '{part}' do not fit: {error}") from None
        contexts.append(context)
        channels = context.out_channels
    return encoder, contexts
