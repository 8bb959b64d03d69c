"""``fastrnn train --config FILE.toml``: options from a file."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from coco_layout import write_layout
from commands import refused, run

from fastrnn.cli.main import make_parser
from fastrnn.runs import read_settings
from fastrnn.training import RECIPES

SMALL = """
hidden_dim = 8
wordvec-dim = 4
epochs = 1
batch_size = 10
report = false
"""


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_layout(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def write(text: str) -> str:
    Path("f.toml").write_text(text, encoding="utf-8")
    return "f.toml"


def train(text: str, *arguments: object) -> dict:
    assert run("train", "--config", write(text), *arguments) == 0
    return read_settings("r")


def test_a_file_holds_the_options(data_dir, capsys):
    settings = train(SMALL + 'data = "data"\nout = "r"\nlr = 2e-3\nschedule = "constant"')
    assert settings["data"] == str(data_dir)
    wanted = {"hidden_dim": 8, "wordvec_dim": 4, "epochs": 1, "batch_size": 10}
    wanted |= {"learning_rate": 2e-3, "schedule": "constant"}
    assert {name: settings[name] for name in wanted} == wanted
    assert not Path("r/report.html").exists()


def test_the_command_line_overrides_the_file_and_the_file_a_recipe(capsys):
    text = SMALL + 'recipe = "flickr8k"\nvocab_dropout = 0.1\nreward_epochs = 0\nseed = 3'
    arguments = ["--data", "data", "--out", "r", "--seed", 5, "--report", "--epochs", 2]
    settings = train(text, *arguments)
    assert (settings["recipe"], settings["consensus"]) == ("flickr8k", 1.0)
    assert settings["embed_dropout"] == RECIPES["flickr8k"].training["embed_dropout"]
    assert (settings["vocab_dropout"], settings["reward_epochs"]) == (0.1, 0)
    assert (settings["seed"], settings["epochs"]) == (5, 2)
    assert Path("r/report.html").exists()
    # Its place on the command line does not matter, and neither does where the recipe stands.
    write(SMALL + "vocab_dropout = 0.2")
    options = ["--seed", 5, "--recipe", "coco", "--config", "f.toml", "--reward-epochs", 0]
    assert run("train", "--data", "data", "--out", "s", *options) == 0
    again = read_settings("s")
    assert (again["seed"], again["vocab_dropout"], again["recipe"]) == (5, 0.2, "coco")


def test_any_option_can_be_written_as_the_command_line_has_it(capsys):
    """Values of each kind of option, under every name that the option has."""
    parser = make_parser()
    train = parser._commands.choices["train"]
    values = {"data": "d", "out": "o", "resume": "r", "recipe": "coco", "cell": "rnn",
              "schedule": "step", "monitor": "loss", "bias_start": "zero",
              "precision": "bfloat16", "features_dtype": "float16", "max_train": 3,
              "threads": 1, "batch_size": 2, "epochs": 2, "hidden_dim": 2, "wordvec_dim": 2,
              "warmup_steps": 1, "reward_epochs": 1, "reward_captions": 2, "patience": 1,
              "val_captions": 1, "val_images": 1, "keep_last": 1, "save_every": 1,
              "record_every": 1, "seed": 1}  # fmt: skip
    seen = 0
    for action in train._actions:
        if action.dest in ("help", "config", "traceback"):
            continue
        switch = action.nargs == 0
        value = True if switch else values.get(action.dest, 0.5)
        text = "true" if switch else f'"{value}"' if isinstance(value, str) else str(value)
        for option in action.option_strings:
            for key in (option[2:], option[2:].replace("-", "_")):
                arguments = parser.parse_args(["train", "--config", write(f"{key} = {text}")])
                arguments.config.apply(arguments)
                given = [option] if switch else [option, str(value)]
                typed = parser.parse_args(["train", *given])
                arguments.config = None
                assert vars(arguments) == vars(typed)
                seen += 1
    assert seen > 80


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("epoch = 3", "epoch is no option for a file; did you mean epochs?"),
        ("batch-sise = 3", "batch-sise is no option for a file; did you mean batch-size?"),
        ('"a b\\nc" = 3', r"'a b\nc' is no option for a file"),
        ("config = 'g.toml'", "config is no option for a file"),
        ("help = true", "help is no option for a file"),
        ("epochs = '3'", "epochs is '3'; expected an integer"),
        ("epochs = 3.0", "epochs is 3.0; expected an integer"),
        ("epochs = true", "epochs is True; expected an integer"),
        ("epochs = 0", "epochs is 0; expected at least 1"),
        ("epochs = 99999999999999999999", "epochs is 99999999999999999999; expected an integer b"),
        ("epochs = [1, 2]", "epochs is [1, 2]; expected an integer"),
        ("epochs = 2026-01-01", f"epochs is {datetime.date(2026, 1, 1)!r}; expected an integer"),
        ("lr = nan", "lr is nan; expected a positive number"),
        ("lr = 0", "lr is 0.0; expected a positive number"),
        ("learning_rate = -1", "learning_rate is -1.0; expected a positive number"),
        ("seed = 4294967296", "seed is 4294967296; expected a number from 0 to 4294967295"),
        ("threads = 0", "threads is 0; expected an integer of at least 1"),
        ("threads = 1.5", "threads is 1.5; expected an integer of at least 1"),
        ("threads = 5000", "threads is 5000; expected"),
        ("max-train = 'all'", "max-train is 'all'; expected an integer of at least 1"),
        ("schedule = 'linear'", "schedule is 'linear'; expected one of ('constant', "),
        ("schedule = 1", "schedule is 1; expected one of ('constant', "),
        ("recipe = 'imagenet'", "recipe is 'imagenet'; expected flickr8k or coco"),
        ("force = 1", "force is 1; expected true or false"),
        ("bucket_by_length = 'yes'", "bucket_by_length is 'yes'; expected True or False"),
        ("data = 3", "data is 3; expected a string"),
        ("out = ''", "out is ''; expected a string"),
        ('out = "a\\u0000b"', r"out is 'a\x00b'; expected text without null characters"),
        ("[training]\nepochs = 3", "training is a table; expected options at the top level"),
        ("lr = 0.1\nlearning_rate = 0.1", "learning_rate sets the same option as lr"),
        ("report = true\nno-report = true", "no-report sets the same option as report"),
        ("lr_decay = 0.5\nschedule = 'cosine'", "lr_decay is 0.5; expected 1 with the schedule"),
        ("epochs = ", "is not TOML ("),
        ("epochs = 1\nepochs = 2", "is not TOML ("),
        ("a = " + 5000 * "[", "is not TOML ("),
        ("a = " + 5000 * "9", "is not TOML ("),
        ("\0", "is not TOML ("),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named_with_the_file(text, problem, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    line = refused(capsys, "train", "--config", write(text), "--data", "data")
    assert line.startswith(f"fastrnn: error: f.toml: {problem}")
    assert sorted(tmp_path.iterdir()) == [*before, tmp_path / "f.toml"]


def test_a_file_that_cannot_be_read(tmp_path, capsys):
    assert "error: no such file of options: g.toml" in refused(
        capsys, "train", "--config", "g.toml"
    )
    assert "error: not a regular file: data" in refused(capsys, "train", "--config", "data")
    Path("f.toml").write_bytes(b"epochs = 1 # \xff")
    assert "f.toml: not a text file in UTF-8" in refused(capsys, "train", "--config", "f.toml")
    twice = ["--config", write("seed = 1"), "--config", "f.toml"]
    assert "--config is given twice" in refused(capsys, "train", *twice)
    # Editors may write a byte order mark.
    Path("f.toml").write_bytes(b"\xef\xbb\xbf" + SMALL.encode() + b"data = 'data'\nout = 'r'\n")
    assert run("train", "--config", "f.toml") == 0


def test_an_option_that_overrides_the_file_is_named_itself(capsys):
    arguments = [
        "train",
        "--config",
        write("schedule = 'cosine'\nlr_decay = 0.5"),
        "--data",
        "data",
    ]
    line = refused(capsys, *arguments, "--lr-decay", 0.7)
    assert line.startswith("fastrnn: error: --lr-decay is 0.7; expected 1")


def test_a_file_with_resume(capsys):
    train(SMALL + 'data = "data"\nout = "r"\nschedule = "constant"')
    text = "epochs = 2\nreport = false"
    assert run("train", "--resume", "r", "--config", write(text)) == 0
    assert read_settings("r")["epochs"] == 2
    line = refused(capsys, "train", "--resume", "r", "--config", write("lr = 0.5"))
    assert line == ("fastrnn: error: f.toml: lr cannot be given with --resume; the run has 0.001\n")
    text = "restart-schedule = true"
    line = refused(capsys, "train", "--resume", "r", "--config", write(text))
    assert line.startswith("fastrnn: error: f.toml: restart-schedule needs more epochs")
