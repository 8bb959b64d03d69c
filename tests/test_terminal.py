"""Lines that fit into a terminal."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrnn.terminal import columns, duration, fold, in_notebook, say, say_facts, shown_path

EPOCH = "epoch  1/12  loss 0.738  validation 0.557  perplexity 1.75  33,362 captions/s  0:21 left"


def test_a_line_that_fits_stays_whole():
    assert fold(EPOCH, len(EPOCH)) == EPOCH
    assert fold(EPOCH, None) == EPOCH


def test_a_name_stays_with_its_value():
    assert fold(EPOCH, 40, indent=2).splitlines() == [
        "epoch  1/12  loss 0.738",
        "  validation 0.557  perplexity 1.75",
        "  33,362 captions/s  0:21 left",
    ]


def test_text_is_folded_between_words_and_indented():
    line = "data     drawn scenes: 60,000 captions of 12,000 images, 40 features"
    assert fold(line, 40, indent=9).splitlines() == [
        "data     drawn scenes: 60,000 captions",
        "         of 12,000 images, 40 features",
    ]
    name = 60 * "x"
    assert fold(f"written to {name}: a, b", 40, 2).splitlines() == [
        "written to",
        f"  {name}:",
        "  a, b",
    ]


def test_a_path_that_fits_into_no_line_is_broken_between_its_parts():
    path = "/home/someone/courses/captioning/runs/2026-11-27-lstm/model.npz"
    assert fold(f"model    {path} (LSTM)", 40, 9).splitlines() == [
        "model    /home/someone/courses/",
        "         captioning/runs/2026-11-27-",
        "         lstm/model.npz (LSTM)",
    ]
    assert fold("written to runs/2026-11-27-lstm/model.npz", 40, 2).splitlines() == [
        "written to",
        "  runs/2026-11-27-lstm/model.npz",
    ]


def test_paths_are_shown_as_they_are_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "runs" / "one") == str(Path("runs", "one"))
    assert shown_path("runs") == "runs"
    assert shown_path(tmp_path.parent / "data") == str(tmp_path.parent / "data")
    assert shown_path(tmp_path) == "."


@given(
    st.lists(st.text("ab-/.é", min_size=1, max_size=25), min_size=1, max_size=30),
    st.lists(st.sampled_from([" ", "  "]), min_size=30, max_size=30),
    st.integers(1, 90),
    st.integers(0, 30),
)
def test_folding_loses_nothing_and_fits(words, gaps, width, indent):
    text = "".join(f"{word}{gap}" for word, gap in zip(words, gaps, strict=False)).rstrip()
    lines = fold(text, width, indent).splitlines()
    pieces = [word for line in lines for word in line.split()]
    assert "".join(pieces) == "".join(words)
    width = max(width, 20)
    short = [word for word in words if len(word) <= width - min(indent, width // 4)]
    assert set(short) <= set(pieces)  # they are whole
    for line in lines:
        # Only what has no place to be broken at is too long.
        assert len(line) <= width or not re.search("[-/].", line.strip())


def test_the_width_is_the_terminals(monkeypatch, capsys):
    fcntl, pty, struct, termios = map(pytest.importorskip, ("fcntl", "pty", "struct", "termios"))
    monkeypatch.delenv("COLUMNS", raising=False)
    assert columns(None) is None
    assert columns(io.StringIO()) is None
    closed = io.StringIO()
    closed.close()
    assert columns(closed) is None
    ours, theirs = pty.openpty()
    try:
        with os.fdopen(theirs, "w", closefd=False) as terminal:
            fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
            assert columns(terminal) == 40
            say(EPOCH, file=terminal)
            said = os.read(ours, 1000).decode()
            monkeypatch.setenv("COLUMNS", "30")
            assert columns(terminal) == 30
    finally:
        os.close(ours)
        os.close(theirs)
    assert max(map(len, said.splitlines())) <= 40
    say_facts({"data": 30 * "long ", "words": 7})
    assert capsys.readouterr().out == f"data     {30 * 'long '}\nwords    7\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7200, "2:00:00")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_notebook_has_a_kernel(monkeypatch):
    assert not in_notebook()
    for shell, found in (
        (None, False),
        (SimpleNamespace(), False),
        (SimpleNamespace(kernel=object()), True),
    ):
        monkeypatch.setitem(
            sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell)
        )
        assert in_notebook() is found
