"""Data-parallel training over MPI: every rank computes the gradients of a share of each batch.

The gradients are summed by one all-reduce a step over one contiguous buffer, in buckets that travel
while the others are still being computed. Random numbers depend on the caption's row in the batch,
so that any number of ranks draws the same ones, and the loss is divided by the size of the whole
batch. R ranks therefore take the steps of one process, up to the order of sums.

MPI is reached through mpi4py, the extra ``mpi``. Nothing is imported unless a launcher such as
mpirun has started the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np

from ..extras import install_command

if TYPE_CHECKING:
    from .objectives import Gradients

SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables in which launchers say how many ranks they have started."""
LIMIT_VARIABLE = "FASTRNN_MPI_TIMEOUT"
"""Environment variable: the seconds that a rank may be late for the sum of a step."""
LIMIT = 20.0
LONG_LIMIT = 3600.0
"""Seconds to wait for what one rank does alone, such as reading data or writing results."""
SIGNALS = 65
"""One more than the largest number of a signal."""

_BUFFER = ("W_vocab", "b_vocab", "Wh", "b", "Wx", "W_proj", "b_proj", "W_embed")
"""The order of the gradients in the buffer: that in which they are complete."""
_ALIGNMENT = 64
"""Bytes that each gradient is aligned to."""
_ROLL_CALL = 1
"""Tag of the messages by which ranks find out which of them is missing."""

_Result = TypeVar("_Result")


def launched() -> int:
    """Return how many ranks the launcher of this process has started; 1 without one."""
    found = [os.environ.get(name, "") for name in SIZES]
    return max((int(size) for size in found if size.isdecimal()), default=1)


def join() -> Ranks | None:
    """Return the ranks that were launched together with this process; None if it is alone.

    Raises
    ------
    ImportError
        There are several, but mpi4py or the MPI library is missing.
    ValueError
        mpi4py uses another MPI than the launcher.
    """
    count = launched()
    if count == 1 and "PMIX_RANK" not in os.environ:
        return None
    # of shared memory alone, which Open MPI's UCX has none of, and says so in many lines
    os.environ.setdefault("OMPI_MCA_osc", "^ucx")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        if count == 1:
            return None  # a launcher of one process
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
        raise ImportError(
            f"training on {count} ranks needs mpi4py and an MPI{reason}: {install_command('mpi')}"
        ) from None
    world = MPI.COMM_WORLD
    if world.size == 1 and count > 1:
        library = MPI.Get_library_version().split(",")[0].split("\n")[0].strip()
        raise ValueError(
            f"the launcher has started {count} ranks, but {library}, which mpi4py uses, sees one; "
            "expected the mpirun of that MPI"
        )
    return Ranks(world) if world.size > 1 else None


class Ranks:
    """The processes that train together.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        Their communicator; it is duplicated.
    limit : float, optional
        Seconds that a rank may be late for the sum of a step before the job is ended. By default
        those of the environment variable ``FASTRNN_MPI_TIMEOUT``, or else 20.

    Attributes
    ----------
    rank, size : int
        The number of this process, and how many there are.
    is_root : bool
        Whether this is rank 0, which alone writes files and shows progress.
    together : bool
        Whether the error that is being raised is raised on every rank.
    """

    def __init__(self, comm: Any, limit: float | None = None) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self.comm: Any = comm.Dup()
        self._calls: Any = comm.Dup()  # for the roll call, which no other message may disturb
        self.node: Any = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.rank: int = comm.rank
        self.size: int = comm.size
        self.is_root: bool = comm.rank == 0
        self.together: bool = False
        self._windows: list[Any] = []  # of shared memory, until the process ends
        self._limit = float(os.environ.get(LIMIT_VARIABLE, LIMIT)) if limit is None else limit

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank {self.rank} of {self.size})"

    @property
    def place(self) -> str:
        """This rank, in words."""
        return f"rank {self.rank} on {socket.gethostname()}"

    # -- waiting

    def wait(self, requests: list[Any], limit: float | None = None, nap: float = 0.0) -> None:
        """Wait for requests; if a rank does not take part in time, end the job.

        Parameters
        ----------
        requests : list of mpi4py.MPI.Request
        limit : float, optional
            Seconds.
        nap : float, optional
            Seconds to sleep between looks, for long waits. By default the processor is yielded to
            other ranks, which may share it.
        """
        limit = self._limit if limit is None else limit
        began = time.monotonic()
        while not self._mpi.Request.Testall(requests):
            if nap:
                time.sleep(nap)
            elif hasattr(os, "sched_yield"):
                os.sched_yield()
            waited = time.monotonic() - began
            called = waited > 1 and self._calls.iprobe(self._mpi.ANY_SOURCE, _ROLL_CALL)
            if waited > limit or called:
                self._give_up(self._limit)

    def meet(self, limit: float | None = None) -> None:
        """Wait until every rank is here; rank 0 may have had something to do alone.

        Parameters
        ----------
        limit : float, optional
            Seconds to wait. By default, rank 0 waits as long as for the sum of a step, and the
            others an hour for rank 0.
        """
        if limit is None:
            limit = self._limit if self.is_root else LONG_LIMIT
        self.wait([self.comm.Ibarrier()], limit, nap=0.002)

    def _give_up(self, limit: float) -> NoReturn:
        """Find out which ranks do not answer, and end the job; the first of the others says it."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        sent = [self._calls.isend(None, rank, _ROLL_CALL) for rank in others]
        missing, until = set(others), time.monotonic() + 3
        while missing and time.monotonic() < until:
            missing -= {rank for rank in missing if self._calls.iprobe(rank, _ROLL_CALL)}
            self._mpi.Request.testall(sent)
            time.sleep(0.01)
        if self.rank == min(set(range(self.size)) - missing):
            who = ", ".join(map(str, sorted(missing))) or "?"
            self.abort(
                f"rank {who} of {self.size} has not come to the sum of the gradients within "
                f"{limit:g} s (rank {self.rank} has); resume from the last checkpoint"
            )
        time.sleep(5)  # the other one speaks
        self.abort(None)

    # -- errors

    def abort(self, message: str | None, status: int = 2) -> NoReturn:
        """Print a message, if any, and end the processes of all ranks."""
        if message is not None:
            print(f"fastrnn: error: {message}", file=sys.stderr, flush=True)
            time.sleep(0.5)  # the launcher has to read it before it ends everything
        with self._in_time(5, None):
            self.comm.Abort(status)
        os._exit(status)

    @contextlib.contextmanager
    def _in_time(self, limit: float, message: str | None) -> Iterator[None]:
        """End this process, and so the job, if a blocking call of MPI does not return in time.

        A rank that was stopped in the middle of a message can keep others in such a call, which
        then never comes back to look at a clock.
        """

        def end() -> None:
            if message is not None:
                print(f"fastrnn: error: {message}", file=sys.stderr, flush=True)
            os._exit(2)

        timer = threading.Timer(limit, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _answered(self) -> contextlib.AbstractContextManager[None]:
        """All ranks were here just now, so a blocking call with them returns soon."""
        return self._in_time(
            self._limit,
            f"a rank stopped answering {self.place} for {self._limit:g} s; resume from the last "
            "checkpoint",
        )

    def raise_together(self, error: BaseException) -> NoReturn:
        """Raise an error that every rank raises at this place."""
        self.together = True
        raise error

    def do(self, work: Callable[[], _Result]) -> _Result:
        """Return the result of a function that may fail; if it does on one rank, raise on all."""
        result, error = None, None
        try:
            result = work()
        except Exception as problem:
            error = problem
        failed = self.gather(None if error is None else f"{self.place}: {error}", LONG_LIMIT)
        if any(text is not None for text in failed):
            if error is not None and all(text is not None for text in failed):
                self.raise_together(error)
            first = next(text for text in failed if text is not None)
            self.raise_together(error if self.is_root and error is not None else ValueError(first))
        return result  # type: ignore[return-value]

    def alone(self, work: Callable[[], _Result]) -> _Result:
        """Return what a function returns on rank 0, which alone calls it, to all ranks."""
        return self.broadcast(self.do(lambda: work() if self.is_root else None))  # type: ignore

    def gather(self, value: Any, limit: float | None = None) -> list[Any]:
        """Return the values of all ranks, which `meet` for that."""
        self.meet(limit)
        with self._answered():
            return self.comm.allgather(value)

    # -- what must be the same

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Check that facts are the same on every rank.

        Raises
        ------
        ValueError
            They are not; on every rank.
        """
        told = self.gather((self.place, dict(facts)))
        where, wanted = told[0]
        for place, found in told[1:]:
            for name in {**wanted, **found}:
                if wanted.get(name) != found.get(name):
                    self.raise_together(
                        ValueError(
                            f"{name} is {found.get(name)!r:.80} on {place}, but "
                            f"{wanted.get(name)!r:.80} on {where}; expected the same on every rank"
                        )
                    )

    def broadcast(self, value: _Result) -> _Result:
        """Return the value of rank 0."""
        self.meet()
        with self._answered():
            return self.comm.bcast(value, root=0)

    # -- the data

    def read_once(self, read: Callable[[], Mapping[str, Any]]) -> Any:
        """Read data on one rank of each node; the others map its large arrays.

        Parameters
        ----------
        read : callable
            Returns a mapping, whose large arrays of numbers are moved to shared memory.

        Returns
        -------
        mapping
            The same on every rank of a node. Nobody may change the arrays.
        """
        first = self.node.rank == 0
        data = self.do(lambda: read() if first else None)
        about = None
        if first:
            assert data is not None
            large = {
                name: values
                for name, values in data.items()
                if isinstance(values, np.ndarray) and values.dtype.kind in "biuf" and values.nbytes
            }
            rest = {name: values for name, values in data.items() if name not in large}
            shapes, size = {}, 0
            for name, values in large.items():
                shapes[name] = values.shape, values.dtype.str, size
                size += -(-values.nbytes // _ALIGNMENT) * _ALIGNMENT
            about = type(data), rest, shapes, size, dict(getattr(data, "__dict__", {}))
        kind, entries, shapes, size, memory = self.node.bcast(about, root=0)
        window = self._mpi.Win.Allocate_shared(size if first else 0, 1, comm=self.node)
        self._windows.append(window)
        shared = {}
        for name, (shape, dtype, offset) in shapes.items():
            array = np.ndarray(shape, dtype, window.Shared_query(0)[0], offset)
            if first:
                assert data is not None
                np.copyto(array, data[name])
            array.flags.writeable = False
            shared[name] = array
        self.node.Barrier()
        found = kind({**entries, **shared})
        if memory:
            found.__dict__.update(memory)
        return found

    def threads(self) -> int:
        """Return the number of processors of this rank: those it may use, shared with others."""
        if hasattr(os, "sched_getaffinity"):
            mine = frozenset(os.sched_getaffinity(0))
        else:
            mine = frozenset(range(os.cpu_count() or 1))
        return max(1, len(mine) // self.node.allgather(mine).count(mine))

    # -- shares

    def share_of(self, words: np.ndarray) -> np.ndarray:
        """Return which rows of a batch this rank computes, in increasing order.

        Parameters
        ----------
        words : int ndarray (N,)
            The number of words in each row. Rows are dealt out from the longest to the shortest,
            forwards and backwards in turn, so that the ranks get about as many words.
        """
        order = np.argsort(-words, kind="stable")
        place = np.arange(len(words))
        turn, seat = np.divmod(place, self.size)
        owner = np.where(turn % 2, self.size - 1 - seat, seat)
        return np.sort(order[owner == self.rank])


class GradientSum:
    """The sum of the gradients of all ranks, in one contiguous buffer.

    Parameters
    ----------
    ranks : Ranks
    params : dict of str to ndarray
        The parameters; the gradients have their shapes and dtypes.

    Attributes
    ----------
    ranks : Ranks
    grads : dict of str to ndarray
        Views of the buffer, for `CaptioningWorkspace.grads`.
    seconds : dict of str to float
        What `finish` has taken so far: ``waiting`` for other ranks, and then ``exposed``
        communication.
    """

    def __init__(self, ranks: Ranks, params: Mapping[str, np.ndarray]) -> None:
        self.ranks: Ranks = ranks
        dtype = params["W_embed"].dtype
        align = _ALIGNMENT // dtype.itemsize
        self._start: dict[str, int] = {}
        size = 0
        for name in _BUFFER:
            self._start[name] = size
            size += -(-params[name].size // align) * align
        memory = np.zeros(size * dtype.itemsize + _ALIGNMENT, np.uint8)
        first = -memory.ctypes.data % _ALIGNMENT
        self._buffer = memory[first : first + size * dtype.itemsize].view(dtype)
        self.grads: dict[str, np.ndarray] = {
            name: self._buffer[start : start + params[name].size].reshape(params[name].shape)
            for name, start in self._start.items()
        }
        self._touched: np.ndarray | None = None
        self._rows: np.ndarray | None = None
        self._requests: list[Any] = []
        self.seconds: dict[str, float] = {"waiting": 0.0, "exposed": 0.0}

    def begin(self, touched: np.ndarray | None = None) -> None:
        """Begin a step.

        Parameters
        ----------
        touched : int ndarray, optional
            The rows of ``W_embed`` whose gradient may differ from zero on any rank, the same on
            every rank. If there are few of them, only these rows travel.
        """
        rows = len(self.grads["W_embed"])
        self._touched = touched if touched is not None and 4 * len(touched) <= 3 * rows else None

    def ready(self, names: tuple[str, ...]) -> None:
        """Start the sum of some gradients, which are complete."""
        every = _BUFFER
        if "W_embed" in names and self._touched is not None:
            names = tuple(name for name in names if name != "W_embed")
            self._rows = self.grads["W_embed"][self._touched]
            self._start_sum(self._rows)
        first = min(map(every.index, names))
        last = max(map(every.index, names)) + 1
        assert last - first == len(names)
        end = self._start[every[last]] if last < len(every) else len(self._buffer)
        self._start_sum(self._buffer[self._start[every[first]] : end])
        self._mpi_progress()

    def _start_sum(self, part: np.ndarray) -> None:
        mpi = self.ranks._mpi
        self._requests.append(self.ranks.comm.Iallreduce(mpi.IN_PLACE, part, mpi.SUM))

    def _mpi_progress(self) -> None:
        self.ranks._mpi.Request.Testall(self._requests)

    def finish(self, found: Gradients, stop: int | None) -> tuple[Gradients, int | None]:
        """Wait for the sums of a step.

        Parameters
        ----------
        found : Gradients
            Those of this rank.
        stop : int or None
            The number of a signal that this rank has got, 0 to stop without one.

        Returns
        -------
        found : Gradients
            Those of the batch.
        stop : int or None
            The largest such number of all ranks.
        """
        ranks = self.ranks
        for name, grad in found.grads.items():
            assert grad is self.grads[name]  # the core has written to the buffer
        numbers = np.zeros(3 + SIGNALS)
        numbers[:3] = found.loss, found.total, found.count
        if stop is not None:
            numbers[3 + stop] = 1
        began = time.perf_counter()
        arrived = ranks.comm.Iallreduce(ranks._mpi.IN_PLACE, numbers, ranks._mpi.SUM)
        ranks.wait([arrived])
        met = time.perf_counter()
        ranks.wait(self._requests)
        if self._touched is not None:
            assert self._rows is not None
            self.grads["W_embed"][self._touched] = self._rows
        self._requests, self._touched, self._rows = [], None, None
        self.seconds["waiting"] += met - began
        self.seconds["exposed"] += time.perf_counter() - met
        stops = np.flatnonzero(numbers[3:])
        loss, total, count = numbers[:3].tolist()
        whole = dataclasses.replace(found, loss=loss, total=total, count=round(count))
        return whole, int(stops[-1]) if len(stops) else None


def weights_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a hash of arrays."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        found.update(name.encode())
        found.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return found.hexdigest()


@contextlib.contextmanager
def quiet(ranks: Ranks | None) -> Iterator[None]:
    """Print nothing but errors on other ranks than 0."""
    if ranks is None or ranks.is_root:
        yield
        return
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
