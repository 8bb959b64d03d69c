"""Read the weights of a PyTorch state_dict file without PyTorch and without unpickling it.

Files of ``torch.save`` before PyTorch 1.6 are a sequence of pickles followed by the raw bytes of
the tensors. Their opcodes are listed by `pickletools`, which runs nothing, and interpreted here:
only strings, numbers, tuples, dictionaries and tensors have a meaning. Anything else is refused.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from ..files import one_line, open_file

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES: dict[str, np.dtype[Any]] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
}
_DICTIONARY, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_MARK = object()
_PLAIN = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Name(str):
    """The name of a Python object in a pickle, which is never looked up."""


class _Storage:
    """Raw numbers that several tensors may share."""

    def __init__(self, dtype: np.dtype[Any], size: int) -> None:
        self.dtype, self.size, self.values = dtype, size, np.empty(0, dtype)


class _Tensor:
    """A view of a storage."""

    def __init__(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self) -> np.ndarray:
        """Return a copy of the view, after checking its bounds."""
        numbers = [self.offset, *self.shape, *self.strides]
        if len(self.shape) != len(self.strides) or not all(
            type(number) is int and number >= 0 for number in numbers
        ):
            raise ValueError("a tensor has a strange shape")
        last = self.offset + sum(
            (n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)
        )
        size = math.prod(self.shape)  # a stride of 0 would repeat numbers
        if not 0 < size <= self.storage.size or last >= self.storage.size:
            raise ValueError("a tensor is larger than its numbers")
        values = self.storage.values
        view = np.lib.stride_tricks.as_strided(
            values[self.offset :],
            self.shape,
            [step * values.itemsize for step in self.strides],
            writeable=False,
        )
        return view.copy()


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read a state_dict that ``torch.save`` wrote before PyTorch 1.6.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    dict of str to ndarray
        The tensors by name, as float32, float64, int64 or int32 arrays.

    Raises
    ------
    OSError
        If the file does not exist or cannot be read.
    ValueError
        If it is damaged, or holds anything but named tensors. The message names the file.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = io.BytesIO(file.read())
    try:
        return _read(content, size)
    except Exception as error:  # damaged opcodes raise many types
        raise ValueError(
            f"{path}: cannot be read as weights of PyTorch ({one_line(error)}); expected a "
            "state_dict in the format before PyTorch 1.6"
        ) from error


def _read(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    storages: dict[str, _Storage] = {}
    magic, protocol, system = (_interpret(file, storages) for _ in range(3))
    if magic != _MAGIC or protocol != _PROTOCOL or system.get("little_endian") is not True:
        raise ValueError("the file begins otherwise")
    found = _interpret(file, storages)
    for key in _interpret(file, storages):
        storage = storages[key]
        count = int.from_bytes(file.read(8), "little")
        if count != storage.size or count * storage.dtype.itemsize > size - file.tell():
            raise ValueError("the numbers are cut short")
        storage.values = np.frombuffer(file.read(count * storage.dtype.itemsize), storage.dtype)
    if not isinstance(found, dict) or not found:
        raise ValueError("the file has no named tensors")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise ValueError(f"{name!r} is not a tensor")
    return {name: tensor.array() for name, tensor in found.items()}


def _interpret(file: BinaryIO, storages: dict[str, _Storage]) -> Any:
    """Return the value of the next pickle, in which every object is one of those known here."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for code, argument, _ in pickletools.genops(file):
        name = code.name
        if name in _PLAIN:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "GLOBAL":
            stack.append(_Name(argument))
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(_since_mark(stack)))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else [*_since_mark(stack)]
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else [*_since_mark(stack)]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop(), storages))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_reduce(stack.pop(), arguments))
        elif name == "BUILD":  # attributes of the dictionary, such as the versions of its modules
            stack.pop()
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise ValueError(f"opcode {name}")
    raise ValueError("cut short")


def _since_mark(stack: list[Any]) -> Iterator[Any]:
    place = max(number for number, value in enumerate(stack) if value is _MARK)
    values = stack[place + 1 :]
    del stack[place:]
    return iter(values)


def _storage(identity: Any, storages: dict[str, _Storage]) -> _Storage:
    kind, storage_type, key, _, size, view = identity
    if kind != "storage" or view is not None or type(size) is not int or size < 0:
        raise ValueError("strange numbers")
    if key not in storages:
        storages[key] = _Storage(_DTYPES[storage_type], size)
    return storages[key]


def _reduce(name: Any, arguments: Any) -> Any:
    if isinstance(name, _Name) and name == _DICTIONARY and arguments in ((), ([],)):
        return {}
    if isinstance(name, _Name) and name == _TENSOR:
        storage, offset, shape, strides = arguments[:4]
        if isinstance(storage, _Storage):
            return _Tensor(storage, offset, shape, strides)
    raise ValueError(f"object {name}")
