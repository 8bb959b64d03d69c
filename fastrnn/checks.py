"""Argument checks, shared by the compiled ops, their NumPy twins and the Python code around them.

Every op checks in the same order: dtypes (TypeError), then shapes (ValueError), then the values
of word ids and lengths (IndexError, ValueError). Messages read "x is ...; expected ...".
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class ArgumentError(ValueError):
    """The value of an argument is out of range, or it does not fit the other arguments.

    Parameters
    ----------
    name : str
        The argument.
    problem : str
        What is wrong, as in "is 0; expected at least 1". It follows the name in the message.

    Attributes
    ----------
    name, problem : str
        As given, so that the command line can name its own option instead.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name: str = name
        self.problem: str = problem

    def __str__(self) -> str:
        return f"{self.name} {self.problem}"


PRECISIONS = ("float32", "bfloat16")
"""The values of `precision`: what the operands of matrix products are rounded to."""


def is_bfloat16(precision: str, dtype: np.dtype) -> bool:
    """Return whether the operands of matrix products are rounded to bfloat16.

    Raises
    ------
    ValueError
        If `precision` is not one of `PRECISIONS`.
    TypeError
        If it is ``"bfloat16"`` and the arrays do not have the dtype float32.
    """
    if type(precision) is not str or precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if precision == "float32":
        return False
    if dtype != np.float32:
        raise TypeError(f"precision is 'bfloat16', but the dtype is {dtype}; expected float32")
    return True


def as_floats(**arrays: Any) -> list[np.ndarray]:
    """Convert arrays to their common dtype, by NumPy's promotion rules.

    Parameters
    ----------
    **arrays : array_like
        The floating-point arguments of an op, by name. Integers and booleans count as float64.

    Returns
    -------
    list of ndarray
        In the order given, all float32 or all float64. Arrays of that dtype are not copied.

    Raises
    ------
    TypeError
        If an argument does not hold real numbers, or if the common dtype is neither float32
        nor float64.
    """
    found = {name: np.asarray(array) for name, array in arrays.items()}
    kinds = []
    for name, array in found.items():
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} has dtype {array.dtype}; expected float32 or float64")
        kinds.append(np.dtype(np.float64) if array.dtype.kind in "biu" else array.dtype)
    dtype = np.result_type(*kinds).newbyteorder("=")
    if dtype not in (np.float32, np.float64):
        which = ", ".join(found)
        raise TypeError(f"{which}: common dtype is {dtype}; expected float32 or float64")
    return [array.astype(dtype, copy=False) for array in found.values()]


def as_integers(**arrays: Any) -> list[np.ndarray]:
    """Convert arrays, in the order given, to NumPy's index type (intp).

    Raises
    ------
    TypeError
        If an argument does not have an integer dtype; booleans do not count as integers.
    """
    found = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in found.items():
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name} has dtype {array.dtype}; expected an integer dtype")
    return [array.astype(np.intp, copy=False) for array in found.values()]


def match_shapes(sizes: dict[str, int] | None = None, /, **arrays: Any) -> dict[str, int]:
    """Check that the shapes of arguments agree, and return the sizes of their axes.

    Parameters
    ----------
    sizes : dict, optional
        Sizes that are already known, such as ``{"N": 3, "H": 5}``.
    **arrays : (ndarray, str)
        Each argument with its axes, such as ``Wx=(Wx, "D 4H")``. The first argument that uses a
        letter sets its size; ``4H`` is four times the size of ``H``, which must be known before.

    Returns
    -------
    dict
        The size of each letter.

    Raises
    ------
    ValueError
        If an argument has the wrong number of axes, or the wrong size along one of them.
    """
    sizes = dict(sizes or {})
    for name, (array, spec) in arrays.items():
        axes = spec.split()
        if array.ndim == len(axes):
            for axis, size in zip(axes, array.shape, strict=True):
                if axis.isalpha():
                    sizes.setdefault(axis, size)
        wanted = shape_of(axes, sizes)
        if array.shape != wanted:
            letters, numbers = (", ".join(map(str, part)) for part in (axes, wanted))
            known = "" if numbers == letters else f" = ({numbers})"  # no size is known
            raise ValueError(f"{name} has shape {array.shape}; expected ({letters}){known}")
    return sizes


def shape_of(axes: Sequence[str], sizes: Mapping[str, int]) -> tuple[int | str, ...]:
    """Return the shape of an array with some axes, such as "H" and "4H".

    An axis whose letter has no size stands for itself.
    """
    # a list in between, which is faster: this runs at every training step
    return tuple([sizes[axis] if axis in sizes else _multiple(axis, sizes) for axis in axes])


def _multiple(axis: str, sizes: Mapping[str, int]) -> int | str:
    return int(axis[:-1]) * sizes[axis[-1]] if axis[0].isdigit() else axis


def gate_columns(gates: int) -> str:
    """Return the axis of a cell's gates in the notation of `match_shapes`, such as "4H"."""
    return "H" if gates == 1 else f"{gates}H"


def parameter_shapes(gates: int) -> dict[str, str]:
    """Return the axes of each parameter of a captioner, in the notation of `match_shapes`.

    `gates` is the number of blocks of H columns in the weights of its cell. The letters are D, the
    width of the features; H, the hidden size; W, the width of the word vectors; and V, the number
    of words.
    """
    columns = gate_columns(gates)
    return {
        "W_proj": "D H",
        "b_proj": "H",
        "W_embed": "V W",
        "Wx": f"W {columns}",
        "Wh": f"H {columns}",
        "b": columns,
        "W_vocab": "H V",
        "b_vocab": "V",
    }


def match_model(arrays: Mapping[str, np.ndarray], gates: int) -> None:
    """Check that the shapes of features and of a captioner's parameters agree.

    `gates` is the number of blocks of H columns in the weights of its cell.

    Raises
    ------
    ValueError
        If one has the wrong number of axes, or the wrong size along one of them.
    """
    specs = {**parameter_shapes(gates), "features": "N D"}
    match_shapes(**{name: (arrays[name], spec) for name, spec in specs.items()})


# ---- The arguments of each op --------------------------------------------------------------------
#
# Each function is named like the op that it belongs to. It converts the op's arrays and returns
# them in the order given. It raises TypeError for a dtype, ValueError for a shape, and IndexError
# for an id out of range. The compiled ops call it only to raise the error, because they have
# faster tests of their own; the NumPy twins always call it.


def affine_forward(x: Any, w: Any, b: Any) -> list[np.ndarray]:
    x, w, b = as_floats(x=x, w=w, b=b)
    match_shapes({"D": _row_size(x)}, w=(w, "D M"), b=(b, "M"))
    return [x, w, b]


def affine_backward(dout: Any, x: Any, w: Any) -> list[np.ndarray]:
    dout, x, w = as_floats(dout=dout, x=x, w=w)
    match_shapes({"D": _row_size(x), "N": len(x)}, w=(w, "D M"), dout=(dout, "N M"))
    return [dout, x, w]


def _row_size(x: np.ndarray) -> int:
    if x.ndim == 0:
        raise ValueError("x has shape (); expected (N, d_1, ..., d_k)")
    return math.prod(x.shape[1:])


def temporal_affine_forward(x: Any, w: Any, b: Any) -> list[np.ndarray]:
    x, w, b = as_floats(x=x, w=w, b=b)
    match_shapes(x=(x, "N T D"), w=(w, "D M"), b=(b, "M"))
    return [x, w, b]


def temporal_affine_backward(dout: Any, x: Any, w: Any) -> list[np.ndarray]:
    dout, x, w = as_floats(dout=dout, x=x, w=w)
    match_shapes(x=(x, "N T D"), w=(w, "D M"), dout=(dout, "N T M"))
    return [dout, x, w]


def word_embedding_forward(x: Any, W: Any) -> list[np.ndarray]:
    (x,) = as_integers(x=x)
    (W,) = as_floats(W=W)
    sizes = match_shapes(x=(x, "N T"), W=(W, "V D"))
    check_ids("x", x, sizes["V"])
    return [x, W]


def word_embedding_backward(dout: Any, x: Any, W: Any) -> list[np.ndarray]:
    dout, W = as_floats(dout=dout, W=W)
    (x,) = as_integers(x=x)
    sizes = match_shapes(x=(x, "N T"), W=(W, "V D"), dout=(dout, "N T D"))
    check_ids("x", x, sizes["V"])
    return [dout, x, W]


def temporal_softmax_loss(x: Any, y: Any, mask: Any) -> list[np.ndarray]:
    (x,) = as_floats(x=x)
    (y,) = as_integers(y=y)
    mask = np.asarray(mask)
    if mask.dtype.kind not in "biuf":
        raise TypeError(f"mask has dtype {mask.dtype}; expected bool, integer or float")
    sizes = match_shapes(x=(x, "N T V"), y=(y, "N T"), mask=(mask, "N T"))
    check_ids("y", y, sizes["V"])
    return [x, y, mask]


def class_loss(x: Any, y: Any) -> list[np.ndarray]:
    """`softmax_loss` and `svm_loss`."""
    (x,) = as_floats(x=x)
    (y,) = as_integers(y=y)
    sizes = match_shapes(x=(x, "N C"), y=(y, "N"))
    check_ids("y", y, sizes["C"])
    return [x, y]


def cell_forward(gates: int, x: Any, h0: Any, Wx: Any, Wh: Any, b: Any) -> list[np.ndarray]:
    """`rnn_forward`, `lstm_forward`: a cell whose weights have `gates` blocks of H columns."""
    x, h0, Wx, Wh, b = as_floats(x=x, h0=h0, Wx=Wx, Wh=Wh, b=b)
    match_shapes(x=(x, "N T D"), h0=(h0, "N H"), **_cell_weights(gates, Wx, Wh, b))
    return [x, h0, Wx, Wh, b]


def cell_step_forward(
    gates: int, x: Any, states: tuple[Any, ...], Wx: Any, Wh: Any, b: Any
) -> list[np.ndarray]:
    """`rnn_step_forward` with `states` (prev_h,), `lstm_step_forward` with (prev_h, prev_c)."""
    before = dict(zip(("prev_h", "prev_c"), states, strict=False))
    x, *found, Wx, Wh, b = as_floats(x=x, **before, Wx=Wx, Wh=Wh, b=b)
    match_shapes(
        x=(x, "N D"),
        **{name: (state, "N H") for name, state in zip(before, found, strict=True)},
        **_cell_weights(gates, Wx, Wh, b),
    )
    return [x, *found, Wx, Wh, b]


def dot_product_attention(prev_h: Any, A: Any) -> list[np.ndarray]:
    """`dot_product_attention`: a grid of any number of axes, with at least one place."""
    prev_h, A = as_floats(prev_h=prev_h, A=A)
    match_shapes(prev_h=(prev_h, "N H"), A=(A, _grid_axes(A)))
    return [prev_h, A]


def attention_forward(x: Any, A: Any, Wx: Any, Wh: Any, Wattn: Any, b: Any) -> list[np.ndarray]:
    """`attention_forward`: an LSTM whose initial states are the mean of a grid."""
    x, A, Wx, Wh, Wattn, b = as_floats(x=x, A=A, Wx=Wx, Wh=Wh, Wattn=Wattn, b=b)
    match_shapes(
        x=(x, "N T D"), A=(A, _grid_axes(A)), Wx=(Wx, "D 4H"), Wh=(Wh, "H 4H"),
        Wattn=(Wattn, "H 4H"), b=(b, "4H"),
    )  # fmt: skip
    return [x, A, Wx, Wh, Wattn, b]


def attention_step_forward(
    x: Any, prev_h: Any, prev_c: Any, A: Any, Wx: Any, Wh: Any, Wattn: Any, b: Any
) -> list[np.ndarray]:
    """`attention_step_forward`."""
    x, prev_h, prev_c, A, Wx, Wh, Wattn, b = as_floats(
        x=x, prev_h=prev_h, prev_c=prev_c, A=A, Wx=Wx, Wh=Wh, Wattn=Wattn, b=b
    )
    match_shapes(
        x=(x, "N D"), prev_h=(prev_h, "N H"), prev_c=(prev_c, "N H"), A=(A, _grid_axes(A)),
        Wx=(Wx, "D 4H"), Wh=(Wh, "H 4H"), Wattn=(Wattn, "H 4H"), b=(b, "4H"),
    )  # fmt: skip
    return [x, prev_h, prev_c, A, Wx, Wh, Wattn, b]


def _grid_axes(A: np.ndarray) -> str:
    """Return the axes of a grid of vectors, (N, H) and those of its places."""
    if A.ndim < 3 or 0 in A.shape[2:]:
        raise ValueError(
            f"A has shape {A.shape}; expected (N, H, ...) with the places of a grid, at least one, "
            "such as (N, H, 4, 4)"
        )
    return " ".join(["N", "H", *("P" * k for k in range(1, A.ndim - 1))])


def _cell_weights(
    gates: int, Wx: np.ndarray, Wh: np.ndarray, b: np.ndarray
) -> dict[str, tuple[np.ndarray, str]]:
    columns = gate_columns(gates)
    return {"Wx": (Wx, f"D {columns}"), "Wh": (Wh, f"H {columns}"), "b": (b, columns)}


# ---- Parts of arguments --------------------------------------------------------------------------


def parts_of(cache: Any, names: str) -> tuple[Any, ...]:
    """Check that a cache is a tuple with one part for each of `names`, and return it.

    Raises
    ------
    TypeError
        If `cache` is not a tuple.
    ValueError
        If it has the wrong number of parts.
    """
    parts = names.split()
    expected = f"expected the cache of the forward pass, ({', '.join(parts)})"
    if not isinstance(cache, (tuple, list)):
        raise TypeError(f"cache is {type(cache).__name__}; {expected}")
    if len(cache) != len(parts):
        raise ValueError(f"cache has {len(cache)} parts; {expected}")
    return tuple(cache)


def check_ids(name: str, ids: np.ndarray, size: int) -> None:
    """Check ids that index `size` rows; negative ids count from the end.

    Raises
    ------
    IndexError
        If an id is outside ``[-size, size)``.
    """
    if ids.size and (ids.min() < -size or ids.max() >= size):
        worst = ids.min() if ids.min() < -size else ids.max()
        raise IndexError(f"{name} holds the id {worst}; expected ids in [{-size}, {size})")


def as_lengths(lengths: Any, N: int, T: int) -> np.ndarray:
    """Return the number of steps of each row as intp, shape (N,); None means T for every row.

    Raises
    ------
    TypeError
        If `lengths` does not have an integer dtype.
    ValueError
        If `lengths` does not have shape (N,), or holds a number outside 0..T.
    """
    if lengths is None:
        return np.full(N, T, dtype=np.intp)
    (lengths,) = as_integers(lengths=lengths)
    match_shapes({"N": N}, lengths=(lengths, "N"))
    if N and (lengths.min() < 0 or lengths.max() > T):
        worst = lengths.min() if lengths.min() < 0 else lengths.max()
        raise ValueError(f"lengths holds {worst}; expected numbers of steps in 0..{T}")
    return lengths


def as_caption_weights(weights: Any, N: int) -> np.ndarray:
    """Return the weight of each caption in the loss as float64, shape (N,).

    Raises
    ------
    TypeError
        If `weights` does not hold real numbers.
    ValueError
        If `weights` does not have shape (N,), or holds a number that is not finite.
    """
    weights = np.asarray(weights)
    if weights.dtype.kind not in "biuf":
        raise TypeError(f"weights has dtype {weights.dtype}; expected real numbers")
    match_shapes({"N": N}, weights=(weights, "N"))
    if not np.isfinite(weights).all():
        worst = weights[~np.isfinite(weights)][0]
        raise ValueError(f"weights holds {worst}; expected finite numbers")
    return weights.astype(np.float64, copy=False)


def as_weights(
    w: np.ndarray, dw: np.ndarray, names: tuple[str, str] = ("w", "dw")
) -> tuple[np.ndarray, np.ndarray]:
    """Check a weight and its gradient; return `w` itself and `dw` in the dtype of `w`.

    Error messages call them by `names`.

    Raises
    ------
    TypeError
        If `w` is not a float32 or float64 array, or `dw` is not numeric.
    ValueError
        If the shapes differ, or `w` is read-only.
    """
    name, other = names
    if not isinstance(w, np.ndarray):
        raise TypeError(
            f"{name} is {type(w).__name__}; expected an ndarray, to be changed in place"
        )
    if w.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} has dtype {w.dtype}; expected float32 or float64")
    dw = np.asarray(dw)
    if dw.dtype.kind not in "biuf":
        raise TypeError(f"{other} has dtype {dw.dtype}; expected float32 or float64")
    if dw.shape != w.shape:
        raise ValueError(f"{other} has shape {dw.shape}; expected the shape of {name}, {w.shape}")
    if not w.flags.writeable:
        raise ValueError(f"{name} is read-only; expected an array that can be changed in place")
    return w, dw.astype(w.dtype, copy=False)


def as_state(name: str, state: Any, w: np.ndarray) -> np.ndarray:
    """Return an optimiser's state for `w` as an array of its shape and dtype; zeros for None.

    Raises
    ------
    TypeError
        If `state` does not hold real numbers.
    ValueError
        If it does not have the shape of `w`.
    """
    if state is None:
        return np.zeros(w.shape, w.dtype)
    state = np.asarray(state)
    if state.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {state.dtype}; expected {w.dtype}")
    if state.shape != w.shape:
        raise ValueError(f"{name} has shape {state.shape}; expected the shape of w, {w.shape}")
    return state.astype(w.dtype, copy=False)


def as_int(name: str, value: Any) -> int:
    """Convert `value` to an int.

    Raises
    ------
    TypeError
        If it is not an integer.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {value!r}; expected an integer")
    return int(value)


def as_number(name: str, value: Any) -> float:
    """Convert `value` to a float.

    Raises
    ------
    TypeError
        If it is not a real number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} is {value!r}; expected a number")
    return float(value)


def check_count(name: str, value: int) -> None:
    """Refuse a count that cannot fit in memory, before sizes are computed from it.

    Raises
    ------
    MemoryError
        If `value` is 2**57 or more (2**25 where addresses have 32 bits).
    """
    if value > sys.maxsize // 64:
        raise MemoryError(f"{name} is {value}; expected at most {sys.maxsize // 64}")


def check_gradients(grads: Mapping[str, np.ndarray], limit: float) -> None:
    """Check the arguments of a gradient clipping function.

    Raises
    ------
    TypeError
        If a gradient is not a float32 or float64 array.
    ValueError
        If `limit` is not positive, or a gradient is read-only.
    """
    if not limit > 0:
        raise ValueError(f"limit is {limit}; expected a positive number")
    for name, grad in grads.items():
        if not isinstance(grad, np.ndarray) or grad.dtype not in (np.float32, np.float64):
            found = getattr(grad, "dtype", type(grad).__name__)
            raise TypeError(f"grads[{name!r}] is {found}; expected an array of float32 or float64")
        if not grad.flags.writeable:
            raise ValueError(f"grads[{name!r}] is read-only; expected an array that can be changed")
