"""What stands in for rclpy and the message classes of a ROS 2 installation.

The fields of the messages, and their types, are those of the definitions of ROS 2 Humble that rosbags brings.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_HUMBLE)
_NUMBERS = {"string": "", "float32": 0.0, "float64": 0.0}


def _default(kind: Any) -> Any:
    node, detail = kind
    if node.name == "NAME":
        return message_class(detail)()
    if node.name == "ARRAY":
        return [_default(detail[0])] * detail[1]
    return [] if node.name == "SEQUENCE" else _NUMBERS.get(detail[0], 0)


@functools.cache
def message_class(name: str) -> type[Any]:
    """A class as rclpy makes it of a definition: all fields have defaults, and there are no others."""
    fields = dict(STORE.fielddefs[name][1])

    class Message:
        __slots__ = tuple(fields)

        def __init__(self, **given: Any) -> None:
            for field, kind in fields.items():
                setattr(self, field, given.pop(field) if field in given else _default(kind))
            assert not given, f"{name} has no {list(given)}"

    Message.__name__ = name
    return Message


def as_defined(message: Any) -> Any:
    """A message as an instance of rosbags' class, which can be serialised."""

    def converted(value: Any, kind: Any) -> Any:
        node, detail = kind
        if node.name == "NAME":
            return as_defined(value)
        if node.name in ("ARRAY", "SEQUENCE"):
            if detail[0][0].name == "NAME":
                return [converted(item, detail[0]) for item in value]
            return np.array(value, detail[0][1][0])
        return value

    name = type(message).__name__
    fields = STORE.fielddefs[name][1]
    return STORE.types[name](**{field: converted(getattr(message, field), kind) for field, kind in fields})


class Node:
    """rclpy's, as far as it is used.

    Args:
        parameters: that were set from outside.

    Attributes:
        published: (topic, message) of all publishers.
        subscriptions: callbacks by topic.
        log: (level, text).
    """

    def __init__(self, **parameters: Any) -> None:
        self._parameters = parameters
        self.published: list[tuple[str, Any]] = []
        self.subscriptions: dict[str, Callable[[Any], None]] = {}
        self.types: dict[str, Any] = {}
        self.log: list[tuple[str, str]] = []
        self.destroyed = False

    def declare_parameter(self, name: str, value: Any) -> Any:
        found = self._parameters.get(name, value)
        assert type(found) is type(value)
        return SimpleNamespace(value=found)

    def create_publisher(self, kind: Any, topic: str, depth: int) -> Any:
        self.types[topic] = kind
        return SimpleNamespace(publish=lambda message: self.published.append((topic, message)))

    def create_subscription(self, kind: Any, topic: str, callback: Callable[[Any], None], qos: Any) -> None:
        self.types[topic] = kind
        self.subscriptions[topic] = callback

    def get_logger(self) -> Any:
        def at(level: str) -> Callable[[str], None]:
            return lambda text: self.log.append((level, text))

        return SimpleNamespace(**{level: at(level) for level in ("debug", "info", "warning", "error")})

    def destroy_node(self) -> None:
        self.destroyed = True
