"""What the server allows: sizes, times, and how much may wait."""

from __future__ import annotations

import dataclasses


class Refused(Exception):
    """A request that is answered by an error.

    Parameters
    ----------
    status : int
        The HTTP status.
    detail : str
        What the answer says, in one line.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Attributes
    ----------
    upload_bytes : int
        Largest body of a request.
    held_bytes : int
        Bodies that are in memory at one time. Further ones are not read until there is room.
    head_bytes : int
        Largest head of a request, beside its first packet.
    head_seconds : float
        Time for the head of a request, and for taking an answer.
    idle_seconds : float
        Longest break within a body.
    body_seconds : float
        Time for a whole body.
    room_seconds : float
        Longest wait for room for a body.
    waiting : int
        Pictures that may wait for the network. Beyond, the answer is 503.
    batch : int
        Pictures that go through the network at one time.
    maps_waiting : int
        Pictures that may wait for a saliency map.
    connections : int
        Connections at one time. Beyond, the answer is 503.
    stop_seconds : float
        Time for open requests when the server is stopped.
    """

    upload_bytes: int = 25_000_000
    held_bytes: int = 256_000_000
    head_bytes: int = 65_536
    head_seconds: float = 15.0
    idle_seconds: float = 10.0
    body_seconds: float = 60.0
    room_seconds: float = 60.0
    waiting: int = 256
    batch: int = 16
    maps_waiting: int = 8
    connections: int = 500
    stop_seconds: float = 3.0
