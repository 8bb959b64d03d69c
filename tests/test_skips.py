"""The record of skipped tests: a later run does those alone, and what never ran is listed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import skips

INNER = {
    "conftest.py": 'pytest_plugins = ["skips"]\n',
    "test_one.py": """
import os
import pytest

def test_that_runs():
    pass

@pytest.mark.parametrize("kind", ["a b", "c::d", "é"])
def test_of_a_kind(kind):
    if "EXTRA" not in os.environ:
        pytest.skip(f"no {kind} here")

@pytest.mark.skip(reason="never")
def test_never():
    pass

@pytest.mark.xfail(reason="known", strict=True)
def test_known():
    raise ValueError
""",
    "test_whole.py": """
import os
import pytest

if "EXTRA" not in os.environ:
    pytest.skip("a file that needs the extra", allow_module_level=True)

class TestAll:
    def test_first(self):
        pass

    def test_second(self):
        pass
""",
    "test_other.py": "raise SystemExit('not collected again')\n",
}


@pytest.fixture
def pytest_in(tmp_path: Path):
    """Run pytest on these files; they are below tests/, as those of the project."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n")
    for name, text in INNER.items():
        (tmp_path / "tests" / name).write_text(text, encoding="utf-8")

    def run(*options: str, extra: bool, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
            cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
            env=os.environ | {"PYTHONPATH": str(Path(skips.__file__).parent)}
            | ({"EXTRA": "1"} if extra else {}),
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    return run


def test_a_second_run_does_what_the_first_skipped(pytest_in, tmp_path, capsys):
    first = pytest_in("tests/test_one.py", "tests/test_whole.py", "--skips=1.json", extra=False)
    assert "1 passed, 5 skipped, 1 xfailed" in first
    record = json.loads((tmp_path / "1.json").read_text())
    assert record["ran"] == ["test_one.py::test_that_runs"]
    assert record["skipped"]["test_whole.py"] == "a file that needs the extra"
    assert record["skipped"]["test_one.py::test_never"] == "never"
    assert len(record["skipped"]) == 5

    second = pytest_in("--skipped-in=1.json", "--skips=2.json", extra=True)
    assert "5 passed, 1 skipped" in second and "2 deselected" in second

    assert skips.main([str(tmp_path / "1.json"), str(tmp_path / "2.json")]) == 0
    assert capsys.readouterr().out == (
        "skipped in every stage: tests/test_one.py::test_never: never\n"
        "1 test was skipped in every stage; at most 5 may be\n"
    )


def test_too_many_that_never_ran(tmp_path, capsys):
    skipped = {f"test_a.py::test_{k}": "no disk" for k in range(6)}
    for name, ran in (("1", []), ("2", ["test_a.py::test_0"])):
        (tmp_path / name).write_text(json.dumps({"ran": ran, "skipped": skipped}))
    assert skips.main([str(tmp_path / "1")]) == 1
    assert "6 tests were skipped in every stage" in capsys.readouterr().out
    assert skips.main([str(tmp_path / "1"), str(tmp_path / "2")]) == 0


def test_a_file_is_run_where_one_of_its_tests_is():
    skipped = {"test_a.py": "no a", "test_b.py": "no b"}
    records = [
        {"ran": [], "skipped": skipped},
        {"ran": ["test_a.py::test_x"], "skipped": {"test_a.py::test_y": "no y"}},
    ]
    assert skips.never_ran(records) == {"test_b.py": "no b", "test_a.py::test_y": "no y"}


def test_without_a_record_nothing_is_written(pytest_in, tmp_path):
    pytest_in("tests/test_one.py", extra=True)
    assert not list(tmp_path.glob("**/*.json"))
