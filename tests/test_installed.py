"""What a wheel brings: what is needed at run time, OpenMP included, and nothing else.

They run where fastrnn was installed from a repaired wheel, as ``.ci/wheels`` does.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastrnn

LIBRARIES = Path(fastrnn.__file__).parent.with_name("fastrnn.libs")
pytestmark = pytest.mark.skipif(
    not LIBRARIES.is_dir() and "FASTRNN_WHEEL" not in os.environ,
    reason="not installed from a repaired wheel",
)
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
OPENMP = re.compile(r"/(libgomp|libomp|libiomp5|vcomp140)[-.\w]*$")


def openmp_after(code: str) -> list[str]:
    """The files of OpenMP runtimes in a process that has run such a program."""
    code += "\nprint(open('/proc/self/maps').read())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    paths = {"/" + line.partition("/")[2] for line in done.stdout.splitlines()}
    return sorted(path for path in paths if OPENMP.search(path))


def test_no_sources_of_the_core_are_installed():
    installed = [str(path) for path in importlib.metadata.files("fastrnn") or []]
    assert "fastrnn/py.typed" in installed and "fastrnn/report/page.js" in installed
    assert not [path for path in installed if re.search(r"\.(c|h|pyx|pxd)$|/tests?/", path)]


@pytest.mark.parametrize("threads", ["2", "two"])
def test_the_command(threads):
    """The script that pip makes: it says in one line why the package cannot be imported."""
    [entry] = importlib.metadata.entry_points(group="console_scripts", name="fastrnn")
    program = f"import sys; from {entry.module} import {entry.attr} as main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "info"],
        env={**os.environ, "FASTRNN_NUM_THREADS": threads}, capture_output=True, text=True,
    )  # fmt: skip
    if threads == "2":
        assert (done.returncode, done.stderr) == (0, "")
    else:
        expected = "FASTRNN_NUM_THREADS is 'two'; expected a number of threads, 1 to 1024"
        assert (done.returncode, done.stderr) == (2, f"fastrnn: error: {expected}\n")


@LINUX
def test_openmp_comes_with_the_wheel():
    [found] = openmp_after("import fastrnn.rnn_layers")
    assert Path(found).parent == LIBRARIES


@LINUX
@pytest.mark.parametrize("first", ["fastrnn.rnn_layers", "sklearn.cluster"])
def test_two_openmp_runtimes_in_one_process(first):
    """fastrnn and scikit-learn keep their own; test_core_threads.py tests what they compute."""
    pytest.importorskip("sklearn")
    found = openmp_after(f"import {first}, fastrnn.rnn_layers, sklearn.cluster")
    assert len(found) == 2 and str(LIBRARIES) in {str(Path(path).parent) for path in found}
