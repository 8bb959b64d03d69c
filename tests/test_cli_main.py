"""The entry point: the commands, their help, and one line for every error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import h5py
import numpy as np
import pytest
from commands import refused, run

import fastrnn
from fastrnn import terminal
from fastrnn.checks import ArgumentError
from fastrnn.cli import info

COMMAND = ["-c", "import sys, fastrnn_command; sys.exit(fastrnn_command.main())"]
"""What the installed script ``fastrnn`` does."""
pytestmark = pytest.mark.usefixtures("elsewhere")


def test_info(capsys):
    assert run("info") == 0
    lines = capsys.readouterr().out.splitlines()
    facts = dict(re.split(r"  +| (?=\S+$)", line, maxsplit=1) for line in lines)
    assert facts["fastrnn"] == fastrnn.__version__
    assert facts["instruction set"] in ("baseline", "avx2", "avx512", "avx512_bf16")
    assert facts["threads"].startswith(f"{fastrnn.get_num_threads()} (")
    assert facts["numpy"] == np.__version__
    assert facts["h5py"] == h5py.__version__
    assert "NumPy's BLAS" in facts


def test_info_fits_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "is_terminal", lambda file: True)
    monkeypatch.setenv("COLUMNS", "40")
    assert run("info") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 40


def test_output_that_nobody_reads():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "fastrnn", "info"], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("FASTRNN_NUM_THREADS", "x", "a number of threads, 1 to 1024"),
        ("OMP_NUM_THREADS", "0", "a number of threads, 1 to 1024"),
        ("FASTRNN_MAX_ISA", "sse9", "baseline, avx2, avx512 or avx512_bf16"),
    ],
)
def test_an_environment_variable_that_is_refused(name, value, expected):
    said = f"{name} is {value!r}; expected {expected}"
    environment = {**os.environ, name: value}
    for command, status, before, after in (
        (COMMAND, 2, "fastrnn: error: ", ""),
        (["-m", "fastrnn"], 1, f"{sys.executable}: ", ")"),  # Python's own words around it
    ):
        done = subprocess.run(
            [sys.executable, *command, "info"], env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.startswith(before) and done.stderr.endswith(f"{said}{after}\n")
        assert done.stderr.count("\n") == 1
    done = subprocess.run(
        [sys.executable, *COMMAND, "info", "--traceback"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith(f"fastrnn: error: {said}\n")


@pytest.mark.parametrize("module", ["fastrnn", "numpy", "fastrnn.cli", "fastrnn.training"])
def test_an_interrupt_while_modules_are_imported(module):
    """The very first moments of the command, which Python spends on imports."""
    program = f"""
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
import fastrnn_command
sys.exit(fastrnn_command.main())
"""
    done = subprocess.run([sys.executable, "-c", program, "info"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "fastrnn: interrupted\n")


def test_out_of_memory(monkeypatch, capsys):
    def fail(arguments: object) -> int:
        raise MemoryError

    monkeypatch.setattr(info, "run", fail)
    assert refused(capsys, "info") == "fastrnn: error: out of memory\n"


def test_module_and_caps_on_the_instruction_set():
    environment = {**os.environ, "FASTRNN_MAX_ISA": "baseline", "FASTRNN_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "fastrnn", "info"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert re.search(r"^instruction set +baseline$", done.stdout, re.M)
    assert re.search(r"^threads +[13] \(", done.stdout, re.M)


def test_help_has_every_option_a_default_and_an_example(capsys):
    assert run("train", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in (
        "data", "cell", "hidden-dim", "wordvec-dim", "batch-size", "epochs", "lr", "lr-decay",
        "max-train", "seed", "threads", "out",
    ):  # fmt: skip
        described = re.search(rf"--{option} [^(]*?\(default: [^)]*\)", text)
        assert described, option
    assert "example: fastrnn train --data" in text
    assert run("--help") == 0
    assert run("info", "--help") == 0
    assert run("--version") == 0
    assert capsys.readouterr().out.endswith(f"fastrnn {fastrnn.__version__}\n")


# -- what is refused


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "COMMAND"),
        (["fly"], "error: there is no command 'fly' (see fastrnn --help)"),
        (["trian"], "there is no command 'trian'; did you mean train? (see fastrnn --help)"),
        (["--trace"], "--trace; did you mean --traceback? (see fastrnn --help)"),
        (["train", "--epoch", "1"], "--epoch 1; did you mean --epochs? (see fastrnn train --help)"),
        (["--trace", "info"], "--trace"),
        (["evaluate", "r", "--bea=1"], "--bea=1; did you mean --beam?"),
        (["train", "--speed", "9"], "--speed"),
        (["completion"], "error: expected bash, zsh or fish (see fastrnn completion --help)"),
        (["caption"], "error: expected RUN and IMAGE (see fastrnn caption --help)"),
        (["features", "x"], "error: expected --out (see fastrnn features --help)"),
        (["export", "r", "--torch", "x"], "arguments: --torch x (see fastrnn export --help)"),
        (["train", "--hiden-dim=9"], "--hiden-dim=9; did you mean --hidden-dim? (see fastrnn tr"),
        (["report", "r", "again"], "again (see fastrnn report --help)"),
        (["train", "--cell", "gru"], "--cell is 'gru'; expected rnn or lstm"),
        (["train", "--hidden-dim", "0"], "--hidden-dim"),
        (["train", "--wordvec-dim", "1.5"], "--wordvec-dim"),
        (["train", "--batch-size", "many"], "--batch-size is 'many'; expected an integer"),
        (["train", "--epochs", "-1"], "--epochs"),
        (["train", "--epochs", "9" * 400], "9'; expected an integer below 2 to the power of 63"),
        (
            ["evaluate", "r", "--beam", "9" * 20],
            "--beam is '99999999999999999999'; expected an integer below 2 to the power of 63",
        ),
        (["train", "--lr", "0"], "--lr is 0.0; expected a positive number"),
        (["train", "--lr", "nan"], "--lr"),
        (["train", "--lr-decay", "-0.5"], "--lr-decay"),
        (["train", "--lr-decay", "linear"], "--lr-decay"),
        (["train", "--max-train", "0"], "--max-train"),
        (["train", "--seed", "-1"], "--seed"),
        (["train", "--threads", "0"], "--threads"),
        (["train", "--clip-norm", "-1"], "--clip-norm"),
        (["train", "--clip-value", "-1"], "--clip-value"),
        (["train", "--schedule", "linear"], "--schedule"),
        (["train", "--decay-every", "0"], "--decay-every"),
        (["train", "--warmup-steps", "1.5"], "--warmup-steps"),
        (["train", "--vocab-dropout", "1"], "--vocab-dropout"),
        (["train", "--label-smoothing", "-0.1"], "--label-smoothing"),
        (["train", "--scheduled-sampling", "2"], "--scheduled-sampling"),
        (["train", "--weight-average", "1"], "--weight-average"),
        (["train", "--monitor", "meteor"], "--monitor"),
        (["train", "--patience", "-1"], "--patience"),
        (["train", "--keep-last", "0"], "--keep-last"),
        (["train", "--bias-start", "ones"], "--bias-start"),
        (["train", "--recipe", "coco"], "--recipe"),
        (["train", "--recipe", "imagenet"], "--recipe"),
        (["train", "--raw-features"], "--raw-features"),
        (["train", "--data", "nowhere"], "error: no such data directory: nowhere\n"),
        (["train", "--data", "no/where"], "error: no such data directory: no/where\n"),
    ],
)
def test_bad_arguments(arguments, wanted, tmp_path, capsys):
    assert wanted in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir()), "what is refused leaves nothing behind"


def test_a_data_directory_that_is_not_there_is_named(data_dir: Path, tmp_path, capsys):
    small = ["--hidden-dim", 8, "--wordvec-dim", 4, "--epochs", 1, "--no-report"]
    assert run("train", "--data", data_dir, "--out", "r", *small) == 0
    (tmp_path / "file").write_text("")
    for command in (["train"], ["evaluate", "r"], ["report", "r"], ["train", "--resume", "r"]):
        line = refused(capsys, *command, "--data", "nope")
        assert line == "fastrnn: error: no such data directory: nope\n"
        line = refused(capsys, *command, "--data", "file")
        assert line == "fastrnn: error: not a data directory but a file: file\n"


# -- bugs


def test_a_bug_says_that_it_is_one(monkeypatch, capsys):
    def fail(arguments: object) -> int:
        raise KeyError("x")

    monkeypatch.setattr(info, "run", fail)
    assert run("info") == 70
    said = capsys.readouterr()
    assert said.err == (
        "fastrnn: internal error: KeyError: 'x' (this is a bug in fastrnn; --traceback shows "
        "where)\n"
    )
    for arguments in (["--traceback", "info"], ["info", "--traceback"]):
        assert run(*arguments) == 70
        said = capsys.readouterr().err
        assert said.startswith("Traceback (most recent call last):\n")
        assert 'raise KeyError("x")' in said
        assert said.endswith("fastrnn: internal error: KeyError: 'x' (this is a bug in fastrnn)\n")


@pytest.mark.parametrize("error", [TypeError, IndexError, AttributeError, RuntimeError])
def test_what_is_not_known_is_a_bug(monkeypatch, capsys, error):
    def fail(arguments: object) -> int:
        raise error("lost")

    monkeypatch.setattr(info, "run", fail)
    assert run("info") == 70
    assert f"internal error: {error.__name__}: lost (" in capsys.readouterr().err


def test_traceback_of_an_error_in_the_input(capsys):
    assert run("evaluate", "nowhere", "--traceback") == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):\n")
    assert said.endswith("fastrnn: error: no such run directory or model file: nowhere\n")


def test_an_error_about_a_field_names_its_option(monkeypatch, capsys):
    for error, wanted in (
        (ArgumentError("learning_rate", "is 0; expected more"), "--lr is 0; expected more"),
        (ArgumentError("count", "is 0; expected more"), "--threads is 0; expected more"),
        (ArgumentError("words", "is 0; expected more"), "words is 0; expected more"),
        (ValueError("epochs is not what is meant"), "epochs is not what is meant"),
    ):
        monkeypatch.setattr(info, "run", Mock(side_effect=error))
        assert refused(capsys, "info") == f"fastrnn: error: {wanted}\n"
