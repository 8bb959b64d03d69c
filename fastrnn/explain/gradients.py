"""Gradients of a caption's words: by our own BPTT to the features, by PyTorch to the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..classifiers.rnn import CaptioningRNN
from ..forcing import forced_states
from ..words import START

if TYPE_CHECKING:
    from ..captioner import Captioner
    from ..data.pca import PCA

MEASURES = ("log_prob", "score", "margin")
"""What of a word can be differentiated."""
_IMAGES = 4
"""Images that the network reads at a time."""
_ROWS = 256
"""Rows of the recurrent network in a batch."""


def word_gradients(
    model: CaptioningRNN,
    features: np.ndarray,
    ids: Sequence[int],
    *,
    words: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    measure: str = "log_prob",
    never: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Differentiate the words of a caption with respect to the image features.

    The recurrent network runs by ``fastrnn.forcing.forced_states``, forward and backward through
    time, with one row for each image and word: the row of word t ends at step t.

    Parameters
    ----------
    model : CaptioningRNN
        The captioning model.
    features : float ndarray (N, D)
        Features of the images, as the model reads them.
    ids : sequence of T ints
        Word ids of the caption, without ``<START>``. The model reads it up to each word.
    words : sequence of T ints, optional
        The word to differentiate at each step. Default `ids`.
    steps : sequence of K ints, optional
        The steps to differentiate, each in [0, T). By default all, so that K = T.
    measure : {'log_prob', 'score', 'margin'}, optional
        The log-probability of the word in nats (default); its score before the softmax; or its
        score minus the largest score of another word, which is positive if greedy decoding takes
        the word.
    never : sequence of int, optional
        Words that are never generated, and so are not among the others of 'margin'.

    Returns
    -------
    values : ndarray (N, K)
        What was differentiated.
    gradients : ndarray (N, K, D)
        Its gradient with respect to the features of the image.

    Raises
    ------
    ValueError
        If a shape does not match, `measure` is unknown, or the vocabulary lacks ``<START>``.
    IndexError
        If a word id is not in [0, V), or a step not in [0, T).
    """
    p = model.params
    D, V = len(p["W_proj"]), len(p["W_embed"])
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[1] != D:
        raise ValueError(f"features has shape {features.shape}; expected (N, {D})")
    if measure not in MEASURES:
        raise ValueError(f"measure is {measure!r}; expected {', '.join(MEASURES)}")
    if START not in model.word_to_idx:
        raise ValueError(
            f"word_to_idx has no {START!r}; expected the word that captions begin with"
        )
    read = np.asarray(ids, dtype=np.intp)
    targets = read if words is None else np.asarray(words, dtype=np.intp)
    T = len(read)
    if targets.shape != (T,):
        raise ValueError(f"words has shape {targets.shape}; expected ({T},) as ids")
    for name, given in (("ids", read), ("words", targets)):
        if given.size and (given.min() < 0 or given.max() >= V):
            raise IndexError(f"{name} has a word id outside [0, {V})")
    at = np.arange(T) if steps is None else np.asarray(steps, dtype=np.intp)
    if at.size and (at.min() < 0 or at.max() >= T):
        raise IndexError(f"steps has a step outside [0, {T})")

    N, K = len(features), len(at)
    dtype = np.result_type(features.dtype, p["W_proj"].dtype)
    values, gradients = np.empty((N, K), dtype), np.empty((N, K, D), dtype)
    if not N * K:
        return values, gradients
    # Steps after the last one that counts are not run.
    inputs = read[: at.max()]
    images = max(1, _ROWS // K)
    for first in range(0, N, images):
        some = features[first : first + images].astype(dtype, copy=False)
        rows, lengths = np.arange(len(some) * K), np.tile(at + 1, len(some))
        h, backward = forced_states(model, some, inputs, copies=K, lengths=lengths)
        scores = h[rows, lengths - 1] @ p["W_vocab"] + p["b_vocab"]
        found, dscores = _measure(scores, np.tile(targets[at], len(some)), measure, never)
        dh = np.zeros_like(h)
        dh[rows, lengths - 1] = dscores @ p["W_vocab"].T
        last = first + len(some)
        values[first:last] = found.reshape(-1, K)
        gradients[first:last] = backward(dh).reshape(-1, K, D)
    return values, gradients


def _measure(
    scores: np.ndarray, words: np.ndarray, measure: str, never: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the measure of a word for each row (R, V) of scores, and its gradient (R, V)."""
    rows = np.arange(len(scores))
    own = scores[rows, words]
    dscores = np.zeros_like(scores)
    if measure == "log_prob":
        top = scores.max(axis=1, keepdims=True)
        exponents = np.exp(scores - top)
        total = exponents.sum(axis=1, keepdims=True)
        dscores -= exponents / total
        own = own - (top + np.log(total))[:, 0]
    elif measure == "margin":
        others = scores.copy()
        others[:, np.asarray(never, dtype=np.intp)] = -np.inf
        others[rows, words] = -np.inf
        best = others.argmax(axis=1)
        own = own - others[rows, best]
        dscores[rows, best] -= 1
    dscores[rows, words] += 1
    return own, dscores


def project(pca: PCA | None, features: np.ndarray) -> np.ndarray:
    """Apply a PCA to features of the network, in their dtype."""
    if pca is None:
        return features
    return ((features - pca.mean) @ pca.components.T).astype(features.dtype)


def project_back(pca: PCA | None, gradients: np.ndarray) -> np.ndarray:
    """Turn gradients with respect to the result of `project` into those of its argument."""
    return gradients if pca is None else gradients @ pca.components


def pixel_values(
    captioner: Captioner, pixels: np.ndarray, ids: Sequence[int], **options: Any
) -> np.ndarray:
    """Compute the first result of `pixel_gradients`, without the gradients to the pixels."""
    # The engine of the network is faster than its module.
    features = project(captioner.pca, captioner.network.features(pixels))
    return word_gradients(captioner.model, features, ids, **options)[0]


def pixel_gradients(
    captioner: Captioner, pixels: np.ndarray, ids: Sequence[int], **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Differentiate the words of a caption with respect to the pixels that the network reads.

    Parameters
    ----------
    captioner : Captioner
        The model with its network and its PCA.
    pixels : float ndarray (N, 3, S, S)
        Images as `fastrnn.vision.images.prepare_image` makes them.
    ids : sequence of T ints
        Word ids of the caption, without ``<START>``.
    **options
        ``words``, ``steps``, ``measure`` and ``never`` of `word_gradients`.

    Returns
    -------
    values : ndarray (N, K)
        What was differentiated.
    gradients : ndarray (N, K, 3, S, S)
        Its gradient with respect to the pixels.

    Raises
    ------
    ImportError
        If PyTorch is missing.
    ValueError
        If the network is an ONNX model, which has no gradients; and see `word_gradients`.
    """
    module = captioner.network.module  # raises ImportError if torch is missing
    import torch

    values, gradients = [], []
    for first in range(0, len(pixels), _IMAGES):
        some = torch.from_numpy(pixels[first : first + _IMAGES])
        # a quarter faster on a CPU than channels first
        x = some.contiguous(memory_format=torch.channels_last).requires_grad_()
        with torch.enable_grad():
            made = module(x)
        features = project(captioner.pca, made.detach().numpy())
        found, by_feature = word_gradients(captioner.model, features, ids, **options)
        by_feature = project_back(captioner.pca, by_feature).astype(features.dtype, copy=False)
        # The images of a batch do not interact, so each word needs one pass for all of them.
        K = found.shape[1]
        by_pixel = np.empty((len(x), K, *x.shape[1:]), features.dtype)
        for k in range(K):
            (dx,) = torch.autograd.grad(
                made, x, torch.from_numpy(np.ascontiguousarray(by_feature[:, k])),
                retain_graph=k + 1 < K,
            )  # fmt: skip
            by_pixel[:, k] = dx.numpy()
        values.append(found)
        gradients.append(by_pixel)
    return np.concatenate(values), np.concatenate(gradients)
