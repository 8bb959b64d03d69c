"""Caption images and measure the captions, for the trainer, the command line and the report.

`Evaluator` captions images of a data set and measures the captions against their references.
`loss_per_word` measures a model on captions that people wrote.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from . import metrics
from .checkpoint import describe_mismatch
from .classifiers.rnn import CaptioningRNN, CaptioningWorkspace
from .coco_utils import decode_captions
from .data.layout import CAPTIONS_FILE
from .data.references import read_references, references_file
from .decoding import Decoded, beam_search
from .metrics import METRIC_NAMES, CaptionScorer
from .words import NULL, UNK, strip_start_and_end

__all__ = [
    "Evaluator",
    "caption_images",
    "decode_images",
    "evaluate",
    "evenly_spread",
    "find_references",
    "images_with_references",
    "longest_caption",
    "loss_per_word",
    "measure",
    "perplexity",
    "references_of",
    "shorten",
    "shown_perplexity",
    "truth_of",
]

_SCORES = tuple(name for name in METRIC_NAMES if name != "meteor")
"""What `CaptionScorer` measures."""
_ROWS_AT_ONCE = 4000
"""Hypotheses that `decode_images` decodes at a time, roughly: a second or less for most models."""


def evenly_spread(count: int, limit: int | None) -> np.ndarray:
    """Return at most `limit` of the numbers below `count`, evenly spread."""
    chosen = count if limit is None else min(limit, count)
    return np.linspace(0, max(count - 1, 0), chosen).round().astype(np.intp)


# -- references


def references_of(
    data: Mapping[str, Any], split: str = "val", images: np.ndarray | None = None
) -> list[list[str]]:
    """Return the references of the images of a split.

    Parameters
    ----------
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it.
    split : {'val', 'train'}, optional
    images : int ndarray, optional
        The images, as indices; all of the split by default.

    Returns
    -------
    list of list of str
        For each of the images its captions as text, without special words; an image may have none.
        They are ``<split>_references`` of the data if it has them, else its captions decoded.
    """
    known = data.get(f"{split}_references")
    if images is None:
        images = np.arange(len(data[f"{split}_features"]) if known is None else len(known))
    if known is not None:
        return [list(known[image]) for image in images.tolist()]
    captions, image_idxs = data[f"{split}_captions"], data[f"{split}_image_idxs"]
    if len(images) < len(data[f"{split}_features"]):
        rows = np.flatnonzero(np.isin(image_idxs, images))
        captions, image_idxs = captions[rows], image_idxs[rows]
    by_image: dict[int, list[str]] = {}
    texts = decode_captions(captions, data["idx_to_word"])
    for image, text in zip(image_idxs.tolist(), texts, strict=True):
        by_image.setdefault(image, []).append(strip_start_and_end(text))
    return [list(by_image.get(image, ())) for image in images.tolist()]


def images_with_references(data: Mapping[str, Any], split: str = "val") -> np.ndarray:
    """Return the images of a split for which `references_of` has any, as sorted indices."""
    known = data.get(f"{split}_references")
    if known is not None:
        return np.flatnonzero([bool(texts) for texts in known])
    return np.unique(data[f"{split}_image_idxs"])


def find_references(
    data: Mapping[str, Any],
    directory: str | os.PathLike[str],
    split: str = "val",
    file: str | os.PathLike[str] | None = None,
) -> tuple[list[list[str]], str]:
    """Find the references of every image of a split.

    Parameters
    ----------
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it.
    directory : path
        The data directory. Its ``<split>_references.json``, if there is one, is read unless `file`
        is given.
    split : {'val', 'train'}, optional
    file : path, optional
        A file of references, see `fastrnn.metrics.read_references`.

    Returns
    -------
    references : list of list of str
        As `references_of` returns them.
    source : str
        A description of where they come from.
    """
    urls = data[f"{split}_urls"].tolist()[: len(data[f"{split}_features"])]
    beside = Path(directory, references_file(split))
    if file is not None or beside.is_file():
        path = Path(file or beside)
        return read_references(path, urls), str(path)
    words = max(data[f"{split}_captions"].shape[1] - 2, 0)
    source = f"{CAPTIONS_FILE} (cut at {words} words, rare words <UNK>)"
    return references_of(data, split), source


# -- captions


def longest_caption(data: Mapping[str, Any]) -> int:
    """Return how many words a model that is trained on some data should generate at most."""
    return max(data["train_captions"].shape[1] - 1, 1)


def caption_images(
    model: CaptioningRNN, features: np.ndarray, max_length: int = 30, **options: Any
) -> list[str]:
    """Caption images; return the best caption of each as text.

    Parameters
    ----------
    model : CaptioningRNN
        The model.
    features : float ndarray (N, D)
        Image features.
    max_length : int, optional
        The largest number of words in a caption.
    **options
        As for `decode_images`: by default, decoding is greedy.

    Returns
    -------
    list of N str
        Words separated by spaces, without ``<END>``.
    """
    decoded = decode_images(model, features, max_length, **options)
    return [best[0] for best in decoded.captions(model.idx_to_word)]


def decode_images(
    model: CaptioningRNN,
    features: np.ndarray,
    max_length: int = 30,
    *,
    beam: int = 1,
    suppress_unk: bool = True,
    progress: Callable[[int, int], Any] | None = None,
    **options: Any,
) -> Decoded:
    """Caption images by greedy decoding or beam search, with the log-probability of every word.

    Images are decoded in blocks, between which an interrupt is noticed. The results are the same
    to the bit as those of one call of `fastrnn.decoding.beam_search`.

    Parameters
    ----------
    model : CaptioningRNN
        The model.
    features : float ndarray (N, D)
        Image features.
    max_length : int, optional
        The largest number of words in a caption.
    beam : int, optional
        The width of the beam; 1 (default) is greedy decoding.
    suppress_unk : bool, optional
        Never generate ``<UNK>``, which matches no word of a reference. Default True, here and
        wherever captions are shown or measured: during training, by the command line, and by
        `fastrnn.captioner.Captioner`. A vocabulary without ``<UNK>`` is accepted.
    progress : callable, optional
        Called at the start and after each block, as ``progress(done, total)`` with numbers of
        images.
    **options
        As for `fastrnn.decoding.beam_search`, such as `min_length` (1 word by default); None
        leaves an option out.

    Returns
    -------
    Decoded
        One caption an image, or as many as the option ``n_best``.
    """
    chosen = {name: value for name, value in options.items() if value is not None}
    chosen["suppress_unk"] = suppress_unk and UNK in model.word_to_idx
    features = np.asarray(features)
    # Blocks of about the same size: the rounding of very few rows differs from that of many.
    parts = max(min(len(features) * max(beam, 1) // _ROWS_AT_ONCE, len(features)), 1)
    ends = [len(features) * part // parts for part in range(parts + 1)]
    blocks = []
    for start, end in pairwise(ends):
        if progress is not None:
            progress(start, len(features))
        blocks.append(beam_search(model, features[start:end], beam, max_length, **chosen))
    if progress is not None:
        progress(len(features), len(features))
    if len(blocks) == 1:
        return blocks[0]
    return Decoded(
        *(
            np.concatenate([getattr(block, field.name) for block in blocks])
            for field in dataclasses.fields(Decoded)
        )
    )


def shorten(decoded: Decoded, max_length: int) -> Decoded:
    """Return greedy captions as they would be with a smaller `max_length`.

    Their scores are their log-probabilities: a length rule cannot change the order of one caption.
    """
    ids, logs = decoded.ids[:, :, :max_length], decoded.word_log_probs[:, :, :max_length]
    return dataclasses.replace(
        decoded, ids=ids, word_log_probs=logs, log_probs=logs.sum(axis=2), scores=logs.sum(axis=2)
    )


def truth_of(directory: str | os.PathLike[str], images: int) -> Callable[[int, str], bool] | None:
    """Return a function that tells whether a caption is true of a drawn scene.

    Parameters
    ----------
    directory : path
        The data directory.
    images : int
        The number of validation images.

    Returns
    -------
    callable or None
        Called as ``true(image, caption)`` with the index of a validation image; None if the
        images of `directory` are not drawn scenes.

    Raises
    ------
    ValueError
        The file of the scenes is damaged.
    """
    # Imported here because it loads Pillow, which other data sets do not need.
    from .data.scenes.dataset import read_scenes
    from .data.scenes.language import caption_is_true

    scenes = read_scenes(directory)
    if scenes is None or len(scenes) != images:
        return None
    return lambda image, caption: caption_is_true(caption, scenes[image])


# -- measures


def perplexity(loss: float | None) -> float | None:
    """Return the perplexity of a loss per word in nats; at most e**700, None for None."""
    return None if loss is None else math.exp(min(loss, 700.0))


def shown_perplexity(value: float) -> str:
    """Return a perplexity as text, which is short for that of a training that diverged, too."""
    return format(value, ".2f" if value < 1e6 else ".3g")


def loss_per_word(
    model: CaptioningRNN,
    data: Mapping[str, Any],
    split: str = "val",
    *,
    limit: int | None = None,
    batch_size: int = 250,
    workspace: CaptioningWorkspace | None = None,
    share: tuple[int, int] | None = None,
) -> float | None:
    """Return a model's loss per word over the captions of a split.

    Parameters
    ----------
    model : CaptioningRNN
        The model.
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it.
    split : {'val', 'train'}, optional
        The part of the data. Default 'val'.
    limit : int, optional
        Use this many captions, evenly spread; all of them by default.
    batch_size : int, optional
        Captions at a time.
    workspace : CaptioningWorkspace, optional
        Memory to use.
    share : tuple of two ints, optional
        ``(k, n)`` computes the part of process k of n; their results add up to the loss.

    Returns
    -------
    float or None
        In nats per word; None if there are no words.
    """
    captions = data.get(f"{split}_captions")
    if captions is None or not len(captions):
        return None
    images = data[f"{split}_image_idxs"]
    rows = evenly_spread(len(captions), limit)
    words = int(np.count_nonzero(captions[rows, 1:] != model.word_to_idx[NULL]))
    if not words:
        return None
    total = 0.0
    first, ranks = (0, 1) if share is None else share
    for start in range(first * batch_size, len(rows), ranks * batch_size):
        batch = rows[start : start + batch_size]
        features = data[f"{split}_features"][images[batch]]
        log_probs = model.word_log_probs(features, captions[batch], workspace=workspace)
        total -= float(log_probs.sum())
    return total / words


def evaluate(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    true: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Measure captions.

    Parameters
    ----------
    captions : sequence of str
        One for each image.
    references : sequence of sequences of str
        As `references_of` returns them; images without any are left out.
    true : sequence of bool, optional
        Whether each caption is true of its image, where that is known.

    Returns
    -------
    dict
        ``images``, ``distinct_captions``, what `fastrnn.metrics.CaptionScorer.evaluate` returns
        (None without references), and ``true_share`` with `true`.
    """
    scores: dict[str, float | None] = dict.fromkeys(_SCORES)
    judged = [(c, known) for c, known in zip(captions, references, strict=True) if known]
    if judged:
        scorer = CaptionScorer([known for _, known in judged])
        scores.update(scorer.evaluate([c for c, _ in judged]))
    return _with_counts(captions, scores, true)


def _with_counts(
    captions: Sequence[str], scores: Mapping[str, float | None], true: Sequence[bool] | None
) -> dict[str, Any]:
    found = {"images": len(captions), "distinct_captions": len(set(captions)), **scores}
    if true is not None:
        found["true_share"] = sum(true) / max(len(true), 1)
    return found


class Evaluator:
    """Images of a split with their references: caption them, and measure the captions.

    By default, captions have at least one word and never ``<UNK>``, see `decode_images`; the
    trainer validates with them, and ``fastrnn evaluate`` measures them. The n-grams of the
    references are counted once, so that later measurements are faster.

    Parameters
    ----------
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it.
    split : {'val', 'train'}, optional
    images : sequence of int, optional
        The images to caption, as indices; all of the split by default.
    references : sequence of sequences of str, optional
        The references of every image of the split; by default those of `references_of`.

    Attributes
    ----------
    images : intp ndarray (N,)
    features : float ndarray (N, D)
        The features of the images.
    references : list of N lists of str
        The references of the images; an image may have none.
    judged : list of int
        Which of the N images have references: those that captions are measured on.
    scorer : CaptionScorer or None
        Measures the captions of the judged images; None if there are none.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        split: str = "val",
        *,
        images: Sequence[int] | np.ndarray | None = None,
        references: Sequence[Sequence[str]] | None = None,
    ) -> None:
        every = data[f"{split}_features"]
        self.images: np.ndarray = (
            np.arange(len(every)) if images is None else np.asarray(images, np.intp)
        )
        whole = np.array_equal(self.images, np.arange(len(every)))
        self.features: np.ndarray = every if whole else every[self.images]
        self.references: list[list[str]] = (
            references_of(data, split, self.images)
            if references is None
            else [list(references[image]) for image in self.images.tolist()]
        )
        self.judged: list[int] = [row for row, texts in enumerate(self.references) if texts]
        self.scorer: CaptionScorer | None = None
        if self.judged:
            self.scorer = CaptionScorer([self.references[row] for row in self.judged])

    def __repr__(self) -> str:
        references = sum(map(len, self.references))
        return f"{type(self).__name__}({len(self.images):,} images, {references:,} references)"

    @property
    def missing(self) -> str | None:
        """Which metrics cannot be computed, and why; None if all can."""
        return "no captions to compare with" if self.scorer is None else self.scorer.missing

    def caption(
        self, model: CaptioningRNN, max_length: int = 30, *, beam: int = 1, **options: Any
    ) -> list[str]:
        """Return the best caption of every image; the arguments are those of `decode_images`."""
        return caption_images(model, self.features, max_length, beam=beam, **options)

    def decode(
        self, model: CaptioningRNN, max_length: int = 30, *, beam: int = 1, **options: Any
    ) -> Decoded:
        """Caption every image as `decode_images` does."""
        return decode_images(model, self.features, max_length, beam=beam, **options)

    def score(self, captions: Sequence[str], *, rouge: bool = True) -> dict[str, float | None]:
        """Measure a caption for each image.

        Parameters
        ----------
        captions : sequence of N str
            The caption of each image.
        rouge : bool, optional
            False leaves ROUGE-L out, a third of the time.

        Returns
        -------
        dict
            ``bleu_1`` to ``bleu_4``, ``rouge_l`` and ``cider`` over the images with references, as
            fractions; None where they cannot be computed.
        """
        scores: dict[str, float | None] = dict.fromkeys(_SCORES)
        if self.scorer is not None:
            scores.update(self.scorer.evaluate(self._judged(captions), rouge=rouge))
        return scores

    def evaluate(
        self, captions: Sequence[str], true: Sequence[bool] | None = None
    ) -> dict[str, Any]:
        """Measure a caption for each image; return what the function `evaluate` returns."""
        return _with_counts(captions, self.score(captions), true)

    @property
    def missing_meteor(self) -> str | None:
        """Why METEOR cannot be computed, with what to install; None if it can."""
        return metrics.missing_meteor()

    def meteor(self, captions: Sequence[str]) -> float:
        """Return the METEOR of a caption for each image; raises as `fastrnn.metrics.meteor`."""
        references = [self.references[row] for row in self.judged]
        return metrics.meteor(self._judged(captions), references)

    def cider(self, captions: Sequence[str]) -> list[float | None]:
        """Return the CIDEr of each caption.

        Parameters
        ----------
        captions : sequence of N str
            The caption of each image.

        Returns
        -------
        list of N float or None
            None for images without references.

        Raises
        ------
        ImportError
            The package for it is missing.
        """
        scores: list[float | None] = [None] * len(self.images)
        if self.scorer is not None:
            each = self.scorer.cider(self._judged(captions))[1]
            for row, score in zip(self.judged, each.tolist(), strict=True):
                scores[row] = score
        return scores

    def _judged(self, captions: Sequence[str]) -> list[str]:
        if len(captions) != len(self.images):
            raise ValueError(
                f"captions has {len(captions)} entries; expected {len(self.images)}, one for each "
                "image"
            )
        return [captions[row] for row in self.judged]


def measure(
    model: CaptioningRNN,
    data: Mapping[str, Any],
    split: str = "val",
    *,
    references: Sequence[Sequence[str]] | None = None,
    images: Sequence[int] | np.ndarray | None = None,
    beam: int = 3,
    max_length: int = 30,
    suppress_unk: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Caption images of a split and measure the captions, as ``fastrnn evaluate`` does.

    Parameters
    ----------
    model : CaptioningRNN
        The model.
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it.
    split : {'val', 'train', 'test'}, optional
        The split; `data` must have its features.
    references : sequence of sequences of str, optional
        The references of every image of the split; by default those of `references_of`.
    images : sequence of int, optional
        The images to caption, as indices; all of the split by default.
    beam : int, optional
        The width of the beam; 1 is greedy decoding.
    max_length : int, optional
        The largest number of words in a caption.
    suppress_unk : bool, optional
        Never generate ``<UNK>``.
    **options
        Further options of `fastrnn.decoding.beam_search`.

    Returns
    -------
    dict
        ``split``, ``beam``, ``images``, ``images_with_references``; ``bleu_1`` to ``bleu_4``,
        ``rouge_l`` and ``cider`` as fractions (None where they cannot be computed);
        ``distinct_captions``; and ``loss`` in nats per word and ``perplexity`` of the captions of
        the split that people wrote (None without captions).

    Raises
    ------
    ValueError
        Data and model do not fit together, the data lack the split, or none of the images has a
        reference.
    """
    if data.get(f"{split}_features") is None:
        raise ValueError(f"split is {split!r}; expected one that the data have")
    mismatch = describe_mismatch(model, data)
    if mismatch:
        raise ValueError(mismatch)
    evaluator = Evaluator(data, split, images=images, references=references)
    if not evaluator.judged:
        raise ValueError(f"none of the {len(evaluator.images)} images of {split} has a reference")
    captions = evaluator.caption(
        model, max_length, beam=beam,
        suppress_unk=suppress_unk and UNK in model.word_to_idx, **options,
    )  # fmt: skip
    found = evaluator.evaluate(captions)
    loss = loss_per_word(model, data, split)
    return {
        "split": split,
        "beam": beam,
        "images": found.pop("images"),
        "images_with_references": len(evaluator.judged),
        **found,
        "loss": loss,
        "perplexity": perplexity(loss),
    }
