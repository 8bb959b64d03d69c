"""Convert models to PyTorch and back: state_dicts, modules and safetensors files.

PyTorch stores weights transposed, and its LSTM has the gates in the order i, f, g, o instead of
i, f, o, g. Both are converted here, in both directions. Converting does not change the numbers, so
a round trip is exact.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from operator import methodcaller
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import checks
from .._core.runtime import CELL_GATES
from ..checkpoint import seeded_model
from ..classifiers.rnn import CaptioningRNN
from ..files import write_aside
from .parameters import checked_params, metadata_of, raise_missing

if TYPE_CHECKING:
    import torch

_MODULES = ("embed", "project", "rnn", "vocab")
_CELLS = {"rnn": ("RNN", [0]), "lstm": ("LSTM", [0, 1, 3, 2])}
"""The class of each cell in ``torch.nn``, and the order that converts its gates to PyTorch's order
and back: i, f, o, g to i, f, g, o for the LSTM."""


def _swap_gates(w: np.ndarray, cell_type: str) -> np.ndarray:
    """Convert the order of the gates along the first axis of (kH, ...)."""
    _, order = _CELLS[cell_type]
    return w.reshape(len(order), -1, *w.shape[1:])[order].reshape(w.shape)


def _state_arrays(model: CaptioningRNN) -> dict[str, np.ndarray]:
    """Return the entries of `to_torch` as new arrays."""
    p, cell = checked_params(model, _CELLS), model.cell_type
    state = {
        "embed.weight": p["W_embed"],
        "project.weight": p["W_proj"].T,
        "project.bias": p["b_proj"],
        "rnn.weight_ih_l0": _swap_gates(p["Wx"].T, cell),
        "rnn.weight_hh_l0": _swap_gates(p["Wh"].T, cell),
        "rnn.bias_ih_l0": _swap_gates(p["b"], cell),
        "rnn.bias_hh_l0": np.zeros_like(p["b"]),
        "vocab.weight": p["W_vocab"].T,
        "vocab.bias": p["b_vocab"],
    }
    return {name: np.array(w, order="C", copy=True) for name, w in state.items()}


def to_torch(model: CaptioningRNN) -> dict[str, torch.Tensor]:
    """Convert a model to the state_dict of a PyTorch model.

    Parameters
    ----------
    model : CaptioningRNN
        A model with V words, features of width D, word vectors of width W and hidden states of
        width H.

    Returns
    -------
    dict of str to torch.Tensor
        New tensors on the CPU, in the dtype of the model. With k = 4 for the LSTM (gates in
        PyTorch's order i, f, g, o) and k = 1 for the RNN:

        ==================== ======== ==================================================
        ``embed.weight``     (V, W)   ``torch.nn.Embedding(V, W)``
        ``project.weight``   (H, D)   ``torch.nn.Linear(D, H)``: features to the first
        ``project.bias``     (H,)     hidden state; an LSTM's first cell state is zero
        ``rnn.weight_ih_l0`` (kH, W)  ``torch.nn.LSTM(W, H)`` or ``torch.nn.RNN(W, H)``
        ``rnn.weight_hh_l0`` (kH, H)
        ``rnn.bias_ih_l0``   (kH,)
        ``rnn.bias_hh_l0``   (kH,)    zeros: PyTorch's second bias is redundant
        ``vocab.weight``     (V, H)   ``torch.nn.Linear(H, V)``: hidden state to scores
        ``vocab.bias``       (V,)
        ==================== ======== ==================================================

    Raises
    ------
    ImportError
        If PyTorch is not installed.
    TypeError, ValueError
        If a parameter has been replaced by one that is neither float32 nor float64, or whose shape
        does not match the others.

    See Also
    --------
    torch_module : Convert a model to a PyTorch module.
    from_torch : Convert a state_dict to a model.
    """
    try:
        import torch
    except ImportError:
        raise_missing("export to PyTorch", "torch", "torch")
    return {name: torch.from_numpy(w) for name, w in _state_arrays(model).items()}


@cache
def _captioner_class() -> type[torch.nn.Module]:
    """Define the class of `torch_module`; its base class is known only after importing PyTorch."""
    import torch
    from torch import nn

    class TorchCaptioner(nn.Module):
        """`CaptioningRNN` in PyTorch: forward returns the scores of the next word."""

        def __init__(
            self, V: int, D: int, W: int, H: int, cell_type: str, dtype: torch.dtype
        ) -> None:
            super().__init__()
            cell = getattr(nn, _CELLS[cell_type][0])
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
    """Convert a model to a PyTorch module that computes the same scores.

    Parameters
    ----------
    model : CaptioningRNN
        The model.

    Returns
    -------
    torch.nn.Module
        ``module(features, captions_in)`` takes features (N, D) in the dtype of the model and int64
        word ids (N, T) in [0, V), and returns the scores (N, T, V) of the next words. Their
        cross-entropy is the loss. The module's ``state_dict()`` has the entries of `to_torch`, so
        `from_torch` can convert it back after training. The module has no dropout.

    Raises
    ------
    ImportError, TypeError, ValueError
        See `to_torch`.

    Notes
    -----
    PyTorch's random state does not change.

    Examples
    --------
    Compute the loss of ``model.loss(features, captions)``:

    .. code-block:: python

        module = torch_module(model)
        scores = module(features, captions[:, :-1])
        loss = torch.nn.functional.cross_entropy(
            scores.flatten(0, 1), captions[:, 1:].flatten(), reduction="sum",
            ignore_index=model.word_to_idx["<NULL>"],
        ) / len(features)
    """
    state = to_torch(model)
    import torch

    (V, W), (H, D) = state["embed.weight"].shape, state["project.weight"].shape
    # On the "meta" device no initial weights are drawn: the state_dict replaces them anyway.
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
    """Convert a PyTorch state_dict to a model.

    The cell type and the sizes are inferred from the shapes.

    Parameters
    ----------
    state_dict : mapping of str to torch.Tensor or ndarray
        Exactly the entries that `to_torch` lists, all float32 or all float64. The cell must be a
        ``torch.nn.LSTM``, or a ``torch.nn.RNN`` with tanh, with one layer and one direction. Its
        two biases are added. PyTorch is not required: the arrays that
        ``safetensors.numpy.load_file`` returns work too.
    word_to_idx : mapping of str to int
        The vocabulary, V words.
    names : mapping of str to str, optional
        Names of the modules ``embed``, ``project``, ``rnn`` and ``vocab`` in `state_dict`, if they
        differ, such as ``{"rnn": "decoder.lstm", "vocab": "fc"}``.

    Returns
    -------
    CaptioningRNN
        A model with a copy of the weights.

    Raises
    ------
    TypeError
        If `state_dict` is not a mapping, or its entries are not all float32 or all float64.
    ValueError
        If an entry is missing, is not expected (a second layer, another direction, a projection of
        the hidden state, another module) or has a shape that does not match the others; if the
        embedding does not have one row per word of `word_to_idx`; or if the cell is neither an
        LSTM nor an RNN.
    KeyError
        If `word_to_idx` does not contain ``<NULL>``.

    Notes
    -----
    The state of ``np.random`` does not change.
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
        raise TypeError(f"{found}; expected the same dtype, float32 or float64, for all entries")

    cell_type = _cell_type(entries["rnn.weight_hh_l0"], state[entries["rnn.weight_hh_l0"]])
    gates = checks.gate_columns(CELL_GATES[cell_type])
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
    # Adding zeros would change -0.0 to 0.0.
    bias = bias + extra if extra.any() else bias
    model = seeded_model(
        word_to_idx, sizes["D"], sizes["W"], sizes["H"], cell_type, w["embed.weight"].dtype
    )
    params = {
        "W_embed": w["embed.weight"],
        "W_proj": w["project.weight"].T,
        "b_proj": w["project.bias"],
        "Wx": _swap_gates(w["rnn.weight_ih_l0"], cell_type).T,
        "Wh": _swap_gates(w["rnn.weight_hh_l0"], cell_type).T,
        "b": _swap_gates(bias, cell_type),
        "W_vocab": w["vocab.weight"].T,
        "b_vocab": w["vocab.bias"],
    }
    model.params.update({name: np.array(p, order="C", copy=True) for name, p in params.items()})
    return model


def _module_names(names: Mapping[str, str] | None) -> dict[str, str]:
    called = {part: part for part in _MODULES}
    for part, name in (names or {}).items():
        if part not in called:
            raise ValueError(f"names has {part!r}; expected some of {', '.join(_MODULES)}")
        called[part] = name
    return called


def _check_entries(found: Iterable[str], wanted: Iterable[str], cell: str) -> None:
    """Check that no entry is missing or unexpected; `cell` is the prefix of the cell's entries."""
    found, wanted = list(found), list(wanted)
    for name in found:
        if name in wanted:
            continue
        why = "expected only the entries of a CaptioningRNN"
        if str(name).startswith(cell):
            leaf = name[len(cell) :]
            if leaf.endswith("_reverse"):
                why = "the cell is bidirectional; expected one direction"
            elif leaf.startswith("weight_hr_"):
                why = "the cell projects its hidden state (proj_size); expected no projection"
            elif leaf.startswith(("weight_", "bias_")):
                why = "the cell has several layers; expected one"
        raise ValueError(f"state_dict has {name!r}; {why}")
    for name in wanted:
        if name not in found:
            has = ", ".join(map(str, found)) or "nothing"
            raise ValueError(f"state_dict has {has}; expected {name!r} too")


def _as_array(name: str, value: Any) -> np.ndarray:
    """Convert a tensor or an array to an array, after checking its dtype."""
    dtype = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    if dtype not in ("float32", "float64"):
        raise TypeError(f"{name} is {dtype}; expected float32 or float64")
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def _cell_type(name: str, weight_hh: np.ndarray) -> str:
    """Return the cell type that matches the shape of the recurrent weights, (kH, H)."""
    rows, hidden = weight_hh.shape if weight_hh.ndim == 2 else (0, 0)
    if hidden and rows == 3 * hidden:
        raise ValueError(
            f"{name} has shape {weight_hh.shape}, which is a GRU's (3H, H); expected an LSTM's "
            "(4H, H) or an RNN's (H, H)"
        )
    for cell_type in _CELLS:
        if hidden and rows == CELL_GATES[cell_type] * hidden:
            return cell_type
    raise ValueError(
        f"{name} has shape {weight_hh.shape}; expected an LSTM's (4H, H) or an RNN's (H, H)"
    )


def save_safetensors(path: str | os.PathLike[str], model: CaptioningRNN) -> None:
    """Write the state_dict of `to_torch` to a safetensors file, atomically.

    ``safetensors.torch.load_file`` reads the state_dict. The metadata of the file contain
    ``cell_type`` and ``word_to_idx`` (JSON). Writing does not require PyTorch. Unlike the pickles
    of ``torch.save``, the file cannot run code when it is read.

    Parameters
    ----------
    path : path
        The file. An existing file is replaced.
    model : CaptioningRNN
        The model.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    TypeError, ValueError
        See `to_torch`.
    OSError
        If the file cannot be written; an existing file is then unchanged.
    """
    try:
        from safetensors.numpy import save
    except ImportError:
        raise_missing("a safetensors file", "safetensors", "safetensors")
    # Hugging Face's libraries require the entry "format"; "pt" means PyTorch.
    content = save(_state_arrays(model), metadata={"format": "pt", **metadata_of(model)})
    write_aside(path, methodcaller("write", content))
