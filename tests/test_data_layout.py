"""Data sets in CS231n's layout: what is read, what is refused, and what is written."""

from __future__ import annotations

import copy
import json
import pickle
import re

import h5py
import numpy as np
import pytest
from coco_layout import FULL_DIM, PCA_DIM, WORDS, write_layout

from fastrnn.data.layout import (
    CAPTIONS_FILE,
    VOCABULARY_FILE,
    encode_captions,
    features_file,
    read_captioning_directory,
    urls_file,
    write_captioning_directory,
)
from fastrnn.words import SPECIAL_WORDS

FEATURES = features_file("train")


@pytest.fixture
def layout(tmp_path):
    """A directory in the layout, and the arrays in it."""
    return tmp_path, write_layout(tmp_path)


def rewrite(path, name, values):
    """Replace the values of one dataset; None removes it."""
    with h5py.File(path, "r+") as file:
        del file[name]
        if values is not None:
            file[name] = values


def test_full_features_and_extra_datasets(layout):
    base_dir, arrays = layout
    with h5py.File(base_dir / "coco2014_captions.h5", "r+") as file:
        file["val_scores"] = np.arange(4.0)
    data = read_captioning_directory(base_dir, pca_features=False)
    assert data["train_features"].shape[1] == FULL_DIM != PCA_DIM
    np.testing.assert_array_equal(data["val_features"], arrays["val_features"])
    np.testing.assert_array_equal(data["val_scores"], np.arange(4.0))


@pytest.mark.parametrize(
    "name",
    [
        "coco2014_captions.h5",
        "coco2014_vocab.json",
        "train2014_vgg16_fc7_pca.h5",
        "val2014_vgg16_fc7_pca.h5",
        "train2014_urls.txt",
        "val2014_urls.txt",
    ],
)
def test_missing_file_is_named(layout, name):
    base_dir, _ = layout
    (base_dir / name).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        read_captioning_directory(base_dir)
    assert str(base_dir / name) in str(caught.value)
    assert caught.value.filename == str(base_dir / name)


def test_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such data directory") as caught:
        read_captioning_directory(tmp_path / "nowhere")
    assert caught.value.filename == str(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="not a data directory but a file") as caught:
        read_captioning_directory(tmp_path / "file")
    assert caught.value.filename == str(tmp_path / "file")


def test_data_remember_where_they_were_read_from(layout, monkeypatch):
    base_dir, _ = layout
    monkeypatch.chdir(base_dir.parent)
    data = read_captioning_directory(base_dir.name, pca_features=False)
    plain = dict(data)
    for kept in (data, data.copy(), copy.copy(data), copy.deepcopy(data), again(data)):
        assert (kept.directory, kept.raw_features) == (base_dir, True)
        assert kept.keys() == plain.keys()
    assert type(plain) is dict
    assert repr(data) == repr(plain)
    assert read_captioning_directory(base_dir).raw_features is False


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(train_captions=data["train_captions"][:3]) or data,
        lambda data: data.__setitem__("train_captions", data["train_captions"][:3]) or data,
        lambda data: data.pop("val_urls") is None or data,
    ],
)
def test_other_captions_are_of_the_same_directory(layout, change):
    base_dir, _ = layout
    assert change(read_captioning_directory(base_dir)).directory == base_dir


def test_other_features_are_of_no_directory(layout):
    base_dir, _ = layout
    for split in ("train", "val"):
        data = read_captioning_directory(base_dir)
        data[f"{split}_features"] -= 1
        assert data.directory is None
        assert again(data).directory is None


def again(data: dict) -> dict:
    return pickle.loads(pickle.dumps(data))


@pytest.mark.parametrize(
    ("file", "dataset", "change", "says"),
    [
        (CAPTIONS_FILE, "train_captions", lambda a: None, "missing"),
        (CAPTIONS_FILE, "val_image_idxs", lambda a: None, "missing"),
        (FEATURES, "features", lambda a: None, "missing"),
        (CAPTIONS_FILE, "train_captions", lambda a: a[:, 0], "expected 2 axes"),
        (CAPTIONS_FILE, "val_image_idxs", lambda a: a[:, None], "expected 1 axis"),
        (FEATURES, "features", lambda a: a[..., None], "expected 2 axes"),
        (CAPTIONS_FILE, "train_captions", lambda a: a.astype(float), "float64; expected integers"),
        (
            CAPTIONS_FILE,
            "train_image_idxs",
            lambda a: a.astype(float),
            "float64; expected integers",
        ),
        (FEATURES, "features", lambda a: a.astype(np.int64), "int64; expected floats"),
        (CAPTIONS_FILE, "train_captions", lambda a: np.where(a == 4, len(WORDS), a), "word id 11"),
        (CAPTIONS_FILE, "val_captions", lambda a: np.where(a == 4, -1, a), "word id -1"),
        (CAPTIONS_FILE, "train_image_idxs", lambda a: a + 1, "image index 12"),
        (CAPTIONS_FILE, "val_image_idxs", lambda a: a - 1, "image index -1"),
        (CAPTIONS_FILE, "val_image_idxs", lambda a: a[:-1], "14 entries; expected 15"),
        ("val2014_vgg16_fc7_pca.h5", "features", lambda a: a[:, :-1], "expected 7 columns"),
    ],
)
def test_bad_dataset_is_named_with_its_file(layout, file, dataset, change, says):
    base_dir, _ = layout
    with h5py.File(base_dir / file) as opened:
        values = opened[dataset][()]
    rewrite(base_dir / file, dataset, change(values))
    with pytest.raises(ValueError) as caught:
        read_captioning_directory(base_dir)
    message = str(caught.value)
    assert str(base_dir / file) in message and f"'{dataset}'" in message
    assert re.search(says, message)


def test_fewer_urls_than_images(layout):
    base_dir, _ = layout
    (base_dir / "val2014_urls.txt").write_text("a.png\n")
    with pytest.raises(ValueError, match=r"'val_image_idxs' contains the image index 4.*\[0, 1\)"):
        read_captioning_directory(base_dir)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
@pytest.mark.parametrize("file", [CAPTIONS_FILE, FEATURES])
def test_truncated_h5_is_an_oserror_that_names_the_file(layout, file, keep):
    base_dir, _ = layout
    path = base_dir / file
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(OSError) as caught:
        read_captioning_directory(base_dir)
    assert str(path) in str(caught.value)


def test_file_that_is_no_h5(layout):
    base_dir, _ = layout
    (base_dir / CAPTIONS_FILE).write_text("captions")
    with pytest.raises(OSError, match=CAPTIONS_FILE):
        read_captioning_directory(base_dir)


@pytest.mark.parametrize(
    ("vocab", "says"),
    [
        ("{", "not a JSON file"),
        ("[]", "JSON object"),
        (json.dumps({"idx_to_word": WORDS}), "'word_to_idx'"),
        (json.dumps({"word_to_idx": {}, "idx_to_word": {}}), "'idx_to_word'"),
        (json.dumps({"idx_to_word": WORDS, "word_to_idx": {"a": 0}}), "1 words; expected 11"),
        (
            json.dumps({"idx_to_word": ["a", "b"], "word_to_idx": {"a": 1, "b": 0}}),
            "'a' at 0",
        ),
    ],
)
def test_bad_vocabulary_is_named(layout, vocab, says):
    base_dir, _ = layout
    path = base_dir / "coco2014_vocab.json"
    path.write_text(vocab)
    with pytest.raises(ValueError, match=says) as caught:
        read_captioning_directory(base_dir)
    assert str(path) in str(caught.value)


def test_the_genuine_coco_vocabulary_is_accepted(layout, shared_data):
    base_dir, _ = layout
    genuine = (shared_data / "coco" / "coco2014_vocab.json").read_bytes()
    (base_dir / "coco2014_vocab.json").write_bytes(genuine)
    data = read_captioning_directory(base_dir)
    assert len(data["idx_to_word"]) == 1004


def test_captions_become_ids():
    words = {word: i for i, word in enumerate([*SPECIAL_WORDS, "a", "red", "circle"])}
    ids = encode_captions(["a red circle", "a dog", "a red red red circle"], words, 3)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, [[1, 4, 5, 6, 2], [1, 4, 3, 2, 0], [1, 4, 5, 5, 2]])


def test_what_is_written_is_read(tmp_path, rng):
    words, captions = ["a", "dog", "runs"], {"train": [["a dog", "a dog runs"], []], "val": [["a"]]}
    full = {s: rng.standard_normal((len(c), 9)).astype(np.float32) for s, c in captions.items()}
    pca = {split: x[:, :4] for split, x in full.items()}
    urls = {"train": ["a.png", "b.png"], "val": ["c.png"]}
    write_captioning_directory(tmp_path, words, captions, full, pca, urls)
    assert {path.name for path in tmp_path.iterdir()} == {
        CAPTIONS_FILE, VOCABULARY_FILE, *(urls_file(split) for split in captions),
        *(features_file(split, pca) for split in captions for pca in (True, False)),
    }  # fmt: skip
    for found, wanted in ((False, full), (True, pca)):
        data = read_captioning_directory(tmp_path, pca_features=found)
        for split in captions:
            np.testing.assert_array_equal(data[f"{split}_features"], wanted[split])
            assert data[f"{split}_urls"].tolist() == urls[split]
    assert data["idx_to_word"] == [*SPECIAL_WORDS, *words]
    np.testing.assert_array_equal(data["train_captions"], [[1, 4, 5, 2, 0], [1, 4, 5, 6, 2]])
    np.testing.assert_array_equal(data["train_image_idxs"], [0, 0])
    np.testing.assert_array_equal(data["val_captions"], [[1, 4, 2, 0, 0]])


# -- features in another dtype


def save_features(base_dir, values, **how):
    for split in ("train", "val"):
        with h5py.File(base_dir / features_file(split), "w") as file:
            file.create_dataset("features", data=values[split], **how)


def test_features_are_converted_while_they_are_read(layout):
    base_dir, _ = layout
    exact = read_captioning_directory(base_dir)
    data = read_captioning_directory(base_dir, features_dtype="float16")
    assert (data.features_dtype, exact.features_dtype) == ("float16", None)
    for name in ("train_features", "val_features"):
        np.testing.assert_array_equal(data[name], exact[name].astype(np.float16))
        np.testing.assert_allclose(data[name], exact[name], rtol=2**-11, atol=3e-8)
    assert data["train_captions"].dtype == exact["train_captions"].dtype
    wide = read_captioning_directory(base_dir, features_dtype="float32")
    assert wide["train_features"].dtype == np.float32


@pytest.mark.parametrize("how", [{}, {"chunks": True}, {"compression": "gzip"}])
def test_features_that_are_float16_lose_nothing(layout, how):
    base_dir, _ = layout
    before = read_captioning_directory(base_dir)
    halves = {s: before[f"{s}_features"].astype(np.float16) for s in ("train", "val")}
    save_features(base_dir, halves, **how)
    data = read_captioning_directory(base_dir, features_dtype="float16")
    np.testing.assert_array_equal(data["train_features"], halves["train"])
    # mapped, if they are in one piece; changes stay in memory
    assert isinstance(data["train_features"].base, np.memmap) is (not how)
    data["train_features"][:] = 0
    again = read_captioning_directory(base_dir, features_dtype="float16")
    np.testing.assert_array_equal(again["train_features"], halves["train"])
    assert read_captioning_directory(base_dir)["train_features"].base is None


def test_features_of_the_other_byte_order_are_not_mapped(layout):
    base_dir, _ = layout
    before = read_captioning_directory(base_dir)
    halves = {s: before[f"{s}_features"].astype(">f2") for s in ("train", "val")}
    save_features(base_dir, halves)
    data = read_captioning_directory(base_dir, features_dtype="float16")
    np.testing.assert_array_equal(data["train_features"], halves["train"].astype("<f2"))


def test_features_that_float16_cannot_hold(layout):
    base_dir, _ = layout
    features = read_captioning_directory(base_dir)
    features["val_features"][0, 0] = 1e5
    save_features(base_dir, {s: features[f"{s}_features"] for s in ("train", "val")})
    where = re.escape(str(base_dir / features_file("val")))
    with pytest.raises(ValueError, match=f"^{where}: dataset 'features' has values beyond 65504"):
        read_captioning_directory(base_dir, features_dtype="float16")


def test_other_dtypes_are_refused(layout):
    with pytest.raises(ValueError, match=r"^features_dtype is 'int8'; expected None or one of"):
        read_captioning_directory(layout[0], features_dtype="int8")
