"""Runs know their data, and can be evaluated: those of `Trainer` as those of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from coco_layout import write_layout
from commands import refused, run

from fastrnn.checkpoint import load_model
from fastrnn.coco_utils import load_coco_data
from fastrnn.data.references import references_file
from fastrnn.runs import read_settings
from fastrnn.training import TrainConfig, Trainer, read_run, read_training_data, start_model


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_layout(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


CONFIG = TrainConfig(epochs=2, batch_size=10, learning_rate=0.02)


def trained(data: dict, config: TrainConfig = CONFIG, **options: object) -> Trainer:
    trainer = Trainer(start_model(data, "lstm", 4, 8), data, config, run="r", **options)
    trainer.fit()
    return trainer


def test_a_run_of_the_api_is_evaluated_reported_and_resumed(data_dir, capsys):
    """As the README writes it: from load_coco_data, without settings."""
    data = load_coco_data("data")
    trained(data)
    assert read_settings("r")["data"] == str(data_dir)
    assert run("evaluate", "r", "--json", "m.json") == 0
    assert json.loads(Path("m.json").read_text())["data"] == str(data_dir)
    assert run("report", "r") == 0
    page = Path("r/report.html").read_text()
    assert "do not name a data directory" not in page
    assert "Finished after 2 of 2 epochs." in page
    assert run("report", "r", "--watch") == 0  # which ends when training has finished
    resumed = Trainer.resume("r", epochs=3)
    resumed.fit()
    again = Trainer(
        start_model(data, "lstm", 4, 8), data, TrainConfig(**{**vars(CONFIG), "epochs": 3})
    )
    again.fit()
    for name, w in again.model.params.items():
        np.testing.assert_array_equal(resumed.model.params[name], w)


def test_features_before_pca_are_known_too(capsys):
    trainer = trained(load_coco_data("data", pca_features=False))
    assert read_settings("r")["raw_features"] is True
    assert run("evaluate", "r") == 0
    assert read_run("r").evaluate(beam=1)["cider"] == trainer.evaluate(beam=1)["cider"]


def test_what_is_not_known_is_not_invented(capsys):
    data = load_coco_data("data")
    trained(dict(data))
    assert read_settings("r")["data"] is None
    line = refused(capsys, "evaluate", "r")
    assert "--data is needed: r does not say what it was trained on" in line
    with pytest.raises(ValueError, match=r"^r: has no data directory in its settings$"):
        read_run("r").evaluate()
    assert read_run("r").evaluate(data="data")["images"] == 5


def test_settings_of_the_caller_come_first(tmp_path):
    trained(load_coco_data("data"), settings={"data": "elsewhere", "note": 3})
    settings = read_settings("r")
    assert (settings["data"], settings["note"], settings["raw_features"]) == ("elsewhere", 3, False)


def test_captions_that_were_drawn_are_read_again(tmp_path):
    data = read_training_data("data", max_train=20, seed=CONFIG.seed)
    trained(data)
    assert read_settings("r")["max_train"] == 20
    again = read_run("r").read_data()
    np.testing.assert_array_equal(again["train_captions"], data["train_captions"])
    Trainer.resume("r", epochs=3).fit()


def test_captions_that_the_course_draws_are_read_again(tmp_path, capsys):
    """`load_coco_data` draws with replacement from the global generator, whatever its state."""
    np.random.seed(7)
    data = load_coco_data("data", max_train=20)
    whole = load_coco_data("data")["train_captions"]
    np.testing.assert_array_equal(data["train_captions"], whole[data.train_rows])
    trainer = trained(data)
    assert read_settings("r")["max_train"] == 20
    np.random.seed(0)
    again = read_run("r").read_data()
    for name in ("train_captions", "train_image_idxs"):
        np.testing.assert_array_equal(again[name], data[name])
    assert run("train", "--resume", "r", "--epochs", 3, "--no-report") == 0
    resumed = Trainer.resume("r")
    assert resumed.step > trainer.step
    config = TrainConfig(**{**vars(CONFIG), "epochs": 3})
    whole = Trainer(start_model(data, "lstm", 4, 8), data, config)
    whole.fit()
    for name, w in whole.model.params.items():
        np.testing.assert_array_equal(resumed.model.params[name], w)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "train_rows.json: holds a dict; expected a JSON array"),
        ("[0, true]", "train_rows.json: holds True; expected rows of captions, from 0"),
        ("[0, -1]", "train_rows.json: holds -1; expected rows of captions, from 0"),
        (f"[{9**99}]", f"holds {str(9**99)[:60]}; expected rows of captions, from 0"),
        ("[0, 1000000]", "training captions; expected those of rows 0 to 1000000, too"),
        ("[0, 1]", "train_captions is not what the run r was trained on"),
        ("[]", "expected at least one"),
    ],
)
def test_damaged_rows_are_refused(text, problem, capsys):
    trained(load_coco_data("data", max_train=20))
    Path("r", "train_rows.json").write_text(text)
    assert problem in refused(capsys, "train", "--resume", "r", "--epochs", 3)


def test_data_that_have_moved_are_known_at_their_new_place(data_dir, tmp_path):
    trained(load_coco_data("data"))
    data_dir.rename("moved")
    Trainer.resume("r", load_coco_data("moved"), epochs=3).fit()
    assert read_settings("r")["data"] == str(tmp_path / "moved")
    assert read_run("r").evaluate()["images"] == 5


def test_a_resumed_run_compares_with_the_same_references(data_dir):
    """load_coco_data does not read the file of complete references; read_training_data does."""
    url = load_coco_data("data")["val_urls"].tolist()[0]
    complete = {Path(url).name: ["a sofa"]}
    (data_dir / references_file("val")).write_text(json.dumps(complete))
    data = load_coco_data("data")
    trainer = trained(data, TrainConfig(epochs=1, batch_size=10, learning_rate=0.02))
    for given in (None, read_training_data("data")):
        resumed = Trainer.resume("r", given)
        assert "val_references" not in resumed.data
    # Evaluation uses the complete ones, as the command does.
    assert read_run("r").evaluate()["images_with_references"] == 1
    assert trainer.evaluate()["images_with_references"] == 5
    with_references = read_training_data("data")
    trained_with = Trainer(start_model(with_references), with_references, CONFIG, run="s")
    trained_with.save()
    assert "val_references" in Trainer.resume("s").data


@pytest.mark.parametrize("options", [{}, {"beam": 1}, {"beam": 2, "max_length": 4}])
def test_a_run_measures_what_the_command_measures(options, capsys):
    trained(load_coco_data("data"))
    found = read_run("r").evaluate(**options, suppress_unk=False)
    flags = [word for name, v in options.items() for word in (f"--{name.replace('_', '-')}", v)]
    assert run("evaluate", "r", "--json", "m.json", *flags) == 0
    wanted = json.loads(Path("m.json").read_text())
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "images", "split",
                 "distinct_captions", "images_with_references", "beam"):  # fmt: skip
        assert found[name] == wanted[name], name
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    assert set(found) - set(wanted) == {"loss", "perplexity"}


def test_a_trainer_measures_its_newest_model_and_a_run_its_best(capsys):
    data = load_coco_data("data")
    trainer = Trainer(start_model(data, "lstm", 4, 8), data, CONFIG)
    before = trainer.evaluate(beam=1)
    trainer.fit()
    after = trainer.evaluate(beam=1)
    assert after["loss"] < before["loss"]
    assert after["loss"] == trainer.validate()
    assert trainer.evaluate("train")["images"] == 12
    assert trainer.evaluate(images=[0, 3])["images"] == 2
    trainer = trained(data, on_epoch=lambda t, record: t.step == 4 and t.stop())
    assert read_run("r").evaluate()["loss"] == trainer.evaluate()["loss"]
    trainer.model.params["W_vocab"][:] = 0
    load_model("r")
    assert read_run("r").evaluate()["loss"] < trainer.evaluate()["loss"]


def test_what_cannot_be_evaluated(data_dir, capsys):
    data = load_coco_data("data")
    trainer = trained(data)
    with pytest.raises(ValueError, match=r"^split is 'test'; expected one that the data have$"):
        trainer.evaluate("test")
    with pytest.raises(FileNotFoundError, match="no such data file"):
        read_run("r").evaluate("test")
    with pytest.raises(FileNotFoundError, match="no such data directory"):
        read_run("r").evaluate(data="nowhere")
    (Path("r") / "model.npz").unlink()
    with pytest.raises(FileNotFoundError):
        read_run("r").evaluate()
