"""Completion of the command line, by real shells."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import refused, run

from fastrnn.cli import completion
from fastrnn.cli.main import make_parser
from fastrnn.cli.options import Choice

SECONDS = 30
ALL, SHOW = "\x1f", "\x07"
"""Keys of the test: insert all completions; print the line that was typed."""


@pytest.fixture(scope="module")
def script() -> Callable[[str], str]:
    """What ``fastrnn completion`` prints for a shell."""
    pytest.importorskip("shtab")

    def print_script(shell: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert run("completion", shell) == 0
        return printed.getvalue()

    return print_script


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with files and directories to complete."""
    (tmp_path / "here").mkdir()
    for name in ("data", "data sets", "runs"):
        (tmp_path / "here" / name).mkdir()
    for name in ("dog.jpg", "dawn.png"):
        (tmp_path / "here" / name).touch()
    return tmp_path / "here"


class Terminal:
    """A shell with a terminal, in which keys are pressed."""

    def __init__(self, command: list[str], setup: str, place: Path) -> None:
        pty = pytest.importorskip("pty")
        self._process, self._handle = pty.fork()
        if self._process == 0:
            os.chdir(place)
            os.environ.update(TERM="dumb", HOME=str(place.parent), HISTFILE="/dev/null")
            os.execvp(command[0], command)
        os.write(self._handle, f". {setup}\n".encode())
        self._wait(rb"\[ready\]")

    def _wait(self, pattern: bytes) -> re.Match[bytes]:
        import select

        seen = b""
        while not (found := re.search(pattern, seen, re.DOTALL)):
            ready, _, _ = select.select([self._handle], [], [], SECONDS)
            assert ready, f"no {pattern!r} in {seen!r}"
            seen += os.read(self._handle, 4096)
        return found

    def line(self, keys: str) -> str:
        """Type the keys and return the whole line that is there then; it is not run."""
        os.write(self._handle, (keys + SHOW).encode())
        found = self._wait(rb"\[\[(.*?)\]\]")
        os.write(self._handle, b"\x15")  # removes the line
        return found[1].decode().replace("\r", "").replace("\n", "")

    def all_of(self, keys: str) -> list[str]:
        """Type the keys and return what could stand next."""
        line = self.line(keys + ALL)
        start = keys[: keys.rindex(" ") + 1]
        assert line.startswith(start)
        return re.findall(r"(?:\\.|\S)+", line[len(start) :])

    def close(self) -> None:
        os.close(self._handle)
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)


BASH = """
bind 'set enable-bracketed-paste off'
bind 'set bell-style none'
bind '"\\C-_": insert-completions'
bind -x '"\\C-g": printf "[[%s]]" "$READLINE_LINE"'
bind '"\\C-u": kill-whole-line'
stty -ixon
printf '[%s]' ready
"""


@pytest.fixture
def bash(script: Callable[[str], str], place: Path):
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    setup = place.parent / "setup"
    setup.write_text(script("bash") + BASH)
    terminal = Terminal(["bash", "--norc", "--noprofile", "-i"], str(setup), place)
    yield terminal
    terminal.close()


def public_options(parser: argparse.ArgumentParser) -> set[str]:
    return {
        name
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for name in action.option_strings
    }


def commands() -> dict[str, argparse.ArgumentParser]:
    [found] = [a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found.choices)


def test_bash_completes_each_command_and_its_options(bash):
    known = commands()
    assert set(bash.all_of("fastrnn ")) == set(known)
    assert bash.line("fastrnn tr\t") == "fastrnn train "
    for name, parser in known.items():
        assert set(bash.all_of(f"fastrnn {name} -")) == public_options(parser), name
    assert bash.line("fastrnn train --hidden\t") == "fastrnn train --hidden-dim "


def test_bash_completes_the_values_of_options(bash):
    assert set(bash.all_of("fastrnn train --cell ")) == {"rnn", "lstm"}
    assert (
        bash.line("fastrnn train --epochs 3 --cell l\t") == "fastrnn train --epochs 3 --cell lstm "
    )
    assert set(bash.all_of("fastrnn completion ")) == {"bash", "zsh", "fish"}


def test_bash_completes_values_after_an_equals_sign(bash):
    assert bash.line("fastrnn train --cell=l\t") == "fastrnn train --cell=lstm "
    assert bash.line("fastrnn train --cell=" + ALL) == "fastrnn train --cell=lstm rnn "
    assert bash.line("fastrnn train --data=ru\t") == "fastrnn train --data=runs/"
    assert bash.line("fastrnn train --epochs=3 --hidden\t") == (
        "fastrnn train --epochs=3 --hidden-dim "
    )
    assert bash.line("fastrnn train --cell=rnn --data ru\t") == (
        "fastrnn train --cell=rnn --data runs/"
    )
    assert bash.line("fastrnn caption --beam=2 ru\t") == "fastrnn caption --beam=2 runs/"


def test_bash_completes_directories_and_files(bash):
    assert set(bash.all_of("fastrnn train --data ")) == {"data", "data\\ sets", "runs"}
    assert bash.line("fastrnn evaluate ru\t") == "fastrnn evaluate runs/"
    assert bash.line("fastrnn caption runs do\t") == "fastrnn caption runs dog.jpg "
    assert bash.line("fastrnn caption runs dog.jpg da\t\tw\t") == (
        "fastrnn caption runs dog.jpg dawn.png "
    )
    assert set(bash.all_of("fastrnn features d")) == {"data", "data\\ sets", "dawn.png", "dog.jpg"}


ZSH = """
fpath=({directory} $fpath)
autoload -Uz compinit
compinit -u -D
zstyle ':completion:*' insert-tab false
show() {{ print -rn -- "[[$BUFFER]]" }}
zle -N show
bindkey '^G' show
bindkey '^U' kill-whole-line
PS1=''
print -rn '[''ready]'
"""


@pytest.fixture
def zsh(script: Callable[[str], str], place: Path):
    if shutil.which("zsh") is None:
        pytest.skip("no zsh here")
    (place.parent / "_fastrnn").write_text(script("zsh"))
    setup = place.parent / "setup"
    setup.write_text(ZSH.format(directory=place.parent))
    terminal = Terminal(["zsh", "-f", "-i"], str(setup), place)
    yield terminal
    terminal.close()


def test_zsh_completes(zsh):
    assert zsh.line("fastrnn tr\t") == "fastrnn train "
    assert zsh.line("fastrnn train --cell l\t") == "fastrnn train --cell lstm "
    assert zsh.line("fastrnn train --hidden\t").startswith("fastrnn train --hidden-dim")
    assert zsh.line("fastrnn train --data ru\t") == "fastrnn train --data runs/"
    assert zsh.line("fastrnn caption runs do\t") == "fastrnn caption runs dog.jpg "


def test_fish_completes(script: Callable[[str], str], place: Path):
    if shutil.which("fish") is None:
        pytest.skip("no fish here")
    (place.parent / "fastrnn.fish").write_text(script("fish"))

    def all_of(line: str) -> set[str]:
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"source ../fastrnn.fish; complete -C '{line}'"],
            cwd=place, env=os.environ | {"HOME": str(place.parent)},
            capture_output=True, text=True, check=True, timeout=SECONDS,
        )  # fmt: skip
        return {found.partition("\t")[0] for found in done.stdout.splitlines()}

    known = commands()
    assert all_of("fastrnn ") >= set(known)
    for name, parser in known.items():
        long = {option for option in public_options(parser) if option.startswith("--")}
        assert all_of(f"fastrnn {name} --") == long, name
    assert all_of("fastrnn train --cell ") == {"rnn", "lstm"}
    assert all_of("fastrnn train --data ") == {"data/", "data sets/", "runs/"}
    assert {"dog.jpg", "dawn.png"} <= all_of("fastrnn caption runs d")


def test_every_argument_that_is_a_path_is_known_as_one():
    """A new metavar has to be a path's or to be named here."""
    others = {
        "ADDRESS", "HEX", "LEVELS", "MB", "N", "NAME", "N|WORD", "PERCENT", "R,G,B", "SECONDS",
        "TEXT", "URL", "WORD", "X",
    }  # fmt: skip
    found = {
        action.metavar.partition(".")[0]
        for parser in commands().values()
        for action in parser._actions
        if isinstance(action.metavar, str) and not isinstance(action, Choice)
    }
    assert found - others == {*completion.FILES, *completion.DIRECTORIES}
    assert others <= found


def test_a_shell_that_is_not_known(capsys):
    assert refused(capsys, "completion", "tcsh") == (
        "fastrnn: error: shell is 'tcsh'; expected bash, zsh or fish "
        "(see fastrnn completion --help)\n"
    )


def test_without_shtab(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "completion needs the package shtab: pip install" in refused(capsys, "completion", "zsh")


def test_other_commands_do_not_load_what_completion_needs():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fastrnn", "info"],
        capture_output=True, text=True, check=True, timeout=SECONDS,
    )  # fmt: skip
    assert "fastrnn.cli.completion" in done.stderr
    assert "shtab" not in done.stderr
