"""Draw the pictures of how_it_is_fast: ``python docs/draw_speed.py FILE.json``.

FILE.json is the output of ``python -m bench.peers --json FILE.json``. Writes to ``docs/pictures``:

* ``roof.svg``: the rate of each task, and the rate that the processor could reach;
* ``work.svg``: the work of a training step on padded captions, and the work that is necessary.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench import report, work  # noqa: E402
from bench.data import NULL, read_captions  # noqa: E402
from bench.shapes import SHAPES  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
TASKS = {"step": "training step", "layer": "layer", "sample": "greedy decoding"}
BATCHES = 200
PARTS = ("features", "input words x Wx", "states x Wh", "states x vocabulary")
COLOURS = ("#9a9a9a", "#e8a13a", "#c8442c", "#3b6ea5")


def save(figure: Any, name: str) -> None:
    """Write a figure as SVG, the same for the same figure."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(PICTURES / name, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    path = PICTURES / name  # matplotlib leaves blanks at the ends of lines
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")


def draw_roof(result: dict[str, Any]) -> None:
    """Draw the rates of all tasks in float32 under the FMA peak of all threads."""
    peak = result["peak"]["float32"][str(result["threads"])] / 1e9
    rows = [r for r in result["rows"] if r["section"] in TASKS and r["gflops"] is not None]
    rows = [r for r in rows if r["dtype"] == "float32"]
    labels = list(dict.fromkeys((r["section"], r["label"]) for r in rows))
    names = [n for n in report.COLOURS if any(r["contender"] == n for r in rows)]
    figure, ax = plt.subplots(figsize=(7.5, 5.2), layout="constrained")
    height = 0.8 / len(names)
    for place, (section, label) in enumerate(labels):
        for k, name in enumerate(names):
            for r in rows:
                if (r["section"], r["label"], r["contender"]) == (section, label, name):
                    ax.barh(
                        place + (k - (len(names) - 1) / 2) * height, r["gflops"], 0.9 * height,
                        color=report.COLOURS[name],
                    )  # fmt: skip
    ax.axvline(peak, color="#222222", linewidth=1.5)
    ax.annotate(
        f"the roof: {peak:.0f}", (peak, -0.62), xytext=(-4, 0), textcoords="offset points",
        ha="right", va="center", fontsize=9,
    )  # fmt: skip
    ticks = [
        f"{TASKS[section]}\n{label.removeprefix('sample ').removesuffix(' float32')}"
        for section, label in labels
    ]
    ax.set_yticks(range(len(labels)), ticks, fontsize=8)
    ax.set_ylim(len(labels) - 0.4, -0.9)
    ax.set_xlim(0, 1.05 * peak)
    ax.set_xlabel(
        f"GFLOP/s of necessary work, float32; {result['machine']['cpu']}, "
        f"{report.threads(result['threads'])}, {result['date']}",
        fontsize=9,
    )
    ax.spines[["top", "right"]].set_visible(False)
    swatches = [plt.Rectangle((0, 0), 1, 1, color=report.COLOURS[name]) for name in names]
    figure.legend(
        swatches, names, fontsize=9, frameon=False, ncols=len(names), loc="outside upper center"
    )
    save(figure, "roof.svg")


def parts_of(captions: np.ndarray, cell: str = "lstm") -> tuple[np.ndarray, np.ndarray]:
    """Return the work of each of `PARTS` in GFLOP, on padded captions and the necessary one."""
    shape = SHAPES["coco"]
    N, T = len(captions), captions.shape[1] - 1
    D, H, V, F, G = shape.D, shape.H, shape.V, shape.F, work.GATES[cell] * shape.H
    asked = captions[:, 1:] != NULL
    needed = np.arange(T) < np.where(asked.any(1), T - asked[:, ::-1].argmax(1), 0)[:, None]
    words = len(np.unique(captions[:, :-1][needed]))
    padded, necessary = (
        2e-9 * np.array([2 * N * F * H, 3 * inputs * D * G, 3 * steps * H * G, 3 * scores * H * V])
        for inputs, steps, scores in [(N * T,) * 3, (words, needed.sum(), asked.sum())]
    )
    assert np.isclose(necessary.sum(), 1e-9 * work.step_work(captions, shape, cell))
    return padded, necessary


def draw_work() -> None:
    """Draw the work of a training step with and without what need not be computed."""
    shape = SHAPES["coco"]
    found = read_captions(shape, 20000)
    rng = np.random.default_rng(0)
    batches = [found.captions[rng.choice(len(found.captions), shape.N)] for _ in range(BATCHES)]
    both = np.mean([parts_of(batch) for batch in batches], axis=0)
    figure, ax = plt.subplots(figsize=(7.5, 2.4), layout="constrained")
    for place, amounts in enumerate(both):
        left = 0.0
        for part, amount, colour in zip(PARTS, amounts, COLOURS, strict=True):
            ax.barh(place, amount, 0.62, left=left, color=colour, label=None if place else part)
            if amount > 0.3:
                ax.text(
                    left + amount / 2, place, f"{amount:.1f}", color="white", ha="center",
                    va="center", fontsize=9,
                )  # fmt: skip
            left += amount
        ax.text(left + 0.15, place, f"{left:.1f}", va="center", fontsize=9)
    ax.set_yticks([0, 1], ["all of it", "what is necessary"])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.08 * both.sum(axis=1).max())
    ax.set_xlabel(f"GFLOP, forward and backward; LSTM {shape.sizes}; {found.source}", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=9, frameon=False, ncols=len(PARTS), loc="outside upper center")
    save(figure, "work.svg")
    print("padded", *both[0].round(2), "necessary", *both[1].round(2), found.source)


def main() -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("figures", type=Path, help="output file of bench.peers --json")
    draw_roof(json.loads(parser.parse_args().figures.read_text(encoding="utf-8")))
    draw_work()


if __name__ == "__main__":
    main()
