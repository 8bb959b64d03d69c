"""What stands before the application: who may ask, how much is read, what every answer says."""

from __future__ import annotations

import asyncio
import collections
import ipaddress
import json
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from .limits import Limits, Refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every answer."""
_RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_SAFE = ("GET", "HEAD", "OPTIONS")


def host_name(host: str) -> str:
    """Return the name of a Host header, without the port and the brackets of an address."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, which no other machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Room:
    """Bytes that bodies may take, handed out in the order of asking."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._queue: collections.deque[tuple[int, asyncio.Future[None]]] = collections.deque()

    async def take(self, size: int, seconds: float) -> None:
        """Take so many bytes, as soon as they are free; TimeoutError after so many seconds."""
        if not self._queue and size <= self._free:
            self._free -= size
            return
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, ready)
        self._queue.append(entry)
        try:
            await asyncio.wait_for(asyncio.shield(ready), seconds)
        except BaseException:
            if ready.done():
                self._free += size
            else:
                self._queue.remove(entry)
            self._hand_out()
            raise

    def give(self, size: int) -> None:
        """Give bytes back."""
        self._free += size
        self._hand_out()

    def _hand_out(self) -> None:
        while self._queue and self._queue[0][0] <= self._free:
            size, ready = self._queue.popleft()
            self._free -= size
            ready.set_result(None)


class Guard:
    """ASGI middleware that lets through what this server is for.

    A request must name this server as its Host, so that no other site's name can be made to point
    here (DNS rebinding); what is not GET must come from the server's own page, or from a program.
    A body is read whole, within the limits of size and time, before anything looks at it.

    Parameters
    ----------
    app : ASGI application
    limits : Limits
    network : bool
        Whether other machines may ask. Then the Host may be any address and this machine's name.
    """

    def __init__(self, app: Any, limits: Limits, network: bool = False) -> None:
        self._app = app
        self._limits = limits
        self._network = network
        self._room: Room | None = None
        name = socket.gethostname().lower()
        self._names = {name, f"{name}.local"}

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *_RAW_HEADERS]
            await send(message)

        try:
            await self._handle(scope, receive, guarded_send)
        except Refused as refused:
            if not started:
                await self._refuse(guarded_send, refused)
        except (_Gone, asyncio.CancelledError):
            raise
        except Exception as error:
            # What was sent is not told: not in the answer, not on the terminal.
            print(
                f"fastrnn: internal error: {type(error).__name__} on {scope['method']} "
                "(this is a bug in fastrnn)",
                file=sys.stderr,
            )
            if not started:
                await self._refuse(guarded_send, Refused(500, "internal error"))

    async def _handle(self, scope: Any, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if sum(name == b"host" for name, _ in scope["headers"]) > 1:
            raise Refused(400, "the request names several hosts; expected one")
        self._check_source(scope["method"], headers)
        if scope["method"] in _SAFE:
            await self._app(scope, receive, send)
            return
        size = await self._announced_size(headers, receive)
        if self._room is None:
            self._room = Room(self._limits.held_bytes)
        try:
            await self._room.take(size, self._limits.room_seconds)
        except (TimeoutError, asyncio.TimeoutError):
            raise Refused(503, "too many uploads at one time; try again later") from None
        try:
            body = await self._read(receive)

            async def replay() -> Message:
                nonlocal body
                if body is None:
                    return await receive()
                message = {"type": "http.request", "body": body, "more_body": False}
                body = None
                return message

            await self._app(scope, replay, send)
        except _Gone:
            return
        finally:
            self._room.give(size)

    def _check_source(self, method: str, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host_name(host)
        if not is_loopback(name) and not (self._network and self._is_ours(name)):
            raise Refused(421, "the request names another host; expected the address of the server")
        if method in _SAFE:
            return
        origin = headers.get(b"origin")
        if origin is not None:
            try:
                theirs = urlsplit(origin.decode("latin-1").lower()).netloc
            except ValueError:
                theirs = ""
            if theirs != host:
                raise Refused(403, "the request comes from another site's page")
        if headers.get(b"sec-fetch-site", b"same-origin") not in (b"same-origin", b"none"):
            raise Refused(403, "the request comes from another site's page")

    def _is_ours(self, name: str) -> bool:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True

    async def _announced_size(self, headers: dict[bytes, bytes], receive: Receive) -> int:
        most = self._limits.upload_bytes
        announced = headers.get(b"content-length")
        if announced is None:
            return most
        size = int(announced) if announced.isdigit() and len(announced) < 19 else most + 1
        if size > most:
            if b"expect" not in headers:
                await self._discard(receive)
            raise self._too_large()
        return size

    def _too_large(self) -> Refused:
        most = self._limits.upload_bytes / 1e6
        return Refused(413, f"the upload is too large; expected at most {most:g} MB")

    async def _read(self, receive: Receive) -> bytes | None:
        """Read a body; Refused where it is too large or too slow."""
        limits = self._limits
        clock = asyncio.get_running_loop().time
        end = clock() + limits.body_seconds
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            try:
                patience = max(min(limits.idle_seconds, end - clock()), 0)
                message = await asyncio.wait_for(receive(), patience)
            except (TimeoutError, asyncio.TimeoutError):
                raise Refused(408, "the upload is too slow") from None
            if message["type"] == "http.disconnect":
                raise _Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limits.upload_bytes:
                parts.clear()
                await self._discard(receive)
                raise self._too_large()
            more = message.get("more_body", False)
        return b"".join(parts)

    async def _discard(self, receive: Receive) -> None:
        """Read on for a moment: a client that still sends would not see the answer."""
        left = 4 * self._limits.upload_bytes

        async def read() -> None:
            nonlocal left
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return

        try:
            await asyncio.wait_for(read(), min(3.0, self._limits.idle_seconds))
        except (TimeoutError, asyncio.TimeoutError):
            return

    async def _refuse(self, send: Send, refused: Refused) -> None:
        body = json.dumps({"detail": refused.detail}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if refused.status == 503:
            headers.append((b"retry-after", b"2"))
        start = {"type": "http.response.start", "status": refused.status, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": body})


class _Gone(Exception):
    """Whoever asked has closed the connection."""
