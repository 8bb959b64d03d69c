"""Progress of images and bytes, on a terminal and without one."""

from __future__ import annotations

import io
import re
import sys

import pytest

from fastrnn.cli import bar as module
from fastrnn.cli.bar import BYTES, Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when they are told to."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    """What is shown on a terminal of the width that is set."""

    def make(width: int) -> Terminal:
        file = Terminal()
        monkeypatch.setattr(sys, "stderr", file)
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("LINES", "24")  # tqdm wants both
        return file

    return make


def test_lines_without_a_terminal(clock, capsys):
    bar = Bar("features", "images", 4000)
    assert not bar.began
    bar(1000)  # was there before: no part of the rate
    assert bar.began
    clock[0] += 29
    bar(1290)
    assert capsys.readouterr().out == ""
    clock[0] += 2
    bar(1310)
    assert capsys.readouterr().out == (
        "features: 1,310 of 4,000 images, 10.0 images/s, 4:29 left\n"
    )
    clock[0] += 10
    bar(1400)
    assert capsys.readouterr().out == ""
    bar.close()
    bar.close()


def test_bytes(clock, capsys):
    bar = Bar("download", BYTES)
    bar(0, None)
    clock[0] += 31
    bar(3_100_000, None)  # the server does not say how many there are
    assert capsys.readouterr().out == "download: 3.1 MB, 0.1 MB/s\n"
    clock[0] += 31
    bar(62_000_000, 124_000_000)
    assert capsys.readouterr().out == "download: 62.0 of 124.0 MB, 1.0 MB/s, 1:02 left\n"


def test_nothing_done_yet(clock, capsys):
    bar = Bar("features", "images", 10)
    bar(0)
    clock[0] += 31
    bar(0)
    assert capsys.readouterr().out == "features: 0 of 10 images\n"


def test_without_lines(clock, capsys):
    bar = Bar("captions", "images", 10, lines=False)
    bar(0)
    clock[0] += 100
    bar(5)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("unit", ["images", BYTES])
def test_a_bar_fits_the_terminal(terminal, width, unit):
    """The time that is left is seen at every width."""
    file = terminal(width)
    bar = Bar("features", unit, 1000)
    for done in range(100, 1001, 100):
        bar(done)
        bar._bar.refresh()
    bar.close()
    shown = [line for line in re.split(r"[\r\n]|\x1b\[\w", file.getvalue()) if line.strip()]
    assert len(shown) >= 10
    for line in shown:
        assert len(line) <= width
        assert line.startswith("features") and line.rstrip().endswith(" left")
    assert "%|" in shown[-1] if width > 60 else "%|" not in shown[-1]


def test_a_bar_without_a_total(terminal):
    file = terminal(80)
    bar = Bar("download", BYTES)
    bar(2_000_000, None)
    bar(4_000_000, None)
    bar._bar.refresh()
    bar.close()
    assert "download 4.00M" in file.getvalue()
    assert "%" not in file.getvalue()


def test_streams_that_are_missing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    bar = Bar("features", "images", 3)
    bar(1)
    bar(3)
    bar.close()
