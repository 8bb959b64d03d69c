"""features.json: what a data directory and a run know of their features."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from coco_layout import write_layout
from vision_models import SIDE, MeanNetwork

from fastrnn import coco_utils
from fastrnn.data.pca import PCA, PCAFileError
from fastrnn.files import read_json, write_json
from fastrnn.training import TrainConfig, Trainer, start_model
from fastrnn.vision.networks import Network
from fastrnn.vision.source import FeatureSource, carry_source


@pytest.fixture
def pca(rng) -> PCA:
    return PCA.fit(rng.standard_normal((50, 3)), 2)


def test_what_is_written_is_read(tmp_path, pca):
    source = FeatureSource.of(MeanNetwork(), pca=pca, images=tmp_path)
    source.write(tmp_path)
    found = FeatureSource.read(tmp_path)
    assert found == source
    assert found.describe() == source.describe()
    np.testing.assert_array_equal(found.pca.components, pca.components)
    assert (found.width, found.columns, found.images) == (3, 2, str(tmp_path))
    about = read_json(tmp_path / "features.json")
    assert set(about) == {
        "format", "network", "file", "layer", "digest", "preprocessing", "width", "pca", "images",
    }  # fmt: skip
    assert about["pca"]["file"] == "pca.npz"
    assert about["preprocessing"]["size"] == SIDE
    assert FeatureSource.read(tmp_path / "none") is None


def test_another_network_is_refused():
    network = MeanNetwork()
    source = FeatureSource.of(network)
    source.check(network)
    other = MeanNetwork(digest="1")
    with pytest.raises(ValueError, match=r"the network's digest is sha256:1.*; expected sha256:0"):
        source.check(other)
    for name, value in (("name", "efficientnet-lite0"), ("layer", "fc"), ("width", 4)):
        other = MeanNetwork()
        setattr(other, name, value)
        with pytest.raises(ValueError, match=f"expected {getattr(network, name)}"):
            source.check(other)
    other = MeanNetwork()
    other.preprocessing = dataclasses.replace(other.preprocessing, channels="BGR")
    with pytest.raises(ValueError, match="the network's preprocessing is"):
        source.check(other)


def test_unknown_features_cannot_be_computed(tmp_path):
    FeatureSource.unknown(7).write(tmp_path)
    source = FeatureSource.read(tmp_path)
    assert (source.network, source.columns) == (None, 7)
    with pytest.raises(ValueError, match="not known"):
        source.check(MeanNetwork())
    with pytest.raises(ValueError, match="not known"):
        source.load_network()


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("format", 2, "format is 2; expected 1"),
        ("network", "vgg", "network is 'vgg'"),
        ("network", 3, "network is 3"),
        ("layer", None, "layer is null"),
        ("digest", "sha256:12", "digest is 'sha256:12'"),
        ("digest", None, "digest is None"),
        ("preprocessing", None, "preprocessing is None"),
        ("preprocessing", {"size": 1}, "preprocessing is"),
        ("width", 0, "width is 0"),
        ("width", True, "width is True"),
        ("width", 4, "expected .2, 4."),
        ("pca", {"file": "../x.npz"}, "expected null or the file pca.npz"),
        ("pca", {"file": "pca.npz", "components": 2, "digest": "sha256:0"}, "digests differ"),
        ("images", 5, "images is 5"),
    ],
)  # fmt: skip
def test_damaged_descriptions_are_refused(tmp_path, pca, name, value, problem):
    FeatureSource.of(MeanNetwork(), pca=pca).write(tmp_path)
    about = read_json(tmp_path / "features.json")
    write_json(tmp_path / "features.json", {**about, name: value})
    with pytest.raises(ValueError, match=problem) as error:
        FeatureSource.read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/")
    assert str(error.value).count(str(tmp_path)) == 1  # one file is named
    assert isinstance(error.value, PCAFileError) == (
        problem in ("expected .2, 4.", "digests differ")
    )
    del about[name]
    write_json(tmp_path / "features.json", about)
    with pytest.raises(ValueError, match=rf"features\.json: {name} is missing"):
        FeatureSource.read(tmp_path)


def test_other_damage(tmp_path, pca):
    for text in ("[]", "{", '"a"'):
        (tmp_path / "features.json").write_text(text)
        with pytest.raises(ValueError, match=r"features\.json"):
            FeatureSource.read(tmp_path)
    FeatureSource.of(MeanNetwork(), pca=pca).write(tmp_path)
    (tmp_path / "pca.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"pca\.npz: damaged"):
        FeatureSource.read(tmp_path)
    (tmp_path / "pca.npz").unlink()
    with pytest.raises(FileNotFoundError):
        FeatureSource.read(tmp_path)
    with pytest.raises(ValueError, match="pca has 3 features; expected 5"):
        network = MeanNetwork()
        network.width = 5
        FeatureSource.of(network, pca=pca)


def test_networks_are_loaded_as_described(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from vision_models import write_onnx

    from fastrnn.vision.images import Preprocessing
    from fastrnn.vision.networks import load_network

    write_onnx(tmp_path / "m.onnx", shape=("N", 3, "H", "W"))
    how = Preprocessing(size=9, std=(1, 2, 3))
    network = load_network(onnx=tmp_path / "m.onnx", layer="pool", preprocessing=how)
    FeatureSource.of(network).write(tmp_path)
    source = FeatureSource.read(tmp_path)
    found = source.load_network(threads=1)
    assert (found.layer, found.preprocessing, found.threads) == ("pool", how, 1)
    (tmp_path / "m.onnx").rename(tmp_path / "moved.onnx")
    with pytest.raises(FileNotFoundError):
        source.load_network()
    assert source.load_network(onnx=tmp_path / "moved.onnx").digest == network.digest
    (tmp_path / "moved.onnx").unlink()
    write_onnx(tmp_path / "moved.onnx", shape=("N", 3, 9, 9))
    with pytest.raises(ValueError, match="digest"):
        source.load_network(onnx=tmp_path / "moved.onnx")


# -- from the data directory to the run


def describe(directory: Path, *, columns: int | None = None) -> FeatureSource:
    """Write features.json for the features that are in a data directory."""
    raw = coco_utils.load_coco_data(directory, pca_features=False)["train_features"].shape[1]
    if columns is None:
        columns = coco_utils.load_coco_data(directory)["train_features"].shape[1]
    network: Network = MeanNetwork()
    network.width = raw
    rng = np.random.default_rng(0)
    pca = PCA(np.zeros(raw, np.float32), rng.standard_normal((columns, raw)).astype(np.float32))
    source = FeatureSource.of(network, pca=pca, images=directory)
    source.write(directory)
    return source


def trained(directory: Path, run: Path, **settings: object) -> Trainer:
    raw = bool(settings.get("raw_features"))
    data = coco_utils.load_coco_data(directory, pca_features=not raw)
    model = start_model(data, "rnn", 4, 5)
    trainer = Trainer(
        model, data, TrainConfig(epochs=1), run=run, settings={"data": str(directory), **settings}
    )
    trainer.fit()
    return trainer


def test_a_run_knows_how_its_features_were_made(tmp_path):
    write_layout(tmp_path / "data")
    source = describe(tmp_path / "data")
    trained(tmp_path / "data", tmp_path / "run")
    found = FeatureSource.read(tmp_path / "run")
    assert found.describe() == source.describe()
    np.testing.assert_array_equal(found.pca.components, source.pca.components)
    trained(tmp_path / "data", tmp_path / "raw", raw_features=True)
    found = FeatureSource.read(tmp_path / "raw")
    assert found.describe() == source.without_pca().describe()
    assert not (tmp_path / "raw" / "pca.npz").exists()


def test_a_run_of_undescribed_data_has_no_description(tmp_path):
    write_layout(tmp_path / "data")
    trained(tmp_path / "data", tmp_path / "run")
    assert not (tmp_path / "run" / "features.json").exists()


def test_resuming_writes_what_is_missing_and_keeps_what_is_there(tmp_path):
    write_layout(tmp_path / "data")
    source = describe(tmp_path / "data")
    run = tmp_path / "run"
    trained(tmp_path / "data", run)
    before = (run / "pca.npz").stat().st_mtime_ns
    Trainer.resume(run, epochs=2).fit()
    assert (run / "pca.npz").stat().st_mtime_ns == before
    (run / "pca.npz").unlink()
    (run / "features.json").write_text("{")
    Trainer.resume(run, epochs=3).fit()
    assert FeatureSource.read(run).describe() == source.describe()
    (tmp_path / "data" / "features.json").unlink()
    Trainer.resume(run, epochs=4).fit()
    assert FeatureSource.read(run).describe() == source.describe()


def test_train_carries_and_checks_the_description(tmp_path, capsys, monkeypatch):
    from commands import refused, run

    monkeypatch.chdir(tmp_path)
    write_layout(tmp_path / "data")
    source = describe(tmp_path / "data")
    options = ["--data", "data", "--epochs", 1, "--hidden-dim", 4, "--no-report", "--out", "run"]
    assert run("train", *options) == 0
    assert FeatureSource.read(tmp_path / "run").describe() == source.describe()
    (tmp_path / "data" / "features.json").unlink()
    assert run("train", *options, "--force") == 0
    assert not (tmp_path / "run" / "features.json").exists()
    assert not (tmp_path / "run" / "pca.npz").exists()
    describe(tmp_path / "data", columns=6)
    said = refused(capsys, "train", *options[:-1], "other")
    assert "features.json: describes 6 features after PCA; expected" in said
    assert not (tmp_path / "other").exists()


def test_carrying_is_atomic_enough(tmp_path, pca, monkeypatch):
    """Interrupted between its two files, the run has no description rather than a wrong one."""
    (tmp_path / "data").mkdir()
    (tmp_path / "run").mkdir()
    FeatureSource.of(MeanNetwork(), pca=pca).write(tmp_path / "data")

    def fail(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastrnn.vision.source.write_json", fail)
    with pytest.raises(KeyboardInterrupt):
        carry_source(tmp_path / "data", tmp_path / "run")
    assert FeatureSource.read(tmp_path / "run") is None
    assert json.loads((tmp_path / "data" / "features.json").read_text())["format"] == 1
