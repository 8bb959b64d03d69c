"""The entry point: choose the command, run it, and print errors in one line."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import fastrnn

from ..training import Interrupted
from . import (
    caption,
    compare,
    completion,
    evaluate,
    explain,
    export,
    features,
    fetch,
    info,
    prepare,
    report,
    serve,
    train,
)
from .options import Parser, describe_error

COMMANDS = (
    fetch,
    prepare,
    features,
    train,
    evaluate,
    caption,
    explain,
    serve,
    export,
    report,
    compare,
    info,
    completion,
)
"""In the order of ``fastrnn --help``."""
USER_ERRORS = (OSError, ValueError, ImportError, FloatingPointError, MemoryError)
"""Errors that input, files or the machine can cause. Any other error is a bug."""
BAD_INPUT, BUG, BROKEN_PIPE = 2, 70, 141
"""Exit statuses; 70 is EX_SOFTWARE of sysexits.h, 141 that of a process killed by SIGPIPE."""


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(
        prog="fastrnn", description="Image captioning with an RNN or an LSTM, in NumPy and C."
    )
    parser.add_argument("--version", action="version", version=f"fastrnn {fastrnn.__version__}")
    parser.add_traceback(default=False)
    commands = parser.add_commands()
    for command in COMMANDS:
        command.add_parser(commands).add_traceback()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit status: 0 for success, 2 for bad input, 70 for a bug in fastrnn, 128 plus its
        number for a signal (130 for an interrupt, 143 for SIGTERM).

    Raises
    ------
    SystemExit
        For ``--help``, ``--version`` and arguments that cannot be parsed.
    """
    arguments = make_parser().parse_args(argv)
    threads = fastrnn.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return arguments.run(arguments)
    except Interrupted as stop:
        print(f"fastrnn: {stop}", file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt as stop:
        print(f"fastrnn: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The output has no reader any more. Without a new one, flushing it at exit would fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if arguments.traceback:
            traceback.print_exc()
        if isinstance(error, USER_ERRORS):
            print(f"fastrnn: error: {describe_error(error)}", file=sys.stderr)
            return BAD_INPUT
        where = "" if arguments.traceback else "; --traceback shows where"
        print(
            f"fastrnn: internal error: {type(error).__name__}: {describe_error(error)} "
            f"(this is a bug in fastrnn{where})",
            file=sys.stderr,
        )
        return BUG
    finally:
        fastrnn.set_num_threads(threads)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"fastrnn: warning: {' '.join(str(message).split())}", file=sys.stderr)
