"""The annotations, as a user's checker sees them: `py.typed`, ``mypy --strict`` and pyright."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from coco_layout import write_layout

import fastrnn

PACKAGE = Path(fastrnn.__file__).resolve().parent
SCRIPTS = Path(__file__).resolve().parent / "typed"
SECONDS = 300
LEAST_COMPLETE = 0.99


def checker(module: str, *options: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Run a checker in an empty directory, on fastrnn as this interpreter imports it."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    return subprocess.run(
        [sys.executable, "-m", module, *options],
        cwd=place, capture_output=True, text=True, timeout=SECONDS,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "MYPY_CACHE_DIR": str(place)},
    )  # fmt: skip


def faults_of_mypy(script: Path) -> dict[int, str]:
    """The lines of a script with what mypy has to say about them."""
    done = checker("mypy", "--strict", "--no-error-summary", script.name, place=script.parent)
    assert not done.stderr, done.stderr
    found = re.findall(r"^(\S+?):(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    assert (done.returncode == 1) == bool(found), done.stdout
    assert {path for path, _, _ in found} <= {script.name}, done.stdout
    return {int(line): what for _, line, what in found}


def faults_of_pyright(script: Path) -> dict[int, str]:
    """The same of pyright, in its strict form."""
    (script.parent / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    done = checker("pyright", "--outputjson", script.name, place=script.parent)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    return {
        fault["range"]["start"]["line"] + 1: fault["message"]
        for fault in report["generalDiagnostics"]
        if fault["severity"] == "error"
    }


@pytest.fixture
def script_of(tmp_path: Path):
    """A script of a user, in a directory of its own."""

    def copy(name: str) -> Path:
        return Path(shutil.copy(SCRIPTS / name, tmp_path))

    return copy


@pytest.mark.parametrize("faults_of", [faults_of_mypy, faults_of_pyright])
def test_a_users_script_has_no_type_errors(faults_of, script_of):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch, which the script uses, is not installed")
    assert faults_of(script_of("user.py")) == {}


@pytest.mark.parametrize("faults_of", [faults_of_mypy, faults_of_pyright])
def test_mistakes_are_reported(faults_of, script_of):
    script = script_of("mistaken.py")
    lines = enumerate(script.read_text().splitlines(), 1)
    wrong = {number: line for number, line in lines if "  # " in line}
    assert len(wrong) > 12
    found = faults_of(script)
    assert not {line for number, line in wrong.items() if number not in found}
    # pyright's strict form also reports what follows from an error
    assert faults_of is faults_of_pyright or found.keys() <= wrong.keys()


def test_the_users_script_runs(script_of, tmp_path):
    write_layout(tmp_path / "data")
    done = subprocess.run(
        [sys.executable, script_of("user.py"), "data", "run"],
        cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(fastrnn.__version__)


def test_the_public_interface_is_annotated(tmp_path):
    """pyright knows the types of nearly all public names."""
    done = checker(
        "pyright", "--verifytypes", "fastrnn", "--ignoreexternal", "--outputjson", place=tmp_path
    )
    found = json.loads(done.stdout)["typeCompleteness"]
    assert Path(found["pyTypedPath"]).parent == PACKAGE
    unknown = [
        f"{symbol['name']}: {why['message']}"
        for symbol in found["symbols"]
        if symbol["isExported"] and not symbol["isTypeKnown"]
        for why in symbol["diagnostics"]
    ]
    assert found["completenessScore"] >= LEAST_COMPLETE, "\n".join(unknown)
