"""YAML of calibration files: maps, lists, numbers and strings.

The project has no YAML library among what it needs, and OpenCV's refuses what Kalibr writes. Anchors, tags, and texts
of several lines are not read.
"""

from __future__ import annotations

import re
from typing import Any

_COMMENT = re.compile(r"(^|\s)#.*$")
_PAIR = re.compile(r"^([^\s:\[\]{},]+|\"[^\"]*\"|'[^']*')\s*:(?:\s+(.*))?$")
_TOKEN = re.compile(r"\s*([\[\]{},:]|\"[^\"]*\"|'[^']*'|[^\[\]{},:\s][^\[\]{},:]*)")


def read_simple_yaml(text: str) -> Any:
    """A document; numbers are floats.

    Args:
        text: of the file.

    Raises:
        ValueError: it is something else; what, in a few words.
    """
    lines = _Lines(text)
    found = lines.block(0)
    lines.check_done()
    return found


class _Lines:
    """Reads maps, lists and scalars by their indentation."""

    def __init__(self, text: str) -> None:
        self._lines: list[tuple[int, str]] = []
        self._at = 0
        open_brackets = 0
        for line in text.splitlines():
            bare = _COMMENT.sub("", line).rstrip()
            if not bare.strip() or bare.startswith(("%", "---", "...")):
                continue
            if open_brackets > 0:  # a list that goes on
                indent, before = self._lines[-1]
                self._lines[-1] = indent, f"{before} {bare.strip()}"
            else:
                self._lines.append((len(bare) - len(bare.lstrip(" ")), bare.strip()))
            open_brackets += bare.count("[") + bare.count("{") - bare.count("]") - bare.count("}")

    def block(self, least: int) -> Any:
        """What stands at one indentation, of ``least`` or more; None where nothing does."""
        if self._at >= len(self._lines) or self._lines[self._at][0] < least:
            return None
        indent = self._lines[self._at][0]
        items: list[Any] = []
        named: dict[str, Any] = {}
        while self._at < len(self._lines) and self._lines[self._at][0] == indent:
            line = self._lines[self._at][1]
            if line == "-" or line.startswith("- "):
                if named:
                    raise ValueError(f"'{line[:40]}' is no name with a value")
                items.append(self._item(indent, line))
                continue
            if items:  # a list may stand at the indentation of its name, and ends where the next one comes
                break
            pair = _PAIR.match(line)
            if pair is None:
                raise ValueError(f"'{line[:40]}' is no name with a value")
            self._at += 1
            key, value = _bare(pair[1]), pair[2]
            if value:
                named[key] = _flow(value)
            elif self._at < len(self._lines) and self._lines[self._at][1].startswith("-"):
                named[key] = self.block(indent)
            else:
                named[key] = self.block(indent + 1)
        return items or named

    def check_done(self) -> None:
        """Refuse what stands at an indentation like nothing before it."""
        if self._at < len(self._lines):
            raise ValueError(f"'{self._lines[self._at][1][:40]}' is indented like nothing before it")

    def _item(self, indent: int, line: str) -> Any:
        rest = line[1:].strip()
        if not rest:
            self._at += 1
            return self.block(indent + 1)
        if rest.startswith("- ") or _PAIR.match(rest):
            # as if it stood on a line of its own
            self._lines[self._at] = indent + len(line) - len(rest), rest
            return self.block(indent + 1)
        self._at += 1
        return _flow(rest)


def _flow(text: str) -> Any:
    """A scalar, ``[a, b]`` or ``{a: b}``."""
    if not text.startswith(("[", "{")):
        return _scalar(text)
    tokens = _TOKEN.findall(text)
    found, used = _parsed(tokens, 0)
    if used != len(tokens) or "".join(tokens).replace(" ", "") != re.sub(r"\s", "", text):
        raise ValueError(f"'{text[:40]}' is no list")
    return found


def _parsed(tokens: list[str], at: int) -> tuple[Any, int]:
    """A value that begins at a token, and where it ends."""
    if at >= len(tokens) or tokens[at] in "]},:":
        raise ValueError("a list does not end")
    if tokens[at] not in "[{":
        return _scalar(tokens[at]), at + 1
    closing = "]" if tokens[at] == "[" else "}"
    items: list[Any] = []
    named: dict[str, Any] = {}
    at += 1
    while at < len(tokens) and tokens[at] != closing:
        value, at = _parsed(tokens, at)
        if closing == "}":
            if at >= len(tokens) or tokens[at] != ":":
                raise ValueError(f"'{value}' has no value")
            named[str(value)], at = _parsed(tokens, at + 1)
        else:
            items.append(value)
        if at < len(tokens) and tokens[at] == ",":
            at += 1
        elif at < len(tokens) and tokens[at] != closing:
            raise ValueError(f"'{tokens[at][:40]}' stands where a comma should")
    if at >= len(tokens):
        raise ValueError("a list does not end")
    return (items if closing == "]" else named), at + 1


def _bare(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _scalar(text: str) -> Any:
    text = text.strip()
    if text in ("", "null", "~"):
        return None
    try:
        return float(text)
    except ValueError:
        return _bare(text)
