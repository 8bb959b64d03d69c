"""The environment variable FASTRNN_DATA, where a command needs data and none are named."""

from __future__ import annotations

import shutil

import pytest
from coco_layout import write_layout
from commands import refused, run

from fastrnn.checkpoint import save_model
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.runs import read_settings
from fastrnn.training import start_model

SMALL = ["--hidden-dim", "8", "--wordvec-dim", "4", "--epochs", "1", "--batch-size", "10"]


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    write_layout(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTRNN_DATA", raising=False)
    return tmp_path / "data"


def test_train_with_features_of_a_data_set(data_dir, monkeypatch, capsys):
    options = ["train", "--raw-features", "--out", "run", "--no-report", *SMALL]
    assert "--raw-features needs --data, or FASTRNN_DATA" in refused(capsys, *options)
    said = refused(capsys, "train", "--recipe", "coco")
    assert "--recipe needs --data, or FASTRNN_DATA" in said
    monkeypatch.setenv("FASTRNN_DATA", "gone")
    said = refused(capsys, *options)
    assert said == "fastrnn: error: FASTRNN_DATA is 'gone'; expected a data directory\n"
    monkeypatch.setenv("FASTRNN_DATA", "data")
    assert run(*options) == 0
    assert read_settings("run")["data"] == str(data_dir)
    assert not read_settings("run")["drawn"]


def test_what_is_given_counts(data_dir, monkeypatch):
    shutil.copytree(data_dir, "other")
    monkeypatch.setenv("FASTRNN_DATA", "gone")
    options = ["--raw-features", "--data", "other", "--out", "run", "--no-report", *SMALL]
    assert run("train", *options) == 0
    assert read_settings("run")["data"] == str(data_dir.with_name("other"))
    assert run("evaluate", "run", "--beam", 1) == 0  # the run knows its data


def test_evaluate_a_model_that_does_not_know_its_data(data_dir, monkeypatch, capsys):
    data = read_captioning_directory(data_dir)
    save_model("model.npz", start_model(data, hidden_dim=8, wordvec_dim=4))
    assert "--data is needed: model.npz" in refused(capsys, "evaluate", "model.npz")
    monkeypatch.setenv("FASTRNN_DATA", "data")
    assert run("evaluate", "model.npz", "--beam", 1) == 0
    assert "data, val:" in capsys.readouterr().out
