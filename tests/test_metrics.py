"""Metrics against pycocoevalcap's scorers, NLTK, and values computed by hand."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastrnn import metrics
from fastrnn.caption_tokens import caption_tokens
from fastrnn.extras import install_command
from fastrnn.metrics import BLEU_score, CaptionScorer, bleu_1, diversity, evaluate_captions

WORDS = ["a", "the", "man", "dog", "red", "on", "sits", "grass", "'s", "n't", ",", "-", "t-shirt"]
KEYS = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]


def pycocoevalcap_says(
    candidates: list[str], references: list[list[str]]
) -> tuple[dict[str, float], np.ndarray]:
    """Return the scores of COCO's evaluation for tokenized captions, and CIDEr of each image."""
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    known = dict(enumerate(references))
    said = {image: [candidate] for image, candidate in enumerate(candidates)}
    bleu, _ = Bleu(4).compute_score(known, said, verbose=0)
    rouge, _ = Rouge().compute_score(known, said)
    cider, each = Cider().compute_score(known, said)
    return dict(zip(KEYS, [*bleu, rouge, cider], strict=True)), each


def draw(rng: np.random.Generator, images: int) -> tuple[list[str], list[list[str]]]:
    """Draw captions from few words, so that n-grams match; some are empty, some repeated."""

    def caption() -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(0, 12)))

    references = [[caption() for _ in range(rng.integers(1, 6))] for _ in range(images)]
    candidates = [caption() for _ in range(images)]
    for image in range(0, images, 3):
        candidates[image] = references[image][0]
        references[image] += [references[image][0]]
    return candidates, references


@pytest.mark.parametrize("images", [1, 2, 40])
def test_figures_of_pycocoevalcap_on_tokens(rng: np.random.Generator, images: int):
    candidates, references = draw(rng, images)
    expected, each = pycocoevalcap_says(candidates, references)
    scorer = CaptionScorer(references, tokenized=True)
    found = scorer.evaluate(candidates)
    assert list(found) == KEYS
    assert found == pytest.approx(expected, abs=1e-9, rel=0)
    assert scorer.evaluate(candidates, rouge=False) == {**found, "rouge_l": None}
    mean, scores = scorer.cider(candidates)
    assert mean == pytest.approx(expected["cider"], abs=1e-9, rel=0)
    np.testing.assert_allclose(scores, each, rtol=0, atol=1e-9)
    # Score a second set of candidates against the same references.
    others = candidates[::-1]
    expected, each = pycocoevalcap_says(others, references)
    assert scorer.evaluate(others) == pytest.approx(expected, abs=1e-9, rel=0)
    np.testing.assert_allclose(scorer.cider(others)[1], each, rtol=0, atol=1e-9)


def test_figures_of_pycocoevalcap_on_real_captions(shared_data: Path):
    annotations = json.loads((shared_data / "coco" / "captions_val2017.json").read_text())
    by_image: dict[int, list[str]] = {}
    for annotation in annotations["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation["caption"])
    chosen = [by_image[image] for image in sorted(by_image)[:300]]
    candidates, references = [known[0] for known in chosen], [known[1:] for known in chosen]

    def tokens(caption: str) -> str:
        return " ".join(caption_tokens(caption))

    expected, each = pycocoevalcap_says(
        [*map(tokens, candidates)], [[*map(tokens, known)] for known in references]
    )
    assert expected["cider"] > 0.5
    assert evaluate_captions(candidates, references) == pytest.approx(expected, abs=1e-9, rel=0)
    np.testing.assert_allclose(CaptionScorer(references).cider(candidates)[1], each, atol=1e-9)


def test_cider_of_a_caption_that_only_its_image_has():
    pytest.importorskip("pycocoevalcap")
    # The first candidate equals its reference: all cosines are 1, so CIDEr-D is 10.
    references = [["a b c d e"], ["f g h i j"]]
    mean, scores = CaptionScorer(references).cider(["a b c d e", "k l m n o"])
    assert scores == pytest.approx([10, 0])
    assert mean == pytest.approx(5)


def test_unknown_word_of_a_reference_matches_nothing():
    pytest.importorskip("pycocoevalcap")
    scorer = CaptionScorer([["a <UNK> dog"], ["a cat runs"]])
    for candidate in ("a <UNK> dog", "a <unk> dog"):
        found = scorer.evaluate([candidate, "a cat runs"])
        assert found["bleu_1"] == pytest.approx(5 / 6)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]):
    evaluate_captions(["a cat"], [["a dog"]])
    assert capfd.readouterr() == ("", "")


def test_java_is_not_started(tmp_path: Path):
    program = (
        "import subprocess, sys\n"
        "class Refusing(subprocess.Popen):\n"
        "    def __init__(self, args, *a, **k):\n"
        "        assert 'java' not in str(args), args\n"
        "        super().__init__(args, *a, **k)\n"
        "subprocess.Popen = Refusing\n"
        "from fastrnn.metrics import evaluate_captions\n"
        "print(evaluate_captions(['a cat'], [['a cat']])['bleu_1'])\n"
        "assert 'pycocotools' not in sys.modules\n"
        "assert 'pycocoevalcap.tokenizer.ptbtokenizer' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(1)


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        for name in [m for m in sys.modules if m == package or m.startswith(package + ".")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)


def test_bleu_by_nltk_without_pycocoevalcap(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, recwarn: pytest.WarningsRecorder
):
    corpus_bleu = pytest.importorskip("nltk.translate.bleu_score").corpus_bleu
    candidates, references = draw(rng, 30)
    hide(monkeypatch, "pycocoevalcap")
    scorer = CaptionScorer(references, tokenized=True)
    found = scorer.evaluate(candidates)
    assert CaptionScorer([["a cat"]]).evaluate(["a dog"])["bleu_4"] == pytest.approx(0)
    assert not recwarn.list
    split = [[reference.split() for reference in known] for known in references]
    said = [candidate.split() for candidate in candidates]
    for order in range(1, 5):
        expected = corpus_bleu(split, said, weights=[1 / order] * order)
        assert found[f"bleu_{order}"] == pytest.approx(expected)
    assert found["rouge_l"] is None and found["cider"] is None
    assert scorer.missing == (
        f"BLEU is computed by NLTK; ROUGE-L and CIDEr are missing: {install_command('eval')}"
    )
    with pytest.raises(ImportError, match=re.escape(install_command("eval"))):
        scorer.cider(candidates)
    with pytest.warns(UserWarning, match="NLTK; ROUGE-L and CIDEr are missing: "):
        assert evaluate_captions(candidates, references, tokenized=True) == found


def test_unigrams_without_any_package(monkeypatch: pytest.MonkeyPatch):
    hide(monkeypatch, "pycocoevalcap", "nltk")
    scorer = CaptionScorer([["a cat sits down"], ["a dog"]])
    found = scorer.evaluate(["a cat", "a dog"])
    assert found == {**dict.fromkeys(KEYS), "bleu_1": pytest.approx(math.exp(1 - 6 / 4))}
    assert scorer.missing is not None
    assert scorer.missing.startswith("BLEU-2, BLEU-3, BLEU-4, ROUGE-L and CIDEr are missing: ")
    for call in (
        lambda: BLEU_score("a", "a"),
        lambda: metrics.meteor(["a"], [["a"]]),
    ):
        with pytest.raises(ImportError, match=re.escape(f"needs NLTK: {install_command('eval')}")):
            call()


def test_bad_captions():
    with pytest.raises(ValueError, match="references is empty"):
        CaptionScorer([])
    with pytest.raises(
        ValueError, match=r"references\[1\] is empty; expected at least one caption"
    ):
        CaptionScorer([["a"], []])
    with pytest.raises(TypeError, match=r"references\[0\] is 'a cat'; expected a list of strings"):
        CaptionScorer(["a cat"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"references\[0\]\[1\] is 3; expected a string"):
        CaptionScorer([["a", 3]])  # type: ignore[list-item]
    scorer = CaptionScorer([["a"]])
    with pytest.raises(ValueError, match="candidates has 2 entries, references 1"):
        scorer.evaluate(["a", "b"])
    with pytest.raises(TypeError, match=r"candidates\[0\] is None; expected a string"):
        scorer.evaluate([None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="candidates is 'a'; expected a list of strings"):
        scorer.evaluate("a")


class _NoSynonyms:
    """An empty WordNet, so that words match only exactly or by their stems."""

    @staticmethod
    def synsets(word: str) -> list:
        return []


def test_meteor_of_banerjee_and_lavie(monkeypatch: pytest.MonkeyPatch):
    corpus = pytest.importorskip("nltk.corpus")
    monkeypatch.setattr(corpus, "wordnet", _NoSynonyms)
    # 4 words match ("runs" by its stem): all 4 of the candidate and 4 of 5 of the reference, in 2
    # chunks. F = 10 P R / (R + 9 P), times 1 - 0.5 (chunks / matches)^3.
    mean = 10 * 0.8 / (0.8 + 9) * (1 - 0.5 * (2 / 4) ** 3)
    known = ["the dog quickly runs home", "nothing like it"]
    assert metrics.meteor(["The dog running home."], [known]) == pytest.approx(mean)
    assert metrics.meteor(["The dog running home.", "x"], [known, ["y"]]) == pytest.approx(mean / 2)
    # <UNK> matches nothing, so it scores like any wrong word.
    others = metrics.meteor(["a this runs"], [["a that runs"]])
    assert metrics.meteor(["a <UNK> runs"], [["a <UNK> runs"]]) == pytest.approx(others)
    assert metrics.meteor(["<UNK>"], [["<UNK>"]]) == 0
    with pytest.raises(TypeError, match=r"references\[0\] is 'a cat'; expected a list of strings"):
        metrics.meteor(["a cat"], ["a cat"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="candidates is empty"):
        metrics.meteor([], [])
    with pytest.raises(ValueError, match=r"references\[0\] is empty"):
        metrics.meteor(["a"], [[]])
    with pytest.raises(ValueError, match="candidates has 1 entries, references 0"):
        metrics.meteor(["a"], [])


@pytest.fixture
def wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """WordNet as Debian's package wordnet-base has it, read by NLTK."""
    reader = pytest.importorskip("nltk.corpus.reader.wordnet")
    if not Path("/usr/share/wordnet/data.noun").is_file():
        pytest.skip("no WordNet here (Debian: wordnet-base)")
    for file in Path("/usr/share/wordnet").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    # The names of the 45 files of lexicographers, which NLTK reads first and METEOR does not use.
    (tmp_path / "lexnames").write_text("".join(f"{k:02d} file{k} 1\n" for k in range(45)))
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])  # NLTK reads nowhere else
    monkeypatch.setattr(
        reader.WordNetCorpusReader, "map_wn", lambda self: None
    )  # to WordNets of others
    return reader.WordNetCorpusReader(str(tmp_path), None)


@pytest.mark.filterwarnings("ignore:The multilingual functions are not available")
def test_meteor_knows_synonyms(wordnet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nltk.corpus.wordnet", wordnet)
    # All words match in one chunk, the second as a synonym: only 0.5 (chunks / matches)^3 is lost.
    assert metrics.meteor(["a car stops"], [["a auto stops"]]) == pytest.approx(1 - 0.5 / 27)
    # "stops" and "halts" share a sense; "dog" and "cat" do not, and break the match in two chunks.
    mean = 10 * 0.75 * 0.75 / (0.75 + 9 * 0.75) * (1 - 0.5 * (2 / 3) ** 3)
    assert metrics.meteor(["the dog halts here"], [["the cat stops here"]]) == pytest.approx(mean)


def test_meteor_without_wordnet(monkeypatch: pytest.MonkeyPatch):
    corpus = pytest.importorskip("nltk.corpus")

    class Absent:
        @staticmethod
        def synsets(word: str) -> list:
            raise LookupError("many lines about the places searched")

    monkeypatch.setattr(corpus, "wordnet", Absent)
    with pytest.raises(LookupError, match=r"NLTK's WordNet: python -m nltk\.downloader wordnet"):
        metrics.meteor(["a"], [["a"]])


def test_diversity():
    assert diversity(["a cat", "a dog", "a cat", ""]) == {
        "images": 4,
        "distinct_captions": 3,
        "vocabulary_used": 3,
        "mean_length": 6 / 4,
        "most_common": "a cat",
        "most_common_share": 0.5,
    }
    with pytest.raises(ValueError, match="captions is empty"):
        diversity([])


def test_warning_of_a_model_that_says_one_thing(recwarn: pytest.WarningsRecorder):
    diversity(["a cat"])
    diversity(["a cat", "a dog"])
    assert not recwarn.list
    with pytest.warns(UserWarning, match="says one thing for every image: 'a cat'"):
        diversity(["a cat", "a cat"])


def test_bleu_score_of_the_notebook():
    pytest.importorskip("nltk")
    # 3 of 4 words match, no brevity penalty; <START>, <END> and <UNK> are not counted.
    assert BLEU_score("<START> a cat <UNK> sits <END>", "a big cat sits <END>") == 0.75
    # 1 of 1 word matches; the reference has 3 words, so the brevity penalty is exp(1 - 3).
    assert BLEU_score("a cat sits", "cat") == pytest.approx(math.exp(-2))
    assert BLEU_score("a cat", "the dog") == 0
    assert BLEU_score("a cat", "<END>") == 0


def test_evaluate_model_as_the_assignment_prints_it(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("nltk")
    words = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "cat", "dog"]
    cat, dog = [1, 4, 5, 2, 0], [1, 4, 6, 2, 0]
    data = {
        "idx_to_word": words,
        "train_captions": np.array([cat]), "train_image_idxs": np.array([0]),
        "train_features": np.ones((1, 3)), "train_urls": np.array(["u"]),
        "val_captions": np.array([dog]), "val_image_idxs": np.array([0]),
        "val_features": np.zeros((1, 3)), "val_urls": np.array(["v"]),
    }  # fmt: skip

    class Model:
        def sample(self, features: np.ndarray) -> np.ndarray:
            assert features.shape == (20, 3)
            return np.tile([4, 5, 2, 5], (20, 1))

    assert metrics.evaluate_model(Model(), data, batch_size=20) == {"train": 1.0, "val": 0.5}
    assert capsys.readouterr().out == (
        "Average BLEU score for train: 1.000000\nAverage BLEU score for val: 0.500000\n"
    )


def test_clipped_precision_of_papineni():
    # Example of section 2.1 of the paper: 2 of the 7 words count; no brevity penalty.
    references = ["the cat is on the mat", "there is a cat on the mat"]
    assert bleu_1(["the the the the the the the"], [references]) == pytest.approx(2 / 7)


def test_brevity_penalty_of_the_corpus():
    # All 2 + 4 words match; the closest references have 4 + 4 words.
    candidates = ["a cat", "a dog runs off"]
    references = [["the cat is sitting down", "a cat sits down"], ["a dog runs off", "x"]]
    assert bleu_1(candidates, references) == pytest.approx(math.exp(1 - 8 / 6))
    found = CaptionScorer(references).evaluate(candidates)
    assert found["bleu_1"] == pytest.approx(math.exp(1 - 8 / 6))


def test_shorter_of_two_references_as_close():
    assert bleu_1(["a b c"], [["a b", "a b c d"]]) == 1.0


def test_perfect_and_empty():
    assert bleu_1(["a cat"], [["a dog", "a cat"]]) == 1.0
    assert bleu_1([""], [["a cat"]]) == 0.0
    assert bleu_1([], []) == 0.0


def test_unknown_word_matches_nothing():
    assert bleu_1(["a <UNK>"], [["a <UNK>"]]) == 0.5


def test_bad_input():
    with pytest.raises(ValueError, match="candidates has 1 entries, references 0"):
        bleu_1(["a"], [])
    with pytest.raises(ValueError, match=r"references\[1\] is empty"):
        bleu_1(["a", "b"], [["a"], []])
    with pytest.raises(TypeError, match=r"references\[0\] is 'a cat'; expected a list of strings"):
        bleu_1(["a cat"], ["a cat"])  # type: ignore[list-item]
