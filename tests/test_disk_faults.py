"""Disks that fill up, fail or vanish during training, clocks that jump, processes that are killed.

After each fault, everything that was said to be saved can be read, and training goes on to the same
weights. The suite tries some of the cases; ``.ci/faults`` tries every call that changes files, and
kills a training ``FASTRNN_FAULTS`` times at random.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_layout import write_layout
from test_resume import OPTIONS, finish, result, start, wait_for_training

from fastrnn import cli
from fastrnn.checkpoint import checkpoint_path, checkpoint_steps, load_model, read_checkpoint
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.files import is_unfinished, read_npz
from fastrnn.report import read_history, write_report
from fastrnn.runlock import HOLDER_FILE, LOCK_FILE
from fastrnn.training import TrainConfig, Trainer, read_run, saving, start_model

LONG = "FASTRNN_FAULTS" in os.environ
KILLS = int(os.environ.get("FASTRNN_FAULTS", "0"))
COMMAND = ["--hidden-dim", "5", "--wordvec-dim", "4", "--epochs", "2", "--batch-size", "10",
           "--save-every", "2", "--no-report"]  # fmt: skip


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip flushing, which takes most of the time; power failures are simulated here."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def data(tmp_path: Path) -> dict:
    write_layout(tmp_path / "data")
    return read_captioning_directory(tmp_path / "data")


@pytest.fixture
def wanted(data: dict) -> dict[str, np.ndarray]:
    """The final weights of an undisturbed training."""
    trainer = trainer_of(data, None)
    trainer.fit()
    assert (trainer.step, trainer.steps_per_epoch) == (8, 4)
    return trainer.model.params


def trainer_of(data: dict, run: Path | None, **options: Any) -> Trainer:
    config = TrainConfig(
        epochs=2, batch_size=10, seed=3, save_every=2, record_every=1, monitor="loss",
        val_images=0, feature_noise=0.1, weight_average=0.9,
    )  # fmt: skip
    return Trainer(start_model(data, "lstm", 4, 5), data, config, run=run, **options)


def check_whole(run: Path) -> int:
    """Read everything that is in a run; return the step of its newest checkpoint, -1 without."""
    for path in run.rglob("*"):
        if path.is_dir() or is_unfinished(path) or path.name in (LOCK_FILE, HOLDER_FILE):
            continue
        if path.name == "model.npz":
            load_model(path)
        elif path.parent.name == "checkpoints":
            read_checkpoint(path)
        elif path.name == "history.jsonl":
            assert path.read_bytes()[-1:] in (b"", b"\n")
            read_history(path)
        elif path.name == "metrics.json":
            json.loads(path.read_text())
        else:
            assert path.name == "settings.json"
            read_run(run)
    steps = checkpoint_steps(run)
    if not steps:
        return -1
    read_run(run)  # what has a checkpoint can be resumed
    best = read_checkpoint(checkpoint_path(run, steps[-1])).about["best"]
    if best is not None:
        load_model(run)
        read_checkpoint(checkpoint_path(run, best["step"]))
    return steps[-1]


def check_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, w in wanted.items():
        np.testing.assert_array_equal(found[name], w, err_msg=name)


def check_finished(run: Path, wanted: dict[str, np.ndarray]) -> None:
    """The last checkpoint has the wanted weights, and the best model is that of its checkpoint."""
    assert check_whole(run) == 8
    newest = read_checkpoint(checkpoint_path(run, 8))
    check_equal(newest.model.params, wanted)
    best = read_checkpoint(checkpoint_path(run, newest.about["best"]["step"]))
    check_equal(load_model(run).params, best.model.params)
    assert not [path for path in run.rglob("*") if is_unfinished(path)]


def check_goes_on(run: Path, data: dict, wanted: dict[str, np.ndarray]) -> None:
    """Train to the end from the state that a fault left; compare the weights."""
    trainer = Trainer.resume(run, data) if checkpoint_steps(run) else trainer_of(data, run)
    trainer.fit()
    check_equal(trainer.model.params, wanted)
    check_finished(run, wanted)
    assert {path.name for path in run.iterdir()} == {
        "settings.json", "history.jsonl", "metrics.json", "model.npz", "checkpoints",
    }  # fmt: skip


def count(kind: str, number: int) -> None:
    """Print a line for the table that ``.ci/faults`` makes."""
    print(f"\nfaults: {number:6,} {kind}")


class Disk:
    """Intercepts the calls that change files, and replaces chosen calls.

    Parameters
    ----------
    patch : MonkeyPatch
    strike : callable
        Called as ``strike(call, half, path)`` instead of the call: ``call()`` makes it, ``half()``
        writes the first half of what was to be written, and does nothing for other calls; the path
        is None where the system's own call has none.
    at : int
        The number of the call; 0 for none.
    for_good : bool
        Strike at all later calls, too.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        strike: Callable[..., Any] | None = None,
        at: int = 0,
        for_good: bool = False,
    ) -> None:
        self.calls: list[str] = []
        self.struck: list[str] = []
        self._strike, self._at, self._for_good = strike, at, for_good
        for owner, name in (
            (os, "open"), (os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "unlink"),
            (Path, "mkdir"),
        ):  # fmt: skip
            patch.setattr(owner, name, self._watch(name, getattr(owner, name)))
        fdopen = os.fdopen

        def open_handle(handle: int, mode: str) -> Any:
            if mode == "rb":
                return fdopen(handle, mode)
            return io.BufferedRandom(Written(self, handle))

        patch.setattr(os, "fdopen", open_handle)

    def _watch(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def watched(*args: Any, **options: Any) -> Any:
            path = None if name == "fsync" else str(args[0])
            return self.come_to(name, lambda: call(*args, **options), lambda: None, path)

        return watched

    def come_to(
        self, name: str, call: Callable[[], Any], half: Callable[[], Any], path: str | None
    ) -> Any:
        self.calls.append(name)
        number = len(self.calls)
        if number == self._at or (self._for_good and 0 < self._at < number):
            self.struck.append(name)
            assert self._strike is not None
            return self._strike(call, half, path)
        return call()


def chosen(
    calls: list[str], rng: np.random.Generator, each: int, long: int | None = None
) -> list[int]:
    """Choose `each` calls of every name (in the long form: `long` or all); return their numbers."""
    numbers = np.arange(1, len(calls) + 1)
    most = (long or len(calls)) if LONG else each
    alike = [numbers[np.array(calls) == name] for name in sorted(set(calls))]
    return sorted(int(n) for some in alike for n in rng.choice(some, min(most, len(some)), False))


class Written(io.FileIO):
    """A file on a `Disk`, below Python's buffers: what it writes goes to the system."""

    def __init__(self, disk: Disk, handle: int) -> None:
        super().__init__(handle, "r+")
        self._disk = disk

    def write(self, content: Any) -> int:
        write = super().write
        content = memoryview(content).cast("B")
        return self._disk.come_to(
            "write", lambda: write(content), lambda: write(content[: len(content) // 2]), None
        )


# -- processes that are killed


def kill_at(number: int, after: bool, how: str, run: Path, directory: Path) -> None:
    """Train until killed at a call that changes files; print what was reported as saved."""

    def strike(call: Callable[[], Any], half: Callable[[], Any], path: str | None) -> None:
        call() if after else half()
        os.kill(os.getpid(), signal.SIGKILL)

    def save(trainer: Trainer, record: dict) -> None:
        if trainer.step in (3, 7):
            trainer.save()
            print("saved", trainer.step, flush=True)

    data = read_captioning_directory(directory)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, strike, number)
        if how == "command":
            with contextlib.redirect_stdout(sys.stderr):
                assert not cli.main(
                    ["train", "--data", str(directory), "--out", str(run), *COMMAND]
                )
        else:
            trainer_of(data, run, on_step=save).fit()
        print("saved 8")
    print("calls", *disk.calls, flush=True)


def kill_at_each(moments: list[tuple[int, bool]], how: str, place: Path, directory: Path) -> None:
    """Call `kill_at` for each moment, in a copy of this process; print what becomes of it."""
    for number, after in moments:
        copy = os.fork()
        if copy == 0:
            try:
                kill_at(number, after, how, place / f"{number}-{after}", directory)
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
        print("ended", number, int(after), status, flush=True)


def killed(
    moments: list[tuple[int, bool]], how: str, place: Path, directory: Path
) -> Iterator[tuple[Path, int, list[str]]]:
    """Call `kill_at_each` in another process; yield the run, the step saved last, the calls."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); from test_disk_faults import *\n"
    program += f"kill_at_each({moments}, {how!r}, Path(sys.argv[2]), Path(sys.argv[3]))"
    process = subprocess.Popen(
        [sys.executable, "-c", program, Path(__file__).parent, place, directory],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "FASTRNN_NUM_THREADS": "1"},
    )  # fmt: skip
    saved, calls, ended = -1, [], 0  # type: int, list[str], int
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            about, *said = line.split()
            if about == "saved":
                saved = int(said[0])
            elif about == "calls":
                calls = said
            elif about == "ended":
                number, after, status = map(int, said)
                assert status == (-signal.SIGKILL if number else 0), line
                yield place / f"{number}-{bool(after)}", saved, calls
                saved, ended = -1, ended + 1
    assert ended == len(moments)


@pytest.mark.parametrize("how", ["trainer", "command"])
def test_killed_at_a_call_that_changes_files(data, wanted, tmp_path, rng, how):
    directory, place = tmp_path / "data", tmp_path / "runs"
    place.mkdir()
    ((whole, saved, calls),) = killed([(0, False)], how, place, directory)
    assert len(calls) > 60 and saved == 8
    if how == "command":
        wanted = read_checkpoint(checkpoint_path(whole, 8)).model.params
    numbers = chosen(calls, rng, 1, None if how == "trainer" else 50)
    moments = [(n, after) for after in (False, True) for n in numbers]
    reached = set()
    for run, saved, _ in killed(moments, how, place, directory):
        newest = check_whole(run) if run.is_dir() else -1
        assert newest >= saved, run
        reached.add(newest)
        if how == "trainer":
            check_goes_on(run, data, wanted)
        else:
            again = ["--data", str(directory), "--out", str(run), *COMMAND]
            if (run / "settings.json").is_file():
                again = ["--resume", str(run), "--no-report"]
            assert cli.main(["train", *again]) == 0
            check_finished(run, wanted)
        shutil.rmtree(run)
    assert len(reached) > 2
    count("kills just before or after a call that changes files", len(moments))


@pytest.mark.skipif(not LONG, reason="test_resume.py kills 20 times; .ci/faults as often as asked")
def test_killed_at_random_moments(tmp_path):
    """As in test_resume.py, and all files are read after each kill."""
    directory = tmp_path / "data"
    write_layout(directory)
    data = read_captioning_directory(directory)
    whole = tmp_path / "whole"
    process = start("--data", directory, "--out", whole, *OPTIONS)
    wait_for_training(process)
    began = time.perf_counter()
    finish(process)
    seconds = time.perf_counter() - began
    wanted = result(whole, data)
    rng = np.random.default_rng()
    kills = runs = 0
    reached = set()
    while kills < KILLS:
        runs += 1
        run = tmp_path / f"killed{runs}"
        process = start("--data", directory, "--out", run, *OPTIONS)
        while kills < KILLS:
            wait_for_training(process)
            try:
                process.wait(rng.uniform(0, seconds / 8))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL
            kills += 1
            reached.add(check_whole(run))
            process = start("--resume", run, "--no-report")
        finish(process)
        found = result(run, data)
        check_equal(found["arrays"], wanted["arrays"])
        assert found == {**wanted, "arrays": found["arrays"]}
    assert len(reached) > KILLS // 5
    count("kills at random moments of training", kills)


# -- machines that lose their power


class PowerLoss:
    """Tracks what is certainly on the disk: all that was flushed, as POSIX defines it.

    The content of a file is there once the file was flushed, and its name once its directory was.
    """

    def __init__(
        self, patch: pytest.MonkeyPatch, root: Path, on_change: Callable[[], None]
    ) -> None:
        self.root, self._files, self._new = root, {}, 0
        # names by directory, and contents by file: a file is known by its inode and a number,
        # because the inode of a removed file is reused
        self.names: dict[Path, dict[str, tuple[int, int]]] = {}
        self.contents: dict[tuple[int, int], bytes] = {}
        os_open, fsync = os.open, os.fsync

        def opened(path: Any, flags: int, *args: Any, **options: Any) -> int:
            handle = os_open(path, flags, *args, **options)
            if flags & os.O_TRUNC or (flags & os.O_CREAT and flags & os.O_EXCL):
                self._new += 1
                self._files[os.fstat(handle).st_ino] = self._new
                on_change()
            return handle

        def flushed(handle: int) -> None:
            fsync(handle)
            path = Path(f"/proc/self/fd/{handle}").resolve()
            if path.is_dir():
                self.names[path] = self.names_now(path)
            else:
                self.contents[self._known(path)] = path.read_bytes()
            on_change()

        def changed(call: Callable[..., Any]) -> Callable[..., Any]:
            def after(*args: Any, **options: Any) -> Any:
                done = call(*args, **options)
                if args[0].is_relative_to(root):
                    on_change()
                return done

            return after

        patch.setattr(os, "open", opened)
        patch.setattr(os, "fsync", flushed)
        for name in ("replace", "rename", "unlink", "mkdir"):
            patch.setattr(Path, name, changed(getattr(Path, name)))

    def _known(self, path: Path) -> tuple[int, int]:
        inode = path.stat().st_ino
        return inode, self._files.get(inode, 0)

    def names_now(self, directory: Path) -> dict[str, tuple[int, int]]:
        return {path.name: self._known(path) for path in directory.iterdir()}

    def left(self, kind: str, directory: Path | None = None) -> Iterator[tuple[Path, bytes | None]]:
        """Yield the files, and directories (None), that exist after a restart of the machine.

        Parameters
        ----------
        kind : {'flushed', 'named', 'removed'}
            What was flushed alone; or all changes of names, too; or removals, too.
        """
        directory = directory or self.root
        names = self.names.get(directory, {})
        if kind != "flushed":
            now = self.names_now(directory) if directory.is_dir() else {}
            names = now if kind == "named" else {n: f for n, f in names.items() if n in now}
        for name, file in names.items():
            path = directory / name
            if path.is_dir():
                yield path, None
                yield from self.left(kind, path)
            else:
                yield path, self.contents.get(file, b"")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc to learn names from")
def test_power_is_lost_at_every_moment(data, wanted, tmp_path):
    """Files and names that were not flushed are lost; all that was reported as saved is there."""
    disk, after = tmp_path / "disk", tmp_path / "after"
    disk.mkdir()
    said, losses, seen = -1, 0, {}
    states: list[list[tuple[Path, bytes | None]]] = []

    def lose() -> None:
        nonlocal losses
        for kind in ("flushed", "named", "removed"):
            state = sorted(power.left(kind))
            losses += 1
            if seen.get(kind) != (said, state):
                seen[kind] = said, state
                states.append(state)
                start_again(state)
                newest = check_whole(after / "run") if (after / "run").is_dir() else -1
                assert newest >= said, kind

    def start_again(state: list[tuple[Path, bytes | None]]) -> None:
        shutil.rmtree(after, ignore_errors=True)
        for path, content in state:
            place = after / path.relative_to(disk)
            if content is None:
                place.mkdir(parents=True)
            else:
                place.write_bytes(content)

    def say(path: Path, arrays: dict) -> None:
        nonlocal said
        write(path, arrays)
        if path.parent.name == "checkpoints":
            said = int(path.stem.partition("-")[2])
            lose()

    write = saving.write_sealed
    run = disk / "run"
    with pytest.MonkeyPatch.context() as patch:
        power = PowerLoss(patch, disk, lose)
        patch.setattr(saving, "write_sealed", say)
        trainer_of(data, run).fit()
        left = dict(power.left("flushed"))
    assert said == 8
    for path in run.rglob("*"):
        assert left[path] == (path.read_bytes() if path.is_file() else None)
    for state in states[:: 1 if LONG else len(states) // 6]:
        start_again(state)
        check_goes_on(after / "run", data, wanted)
    count("losses of power", losses)


# -- disks that fail


@contextlib.contextmanager
def failing(code: int, at: int, for_good: bool) -> Iterator[Disk]:
    """A disk on which a call fails."""

    def strike(call: Callable[[], Any], half: Callable[[], Any], path: str | None) -> None:
        with contextlib.suppress(OSError, ValueError):
            half()
        raise OSError(code, os.strerror(code), *([] if path is None else [path]))

    with pytest.MonkeyPatch.context() as patch:
        yield Disk(patch, strike, at, for_good)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_a_call_that_changes_files_fails(data, wanted, tmp_path, rng, code, for_good):
    """Training reports it, and continues once the disk works again."""
    with failing(code, 0, for_good) as disk:
        trainer_of(data, tmp_path / "whole").fit()
    calls = len(disk.calls)
    assert calls > 60
    struck = []
    for number in chosen(disk.calls, rng, 2, None if code == errno.ENOSPC else 50):
        run, copied = tmp_path / "failed", tmp_path / "copied"
        trainer = trainer_of(data, run)
        with failing(code, number, for_good) as disk:
            try:
                trainer.fit()
            except OSError as error:
                assert error.errno == code
                assert Path(error.filename).is_relative_to(run)
                assert not is_unfinished(error.filename)
            else:
                # Errors are ignored when the lock's own files are removed. Before locking,
                # filelock has two ways to find out whether the file system supports locks.
                given_up = set(disk.struck) == {"unlink"} and number > calls - 3
                finding_out = disk.struck == ["open"] and "write" not in disk.calls[:number]
                assert given_up or finding_out, (number, disk.struck)
        struck += disk.struck[:1]
        if run.is_dir():
            check_whole(run)
            shutil.copytree(run, copied)
        # Continue with the same trainer, as in a notebook, and with a new one, as the command does.
        trainer.fit()
        check_equal(trainer.model.params, wanted)
        check_finished(run, wanted)
        check_goes_on(copied, data, wanted)
        # The lock is free again.
        Trainer.resume(run, data).fit()
        shutil.rmtree(run)
        shutil.rmtree(copied)
    assert set(struck) == {"open", "write", "fsync", "replace", "unlink", "mkdir"}
    for name in sorted(set(struck)):
        count(f"calls of {name} that failed", struck.count(name))


@pytest.mark.filterwarnings("error")
def test_a_best_model_that_fails_to_be_saved(data, wanted, tmp_path, monkeypatch):
    """It is saved when training continues, although the weights have changed by then."""
    run, write = tmp_path / "run", saving.write_sealed
    gone_on = threading.Event()

    def fail(path: Path, arrays: dict) -> None:
        if path == checkpoint_path(run, 4):
            gone_on.wait(60)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, arrays)

    def spoil(trainer: Trainer, record: dict) -> None:
        trainer.config = dataclasses.replace(trainer.config, learning_rate=10.0)

    trainer = trainer_of(
        data, run, on_epoch=spoil, on_step=lambda t, _: t.step == 5 and gone_on.set()
    )
    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_sealed", fail)
        with pytest.raises(OSError, match="No space left"):
            trainer.fit()
    assert 5 <= trainer.step <= 6
    trainer.fit()
    assert trainer.best["step"] == 4
    check_finished(run, trainer.model.params)


def test_a_resumed_trainer_whose_last_save_fails(data, wanted, tmp_path):
    """It saves again when training continues."""
    run = tmp_path / "run"
    trainer_of(data, run, on_step=lambda t, _: t.step == 6 and t.stop()).fit()
    trainer = Trainer.resume(run, data)
    assert trainer.step == 6

    def fail(path: Path, arrays: dict) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "write_sealed", fail)
        with pytest.raises(OSError, match="No space left"):
            trainer.fit()
    assert trainer.finished
    assert check_whole(run) == 6
    trainer.fit()
    check_finished(run, wanted)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EMFILE], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["open", "read"])
def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_damaged(
    data, wanted, tmp_path, monkeypatch, code, name
):
    """Resuming from an older checkpoint would discard the newest."""
    run = tmp_path / "run"
    trainer_of(data, run, on_step=lambda t, _: t.step == 6 and t.stop()).fit()
    newest = checkpoint_path(run, 6)
    os_open, fdopen = os.open, os.fdopen
    handles = []

    class Unreadable(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def seek(self, offset: int, whence: int = 0) -> int:
            return os.lseek(handles[0], offset, whence)

        def fileno(self) -> int:
            return handles[0]

        def readinto(self, _: object) -> int:
            raise OSError(code, os.strerror(code))

        def close(self) -> None:
            if not self.closed:
                os.close(handles[0])
            super().close()

    def open_(path: Any, *args: Any, **options: Any) -> int:
        if path != newest:
            return os_open(path, *args, **options)
        if name == "open":
            raise OSError(code, os.strerror(code), str(path))
        handles.append(os_open(path, *args, **options))
        return handles[0]

    def fdopen_(handle: int, mode: str) -> Any:
        return io.BufferedReader(Unreadable()) if handle in handles else fdopen(handle, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_)
        patch.setattr(os, "fdopen", fdopen_)
        with pytest.raises(OSError) as caught:
            Trainer.resume(run, data)
        assert (caught.value.errno, caught.value.filename) == (code, str(newest))
    read_npz(newest)
    check_goes_on(run, data, wanted)


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[Callable[[str], None]]:
    """Mount a disk in memory; skip the test where that is not allowed."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a disk here")
    try:
        yield lambda options: subprocess.run(
            ["mount", "-o", f"remount,{options}", str(place)], check=True
        )
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_full(data, wanted, tmp_path):
    place = tmp_path / "disk"
    full, reached = 0, set()
    for pages in range(1, 40, 1 if LONG else 4):
        with mounted(place, f"size={4 * pages}k") as remount:
            run = place / "run"
            try:
                trainer_of(data, run).fit()
            except OSError as error:
                full += 1
                assert error.errno == errno.ENOSPC
                assert Path(error.filename).is_relative_to(run)
            reached.add(check_whole(run) if run.is_dir() else -1)
            remount("size=4m")
            check_goes_on(run, data, wanted)
    assert full > 2
    assert {-1, 8} < reached
    count("disks in memory that were full", full)


def test_a_disk_that_becomes_read_only(data, wanted, tmp_path):
    """Training on it is refused before the first step, with the run's name and the reason."""
    place = tmp_path / "disk"
    with mounted(place, "size=4m") as remount:
        run = place / "run"
        stopped = trainer_of(data, run, on_step=lambda t, _: t.step == 5 and t.stop())
        stopped.fit()
        remount("ro")
        for trainer in (stopped, Trainer.resume(run, data)):
            with pytest.raises(OSError, match="the run directory cannot be locked") as caught:
                trainer.fit()
            assert (caught.value.errno, caught.value.filename) == (errno.EROFS, str(run))
            assert trainer.step == 5
        assert check_whole(run) == 5
        remount("rw")
        check_goes_on(run, data, wanted)
    count("disks in memory that became read-only", 1)


@pytest.mark.parametrize("step", range(1, 8) if LONG else [2, 5])
@pytest.mark.parametrize("what", ["run", "checkpoints", "settings.json"], ids=str)
def test_a_directory_that_vanishes(data, wanted, tmp_path, what, step):
    """It is created again, and the run can be resumed."""
    run = tmp_path / "run"

    def vanish(trainer: Trainer, record: dict) -> None:
        if trainer.step == step:
            trainer.save()
            if what == "settings.json":
                (run / what).unlink()
            else:
                shutil.rmtree(run if what == "run" else run / what)

    trainer = trainer_of(data, run, on_step=vanish)
    trainer.fit()
    check_equal(trainer.model.params, wanted)
    assert checkpoint_steps(run)[-1] == 8
    resumed = Trainer.resume(run, data)
    assert resumed.step == 8
    check_equal(resumed.model.params, wanted)
    assert read_history(run / "history.jsonl") == trainer.history
    count("directories that vanished", 1)


# -- clocks that jump


@pytest.mark.parametrize("seconds", [-3600.0, 0.0, 1e9])
def test_clocks_that_jump(data, wanted, tmp_path, monkeypatch, seconds):
    """No time is negative, nothing is divided by zero, and the weights are the same."""
    now = {"time": time.time(), "perf_counter": time.perf_counter(), "monotonic": 1e6}

    def tick(name: str) -> Callable[[], float]:
        def read() -> float:
            now[name] += seconds
            return now[name]

        return read

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        for name in now:
            patch.setattr(time, name, tick(name))
        trainer = trainer_of(data, run)
        trainer.fit()
        page = write_report(run).read_text()
    assert not re.search(r"\b(nan|inf)\b", page)
    check_equal(trainer.model.params, wanted)
    epochs = [r for r in read_history(run / "history.jsonl") if "seconds" in r]
    assert len(epochs) == 2
    for record in epochs:
        for name in ("seconds", "validation_seconds", "captions_per_second"):
            assert 0 <= record[name] < np.inf, (name, record)
    count("clocks that jumped", 1)


@pytest.mark.parametrize("seconds", [-60.0, 0.0, 1e9])
def test_clocks_that_jump_under_the_command_line(data, tmp_path, monkeypatch, capsys, seconds):
    now = time.perf_counter()

    def read() -> float:
        nonlocal now
        now += seconds
        return now

    with monkeypatch.context() as patch:
        for name in ("time", "perf_counter", "monotonic"):
            patch.setattr(time, name, read)
        run = str(tmp_path / "run")
        assert cli.main(["train", "--data", str(tmp_path / "data"), "--out", run, *COMMAND]) == 0
        assert cli.main(["evaluate", run]) == 0
    said = capsys.readouterr()
    assert "epoch 2/2" in said.out
    # such as "-1:-23 left" and "-12 captions/s"
    assert not re.search(r"(?<![\w-])-\d|\b(nan|inf)\b", said.out), said.out
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["seconds"] >= 0
    count("clocks that jumped", 1)
