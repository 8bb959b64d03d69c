"""Fetch images by URL: from public addresses only, within limits of size and time.

The address that is connected to is the one that was checked, after each redirect too, so that
neither a redirect nor a name server can lead to the machine itself or to its network.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from . import __version__
from .files import one_line

__all__ = ["RemoteError", "fetch_image", "is_public_address", "is_url"]

MAX_BYTES = 20 << 20
"""Largest size of an image, by default."""
SECONDS = 30.0
"""Largest time from the first look-up to the last byte, by default."""
REDIRECTS = 5
"""Largest number of redirects, by default."""
_CONNECT_SECONDS = 10.0
"""Largest time for connecting to one of the addresses of a host."""
_MAX_URL = 2000
_CHUNK = 1 << 16
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = {301, 302, 303, 307, 308}
_CONTENT_TYPES = re.compile(r"image/[\w.+-]+|(application|binary)/octet-stream", re.I)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class RemoteError(OSError):
    """An image that cannot be fetched: the message is its URL and the problem.

    Attributes
    ----------
    about : str
        The message, without what would allow it.
    allowed_by : str or None
        The argument of `fetch_image` that would allow it, for a command to name its own option.
    """

    def __init__(self, url: str, problem: str, allowed_by: str | None = None) -> None:
        self.about: str = f"{_shown(url)}: {problem}"
        self.allowed_by: str | None = allowed_by
        super().__init__(self.about + ("" if allowed_by is None else f", or {allowed_by}"))


def is_url(text: str) -> bool:
    """Return whether text is a URL, of whatever scheme, and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def is_public_address(address: str) -> bool:
    """Return whether an IP address is one of the public network.

    Loopback, private, link-local, shared, multicast, reserved and unspecified addresses are not.
    An IPv6 address that stands for an IPv4 address is what the IPv4 address is.

    Parameters
    ----------
    address : str
        An IPv4 or IPv6 address.

    Returns
    -------
    bool
        True if any machine of the internet can have it.

    Raises
    ------
    ValueError
        If it is no IP address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public_address(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def fetch_image(
    url: str,
    *,
    allow_private: bool = False,
    max_bytes: int = MAX_BYTES,
    seconds: float = SECONDS,
    redirects: int = REDIRECTS,
) -> bytes:
    """Fetch the file of an image.

    Proxies that the environment names are not used, because they would choose the address.

    Parameters
    ----------
    url : str
        An ``http:`` or ``https:`` URL, without user name and password.
    allow_private : bool, optional
        Also connect to addresses that are not public, such as those of this machine and its
        network. Default False.
    max_bytes : int, optional
        Largest size of the file. Default 20 MiB.
    seconds : float, optional
        Largest time for everything: names, connections, redirects and content. Default 30.
    redirects : int, optional
        Largest number of redirects. Default 5.

    Returns
    -------
    bytes
        The content, which need not be a valid image.

    Raises
    ------
    RemoteError
        If the URL is refused, or if the file cannot be fetched within the limits.
    """
    began = url
    with _Deadline(seconds) as deadline:
        try:
            for _ in range(redirects + 1):
                found = _get(url, deadline, allow_private, max_bytes)
                if isinstance(found, bytes):
                    return found
                url = found.url
        except RemoteError as error:
            if deadline.passed:
                raise _late(began, seconds) from None
            if url != began:
                raise RemoteError(
                    began, f"is redirected to {error.about}", error.allowed_by
                ) from None
            raise
        except (OSError, http.client.HTTPException) as error:
            if deadline.passed:
                raise _late(began, seconds) from None
            reason = getattr(error, "strerror", None) or one_line(error) or type(error).__name__
            raise RemoteError(url, f"cannot be fetched ({_printable(reason)})") from None
    raise RemoteError(began, f"is redirected more than {redirects} times")


def _late(url: str, seconds: float) -> RemoteError:
    return RemoteError(url, f"is not complete after {seconds:g} s; expected it within this time")


def _printable(text: str) -> str:
    """Return text of a server without what could control a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _shown(url: str) -> str:
    url = _printable(url)
    return url if len(url) <= 200 else f"{url[:200]}..."


# -- one request


@dataclass(frozen=True)
class _Redirect:
    url: str


def _get(url: str, deadline: _Deadline, allow_private: bool, max_bytes: int) -> bytes | _Redirect:
    """Return the content of a URL, or where it redirects to."""
    parts = _split(url)
    connection = _Connection(url, parts, deadline, allow_private)
    with contextlib.closing(connection):
        connection.request("GET", _target(parts), headers=_HEADERS)
        with connection.getresponse() as response:
            if response.status in _REDIRECTS:
                place = response.headers.get("Location")
                if not place:
                    raise RemoteError(url, f"answers {response.status} without a place to go to")
                with contextlib.suppress(UnicodeError):
                    # http.client decodes headers as Latin-1; URLs in them are UTF-8, if not ASCII.
                    place = place.encode("latin-1").decode("utf-8")
                return _Redirect(urljoin(url, _quoted(place)))
            if response.status != HTTPStatus.OK:
                raise RemoteError(url, f"answers {_status(response.status)}; expected an image")
            return _read(url, response, deadline, max_bytes)


_HEADERS = {
    "User-Agent": f"fastrnn/{__version__}",
    "Accept": "image/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
}


def _split(url: str) -> SplitResult:
    """Split a URL, and refuse those that are not fetched."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise RemoteError(url, f"is no valid URL ({one_line(error)})") from None
    if parts.scheme not in _PORTS:
        raise RemoteError(url, f"has the scheme {parts.scheme[:20]!r}; expected http or https")
    if not host or port == 0:
        raise RemoteError(url, "is no valid URL; expected a host and perhaps a port")
    if parts.username is not None or parts.password is not None:
        # What follows the @ is shown alone: the rest may be a password.
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        raise RemoteError(bare, "has a user name or a password; expected none")
    if len(url) > _MAX_URL:
        raise RemoteError(url, f"has {len(url)} characters; expected at most {_MAX_URL}")
    return parts


def _quoted(text: str) -> str:
    """Quote what may not stand in a request: blanks, control characters and non-ASCII ones."""
    return quote(text, safe="%/:=&?~#+!$,;'@()*[]", errors="replace")


def _target(parts: SplitResult) -> str:
    target = _quoted(parts.path or "/")
    return f"{target}?{_quoted(parts.query)}" if parts.query else target


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _read(
    url: str, response: http.client.HTTPResponse, deadline: _Deadline, max_bytes: int
) -> bytes:
    kind = response.headers.get("Content-Type")
    if kind is not None and not _CONTENT_TYPES.fullmatch(kind.partition(";")[0].strip()):
        raise RemoteError(url, f"has content type {_printable(kind)[:60]!r}; expected an image")
    coding = response.headers.get("Content-Encoding", "identity")
    if coding.lower() != "identity":  # compressed, it could be of any size
        raise RemoteError(url, f"is encoded as {_printable(coding)[:20]!r}; expected no encoding")
    declared = response.length
    if declared is not None and declared > max_bytes:
        raise _too_large(url, max_bytes, f"has {declared:,} bytes")
    content = bytearray()
    while chunk := response.read(min(_CHUNK, max_bytes + 1 - len(content))):
        content += chunk
        if len(content) > max_bytes:
            raise _too_large(url, max_bytes, "is larger")
    if deadline.passed:
        # The connection was shut down, which looks like the end of the content.
        raise TimeoutError
    if declared is not None and len(content) < declared:
        raise RemoteError(
            url, f"broke off after {len(content):,} bytes; expected {declared:,} bytes"
        )
    return bytes(content)


def _too_large(url: str, max_bytes: int, found: str) -> RemoteError:
    return RemoteError(url, f"{found}; expected at most {max_bytes:,} bytes")


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was checked."""

    def __init__(
        self, url: str, parts: SplitResult, deadline: _Deadline, allow_private: bool
    ) -> None:
        host = parts.hostname or ""
        if not host.isascii():
            try:
                host = host.encode("idna").decode("ascii")
            except UnicodeError:
                raise RemoteError(url, "has a host that is no valid name") from None
        self.default_port = _PORTS[parts.scheme]
        super().__init__(host, parts.port or self.default_port)
        self._url, self._secure = url, parts.scheme == "https"
        self._deadline, self._allow_private = deadline, allow_private

    def connect(self) -> None:
        plain = self._open()
        self._deadline.watch(plain)
        if not self._secure:
            self.sock = plain
            return
        try:
            # The handshake is watched, too: it may be as slow as anything else.
            secure = ssl.create_default_context().wrap_socket(
                plain, server_hostname=self.host, do_handshake_on_connect=False
            )
        except BaseException:
            plain.close()
            raise
        self.sock = secure
        self._deadline.watch(secure)
        secure.do_handshake()

    def _open(self) -> socket.socket:
        """Connect to the first address of the host that answers."""
        addresses = _addresses(self.host, self.port, self._deadline)
        allowed = [a for a in addresses if self._allow_private or is_public_address(a)]
        if not allowed:
            raise self._private(addresses[0])
        problem: OSError | None = None
        for address in allowed:
            wait = min(self._deadline.remaining(), _CONNECT_SECONDS)
            try:
                connected = socket.create_connection((address, self.port), wait)
            except OSError as error:
                problem = error
                continue
            try:
                peer = connected.getpeername()[0]
                if not self._allow_private and not is_public_address(peer):
                    raise self._private(peer)
                # Longer than the deadline, which ends every call by itself.
                connected.settimeout(self._deadline.remaining() + 30)
            except BaseException:
                connected.close()
                raise
            return connected
        assert problem is not None
        raise problem

    def _private(self, address: str) -> RemoteError:
        where = address if address == self.host else f"{self.host} ({address})"
        return RemoteError(
            self._url, f"{where} is not a public address; expected one", "allow_private"
        )


def _addresses(host: str, port: int, deadline: _Deadline) -> list[str]:
    """Look up the addresses of a host."""
    found: list[str] = []
    problem: list[Exception] = []

    def look_up() -> None:
        try:
            every = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.extend(dict.fromkeys(str(address[0]) for *_, address in every))
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that is too long
            problem.append(error)

    # A name server may take minutes, and nothing can interrupt the look-up.
    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(deadline.remaining())
    if thread.is_alive():
        deadline.passed = True
        raise TimeoutError
    if problem:
        raise OSError(f"{host}: {getattr(problem[0], 'strerror', None) or problem[0]}")
    if not found:
        raise OSError(f"{host}: has no address")
    return found


class _Deadline:
    """Shut the watched connection down when the time is over, whatever it is doing.

    Timeouts of a socket are for one call each: a server that sends a byte now and then would
    never run into one.
    """

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._end = time.monotonic() + seconds
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def remaining(self) -> float:
        """Return the seconds that are left; raise TimeoutError if there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            self.passed = True
            raise TimeoutError
        return left

    def watch(self, connected: socket.socket) -> None:
        """Watch this connection instead of the one before."""
        with self._lock:
            self._socket = connected
            if self.passed:
                _shut_down(connected)

    def _shut(self) -> None:
        with self._lock:
            self.passed = True
            if self._socket is not None:
                _shut_down(self._socket)


def _shut_down(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Not that of SSLSocket, which would go on without encryption.
        socket.socket.shutdown(connected, socket.SHUT_RDWR)
