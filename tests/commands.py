"""The command line as the tests call it."""

from __future__ import annotations

import pytest

from fastrnn import cli


def run(*arguments: object) -> int:
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as exit:
        return exit.code or 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail; return its one-line error."""
    capsys.readouterr()
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("fastrnn: error: ")
    assert said.err.count("\n") == 1
    assert said.err.endswith("\n")
    return said.err
