"""``fastrnn evaluate``: its table and its files, and one line for everything that is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from coco_layout import NUM_IMAGES, PCA_DIM, WORDS, write_layout

from fastrnn import cli
from fastrnn.checkpoint import load_model, save_model
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.evaluation import caption_images, references_of
from fastrnn.extras import install_command
from fastrnn.metrics import evaluate_captions

IMAGES = NUM_IMAGES["val"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run directory of ``fastrnn train``, and its data."""
    place = tmp_path_factory.mktemp("evaluate")
    write_layout(place / "data")
    settings = ["--hidden-dim", "8", "--wordvec-dim", "4", "--epochs", "20", "--lr", "0.03"]
    command = ["train", "--data", str(place / "data"), "--out", str(place / "run"), *settings]
    assert cli.main(command) == 0
    return place / "run", place / "data"


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> int:
    try:
        return cli.main(["evaluate", *map(str, arguments)])
    except SystemExit as exit:
        return exit.code or 0  # type: ignore[return-value]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail; return its one-line error."""
    capsys.readouterr()
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("fastrnn: error: ")
    assert said.err.count("\n") == 1
    return said.err


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def url_names(data: Path) -> list[str]:
    return [Path(line.strip()).name for line in (data / "val2014_urls.txt").open()]


def test_table_and_files_of_a_run(trained, out: Path, capsys: pytest.CaptureFixture[str]):
    folder, data_dir = trained
    assert run(folder, "--beam", 1, "--json", "m.json", "--results", "r.json") == 0
    said = capsys.readouterr()
    data = read_captioning_directory(data_dir)
    captions = caption_images(load_model(folder), data["val_features"])
    rows = json.loads((out / "r.json").read_text())
    assert rows == [
        {"image_id": i, "caption": captions[i], "file_name": data["val_urls"][i]}
        for i in range(IMAGES)
    ]
    figures = json.loads((out / "m.json").read_text())
    expected = evaluate_captions(captions, references_of(data))
    assert {name: figures[name] for name in expected} == expected
    assert expected["bleu_1"] > 0
    assert figures["distinct_captions"] == len(set(captions))
    for name in expected:
        label = {"rouge_l": "ROUGE-L", "cider": "CIDEr"}.get(name, name.replace("bleu_", "BLEU-"))
        shown = re.search(rf"^{label} +([\d.]+)$", said.out, re.MULTILINE)
        if expected[name] is None:
            assert shown is None
        else:
            assert shown and float(shown[1]) == pytest.approx(100 * expected[name], abs=0.0501)
    assert f"val: {IMAGES} images" in said.out
    assert "coco2014_captions.h5 (cut at 7 words, rare words <UNK>): 15 captions" in said.out
    assert re.search(r"^decoding +greedy: [\d.]+ s, [\d,]+ captions/s$", said.out, re.MULTILINE)


def test_beam(trained, out: Path, capsys: pytest.CaptureFixture[str]):
    decoding = pytest.importorskip("fastrnn.decoding")
    folder, data_dir = trained
    options = ["--length-penalty", 0.5, "--no-repeat-ngram", 2, "--min-length", 3]
    assert run(folder, "--beam", 2, "--max-length", 6, *options, "--results", "r.json") == 0
    assert "beam 2" in capsys.readouterr().out
    model = load_model(folder)
    features = read_captioning_directory(data_dir)["val_features"]
    decoded = decoding.beam_search(
        model, features, 2, 6, length_penalty=0.5, no_repeat_ngram=2, suppress_unk=True,
        min_length=3,
    )  # fmt: skip
    captions = [best[0] for best in decoded.captions(model.idx_to_word)]
    assert [row["caption"] for row in json.loads((out / "r.json").read_text())] == captions


def test_unknown_words_are_said_only_when_allowed(trained, out: Path):
    folder, data_dir = trained
    model = load_model(folder)
    model.params["b_vocab"][WORDS.index("<UNK>")] += 100
    save_model(out / "model.npz", model)
    said = {}
    for option in ([], ["--allow-unk"]):
        command = [out / "model.npz", "--data", data_dir, "--results", "r.json", "--json", "m.json"]
        assert run(*command, "--force", *option) == 0
        said[bool(option)] = [row["caption"] for row in json.loads((out / "r.json").read_text())]
        assert json.loads((out / "m.json").read_text())["suppress_unk"] is not bool(option)
    assert not any("<UNK>" in caption for caption in said[False])
    assert all("<UNK>" in caption for caption in said[True])


def test_a_model_that_would_rather_be_silent_says_a_word(trained, out: Path):
    folder, data_dir = trained
    model = load_model(folder)
    model.params["b_vocab"][WORDS.index("<END>")] += 100
    save_model(out / "model.npz", model)
    for least, words in (([], 1), (["--min-length", 0], 0), (["--min-length", 4], 4)):
        command = [out / "model.npz", "--data", data_dir, "--results", "r.json"]
        assert run(*command, "--force", *least) == 0
        rows = json.loads((out / "r.json").read_text())
        assert {len(row["caption"].split()) for row in rows} == {words}


def test_the_test_part(trained, out: Path, capsys: pytest.CaptureFixture[str]):
    folder, data_dir = trained
    shutil.copytree(data_dir, out / "data")
    for path in [*(out / "data").glob("val2014*")]:
        shutil.copy(path, path.with_name(path.name.replace("val2014", "test2014")))
    with h5py.File(out / "data" / "coco2014_captions.h5", "a") as file:
        for name in ("captions", "image_idxs"):
            file[f"test_{name}"] = file[f"val_{name}"][()]
    figures = []
    for split in ("val", "test"):
        options = ["--data", out / "data", "--split", split, "--json", "m.json", "--force"]
        assert run(folder, *options) == 0
        assert f"{split}: {IMAGES} images" in capsys.readouterr().out
        figures.append(json.loads((out / "m.json").read_text()))
    assert figures[1]["split"] == "test"
    assert figures[0]["bleu_4"] == figures[1]["bleu_4"]


def test_what_is_known_is_said_before_the_captions_are_made(
    trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The model, the data and what is missing, METEOR's words among it."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastrnn.metrics._load_meteor", absent_words)
    monkeypatch.setattr("fastrnn.evaluation.beam_search", interrupt)
    assert run(trained[0]) == 130
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "data", "references", "note:"]
    assert lines[-1] == "note: METEOR needs its words: get them"
    assert said.err == "fastrnn: interrupted\n"


def absent_words() -> None:
    raise LookupError("METEOR needs its words: get them")


def test_lines_fit_a_narrow_terminal(
    trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("fastrnn.terminal.is_terminal", lambda file: True)
    monkeypatch.setattr("fastrnn.cli.bar.is_terminal", lambda file: False)
    assert run(trained[0], "--limit", 3) == 0
    lines = capsys.readouterr().out.splitlines()
    wide = [line for line in lines if len(line) > 40]
    assert all("/" in line for line in wide), "paths have no spaces to break at"
    assert any(line.startswith("      ") for line in lines)


def test_an_interrupt_ends_a_wide_search_at_once(trained, out: Path):
    folder, data_dir = trained
    model = load_model(folder)
    model.params["b_vocab"][WORDS.index("<END>")] = -1000
    save_model(out / "model.npz", model)
    command = [sys.executable, "-m", "fastrnn", "evaluate", "model.npz", "--data", str(data_dir),
               "--beam", "9", "--max-length", "200000", "--threads", "1"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=out, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=dict(os.environ, PYTHONPATH=str(Path(cli.__file__).parents[2])),
    )  # fmt: skip
    try:
        assert process.stdout.readline().startswith("model ")
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        began = time.perf_counter()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.perf_counter() - began < 8
    assert (process.returncode, err) == (130, "fastrnn: interrupted\n")


def test_the_help_says_the_defaults(capsys: pytest.CaptureFixture[str]):
    for command in ("evaluate", "caption"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        for words in ("longer captions (default: 0.7)", "words in a caption (default: 1)",
                      "for words that are unknown (default: never)"):  # fmt: skip
            assert words in text


def test_split_limit_and_length(trained, out: Path, capsys: pytest.CaptureFixture[str]):
    folder, data_dir = trained
    options = ["--split", "train", "--limit", 4, "--max-length", 2, "--threads", 1]
    assert run(folder, "--beam", 1, *options, "--results", "r.json") == 0
    assert "train: 4 images" in capsys.readouterr().out
    captions = [row["caption"] for row in json.loads((out / "r.json").read_text())]
    features = read_captioning_directory(data_dir)["train_features"][:4]
    assert captions == caption_images(load_model(folder), features, 2)
    assert max(len(caption.split()) for caption in captions) <= 2


def test_forms_of_references(trained, out: Path, capsys: pytest.CaptureFixture[str]):
    folder, data_dir = trained
    names = url_names(data_dir)
    captions = [[f"A cat on the mat, no. {i}.", "The dog!"] for i in range(IMAGES)]
    forms = {
        "list": captions,
        "names": {**dict(zip(names, captions, strict=True)), "other.jpg": ["else"]},
        "coco": {
            "images": [
                {
                    "id": 70 + i,
                    "file_name": f"{i}.jpg",
                    ("flickr_url", "coco_url")[i % 2]: f"http://x.org/y/{name}",
                }
                for i, name in enumerate(names)
            ],
            "annotations": [
                {"id": 0, "image_id": 70 + i, "caption": caption}
                for i, known in reversed([*enumerate(captions)])
                for caption in known
            ],
        },
    }
    data = read_captioning_directory(data_dir)
    said = caption_images(load_model(folder), data["val_features"])
    expected = evaluate_captions(said, captions)
    for form, value in forms.items():
        path = write(out / f"{form}.json", value)
        options = ["--references", path, "--json", "m.json", "--force"]
        assert run(folder, "--beam", 1, *options) == 0
        assert f"{path}: {2 * IMAGES} captions" in capsys.readouterr().out
        figures = json.loads((out / "m.json").read_text())
        assert {name: figures[name] for name in expected} == expected


def test_references_beside_the_data(trained, out: Path, capsys: pytest.CaptureFixture[str]):
    folder, data_dir = trained
    shutil.copytree(data_dir, out / "data")
    names = url_names(data_dir)
    path = write(out / "data" / "val_references.json", {names[1]: ["a cat"], names[3]: ["a dog"]})
    assert run(folder, "--beam", 1, "--data", out / "data", "--json", "m.json") == 0
    said = capsys.readouterr().out
    assert f"{path}: 2 captions of 2 of the images" in said
    captions = caption_images(
        load_model(folder), read_captioning_directory(data_dir)["val_features"]
    )
    expected = evaluate_captions([captions[1], captions[3]], [["a cat"], ["a dog"]])
    assert json.loads((out / "m.json").read_text())["bleu_1"] == expected["bleu_1"]


def test_model_file_with_raw_features(trained, out: Path, capsys: pytest.CaptureFixture[str]):
    folder, data_dir = trained
    model = load_model(folder)
    model.params["W_proj"] = np.ones((10, 8), dtype=np.float32)
    save_model(out / "raw.npz", model)
    refusal = refused(capsys, out / "raw.npz", "--data", data_dir)
    assert f"has {PCA_DIM} features after PCA; " in refusal and "expects 10 (" in refusal
    assert "--raw-features" in refusal
    assert run(out / "raw.npz", "--data", data_dir, "--raw-features", "--beam", 1) == 0


def test_run_on_raw_features(trained, out: Path, capsys: pytest.CaptureFixture[str]):
    _, data_dir = trained
    small = ["--hidden-dim", "8", "--wordvec-dim", "4", "--epochs", "1", "--no-report"]
    command = ["train", "--data", str(data_dir), "--raw-features", "--out", "raw", *small]
    assert cli.main(command) == 0
    assert run("raw", "--beam", 1) == 0  # it knows what it was trained on


def test_a_model_that_says_one_thing(trained, out: Path, capsys: pytest.CaptureFixture[str]):
    folder, data_dir = trained
    model = load_model(folder)
    for name in ("W_proj", "W_vocab"):
        model.params[name][:] = 0
    model.params["b_vocab"][:] = 0
    model.params["b_vocab"][WORDS.index("cat")] = 1
    save_model(out / "model.npz", model)
    options = ["--beam", 1, "--max-length", 2]
    assert run(out / "model.npz", "--data", data_dir, *options) == 0
    said = capsys.readouterr()
    assert "fastrnn: warning: the model says one thing for every image: 'cat cat'" in said.err
    assert f"1 of {IMAGES} captions" in said.out
    model.params["b_vocab"][WORDS.index("<END>")] = 2
    save_model(out / "model.npz", model)
    assert run(out / "model.npz", "--data", data_dir, *options, "--min-length", 0) == 0
    assert re.search(r"^most often +\(no words\) \(100", capsys.readouterr().out, re.MULTILINE)


def test_without_the_extra(
    trained, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    folder, _ = trained
    for name in [m for m in sys.modules if m.startswith("pycocoevalcap")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    assert run(folder, "--beam", 1) == 0
    said = capsys.readouterr().out
    assert re.search("^BLEU-1 ", said, re.M) and not re.search("^CIDEr ", said, re.M)
    assert f"missing: {install_command('eval')}" in said


def test_refusals(trained, out: Path, capsys: pytest.CaptureFixture[str]):
    folder, _ = trained
    assert "no such run directory or model file: nowhere" in refused(capsys, "nowhere")
    assert "is not a run directory; it has no settings.json" in refused(capsys, out)
    assert "--data is needed" in refused(capsys, folder / "model.npz")
    assert "no such data directory" in refused(capsys, folder, "--data", out / "none")
    assert "--beam" in refused(capsys, folder, "--beam", 0)
    wrong = refused(capsys, folder, "--split", "dev")
    assert "--split is 'dev'; expected train, val or test" in wrong
    assert "test2014_vgg16_fc7_pca.h5" in refused(capsys, folder, "--split", "test")
    for option in ("--json", "--results"):
        line = refused(capsys, folder, option, out / "none" / "x.json")
        assert f"{option} is {out / 'none' / 'x.json'}; expected a file" in line
        (out / "there.json").write_text("old")
        line = refused(capsys, folder, option, out / "there.json")
        assert "there.json, which exists; choose another, or replace it with --force" in line
        assert (out / "there.json").read_text() == "old"
    shutil.copytree(folder, out / "cut")
    (out / "cut" / "model.npz").unlink()
    assert f"no such model file: {out / 'cut' / 'model.npz'}" in refused(capsys, out / "cut")
    (out / "cut" / "model.npz").write_bytes((folder / "model.npz").read_bytes()[:200])
    assert "model.npz: damaged" in refused(capsys, out / "cut")


def test_data_of_another_model(trained, out: Path, capsys: pytest.CaptureFixture[str]):
    folder, data_dir = trained
    shutil.copytree(data_dir, out / "words")
    words = [word.replace("sofa", "bed") for word in WORDS]
    write(
        out / "words" / "coco2014_vocab.json",
        {"idx_to_word": words, "word_to_idx": {word: i for i, word in enumerate(words)}},
    )
    line = refused(capsys, folder, "--data", out / "words")
    assert "coco2014_vocab.json: is not the vocabulary of" in line
    shutil.copytree(data_dir, out / "wide")
    for split in ("train", "val"):
        with h5py.File(out / "wide" / f"{split}2014_vgg16_fc7_pca.h5", "w") as file:
            file["features"] = np.zeros((NUM_IMAGES[split], 9), dtype=np.float32)
    line = refused(capsys, folder, "--data", out / "wide")
    assert "has 9 features after PCA; " in line and f"expects {PCA_DIM}" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("3", "contains a int; expected a list or an object"),
        ("[[], []]", f"a list of 2 entries; expected {IMAGES}, one for each image"),
        ('{"x.jpg": ["a"]}', f"captions of 1 images; expected some of the {IMAGES} images"),
        ('{"annotations": [3]}', "'annotations' cannot be read"),
        ('{"annotations": [], "images": [{"id": 3}]}', "captions of 0 images"),
        ("[" + "3," * (IMAGES - 1) + "3]", "image 0 ("),
        ("[" + "[]," * (IMAGES - 1) + "[]]", "has no captions of the images"),
    ],
)
def test_bad_references(
    trained, out: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
):
    (out / "r.json").write_text(content)
    line = refused(capsys, trained[0], "--references", out / "r.json")
    assert f"{out / 'r.json'}: " in line and message in line


def test_no_references_file(trained, out: Path, capsys: pytest.CaptureFixture[str]):
    line = refused(capsys, trained[0], "--references", out / "r.json")
    assert f"no such file of references: {out / 'r.json'}" in line
