"""A record of the tests that a run skipped, so that a later run does those alone.

``pytest --skips=FILE`` writes the record: the tests that ran, and the reason of each that did not.
``pytest --skipped-in=FILE`` runs only what such a record names. As a program it prints the tests
that every recorded run skipped, with their reasons, and fails if there are more than five:

    python tests/skips.py FILE...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

AT_MOST = 5


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("skips", "record of skipped tests")
    group.addoption("--skips", type=Path, help="write which tests ran, and which did not and why")
    group.addoption("--skipped-in", type=Path, help="run only the tests that this record has not")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--skips"):
        config.pluginmanager.register(Recorder(config.getoption("--skips").absolute()))
    if config.getoption("--skipped-in"):
        skipped = json.loads(config.getoption("--skipped-in").read_text())["skipped"]
        config.pluginmanager.register(Selection(set(skipped)))


def name_of(nodeid: str) -> str:
    """The test's name below the directory of the tests, from wherever pytest was started."""
    return nodeid.removeprefix("tests/")


class Recorder:
    """Writes the record at the end of the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ran: set[str] = set()
        self._skipped: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:  # a whole file
            self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        name = name_of(report.nodeid)
        if report.skipped:
            # an expected failure has no reason here: it did run
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else None
            if why is not None:
                self._skipped[name] = why.removeprefix("Skipped: ")
        elif getattr(report, "when", None) == "call":
            self._ran.add(name)

    def pytest_sessionfinish(self) -> None:
        record = {"ran": sorted(self._ran), "skipped": dict(sorted(self._skipped.items()))}
        self._path.write_text(json.dumps(record, indent=1) + "\n")


class Selection:
    """Collects the tests with these names; the name of a file stands for all of its tests."""

    def __init__(self, names: set[str]) -> None:
        self._names = names
        self._files = {name.partition("::")[0] for name in names}

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        # None leaves the decision to others.
        if collection_path.is_dir() or collection_path.name in self._files:
            return None
        return True

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        wanted = []
        for item in items:
            name = name_of(item.nodeid)
            if name in self._names or name.partition("::")[0] in self._names:
                wanted.append(item)
        config.hook.pytest_deselected(items=[item for item in items if item not in set(wanted)])
        items[:] = wanted


def never_ran(records: list[dict[str, Any]]) -> dict[str, str]:
    """The tests that were skipped in each record that has them, and the reasons in the last."""
    skipped: dict[str, str] = {}
    ran: set[str] = set()
    for record in records:
        skipped |= record["skipped"]
        ran.update(record["ran"])
    ran |= {name.partition("::")[0] for name in ran}
    return {name: why for name, why in skipped.items() if name not in ran}


def main(files: list[str]) -> int:
    """Print the tests that never ran; 1 if there are too many."""
    left = never_ran([json.loads(Path(file).read_text()) for file in files])
    for name, why in left.items():
        print(f"skipped in every stage: tests/{name}: {why}")
    count = "1 test was" if len(left) == 1 else f"{len(left)} tests were"
    print(f"{count} skipped in every stage; at most {AT_MOST} may be")
    return int(len(left) > AT_MOST)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
