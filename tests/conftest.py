"""Fixtures that all tests share: real data, a random generator, and the number of threads."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

import fastrnn
import fastrnn.data.h5

pytest_plugins = ["skips"]

ROOT = Path(__file__).resolve().parent.parent

# A shell starts background jobs with SIGINT ignored, and child processes inherit that. Tests that
# send it to themselves or to a child need the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory with real captions and features. The test is skipped if it does not exist."""
    place = Path(os.environ.get("FASTRNN_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not (place / "flickr8k").is_dir():
        pytest.skip(f"no real data at {place} (set FASTRNN_SHARED_DATA to its directory)")
    return place


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A small data set in the course's layout."""
    from coco_layout import write_layout

    write_layout(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs land in the test's own directory, also those without --out."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rng() -> np.random.Generator:
    """A new random generator with a fixed seed for each test."""
    return np.random.default_rng(231)


@pytest.fixture(autouse=True)
def threads_afterwards():
    """Restore the number of threads after each test."""
    before = fastrnn.get_num_threads()
    yield
    fastrnn.set_num_threads(before)


@pytest.fixture(autouse=True)
def h5_files_are_read_here(request, monkeypatch):
    """Most tests read h5 files in their own process; another one takes 0.1 s to start."""
    if request.path.stem not in ("test_data_h5", "test_data_layout", "test_damaged_files"):
        monkeypatch.setattr(fastrnn.data.h5, "HAS_PROCESSES", False)
