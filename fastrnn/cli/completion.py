"""``fastrnn completion``: the script by which a shell completes commands, options and files."""

from __future__ import annotations

import argparse
from typing import Any

from ..extras import install_command
from .options import Choice

SHELLS = ("bash", "zsh", "fish")
FILES = ("ANNOTATIONS", "FILE", "IMAGE", "RUN")
"""What arguments that are files are called in the help; RUN is a directory or a file in it."""
DIRECTORIES = ("DIR",)
INSTALL = """\
to install it, for new shells:
  bash  fastrnn completion bash > ~/.local/share/bash-completion/completions/fastrnn
  zsh   fastrnn completion zsh > ~/.zfunc/_fastrnn     (a directory of $fpath)
  fish  fastrnn completion fish > ~/.config/fish/completions/fastrnn.fish
Repeat this after an update. Without the package bash-completion, ~/.bashrc has to source the file.

example: source <(fastrnn completion bash)
"""

BASH = """
# bash splits --option=value into three words. Without the second, it is --option value.
_fastrnn_with_values() {
  local -a words=()
  local k at=0
  for k in "${!COMP_WORDS[@]}"; do
    if [[ ${COMP_WORDS[k]} != "=" || $k = 0 || ${COMP_WORDS[k-1]} != --* ]]; then
      words+=("${COMP_WORDS[k]}")
    elif (( k == COMP_CWORD )); then
      words+=("") # the value, of which nothing is typed yet
    fi
    (( k == COMP_CWORD )) && at=$(( ${#words[@]} - 1 ))
  done
  COMP_WORDS=("${words[@]}")
  COMP_CWORD=$at
  _shtab_fastrnn "$@"
}
complete -o bashdefault -F _fastrnn_with_values fastrnn"""


def add_parser(commands: Any) -> Any:
    """Add the command; return its parser."""
    parser = commands.add_parser(
        "completion",
        help="print a script for completion in bash, zsh or fish",
        description="Print a script with which a shell completes commands, options, their values, "
        "files and directories. The script runs without Python.",
        epilog=INSTALL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", action=Choice, words=SHELLS, help="the shell")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    try:
        import shtab
    except ModuleNotFoundError:
        raise ImportError(
            f"fastrnn completion needs the package shtab: {install_command('completion')}"
        ) from None

    from .main import make_parser  # which imports this module

    parser = make_parser()
    _describe(parser, shtab)
    print(shtab.complete(parser, shell=arguments.shell))
    if arguments.shell == "bash":
        print(BASH)
    return 0


def _describe(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Say of each argument what its values are, as shtab expects it."""
    for action in parser._actions:
        name = action.metavar.partition(".")[0] if isinstance(action.metavar, str) else ""
        if isinstance(action, Choice):
            action.choices = action.words
        elif name in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif name in DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _describe(command, shtab)
