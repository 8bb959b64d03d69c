"""CaptioningRNN: a recurrent network that captions images from their features.

The loss with its gradients runs as one fused pass in the compiled core, and so does greedy
decoding. `fastrnn.reference.classifier` computes the same results layer by layer in NumPy.
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

from .. import checks
from .._core import captioner as _core
from .._core import greedy as _greedy
from .._core import scheduled as _scheduled
from .._core.runtime import CELL_GATES, Workspace
from ..files import is_text, read_sealed, write_sealed
from ..seeds import EMBED, MIX, VOCAB, stream_seed
from ..words import END, NULL, START

__all__ = [
    "CaptioningRNN",
    "CaptioningWorkspace",
    "FORMAT",
    "MODEL_FILE",
    "Regularisation",
    "np",
    "seeded_model",
]

FORMAT = 2
"""Version of the model file format."""
MODEL_FILE = "model.npz"
"""Name of the model file in a run directory."""


@dataclass(frozen=True)
class Regularisation:
    """Settings that reduce overfitting to the training captions. All are off by default.

    Parameters
    ----------
    embed_dropout : float
        Dropout probability of each element of an input word vector, in [0, 1). Kept elements are
        divided by 1 - `embed_dropout` (Srivastava et al. 2014).
    vocab_dropout : float
        Dropout probability of the hidden states as input of the vocabulary layer, in [0, 1). There
        is no dropout on the recurrent connections (Zaremba, Sutskever and Vinyals 2014).
    label_smoothing : float
        Share of the target probability that is spread evenly over all words, in [0, 1) (Szegedy
        et al. 2016).
    scheduled_sampling : float
        Probability that an input word is drawn from the model instead of taken from the caption,
        in [0, 1]. The model is conditioned on the earlier inputs and runs without dropout (Bengio,
        Vinyals, Jaitly and Shazeer 2015).
    seed : int
        Random seed, in [0, 2**64). Each random number depends only on the seed, the row of the
        batch, the time step and the unit.

    Raises
    ------
    TypeError, ValueError
        If a field has the wrong type or value. The message begins with the name of the field.
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
            # Store plain Python numbers: computing stream seeds would overflow NumPy integers.
            object.__setattr__(self, name, value)


class CaptioningWorkspace:
    """Reusable memory for `CaptioningRNN.loss`. It grows to the size of the largest batch.

    With a workspace, training steps stop allocating memory once it has grown. A workspace belongs
    to one model and may be used by one thread at a time; a second thread gets a RuntimeError. A
    copied or unpickled workspace is new and empty.
    """

    def __init__(self) -> None:
        self.memory: Workspace = Workspace()
        self.grads: dict[str, np.ndarray] | None = None

    def __reduce__(self) -> tuple[type[CaptioningWorkspace], tuple[()]]:
        return type(self), ()

    @property
    def nbytes(self) -> int:
        """Number of bytes currently held, including the gradients."""
        return self.memory.nbytes + sum(grad.nbytes for grad in (self.grads or {}).values())


class CaptioningRNN:
    """A recurrent network that generates image captions.

    The image features are projected to the initial hidden state. At each time step, the network
    reads one word of the caption and scores every word of the vocabulary as the next word.

    Parameters
    ----------
    word_to_idx : mapping of str to int
        Vocabulary of V words, including ``<NULL>``. ``<START>`` is required for sampling, and
        ``<END>`` for sampling with `stop_at_end`; the loss needs neither.
    input_dim : int, optional
        Size D of the image features. Default 512.
    wordvec_dim : int, optional
        Size W of the word vectors. Default 128.
    hidden_dim : int, optional
        Size H of the hidden state. Default 128.
    cell_type : {'rnn', 'lstm'}, optional
        Vanilla RNN with tanh (default), or LSTM.
    dtype : float32 or float64, optional
        dtype of the parameters. Default float32; use float64 for gradient checks.

    Attributes
    ----------
    params : dict of str to ndarray
        ``W_embed (V, W)``, ``W_proj (D, H)``, ``b_proj (H,)``, ``Wx (W, kH)``, ``Wh (H, kH)``,
        ``b (kH,)``, ``W_vocab (H, V)``, ``b_vocab (V,)``, with k = 4 for the LSTM (gates i, f, o,
        g) and k = 1 for the RNN. Entries may be replaced or changed in place between calls.
    precision : {'float32', 'bfloat16'}
        What the operands of matrix products are rounded to, in `loss`, `word_log_probs`, `sample`
        and `fastrnn.decoding`. ``'float32'`` (default) rounds nothing, whatever `dtype` is.
        ``'bfloat16'`` is faster on processors with AVX512_BF16; it needs float32 parameters, and
        converts features to float32. Only the projection of the features is not rounded. Weights,
        sums and gradients stay float32.
    word_to_idx, idx_to_word : dict
        The vocabulary and its inverse.
    cell_type, dtype
        The arguments of the constructor.

    Raises
    ------
    ValueError
        If `cell_type` is unknown, or a dimension is less than 1.
    TypeError
        If `dtype` is neither float32 nor float64.
    KeyError
        If `word_to_idx` lacks ``<NULL>``.

    Notes
    -----
    Weights are drawn by the global ``np.random`` in the order of `params`, in float64. They are
    scaled by 1/100 (``W_embed``) or by one over the square root of their number of rows, and then
    cast to `dtype`. With the same seed, they equal the weights of the course's class. Biases start
    at zero.

    Examples
    --------
    A model that has learned nothing costs about log(V) a word. These are two captions with seven
    words after ``<START>``, of a vocabulary of six:

    >>> from fastrnn.classifiers.rnn import CaptioningRNN
    >>> words = {"<NULL>": 0, "<START>": 1, "<END>": 2, "a": 3, "dog": 4, "runs": 5}
    >>> np.random.seed(0)
    >>> model = CaptioningRNN(words, input_dim=6, wordvec_dim=4, hidden_dim=8, cell_type="lstm")
    >>> features = np.random.standard_normal((2, 6)).astype(np.float32)
    >>> captions = np.array([[1, 3, 4, 2, 0], [1, 3, 4, 5, 2]])
    >>> loss, grads = model.loss(features, captions)
    >>> print(round(float(loss), 2), round(7 / 2 * np.log(6), 2))
    6.27 6.27
    >>> model.sample(features, max_length=5).shape
    (2, 5)
    """

    precision = "float32"

    def __init__(
        self,
        word_to_idx: Mapping[str, int],
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "rnn",
        dtype: Any = np.float32,
    ) -> None:
        if cell_type not in tuple(CELL_GATES):  # a tuple, because the argument may be unhashable
            raise ValueError(f'Invalid cell_type "{cell_type}"')
        for name, dim in (
            ("input_dim", input_dim),
            ("wordvec_dim", wordvec_dim),
            ("hidden_dim", hidden_dim),
        ):
            if dim < 1:
                raise ValueError(f"{name} is {dim}; expected at least 1")
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise TypeError(f"dtype is {np.dtype(dtype)}; expected float32 or float64")
        if NULL not in word_to_idx:
            raise KeyError(f"word_to_idx has no {NULL!r}; expected the word that pads captions")

        self.cell_type = cell_type
        self.dtype = dtype
        self.word_to_idx = word_to_idx
        self.idx_to_word: dict[int, str] = {idx: word for word, idx in word_to_idx.items()}
        self._null = word_to_idx[NULL]
        self._start = word_to_idx.get(START)
        self._end = word_to_idx.get(END)

        vocab_size = len(word_to_idx)
        gates = CELL_GATES[cell_type] * hidden_dim
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

    def __repr__(self) -> str:
        sizes = {
            "input_dim": ("W_proj", 0), "wordvec_dim": ("W_embed", 1), "hidden_dim": ("W_proj", 1)
        }  # fmt: skip
        found = [f"{len(self.word_to_idx):,} words"]
        for size, (name, axis) in sizes.items():
            shape = np.shape(self.params.get(name, ()))  # users may put anything there
            found.append(f"{size}={shape[axis] if len(shape) == 2 else '?'}")
        found += [f"cell_type={self.cell_type!r}", f"dtype={np.dtype(self.dtype).name}"]
        return f"{type(self).__name__}({', '.join(found)})"

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
            Word ids of the captions. Each starts with ``<START>`` and is padded with ``<NULL>``.
        weights : float ndarray (N,), optional
            Weight of each caption in the loss. Default 1. A negative weight makes a caption less
            probable: with weights equal to reward minus baseline, the gradient is that of
            REINFORCE (Williams 1992).
        workspace : CaptioningWorkspace, optional
            Memory to reuse between calls. The returned gradients then belong to the workspace,
            and the next call overwrites them. Without a workspace, they are new arrays.
        regularisation : Regularisation, optional
            Dropout, label smoothing and scheduled sampling. None by default.

        Returns
        -------
        loss : float64
            Cross-entropy in nats of ``captions[:, 1:]`` given ``captions[:, :-1]``. It is summed
            over all words except ``<NULL>``, each multiplied by the weight of its caption, and
            divided by N. With label smoothing, the targets are smoothed.
        grads : dict of str to ndarray
            Gradient of each entry of `params`, in the common dtype of features and `params`.

        Raises
        ------
        ValueError
            If shapes do not match each other or `params`, or weights are not finite.
        TypeError
            If captions are not integers, or features or weights are not real numbers.
        IndexError
            If a word id is outside ``[-V, V)``.
        RuntimeError
            If another thread is using `workspace`.
        """
        features, captions = self._check_batch(features, captions)
        given: dict[str, Any] = {"precision": self.precision}
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
                    self.precision,
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
        """Compute the log-probability of each word of captions (forward pass only).

        Parameters
        ----------
        features : float ndarray (N, D)
            Image features.
        captions : int ndarray (N, T + 1)
            Word ids of the captions. Each starts with ``<START>`` and is padded with ``<NULL>``.
        workspace : CaptioningWorkspace, optional
            Memory to reuse between calls.

        Returns
        -------
        float64 ndarray (N, T)
            Log-probability in nats of ``captions[:, 1:]`` given ``captions[:, :-1]``; 0 for
            ``<NULL>``. The sum divided by -N is the value of `loss`.

        Raises
        ------
        ValueError, TypeError, IndexError, RuntimeError
            See `loss`.
        """
        features, captions = self._check_batch(features, captions)
        memory = None if workspace is None else workspace.memory
        return _core.word_log_probs(
            self.params, features, captions, self._null, self.cell_type, memory, self.precision
        )

    def sample(
        self, features: np.ndarray, max_length: int = 30, *, stop_at_end: bool = False
    ) -> np.ndarray:
        """Caption images greedily: take the word with the highest score at each step.

        Parameters
        ----------
        features : float ndarray (N, D)
            Image features.
        max_length : int, optional
            Number of words to sample. Default 30.
        stop_at_end : bool, optional
            True fills a row with ``<NULL>`` after its first ``<END>``, and stops when all rows are
            finished. False (default) continues after ``<END>``, as the course does.

        Returns
        -------
        int32 ndarray (N, max_length)
            Word ids. Column 0 has the first sampled word, not ``<START>``.

        Raises
        ------
        ValueError
            If the shape of `features` does not match, `max_length` is negative, or the vocabulary
            lacks ``<START>`` (or ``<END>``, with `stop_at_end`).
        TypeError
            If the dtype of `features` is not numeric.
        """
        features = self._check_features(features)
        if max_length < 0:
            raise ValueError(f"max_length is {max_length}; expected at least 0")
        checks.check_count("max_length", max_length)
        if self._start is None:
            raise ValueError(
                f"word_to_idx has no {START!r}; expected the word that sampling starts from"
            )
        if stop_at_end and self._end is None:
            raise ValueError(
                f"word_to_idx has no {END!r}; expected the word that stop_at_end stops at"
            )

        end = self._end if stop_at_end else None
        return _greedy.decode(
            self.params, features, self.cell_type, self._start, end, self._null, max_length,
            self.precision,
        )  # fmt: skip

    def _check_batch(
        self, features: np.ndarray, captions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        features, captions = np.asarray(features), np.asarray(captions)
        if captions.dtype.kind not in "iu":
            raise TypeError(f"captions has dtype {captions.dtype}; expected integers")
        features = self._check_features(features)
        if captions.ndim != 2 or captions.shape[1] < 1 or captions.shape[0] != features.shape[0]:
            raise ValueError(
                f"captions has shape {captions.shape}; expected (N, T + 1) with "
                f"N = {features.shape[0]} as in features"
            )
        return features, captions

    def _check_features(self, features: np.ndarray) -> np.ndarray:
        features = np.asarray(features)
        if features.dtype.kind not in "biuf":
            raise TypeError(f"features has dtype {features.dtype}; expected real numbers")
        input_dim = self.params["W_proj"].shape[0]
        if features.ndim != 2 or features.shape[1] != input_dim:
            raise ValueError(
                f"features has shape {features.shape}; expected (N, D) with D = {input_dim} as in "
                "params['W_proj']"
            )
        return self.fit_features(features)

    def fit_features(self, features: np.ndarray) -> np.ndarray:
        """Return features in the dtype that `precision` needs: float32 for bfloat16, else any."""
        features = np.asarray(features)
        if self.precision == "bfloat16" and features.dtype.kind in "biuf":
            return features.astype(np.float32, copy=False)
        return features

    # -- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to an npz file atomically.

        Parameters
        ----------
        path : path
            File to write. An existing file is replaced.

        Raises
        ------
        OSError
            If the file cannot be written. An existing file then stays unchanged.
        ValueError
            If a word of the vocabulary cannot be stored as text.
        """
        write_sealed(path, self.to_arrays())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CaptioningRNN:
        """Read a model that was written by `save` or ``fastrnn train``.

        Parameters
        ----------
        path : path
            An npz file (a model or a checkpoint), or a run directory, whose best model is read.

        Returns
        -------
        CaptioningRNN
            The model with its saved `params` and vocabulary.

        Raises
        ------
        FileNotFoundError
            If the file does not exist.
        ValueError
            If the file is damaged or does not contain a model.
        """
        path = Path(path)
        if path.is_dir():
            path = path / MODEL_FILE
        if not path.is_file():
            what = "model file" if path.suffix == ".npz" else "run directory or model file"
            raise FileNotFoundError(errno.ENOENT, f"no such {what}", str(path))
        arrays = read_sealed(path)
        try:
            return cls.from_arrays(arrays)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the complete model as a dictionary of arrays, without object arrays.

        Returns
        -------
        dict of str to ndarray
            The entries of `params` (not copied), ``cell_type``, the vocabulary (``words`` and
            ``word_ids``), ``format``, the version of this format, and ``precision`` unless it is
            ``'float32'``.

        Raises
        ------
        ValueError
            If a word of the vocabulary cannot be stored as text, or `precision` is unknown.
        TypeError
            If `precision` is ``'bfloat16'`` and the parameters are float64.
        """
        rounds = checks.is_bfloat16(self.precision, self.params["W_embed"].dtype)
        words = sorted(self.word_to_idx, key=self.word_to_idx.__getitem__)
        for word in words:
            # NumPy strips null characters from the end of strings.
            if not isinstance(word, str) or "\0" in word or not is_text(word):
                raise ValueError(f"word_to_idx has {word!r}; expected words that are text")
        return {
            **self.params,
            "format": np.array(FORMAT),
            "cell_type": np.array(self.cell_type),
            "words": np.array(words, dtype=np.str_),
            "word_ids": np.array([index(self.word_to_idx[word]) for word in words], np.int64),
            **({"precision": np.array(self.precision)} if rounds else {}),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> CaptioningRNN:
        """Create a model from the result of `to_arrays`. Arrays with other names are ignored.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            Arrays with the names that `to_arrays` returns.

        Returns
        -------
        CaptioningRNN

        Raises
        ------
        ValueError
            If arrays are missing or do not match, or ``format`` is another version.
        """
        model, wrong = None, None
        try:
            # int() of text or of a large float could have thousands of digits.
            if arrays["format"].dtype.kind not in "iu":
                raise ValueError(f"its format is an array of {arrays['format'].dtype}")
            version = int(arrays["format"])
            if version == FORMAT:
                words, ids = arrays["words"], arrays["word_ids"]
                if words.dtype.kind != "U" or ids.dtype.kind not in "iu":
                    raise ValueError(f"its words are {words.dtype}, their ids {ids.dtype}")
                if words.ndim != 1 or ids.ndim != 1:
                    raise ValueError(f"its words are {words.ndim}-d, their ids {ids.ndim}-d")
                known = dict(zip(words.tolist(), ids.tolist(), strict=True))
                if not all(map(is_text, known)):
                    raise ValueError("its words are not valid Unicode text")
                dtype, cell = arrays["W_embed"].dtype, str(arrays["cell_type"])
                if dtype not in (np.float32, np.float64) or cell not in CELL_GATES:
                    raise ValueError(f"its cell is {cell!r:.20}, of {dtype}")
                precision = str(arrays.get("precision", "float32"))
                if precision not in checks.PRECISIONS or (
                    precision == "bfloat16" and dtype != np.float32
                ):
                    raise ValueError(f"its precision is {precision!r:.20}, of {dtype}")
                input_dim, hidden_dim = arrays["W_proj"].shape
                wordvec_dim = arrays["W_embed"].shape[1]
                # Check the arrays before a model of these dimensions is allocated.
                wrong = _describe_misfit(
                    arrays, len(known), input_dim, hidden_dim, wordvec_dim, cell, dtype
                )
                if wrong is None:
                    model = seeded_model(
                        known, input_dim, wordvec_dim, hidden_dim, cell, dtype, kind=cls
                    )
        except (KeyError, ValueError, IndexError, TypeError, OverflowError) as error:
            raise ValueError(f"is not a model of fastrnn ({error})") from None
        if version != FORMAT:
            raise ValueError(f"format is {version}; this fastrnn reads format {FORMAT}")
        if model is None:
            raise ValueError(wrong)
        model.params.update({name: arrays[name] for name in model.params})
        model.precision = precision
        return model


def _describe_misfit(
    arrays: Mapping[str, np.ndarray], vocab_size: int, input_dim: int, hidden_dim: int,
    wordvec_dim: int, cell_type: str, dtype: np.dtype,
) -> str | None:  # fmt: skip
    """Return a message about the first array with a wrong shape or dtype, or None."""
    sizes = {"V": vocab_size, "D": input_dim, "H": hidden_dim, "W": wordvec_dim}
    for name, spec in checks.parameter_shapes(CELL_GATES[cell_type]).items():
        shape, saved = checks.shape_of(spec.split(), sizes), arrays.get(name)
        if saved is None or saved.shape != shape or saved.dtype != dtype:
            was = "missing" if saved is None else f"{saved.dtype} of shape {saved.shape}"
            return f"{name} is {was}; expected {dtype} of shape {shape}"
    return None


def seeded_model(
    *args: Any, seed: int = 0, kind: type[CaptioningRNN] = CaptioningRNN, **kwargs: Any
) -> CaptioningRNN:
    """Create a `CaptioningRNN` with weights from a seed, without changing ``np.random``'s state."""
    state = np.random.get_state()
    try:
        np.random.seed(seed)
        return kind(*args, **kwargs)
    finally:
        np.random.set_state(state)
