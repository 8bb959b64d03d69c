"""Convert models to ONNX graphs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import __version__
from ..classifiers.rnn import CaptioningRNN
from ..files import make_directory, write_all_aside
from .parameters import checked_params, metadata_of, raise_missing

if TYPE_CHECKING:
    import onnx

ONNX_FILES = {"project": "project.onnx", "step": "step.onnx"}
"""Names of the files of `save_onnx`."""

_ONNX_OPSET, _ONNX_IR = 17, 8
"""Versions of 2022, so that older runtimes can read the graphs."""


def to_onnx(model: CaptioningRNN) -> dict[str, onnx.ModelProto]:
    """Convert a model to two ONNX graphs: the projection of the features, and a decoding step.

    Parameters
    ----------
    model : CaptioningRNN
        A model with V words, features of width D and hidden states of width H.

    Returns
    -------
    dict of str to onnx.ModelProto
        Graphs for any number of rows N, with floats in the dtype of the model:

        ``project``
            ``features`` (N, D) -> ``h`` (N, H), the initial hidden state. The initial cell state
            of an LSTM is zero.
        ``step``
            ``word`` (N,) int64 in [-V, V), ``h`` (N, H) and, for the LSTM, ``c`` (N, H) ->
            ``log_probs`` (N, V) of the next word, in nats, ``next_h`` (N, H) and, for the LSTM,
            ``next_c`` (N, H). The first word is ``<START>``.

        Their ``metadata_props`` contain ``cell_type`` and ``word_to_idx`` (JSON).

    Raises
    ------
    ImportError
        If onnx is not installed.
    TypeError, ValueError
        If a parameter has been replaced by one that is neither float32 nor float64, or whose shape
        does not match the others.

    Notes
    -----
    The graphs use opset 17. They are built of elementary operators, not of ONNX's LSTM, because
    runtimes support these in float64 too.
    """
    try:
        import onnx
    except ImportError:
        raise_missing("export to ONNX", "onnx", "onnx")
    from onnx import helper, numpy_helper

    p, make = checked_params(model, _CELLS), helper.make_node
    (V, _), (D, H) = p["W_embed"].shape, p["W_proj"].shape
    real = helper.np_dtype_to_tensor_dtype(p["W_embed"].dtype)

    def graph(
        name: str,
        nodes: list[onnx.NodeProto],
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
        constants: Mapping[str, np.ndarray],
    ) -> onnx.ModelProto:
        weights = [numpy_helper.from_array(w, constant) for constant, w in constants.items()]
        proto = helper.make_model(
            helper.make_graph(nodes, name, inputs, outputs, weights),
            opset_imports=[helper.make_opsetid("", _ONNX_OPSET)],
            ir_version=_ONNX_IR,
            producer_name="fastrnn",
            producer_version=__version__,
        )
        helper.set_model_props(proto, metadata_of(model))
        onnx.checker.check_model(proto, full_check=True)
        return proto

    def floats(name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, real, ["N", width])

    project = graph(
        "project",
        [make("Gemm", ["features", "W_proj", "b_proj"], ["h"])],
        [floats("features", D)],
        [floats("h", H)],
        {name: p[name] for name in ("W_proj", "b_proj")},
    )

    constants = {name: p[name] for name in ("W_embed", "Wx", "Wh", "b", "W_vocab", "b_vocab")}
    nodes = [
        make("Gather", ["W_embed", "word"], ["x"]),
        make("Gemm", ["x", "Wx", "b"], ["a_x"]),
        make("Gemm", ["h", "Wh", "a_x"], ["a"]),
    ]
    states, cell_nodes, cell_constants = _CELLS[model.cell_type](H)
    constants |= cell_constants
    nodes += cell_nodes
    nodes += [
        make("Gemm", ["next_h", "W_vocab", "b_vocab"], ["scores"]),
        make("LogSoftmax", ["scores"], ["log_probs"], axis=1),
    ]
    word = helper.make_tensor_value_info("word", onnx.TensorProto.INT64, ["N"])
    step = graph(
        "step",
        nodes,
        [word, *(floats(state, H) for state in states)],
        [floats("log_probs", V), *(floats(f"next_{state}", H) for state in states)],
        constants,
    )
    return {"project": project, "step": step}


def _rnn(H: int) -> _Cell:
    from onnx.helper import make_node as make

    return ["h"], [make("Tanh", ["a"], ["next_h"])], {}


def _lstm(H: int) -> _Cell:
    from onnx.helper import make_node as make

    nodes = [
        make("Split", ["a", "gates_and_g"], ["a_ifo", "a_g"], axis=1),
        make("Sigmoid", ["a_ifo"], ["ifo"]),
        make("Tanh", ["a_g"], ["g"]),
        make("Split", ["ifo", "gates"], ["i", "f", "o"], axis=1),
        make("Mul", ["f", "c"], ["kept"]),
        make("Mul", ["i", "g"], ["new"]),
        make("Add", ["kept", "new"], ["next_c"]),
        make("Tanh", ["next_c"], ["shown"]),
        make("Mul", ["o", "shown"], ["next_h"]),
    ]
    sizes = {"gates_and_g": np.array([3 * H, H], np.int64), "gates": np.array([H] * 3, np.int64)}
    return ["h", "c"], nodes, sizes


_Cell = tuple[list[str], list["onnx.NodeProto"], dict[str, np.ndarray]]
_CELLS: dict[str, Callable[[int], _Cell]] = {"rnn": _rnn, "lstm": _lstm}
"""For each cell and hidden size: the names of its states, the nodes from the pre-activations ``a``
to the next states, and their constants."""


def save_onnx(directory: str | os.PathLike[str], model: CaptioningRNN) -> None:
    """Write the graphs of `to_onnx` to ``project.onnx`` and ``step.onnx``, atomically.

    Parameters
    ----------
    directory : path
        The directory, created if it does not exist. Existing files are replaced.
    model : CaptioningRNN
        The model.

    Raises
    ------
    ImportError, TypeError, ValueError
        See `to_onnx`.
    OSError
        If a file cannot be written; existing files are then unchanged.
    """
    contents = {name: proto.SerializeToString() for name, proto in to_onnx(model).items()}
    make_directory(directory)
    write_all_aside({
        Path(directory) / file: methodcaller("write", contents[name])
        for name, file in ONNX_FILES.items()
    })  # fmt: skip
