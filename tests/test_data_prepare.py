"""Splits, words and files of a prepared directory, against what counting by hand gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import h5py
import numpy as np
import pytest

import fastrnn
from fastrnn.caption_tokens import caption_tokens
from fastrnn.coco_utils import decode_captions, load_coco_data
from fastrnn.data.annotations import AnnotatedImage, Annotations, read_annotations, read_names
from fastrnn.data.feature_files import FeatureFiles, NameIndex
from fastrnn.data.layout import encode_captions, read_captioning_directory
from fastrnn.data.pca import PCA
from fastrnn.data.prepare import (
    DirectoryWriter,
    Sources,
    SplitOptions,
    WordOptions,
    choose_splits,
    encode,
    listed_splits,
    prepare_directory,
)
from fastrnn.data.references import read_references
from fastrnn.vision.source import FeatureSource
from fastrnn.words import SPECIAL_WORDS


def image(name: str, *captions: str, split: str | None = None) -> AnnotatedImage:
    return AnnotatedImage(name, list(captions), split, None, None)


def many(count: int, split: str | None = None) -> list[AnnotatedImage]:
    return [image(f"{k}.jpg", f"A cat number {k}.", "Two cats", split=split) for k in range(count)]


# -- splits


def test_a_fraction_divides_images_not_captions():
    splits = choose_splits(many(50), val_fraction=0.2, test_fraction=0.1, seed=3)
    names = {split: [i.name for i in part] for split, part in splits.items()}
    assert {split: len(part) for split, part in names.items()} == {
        "train": 35,
        "val": 10,
        "test": 5,
    }
    assert sorted(name for part in names.values() for name in part) == sorted(
        i.name for i in many(50)
    )
    again = choose_splits(many(50), val_fraction=0.2, test_fraction=0.1, seed=3)
    assert [i.name for i in again["val"]] == names["val"]
    other = choose_splits(many(50), val_fraction=0.2, test_fraction=0.1, seed=4)
    assert [i.name for i in other["val"]] != names["val"]
    # The order of the annotations stays.
    assert names["train"] == sorted(names["train"], key=lambda name: int(name[:-4]))


def test_what_annotations_say_counts_unless_a_fraction_is_given():
    images = many(4, "train") + [image("x", "a", split="val"), image("y", "b", split="test")]
    splits = choose_splits(images)
    assert [i.name for i in splits["val"]] == ["x"]
    assert [i.name for i in splits["test"]] == ["y"]
    assert len(choose_splits(images, val_fraction=0.5)["val"]) == 3
    assert {k: len(v) for k, v in choose_splits(many(20)).items()} == {"train": 18, "val": 2}
    with pytest.raises(ValueError, match=r"the image '0.jpg' has no split, and 1 images have one"):
        choose_splits([*many(1), image("x", "a", split="val")])
    with pytest.raises(ValueError, match=r"val_fraction is 1.5; expected a number in \[0, 1\]"):
        choose_splits(many(4), val_fraction=1.5)
    with pytest.raises(ValueError, match="expected a sum of at most 1"):
        choose_splits(many(4), val_fraction=0.7, test_fraction=0.7)


def test_lists_of_images():
    images = many(5)
    lists = {"val": ["0.jpg", "folder/3.jpg", "none.jpg"], "train": ["1", "2.jpg"]}
    found, unknown = listed_splits(images, lists)
    assert [(i.name, i.split) for i in found] == [
        ("0.jpg", "val"), ("1.jpg", "train"), ("2.jpg", "train"), ("3.jpg", "val")
    ]  # fmt: skip
    assert unknown == ["none.jpg"]
    with pytest.raises(ValueError, match=r"'0.jpg' is in the lists of val and train"):
        listed_splits(images, {"val": ["0.jpg"], "train": ["0.jpg"]})
    with pytest.raises(ValueError, match=r"the list of val has 1 names, such as 'x', and no image"):
        listed_splits(images, {"val": ["x"]})


def test_names_are_found_by_their_last_part_if_one_has_it():
    index = NameIndex(["a/1.jpg", "b/1.jpg", "b/2.jpg", "000000000009.npy"], "DIR")
    assert index.find("b/1.jpg") == 1
    assert index.find("2.jpg") == index.find("2") == index.find("x/y/2.png") == 2
    assert index.find("3.jpg") is index.find("3.jpg", "4") is None
    assert index.find("COCO_9.jpg", "000000000009") == 3
    with pytest.raises(ValueError, match=r"DIR has 'a/1.jpg' and 'b/1.jpg' for the image '1.jpg'"):
        index.find("1.jpg")
    with pytest.raises(ValueError, match="DIR has 'a' twice"):
        NameIndex(["a", "a"], "DIR")


# -- words


def test_words_and_ids_against_the_plain_way():
    rng = np.random.default_rng(0)
    pool = ["Cat", "dog.", "sofa,", "U.S.", "cannot", "a", "the", "1 1/2", "rare", "x-ray", "the"]

    def caption() -> str:
        return " ".join(rng.choice(pool, rng.integers(1, 9)))

    splits = {
        split: [image(f"{split}{k}", caption(), caption(), caption()) for k in range(n)]
        for split, n in (("train", 40), ("val", 10), ("test", 5))
    }
    found = encode(splits, WordOptions(min_count=45, max_length=6))
    tokens = {
        s: [caption_tokens(c) for i in part for c in i.captions] for s, part in splits.items()
    }
    counts = Counter(word for caption in tokens["train"] for word in caption)
    kept = sorted((w for w, n in counts.items() if n >= 45), key=lambda w: (-counts[w], w))
    assert 0 < len(kept) < len(counts)
    assert found.words == [*SPECIAL_WORDS, *kept]
    ids = {word: k for k, word in enumerate(found.words)}
    for split, captions in tokens.items():
        part = found.splits[split]
        # encode_captions splits at blanks, and a fraction is one token with a no-break space.
        assert part.captions.shape == (len(captions), 8)
        for row, caption in zip(part.captions, captions, strict=True):
            cut = [ids.get(word, ids["<UNK>"]) for word in caption[:6]]
            assert row.tolist() == [1, *cut, 2, *[0] * (6 - len(cut))]
        assert part.image_idxs.tolist() == [k for k in range(len(splits[split])) for _ in range(3)]
        flat = [word for caption in captions for word in caption]
        assert part.figures == {
            "images": len(splits[split]), "captions": len(captions), "tokens": len(flat),
            "types": len(set(flat)), "longest": max(map(len, captions)), "empty": 0,
            "cut": sum(len(caption) > 6 for caption in captions),
            "kept": sum(min(len(caption), 6) for caption in captions),
            "unknown": sum(w not in ids for caption in captions for w in caption[:6]),
        }  # fmt: skip
    assert found.splits["train"].captions.dtype == np.int32


def test_vocabulary_size_and_blanks():
    captions = ["b b b A a", "c <END> <NULL> .", "c d"]
    splits = {"train": [image("1", *captions)], "val": [image("2", "b q")]}
    found = encode(splits, WordOptions(tokens="blank", vocab_size=3))
    assert found.words == [*SPECIAL_WORDS, "b", "c", "."]
    # A special word in the text is a word that is not known.
    ids = {word: k for k, word in enumerate(found.words)}
    expected = encode_captions(["b b b <UNK> <UNK>", "c <UNK> <UNK> .", "c <UNK>"], ids, 5)
    assert (found.splits["train"].captions == expected).all()
    assert encode(splits, WordOptions(tokens="blank", min_count=2)).words[4:] == ["b", "c"]
    assert encode(splits, WordOptions(tokens="blank")).words[4:] == []


def test_words_of_an_earlier_directory_keep_their_ids():
    words = ["cat", "<END>", "<NULL>", "<UNK>", "dog", "<START>"]
    splits = {"train": [], "val": [image("2", "Cat cow dog")]}
    found = encode(splits, WordOptions(words=words))
    assert found.words == words
    assert found.splits["val"].captions.tolist() == [[5, 0, 3, 4, 1]]
    with pytest.raises(ValueError, match="words has no <UNK>"):
        WordOptions(words=["<NULL>", "<START>", "<END>"])


def test_captions_without_a_word_are_left_out():
    splits = {
        "train": [image("1", "...", "a cat", "."), image("2", " ! "), image("3", "a dog")],
        "val": [image("4", "a")],
    }
    found = encode(splits, WordOptions(min_count=1))
    part = found.splits["train"]
    assert [i.name for i in part.images] == ["1", "3"]
    assert part.image_idxs.tolist() == [0, 1]
    assert part.images[0].captions == ["a cat"]
    assert (part.figures["empty"], found.wordless) == (3, ["2"])


# -- features


def numbered(count: int, width: int = 3) -> np.ndarray:
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


@pytest.mark.parametrize(
    "kind", ["npy", "fortran", "half", "npz", "named", "each", "h5", "gzip", "dir"]
)
def test_features_of_every_kind(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("fastrnn.data.feature_files._BLOCK", 3 * 8 * 4)  # 4 rows at once
    monkeypatch.setattr("fastrnn.data.h5_process._BLOCK", 3 * 4 * 4)
    x, names = numbered(10), [f"{k:02}" for k in range(10)]
    path = tmp_path / {"h5": "a.h5", "gzip": "a.h5", "dir": "d"}.get(kind, "a.npz")
    known = None
    if kind in ("npy", "fortran", "half"):
        path = tmp_path / "a.npy"
        arrays = {"npy": x, "fortran": np.asfortranarray(x), "half": x.astype(np.float16)}
        np.save(path, arrays[kind])
    elif kind == "npz":
        np.savez(path, features=x, other=np.zeros(3))
    elif kind == "named":
        np.savez(path, features=x, names=np.array(names))
        known = names
    elif kind == "each":
        np.savez(path, **dict(zip(names, x, strict=True)))
        known = names
    elif kind in ("h5", "gzip"):
        with h5py.File(path, "w") as file:
            file.create_dataset("features", data=x, compression="gzip" if kind == "gzip" else None)
    else:
        (path / "sub").mkdir(parents=True)
        for name, row in zip(names, x, strict=True):
            np.save(path / f"{name}.npy", row if name != "03" else row[None])
        known = names
    found = FeatureFiles([path])
    assert (found.count, found.width, found.names) == (10, 3, known)
    blocks = list(found.blocks())
    assert np.array_equal(np.concatenate([block for _, block in blocks]), x)
    at_once = kind in ("fortran", "gzip")  # a chunk that is inflated is used
    assert [start for start, _ in blocks] == ([0] if at_once else [0, 4, 8])
    assert all(block.dtype == np.float32 for _, block in blocks)


def save(path: Path, **arrays: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, arrays["x"])
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    return path


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("a.npy", {"x": np.zeros(3)}, "has shape (3,); expected (images, features)"),
        ("a.npy", {"x": np.zeros((3, 0))}, "has shape (3, 0); expected (images, features), none"),
        ("a.npy", {"x": np.zeros((3, 2), int)}, "has dtype int64; expected floats"),
        ("a.npy", {"x": np.array([["a"]], object)}, "has shape (1, 1) and dtype object in"),
        ("a.npz", {"a": np.zeros((3, 2)), "b": np.zeros((3, 2))}, "has 2 arrays of two axes"),
        ("a.npz", {"a": np.zeros(3), "b": np.zeros(2)}, "array 'b' has 2 features; expected 3"),
        ("a.npz", {"a": np.zeros((3, 2)), "names": np.array(["a"])}, "array 'names' has shape (1"),
        ("a.h5", {"a": np.zeros(2)}, "dataset 'features' is missing"),
        ("a.h5", {"features": np.zeros((2, 2), int)}, "dataset 'features' has dtype int64"),
        ("a.txt", {"features": np.zeros((2, 2))}, "is no file of features; expected npy,"),
    ],
)  # fmt: skip
def test_features_that_are_none(tmp_path, name, arrays, message):
    path = save(tmp_path / name, **arrays)
    with pytest.raises(ValueError) as caught:
        FeatureFiles([path])
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_damaged_and_foreign_features(tmp_path):
    path = save(tmp_path / "a.npy", x=numbered(10))
    whole = path.read_bytes()
    for content in (whole[:-4], whole + b"a", whole[:40], b"", b"\x93NUMPY\x03\x00"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npy: (has shape|damaged)"):
            FeatureFiles([path])
    with pytest.raises(ValueError, match=r"d: has no npy files"):
        FeatureFiles([tmp_path.joinpath("d").mkdir() or tmp_path / "d"])
    np.save(tmp_path / "d" / "a.npy", np.zeros(3))
    np.save(tmp_path / "d" / "b.npy", np.zeros(4))
    with pytest.raises(ValueError, match=r"b.npy: has 4 features; expected 3, as in .*a.npy"):
        list(FeatureFiles([tmp_path / "d"]).blocks())
    one, other = save(tmp_path / "1.npy", x=numbered(2)), save(tmp_path / "2.npy", x=numbered(2, 4))
    with pytest.raises(ValueError, match=r"2.npy: has 4 features in a row; expected 3, as in"):
        FeatureFiles([one, other])
    with pytest.raises(ValueError, match=r"1.npy: has 2 rows; expected 3, one for each name"):
        FeatureFiles([one], ["a", "b", "c"])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e300])
def test_features_that_are_not_finite(tmp_path, wrong):
    x = numbered(10).astype(np.float64)
    x[7, 2] = wrong
    one, other = save(tmp_path / "1.npy", x=numbered(5)), save(tmp_path / "2.npy", x=x)
    names = [f"{k}.jpg" for k in range(15)]
    with pytest.raises(ValueError, match=r"2.npy: row 7 \(12.jpg\) has .* at 2; expected finite"):
        list(FeatureFiles([one, other], names).blocks())


# -- the directory


def make(tmp_path: Path, images: list[AnnotatedImage], features: FeatureFiles, **options) -> dict:
    tmp_path.mkdir(exist_ok=True)
    annotations = Annotations(images, sources=["captions.json"])
    words = options.pop("words", WordOptions(min_count=1))
    splits = SplitOptions(options.pop("val_fraction", None), options.pop("test_fraction", None))
    components = options.pop("components", None)
    return prepare_directory(
        tmp_path / "data", Sources(annotations, features=features, **options), words, splits,
        components=components,
    )  # fmt: skip


@pytest.mark.parametrize("components", [None, 2])
def test_a_directory_of_three_splits(tmp_path, monkeypatch, components):
    monkeypatch.setattr("fastrnn.data.feature_files._BLOCK", 5 * 8 * 4)  # 5 rows at once
    images = many(20)
    order = np.random.default_rng(0).permutation(23)
    names = [f"{k}.jpg" for k in order]  # three of them have no captions
    x = np.random.default_rng(1).standard_normal((23, 4))
    features = FeatureFiles([save(tmp_path / "x.npy", x=x)], names)
    images.insert(3, image("gone.jpg", "no features"))
    images.insert(5, image("21.jpg"))
    record = make(
        tmp_path, images, features, val_fraction=0.2, test_fraction=0.1, components=components
    )

    data = read_captioning_directory(tmp_path / "data", splits=("train", "val", "test"))
    raw = read_captioning_directory(tmp_path / "data", pca_features=False, splits=("val", "test"))
    assert [len(data[f"{s}_urls"]) for s in ("train", "val", "test")] == [14, 4, 2]
    pca = FeatureSource.read(tmp_path / "data").pca
    if components:
        train = x[[names.index(url) for url in data["train_urls"]]].astype("f4")
        expected = PCA.fit(train, 2)
        assert np.allclose(pca.components, expected.components, atol=1e-5)
    seen = []
    for split in ("train", "val", "test"):
        urls = data[f"{split}_urls"].tolist()
        seen += urls
        rows = x[[names.index(url) for url in urls]].astype(np.float32)
        assert np.allclose(data[f"{split}_features"], pca.transform(rows) if components else rows)
        if split != "train":
            assert np.array_equal(raw[f"{split}_features"], rows)
        texts = read_references(tmp_path / "data" / f"{split}_references.json", urls)
        assert texts == [[f"A cat number {url[:-4]}.", "Two cats"] for url in urls]
        for caption, idx in zip(
            data[f"{split}_captions"], data[f"{split}_image_idxs"], strict=True
        ):
            text = decode_captions(caption, data["idx_to_word"])
            number = urls[idx][:-4]
            known = number if number in data["word_to_idx"] else "<UNK>"
            assert text in (f"<START> a cat number {known} <END>", "<START> two cats <END>")
    assert sorted(seen) == sorted(f"{k}.jpg" for k in range(20))
    assert record["left_out"]["captions without features"] == ["gone.jpg"]
    assert record["left_out"]["images without captions"] == ["21.jpg"]
    assert sorted(record["left_out"]["features without captions"]) == ["20.jpg", "22.jpg"]
    assert json.loads((tmp_path / "data" / "prepared.json").read_text()) == record
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_features_without_names_are_in_the_order_of_the_annotations(tmp_path, capsys):
    images = [*many(5, "train"), image("v", "A dog", split="val"), image("w", split="val")]
    features = FeatureFiles([save(tmp_path / "x.npy", x=numbered(7))])
    make(tmp_path, images, features, lists={"train": ["3.jpg", "1.jpg"], "val": ["v", "w"]})
    data = load_coco_data(tmp_path / "data")
    assert data["train_features"][:, 0].tolist() == [3, 9]
    assert data["val_features"][:, 0].tolist() == [15]
    with pytest.raises(ValueError, match=r"x.npy: has 7 rows; expected 5, one for each image of"):
        make(tmp_path / "other", many(5), features)


def test_names_that_are_alike(tmp_path):
    """References are a list where the last part of two names is the same."""
    images = [image(f"{f}/1.jpg", f"A {f}.", split="train") for f in "ab"]
    images += [image("a/2.jpg", "C.", split="val")]
    features = FeatureFiles([save(tmp_path / "x.npy", x=numbered(3))], [i.name for i in images])
    make(tmp_path, images, features)
    place = tmp_path / "data" / "train_references.json"
    assert read_references(place, ["a/1.jpg", "b/1.jpg"]) == [["A a."], ["A b."]]
    images = [image("a/1.jpg", "A"), image("b/1.jpg", "B")]
    features = FeatureFiles([save(tmp_path / "y.npy", x=numbered(2))], ["1.jpg", "2.jpg"])
    with pytest.raises(ValueError, match=r"'a/1.jpg' and 'b/1.jpg' are both '1.jpg'; expect"):
        make(tmp_path / "other", images, features)


def test_a_name_with_an_end_more_is_another_image(tmp_path):
    """As 2258277193_586949ec62.jpg.1 in Flickr8k, of which there is no photograph."""
    images = [image("1.jpg.1", "X", split="val"), *many(3, "train"), image("9", "Y", split="val")]
    names = ["0.jpg", "1.jpg", "2.jpg", "9.jpg"]
    features = FeatureFiles([save(tmp_path / "x.npy", x=numbered(4))], names)
    record = make(tmp_path, images, features)
    assert record["left_out"] == {"captions without features": ["1.jpg.1"]}
    assert read_captioning_directory(tmp_path / "data")["val_features"].tolist() == [[9, 10, 11]]


def test_nothing_is_left_of_a_directory_that_failed(tmp_path):
    x = numbered(20)
    x[4, 1] = np.nan
    features = FeatureFiles([save(tmp_path / "x.npy", x=x)])
    with pytest.raises(ValueError, match=r"x.npy: row 4 has nan"):
        make(tmp_path, many(20), features)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy"]
    good = FeatureFiles([save(tmp_path / "x.npy", x=numbered(20))])
    make(tmp_path, many(20), good)
    with pytest.raises(ValueError, match="data: exists; expected a new directory"):
        make(tmp_path, many(20), good)


def test_splits_that_are_empty(tmp_path):
    features = FeatureFiles([save(tmp_path / "x.npy", x=numbered(3))])
    with pytest.raises(ValueError, match=r"no image with captions is in val; .*: 3 in train, 0 in"):
        make(tmp_path, many(3, "train"), features)
    with pytest.raises(ValueError, match="no image with captions is in train"):
        make(tmp_path, many(3, "val"), features)
    words = WordOptions(words=[*SPECIAL_WORDS, "cat"])
    make(tmp_path, many(3, "val"), features, words=words)
    data = read_captioning_directory(tmp_path / "data")
    assert data["train_features"].shape == (0, 3)
    assert data["val_captions"][0].tolist() == [1, 3, 4, 3, 3, 2]
    with pytest.raises(ValueError, match=r"captions.json: no image has both .* the photographs or"):
        make(tmp_path / "b", many(3), FeatureFiles([tmp_path / "x.npy"], ["a", "b", "c"]))


def test_a_directory_is_replaced_when_the_new_one_is_whole(tmp_path):
    out = tmp_path / "data"
    make(tmp_path, many(20), FeatureFiles([save(tmp_path / "x.npy", x=numbered(20))]))
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(KeyError), DirectoryWriter(out, force=True) as writer:
        (writer.aside / "a").write_text("a")
        raise KeyError
    assert sorted(path.name for path in out.iterdir()) == before
    with DirectoryWriter(out, force=True) as writer:
        (writer.aside / "a").write_text("a")
        with pytest.raises(ValueError, match="data: is being written by another process"):
            DirectoryWriter(out, force=True).__enter__()
        writer.finish({})
    assert sorted(path.name for path in out.iterdir()) == ["a", "prepared.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "x.npy"]
    with pytest.raises(ValueError, match="data: is not a data set; --force replaces only data"):
        DirectoryWriter(out, force=True)
    with pytest.raises(ValueError, match=r"x.npy: is a file; expected a directory"):
        DirectoryWriter(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"x.npy: is a file; expected a directory for .*x.npy/a/b"):
        DirectoryWriter(tmp_path / "x.npy" / "a" / "b")
    with DirectoryWriter(tmp_path / "some" / "place" / "data") as writer:
        writer.finish({})
    assert (tmp_path / "some" / "place" / "data" / "prepared.json").is_file()


def test_flickr8k_again(shared_data: Path, tmp_path: Path):
    """The captions and words of the data set that others made from the same sentences."""
    shipped = shared_data / "flickr8k"
    lines = []
    for split in ("train", "val"):
        for name, texts in json.loads((shipped / f"{split}_references.json").read_text()).items():
            lines += [f"{name}#{k}\t{text}\n" for k, text in enumerate(texts)]
    (tmp_path / "flickr.token").write_text("".join(lines))
    annotations = read_annotations(tmp_path / "flickr.token")
    lists = {s: read_names(shipped / f"{s}2014_urls.txt") for s in ("train", "val")}
    files = [shipped / f"{s}2014_vgg16_fc7_pca.h5" for s in lists]
    features = FeatureFiles(files, [*lists["train"], *lists["val"]])
    prepare_directory(
        tmp_path / "data", Sources(annotations, lists, features=features),
        WordOptions(tokens="blank", min_count=5), SplitOptions(),
    )  # fmt: skip
    ours, theirs = (read_captioning_directory(d) for d in (tmp_path / "data", shipped))
    assert ours["idx_to_word"] == theirs["idx_to_word"]
    for split in ("train", "val"):
        rows = {name.rsplit("/")[-1]: k for k, name in enumerate(ours[f"{split}_urls"].tolist())}
        order = [rows[name.rsplit("/")[-1]] for name in theirs[f"{split}_urls"].tolist()]
        assert np.array_equal(ours[f"{split}_features"][order], theirs[f"{split}_features"])
        captions = ours[f"{split}_captions"].reshape(len(order), 5, -1)[order]
        assert np.array_equal(captions.reshape(-1, 17), theirs[f"{split}_captions"])


@pytest.mark.skipif("FASTRNN_LARGE" not in os.environ, reason="FASTRNN_LARGE is not set: a minute")
def test_620_000_captions_within_a_gigabyte_and_a_minute(shared_data: Path, tmp_path: Path):
    coco = json.loads((shared_data / "coco" / "captions_val2017.json").read_text())
    rng = Random(0)
    known = [word for a in coco["annotations"] for word in a["caption"].split()]
    images, annotations = [], []
    for copy in range(25):
        for one in coco["images"]:
            name = f"{copy}_{one['file_name']}"
            images.append({**one, "id": f"{copy}_{one['id']}", "file_name": name})
        for one in coco["annotations"]:
            words = one["caption"].split()
            words[rng.randrange(len(words))] = rng.choice(known)
            words[rng.randrange(len(words))] = rng.choice(known) + rng.choice(["", "x", "ed", "s"])
            idx, image = len(annotations), f"{copy}_{one['image_id']}"
            annotations.append({"image_id": image, "id": idx, "caption": " ".join(words)})
    del annotations[620_000:]
    with (tmp_path / "captions.json").open("w") as file:
        json.dump({"info": {}, "images": images, "annotations": annotations}, file)
    np.save(tmp_path / "x.npy", np.zeros((len(images), 512), np.float32))
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "fastrnn", "prepare", "captions.json", "--features", "x.npy",
         "--out", "data"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(fastrnn.__file__).parents[1])},
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    seconds, busy = time.monotonic() - began, usage.ru_utime + usage.ru_stime
    assert status == 0
    print(f"{seconds:.1f} s, {busy:.1f} s of a processor, {usage.ru_maxrss >> 10} MB")
    assert usage.ru_maxrss < 1_000_000
    assert busy < 60  # other programs do not slow it down
