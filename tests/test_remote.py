"""Images by URL: what is fetched, and what is refused, from servers on loopback."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fastrnn.remote import RemoteError, fetch_image, is_public_address, is_url

CONTENT = b"\x89PNG " + bytes(range(256)) * 20


class Handler(BaseHTTPRequestHandler):
    """Answers by path; remembers what was asked for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            name = self.path.strip("/").partition("?")[0].partition("/")[0]
            getattr(self, f"send_{name}", self.send_image)()

    def begin(self, status=200, length=None, **headers):
        self.send_response(status)
        headers = {"Content-Type": "image/png"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def send_image(self, **headers):
        self.begin(length=len(CONTENT), **headers)
        self.wfile.write(CONTENT)

    def send_unlabelled(self):
        self.send_image(Content_Type=None)

    def send_octets(self):
        self.send_image(Content_Type="application/octet-stream")

    def send_page(self):
        self.send_image(Content_Type="text/html; charset=utf-8")

    def send_svg_page(self):
        self.send_image(Content_Type="text/html, image/png")

    def send_zipped(self):
        self.send_image(Content_Encoding="gzip")

    def send_unending(self):
        """Without a length, to the end of the connection."""
        self.begin()
        self.wfile.write(CONTENT)

    def send_chunked(self):
        self.begin(Transfer_Encoding="chunked")
        for part in (CONTENT[:100], CONTENT[100:], b""):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))

    def send_cut_chunks(self):
        self.begin(Transfer_Encoding="chunked")
        self.wfile.write(b"%x\r\n%s" % (len(CONTENT), CONTENT[:100]))

    def send_declared(self):
        self.begin(length=10**12)

    def send_flood(self):
        self.begin()
        while True:
            self.wfile.write(bytes(1 << 16))
            self.server.sent += 1 << 16

    def send_short(self):
        self.begin(length=len(CONTENT) + 1)
        self.wfile.write(CONTENT)

    def send_drip(self):
        """A byte now and then, whole in a minute."""
        self.begin(length=600)
        for _ in range(600):
            self.wfile.write(b"x")
            if self.server.over.wait(0.1):
                return

    def send_drip_unending(self):
        self.begin()
        for _ in range(600):
            self.wfile.write(b"x")
            if self.server.over.wait(0.1):
                return

    def send_drip_headers(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(600):
            self.wfile.write(b"x")
            if self.server.over.wait(0.1):
                return

    def send_nothing(self):
        self.server.over.wait(20)

    def send_to(self):
        self.begin(302, 0, Location=self.path.removeprefix("/to/"))

    def send_loop(self):
        self.begin(301, 0, Location="/loop")

    def send_count(self):
        left = int(self.path.rpartition("/")[2])
        self.begin(307, 0, Location=f"/count/{left - 1}" if left > 1 else "/image")

    def send_nowhere(self):
        self.begin(302, 0)

    def send_umlaut(self):
        self.begin(302, 0, Location="/größe b.png".encode().decode("latin-1"))

    def send_missing(self):
        self.begin(404, 0)

    def send_partial(self):
        self.begin(206, 0)

    def send_escape(self):
        self.wfile.write(b"HTTP/1.1 404 \x1b[2J\r\nContent-Length: 0\r\n\r\n")

    def send_noise(self):
        self.wfile.write(b"\x1b[2J what?\r\n\r\n")


@pytest.fixture(scope="module")
def server():
    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked, server.sent, server.over = [], 0, threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


def fetch(server, path, **options):
    return fetch_image(f"{server.url}/{path}", allow_private=True, **options)


def refused(url, **options):
    with pytest.raises(RemoteError) as error:
        fetch_image(url, **options)
    assert str(error.value).isprintable()
    return str(error.value)


# -- addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255",
        "192.168.1.1", "169.254.169.254", "100.64.0.1", "198.18.0.1", "192.0.2.1", "224.0.0.1",
        "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "fe80::1",
        "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "2002:a00:1::",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2001:0:4136:e378:8000:63bf:80ff:fffe",
        "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public_address(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.215.14", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8",
     "2002:808:808::", "64:ff9b::808:808"],
)  # fmt: skip
def test_addresses_that_are_public(address):
    assert is_public_address(address)


def test_url_or_path():
    assert all(map(is_url, ["http://a/b.jpg", "HTTPS://a", "file:///etc/passwd", "ftp://a/b"]))
    assert not any(map(is_url, ["a.jpg", "http/a.jpg", "C:\\a.jpg", "./http://a", "a b://c", ""]))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0.0.0.0"]
)
def test_private_hosts_are_refused(server, host):
    before = len(server.asked)
    try:
        socket.getaddrinfo(host, 80)
    except OSError:
        pytest.skip(f"{host} has no address here")
    said = refused(f"http://{host}:{server.server_port}/image")
    assert "is not a public address" in said
    assert len(server.asked) == before


def test_private_hosts_are_fetched_when_allowed(server):
    assert fetch(server, "image") == CONTENT
    local = f"http://localhost:{server.server_port}/image"
    assert fetch_image(local, allow_private=True) == CONTENT


def test_ipv6(server):
    class Server(ThreadingHTTPServer):
        address_family, daemon_threads = socket.AF_INET6, True

    try:
        other = Server(("::1", 0), Handler)
    except OSError:
        pytest.skip("no IPv6 here")
    with other:
        other.asked = []
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"http://[::1]:{other.server_port}/image"
        assert "::1 is not a public address" in refused(url)
        assert fetch_image(url, allow_private=True) == CONTENT
        assert other.asked[-1][1]["Host"] == f"[::1]:{other.server_port}"
        other.shutdown()


def test_mapped_address_is_refused(server):
    said = refused(f"http://[::ffff:127.0.0.1]:{server.server_port}/image")
    assert "is not a public address" in said


def looks_up(monkeypatch, answers):
    """Let every look-up give the next answer, as a name server may that rebinds a name."""
    asked = []

    def getaddrinfo(host, port, *_, **__):
        asked.append(host)
        addresses = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def connects_to(monkeypatch, server):
    """Let connections to any address end at the server; return what was asked for."""
    tried, real = [], socket.socket

    def create_connection(address, timeout=None, *_, **__):
        tried.append(address)
        connected = real(socket.AF_INET, socket.SOCK_STREAM)
        connected.settimeout(timeout)
        connected.connect(server.server_address)
        return connected

    monkeypatch.setattr(socket, "create_connection", create_connection)
    return tried


def test_name_of_a_private_address_is_refused(server, monkeypatch):
    looks_up(monkeypatch, [["127.0.0.1"]])
    said = refused(f"http://photos.example:{server.server_port}/image")
    assert "photos.example (127.0.0.1) is not a public address" in said


def test_address_that_was_checked_is_the_one_connected_to(server, monkeypatch):
    """A name that is public when it is checked and private afterwards is looked up once."""
    asked = looks_up(monkeypatch, [["10.0.0.1", "93.184.215.14"], ["127.0.0.1"]])
    tried = connects_to(monkeypatch, server)
    monkeypatch.setattr(socket.socket, "getpeername", lambda _: ("93.184.215.14", 80))
    url = f"http://photos.example:{server.server_port}/image"
    assert fetch_image(url) == CONTENT
    assert asked == ["photos.example"]
    assert tried == [("93.184.215.14", server.server_port)]
    assert server.asked[-1][1]["Host"] == f"photos.example:{server.server_port}"


def test_address_of_the_other_end_is_checked(server, monkeypatch):
    looks_up(monkeypatch, [["93.184.215.14"]])
    connects_to(monkeypatch, server)
    before = len(server.asked)
    said = refused(f"http://photos.example:{server.server_port}/image")
    assert "(127.0.0.1) is not a public address" in said
    assert len(server.asked) == before


def test_redirect_to_a_private_address_is_refused(server, monkeypatch):
    """The first address is public, as far as anybody can tell; the second is not."""
    looks_up(monkeypatch, [["93.184.215.14"]])
    connects_to(monkeypatch, server)
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *_, **__):
        if host == "127.0.0.1":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        return real(host, port)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "getpeername", lambda _: ("93.184.215.14", 80))
    target = f"http://127.0.0.1:{server.server_port}/image"
    before = len(server.asked)
    said = refused(f"http://photos.example:{server.server_port}/to/{target}")
    assert said.startswith(f"http://photos.example:{server.server_port}/to/")
    assert "is redirected to" in said
    assert said.endswith("127.0.0.1 is not a public address; expected one, or allow_private")
    assert len(server.asked) == before + 1
    with pytest.raises(RemoteError) as caught:
        fetch_image(f"http://photos.example:{server.server_port}/to/{target}")
    assert caught.value.allowed_by == "allow_private"
    assert caught.value.about == said.removesuffix(", or allow_private")


def test_proxies_are_not_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert fetch(server, "image") == CONTENT


# -- URLs


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("file:///etc/passwd", "has the scheme 'file'; expected http or https"),
        ("ftp://93.184.215.14/a.jpg", "has the scheme 'ftp'"),
        ("gopher://93.184.215.14/a", "has the scheme 'gopher'"),
        ("data:image/png;base64,AAAA", "has the scheme 'data'"),
        ("photo.jpg", "has the scheme ''"),
        ("http://", "is no valid URL"),
        ("http:///a.jpg", "is no valid URL"),
        ("http://[::1/a.jpg", "is no valid URL"),
        ("http://a:99999/", "is no valid URL"),
        ("http://a:0/", "is no valid URL"),
        ("http://a:b/", "is no valid URL"),
        ("https://" + "a" * 64 + ".example/", "cannot be fetched"),
        ("http://é" + "a" * 64 + ".example/", "has a host that is no valid name"),
        ("http://93.184.215.14/" + "a" * 3000, "has 3021 characters; expected at most 2000"),
        ("http://no-such-host.invalid/a.jpg", "no-such-host.invalid"),
    ],
)  # fmt: skip
def test_url_is_refused(url, problem):
    assert problem in refused(url)


def test_password_is_refused_and_not_repeated():
    for url in ("http://me:secret@93.184.215.14/a.jpg", "https://secret@93.184.215.14/a.jpg"):
        said = refused(url)
        assert "has a user name or a password; expected none" in said
        assert "secret" not in said


def test_control_characters_do_not_reach_the_terminal_or_the_server(server):
    assert "\x1b" not in refused("ftp://a/\x1b[2J")
    assert fetch(server, "a b\x0b\x1bc/größe.png?q=ü d") == CONTENT
    assert server.asked[-1][0] == "/a%20b%0B%1Bc/gr%C3%B6%C3%9Fe.png?q=%C3%BC%20d"


def test_headers_cannot_be_added(server):
    fetch(server, "image%0d%0aX-Evil:%201?a\r\nX-Evil: 1")
    assert "X-Evil" not in server.asked[-1][1]


# -- answers


@pytest.mark.parametrize(
    "path", ["image", "unlabelled", "octets", "unending", "chunked", "count/5", "umlaut"]
)
def test_images_are_fetched(server, path):
    assert fetch(server, path) == CONTENT


def test_redirect_in_utf_8_is_quoted(server):
    fetch(server, "umlaut")
    assert server.asked[-1][0] == "/gr%C3%B6%C3%9Fe%20b.png"


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("page", "has content type 'text/html; charset=utf-8'; expected an image"),
        ("svg_page", "has content type"),
        ("zipped", "is encoded as 'gzip'"),
        ("declared", "has 1,000,000,000,000 bytes; expected at most 20,971,520 bytes"),
        ("short", f"broke off after {len(CONTENT):,} bytes; expected {len(CONTENT) + 1:,} bytes"),
        ("cut_chunks", "cannot be fetched (IncompleteRead"),
        ("count/6", "is redirected more than 5 times"),
        ("loop", "is redirected more than 5 times"),
        ("nowhere", "answers 302 without a place to go to"),
        ("to/file:///etc/passwd", "has the scheme 'file'"),
        ("to/ftp://93.184.215.14/", "has the scheme 'ftp'"),
        ("to/http://me:secret@127.0.0.1/", "has a user name or a password"),
        ("missing", "answers 404 Not Found; expected an image"),
        ("escape", "answers 404 Not Found; expected an image"),
        ("partial", "answers 206 Partial Content; expected an image"),
        ("noise", "cannot be fetched (?[2J what?)"),
    ],
)  # fmt: skip
def test_answers_that_are_refused(server, path, problem):
    said = refused(f"{server.url}/{path}", allow_private=True)
    assert problem in said
    assert said.startswith(f"{server.url}/{path}: ")


def test_flood_is_cut_at_the_limit(server):
    said = refused(f"{server.url}/flood", allow_private=True, max_bytes=1 << 20)
    assert "is larger; expected at most 1,048,576 bytes" in said
    assert server.sent < 32 << 20  # what buffers of the system hold


def test_limit_is_exact(server):
    assert fetch(server, "unending", max_bytes=len(CONTENT)) == CONTENT
    with pytest.raises(RemoteError, match="is larger"):
        fetch(server, "unending", max_bytes=len(CONTENT) - 1)


@pytest.mark.parametrize("path", ["drip", "drip_unending", "drip_headers", "nothing"])
def test_slow_servers_are_left_at_the_deadline(server, path):
    began = time.monotonic()
    said = refused(f"{server.url}/{path}", allow_private=True, seconds=0.4)
    assert time.monotonic() - began < 2
    assert said == (
        f"{server.url}/{path}: is not complete after 0.4 s; expected it within this time"
    )


def test_slow_name_server_is_left_at_the_deadline(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1) or [])
    began = time.monotonic()
    assert "is not complete after 0.2 s" in refused("http://slow.example/", seconds=0.2)
    assert time.monotonic() - began < 2


def test_refused_connection(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.jpg"
        assert "cannot be fetched (Connection refused)" in refused(url, allow_private=True)


# -- encryption


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """A server with a certificate for localhost; one that stalls in the handshake."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate")
    place = tmp_path_factory.mktemp("certificate")
    key, certificate = place / "key.pem", place / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.asked, server.over, server.certificate = [], threading.Event(), certificate
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


def test_certificate_is_checked(secure):
    said = refused(f"https://localhost:{secure.server_port}/image", allow_private=True)
    assert re.search("cannot be fetched .*certificate verify failed", said)


def trust(monkeypatch, secure):
    real = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda: real(cafile=str(secure.certificate)))


def test_trusted_server(secure, monkeypatch):
    trust(monkeypatch, secure)
    url = f"https://localhost:{secure.server_port}"
    assert fetch_image(f"{url}/image", allow_private=True) == CONTENT
    assert secure.asked[-1][1]["Host"] == f"localhost:{secure.server_port}"
    said = refused(f"{url}/drip_unending", allow_private=True, seconds=0.4)
    assert "is not complete after 0.4 s" in said


def test_name_in_the_certificate_is_checked(secure, monkeypatch):
    trust(monkeypatch, secure)
    said = refused(f"https://127.0.0.1:{secure.server_port}/image", allow_private=True)
    assert "certificate verify failed" in said


def test_slow_handshake_is_left_at_the_deadline():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/a.jpg"
        began = time.monotonic()
        said = refused(url, allow_private=True, seconds=0.3)
        assert time.monotonic() - began < 2
        assert "is not complete after 0.3 s" in said
