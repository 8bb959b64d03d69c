"""The pictures of a data set: files named by URLs, and what `image_from_url` makes of them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from coco_layout import write_layout
from PIL import Image

import fastrnn.report
from fastrnn import book
from fastrnn.coco_utils import load_coco_data, sample_coco_minibatch
from fastrnn.data import pictures
from fastrnn.data.pictures import find_picture, folder_of_images
from fastrnn.image_utils import image_from_url
from fastrnn.training import read_training_data
from fastrnn.vision.source import FeatureSource


def paint(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), (level, 0, 0)).save(path)
    return path


def level_of(url: object) -> int | None:
    """Which picture that `paint` made is read."""
    found = image_from_url(url)
    return None if found is None else int(found[0, 0, 0])


@pytest.fixture
def nothing_loaded(monkeypatch):
    monkeypatch.setattr(pictures, "_loaded", [])


@pytest.fixture
def data_dir(tmp_path, nothing_loaded, monkeypatch):
    """A data set whose URLs are names of files, and a working directory with other pictures."""
    place = tmp_path / "data"
    place.mkdir()
    write_layout(place)
    for split in ("train", "val"):
        names = place / f"{split}2014_urls.txt"
        count = len(names.read_text().splitlines())
        names.write_text("".join(f"images/{split}{n}.png\n" for n in range(count)))
        for number in range(count):
            paint(place / "images" / f"{split}{number}.png", 10 + number)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return place


# -- where a picture is


def test_find_picture(tmp_path):
    assert fastrnn.report.find_picture is find_picture
    (tmp_path / "a.png").write_bytes(b"")
    assert find_picture("a.png", tmp_path) == tmp_path / "a.png"
    assert find_picture((tmp_path / "a.png").as_uri(), tmp_path) == tmp_path / "a.png"
    assert find_picture(str(tmp_path / "a.png"), tmp_path / "other") == tmp_path / "a.png"
    for url in ("", "b.png", "http://a.png", "https://host/a.png", "data:a.png", ".", "http://[",
                "a" * 5000, "a\0.png"):  # fmt: skip
        assert find_picture(url, tmp_path) is None


def test_the_folder_of_images_comes_first(tmp_path):
    for folder in ("data", "photos"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"")
    (tmp_path / "data" / "b.png").write_bytes(b"")
    data, photos = tmp_path / "data", tmp_path / "photos"
    assert find_picture("a.png", data, photos) == photos / "a.png"
    assert find_picture("b.png", data, photos) == data / "b.png"


@pytest.mark.parametrize(
    "url", ["../secret.png", "x/../../secret.png", "./../secret.png", "images/../../secret.png",
            "..", "../data/../secret.png", "link/../secret.png"],
)  # fmt: skip
def test_a_relative_url_stays_in_the_data_directory(tmp_path, url):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "elsewhere" / "folder").mkdir(parents=True)
    (tmp_path / "elsewhere" / "secret.png").write_bytes(b"")
    try:
        (data / "link").symlink_to(tmp_path / "elsewhere" / "folder")
    except OSError:
        pytest.skip("this system has no links")
    assert find_picture(url, data) is None
    assert find_picture(url, data, data / "images") is None


def test_names_within_the_directory(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "..a b#c?.png").write_bytes(b"")
    for url in ("images/..a b#c?.png", "./images/..a b#c?.png", "images/../images/..a b#c?.png"):
        assert find_picture(url, tmp_path) == tmp_path / "images" / "..a b#c?.png"


def test_folder_of_images(tmp_path):
    assert folder_of_images(tmp_path) is None
    FeatureSource.unknown(4).write(tmp_path)
    assert folder_of_images(tmp_path) is None
    FeatureSource.unknown(4, images=tmp_path / "photos").write(tmp_path)
    assert folder_of_images(tmp_path) == tmp_path / "photos"  # it need not exist
    (tmp_path / "features.json").write_text("{")
    with pytest.raises(ValueError, match=r"features\.json"):
        folder_of_images(tmp_path)


# -- image_from_url


def test_urls_of_a_data_set_that_was_loaded(data_dir):
    """As every notebook calls it."""
    data = load_coco_data(data_dir)
    for split in ("train", "val"):
        levels = [level_of(url) for url in data[f"{split}_urls"]]
        assert levels == [10 + n for n in range(len(levels))]
    _, _, urls = sample_coco_minibatch(data, batch_size=4, split="val")
    assert [level_of(url) for url in urls] == [10 + int(re.findall(r"\d+", u)[0]) for u in urls]
    assert level_of(str(urls[0])) == level_of(urls[0])


def test_data_that_were_read_for_training_count_as_loaded(data_dir):
    data = read_training_data(data_dir)
    assert [level_of(url) for url in data["val_urls"][:3]] == [10, 11, 12]


def test_the_book_loads_and_looks_in_the_same_way(data_dir, monkeypatch):
    data = book.load_coco_data(data_dir)
    assert level_of(data["val_urls"][1]) == 11
    monkeypatch.setenv("FASTRNN_DATA", str(data_dir))
    assert list(book.load_coco_data()) == list(data)


def test_a_data_directory_that_names_its_images(data_dir, tmp_path):
    FeatureSource.unknown(5, images=tmp_path / "photos").write(data_dir)
    paint(tmp_path / "photos" / "images" / "val0.png", 99)
    data = load_coco_data(data_dir)
    assert level_of(data["val_urls"][0]) == 99
    assert level_of(data["val_urls"][1]) == 11


def test_a_directory_given_relative_to_another_working_directory(data_dir, monkeypatch):
    monkeypatch.chdir(data_dir.parent)
    data = load_coco_data("data")
    monkeypatch.chdir("here")
    assert level_of(data["val_urls"][0]) == 10


def test_the_data_set_that_was_loaded_last_counts(data_dir, tmp_path):
    first = load_coco_data(data_dir)
    other = tmp_path / "other"
    other.mkdir()
    write_layout(other)
    paint(other / "images" / "val0.png", 77)
    load_coco_data(other)
    assert level_of(first["val_urls"][0]) == 77
    load_coco_data(data_dir)
    assert level_of(first["val_urls"][0]) == 10


def test_a_url_of_the_data_is_not_a_file_of_the_working_directory(data_dir):
    data = load_coco_data(data_dir)
    paint(Path("images", "val0.png"), 50)
    assert level_of(data["val_urls"][0]) == 10
    assert level_of("images/val0.png") == 50  # typed: a path as in the course
    assert level_of("images/val1.png") == 11


def test_a_hostile_url_reads_no_other_file(data_dir, tmp_path, capsys):
    paint(tmp_path / "secret.png", 66)
    names = (data_dir / "val2014_urls.txt").read_text().splitlines()
    names[:2] = ["../secret.png", "images/../../secret.png"]
    (data_dir / "val2014_urls.txt").write_text("\n".join(names) + "\n")
    data = load_coco_data(data_dir)
    capsys.readouterr()
    for url in data["val_urls"][:2]:
        assert level_of(url) is None
        assert capsys.readouterr().out == f"URL Error:  no such file in {data_dir}: {url}\n"
    # whoever types it, or an absolute path, asks for it
    assert level_of("../secret.png") == 66
    assert level_of(str(tmp_path / "secret.png")) == 66
    assert level_of((tmp_path / "secret.png").as_uri()) == 66


def test_a_picture_that_is_not_there(data_dir, capsys):
    load_coco_data(data_dir)
    capsys.readouterr()
    assert image_from_url("nowhere.png") is None
    said = capsys.readouterr().out
    assert said == f"URL Error:  no such file in {data_dir} or {Path.cwd()}: nowhere.png\n"


def test_without_a_data_set_paths_are_as_before(nothing_loaded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    paint(Path("a.png"), 7)
    assert level_of("a.png") == level_of(np.str_("a.png")) == level_of(Path("a.png")) == 7
    assert image_from_url(np.str_("b.png")) is None
    assert capsys.readouterr().out == f"URL Error:  {os.strerror(2)} b.png\n"


def test_a_damaged_description_of_the_features_is_no_obstacle(data_dir):
    (data_dir / "features.json").write_text(json.dumps({"images": 3}))
    assert level_of(load_coco_data(data_dir)["val_urls"][0]) == 10


def test_a_data_set_that_cannot_be_read_is_not_remembered(data_dir, tmp_path):
    data = load_coco_data(data_dir)
    with pytest.raises(FileNotFoundError):
        load_coco_data(tmp_path / "gone")
    assert level_of(data["val_urls"][0]) == 10


def test_flickr8k(shared_data, nothing_loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = load_coco_data(shared_data / "flickr8k")
    there = [u for u in data["val_urls"] if (shared_data / "flickr8k" / str(u)).exists()]
    assert there and all(image_from_url(url).shape[2] == 3 for url in there[:3])
