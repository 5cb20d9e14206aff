"""Options of encoders and context modules: whether their values are of the kind that the constructors say."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from frontend.encoders.base import Norm
from frontend.errors import ConfigError

_FROM_ZERO = ("blocks", "dense", "depth")  # how many layers there are of a kind: may be none


def check_options(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse values that no network of this package can have: sizes are whole and positive, factors positive.

    Args:
        name: of the encoder or context module.
        factory: its class; annotations of its options say what each is.
        options: by name; unknown ones are left to the class.

    Raises:
        ConfigError: a value is of another kind, or out of range.
    """
    parameters = inspect.signature(factory, eval_str=True).parameters
    for key, value in options.items():
        kind = parameters[key].annotation if key in parameters else None
        if kind is int:
            least = 0 if key in _FROM_ZERO else 1
            fits, expected = _whole(value, least), f"a whole number of {least} or more"
        elif kind is float:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            fits, expected = number and 0 < value < math.inf, "a positive number"
        elif kind == Sequence[int]:
            fits = isinstance(value, (list, tuple)) and all(_whole(item, 1) for item in value)
            expected = "a list of whole numbers of 1 or more"
        elif kind is Norm:
            fits, expected = value in get_args(Norm), f"one of: {', '.join(get_args(Norm))}"
        else:
            continue
        if not fits:
            raise ConfigError(f"{name} got {key} {value!r}; expected {expected}")


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
