"""bench.compare finds a slow-down in noise, raises few false alarms, and compares revisions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrnn

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "bench").is_dir():
    pytest.skip("bench is not beside the tests", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from bench import compare, revisions, verdict  # noqa: E402

PLAN = compare.Plan()
CASE = "call rnn_step_forward tiny"


# ---- Statistics ----------------------------------------------------------------------------------


def noisy_blocks(rng: np.random.Generator, slow: float) -> list[float]:
    """Draw the ratios of a whole comparison on a shared virtual machine.

    Each process has a speed of its own (where its memory lies); the machine's speed drifts; other
    programs hold up a tenth of the turns, and in some blocks a whole spell of turns, by factors
    from a distribution without a variance. `slow` is the true slow-down.
    """
    found = []
    for _ in range(PLAN.blocks):
        level = rng.normal(0, 0.1) + np.cumsum(rng.normal(0, 0.01, 2 * PLAN.turns))
        if rng.random() < 0.15:
            first = rng.integers(2 * PLAN.turns)
            level[first : first + rng.integers(1, 2 * PLAN.turns)] += np.log1p(rng.pareto(1.5))
        level += rng.normal(0, 0.015, 2 * PLAN.turns)
        level += (rng.random(2 * PLAN.turns) < 0.1) * np.log1p(rng.pareto(1.2, 2 * PLAN.turns))
        times = np.exp(level).reshape(PLAN.turns, 2)
        times[1::2] = times[1::2, ::-1]  # who is first alternates
        times *= np.exp(rng.normal(0, 0.015, 2))
        times[:, 1] *= 1 + slow
        found.append(verdict.block_ratio(times[:, 0], times[:, 1]))
    return found


@pytest.fixture
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "RESAMPLES", 2000)


@pytest.mark.parametrize("cases", [1, len(compare.DEFAULT)])
def test_three_percent_are_found_in_nine_of_ten_tries(fewer_resamples, rng, cases: int) -> None:
    found = [verdict.judge(noisy_blocks(rng, 0.03), cases).exceeds(0.01) for _ in range(200)]
    assert np.mean(found) >= 0.9
    found = [verdict.judge(noisy_blocks(rng, -0.03), cases).word for _ in range(200)]
    assert found.count("faster") >= 180


@pytest.mark.parametrize("cases", [1, len(compare.DEFAULT)])
def test_at_most_one_false_alarm_in_twenty_comparisons(fewer_resamples, rng, cases: int) -> None:
    alarms = 0
    for _ in range(400 // cases):
        found = [verdict.judge(noisy_blocks(rng, 0.0), cases) for _ in range(cases)]
        alarms += any(one.exceeds(0.0) for one in found)
    assert alarms / (400 // cases) <= 0.05


def test_the_interval_holds_the_true_ratio_nearly_as_often_as_it_says(fewer_resamples, rng) -> None:
    found = [verdict.judge(noisy_blocks(rng, 0.1)) for _ in range(400)]
    held = np.mean([one.low <= 1.1 <= one.high for one in found])
    assert 0.92 <= held <= 0.985
    assert np.median([one.ratio for one in found]) == pytest.approx(1.1, abs=0.002)


def test_swapped_sides_give_the_reciprocal(rng) -> None:
    blocks = np.array(noisy_blocks(rng, 0.05))
    one, other = verdict.judge(blocks), verdict.judge(-blocks)
    assert one.ratio * other.ratio == pytest.approx(1)
    assert one.low * other.high == pytest.approx(1, abs=2e-3)
    assert (one.word, other.word) == ("slower", "faster")


def test_a_few_wild_turns_and_blocks_move_nothing() -> None:
    assert verdict.block_ratio([1, 1, 1, 1, 50], [2, 2, 2, 90, 2]) == pytest.approx(np.log(2))
    blocks = np.zeros(24)
    blocks[:3], blocks[3:5] = 5.0, -2.0
    assert verdict.judge(blocks).ratio == 1.0


def test_a_slow_down_must_be_sure_and_above_the_tolerance() -> None:
    assert verdict.Verdict(1.03, 1.02, 1.04).exceeds(0.01)
    assert not verdict.Verdict(1.03, 0.99, 1.07).exceeds(0.01)  # not sure
    assert not verdict.Verdict(1.005, 1.004, 1.006).exceeds(0.01)  # sure, but tolerated
    assert verdict.Verdict(1.005, 1.004, 1.006).word == "slower"
    assert verdict.Verdict(0.9, 0.8, 0.99).word == "faster"


@pytest.mark.parametrize("blocks", [[], [0.1] * 5, [[0.1] * 9]])
def test_too_few_blocks_are_refused(blocks: list) -> None:
    with pytest.raises(ValueError, match="at least 6"):
        verdict.judge(blocks)


# ---- Revisions -----------------------------------------------------------------------------------

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository in the place of this one."""
    place = tmp_path / "repository"
    place.mkdir()
    monkeypatch.setattr(revisions, "ROOT", place)
    revisions.run("git", "init", "-q")
    (place / ".gitignore").write_text("ignored\n")
    (place / "setup.py").write_text("raise SystemExit('no compiler here')\n")
    revisions.run("git", "add", ".")
    who = ("-c", "user.name=x", "-c", "user.email=x@localhost")
    revisions.run("git", *who, "commit", "-q", "-m", "first")
    return place


@needs_git
def test_the_working_tree_has_what_is_not_committed(repository: Path, tmp_path: Path) -> None:
    assert revisions.working_tree().commit == revisions.find("HEAD").commit
    (repository / "setup.py").write_text("changed\n")
    (repository / "new").write_text("new\n")
    (repository / "ignored").write_text("ignored\n")
    status = revisions.run("git", "status", "--porcelain")
    found = revisions.working_tree()
    assert found.tree != revisions.find("HEAD").tree
    with revisions.checkout(found, tmp_path / "out"):
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names == {".git", ".gitignore", "setup.py", "new"}
        assert (tmp_path / "out" / "setup.py").read_text() == "changed\n"
    assert revisions.run("git", "status", "--porcelain") == status
    assert len(revisions.run("git", "worktree", "list").splitlines()) == 1


@needs_git
def test_unknown_revisions_and_failed_builds_say_so(repository: Path, tmp_path: Path) -> None:
    for name in ("no-such", "--all", ""):
        with pytest.raises(revisions.BuildError, match="expected a revision"):
            revisions.find(name)
    folder = tmp_path / "build"
    folder.mkdir()
    with pytest.raises(revisions.BuildError, match="pip wheel ended with 1"):
        revisions.build(revisions.find("HEAD"), folder)
    assert len(revisions.run("git", "worktree", "list").splitlines()) == 1


@needs_git
def test_outside_of_a_repository_git_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(revisions, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(revisions.BuildError, match="not a git repository"):
        revisions.find("HEAD")


# ---- The command ---------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two copies of this package in the place of two built revisions."""
    places = tmp_path / "0", tmp_path / "1"
    package = Path(fastrnn.__file__).parent
    for place in places:
        # a repaired wheel has its libraries beside the package
        for part in [package, *package.parent.glob("fastrnn.libs")]:
            ignore = shutil.ignore_patterns("__pycache__", "*.c")
            shutil.copytree(part, place / part.name, ignore=ignore)
    monkeypatch.setattr(revisions, "find", lambda name: revisions.Revision(name, 10 * name, name))
    monkeypatch.setattr(revisions, "dates", lambda revision: ["2026-01-02", "2026-01-01"])
    monkeypatch.setattr(revisions, "install_both", lambda *_: places)
    return places


def append(place: Path, code: str) -> None:
    with (place / "fastrnn" / "rnn_layers.py").open("a") as file:
        file.write(code)


SLOW = """
import time
_fast = rnn_step_forward
def rnn_step_forward(*arguments):
    time.sleep(1e-4)
    return _fast(*arguments)
"""


def test_a_slow_revision_ends_with_1_and_is_named(pair, capsys, tmp_path: Path) -> None:
    append(pair[1], SLOW)
    out = tmp_path / "kept"
    command = ["a", "b", "--quick", "--threads", "1", "--cases", CASE, "--benchmark-json", str(out)]
    assert compare.main(command) == 1
    printed = capsys.readouterr().out
    assert f"slower by more than 1 %: {CASE}" in printed
    assert compare.main([*command, "--tolerance", "1e9"]) == 0
    assert "slower by more than 1e+11 %: none" in capsys.readouterr().out
    before, after = (
        json.loads((out / f"{side}-{10 * name}.json").read_text())
        for side, name in (("before", "a"), ("after", "b"))
    )
    for kept in (before, after):
        [one] = kept["benchmarks"]
        assert one["name"] == CASE and one["extra_info"]["verdict"] == "slower"
        assert len(one["stats"]["data"]) == one["stats"]["rounds"] >= compare.QUICK.blocks
    assert after["benchmarks"][0]["stats"]["min"] > 1e-4 > before["benchmarks"][0]["stats"]["min"]
    table = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", *map(str, sorted(out.iterdir()))],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert table.returncode == 0 and table.stdout.count(CASE[:12]) >= 2, table.stderr


def test_a_fast_revision_ends_with_0(pair, capsys) -> None:
    append(pair[0], SLOW)
    assert compare.main(["a", "b", "--quick", "--threads", "1", "--cases", CASE]) == 0
    assert "faster" in capsys.readouterr().out


def test_one_revision_is_compared_with_the_working_tree(pair, capsys, monkeypatch) -> None:
    name = revisions.WORKING_TREE
    monkeypatch.setattr(revisions, "working_tree", lambda: revisions.Revision(name, "c" * 40, "c"))
    command = ["a", "--quick", "--tolerance", "99", "--cases", "call sgd tiny"]
    assert compare.main(command) == 0
    assert "after: working tree (cccccccccc)" in capsys.readouterr().out


@pytest.mark.parametrize(("side", "status"), [(0, 0), (1, 2)])
def test_a_case_that_one_revision_lacks(pair, capsys, side: int, status: int) -> None:
    append(pair[side], "\nrnn_step_forward = None\n")
    cases = ("--cases", CASE, "call sgd tiny")
    assert compare.main(["a", "b", "--quick", "--tolerance", "99", *cases]) == status
    printed = capsys.readouterr().out
    assert f"{CASE}: not compared. {compare.SIDES[side]}: TypeError" in printed
    assert "| call sgd tiny" in printed and f"| {CASE}" not in printed


def test_a_revision_that_cannot_be_imported_ends_with_2(pair, capfd) -> None:
    append(pair[1], "\nraise RuntimeError('broken')\n")
    assert compare.main(["a", "b", "--quick", "--cases", CASE]) == 2
    assert "python -m bench.compare: after: its process ended with 1" in capfd.readouterr().err


def test_the_self_check_counts_alarms_and_finds(pair, capsys, monkeypatch) -> None:
    slow = {0.0: 0, compare.SLOWED: 0}

    def run(self, names, plan, slowed=0.0):
        slow[slowed] += 1
        if slowed:
            return {CASE: verdict.Verdict(1.03, 1.02, 1.04)}
        return {CASE: verdict.Verdict(1.0, 0.99, 1.01 + (slow[0.0] == 7))}

    monkeypatch.setattr(compare.Comparison, "run", run)
    assert compare.main(["--self-check", "--cases", CASE]) == 0
    assert slow == {0.0: 20, compare.SLOWED: 10}
    printed = capsys.readouterr().out
    assert "false alarms: 0 of 20" in printed and "3 % found: 10 of 10" in printed
    monkeypatch.setattr(compare, "SLOWED", 0.0)  # now the slow-down is not there to be found
    assert compare.main(["--self-check", "--tries", "2", "--cases", CASE]) == 1


def test_a_slow_down_on_purpose_slows_the_second_side(pair) -> None:
    comparison = compare.Comparison(pair, 1)
    found = comparison.run(["step lstm tiny float32"], compare.QUICK, slow=4.0)
    assert found["step lstm tiny float32"].ratio > 2
    before, after = comparison.records["step lstm tiny float32"].losses
    assert before == after and len(before) == compare.QUICK.blocks


def test_work_that_differs_is_said() -> None:
    comparison = compare.Comparison((Path(), Path()), 1)
    comparison.records["step"] = compare.Record(losses=([7.0], [7.1]))
    assert "the work differs too: 7 and 7.1" in comparison.warnings()[0]
    comparison.records["step"] = compare.Record(losses=([7.0], [7.0001]))
    assert comparison.warnings() == []


def test_cases_are_chosen_by_patterns(capsys) -> None:
    assert compare.chosen(None) == list(compare.DEFAULT)
    assert set(compare.DEFAULT) <= set(compare.CASES)
    assert compare.chosen(["sample*", "sample 1"]) == ["sample 1000", "sample 1"]
    assert compare.main(["--list"]) == 0
    assert capsys.readouterr().out.splitlines() == list(compare.CASES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected 1 or 2"),
        (["a", "b", "c"], "expected 1 or 2"),
        (["a", "--cases", "huge"], "no case is called 'huge'"),
        (["a", "--tolerance", "-1"], "--tolerance is -1"),
        (["a", "--tolerance", "nan"], "--tolerance is nan"),
        (["a", "--threads", "0"], "--threads is 0"),
        (["a", "--blocks", "5"], "--blocks is 5; expected at least 6"),
        (["a", "b", "--self-check"], "takes 1"),
        (["--self-check", "--benchmark-json", "x"], "does not go with"),
        (["a", "--benchmark-json", __file__], "--benchmark-json: "),
    ],
)
def test_bad_arguments_end_with_2(arguments: list[str], said: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        compare.main(arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no checkout")
def test_a_revision_against_itself_end_to_end() -> None:
    """It is built and installed twice, and the checkout is as before."""
    worktrees = revisions.run("git", "worktree", "list")
    found = subprocess.run(
        [sys.executable, "-m", "bench.compare", "HEAD", "HEAD", "--quick", "--threads", "1",
         "--tolerance", "99", "--cases", "step lstm tiny float32", CASE],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    head = revisions.run("git", "rev-parse", "HEAD")[:10]
    assert f"before: HEAD ({head})" in found.stdout and f"after: HEAD ({head})" in found.stdout
    assert "| step lstm tiny float32" in found.stdout and f"| {CASE}" in found.stdout
    assert revisions.run("git", "worktree", "list") == worktrees
