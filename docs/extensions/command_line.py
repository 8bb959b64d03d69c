"""The options of the command line, read from its parsers: the directive ``.. commands::``.

Each command becomes a section, each group of options a part of it, and each option an entry that
``:option:`fastrnn train --data``` links to.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from fastrnn.cli.main import make_parser

CODE = re.compile(
    r"`(?P<quoted>[^`]+)`|(?P<option>(?<![\w-])--[a-z][a-z0-9-]*)|"
    r"(?P<code><[\w-]+>[\w./-]*|[\w*./-]*\w\.(?:csv|h5|html|json|npy|npz|onnx|png|txt)\b|"
    r"(?<!\w)\w+/(?!\w)|fastrnn(?:\.\w+)+|(?:FASTRNN|OMP)_\w+)"
)
"""What is code in the help of the options."""


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def in_every_command(action: argparse.Action) -> bool:
    """Return whether an option is one of those that every command has."""
    return action.dest in ("help", "traceback")


def signature(action: argparse.Action) -> str:
    """Return an option as ``--help`` shows it: ``--beam N``, or a positional argument."""
    if isinstance(action.choices, (list, tuple)):
        name = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        name = action.metavar or action.dest.upper()
    value = "" if action.nargs == 0 else f"{name} ..." if action.nargs in ("+", "*") else name
    return ", ".join(f"{flag} {value}".strip() for flag in action.option_strings) or value


def description(action: argparse.Action, program: str, known: set[str]) -> str:
    """Return the help of an option, with its default and whether it must be given."""
    text = (action.help or "") % {**vars(action), "prog": program}
    if action.option_strings and action.required:
        text += " (required)"
    elif (
        action.nargs != 0
        and action.default not in (None, [], argparse.SUPPRESS)
        and "default" not in text
    ):
        text += f" (default: {action.default})"
    return markup(text, program, known)


def markup(text: str, program: str, known: set[str]) -> str:
    """Return text as reStructuredText, with code as code and options of the command as links."""
    parts, end = [], 0
    text = " ".join(text.split())
    for found in CODE.finditer(text):
        parts.append(escape(text[end : found.start()]))
        word = found["quoted"] or found["option"] or found["code"]
        end = found.end()
        if found["option"] in known:
            parts.append(f"\\ :option:`{word} <{program} {word}>`\\ ")
        else:
            parts.append(f"\\ ``{word}``\\ ")
    return "".join([*parts, escape(text[end:])])


def escape(text: str) -> str:
    """Escape what reStructuredText would take for markup."""
    return re.sub(r"([\\*`|_\[\]])", r"\\\1", text)


def options_of(actions: list[argparse.Action], program: str, known: set[str]) -> Iterator[str]:
    """Give the lines of options."""
    for action in actions:
        yield f".. option:: {signature(action)}"
        yield ""
        yield f"   {description(action, program, known)}"
        yield ""


def lines_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Give the lines of the whole command line."""
    yield from [f".. program:: {parser.prog}", ""]
    first = [action for action in parser._actions if action.option_strings]
    yield from options_of(first, parser.prog, {flag for a in first for flag in a.option_strings})
    for name, command in commands(parser).items():
        program = f"{parser.prog} {name}"
        known = {flag for a in command._actions for flag in a.option_strings}
        yield from [f".. _command-{name}:", "", program, "-" * len(program), ""]
        yield from [f".. program:: {program}", ""]
        yield from [markup(command.description or "", program, known), ""]
        example = (command.epilog or "").removeprefix("example: ")
        if example:
            yield from [".. code-block:: console", "", f"   $ {example}", ""]
        for group in command._action_groups:
            shown = [a for a in group._group_actions if not in_every_command(a)]
            if shown and group.title not in ("positional arguments", "options"):
                yield from [f".. rubric:: {group.title[0].upper()}{group.title[1:]}", ""]
                yield from [markup(group.description or "", program, known), ""]
            yield from options_of(shown, program, known)


class Commands(SphinxDirective):
    """``.. commands::``: every command and option of ``fastrnn``."""

    def run(self) -> list[nodes.Node]:
        """Return the sections of the commands."""
        parser = make_parser()
        for name, module in sys.modules.items():
            if name.startswith(("fastrnn.cli", "fastrnn.training")) and module.__file__:
                self.env.note_dependency(module.__file__)
        return self.parse_content_to_nodes_of(list(lines_of(parser)))

    def parse_content_to_nodes_of(self, lines: list[str]) -> list[nodes.Node]:
        """Parse generated lines."""
        content = StringList(lines, source="fastrnn --help")
        node = nodes.section()
        node.document = self.state.document
        self.state.nested_parse(content, 0, node, match_titles=True)
        return node.children


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the extension."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
