"""The version is stated once, and what else names it agrees."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastrnn

ROOT = Path(fastrnn.__file__).resolve().parent.parent
VERSION = fastrnn.__version__


def text_of(name: str) -> str:
    if not (ROOT / name).is_file():
        pytest.skip("not in the source tree")
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_one_of_a_release_or_of_the_way_to_it():
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?(\.dev\d+)?", VERSION)


def test_the_metadata_have_it():
    try:
        known = importlib.metadata.version("fastrnn")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("imported from a source tree that is not installed")
    assert known == VERSION


def test_the_command_prints_it():
    done = subprocess.run(
        [sys.executable, "-m", "fastrnn", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"fastrnn {VERSION}\n"


def test_packages_take_it_from_the_module():
    settings = text_of("pyproject.toml")
    assert re.search(r'^dynamic = \["version"\]$', settings, re.MULTILINE)
    assert '\nversion = { attr = "fastrnn.__version__" }\n' in settings
    assert VERSION not in settings + text_of("setup.py")


def test_the_change_log_begins_with_it():
    headings = re.findall(r"^## \[(.+?)\] - (.+)$", text_of("CHANGELOG.md"), re.MULTILINE)
    versions = [version for version, _ in headings]
    assert versions[0] == VERSION
    assert len(set(versions)) == len(versions)
    for _, date in headings[1:]:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", date), "only the first may be unreleased"


def test_the_citation_has_it_and_the_date_of_the_change_log():
    citation = dict(re.findall(r"^([\w-]+): *(.+)$", text_of("CITATION.cff"), re.MULTILINE))
    assert citation["version"].strip('"') == VERSION
    [date] = re.findall(rf"^## \[{re.escape(VERSION)}\] - (.+)$", text_of("CHANGELOG.md"), re.M)
    assert citation.get("date-released", "unreleased").strip("\"'") == date
    assert citation["license"] in text_of("pyproject.toml")


def test_the_documentation_takes_it_from_the_module():
    assert re.search(r"^version = .*fastrnn\.__version__$", text_of("docs/conf.py"), re.MULTILINE)
