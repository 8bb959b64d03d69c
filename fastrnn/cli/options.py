"""Command-line options: generated from fields of the configuration, with checked values."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import fastrnn

from ..checks import ArgumentError
from ..decoding import beam_search
from ..messages import did_you_mean
from ..training.config import ModelConfig, TrainConfig, option_of

FIELDS = {
    field.name: field
    for config in (ModelConfig, TrainConfig)
    for field in dataclasses.fields(config)
}
"""The fields of the configurations by name."""
_ARGUMENTS = ("count", "restart_schedule")
"""Other arguments that are options: of `set_num_threads` and `Trainer.resume`."""


_MISSING = "the following arguments are required: "
"""How argparse begins to say which arguments are missing."""


def _one_of(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def flag_of(name: str) -> str:
    """Return the option for an argument of a function or a field of a configuration."""
    if name == "count":  # of set_num_threads
        return "--threads"
    about = option_of(FIELDS[name]) if name in FIELDS else None
    return (about and about.flag) or "--" + name.replace("_", "-")


def describe_error(error: BaseException) -> str:
    """Return the message of an error in one line, with options instead of arguments."""
    if isinstance(error, ArgumentError) and error.name in (*FIELDS, *_ARGUMENTS):
        message = f"{flag_of(error.name)} {error.problem}"
    elif isinstance(error, OSError) and error.filename is not None:
        message = f"{error.strerror}: {error.filename}"
    elif isinstance(error, MemoryError):
        message = f"out of memory: {error}" if str(error) else "out of memory"
    else:
        message = str(error)
    return " ".join(message.split()) or type(error).__name__


class Parser(argparse.ArgumentParser):
    """A parser that takes options by their full names, and reports an error in one line."""

    def __init__(self, *args: Any, **about: Any) -> None:
        # An abbreviation would change its meaning when an option is added.
        super().__init__(*args, **{"allow_abbrev": False, **about})
        self._commands: Any = None

    def add_commands(self) -> Any:
        """Return what commands are added to; their name is stored as ``command``."""
        # A command is required, but an unknown option before it is the better thing to name.
        self._commands = self.add_subparsers(dest="command", metavar="COMMAND", required=False)
        return self._commands

    def add_traceback(self, default: Any = argparse.SUPPRESS) -> None:
        """Add ``--traceback``, which may stand before and after the command."""
        self.add_argument(
            "--traceback", action="store_true", default=default,
            help="show the Python traceback of an error",
        )  # fmt: skip

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse unknown arguments here, where the options of the command are known."""
        arguments, unknown = super().parse_known_args(args, namespace)
        if unknown:
            option = next((word for word in unknown if word.startswith("-")), "").partition("=")[0]
            meant = did_you_mean(option, self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        if self._commands is not None and arguments.command is None:
            self.error("expected a COMMAND")
        return arguments, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action is self._commands and value not in action.choices:
            meant = did_you_mean(value, action.choices)
            self.error(f"there is no command {value!r}{meant}")
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 after one line."""
        missing = message.removeprefix(_MISSING)
        if missing != message:  # the names of arguments, or the words of a `Choice`
            names = (_one_of(name.strip("{}").split(",")) for name in missing.split(", "))
            message = f"expected {' and '.join(names)}"
        self.exit(2, f"fastrnn: error: {message} (see {self.prog} --help)\n")


class Number(argparse.Action):
    """An option whose value is an integer or a float, and not too small."""

    def __init__(self, *args: Any, number: type, at_least: float = -math.inf, **about: Any) -> None:
        about.setdefault("metavar", "N" if number is int else "X")
        super().__init__(*args, **about)
        self._number, self._at_least = number, at_least

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the number, or exit with an error."""
        try:
            setattr(namespace, self.dest, self.number_of(values, text=True))
        except ValueError as error:
            parser.error(f"{option_string or self.dest} {error}")

    def number_of(self, value: Any, text: bool = False) -> int | float:
        """Return a number, or that in a text; raise ValueError with what is wrong with it."""
        most = 2.0**63 if self._number is int else math.inf
        kinds = str if text else int if self._number is int else (int, float)
        number = None
        if isinstance(value, kinds) and not isinstance(value, bool):
            with contextlib.suppress(ValueError, OverflowError):
                number = self._number(value)
        if number is None or not abs(number) < most or number < self._at_least:
            expected = "an integer" if self._number is int else "a finite number"
            if number is not None and most <= number < math.inf:
                expected += " below 2 to the power of 63"
            elif self._at_least > -math.inf:
                expected += f" of at least {self._at_least:g}"
            raise ValueError(f"is {value!r}; expected {expected}")
        return number


class Choice(argparse.Action):
    """An option whose value is one of some words."""

    def __init__(self, *args: Any, words: Sequence[str], **about: Any) -> None:
        about.setdefault("metavar", "{" + ",".join(words) + "}")
        super().__init__(*args, **about)
        self.words = words

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the word, or exit with an error."""
        try:
            setattr(namespace, self.dest, self.word_of(values))
        except ValueError as error:
            parser.error(f"{option_string or self.dest} {error}")

    def word_of(self, value: str) -> str:
        """Return one of the words; raise ValueError with what is wrong with any other."""
        if value not in self.words:
            raise ValueError(f"is {value!r}; expected {_one_of(self.words)}")
        return value


def add_integer(group: Any, flag: str, *, at_least: int = 1, **about: Any) -> None:
    """Add an option with an integer."""
    group.add_argument(flag, action=Number, number=int, at_least=at_least, **about)


def add_float(group: Any, flag: str, *, at_least: float = -math.inf, **about: Any) -> None:
    """Add an option with a float."""
    group.add_argument(flag, action=Number, number=float, at_least=at_least, **about)


def add_fields(
    group: Any,
    config: type,
    title: str,
    defaults: Callable[[str, Any], str],
    notes: Mapping[str, str],
) -> None:
    """Add an option for each field of a configuration that belongs to a group.

    The options have no defaults, so that a command can tell which of them were given.

    Parameters
    ----------
    group : argparse group
    config : type
        `TrainConfig` or `ModelConfig`.
    title : str
        The group of the fields.
    defaults : callable
        Called as ``defaults(name, default)``; returns the text about the default.
    notes : mapping
        Text to add to the help of some fields.
    """
    for field in dataclasses.fields(config):
        about = option_of(field)
        if about.group != title:
            continue
        text = f"{about.help}{notes.get(field.name, '')} {defaults(field.name, field.default)}"
        kind: dict[str, Any]
        if field.type == "bool":
            kind = {"action": argparse.BooleanOptionalAction}
        elif field.type == "str":
            kind = {"action": Choice, "words": about.choices}
        else:
            kind = {"action": Number, "number": int if field.type == "int" else float}
        group.add_argument(flag_of(field.name), dest=field.name, help=text, **kind)


def add_decoding(group: Any) -> None:
    """Add the options of beam search that are alike wherever images are captioned."""
    add_integer(group, "--beam", default=3, help="beam width; 1: greedy (default: %(default)s)")
    add_integer(
        group, "--max-length", default=30,
        help="largest number of words in a caption (default: %(default)s)",
    )  # fmt: skip
    add_float(
        group, "--length-penalty", at_least=0,
        default=_default(beam_search, "length_penalty"),
        help="exponent of the length in the score: larger values favour longer captions "
        "(default: %(default)s)",
    )  # fmt: skip
    add_integer(
        group, "--min-length", at_least=0, default=_default(beam_search, "min_length"),
        help="smallest number of words in a caption (default: %(default)s)",
    )  # fmt: skip
    add_integer(group, "--no-repeat-ngram", help="never repeat N words in a row (default: off)")
    add_allow_unk(group)


def add_allow_unk(group: Any) -> None:
    """Add ``--allow-unk``."""
    group.add_argument(
        "--allow-unk", action="store_true",
        help="also generate <UNK>, for words that are unknown (default: never)",
    )  # fmt: skip


def decoding_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_decoding` as `fastrnn.evaluation.decode_images` takes them."""
    chosen = {
        "beam": arguments.beam, "max_length": arguments.max_length,
        "min_length": arguments.min_length, "length_penalty": arguments.length_penalty,
        "suppress_unk": not arguments.allow_unk,
    }  # fmt: skip
    if arguments.no_repeat_ngram is not None:
        chosen["no_repeat_ngram"] = arguments.no_repeat_ngram
    return chosen


def _default(function: Callable[..., Any], name: str) -> Any:
    return inspect.signature(function).parameters[name].default


def add_threads(group: Any) -> None:
    """Add ``--threads``."""
    add_integer(
        group, "--threads",
        help="number of threads (default: FASTRNN_NUM_THREADS, OMP_NUM_THREADS or all processors)",
    )  # fmt: skip


def use_threads(arguments: argparse.Namespace) -> None:
    """Set the number of threads, if ``--threads`` was given."""
    if arguments.threads is not None:
        fastrnn.set_num_threads(arguments.threads)


def add_force(group: Any) -> None:
    """Add ``--force``."""
    group.add_argument(
        "--force", action="store_true", help="replace files that exist (default: refuse)"
    )


def check_file(
    option: str,
    file: str | None,
    *,
    suffix: str = "",
    force: bool = True,
    directory_is_made: bool = False,
) -> None:
    """Refuse a file that cannot or must not be written, before any work is done for it.

    Parameters
    ----------
    option : str
        The option that names the file.
    file : str or None
        None is never refused.
    suffix : str, optional
        What its name must end in, because it says what is in it.
    force : bool, optional
        Whether a file that exists is replaced.
    directory_is_made : bool, optional
        Whether the command makes the directory of the file.
    """
    if file is None:
        return
    path = Path(file)
    if file.endswith(os.sep) or path.is_dir():
        raise ValueError(f"{option} is {file}; expected a file, not a directory")
    if directory_is_made:
        above = next((place for place in path.parents if place.exists()), path.parent)
        if above.exists() and not above.is_dir():
            raise ValueError(f"{option} is {file}; expected a file, but {above} is no directory")
    elif not path.parent.is_dir():
        raise ValueError(f"{option} is {file}; expected a file in a directory that exists")
    if not file.lower().endswith(suffix):
        raise ValueError(f"{option} is {file}; expected a name that ends in {suffix}")
    if not force:
        refuse_to_replace(option, file)


def refuse_to_replace(option: str, place: str, file: str = "") -> None:
    """Refuse a file that exists: the one that an option names, or one in the directory there."""
    if Path(place, file).is_file():
        has = f"has {file}" if file else "exists"
        raise ValueError(
            f"{option} is {place}, which {has}; choose another, or replace it with --force"
        )


def shown(value: Any) -> str:
    """Return a setting as the command line shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
