"""Command-line flags from the fields of a configuration dataclass, and TOML files of the same names."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, NoReturn

from frontend.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Parser(argparse.ArgumentParser):
    """Refuses in one line, as its sub-parsers do; argparse would print the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a flat TOML file of settings.

    Raises:
        ConfigError: the file cannot be read or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no valid TOML: {error}") from None


@dataclasses.dataclass(frozen=True)
class Option:
    """One setting of a command: a flag, a TOML key, and its default.

    A setting that is true or false has the flags ``--name`` and ``--no-name``.

    Attributes:
        name: in snake case; the flag is ``--name-with-dashes``.
        default: also decides the type; a truth value has the flags ``--name`` and ``--no-name``. None is that of a
            float that need not be given.
        help: one line.
        choices: allowed values; any where empty.
    """

    name: str
    default: bool | int | float | str | None
    help: str
    choices: tuple[str, ...] = ()

    @property
    def kind(self) -> type[Any]:
        """Of its values."""
        return float if self.default is None else type(self.default)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, ``--runtime`` and ``--precision`` of the networks that a benchmark measures."""
    known = (
        ("device", "auto, cpu, cuda or cuda:N"),
        ("runtime", "on a CPU: auto, torch, onnxruntime, openvino, ncnn"),
        ("precision", "auto, float32, bf16, fp16, int8"),
    )
    for name, values in known:
        parser.add_argument(f"--{name}", default="auto", help=f"of the networks: {values} (default: auto)")


def add_options(parser: argparse.ArgumentParser, options: tuple[Option, ...]) -> None:
    """Add a flag for each option, and ``--config FILE.toml`` that sets them too; flags win over the file."""
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="settings by name; flags win over it")
    for option in options:
        flag = "--" + option.name.replace("_", "-")
        text = option.help if option.default in (None, "") else f"{option.help} (default: {option.default})"
        if option.kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
            continue
        # an empty choice is the same as not given
        metavar = "{" + ",".join(filter(None, option.choices)) + "}" if option.choices else option.kind.__name__.upper()
        parser.add_argument(
            flag,
            type=option.kind,
            choices=option.choices or None,
            metavar=metavar,
            default=None,
            help=text,
        )


def resolve_options(args: argparse.Namespace, options: tuple[Option, ...]) -> dict[str, Any]:
    """The value of each option: its flag, else the file's, else the default.

    Raises:
        ConfigError: the file has an unknown key or a value of the wrong type.
    """
    known = {option.name: option for option in options}
    values: dict[str, Any] = {option.name: option.default for option in options}
    if args.config is not None:
        for key, value in read_toml(args.config).items():
            if key not in known:
                raise ConfigError(f"{args.config}: unknown setting '{key}'; expected one of: {', '.join(known)}")
            expected = known[key].kind
            if expected is float and type(value) is int:
                value = float(value)
            if type(value) is not expected or (known[key].choices and value not in known[key].choices):
                # an empty choice is the same as not given
                wanted = " or ".join(filter(None, known[key].choices)) or expected.__name__
                raise ConfigError(f"{args.config}: {key} is {value!r}; expected {wanted}")
            values[key] = value
    for name in known:
        given = getattr(args, name)
        if given is not None:
            values[name] = given
    return values
