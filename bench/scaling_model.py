"""A model of a training step on any number of cores: pieces that were measured, put together.

The time of a step is the sum of its pieces. A serial piece takes the same time on any number of
cores. A parallel piece is cut into equal shares, so with p threads the slowest thread computes
``ceil(shares / p)`` of them, but no faster than memory delivers their bytes; and each parallel
region costs a fork and a join::

    serial:    seconds
    parallel:  max(seconds * ceil(shares / p) / shares, bytes / bandwidth(p)) + regions * fork(p)

This module computes and measures nothing; `bench.pieces` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What the model knows of a machine.

    Attributes
    ----------
    fork_join : float
        Seconds that two threads take for an empty parallel region.
    bandwidth_per_core : float
        Bytes per second that one core moves.
    bandwidth : float
        Bytes per second that all cores together can move.
    """

    fork_join: float
    bandwidth_per_core: float
    bandwidth: float

    def fork(self, threads: int) -> float:
        """Return the seconds of an empty parallel region; threads meet two by two, as in a tree."""
        return self.fork_join * math.log2(threads)

    def bandwidth_of(self, threads: int) -> float:
        """Return the bytes per second that some cores move together."""
        return min(threads * self.bandwidth_per_core, self.bandwidth)


@dataclass(frozen=True)
class Cut:
    """How a parallel piece is divided from some number of threads on: its shares and regions."""

    threads: int
    shares: int
    regions: int


@dataclass(frozen=True)
class Piece:
    """A piece of a training step.

    Attributes
    ----------
    name : str
    seconds : float
        In one thread.
    cuts : tuple of Cut
        By ascending numbers of threads, the first from 1 or 2 on; empty for a serial piece.
    bytes : float
        Bytes that it has to move between memory and the cores.
    """

    name: str
    seconds: float
    cuts: tuple[Cut, ...] = ()
    bytes: float = 0.0

    @property
    def is_serial(self) -> bool:
        """Whether one thread does it."""
        return not self.cuts

    def time(self, threads: int, machine: Machine) -> float:
        """Return its seconds with some threads, each on a core of its own."""
        if self.is_serial or threads == 1:
            return self.seconds
        cut = max((c for c in self.cuts if c.threads <= threads), key=lambda c: c.threads)
        most = math.ceil(cut.shares / threads) / cut.shares
        compute = max(self.seconds * most, self.bytes / machine.bandwidth_of(threads))
        return compute + cut.regions * machine.fork(threads)

    def loss(self, threads: int, machine: Machine) -> float:
        """Return the seconds beyond a perfect division among the threads."""
        return self.time(threads, machine) - self.seconds / threads


def step_time(pieces: Sequence[Piece], threads: int, machine: Machine) -> float:
    """Return the seconds of a step."""
    return sum(piece.time(threads, machine) for piece in pieces)


def serial_share(pieces: Sequence[Piece]) -> float:
    """Return the time of the serial pieces as a fraction of a step in one thread."""
    serial = sum(piece.seconds for piece in pieces if piece.is_serial)
    return serial / sum(piece.seconds for piece in pieces)


def bottlenecks(pieces: Sequence[Piece], threads: int, machine: Machine) -> list[tuple[str, float]]:
    """Return the pieces by what they lose with some threads, in seconds; serial ones as one."""
    lost = {"serial parts": 0.0}
    for piece in pieces:
        name = "serial parts" if piece.is_serial else piece.name
        lost[name] = lost.get(name, 0.0) + piece.loss(threads, machine)
    return sorted(lost.items(), key=lambda item: -item[1])
