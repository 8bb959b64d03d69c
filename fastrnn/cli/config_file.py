"""``--config FILE.toml``: options of a command from a file."""

from __future__ import annotations

import argparse
import errno
import sys
from pathlib import Path
from typing import Any, NoReturn

from ..checks import ArgumentError
from ..files import one_line, read_text
from ..messages import did_you_mean
from ..training.config import checked
from .options import FIELDS, Choice, Number, describe_error, flag_of


class ConfigFile:
    """The options that a file holds.

    A key is the name of an option, with ``_`` or ``-`` between its words, or the name of the field
    that the option sets. Values have the types of the options; paths are relative to the working
    directory, as on the command line.

    Parameters
    ----------
    path : str
        The file.
    parser : argparse.ArgumentParser
        The parser of the command.

    Attributes
    ----------
    path : str
    values : dict
        The values by the names of the arguments.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is not TOML, or a key or its value is none of the command's; the message names both.
    """

    def __init__(self, path: str, parser: argparse.ArgumentParser) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self._keys: dict[str, str] = {}  # of each argument
        # Imported here because most commands read no file of options.
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib

        if not Path(path).exists():
            raise FileNotFoundError(errno.ENOENT, "no such file of options", path)
        text = read_text(path)
        try:
            found = tomllib.loads(text)
        except RecursionError:
            raise ValueError(f"{path}: is not TOML (nested too deeply)") from None
        except ValueError as error:
            raise ValueError(f"{path}: is not TOML ({one_line(error)})") from None
        options = _options_of(parser)
        for key, value in found.items():
            self._read(key, value, options)

    def name_of(self, argument: str) -> str:
        """Return what to call an argument in a message: its key in the file, or its option."""
        key = self._keys.get(argument)
        return flag_of(argument) if key is None else f"{self.path}: {key}"

    def apply(self, arguments: argparse.Namespace) -> None:
        """Set the arguments that the command line does not set."""
        for name, value in self.values.items():
            if getattr(arguments, name) is None:
                setattr(arguments, name, value)
            else:
                del self._keys[name]  # messages are about the option

    def _read(self, key: str, value: Any, options: dict[str, tuple[argparse.Action, bool]]) -> None:
        if isinstance(value, dict):
            self._refuse(key, "is a table; expected options at the top level, without tables")
        name = key.replace("-", "_")
        if name not in options:
            meant = did_you_mean(name, options).replace("_", "-" if "-" in key else "_")
            self._refuse(key, f"is no option for a file{meant}")
        action, negated = options[name]
        if action.dest in self._keys:
            self._refuse(key, f"sets the same option as {self._keys[action.dest]}")
        try:
            value = _value_of(action, value)
        except ValueError as error:
            self._refuse(key, str(error))
        self._keys[action.dest] = key
        self.values[action.dest] = not value if negated else value

    def _refuse(self, key: str, problem: str) -> NoReturn:
        shown = key if key.replace("-", "_").isidentifier() else repr(key)
        raise ValueError(f"{self.path}: {shown} {problem}")


class ReadConfig(argparse.Action):
    """The option ``--config``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Read the file, or exit with an error."""
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice; expected one file")
        try:
            setattr(namespace, self.dest, ConfigFile(values, parser))
        except (OSError, ValueError) as error:
            parser.error(describe_error(error))


def _options_of(parser: argparse.ArgumentParser) -> dict[str, tuple[argparse.Action, bool]]:
    """Return the options that a file may hold by name, and whether the name negates them."""
    found: dict[str, tuple[argparse.Action, bool]] = {}
    for action in parser._actions:
        if not action.option_strings or action.dest in ("help", "config", "traceback"):
            continue
        if action.dest in FIELDS:
            found[action.dest] = action, False
        for option in action.option_strings:
            name = option.lstrip("-").replace("-", "_")
            switch = isinstance(action, argparse.BooleanOptionalAction)
            found[name] = action, switch and option.startswith("--no-")
    return found


def _value_of(action: argparse.Action, value: Any) -> Any:
    """Check the type and the range of a value; raise ValueError with what is wrong with it."""
    if action.dest in FIELDS:
        try:
            value = checked(FIELDS[action.dest], value)
        except ArgumentError as error:
            raise ValueError(error.problem) from None
        except (TypeError, OverflowError) as error:
            raise ValueError(str(error).removeprefix(f"{action.dest} ")) from None
    if isinstance(action, Number):
        return action.number_of(value)
    kind, expected = (bool, "true or false") if action.nargs == 0 else (str, "a string")
    if not isinstance(value, kind) or value == "":
        raise ValueError(f"is {value!r:.60}; expected {expected}")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"is {value!r:.60}; expected text without null characters")
    if isinstance(action, Choice) and isinstance(value, str):
        return action.word_of(value)
    return value
