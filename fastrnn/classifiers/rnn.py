"""CaptioningRNN: image features in, captions out.

The loss with its gradients is one fused pass in the compiled core, and so is greedy decoding;
both give what the layers of `fastrnn.rnn_layers` give one after the other
(`fastrnn.reference.classifier` spells that out).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from .._core import captioner as _core
from .._core import greedy as _greedy
from .._core import scheduled as _scheduled
from .._core.runtime import Workspace
from ..files import is_text, read_sealed, write_sealed
from ..reference import checks
from ..reference.random import EMBED, MIX, VOCAB, stream_seed

FORMAT = 2
"""Version of the arrangement of a model's file."""
MODEL_FILE = "model.npz"
"""The model in a run directory."""


@dataclass(frozen=True)
class Regularisation:
    """What keeps a captioner from learning its captions by heart; all of it is off by default.

    Parameters
    ----------
    embed_dropout : float
        Probability with which an element of a word vector is zero, each time the word goes in;
        the others are divided by one minus it (Srivastava et al. 2014).
    vocab_dropout : float
        The same for the hidden states as the vocabulary reads them; the recurrence keeps them
        whole (Zaremba, Sutskever and Vinyals 2014).
    label_smoothing : float
        Share of a target's probability that is spread evenly over all words (Szegedy et al. 2016).
    scheduled_sampling : float
        Probability with which a word that goes in is drawn from the model, given the words that
        went in before it and without dropout, instead of taken from the caption (Bengio, Vinyals,
        Jaitly and Shazeer 2015).
    seed : int
        Decides what is drawn, in [0, 2**64). A draw depends on the seed, the row of the batch, the
        time step and the unit alone.

    Raises
    ------
    TypeError, ValueError
        A field has the wrong type or value; the message begins with its name.
    """

    embed_dropout: float = 0.0
    vocab_dropout: float = 0.0
    label_smoothing: float = 0.0
    scheduled_sampling: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name == "seed":
                value = checks.as_int(name, value)
                if not 0 <= value < 2**64:
                    raise ValueError(f"seed is {value}; expected an integer in [0, 2**64)")
            else:
                value = checks.as_number(name, value)
                whole = name == "scheduled_sampling"
                if not 0 <= value <= 1 or (value == 1 and not whole):
                    raise ValueError(
                        f"{name} is {value}; expected a number in [0, 1{']' if whole else ')'}"
                    )
            # Plain Python values: the seeds of the streams do not fit into NumPy's integers.
            object.__setattr__(self, name, value)


class CaptioningWorkspace:
    """Memory of `CaptioningRNN.loss` that grows to the largest batch and stays.

    With one, a training step allocates nothing in its steady state. It serves one model, one
    thread at a time: a second thread that uses it meanwhile gets a RuntimeError. A copy, and what
    is read from a pickle, is a new and empty workspace.
    """

    def __init__(self) -> None:
        self.memory = Workspace()
        self.grads: dict[str, np.ndarray] | None = None

    def __reduce__(self) -> tuple[type[CaptioningWorkspace], tuple[()]]:
        return type(self), ()

    @property
    def nbytes(self) -> int:
        """Bytes held at present, gradients included."""
        return self.memory.nbytes + sum(grad.nbytes for grad in (self.grads or {}).values())


class CaptioningRNN:
    """A recurrent network that says what is in a picture.

    The picture's features are projected to the first hidden state; then each word goes in and the
    next word is to come out.

    Parameters
    ----------
    word_to_idx : mapping of str to int
        The vocabulary, V entries, ``<NULL>`` among them. ``<START>`` is needed for sampling and
        ``<END>`` for stopping there; both may be absent while only the loss is asked for.
    input_dim : int, optional
        D, the width of the image features.
    wordvec_dim : int, optional
        W, the width of the word vectors.
    hidden_dim : int, optional
        H, the width of the hidden state.
    cell_type : {'rnn', 'lstm'}, optional
        Plain tanh recurrence or LSTM.
    dtype : float32 or float64, optional
        The dtype of the parameters; float64 is for gradient checks.

    Attributes
    ----------
    params : dict of str to ndarray
        ``W_embed (V, W)``, ``W_proj (D, H)``, ``b_proj (H,)``, ``Wx (W, kH)``, ``Wh (H, kH)``,
        ``b (kH,)``, ``W_vocab (H, V)``, ``b_vocab (V,)``, with k = 4 for the LSTM (gates i, f, o,
        g) and 1 else. Entries may be replaced or changed in place between calls.
    word_to_idx, idx_to_word : dict
        The vocabulary and its inverse.
    cell_type, dtype
        As given.

    Raises
    ------
    ValueError
        `cell_type` is neither name, or a dimension is less than 1.
    TypeError
        `dtype` is neither float32 nor float64.
    KeyError
        `word_to_idx` lacks ``<NULL>``.

    Notes
    -----
    Weights are drawn from the global ``np.random`` in the order of `params`, in float64, scaled
    by 1/100 (W_embed) or one over the root of their number of rows, and then cast: a seed gives
    the weights that it gives with the course's class. Biases start at zero.
    """

    def __init__(
        self,
        word_to_idx: Mapping[str, int],
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "rnn",
        dtype: Any = np.float32,
    ) -> None:
        if cell_type not in ("rnn", "lstm"):
            raise ValueError(f'Invalid cell_type "{cell_type}"')
        for name, dim in (
            ("input_dim", input_dim),
            ("wordvec_dim", wordvec_dim),
            ("hidden_dim", hidden_dim),
        ):
            if dim < 1:
                raise ValueError(f"{name} must be at least 1, was {dim}")
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise TypeError(f"dtype must be float32 or float64, was {np.dtype(dtype)}")
        if "<NULL>" not in word_to_idx:
            raise KeyError("word_to_idx has no '<NULL>', the word that fills captions up")

        self.cell_type = cell_type
        self.dtype = dtype
        self.word_to_idx = word_to_idx
        self.idx_to_word = {idx: word for word, idx in word_to_idx.items()}
        self._null = word_to_idx["<NULL>"]
        self._start = word_to_idx.get("<START>")
        self._end = word_to_idx.get("<END>")

        vocab_size = len(word_to_idx)
        gates = {"rnn": 1, "lstm": 4}[cell_type] * hidden_dim
        drawn = {
            "W_embed": np.random.randn(vocab_size, wordvec_dim) / 100,
            "W_proj": np.random.randn(input_dim, hidden_dim) / np.sqrt(input_dim),
            "b_proj": np.zeros(hidden_dim),
            "Wx": np.random.randn(wordvec_dim, gates) / np.sqrt(wordvec_dim),
            "Wh": np.random.randn(hidden_dim, gates) / np.sqrt(hidden_dim),
            "b": np.zeros(gates),
            "W_vocab": np.random.randn(hidden_dim, vocab_size) / np.sqrt(hidden_dim),
            "b_vocab": np.zeros(vocab_size),
        }
        self.params: dict[str, np.ndarray] = {k: v.astype(dtype) for k, v in drawn.items()}

    def loss(
        self,
        features: np.ndarray,
        captions: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        workspace: CaptioningWorkspace | None = None,
        regularisation: Regularisation | None = None,
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """Compute the training loss and its gradients.

        Parameters
        ----------
        features : float ndarray (N, D)
            Image features.
        captions : int ndarray (N, T + 1)
            Their captions, from ``<START>``, filled up with ``<NULL>``.
        weights : float ndarray (N,), optional
            By how much each caption counts, 1 by default. A negative weight makes a caption less
            probable: with rewards less their baseline, the gradient is REINFORCE's (Williams 1992).
        workspace : CaptioningWorkspace, optional
            Memory to use again from call to call. The gradients that come back then belong to it:
            the next call with it writes over them. Without one they are new arrays.
        regularisation : Regularisation, optional
            Dropout, label smoothing, scheduled sampling; nothing by default.

        Returns
        -------
        loss : float64
            Cross-entropy of captions[:, 1:] given captions[:, :-1], summed over all words that
            are not ``<NULL>``, each times its caption's weight, divided by N; in nats. With label
            smoothing, against the smoothed targets.
        grads : dict of str to ndarray
            The gradient for each entry of `params`, in the common dtype of features and `params`.

        Raises
        ------
        ValueError
            Shapes that do not fit one another or `params`; weights that are not finite.
        TypeError
            Captions that are not integers, features or weights that are not real numbers.
        IndexError
            Word ids outside [-V, V).
        RuntimeError
            Another thread uses `workspace` at this moment.
        """
        features, captions = self._check_batch(features, captions)
        given: dict[str, Any] = {}
        if weights is not None:
            given["weights"] = weights
        if regularisation is not None:
            given.update(
                embed_dropout=regularisation.embed_dropout,
                embed_seed=stream_seed(regularisation.seed, EMBED),
                vocab_dropout=regularisation.vocab_dropout,
                vocab_seed=stream_seed(regularisation.seed, VOCAB),
                label_smoothing=regularisation.label_smoothing,
            )
            if regularisation.scheduled_sampling:
                given["inputs"] = _scheduled.mix(
                    self.params, features, captions, regularisation.scheduled_sampling,
                    stream_seed(regularisation.seed, MIX), self._null, self.cell_type,
                )  # fmt: skip
        if workspace is None:
            return _core.loss(self.params, features, captions, self._null, self.cell_type, **given)
        loss, grads = _core.loss(
            self.params, features, captions, self._null, self.cell_type, workspace.memory,
            workspace.grads, **given,
        )  # fmt: skip
        workspace.grads = dict(grads)
        return loss, grads

    def word_log_probs(
        self,
        features: np.ndarray,
        captions: np.ndarray,
        *,
        workspace: CaptioningWorkspace | None = None,
    ) -> np.ndarray:
        """Compute how probable the model finds each word of captions: forward alone.

        Parameters
        ----------
        features : float ndarray (N, D)
            Image features.
        captions : int ndarray (N, T + 1)
            Their captions, from ``<START>``, filled up with ``<NULL>``.
        workspace : CaptioningWorkspace, optional
            Memory to use again from call to call.

        Returns
        -------
        float64 ndarray (N, T)
            The log-probability, in nats, of captions[:, 1:] given captions[:, :-1]; 0 for
            ``<NULL>``. Summed and divided by -N, it is `loss`.

        Raises
        ------
        ValueError, TypeError, IndexError
            As `loss`.
        """
        features, captions = self._check_batch(features, captions)
        memory = None if workspace is None else workspace.memory
        return _core.word_log_probs(
            self.params, features, captions, self._null, self.cell_type, memory
        )

    def sample(
        self, features: np.ndarray, max_length: int = 30, *, stop_at_end: bool = False
    ) -> np.ndarray:
        """Caption pictures greedily: at each step the word with the highest score.

        Parameters
        ----------
        features : float ndarray (N, D)
            Image features.
        max_length : int, optional
            The number of words.
        stop_at_end : bool, optional
            True fills a row with ``<NULL>`` after its first ``<END>``, and returns as soon as every
            row is finished. False, as the course has it, lets rows run on.

        Returns
        -------
        int32 ndarray (N, max_length)
            Word ids. Column 0 has the first sampled word, not ``<START>``.

        Raises
        ------
        ValueError
            Features that do not fit, a negative `max_length`, or a vocabulary without ``<START>``
            (or without ``<END>``, with `stop_at_end`).
        """
        features = self._check_features(features)
        if max_length < 0:
            raise ValueError(f"max_length must be at least 0, was {max_length}")
        checks.check_count("max_length", max_length)
        if self._start is None:
            raise ValueError("word_to_idx has no '<START>', the word that sampling begins with")
        if stop_at_end and self._end is None:
            raise ValueError("word_to_idx has no '<END>', the word for stop_at_end to stop at")

        captions = np.full((features.shape[0], max_length), self._null, dtype=np.int32)
        end = self._end if stop_at_end else None
        _greedy.decode(self.params, features, self._start, end, captions, self.cell_type)
        return captions

    def _check_batch(
        self, features: np.ndarray, captions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        features, captions = self._check_features(features), np.asarray(captions)
        if captions.ndim != 2 or captions.shape[1] < 1 or captions.shape[0] != features.shape[0]:
            raise ValueError(
                f"captions must have shape (N, T + 1) with N = {features.shape[0]} as in features, "
                f"was {captions.shape}"
            )
        if captions.dtype.kind not in "iu":
            raise TypeError(f"captions must be integers, dtype was {captions.dtype}")
        return features, captions

    def _check_features(self, features: np.ndarray) -> np.ndarray:
        features = np.asarray(features)
        input_dim = self.params["W_proj"].shape[0]
        if features.ndim != 2 or features.shape[1] != input_dim:
            raise ValueError(
                f"features must have shape (N, D) with D = {input_dim} as in params['W_proj'], "
                f"was {features.shape}"
            )
        return features

    # -- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to an npz file, whole or not at all.

        Parameters
        ----------
        path : path
            The file; an old one is replaced.

        Raises
        ------
        OSError
            The file cannot be written; an old one is then as it was.
        """
        write_sealed(path, self.to_arrays())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CaptioningRNN:
        """Read a model that `save` or ``fastrnn train`` wrote.

        Parameters
        ----------
        path : path
            The npz file, a checkpoint's among them, or a run directory: its best model.

        Returns
        -------
        CaptioningRNN
            With ``params`` and vocabulary as saved.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is damaged or holds no model.
        """
        path = Path(path)
        if path.is_dir():
            path = path / MODEL_FILE
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such model file", str(path))
        arrays = read_sealed(path)
        try:
            return cls.from_arrays(arrays)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return all that makes up the model as arrays, none of them of Python objects.

        Returns
        -------
        dict of str to ndarray
            `params`, as they are and not copied; ``cell_type``, the vocabulary (``words`` and
            ``word_ids``) and ``format``, the version of this arrangement.
        """
        words = sorted(self.word_to_idx, key=self.word_to_idx.__getitem__)
        for word in words:
            # NumPy takes null characters at the end for nothing.
            if not isinstance(word, str) or "\0" in word or not is_text(word):
                raise ValueError(f"word_to_idx has {word!r}; expected words that are text")
        return {
            **self.params,
            "format": np.array(FORMAT),
            "cell_type": np.array(self.cell_type),
            "words": np.array(words, dtype=np.str_),
            "word_ids": np.array([index(self.word_to_idx[word]) for word in words], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> CaptioningRNN:
        """Make a model of what `to_arrays` returned; arrays of other names are left alone.

        Raises
        ------
        ValueError
            Arrays are missing or do not fit one another, or `format` is of another time.
        """
        model, wrong = None, None
        try:
            version = int(arrays["format"])
            if version == FORMAT:
                words, ids = arrays["words"], arrays["word_ids"]
                if words.dtype.kind != "U" or ids.dtype.kind not in "iu":
                    raise ValueError(f"its words are {words.dtype}, their ids {ids.dtype}")
                known = dict(zip(words.tolist(), ids.tolist(), strict=True))
                if not all(map(is_text, known)):
                    raise ValueError("its words are no text")
                dtype, cell = arrays["W_embed"].dtype, str(arrays["cell_type"])
                if dtype not in (np.float32, np.float64) or cell not in ("rnn", "lstm"):
                    raise ValueError(f"its cell is {cell!r:.20}, of {dtype}")
                input_dim, hidden_dim = arrays["W_proj"].shape
                wordvec_dim = arrays["W_embed"].shape[1]
                # A model takes memory by these dimensions, so first they must be the arrays' own.
                wrong = _describe_misfit(
                    arrays, len(known), input_dim, hidden_dim, wordvec_dim, cell, dtype
                )
                if wrong is None:
                    model = blank_model(
                        known, input_dim, wordvec_dim, hidden_dim, cell, dtype, kind=cls
                    )
        except (KeyError, ValueError, IndexError, TypeError, OverflowError) as error:
            raise ValueError(f"holds no model of fastrnn ({error})") from None
        if version != FORMAT:
            raise ValueError(f"format is {version}; this fastrnn reads format {FORMAT}")
        if model is None:
            raise ValueError(wrong)
        model.params.update({name: arrays[name] for name in model.params})
        return model


def _describe_misfit(
    arrays: Mapping[str, np.ndarray], vocab_size: int, input_dim: int, hidden_dim: int,
    wordvec_dim: int, cell_type: str, dtype: np.dtype,
) -> str | None:  # fmt: skip
    """Say which array is not what the parameters of a model with these dimensions are."""
    gates = hidden_dim if cell_type == "rnn" else 4 * hidden_dim
    shapes = {
        "W_embed": (vocab_size, wordvec_dim), "W_proj": (input_dim, hidden_dim),
        "b_proj": (hidden_dim,), "Wx": (wordvec_dim, gates), "Wh": (hidden_dim, gates),
        "b": (gates,), "W_vocab": (hidden_dim, vocab_size), "b_vocab": (vocab_size,),
    }  # fmt: skip
    for name, shape in shapes.items():
        saved = arrays.get(name)
        if saved is None or saved.shape != shape or saved.dtype != dtype:
            was = "missing" if saved is None else f"{saved.dtype} of shape {saved.shape}"
            return f"{name} is {was}; expected {dtype} of shape {shape}"
    return None


def blank_model(
    *args: Any, seed: int = 0, kind: type[CaptioningRNN] = CaptioningRNN, **kwargs: Any
) -> CaptioningRNN:
    """Make a `CaptioningRNN` whose weights a seed decides, and leave ``np.random`` as it was."""
    state = np.random.get_state()
    try:
        np.random.seed(seed)
        return kind(*args, **kwargs)
    finally:
        np.random.set_state(state)
