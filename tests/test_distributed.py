"""Training over MPI: mpirun starts real ranks, more than there are processors where need be."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_layout import write_layout
from distributed_runs import trained

from fastrnn import decoding
from fastrnn.checkpoint import read_newest_checkpoint
from fastrnn.classifiers.rnn import CaptioningRNN, Regularisation, Share
from fastrnn.training.distributed import SIZES

TESTS = Path(__file__).resolve().parent
BESIDE = Path(sys.executable).parent / "mpirun"
MPIRUN = str(BESIDE) if BESIDE.exists() else shutil.which("mpirun")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join((str(TESTS.parent), os.environ.get("PYTHONPATH", ""))),
    "OMP_NUM_THREADS": "1",
    # as root, on fewer processors than ranks
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "PRTE_MCA_odls_base_sigkill_timeout": "20",
}


def _missing() -> str | None:
    if sys.platform != "linux":
        return "the test extra brings an MPI on Linux only"
    if MPIRUN is None:
        return "no mpirun (the packages openmpi, mpich)"
    probe = "from mpi4py import MPI"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    return None if done.returncode == 0 else f"no mpi4py: {done.stderr.strip().splitlines()[-1]}"


WHY_NOT = _missing()
needs_mpi = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")


def launch(ranks: int, *command: str, **environment: str) -> subprocess.Popen[str]:
    assert MPIRUN is not None
    return subprocess.Popen(
        [MPIRUN, "-n", str(ranks), sys.executable, *command],
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def fastrnn_on(ranks: int, *options: str, **environment: str) -> tuple[int, str, str]:
    process = launch(ranks, "-m", "fastrnn", "train", *options, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def small(data: Path, out: Path, epochs: int, *more: str) -> list[str]:
    return [
        "--data", str(data), "--out", str(out), "--hidden-dim", "9", "--wordvec-dim", "6",
        "--batch-size", "7", "--epochs", str(epochs), "--schedule", "constant", "--no-report",
        *more,
    ]  # fmt: skip


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("fastrnn: error")]


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """The data, and what one process trains on them."""
    folder = tmp_path_factory.mktemp("single")
    write_layout(folder / "data")
    return folder, {"lstm 0.3": trained(folder, None, "lstm", 0.3),
                    "rnn 0.0": trained(folder, None, "rnn", 0.0)}  # fmt: skip


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_take_the_steps_of_one_process(single, ranks):
    folder, wanted = single
    process = launch(ranks, str(TESTS / "distributed_runs.py"), "steps", str(folder))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found = json.loads((folder / f"{ranks}.json").read_text())
    for name, one in wanted.items():
        assert len(one["losses"]) > 50  # 50 on captions, and then on rewards
        np.testing.assert_allclose(found[name]["losses"], one["losses"], rtol=0, atol=1e-10)
        for record, same in zip(found[name]["history"], one["history"], strict=True):
            assert record == pytest.approx(same, abs=1e-10)
        for param, weights in one["weights"].items():
            np.testing.assert_allclose(found[name]["weights"][param], weights, atol=1e-10)


@needs_mpi
def test_the_command_trains_and_resumes_on_other_numbers_of_ranks(data_dir, tmp_path):
    run, alone = tmp_path / "run", tmp_path / "alone"
    status, out, err = fastrnn_on(2, *small(data_dir, run, 2))
    assert status == 0, err
    assert out.count("epoch 1/2") == 1  # rank 0 alone shows the progress
    status, out, err = fastrnn_on(3, "--resume", str(run), "--epochs", "3", "--no-report")
    assert status == 0, err
    assert out.count("resumed") == 1
    command = [sys.executable, "-m", "fastrnn", "train", *small(data_dir, alone, 3)]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    found, wanted = history(run), history(alone)
    assert len(found) == len(wanted)
    for record, same in zip(found, wanted, strict=True):
        assert record["loss"] == pytest.approx(same["loss"], rel=1e-4)  # float32
    # one process goes on with what ranks have begun
    command = [sys.executable, "-m", "fastrnn", "train", "--resume", str(run), "--epochs", "4"]
    subprocess.run([*command, "--no-report"], env=ENVIRONMENT, check=True, capture_output=True)
    assert history(run)[-1]["epoch"] == 4


@needs_mpi
def test_what_differs_between_ranks_is_refused(data_dir, tmp_path):
    process = launch(2, str(TESTS / "distributed_runs.py"), "refused", str(data_dir.parent))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found = json.loads((tmp_path / "refused.json").read_text())
    assert "epochs is 3 on rank 1" in found["settings"]
    assert "the version of fastrnn is '9.1' on rank 1" in found["version"]
    assert "the checksum of train_captions is" in found["captions"]
    assert "the vocabulary's hash is" in found["vocabulary"]
    assert "the hash of the weights after step 6 is" in found["weights"]

    run, rank = tmp_path / "run", "os.environ.get('OMPI_COMM_WORLD_RANK') or os.environ['PMI_RANK']"
    code = (
        f"import os, sys; from fastrnn.cli import main; sys.argv[-1] = str(2 + int({rank}))\n"
        "sys.exit(main(['train', *sys.argv[1:]]))"
    )
    process = launch(2, "-c", code, *small(data_dir, run, 2), "--epochs", "2")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert ["epochs is 3 on rank 1" in line for line in errors(err)] == [True], err
    assert not list(run.glob("checkpoints/*"))


@needs_mpi
def test_an_error_of_one_rank_ends_the_job(data_dir, tmp_path):
    rank = "int(os.environ.get('OMPI_COMM_WORLD_RANK') or os.environ['PMI_RANK'])"
    code = f"""
import os, sys
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.cli import main
loss = CaptioningRNN.loss
calls = []
def fails(self, *args, **kwargs):
    calls.append(1)
    if {rank} == 1 and len(calls) == 20:
        raise OSError("the disk is gone")
    return loss(self, *args, **kwargs)
CaptioningRNN.loss = fails
sys.exit(main(['train', *sys.argv[1:]]))
"""
    run = tmp_path / "run"
    began = time.monotonic()
    process = launch(2, "-c", code, *small(data_dir, run, 50))
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode not in (0, None)
    (line,) = errors(err)
    assert "rank 1 on " in line and "the disk is gone" in line
    assert "Traceback" not in err
    checkpoint, damaged = read_newest_checkpoint(run)
    assert checkpoint is not None and not damaged


def running(run: Path, process: subprocess.Popen[str]) -> list[int]:
    """The processes of the ranks, rank 0 first, once they have written a checkpoint of an epoch."""
    until = time.monotonic() + 60
    while len(list(run.glob("checkpoints/*.npz"))) < 2 and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    first = json.loads((run / ".lock-holder").read_text())["process"]
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(stat.parent.name)] = int(fields[1])
    return [first, *(p for p, parent in found.items() if parent == found[first] and p != first)]


def gone(processes: list[int]) -> bool:
    """Whether processes end, but for what nobody has waited for."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            stats = [Path(f"/proc/{pid}/stat") for pid in processes]
            if all(s.read_text().rpartition(")")[2].split()[0] == "Z" for s in stats if s.exists()):
                return True
        time.sleep(0.05)
    return False


@needs_mpi
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_ends_the_job(data_dir, tmp_path, number):
    run = tmp_path / "run"
    options = small(data_dir, run, 100000)
    process = launch(2, "-m", "fastrnn", "train", *options, FASTRNN_MPI_TIMEOUT="5")
    ranks = running(run, process)
    assert len(ranks) == 2
    os.kill(ranks[1], number)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode != 0
    if number == signal.SIGSTOP:
        (line,) = errors(err)
        # it was stopped before a sum, or in the middle of a message
        found = r"rank 1 of 2 has not come .* within 5 s|a rank stopped answering rank 0 .* for 5 s"
        assert re.search(found, line)
    checkpoint, damaged = read_newest_checkpoint(run)
    assert checkpoint is not None and not damaged
    assert gone(ranks)


@needs_mpi
def test_sigterm_to_the_launcher_saves(data_dir, tmp_path):
    # prterun forwards nothing that ranks print after its own SIGTERM
    run, said = tmp_path / "run", tmp_path / "said"
    code = (
        "import os, sys; from fastrnn.cli import main; "
        f"sys.stderr = open({str(said)!r}, 'a', buffering=1)\n"
        "sys.exit(main(['train', *sys.argv[1:]]))"
    )
    process = launch(2, "-c", code, *small(data_dir, run, 100000))
    ranks = running(run, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert gone(ranks)
    assert said.read_text().count("stopped by SIGTERM after step") == 1
    step = int(said.read_text().partition("after step ")[2].split(";")[0])
    checkpoint, damaged = read_newest_checkpoint(run)
    assert checkpoint is not None and checkpoint.about["step"] == step and not damaged


def test_the_extra_is_named_where_it_is_missing(tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ModuleNotFoundError('No module named mpi4py')")
    for name in SIZES:
        environment = {k: v for k, v in os.environ.items() if k not in SIZES}
        path = os.pathsep.join((str(tmp_path), ENVIRONMENT["PYTHONPATH"]))
        done = subprocess.run(
            [sys.executable, "-m", "fastrnn", "train"],
            env={**environment, name: "3", "PYTHONPATH": path}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "training on 3 ranks needs mpi4py" in line and "[mpi]" in line


def test_shares_of_a_batch_add_up_to_it(rng):
    """Whatever rows a share has, its draws are those of the batch."""
    words = {"<NULL>": 0, "<START>": 1, "<END>": 2, **{f"w{i}": i for i in range(3, 12)}}
    model = CaptioningRNN(words, 5, 4, 6, "lstm", np.float64)
    features, captions = rng.standard_normal((7, 5)), rng.integers(0, 12, (7, 6))
    options = Regularisation(0.3, 0.4, 0.1, 0.5, seed=9)
    loss, grads = model.loss(features, captions, regularisation=options)
    told: list[str] = []
    parts = []
    for rows in (np.array([0, 3, 4]), np.array([1, 2, 5, 6]), np.array([], int)):
        share = Share(rows, 7, told.extend)
        parts.append(
            model.loss(features[rows], captions[rows], regularisation=options, share=share)
        )
    np.testing.assert_allclose(sum(part for part, _ in parts), loss, rtol=1e-13)
    for name, grad in grads.items():
        total = sum(part[name] for _, part in parts)
        np.testing.assert_allclose(total, grad, rtol=1e-11, atol=1e-14)
    assert sorted(told) == sorted([*grads] * 3)  # each is complete once in a step
    drawn = decoding.sample(model, features, 6, count=3, seed=4)
    rows = np.array([1, 4, 5])
    part = decoding.sample(model, features[rows], 6, count=3, seed=4, rows=rows)
    np.testing.assert_array_equal(part.ids, drawn.ids[rows])
