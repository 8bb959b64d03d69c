"""The server: a socket, connections that may not dawdle, and signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .limits import Limits


def open_socket(host: str, port: int, backlog: int = 512) -> socket.socket:
    """Listen at an address.

    Parameters
    ----------
    host : str
        A name or an address of this machine.
    port : int
        0 takes one that is free.
    backlog : int, optional
        Connections that may wait to be accepted.

    Returns
    -------
    socket.socket

    Raises
    ------
    ValueError
        If this machine does not have the address, or the port is in use or not allowed.
    """
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except (OSError, UnicodeError):
        raise ValueError(f"--host is {host}; expected an address of this machine") from None
    family, _, _, _, address = found[0]
    # With the protocol named, asyncio switches off the delay of small packets (Nagle).
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(backlog)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"--port is {port}; expected one that is not in use") from None
        if error.errno == errno.EACCES:
            raise ValueError(f"--port is {port}; expected one that this user may open") from None
        raise ValueError(f"--host is {host}; expected an address of this machine") from None
    return opened


def url_of(opened: socket.socket) -> str:
    """Return the address of a socket as a browser on this machine takes it."""
    host, port = opened.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    shown = f"[{address}]" if address.version == 6 else str(address)
    return f"http://{shown}:{port}/"


class Server(uvicorn.Server):
    """A server that SIGINT or SIGTERM ends after its open requests; a second one, at once.

    Parameters
    ----------
    app : ASGI application
    limits : Limits
    on_start : callable, optional
        Called without arguments when the server answers.

    Attributes
    ----------
    caught : int or None
        The number of the first signal.
    """

    def __init__(
        self, app: Any, limits: Limits, on_start: Callable[[], None] | None = None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app, http=_protocol(limits), ws="none", log_config=None, log_level="critical",
                access_log=False, proxy_headers=False, server_header=False,
                limit_concurrency=limits.connections, timeout_keep_alive=5,
                timeout_graceful_shutdown=max(round(limits.stop_seconds), 1),
            )
        )  # fmt: skip
        # It quotes what it could not parse.
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
        self.caught: int | None = None
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer."""
        await super().startup(sockets)
        if self._on_start is not None:
            self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop after the open requests; at the second signal, at once."""
        self.force_exit: bool = self.caught is not None
        self.caught = self.caught or sig
        self.should_exit = True


def _protocol(limits: Limits) -> type[HttpToolsProtocol]:
    class Protocol(HttpToolsProtocol):
        """HTTP with limits on the head of a request: its size, and the time that it takes.

        The time begins with the connection, or with the answer before.
        """

        _late: asyncio.TimerHandle | None = None
        _in_head = False
        _head = 0  # bytes of the head that came after its first packet

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect_request()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._late is not None:
                self._late.cancel()

        def data_received(self, data: bytes) -> None:
            # The parser would keep a head in memory however long it becomes.
            self._head = self._head + len(data) if self._in_head else 0
            if self._head > limits.head_bytes:
                self.send_400_response("The head of the request is too large.")
            elif not self.transport.is_closing():
                super().data_received(data)

        def on_message_begin(self) -> None:
            self._in_head = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            super().on_headers_complete()

        def on_response_complete(self) -> None:
            self._expect_request()
            super().on_response_complete()

        def _expect_request(self) -> None:
            if self._late is not None:
                self._late.cancel()
            self._late = self.loop.call_later(limits.head_seconds, self._end)

        def _end(self) -> None:
            # A request that has begun has its own limits.
            if self.cycle is None or self.cycle.response_complete:
                self.transport.abort()

    return Protocol
