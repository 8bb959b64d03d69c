"""Mutations of valid files, in their bytes or in their meaning.

Each function takes the bytes of a file and a `random.Random`, and returns other bytes. A checksum
or a CRC does not shield what is behind it: an npz file is sealed again after its arrays were
changed, and its members get the CRC of what they now hold.
"""

from __future__ import annotations

import copy
import io
import json
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

from fastrnn.files import CHECKSUM, checksum, read_npz

Mutate = Callable[[bytes, Random], bytes]

# -- bytes

_INTEGERS = [
    *range(10), 16, 64, 100, 127, 128, 255, 256, 1024, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1,
    2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1,
]  # fmt: skip


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Overwrite, insert, remove, repeat or cut off bytes in one to four places."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(found) + 1)
        how = rng.randrange(7)
        if how == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif how == 1 and at < len(found):
            found[at] = rng.choice([0, 1, 2, 3, 4, 127, 128, 254, 255, rng.randrange(256)])
        elif how in (2, 3):
            size = rng.choice([1, 2, 4, 8])
            number = rng.choice([*_INTEGERS, len(found), at]) % (1 << 8 * size)
            found[at : at + size] = number.to_bytes(size, rng.choice(["little", "little", "big"]))
        elif how == 4:
            end = at + rng.choice([1, 2, 8, 64])
            found[at:end] = b"" if rng.random() < 0.5 else rng.randbytes(min(end - at, 16))
        elif how == 5:
            start = rng.randrange(len(found) + 1)
            part = found[start : start + rng.choice([1, 8, 32, 128])]
            found[at : at + len(part) * rng.randrange(2)] = part
        elif how == 6 and rng.random() < 0.3:
            del found[at:]
    return bytes(found)


# -- text

_TOKENS = [
    b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"1e308", b"-0.0", b"9" * 5000, b'""',
    b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\x00", b"\r", b"\r\n", b"\n", b"\n\n", b"\xe2\x80\xa8",
    b"\x85", b"\x1c", b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\u0000", b"\\ud800", b"\\",
    b"http://[", b"file://", b"%00", b"../", b"/dev/zero", b"//", b"a" * 300, b"data:,",
]  # fmt: skip


def mutate_text(data: bytes, rng: Random) -> bytes:
    """Insert a meaningful token into a text, or damage its bytes."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    at = rng.randrange(len(data) + 1)
    if rng.random() < 0.1:
        token = rng.choice([b"[", b'{"a":', b"\n", b"a", b'"a",']) * rng.choice([1000, 20_000])
    else:
        token = rng.choice(_TOKENS)
    return data[:at] + token + data[at + rng.choice([0, 0, 1, 4, len(token)]) :]


# -- JSON

_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 0.5, -0.0, 2**31, 2**32, 2**63, -(2**63), 2**64, 10**400,
    1e308, 1e-320, float("nan"), float("inf"), float("-inf"), "", "a", "1", "\0", "\ud800", "é\n",
    "<NULL>", "<END>", "nan", "a" * 500, [], {}, [[]], {"a": 1}, [1], ["a"], [None], {"": []},
]  # fmt: skip


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """All (container, key) in a tree."""
    found, waiting = [], [value]
    while waiting:
        node = waiting.pop()
        keys: Any = node if isinstance(node, dict) else range(len(node))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], (dict, list)):
                waiting.append(node[key])
    return found


def mutate_tree(value: Any, rng: Random, names: Sequence[str] = ()) -> Any:
    """Change the value of JSON in one to three places; `names` are keys to try."""
    top = [value]
    for _ in range(rng.choice([1, 1, 2, 3])):
        nodes = _nodes(top)
        # Otherwise, nearly all changes would be in large arrays.
        container, key = rng.choice(nodes[:20] if rng.random() < 0.4 else nodes)
        old = container[key]
        how = rng.randrange(10)
        if how in (0, 1, 2):
            container[key] = copy.deepcopy(rng.choice(_VALUES))
        elif how == 3 and container is not top:
            del container[key]
        elif how == 4:
            other, place = rng.choice(nodes)
            container[key] = copy.deepcopy(other[place])
        elif how == 5 and isinstance(old, (int, float)):
            near = [1, -1, 0.5, old, -2 * old]
            container[key] = rng.choice([str(old), float(old) if abs(old) < 1e300 else 0.0,
                                         old + rng.choice(near), bool(old)])  # fmt: skip
        elif how == 5 and isinstance(old, str):
            cut = rng.randrange(len(old) + 1)
            container[key] = old[:cut] + rng.choice(["", "\0", "\ud800", "/", old, " "]) + old[cut:]
        elif how == 6:
            container[key] = rng.choice([[old], {"a": old}, [old, copy.deepcopy(old)], str(old)])
        elif how == 7 and isinstance(container, dict):
            name = rng.choice([*names, *container, "a"])
            container[name] = copy.deepcopy(rng.choice([old, *_VALUES]))
        elif how == 8 and isinstance(container, list) and container is not top:
            container[key:key] = [copy.deepcopy(old) for _ in range(rng.choice([1, 2, 100]))]
        elif how == 9 and isinstance(container, dict) and names:
            container[rng.choice(names)] = container.pop(key)
    return top[0]


def json_mutator(names: Sequence[str] = (), lines: bool = False) -> Mutate:
    """Return a mutation of a JSON file, or of a file with a JSON value per line."""

    def mutate(data: bytes, rng: Random) -> bytes:
        if rng.random() < 0.2:
            return mutate_text(data, rng)
        text = data.decode("utf-8", "replace")
        parts = text.split("\n") if lines else [text]
        at = rng.randrange(len(parts))
        try:
            value = mutate_tree(json.loads(parts[at]), rng, names)
            parts[at] = json.dumps(value, ensure_ascii=rng.random() < 0.9)
        except (ValueError, RecursionError, TypeError, OverflowError):
            return mutate_text(data, rng)
        if lines and rng.random() < 0.2:
            parts.insert(at, rng.choice(["", parts[at], "[]", "{}"]))
        found = "\n".join(parts)
        if rng.random() < 0.05:  # a duplicate key in an object
            found = re.sub(r"\{(\"\w+\": \d+)", r"{\1, \1", found, count=1)
        return found.encode("utf-8", "surrogatepass")

    return mutate


# -- npz

_DTYPES = ["f4", "f8", "f2", "g", "i1", "i2", "i4", "i8", "u1", "u8", "?", "c8", "c16", ">f4",
           ">i8", "U3", ">U2", "S4", "S0", "U0", "V4", "M8[s]", "M8", "m8"]  # fmt: skip
_SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (0, 0), (1, 1), (0, 5), (5, 0), (2, 3, 4),
           (1,) * 33, (2**31,), (2**40, 0), (2**62, 2**62), (-1,)]  # fmt: skip


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def _change_array(array: np.ndarray, rng: Random, names: Sequence[str]) -> np.ndarray:
    how = rng.randrange(9)
    if array.dtype.kind == "U" and not array.shape and how < 6:
        text = str(array)
        if text.startswith("{"):  # the state of a training
            text = json.dumps(mutate_tree(json.loads(text), rng, names))
        else:
            text = rng.choice(["", "rnn", "lstm", "gru", "a" * 300, "\ud800", text + "a"])
        return np.array(text)
    if how == 0:
        return array.astype(rng.choice(_DTYPES))
    if how == 1:
        shape = rng.choice([s for s in _SHAPES if 0 <= np.prod(s, dtype=float) < 1000])
        return np.zeros(shape, array.dtype)
    if how == 2 and array.ndim:
        return np.concatenate([array, array[: rng.choice([1, 2])]])
    if how == 3 and array.ndim:
        return array[rng.choice([slice(1, None), slice(0), slice(None, None, -1)])]
    if how == 4:
        return np.asfortranarray(array.T if rng.random() < 0.5 else array)
    if how == 5:
        return array.reshape(rng.choice([(-1,), (1, *array.shape), (*array.shape, 1)]))
    array = array.copy()
    if array.size and array.dtype.itemsize:
        raw = array.reshape(-1).view(np.uint8)
        size = array.dtype.itemsize
        at = rng.randrange(len(raw) // size) * size
        if how == 6:
            raw[at : at + size] = np.frombuffer(rng.randbytes(size), np.uint8)
        elif array.dtype.kind == "f":
            array.flat[at // size] = rng.choice([np.nan, np.inf, 0.0, -1e30, 1e-40])
        elif array.dtype.kind in "iu":
            array.flat[at // size] = rng.choice([0, 1, 2, 100, np.iinfo(array.dtype).max,
                                                 np.iinfo(array.dtype).min])  # fmt: skip
        else:
            raw[at : at + size] = raw[:size]
    return array


def _change_header(member: bytes, rng: Random) -> bytes:
    """Change the header of an npy file."""
    how = rng.randrange(5)
    if how == 0:
        return member[: rng.randrange(len(member) + 1)] + rng.randbytes(rng.choice([0, 1, 8]))
    if how == 1:
        return mutate_bytes(member[:130], rng) + member[130:]
    if how == 2:
        shape = rng.choice(_SHAPES)
        return re.sub(rb"'shape': \([^)]*\)", b"'shape': " + repr(shape).encode(), member, count=1)
    if how == 3:
        descr = rng.choice(
            [*_DTYPES, "|O", "O", "<f4,<f4", "3f4", "(2,)f4", "U99999999", "f99", ""]
        )
        return re.sub(rb"'descr': '[^']*'", f"'descr': '{descr}'".encode(), member, count=1)
    token = rng.choice([b"True", b"[('a', '<f4')]", b"None", b"9" * 30, b"(" * 60, b"{}", b"1j"])
    return re.sub(rb"False|True|\(|'fortran_order'", token, member, count=1)


def _pack(members: Sequence[tuple[str, bytes]], rng: Random) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about duplicate names
        kind = zipfile.ZIP_DEFLATED if rng.random() < 0.03 else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", kind) as archive:
            for name, member in members:
                archive.writestr(name, member)
    return file.getvalue()


def _lie(data: bytes, rng: Random) -> bytes:
    """Change a field of the directory of a zip file, or of a member's own header."""
    signature, size = rng.choice([(b"PK\x01\x02", 46), (b"PK\x03\x04", 30), (b"PK\x05\x06", 22)])
    places = [match.start() for match in re.finditer(re.escape(signature), data)]
    if not places:
        return mutate_bytes(data, rng)
    start = rng.choice(places)
    part = mutate_bytes(data[start + 4 : start + size], rng)
    return data[: start + 4] + part + data[start + size :]


def npz_mutator(sealed: bool, names: Sequence[str] = ()) -> Mutate:
    """Return a mutation of an npz file; a sealed file usually gets a correct checksum.

    `names` are keys of the JSON objects that lie in it.
    """
    place = Path(tempfile.gettempdir()) / "resealed.npz"

    def mutate(data: bytes, rng: Random) -> bytes:
        if rng.random() < 0.15:
            return _lie(data, rng) if rng.random() < 0.7 else mutate_bytes(data, rng)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = [(m.filename, archive.read(m)) for m in archive.infolist()]
        except Exception:  # it is already damaged
            return mutate_bytes(data, rng)
        if sealed:
            members = [m for m in members if m[0] != f"{CHECKSUM}.npy"]
        for _ in range(rng.choice([1, 1, 2, 3])):
            if not members:
                break
            at = rng.randrange(len(members))
            if rng.random() < 0.3:  # often the array that describes the others
                at = next((k for k, m in enumerate(members) if "about" in m[0]), at)
            name, member = members[at]
            how = rng.randrange(14)
            if how < 10:
                try:
                    array = np.lib.format.read_array(io.BytesIO(member), allow_pickle=False)
                    members[at] = name, _npy(_change_array(array, rng, names))
                except Exception:
                    members[at] = name, _change_header(member, rng)
            elif how == 10:
                members[at] = name, _change_header(member, rng)
            elif how == 11:
                del members[at]
            elif how == 12:
                members.append((rng.choice(members)[0] if rng.random() < 0.5 else "a", member))
            else:
                members[at] = rng.choice(members)[0], member
        found = _pack(members, rng)
        if sealed and rng.random() < 0.95:
            try:
                place.write_bytes(found)
                seal = np.array(checksum(read_npz(place)))
            except Exception:  # it is refused before the checksum is verified
                return found
            found = _pack([*members, (f"{CHECKSUM}.npy", _npy(seal))], rng)
        return _lie(found, rng) if rng.random() < 0.05 else found

    return mutate


# -- HDF5

CANARY = 8675309
"""A number in another file, which no reader may read."""


def h5_mutator(datasets: dict[str, np.ndarray], place: Path) -> Mutate:
    """Return a mutation of an HDF5 file: of its bytes, or a new file with a wrong structure.

    Links and external storage point to ``other.h5`` and ``secret`` in `place`, which are written.
    """
    with h5py.File(place / "other.h5", "w") as file:
        for name, array in datasets.items():
            file[name] = np.full(array.shape, CANARY, array.dtype)
    secret = np.full(1 << 12, CANARY, next(iter(datasets.values())).dtype)
    (place / "secret").write_bytes(secret.tobytes())

    def mutate(data: bytes, rng: Random) -> bytes:
        harmed = rng.random() < 0.75
        found = data if rng.random() < 0.5 else build_h5(datasets, place, rng)
        # HDF5 2.0 does not come back from a damaged global heap, which takes the fuzzer a minute.
        if harmed and (b"GCOL" not in found or rng.random() < 0.01):
            found = with_checksums(mutate_bytes(found, rng))
        return found

    return mutate


def _lookup3(data: bytes) -> int:
    """Return Bob Jenkins's hash of 2006, HDF5's checksum of metadata."""
    mask = 0xFFFFFFFF

    def turn(x: int, k: int) -> int:
        return (x << k | x >> (32 - k)) & mask

    a = b = c = (0xDEADBEEF + len(data)) & mask
    start = 0
    while len(data) - start > 12:
        x, y, z = (int.from_bytes(data[start + k : start + k + 4], "little") for k in (0, 4, 8))
        a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
        a = (a - c) & mask ^ turn(c, 4)
        c = (c + b) & mask
        b = (b - a) & mask ^ turn(a, 6)
        a = (a + c) & mask
        c = (c - b) & mask ^ turn(b, 8)
        b = (b + a) & mask
        a = (a - c) & mask ^ turn(c, 16)
        c = (c + b) & mask
        b = (b - a) & mask ^ turn(a, 19)
        a = (a + c) & mask
        c = (c - b) & mask ^ turn(b, 4)
        b = (b + a) & mask
        start += 12
    if start == len(data):
        return c
    rest = data[start:].ljust(12, b"\0")
    x, y, z = (int.from_bytes(rest[k : k + 4], "little") for k in (0, 4, 8))
    a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
    c = ((c ^ b) - turn(b, 14)) & mask
    a = ((a ^ c) - turn(c, 11)) & mask
    b = ((b ^ a) - turn(a, 25)) & mask
    c = ((c ^ b) - turn(b, 16)) & mask
    a = ((a ^ c) - turn(c, 4)) & mask
    b = ((b ^ a) - turn(a, 14)) & mask
    return ((c ^ b) - turn(b, 24)) & mask


def with_checksums(data: bytes) -> bytes:
    """Make the checksums of an HDF5 file's superblock and object headers right again."""
    found = bytearray(data)
    ends = []
    if data[:8] == b"\x89HDF\r\n\x1a\n" and len(data) > 48 and data[8] in (2, 3):
        ends.append((0, 44))
    for match in re.finditer(rb"OHDR\x02", data):
        start = match.start()
        flags = data[start + 5] if start + 5 < len(data) else 0
        at = start + 6 + 16 * (flags >> 5 & 1) + 4 * (flags >> 4 & 1)
        width = 1 << (flags & 3)
        end = at + width + int.from_bytes(data[at : at + width], "little")
        if end + 4 <= len(data) and end - start < 4096:
            ends.append((start, end))
    for start, end in ends:
        found[end : end + 4] = _lookup3(bytes(found[start:end])).to_bytes(4, "little")
    return bytes(found)


def build_h5(datasets: dict[str, np.ndarray], place: Path, rng: Random) -> bytes:
    """Write the data sets to a file, one to three of them in an unusual way."""
    memory = io.BytesIO()
    versions = rng.choice([("earliest", "latest"), ("earliest", "latest"), ("latest", "latest")])
    with h5py.File(
        memory, "w", libver=versions, userblock_size=rng.choice([0, 0, 0, 512]),
        track_order=rng.random() < 0.2,
    ) as file:  # fmt: skip
        wrong = {rng.choice([*datasets, "another"]) for _ in range(rng.choice([1, 1, 3]))}
        for name in [*datasets, "another"]:
            array = datasets.get(name, np.arange(5, dtype="f4"))
            if name in wrong:
                # Skip what this version of HDF5 refuses to write.
                try:
                    rng.choice(_WRONG_H5)(file, name, array, place, rng)
                except (ValueError, TypeError, OSError, RuntimeError, OverflowError):
                    continue
            elif name != "another":
                file[name] = array
    return memory.getvalue()


def _other_type(file, name, array, place, rng):
    odd = h5py.h5t.IEEE_F32LE.copy()
    odd.set_fields(31, 20, 11, 0, 20)
    kinds = [
        "f2", "f4", "f8", "g", "i1", "u1", "i8", "u8", ">f4", ">i2", ">f8", "c8", "c16", "?", "S5",
        "S1", "V3",
        h5py.string_dtype(), h5py.string_dtype("ascii", 7), h5py.ref_dtype, h5py.regionref_dtype,
        h5py.enum_dtype({"a": 0, "b": 9}, "i1"), h5py.enum_dtype({"FALSE": 0, "TRUE": 1}, "i1"),
        h5py.vlen_dtype("i4"), np.dtype([("a", "f4"), ("b", "i8")]), np.dtype(("f4", (3,))),
        np.dtype([("r", "f4"), ("i", "f4")]), odd,
    ]  # fmt: skip
    kind = rng.choice(kinds)
    if isinstance(kind, h5py.h5t.TypeID):
        h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(array.shape))
        return
    dataset = file.create_dataset(name, array.shape, kind)
    if np.dtype(kind).kind in "biufc":
        dataset[...] = array.astype(kind)


def _other_shape(file, name, array, place, rng):
    how = rng.randrange(5)
    if how == 0:
        file[name] = h5py.Empty(array.dtype)
    elif how == 1:
        shape = rng.choice([(), (0,), (0, 0), (0, 7), (3, 0), (1,) * 32, array.shape[::-1]])
        file[name] = np.ones(shape, array.dtype)
    elif how == 2:
        file[name] = np.concatenate([array, array[:1]])
    elif how == 3:  # in the shape, but never written
        huge = rng.choice([1 << 10, 1 << 20, 1 << 31, 1 << 40])
        file.create_dataset(name, (huge,) * max(array.ndim, 1), array.dtype, fillvalue=1,
                            chunks=rng.choice([None, (64,) * max(array.ndim, 1)]))  # fmt: skip
    else:
        file[name] = array.reshape(-1) if rng.random() < 0.5 else array[None]


def _other_values(file, name, array, place, rng):
    array = array.copy()
    for _ in range(rng.choice([1, 3])):
        at = rng.randrange(max(array.size, 1))
        if array.dtype.kind == "f":
            array.flat[at] = rng.choice([np.nan, np.inf, 1e38, 0.0])
        else:
            array.flat[at] = rng.choice([-1, 0, 10, 11, 12, 99, 2**31 - 1, -(2**31)])
    file[name] = array


def _chunked(file, name, array, place, rng):
    """Chunks with filters, some written raw: garbage, or data that expand to a large size."""
    array = np.atleast_1d(array)
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    chunk = tuple(rng.choice([1, n, max(n // 2, 1), 3 * n + 1]) for n in map(max, array.shape,
                  (1,) * array.ndim))  # fmt: skip
    if rng.random() < 0.2:
        chunk = (rng.choice([1 << 16, 1 << 24, 1 << 28]), *chunk[1:])
    plist.set_chunk(chunk)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        how = rng.randrange(6)
        if how < 2:
            plist.set_deflate(9)
        elif how == 2:
            plist.set_shuffle()
        elif how == 3:
            plist.set_fletcher32()
        elif how == 4:
            if array.dtype.kind == "f":
                plist.set_scaleoffset(h5py.h5z.SO_FLOAT_DSCALE, 3)
            else:
                plist.set_scaleoffset(h5py.h5z.SO_INT, 0)
        else:
            plist.set_filter(rng.choice([32000, 32001, 5, 77]), h5py.h5z.FLAG_OPTIONAL, (1, 2))
    if rng.random() < 0.5:
        plist.set_fill_value(np.array(rng.choice([0, 1, -1]), array.dtype))
    extent = rng.choice([None, (h5py.h5s.UNLIMITED,) * array.ndim])
    shape = rng.choice([array.shape, array.shape, (1 << 20, *array.shape[1:])])
    space = h5py.h5s.create_simple(shape, None if extent is None else extent)
    dataset = h5py.Dataset(
        h5py.h5d.create(
            file.id, name.encode(), h5py.h5t.py_create(array.dtype, logical=True), space, plist
        )
    )
    # HDF5 itself is slow with a large chunk, and its filter scaleoffset corrupts the heap with
    # any other chunk. Chunks that are written raw only look like that.
    filters = [plist.get_filter(k)[0] for k in range(plist.get_nfilters())]
    tame = h5py.h5z.FILTER_SCALEOFFSET not in filters[1:]
    if rng.random() < 0.6 and tame and np.prod(chunk, dtype=float) < 1 << 16:
        dataset[: len(array)] = array
        return
    if not filters:
        return  # HDF5 reads as many bytes as the chunk should have, even if there are fewer
    raw = rng.choice([rng.randbytes(30), _deflated(1 << 10), _deflated(1 << 24, 2), b"\0" * 9])
    dataset.id.write_direct_chunk((0,) * array.ndim, raw, rng.choice([0, 0, 1, 3, 2**32 - 1]))


_bombs: dict[tuple[int, int], bytes] = {}


def _deflated(size: int, times: int = 1) -> bytes:
    import zlib

    if (size, times) not in _bombs:
        found = bytes(size)
        for _ in range(times):
            found = zlib.compress(found, 9)
        _bombs[size, times] = found
    return _bombs[size, times]


def _elsewhere(file, name, array, place, rng):
    how = rng.randrange(5)
    if how == 0:
        file[name] = h5py.ExternalLink(str(place / "other.h5"), name)
    elif how == 1:
        file[name] = h5py.ExternalLink(rng.choice(["", ".", "a" * 3000, "/dev/zero"]), "/")
    elif how == 2:
        parts = [(str(place / "secret"), 0, 1 << 14)]
        file.create_dataset(name, array.shape, array.dtype, external=parts)
    elif how == 3:
        layout = h5py.VirtualLayout(array.shape, array.dtype)
        layout[...] = h5py.VirtualSource(str(place / "other.h5"), name, array.shape)
        file.create_virtual_dataset(name, layout)
    else:  # mapped onto itself
        layout = h5py.VirtualLayout(array.shape, array.dtype)
        layout[...] = h5py.VirtualSource(".", name, array.shape)
        file.create_virtual_dataset(name, layout)


def _linked(file, name, array, place, rng):
    how = rng.randrange(7)
    if how == 0:
        file[name] = h5py.SoftLink(rng.choice(["/", name, "/a/b", ".", "another", "a" * 3000]))
    elif how == 1:
        file[name] = h5py.SoftLink("a")
        file["a"] = h5py.SoftLink(name)
    elif how == 2:
        file[name] = file["/"]
    elif how == 3:
        file.create_group(name)["a"] = array
    elif how == 4:
        file[name] = np.dtype("f4")
    elif how == 5:
        file[name] = array
        for k in range(rng.choice([10, 300])):
            file[f"{name}{k}"] = file[name]
    else:
        names = ["é", "\u202e", "a" * 3000, "a\n", " ", "train_captions ", "checksum"]
        file[rng.choice(names)] = array


def _many(file, name, array, place, rng):
    """A small file in which each array is acceptable, but not all of them together."""
    for k in range(rng.choice([20, 100])):
        file.create_dataset(f"{name}{k}", (1 << 22,), "f4", fillvalue=1 + k % 2)
    file[name] = array


def _described(file, name, array, place, rng):
    file[name] = array
    for k in range(rng.choice([1, 20])):
        file[name].attrs[f"a{k}"] = rng.choice([1, "a", np.arange(50), h5py.Empty("f4")])
    if rng.random() < 0.3:
        file.attrs["a"] = "a" * rng.choice([10, 60_000])


def write_compact(file: h5py.File, name: str, array: np.ndarray) -> None:
    """Write a data set into its own header."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    kind, space = h5py.h5t.py_create(array.dtype), h5py.h5s.create_simple(array.shape)
    dataset = h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, plist))
    dataset[...] = array


def _compact(file, name, array, place, rng):
    write_compact(file, name, np.resize(array, rng.choice([array.shape, (0,), (3, 5), (1000,)])))


_WRONG_H5 = [
    _compact,
    _other_type, _other_shape, _other_values, _chunked, _chunked, _elsewhere, _linked, _many,
    _described, lambda file, name, array, place, rng: None,
]  # fmt: skip
