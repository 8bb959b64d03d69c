"""``fastrnn caption``: its formats and files, images that cannot be read, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from commands import refused, run
from PIL import Image

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from photo_runs import draw_pixels, make_pca, write_photos, write_run

from fastrnn.captioner import Captioner

PIXELS = draw_pixels(6)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("caption")


@pytest.fixture(scope="module")
def model(place) -> Path:
    return write_run(place / "run", pca=make_pca())


@pytest.fixture(scope="module")
def photos(place) -> list[Path]:
    paths = write_photos(place / "photos", PIXELS)
    (place / "photos" / "notes.txt").write_text("no image")
    return paths


@pytest.fixture(scope="module")
def wanted(model) -> list:
    """The captions of each photograph, three of each."""
    return Captioner.load(model)(PIXELS, beam=3, n_best=3)


@pytest.fixture
def caption(capsys):
    def caption(*arguments, status=0):
        capsys.readouterr()
        assert run("caption", *arguments) == status
        return capsys.readouterr()

    return caption


# -- formats


def test_text(caption, model, photos, wanted):
    said = caption(model, *photos)
    lines = [f"{path}: {image.caption}\n" for path, image in zip(photos, wanted, strict=True)]
    assert said.out == "".join(lines)
    assert said.err == ""
    assert len({line.partition(": ")[2] for line in lines}) > 3


def test_greedy_text(caption, model, photos):
    found = Captioner.load(model)(photos[:2])
    said = caption(model, *photos[:2], "--beam", "1")
    assert said.out == "".join(f"{image.name}: {image.caption}\n" for image in found)


def test_text_of_several(caption, model, photos, wanted):
    said = caption(model, photos[0], "--n-best", "3")
    lines = [f"  {best.score:7.3f}  {best.text}\n" for best in wanted[0].captions]
    assert said.out == f"{photos[0]}\n" + "".join(lines)


@pytest.mark.parametrize("form", ["json", "jsonl"])
@pytest.mark.parametrize("count", [1, 3])
def test_json(caption, model, photos, wanted, form, count):
    out = caption(model, *photos[:count], "--format", form, "--n-best", "3").out
    found = json.loads(out) if form == "json" else [json.loads(line) for line in out.splitlines()]
    assert [image["image"] for image in found] == [str(path) for path in photos[:count]]
    for image, known in zip(found, wanted, strict=False):
        assert image["caption"] == known.caption
        assert [best["words"] for best in image["captions"]] == [
            best.words for best in known.captions
        ]
        for best, other in zip(image["captions"], known.captions, strict=True):
            assert best["probabilities"] == pytest.approx(other.probabilities, rel=1e-5)


def test_csv(caption, model, photos, wanted):
    rows = list(csv.DictReader(io.StringIO(
        caption(model, photos[0], photos[1], "--format", "csv", "--n-best", "2").out
    )))  # fmt: skip
    assert [(row["image"], row["rank"]) for row in rows] == [
        (str(path), rank) for path in photos[:2] for rank in ("1", "2")
    ]
    known = [best for image in wanted[:2] for best in image.captions[:2]]
    assert [row["caption"] for row in rows] == [best.text for best in known]
    assert [float(row["score"]) for row in rows] == pytest.approx([b.score for b in known])
    assert [float(row["log_prob"]) for row in rows] == pytest.approx([b.log_prob for b in known])


@pytest.mark.parametrize("form", ["text", "json", "jsonl", "csv"])
def test_file_holds_what_is_printed(caption, model, photos, tmp_path, form):
    out = tmp_path / "captions"
    printed = caption(model, *photos, "--format", form).out
    said = caption(model, *photos, "--format", form, "--out", out)
    assert said.out == f"written to {out}: the captions of 6 images\n"
    assert out.read_text(encoding="utf-8") == printed
    assert list(tmp_path.iterdir()) == [out]


def test_options_of_the_search(caption, model, photos):
    captioner = Captioner.load(model)
    options = {"max_length": 4, "length_penalty": 0.0, "no_repeat_ngram": 1}
    [known] = captioner(photos[0], beam=2, suppress_unk=False, **options)
    said = caption(
        model, photos[0], "--beam", "2", "--max-length", "4", "--length-penalty", "0",
        "--no-repeat-ngram", "1", "--allow-unk",
    )  # fmt: skip
    assert said.out == f"{photos[0]}: {known.caption}\n"
    assert known.caption != captioner(photos[0], beam=3)[0].caption


def test_captions_fold_on_a_narrow_terminal_and_nowhere_else(
    caption, model, photos, monkeypatch, tmp_path
):
    """A caption breaks between words, and goes on under itself."""
    monkeypatch.chdir(photos[0].parent)
    name, options = photos[0].name, ["--min-length", "14", "--max-length", "14"]
    whole = caption(model, name, *options).out
    assert whole.count("\n") == 1
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("fastrnn.terminal.is_terminal", lambda file: True)
    folded = caption(model, name, *options).out
    lines = folded.splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 40
    assert all(line.startswith("  ") for line in lines[1:])
    assert folded.split() == whole.split()


def test_score_without_a_length_penalty_is_the_log_probability(caption, model, photos):
    out = caption(model, photos[0], "--length-penalty", "0", "--format", "json").out
    [best] = json.loads(out)[0]["captions"]
    assert best["score"] == best["log_prob"] < 0


def test_threads_are_those_of_the_network(caption, model, photos, monkeypatch):
    given, load = [], Captioner.load
    monkeypatch.setattr(
        Captioner, "load", lambda *args, **options: given.append(load(*args, **options)) or given[0]
    )
    caption(model, photos[0], "--threads", "3")
    assert given[0].network.threads == 3


# -- places


def test_folder(caption, model, photos, wanted):
    said = caption(model, photos[0].parent)
    assert said.out.splitlines() == [
        f"{path}: {image.caption}" for path, image in zip(photos, wanted, strict=True)
    ]
    assert said.err == ""


def test_names_of_any_script_and_of_no_encoding(caption, model, photos, wanted, tmp_path):
    names = ["写真 – größe.png", "صورة.png", 'a,b "c".png', "new\nline\x1b[2J.png"]
    raw = os.fsencode(str(tmp_path)) + b"/\xff.png"
    paths = [str(tmp_path / name) for name in names] + [os.fsdecode(raw)]
    for path in paths:
        shutil.copy(photos[0], path)
    text = wanted[0].caption
    out = caption(model, *paths).out
    shown = [*paths[:3], f"{tmp_path}/new?line?[2J.png", f"{tmp_path}/\\udcff.png"]
    assert out.splitlines() == [f"{name}: {text}" for name in shown]
    found = json.loads(caption(model, *paths, "--format", "json").out)
    assert [image["image"] for image in found] == paths
    rows = list(csv.reader(io.StringIO(caption(model, *paths, "--format", "csv").out)))
    assert [row[0] for row in rows[1:5]] == paths[:4]
    file = tmp_path / "captions.json"
    caption(model, *paths, "--format", "json", "--out", file)
    assert [image["image"] for image in json.loads(file.read_text(encoding="utf-8"))] == paths


def test_output_that_is_not_utf_8(model, photos, tmp_path):
    """In a fresh process, whose stdout holds ASCII only."""
    path = tmp_path / "größe.png"
    shutil.copy(photos[0], path)
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for form, read in (("text", lambda out: out.partition(": ")[0]),
                       ("json", lambda out: json.loads(out)[0]["image"])):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "fastrnn", "caption", model, path, "--format", form],
            capture_output=True, env=environment, check=True,
        )  # fmt: skip
        shown = (
            str(path) if form == "json" else str(path).replace("ö", "\\xf6").replace("ß", "\\xdf")
        )
        assert read(done.stdout.decode("ascii")) == shown


@pytest.fixture(scope="module")
def server(place, photos):
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(place / "photos"))

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_urls(caption, model, photos, wanted, server):
    url = f"{server}/{photos[1].name}"
    said = caption(model, photos[0], url, "--allow-private")
    assert said.out == f"{photos[0]}: {wanted[0].caption}\n{url}: {wanted[1].caption}\n"
    said = caption(model, photos[0], url, status=1)
    assert said.out == f"{photos[0]}: {wanted[0].caption}\n"
    assert said.err == (
        f"fastrnn: {url}: 127.0.0.1 is not a public address; expected one, or --allow-private\n"
        "fastrnn: 1 of 2 images not captioned\n"
    )
    named = f"{server}/allow_private.jpg"
    said = caption(model, named, status=2)
    assert f"{named}: 127.0.0.1 is not a public address; expected one, or --allow" in said.err
    page = f"{server}/notes.txt"
    said = caption(model, page, "file:///etc/passwd", "--allow-private", status=2)
    assert f"{page}: has content type 'text/plain'; expected an image\n" in said.err
    assert "file:///etc/passwd: has the scheme 'file'; expected http or https\n" in said.err


# -- images that cannot be read


@pytest.mark.parametrize("form", ["text", "json", "jsonl", "csv"])
def test_unreadable_images_are_named_and_the_others_captioned(
    caption, model, photos, wanted, tmp_path, form
):
    bad, missing, empty = tmp_path / "bad\x1b.jpg", tmp_path / "missing.jpg", tmp_path / "empty"
    bad.write_text("no image")
    empty.mkdir()
    out = tmp_path / "captions"
    said = caption(
        model, bad, photos[0], missing, empty, photos[1], "--format", form, "--out", out, status=1
    )
    lines = said.err.splitlines()
    assert len(lines) == 4
    assert f"fastrnn: {tmp_path}/bad?.jpg: cannot be read as an image; expected one of" in said.err
    assert f"fastrnn: {missing}: No such file or directory" in lines
    assert f"fastrnn: {empty}: no images; expected files that end in" in said.err
    assert lines[-1] == "fastrnn: 3 of 5 images not captioned"
    content = out.read_text()
    assert wanted[0].caption in content
    assert wanted[1].caption in content
    assert "bad" not in content
    if form == "json":
        assert len(json.loads(content)) == 2


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_image_that_can_be_read(caption, model, tmp_path, form):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    said = caption(model, bad, "--format", form, "--sheet", tmp_path / "sheet.png", status=2)
    assert said.out == ("[]\n" if form == "json" else "")
    assert said.err.splitlines()[-1] == "fastrnn: 1 of 1 image not captioned"
    assert not (tmp_path / "sheet.png").exists()
    said = caption(model, tmp_path, tmp_path, status=2)
    assert said.out == ""


# -- the contact sheet


def test_sheet(caption, model, photos, tmp_path):
    sheet = tmp_path / "sheet.png"
    said = caption(model, *photos, "--sheet", sheet)
    assert said.out.count("\n") == 6
    assert said.err == f"written to {sheet}: 6 images\n"
    drawn = np.asarray(Image.open(sheet))
    # The pictures of 8 x 8 pixels are enlarged without smoothing: each is there, pixel for pixel.
    for picture in PIXELS:
        large = picture.repeat(40, axis=0).repeat(40, axis=1)
        rows, columns = np.nonzero((drawn == large[0, 0]).all(axis=2))
        assert any(
            np.array_equal(drawn[top : top + 320, left : left + 320], large)
            for top, left in zip(rows.tolist()[:1], columns.tolist()[:1], strict=True)
        )
    said = caption(model, *photos, "--sheet", sheet, "--out", tmp_path / "a.txt", "--force")
    assert said.err == ""
    assert f"written to {sheet}: 6 images" in said.out


def test_sheet_of_too_many(caption, model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("fastrnn.report.sheet.MAX_PICTURES", 4)
    said = caption(model, *photos, "--sheet", tmp_path / "sheet.png")
    assert said.out.count("\n") == 6
    assert said.err == f"written to {tmp_path / 'sheet.png'}: the first 4 images\n"


# -- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n-best", "4"], "--n-best is 4; expected at most --beam, which is 3"),
        (["--beam", "0"], "--beam is '0'; expected an integer of at least 1"),
        (["--max-length", "0"], "--max-length is '0'"),
        (["--format", "xml"], "--format is 'xml'; expected text, json, jsonl or csv"),
        (["--out", "missing/captions"], "--out is missing/captions; expected a file in a direc"),
        (["--sheet", "."], "--sheet is .; expected a file"),
        (["--sheet", "sheet.txt"], "--sheet is sheet.txt; expected a name that ends in .png"),
        (["--threads", "9999"], "--threads is 9999"),
        (["--network", "missing.onnx"], "missing.onnx"),
    ],
)
def test_options_that_are_refused(capsys, model, photos, arguments, message):
    assert message in refused(capsys, "caption", model, photos[0], *arguments)


def test_files_are_replaced_with_force_alone(capsys, model, photos, caption, tmp_path):
    for option, name in (("--out", "captions.txt"), ("--sheet", "sheet.PNG")):
        file = tmp_path / name
        file.write_text("old")
        line = refused(capsys, "caption", model, photos[0], option, file)
        assert f"{option} is {file}, which exists; choose another, or replace it with -" in line
        assert file.read_text() == "old"
        caption(model, photos[0], option, file, "--force")
        assert file.read_bytes() != b"old"


def test_runs_that_are_refused(capsys, model, photos, tmp_path):
    assert "no such model file" in refused(capsys, "caption", tmp_path, photos[0])
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    (copy / "features.json").unlink()
    said = refused(capsys, "caption", copy, photos[0], "--out", tmp_path / "out")
    assert f"{copy}: has no features.json" in said
    assert not (tmp_path / "out").exists()


def test_network_that_was_moved(caption, capsys, model, photos, wanted, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    about = json.loads((copy / "features.json").read_text())
    (copy / "features.json").write_text(json.dumps(about | {"file": "/nowhere/net.onnx"}))
    assert "give its place" in refused(capsys, "caption", copy, photos[0])
    said = caption(copy, photos[0], "--network", model.with_name("run.onnx"))
    assert said.out == f"{photos[0]}: {wanted[0].caption}\n"


def test_interrupted_command_leaves_no_file(model, photos, tmp_path, monkeypatch):
    """Neither a part of the captions nor an old file that is cut."""
    out = tmp_path / "captions"
    out.write_text("old")
    real = Captioner.each

    def each(self, *args, **options):
        yield next(real(self, *args, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(Captioner, "each", each)
    assert run("caption", model, *photos, "--out", out, "--force") == 130
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]
