"""Damaged and malicious files: refused with their name, quickly, and in little memory."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from coco_layout import WORDS, write_layout
from PIL import EpsImagePlugin, Image

from fastrnn.checkpoint import load_model, read_checkpoint
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.data.pca import PCA
from fastrnn.data.references import read_references
from fastrnn.data.scenes.dataset import read_scenes
from fastrnn.files import (
    parse_json,
    read_json,
    read_npz,
    read_sealed,
    write_aside,
    write_npz,
    write_sealed,
    write_text,
)
from fastrnn.image_utils import load_image
from fastrnn.report import Report, draw_loss, read_history, write_report
from fastrnn.runs import read_settings
from fastrnn.training import TrainConfig, Trainer, read_run

DEEP = "[" * 200_000 + "]" * 200_000
VOCABULARY = "coco2014_vocab.json"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    write_layout(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run directory of one step."""
    place = tmp_path_factory.mktemp("trained")
    write_layout(place / "data")
    data = read_captioning_directory(place / "data")
    model = CaptioningRNN(data["word_to_idx"], 7, 4, 5, "lstm")
    config = TrainConfig(epochs=1, batch_size=100)
    settings = {"data": str(place / "data")}
    Trainer(model, data, config, run=place / "run", settings=settings).fit()
    return place / "run"


# -- text and JSON


def test_the_umask_is_never_changed(tmp_path, monkeypatch):
    def change(mask: int) -> int:
        raise AssertionError("the umask is the whole process's")

    monkeypatch.setattr(os, "umask", change)
    write_text(tmp_path / "a", "all of it")
    assert (tmp_path / "a").read_text() == "all of it"


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027, 0o077])
def test_the_umask_holds(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a", "all of it")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("content", [DEEP, '{"a":' * 100_000, '{"a": 1, "a": 2}', "9" * 5000, "\0"])
def test_json_that_no_one_writes(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"^{path}: not a JSON file \(") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError):
        parse_json(content)


def test_a_byte_order_mark_is_no_text(layout):
    path = layout / VOCABULARY
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    urls = layout / "val2014_urls.txt"
    urls.write_bytes(b"\xef\xbb\xbf" + urls.read_bytes())
    assert read_captioning_directory(layout)["val_urls"][0].startswith("file:")


def readers(layout: Path, run: Path) -> dict[str, tuple[Path, object]]:
    """Every function that reads JSON, with the file that it reads."""
    return {
        "vocabulary": (layout / VOCABULARY, lambda: read_captioning_directory(layout)),
        "references": (layout / "r.json", lambda: read_references(layout / "r.json", ["a"])),
        "scenes": (layout / "val_scenes.json", lambda: read_scenes(layout)),
        "settings": (run / "settings.json", lambda: read_run(run)),
        "history": (run / "history.jsonl", lambda: read_history(run / "history.jsonl")),
        "metrics": (run / "metrics.json", lambda: Report(run).read()),
    }


@pytest.mark.parametrize(
    "name", ["vocabulary", "references", "scenes", "settings", "history", "metrics"]
)
@pytest.mark.parametrize("content", [DEEP, "[1e999, NaN]", '{"fastrnn": 1, "epoch": [1]}', '"a"'])
def test_each_reader_of_json_names_its_file(layout, tmp_path, name, content):
    run = tmp_path / "run"
    run.mkdir()
    (run / "settings.json").write_text('{"fastrnn": "0"}')
    path, read = readers(layout, run)[name]
    path.write_text(content + "\n")
    if name == "settings" and content.startswith("{"):
        path.write_text(json.dumps({"fastrnn": "0", "learning_rate": 10**400}))
    with pytest.raises(ValueError) as caught:
        read()
    assert str(path) in str(caught.value) or name == "settings"
    assert str(run if name == "settings" else path) in str(caught.value)


@pytest.mark.parametrize(
    "record",
    [{"epoch": 10**400}, {"epoch": True}, {"epoch": "1"}, {"epoch": None}, {"epoch": float("nan")},
     {"epoch": 1, "loss": "a"}, {"epoch": 1, "val_cider": 10**400}, {"epoch": 1, "step": [1]}],
)  # fmt: skip
def test_a_history_of_what_are_no_numbers(tmp_path, record):
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps({"epoch": 1, "loss": float("nan")}) + "\n")
    assert len(read_history(path)) == 1
    path.write_text(json.dumps({"epoch": 1}) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=rf"^{path}: line 2 is not a record"):
        read_history(path)


@pytest.mark.parametrize("data", [5, ["a"], "a\0b"])
def test_settings_whose_data_is_no_place(tmp_path, data):
    (tmp_path / "settings.json").write_text(json.dumps({"fastrnn": "0", "data": data}))
    with pytest.raises(ValueError, match=r"settings\.json: data is "):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "about"),
    [({"max_train": "a"}, "max_train is 'a'"), ({"max_train": True}, "max_train is True"),
     ({"max_train": -1}, "max_train is -1"), ({"cell": "a"}, "cell is 'a'"),
     ({"bias_start": []}, "bias_start is"), ({"bias_start": "a" * 5000}, "bias_start is"),
     ({"data": "a" * 5000}, "data is 'aaa")],
)  # fmt: skip
def test_settings_name_their_file(layout, trained, tmp_path, wrong, about):
    start = {"bias_start": "frequencies", "forget_bias": 1.0, "embed_scale": 0.1}
    settings = read_settings(trained) | start | wrong
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=rf"^{path}: {about}") as caught:
        run = read_run(tmp_path)
        run.start_model(run.read_data(layout))
    assert len(str(caught.value)) < 1000


def test_a_page_of_settings_that_are_no_text(trained, tmp_path):
    run = tmp_path / "a\udcffb"  # a directory's name in Latin-1
    run.mkdir()
    for name in ("settings.json", "history.jsonl"):
        (run / name).write_bytes((trained / name).read_bytes())
    settings = json.loads((run / "settings.json").read_text()) | {"cell": "\ud800"}
    (run / "settings.json").write_text(json.dumps(settings))
    assert "<title>a?b" in write_report(run).read_text("utf-8")


def test_a_history_beyond_all_curves(trained, tmp_path):
    (tmp_path / "settings.json").write_bytes((trained / "settings.json").read_bytes())
    records = [{"epoch": 1, "val_loss": 2.0, "val_cider": 1e308}, {"epoch": 1.5}]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "history.jsonl").write_text(text)
    assert write_report(tmp_path).is_file()
    assert draw_loss(read_history(tmp_path / "history.jsonl"))[1:4] == b"PNG"


def test_references_of_images_without_names(tmp_path):
    path = tmp_path / "r.json"
    images = [{"id": 1, "file_name": 7}]
    path.write_text(json.dumps({"images": images, "annotations": []}))
    with pytest.raises(ValueError, match=rf"^{path}: an image has a name that is not a string"):
        read_references(path, ["a"])


def test_scenes_that_are_none_in_one_line(tmp_path):
    shape = {"kind": "circle", "a\nb": 1}
    (tmp_path / "val_scenes.json").write_text(json.dumps([[shape]]))
    with pytest.raises(ValueError, match=r"val_scenes\.json: cannot be read as scenes") as caught:
        read_scenes(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_long_word_makes_no_long_message(layout):
    words = [*WORDS[:-1], "a" * 50_000]
    ids = {word: idx for idx, word in enumerate(WORDS)}
    (layout / VOCABULARY).write_text(json.dumps({"idx_to_word": words, "word_to_idx": ids}))
    with pytest.raises(ValueError, match="'idx_to_word' has 'aaa") as caught:
        read_captioning_directory(layout)
    assert len(str(caught.value)) < 500


# -- pictures


def test_no_program_draws_an_image(tmp_path, monkeypatch):
    path = tmp_path / "a.eps"
    Image.new("RGB", (4, 4)).save(path)

    def start(*arguments, **named):
        raise AssertionError("a program is started")

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(subprocess, "check_call", start)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    with pytest.raises(OSError, match=rf"^{path}: cannot be read as an image"):
        load_image(path)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"])
def test_a_damaged_image_names_its_file(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    assert load_image(path).shape[:2] == (9, 7)
    for cut in (0, 8, len(whole) // 2):
        path.write_bytes(whole[:cut])
        with pytest.raises(OSError, match=rf"^{path}: cannot be read as an image") as caught:
            load_image(path)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_many_pixels_in_few_bytes(tmp_path):
    path = tmp_path / "a.webp"
    Image.new("RGB", (64, 64)).save(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"\x9d\x01\x2a") + 3  # the size of a VP8 frame
    content[at : at + 4] = (9926).to_bytes(2, "little") + (11632).to_bytes(2, "little")
    path.write_bytes(content)
    with pytest.raises(OSError, match=rf"^{path}: .*has 9926 x 11632 pixels in a file of "):
        load_image(path)


# -- the layout


@pytest.mark.parametrize("wrong", [float, bool, str, lambda idx: None])
def test_a_vocabulary_of_other_ids(layout, wrong):
    path = layout / VOCABULARY
    words = WORDS[:2] if wrong is bool else WORDS
    ids = {word: wrong(idx) for idx, word in enumerate(words)}
    path.write_text(json.dumps({"idx_to_word": words, "word_to_idx": ids}))
    with pytest.raises(
        ValueError, match="expected the word with this id in 'word_to_idx'"
    ) as caught:
        read_captioning_directory(layout)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("word", ["mat\0", "\0", "\ud83d", "a\udc00b"])
def test_a_word_that_is_no_text(layout, word):
    words = [*WORDS[:-1], word]
    ids = {word: idx for idx, word in enumerate(words)}
    (layout / VOCABULARY).write_text(json.dumps({"idx_to_word": words, "word_to_idx": ids}))
    with pytest.raises(ValueError, match=rf"{VOCABULARY}: .*; expected text"):
        read_captioning_directory(layout)
    # It is not written to a model either, because a different word would be read back.
    ids = {"<NULL>": 0, word: 1}
    with pytest.raises(ValueError, match="expected words that are text"):
        CaptioningRNN(ids, 2, 2, 2).save(layout / "model.npz")
    assert not (layout / "model.npz").exists()


def test_urls_that_are_none(layout):
    path = layout / "train2014_urls.txt"
    for content, wanted in (
        (b"http://a\n\xff\xfe\n", "not a text file in UTF-8"),
        (b"http://a\nhttp\0\n", "line 2 has a null character"),
        (b"a" * 20_000 + b"\n" * 1_000_000, "has a line of 20000 characters among 1000000"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            read_captioning_directory(layout)
        assert str(caught.value).startswith(f"{path}: {wanted}")


def replace(path: Path, name: str, make) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        make(file)


def test_an_h5_file_of_huge_claims(layout):
    path = layout / "train2014_vgg16_fc7_pca.h5"
    replace(path, "features", lambda file: file.create_dataset(
        "features", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024)))  # fmt: skip
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"train2014_vgg16_fc7_pca\.h5: dataset 'features' has "):
        read_captioning_directory(layout)


def test_compressed_features_are_read(layout):
    path = layout / "train2014_vgg16_fc7_pca.h5"
    features = np.zeros((12, 500_000), np.float32)
    replace(path, "features", lambda file: file.create_dataset(
        "features", data=features, compression="gzip", compression_opts=9))  # fmt: skip
    replace(layout / "val2014_vgg16_fc7_pca.h5", "features", lambda file: file.create_dataset(
        "features", data=features[:5]))  # fmt: skip
    assert path.stat().st_size < 100_000
    assert read_captioning_directory(layout)["train_features"].shape == features.shape


def test_an_h5_file_reads_no_other(layout, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(12 * 7 * 4))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = np.zeros((12, 7), np.float32)
    source = h5py.VirtualSource(tmp_path / "other.h5", "features", (12, 7))
    elsewhere = h5py.VirtualLayout((12, 7), np.float32)
    elsewhere[:] = source

    def raw(file: h5py.File) -> None:
        parts = [(str(tmp_path / "secret"), 0, 12 * 7 * 4)]
        file.create_dataset("features", (12, 7), "f4", external=parts)

    def link(file: h5py.File) -> None:
        file["features"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "features")

    path = layout / "train2014_vgg16_fc7_pca.h5"
    for make, wanted in (
        (raw, "is stored in other files"),
        (link, "is a link"),
        (
            lambda file: file.create_virtual_dataset("features", elsewhere),
            "is stored in other files",
        ),
        (lambda file: file.create_dataset("features", data=["a"]), "expected numbers"),
    ):
        replace(path, "features", make)
        with pytest.raises(ValueError, match=rf"{path}: dataset 'features' .*{wanted}"):
            read_captioning_directory(layout)


def write_raw_chunk(
    path: Path, raw: bytes, filters: tuple[int, ...] = (), chunk: int = 1 << 20, mask: int = 0
) -> None:
    """Write a data set of one chunk, whose bytes in the file are `raw`."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((chunk,))
    for code in filters:
        plist.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (9,) if code == DEFLATE else ())
    space = h5py.h5s.create_simple((16,), (h5py.h5s.UNLIMITED,))
    with h5py.File(path, "w") as file:
        kind = h5py.h5t.NATIVE_FLOAT
        dataset = h5py.h5d.create(file.id, b"features", kind, space, plist)
        dataset.write_direct_chunk((0,), raw, mask)


DEFLATE, SHUFFLE, FLETCHER32, SCALEOFFSET = 1, 2, 3, 6


@pytest.mark.parametrize(
    ("raw", "options"),
    [
        # HDF5 reads past the end of these, and the interpreter crashes.
        (zlib.compress(bytes(64)), {"filters": (DEFLATE,)}),
        (b"1234", {"filters": (DEFLATE,), "mask": 1}),
        (zlib.compress(bytes(64)), {"filters": (SHUFFLE, DEFLATE)}),
        (zlib.compress(bytes(64)) + b"1234", {"filters": (DEFLATE, FLETCHER32)}),
        # It never stops unpacking these.
        (zlib.compress(bytes(1 << 26), 9), {"filters": (DEFLATE,), "chunk": 16}),
        (zlib.compress(zlib.compress(bytes(1 << 30), 9), 9), {"filters": (DEFLATE, DEFLATE)}),
        # Its code for these writes out of bounds.
        (b"1234", {"filters": (FLETCHER32, SCALEOFFSET)}),
        (b"1234", {"filters": (32000,)}),
    ],
)
def test_a_chunk_that_is_not_what_hdf5_takes_it_for(layout, raw, options):
    path = layout / "train2014_vgg16_fc7_pca.h5"
    write_raw_chunk(path, raw, **options)
    # In a separate process, because accepting this file would crash it.
    call = f"from fastrnn.coco_utils import load_coco_data; load_coco_data({str(layout)!r})"
    result = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    error = result.stderr.splitlines()[-1]
    assert re.match(rf"ValueError: {path}: dataset 'features' has (the filters|a chunk)", error)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"}, {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"fletcher32": True}, {"chunks": (5, 3)}, {"chunks": (5, 3), "compression": "gzip"},
        {"chunks": (50, 70), "maxshape": (None, None)},
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_chunks_that_are_whole_are_read(layout, options, version):
    path = layout / "train2014_vgg16_fc7_pca.h5"
    # Deflating does not make random bits smaller, so HDF5 skips the filter for such chunks.
    bits = np.random.default_rng(0).integers(0, 2**32, (12, 7), dtype=np.uint32)
    for features in (np.ones((12, 7), np.float32), bits.view(np.float32)):
        with h5py.File(path, "w", libver=version) as file:
            file.create_dataset("features", data=features, **options)
        found = read_captioning_directory(layout)["train_features"]
        assert found.tobytes() == features.tobytes()


def test_many_claims_of_one_file(layout):
    path = layout / "train2014_vgg16_fc7_pca.h5"
    with h5py.File(path, "a") as file:
        for number in range(40):
            file.create_dataset(f"a{number}", (1 << 22,), "f4", fillvalue=1)
    assert path.stat().st_size < 50_000
    with pytest.raises(ValueError, match=r"dataset 'a\d+' .*; expected less in a file of"):
        read_captioning_directory(layout)


def test_more_chunks_than_a_file_can_hold(layout):
    path = layout / "train2014_vgg16_fc7_pca.h5"
    with h5py.File(path, "a") as file:
        file.create_dataset("a", (1 << 22,), "f4", chunks=(1,))
    with pytest.raises(ValueError, match="dataset 'a' has 4194304 chunks in a file of "):
        read_captioning_directory(layout)


# -- npz


def header(shape: tuple, descr: str = "<f4") -> bytes:
    file = io.BytesIO()
    about = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, about)
    return file.getvalue()


@pytest.mark.parametrize(
    "member",
    [
        header((1 << 40,)), header((1 << 62, 1 << 62)), header((-1,)), header((3,)) + bytes(16),
        header((1 << 40,), "<U0"), header((1 << 70, 0)), header((1,), "<U1") + b"\xff\xff\xff\x7f",
        header((1,), "|O") + bytes(8), header((1,), [("a", "<f4")]) + bytes(4),
        b"\x93NUMPY\x03\x00", b"\x93NUMPY\x01\x00\x05\x00((((", b"",
    ],
)  # fmt: skip
def test_an_array_of_huge_claims(tmp_path, member):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member)
    with pytest.raises(ValueError, match=rf"^{path}: damaged, or not an npz file"):
        read_npz(path)
    with pytest.raises(ValueError, match=rf"^{path}: "):
        load_model(path)


def test_a_bomb(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(10_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"compressed|larger than the file"):
        read_npz(path)


def test_an_array_that_is_there_twice(tmp_path):
    path = tmp_path / "a.npz"
    write_npz(path, {"x": np.ones(1000)})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.npy", header((1,)) + bytes(4))
    with pytest.raises(ValueError, match="has 'x' twice"):
        read_npz(path)


def test_a_small_file_makes_no_large_model(tmp_path):
    """Wh would have 10**13 weights, and the file has some 10**6."""
    arrays = CaptioningRNN({"<NULL>": 0}, 1, 1, 1).to_arrays()
    for name in ("W_proj", "b_proj"):
        arrays[name] = np.zeros((1, 1_000_000)[-np.ndim(arrays[name]) :], np.float32)
    write_sealed(tmp_path / "model.npz", arrays)
    with pytest.raises(ValueError, match="Wx is float32"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"step": -1}, {"step": 1.0}, {"step": None}, {"history": {}}, {"history": [1]},
     {"sums": [1]}, {"sums": ["a"] * 4}, {"config": 3}, {"data": []}, {"best": {"step": "1"}},
     {"best": 3}, {"seconds": "a"}, {"epochs_without_gain": None}, {"format": [1]}],
)  # fmt: skip
def test_a_checkpoint_whose_state_is_none(trained, tmp_path, change):
    arrays = read_sealed(trained / "checkpoints" / "step-00000001.npz")
    about = json.loads(str(arrays["training/about"])) | change
    path = tmp_path / "c.npz"
    write_sealed(path, arrays | {"training/about": np.array(json.dumps(about))})
    with pytest.raises(ValueError, match=rf"^{path}: "):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "name",
    ["step", "history", "sums", "seconds", "best", "epochs_without_gain", "config", "data"],
)
def test_a_state_that_is_not_whole(trained, tmp_path, name):
    arrays = read_sealed(trained / "checkpoints" / "step-00000001.npz")
    about = json.loads(str(arrays["training/about"]))
    del about[name]
    path = tmp_path / "c.npz"
    write_sealed(path, arrays | {"training/about": np.array(json.dumps(about))})
    with pytest.raises(ValueError, match=rf"^{path}: has no '{name}'"):
        read_checkpoint(path)


@pytest.mark.parametrize("version", [np.longdouble(1e300), "9" * 4000, 2.0])
def test_a_format_that_is_no_version(tmp_path, version):
    arrays = CaptioningRNN({"<NULL>": 0}, 1, 1, 1).to_arrays()
    path = tmp_path / "model.npz"
    write_sealed(path, arrays | {"format": np.array(version)})
    with pytest.raises(ValueError, match=rf"^{path}: .*its format is an array of ") as caught:
        load_model(path)
    assert len(str(caught.value)) < 500


def test_steps_without_number(trained, tmp_path):
    arrays = read_sealed(trained / "checkpoints" / "step-00000001.npz")
    about = json.loads(str(arrays["training/about"])) | {"step": 10**400}
    path = tmp_path / "c.npz"
    write_sealed(path, arrays | {"training/about": np.array(json.dumps(about))})
    with pytest.raises(ValueError, match=rf"^{path}: step is too large"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["words", "word_ids"])
def test_words_of_two_axes(tmp_path, name):
    """As lists, they would be 2**40 empty lists."""
    arrays = CaptioningRNN({"<NULL>": 0}, 1, 1, 1).to_arrays()
    wrong = arrays | {name: np.empty((1 << 40, 0), arrays[name].dtype)}
    write_sealed(tmp_path / "model.npz", wrong)
    with pytest.raises(ValueError, match=r"its words are \d-d, their ids \d-d"):
        load_model(tmp_path)


def test_what_numpy_says_stays_one_line(tmp_path):
    path = tmp_path / "a.npz"
    member = header((1,)).replace(b"'shape'", b"1:{1:2" + b"\n") + bytes(4)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member)
    with pytest.raises(ValueError, match=rf"^{path}: damaged, or not an npz file") as caught:
        read_npz(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [DEEP, "[]", "3", '{"format": 1, "format": 1}', '{"format": 1}'])
def test_a_checkpoint_without_a_state(trained, tmp_path, text):
    arrays = read_sealed(trained / "checkpoints" / "step-00000001.npz")
    path = tmp_path / "c.npz"
    write_sealed(path, arrays | {"training/about": np.array(text)})
    with pytest.raises(ValueError, match=rf"^{path}: "):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["training/m/Wh", "training/v/b"])
def test_moments_of_another_shape(trained, tmp_path, name):
    arrays = read_sealed(trained / "checkpoints" / "step-00000001.npz")
    path = tmp_path / "c.npz"
    for wrong in (np.ones(3, np.float32), np.ones(arrays[name].shape, int)):
        write_sealed(path, arrays | {name: wrong})
        with pytest.raises(ValueError, match=rf"^{path}: a moment of "):
            read_checkpoint(path)
    write_sealed(path, arrays | {"training/weights/Wh": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match=rf"^{path}: Wh is trained as "):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "arrays",
    [{"mean": np.zeros(3)}, {"mean": np.zeros(3), "components": np.zeros((2, 4))},
     {"mean": np.zeros(3), "components": np.zeros(3)},
     {"mean": np.zeros(3, int), "components": np.zeros((2, 3))},
     {"mean": np.zeros(0), "components": np.zeros((1 << 40, 0))}],
)  # fmt: skip
def test_components_that_are_none(tmp_path, arrays):
    path = tmp_path / "pca.npz"
    write_npz(path, arrays)
    with pytest.raises(ValueError, match=rf"^{path}: "):
        PCA.load(path)


# -- what is no file


def special(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path}[kind])


@pytest.mark.parametrize("kind", ["directory", "pipe", "device", "loop"])
def test_what_is_no_file_is_not_waited_for(layout, tmp_path, kind):
    if kind == "pipe" and not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    path = tmp_path / "special"
    special(path, kind)
    for name in (VOCABULARY, "coco2014_captions.h5", "val2014_urls.txt"):
        (layout / name).unlink()
        special(layout / name, kind)
    refused = []

    def read() -> None:
        for reader in (
            read_json, read_npz, load_model, read_checkpoint, PCA.load,
            lambda path: read_references(path, ["a"]),
            lambda path: read_captioning_directory(layout),
        ):  # fmt: skip
            try:
                reader(path)
            except OSError as error:
                refused.append(error.filename or str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "a reader waits for what never comes"
    assert len(refused) == 7
    assert all(str(tmp_path) in name for name in refused)


@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_what_is_no_file_is_not_replaced(tmp_path, kind):
    path = tmp_path / "special"
    special(path, kind)
    before = path.lstat()
    with pytest.raises(OSError) as caught:
        write_aside(path, lambda file: file.write(b"a"))
    assert caught.value.filename == str(path)
    assert path.lstat().st_mode == before.st_mode
    assert [p.name for p in tmp_path.iterdir()] == ["special"]
