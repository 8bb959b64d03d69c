"""Split captions into the tokens of COCO's evaluation, without Java.

COCO's evaluation tokenizes captions with Stanford's PTBTokenizer (Penn Treebank conventions, lower
case) and removes punctuation. `caption_tokens` returns the same tokens.
"""

from __future__ import annotations

import functools
import re

# COCO's evaluation removes these tokens, but keeps "!!". Its list has brackets in upper case
# (-LRB-); since tokens are in lower case, bracket tokens are not removed there, nor here.
_PUNCTUATION = re.compile(r"[?!]|[.,:;'\"`\-\u2010\u2011]+")

_ABBREVIATIONS = """
adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bhd bldg blvd brig bros calif
capt cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc
ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut
lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov
oct okla penn pfc ph plc ppte ppty pres prof pte ptes pty ptys pvt rd rep reps rev rt sen sens sep
sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu thurs treas tue tues univ va vs vt wed
wis wisc wm wyo [a-z]
"""
_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"
"""Abbreviations only if a number follows."""

_TWO_WORDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
    "wanna": ("wan", "na"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
_WRITTEN_OUT = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "$": "$", "£": "#", "€": "$", "¢": "cents", "…": "...", "–": "--", "—": "--", "―": "--",
}  # fmt: skip
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
_ENTITY = re.compile("|".join(_ENTITIES))
_SIGN = re.compile("|".join(map(re.escape, _WRITTEN_OUT)))
_FRACTIONS = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_FRACTION = re.compile(rf"(\d?)([{''.join(_FRACTIONS)}])")
_QUOTES = str.maketrans({"‘": "`", "’": "'", "‛": "'", "“": '"', "”": '"', "„": '"'})

_LETTER = r"[^\W\d_]"
_ALNUM = r"[^\W_]"
_WORD_ENDS = rf"(?!{_ALNUM})"
_CLITIC = rf"'(?i:s|m|d|ll|re|ve)(?!{_LETTER})"
# Letters and digits, with periods, question and exclamation marks inside words ("u.s", "go!stop").
_PIECE = (
    rf"(?:\d+(?:[.,:]\d+)+(?=-{_LETTER})"
    rf"|{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)+(?:\.(?=-{_LETTER}))?"
    rf"|{_ALNUM}+(?:_{_ALNUM}+)*(?:\.(?=-{_LETTER}))?)"
)
_COMPOUND = rf"{_PIECE}(?:-{_ALNUM}+(?:_{_ALNUM}+)*)*"

_TOKEN = re.compile(
    "|".join(
        [
            r"(?P<markup></?[A-Za-z][^\s<>]*>)",
            r"(?P<address>https?://[^\s\"<>|(){}]*[^\s\"<>|(){}.,;:!?'-]"
            r"|www\.[^\s\"<>|(){},;!]*[^\s\"<>|(){}.,;:!?'-]"
            r"|[\w.+-]+@[\w-]+(?:\.[\w-]+)*)",
            r"(?P<smiley>[<>]?[:;=](?:['-][()PpD]|o?[)(]|[DPpdO@|\\{\[\]])(?!\w)|\^_\^)",
            r"(?P<tag>\#[A-Za-z]+|@[A-Za-z]\w*)",
            rf"(?P<two>(?i:{'|'.join(_TWO_WORDS)}){_WORD_ENDS})",
            rf"(?P<negated>{_LETTER}*[^\W\d_nN](?=(?i:n['`]t)))",
            rf"(?P<clitic>(?i:n['`]t){_LETTER}*|{_CLITIC})",
            # Words in which the apostrophe replaces letters.
            rf"(?P<elided>(?i:o'clock|c'mon|ma'am|cap'n|s'mores|ne'er|e'er|o'er){_WORD_ENDS}"
            rf"|'n'|(?i:'n|'till?|'cause){_WORD_ENDS}|(?i:'em)|'\d\ds?(?!\w|')"
            rf"|(?:[dlno]|[A-HJ-XZ])(?!{_CLITIC})'{_LETTER}{{2,}}|(?i:[djly]|ol)'(?!\d)"
            rf"|{_LETTER}+[aeiouyAEIOUY](?!{_CLITIC})'[aeiouA-Z]{_LETTER}*)",
            rf"(?P<initials>{_LETTER}(?:\.{_LETTER})+\.{_WORD_ENDS}"
            r"|[A-Z]+(?:[&+][A-Z]+)+|[A-Z]\+\+|[A-Z]+\$)",
            rf"(?P<initial>{_LETTER}(?=\.(?:\s*\Z|\s+(?:An?|The|There|It|Some)\b)))",
            rf"(?P<abbreviation>(?i:{'|'.join(_ABBREVIATIONS.split())})\.(?!{_ALNUM}|-{_LETTER})"
            rf"|(?i:{'|'.join(_BEFORE_NUMBERS.split())})\.(?=\s*\d)"
            rf"|{_COMPOUND}\.(?=[,;:]))",
            r"(?P<fraction>\d+[ \xa0]\d+/\d+(?!\w))",
            rf"(?P<number>(?:(?<!{_ALNUM})[+-])?(?:\d*(?:[.,:]\d+)+(?!-{_LETTER}))"
            rf"|(?<!{_ALNUM})[+-]\d+(?!{_LETTER})|(?<=\d)(?:\+\d+|-\d*(?:[.,:]\d+)+))",
            rf"(?P<word>{_COMPOUND}(?:/{_COMPOUND}){{0,2}})",
            r"(?P<marks>\.{2,}|[!?]+|-{2,}|''|``|_+|\*{1,3}|&\#\d+;)",
            r"(?P<sign>\S)",
        ]
    )
)


def caption_tokens(caption: str) -> list[str]:
    """Split a caption into the tokens of COCO's evaluation.

    Parameters
    ----------
    caption : str
        Raw caption text, or words separated by spaces.

    Returns
    -------
    list of str
        Tokens in lower case. Clitics are separate tokens (``does n't``, ``man 's``), hyphenated
        compounds are one token (``black-and-white``), and punctuation is removed.

    Raises
    ------
    TypeError
        If `caption` is not a string.

    Notes
    -----
    COCO's evaluation runs PTBTokenizer of Stanford CoreNLP 3.4.1 with ``-preserveLines
    -lowerCase``. The rules here were derived by running it on text. The tokens are the same for
    all 25,014 captions of COCO's 2017 validation split. There is one difference: PTBTokenizer
    looks at the next line, so the token of the final period in "Vitamin C." depends on the first
    word of the next caption. Here the period always ends the sentence, as it does there before
    "A" and "The".
    """
    if not isinstance(caption, str):
        raise TypeError(f"caption is {caption!r}; expected a string")
    # Only what is about a period, a fraction or an entity looks beyond a space. Without these, or
    # with a period in the last chunk alone, the tokens of a caption are those of its chunks.
    if len(caption) < 2000 and caption.isascii() and "/" not in caption and "&" not in caption:
        chunks = caption.split()
        period = caption.find(".")
        if period < 0 or (chunks and period >= len(caption.rstrip()) - len(chunks[-1])):
            return [token for chunk in chunks for token in _chunk_tokens(chunk)]
    return _tokens(caption)


@functools.lru_cache(maxsize=1 << 16)
def _chunk_tokens(chunk: str) -> tuple[str, ...]:
    return tuple(_tokens(chunk))


def _tokens(caption: str) -> list[str]:
    text = caption.translate(_QUOTES)
    if "&" in text:
        text = _ENTITY.sub(lambda entity: _ENTITIES[entity[0]], text)
    if not text.isascii():
        text = _FRACTION.sub(lambda found: f"{found[1]}  {_FRACTIONS[found[2]]}", text)
    tokens: list[str] = []
    for match in _TOKEN.finditer(text):
        token = match[0].lower()
        kind = match.lastgroup
        if kind == "two":
            tokens += _TWO_WORDS[token]
        elif kind == "fraction":
            # PTBTokenizer makes "22 3/4" one token, joined by a no-break space.
            tokens.append(token.replace(" ", "\xa0"))
        elif kind in ("sign", "smiley"):
            tokens.append(_SIGN.sub(lambda sign: _WRITTEN_OUT[sign[0]], token))
        else:
            tokens.append(token)
    return [token for token in tokens if not _PUNCTUATION.fullmatch(token)]
