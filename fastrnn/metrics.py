"""Caption metrics: BLEU, ROUGE-L, CIDEr and METEOR against reference captions.

BLEU, ROUGE-L and CIDEr use the scorers of COCO's evaluation (pycocoevalcap, in the extra ``eval``)
on the same tokens, but without Java. `CaptionScorer` processes the references once and can then
score many sets of captions; `evaluate_captions` scores a single set. `BLEU_score` and
`evaluate_model` are functions of the assignment.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .caption_tokens import caption_tokens
from .coco_utils import decode_captions, sample_coco_minibatch
from .data.references import read_references
from .extras import install_command
from .messages import warn
from .words import END, START, UNK

__all__ = [
    "BLEU_NAMES",
    "BLEU_score",
    "CaptionScorer",
    "METRIC_NAMES",
    "bleu_1",
    "diversity",
    "evaluate_captions",
    "evaluate_model",
    "meteor",
    "missing_meteor",
    "read_references",
]

METRIC_NAMES = {
    "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L", "cider": "CIDEr", "meteor": "METEOR",
}  # fmt: skip
"""Display name of each metric, in display order."""
BLEU_NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
"""The names of BLEU for n-grams of 1 to 4 words."""
_ORDERS = 4
_CIDER_SIGMA = 6.0


def evaluate_captions(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, tokenized: bool = False
) -> dict[str, float | None]:
    """Score one set of captions against references.

    Parameters
    ----------
    candidates : sequence of N str
        One caption per image.
    references : sequence of N sequences of str
        Reference captions of each image, at least one per image.
    tokenized : bool, optional
        Whether all captions are already tokens separated by spaces. Default False.

    Returns
    -------
    dict of str to float or None
        See `CaptionScorer.evaluate`.

    Raises
    ------
    TypeError, ValueError
        See `CaptionScorer`.

    Warns
    -----
    UserWarning
        If a package of the extra ``eval`` is not installed. Its metrics are None.
    """
    scorer = CaptionScorer(references, tokenized=tokenized)
    if scorer.missing:
        warn(scorer.missing)
    return scorer.evaluate(candidates)


class CaptionScorer:
    """Score captions against a fixed set of references.

    Parameters
    ----------
    references : sequence of N sequences of str
        Reference captions of each image, at least one per image. ``<UNK>`` in them stands for an
        unknown word and matches nothing.
    tokenized : bool, optional
        Whether references and candidates are already tokens separated by spaces. They are then
        used unchanged, including ``<UNK>``. By default, they are split by
        ``fastrnn.caption_tokens``.

    Attributes
    ----------
    missing : str or None
        Message that names the unavailable metrics and what to install for them, or None.

    Raises
    ------
    TypeError
        If a caption is not a string, or an entry of `references` is not a list of strings.
    ValueError
        If there are no images, or an image has no reference.

    Notes
    -----
    The scorers are those of pycocoevalcap; CIDEr is CIDEr-D (Vedantam, Zitnick and Parikh 2015,
    section 8). The n-grams of the references are counted only once, in the constructor.
    """

    def __init__(self, references: Sequence[Sequence[str]], *, tokenized: bool = False) -> None:
        if not len(references):
            raise ValueError("references is empty; expected a list of captions for each image")
        self._tokenized = tokenized
        self._references = _reference_texts(references, tokenized)
        self.missing: str | None = None
        self._bleu: Any = None
        self._rouge: Any = None
        self._cider: Any = None
        try:
            # Import only these modules: others in the package start Java.
            from pycocoevalcap.bleu import bleu_scorer
            from pycocoevalcap.cider import cider_scorer
            from pycocoevalcap.rouge.rouge import Rouge
        except ImportError:
            lacks = [*BLEU_NAMES[1:], "rouge_l", "cider"] if _nltk_bleu() is None else None
            *first, last = (METRIC_NAMES[name] for name in lacks or ("rouge_l", "cider"))
            about = "" if lacks else "BLEU is computed by NLTK; "
            about += f"{', '.join(first)} and {last} are missing"
            self.missing = f"{about}: {install_command('eval')}"
            return
        self._bleu, self._rouge, self._cider = bleu_scorer, Rouge(), cider_scorer
        self._cooked = [bleu_scorer.cook_refs(known, n=_ORDERS) for known in self._references]
        self._cider_cooked = [cider_scorer.cook_refs(known, _ORDERS) for known in self._references]
        counter = cider_scorer.CiderScorer(n=_ORDERS)
        counter.crefs = self._cider_cooked
        counter.compute_doc_freq()
        self._documents = counter.document_frequency

    def __len__(self) -> int:
        return len(self._references)

    def evaluate(self, candidates: Sequence[str], *, rouge: bool = True) -> dict[str, float | None]:
        """Score one caption per image with BLEU, ROUGE-L and CIDEr.

        Parameters
        ----------
        candidates : sequence of N str
            One caption per image.
        rouge : bool, optional
            Whether to compute ROUGE-L, which takes a third of the time. Default True.

        Returns
        -------
        dict of str to float or None
            Corpus scores ``bleu_1`` to ``bleu_4``, ``rouge_l`` and ``cider``, as fractions (papers
            multiply them by 100). A score that was not computed is None.

        Raises
        ------
        TypeError
            If a candidate is not a string.
        ValueError
            If the number of candidates is not the number of images.
        """
        texts = _candidate_texts(candidates, len(self), self._tokenized)
        metrics: dict[str, float | None] = dict.fromkeys(BLEU_NAMES)
        metrics.update(rouge_l=None, cider=None)
        if self._bleu is None:
            metrics.update(_bleu_without_extra(texts, self._references))
            return metrics
        scorer = self._bleu.BleuScorer(n=_ORDERS)
        scorer.crefs = self._cooked
        scorer.ctest = [
            self._bleu.cook_test(text, known, n=_ORDERS)
            for text, known in zip(texts, self._cooked, strict=True)
        ]
        metrics.update(zip(BLEU_NAMES, scorer.compute_score("closest", 0)[0], strict=True))
        if rouge:
            metrics["rouge_l"] = float(
                np.mean(
                    [
                        self._rouge.calc_score([text], known)
                        for text, known in zip(texts, self._references, strict=True)
                    ]
                )
            )
        metrics["cider"] = float(self._cider_scores(texts).mean())
        return metrics

    def cider(self, candidates: Sequence[str]) -> tuple[float, np.ndarray]:
        """Score one caption per image with CIDEr-D.

        Parameters
        ----------
        candidates : sequence of N str
            One caption per image.

        Returns
        -------
        mean : float
            Mean score over the images.
        scores : float64 ndarray (N,)
            Score of each image. Document frequencies of n-grams are taken over all references.

        Raises
        ------
        TypeError, ValueError
            See `evaluate`.
        ImportError
            If pycocoevalcap (extra ``eval``) is not installed.
        """
        texts = _candidate_texts(candidates, len(self), self._tokenized)
        if self._bleu is None:
            raise ImportError(f"CIDEr needs pycocoevalcap: {install_command('eval')}")
        scores = self._cider_scores(texts)
        return float(scores.mean()), scores

    def _cider_scores(self, texts: Sequence[str]) -> np.ndarray:
        scorer = self._cider.CiderScorer(n=_ORDERS, sigma=_CIDER_SIGMA)
        scorer.crefs = self._cider_cooked
        scorer.ctest = [self._cider.cook_test(text, _ORDERS) for text in texts]
        scorer.document_frequency = self._documents
        return np.array(scorer.compute_cider())


def _reference_texts(references: Sequence[Sequence[str]], tokenized: bool) -> list[list[str]]:
    """Check the references and tokenize them."""
    texts = []
    for image, known in enumerate(references):
        if isinstance(known, str):
            raise TypeError(f"references[{image}] is {known!r}; expected a list of strings")
        if not len(known):
            raise ValueError(f"references[{image}] is empty; expected at least one caption")
        # <UNK> stays in upper case, so that no lower-case candidate token matches it.
        texts.append(
            [
                _text(reference, f"references[{image}][{number}]", tokenized, UNK)
                for number, reference in enumerate(known)
            ]
        )
    return texts


def _candidate_texts(candidates: Sequence[str], images: int, tokenized: bool) -> list[str]:
    """Check that there is one candidate per image, and tokenize the candidates."""
    if isinstance(candidates, str):
        raise TypeError(f"candidates is {candidates!r}; expected a list of strings")
    if len(candidates) != images:
        raise ValueError(
            f"candidates has {len(candidates)} entries, references {images}; "
            "expected one candidate for each list of references"
        )
    return [
        _text(candidate, f"candidates[{image}]", tokenized)
        for image, candidate in enumerate(candidates)
    ]


def _text(caption: str, name: str, tokenized: bool, unknown: str = "<unk>") -> str:
    """Check a caption and return its tokens, joined by spaces."""
    if not isinstance(caption, str):
        raise TypeError(f"{name} is {caption!r}; expected a string")
    if tokenized:
        return caption
    return " ".join(unknown if token == "<unk>" else token for token in caption_tokens(caption))


def _nltk_bleu() -> Any:
    """Return NLTK's BLEU module, or None if NLTK is not installed."""
    try:
        from nltk.translate import bleu_score
    except ImportError:
        return None
    return bleu_score


def _bleu_without_extra(
    texts: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Compute BLEU with NLTK or, if NLTK is not installed, BLEU-1 with `bleu_1`."""
    nltk_bleu = _nltk_bleu()
    if nltk_bleu is None:
        return {"bleu_1": bleu_1(texts, references)}
    split = [[reference.split() for reference in known] for known in references]
    said = [text.split() for text in texts]
    with warnings.catch_warnings():
        # NLTK warns if no n-gram matches; the score of 0 is enough.
        warnings.simplefilter("ignore")
        return {
            name: float(nltk_bleu.corpus_bleu(split, said, weights=[1 / order] * order))
            for order, name in enumerate(BLEU_NAMES, 1)
        }


def bleu_1(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-1: clipped unigram precision times the brevity penalty.

    Parameters
    ----------
    candidates : sequence of N str
        One caption per image, as words separated by spaces.
    references : sequence of N sequences of str
        Reference captions of each image, at least one per image.

    Returns
    -------
    float
        Score in [0, 1]; 0 if the candidates have no words. ``<UNK>`` matches nothing.

    Raises
    ------
    TypeError
        If a caption is not a string, or an entry of `references` is not a list of strings.
    ValueError
        If the numbers of candidates and references differ, or an image has no reference.

    References
    ----------
    Papineni, Roukos, Ward and Zhu, "BLEU: a method for automatic evaluation of machine
    translation", 2002, section 2.3, with N = 1. The reference length of an image is the one
    closest to the length of its candidate; of two equally close ones, the shorter.
    """
    texts = _candidate_texts(candidates, len(references), tokenized=True)
    matched = spoken = wanted = 0
    for candidate, known in zip(texts, _reference_texts(references, tokenized=True), strict=True):
        words = candidate.split()
        most: Counter[str] = Counter()
        for reference in known:
            most |= Counter(reference.split())
        del most[UNK]
        matched += (Counter(words) & most).total()
        spoken += len(words)
        wanted += min((abs(n - len(words)), n) for n in (len(r.split()) for r in known))[1]
    if not matched:
        return 0.0
    return matched / spoken * math.exp(min(0.0, 1 - wanted / spoken))


def missing_meteor() -> str | None:
    """Return why METEOR cannot be computed, with what to install for it; None if it can."""
    try:
        _load_meteor()
    except (ImportError, LookupError) as error:
        return str(error.args[0])
    return None


def _load_meteor() -> tuple[Any, Callable[..., float]]:
    """Return WordNet and the function of NLTK; raise as `meteor` does."""
    try:
        from nltk.corpus import wordnet
        from nltk.translate.meteor_score import meteor_score
    except ImportError:
        raise ImportError(f"METEOR needs NLTK: {install_command('eval')}") from None
    try:
        wordnet.synsets("a")
    except LookupError:
        raise LookupError(
            "METEOR needs NLTK's WordNet: python -m nltk.downloader wordnet"
        ) from None
    return wordnet, meteor_score


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean METEOR over images, computed by NLTK.

    Parameters
    ----------
    candidates : sequence of N str
        One caption per image.
    references : sequence of N sequences of str
        Reference captions of each image, at least one per image. The best match counts.

    Returns
    -------
    float
        Score in [0, 1]. Do not compare it with COCO's METEOR: this is the metric of Banerjee and
        Lavie 2005 with stems and WordNet synonyms, while COCO's evaluation runs version 1.5 of
        the Java program.

    Raises
    ------
    ImportError
        If NLTK (extra ``eval``) is not installed.
    LookupError
        If NLTK's WordNet is not installed.
    TypeError, ValueError
        See `CaptionScorer`.
    """
    wordnet, meteor_score = _load_meteor()
    texts = _candidate_texts(candidates, len(references), tokenized=False)
    if not texts:
        raise ValueError("candidates is empty; expected at least one")
    total = 0.0
    for text, known in zip(texts, _reference_texts(references, tokenized=False), strict=True):
        # NLTK converts words to lower case, so <UNK> would match <unk>: replace it in references.
        split = [reference.replace(UNK, "<nothing>").split() for reference in known]
        total += meteor_score(split, text.split(), wordnet=wordnet)
    return total / len(texts)


def diversity(captions: Sequence[str]) -> dict[str, Any]:
    """Measure the diversity of a model's captions.

    Parameters
    ----------
    captions : sequence of str
        One caption per image.

    Returns
    -------
    dict
        ``images`` (number of images), ``distinct_captions``, ``vocabulary_used`` (number of
        distinct words), ``mean_length`` (in words), ``most_common`` (the most frequent caption)
        and ``most_common_share`` (the fraction of images with that caption).

    Raises
    ------
    ValueError
        If there are no captions.

    Warns
    -----
    UserWarning
        If there are several images and all have the same caption.
    """
    if not len(captions):
        raise ValueError("captions is empty; expected at least one")
    split = [caption.split() for caption in captions]
    most_common, times = Counter(captions).most_common(1)[0]
    found = {
        "images": len(captions),
        "distinct_captions": len(set(captions)),
        "vocabulary_used": len(set().union(*split)),
        "mean_length": sum(map(len, split)) / len(split),
        "most_common": most_common,
        "most_common_share": times / len(captions),
    }
    if times == len(captions) > 1:
        warn(
            f"the model says one thing for every image: {most_common!r}; it ignores the image "
            "features (more training, or features on a different scale, may help)"
        )
    return found


def BLEU_score(gt_caption: str, sample_caption: str) -> float:
    """BLEU-1 of one caption against one reference, as in the assignment's notebook.

    Words that contain ``<START>``, ``<END>`` or ``<UNK>`` are removed from both.

    Parameters
    ----------
    gt_caption : str
        Ground-truth caption, as words separated by single spaces.
    sample_caption : str
        Caption sampled from the model.

    Returns
    -------
    float
        Score in [0, 1], from ``nltk.translate.bleu_score.sentence_bleu`` with ``weights=[1]``.

    Raises
    ------
    ImportError
        If NLTK (extra ``eval``) is not installed.
    """
    nltk_bleu = _nltk_bleu()
    if nltk_bleu is None:
        raise ImportError(f"BLEU_score needs NLTK: {install_command('eval')}")
    said, meant = (
        [
            word
            for word in caption.split(" ")
            if not any(special in word for special in (START, END, UNK))
        ]
        for caption in (sample_caption, gt_caption)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(nltk_bleu.sentence_bleu([meant], said, weights=[1]))


def evaluate_model(model: Any, data: Mapping[str, Any], batch_size: int = 1000) -> dict[str, float]:
    """Print the mean `BLEU_score` on train and val, as in the assignment's notebook.

    Parameters
    ----------
    model : CaptioningRNN
        The model, or any object with a method ``sample(features) -> int ndarray (N, T)``.
    data : mapping
        Data set as returned by `fastrnn.coco_utils.load_coco_data`.
    batch_size : int, optional
        Number of captions to draw from each split, with replacement, by the global ``np.random``.
        Default 1000.

    Returns
    -------
    dict of str to float
        Mean score of the splits ``train`` and ``val``. It is also printed.

    Raises
    ------
    ImportError
        If NLTK (extra ``eval``) is not installed.
    """
    means = {}
    for split in ("train", "val"):
        captions, features, _ = sample_coco_minibatch(data, batch_size=batch_size, split=split)
        meant = decode_captions(captions, data["idx_to_word"])
        said = decode_captions(model.sample(features), data["idx_to_word"])
        scores = [BLEU_score(gt, sample) for gt, sample in zip(meant, said, strict=True)]
        means[split] = sum(scores) / len(scores)
    for split, mean in means.items():
        print(f"Average BLEU score for {split}: {mean:f}")
    return means
