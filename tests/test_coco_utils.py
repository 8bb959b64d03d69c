"""The data loader: what it returns, what it draws, and what it refuses."""

from __future__ import annotations

import json
import re

import h5py
import numpy as np
import pytest
from coco_layout import FULL_DIM, NUM_IMAGES, PCA_DIM, WORDS, write_layout

from fastrnn import coco_utils
from fastrnn.coco_utils import decode_captions, load_coco_data, sample_coco_minibatch

KEYS = [
    "train_captions",
    "train_image_idxs",
    "val_captions",
    "val_image_idxs",
    "train_features",
    "val_features",
    "idx_to_word",
    "word_to_idx",
    "train_urls",
    "val_urls",
]


@pytest.fixture
def layout(tmp_path):
    """A directory in the layout, and the arrays in it."""
    return tmp_path, write_layout(tmp_path)


def rewrite(path, name, values):
    """Put other values in the place of one dataset; None removes it."""
    with h5py.File(path, "r+") as file:
        del file[name]
        if values is not None:
            file[name] = values


def test_returns_what_was_written_in_the_course_order(layout, capsys):
    base_dir, arrays = layout
    data = load_coco_data(base_dir=str(base_dir))
    assert capsys.readouterr().out == f"base dir  {base_dir}\n"
    assert list(data) == KEYS
    for split, num_images in NUM_IMAGES.items():
        for name in (f"{split}_captions", f"{split}_image_idxs"):
            assert data[name].dtype == np.int32
            np.testing.assert_array_equal(data[name], arrays[name])
        assert data[f"{split}_features"].dtype == np.float32
        np.testing.assert_array_equal(data[f"{split}_features"], arrays[f"{split}_features_pca"])
        urls = data[f"{split}_urls"]
        assert urls.shape == (num_images,) and urls.dtype.kind == "U"
        assert urls[-1] == (base_dir / f"{split}{num_images - 1}.png").as_uri()  # stripped
    assert data["idx_to_word"] == WORDS
    assert data["word_to_idx"] == {word: i for i, word in enumerate(WORDS)}


def test_full_features_and_extra_datasets(layout):
    base_dir, arrays = layout
    with h5py.File(base_dir / "coco2014_captions.h5", "r+") as file:
        file["val_scores"] = np.arange(4.0)
    data = load_coco_data(base_dir, pca_features=False)
    assert data["train_features"].shape[1] == FULL_DIM != PCA_DIM
    np.testing.assert_array_equal(data["val_features"], arrays["val_features"])
    np.testing.assert_array_equal(data["val_scores"], np.arange(4.0))


def test_max_train_is_one_randint_with_replacement(layout):
    base_dir, arrays = layout
    np.random.seed(3)
    data = load_coco_data(base_dir, max_train=50)
    after = np.random.rand()
    np.random.seed(3)
    mask = np.random.randint(len(arrays["train_captions"]), size=50)
    assert after == np.random.rand()
    np.testing.assert_array_equal(data["train_captions"], arrays["train_captions"][mask])
    np.testing.assert_array_equal(data["train_image_idxs"], arrays["train_image_idxs"][mask])
    assert len(data["train_features"]) == len(data["train_urls"]) == NUM_IMAGES["train"]
    with pytest.raises(ValueError, match=r"max_train.*-1"):
        load_coco_data(base_dir, max_train=-1)


def test_default_directory_is_the_courses_where_ours_is_absent(tmp_path, monkeypatch, capsys):
    if coco_utils.os.path.isdir(coco_utils.BASE_DIR):
        pytest.skip("a data set lies beside the package")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(coco_utils.BASE_DIR)):
        load_coco_data()
    capsys.readouterr()
    write_layout(tmp_path / "cs231n" / "datasets" / "coco_captioning")
    assert list(load_coco_data()) == KEYS
    assert "cs231n" in capsys.readouterr().out


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
        load_coco_data(base_dir)
    assert str(base_dir / name) in str(caught.value)
    assert caught.value.filename == str(base_dir / name)


def test_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"directory.*nowhere"):
        load_coco_data(tmp_path / "nowhere")


CAPTIONS = "coco2014_captions.h5"
FEATURES = "train2014_vgg16_fc7_pca.h5"


@pytest.mark.parametrize(
    ("file", "dataset", "change", "says"),
    [
        (CAPTIONS, "train_captions", lambda a: None, "missing"),
        (CAPTIONS, "val_image_idxs", lambda a: None, "missing"),
        (FEATURES, "features", lambda a: None, "missing"),
        (CAPTIONS, "train_captions", lambda a: a[:, 0], "2 axes"),
        (CAPTIONS, "val_image_idxs", lambda a: a[:, None], "1 axes"),
        (FEATURES, "features", lambda a: a[..., None], "2 axes"),
        (CAPTIONS, "train_captions", lambda a: a.astype(float), "integers.*float64"),
        (CAPTIONS, "train_image_idxs", lambda a: a.astype(float), "integers.*float64"),
        (FEATURES, "features", lambda a: a.astype(np.int64), "floats.*int64"),
        (CAPTIONS, "train_captions", lambda a: np.where(a == 4, len(WORDS), a), "word id 11"),
        (CAPTIONS, "val_captions", lambda a: np.where(a == 4, -1, a), "word id -1"),
        (CAPTIONS, "train_image_idxs", lambda a: a + 1, "image index 12"),
        (CAPTIONS, "val_image_idxs", lambda a: a - 1, "image index -1"),
        (CAPTIONS, "val_image_idxs", lambda a: a[:-1], "14 entries for 15"),
        ("val2014_vgg16_fc7_pca.h5", "features", lambda a: a[:, :-1], "train features are 7"),
    ],
)
def test_bad_dataset_is_named_with_its_file(layout, file, dataset, change, says):
    base_dir, _ = layout
    with h5py.File(base_dir / file) as opened:
        values = opened[dataset][()]
    rewrite(base_dir / file, dataset, change(values))
    with pytest.raises(ValueError) as caught:
        load_coco_data(base_dir)
    message = str(caught.value)
    assert str(base_dir / file) in message and f"'{dataset}'" in message
    assert re.search(says, message)


def test_fewer_urls_than_images(layout):
    base_dir, _ = layout
    (base_dir / "val2014_urls.txt").write_text("a.png\n")
    with pytest.raises(ValueError, match=r"'val_image_idxs' holds the image index 4.*\[0, 1\)"):
        load_coco_data(base_dir)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
@pytest.mark.parametrize("file", [CAPTIONS, FEATURES])
def test_truncated_h5_is_an_oserror_that_names_the_file(layout, file, keep):
    base_dir, _ = layout
    path = base_dir / file
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(OSError) as caught:
        load_coco_data(base_dir)
    assert str(path) in str(caught.value)


def test_file_that_is_no_h5(layout):
    base_dir, _ = layout
    (base_dir / CAPTIONS).write_text("captions")
    with pytest.raises(OSError, match=CAPTIONS):
        load_coco_data(base_dir)


@pytest.mark.parametrize(
    ("vocab", "says"),
    [
        ("{", "not a JSON file"),
        ("[]", "JSON object"),
        (json.dumps({"idx_to_word": WORDS}), "'word_to_idx'"),
        (json.dumps({"word_to_idx": {}, "idx_to_word": {}}), "'idx_to_word'"),
        (json.dumps({"idx_to_word": WORDS, "word_to_idx": {"a": 0}}), "11 words.* 1"),
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
        load_coco_data(base_dir)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("split", ["train", "val"])
def test_minibatch_is_one_choice_with_replacement(layout, split):
    base_dir, arrays = layout
    data = load_coco_data(base_dir)
    np.random.seed(7)
    captions, features, urls = sample_coco_minibatch(data, batch_size=40, split=split)
    after = np.random.rand()
    np.random.seed(7)
    mask = np.random.choice(len(arrays[f"{split}_captions"]), 40)
    assert after == np.random.rand()
    idxs = arrays[f"{split}_image_idxs"][mask]
    np.testing.assert_array_equal(captions, arrays[f"{split}_captions"][mask])
    np.testing.assert_array_equal(features, arrays[f"{split}_features_pca"][idxs])
    assert [url.rsplit(split, 1)[1] for url in urls] == [f"{i}.png" for i in idxs]


def test_minibatch_defaults(layout):
    captions, features, urls = sample_coco_minibatch(load_coco_data(layout[0]))
    assert len(captions) == len(features) == len(urls) == 100
    assert "train" in urls[0]


@pytest.mark.parametrize("idx_to_word", [WORDS, dict(enumerate(WORDS))], ids=["list", "dict"])
def test_decode(idx_to_word):
    row = np.array([1, 4, 5, 0, 3, 2, 6, 2], dtype=np.int32)
    said = "<START> a cat <UNK> <END>"
    assert decode_captions(row, idx_to_word) == said
    assert decode_captions(np.stack([row, np.zeros_like(row)]), idx_to_word) == [said, ""]
    assert decode_captions(row[None], idx_to_word) == [said]
    assert decode_captions(np.zeros((0, 5), int), idx_to_word) == []
    assert decode_captions([4, 5], idx_to_word) == "a cat"


def test_decode_refuses():
    with pytest.raises(IndexError, match=r"word id 11.*11"):
        decode_captions(np.array([4, 11]), WORDS)
    with pytest.raises(KeyError, match="word id 1"):
        decode_captions(np.array([1]), {0: "<NULL>"})
    with pytest.raises(TypeError, match="float64"):
        decode_captions(np.array([1.0]), WORDS)
    with pytest.raises(ValueError, match=r"\(1, 1, 1\)"):
        decode_captions(np.zeros((1, 1, 1), int), WORDS)


def test_flickr8k(shared_data):
    data = load_coco_data(shared_data / "flickr8k")
    shapes = {k: (v.shape, v.dtype.str[1:]) for k, v in data.items() if k.endswith("s")}
    assert shapes == {
        "train_captions": ((30000, 17), "i4"),
        "train_image_idxs": ((30000,), "i4"),
        "val_captions": ((5000, 17), "i4"),
        "val_image_idxs": ((5000,), "i4"),
        "train_features": ((6000, 512), "f4"),
        "val_features": ((1000, 512), "f4"),
        "train_urls": ((6000,), "U32"),
        "val_urls": ((1000,), "U32"),
    }
    assert len(data["idx_to_word"]) == len(data["word_to_idx"]) == 2541
    references = json.loads((shared_data / "flickr8k" / "val_references.json").read_text())
    first = decode_captions(data["val_captions"][0], data["idx_to_word"]).split()
    name = data["val_urls"][data["val_image_idxs"][0]].rsplit("/")[-1]
    assert first[0] == "<START>" and first[-1] == "<END>"
    # The captions were cut at 15 words, and rare words became <UNK>.
    whole = [reference.split()[:15] for reference in references[name]]
    assert any(
        len(words) == len(first) - 2
        and all(a in (b, "<UNK>") for a, b in zip(first[1:-1], words, strict=True))
        for words in whole
    )


def test_the_genuine_coco_vocabulary_is_accepted(layout, shared_data):
    base_dir, _ = layout
    genuine = (shared_data / "coco" / "coco2014_vocab.json").read_bytes()
    (base_dir / "coco2014_vocab.json").write_bytes(genuine)
    data = load_coco_data(base_dir)
    assert len(data["idx_to_word"]) == 1004
