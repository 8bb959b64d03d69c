"""fastrnn prepare, from photographs or features and a file of captions to a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import refused, run
from PIL import Image
from vision_models import features_of

import fastrnn.cli.prepare
from fastrnn.data.layout import read_captioning_directory
from fastrnn.data.pca import PCA
from fastrnn.vision.images import Preprocessing
from fastrnn.vision.networks import Network
from fastrnn.vision.source import FeatureSource

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), "grey": (90, 90, 90)}
SIZE = 8


def make_network(stop: int | None = None) -> tuple[Network, list[int]]:
    """A network whose features are the mean and the deviation of the channels, and its batches."""
    batches: list[int] = []

    def compute(batch: np.ndarray) -> np.ndarray:
        if stop is not None and len(batches) == stop:
            raise KeyboardInterrupt
        batches.append(len(batch))
        return np.concatenate([batch.mean((2, 3)), batch.std((2, 3))], axis=1)

    network = Network(
        name="onnx", layer="mean", width=6, preprocessing=Preprocessing(size=SIZE),
        digest=f"sha256:{'0' * 64}", engine="onnxruntime", threads=1, run=compute, chunk=4,
    )  # fmt: skip
    return network, batches


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    def install(stop: int | None = None) -> list[int]:
        network, batches = make_network(stop)
        monkeypatch.setattr(fastrnn.cli.prepare, "network_of", lambda arguments: network)
        return batches

    return install


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 photographs in two folders, one damaged, one without captions; and captions of 25."""
    folder, lines = tmp_path / "photos", []
    for number in range(24):
        colour = list(COLOURS)[number % 4]
        name = f"{'ab'[number % 2]}/{number:02}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((10, 12, 3), COLOURS[colour], np.uint8)
        pixels[:, : number % 5] //= 2
        Image.fromarray(pixels).save(folder / name)
        lines += [
            f"{number:02}.png#0\tA {colour} picture.",
            f"{number:02}.png#1\tIt's all {colour}!",
        ]
    (folder / "b" / "05.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 9)).save(folder / "unused.jpg")
    (folder / "notes.txt").write_text("no image")
    lines.append("gone.png#0\tA grey picture.")
    (tmp_path / "captions.token").write_text("\n".join(lines))
    return folder


def prepare(tmp_path: Path, *options: object, out: str = "data") -> int:
    captions = tmp_path / "captions.token"
    return run("prepare", captions, "--out", tmp_path / out, "--min-count", 2, *options)


def test_photographs_to_a_run(photos, tmp_path, use, capsys):
    use()
    assert prepare(tmp_path, "--images", photos, "--test-fraction", 0.2, "--pca", 2) == 0
    said = capsys.readouterr().out.splitlines()
    data = tmp_path / "data"
    assert said[0] == "photographs: 24"
    assert said[1] == f"read      {tmp_path / 'captions.token'} (a Flickr token file)"
    assert said[-5:-1] == [
        "captions without photograph: 1 (gone.png)",
        "photographs without captions: 1 (unused.jpg)",
        "unreadable photographs: 1 (b/05.png)",
        f"written to {data}",
    ]
    assert said[-1] == f"next: fastrnn train --data {data} --recipe flickr8k"

    source = FeatureSource.read(data)
    assert source.images == str(photos)
    source.check(make_network()[0])
    found = read_captioning_directory(data, splits=("train", "val", "test"))
    whole = read_captioning_directory(data, pca_features=False, splits=("train", "val", "test"))
    urls = [url for s in ("train", "val", "test") for url in found[f"{s}_urls"].tolist()]
    assert len(urls) == len(set(urls)) == 23
    for split in ("train", "val", "test"):
        features = features_of(make_network()[0], [photos / url for url in found[f"{split}_urls"]])
        assert np.allclose(whole[f"{split}_features"], features, atol=1e-6)
        assert np.allclose(found[f"{split}_features"], source.pca.transform(features), atol=1e-4)
        for ids, image in zip(
            found[f"{split}_captions"], found[f"{split}_image_idxs"], strict=True
        ):
            words = {found["idx_to_word"][k] for k in ids}
            number = int(Path(found[f"{split}_urls"][image]).stem)
            assert words & set(COLOURS) == {list(COLOURS)[number % 4]}
    expected = PCA.fit(whole["train_features"], 2)
    assert np.allclose(source.pca.components, expected.components, rtol=1e-4, atol=1e-4)

    small = ("--epochs", 1, "--hidden-dim", 8, "--wordvec-dim", 4, "--no-report", "--threads", 1)
    assert run("train", "--data", data, "--out", tmp_path / "run", *small) == 0
    assert FeatureSource.read(tmp_path / "run").pca is not None
    assert run("evaluate", tmp_path / "run", "--split", "test", "--beam", 1) == 0
    assert "test: " in capsys.readouterr().out


def contents(directory: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in directory.iterdir():
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                found[path.name] = {name: file[name][()].tolist() for name in file}
        else:
            found[path.name] = path.read_bytes()
    return found


def test_it_goes_on_where_it_was_stopped(photos, tmp_path, use, capsys):
    options = ("--images", photos, "--batch-size", 3)
    use()
    assert prepare(tmp_path, *options, out="whole") == 0
    use(stop=3)
    assert prepare(tmp_path, *options) == 130
    said = capsys.readouterr().err
    assert "features are kept; the same command goes on" in said
    assert not (tmp_path / "data").exists()
    assert (tmp_path / ".data.prepare").is_dir()
    batches = use()
    assert prepare(tmp_path, *options) == 0
    assert 0 < sum(batches) < 23
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_new_images_for_an_earlier_model(photos, tmp_path, use, capsys):
    use()
    assert prepare(tmp_path, "--images", photos, "--pca", 2) == 0
    first = tmp_path / "data"
    (tmp_path / "captions.token").write_text("00.png#0\tA red dog.\n02.png#0\tBlue.")
    options = ("--vocab", first, "--pca-file", first / "pca.npz", "--val-fraction", 1)
    command = ("prepare", tmp_path / "captions.token", "--images", photos, *options)
    assert run(*command, "--out", tmp_path / "other") == 0
    assert "next: fastrnn evaluate RUN" in capsys.readouterr().out
    found, known = (read_captioning_directory(d) for d in (tmp_path / "other", first))
    assert found["idx_to_word"] == known["idx_to_word"]
    rows = {url: row for s in ("train", "val") for url, row in
            zip(known[f"{s}_urls"].tolist(), known[f"{s}_features"], strict=True)}  # fmt: skip
    for url, row in zip(found["val_urls"].tolist(), found["val_features"], strict=True):
        assert np.allclose(row, rows[url], atol=1e-5)
    ids = known["word_to_idx"]
    assert found["val_captions"].tolist() == [
        [ids["<START>"], ids["a"], ids["red"], ids["<UNK>"], ids["<END>"]],
        [ids["<START>"], ids["blue"], ids["<END>"], ids["<NULL>"], ids["<NULL>"]],
    ]
    assert len(found["train_captions"]) == 0
    assert "--vocab has all words" in refused(
        capsys, *command, "--out", tmp_path / "b", "--min-count", 1
    )


def test_features_of_a_file_with_its_list_and_source(photos, tmp_path, capsys):
    """As ``fastrnn features`` leaves them: NAME.h5, NAME.txt and features.json."""
    network, _ = make_network()
    place = tmp_path / "features"
    place.mkdir()
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("0[0-4].png"))]
    x = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    with h5py.File(place / "x.h5", "w") as file:
        file["features"] = x
    (place / "x.txt").write_text("\n".join(names))
    FeatureSource.of(network).write(place)
    lists = []
    for split, chosen in (("train", names[:3]), ("val", names[3:])):
        (tmp_path / f"{split}.txt").write_text("\n".join(chosen))
        lists += [f"--{split}-images", tmp_path / f"{split}.txt"]
    assert prepare(tmp_path, "--features", place / "x.h5", "--images", photos, *lists) == 0
    said = capsys.readouterr().out
    assert "captions without features: 20 (05.png, 06.png" in said
    data = read_captioning_directory(tmp_path / "data")
    assert data["train_urls"].tolist() == sorted(names[:3], key=lambda name: name[2:])
    for split in ("train", "val"):
        for url, row in zip(data[f"{split}_urls"].tolist(), data[f"{split}_features"], strict=True):
            assert np.array_equal(row, x[names.index(url)])
    FeatureSource.read(tmp_path / "data").check(network)
    (place / "x.txt").write_text("a\nb")
    wrong = refused(capsys, "prepare", tmp_path / "captions.token", "--features", place / "x.h5",
                    "--out", tmp_path / "other")  # fmt: skip
    assert f"{place / 'x.txt'}: has 2 names; expected 5" in wrong


def test_features_after_a_pca_and_a_few_photographs(photos, tmp_path, use, capsys):
    """What an earlier directory has can be prepared again, and its PCA goes on with it."""
    use()
    assert prepare(tmp_path, "--images", photos, "--pca", 2) == 0
    first = tmp_path / "data"
    command = ["prepare", tmp_path / "captions.token", "--out", tmp_path / "other", "--features"]
    command += [first / f"{split}2014_vgg16_fc7_pca.h5" for split in ("train", "val")]
    command += ["--feature-names"] + [first / f"{split}2014_urls.txt" for split in ("train", "val")]
    wrong = refused(capsys, *command, "--pca", 1)
    assert "--pca is given, and" in wrong
    for path in photos.rglob("1*.png"):
        path.unlink()
    assert run(*command, "--images", photos) == 0
    source, known = (FeatureSource.read(d) for d in (tmp_path / "other", first))
    assert (source.digest, source.images) == (known.digest, str(photos))
    assert np.array_equal(source.pca.components, known.pca.components)
    rows = {}
    for place in (first, tmp_path / "other"):
        data = read_captioning_directory(place)
        for split in ("train", "val"):
            urls = [Path(url).name for url in data[f"{split}_urls"].tolist()]
            rows[place] = rows.get(place, {}) | dict(
                zip(urls, data[f"{split}_features"].tolist(), strict=True)
            )
    assert rows[first] == rows[tmp_path / "other"]
    assert len(rows[first]) == 23
    assert not (tmp_path / "other" / "train2014_vgg16_fc7.h5").exists()


def test_splits_by_file_and_by_field(tmp_path, capsys):
    for name, images in (("a", "01"), ("b", "23"), ("c", "4")):
        lines = [json.dumps({"image": f"{k}.jpg", "caption": f"A {name}"}) for k in images]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    np.save(tmp_path / "x.npy", np.arange(10, dtype=np.float32).reshape(5, 2))
    files = [tmp_path / f"{name}.jsonl" for name in "abc"]
    options = ("--features", tmp_path / "x.npy", "--min-count", 1)
    out = tmp_path / "data"
    assert (
        run("prepare", files[0], "--val", files[1], "--test", files[2], "--out", out, *options) == 0
    )
    data = read_captioning_directory(out, splits=("train", "val", "test"))
    assert [data[f"{s}_urls"].tolist() for s in ("train", "val", "test")] == [
        ["0.jpg", "1.jpg"], ["2.jpg", "3.jpg"], ["4.jpg"]
    ]  # fmt: skip
    assert data["test_features"].tolist() == [[8, 9]]
    twice = refused(
        capsys, "prepare", files[0], "--val", files[0], "--out", tmp_path / "b", *options
    )
    assert f"{files[0]}: line 1 has the image '0.jpg' in val, and it is in train" in twice

    rows = "file,text,part\n0.jpg,A,train\n1.jpg,B,val\n2.jpg,C,train\n3.jpg,D,val\n4.jpg,E,train\n"
    (tmp_path / "d.csv").write_text(rows)
    command = ("prepare", tmp_path / "d.csv", "--split-column", "part", *options, "--max-length", 1)
    assert run(*command, "--out", tmp_path / "c") == 0
    assert read_captioning_directory(tmp_path / "c")["val_urls"].tolist() == ["1.jpg", "3.jpg"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "prepare needs --images DIR or --features FILE"),
        (["--features", "x.npy", "--feature-names", "none.txt"], "No such file"),
        (["--images", "photos", "--feature-names", "x"], "--feature-names needs --features"),
        (["--features", "none.npy"], "No such file or directory: none.npy"),
        (["--features", "x.npy", "--val-fraction", "2"], "--val-fraction is 2.0; expected"),
        (["--features", "x.npy", "--val-fraction", "-1"], "--val-fraction is '-1'; expected a fin"),
        (["--features", "x.npy", "--val", "a", "--val-fraction", "0.1"], "given in several ways"),
        (["--features", "x.npy", "--pca", "2", "--pca-file", "a"], "--pca and --pca-file are both"),
        (["--features", "x.npy", "--pca", "9"], "--pca is 9; expected at most 2, for"),
        (["--features", "x.npy", "--pca-file", "p.npz"], "--pca-file is for 4 features; expe"),
        (["--features", "x.npy", "--network", "efficientnet-lite0"], "expected it without"),
        (["--features", "x.npy", "--tokens", "java"], "--tokens is 'java'; expected coco or blank"),
        (["--features", "x.npy", "--vocab", "v.json"], "v.json: 'word_to_idx' is missing"),
        (["--features", "x.npy", "--min-count", "0"], "--min-count is '0'; expected an integer of"),
        (["--features", "y.npy"], "y.npy: has 3 rows; expected 25, one for each image"),
        (["--features", "x.npy", "--images", "none"], "none"),
        (["--features", "x.npy", "--out", "photos"], "photos: exists; expected a new directory"),
        (["--features", "x.npy", "--out", "photos", "--force"], "photos: is not a data set"),
        (["--features", "x.npy", "--out", "x.npy"], "x.npy: is a file; expected a directory"),
        (["--images", "photos", "--layer", "a"], "--layer needs --onnx"),
    ],
)  # fmt: skip
def test_refusals(photos, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((25, 2)))
    np.save("y.npy", np.ones((3, 2)))
    PCA(np.zeros(4, np.float32), np.ones((2, 4), np.float32)).save("p.npz")
    (tmp_path / "v.json").write_text('{"idx_to_word": []}')
    before = sorted(path.name for path in tmp_path.iterdir())
    out = [] if "--out" in options else ["--out", "data"]
    assert message in refused(capsys, "prepare", "captions.token", *options, *out)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
