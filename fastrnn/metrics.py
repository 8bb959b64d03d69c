"""How good captions are, measured against what people wrote.

BLEU, ROUGE-L and CIDEr are those of COCO's evaluation (pycocoevalcap, of the extra ``eval``) on its
tokens, without Java. `CaptionScorer` keeps what it knows of the references, for those who measure
again and again; `evaluate_captions` does it once. `BLEU_score` and `evaluate_model` are the
assignment's.
"""

from __future__ import annotations

import errno
import math
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .caption_tokens import caption_tokens
from .coco_utils import decode_captions, sample_coco_minibatch
from .files import is_text, read_json
from .words import END, START, UNK

METRIC_NAMES = {
    "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L", "cider": "CIDEr", "meteor": "METEOR",
}  # fmt: skip
"""How each metric is written for people, in the order in which they are shown."""
BLEU_NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
_ORDERS = 4
_CIDER_SIGMA = 6.0
_INSTALL = 'pip install "fastrnn[eval]"'


def evaluate_captions(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, tokenized: bool = False
) -> dict[str, float | None]:
    """Measure captions against references, once.

    Parameters
    ----------
    candidates : sequence of N str
        A caption for each image.
    references : sequence of N sequences of str
        What people wrote about each image; at least one caption, any number.
    tokenized : bool, optional
        The captions are tokens separated by spaces already and are left as they are.

    Returns
    -------
    dict
        As `CaptionScorer.evaluate` returns it.

    Raises
    ------
    TypeError, ValueError
        As for `CaptionScorer`.

    Warns
    -----
    UserWarning
        A package of the extra ``eval`` is missing, and so are its metrics.
    """
    scorer = CaptionScorer(references, tokenized=tokenized)
    if scorer.missing:
        warnings.warn(scorer.missing, stacklevel=2)
    return scorer.evaluate(candidates)


class CaptionScorer:
    """References, read once, and the measuring of candidates against them.

    Parameters
    ----------
    references : sequence of N sequences of str
        What people wrote about each image; at least one caption, any number. ``<UNK>`` stands for
        a word that is not known, so it matches nothing.
    tokenized : bool, optional
        References and candidates are tokens separated by spaces already and are left as they are,
        ``<UNK>`` too; by default `fastrnn.caption_tokens.caption_tokens` splits them.

    Attributes
    ----------
    missing : str or None
        Which metrics cannot be had here, and what to install for them.

    Raises
    ------
    TypeError
        A caption is no string, or `references` holds strings where lists of strings should be.
    ValueError
        There are no images, or an image has no reference.

    Notes
    -----
    The scorers are pycocoevalcap's; CIDEr is CIDEr-D (Vedantam, Zitnick and Parikh 2015, section
    8).
    What they count in the references, they count once.
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
            # The scorers' own modules alone: their neighbours start Java.
            from pycocoevalcap.bleu import bleu_scorer
            from pycocoevalcap.cider import cider_scorer
            from pycocoevalcap.rouge.rouge import Rouge
        except ImportError:
            lacks = f"{', '.join(BLEU_NAMES[1:])}, rouge_l and cider are"
            if _nltk_bleu() is not None:
                lacks = "BLEU is NLTK's, rouge_l and cider are"
            self.missing = f"{lacks} missing: {_INSTALL}"
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
        """Measure a caption for each image.

        Parameters
        ----------
        candidates : sequence of N str
        rouge : bool, optional
            False leaves ROUGE-L out, a third of the time.

        Returns
        -------
        dict
            ``bleu_1`` to ``bleu_4``, ``rouge_l`` and ``cider``, of the corpus, as fractions
            (papers print them times 100). None where the package for it is missing.

        Raises
        ------
        TypeError
            A candidate is no string.
        ValueError
            There are not as many candidates as images.
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
        """Measure a caption for each image by CIDEr.

        Parameters
        ----------
        candidates : sequence of N str

        Returns
        -------
        mean : float
            Over the images.
        scores : float64 ndarray (N,)
            Of each image; the frequencies of n-grams are those of all references.

        Raises
        ------
        TypeError, ValueError
            As for `evaluate`.
        ImportError
            The extra ``eval`` is missing.
        """
        texts = _candidate_texts(candidates, len(self), self._tokenized)
        if self._bleu is None:
            raise ImportError(f"CIDEr needs pycocoevalcap: {_INSTALL}")
        scores = self._cider_scores(texts)
        return float(scores.mean()), scores

    def _cider_scores(self, texts: Sequence[str]) -> np.ndarray:
        scorer = self._cider.CiderScorer(n=_ORDERS, sigma=_CIDER_SIGMA)
        scorer.crefs = self._cider_cooked
        scorer.ctest = [self._cider.cook_test(text, _ORDERS) for text in texts]
        scorer.document_frequency = self._documents
        return np.array(scorer.compute_cider())


def _reference_texts(references: Sequence[Sequence[str]], tokenized: bool) -> list[list[str]]:
    """Check references and make tokens of them."""
    texts = []
    for image, known in enumerate(references):
        if isinstance(known, str):
            raise TypeError(f"references[{image}] is {known!r}; expected a list of strings")
        if not len(known):
            raise ValueError(f"references[{image}] is empty; expected at least one caption")
        texts.append(
            [
                _text(reference, f"references[{image}][{number}]", tokenized, UNK)
                for number, reference in enumerate(known)
            ]
        )
    return texts


def _candidate_texts(candidates: Sequence[str], images: int, tokenized: bool) -> list[str]:
    """Check a candidate for each image and make tokens of it."""
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
    """Check a caption and make tokens of it, separated by spaces."""
    if not isinstance(caption, str):
        raise TypeError(f"{name} is {caption!r}; expected a string")
    if tokenized:
        return caption
    return " ".join(unknown if token == "<unk>" else token for token in caption_tokens(caption))


def _nltk_bleu() -> Any:
    """Import NLTK's module of BLEU; None where it is missing."""
    try:
        from nltk.translate import bleu_score
    except ImportError:
        return None
    return bleu_score


def _bleu_without_extra(
    texts: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """BLEU by NLTK, or our own of single words where that is missing too."""
    nltk_bleu = _nltk_bleu()
    if nltk_bleu is None:
        return {"bleu_1": bleu_1(texts, references)}
    split = [[reference.split() for reference in known] for known in references]
    said = [text.split() for text in texts]
    with warnings.catch_warnings():
        # It warns where no n-gram matches; 0 says as much.
        warnings.simplefilter("ignore")
        return {
            name: float(nltk_bleu.corpus_bleu(split, said, weights=[1 / order] * order))
            for order, name in enumerate(BLEU_NAMES, 1)
        }


def bleu_1(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Unigram BLEU of a corpus: clipped precision of words, times a penalty for brevity.

    Parameters
    ----------
    candidates : sequence of str
        A caption for each image, words separated by spaces.
    references : sequence of sequences of str
        What is right for each image; any number of captions, at least one.

    Returns
    -------
    float
        From 0 to 1; 0 where the candidates have no words. ``<UNK>`` stands for no particular
        word, so it matches nothing.

    Raises
    ------
    TypeError
        A caption is no string, or `references` holds strings where lists of strings should be.
    ValueError
        The numbers of candidates and references differ, or an image has no reference.

    References
    ----------
    Papineni, Roukos, Ward and Zhu, "BLEU: a method for automatic evaluation of machine
    translation", 2002, section 2.3, with N = 1; the reference length is the closest one, the
    shorter of two as close.
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


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR as NLTK computes it, the mean over the images.

    Parameters
    ----------
    candidates : sequence of N str
        A caption for each image.
    references : sequence of N sequences of str
        What people wrote about each image; the best match of each counts.

    Returns
    -------
    float
        From 0 to 1. It is METEOR of Banerjee and Lavie 2005 with stems and WordNet's synonyms, not
        version 1.5 of the Java program in COCO's evaluation: the two are not to be compared.

    Raises
    ------
    ImportError
        NLTK is missing, which the extra ``eval`` brings.
    LookupError
        NLTK's WordNet is missing.
    TypeError, ValueError
        As for `CaptionScorer`.
    """
    try:
        from nltk.corpus import wordnet
        from nltk.translate.meteor_score import meteor_score
    except ImportError:
        raise ImportError(f"METEOR needs NLTK: {_INSTALL}") from None
    try:
        wordnet.synsets("a")
    except LookupError:
        raise LookupError(
            "METEOR needs NLTK's WordNet: python -m nltk.downloader wordnet"
        ) from None
    texts = _candidate_texts(candidates, len(references), tokenized=False)
    if not texts:
        raise ValueError("candidates is empty; expected at least one")
    total = 0.0
    for text, known in zip(texts, _reference_texts(references, tokenized=False), strict=True):
        # NLTK puts words into lower case, where the unknown one would match: it is told apart here.
        split = [reference.replace(UNK, "<nothing>").split() for reference in known]
        total += meteor_score(split, text.split(), wordnet=wordnet)
    return total / len(texts)


def read_references(path: str | os.PathLike[str], urls: Sequence[str]) -> list[list[str]]:
    """Read what people wrote about images from a JSON file.

    Parameters
    ----------
    path : path
        One of three forms: an object of file names, each with its list of captions; COCO's
        annotations (``images`` and ``annotations``); or a list of lists of captions, in the order
        of `urls`.
    urls : sequence of str
        The images. In the first two forms they are found by the last part of their URLs or paths;
        COCO's ``file_name``, ``coco_url`` and ``flickr_url`` all count.

    Returns
    -------
    list of lists of str
        The captions of each image; an empty list where the file has none.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no JSON file of these forms, or has none of the images.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file of references", str(path))
    found = read_json(path)
    if isinstance(found, list):
        if len(found) != len(urls):
            raise ValueError(
                f"{path}: a list of {len(found)} entries; expected one for each of the "
                f"{len(urls)} images"
            )
        captions = found
    elif isinstance(found, dict):
        try:
            named = _coco_references(found) if "annotations" in found else found
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: its annotations are not COCO's ({type(error).__name__}: {error})"
            ) from None
        named = {_last_part(name): known for name, known in named.items()}
        captions = [named.get(_last_part(url), []) for url in urls]
        if not any(captions):
            first = f", the first of which is {_last_part(urls[0])!r}" if len(urls) else ""
            raise ValueError(
                f"{path}: names {len(named)} images, but none of the {len(urls)} wanted{first}"
            )
    else:
        raise ValueError(f"{path}: holds a {type(found).__name__}; expected a list or an object")
    for image, known in enumerate(captions):
        if not isinstance(known, list) or not all(isinstance(caption, str) for caption in known):
            raise ValueError(
                f"{path}: the captions of image {image} ({urls[image]}) are not a list of strings"
            )
        if not all(map(is_text, known)):
            raise ValueError(
                f"{path}: a caption of image {image} ({urls[image]}) holds half a character"
            )
    return captions


def _coco_references(found: Mapping[str, Any]) -> dict[str, list[str]]:
    by_id: dict[Any, list[str]] = {}
    for annotation in found["annotations"]:
        by_id.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return {
        image[key]: by_id.get(image["id"], [])
        for image in found["images"]
        for key in ("file_name", "coco_url", "flickr_url")
        if image.get(key)
    }


def _last_part(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]


def diversity(captions: Sequence[str]) -> dict[str, Any]:
    """Count how many different things a model says.

    Parameters
    ----------
    captions : sequence of str
        One for each image.

    Returns
    -------
    dict
        ``images``, ``distinct_captions``, ``vocabulary_used`` (distinct words),
        ``mean_length`` (words), ``most_common`` (the caption that is given most often) and
        ``most_common_share`` (of the images).

    Raises
    ------
    ValueError
        There are no captions.

    Warns
    -----
    UserWarning
        There are several images, and one caption for all of them.
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
        warnings.warn(
            f"the model says one thing for every image: {most_common!r}; it does not see the "
            "pictures (more training, or features on a better scale, may help)",
            stacklevel=2,
        )
    return found


def BLEU_score(gt_caption: str, sample_caption: str) -> float:
    """Unigram BLEU of one caption against one, as the assignment's notebook has it.

    Parameters
    ----------
    gt_caption : str
        What a person wrote; words separated by single spaces.
    sample_caption : str
        What the model says. Words that contain ``<START>``, ``<END>`` or ``<UNK>`` do not count
        in either.

    Returns
    -------
    float
        From 0 to 1, by ``nltk.translate.bleu_score.sentence_bleu`` with ``weights=[1]``.

    Raises
    ------
    ImportError
        NLTK is missing, which the extra ``eval`` brings.
    """
    nltk_bleu = _nltk_bleu()
    if nltk_bleu is None:
        raise ImportError(f"BLEU_score needs NLTK: {_INSTALL}")
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
    """Print the mean `BLEU_score` on train and val, as the assignment's notebook does.

    Parameters
    ----------
    model : CaptioningRNN
        Or anything with ``sample(features) -> int ndarray (N, T)``.
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it.
    batch_size : int, optional
        How many captions are drawn of each part, with replacement, by the global ``np.random``.

    Returns
    -------
    dict
        The mean by ``train`` and ``val``, which is also printed.

    Raises
    ------
    ImportError
        NLTK is missing, which the extra ``eval`` brings.
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
