"""Results do not change: recorded_run.py against its recorded output, bit by bit."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recorded_run import RECORDED

TESTS = Path(__file__).resolve().parent


def close(found: Any, wanted: Any, where: str = "") -> None:
    """The same but for rounding: where bits are not comparable, numbers are."""
    assert type(found) is type(wanted) or None not in (found, wanted), where
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted.keys() - {"bits", "arithmetic", "ops"}:
            close(found[key], wanted[key], f"{where}/{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for k, (a, b) in enumerate(zip(found, wanted, strict=True)):
            close(a, b, f"{where}/{k}")
    elif isinstance(wanted, float):
        assert math.isclose(found, wanted, rel_tol=1e-3, abs_tol=1e-3), (where, found, wanted)
    else:
        assert found == wanted, where


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_results_are_what_they_were(isa):
    wanted = json.loads((RECORDED / f"{isa}.json").read_text())
    done = subprocess.run(
        [sys.executable, str(TESTS / "recorded_run.py")],
        env={**os.environ, "FASTRNN_MAX_ISA": isa},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if found["isa"] != isa:
        pytest.skip(f"no {isa} on this machine")
    if all(found[what] == wanted[what] for what in ("compiler", "arithmetic")):
        for name, bits in wanted["ops"].items():
            assert found["ops"][name] == bits, name
        assert found == wanted
    else:  # another compiler, processor or BLAS rounds differently
        close(found["training"], wanted["training"])
