"""Optional dependencies: how to install those of an extra from where this package is."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from importlib.metadata import Distribution

__all__ = ["install_command"]

_NAME = "fastrnn"
_PACKAGE = Path(__file__).resolve().parent


def install_command(extra: str) -> str:
    """Return a shell command that installs the packages of an extra.

    A package index knows fastrnn only if this package came from one. From a source tree, a
    directory, an archive or a repository, that place is named instead. If it is gone, the packages
    themselves are named.

    Parameters
    ----------
    extra : str
        An extra of ``pyproject.toml``, such as "torch".

    Returns
    -------
    str
        Such as ``pip install "fastrnn[torch]"`` or ``pip install -e "/home/ada/fastrnn[torch]"``.
    """
    if _is_source_tree(_PACKAGE.parent):
        # Installed with -e, or not at all: an installation would leave the tree unused.
        return f"pip install -e {_quoted(f'{_seen_from_here(_PACKAGE.parent)}[{extra}]')}"
    found = _distribution()
    origin = None if found is None else _origin(found)
    if origin is None:
        return f"pip install {_quoted(f'{_NAME}[{extra}]')}"
    place = _place(origin, extra)
    if place is None and found is not None:
        place = " ".join(map(_quoted, _packages(found, extra)))
    return f"pip install {place or _quoted(f'{_NAME}[{extra}]')}"


def _is_source_tree(directory: Path) -> bool:
    try:
        text = (directory / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return re.search(rf'^name\s*=\s*"{_NAME}"\s*$', text, re.MULTILINE) is not None


def _distribution() -> Distribution | None:
    """Return the installation that this package belongs to; another one may be on the path."""
    from importlib.metadata import distributions  # loading it takes 15 ms

    for found in distributions(name=_NAME):
        if Path(str(found.locate_file(_NAME))).resolve() == _PACKAGE:
            return found
    return None


def _origin(found: Distribution) -> dict[str, Any] | None:
    """Return where a distribution came from, by PEP 610; None if from a package index."""
    try:
        origin = json.loads(found.read_text("direct_url.json") or "null")
    except ValueError:
        return None
    return origin if isinstance(origin, dict) and isinstance(origin.get("url"), str) else None


def _place(origin: dict[str, Any], extra: str) -> str | None:
    """Return what pip is to install, quoted; None if it is a file or directory that is gone."""
    from urllib.request import url2pathname

    url = origin["url"]
    parts = urlsplit(url)
    vcs = origin.get("vcs_info")
    if parts.scheme == "file" and not vcs:
        path = Path(url2pathname(parts.path))
        if not (path.is_file() if "archive_info" in origin else _is_source_tree(path)):
            return None
        return _quoted(f"{_seen_from_here(path)}[{extra}]")
    if isinstance(vcs, dict):
        url = f"{vcs.get('vcs', 'git')}+{url}"
        revision = vcs.get("requested_revision") or vcs.get("commit_id")
        url += f"@{revision}" if revision else ""
    if "subdirectory" in origin:
        url += f"#subdirectory={origin['subdirectory']}"
    return _quoted(f"{_NAME}[{extra}] @ {url}")


def _packages(found: Distribution, extra: str) -> list[str]:
    """Return the requirements of an extra."""
    wanted = re.compile(rf"""\bextra\s*==\s*['"]{re.escape(extra)}['"]""")
    split = [requirement.partition(";") for requirement in found.requires or ()]
    return [package.strip() for package, _, marker in split if wanted.search(marker)]


def _seen_from_here(path: Path) -> str:
    try:
        return "." if path == Path.cwd() else str(path)
    except OSError:  # the working directory was removed
        return str(path)


def _quoted(text: str) -> str:
    """Quote an argument for a shell; brackets and blanks mean something to some of them."""
    if os.name != "nt" and set(text) & set('"$`\\!'):
        return shlex.quote(text)
    return f'"{text}"'
