"""Reference captions in a JSON file, in each of its three forms."""

from __future__ import annotations

import json

import pytest

from fastrnn.data.references import read_references

URLS = ["http://example.org/a.jpg", "images/b.jpg", "c.jpg"]
A, B = ["a dog", "a big dog"], ["a cat"]


@pytest.mark.parametrize(
    "content",
    [
        [A, B, []],
        {"a.jpg": A, "elsewhere/b.jpg": B, "d.jpg": ["a bird"]},
        {
            "images": [
                {"id": 7, "file_name": "x", "coco_url": "http://coco.org/a.jpg"},
                {"id": 8, "file_name": "b.jpg"},
                {"id": 9, "flickr_url": "http://flickr.com/c.jpg/"},
            ],
            "annotations": [
                {"image_id": 7, "caption": A[0]},
                {"image_id": 8, "caption": B[0]},
                {"image_id": 7, "caption": A[1]},
            ],
        },
    ],
    ids=["list", "object", "coco"],
)
def test_every_form(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content))
    assert read_references(path, URLS) == [A, B, []]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("3", "contains a int; expected a list or an object"),
        ("[[], []]", "contains a list of 2 entries; expected 3, one for each image"),
        ('{"x.jpg": ["a"]}', "captions of 1 images; expected some of the 3 images"),
        ('{"annotations": [3]}', "'annotations' cannot be read"),
        ('{"annotations": [], "images": [{"id": 3}]}', "captions of 0 images"),
        (
            '{"annotations": [], "images": [{"id": 3, "file_name": 7}]}',
            "an image has a name that is not a string",
        ),
        ('[["a"], 3, []]', r"image 1 \(images/b.jpg\) has 3; expected a list of strings"),
        ('[["a"], ["b", 3], []]', r"image 1 .* has \['b', 3\]; expected a list of strings"),
        ('[["a"], [], ["\\ud800"]]', r"image 2 \(c.jpg\) has .* expected valid Unicode"),
    ],
)
def test_refused_files_are_named(tmp_path, content, message):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_references(path, URLS)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of references") as caught:
        read_references(tmp_path / "r.json", URLS)
    assert caught.value.filename == str(tmp_path / "r.json")
