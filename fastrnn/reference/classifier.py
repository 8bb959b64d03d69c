"""The captioning model in plain NumPy: the reference for ``fastrnn.classifiers.rnn``."""

from typing import Any

import numpy as np

from .. import checks
from ..words import END, NULL, START
from . import bfloat16, random
from .cells import CELLS
from .decoding import initial_state, mix, step
from .layers import affine_backward, affine_forward
from .rnn_layers import (
    temporal_affine_backward,
    temporal_affine_forward,
    temporal_softmax_loss,
    word_embedding_backward,
    word_embedding_forward,
)

__all__ = ["CaptioningRNN"]


class CaptioningRNN:
    """A recurrent network that generates image captions.

    An affine layer maps the image features to the initial hidden state. The words of the caption
    are embedded and fed in, one per time step. Another affine layer maps each hidden state to
    scores for the next word ("Show and Tell", Vinyals et al., 2015, but with the image as initial
    state).

    Parameters
    ----------
    word_to_idx : dict of str to int
        The vocabulary. ``<NULL>`` pads captions. ``<START>`` and ``<END>`` may be missing if they
        are not needed for sampling.
    input_dim : int, default 512
        Size D of the image features.
    wordvec_dim : int, default 128
        Size W of the word vectors.
    hidden_dim : int, default 128
        Size H of the hidden state.
    cell_type : {'rnn', 'lstm'}, default 'rnn'
        The recurrent cell.
    dtype : dtype, default float32
        dtype of the initial parameters.

    Attributes
    ----------
    params : dict of str to ndarray
        ``W_embed`` (V, W), ``W_proj`` (D, H), ``b_proj`` (H,), ``Wx`` (W, kH), ``Wh`` (H, kH),
        ``b`` (kH,), ``W_vocab`` (H, V), ``b_vocab`` (V,), where k is 4 for the LSTM and 1 for the
        RNN, and V is the number of words. Entries may be changed in place or replaced.
    precision : {'float32', 'bfloat16'}
        ``'bfloat16'`` rounds the operands of matrix products (`fastrnn.reference.bfloat16`).

    Raises
    ------
    ValueError
        If `cell_type` is unknown.
    KeyError
        If the vocabulary lacks ``<NULL>``.

    Notes
    -----
    The parameters are drawn by the global ``np.random`` in the order listed above, in float64, and
    then cast to `dtype`. With the same seed, they equal those of the compiled model.
    """

    def __init__(
        self,
        word_to_idx: dict[str, int],
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "rnn",
        dtype: Any = np.float32,
    ) -> None:
        if cell_type not in CELLS:
            raise ValueError(f'Invalid cell_type "{cell_type}"')
        if NULL not in word_to_idx:
            raise KeyError(f"word_to_idx has no {NULL!r}; expected the word that pads captions")

        self.cell_type = cell_type
        self.dtype: Any = dtype
        self.precision = "float32"
        self.word_to_idx = word_to_idx
        self.idx_to_word: dict[int, str] = {index: word for word, index in word_to_idx.items()}
        self._null = word_to_idx[NULL]
        self._start = word_to_idx.get(START)
        self._end = word_to_idx.get(END)

        V, D, W, H = len(word_to_idx), input_dim, wordvec_dim, hidden_dim
        gates = CELLS[cell_type].gates
        randn = np.random.randn
        params = {
            "W_embed": randn(V, W) / 100,
            "W_proj": randn(D, H) / np.sqrt(D),
            "b_proj": np.zeros(H),
            "Wx": randn(W, gates * H) / np.sqrt(W),
            "Wh": randn(H, gates * H) / np.sqrt(H),
            "b": np.zeros(gates * H),
            "W_vocab": randn(H, V) / np.sqrt(H),
            "b_vocab": np.zeros(V),
        }
        self.params: dict[str, np.ndarray] = {
            name: param.astype(dtype) for name, param in params.items()
        }

    def loss(
        self,
        features: np.ndarray,
        captions: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        regularisation: Any = None,
    ) -> tuple[np.float64, dict[str, np.ndarray]]:
        """Compute the loss and its gradients for a batch of images and captions.

        The inputs are all words but the last, the targets all words but the first. ``<NULL>``
        targets and captions with weight 0 contribute exactly 0, even if their scores are NaN. The
        network does not run past the last target of a caption.

        Parameters
        ----------
        features : ndarray, shape (N, D)
            Image features.
        captions : ndarray of int, shape (N, T + 1)
            Word ids of the captions.
        weights : ndarray of float, shape (N,), optional
            Weight of each caption in the loss. Default 1.
        regularisation : fastrnn.classifiers.rnn.Regularisation, optional
            Dropout, label smoothing and scheduled sampling. None by default.

        Returns
        -------
        loss : float64
            Cross-entropy in nats, summed over time and averaged over the batch.
        grads : dict of str to ndarray
            Gradient of each entry of `params`.

        Raises
        ------
        TypeError
            If the common dtype of `features` and the parameters is neither float32 nor float64,
            or `captions` are not integers.
        ValueError
            If the shapes do not match each other or the parameters.
        IndexError
            If a word id is outside ``[-V, V)``.
        """
        p, cell = self.params, CELLS[self.cell_type]
        features = checks.as_floats(features=features, **p)[0]
        (captions,) = checks.as_integers(captions=captions)
        checks.match_shapes(
            {"D": len(p["W_proj"])}, features=(features, "N D"), captions=(captions, "N L")
        )
        if captions.shape[1] < 1:
            raise ValueError(f"captions has shape {captions.shape}; expected (N, T + 1)")
        checks.match_model({**p, "features": features}, cell.gates)
        checks.check_ids("captions", captions, len(p["W_embed"]))
        captions_in, captions_out = captions[:, :-1], captions[:, 1:]
        mask = captions_out != self._null
        if weights is not None:
            mask = mask * checks.as_caption_weights(weights, len(features))[:, None]
        scored = (mask != 0)[..., None]
        lengths = np.max(scored[..., 0] * np.arange(1, mask.shape[1] + 1), axis=1, initial=0)
        if regularisation is not None and regularisation.scheduled_sampling:
            seed = random.stream_seed(regularisation.seed, random.MIX)
            share = regularisation.scheduled_sampling
            captions_in = mix(
                p, features, captions, share, seed, self._null, self.cell_type, self.precision
            )

        if checks.is_bfloat16(self.precision, features.dtype):
            return self._rounded_loss(
                features, captions_in, captions_out, mask, lengths, regularisation
            )

        h0, project_cache = affine_forward(features, p["W_proj"], p["b_proj"])
        words, embed_cache = word_embedding_forward(captions_in, p["W_embed"])
        embed_mask, vocab_mask = self._dropout_masks(captions_in.shape, words, h0, regularisation)
        read_mask = vocab_mask * scored
        x = _masked(words, embed_mask)
        h, cell_cache = cell.forward(x, h0, p["Wx"], p["Wh"], p["b"], lengths=lengths)
        h_read = _masked(h, read_mask)
        scores, vocab_cache = temporal_affine_forward(h_read, p["W_vocab"], p["b_vocab"])
        loss, dscores = temporal_softmax_loss(scores, captions_out, mask)
        if regularisation is not None and regularisation.label_smoothing:
            smoothing = regularisation.label_smoothing
            loss, dscores = _smoothed(loss, dscores, scores, captions_out, mask, smoothing)

        grads = {}
        dh, grads["W_vocab"], grads["b_vocab"] = temporal_affine_backward(dscores, vocab_cache)
        dh = _masked(dh, read_mask)
        dwords, dh0, grads["Wx"], grads["Wh"], grads["b"] = cell.backward(dh, cell_cache)
        grads["W_embed"] = word_embedding_backward(_masked(dwords, embed_mask), embed_cache)
        _, grads["W_proj"], grads["b_proj"] = affine_backward(dh0, project_cache)
        return loss, grads

    def _rounded_loss(
        self, features: np.ndarray, captions_in: np.ndarray, captions_out: np.ndarray,
        mask: np.ndarray, lengths: np.ndarray, regularisation: Any,
    ) -> tuple[np.float64, dict[str, np.ndarray]]:  # fmt: skip
        """Compute the loss and its gradients in bfloat16.

        Each word is multiplied by Wx once, so the gradients of its products are added up before
        they are rounded. With dropout, each token has its own word vector.
        """
        p, cell = self.params, CELLS[self.cell_type]
        forward, backward = bfloat16.affine_forward, bfloat16.affine_backward
        h0, project_cache = affine_forward(features, p["W_proj"], p["b_proj"])
        words, embed_cache = word_embedding_forward(captions_in, p["W_embed"])
        embed_mask, vocab_mask = self._dropout_masks(captions_in.shape, words, h0, regularisation)
        read_mask = vocab_mask * (mask != 0)[..., None]
        if embed_mask.ndim:
            inputs, input_cache = forward(_masked(words, embed_mask), p["Wx"], p["b"])
        else:
            products, input_cache = forward(p["W_embed"], p["Wx"], p["b"])
            inputs = products[captions_in]
        h, cell_cache = bfloat16.sequence_forward(cell.apply_gates, inputs, h0, p["Wh"], lengths)
        scores, vocab_cache = forward(_masked(h, read_mask), p["W_vocab"], p["b_vocab"])
        loss, dscores = temporal_softmax_loss(scores, captions_out, mask)
        if regularisation is not None and regularisation.label_smoothing:
            smoothing = regularisation.label_smoothing
            loss, dscores = _smoothed(loss, dscores, scores, captions_out, mask, smoothing)

        grads = {}
        dh, grads["W_vocab"], grads["b_vocab"] = backward(dscores, vocab_cache)
        dh = _masked(dh, read_mask)
        dinputs, dh0, grads["Wh"], grads["b"] = bfloat16.sequence_backward(
            cell.gates_backward, dh, cell_cache
        )
        if embed_mask.ndim:
            dwords, grads["Wx"], _ = backward(dinputs, input_cache)
            grads["W_embed"] = word_embedding_backward(_masked(dwords, embed_mask), embed_cache)
        else:
            dproducts = word_embedding_backward(dinputs, (captions_in, products))
            grads["W_embed"], grads["Wx"], _ = backward(dproducts, input_cache)
        _, grads["W_proj"], grads["b_proj"] = affine_backward(dh0, project_cache)
        return loss, grads

    def _dropout_masks(
        self, shape: tuple[int, int], words: np.ndarray, h0: np.ndarray, regularisation: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return dropout masks of the word vectors (N, T, W) and hidden states (N, T, H), or 1."""
        masks = []
        for x, rate, stream in (
            (words, getattr(regularisation, "embed_dropout", 0), random.EMBED),
            (h0, getattr(regularisation, "vocab_dropout", 0), random.VOCAB),
        ):
            if rate:
                seed = random.stream_seed(regularisation.seed, stream)
                mask = random.dropout_mask(seed, *shape, x.shape[-1], rate)
            else:
                mask = np.ones(())
            masks.append(mask.astype(x.dtype))
        return masks[0], masks[1]

    def word_log_probs(self, features: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """Compute the log-probability of each word of captions.

        Parameters
        ----------
        features : ndarray, shape (N, D)
            Image features.
        captions : ndarray of int, shape (N, T + 1)
            Word ids of the captions.

        Returns
        -------
        ndarray of float64, shape (N, T)
            Log-probability in nats of ``captions[:, 1:]`` given ``captions[:, :-1]``; 0 for
            ``<NULL>``.
        """
        N, T = captions.shape[0], captions.shape[1] - 1
        found = np.zeros((N, T))
        for n in range(N):
            for t in range(T):
                if captions[n, t + 1] != self._null:
                    # the loss of the words up to this one; the words after it are masked
                    alone = np.full((1, T + 1), self._null)
                    alone[0, : t + 2] = captions[n, : t + 2]
                    found[n, t] = -self.loss(features[n : n + 1], alone)[0] - found[n, :t].sum()
        return found

    def sample(
        self, features: np.ndarray, max_length: int = 30, *, stop_at_end: bool = False
    ) -> np.ndarray:
        """Caption images greedily: take the word with the highest score at each step.

        Parameters
        ----------
        features : ndarray, shape (N, D)
            Image features.
        max_length : int, default 30
            Number of words to sample.
        stop_at_end : bool, default False
            True fills a row with ``<NULL>`` after its first ``<END>``. False continues after
            ``<END>``, as the course does.

        Returns
        -------
        captions : ndarray of int32, shape (N, max_length)
            Word ids; column 0 holds the first sampled word, not ``<START>``.

        Raises
        ------
        TypeError
            If the dtype of `features` is not float32, float64 or integer.
        ValueError
            If the shape of `features` does not match the parameters, or the vocabulary lacks
            ``<START>`` (or ``<END>``, with `stop_at_end`).
        """
        p = self.params
        if self._start is None:
            raise ValueError(
                f"word_to_idx has no {START!r}; expected the word that sampling starts from"
            )
        if stop_at_end and self._end is None:
            raise ValueError(
                f"word_to_idx has no {END!r}; expected the word that stop_at_end stops at"
            )
        (features,) = checks.as_floats(features=features)
        N = checks.match_shapes({"D": len(p["W_proj"])}, features=(features, "N D"))["N"]

        h, c = initial_state(p, features)
        word = np.full(N, self._start)
        captions = np.full((N, max_length), self._null, dtype=np.int32)
        running = np.ones(N, dtype=bool)
        for t in range(max_length):
            scores, (h, c) = step(p, word, (h, c), self.cell_type, self.precision)
            word = scores.argmax(axis=1)
            captions[running, t] = word[running]
            if stop_at_end:
                running &= word != self._end
        return captions


def _masked(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return ``x * mask``, with zero where the mask is zero, even if x is NaN or Inf there."""
    return np.where(mask, x * mask, 0).astype(x.dtype)


def _smoothed(
    loss: np.float64,
    dscores: np.ndarray,
    scores: np.ndarray,
    words: np.ndarray,
    mask: np.ndarray,
    smoothing: float,
) -> tuple[np.float64, np.ndarray]:
    """Add label smoothing: change the target to (1 - smoothing) onehot(word) + smoothing / V.

    Cross-entropy is linear in the target, and its gradient is softmax minus target. So both change
    by a term that depends only on the change of the target (Szegedy et al. 2016, section 7).
    """
    N, _, V = scores.shape
    if N == 0:
        return loss, dscores
    target_scores = np.take_along_axis(scores, words[..., None] % V, axis=2)[..., 0]
    # cross-entropy with the uniform target minus cross-entropy with the word, times smoothing
    change = smoothing * (target_scores - scores.mean(axis=2))
    loss = loss + (mask * np.where(mask, change, 0)).sum(dtype=np.float64) / N
    move = np.full_like(scores, -smoothing / V)
    np.put_along_axis(move, words[..., None] % V, smoothing - smoothing / V, axis=2)
    return loss, dscores + (mask[..., None] * move / N).astype(scores.dtype)
