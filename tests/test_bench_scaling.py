"""The model of `bench.scaling`, and that the command runs from its measurements to its plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("bench", reason="the benchmarks are not in an installed package")

from bench import coco_training, pieces, scaling, scaling_model
from bench.scaling_model import Cut, Machine, Piece
from bench.shapes import SHAPES
from fastrnn._core import captioner

MACHINE = Machine(fork_join=1e-6, bandwidth_per_core=10e9, bandwidth=40e9)


def test_serial_pieces_take_the_same_time_on_any_number_of_cores() -> None:
    piece = Piece("sort", 3e-6)
    assert [piece.time(threads, MACHINE) for threads in (1, 2, 64)] == [3e-6] * 3
    assert piece.loss(3, MACHINE) == pytest.approx(2e-6)


def test_parallel_pieces_wait_for_the_largest_share() -> None:
    piece = Piece("loop", 0.1, (Cut(2, 100, 1),))
    assert piece.time(1, MACHINE) == 0.1  # no region
    assert piece.time(2, MACHINE) == pytest.approx(0.05 + 1e-6)
    assert piece.time(64, MACHINE) == pytest.approx(0.1 * 2 / 100 + 6e-6)
    assert piece.time(128, MACHINE) == pytest.approx(0.1 / 100 + 7e-6)


def test_the_last_cut_that_is_reached_counts() -> None:
    piece = Piece("loop", 0.1, (Cut(2, 100, 1), Cut(6, 16, 32)))
    assert piece.time(4, MACHINE) == pytest.approx(0.025 + 2e-6)
    assert piece.time(8, MACHINE) == pytest.approx(0.1 / 8 + 32 * 3e-6)
    assert piece.time(64, MACHINE) == pytest.approx(0.1 / 16 + 32 * 6e-6)


def test_memory_bounds_a_piece() -> None:
    piece = Piece("Adam", 0.01, (Cut(2, 1000, 1),), bytes=1e8)
    assert piece.time(2, MACHINE) == pytest.approx(0.005 + 1e-6)
    assert piece.time(8, MACHINE) == pytest.approx(1e8 / 40e9 + 3e-6)


def test_amdahl() -> None:
    parts = [Piece("serial", 0.1), Piece("parallel", 0.9, (Cut(2, 64, 0),))]
    assert scaling_model.serial_share(parts) == pytest.approx(0.1)
    assert scaling_model.step_time(parts, 64, MACHINE) == pytest.approx(0.1 + 0.9 / 64)
    (name, lost), _ = scaling_model.bottlenecks(parts, 64, MACHINE)
    assert (name, lost) == ("serial parts", pytest.approx(0.1 * 63 / 64))


@pytest.mark.parametrize("shape", ["coco", "good", "tiny"])
def test_every_second_is_in_one_piece(shape: str) -> None:
    names = ["draw a minibatch", "call the core", *captioner.PHASE_NAMES, "Adam"]
    seconds = {name: 1e-3 * (k + 1) for k, name in enumerate(names)}
    seconds["dropout of word vectors"] = 0.0  # there is none in these steps
    found = pieces.describe(SHAPES[shape], "lstm", seconds, {"tokens": 1100, "words": 500}, 1e-5)
    assert sum(piece.seconds for piece in found) == pytest.approx(sum(seconds.values()))
    times = [scaling_model.step_time(found, 2**k, MACHINE) for k in range(3)]
    assert times == sorted(times, reverse=True)
    serial = {piece.name for piece in found if piece.is_serial}
    assert serial == {
        "draw a minibatch", "call the core", "call Adam", *captioner.SERIAL_PHASES
    }  # fmt: skip


def test_command_measures_predicts_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    path, plot = tmp_path / "scaling.json", tmp_path / "scaling.svg"
    options = ["--shape", "tiny", "--blocks", "2", "--steps", "2", "--threads", "2"]
    assert scaling.main([*options, "--json", str(path), "--plot", str(plot)]) == 0
    found, shown = json.loads(path.read_text()), capsys.readouterr().out
    assert [row["cores"] for row in found["predicted"]] == [1, 2, 4, 8, 16, 32, 64]
    assert set(found["measured"]) == {"1", "2"} and found["crowd"]["threads"] == 16
    assert 0 < found["serial_share"] < 1
    assert "serial parts together" in shown and "<svg" in plot.read_text()


def test_impossible_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.parse(["--bandwidth", "0"])
    assert "--bandwidth is 0.0; expected more than 0" in capsys.readouterr().err


def test_clock_leaves_out_what_it_times_inside() -> None:
    import time

    class Worker:
        def outer(self) -> None:
            time.sleep(0.01)
            self.inner()

        def inner(self) -> None:
            time.sleep(0.05)

    clock = coco_training.Clock()
    clock.time(Worker, "outer", "outer")
    clock.time(Worker, "inner", "inner")
    Worker().outer()
    assert clock.seconds["inner"] >= 0.05 > clock.seconds["outer"] >= 0.01


def test_shares_of_an_epoch() -> None:
    found = {"epoch_seconds": {"step": 98.0, "validation": 1.0}, "start_seconds": 4.0, "epochs": 4}
    assert coco_training.shares(found) == {"step": 98.0, "validation": 1.0, "start": 1.0}
