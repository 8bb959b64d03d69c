"""``fastrnn train``: whole runs read back, resumed runs, and what is refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from coco_layout import write_layout
from commands import refused, run
from PIL import Image

import fastrnn
from fastrnn import evaluation
from fastrnn.checkpoint import checkpoint_path, checkpoint_steps, load_model
from fastrnn.cli import results, run_directory, train
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.data.scenes import dataset
from fastrnn.data.scenes.dataset import read_scenes
from fastrnn.data.scenes.language import caption_is_true
from fastrnn.evaluation import caption_images, references_of
from fastrnn.metrics import CaptionScorer, bleu_1
from fastrnn.report import page as report_page
from fastrnn.runs import epoch_records, read_history, read_settings
from fastrnn.training import RECIPES, TrainConfig, Trainer, read_run
from fastrnn.training.recipes import SCENES

pytestmark = pytest.mark.usefixtures("elsewhere")
RUN_FILES = {
    "settings.json", "model.npz", "history.jsonl", "metrics.json", "loss.png", "report.html",
}  # fmt: skip
SMALL = ["--hidden-dim", "8", "--wordvec-dim", "4", "--epochs", "2", "--batch-size", "10"]


def checked(out: Path, elsewhere: bool = False) -> dict:
    """Check that a run is complete and in keeping with itself; return its metrics.

    A run from elsewhere may lack the metrics that need a package which is installed here.
    """
    assert {path.name for path in out.iterdir()} - {"data"} == RUN_FILES | {"checkpoints"}
    settings = read_settings(out)
    epochs = epoch_records(read_history(out))
    assert [record["epoch"] for record in epochs] == [*range(1, settings["epochs"] + 1)]
    with Image.open(out / "loss.png") as plot:
        assert plot.format == "PNG"
    assert (out / "report.html").read_text().endswith("</html>\n")

    model = load_model(out)
    assert model.cell_type == settings["cell"]
    data = read_run(out).read_data()
    captions = caption_images(model, data["val_features"], data["train_captions"].shape[1] - 1)
    metrics = json.loads((out / "metrics.json").read_text())
    scores = CaptionScorer(references_of(data)).evaluate(captions)
    if elsewhere:
        scores = {name: score for name, score in scores.items() if metrics[name] is not None}
        assert "bleu_1" in scores
    assert {name: metrics[name] for name in scores} == pytest.approx(scores)
    assert metrics["distinct_captions"] == len(set(captions))
    assert metrics["images"] == len(captions)
    scenes = read_scenes(settings["data"])
    assert (scenes is None) == ("true_share" not in metrics)
    if scenes is not None:
        marks = [caption_is_true(c, s) for c, s in zip(captions, scenes, strict=True)]
        assert metrics["true_share"] == pytest.approx(np.mean(marks))
    return metrics


# -- runs


def test_default_run(tmp_path: Path, capsys):
    """As the README says: correct captions of unseen scenes with one command.

    FASTRNN_DEFAULT_RUN names a directory in which this command has run already, with its output in
    the file "printed"; the command takes a minute.
    """
    place = Path(os.environ.get("FASTRNN_DEFAULT_RUN", tmp_path))
    if place == tmp_path:
        assert run("train") == 0
        printed = capsys.readouterr().out
    else:
        printed = (place / "printed").read_text()
    (out,) = (place / "runs").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-lstm", out.name)
    metrics = checked(out, elsewhere=place != tmp_path)
    assert metrics["bleu_1"] >= 0.9
    assert metrics["true_share"] >= 0.9
    assert metrics["images"] >= 500
    assert metrics["distinct_captions"] >= metrics["images"] / 3
    assert f"{100 * metrics['bleu_1']:.1f}" in printed
    assert f"{metrics['true_share']:.1%}" in printed
    assert "data:image/png;base64," in (out / "report.html").read_text()


def test_small_world(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(run_directory, "SCENES", {**SCENES, "num_train": 60, "num_val": 20})
    assert run("train", "--cell", "rnn", "--out", "a", "--seed", 4, *SMALL) == 0
    metrics = checked(tmp_path / "a")
    said = re.findall(r"^  says: (.*?)(  \(false\))?$", capsys.readouterr().out, re.M)
    scenes = read_scenes("a/data")[:3]
    assert [not false for _, false in said] == [
        caption_is_true(caption, scene) for (caption, _), scene in zip(said, scenes, strict=True)
    ]
    # What was drawn is a data set like any other.
    assert run("train", "--data", "a/data", "--out", "b", "--cell", "rnn", "--seed", 4, *SMALL) == 0
    assert checked(tmp_path / "b")["images"] == metrics["images"] == 20
    # --force replaces the run, and the same seed gives the same model.
    before = {name: w.copy() for name, w in load_model("a").params.items()}
    assert run("train", "--cell", "rnn", "--out", "a", "--seed", 4, "--force", *SMALL) == 0
    for name, w in load_model("a").params.items():
        np.testing.assert_array_equal(w, before[name])


def test_flickr8k(tmp_path: Path, shared_data: Path, capsys):
    out = tmp_path / "run"
    arguments = ["--hidden-dim", 128, "--wordvec-dim", 64, "--epochs", 2, "--lr", 1e-2]
    arguments += ["--max-train", 12_000]
    assert run("train", "--data", shared_data / "flickr8k", "--out", out, *arguments) == 0
    metrics = checked(out)
    # The frequencies of the words alone have a perplexity of 166.
    assert metrics["val_perplexity"] < 30
    assert metrics["distinct_captions"] > 200
    # Captions fit their own pictures, not just any: "a man on a bike in the air" for all has a
    # BLEU of 0.55, so that BLEU by itself says little.
    model, data = load_model(out), read_captioning_directory(shared_data / "flickr8k")
    said, references = caption_images(model, data["val_features"], 16), references_of(data)
    others = references[500:] + references[:500]
    assert bleu_1(said, references) > bleu_1(said, others) + 0.1
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 48


def test_any_directory_in_the_layout(data_dir: Path, tmp_path: Path, capsys):
    before = sorted((path, path.stat().st_mtime_ns) for path in data_dir.rglob("*"))
    for number, options in enumerate(
        (["--cell", "rnn"], ["--raw-features"], ["--lr-decay", "0.5", "--clip-norm", "0"])
    ):
        out = tmp_path / f"run{number}"
        assert run("train", "--data", data_dir, "--out", out, *SMALL, *options) == 0
        checked(out)
    assert sorted((path, path.stat().st_mtime_ns) for path in data_dir.rglob("*")) == before
    widths = [load_model(tmp_path / f"run{i}").params["W_proj"].shape[0] for i in range(2)]
    assert widths == [7, 10]


def test_max_train(data_dir: Path, tmp_path: Path, capsys):
    assert run("train", "--data", data_dir, "--out", "r", "--max-train", 20, *SMALL) == 0
    assert "20 captions" in capsys.readouterr().out
    history = (tmp_path / "r" / "history.jsonl").read_text().splitlines()
    assert json.loads(history[-1])["step"] == 4  # 2 epochs of 20 / 10 steps


def test_default_directories_are_never_shared(data_dir: Path, tmp_path: Path, capsys):
    for _ in range(2):
        assert run("train", "--data", data_dir, "--cell", "rnn", *SMALL) == 0
    first, second = sorted((tmp_path / "runs").iterdir())
    assert second.name == f"{first.name}-2"
    checked(first)
    checked(second)


def test_threads_are_set_and_given_back(data_dir: Path, capsys):
    threads = fastrnn.get_num_threads()
    wanted = threads + 1
    assert run("train", "--data", data_dir, "--out", "r", "--threads", wanted, *SMALL) == 0
    assert f"threads: {wanted}" in capsys.readouterr().out
    assert read_settings("r")["threads"] == wanted
    assert fastrnn.get_num_threads() == threads


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal(data_dir: Path, tmp_path: Path, number, status, capsys):
    arguments = ["train", "--data", data_dir, "--out", "r", "--epochs", "1000000", *SMALL[:4]]
    command = [sys.executable, "-u", "-m", "fastrnn", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status
    name = signal.Signals(number).name
    said = re.fullmatch(
        rf"fastrnn: stopped by {name} after step (\d+); resume with: "
        r"(fastrnn train --resume r)\n",
        err,
    )
    assert said
    assert load_model(tmp_path / "r").cell_type == "lstm"
    assert checkpoint_steps("r")[-1] == int(said[1])
    assert not list((tmp_path / "r").rglob(".*"))
    # What it says is what goes on. All captions fit into one step here: one more, and it is done.
    done = int(said[1])
    assert run(*said[2].split()[1:], "--epochs", done + 1) == 0  # fewer than planned
    assert f"after {done} of {done + 1} epochs" in capsys.readouterr().out
    checked(tmp_path / "r")


def test_interrupted_when_only_the_results_are_missing(data_dir, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    options = ["train", "--data", data_dir, "--out", "r", "--no-report", *SMALL]
    with monkeypatch.context() as patch:
        patch.setattr("fastrnn.cli.train.write_results", interrupt)
        assert run(*options) == 130
    said = capsys.readouterr().err
    assert "interrupted when training was done" in said
    assert said.endswith("with: fastrnn train --resume r\n")
    assert run("train", "--resume", "r", "--no-report") == 0
    assert json.loads((tmp_path / "r" / "metrics.json").read_text())["val_loss"] > 0


# -- going on, recipes, options


def settings_of(out: str) -> dict:
    return read_settings(out)


def test_every_field_is_an_option(data_dir: Path, capsys):
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    given = {
        "epochs": 1, "batch_size": 11, "learning_rate": 0.002, "schedule": "step",
        "lr_decay": 0.7, "decay_every": 0.5, "warmup_steps": 2, "clip_norm": 4.0,
        "clip_value": 3.0, "bucket_by_length": True, "seed": 9, "feature_noise": 0.1,
        "embed_dropout": 0.1, "vocab_dropout": 0.2, "label_smoothing": 0.05,
        "scheduled_sampling": 0.3, "weight_decay": 0.01, "weight_average": 0.5,
        "consensus": 0.8, "reward_epochs": 1, "reward_captions": 3, "reward_rate": 0.002,
        "val_captions": 7, "val_images": 3, "monitor": "bleu_4", "patience": 4, "save_every": 2,
        "keep_last": 3, "record_every": 2, "restart_epoch": 0.5, "precision": "bfloat16",
    }  # fmt: skip
    assert given.keys() == fields
    arguments = ["--data", data_dir, "--out", "r", "--hidden-dim", 8, "--wordvec-dim", 4]
    start = {"bias_start": "zero", "forget_bias": 0.5, "embed_scale": 0.2}
    for name, value in {**given, **start}.items():
        arguments.append("--lr" if name == "learning_rate" else f"--{name.replace('_', '-')}")
        if value is not True:
            arguments.append(value)
    assert run("train", *arguments, "--no-report") == 0
    settings = settings_of("r")
    assert {name: settings[name] for name in given} == given
    assert {name: settings[name] for name in start} == start
    assert not Path("r/loss.png").exists()
    assert not Path("r/samples.html").exists()
    assert "BLEU-4" in capsys.readouterr().out


def test_recipe(data_dir: Path, capsys, monkeypatch):
    small = [*SMALL[:4], "--epochs", 1, "--no-report", "--data", data_dir]
    assert run("train", *small, "--out", "r", "--recipe", "flickr8k", "--vocab-dropout", 0.1) == 0
    settings, recipe = settings_of("r"), RECIPES["flickr8k"].settings
    assert settings["recipe"] == "flickr8k"
    changed = {"hidden_dim", "wordvec_dim", "epochs", "vocab_dropout"}
    for name in recipe.keys() - changed:
        assert settings[name] == recipe[name]
    assert (settings["vocab_dropout"], settings["hidden_dim"]) == (0.1, 8)
    # What a recipe does not name is off, whatever holds without a recipe.
    training = {**RECIPES["coco"].training, "schedule": "exponential", "lr_decay": 0.75}
    monkeypatch.setitem(RECIPES, "coco", dataclasses.replace(RECIPES["coco"], training=training))
    assert "feature_noise" not in training and train.DATA_DEFAULTS.training["feature_noise"] > 0
    assert run("train", *small, "--out", "c", "--recipe", "coco") == 0
    assert settings_of("c")["feature_noise"] == 0
    assert settings_of("c")["lr_decay"] == 0.75
    # Another schedule than the recipe's does without its factor.
    arguments = ["--recipe", "coco", "--schedule", "cosine"]
    assert run("train", *small, "--out", "s", *arguments) == 0
    assert (settings_of("s")["schedule"], settings_of("s")["lr_decay"]) == ("cosine", 1.0)


def test_a_factor_alone_means_steps(data_dir: Path, capsys):
    arguments = ["--data", data_dir, *SMALL, "--no-report"]
    assert run("train", *arguments, "--out", "r", "--lr-decay", 0.5) == 0
    assert (settings_of("r")["schedule"], settings_of("r")["lr_decay"]) == ("step", 0.5)
    both = ["--schedule", "cosine", "--lr-decay", 0.5]
    assert "--lr-decay is 0.5" in refused(capsys, "train", *arguments, "--out", "s", *both)


def test_resume(data_dir: Path, tmp_path: Path, capsys):
    arguments = ["--data", data_dir, *SMALL[:4], "--batch-size", 10, "--schedule", "constant"]
    assert run("train", *arguments, "--epochs", 4, "--out", "whole") == 0
    assert run("train", *arguments, "--epochs", 2, "--out", "r") == 0
    capsys.readouterr()
    assert run("train", "--resume", "r", "--epochs", 4) == 0
    said = capsys.readouterr()
    assert "resumed  r after 2 of 4 epochs" in said.out
    assert said.err == ""
    assert len([line for line in said.out.splitlines() if line.startswith("epoch")]) == 2
    checked(tmp_path / "r")
    for name, w in load_model("whole").params.items():
        np.testing.assert_array_equal(load_model("r").params[name], w)
    # What is done is reported again; the data may have moved, and are known again.
    data_dir.rename(tmp_path / "moved")
    assert str(data_dir) in refused(capsys, "train", "--resume", "r")
    assert run("train", "--resume", "r", "--data", "moved", "--threads", 1) == 0
    assert settings_of("r")["data"] == str(tmp_path / "moved")
    assert settings_of("r")["threads"] == 1
    checked(tmp_path / "r")


def test_nothing_of_the_end_or_of_another_run_is_there_while_it_trains(
    data_dir: Path, tmp_path: Path, monkeypatch, capsys
):
    assert run("train", "--data", data_dir, "--out", "r", *SMALL) == 0
    there: list[set[str]] = []

    def fit(trainer: Trainer, verbose: bool) -> None:
        there.append({path.name for path in files(trainer.run)})
        raise OSError("it ends here")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", fit)
        assert run("train", "--resume", "r", "--epochs", 4, "--restart-schedule") == 2
        assert "metrics.json" not in there[-1]
        assert {"model.npz", "history.jsonl", "step-00000008.npz"} <= there[-1]
        assert run("train", "--data", data_dir, "--out", "r", "--force", *SMALL) == 2
        assert there[-1] == {"settings.json", ".lock", ".lock-holder"}
    # The directory is known as a run all the time, so that --force may replace it again.
    before = Path("r/settings.json").read_bytes()

    def write_settings(*_: object) -> None:
        raise OSError("it ends here")

    with monkeypatch.context() as patch:
        patch.setattr(train.runs, "write_settings", write_settings)
        assert run("train", "--data", data_dir, "--out", "r", "--force", *SMALL) == 2
    assert Path("r/settings.json").read_bytes() == before


def test_resume_repairs_the_best_model(data_dir: Path, capsys):
    assert run("train", "--data", data_dir, "--out", "r", *SMALL, "--no-report") == 0
    before = Path("r/model.npz").read_bytes()
    Path("r/model.npz").write_bytes(before[:500])
    assert run("train", "--resume", "r", "--no-report") == 0
    for name, w in load_model("r").params.items():
        assert np.isfinite(w).all(), name
    assert Path("r/model.npz").stat().st_size == len(before)


def test_an_interrupt_while_scenes_are_drawn_says_how_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr(run_directory, "SCENES", {**SCENES, "num_train": 60, "num_val": 20})
    real = dataset.write_scenes

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for command in (["--out", "a run", *SMALL], ["--resume", "a run"]):
        monkeypatch.setattr(dataset, "write_scenes", interrupted)
        assert run("train", *command) == 130
        assert capsys.readouterr().err == (
            "fastrnn: interrupted before training; start it with: fastrnn train --resume 'a run'\n"
        )
    monkeypatch.setattr(dataset, "write_scenes", real)
    assert run("train", "--resume", "a run", "--no-report") == 0


def test_resume_while_scenes_were_drawn(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(run_directory, "SCENES", {**SCENES, "num_train": 60, "num_val": 20})
    assert run("train", "--out", "a", *SMALL) == 0
    assert run("train", "--out", "b", *SMALL) == 0
    # As if it had been killed at the first pictures.
    for path in files(tmp_path / "b"):
        if path.name not in ("settings.json", "coco2014_vocab.json"):
            path.unlink()
    assert run("train", "--resume", "b") == 0
    checked(tmp_path / "b")
    for name, w in load_model("a").params.items():
        np.testing.assert_array_equal(load_model("b").params[name], w)
    # A run with its own scenes may be moved as a whole.
    (tmp_path / "b").rename(tmp_path / "c")
    assert run("train", "--resume", "c", "--epochs", 3, "--restart-schedule") == 0
    checked(tmp_path / "c")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--lr", 0.1], "--lr cannot be given with --resume; the run has 0.001"),
        (["--seed", 0], "--seed cannot be given with --resume; the run has 0"),
        (["--bucket-by-length"], "--bucket-by-length cannot be given with --resume"),
        (["--out", "x"], "--out cannot be given with --resume"),
        (["--force"], "--force cannot be given with --resume"),
        (["--recipe", "coco"], "--recipe cannot be given with --resume"),
        (["--raw-features"], "--raw-features cannot be given with --resume; the run has no"),
        (["--hidden-dim", 9], "--hidden-dim cannot be given with --resume; the run has 8"),
        (["--epochs", 1], "--epochs is 1; the run has done 2"),
        (["--epochs", 3], "--epochs is 3, was 2: the learning rate, which falls to 0 along a cos"),
        (["--restart-schedule"], "--restart-schedule needs more epochs: the run has done 2 of 2"),
        (["--restart-epoch", 1], "--restart-epoch cannot be given with --resume; the run has 0"),
    ],
)
def test_what_cannot_be_resumed(data_dir: Path, capsys, arguments, wanted):
    assert run("train", "--data", data_dir, "--out", "r", *SMALL, "--no-report") == 0
    before = {path: path.read_bytes() for path in files(Path("r"))}
    assert wanted in refused(capsys, "train", "--resume", "r", *arguments)
    assert {path: path.read_bytes() for path in files(Path("r"))} == before


def test_a_finished_cosine_starts_again_if_it_is_told_to(data_dir: Path, capsys):
    assert run("train", "--data", data_dir, "--out", "r", *SMALL, "--no-report") == 0
    more = ["--epochs", 4, "--restart-schedule", "--no-report"]
    assert "--restart-schedule needs --resume" in refused(capsys, "train", *more)
    assert run("train", "--resume", "r", *more) == 0
    assert settings_of("r")["restart_epoch"] == 2
    rates = [record["learning_rate"] for record in epoch_records(read_history("r"))]
    assert rates == pytest.approx(rates[:2] * 2)


def test_resume_of_what_is_no_run(data_dir: Path, tmp_path: Path, capsys):
    assert "nowhere" in refused(capsys, "train", "--resume", "nowhere")
    assert "is not a run directory" in refused(capsys, "train", "--resume", data_dir)
    (tmp_path / "file").write_text("")
    assert "file" in refused(capsys, "train", "--resume", "file")


def test_resume_with_other_data(data_dir: Path, tmp_path: Path, capsys):
    assert run("train", "--data", data_dir, "--out", "r", *SMALL, "--no-report") == 0
    write_layout(tmp_path / "other", seed=5)
    line = refused(capsys, "train", "--resume", "r", "--data", tmp_path / "other")
    assert "train_captions is not what the run r was trained on" in line
    vocabulary = data_dir / "coco2014_vocab.json"
    vocabulary.write_text(vocabulary.read_text().replace("sofa", "bed"))
    assert "word_to_idx has 'sofa' as None" in refused(capsys, "train", "--resume", "r")


def test_damaged_checkpoint(data_dir: Path, capsys):
    assert run("train", "--data", data_dir, "--out", "r", *SMALL, "--no-report") == 0
    model = load_model("r")
    steps = checkpoint_steps("r")
    path = checkpoint_path("r", steps[-1])
    path.write_bytes(path.read_bytes()[:-100])
    capsys.readouterr()
    assert run("train", "--resume", "r", "--no-report") == 0
    err = capsys.readouterr().err
    assert err.startswith(f"fastrnn: warning: {path}: damaged")
    assert err.endswith(f"resuming from step {steps[-2]}\n")
    assert err.count("\n") == 1
    for name, w in load_model("r").params.items():
        np.testing.assert_array_equal(model.params[name], w)
    for step in checkpoint_steps("r"):
        checkpoint_path("r", step).write_bytes(b"")
    assert "no undamaged checkpoint" in refused(capsys, "train", "--resume", "r")


def test_full_disk(data_dir: Path, tmp_path: Path):
    """The system refuses files beyond 12 kB: the first checkpoint is smaller, the next is not."""
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (12288, 12288)); "
        "from fastrnn.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["train", "--data", data_dir, "--out", "r", *SMALL]
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "fastrnn: error: File too large: r/checkpoints/step-00000004.npz; once this is fixed, "
        "resume with: fastrnn train --resume r\n"
    )
    assert checkpoint_steps("r") == [0]
    assert not list(Path("r").rglob(".*"))
    assert run("train", "--resume", "r") == 0
    checked(tmp_path / "r")


def test_read_only_directory(data_dir: Path, monkeypatch, capsys):
    arguments = ["train", "--data", data_dir, "--out", "r", *SMALL, "--no-report"]
    create = fastrnn.files.create_aside

    def refuse(path: Path) -> tuple[int, Path]:
        if "step-00000008" in path.name:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"{path}xyz")
        return create(path)

    monkeypatch.setattr(fastrnn.files, "create_aside", refuse)
    line = refused(capsys, *arguments)
    assert "Read-only file system: r/checkpoints/step-00000008.npz; " in line
    assert checkpoint_steps("r") == [0, 4]
    load_model(checkpoint_path("r", 4))


def test_directory_of_a_run_killed_at_once_is_free(data_dir: Path, tmp_path: Path, capsys):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".settings.json.abc.unfinished").write_text("{")
    assert run("train", "--data", data_dir, "--out", "r", *SMALL) == 0
    checked(tmp_path / "r")
    assert not list((tmp_path / "r").glob(".*"))


def test_too_many_threads_and_too_large_a_seed(data_dir, capsys):
    assert "--threads" in refused(capsys, "train", "--data", data_dir, "--threads", 5000)
    assert "--seed" in refused(capsys, "train", "--data", data_dir, "--seed", 2**32)


@pytest.mark.parametrize(
    "name",
    [
        "coco2014_captions.h5",
        "coco2014_vocab.json",
        "train2014_vgg16_fc7_pca.h5",
        "val2014_vgg16_fc7_pca.h5",
        "val2014_urls.txt",
    ],
)
def test_missing_file(data_dir, tmp_path, capsys, name):
    (data_dir / name).unlink()
    line = refused(capsys, "train", "--data", data_dir, "--out", "r")
    assert str(data_dir / name) in line
    assert not (tmp_path / "r").exists()


def change(path: Path, name: str, values: object) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        if values is not None:
            file[name] = values


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("train_captions", None),
        ("train_captions", np.zeros(7, np.int32)),
        ("train_captions", np.full((36, 9), 999, np.int32)),
        ("train_image_idxs", np.full(36, 12, np.int32)),
        ("train_image_idxs", np.full(36, -1, np.int32)),
        ("val_captions", np.zeros((15, 9), np.float32)),
    ],
)
def test_bad_dataset(data_dir, capsys, name, values):
    path = data_dir / "coco2014_captions.h5"
    change(path, name, values)
    line = refused(capsys, "train", "--data", data_dir, "--out", "r")
    assert str(path) in line
    assert name in line


def test_no_training_captions(data_dir, capsys):
    path = data_dir / "coco2014_captions.h5"
    change(path, "train_captions", np.zeros((0, 9), np.int32))
    change(path, "train_image_idxs", np.zeros(0, np.int32))
    line = refused(capsys, "train", "--data", data_dir)
    assert "train_captions" in line
    assert str(path) in line


def test_vocabulary_without_end(data_dir, capsys):
    path = data_dir / "coco2014_vocab.json"
    path.write_text(path.read_text().replace("<END>", "stop"))
    assert "<END>" in refused(capsys, "train", "--data", data_dir)


def test_truncated_h5(data_dir, capsys):
    path = data_dir / "train2014_vgg16_fc7_pca.h5"
    path.write_bytes(path.read_bytes()[:1000])
    assert str(path) in refused(capsys, "train", "--data", data_dir)


def test_features_that_are_not_finite(data_dir, capsys):
    change(data_dir / "train2014_vgg16_fc7_pca.h5", "features", np.full((12, 7), np.inf, "f"))
    assert "finite" in refused(capsys, "train", "--data", data_dir, "--out", "r")


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_existing_directory(data_dir, tmp_path, capsys):
    arguments = ["train", "--data", data_dir, "--out", "r", *SMALL]
    assert run(*arguments) == 0
    stays = tmp_path / "r" / "notes.txt"
    stays.write_text("mine")
    before = {path: path.read_bytes() for path in files(tmp_path / "r")}
    assert "--force" in refused(capsys, *arguments)
    # A bad data set is refused before the old run is touched.
    assert "nowhere" in refused(capsys, "train", "--data", "nowhere", "--out", "r", "--force")
    assert {path: path.read_bytes() for path in files(tmp_path / "r")} == before
    assert run(*arguments, "--epochs", 1, "--force") == 0
    assert stays.read_text() == "mine"
    stays.unlink()
    checked(tmp_path / "r")


def test_force_replaces_nothing_but_runs(data_dir, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(data_dir, other)
    (other / "settings.json").write_text('{"editor": "vi"}')
    before = {path: path.read_bytes() for path in other.iterdir()}
    line = refused(capsys, "train", "--data", data_dir, "--out", other, "--force", *SMALL)
    assert "only runs" in line
    assert {path: path.read_bytes() for path in other.iterdir()} == before


def test_out_is_a_file(data_dir, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/below"):
        line = refused(capsys, "train", "--data", data_dir, "--out", out, "--force")
        assert "file" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_empty_directory_is_free(data_dir, tmp_path, capsys):
    (tmp_path / "r").mkdir()
    assert run("train", "--data", data_dir, "--out", "r", *SMALL) == 0
    checked(tmp_path / "r")


def test_the_end_captions_once_and_reads_no_model(data_dir, tmp_path, monkeypatch, capsys):
    """Without a metric the newest model is the best, and it is in memory."""
    widths: list[int] = []
    search = evaluation.beam_search

    def counting(model, features, beam, *arguments, **options):
        widths.append(beam)
        return search(model, features, beam, *arguments, **options)

    def refuse(*_: object) -> None:
        raise AssertionError("the model is in memory")

    monkeypatch.setattr(evaluation, "beam_search", counting)
    monkeypatch.setattr(results, "load_model", refuse)
    monkeypatch.setattr(report_page, "load_model", refuse)
    options = ["--val-captions", 0, "--val-images", 0]
    assert run("train", "--data", data_dir, "--out", "r", *SMALL, *options) == 0
    assert widths == [1, 3]  # for metrics and page alike, and the page's beam search
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    checked(tmp_path / "r")
