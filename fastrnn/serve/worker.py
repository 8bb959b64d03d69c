"""A thread that computes what requests wait for, several at a time."""

from __future__ import annotations

import asyncio
import atexit
import collections
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from .limits import Refused

_EXIT_SECONDS = 10.0
Item = TypeVar("Item")
Result = TypeVar("Result")


class Worker(Generic[Item, Result]):
    """One thread for a network, with a queue that is bounded.

    Items of the same kind that wait are computed together. If that fails, each of them is computed
    alone, so that an item fails for its own fault only.

    Parameters
    ----------
    compute : callable
        Called as ``compute(kind, items)``; returns a result for each item.
    batch : int
        Largest number of items at one time.
    waiting : int
        Largest number of items that wait.
    name : str
        Name of the thread.
    """

    def __init__(
        self,
        compute: Callable[[Any, list[Item]], Sequence[Result]],
        *,
        batch: int,
        waiting: int,
        name: str,
    ) -> None:
        self._compute = compute
        self._batch = batch
        self._most = waiting
        self._queue: collections.deque[tuple[Hashable, Item, Future[Result]]] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._busy = False
        # The interpreter does not wait for a daemon that waits for items, but it must not end below
        # one that computes.
        atexit.register(self.close, _EXIT_SECONDS)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of items that wait."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether an item would be computed at once."""
        return not self._busy and not self._queue

    async def submit(self, kind: Hashable, item: Item) -> Result:
        """Return the result for an item.

        Raises
        ------
        Refused
            If too many items wait, or if the worker is closed.
        """
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                raise Refused(503, "the server is stopping")
            if len(self._queue) >= self._most:
                raise Refused(503, f"{self._most} pictures are waiting already; try again later")
            self._queue.append((kind, item, future))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def close(self, seconds: float = 0.0) -> None:
        """End the thread after what it computes now; refuse what waits."""
        with self._changed:
            self._closed = True
            left = [future for _, _, future in self._queue]
            self._queue.clear()
            self._changed.notify()
        for future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(Refused(503, "the server is stopping"))
        self._thread.join(seconds)
        if not self._thread.is_alive():
            atexit.unregister(self.close)

    def _take(self) -> tuple[Any, list[tuple[Item, Future[Result]]]] | None:
        with self._changed:
            self._busy = False
            while not self._queue:
                if self._closed:
                    return None
                self._changed.wait()
            self._busy = True
            kind = self._queue[0][0]
            taken: list[tuple[Item, Future[Result]]] = []
            left: list[tuple[Hashable, Item, Future[Result]]] = []
            while self._queue and len(taken) < self._batch:
                entry = self._queue.popleft()
                if entry[0] != kind:
                    left.append(entry)
                # False: whoever asked has gone.
                elif entry[2].set_running_or_notify_cancel():
                    taken.append(entry[1:])
            self._queue.extendleft(reversed(left))
            return kind, taken

    def _work(self) -> None:
        while (found := self._take()) is not None:
            kind, taken = found
            if not taken:
                continue
            try:
                results = self._compute(kind, [item for item, _ in taken])
            except Exception as error:
                if len(taken) == 1:
                    taken[0][1].set_exception(error)
                    continue
                for item, future in taken:
                    try:
                        future.set_result(self._compute(kind, [item])[0])
                    except Exception as own:
                        future.set_exception(own)
                continue
            for (_, future), result in zip(taken, results, strict=True):
                future.set_result(result)
            # What a request held is not kept until the next one comes.
            del taken, results, found
