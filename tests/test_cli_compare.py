"""``fastrnn compare``: a table and a chart of runs, finished or not, on the same data or not."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from coco_layout import write_layout
from commands import refused
from PIL import Image
from run_history import HISTORY

from fastrnn import cli
from fastrnn.report import compare_runs


def write_run(run: Path, data: Path, history=HISTORY, metrics=None, **settings) -> Path:
    run.mkdir(parents=True)
    about = {"fastrnn": "0", "data": str(data), "raw_features": False, "cell": "lstm",
             "hidden_dim": 8, "wordvec_dim": 6, "epochs": 2}  # fmt: skip
    (run / "settings.json").write_text(json.dumps({**about, **settings}))
    (run / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
    if metrics is not None:
        (run / "metrics.json").write_text(json.dumps(metrics))
    return run


METRICS = {"bleu_4": 0.2, "cider": 0.4, "val_loss": 2.0, "val_perplexity": 7.389, "epoch": 1,
           "captions_per_second": 1050.0, "seconds": 3725.0}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_layout(tmp_path / "data")
    write_run(tmp_path / "runs" / "done", tmp_path / "data", metrics=METRICS)
    write_run(tmp_path / "runs" / "training", tmp_path / "data", cell="rnn", epochs=4)
    write_run(tmp_path / "runs" / "new", tmp_path / "data", history=[])
    return tmp_path


def rows(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}


def test_table(place, capsys):
    assert cli.main(["compare", "runs/done", "runs/training", "runs/new"]) == 0
    said = capsys.readouterr().out
    table = rows(said)
    assert table["done"] == ["LSTM", "8", "2/2", "2.000*", "7.39*", "20.0*", "40.0*", "1:02:05",
                             "1,050"]  # fmt: skip
    # Of the epoch with the best CIDEr: the second one.
    assert table["training"][:6] == ["RNN", "8", "2/4", "so", "far", "2.400"]
    assert table["training"][7:9] == ["15.0", "37.5"]
    assert table["new"] == ["LSTM", "8", "0/2", "so", "far", "-", "-", "-", "-", "-", "-"]
    assert "note" not in said


def test_a_finished_run_without_measured_metrics_has_those_of_its_epoch(place, capsys):
    """`Trainer.fit` in code writes only the epoch of the model and the speed."""
    metrics = {"epoch": 1, "captions_per_second": 1050.0}
    write_run(place / "runs" / "coded", place / "data", metrics=metrics)
    [found] = compare_runs(["runs/coded"])
    first = HISTORY[[record.get("val_loss") is not None for record in HISTORY].index(True)]
    assert found.finished and found.epoch == first["epoch"] == 1
    assert found.val_loss == first["val_loss"]
    assert (found.bleu_4, found.cider) == (first["val_bleu_4"], first["val_cider"])
    assert found.captions_per_second == 1050.0


def test_runs_of_other_data_are_flagged(place, capsys):
    """A copy of the data is the same data; other words or captions are not."""
    shutil.copytree(place / "data", place / "copy")
    write_run(place / "runs" / "copied", place / "copy", metrics=METRICS)
    write_layout(place / "other", seed=8)
    write_run(place / "runs" / "other", place / "other", metrics=METRICS)
    write_run(place / "runs" / "gone", place / "nowhere", metrics=METRICS)
    assert cli.main(["compare", "runs/done", "runs/copied"]) == 0
    assert "note" not in capsys.readouterr().out
    for name, data in (("other", "other"), ("gone", "nowhere")):
        assert cli.main(["compare", "runs/done", f"runs/{name}"]) == 0
        said = capsys.readouterr().out
        assert "note: the runs have 2 different data sets" in said
        assert str(place / data) in said
        assert "*" not in said, "nothing is the best of what cannot be compared"


def test_parts_of_one_data_set_are_told_apart(place, capsys):
    write_run(place / "runs" / "part", place / "data", metrics=METRICS, max_train=30)
    assert cli.main(["compare", "runs/done", "runs/part"]) == 0
    data = place / "data"
    assert f"2 different data sets ({data}, {data} (30 captions))" in capsys.readouterr().out


def test_a_training_that_diverged_has_a_short_perplexity(place, capsys):
    metrics = {**METRICS, "val_loss": 1e9, "val_perplexity": math.exp(700)}
    write_run(place / "runs" / "diverged", place / "data", metrics=metrics)
    assert cli.main(["compare", "runs/diverged"]) == 0
    assert rows(capsys.readouterr().out)["diverged"][4] == "1.01e+304"


def test_files(place, capsys):
    runs = ["runs/done", "runs/training", "runs/new"]
    assert cli.main(["compare", *runs, "--out", "c.png", "--json", "c.json"]) == 0
    assert capsys.readouterr().out.endswith("written to c.png\n")
    with Image.open("c.png") as picture:
        assert picture.width == 1200
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    found = json.loads(Path("c.json").read_text())
    assert [run["name"] for run in found] == runs
    assert [run["finished"] for run in found] == [True, False, False]
    assert found[0]["cider_curve"] == [[1.0, 25.0], [2.0, 37.5]]
    assert found[0]["cider"] == 0.4
    assert found[2]["loss_curve"] == []


def test_a_narrow_terminal_gets_a_block_for_each_run(place, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("fastrnn.terminal.is_terminal", lambda file: True)
    assert cli.main(["compare", "runs/done", "runs/new"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 40
    assert lines.count("done") == lines.count("new") == 1
    assert "CIDEr       40.0" in lines


def test_many_runs_have_many_lines(place):
    names = [
        str(write_run(place / "many" / f"{n}", place / "data", metrics=METRICS)) for n in range(19)
    ]
    assert cli.main(["compare", *names, "--out", "c.png"]) == 0
    assert cli.main(["compare", names[0], names[0], "--out", "c.png", "--force"]) == 0
    assert [run.name for run in compare_runs(names)] == names


def test_refusals(place, capsys):
    assert "runs" in refused(capsys, "compare", "runs")
    assert "--out is no/c.png; expected a file" in refused(
        capsys, "compare", "runs/done", "--out", "no/c.png"
    )
    assert "--out is c.txt; expected a name that ends in .png" in refused(
        capsys, "compare", "runs/done", "--out", "c.txt"
    )
    for option, name in (("--out", "c.png"), ("--json", "c.json")):
        (place / name).write_text("old")
        line = refused(capsys, "compare", "runs/done", option, name)
        assert f"{option} is {name}, which exists; choose another, or replace it with -" in line
        assert (place / name).read_text() == "old"
    (place / "runs" / "done" / "settings.json").write_text("{")
    assert "settings.json" in refused(capsys, "compare", "runs/done")
