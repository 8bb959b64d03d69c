"""Models for other libraries, and back: PyTorch's state_dict, safetensors files, ONNX graphs.

PyTorch multiplies from the left and keeps the gates in the order i, f, g, o, where this package
has i, f, o, g: weights are transposed and gates put in order here, on the way out and in. The
numbers themselves stay as they are, so that a round trip is exact. PyTorch, safetensors and onnx
are loaded only by the functions that need them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from . import __version__, checks
from .checkpoint import blank_model
from .classifiers.rnn import CaptioningRNN
from .files import write_aside

if TYPE_CHECKING:
    import onnx
    import torch

ONNX_FILES = {"project": "project.onnx", "step": "step.onnx"}
"""What `save_onnx` calls the graphs of `to_onnx`."""

_ONNX_OPSET, _ONNX_IR = 17, 8  # of 2022, so that runtimes which are not the newest read them too
_PARTS = ("embed", "project", "rnn", "vocab")
_TORCH_GATES = [0, 1, 3, 2]  # i, f, o, g <-> i, f, g, o: the same exchange both ways


def _missing(what: str, package: str, extra: str) -> NoReturn:
    raise ImportError(
        f'{what} needs the package {package}: pip install "fastrnn[{extra}]"'
    ) from None


def _shapes(cell_type: str) -> dict[str, str]:
    gates = {"rnn": "H", "lstm": "4H"}[cell_type]
    return {
        "W_embed": "V W",
        "W_proj": "D H",
        "b_proj": "H",
        "Wx": f"W {gates}",
        "Wh": f"H {gates}",
        "b": gates,
        "W_vocab": "H V",
        "b_vocab": "V",
    }


def _checked_params(model: CaptioningRNN) -> dict[str, np.ndarray]:
    """Return the parameters in their common dtype, in shapes that fit: users may replace them."""
    shapes = _shapes(model.cell_type)
    arrays = checks.as_floats(**{name: model.params[name] for name in shapes})
    params = dict(zip(shapes, arrays, strict=True))
    embed, project = params["W_embed"], params["W_proj"]
    # The two matrices that decide the sizes are held to two axes before they decide any.
    sizes = checks.match_shapes(None, W_embed=(embed, "V W"), W_proj=(project, "D H"))
    checks.match_shapes(sizes, **{name: (params[name], spec) for name, spec in shapes.items()})
    return params


def _exchange_gates(w: np.ndarray, cell_type: str) -> np.ndarray:
    """Exchange the gates o and g along the first axis of (kH, ...)."""
    if cell_type != "lstm":
        return w
    return w.reshape(4, -1, *w.shape[1:])[_TORCH_GATES].reshape(w.shape)


def _state_arrays(model: CaptioningRNN) -> dict[str, np.ndarray]:
    """Return what `to_torch` returns, as arrays of their own memory."""
    p, cell = _checked_params(model), model.cell_type
    state = {
        "embed.weight": p["W_embed"],
        "project.weight": p["W_proj"].T,
        "project.bias": p["b_proj"],
        "rnn.weight_ih_l0": _exchange_gates(p["Wx"].T, cell),
        "rnn.weight_hh_l0": _exchange_gates(p["Wh"].T, cell),
        "rnn.bias_ih_l0": _exchange_gates(p["b"], cell),
        "rnn.bias_hh_l0": np.zeros_like(p["b"]),
        "vocab.weight": p["W_vocab"].T,
        "vocab.bias": p["b_vocab"],
    }
    return {name: np.array(w, order="C", copy=True) for name, w in state.items()}


def _vocabulary(model: CaptioningRNN) -> dict[str, str]:
    """Return what a file says beside the weights: text under names."""
    words = {word: int(idx) for word, idx in model.word_to_idx.items()}
    return {"cell_type": model.cell_type, "word_to_idx": json.dumps(words)}


# -- PyTorch


def to_torch(model: CaptioningRNN) -> dict[str, torch.Tensor]:
    """Convert a model to the state_dict of a PyTorch model.

    Parameters
    ----------
    model : CaptioningRNN
        V words, features of width D, word vectors of width W, hidden state of width H.

    Returns
    -------
    dict of str to torch.Tensor
        In the dtype of the model, on the CPU, in memory of their own. With k = 4 for the LSTM
        (gates i, f, g, o, as PyTorch has them) and 1 else:

        ==================== ======== ==================================================
        ``embed.weight``     (V, W)   ``torch.nn.Embedding(V, W)``
        ``project.weight``   (H, D)   ``torch.nn.Linear(D, H)``: features to the first
        ``project.bias``     (H,)     hidden state; an LSTM's first cell state is zero
        ``rnn.weight_ih_l0`` (kH, W)  ``torch.nn.LSTM(W, H)`` or ``torch.nn.RNN(W, H)``
        ``rnn.weight_hh_l0`` (kH, H)
        ``rnn.bias_ih_l0``   (kH,)
        ``rnn.bias_hh_l0``   (kH,)    zeros: PyTorch has two biases where one is enough
        ``vocab.weight``     (V, H)   ``torch.nn.Linear(H, V)``: hidden state to scores
        ``vocab.bias``       (V,)
        ==================== ======== ==================================================

    Raises
    ------
    ImportError
        PyTorch is not installed.
    TypeError, ValueError
        A parameter of the model has been replaced by one that is neither float32 nor float64, or
        whose shape does not fit the others.

    See Also
    --------
    torch_module : the PyTorch model itself.
    from_torch : the way back.
    """
    try:
        import torch
    except ImportError:
        _missing("export to PyTorch", "torch", "torch")
    return {name: torch.from_numpy(w) for name, w in _state_arrays(model).items()}


@cache
def _captioner_class() -> type[torch.nn.Module]:
    """Define the module of `torch_module` once PyTorch is there to be derived from."""
    import torch
    from torch import nn

    class TorchCaptioner(nn.Module):
        """The PyTorch twin of `CaptioningRNN`: forward scores the word after each word."""

        def __init__(
            self, V: int, D: int, W: int, H: int, cell_type: str, dtype: torch.dtype
        ) -> None:
            super().__init__()
            cell = {"rnn": nn.RNN, "lstm": nn.LSTM}[cell_type]
            self.embed = nn.Embedding(V, W, dtype=dtype)
            self.project = nn.Linear(D, H, dtype=dtype)
            self.rnn = cell(W, H, batch_first=True, dtype=dtype)
            self.vocab = nn.Linear(H, V, dtype=dtype)

        def forward(self, features: torch.Tensor, captions_in: torch.Tensor) -> torch.Tensor:
            h0 = self.project(features)[None]
            state = (h0, torch.zeros_like(h0)) if isinstance(self.rnn, nn.LSTM) else h0
            h, _ = self.rnn(self.embed(captions_in), state)
            return self.vocab(h)

    return TorchCaptioner


def torch_module(model: CaptioningRNN) -> torch.nn.Module:
    """Make a PyTorch model that computes what a model computes.

    Parameters
    ----------
    model : CaptioningRNN

    Returns
    -------
    torch.nn.Module
        ``module(features, captions_in)`` takes tensors (N, D), of the model's dtype, and (N, T),
        int64 in [0, V), and returns scores (N, T, V), of which the cross-entropy with the next
        words is the loss. Its ``state_dict()`` is that of `to_torch`, so `from_torch` reads it
        after training. It is in training mode (which changes nothing here: it has no dropout),
        and PyTorch's random state is left as it was.

    Raises
    ------
    ImportError, TypeError, ValueError
        As `to_torch`.

    Examples
    --------
    The loss of ``model.loss(features, captions)``:

    >>> module = torch_module(model)  # doctest: +SKIP
    >>> scores = module(features, captions[:, :-1])  # doctest: +SKIP
    >>> loss = torch.nn.functional.cross_entropy(  # doctest: +SKIP
    ...     scores.flatten(0, 1), captions[:, 1:].flatten(), reduction="sum",
    ...     ignore_index=model.word_to_idx["<NULL>"]) / len(features)
    """
    state = to_torch(model)
    import torch

    (V, W), (H, D) = state["embed.weight"].shape, state["project.weight"].shape
    # On the device "meta" no weights are drawn that the state_dict would replace at once.
    with torch.device("meta"):
        module = _captioner_class()(V, D, W, H, model.cell_type, state["embed.weight"].dtype)
    module.load_state_dict(state, assign=True)
    return module


def from_torch(
    state_dict: Mapping[str, Any],
    word_to_idx: Mapping[str, int],
    *,
    names: Mapping[str, str] | None = None,
) -> CaptioningRNN:
    """Make a model of a PyTorch state_dict; cell type and sizes are read off the shapes.

    Parameters
    ----------
    state_dict : mapping of str to torch.Tensor or ndarray
        The entries that `to_torch` lists and no others, all float32 or all float64, of
        ``torch.nn.LSTM`` or ``torch.nn.RNN`` (with tanh, as is its default) of one layer and one
        direction. The two biases of the cell are added up. PyTorch itself is not needed: arrays
        that ``safetensors.numpy.load_file`` gives will do.
    word_to_idx : mapping of str to int
        The vocabulary, V entries.
    names : mapping of str to str, optional
        What the modules ``embed``, ``project``, ``rnn`` and ``vocab`` are called in `state_dict`
        where they are called otherwise, such as ``{"rnn": "decoder.lstm", "vocab": "fc"}``.

    Returns
    -------
    CaptioningRNN
        With weights of its own memory. The state of ``np.random`` is left as it was.

    Raises
    ------
    TypeError
        `state_dict` is no mapping, or its entries are not all float32 or all float64.
    ValueError
        An entry is missing, is one too many (a second layer, another direction, a projection of
        the hidden state, another module), has a shape that does not fit the others, or as many
        rows as `word_to_idx` has not; or the cell is neither LSTM nor RNN.
    KeyError
        `word_to_idx` lacks ``<NULL>``.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict is {type(state_dict).__name__}; expected a mapping of names to tensors, "
            "such as module.state_dict()"
        )
    called = _module_names(names)
    entries = {
        f"{part}.{leaf}": f"{called[part]}.{leaf}"
        for part, leaves in {
            "embed": ["weight"],
            "project": ["weight", "bias"],
            "rnn": ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"],
            "vocab": ["weight", "bias"],
        }.items()
        for leaf in leaves
    }
    _check_entries(state_dict, entries.values(), f"{called['rnn']}.")
    state = {entry: _as_array(entry, state_dict[entry]) for entry in entries.values()}
    dtypes = {str(w.dtype): entry for entry, w in state.items()}
    if len(dtypes) > 1:
        found = " and ".join(f"{entry} is {dtype}" for dtype, entry in dtypes.items())
        raise TypeError(f"{found}; expected one dtype, float32 or float64, for all")

    cell_type = _cell_type(entries["rnn.weight_hh_l0"], state[entries["rnn.weight_hh_l0"]])
    gates = {"rnn": "H", "lstm": "4H"}[cell_type]
    embed = entries["embed.weight"]
    if state[embed].ndim == 2 and len(state[embed]) != len(word_to_idx):
        raise ValueError(
            f"{embed} has {len(state[embed])} rows; expected one for each of the "
            f"{len(word_to_idx)} words of word_to_idx"
        )
    specs = {
        "rnn.weight_hh_l0": f"{gates} H",
        "embed.weight": "V W",
        "project.weight": "H D",
        "project.bias": "H",
        "rnn.weight_ih_l0": f"{gates} W",
        "rnn.bias_ih_l0": gates,
        "rnn.bias_hh_l0": gates,
        "vocab.weight": "V H",
        "vocab.bias": "V",
    }
    hidden = state[entries["rnn.weight_hh_l0"]].shape[1]
    sizes = checks.match_shapes(
        {"H": hidden, "V": len(word_to_idx)},
        **{entries[name]: (state[entries[name]], spec) for name, spec in specs.items()},
    )

    w = {name: state[entry] for name, entry in entries.items()}
    bias, extra = w["rnn.bias_ih_l0"], w["rnn.bias_hh_l0"]
    # Zeros are left out of the sum, which would make 0.0 of -0.0.
    bias = bias + extra if extra.any() else bias
    model = blank_model(
        word_to_idx, sizes["D"], sizes["W"], sizes["H"], cell_type, w["embed.weight"].dtype
    )
    params = {
        "W_embed": w["embed.weight"],
        "W_proj": w["project.weight"].T,
        "b_proj": w["project.bias"],
        "Wx": _exchange_gates(w["rnn.weight_ih_l0"], cell_type).T,
        "Wh": _exchange_gates(w["rnn.weight_hh_l0"], cell_type).T,
        "b": _exchange_gates(bias, cell_type),
        "W_vocab": w["vocab.weight"].T,
        "b_vocab": w["vocab.bias"],
    }
    model.params.update({name: np.array(p, order="C", copy=True) for name, p in params.items()})
    return model


def _module_names(names: Mapping[str, str] | None) -> dict[str, str]:
    called = {part: part for part in _PARTS}
    for part, name in (names or {}).items():
        if part not in called:
            raise ValueError(f"names has {part!r}; expected some of {', '.join(_PARTS)}")
        called[part] = name
    return called


def _check_entries(found: Iterable[str], wanted: Iterable[str], cell: str) -> None:
    """Refuse entries that are missing or too many; entries of the cell begin with `cell`."""
    found, wanted = list(found), list(wanted)
    for name in found:
        if name in wanted:
            continue
        why = "a CaptioningRNN has no place for it"
        if str(name).startswith(cell):
            leaf = name[len(cell) :]
            if leaf.endswith("_reverse"):
                why = "the cell is bidirectional; expected one direction"
            elif leaf.startswith("weight_hr_"):
                why = "the cell projects its hidden state (proj_size); expected none of that"
            elif leaf.startswith(("weight_", "bias_")):
                why = "the cell has several layers; expected one"
        raise ValueError(f"state_dict has {name!r}: {why}")
    for name in wanted:
        if name not in found:
            has = ", ".join(map(str, found)) or "nothing"
            raise ValueError(f"state_dict has no {name!r}; it has {has}")


def _as_array(name: str, value: Any) -> np.ndarray:
    """Return a tensor or an array as an array of float32 or float64."""
    dtype = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    if dtype not in ("float32", "float64"):
        raise TypeError(f"{name} is {dtype}; expected float32 or float64")
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def _cell_type(name: str, weight_hh: np.ndarray) -> str:
    """Tell the cell by its recurrent weights, (kH, H)."""
    rows, hidden = weight_hh.shape if weight_hh.ndim == 2 else (0, 0)
    if hidden and rows == 3 * hidden:
        raise ValueError(
            f"{name} has shape {weight_hh.shape}, (3H, H), that of a GRU; expected an LSTM's "
            "(4H, H) or an RNN's (H, H)"
        )
    if not hidden or rows not in (hidden, 4 * hidden):
        raise ValueError(
            f"{name} has shape {weight_hh.shape}; expected an LSTM's (4H, H) or an RNN's (H, H)"
        )
    return "rnn" if rows == hidden else "lstm"


def save_safetensors(path: str | os.PathLike[str], model: CaptioningRNN) -> None:
    """Write the state_dict of `to_torch` to a safetensors file, whole or not at all.

    PyTorch is needed neither here nor for reading it; ``torch.save``'s own format is a pickle,
    which can run code when it is read. The metadata holds ``cell_type`` and ``word_to_idx``
    (JSON). ``safetensors.torch.load_file`` gives the state_dict.

    Parameters
    ----------
    path : path
        The file; an old one is replaced.
    model : CaptioningRNN

    Raises
    ------
    ImportError
        safetensors is not installed.
    TypeError, ValueError
        As `to_torch`.
    OSError
        The file cannot be written; an old one is then as it was.
    """
    try:
        from safetensors.numpy import save
    except ImportError:
        _missing("a safetensors file", "safetensors", "torch")
    # Hugging Face's libraries ask for the entry "format": whose tensors these are.
    content = save(_state_arrays(model), metadata={"format": "pt", **_vocabulary(model)})
    write_aside(path, methodcaller("write", content))


# -- ONNX


def to_onnx(model: CaptioningRNN) -> dict[str, onnx.ModelProto]:
    """Convert a model to two ONNX graphs: features to the first state, and a step of decoding.

    Parameters
    ----------
    model : CaptioningRNN
        V words, features of width D, hidden state of width H.

    Returns
    -------
    dict of str to onnx.ModelProto
        Both for any number of rows N, floats in the dtype of the model, checked by
        ``onnx.checker``.

        ``project``
            ``features`` (N, D) -> ``h`` (N, H), the first hidden state. An LSTM's first cell
            state is zero.
        ``step``
            ``word`` (N,) int64 in [-V, V), ``h`` (N, H) and, for the LSTM, ``c`` (N, H) ->
            ``log_probs`` (N, V), in nats, of the word that comes next, ``next_h`` (N, H) and, for
            the LSTM, ``next_c`` (N, H). The first word is ``<START>``.

        Their ``metadata_props`` hold ``cell_type`` and ``word_to_idx`` (JSON). They take opset
        17, and elementary operators rather than ONNX's LSTM: runtimes have those in float64 too.

    Raises
    ------
    ImportError
        onnx is not installed.
    TypeError, ValueError
        As `to_torch`.
    """
    try:
        import onnx
    except ImportError:
        _missing("export to ONNX", "onnx", "onnx")
    from onnx import helper, numpy_helper

    p, make = _checked_params(model), helper.make_node
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
        helper.set_model_props(proto, _vocabulary(model))
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
    states = ["h"]
    if model.cell_type == "lstm":
        states.append("c")
        constants["gates_and_g"] = np.array([3 * H, H], dtype=np.int64)
        constants["gates"] = np.array([H, H, H], dtype=np.int64)
        nodes += [
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
    else:
        nodes.append(make("Tanh", ["a"], ["next_h"]))
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


def save_onnx(directory: str | os.PathLike[str], model: CaptioningRNN) -> None:
    """Write the graphs of `to_onnx` as ``project.onnx`` and ``step.onnx``, each whole or not.

    Parameters
    ----------
    directory : path
        Made where it does not exist; old files of these names are replaced.
    model : CaptioningRNN

    Raises
    ------
    ImportError, TypeError, ValueError
        As `to_onnx`.
    OSError
        A file cannot be written; an old one is then as it was.
    """
    contents = {name: proto.SerializeToString() for name, proto in to_onnx(model).items()}
    Path(directory).mkdir(parents=True, exist_ok=True)
    for name, file_name in ONNX_FILES.items():
        write_aside(Path(directory) / file_name, methodcaller("write", contents[name]))
