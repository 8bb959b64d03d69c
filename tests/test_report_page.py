"""The page of a run: complete, self-contained, safe with any text, and working in a browser."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import coco_layout
import numpy as np
import pytest
from PIL import Image
from run_history import HISTORY

import fastrnn.reference.classifier as reference
from fastrnn import cli, decoding, optim
from fastrnn.checkpoint import blank_model, load_model, save_model
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.data.scenes.dataset import read_scenes, write_scenes
from fastrnn.data.scenes.language import caption_is_true
from fastrnn.evaluation import Evaluator, caption_images, references_of
from fastrnn.extras import install_command
from fastrnn.report import Report, watch_report, write_report
from fastrnn.report import page as page_module
from fastrnn.runlock import RunLock
from fastrnn.runs import read_settings
from fastrnn.vision.source import FeatureSource

MARKUP = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"


def write_history(run: Path, history: list[dict]) -> None:
    (run / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))


def make_run(run: Path, data: Path, history: list[dict] = HISTORY, **settings: Any) -> Path:
    """Write a run of a small model that was trained on the validation captions."""
    found = read_captioning_directory(data)
    run.mkdir()
    model = blank_model(
        found["word_to_idx"], found["val_features"].shape[1], 6, 8, "lstm", np.float64, seed=5
    )
    model.params["W_embed"] *= 50
    states: dict[str, dict] = {name: {"learning_rate": 3e-2} for name in model.params}
    for _ in range(150):
        _, grads = model.loss(found["val_features"][found["val_image_idxs"]], found["val_captions"])
        for name, w in model.params.items():
            model.params[name], states[name] = optim.adam(w, grads[name], states[name])
    save_model(run / "model.npz", model)
    write_history(run, history)
    about = {"fastrnn": "0", "data": str(data), "raw_features": False, "cell": "lstm",
             "hidden_dim": 8, "wordvec_dim": 6, "epochs": 2}  # fmt: skip
    (run / "settings.json").write_text(json.dumps({**about, **settings}))
    return run


def shown(page: Path) -> dict[str, Any]:
    """The data that a page brings along."""
    text = page.read_text("utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert not set(found) & set("<>&")
    return json.loads(found)


def texts(report: dict[str, Any], method: int = 0) -> list[str]:
    return [
        " ".join(word for word, _ in image["captions"][method]["words"])
        for image in report["images"]
    ]


def opened(uri: str) -> Image.Image:
    kind, _, data = uri.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert kind == f"data:image/{image.format.lower()}"
    return image


# -- what is on the page


def test_captions_and_the_probability_of_each_word(data_dir: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", data_dir)
    report = shown(write_report(run))
    model, data = load_model(run), read_captioning_directory(data_dir)
    assert report["methods"] == ["greedy", "beam 3"]
    assert texts(report) == caption_images(model, data["val_features"])
    assert [image["references"] for image in report["images"]] == [
        list(dict.fromkeys(known)) for known in references_of(data)
    ]
    assert [image["name"] for image in report["images"]] == data["val_urls"].tolist()

    twin = reference.CaptioningRNN(data["word_to_idx"], 7, 6, 8, "lstm", np.float64)
    twin.params = model.params

    def nats(row: int, words: list[str]) -> float:
        ids = [[data["word_to_idx"][word] for word in ["<START>", *words]]]
        return -twin.loss(data["val_features"][row : row + 1], np.array(ids))[0]

    ends = 0
    for row, image in enumerate(report["images"]):
        for said in image["captions"]:
            words = [word for word, _ in said["words"]]
            probabilities = [p for _, p in said["words"]]
            if said["end"] is not None:
                words, probabilities = [*words, "<END>"], [*probabilities, said["end"]]
                ends += 1
            so_far = [nats(row, words[:n]) for n in range(len(words) + 1)]
            np.testing.assert_allclose(probabilities, np.exp(np.diff(so_far)), atol=6e-5)
            assert said["probability"] == pytest.approx(math.exp(so_far[-1] / len(words)), abs=1e-5)
    assert ends > 2
    assert len(set(texts(report))) > 2


def test_cider_is_that_of_pycocoevalcap(data_dir: Path, tmp_path: Path):
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    report = shown(write_report(make_run(tmp_path / "run", data_dir)))
    # <UNK> matches nothing: in the references it is another word than in the captions.
    known = {
        row: [text.replace("<UNK>", "else") for text in image["references"]]
        for row, image in enumerate(report["images"])
    }
    data = read_captioning_directory(data_dir)
    assert any(len(set(r)) < len(r) for r in references_of(data)) is False
    for method in (0, 1):
        said = {row: [text] for row, text in enumerate(texts(report, method))}
        mean, each = cider.Cider().compute_score(known, said)
        found = [image["captions"][method]["cider"] for image in report["images"]]
        np.testing.assert_allclose(found, each, atol=6e-5)
        (table,) = (table for table in report["tables"] if table["id"] == "metrics")
        (row,) = (row for row in table["rows"] if row[0] == "CIDEr")
        assert row[1 + method] == f"{100 * mean:.1f}"


def test_metrics_are_those_of_the_evaluation(data_dir: Path, tmp_path: Path):
    """References that are written twice count twice, and are shown once."""
    pytest.importorskip("pycocoevalcap")
    run, data = make_run(tmp_path / "run", data_dir), read_captioning_directory(data_dir)
    data["val_references"] = [["a cat on a mat", "a cat on a mat", "the dog"]] * 3 + [
        ["a sofa"],
        [],
    ]
    report = shown(write_report(run, data=data, beam=1))
    evaluator = Evaluator(data)
    captions = evaluator.caption(load_model(run))
    assert report["images"][0]["references"] == ["a cat on a mat", "the dog"]
    found = [image["captions"][0]["cider"] for image in report["images"]]
    assert found == pytest.approx(evaluator.cider(captions), abs=5e-5)
    once = Evaluator(
        {**data, "val_references": [[*dict.fromkeys(r)] for r in evaluator.references]}
    )
    assert once.cider(captions) != pytest.approx(found, abs=5e-5)


def test_a_model_and_captions_that_are_known(data_dir: Path, tmp_path: Path, monkeypatch):
    run, data = make_run(tmp_path / "run", data_dir), read_captioning_directory(data_dir)
    expected = shown(write_report(run, images=3, beam=2))
    model = load_model(run)
    known = decoding.greedy(model, data["val_features"], suppress_unk=True)
    monkeypatch.delattr(page_module, "load_model")
    options = {"data": data, "model": model, "images": 3, "beam": 2}
    report = shown(write_report(run, greedy=known, **options))
    assert report["images"] == expected["images"]
    # Captions that are given are not generated again.
    swapped = dataclasses.replace(
        known, ids=known.ids[::-1], word_log_probs=known.word_log_probs[::-1]
    )
    report = shown(write_report(run, greedy=swapped, **options))
    assert texts(report) == texts(expected)[::-1] != texts(expected)
    assert texts(report, 1) == texts(expected, 1)


def test_without_the_extra_there_is_no_cider(data_dir: Path, tmp_path: Path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pycocoevalcap")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    report = shown(write_report(make_run(tmp_path / "run", data_dir)))
    assert all(said["cider"] is None for image in report["images"] for said in image["captions"])
    assert install_command("eval") in " ".join(report["notes"])
    assert len(report["images"]) == 5


def test_curves(data_dir: Path, tmp_path: Path):
    report = shown(write_report(make_run(tmp_path / "run", data_dir)))
    curves = {c["title"]: {line["name"]: line["points"] for line in c["lines"]}
              for c in report["curves"]}  # fmt: skip
    assert curves == {
        "Loss (nats per word)": {
            "training": [[0.5, 3.0], [1.0, 2.0], [1.5, 1.5], [2.0, 1.25]],
            "validation": [[1, 2.2], [2, 2.4]],
        },
        "Validation BLEU-4 (greedy)": {"BLEU-4": [[1, 10], [2, 15]]},
        "Validation CIDEr (greedy)": {"CIDEr": [[1, 25], [2, 37.5]]},
        "Learning rate": {"learning rate": [[0.5, 0.1], [1.0, 0.1], [1.5, 0.05], [2.0, 0.05]]},
        "Captions per second": {"captions/s": [[1, 1000], [2, 1100]]},
    }


def test_long_histories_are_thinned(data_dir: Path, tmp_path: Path):
    long = [{"step": n, "epoch": n / 1000, "loss": float(n), "learning_rate": None}
            for n in range(1, 8001)]  # fmt: skip
    report = shown(write_report(make_run(tmp_path / "run", data_dir, long)))
    points = np.array(report["curves"][0]["lines"][0]["points"])
    assert len(points) == 800
    np.testing.assert_allclose(points[[0, -1]], [[0.01, 5.5], [8.0, 7995.5]])
    assert report["curves"][3]["lines"][0]["points"] == []


def test_numbers_that_are_not_finite(data_dir: Path, tmp_path: Path):
    odd = [{**HISTORY[0], "loss": math.inf}, {**HISTORY[2], "val_cider": math.nan}]
    report = shown(write_report(make_run(tmp_path / "run", data_dir, odd)))
    assert report["curves"][0]["lines"][0]["points"] == []
    assert report["curves"][2]["lines"][0]["points"] == []


def test_settings_are_explained(data_dir: Path, tmp_path: Path):
    """In the words of ``fastrnn train --help``; validation is on fewer images than the gallery."""
    run = make_run(tmp_path / "run", data_dir, val_captions=1000, val_images=500)
    tables = {table["id"]: table for table in shown(write_report(run))["tables"]}
    settings = {name: rest for name, *rest in tables["settings"]["rows"]}
    meaning = "validation images that are captioned after each epoch, evenly spread"
    assert settings["val images"] == ["500", meaning]
    assert settings["hidden dim"][0] == "8" and settings["data"][1] == ""
    assert tables["epochs"]["title"] == (
        "History by epoch (loss on at most 1,000 validation captions, BLEU-4 and CIDEr on at most "
        "500 validation images); scores ×100"
    )


def test_records_and_settings_that_are_odd(data_dir: Path, tmp_path: Path):
    odd = [{"step": 1, "epoch": 0.1}, {**HISTORY[2], "val_cider": 1e307}]
    run = make_run(tmp_path / "run", data_dir, odd, cell="half \ud83d")
    page = write_report(run)
    assert shown(page)["curves"][2]["lines"][0]["points"] == []
    assert "HALF ?, hidden size 8" in page.read_text("utf-8")


def test_pictures(data_dir: Path, tmp_path: Path):
    urls = ["val0.png", "large.jpg", "broken.png", "http://example.org/<a>.jpg",
            "javascript:alert(1)"]  # fmt: skip
    Image.fromarray(np.full((400, 800, 3), 99, np.uint8)).save(data_dir / "large.jpg")
    whole = (data_dir / "val1.png").read_bytes()
    assert whole[37:41] == b"IDAT"
    # Without a length of the pixels, for which Pillow raises a SyntaxError.
    (data_dir / "broken.png").write_bytes(whole[:33] + bytes(4) + whole[37:])
    (data_dir / "val2014_urls.txt").write_text("\n".join(urls))
    report = shown(write_report(make_run(tmp_path / "run", data_dir)))
    small, large, broken, away, script = report["images"]
    with Image.open(data_dir / "val0.png") as original:
        np.testing.assert_array_equal(np.asarray(opened(small["picture"])), np.asarray(original))
    assert opened(large["picture"]).size == (320, 160)
    assert [small["pixels"], large["pixels"]] == [True, False]
    assert broken["picture"] is away["picture"] is script["picture"] is None
    assert away["link"] == urls[3]
    assert small["link"] is large["link"] is script["link"] is None


def test_a_picture_with_far_more_pixels_than_bytes_is_left_out(data_dir: Path, tmp_path: Path):
    Image.new("1", (6000, 6000)).save(data_dir / "val0.png")
    large, usual, *_ = shown(write_report(make_run(tmp_path / "run", data_dir)))["images"]
    assert large["picture"] is None
    assert usual["picture"] is not None


def test_photographs_in_the_folder_that_the_data_name(data_dir: Path, tmp_path: Path):
    photos = tmp_path / "photos"
    (photos / "inner").mkdir(parents=True)
    names = ["a.jpg", "inner/b.png", "val2.png", "gone.jpg", "c d.jpg"]
    noise = np.random.default_rng(1).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    for name in ("a.jpg", "inner/b.png", "c d.jpg"):
        Image.fromarray(noise).save(photos / name)
    (data_dir / "val2014_urls.txt").write_text("\n".join(names))
    FeatureSource.unknown(7, images=photos).write(data_dir)
    run = make_run(tmp_path / "run", data_dir)
    report = shown(write_report(run))
    jpeg, png, beside, gone, blank = (image["picture"] for image in report["images"])
    assert [opened(picture).size for picture in (jpeg, png, blank)] == [(320, 192)] * 3
    # As PNG files, such photographs would be several times as large.
    assert all(picture.startswith("data:image/jpeg;") for picture in (jpeg, png, blank))
    assert opened(beside).size == (6, 4)  # in the data directory
    assert gone is None
    assert report["notes"] == []

    shutil.rmtree(photos)
    report = shown(write_report(run))
    assert [bool(image["picture"]) for image in report["images"]] == [False] * 2 + [True] + [
        False
    ] * 2
    assert report["notes"] == [f"The folder of the images, {photos}, does not exist."]
    (data_dir / "features.json").write_text("{")
    # With the data in memory, as after training.
    (note,) = shown(write_report(run, data=read_captioning_directory(data_dir)))["notes"]
    assert note.startswith("The folder of the images is not known. ")
    assert "features.json" in note


def test_page_is_bounded(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(coco_layout.NUM_IMAGES, "val", 30)
    coco_layout.write_layout(tmp_path / "data")
    rng = np.random.default_rng(1)
    for number in range(30):
        noise = rng.integers(0, 256, (150, 150, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "data" / f"val{number}.png")
    run = make_run(tmp_path / "run", tmp_path / "data")
    whole = shown(write_report(run, pictures=12))
    sizes = [len(image["picture"]) for image in whole["images"] if image["picture"]]
    assert len(sizes) == 12
    assert whole["notes"] == []
    room = sum(sorted(sizes)[-7:])
    monkeypatch.setattr("fastrnn.report.gallery._MAX_EMBEDDED", room)
    report = shown(write_report(run, pictures=12))
    there = [image for image in report["images"] if image["picture"]]
    assert sum(len(image["picture"]) for image in there) <= room
    assert len(there) >= 7
    left_out = len(sizes) - len(there)
    note = f"{left_out} pictures are left out, because this page would become too large."
    assert report["notes"] == [note]
    # There are some of the best, of the worst and of the others.
    key = "probability" if there[0]["captions"][-1]["cider"] is None else "cider"
    value = [image["captions"][-1][key] for image in report["images"]]
    ranks = sorted(sorted(value).index(image["captions"][-1][key]) for image in there)
    assert ranks[0] < 4
    assert ranks[-1] >= 24


def test_best_and_worst_are_among_the_pictures(data_dir: Path, tmp_path: Path, monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setitem(coco_layout.NUM_IMAGES, "val", 30)
    coco_layout.write_layout(tmp_path / "many")
    run = make_run(tmp_path / "run", tmp_path / "many")
    report = shown(write_report(run, pictures=9))
    there = {row for row, image in enumerate(report["images"]) if image["picture"]}
    assert len(there) == 9
    value = [image["captions"][1]["cider"] for image in report["images"]]
    ranked = sorted(value)
    best = {row for row in range(30) if value[row] > ranked[-4]}
    worst = {row for row in range(30) if value[row] < ranked[3]}
    assert len(best) > 1
    assert best <= there
    assert worst <= there
    # And fewer images than there are, evenly spread.
    few = shown(write_report(run, images=4, pictures=0, beam=1))
    assert few["methods"] == ["greedy"]
    names = [image["name"] for image in report["images"]]
    assert [names.index(image["name"]) for image in few["images"]] == [0, 10, 19, 29]
    assert not any(image["picture"] for image in few["images"])
    assert any(table["title"].startswith("Metrics on 4 of 30 ") for table in few["tables"])


def test_scenes_have_marks(tmp_path: Path):
    write_scenes(tmp_path / "data", 40, 12, seed=3, size=7)
    report = shown(write_report(make_run(tmp_path / "run", tmp_path / "data"), images=6))
    scenes = read_scenes(tmp_path / "data")
    rows = [int(image["name"][-9:-4]) for image in report["images"]]
    assert rows == [0, 2, 4, 7, 9, 11]
    for method in (0, 1):
        marks = [image["captions"][method]["true"] for image in report["images"]]
        assert marks == [
            caption_is_true(text, scenes[row])
            for text, row in zip(texts(report, method), rows, strict=True)
        ]
    # Scenes that are not those of the images say nothing about them.
    path = tmp_path / "data" / "val_scenes.json"
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))
    images = shown(write_report(tmp_path / "run"))["images"]
    assert {said["true"] for image in images for said in image["captions"]} == {None}


class Reader(HTMLParser):
    """Collects tags, and checks that what is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def hostile(data: Path) -> None:
    """Put markup where words and addresses belong."""
    vocabulary = data / "coco2014_vocab.json"
    vocab = json.loads(vocabulary.read_text())
    vocab["idx_to_word"] = [MARKUP if w == "dog" else w for w in vocab["idx_to_word"]]
    vocab["word_to_idx"] = {word: i for i, word in enumerate(vocab["idx_to_word"])}
    vocabulary.write_text(json.dumps(vocab))
    urls = data / "val2014_urls.txt"
    lines = urls.read_text().splitlines()
    lines[:2] = [f'http://example.org/"{MARKUP}', "javascript:document.title='taken'"]
    urls.write_text("\n".join(lines))


def test_text_stays_text(data_dir: Path, tmp_path: Path):
    hostile(data_dir)
    page = write_report(make_run(tmp_path / "<run> {{data}} & more", data_dir, cell=MARKUP))
    text = page.read_text("utf-8")
    assert MARKUP in texts(shown(page), 0)[0] + json.dumps(shown(page)["images"])
    reader = Reader(text)
    assert [attrs.get("type") for tag, attrs in reader.tags if tag == "script"] == [
        "application/json", None,
    ]  # fmt: skip
    assert "img" not in [tag for tag, _ in reader.tags]
    assert "<h1>&lt;run&gt; {{data}} &amp; more</h1>" in text


def test_page_fetches_nothing(data_dir: Path, tmp_path: Path):
    text = write_report(make_run(tmp_path / "run", data_dir)).read_text("utf-8")
    for tag, attrs in Reader(text).tags:
        for name in ("src", "srcset", "href"):
            assert attrs.get(name, "data:").startswith("data:"), tag
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|WebSocket", text)
    policy = next(attrs["content"] for _, attrs in Reader(text).tags if "http-equiv" in attrs)
    sources = {}
    for kind in ("style", "script"):
        (inline,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(inline.encode("utf-8")).digest()).decode()
        sources[f"{kind}-src"] = f"'sha256-{digest}'"
    assert dict(part.split(" ", 1) for part in policy.split("; ")) == {
        "default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'",
        **sources,
    }  # fmt: skip


# -- runs that are on their way, or no runs


def test_run_without_a_model(data_dir: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", data_dir, HISTORY[:1])
    (run / "model.npz").unlink()
    report = shown(write_report(run))
    assert report["images"] == []
    assert "no model yet" in " ".join(report["notes"])
    assert report["status"] == "Stopped after epoch 0.5 of 2."
    assert report["curves"][0]["lines"][0]["points"] == [[0.5, 3.0]]
    (run / "history.jsonl").unlink()
    assert shown(write_report(run))["status"] == "No training steps have been recorded yet."


def test_run_whose_data_is_elsewhere(data_dir: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", data_dir)
    data_dir.rename(tmp_path / "moved")
    report = shown(write_report(run))
    assert report["images"] == []
    assert str(data_dir) in " ".join(report["notes"])
    assert len(shown(write_report(run, directory=tmp_path / "moved"))["images"]) == 5
    (run / "settings.json").write_text('{"fastrnn": "0"}')
    assert "do not name a data directory" in " ".join(shown(write_report(run))["notes"])
    (run / "settings.json").write_text(json.dumps({"fastrnn": "0", "data": str(data_dir)}))
    with pytest.raises(FileNotFoundError):
        write_report(run, directory=tmp_path / "nowhere")
    (tmp_path / "moved").rename(run / "data")
    assert len(shown(write_report(run))["images"]) == 5


def test_data_without_references_or_images(data_dir: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", data_dir)
    data = read_captioning_directory(data_dir)
    bare = {**data, "val_references": [[] for _ in range(5)]}
    report = shown(write_report(run, data=bare))
    assert "no references" in " ".join(report["notes"])
    some = {**data, "val_references": [["a cat on a mat"], [], ["a dog"], [], ["the sofa"]]}
    report = shown(write_report(run, data=some))
    measured = [image["captions"][0]["cider"] is not None for image in report["images"]]
    assert measured in ([True, False, True, False, True], [False] * 5)
    none = {**data, "val_features": data["val_features"][:0], "val_urls": data["val_urls"][:0],
            "val_references": []}  # fmt: skip
    assert shown(write_report(run, data=none))["images"] == []


def test_whole_references_beside_the_data(data_dir: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", data_dir)
    written = {"val3.png": ["Two dogs, on a mat.", "a sofa"], "val0.png": ["a cat"]}
    (data_dir / "val_references.json").write_text(json.dumps(written))
    images = shown(write_report(run))["images"]
    assert [image["references"] for image in images] == [["a cat"], [], [], written["val3.png"], []]


def test_weights_that_are_not_finite(data_dir: Path, tmp_path: Path):
    """A failed training can leave such a model; the page still shows its curves."""
    run = make_run(tmp_path / "run", data_dir)
    model = load_model(run)
    model.params["Wh"][1, 2] = np.nan
    save_model(run / "model.npz", model)
    report = shown(write_report(run))
    assert report["images"] == []
    assert "not finite" in " ".join(report["notes"])
    assert report["curves"][0]["lines"][0]["points"]


def test_finished_is_what_has_its_metrics(data_dir: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", data_dir)
    with RunLock(run):
        assert shown(write_report(run))["status"] == "Training, epoch 2 of 2."
    (run / "metrics.json").write_text(json.dumps({"epoch": 1, "true_share": 0.25}))
    report = shown(write_report(run))
    assert report["status"] == "Finished after 2 of 2 epochs. The model is from epoch 1."
    assert ["true captions", "25.0%"] in report["figures"]
    # A resumed training writes on: what was measured before is no longer the end.
    os.utime(run / "metrics.json", ns=(1, 1))
    with RunLock(run):
        assert shown(write_report(run))["status"] == "Training, epoch 2 of 2."


def test_a_run_that_was_killed_does_not_train(data_dir: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", data_dir, HISTORY[:1])
    program = (
        "import os, sys, fastrnn.runlock\n"
        "lock = fastrnn.runlock.RunLock(sys.argv[1])\n"
        "lock.acquire()\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"locked\n"
        report = Report(run)
        assert report.read()
        assert report.status == "Training, epoch 0.5 of 2."
        assert not report.read()
    finally:
        process.kill()
        process.communicate(timeout=30)
    assert (run / ".lock").exists()
    assert report.read(), "the page of a training that has ended is written again"
    assert report.status == "Stopped after epoch 0.5 of 2."
    assert not report.read()


def run_command(*arguments: object) -> int:
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as exit:
        return exit.code or 0


def test_command(data_dir: Path, tmp_path: Path, capsys):
    run = make_run(tmp_path / "run", data_dir)
    assert run_command("report", run) == 0
    assert len(shown(run / "report.html")["images"]) == 5
    options = ["--out", tmp_path / "page.html", "--beam", 2, "--images", 3, "--pictures", 1]
    assert run_command("report", run, *options, "--data", data_dir, "--threads", 1) == 0
    assert str(tmp_path / "page.html") in capsys.readouterr().out
    report = shown(tmp_path / "page.html")
    assert report["methods"] == ["greedy", "beam 2"]
    assert [bool(image["picture"]) for image in report["images"]].count(True) == 1
    assert report["reload"] is None


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [
        (lambda run, data: (run / "settings.json").unlink(), "settings.json"),
        (lambda run, data: (run / "settings.json").write_text("{}"), "settings.json"),
        (lambda run, data: (run / "settings.json").write_text("{"), "settings.json"),
        (lambda run, data: (run / "settings.json").write_text("[]"), "settings.json"),
        (lambda run, data: (run / "history.jsonl").write_text("no\n"), "history.jsonl: line 1"),
        (lambda run, data: (run / "metrics.json").write_text("no"), "metrics.json"),
        (lambda run, data: (run / "model.npz").write_bytes(b"PK"), "model.npz"),
        (lambda run, data: hostile(data), "data: word_to_idx has 'dog' as None; expected"),
        (lambda run, data: (data / "coco2014_captions.h5").unlink(), "coco2014_captions.h5"),
    ],
)
def test_what_is_refused(data_dir: Path, tmp_path: Path, capsys, spoil, wanted):
    run = make_run(tmp_path / "run", data_dir)
    spoil(run, data_dir)
    assert run_command("report", run) == 2
    said = capsys.readouterr().err
    assert said.startswith("fastrnn: error: ")
    assert said.count("\n") == 1
    assert wanted in said
    assert not (run / "report.html").exists()


def test_features_of_another_width(data_dir: Path, tmp_path: Path, capsys):
    run = make_run(tmp_path / "run", data_dir, raw_features=True)
    assert run_command("report", run) == 2
    said = capsys.readouterr().err
    assert "train_features has shape (12, 10); expected (images, 7)" in said


def test_arguments_that_are_refused(data_dir: Path, tmp_path: Path, capsys):
    run = make_run(tmp_path / "run", data_dir)
    for arguments, wanted in (
        (["nowhere"], "nowhere"),
        ([run / "model.npz"], "model.npz"),
        ([run, "--beam", 0], "--beam"),
        ([run, "--images", "some"], "--images"),
        ([run, "--pictures", -1], "--pictures"),
        ([run, "--watch", "--every", 0], "--every"),
        ([run, "--every", 2], "--every needs --watch"),
        ([run, "--data", "nowhere"], "nowhere"),
        ([run, "--out", tmp_path / "no" / "page.html"], "page.html"),
        ([run, "--out", tmp_path], f"--out is {tmp_path}; expected a file"),
        ([run, "--out", f"{tmp_path}/pages/"], f"--out is {tmp_path}/pages/; expected a file"),
        ([], "RUN"),
    ):
        assert run_command("report", *arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("fastrnn: error: ")
        assert said.count("\n") == 1
        assert wanted in said
    for name, value in (("images", -1), ("pictures", -1), ("beam", 0)):
        with pytest.raises(ValueError, match=f"^{name} is {value}"):
            write_report(run, **{name: value})
    with pytest.raises(ValueError, match=r"^seconds is 0"):
        watch_report(run, seconds=0)


# -- following a training


def test_watch_follows_a_training_to_its_end(data_dir: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", data_dir, HISTORY[:1])
    model = (run / "model.npz").read_bytes()
    (run / "model.npz").unlink()
    said: list[str] = []
    reloads: list[float | None] = []

    def on_write(out: Path, status: str) -> None:
        said.append(status)
        reloads.append(shown(out)["reload"])

    watching = threading.Thread(
        target=watch_report, args=(run,), kwargs={"seconds": 0.02, "on_write": on_write}
    )
    lock = RunLock(run)
    lock.acquire()  # as the training does
    watching.start()

    def wait(status: str, images: int) -> None:
        until = time.monotonic() + 20
        while said[-1:] != [status] or len(shown(run / "report.html")["images"]) != images:
            assert time.monotonic() < until
            assert watching.is_alive() or status.startswith("Finished")
            time.sleep(0.01)

    try:
        wait("Training, epoch 0.5 of 2.", 0)
        aside = run / "aside"
        aside.write_bytes(model)
        aside.rename(run / "model.npz")
        write_history(run, HISTORY[:3])
        wait("Training, epoch 1 of 2.", 5)
        write_history(run, HISTORY)
        wait("Training, epoch 2 of 2.", 5)
        count = len(said)
        time.sleep(0.1)
        assert len(said) == count, "written although nothing is new"
    finally:
        aside.write_text("{}")
        aside.rename(run / "metrics.json")
        watching.join(20)
        lock.release()
    assert not watching.is_alive()
    assert said[-1] == "Finished after 2 of 2 epochs."
    assert set(reloads[:-1]) == {0.02}
    assert reloads[-1] is None


def test_captions_are_made_anew_for_a_new_model_alone(data_dir: Path, tmp_path: Path, monkeypatch):
    run = make_run(tmp_path / "run", data_dir, HISTORY[:3])
    read = []
    monkeypatch.setattr(page_module, "load_model", lambda run: read.append(run) or load_model(run))
    page = page_module.Report(run)
    assert page.read() and not page.read()
    write_history(run, HISTORY)
    assert page.read()
    assert len(read) == 1
    os.utime(run / "model.npz", ns=(1, 1))
    assert page.read()
    assert len(read) == 2


def test_watch_of_what_is_refused_leaves_no_page(data_dir: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", data_dir)
    (run / "model.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"model\.npz"):
        watch_report(run)
    assert not (run / "report.html").exists()


def test_watch_before_and_after_the_run(data_dir: Path, tmp_path: Path, capsys):
    run = make_run(tmp_path / "run", data_dir)
    (run / "metrics.json").write_text("{}")
    for arguments in (["--watch", run], [run, "--watch"], ["--watch", "--every", 2, run]):
        assert run_command("report", *arguments) == 0
        assert "Finished after 2 of 2 epochs." in capsys.readouterr().out


def test_watch_ends_with_an_interrupt(data_dir: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", data_dir)
    process = subprocess.Popen(
        [sys.executable, "-m", "fastrnn", "report", str(run), "--watch", "--every", "0.1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert "Stopped after epoch 2 of 2." in process.stdout.readline()
        assert shown(run / "report.html")["reload"] == 0.1
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == "fastrnn: interrupted\n"
    report = shown(run / "report.html")
    assert report["reload"] is None
    assert len(report["images"]) == 5


# -- in a browser


@pytest.fixture(scope="module")
def chromium():
    if browser.PROGRAM is None:
        pytest.skip("Chromium is not installed")
    driven = browser.Browser()
    yield driven
    driven.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 60 images, of which 20 are there as pictures, with markup for text."""
    place = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(coco_layout.NUM_IMAGES, "val", 60)
        coco_layout.write_layout(place / "data")
    hostile(place / "data")
    return write_report(make_run(place / "run", place / "data"), pictures=20)


def cards(chromium: browser.Browser) -> list[int]:
    """The rows of the data that the gallery shows, in its order."""
    return chromium.run(
        "[...document.querySelectorAll('#gallery .card')].map((c) => Number(c.dataset.row))"
    )


def choose(chromium: browser.Browser, name: str, value: str) -> None:
    chromium.run(
        f"(() => {{ const e = document.getElementById({json.dumps(name)});"
        f"e.value = {json.dumps(value)}; e.dispatchEvent(new Event('change', {{bubbles: true}}));"
        "})()"
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_browser_shows_it(chromium, page, width, dark):
    chromium.complaints.clear()
    chromium.look(width, dark)
    chromium.open(page, "#probabilities=1")
    chromium.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert chromium.complaints == []
    address = page.as_uri()
    assert chromium.requests in ([f"{address}#probabilities=1"], [address])
    assert chromium.run("document.title") == "run", "a caption's markup has run"
    assert chromium.run("document.documentElement.scrollWidth") == width
    assert len(cards(chromium)) == (12 if width == 360 else 24)
    assert chromium.run("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert chromium.run("document.querySelectorAll('.chart svg path').length") == 6
    seen, poor = chromium.run(browser.CONTRAST)
    assert seen > 300
    assert poor == []
    unnamed = chromium.run(
        "[...document.querySelectorAll('input, select, button')]"
        ".filter((e) => !(e.labels?.length || e.textContent.trim())).length"
    )
    assert unnamed == 0
    small = chromium.run(
        "[...document.querySelectorAll('main *')].filter((e) => e.checkVisibility()"
        " && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())"
        " && parseFloat(getComputedStyle(e).fontSize) < 11).map((e) => e.className)"
    )
    assert small == []
    shot = np.asarray(Image.open(io.BytesIO(chromium.screenshot())).convert("L"), float)
    assert (shot.mean() < 80) if dark else (shot.mean() > 200)


def test_browser_sorts(chromium, page):
    chromium.look(1280, False)
    images = shown(page)["images"]
    measures = {
        "probability": lambda said, row: -said["probability"],
        "length": lambda said, row: -len(said["words"]),
    }
    if images[0]["captions"][0]["cider"] is not None:
        measures["cider"] = lambda said, row: -said["cider"]
    for by in (0, 1):
        for sort, measure in measures.items():
            chromium.open(page, f"#sort={sort}-down&by={by}&show=60")
            wanted = sorted(
                range(60), key=lambda row: (measure(images[row]["captions"][by], row), row)
            )
            assert cards(chromium) == wanted
            choose(chromium, "sort", f"{sort}-up")
            wanted = sorted(
                range(60), key=lambda row: (-measure(images[row]["captions"][by], row), row)
            )
            assert cards(chromium) == wanted[:24]
    choose(chromium, "sort", "shown")
    there = [row for row in range(60) if images[row]["picture"]]
    assert len(there) == 20
    assert cards(chromium)[:20] == there
    choose(chromium, "sort", "name-up")
    names = [images[row]["name"] for row in cards(chromium)]
    numbers = [int(re.search(r"val(\d+)\.png$", name)[1]) for name in names if "val" in name]
    assert numbers == sorted(numbers)
    assert len(numbers) > 20


def test_browser_filters(chromium, page):
    images = shown(page)["images"]

    def having(*words: str) -> list[int]:
        found = []
        for row, image in enumerate(images):
            said = [" ".join(word for word, _ in s["words"]) for s in image["captions"]]
            text = "\n".join([image["name"], *image["references"], *said]).lower()
            if all(word in text for word in words):
                found.append(row)
        return found

    chromium.look(1280, False)
    chromium.open(page, "#sort=name-up&show=60")
    chromium.click("#find")
    for key in "Sofa ":
        chromium.press(key)
    wanted = having("sofa")
    assert 0 < len(wanted) < 60
    count = "document.getElementById('count').textContent"
    assert chromium.run(count) == f"{len(wanted)} of 60 images"
    for key in "cat":
        chromium.press(key)
    both = having("sofa", "cat")
    assert 0 < len(both) < len(wanted)
    assert chromium.run(count) == f"{len(both)} of 60 images"
    marked = chromium.run("[...document.querySelectorAll('#gallery mark')].map(m => m.textContent)")
    assert set(marked) <= {"sofa", "cat"}
    assert marked
    # What was chosen is in the address, and comes back from there.
    address = chromium.run("location.hash")
    before = cards(chromium)
    chromium.open(page, address)
    assert cards(chromium) == before
    assert chromium.run("document.getElementById('find').value") == "Sofa cat"
    chromium.open(page, "#find=zebra")
    assert cards(chromium) == []
    assert chromium.run(count) == "0 of 60 images"
    chromium.open(page, "#only=pictures")
    assert cards(chromium) == [row for row in range(60) if images[row]["picture"]]


def test_browser_takes_from_the_address_what_makes_sense(chromium, page):
    chromium.look(1280, False)
    chromium.open(page, "#show=-5&sort=nothing&by=9&only=what&find=")
    assert len(cards(chromium)) == 24
    chosen = "['sort', 'by', 'only'].map((id) => document.getElementById(id).value)"
    assert chromium.run(chosen) == ["shown", "1", "all"]
    chromium.open(page, "#sort=length-sideways")
    assert chromium.run(chosen) == ["shown", "1", "all"]
    # Another address in the same page, as the button Back gives it.
    chromium.run(
        "new Promise((done) => { addEventListener('hashchange', () => setTimeout(done));"
        "location.hash = '#sort=probability-up&show=30'; })"
    )
    assert chromium.run(chosen) == ["probability-up", "1", "all"]
    assert len(cards(chromium)) == 30
    # What is usual is not said.
    choose(chromium, "by", "0")
    assert chromium.run("location.hash") == "#sort=probability-up&by=0"
    choose(chromium, "by", "1")
    assert chromium.run("location.hash") == "#sort=probability-up"


def test_browser_shows_best_and_worst(chromium, page):
    images = shown(page)["images"]
    measure = "cider" if images[0]["captions"][0]["cider"] is not None else "probability"
    chromium.look(1280, False)
    there = [row for row in range(60) if images[row]["picture"]]
    about = "document.getElementById('extremes-about').textContent"
    for by in (0, 1):
        chromium.open(page, f"#by={by}")
        ranked = sorted(there, key=lambda row: (-images[row]["captions"][by][measure], row))
        assert chromium.run(about) == "Of the 20 images with pictures."
        for strip, rows in (("best", ranked[:4]), ("worst", ranked[:-5:-1])):
            assert rows == chromium.run(
                f"[...document.querySelectorAll('#{strip} .card')].map((c) => +c.dataset.row)"
            )


def test_browser_sorts_what_has_no_figure_behind_the_rest(chromium, data_dir, tmp_path):
    pytest.importorskip("pycocoevalcap")
    written = {"val1.png": ["a sofa on a mat"], "val3.png": ["the cat"], "val4.png": ["a dog"]}
    (data_dir / "val_references.json").write_text(json.dumps(written))
    page = write_report(make_run(tmp_path / "run", data_dir))
    for order in ("up", "down"):
        chromium.open(page, f"#sort=cider-{order}")
        assert set(cards(chromium)[:3]) == {1, 3, 4}
        assert cards(chromium)[3:] == [0, 2]


def test_browser_reads_words_and_curves_without_a_mouse(chromium, page):
    chromium.look(360, False)
    chromium.open(page)
    images = shown(page)["images"]
    p = images[cards(chromium)[0]]["captions"][0]["words"][0][1]
    percent = "100%" if p >= 0.995 else f"{100 * p:.0f}%" if p >= 0.095 else f"{100 * p:.1f}%"
    drawn = "getComputedStyle(document.querySelector('#gallery .word'), '::after').content"
    assert chromium.run(drawn) == "none"
    chromium.hover("#gallery .word")
    assert chromium.run(drawn) == f'"{percent}"'
    chromium.hover("h1")
    assert chromium.run(drawn) == "none"
    # A tap, and once more.
    for shown_now in (f'"{percent}"', "none"):
        chromium.click("#gallery .caption")
        chromium.hover("h1")
        assert chromium.run(drawn) == shown_now
    # Keys alone.
    chromium.run("document.querySelector('#gallery .caption').focus()")
    chromium.press("Enter")
    assert chromium.run(drawn) == f'"{percent}"'

    read = "document.querySelector('.chart .readout').textContent"
    assert "best 2.2 at epoch 1" in chromium.run(read)
    chromium.run("document.querySelector('.chart svg').focus()")
    chromium.press("Home")
    assert chromium.run(read) == "Epoch 0.5: training 3, validation 2.2 (epoch 1)"
    chromium.press("ArrowRight")
    assert chromium.run(read) == "Epoch 1: training 2, validation 2.2"
    chromium.hover(".chart svg")
    assert re.match(r"Epoch [\d.]+: training", chromium.run(read))


def test_browser_shows_pictures_whole(chromium, data_dir, tmp_path):
    """All of a tall picture is seen, and the usual shape of the pictures is that of the cards."""
    for number, size in enumerate([(300, 300), (300, 300), (300, 300), (100, 300), (300, 100)]):
        Image.new("RGB", size, (number, 0, 0)).save(data_dir / f"val{number}.png")
    page = write_report(make_run(tmp_path / "run", data_dir))
    assert shown(page)["shape"] == 1
    chromium.look(1280, False)
    chromium.open(page)
    drawn = chromium.run(
        "[...document.querySelectorAll('#gallery img')].map((i) => [i.clientWidth, i.clientHeight,"
        " getComputedStyle(i).objectFit])"
    )
    assert len(drawn) == 5
    for width, height, fit in drawn:
        assert abs(width - height) <= 1
        assert fit == "contain"


@pytest.mark.parametrize("width", [360, 1280])
def test_browser_goes_to_the_parts_of_the_page(chromium, page, width):
    """The contents stay in sight, lead to every part, and leave the state of the gallery alone."""
    chromium.look(width, False)
    chromium.open(page, "#sort=length-up")
    names = "[...document.querySelectorAll('#contents a')].map((a) => a.textContent)"
    assert chromium.run(names) == [
        "Summary", "Training", "Numbers", "Best and worst", "All captions",
    ]  # fmt: skip
    where = (
        "(() => { const top = (e) => e.getBoundingClientRect().top;"
        "return [top(document.getElementById('contents')),"
        " top(document.getElementById('gallery-section'))]; })()"
    )
    assert chromium.run(where)[1] > 700
    chromium.run("document.querySelector('#contents a:last-child').click()")
    contents, gallery = chromium.run(where)
    assert contents == 0
    assert 0 < gallery < 100
    assert chromium.run("location.hash") == "#sort=length-up"
    chromium.run("document.querySelector('#contents a').click()")
    assert chromium.run("window.scrollY") == 0


def test_scores_have_one_scale(data_dir: Path, tmp_path: Path):
    """CIDEr of 0.375 is 37.5 in the curve, in the tables and in the figures."""
    run = make_run(tmp_path / "run", data_dir)
    metrics = {"bleu_4": 0.15, "cider": 0.375, "val_loss": 2.2, "images": 5}
    (run / "metrics.json").write_text(json.dumps(metrics))
    tables = {table["id"]: table for table in shown(write_report(run))["tables"]}
    assert tables["final-metrics"]["rows"] == [
        ["BLEU-4", "15.0"], ["CIDEr", "37.5"], ["val loss", "2.2"], ["images", "5"],
    ]  # fmt: skip
    assert "×100" in tables["final-metrics"]["title"] and "×100" in tables["epochs"]["title"]
    columns = tables["epochs"]["columns"]
    place = columns.index("validation CIDEr")
    assert [row[place] for row in tables["epochs"]["rows"]] == ["25.0", "37.5"]


def test_browser_shows_more(chromium, page):
    chromium.look(360, True)
    chromium.open(page)
    for count in (12, 36, 60):
        assert len(cards(chromium)) == len(set(cards(chromium))) == count
        if count < 60:
            chromium.click("#more")
    assert not chromium.run("document.getElementById('more').checkVisibility()")


def test_browser_follows_and_stays_where_it_was(chromium, page, tmp_path):
    data = Path(read_settings(page.parent)["data"])
    run = make_run(tmp_path / "run", data)
    chromium.complaints.clear()
    stop = threading.Event()

    def on_write(out: Path, status: str) -> None:
        stop.set()

    watching = threading.Thread(
        target=watch_report, args=(run,), kwargs={"seconds": 0.3, "on_write": on_write}
    )
    watching.start()
    try:
        assert stop.wait(20)
        chromium.look(1280, False)
        chromium.open(run / "report.html", "#find=sofa&sort=length-down")
        before = cards(chromium)
        chromium.run("document.getElementById('settings').open = true")
        chromium.run(
            "document.querySelector('#gallery .caption').click(); window.scrollTo(0, 1500)"
        )
        history = list(HISTORY)
        for epoch in (2.25, 2.5):
            history.append({**HISTORY[1], "step": 25, "epoch": epoch})
            write_history(run, history)
            until = time.monotonic() + 20
            status = "document.getElementById('status').textContent"
            while chromium.run(status) != f"Stopped after epoch {epoch} of 2.":
                assert time.monotonic() < until
                chromium.wait_for_load()
            assert cards(chromium) == before
            assert chromium.run("window.scrollY") == 1500
            assert chromium.run("document.getElementById('settings').open")
        unfolded = "document.querySelectorAll('#gallery [aria-expanded=true]').length"
        assert chromium.run(unfolded) == 1
    finally:
        (run / "metrics.json").write_text("{}")
        watching.join(20)
    chromium.wait_for_load()
    assert "Finished" in chromium.run("document.getElementById('status').textContent")
    assert chromium.complaints == []


def test_browser_on_a_run_that_has_nothing_yet(chromium, data_dir, tmp_path):
    run = make_run(tmp_path / "run", data_dir, [])
    (run / "model.npz").unlink()
    chromium.complaints.clear()
    chromium.look(360, False)
    chromium.open(write_report(run))
    assert chromium.complaints == []
    text = chromium.run("document.body.innerText")
    assert "There is no model yet" in text
    assert "No training steps have been recorded yet." in text
    assert "Search" not in text
