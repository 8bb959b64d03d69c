"""The benchmarks run, count operations correctly, and give every contender the same work."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "bench").is_dir():
    pytest.skip("bench is not beside the tests", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from bench import (  # noqa: E402
    calls,
    contenders,
    data,
    full_coco,
    machine,
    peak,
    readme,
    report,
    work,
)
from bench.shapes import SHAPES, Shape  # noqa: E402
from fastrnn._core import captioner  # noqa: E402

TINY = SHAPES["tiny"]


def bench(module: str, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run ``python -m bench.<module>`` and check its exit status."""
    found = subprocess.run(
        [sys.executable, "-m", f"bench.{module}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert found.returncode == status, found.stderr
    return found


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The results of a quick run of bench.peers on the tiny shape, with most sections."""
    path = tmp_path_factory.mktemp("bench") / "peers.json"
    found = bench(
        "peers", "--quick", "--threads", "1", "--shapes", "tiny", "--json", str(path),
        "--contenders", "fastrnn", "reference", "add.at", "sort+reduceat",
        "--sections", "step", "busy", "layer", "embedding", "calls",
    )  # fmt: skip
    result = json.loads(path.read_text())
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    result["printed"] = found.stdout
    return result


# ---- Captions and work ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [TINY, SHAPES["small"]], ids=lambda s: s.name)
def test_synthetic_captions_are_captions(shape: Shape) -> None:
    captions = data.draw_captions(shape, 500)
    assert captions.shape == (500, shape.T + 1) and captions.dtype == np.int32
    assert (captions[:, 0] == data.START).all()
    assert captions.min() == data.NULL and captions.max() < shape.V
    for row in captions:
        end = row.tolist().index(data.END)
        assert (row[1:end] >= data.UNK).all() and (row[end + 1 :] == data.NULL).all()
    np.testing.assert_array_equal(captions, data.draw_captions(shape, 500))


def test_synthetic_lengths_are_those_of_coco() -> None:
    lengths = (data.draw_captions(SHAPES["small"], 20000)[:, 1:] != data.NULL).sum(1)
    assert lengths.mean() == pytest.approx(11.128, abs=0.05)


def test_real_captions_and_their_lengths(shared_data: Path, monkeypatch) -> None:
    monkeypatch.setenv("FASTRNN_SHARED_DATA", str(shared_data))
    found = data.read_captions(SHAPES["coco"], 272108 + 10)
    assert "real" in found.source and "repeated" in found.source
    np.testing.assert_array_equal(found.captions[:10], found.captions[272108:])
    lengths = (found.captions[:272108, 1:] != data.NULL).sum(1)
    np.testing.assert_array_equal(np.bincount(lengths, minlength=17), data.LENGTHS)


def test_absent_captions_are_drawn_and_said_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FASTRNN_SHARED_DATA", str(tmp_path))
    assert "synthetic" in data.read_captions(SHAPES["coco"], 10).source


def test_work_of_a_step_counted_product_by_product() -> None:
    shape = Shape("toy", N=3, T=4, D=5, H=7, V=11, F=13)
    captions = np.array([[1, 4, 5, 2, 0], [1, 4, 0, 2, 0], [1, 2, 0, 0, 0]])
    asked, steps, words = 3 + 2 + 1, 3 + 3 + 1, len({1, 4, 5, 0})
    gates = 4 * 7
    products = [
        (3, 13, 7), (13, 3, 7),  # initial state, and the gradient of its weights
        (words, 5, gates), (5, words, gates), (words, gates, 5),
        (steps, 7, gates), (7, steps, gates), (steps, gates, 7),
        (asked, 7, 11), (7, asked, 11), (asked, 11, 7),
    ]  # fmt: skip
    wanted = sum(2 * m * k * n for m, k, n in products)
    assert work.step_work(captions, shape, "lstm") == wanted


def test_work_of_the_coco_step_is_that_of_the_plan(shared_data: Path, monkeypatch) -> None:
    monkeypatch.setenv("FASTRNN_SHARED_DATA", str(shared_data))
    captions = data.read_captions(SHAPES["coco"], 100).captions
    assert work.step_work(captions, SHAPES["coco"], "lstm") / 1e9 == pytest.approx(11.4, abs=0.5)


def test_first_params_are_those_of_the_model() -> None:
    from fastrnn.classifiers.rnn import CaptioningRNN

    for cell in ("rnn", "lstm"):
        drawn = data.first_params(TINY, cell)
        np.random.seed(231)
        model = CaptioningRNN(data.vocabulary(TINY.V), TINY.F, TINY.D, TINY.H, cell)
        assert drawn.keys() == model.params.keys()
        for name, values in model.params.items():
            np.testing.assert_array_equal(drawn[name], values)


# ---- Contenders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [*calls.LAYERS, *calls.RULES])
def test_prepared_calls_agree(function: str) -> None:
    ours, twins = (
        calls.prepare(calls.library(name), function, TINY, "float64")()
        for name in ("fastrnn", "reference")
    )
    if function.endswith("_forward"):  # the caches differ
        ours, twins = ours[0], twins[0]
    if not isinstance(ours, tuple):
        ours, twins = (ours,), (twins,)
    for one, twin in zip(ours, twins, strict=True):
        if not isinstance(one, dict):
            np.testing.assert_allclose(one, twin, rtol=1e-9, atol=1e-12)


def test_scatter_adds_agree() -> None:
    ids, dout = contenders.embedding_arrays(SHAPES["small"])
    V, D = SHAPES["small"].V, SHAPES["small"].D
    wanted = np.zeros((V, D))
    for word, row in zip(ids.ravel(), dout.reshape(-1, D), strict=True):
        wanted[word] += row
    for scatter in (contenders.add_at, contenders.sort_reduceat):
        dW = np.zeros((V, D), dtype=np.float32)
        scatter(dW, ids, dout)
        np.testing.assert_allclose(dW, wanted, atol=1e-3)


@pytest.fixture(scope="module")
def losses_of() -> Iterator[Callable[[str, str], float]]:
    """What a library finds for one step; each is started once."""
    from bench.peers import Contender

    shape = {"N": 9, "T": 5, "D": 6, "H": 8, "V": 12, "F": 7, "name": "toy"}
    contenders = {}

    def ask(who: str, cell: str) -> float:
        if who not in contenders:
            contenders[who] = Contender(who, 1)
            contenders[who].greet()
        arguments = {"shape": shape, "cell": cell}
        return contenders[who].ask("open", kind="step", arguments=arguments)["loss"]

    yield ask
    for contender in contenders.values():
        contender.close()


@pytest.mark.parametrize("name", ["torch padded", "torch packed", "jax"])
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_peers_do_the_same_step(losses_of, name: str, cell: str) -> None:
    library = name.split()[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    assert losses_of(name, cell) == pytest.approx(losses_of("fastrnn", cell), rel=1e-5)


def test_a_contender_that_fails_says_what() -> None:
    from bench.peers import Contender

    contender = Contender("add.at", 1)
    try:
        contender.greet()
        with pytest.raises(RuntimeError, match=r"add\.at.*AttributeError"):
            contender.ask("open", kind="step", arguments={"shape": TINY.__dict__})
    finally:
        contender.close()


def test_contenders_keep_to_an_instruction_set(tmp_path: Path) -> None:
    path = tmp_path / "avx2.json"
    bench(
        "peers", "--quick", "--threads", "1", "--shapes", "tiny", "--isa", "avx2",
        "--json", str(path),
        "--contenders", "fastrnn", "reference", "--sections", "step", "layer",
    )  # fmt: skip
    result = json.loads(path.read_text())
    assert result["isa"] == "avx2" and result["machine"]["isa"] in ("avx2", "baseline")
    assert {row["dtype"] for row in result["rows"]} == {"float32", "float64"} == set(result["peak"])
    wanted = [goal.what for goal in report.ISA_GOALS["avx2"]]
    assert [goal["goal"] for goal in result["goals"]] == wanted
    # the figures go to a page of their own, and the README stays
    target, docs = tmp_path / "README.md", tmp_path / "docs"
    target.write_text("# x\n")
    bench("readme", str(path), "--readme", str(target), "--docs", str(docs), "--anyway")
    assert target.read_text() == "# x\n"
    page = docs / "figures" / "performance_avx2.md"
    assert [found for found in docs.rglob("*") if found.is_file()] == [page]
    assert "LSTM 2/4/5" in page.read_text() and "| Goal |" not in page.read_text()


def test_absent_libraries_are_named() -> None:
    script = (
        "from bench import contenders\n"
        "def absent(threads): raise ModuleNotFoundError(\"No module named 'torch'\")\n"
        "contenders.CONTENDERS['torch padded'] = absent\n"
        "contenders.serve('torch padded', 1)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, input=""
    )
    assert json.loads(found.stdout) == {"absent": "No module named 'torch'"}


# ---- A whole run ---------------------------------------------------------------------------------


def test_quick_run_has_every_row(quick: dict) -> None:
    assert quick["format"] == 1 and quick["quick"] and quick["threads"] == 1
    sections = {"step", "busy", "layer", "embedding", "calls"}
    assert {row["section"] for row in quick["rows"]} == sections
    for row in quick["rows"]:
        assert 0 < row["ms_min"] <= row["ms_median"] and row["calls"] >= 2
    rated = [row for row in quick["rows"] if row["gflops"] is not None]
    assert rated and all(row["percent_of_peak"] > 0 for row in rated)
    assert quick["peak"]["float32"]["1"] > quick["peak"]["float64"]["1"] > 1e8
    assert quick["machine"]["numpy"] == np.__version__
    functions = {row["label"].split()[0] for row in quick["rows"] if row["section"] == "calls"}
    assert functions >= {*calls.LAYERS, *calls.RULES}


def test_quick_run_gives_both_the_same_batches(quick: dict) -> None:
    for label, rows in report.by_label(quick["rows"], "step"):
        losses = [row["loss"] for row in rows]
        if label.endswith("bfloat16"):  # the reference is not measured in bfloat16
            (single,) = [
                r["loss"] for r in quick["rows"]
                if (r["section"], r["label"], r["contender"])
                == ("step", label.removesuffix(" bfloat16"), "fastrnn")
            ]  # fmt: skip
            assert len(losses) == 1 and losses[0] == pytest.approx(single, rel=1e-3), label
        else:
            assert len(losses) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-5), label


def test_quick_run_names_each_goal(quick: dict) -> None:
    assert [goal["goal"] for goal in quick["goals"]] == [goal.what for goal in report.GOALS]
    for goal in report.GOALS:
        assert goal.what in quick["printed"]
    assert "too few calls" in quick["printed"]


def row(section: str, label: str, contender: str, ms: float, percent: float | None = None) -> dict:
    return {
        "section": section,
        "label": label,
        "contender": contender,
        "ms_median": ms,
        "percent_of_peak": percent,
        "facts": {},
    }


def test_goals_take_the_faster_torch_and_say_short_or_reached() -> None:
    label = "LSTM 100/256/512"
    rows = [row("step", label, "fastrnn", 50.0), row("step", label, "reference", 200.0)]
    rows += [row("step", label, "torch padded", 110.0), row("step", label, "torch packed", 90.0)]
    rows += [row("layer", "lstm 100/256/512 float32", "fastrnn", 60.0, 86.0)]
    found = {goal["goal"]: goal for goal in report.goals(rows, {"memory_mb": {"over": 301.0}})}
    torch = found["whole step LSTM 100/256/512, against the faster torch"]
    assert (torch["measured"], torch["reached"]) == (1.8, False)
    twin = found["whole step LSTM 100/256/512, against the reference"]
    assert (twin["measured"], twin["reached"]) == (4.0, True)
    peak = found["lstm 100/256/512 float32, forward + backward, of the FMA peak"]
    assert (peak["measured"], peak["reached"]) == (86.0, True)
    memory = found["peak memory at full COCO size, over a bare import and the data"]
    assert (memory["measured"], memory["reached"]) == (301.0, False)
    assert found["sample 1 x 17, against a torch LSTMCell loop"]["reached"] is None


def test_figures_that_should_not_be_quoted_say_why() -> None:
    steps = [{**row("step", "LSTM 1/2/3", who, 1.0), "loss": 9.0} for who in ("fastrnn", "jax")]
    result = {"quick": False, "others": 0.02, "rows": steps}
    assert report.warnings(result) == []
    assert "too few" in report.warnings({**result, "quick": True})[0]
    assert "busy" in report.warnings({**result, "others": 0.8})[0]
    steps[1]["loss"] = 9.01
    assert "losses differ" in report.warnings(result)[0]


def test_gain_of_bfloat16_is_over_float32() -> None:
    rows = [row("step", "LSTM 100/256/512", "fastrnn", 60.0)]
    rows += [row("step", "LSTM 100/256/512 bfloat16", "fastrnn", 40.0)]
    rows += [row("step", "LSTM 100/256/512 bfloat16", "torch packed", 90.0)]
    found = {goal["goal"]: goal["measured"] for goal in report.goals(rows, None)}
    assert found["whole step LSTM 100/256/512 in bfloat16, against float32"] == 1.5
    assert found["whole step LSTM 100/256/512 bfloat16, against the faster torch"] == 2.25


def test_the_slowest_call_decides() -> None:
    rows = []
    for label, ours, theirs in (("sgd tiny", 2.0, 1.0), ("adam tiny", 1.0, 9.0)):
        rows += [row("calls", label, "fastrnn", ours), row("calls", label, "reference", theirs)]
    assert report.slowest_call(rows) == (0.5, "sgd tiny")


def test_fma_peak_of_two_types() -> None:
    assert machine.fma_peak("float32", 1, 0.01) > machine.fma_peak("float64", 1, 0.01) > 1e8
    assert machine.fma_peak("bfloat16", 1, 0.01) > 1e8


@pytest.mark.parametrize(
    "arguments",
    [
        ("peers", "--shapes", "huge"),
        ("peers", "--threads", "0"),
        ("peers", "--json", "no/such/folder/f.json"),
        ("full_coco", "--steps", "0"),
        ("readme", "no-such-file.json"),
    ],
)
def test_bad_arguments_end_with_2(arguments: tuple[str, ...]) -> None:
    found = bench(*arguments, status=2)
    assert "Traceback" not in found.stderr and found.stderr.strip()


@pytest.mark.skipif(not peak.STATUS.exists(), reason="this system has no /proc")
def test_peak_memory_is_not_that_of_the_process_before() -> None:
    """A program that was started by a large process has its own."""
    block = np.ones(25_000_000)
    assert peak.peak_bytes() > block.nbytes
    assert full_coco.bare_import_bytes() < 100e6


def test_peak_memory_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("resource")
    monkeypatch.setattr(peak, "STATUS", tmp_path / "none")
    block = np.ones(4_000_000)
    assert peak.peak_bytes() > block.nbytes


def test_full_coco_reports_rate_memory_and_shares(tmp_path: Path) -> None:
    path = tmp_path / "full.json"
    found = bench(
        "full_coco", "--steps", "2", "--hidden", "16", "--wordvec", "8", "--batch", "4",
        "--threads", "1", "--json", str(path),
    )  # fmt: skip
    report_ = json.loads(path.read_text())
    assert "random features" in found.stdout and "captions" in report_
    assert report_["projected"] and report_["captions_per_second"] > 0
    memory = report_["memory_mb"]
    assert memory["data"] > 82783 * 512 * 4 / 1e6
    assert memory["peak"] == pytest.approx(
        memory["bare_import"] + memory["data"] + memory["over"], abs=1e-6
    )
    assert 0 < memory["over"] < 300
    assert sum(report_["shares"].values()) == pytest.approx(100)
    around = {"update_all", "sample_coco_minibatch", "the rest"}
    assert report_["shares"].keys() == around | set(captioner.PHASE_NAMES)


# ---- The README ----------------------------------------------------------------------------------


def test_readme_section_is_replaced_and_nothing_else() -> None:
    text = f"above\n{readme.BEGIN}\nold\n{readme.END}\nbelow\n"
    once = readme.replaced(text, "new")
    assert once == f"above\n{readme.BEGIN}\n\nnew\n\n{readme.END}\nbelow\n"
    assert readme.replaced(once, "new") == once


@pytest.mark.parametrize(
    "text", ["", readme.BEGIN, readme.END + readme.BEGIN, 2 * (readme.BEGIN + readme.END)]
)
def test_readme_without_its_comments_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        readme.replaced(text, "new")


def test_readme_command_writes_the_figures(quick: dict, tmp_path: Path) -> None:
    figures, target, docs = tmp_path / "figures.json", tmp_path / "README.md", tmp_path / "docs"
    figures.write_text(json.dumps(quick))
    target.write_text(f"# x\n{readme.BEGIN}\n{readme.END}\n")
    where = ("--readme", str(target), "--docs", str(docs))
    refused = bench("readme", str(figures), *where, status=2)
    assert "too few calls" in refused.stderr
    assert target.read_text() == f"# x\n{readme.BEGIN}\n{readme.END}\n" and not docs.exists()
    bench("readme", str(figures), *where, "--anyway")
    written, page = target.read_text(), (docs / readme.PAGE).read_text()
    for text in (written, page):
        assert machine.processor_name() in text and "LSTM 2/4/5" in text
        assert "too few calls" in text
    assert written.startswith("# x\n") and "Scatter-add" not in written
    [short] = re.findall(r"^\| LSTM 2/4/5 \| (.*) \|$", written, re.MULTILINE)
    full, _busy = re.findall(r"^\| LSTM 2/4/5 \| (.*) \|$", page, re.MULTILINE)
    assert short.split(" | ")[0] == full.split(" | ")[0]  # fastrnn; the peers did not run
    assert short.split(" | ")[3] == full.split(" | ")[1]  # the reference
    assert "Scatter-add" in page and "| Goal |" in page
    assert (docs / readme.CHART).read_bytes().startswith(b"\x89PNG")
    assert f"](/{readme.CHART.as_posix()})" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "docs", "figures.json"]


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="no README.md beside the tests")
def test_the_readme_prints_what_it_says() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", text, re.DOTALL)
    assert examples
    for code, wanted in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
        assert printed.getvalue() == wanted


def test_the_readme_is_short_and_links_to_the_docs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") < 150
    assert "python -m pip install . && fastrnn train" in text
    assert 'python -m pip install -e ".[test]" && python -m pytest' in text
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert len(links) > 8
    if not (ROOT / "docs").is_dir():
        pytest.skip("the docs are not beside the tests")
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_names_of_the_package_in_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = {*re.findall(r"\bfastrnn(?:\.\w+)+", text)}
    assert len(names) > 2
    for name in names:
        module, _, attribute = name.rpartition(".")
        found = dir(import_module(module))
        assert attribute in found or import_module(name), name


def test_shapes_of_the_table() -> None:
    assert {name: (s.N, s.T, s.D, s.H) for name, s in SHAPES.items()} == {
        "cs231n": (25, 16, 256, 512),
        "coco": (100, 16, 256, 512),
        "good": (100, 16, 256, 200),
        "large": (256, 16, 256, 512),
        "small": (128, 16, 128, 128),
        "tiny": (2, 3, 4, 5),
    }
    assert replace(TINY, name="x").sizes == "2/4/5"
