"""What every export format needs: checked parameters, the vocabulary, errors about packages."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import NoReturn

import numpy as np

from .. import checks
from .._core.runtime import CELL_GATES
from ..classifiers.rnn import CaptioningRNN
from ..extras import install_command


def checked_params(model: CaptioningRNN, cells: Collection[str]) -> dict[str, np.ndarray]:
    """Return the parameters of a model in their common dtype, after checking their shapes.

    The checks are needed because users may replace the arrays in ``model.params``. `cells` are the
    cell types that the format can store.
    """
    if model.cell_type not in cells:
        raise ValueError(f"cell_type is {model.cell_type!r}; expected one of {', '.join(cells)}")
    shapes = checks.parameter_shapes(CELL_GATES[model.cell_type])
    arrays = checks.as_floats(**{name: model.params[name] for name in shapes})
    params = dict(zip(shapes, arrays, strict=True))
    checks.match_shapes(**{name: (params[name], spec) for name, spec in shapes.items()})
    return params


def metadata_of(model: CaptioningRNN) -> dict[str, str]:
    """Return the metadata to store with the weights: the cell type, and the vocabulary as JSON."""
    words = {word: int(idx) for word, idx in model.word_to_idx.items()}
    return {"cell_type": model.cell_type, "word_to_idx": json.dumps(words)}


def raise_missing(what: str, package: str, extra: str) -> NoReturn:
    """Raise an ImportError that says how to install a package."""
    raise ImportError(f"{what} needs the package {package}: {install_command(extra)}") from None
