"""Build revisions of this repository and install each in a directory of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORKING_TREE = "working tree"
TAIL = 15  # lines of a failed command's output to show


class BuildError(Exception):
    """A revision does not exist, or cannot be built."""


@dataclass(frozen=True)
class Revision:
    """A commit of the repository, and what it is called on the command line."""

    name: str
    commit: str
    tree: str


def run(*command: str | Path, **variables: str) -> str:
    """Run a command in the repository and return its output; BuildError with its last lines."""
    try:
        found = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise BuildError(f"{command[0]} is not installed") from None
    if found.returncode:
        said = (found.stdout + found.stderr).strip().splitlines()[-TAIL:]
        told = " ".join(str(part) for part in command[:4])
        raise BuildError("\n".join([f"{told} ended with {found.returncode}:", *said]))
    return found.stdout.strip()


def find(name: str) -> Revision:
    """Return the revision that git knows by a name."""
    try:
        commit = run(
            "git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"
        )
    except BuildError:
        run("git", "rev-parse", "--git-dir")  # says so if this is no repository
        raise BuildError(f"REV is {name!r}; expected a revision that git knows") from None
    return Revision(name, commit, run("git", "rev-parse", f"{commit}^{{tree}}"))


def dates(revision: Revision) -> list[str]:
    """Return when a revision was committed and when it was written, in ISO 8601."""
    return run("git", "show", "-s", "--format=%cI%n%aI", revision.commit).splitlines()


def working_tree() -> Revision:
    """Record the working tree, with what is not committed, as a commit that no branch has.

    New files count, ignored ones do not. Neither the files nor git's index are changed.
    """
    head = run("git", "rev-parse", "HEAD")
    who = {
        f"GIT_{role}_{field}": value
        for role in ("AUTHOR", "COMMITTER")
        for field, value in (("NAME", "bench.compare"), ("EMAIL", "bench.compare@localhost"))
    }
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        run("git", "read-tree", "HEAD", **index)
        run("git", "add", "--all", **index)
        tree = run("git", "write-tree", **index)
    if tree == run("git", "rev-parse", "HEAD^{tree}"):
        return Revision(WORKING_TREE, head, tree)
    commit = run("git", "commit-tree", tree, "-p", head, "-m", WORKING_TREE, **who)
    return Revision(WORKING_TREE, commit, tree)


@contextmanager
def checkout(revision: Revision, folder: Path) -> Iterator[None]:
    """Check a revision out to a new directory, for the time of the context."""
    run("git", "worktree", "add", "--detach", "--force", folder, revision.commit)
    try:
        yield
    finally:
        run("git", "worktree", "remove", "--force", "--force", folder)


def build(revision: Revision, folder: Path) -> Path:
    """Build the wheel of a revision in a directory and return its path.

    If Cython is not installed here, pip fetches what the build needs.
    """
    here = all(importlib.util.find_spec(name) for name in ("Cython", "setuptools"))
    isolation = ["--no-build-isolation"] if here else []
    source, wheels = folder / "source", folder / "wheels"
    pip = (sys.executable, "-m", "pip")
    with checkout(revision, source):
        # no variable may lead the build to another checkout's package
        run(*pip, "wheel", "--no-deps", *isolation, "--wheel-dir", wheels, source, PYTHONPATH="")
    [wheel] = wheels.glob("*.whl")
    return wheel


def install(wheel: Path, place: Path) -> None:
    """Install a wheel without its dependencies, which are those of this environment."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-index", "--target", place, wheel, PYTHONPATH="")
    program = (
        f"import sys; sys.path.insert(0, {str(place)!r}); import fastrnn; print(fastrnn.__file__)"
    )
    found = run(sys.executable, "-c", program)
    if not Path(found).is_relative_to(place):
        raise BuildError(f"fastrnn is imported from {found}; expected from {place}")


def install_both(before: Revision, after: Revision, folder: Path) -> tuple[Path, Path]:
    """Install two revisions; return their directories, whose paths have the same length.

    Two revisions with the same files are built once. The lengths are the same because the size of
    a process's variables moves its stack, and with that its speed.
    """
    places = folder / "0", folder / "1"
    wheels: dict[str, Path] = {}
    for revision, place in zip((before, after), places, strict=True):
        if revision.tree not in wheels:
            print(f"building {revision.name}", file=sys.stderr, flush=True)
            part = folder / f"build{len(wheels)}"
            part.mkdir()
            wheels[revision.tree] = build(revision, part)
        install(wheels[revision.tree], place)
    return places
