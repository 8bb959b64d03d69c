"""How good captions are, measured against what people wrote."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


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
    ValueError
        If the numbers of candidates and references differ, or an image has no reference.

    References
    ----------
    Papineni, Roukos, Ward and Zhu, "BLEU: a method for automatic evaluation of machine
    translation", 2002, section 2.3, with N = 1; the reference length is the closest one, the
    shorter of two as close.
    """
    if len(candidates) != len(references):
        raise ValueError(
            f"candidates has {len(candidates)} entries, references {len(references)}; "
            "expected one list of references for each candidate"
        )
    matched = spoken = wanted = 0
    for row, (candidate, known) in enumerate(zip(candidates, references, strict=True)):
        if not known:
            raise ValueError(f"references[{row}] is empty; expected at least one caption")
        words = candidate.split()
        most: Counter[str] = Counter()
        for reference in known:
            most |= Counter(reference.split())
        del most["<UNK>"]
        matched += (Counter(words) & most).total()
        spoken += len(words)
        wanted += min((abs(n - len(words)), n) for n in (len(r.split()) for r in known))[1]
    if not matched:
        return 0.0
    return matched / spoken * math.exp(min(0.0, 1 - wanted / spoken))
