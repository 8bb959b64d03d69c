"""Readers of annotations: each format as it is published, and files with one thing wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastrnn.data import annotations
from fastrnn.data.annotations import Annotations, Columns, read_annotations, read_names

COCO = {
    "info": {"year": 2014},
    "images": [
        {"id": 9, "file_name": "COCO_val2014_000000000009.jpg", "coco_url": "http://c/9.jpg"},
        {"id": 25, "file_name": "COCO_val2014_000000000025.jpg", "flickr_url": "http://f/25.jpg"},
        {"id": 30, "file_name": "COCO_val2014_000000000030.jpg"},
    ],
    "annotations": [
        {"image_id": 25, "id": 1, "caption": "Two giraffes."},
        {"image_id": 9, "id": 2, "caption": "A meal, in boxes."},
        {"image_id": 25, "id": 3, "caption": 'Giraffes "eat" a tree'},
        {"image_id": 77, "id": 4, "caption": "No such image."},
    ],
}
KARPATHY = {
    "images": [
        {"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "cocoid": 391895,
         "split": "test", "imgid": 0, "sentids": [770337],
         "sentences": [{"tokens": ["a", "man", "rides"], "raw": "A man rides.", "sentid": 770337}]},
        {"filename": "2.jpg", "split": "restval", "sentences": []},
        {"filename": "3.jpg", "split": "val", "sentences": [{"raw": "B."}, {"raw": "C."}]},
    ],
    "dataset": "coco",
}  # fmt: skip
FLICKR = "1000_a.jpg#0\tA child in a pink dress .\n1000_a.jpg#1\tA girl\n\n1001_b.jpg#0\tA dog .\n"


def write(tmp_path: Path, name: str, content: object) -> Path:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8", newline="")
    return path


def found(path: Path, **options: object) -> list[tuple[str, list[str], str | None]]:
    read = read_annotations(path, **options)  # type: ignore[arg-type]
    return [(image.name, image.captions, image.split) for image in read.images]


def test_coco(tmp_path):
    read = read_annotations(write(tmp_path, "a.json", COCO))
    first, second, third = read.images
    assert (first.name, first.captions) == (
        "COCO_val2014_000000000009.jpg", ["A meal, in boxes."]
    )  # fmt: skip
    assert second.captions == ["Two giraffes.", 'Giraffes "eat" a tree']
    assert third.captions == []
    assert [first.url, second.url, third.url] == ["http://c/9.jpg", "http://f/25.jpg", None]
    assert [first.number, first.split] == ["9", None]
    assert read.orphans == {"image_id 77": 1}


def test_coco_with_the_annotations_before_the_images(tmp_path):
    turned = dict(reversed(COCO.items()))
    assert found(write(tmp_path, "a.json", turned)) == found(write(tmp_path, "b.json", COCO))


@pytest.mark.parametrize("piece", [1, 2, 7, 64])
def test_json_in_pieces_of_any_size(tmp_path, monkeypatch, piece):
    """Wherever a piece ends: in a number, in an escape, in a character of several bytes."""
    text = json.dumps({**COCO, "x": [1234, 1.5e10, "é\\n"], "y": -17}, indent=1)
    text = text.replace("Two giraffes.", "Zwei Giraffen, größer 🦒 \\ud83e\\udd92 \\u00e9")
    whole = found(write(tmp_path, "a.json", b"\xef\xbb\xbf" + text.encode()))
    monkeypatch.setattr(annotations, "_PIECE", piece)
    assert found(tmp_path / "a.json") == whole
    assert whole[1][1][0] == "Zwei Giraffen, größer 🦒 🦒 é"


def test_karpathy(tmp_path):
    path = write(tmp_path, "dataset.json", KARPATHY)
    assert found(path) == [
        ("val2014/COCO_val2014_000000391895.jpg", ["A man rides."], "test"),
        ("2.jpg", [], "train"),
        ("3.jpg", ["B.", "C."], "val"),
    ]
    assert read_annotations(path).images[0].number == "391895"
    del KARPATHY["images"][2]["sentences"][:]  # type: ignore[attr-defined]
    path = write(tmp_path, "dataset.json", KARPATHY)
    assert found(path, tokens=True)[0][1] == ["a man rides"]


def test_flickr_token_file(tmp_path):
    expected = [
        ("1000_a.jpg", ["A child in a pink dress .", "A girl"], None),
        ("1001_b.jpg", ["A dog ."], None),
    ]
    for name, text in (("Flickr8k.token.txt", FLICKR), ("a.token", FLICKR.replace("\n", "\r\n"))):
        assert found(write(tmp_path, name, text)) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        # Kaggle's Flickr8k and Flickr30k, and what pandas and spreadsheets write.
        ("captions.txt", 'image,caption\na.jpg,"A ""big"" dog, here ."\na.jpg,Two\nb.jpg,x\n',
         [("a.jpg", ['A "big" dog, here .', "Two"], None), ("b.jpg", ["x"], None)]),
        ("results.csv", 'image_name| comment_number| comment\na.jpg| 0| Two "young", guys\n',
         [("a.jpg", ['Two "young", guys'], None)]),
        ("a.csv", ',Split;x,File_Name,Caption\n0,,a.jpg,"two\nlines"\n\n1,,b.jpg,é\n',
         [("a.jpg", ["two\nlines"], None), ("b.jpg", ["é"], None)]),
        ("b.csv", "caption;image;split\nA, b;a.jpg;training\nC;b.jpg;dev\n",
         [("a.jpg", ["A, b"], "train"), ("b.jpg", ["C"], "val")]),
        ("c.csv", "a.jpg,A cat\nb.jpg,A dog\n",
         [("a.jpg", ["A cat"], None), ("b.jpg", ["A dog"], None)]),
        ("a.tsv", 'image\tcaption\na.jpg\t"Stop" says, a sign\nb.jpg\t"say ""hi"""\n',
         [("a.jpg", ['"Stop" says, a sign'], None), ("b.jpg", ['say "hi"'], None)]),
    ],
)  # fmt: skip
def test_csv_and_tsv(tmp_path, name, text, expected):
    assert found(write(tmp_path, name, text)) == expected
    bom = write(tmp_path, name, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    lines = [(a, [c.replace("\r\n", "\n") for c in b], s) for a, b, s in found(bom)]
    assert lines == expected


def test_columns_by_name_and_by_number(tmp_path):
    path = write(tmp_path, "a.tsv", "a cat\thttp://x/1.jpg\na dog\thttp://x/2.jpg\n")
    expected = [("http://x/1.jpg", ["a cat"], None), ("http://x/2.jpg", ["a dog"], None)]
    assert found(path, columns=Columns("2", "1")) == expected
    path = write(tmp_path, "b.csv", "url,alt,part\nu.jpg,a cat,test\n")
    assert found(path, columns=Columns("url", "ALT", "part")) == [("u.jpg", ["a cat"], "test")]
    path = write(tmp_path, "c.jsonl", '{"photo_of": "u.jpg", "alt": ["a", "b"], "caption": "no"}')
    assert found(path, columns=Columns("photo_of", "alt")) == [("u.jpg", ["a", "b"], None)]


def test_json_lines_and_records(tmp_path):
    records = [
        {"image": "a.jpg", "caption": "A cat", "split": "val"},
        {"image": "b.jpg", "captions": ["A dog", "Dogs"], "split": "train"},
        {"image": "a.jpg", "caption": "The cat"},
        {"image": 17, "sentences": [{"raw": "x"}], "split": "Test"},
    ]
    expected = [
        ("a.jpg", ["A cat", "The cat"], "val"), ("b.jpg", ["A dog", "Dogs"], "train"),
        ("17", ["x"], "test"),
    ]  # fmt: skip
    lines = "\n".join(map(json.dumps, records))
    for name, text in (("a.jsonl", lines), ("a.txt", lines), ("a.json", json.dumps(records))):
        assert found(write(tmp_path, name, text)) == expected
    # As neuraltalk2's prepro.py takes them.
    raw = [{"file_path": "train2014/a.jpg", "id": 3, "captions": ["A", "B"]}]
    assert found(write(tmp_path, "coco_raw.json", raw)) == [("train2014/a.jpg", ["A", "B"], None)]


def test_several_files_are_one_set_of_images(tmp_path):
    into = Annotations()
    read_annotations(write(tmp_path, "a.token", "a.jpg#0\tA\n"), into, split="train")
    read_annotations(write(tmp_path, "b.token", "b.jpg#0\tB\n"), into, split="val")
    read_annotations(write(tmp_path, "c.token", "a.jpg#0\tC\n"), into)
    assert [(i.name, i.captions, i.split) for i in into.images] == [
        ("a.jpg", ["A", "C"], "train"), ("b.jpg", ["B"], "val")
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"d.token: line 1 has the image 'a.jpg' in val, and it"):
        read_annotations(write(tmp_path, "d.token", "a.jpg#0\tC\n"), into, split="val")


def test_an_image_in_two_splits_is_refused(tmp_path):
    path = write(tmp_path, "a.csv", "image,caption,split\na.jpg,A,train\nb.jpg,B,val\na.jpg,C,val")
    with pytest.raises(ValueError, match=r"a.csv: line 4 has the image 'a.jpg' in val, .* train"):
        read_annotations(path)


IMAGE = {"id": 1, "file_name": "a.jpg"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "", "not a JSON file of annotations"),
        ("a.json", "17", "not a JSON file of annotations"),
        ("a.json", "{", "line 1 has 'its end'"),
        ("a.json", '{"images": [],\n "images": []}', "line 2 has the key 'images' again"),
        ("a.json", {"images": []}, "'annotations' not found; expected COCO's"),
        ("a.json", {"annotations": [], "images": []}, "has no images and no captions"),
        ("a.json", {"images": {}}, "'images' is no array"),
        ("a.json", {"images": [IMAGE, 3]}, "images[1] is 3; expected an object"),
        ("a.json", {"images": [IMAGE, IMAGE]}, "images[1] has the id 1 again"),
        ("a.json", {"images": [{"id": [], "file_name": "a"}]}, "images[0] has the id []"),
        ("a.json", {"images": [{"id": 1}]}, "images[0] has the file_name None"),
        ("a.json", {"images": [{**IMAGE, "coco_url": "a\nb"}]}, "images[0] has the coco_url 'a"),
        ("a.json", {"images": [IMAGE], "annotations": [{"image_id": 1}]},
         "annotations[0] has the caption None"),
        ("a.json", {"images": [IMAGE], "annotations": [{"caption": "a"}]},
         "annotations[0] has the image_id None"),
        ("a.json", {"images": [{**IMAGE, "file_name": "a\nb"}], "annotations": []},
         "the image 1 has the image 'a\\nb'; expected a name in one line"),
        ("a.json", '{"images": [{"id": 1, "id": 1}]}', "an object has the key 'id' twice"),
        ("a.json", '{"images": [\n{"id": 1, "file_name": "a"}\n{"id": 2}]}',
         "line 3 has '{' where , or ] is expected"),
        ("a.json", '{"images": [\n{"id": 1, "file_name": "a"},\n]}', "line 3 on: Expecting value"),
        ("a.json", '{"images": [], "annotations": []} x', "has 'x' after the end"),
        ("a.json", '{"a": ' + "[" * 100_000, "nested too deeply"),
        ("a.json", '{"a": ' + "9" * 5000 + "}", "line 1 on: Exceeds the limit"),
        ("a.json", b'{"a": "\xff"}', "not text in UTF-8"),
        ("a.json", [3], "record 0 is 3; expected an object"),
        ("a.json", {"images": [{"filename": "a", "sentences": [{}]}]}, "images[0] has the tokens"),
        ("a.json", {"images": [{"filename": "a", "sentences": {}}]}, "images[0] has the sentences"),
        ("a.json", {"images": [{"filename": "a", "sentences": [], "split": "x"}]},
         "images[0] has the split 'x'; expected one of train"),
        ("a.json", {"images": [{"filename": "a", "sentences": []}, IMAGE]}, "has images with 'sen"),
        ("a.jsonl", '{"image": "a", "caption": "b"}\nx\n', "line 2 is not JSON"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON (nested too deeply)"),
        ("a.jsonl", '{"caption": "b"}', "line 1 has 'caption'; expected the image"),
        ("a.jsonl", '{"image": "b"}', "line 1 has 'image'; expected the caption"),
        ("a.jsonl", '{"image": "b", "caption": 5}', "line 1 has the caption 5"),
        ("a.jsonl", '{"image": "b", "caption": "\\ud800"}', "line 1 has the caption '\\ud800'"),
        ("a.jsonl", '{"image": true, "caption": "a"}', "line 1 has the image True"),
        ("a.jsonl", '{"image": " ", "caption": "a"}', "line 1 has the image ' '"),
        ("a.token", "a.jpg#0\tx\nb.jpg x\n", "line 2 is 'b.jpg x'; expected IMAGE#NUMBER"),
        ("a.token", b"a.jpg#0\tx\nb.jpg#0\t\xff\n", "line 2 is not text in UTF-8"),
        ("a.token", "a.jpg#0\tx\0\n", "line 1 has the caption 'x\\x00'"),
        ("a.token", f"{'a' * 1001}#0\tx\n", "line 1 has the image 'aaa"),
        ("a.csv", "", "has no images and no captions; expected CSV"),
        ("a.csv", "image,caption\n", "has no images and no captions; expected CSV"),
        ("a.csv", "a,b,c\nd,e,f\n", "line 1 has the columns 'a', 'b', 'c'; expected a header"),
        ("a.csv", "image,caption\na,b\na,b,c\n", "line 3 has 3 columns; expected 2"),
        ("a.csv", 'image,caption\na,b\nc,"d\n\n\n', "line 3 is not CSV (unexpected end of data)"),
        ("a.csv", 'image,caption\na,"b" c\n', "line 2 is not CSV"),
        ("a.csv", f"image,caption\na,{'b' * 200_000}\n", "line 2 is not CSV (field larger"),
        ("a.tsv", "image\tcaption\nb\n", "line 2 has 1 columns; expected 2"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(ValueError) as caught:
        read_annotations(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_that_are_not_there(tmp_path):
    path = write(tmp_path, "a.csv", "image,caption\na,b\n")
    for columns in (Columns(image="x"), Columns(split="part"), Columns("3", "1")):
        with pytest.raises(ValueError, match=r"line 1 has the columns 'image', 'caption'; expecte"):
            read_annotations(path, columns=columns)


def test_a_value_that_does_not_end_is_not_read_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(annotations, "_LONGEST_ITEM", 1000)
    monkeypatch.setattr(annotations, "_PIECE", 100)
    path = write(tmp_path, "a.json", '{"images": ["' + "a" * 100_000)
    with pytest.raises(ValueError, match="no value that ends within 1000 characters"):
        read_annotations(path)
    path = write(tmp_path, "a.token", "a" * 2000)
    with pytest.raises(ValueError, match="line 1 is longer than 1000 bytes"):
        read_annotations(path)


def test_lists_of_names(tmp_path):
    path = write(tmp_path, "a.txt", "a.jpg\r\n\n b/c d.jpg \n")
    assert read_names(path) == ["a.jpg", "b/c d.jpg"]
    with pytest.raises(ValueError, match=r"a.txt: line 3 has 'a', as line 1; expected every image"):
        read_names(write(tmp_path, "a.txt", "a\nb\na\n"))
    with pytest.raises(ValueError, match=r"a.txt: has no names"):
        read_names(write(tmp_path, "a.txt", "\n"))


def test_a_directory_or_a_pipe_is_refused(tmp_path):
    with pytest.raises(OSError, match="regular file"):
        read_annotations(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_annotations(tmp_path / "none.json")


def test_real_coco(shared_data: Path):
    path = shared_data / "coco" / "captions_val2017.json"
    read = read_annotations(path)
    whole = json.loads(path.read_text())
    by_id: dict[int, list[str]] = {}
    for annotation in whole["annotations"]:
        by_id.setdefault(annotation["image_id"], []).append(annotation["caption"])
    assert [i.name for i in read.images] == [i["file_name"] for i in whole["images"]]
    assert [i.captions for i in read.images] == [by_id[i["id"]] for i in whole["images"]]
