"""The fuzzer of files: it reads valid files, and detects faults that are added on purpose."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import fuzz_files
import h5py
import numpy as np
import pytest
from file_mutation import mutate_bytes, with_checksums

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it asks /proc for its memory")


@pytest.mark.parametrize("name", fuzz_files.READERS)
def test_every_reader_holds_for_a_moment(name, tmp_path):
    tried, read = fuzz_files.work_on(name, 0.3, 1, tmp_path)
    assert tried >= read
    assert tried > 0
    assert not [path.read_text() for path in tmp_path.glob("*.txt")]


def unnamed(reader: fuzz_files.Reader) -> None:
    raise ValueError("something is wrong")


def long_winded(reader: fuzz_files.Reader) -> None:
    raise ValueError(f"{reader.path}: first this\nthen that")


def another_exception(reader: fuzz_files.Reader) -> None:
    raise KeyError(str(reader.path))


def starving(reader: fuzz_files.Reader) -> None:
    try:
        np.ones(1 << 40)
    except MemoryError:
        raise ValueError(f"{reader.path}: damaged") from None


def greedy(reader: fuzz_files.Reader) -> None:
    np.ones(100 << 20, np.uint8)


def slow(reader: fuzz_files.Reader) -> None:
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass


def hanging(reader: fuzz_files.Reader) -> None:
    time.sleep(1000)


def crashing(reader: fuzz_files.Reader) -> None:
    os.abort()


def writing(reader: fuzz_files.Reader) -> None:
    with contextlib.suppress(OSError):
        Path("/proc/nothing").write_text("a")


def starting(reader: fuzz_files.Reader) -> None:
    subprocess.run(["true"], check=False)


@pytest.mark.parametrize(
    ("act", "seen"),
    [
        (unnamed, "does not name the file"), (long_winded, "not one line"),
        (another_exception, "KeyError"), (starving, "runs out of memory"),
        (greedy, "too much memory"), (slow, "too long"), (hanging, "crash"), (crashing, "crash"),
        (writing, "writes to"), (starting, "subprocess.Popen"),
    ],
)  # fmt: skip
def test_a_fault_is_seen(act, seen, tmp_path, monkeypatch):
    class Faulty(fuzz_files.Reader):
        def prepare(self) -> None:
            self.strange = [b"a"]
            self.mutate = mutate_bytes

        def read(self) -> None:
            act(self)

    monkeypatch.setitem(fuzz_files.READERS, "faulty", Faulty)
    monkeypatch.setattr(fuzz_files, "SECONDS", 0.1)
    monkeypatch.setattr(fuzz_files, "MEMORY", 50 << 20)
    monkeypatch.setattr(fuzz_files, "PATIENCE", 3)
    fuzz_files.work_on("faulty", 0.3, 1, tmp_path)
    (report,) = tmp_path.glob("faulty-*.txt")
    assert seen in report.read_text().splitlines()[0]
    assert report.with_suffix("").is_file()


def test_a_fault_of_hdf5_is_held_against_the_reader_of_users(tmp_path):
    """What is read or refused as users read it is no fault; what names no file is."""
    for name, about in (("features-a", "timeout"), ("features-b", "timeout"),
                        ("features-c", "TypeError")):  # fmt: skip
        (tmp_path / name).write_bytes(b"no h5 file")
        (tmp_path / f"{name}.txt").write_text(about)
    (tmp_path / "features-b").unlink()
    fuzz_files.work_on("features", 0.3, 1, tmp_path)
    assert [path.name for path in tmp_path.glob("*.held")] == ["features-a.held"]
    left = sorted(path.name for path in tmp_path.glob("*.txt"))
    assert left == ["features-b.txt", "features-c.txt"]


def test_the_checksums_of_hdf5_are_made_right(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("features", data=np.arange(12.0), chunks=(5,), compression="gzip")
    right = path.read_bytes()
    start = right.index(b"OHDR")
    wrong = right[: start + 20] + b"\x55" + right[start + 21 :]
    assert with_checksums(right) == right
    assert with_checksums(wrong) not in (wrong, right)
