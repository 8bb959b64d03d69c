"""The process that opens h5 files: what it sends is whole, and what happens to it is told."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from fastrnn.data import h5


def read(path: Path) -> dict[str, np.ndarray]:
    with h5.H5Reader() as reader:
        return reader.read(str(path))


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch):
    """No process and no open file of it."""
    started = []

    def start(*arguments, spawn=os.posix_spawn, **named):
        started.append(spawn(*arguments, **named))
        return started[-1]

    monkeypatch.setattr(os, "posix_spawn", start)
    open_files = Path("/proc/self/fd")
    before = {*open_files.glob("*")}
    yield started
    for process in started:
        with pytest.raises(ChildProcessError):
            os.waitpid(process, os.WNOHANG)
    assert {*open_files.glob("*")} == before


# -- damaged files


def with_endless_heap() -> bytes:
    """A virtual data set whose global heap has free space of no length: HDF5 looks for its end."""
    memory = io.BytesIO()
    layout = h5py.VirtualLayout((3,), "f4")
    layout[...] = h5py.VirtualSource("other.h5", "features", (3,))
    with h5py.File(memory, "w", libver="latest") as file:
        file.create_virtual_dataset("features", layout)
    content = bytearray(memory.getvalue())
    at = content.index(b"GCOL") + 16
    while content[at : at + 2] != b"\0\0":  # to the object with number 0, the free space
        at += 16 + -(-int.from_bytes(content[at + 8 : at + 16], "little") // 8) * 8
    assert any(content[at + 8 : at + 16])
    content[at + 8 : at + 16] = bytes(8)
    return bytes(content)


def test_a_file_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(h5, "SECONDS", 1)
    path = tmp_path / "a.h5"
    path.write_bytes(with_endless_heap())
    since = time.process_time()
    with pytest.raises(
        OSError, match=rf"^{path} cannot be read, damaged: HDF5 does not come to an"
    ):
        read(path)
    assert time.process_time() - since < 1


def with_endless_group() -> bytes:
    """A group of the old format with the same long names 32,768 times: HDF5 collects them."""
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver="earliest") as file:
        for letter in "abcd":
            file[letter * 400] = [1]
    content = bytearray(memory.getvalue())
    root = content.index(b"TREE")  # a node with 2 x 16 children and the keys around them
    first, child, last = struct.unpack_from("<QQQ", content, root + 24)
    for level in range(3):
        keys = struct.pack("<Q", first) + struct.pack("<QQ", child, last) * 32
        node = struct.pack("<4sBBHqq", b"TREE", 0, level, 32, -1, -1) + keys
        child = len(content)
        content += node
    content[root : root + len(node)] = node
    struct.pack_into("<Q", content, 40, len(content))
    return bytes(content)


def test_a_file_without_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(h5, "SECONDS", 3)
    monkeypatch.setattr(h5, "MEMORY", 1 << 24)
    path = tmp_path / "a.h5"
    path.write_bytes(with_endless_group())
    assert path.stat().st_size < 10_000
    with pytest.raises(OSError, match=rf"^{path} cannot be read, damaged or not an HDF5 file \("):
        read(path)


def test_it_can_be_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(h5, "SECONDS", 10)
    path = tmp_path / "a.h5"
    path.write_bytes(with_endless_heap())
    main = threading.main_thread().ident
    timer = threading.Timer(1, signal.pthread_kill, [main, signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        read(path)
    timer.join()


# -- what is sent


@pytest.mark.parametrize(
    "options",
    [
        {}, {"chunks": (700, 100)}, {"chunks": (9000, 400)},
        {"chunks": (999, 77), "compression": "gzip", "compression_opts": 1},
        {"chunks": True, "fletcher32": True, "shuffle": True},
    ],
)  # fmt: skip
def test_an_array_of_many_blocks_is_whole(tmp_path, options):
    path = tmp_path / "a.h5"
    values = (np.arange(8123 * 300, dtype=">f4") % 30011).reshape(8123, 300)
    with h5py.File(path, "w") as file:
        maxshape = (None, None) if options else None
        file.create_dataset("features", data=values, maxshape=maxshape, **options)
    found = read(path)["features"]
    np.testing.assert_array_equal(found, values)
    assert found.dtype == np.dtype("=f4")
    assert found.flags.owndata
    assert found.flags.writeable


def test_arrays_of_all_kinds(tmp_path):
    path = tmp_path / "a.h5"
    arrays = {
        "a": np.float32(3), "b": np.zeros((0, 5), np.int64), "c": np.array([True, False]),
        "d": np.array([1 + 2j]), "e": np.array([b"ab", b"c"]), "f": np.float16([[1, np.nan]]),
        "g": np.longdouble([1 / 3]), "h": np.ones((2, 3, 4), ">u8"), "é\n": np.uint8([255]),
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file.create_group("group")["inside"] = 1
        file.create_dataset("unwritten", (3,), "f4", fillvalue=7)
    found = read(path)
    assert sorted(found) == sorted([*arrays, "unwritten"])
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.asarray(array).dtype.newbyteorder("=")
        assert found[name].shape == np.shape(array)
    np.testing.assert_array_equal(found["unwritten"], [7, 7, 7])


def test_names_that_are_no_text(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["name"] = np.arange(3)
    path.write_bytes(path.read_bytes().replace(b"name", b"n\xffme"))
    with pytest.raises(
        ValueError, match=rf"^{path}: dataset 'n\ufffdme' has a name that is not in"
    ):
        read(path)


def test_one_process_reads_many_files(tmp_path, monkeypatch, nothing_stays):
    monkeypatch.chdir(tmp_path)
    names = ["a.h5", "b c.h5", os.fsdecode(b"\xff.h5")]
    with h5.H5Reader() as reader:
        for k, name in enumerate(names):
            h5.write_h5(name, {"x": np.full(3, k)})
            assert reader.read(name)["x"].tolist() == [k] * 3
            (tmp_path / "no.h5").write_bytes(b"no")
            with pytest.raises(
                OSError, match=r"^no\.h5 cannot be read, damaged or not an HDF5 file \("
            ):
                reader.read("no.h5")
    assert len(nothing_stays) == 1
    h5.write_h5("empty.h5", {"x": h5py.Empty("f4")})
    with pytest.raises(ValueError, match=r"^empty\.h5: dataset 'x' has no shape; expected an"):
        read(Path("empty.h5"))


def test_it_reads_for_who_has_no_standard_streams(tmp_path):
    h5.write_h5(tmp_path / "a.h5", {"x": np.arange(3)})
    code = (
        "import os, signal\nfrom fastrnn.data.h5 import H5Reader\n"
        "os.closerange(0, 3)\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "with H5Reader() as h5:\n    os._exit(int(h5.read('a.h5')['x'].sum()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert result.returncode == 3


# -- what happens to the process


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("os.abort()", "ended by signal 6"),
        ("os.kill(os.getpid(), 11)", "ended by signal 11"),
        ("os._exit(3)", "ended with status 3"),
        ("send(b'a', ARRAY); send(b'v', b'1234'); os._exit(0)", "ended with status 0"),
        ("send(b'a', b'no'); time.sleep(100)", "ended by signal 9"),
        ("send(b'v', b'12'); time.sleep(100)", "ended by signal 9"),
        ("sys.stdout.buffer.raw.write(b'a' + b'\\xff' * 8); time.sleep(100)", "ended by signal 9"),
    ],
)  # fmt: skip
def test_a_process_that_ends_early(tmp_path, monkeypatch, does, told):
    (tmp_path / "h5_process.py").write_text(
        "import os, sys, struct, time\n"
        """ARRAY = b'{"dataset": "x", "dtype": "<f4", "shape": [3]}'\n"""
        "def send(kind, content):\n"
        "    out = sys.stdout.buffer.raw\n"
        "    out.write(struct.pack('<cQ', kind, len(content)) + content)\n"
        "def main():\n"
        "    send(b'a', b'{}')\n"
        "    sys.stdin.buffer.readline()\n"
        f"    {does}\n"
    )
    monkeypatch.setattr(h5, "_places", lambda: [str(tmp_path)])
    with pytest.raises(OSError, match=rf"^{tmp_path}/a cannot be read, damaged or .*{told}\)$"):
        read(tmp_path / "a")


@pytest.mark.parametrize("program", ["/bin/true", "/nowhere/python", "", None])
def test_no_process(tmp_path, monkeypatch, program):
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(
        OSError, match=rf"^{tmp_path}/a cannot be read, for want of a process of its"
    ):
        read(tmp_path / "a")


def test_memory_is_in_proportion(tmp_path):
    """The process holds a small part of an array at a time."""
    h5.write_h5(tmp_path / "a.h5", {"x": np.ones((1 << 14, 1 << 10), np.float32)})
    code = (
        "import resource\nfrom fastrnn.data.h5 import H5Reader\n"
        "with H5Reader() as h5:\n    h5.read('a.h5')\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=True
    )
    assert int(result.stdout) < 100  # with 64 in the file
