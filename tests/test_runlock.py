"""One process at a time trains in a run directory."""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from coco_layout import write_layout

from fastrnn import cli, runlock
from fastrnn.checkpoint import checkpoint_steps, read_checkpoint
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.runlock import HOLDER_FILE, RunInUseError, RunLock
from fastrnn.training import TrainConfig, Trainer, start_model

OPTIONS = ["--hidden-dim", "6", "--wordvec-dim", "5", "--no-report"]
TRAIN = [sys.executable, "-u", "-m", "fastrnn", "train"]


@pytest.fixture
def data(tmp_path):
    write_layout(tmp_path / "data")
    return read_captioning_directory(tmp_path / "data")


def trainer_of(data, run, **options):
    config = TrainConfig(epochs=2, batch_size=6, monitor="loss", **options)
    return Trainer(start_model(data, "rnn", 5, 6), data, config, run=run)


def holder(run):
    """A process that holds the lock of a run until it is killed."""
    code = (
        "import sys, time\nfrom fastrnn import runlock\n"
        "lock = runlock.RunLock(sys.argv[1]); lock.acquire(); print('held', flush=True)\n"
        "time.sleep(100)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_second_holder_is_told_of_the_first(tmp_path):
    process = holder(tmp_path)
    try:
        with pytest.raises(RunInUseError) as error, RunLock(tmp_path):
            pass
        said = str(error.value)
        assert said.startswith(f"{tmp_path} is in use by process {process.pid} on ")
        assert socket.gethostname() in said and said.endswith("; wait for it or stop it")
    finally:
        process.kill()
        process.wait()
    # the lock of a dead process can be acquired, any number of times
    with RunLock(tmp_path) as lock, lock:
        assert json.loads((tmp_path / HOLDER_FILE).read_text())["process"] == os.getpid()
    assert not (tmp_path / HOLDER_FILE).exists()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", '{"process": "me"}', "[" * 5000, "\0",
     '{"process": 1, "host": "two\\nlines"}', '{"process": 1, "host": "\\u001b[2J"}',
     json.dumps({"process": 1, "host": "a" * 2000})],
)  # fmt: skip
def test_holder_that_does_not_say_who(tmp_path, text):
    with RunLock(tmp_path):
        (tmp_path / HOLDER_FILE).write_text(text)
        with pytest.raises(RunInUseError, match="in use by another process"):
            RunLock(tmp_path).acquire()


def test_lock_is_held_as_often_as_it_is_acquired(tmp_path):
    lock, other = RunLock(tmp_path), RunLock(tmp_path)
    with lock:
        with lock, pytest.raises(RunInUseError):
            other.acquire()
        with pytest.raises(RunInUseError):
            other.acquire()
    with other, pytest.raises(RunInUseError):
        lock.acquire()
    lock.release()  # a lock that is not held: no effect


def test_lock_stays_where_it_is_when_the_working_directory_changes(tmp_path, monkeypatch):
    """Two runs with the same relative path have different locks."""
    locks = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        locks.append(RunLock("run"))
        locks[-1].acquire()
    locks[0].release()
    assert not (tmp_path / "a/run/.lock").exists()
    with pytest.raises(RunInUseError, match=f"in use by process {os.getpid()} "):
        RunLock(tmp_path / "b" / "run").acquire()
    with copy.copy(locks[0]), pytest.raises(RunInUseError):
        locks[0].acquire()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["run"]
    locks[1].release()


def test_checkpoints_go_where_the_lock_is(data, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    trainer = trainer_of(data, "run")
    monkeypatch.chdir(tmp_path)
    trainer.fit()
    assert checkpoint_steps(tmp_path / "a" / "run") and not (tmp_path / "run").exists()


def test_lock_whose_holder_cannot_be_written_is_given_up(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    lock = RunLock(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(runlock, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            lock.acquire()
    with RunLock(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_neither_owns_nor_gives_up_the_lock(tmp_path):
    lock = RunLock(tmp_path)
    with lock:
        for how in ("release", "acquire", "exit"):
            child = os.fork()
            if not child:
                status = 0
                try:
                    if how == "release":
                        lock.release()
                    elif how == "acquire":
                        lock.acquire()
                        status = 1
                except RunInUseError:
                    pass
                except BaseException:
                    status = 2
                os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            with pytest.raises(RunInUseError):
                RunLock(tmp_path).acquire()


def test_of_eight_that_start_at_once_one_gets_it(tmp_path):
    for _ in range(30):
        got, barrier = [], threading.Barrier(8)

        def start(got=got, barrier=barrier):
            lock = RunLock(tmp_path)
            barrier.wait()
            with contextlib.suppress(RunInUseError):
                lock.acquire()
                got.append(lock)

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        got[0].release()


# ---- Trainers ------------------------------------------------------------------------------------


def test_two_trainers_on_one_run(data, tmp_path):
    run = tmp_path / "run"
    seen = []

    def try_another(trainer, record):
        other = trainer_of(data, None)
        other.run = run
        for use in (other.fit, other.save):
            with pytest.raises(RunInUseError, match=f"process {os.getpid()} on"):
                use()
        with pytest.raises(RunInUseError):
            Trainer.resume(run, data).fit()
        seen.append(record["step"])

    first = trainer_of(data, run)
    first.on_epoch = try_another
    first.fit()
    assert len(seen) == 2 and not (run / HOLDER_FILE).exists()
    assert first.fit() == first.history  # it may be called again
    # an error also releases the lock
    failing = trainer_of(data, tmp_path / "other")
    failing.on_step = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        failing.fit()
    Trainer.resume(tmp_path / "other", data).fit()


def test_run_that_went_on_meanwhile(data, tmp_path):
    run = tmp_path / "run"
    first = trainer_of(data, run)
    first.on_epoch = lambda trainer, _: trainer.stop()
    first.fit()
    one, two = (Trainer.resume(run, data) for _ in range(2))
    one.fit()
    kept = checkpoint_steps(run)
    with pytest.raises(ValueError, match=r"has reached step 12, but this trainer was made"):
        two.fit()
    with pytest.raises(ValueError, match=r"has reached step 12, but this trainer was made"):
        two.save()
    assert checkpoint_steps(run) == kept


def test_lock_whose_holder_cannot_be_written(tmp_path, monkeypatch):
    def fail(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("fastrnn.runlock.write_text", fail)
        refused = RunLock(tmp_path)
        with pytest.raises(OSError, match="No space left"):
            refused.acquire()
    with RunLock(tmp_path):  # the refused trainer does not hold it
        pass


@pytest.mark.parametrize(
    "take", [copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))]
)
def test_copy_of_a_trainer(data, tmp_path, take):
    """It continues from where it was copied, and cannot use the run while the other trains."""
    alone = trainer_of(data, None)
    alone.fit()
    stopped = trainer_of(data, tmp_path / "run")
    stopped.on_epoch = lambda trainer, _: trainer.stop()
    stopped.fit()
    stopped.on_epoch = None
    other = take(stopped)
    with stopped.lock(), pytest.raises(RunInUseError):
        other.fit()
    other.fit()
    assert other.step == alone.step
    for name, w in alone.model.params.items():
        np.testing.assert_array_equal(other.model.params[name], w)


# ---- The command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["--force", "--resume"])
def test_run_that_is_in_use(data, tmp_path, capsys, how):
    """One line, exit status 2, and not a byte of the run has changed."""
    run = tmp_path / "run"
    arguments = ["train", "--data", str(tmp_path / "data"), "--out", str(run), "--epochs", "1"]
    assert cli.main([*arguments, *OPTIONS]) == 0
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    process = holder(run)
    try:
        capsys.readouterr()
        if how == "--force":
            status = cli.main([*arguments, *OPTIONS, "--force"])
        else:
            status = cli.main(["train", "--resume", str(run), "--epochs", "3"])
        said = capsys.readouterr().err
    finally:
        process.kill()
        process.wait()
    assert status == 2 and said.count("\n") == 1
    assert f"{run} is in use by process {process.pid} on " in said
    after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and ".lock" not in p.name}
    assert after == before
    more = ["--epochs", "2", "--restart-schedule", "--no-report"]
    assert cli.main(["train", "--resume", str(run), *more]) == 0


def test_of_two_command_lines_one_trains(data, tmp_path):
    """Two at once, twenty times: one trains, the other fails, and the run is complete."""
    for k in range(int(os.environ.get("FASTRNN_RACES", "3"))):
        run = tmp_path / f"run{k}"
        command = [*TRAIN, "--data", str(tmp_path / "data"), "--out", str(run), *OPTIONS]
        both = [
            subprocess.Popen(
                [*command, "--epochs", "60"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        said = [process.communicate(timeout=120)[1] for process in both]
        assert sorted(process.returncode for process in both) == [0, 2], said
        assert any("is in use by" in s or "--out" in s for s in said), said
        steps = checkpoint_steps(run)
        assert (
            read_checkpoint(run / "checkpoints" / f"step-{steps[-1]:08}.npz").about["epoch"] == 60
        )


def test_killed_holder_is_followed(data, tmp_path):
    run = tmp_path / "run"
    command = [*TRAIN, "--data", str(tmp_path / "data"), "--out", str(run), *OPTIONS]
    process = subprocess.Popen([*command, "--epochs", "100000"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (run.is_dir() and checkpoint_steps(run)) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (run / HOLDER_FILE).exists()
    trainer = Trainer.resume(run, data)
    trainer.on_step = lambda trainer, _: trainer.stop()
    trainer.fit()
    assert not (run / HOLDER_FILE).exists()


def test_paths_are_those_of_pathlib(tmp_path):
    assert RunLock(str(tmp_path)).run == Path(tmp_path)
