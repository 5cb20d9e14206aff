"""What a validation found wrong, in one line: where, what was given, and what was expected."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_SHOWN = 64  # characters of a value
# these say all by themselves: there is no value, it is in the message, or it is nobody's business
_WITHOUT_VALUE = {"missing", "extra_forbidden", "setting", "camera"}
_NO_OBJECT = {"model_type", "model_attributes_type"}


def told(where: str, error: Mapping[str, Any]) -> str:
    """A line of an error of pydantic's. Only texts, numbers and the like are quoted, shortened, and never a whole body.

    Args:
        where: what is wrong, as who gave it knows it.
        error: one of a ``ValidationError``'s errors.
    """
    kind, given = error["type"], error["input"]
    message = "Input should be an object" if kind in _NO_OBJECT else error["msg"]
    message = re.sub("^Input should be (greater|less)", r"expected a value \1", message)
    message = message.replace("Input should be", "expected")
    if kind in _WITHOUT_VALUE or not isinstance(given, (str, int, float, type(None))):
        return f"{where}: {message}"
    shown = repr(given[:_SHOWN]) if isinstance(given, str) else json.dumps(given)[:_SHOWN]
    return f"{where} is {shown}; {message}"
