"""The results of `bench.peers` as text, as Markdown and as a chart, compared with the goals."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
BUSY = 0.1  # warn if other programs keep more processors busy than this
ALIKE = 1e-5  # largest relative difference of losses with the same weights and minibatch
ALIKE_ROUNDED = 1e-3  # the same in bfloat16: torch rounds more than the operands of products
TORCH = ("torch padded", "torch packed")
COLOURS = {
    "fastrnn": "#c8442c",
    "torch padded": "#3b6ea5",
    "torch packed": "#7fa6cf",
    "jax": "#7a9e5f",
    "reference": "#9a9a9a",
}


# ---- Goals ---------------------------------------------------------------------------------------


def median(rows: Rows, section: str, label: str, contender: str) -> float | None:
    """Return the median time of one contender in milliseconds, or None if it has none."""
    for row in rows:
        if (row["section"], row["label"], row["contender"]) == (section, label, contender):
            return row["ms_median"]
    return None


def ratio(rows: Rows, section: str, label: str, *others: str) -> float | None:
    """Return the time of the fastest of the others divided by that of fastrnn, or None."""
    ours = median(rows, section, label, "fastrnn")
    theirs = [median(rows, section, label, other) for other in others]
    known = [time for time in theirs if time is not None]
    return min(known) / ours if ours is not None and known else None


def gain(rows: Rows, section: str, label: str) -> float | None:
    """Return the time of fastrnn in float32 divided by its time in bfloat16, or None."""
    single = median(rows, section, label, "fastrnn")
    rounded = median(rows, section, f"{label} bfloat16", "fastrnn")
    return single / rounded if single is not None and rounded else None


def beside(label: str) -> str:
    """Return the label of a job that is measured beside a program that keeps a processor busy."""
    return f"{label} beside a busy program"


def delay(rows: Rows, label: str) -> float | None:
    """Return the time of fastrnn beside a busy program divided by its time without, or None."""
    quiet = median(rows, "busy", label, "fastrnn")
    busy = median(rows, "busy", beside(label), "fastrnn")
    return busy / quiet if quiet and busy is not None else None


def share_of_peak(rows: Rows, label: str) -> float | None:
    """Return the percentage of the FMA peak that fastrnn reaches in a dense layer, or None."""
    for row in rows:
        if (row["section"], row["label"], row["contender"]) == ("layer", label, "fastrnn"):
            return row["percent_of_peak"]
    return None


def slowest_call(rows: Rows) -> tuple[float | None, str]:
    """Return the smallest ratio reference / fastrnn among the brief calls, and its label."""
    labels = dict.fromkeys(row["label"] for row in rows if row["section"] == "calls")
    found = [(ratio(rows, "calls", label, "reference"), label) for label in labels]
    return min(((r, label) for r, label in found if r is not None), default=(None, ""))


MAXIMA = ("MB", "x time")


@dataclass(frozen=True)
class Goal:
    """A performance goal.

    Attributes
    ----------
    what : str
        The task, and what it is compared with.
    wanted : float
        The bound: a minimum for 'x' and '%', a maximum for 'MB' and 'x time'.
    unit : {'x', '%', 'MB', 'x time'}
        Speedup, percentage of the FMA peak, megabytes, or a multiple of another time.
    measure : callable
        Takes the rows and the report of `bench.full_coco`; returns the measured value or None.
    note : callable
        Takes the rows; returns a note to print with the result.
    """

    what: str
    wanted: float
    unit: str
    measure: Callable[[Rows, dict[str, Any] | None], float | None]
    note: Callable[[Rows], str] = lambda rows: ""

    def reached(self, measured: float) -> bool:
        return measured <= self.wanted if self.unit in MAXIMA else measured >= self.wanted


def _step(label: str, wanted: float, *others: str) -> Goal:
    whom = "the reference" if others == ("reference",) else "the faster torch"
    return Goal(
        f"whole step {label}, against {whom}",
        wanted,
        "x",
        lambda rows, memory: ratio(rows, "step", label, *others),
    )


def _peak(label: str, wanted: float) -> Goal:
    return Goal(
        f"{label}, forward + backward, of the FMA peak",
        wanted,
        "%",
        lambda rows, memory: share_of_peak(rows, label),
    )


def _embedding(other: str, wanted: float) -> Goal:
    label = "word_embedding_backward 100x16x256"
    return Goal(
        f"{label}, against {other}",
        wanted,
        "x",
        lambda rows, memory: ratio(rows, "embedding", label, other),
    )


def _gain(section: str, label: str, wanted: float) -> Goal:
    what = "whole step " if section == "step" else ""
    return Goal(
        f"{what}{label} in bfloat16, against float32",
        wanted,
        "x",
        lambda rows, memory: gain(rows, section, label),
    )


def _sample(label: str, wanted: float) -> Goal:
    return Goal(
        f"{label}, against a torch LSTMCell loop",
        wanted,
        "x",
        lambda rows, memory: ratio(rows, "sample", label, "torch padded"),
        lambda rows: _mean_length(rows, label),
    )


def _mean_length(rows: Rows, label: str) -> str:
    for row in rows:
        if row["label"] == label and "mean_length" in row["facts"]:
            facts = row["facts"]
            return f"mean length {facts['mean_length']:.1f} after {facts['trained_steps']} steps"
    return ""


GOALS = (
    _step("LSTM 100/256/512", 2.0, *TORCH),
    _step("LSTM 100/256/512", 3.5, "reference"),
    _step("LSTM 256/256/512", 2.0, *TORCH),
    _step("LSTM 256/256/512", 3.5, "reference"),
    _step("LSTM 25/256/512", 1.8, *TORCH),
    _step("LSTM 100/256/200", 2.0, *TORCH),
    _step("RNN 100/256/512", 1.8, *TORCH),
    _peak("lstm 100/256/512 float32", 85),
    Goal(
        "lstm 100/256/512 float32, forward + backward, against torch.nn.LSTM",
        1.15,
        "x",
        lambda rows, memory: ratio(rows, "layer", "lstm 100/256/512 float32", "torch padded"),
    ),
    _peak("lstm 25/256/512 float32", 80),
    _peak("lstm 100/256/512 float64", 85),
    _peak("lstm 25/256/512 float64", 80),
    _gain("step", "LSTM 100/256/512", 1.6),
    _gain("step", "LSTM 256/256/512", 1.7),
    _step("LSTM 100/256/512 bfloat16", 1.9, *TORCH),
    _peak("lstm 100/256/512 bfloat16", 70),
    _gain("sample", "sample 1000 x 17", 1.5),
    Goal(
        f"whole step {beside('LSTM 100/256/512')}, against its time without",
        1.5,
        "x time",
        lambda rows, memory: delay(rows, "LSTM 100/256/512"),
    ),
    Goal(
        f"whole step {beside('LSTM 100/256/512')}, against the faster torch",
        4.0,
        "x",
        lambda rows, memory: ratio(rows, "busy", beside("LSTM 100/256/512"), *TORCH),
    ),
    _embedding("add.at", 15),
    _embedding("sort+reduceat", 4),
    Goal(
        "tiny shapes and single steps, the slowest against the reference",
        1.0,
        "x",
        lambda rows, memory: slowest_call(rows)[0],
        lambda rows: slowest_call(rows)[1],
    ),
    _sample("sample 1000 x 17", 1.6),
    _sample("sample 1000 x 17 stop_at_end", 2.5),
    _sample("sample 1 x 17", 2.0),
    Goal(
        "peak memory at full COCO size, over a bare import and the data",
        300,
        "MB",
        lambda rows, memory: None if memory is None else memory["memory_mb"]["over"],
    ),
)

ISA_GOALS = {
    "avx2": (
        _step("LSTM 100/256/512", 2.0, *TORCH),
        _step("LSTM 25/256/512", 1.75, *TORCH),
        _step("LSTM 100/256/200", 2.0, *TORCH),
        _step("LSTM 256/256/512", 1.95, *TORCH),
        _step("RNN 100/256/512", 1.9, *TORCH),
        _peak("lstm 100/256/512 float32", 83),
    ),
}
"""The goals of a run whose contenders keep to an instruction set."""


def goals(
    rows: Rows, memory: dict[str, Any] | None, isa: str | None = None
) -> list[dict[str, Any]]:
    """Compare the rows with every goal; `reached` is None if nothing was measured.

    `isa` is the instruction set that all contenders keep to, or None.
    """
    found = []
    for goal in ISA_GOALS[isa] if isa else GOALS:
        measured = goal.measure(rows, memory)
        found.append(
            {
                "goal": goal.what,
                "wanted": goal.wanted,
                "unit": goal.unit,
                "measured": measured,
                "reached": None if measured is None else goal.reached(measured),
                "note": goal.note(rows),
            }
        )
    return found


# ---- Text ----------------------------------------------------------------------------------------


def progress(label: str, medians: dict[str, float]) -> None:
    """Print the medians of the last job to standard error."""
    figures = ", ".join(f"{name} {time:.4g}" for name, time in medians.items())
    print(f"{label}: {figures} ms", file=sys.stderr, flush=True)


def by_label(rows: Rows, section: str) -> Iterator[tuple[str, Rows]]:
    """Yield each label of a section with its rows."""
    chosen = [row for row in rows if row["section"] == section]
    for label in dict.fromkeys(row["label"] for row in chosen):
        yield label, [row for row in chosen if row["label"] == label]


def threads(count: int) -> str:
    """Return '1 thread', '2 threads'."""
    return f"{count} thread{'s' * (count != 1)}"


def machine_line(result: dict[str, Any]) -> str:
    """Return one sentence that describes the machine and the libraries."""
    m = result["machine"]
    if not m:
        return f"{threads(result['threads'])}."
    peers = [
        f"{name} {facts[name]}"
        for contender, name in (("torch padded", "torch"), ("jax", "jax"))
        if (facts := result["versions"].get(contender))
    ]
    versions = ", ".join([f"NumPy {m['numpy']} ({m['blas']})", *peers])
    return (
        f"{m['cpu']}, {m['processors']} processors, {m['system']}, {m['isa']}, "
        f"{threads(result['threads'])}; fastrnn {m['fastrnn']}, {versions}; {result['date']}."
    )


def peak_line(result: dict[str, Any]) -> str:
    """Return one sentence about the FMA peak, or '' if it was not measured."""
    parts = []
    for dtype, found in result["peak"].items():
        each = ", ".join(
            f"{flops / 1e9:.0f} on {threads(int(count))}" for count, flops in found.items()
        )
        parts.append(f"{dtype} {each}")
    return f"FMA peak in GFLOP/s: {'; '.join(parts)}." if parts else ""


def warnings(result: dict[str, Any]) -> list[str]:
    """Return the reasons why the results should not be quoted."""
    found = []
    if result["quick"]:
        found.append("From a --quick run: too few calls to quote.")
    if (result["others"] or 0) > BUSY:
        found.append(
            f"Other programs kept {result['others']:.2g} processors busy during the run: times, "
            "ratios and the peak are not reliable."
        )
    for label, rows in by_label(result["rows"], "step"):
        losses = [row["loss"] for row in rows]
        alike = ALIKE_ROUNDED if label.endswith("bfloat16") else ALIKE
        if max(losses) - min(losses) > alike * max(losses):
            each = ", ".join(f"{row['contender']} {row['loss']:.6g}" for row in rows)
            found.append(f"{label}: the first losses differ, so the work differs too: {each}.")
    return found


def _ms(time: float | None) -> str:
    return "" if time is None else f"{time:.0f}" if time >= 1000 else f"{time:.3g}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def outcome(goal: dict[str, Any]) -> str:
    """Return 'reached', 'short' or 'not measured'."""
    return {True: "reached", False: "short", None: "not measured"}[goal["reached"]]


def text(result: dict[str, Any]) -> str:
    """Return the complete report as text for a terminal."""
    lines = ["", machine_line(result), peak_line(result)]
    lines += warnings(result)
    lines += [f"not installed: {name} ({why})" for name, why in result["absent"].items()]
    titles = {
        "step": "whole training step",
        "busy": "whole training step, one of the processors busy",
        "layer": "dense layer, forward + backward",
        "embedding": "scatter-add of word vectors",
        "calls": "tiny shapes and single steps",
        "sample": "greedy decoding",
    }
    for section, title in titles.items():
        groups = list(by_label(result["rows"], section))
        if not groups:
            continue
        heads = f"{'min ms':>10} {'median ms':>10} {'/ fastrnn':>9} {'GFLOP/s':>8} {'% peak':>7}"
        lines += ["", f"{title:<46} {heads}"]
        for label, rows in groups:
            ours = median(rows, section, label, "fastrnn")
            for row in rows:
                relative = None if ours is None else row["ms_median"] / ours
                name = f"{label:<32} {row['contender']}"
                lines.append(
                    f"{name:<46} {row['ms_min']:>10.4g} {row['ms_median']:>10.4g} "
                    f"{_number(relative, '.2f'):>9} {_number(row['gflops'], '.0f'):>8} "
                    f"{_number(row['percent_of_peak'], '.0f'):>7}"
                )
    if result["rows"]:
        lines.append("\nGFLOP/s counts necessary work only; see bench/work.py.")
    lines += ["", f"{'goal':<76} {'wanted':>9} {'measured':>9}"]
    for goal in result["goals"]:
        wanted = f"{goal['wanted']:g} {goal['unit']}"
        measured = _number(goal["measured"], ".3g")
        note = f" ({goal['note']})" if goal["note"] else ""
        lines.append(f"{goal['goal']:<76} {wanted:>9} {measured:>9}  {outcome(goal)}{note}")
    lines += ["", *warnings(result)]
    return "\n".join(lines).rstrip()


# ---- Markdown ------------------------------------------------------------------------------------


def table(heads: list[str], lines: list[list[str]]) -> str:
    """Return a Markdown table with the first column left-aligned and the others right-aligned."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, rule, *lines])


def short_markdown(result: dict[str, Any]) -> str:
    """Return the figures of the README: the times of whole training steps, and the machine."""
    lines = []
    for label, rows in by_label(result["rows"], "step"):
        ours, plain, jax = (
            median(rows, "step", label, name) for name in ("fastrnn", "reference", "jax")
        )
        faster = ratio(rows, "step", label, *TORCH)
        torch = None if ours is None or faster is None else ours * faster
        lines.append([label, *map(_ms, (ours, torch, jax, plain))])
    heads = ["Training step (N/D/H), ms", "fastrnn", "PyTorch", "JAX", "NumPy"]
    parts = [table(heads, lines)] if lines else []
    parts += [f"**{line}**" for line in warnings(result)]
    parts.append(machine_line(result))
    return "\n\n".join(parts)


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of the docs: machine, times and goals."""
    parts = [f"Measured on: {machine_line(result)} {peak_line(result)}".strip()]
    parts += [f"**{line}**" for line in warnings(result)]
    if result["absent"]:
        parts.append(f"Not installed: {', '.join(result['absent'])}.")
    titles = {
        "step": "Training step (N/D/H), ms",
        "busy": "Training step while another program keeps one of the processors busy, ms",
        "layer": "Dense layer, forward + backward, ms",
        "sample": "Greedy decoding, ms",
        "embedding": "Scatter-add, ms",
    }
    for section, title in titles.items():
        groups = list(by_label(result["rows"], section))
        if not groups:
            continue
        names = list(dict.fromkeys(row["contender"] for _, rows in groups for row in rows))
        rated = any(row["percent_of_peak"] is not None for _, rows in groups for row in rows)
        lines = []
        for label, rows in groups:
            times = [median(rows, section, label, name) for name in names]
            cells = [label, *(_ms(time) for time in times)]
            best = ratio(rows, section, label, *TORCH)
            share = next((r["percent_of_peak"] for r in rows if r["contender"] == "fastrnn"), None)
            cells.append("" if best is None else f"{best:.2f}")
            lines.append(cells + ([_number(share, ".0f")] if rated else []))
        heads = [title, *names, "torch / fastrnn", *(["% of peak"] if rated else [])]
        parts.append(table(heads, lines))
    parts.append(
        "Times are medians. torch / fastrnn uses the faster torch version. % of peak is the rate "
        "of necessary work (`bench/work.py`) relative to the FMA peak of all threads. All "
        "libraries draw the same minibatches; drawing is part of the time of a step."
    )
    lines = []
    for goal in result["goals"]:
        if goal["reached"] is not None:
            note = f" ({goal['note']})" if goal["note"] else ""
            wanted = f"{'at most ' * (goal['unit'] in MAXIMA)}{goal['wanted']:g} {goal['unit']}"
            measured = f"{goal['measured']:.3g} {goal['unit']}"
            lines.append([goal["goal"] + note, wanted, measured, outcome(goal)])
    if lines:
        parts.append(table(["Goal", "wanted", "measured", ""], lines))
    return "\n\n".join(parts)


# ---- Files ---------------------------------------------------------------------------------------


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary file in the same directory, which is then renamed."""
    handle, aside = tempfile.mkstemp(dir=path.resolve().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def write_chart(path: Path, result: dict[str, Any]) -> bool:
    """Draw a bar chart of times relative to fastrnn: training steps, layers and decoding.

    Return whether there was anything to draw.
    """
    import io

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {
        "step": "whole training step",
        "layer": "dense layer, forward + backward",
        "sample": "greedy decoding",
    }
    panels = [
        (title, groups)
        for section, title in titles.items()
        if (groups := list(by_label(result["rows"], section)))
    ]
    if not panels:
        return False
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, 3.4 * len(panels)), squeeze=False, layout="constrained"
    )
    for ax, (title, groups) in zip(axes[:, 0], panels, strict=True):
        present = {row["contender"] for _, rows in groups for row in rows}
        names = [name for name in COLOURS if name in present]
        width = 0.8 / len(names)
        for k, name in enumerate(names):
            for place, (label, rows) in enumerate(groups):
                time = median(rows, rows[0]["section"], label, name)
                ours = median(rows, rows[0]["section"], label, "fastrnn")
                if time is None or not ours:
                    continue
                x = place + (k - (len(names) - 1) / 2) * width
                bar = ax.bar(x, time / ours, 0.92 * width, color=COLOURS[name])
                ax.bar_label(bar, [_ms(time)], fontsize=7, padding=1, color="#444444")
        ax.axhline(1, color=COLOURS["fastrnn"], linewidth=0.8, zorder=0)
        ax.set_title(title, loc="left", fontsize=11)
        ax.set_ylabel("time relative to fastrnn")
        ax.set_xticks(range(len(groups)), [label for label, _ in groups], fontsize=8)
        ax.margins(y=0.12)
        ax.spines[["top", "right"]].set_visible(False)
        swatches = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in names]
        ax.legend(
            swatches, names, fontsize=8, frameon=False, ncols=len(names), loc="lower right",
            bbox_to_anchor=(1, 1), borderaxespad=0.2,
        )  # fmt: skip
    m = result["machine"]
    figure.supxlabel(
        f"milliseconds (median) above each bar; {m.get('cpu', '')}, {threads(result['threads'])}",
        fontsize=8,
    )
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    plt.close(figure)
    write_whole(path, image.getvalue())
    return True
