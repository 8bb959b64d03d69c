"""The files of a run directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_history import HISTORY

from fastrnn import runs
from fastrnn.runs import read_history, read_settings, write_history, write_settings


def test_history_is_read_up_to_where_it_is_written(tmp_path: Path):
    path = tmp_path / "history.jsonl"
    assert read_history(path) == []
    path.write_text("".join(json.dumps(record) + "\n" for record in HISTORY))
    assert read_history(path) == HISTORY
    path.write_text(path.read_text() + '{"step": 25, "epo')
    assert read_history(path) == HISTORY
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ValueError, match=rf"{path}: line 7 "):
        read_history(path)


def test_a_line_of_the_history_says_its_kind(tmp_path: Path):
    write_history(tmp_path, HISTORY)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == 2 * ["steps", "steps", "epoch"]
    assert read_history(tmp_path) == HISTORY
    assert runs.epoch_records(lines) == [lines[2], lines[5]]
    assert runs.epoch_records(HISTORY) == [HISTORY[2], HISTORY[5]]
    assert runs.step_records(HISTORY) == HISTORY[:2] + HISTORY[3:5]
    for wrong in ({**HISTORY[0], "kind": "hour"}, {**HISTORY[0], "kind": "epoch"}):
        (tmp_path / "history.jsonl").write_text(json.dumps(wrong) + "\n")
        with pytest.raises(ValueError, match="line 1 is not a record"):
            read_history(tmp_path)


FLAT = {
    "fastrnn": "0.0.9", "data": "/data", "drawn": False, "raw_features": True, "max_train": None,
    "recipe": None, "cell": "lstm", "hidden_dim": 8, "wordvec_dim": 4, "bias_start": "zero",
    "forget_bias": 0.0, "embed_scale": 0.1, "epochs": 2, "seed": 3, "threads": 2, "isa": "avx2",
    "note": "mine",
}  # fmt: skip


def test_settings_are_nested_in_the_file_and_flat_in_memory(tmp_path: Path):
    training = {"epochs": 2, "seed": 3}
    write_settings(tmp_path, FLAT, training)
    found = json.loads((tmp_path / "settings.json").read_text())
    assert found["format"] == runs.SETTINGS_FORMAT
    assert found["data"] == {
        "directory": "/data", "drawn": False, "raw_features": True, "max_train": None,
    }  # fmt: skip
    assert found["training"] == {"recipe": None, **training}
    assert found["model"]["hidden_dim"] == 8
    assert found["machine"] == {"threads": 2, "isa": "avx2"}
    assert found["other"] == {"note": "mine"}
    assert read_settings(tmp_path) == FLAT


def test_old_settings_are_flat(tmp_path: Path):
    (tmp_path / "settings.json").write_text(json.dumps(FLAT))
    assert read_settings(tmp_path) == FLAT
    assert runs.is_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "format is 3; this fastrnn reads formats up to 2"),
        ({"format": "2"}, "format is '2'"),
        ({"training": [1]}, r"training is \[1\]; expected a JSON object"),
        ({"other": None}, "other is None; expected a JSON object"),
    ],
)
def test_settings_of_another_form(tmp_path: Path, change, message):
    write_settings(tmp_path, FLAT, {"epochs": 2})
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=rf"settings\.json: {message}"):
        read_settings(tmp_path)


def test_clearing_a_run_leaves_what_is_not_its_own(tmp_path: Path):
    write_settings(tmp_path, FLAT, {})
    names = [
        *runs.RUN_FILES[1:],
        "checkpoints/step-00000004.npz",
        "tensorboard/events.out.tfevents.1",
    ]
    kept = ["notes.txt", "checkpoints/mine.npz", "tensorboard/mine"]
    for name in names + kept:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    runs.clear_run(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"settings.json", *kept}


def test_metrics(tmp_path: Path):
    assert runs.read_metrics(tmp_path) == {}
    runs.write_metrics(tmp_path, {"bleu_1": 0.5, "images": 3})
    assert runs.read_metrics(tmp_path) == {"bleu_1": 0.5, "images": 3}
    for wrong, message in (
        ("[]", "a list; expected a JSON object"),
        ('{"images": "a"}', "metrics"),
    ):
        (tmp_path / "metrics.json").write_text(wrong)
        with pytest.raises(ValueError, match=message):
            runs.read_metrics(tmp_path)
