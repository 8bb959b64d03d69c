"""Tokens of captions against Stanford's PTBTokenizer 3.4.1, as COCO's evaluation runs it.

The expected tokens are the output of the Java program with ``-preserveLines -lowerCase``, without
the punctuation listed in ``pycocoevalcap.tokenizer.ptbtokenizer``. In its input, each caption was
followed by a line that begins with "A".
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from random import Random

import pytest

from fastrnn.caption_tokens import _tokens, caption_tokens

CASES = {
    "A dog doesn't like the man's hat.": "a dog does n't like the man 's hat",
    "The men's dogs' bowls aren't here.": "the men 's dogs bowls are n't here",
    "Can't, won't; cannot, gonna & gotta!": "ca n't wo n't can not gon na & got ta",
    "A black-and-white dog - sitting -- here...": "a black-and-white dog sitting here",
    "A \"quoted\" word and 'single' word.": "a quoted word and single word",
    "“Curly” quotes don’t matter – or do they?": "curly quotes do n't matter or do they",
    "A man (with a hat) [a] {b}": "a man -lrb- with a hat -rrb- -lsb- a -rsb- -lcb- b -rcb-",
    'Two signs: "W 122 St.", "Seminary Row"': "two signs w 122 st. seminary row",
    "Mr. Smith and Mrs. Po on 5th Ave. at 5 p.m.": "mr. smith and mrs. po on 5th ave. at 5 p.m.",
    "The U.S. flag, T.V.'s and a TV.": "the u.s. flag t.v. 's and a tv",
    "No. 5 is here. No. The end.": "no. 5 is here no the end",
    "At 10:30am in the 1990's and '90s": "at 10:30 am in the 1990 's and '90s",
    "$5 and 50% off #1 fan of AT&T; b&w too": "$ 5 and 50 % off # 1 fan of at&t b & w too",
    "black/white w/ and/or 1/2 of a 24/7 store": "black/white w / and/or 1/2 of a 24/7 store",
    "1,000 feet, 10.5 ft. or .5 inch": "1,000 feet 10.5 ft. or .5 inch",
    "Wow!! What?? Really?! Yes!": "wow !! what ?? really ?! yes",
    "rock 'n' roll at 6 o'clock, ma'am": "rock 'n' roll at 6 o'clock ma'am",
    "O'Brien's d'art by Ho'ohu, y'all": "o'brien 's d'art by ho'ohu y' all",
    "He's I'm we'll they'd you've you're": "he 's i 'm we 'll they 'd you 've you 're",
    "A café, naïve and 45° of £5": "a café naïve and 45 ° of # 5",
    "end of sentence.no space ,here .There": "end of sentence.no space here there",
    "A smile :) and a <UNK> thing": "a smile :-rrb- and a <unk> thing",
    "snow &amp; ice &lt;3": "snow & ice < 3",
    "T-SHIRT with the word STOP.It's red": "t-shirt with the word stop.it 's red",
    "A GIRAFFE'S neck isn`t short": "a giraffe 's neck is n`t short",
    "it 's a man 's , do n't": "it 's a man 's do n't",
    "foo@bar.com or www.foo.com/x?y=1.": "foo@bar.com or www.foo.com/x?y=1",
    "'Tis a kitten; 'twas a cat": "'t is a kitten 't was a cat",
    "a_b __ a* ** ~ ^ = +5 -5 5-7": "a_b __ a * ** ~ ^ = +5 -5 5-7",
    "A tower that reads K.": "a tower that reads k",
}


@pytest.mark.parametrize("caption", CASES)
def test_tokens_of_the_java_tokenizer(caption: str):
    assert caption_tokens(caption) == CASES[caption].split(" ")


def test_mixed_numbers():
    # The Java program makes a mixed number such as 22 3/4 one token.
    assert caption_tokens("22 3/4 St") == ["22\xa03/4", "st"]
    assert caption_tokens("1½ cups") == ["1", "1/2", "cups"]


def test_fast_path_for_plain_words():
    # Captions of plain words take a fast path; the comma forces the regular expression.
    caption = "A man gonna ride a Big wave"
    assert caption_tokens(caption) == caption_tokens(caption + " ,")


def test_empty_captions():
    assert caption_tokens("") == caption_tokens("  ") == caption_tokens(" ... ") == []


def test_caption_must_be_a_string():
    with pytest.raises(TypeError, match=r"caption is \['a'\]; expected a string"):
        caption_tokens(["a"])  # type: ignore[arg-type]


def test_chunks_alone_have_the_tokens_that_they_have_in_a_caption():
    """The cache of chunks changes no token: half the chunks are those that look about them."""
    rng = Random(0)
    known = [chunk for caption in CASES for chunk in caption.split()]
    known += ["C.", "st.", "no.", "22", "3/4", "½", "&nbsp;", "x&y", "The", "A", "p.m.", "dog.,"]
    for _ in range(3000):
        chunks = [rng.choice(known) for _ in range(rng.randrange(1, 6))]
        caption = rng.choice([" ", "\t", "  "]).join(chunks) + rng.choice(["", ".", " .", ". "])
        at = rng.randrange(len(caption))
        caption = rng.choice([caption, caption[:at] + chr(rng.randrange(1, 127)) + caption[at:]])
        assert caption_tokens(caption) == _tokens(caption), caption


def test_every_caption_of_coco_as_java_splits_it(shared_data: Path, tmp_path: Path):
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    if shutil.which("java") is None:
        pytest.skip("no java on this machine")
    place = shared_data / "coco" / "captions_val2017.json"
    captions = [
        a["caption"].replace("\n", " ") for a in json.loads(place.read_text())["annotations"]
    ]
    (tmp_path / "captions.txt").write_text("\n".join(captions), encoding="utf-8")
    jar = Path(tokenizer.__file__).with_name(tokenizer.STANFORD_CORENLP_3_4_1_JAR)
    done = subprocess.run(
        ["java", "-Dfile.encoding=UTF-8", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer",
         "-preserveLines", "-lowerCase", "captions.txt"],
        cwd=tmp_path, capture_output=True, check=True,
    )  # fmt: skip
    lines = done.stdout.decode("utf-8").rstrip("\n").split("\n")
    assert len(lines) == len(captions) == 25014
    for caption, line in zip(captions, lines, strict=True):
        java = [w for w in line.split(" ") if w and w not in tokenizer.PUNCTUATIONS]
        assert caption_tokens(caption) == java
