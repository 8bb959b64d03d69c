"""The elementary functions, and all of the core with every available instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from equivalence import (
    FUNCTIONS,
    WIDER,
    check_function,
    check_special_values,
    sweep,
    ulps_off,
    wide_enough,
)

from fastrnn._core import layers, runtime

HERE = Path(__file__).resolve().parent
ISAS = ["baseline", "avx2", "avx512", "avx512_bf16"]  # in increasing order
EVERY_FUNCTION = pytest.mark.parametrize("name", FUNCTIONS)
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@EVERY_FUNCTION
@DTYPES
def test_at_most_four_ulp(name, dtype):
    if not wide_enough(dtype):
        pytest.skip("long double is no wider than double here")
    check_function(name, dtype)


@EVERY_FUNCTION
@DTYPES
def test_special_values(name, dtype):
    check_special_values(name, dtype)


@DTYPES
def test_sweep_sees_every_exponent_and_both_signs(dtype):
    x = sweep(dtype)
    x = x[np.isfinite(x) & (x != 0)]
    info = np.finfo(dtype)
    for signed in (x[x > 0], -x[x < 0]):
        _, exponents = np.frexp(signed[signed >= info.smallest_normal])
        assert set(exponents) == set(range(info.minexp + 1, info.maxexp + 1))
    assert (np.abs(x) < info.smallest_normal).any()


@DTYPES
def test_error_is_counted_in_ulp(dtype, monkeypatch):
    """ulps_off() reports a known error."""
    if not wide_enough(dtype):
        pytest.skip("long double is no wider than double here")
    x = np.linspace(0.1, 3, 100).astype(dtype)
    right = np.exp(x.astype(WIDER[dtype])).astype(dtype)
    monkeypatch.setattr(layers, "exp", lambda x: right + 6 * np.spacing(right))
    assert 5 <= ulps_off("exp", x).min() <= ulps_off("exp", x).max() <= 7
    monkeypatch.setattr(layers, "exp", lambda x: np.full_like(x, np.inf))
    assert (ulps_off("exp", x) > 1e6).all()
    monkeypatch.setattr(layers, "exp", lambda x: np.full_like(x, np.nan))
    assert np.isnan(ulps_off("exp", x)).all()


@EVERY_FUNCTION
@DTYPES
@pytest.mark.parametrize("count", [1, 3, 17, 64, 50_001])
def test_place_does_not_change_a_bit(name, dtype, count, rng):
    """Alone, in a full or partial vector, and computed by another thread."""
    x = np.abs(rng.standard_normal(count)).astype(dtype)
    function = getattr(layers, name)
    together = function(x)
    for k in {0, count // 2, count - 1}:
        assert function(x[k : k + 1])[0] == together[k]


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    """FASTRNN_MAX_ISA caps the instruction set, and results agree with the reference."""
    if ISAS.index(isa) > ISAS.index(runtime.isa()):
        pytest.skip(f"this processor or build has no {isa}")
    done = subprocess.run(
        [sys.executable, HERE / "equivalence.py"],
        env=os.environ
        | {
            "FASTRNN_MAX_ISA": isa,
            "PYTHONPATH": os.pathsep.join([str(Path(runtime.__file__).parents[2]), *sys.path]),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa]
