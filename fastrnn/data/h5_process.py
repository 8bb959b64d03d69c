"""The process that opens h5 files. `fastrnn.data.h5` starts it and talks to it through pipes.

A request is a line of JSON: a path in hexadecimal digits, what to read of the file, and the seconds
of processor time and the bytes of memory that any file may take. The answer is a number of frames:
for each dataset of the root group one that says what it is and some with its values, and at last
one that says that this was all, or what is wrong.

This module imports nothing of fastrnn, so that the process starts quickly.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

FRAME = struct.Struct("<cQ")
"""What a frame begins with: its kind and the number of bytes that follow."""
ABOUT, VALUES = b"a", b"v"

Allow = Callable[[int, float], None]
"""Takes bytes of memory and bytes to work on, which may be used in addition."""

_BLOCK = 1 << 22
"""Bytes of an array that are read at a time, unless a chunk has more."""
_MAX_EXPANSION = 1100
"""Largest ratio of an array's size to its size in the file; deflate reaches 1032."""
_MAX_UNBACKED = 1 << 24
"""Bytes that an array may always use in memory, even if it is small in the file."""
_MAX_CHUNKS = 1 << 15
"""Number of chunks that an array may always have, even in a small file."""
_BYTES_PER_SECOND = 1e7
"""Of a file or its arrays; a slow processor inflates five times as many."""


def serve(requests: BinaryIO, answers: BinaryIO, limits: Callable[[float, int], Allow]) -> None:
    """Answer requests until there are no more."""

    def send(kind: bytes, content: Any) -> None:
        content = memoryview(content).cast("B")
        answers.write(FRAME.pack(kind, len(content)))
        answers.write(content)

    for line in requests:
        place, name, values, mapped, *least = json.loads(line)
        path = os.fsdecode(bytes.fromhex(place))
        for found in read(path, limits(*least), name, values, mapped):
            if isinstance(found, dict):
                send(ABOUT, json.dumps(found).encode())
            else:
                send(VALUES, found)
        answers.flush()


def read(
    path: str,
    allow: Allow,
    only: str | None = None,
    values: bool = True,
    mapped: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Any] | np.ndarray]:
    """Yield what each dataset in the root group is, and its values; at last how it ended.

    Values come in blocks of bytes, each of whole rows. With a name in `only`, this is done for one
    dataset. Without `values`, datasets are not read. `mapped` has the dtypes of datasets that are
    not read either if the file has just these bytes in one piece: then their offset is given.
    """
    # h5py reports a truncated file on opening or, where only data are missing, on reading. Damaged
    # metadata raise RuntimeError, KeyError and others.
    text = None
    try:
        file_size = Path(path).stat().st_size
        remaining = _MAX_UNBACKED + _MAX_EXPANSION * file_size
        allow(2 * file_size, file_size)
        with h5py.File(path, "r") as file:
            for name in file:
                if only not in (None, name):
                    continue
                if isinstance(name, bytes):
                    text = name.decode("utf-8", "replace")
                    raise ValueError("has a name that is not in UTF-8")
                text = name
                # A link could make h5py read any other file.
                if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                    raise ValueError("is a link; expected data in this file")
                node = file[name]
                if isinstance(node, h5py.Dataset) and not values:
                    if node.shape is not None:
                        yield {"dataset": name, "dtype": node.dtype.str, "shape": node.shape}
                elif isinstance(node, h5py.Dataset):
                    size = _check_dataset(node, file_size, remaining, allow)
                    remaining -= size
                    dtype = node.dtype.newbyteorder("=")
                    about = {"dataset": text, "dtype": dtype.str, "shape": node.shape}
                    offset = node.id.get_offset()  # None in chunks
                    if size and (mapped or {}).get(name) == node.dtype.str and offset is not None:
                        if offset + size > file_size:
                            raise ValueError(f"ends beyond the {file_size} bytes of the file")
                        yield {**about, "offset": offset}
                        continue
                    yield about
                    allow(0, size)
                    yield from _blocks(node, dtype, size, allow)
    except ValueError as error:
        yield {"dataset": text, "error": "value", "message": str(error)}
    except Exception as error:
        yield {"dataset": text, "error": "file", "message": str(error)}
    else:
        yield {"error": None}


def _blocks(node: h5py.Dataset, dtype: np.dtype, size: int, allow: Allow) -> Iterator[np.ndarray]:
    """Yield the values of a dataset as bytes, some rows at a time."""
    if size <= _BLOCK or node.ndim == 0:
        if size:
            yield _bytes(node[()], dtype)
        return
    row = size // len(node)
    rows = max(_BLOCK // row, 1)
    if node.chunks is not None:  # each chunk is inflated once
        rows = -(-rows // node.chunks[0]) * node.chunks[0]
    # A block as HDF5 has it and as native numbers.
    allow(2 * min(rows * row, size), 0)
    for start in range(0, len(node), rows):
        yield _bytes(node[start : start + rows], dtype)


def _bytes(values: Any, dtype: np.dtype) -> np.ndarray:
    return np.ascontiguousarray(values, dtype).reshape(-1).view(np.uint8)


def _check_dataset(node: h5py.Dataset, file_size: int, remaining: int, allow: Allow) -> int:
    """Return the size of a dataset's array, unless it is elsewhere or far larger than the file."""
    if node.dtype.kind not in "biufcS":
        raise ValueError(f"has dtype {node.dtype}; expected numbers")
    if node.shape is None:
        raise ValueError("has no shape; expected an array")
    if node.external or node.is_virtual:
        raise ValueError("is stored in other files; expected data in this file")
    # Unwritten chunks take no space in a file, and compressed chunks take little. So a small
    # file can contain an array that does not fit in memory.
    claimed = math.prod(node.shape) * node.dtype.itemsize
    in_file = node.id.get_storage_size()
    stored = min(in_file, file_size)
    if claimed > _MAX_UNBACKED + _MAX_EXPANSION * stored:
        raise ValueError(
            f"has shape {node.shape}, stored in {stored} bytes; expected at most "
            f"{_MAX_EXPANSION} times as many in memory"
        )
    if claimed > remaining:
        raise ValueError(
            f"has shape {node.shape}; expected less in a file of {file_size} bytes with the "
            "datasets before it"
        )
    item_size = node.id.get_type().get_size()  # not the dtype's for unusual floats
    if node.chunks is not None:
        _check_chunks(node, math.prod(node.chunks) * item_size, file_size, allow)
    elif in_file not in (0, math.prod(node.shape) * item_size):
        raise ValueError(f"has shape {node.shape}, stored in {in_file} bytes; expected all of it")
    return claimed


def _check_chunks(node: h5py.Dataset, chunk_size: int, file_size: int, allow: Allow) -> None:
    """Check the chunks of a dataset: HDF5 reads past the end of one that is too short."""
    plist = node.id.get_create_plist()
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    deflate, fletcher32 = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32
    # The output of other filters has no bound (deflate twice) or is not checked (scaleoffset).
    known = {deflate, fletcher32, h5py.h5z.FILTER_SHUFFLE}
    if not known.issuperset(filters) or filters.count(deflate) > 1:
        raise ValueError(f"has the filters {filters}; expected gzip, shuffle, fletcher32 or none")
    if chunk_size > _MAX_UNBACKED + _MAX_EXPANSION * file_size:
        raise ValueError(
            f"has chunks of {chunk_size} bytes in a file of {file_size} bytes; expected less"
        )
    # HDF5 takes time and memory for every chunk, written or not.
    count = math.prod(
        -(-long // short) for long, short in zip(node.shape, node.chunks, strict=True)
    )
    if count > _MAX_CHUNKS + file_size // 8:
        raise ValueError(f"has {count} chunks in a file of {file_size} bytes; expected fewer")
    chunks: list[Any] = []
    allow(1000 * count, 10_000 * count)
    node.id.chunk_iter(chunks.append)
    # As it is in the file, inflated, shuffled and as numbers; checked here, then read by HDF5.
    allow(4 * chunk_size, 2 * len(chunks) * chunk_size)
    for chunk in chunks:
        # HDF5 skips a filter for a chunk that it does not make smaller, and records that.
        used = [f for number, f in enumerate(filters) if not chunk.filter_mask >> number & 1]
        length = chunk.size
        if deflate in used and length <= file_size:
            content = node.id.read_direct_chunk(chunk.chunk_offset)[1]
            at = used.index(deflate)
            length = max(len(content) - 4 * used[at:].count(fletcher32), 0)
            length = _inflated_size(content[:length], chunk_size + 4 * len(filters))
            used = used[:at]
        if length - 4 * used.count(fletcher32) != chunk_size:
            raise ValueError(
                f"has a chunk of another size at {chunk.chunk_offset}; expected {chunk_size} bytes"
            )


def _inflated_size(content: bytes, limit: int) -> int:
    """Return the size of deflated data when inflated: `limit` + 1 if larger, 0 if damaged."""
    inflater = zlib.decompressobj()
    try:
        return len(inflater.decompress(content, limit + 1)) if content else 0
    except zlib.error:
        return 0


def limit_process(seconds: float, memory: int) -> Allow:
    """Limit the memory and the processor time of this process; return what allows it more.

    Whoever exceeds the memory gets no more of it; the system ends a process that exceeds the time.
    """
    import resource
    import time

    def limit(what: int, value: int) -> None:
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (value if hard < 0 else min(value, hard), hard))

    limit(resource.RLIMIT_CORE, 0)
    statm = Path("/proc/self/statm")  # without it, as on macOS, memory has no limit
    if counts := statm.exists():
        memory += int(statm.read_text().split()[0]) * resource.getpagesize()
    seconds += time.process_time()

    def allow(more_memory: int, work: float) -> None:
        nonlocal memory, seconds
        memory += more_memory
        seconds += work / _BYTES_PER_SECOND
        limit(resource.RLIMIT_CPU, math.ceil(min(seconds, 1e9)))
        if counts:
            limit(resource.RLIMIT_AS, min(memory, 1 << 62))

    return allow


def main() -> None:
    """Serve whoever started this process."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    try:
        answers.write(FRAME.pack(ABOUT, 2) + b"{}")
        answers.flush()
        serve(requests, answers, limit_process)
        code = 0
    except BrokenPipeError:  # nobody waits for the answer
        code = 1
    os._exit(code)
