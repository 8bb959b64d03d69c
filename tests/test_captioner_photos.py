"""`Captioner`: photographs to captions, against NumPy alone, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from photo_runs import (
    COMPONENTS,
    PREPROCESSING,
    WIDTH,
    WORDS,
    draw_pixels,
    features_of,
    make_model,
    make_pca,
    write_network,
    write_photos,
    write_run,
)

from fastrnn.captioner import Captioner
from fastrnn.data.pca import PCA
from fastrnn.reference import decoding as reference
from fastrnn.vision.images import ImageError
from fastrnn.vision.networks import load_network

PIXELS = draw_pixels(11)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("captioner") / "run", pca=make_pca())


@pytest.fixture(scope="module")
def captioner(run) -> Captioner:
    return Captioner.load(run)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    return write_photos(tmp_path_factory.mktemp("photos"), PIXELS)


def texts(found):
    return [image.caption for image in found]


# -- captions


@pytest.mark.parametrize("cell_type", ["lstm", "rnn"])
@pytest.mark.parametrize("pca", [None, make_pca()], ids=["raw", "pca"])
@pytest.mark.parametrize(("beam", "n_best"), [(1, 1), (3, 2)])
def test_captions_are_those_of_numpy(tmp_path, photos, cell_type, pca, beam, n_best):
    captioner = Captioner.load(write_run(tmp_path / "run", pca=pca, cell_type=cell_type))
    found = captioner(photos, beam=beam, n_best=n_best, max_length=9)

    model, features = captioner.model, features_of(PIXELS)
    if pca is not None:
        features = (features - pca.mean) @ pca.components.T.astype(np.float64)
    wanted = reference.beam_search(model, features, beam, 9, n_best=n_best, suppress=["<UNK>"])
    assert len({image.caption for image in found}) > 4  # or a wrong order would not be seen
    assert [image.name for image in found] == [str(path) for path in photos]
    for image, best, row in zip(found, wanted, features, strict=True):
        assert image.features == pytest.approx(row, abs=1e-4)
        for caption, (hypothesis, score) in zip(image.captions, best, strict=True):
            ended = hypothesis.words[-1] == WORDS.index("<END>")
            probabilities = np.exp(hypothesis.word_log_probs).tolist()
            words = [WORDS[idx] for idx in hypothesis.words]
            assert caption.ids == list(hypothesis.words)
            assert caption.words == (words[:-1] if ended else words)
            assert caption.text == " ".join(caption.words)
            given = caption.probabilities + [caption.end_probability] * ended
            assert given == pytest.approx(probabilities, rel=1e-3)
            assert ended or caption.end_probability is None
            assert caption.log_prob == pytest.approx(hypothesis.log_prob, rel=1e-3)
            assert caption.score == pytest.approx(score, rel=1e-3)


def test_caption_that_is_cut_has_no_end(captioner):
    found = [image.captions[0] for image in captioner(PIXELS, max_length=2)]
    cut = [caption for caption in found if caption.end_probability is None]
    assert cut
    assert all(len(caption.words) == len(caption.probabilities) == 2 for caption in cut)


def test_search_that_finds_fewer_captions(captioner):
    others = set(WORDS) - {"<END>", "dog"}
    options = {"max_length": 2, "min_length": 0, "suppress": others}
    [image] = captioner(PIXELS[:1], beam=4, n_best=4, **options)
    assert sorted(caption.text for caption in image.captions) == ["", "dog", "dog dog"]


def test_image_may_be_anything_that_holds_one(captioner, photos):
    wanted = texts(captioner(photos))
    path, pixels = photos[3], PIXELS[3]
    with path.open("rb") as file:
        ways = [
            str(path), path, path.read_bytes(), file, io.BytesIO(path.read_bytes()),
            Image.fromarray(pixels), pixels, [path], (pixels,), PIXELS[3:4], lambda: pixels,
        ]  # fmt: skip
        for way in ways:
            assert texts(captioner(way)) == wanted[3:4], way
    assert texts(captioner(PIXELS)) == wanted
    assert texts(captioner(list(PIXELS))) == wanted
    assert texts(captioner(path for path in photos)) == wanted
    assert texts(captioner.each(path for path in photos)) == wanted
    assert captioner([]) == []


@pytest.mark.parametrize("batch_size", [1, 2, 10, 11, 100])
def test_batches_keep_the_order(captioner, photos, batch_size, monkeypatch):
    sizes, compute = [], captioner.network.features
    monkeypatch.setattr(
        captioner.network, "features", lambda batch: sizes.append(len(batch)) or compute(batch)
    )
    found = list(captioner.each(photos, batch_size=batch_size))
    assert sizes == [min(batch_size, 11 - start) for start in range(0, 11, batch_size)]
    assert texts(found) == texts(captioner(PIXELS))
    assert [image.name for image in found] == [str(path) for path in photos]


def test_names(captioner, photos):
    picture = Image.open(photos[1])
    names = [image.name for image in captioner([PIXELS[0], picture, photos[2]])]
    assert names == ["image 0", str(photos[1]), str(photos[2])]
    named = captioner.each(PIXELS[:2], names=["left", "right"])
    assert [image.name for image in named] == ["left", "right"]


def test_images_are_read_only_so_far_ahead(captioner):
    taken = []

    def images():
        for number in range(200):
            taken.append(number)
            yield PIXELS[number % 11]

    found = captioner.each(images(), batch_size=4)
    next(found)
    assert 4 <= len(taken) <= 16
    assert len(list(found)) == 199


def test_readers_end_with_a_caller_that_has_enough(captioner):
    before = threading.active_count()
    read = []

    def slow():
        # after the first batch so slow that a busy machine stops in the middle of the second
        time.sleep(0.005 if len(read) < 40 else 0.1)
        read.append(1)
        return PIXELS[0]

    found = captioner.each([slow] * 100, batch_size=40)
    next(found)
    # Or a process that is interrupted would wait for the slowest of them.
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "image")
    found.close()
    done = len(read)
    for thread in threading.enumerate():
        if thread.name.startswith("image"):
            thread.join(5)
    assert threading.active_count() <= before
    assert len(read) < min(done + 20, 80)  # of the 80 that were waiting


def test_preview_is_small_and_upright(captioner, tmp_path):
    path = tmp_path / "turned.png"
    picture = Image.new("RGB", (400, 200), (200, 10, 10))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)
    [found] = captioner.each([path], preview=100)
    assert found.preview.size == (50, 100)
    assert captioner(path)[0].preview is None


def test_unknown_words_are_generated_only_when_allowed(run):
    captioner = Captioner.load(run)
    captioner.model.params["b_vocab"][3] += 50
    assert "<UNK>" not in "".join(texts(captioner(PIXELS)))
    assert texts(captioner(PIXELS[:1], suppress_unk=False, max_length=3)) == ["<UNK> <UNK> <UNK>"]


def test_vocabulary_without_unk(tmp_path):
    model = make_model(WIDTH)
    words = {word: idx for word, idx in model.word_to_idx.items() if word != "<UNK>"}
    words["cow"] = 3
    model.word_to_idx.clear()
    model.word_to_idx.update(words)
    model.idx_to_word[3] = "cow"
    captioner = Captioner.load(write_run(tmp_path / "run", model=model))
    assert len(captioner(PIXELS)) == 11


def test_prepared_images(captioner):
    features = captioner.network.preprocessing
    pixels = (PIXELS - np.float32(features.mean)) / np.float32(features.std)
    found = captioner.caption_pixels(
        np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32), beam=2
    )
    assert texts(found) == texts(captioner(PIXELS, beam=2))


def test_as_dict_is_json(captioner):
    [image] = captioner(PIXELS[:1], beam=2, n_best=2)
    again = json.loads(json.dumps(image.as_dict()))
    assert again["image"] == "image 0"
    assert again["caption"] == image.caption == again["captions"][0]["caption"]
    assert [caption["probabilities"] for caption in again["captions"]] == [
        caption.probabilities for caption in image.captions
    ]


# -- features and alternatives


def test_features_are_those_of_numpy(captioner, photos):
    pca = make_pca()
    wanted = (features_of(PIXELS) - pca.mean) @ pca.components.T.astype(np.float64)
    assert captioner.features(photos, batch_size=3) == pytest.approx(wanted, abs=1e-4)
    assert captioner.features(photos[0]) == pytest.approx(wanted[:1], abs=1e-4)
    assert captioner.features([]).shape == (0, COMPONENTS)


@pytest.mark.parametrize("cell_type", ["lstm", "rnn"])
def test_alternatives_are_the_most_probable_words(tmp_path, cell_type):
    """The probability of each word after a start is that which the training loss uses."""
    captioner = Captioner.load(write_run(tmp_path / "run", cell_type=cell_type))
    [image] = captioner(PIXELS[:1], max_length=6)
    caption, model = image.captions[0], captioner.model
    found = captioner.alternatives(image.features, caption, k=len(WORDS))
    assert len(found) == len(caption.ids)
    for step, pairs in enumerate(found):
        rows = np.array([[1, *caption.ids[:step], word] for word in range(1, len(WORDS))])
        rows = np.hstack([rows, np.zeros((len(rows), 1), int)])  # <NULL>: no word
        features = np.repeat(image.features[None], len(rows), axis=0)
        logs = model.word_log_probs(features, rows)[:, step]
        wanted = dict(zip(WORDS[1:], np.exp(logs), strict=True))
        assert [probability for _, probability in pairs] == sorted(
            (probability for _, probability in pairs), reverse=True
        )
        assert {w: p for w, p in pairs if w != "<NULL>"} == pytest.approx(wanted, rel=1e-4)
        assert sum(probability for _, probability in pairs) == pytest.approx(1)
    end = [] if caption.end_probability is None else [caption.end_probability]
    own = caption.probabilities + end
    for word, probability, pairs in zip(caption.ids, own, found, strict=True):
        assert dict(pairs)[WORDS[word]] == pytest.approx(probability, rel=1e-4)


def test_alternatives_of_images_and_ids(captioner, photos):
    [image] = captioner(photos[0])
    caption = image.captions[0]
    wanted = captioner.alternatives(image.features, caption, 3)
    assert [len(pairs) for pairs in wanted] == [3] * len(caption.ids)
    assert captioner.alternatives(photos[0], caption.ids, 3) == wanted
    assert captioner.alternatives(photos[0], [], 3) == []
    with pytest.raises(IndexError, match=r"caption has the word id 11; expected one in \[0, 11\)"):
        captioner.alternatives(photos[0], [4, 11])
    with pytest.raises(ValueError, match="k is 0; expected at least 1"):
        captioner.alternatives(photos[0], [4], 0)
    with pytest.raises(ValueError, match=r"features has shape \(3,\); expected \(5,\)"):
        captioner.alternatives(np.zeros(3), [4])


# -- images that cannot be read


def test_unreadable_image_is_an_error_or_is_reported(captioner, photos, tmp_path):
    bad, missing = tmp_path / "bad.jpg", tmp_path / "missing.jpg"
    bad.write_text("no image")
    images = [photos[0], bad, photos[1], missing, b"", photos[2]]
    with pytest.raises(ImageError, match=r"bad\.jpg: cannot be read as an image"):
        captioner(images)
    with pytest.raises(FileNotFoundError):
        captioner([missing])
    failed = []
    found = captioner.each(images, failed=lambda name, error: failed.append((name, str(error))))
    assert texts(found) == texts(captioner(photos[:3]))
    assert [name for name, _ in failed] == [str(bad), str(missing), "image 4"]
    assert "image 4: cannot be read as an image (the file is empty)" in failed[2][1]


def test_nothing_but_unreadable_images(captioner):
    failed = []
    assert list(captioner.each([b"", b"x"], failed=lambda *two: failed.append(two))) == []
    assert len(failed) == 2


def test_bug_in_a_function_is_not_taken_for_a_bad_image(captioner):
    def broken():
        raise KeyError("bug")

    with pytest.raises(KeyError):
        list(captioner.each([broken, PIXELS[0]], failed=lambda *_: None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "width is 0"),
        ({"beam": 2, "n_best": 3}, "n_best is 3; expected at most width = 2"),
        ({"max_length": -1}, "max_length is -1"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
    ],
)
def test_wrong_options_are_refused_before_an_image_is_read(captioner, options, message):
    with pytest.raises(ValueError, match=message):
        captioner.each(iter(lambda: pytest.fail("was read"), None), **options)


# -- runs that do not fit


def change(run: Path, tmp_path: Path, **values: object) -> Path:
    """Copy a run, with other values in its features.json."""
    copy = tmp_path / "changed"
    shutil.copytree(run, copy)
    about = json.loads((copy / "features.json").read_text())
    (copy / "features.json").write_text(json.dumps(about | values))
    return copy


def refused(run: Path, error: type[Exception] = ValueError, **options: object) -> str:
    with pytest.raises(error) as caught:
        Captioner.load(run, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_run_that_does_not_know_its_features(tmp_path):
    run = write_run(tmp_path / "run", data=str(tmp_path / "data"))
    source = (run / "features.json").rename(tmp_path / "features.json")
    said = refused(run)
    assert said.startswith(f"{run}: has no features.json")
    assert "fastrnn prepare --images" in said
    assert "copy it" not in said
    (tmp_path / "data").mkdir()
    shutil.copy(source, tmp_path / "data")
    again = refused(run)
    assert again.startswith(said)
    assert f"(its data directory {tmp_path / 'data'} has one now: copy it" in again


def test_features_that_were_given_as_numbers(run, tmp_path):
    copy = change(run, tmp_path, network=None)
    assert refused(copy).startswith(f"{copy / 'features.json'}: the features were given as numbers")


def test_other_pca(run, tmp_path):
    copy = tmp_path / "changed"
    shutil.copytree(run, copy)
    pca = make_pca()
    pca.components[0] *= -1
    pca.save(copy / "pca.npz")
    assert "is not the PCA that features.json describes" in refused(copy)
    (copy / "pca.npz").unlink()
    assert "pca.npz" in refused(copy, OSError)


def test_features_of_another_width(tmp_path):
    run = write_run(tmp_path / "run", model=make_model(COMPONENTS))
    assert refused(run) == (
        f"{run}: the network makes 12 features before PCA; expected 5, as the model reads"
    )
    other = write_run(tmp_path / "other", pca=make_pca(), model=make_model(WIDTH))
    assert "makes 5 features after PCA; expected 12, as the model reads" in refused(other)


def test_raw_features_skip_the_pca(tmp_path):
    run = write_run(tmp_path / "run", pca=make_pca(), raw=True)
    captioner = Captioner.load(run)
    assert captioner.pca is None
    assert captioner.features(PIXELS) == pytest.approx(features_of(PIXELS), abs=1e-4)


def test_other_network_in_the_same_place(run, tmp_path):
    other = write_network(tmp_path / "other.onnx", sign=-1.0)
    copy = change(run, tmp_path, file=str(other))
    assert "the network's digest is" in refused(copy)
    assert "which made the features" in refused(run, onnx=other)


def test_parts_that_do_not_belong_together(captioner, tmp_path):
    model, network, pca = captioner.model, captioner.network, captioner.pca
    other = load_network(
        onnx=write_network(tmp_path / "other.onnx", sign=-1.0), preprocessing=PREPROCESSING
    )
    Captioner(model, other, pca)
    with pytest.raises(ValueError, match="the network's digest is"):
        Captioner(model, other, pca, captioner.source)
    narrow = PCA(np.zeros(7, np.float32), np.zeros((5, 7), np.float32))
    with pytest.raises(ValueError, match="the network makes 12 features; expected 7, as the PCA"):
        Captioner(model, network, narrow)


def test_network_that_was_moved(run, tmp_path):
    file = tmp_path / "moved.onnx"
    shutil.copy(run.with_name("run.onnx"), file)
    copy = change(run, tmp_path, file=str(tmp_path / "gone.onnx"))
    said = refused(copy, FileNotFoundError)
    assert "no such ONNX model, which made the features of" in said
    assert "gone.onnx" in said
    moved = Captioner.load(copy, onnx=file)
    assert texts(moved(PIXELS)) == texts(Captioner.load(run)(PIXELS))


def test_onnx_model_where_none_belongs(run, tmp_path):
    copy = change(run, tmp_path, network="efficientnet-lite0", layer="pool")
    said = refused(copy, onnx=run.with_name("run.onnx"))
    assert "features were made by efficientnet-lite0; expected no ONNX model" in said


def test_model_files_of_a_run(run, captioner, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "checkpoints").mkdir()
    shutil.copy(copy / "model.npz", copy / "checkpoints" / "step-00000001.npz")
    wanted = texts(captioner(PIXELS))
    for place in (copy / "model.npz", copy / "checkpoints" / "step-00000001.npz", str(copy)):
        assert texts(Captioner.load(place)(PIXELS)) == wanted


def test_no_run(tmp_path):
    assert "no such run directory or model file" in refused(tmp_path / "nothing", FileNotFoundError)
    assert "no such model file" in refused(tmp_path, FileNotFoundError)
