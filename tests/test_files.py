"""Atomic writes, also with a full disk or a read-only directory, and damaged npz files."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastrnn import files
from fastrnn.files import (
    checksum,
    read_json,
    read_npz,
    read_sealed,
    remove_unfinished,
    write_aside,
    write_json,
    write_npz,
    write_sealed,
    write_text,
)

ARRAYS = {
    "weights": np.arange(12, dtype=np.float32).reshape(3, 4),
    "ids": np.array([3, 1], dtype=np.int64),
    "words": np.array(["été", "dog"]),
    "name": np.array("lstm"),
    "empty": np.zeros((0, 5)),
    "inner/name": np.array([True]),
}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(file):
        file.write(b"half of the n")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space") as caught:
        write_aside(path, write)
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(file):
        file.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_aside(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_flushed_before_the_rename(tmp_path, monkeypatch):
    path = tmp_path / "file"
    flushed = []

    def fsync(handle: int) -> None:
        flushed.append((os.path.samestat(os.fstat(handle), tmp_path.stat()), path.exists(),
                        os.fstat(handle).st_size))  # fmt: skip

    monkeypatch.setattr(files.os, "fsync", fsync)
    write_text(path, "all of it")
    content, directory = flushed
    assert content == (False, False, 9)
    assert directory[:2] == (True, True)


@pytest.mark.parametrize("write", [write_text, write_json])
def test_permissions_are_those_of_any_new_file(tmp_path, write):
    (tmp_path / "plain").write_text("")
    write(tmp_path / "mine", "é")
    assert (tmp_path / "mine").stat().st_mode == (tmp_path / "plain").stat().st_mode
    text = (tmp_path / "mine").read_text("utf-8")
    assert (text if write is write_text else json.loads(text)) == "é"


def test_an_npz_file_is_one_of_numpy(tmp_path):
    arrays = {"x": np.arange(6.0).reshape(2, 3).T, "y": np.array(["é"]), "z": np.float32(2)}
    write_npz(tmp_path / "ours.npz", arrays)
    np.savez(tmp_path / "theirs.npz", **arrays)
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "theirs.npz").read_bytes()


def test_a_full_disk_is_named(tmp_path):
    """A real error of the system, in a separate process with a file size limit of 20 kB."""
    path = tmp_path / "a.npz"
    write_npz(path, {"x": np.zeros(1000)})
    before = path.read_bytes()
    program = f"""
import numpy as np, resource, signal
from fastrnn.files import write_npz
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    write_npz({str(path)!r}, {{"x": np.ones(100000), "y": np.ones(3)}})
except OSError as error:
    print(error.errno, error.filename)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split() == [str(errno.EFBIG), str(path)]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_no_space_left(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    write_sealed(path, ARRAYS)
    before = path.read_bytes()

    def into_a_full_disk(handle: int, mode: str):
        os.close(handle)
        return Path("/dev/full").open(mode)

    monkeypatch.setattr(files.os, "fdopen", into_a_full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        write_sealed(path, {**ARRAYS, "weights": np.ones(100000)})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_text(tmp_path / "nowhere" / "a.txt", "a")
    assert caught.value.filename == str(tmp_path / "nowhere" / "a.txt")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_directory_in_which_this_user_may_not_write(tmp_path, monkeypatch):
    tmp_path.chmod(0o555)
    monkeypatch.chdir(tmp_path)  # another user may be unable to reach it by its path
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # for root every directory can be written
    try:
        with pytest.raises(PermissionError) as caught:
            write_text("a.txt", "a")
    finally:
        if root:
            os.seteuid(0)
    assert caught.value.filename == "a.txt"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_leaves_is_removed(tmp_path):
    program = f"""
import os, signal
from fastrnn.files import write_aside
write_aside({str(tmp_path / "a")!r}, lambda file: os.kill(os.getpid(), signal.SIGKILL))
"""
    done = subprocess.run([sys.executable, "-c", program])
    assert done.returncode == -signal.SIGKILL
    (tmp_path / ".mine").write_text("")
    assert len(list(tmp_path.iterdir())) == 2
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mine"]


def test_invalid_json(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"{", b"", b'"\xff"'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{path}: not a JSON file \("):
            read_json(path)
    write_json(path, {"é": [1, None]})
    assert read_json(path) == {"é": [1, None]}
    with pytest.raises(FileNotFoundError) as caught:
        read_json(tmp_path / "b.json")
    assert caught.value.filename == str(tmp_path / "b.json")


def test_no_objects_in_npz(tmp_path):
    with pytest.raises(TypeError, match="'words' holds Python objects"):
        write_npz(tmp_path / "a.npz", {"words": np.array(["a", None], dtype=object)})


def test_round_trip(tmp_path):
    write_sealed(tmp_path / "a.npz", ARRAYS)
    again = read_sealed(tmp_path / "a.npz")
    assert again.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)


def test_checksum_knows_names_dtypes_shapes_and_bytes():
    x = np.arange(6, dtype=np.int32)
    sums = {
        checksum({"x": x}),
        checksum({"y": x}),
        checksum({"x": x.reshape(2, 3)}),
        checksum({"x": x.reshape(3, 2)}),
        checksum({"x": x.view(np.float32)}),
        checksum({"x": x[::-1]}),
        checksum({"x": x, "y": x}),
        checksum({}),
    }
    assert len(sums) == 8
    assert checksum({"x": x, "y": x}) == checksum({"y": x.copy(), "x": np.repeat(x, 2)[::2]})


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.7, 0.99])
def test_cut_short(tmp_path, keep):
    path = tmp_path / "a.npz"
    write_sealed(path, ARRAYS)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if keep > 1 else int(len(whole) * keep)])
    with pytest.raises(ValueError, match=r"a\.npz: damaged"):
        read_sealed(path)


def test_any_flipped_byte_is_found_or_changes_nothing(tmp_path, rng):
    path = tmp_path / "a.npz"
    write_sealed(path, ARRAYS)
    whole = path.read_bytes()
    found = 0
    for place in rng.choice(len(whole), 300, replace=False):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            again = read_sealed(path)
        except ValueError as error:
            assert str(path) in str(error)
            found += 1
        else:
            assert again.keys() == ARRAYS.keys()
            for name, array in ARRAYS.items():
                np.testing.assert_array_equal(again[name], array)
    assert found > 100


def test_content_that_was_changed_without_the_checksum(tmp_path):
    path = tmp_path / "a.npz"
    write_sealed(path, ARRAYS)
    arrays = read_npz(path)
    np.savez(path, **{**arrays, "ids": np.array([3, 2])})
    with pytest.raises(ValueError, match="checksum does not match"):
        read_sealed(path)
    np.savez(path, ids=np.array([3, 2]))
    with pytest.raises(ValueError, match="has no checksum"):
        read_sealed(path)
    np.save(path.with_suffix(".npy"), np.ones(3))
    with pytest.raises(ValueError, match="not an npz file"):
        read_sealed(path.with_suffix(".npy"))
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "b.npz")
