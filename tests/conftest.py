"""What the tests share: where the real data is, and a generator per test."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import fastrnn

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real captions and features; skips the test where it is absent."""
    place = Path(os.environ.get("FASTRNN_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not (place / "flickr8k").is_dir():
        pytest.skip(f"no real data at {place} (set FASTRNN_SHARED_DATA to its folder)")
    return place


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed, private to the test."""
    return np.random.default_rng(231)


@pytest.fixture(autouse=True)
def threads_afterwards():
    """The number of threads is after each test what it was before."""
    before = fastrnn.get_num_threads()
    yield
    fastrnn.set_num_threads(before)
