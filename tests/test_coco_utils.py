"""The course's data loader; the files that it reads are in test_data_layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
from coco_layout import NUM_IMAGES, WORDS, write_layout

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
    monkeypatch.delenv("FASTRNN_DATA", raising=False)
    with pytest.raises(FileNotFoundError) as caught:
        load_coco_data()
    there = tmp_path / "cs231n" / "datasets" / "coco_captioning"
    for place in (coco_utils.BASE_DIR, str(there), "FASTRNN_DATA is not set", "fastrnn fetch"):
        assert place in str(caught.value)
    assert capsys.readouterr().out == ""
    write_layout(tmp_path / "cs231n" / "datasets" / "coco_captioning")
    assert list(load_coco_data()) == KEYS
    assert "cs231n" in capsys.readouterr().out


def test_the_environment_names_the_default_directory(layout, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTRNN_DATA", str(layout[0]))
    assert list(load_coco_data()) == KEYS
    assert capsys.readouterr().out == f"base dir  {layout[0]}\n"
    monkeypatch.setenv("FASTRNN_DATA", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"^FASTRNN_DATA is '.*gone'; expected a data"):
        load_coco_data()
    assert list(load_coco_data(layout[0])) == KEYS  # what is given counts


def test_a_split_that_is_not_there(layout):
    data = load_coco_data(layout[0])
    with pytest.raises(ValueError, match=r"^split is 'test'; expected 'train' or 'val'$"):
        sample_coco_minibatch(data, split="test")
    # captions alone are no split: the images were not read
    data["test_captions"] = data["val_captions"]
    with pytest.raises(ValueError, match=r"^split is 'test'; expected 'train' or 'val'$"):
        sample_coco_minibatch(data, split="test")
    with pytest.raises(ValueError, match=r"^split is 'train'; expected data with a split$"):
        sample_coco_minibatch({})
    for name in ("image_idxs", "features", "urls"):
        data[f"test_{name}"] = data[f"val_{name}"]
    assert len(sample_coco_minibatch(data, 3, "test")[0]) == 3


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
