"""The server: its answers are the captioner's, and no client brings it down."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="fastrnn[serve] is not installed")
pytest.importorskip("uvicorn", reason="fastrnn[serve] is not installed")
pytest.importorskip("python_multipart", reason="fastrnn[serve] is not installed")

from serve_setup import (
    Network,
    ask,
    caption,
    form,
    make_captioner,
    make_describer,
    picture,
    serving,
)

from fastrnn.explain import Saliency, saliency
from fastrnn.serve import guard
from fastrnn.serve.answers import CaptionAnswer, SaliencyAnswer
from fastrnn.serve.app import make_app
from fastrnn.serve.describer import Describer, explain_by
from fastrnn.serve.form import read_form
from fastrnn.serve.limits import Limits, Refused
from fastrnn.serve.worker import Worker

LIMITS = Limits(upload_bytes=200_000, held_bytes=1_000_000, stop_seconds=1)
QUICK = dataclasses.replace(LIMITS, head_seconds=0.4, idle_seconds=0.4, body_seconds=0.8)
"""For clients that are too slow."""
COLOURS = [(0, 0, 0), (255, 255, 255), (10, 200, 10), (200, 30, 40), (250, 240, 20)]


@pytest.fixture(scope="module")
def captioner():
    return make_captioner()


@pytest.fixture(scope="module")
def port(captioner):
    app = make_app(Describer(captioner, "mine", "no maps"), limits=LIMITS)
    with serving(app, LIMITS) as port:
        yield port


@pytest.fixture(scope="module")
def quick_port(captioner):
    app = make_app(Describer(captioner, "mine", "no maps"), limits=QUICK)
    with serving(app, QUICK) as port:
        yield port


def head(port: int, *lines: str) -> bytes:
    return "\r\n".join([f"{lines[0]} HTTP/1.1", f"Host: 127.0.0.1:{port}", *lines[1:], "", ""]
                       ).encode()  # fmt: skip


def read_all(connection: socket.socket, seconds: float = 10) -> bytes:
    connection.settimeout(seconds)
    found = b""
    while got := connection.recv(65536):
        found += got
    return found


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10)


# -- Answers


@pytest.mark.parametrize("beam", [1, 4])
def test_an_answer_is_what_the_captioner_says(port, captioner, beam):
    said = set()
    for colour in COLOURS:
        file = picture(colour)
        status, answer = caption(port, file, beam=beam, n_best=beam, alternatives=3, max_length=8)
        assert status == 200
        CaptionAnswer.model_validate(answer, strict=True)
        pixels = np.asarray(Image.open(io.BytesIO(file)))
        [expected] = captioner([pixels], beam=beam, n_best=beam, max_length=8)
        assert answer["caption"] == expected.caption
        assert len(answer["captions"]) == len(expected.captions) == beam
        for told, own in zip(answer["captions"], expected.captions, strict=True):
            ended = own.end_probability is not None
            assert told["caption"] == own.text
            assert [word["word"] for word in told["words"]] == own.words + ["<END>"] * ended
            probabilities = [word["probability"] for word in told["words"]]
            assert np.isclose(np.log(probabilities).sum(), own.log_prob, rtol=1e-4)
            assert np.isclose(told["log_prob"], own.log_prob, rtol=1e-4)
            others = captioner.alternatives(expected.features, own, 3)
            for word, row in zip(told["words"], others, strict=True):
                assert [one["word"] for one in word["alternatives"]] == [name for name, _ in row]
                got = [one["probability"] for one in word["alternatives"]]
                assert np.allclose(got, [p for _, p in row], rtol=1e-4)
        said.add(answer["caption"])
    assert len(said) > 2  # the answers are of these pictures


def test_what_a_request_need_not_say(port, captioner):
    """Greedy, one caption, no alternatives; a beam where several captions are asked for."""
    file = picture((10, 200, 10))
    pixels = np.asarray(Image.open(io.BytesIO(file)))
    for fields, beam, n_best in (({}, 1, 1), ({"n_best": 3}, 3, 3), ({"beam": 5}, 5, 1)):
        _, answer = caption(port, file, **fields)
        [expected] = captioner([pixels], beam=beam, n_best=n_best)
        assert [one["caption"] for one in answer["captions"]] == [
            one.text for one in expected.captions
        ]
        assert all(word["alternatives"] == [] for word in answer["captions"][0]["words"])


@pytest.mark.parametrize(
    "fields",
    [{"beam": 0}, {"beam": 11}, {"beam": "x"}, {"beam": ""}, {"beam": "-1"}, {"beam": "1" * 40},
     {"beam": 2, "n_best": 3}, {"max_length": 51}, {"alternatives": 21}, {"width": 3},
     {"beam": "9" * 5000}],
)  # fmt: skip
def test_fields_out_of_range_are_refused(port, fields):
    status, answer = caption(port, picture(), **fields)
    assert status == 400
    assert list(answer) == ["detail"]
    assert len(answer["detail"]) < 200


def test_openapi_describes_the_interface(port):
    status, schema, _ = ask(port, "/openapi.json")
    assert status == 200
    post = schema["paths"]["/caption"]["post"]
    fields = post["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert set(fields) == {"file", "beam", "n_best", "max_length", "alternatives"}
    for name, about in fields.items():
        if name != "file":  # what it says is what is refused
            extra = {"beam": 10} if name == "n_best" else {}
            for value, expected in (
                (about["minimum"], 200), (about["maximum"], 200),
                (about["minimum"] - 1, 400), (about["maximum"] + 1, 400),
            ):  # fmt: skip
                assert caption(port, picture(), **{**extra, name: int(value)})[0] == expected
    assert {"200", "400", "408", "413", "415", "503"} <= set(post["responses"])
    assert "CaptionAnswer" in schema["components"]["schemas"]
    assert {"/health", "/about"} <= set(schema["paths"])
    # The pages that would load scripts from elsewhere are off.
    assert ask(port, "/docs")[0] == ask(port, "/redoc")[0] == 404


def test_health_and_about(port, captioner):
    assert ask(port, "/health")[:2] == (200, {"status": "ok", "waiting": 0})
    about = ask(port, "/about")[1]
    assert (about["run"], about["network"], about["words"]) == ("mine", "colours", 11)
    assert about["upload_bytes"] == LIMITS.upload_bytes


# -- Who may ask


@pytest.mark.parametrize(
    ("host", "network", "status"),
    [("127.0.0.1:80", False, 200), ("localhost", False, 200), ("LOCALHOST:9", False, 200),
     ("[::1]:80", False, 200), ("evil.example", False, 421), ("127.0.0.1.evil.example", False, 421),
     ("localhost.evil.example:80", False, 421), ("", False, 421), ("[::1", False, 421),
     ("192.168.1.7:80", False, 421), ("192.168.1.7:80", True, 200), ("evil.example", True, 421),
     (f"{socket.gethostname()}:80", True, 200), (f"{socket.gethostname()}:80", False, 421)],
)  # fmt: skip
def test_the_host_is_this_server(port, captioner, host, network, status):
    """Another site's name that points here does not get its page to the answers."""

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    if socket.gethostname() in ("localhost", ""):
        pytest.skip("this machine has no name")
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "headers": [(b"host", host.encode())]}
    asyncio.run(guard.Guard(inner, LIMITS, network)(scope, None, send))
    assert sent[0]["status"] == status
    if not network:
        assert ask(port, "/about", headers={"Host": host})[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Origin": "http://127.0.0.1:{port}"}, 200), ({"Origin": "http://evil.example"}, 403),
     ({"Origin": "null"}, 403), ({"Origin": "http://127.0.0.1:1"}, 403), ({"Origin": ""}, 403),
     ({"Origin": "http://[::1"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403),
     ({"Sec-Fetch-Site": "same-site"}, 403), ({"Sec-Fetch-Site": "same-origin"}, 200), ({}, 200)],
)  # fmt: skip
def test_other_sites_pages_send_nothing(port, headers, status):
    body, about = form(picture())
    headers = {name: value.format(port=port) for name, value in headers.items()}
    got, _, answer = ask(port, "/caption", body, {**about, **headers})
    assert got == status
    assert answer.getheader("Access-Control-Allow-Origin") is None


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/about", "/nothing", "/caption"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
def test_every_answer_has_the_headers(port, path, method):
    _, _, answer = ask(port, path, b"x", method=method)
    for name, value in guard.HEADERS.items():
        assert answer.getheader(name) == value
    assert answer.getheader("Server") is None
    assert "unsafe" not in answer.getheader("Content-Security-Policy")


# -- Bad uploads


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"0" * 99))


@pytest.mark.parametrize(
    "file", [b"", b"a text", picture()[:60], bomb(30_000, 30_000), b"%!PS-Adobe-3.0 EPSF-3.0\n"],
    ids=["empty", "text", "cut", "bomb", "eps"],
)  # fmt: skip
def test_what_is_no_picture_is_refused(port, file):
    status, answer = caption(port, file)
    assert status == 415
    assert "file" in answer["detail"]
    assert caption(port, picture())[0] == 200


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_formats(port, kind):
    assert caption(port, picture(kind=kind))[0] == 200


PART = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "multipart/form-data; boundary=edge", 400),
        (b"garbage", "multipart/form-data; boundary=edge", 400),
        (b"--edge--\r\n", "multipart/form-data; boundary=edge", 400),
        (PART + picture(), "multipart/form-data; boundary=edge", 400),  # without an end
        (form(picture(), {"beam": 3})[0][:-10], "multipart/form-data; boundary=edge", 400),
        (form(picture())[0][:-10] + 20 * (
            b'\r\n--edge\r\nContent-Disposition: form-data; name="beam"\r\n\r\n3'
         ) + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge", 400),
        (form(picture())[0], "multipart/form-data", 415),
        (form(picture())[0], "multipart/form-data; boundary=other", 400),
        (form(picture())[0], "", 415),
        (form(picture())[0], "multipart/form-data; boundary=" + "x" * 5000, 400),
        (picture(), "image/png", 415),
        (b"file=a", "application/x-www-form-urlencoded", 415),
        (PART.replace(b'; filename="a"', b"") + b"a\r\n--edge--\r\n",
         "multipart/form-data; boundary=edge", 400),  # a text
        (PART.replace(b'"file"', b'"other"') + picture() + b"\r\n--edge--\r\n",
         "multipart/form-data; boundary=edge", 400),
        (PART + picture() + b"\r\n" + PART + picture() + b"\r\n--edge--\r\n",
         "multipart/form-data; boundary=edge", 400),  # two of them
        (b'--edge\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n' * 2000
         + b"--edge--\r\n", "multipart/form-data; boundary=edge", 400),
        (b"--edge\r\n" + b"A: b\r\n" * 20_000, "multipart/form-data; boundary=edge", 400),
        (PART[:-2] + b"Content-Transfer-Encoding: bad\r\n\r\na\r\n--edge--\r\n",
         "multipart/form-data; boundary=edge", 415),
    ],
)  # fmt: skip
def test_malformed_forms_are_refused(port, body, kind, status):
    got, answer, _ = ask(port, "/caption", body, {"Content-Type": kind})
    assert got == status
    assert list(answer) == ["detail"]


@pytest.mark.parametrize(
    "start",
    [b"\0" * 100, b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
     b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
     b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
     b"POST /caption HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
     b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000,
     b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: x\r\n" * 200_000,
     b"GET /" + b"x" * 1_000_000,
     b"GET / HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\nConnection: close\r\n\r\n",
     b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_http_is_refused(port, start):
    with connect(port) as connection:
        connection.sendall(start)
        try:
            answer = read_all(connection)
        except ConnectionError:
            answer = b""
    assert not answer or answer.split()[1][:1] == b"4"
    assert ask(port, "/health")[0] == 200


# -- Too large


@pytest.mark.parametrize("times", [1, 3, 20])
def test_a_large_upload_is_refused_and_told_so(port, times):
    """Also a client that sends everything before it reads sees the answer, within reason."""
    body, headers = form(b"x" * (LIMITS.upload_bytes * times))
    try:
        status, answer, _ = ask(port, "/caption", body, headers)
    except ConnectionError:
        assert times == 20
        status, answer = 413, {"detail": "0.2 MB"}
    assert status == 413
    assert "0.2 MB" in answer["detail"]


def test_a_large_upload_in_chunks_is_refused(port):
    def chunks():
        for _ in range(6):
            yield b"x" * 50_000

    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    assert ask(port, "/caption", chunks(), headers)[0] == 413


def test_a_large_upload_is_not_asked_for(port):
    """100 Continue is not sent for what will be refused."""
    with connect(port) as connection:
        connection.sendall(
            head(port, "POST /caption", "Expect: 100-continue", "Content-Length: 99999999999999999")
        )
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    with connect(port) as connection:
        body, headers = form(picture())
        kind = f"Content-Type: {headers['Content-Type']}"
        connection.sendall(
            head(port, "POST /caption", "Expect: 100-continue", f"Content-Length: {len(body)}",
                 kind, "Connection: close")
        )  # fmt: skip
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


# -- Too slow


@pytest.mark.parametrize(
    "start", [b"", b"GET / HT", b"POST /caption HTTP/1.1\r\nHost: localhost\r\n"],
    ids=["nothing", "line", "head"],
)  # fmt: skip
def test_a_head_that_does_not_come_ends_the_connection(quick_port, start):
    with connect(quick_port) as connection:
        began = time.monotonic()
        connection.sendall(start)
        with contextlib.suppress(ConnectionResetError):
            assert read_all(connection) == b""
        assert 0.2 < time.monotonic() - began < 5


def test_a_head_that_trickles_after_an_answer_ends_the_connection(quick_port):
    with connect(quick_port) as connection:
        connection.sendall(head(quick_port, "GET /health"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 5:
                connection.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - began < 3


def test_a_head_that_trickles_after_a_long_request_ends_the_connection(quick_port):
    """The time for the first head was over before that request was."""
    body, headers = form(picture())
    lines = (f"Content-Type: {headers['Content-Type']}", f"Content-Length: {len(body)}")
    with connect(quick_port) as connection:
        time.sleep(0.25)
        connection.sendall(head(quick_port, "POST /caption", *lines) + body[:50])
        time.sleep(0.25)
        connection.sendall(body[50:])
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 3:
                connection.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - began < 2.5


def test_a_body_that_stops_is_refused(quick_port):
    with connect(quick_port) as connection:
        connection.sendall(head(quick_port, "POST /caption", "Content-Length: 1000") + b"--edge")
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_trickles_is_refused(quick_port):
    with connect(quick_port) as connection:
        connection.sendall(head(quick_port, "POST /caption", "Content-Length: 1000"))
        began = time.monotonic()
        connection.settimeout(0.05)
        while time.monotonic() - began < 5:
            connection.sendall(b"x")
            try:
                answer = connection.recv(4096)
            except TimeoutError:
                continue
            break
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert 0.5 < time.monotonic() - began < 3


def test_a_client_that_goes_within_its_body_is_forgotten(quick_port):
    for _ in range(20):
        with connect(quick_port) as connection:
            connection.sendall(
                head(quick_port, "POST /caption", "Content-Length: 190000") + b"x" * 90_000
            )
    assert caption(quick_port, picture())[0] == 200


# -- Many


def test_64_clients_at_once(port):
    """While others dawdle, send nothing or leave."""
    idle = [connect(port) for _ in range(20)]
    slow = [connect(port) for _ in range(4)]
    for connection in slow:
        connection.sendall(head(port, "POST /caption", "Content-Length: 1000") + b"--edge")
    files = [picture(COLOURS[k % 5], (300, 200 + k)) for k in range(64)]
    alone = [caption(port, picture(colour))[1]["caption"] for colour in COLOURS]
    barrier = threading.Barrier(64)

    def send(k: int):
        barrier.wait()
        return caption(port, files[k], beam=1 + 2 * (k % 2))

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(send, range(64)))
    assert [status for status, _ in answers] == [200] * 64
    beamed = [caption(port, picture(colour), beam=3)[1]["caption"] for colour in COLOURS]
    alone = [caption(port, picture(colour), beam=1)[1]["caption"] for colour in COLOURS]
    expected = [(beamed if k % 2 else alone)[k % 5] for k in range(64)]
    assert [answer["caption"] for _, answer in answers] == expected
    for connection in idle + slow:
        connection.close()


class Held(Network):
    """A network that waits to be let go, and counts."""

    def __init__(self):
        self.go = threading.Event()
        self.asked: list[int] = []

    def features(self, batch):
        self.asked.append(len(batch))
        assert self.go.wait(20)
        return super().features(batch)


@pytest.fixture
def held(captioner):
    """A network, and the port of a server where three pictures may wait for it."""
    limits = Limits(waiting=3, batch=2, stop_seconds=2)
    network = Held()
    own = make_captioner()
    own.network = network
    with serving(make_app(Describer(own, "mine", "no maps"), limits=limits), limits) as port:
        yield network, port
        network.go.set()


def until(true) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_full_queue_says_so_and_the_rest_is_done_together(held):
    network, port = held
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(caption, port, picture())
        until(lambda: network.asked)
        rest = [pool.submit(caption, port, picture()) for _ in range(3)]
        until(lambda: ask(port, "/health")[1]["waiting"] == 3)
        status, answer, more = ask(port, "/caption", *form(picture()))
        assert status == 503
        assert int(more.getheader("Retry-After")) > 0
        assert "3 pictures" in answer["detail"]
        network.go.set()
        assert [one.result()[0] for one in (first, *rest)] == [200] * 4
    assert network.asked == [1, 2, 1]


def test_who_has_gone_is_not_waited_for(held):
    network, port = held
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(caption, port, picture())
        until(lambda: network.asked)
        body, headers = form(picture())
        with connect(port) as connection:
            kind = f"Content-Type: {headers['Content-Type']}"
            length = f"Content-Length: {len(body)}"
            connection.sendall(head(port, "POST /caption", length, kind) + body)
            until(lambda: ask(port, "/health")[1]["waiting"] == 1)
        time.sleep(0.1)
        network.go.set()
        assert first.result()[0] == 200
        assert caption(port, picture())[0] == 200
    assert network.asked == [1, 1]


def test_what_is_under_way_is_finished_when_the_server_stops(captioner):
    limits = Limits(stop_seconds=5)
    own = make_captioner()
    own.network = network = Held()
    with ThreadPoolExecutor(1) as pool:
        with serving(make_app(Describer(own, "mine", "no maps"), limits=limits), limits) as port:
            answer = pool.submit(caption, port, picture())
            until(lambda: network.asked)
            threading.Timer(0.3, network.go.set).start()
        assert answer.result()[0] == 200


def test_uploads_wait_for_room(captioner):
    """Bodies that do not fit into memory together are read one after the other."""
    limits = Limits(upload_bytes=200_000, held_bytes=200_000, idle_seconds=0.5, body_seconds=0.5)
    app = make_app(Describer(captioner, "mine", "no maps"), limits=limits)
    with serving(app, limits) as port, ThreadPoolExecutor(8) as pool, connect(port) as slow:
        slow.sendall(head(port, "POST /caption", "Content-Length: 190000") + b"x")
        file = picture(size=(230, 200), kind="BMP")
        began = time.monotonic()
        answers = list(pool.map(lambda _: caption(port, file)[0], range(8)))
        assert answers == [200] * 8
        assert time.monotonic() - began > 0.3  # for the slow one had the room
        assert read_all(slow).startswith(b"HTTP/1.1 408 ")


def test_room_is_handed_out_in_order():
    async def main():
        room = guard.Room(10)
        await room.take(6, 1)
        order = []

        async def take(size, name, seconds=5.0):
            await room.take(size, seconds)
            order.append(name)

        big = asyncio.create_task(take(8, "big"))
        await asyncio.sleep(0)
        gone = asyncio.create_task(take(2, "gone"))
        late = asyncio.create_task(take(2, "late", 0.01))
        small = asyncio.create_task(take(2, "small"))
        await asyncio.sleep(0.05)
        assert order == []
        gone.cancel()
        with pytest.raises(asyncio.TimeoutError):
            await late
        room.give(6)
        await asyncio.gather(big, small)
        assert order == ["big", "small"]
        room.give(10)
        await room.take(10, 0.1)  # all of it is there again

    asyncio.run(main())


def test_a_fault_hits_its_own_picture_only():
    def compute(kind, items):
        if "bad" in items:
            raise ValueError(f"{kind}: bad")
        return [item.upper() for item in items]

    async def main():
        worker = Worker(compute, batch=8, waiting=8, name="test")
        tasks = [worker.submit("a", item) for item in ("x", "bad", "y")]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert (found[0], found[2]) == ("X", "Y")
        assert isinstance(found[1], ValueError)
        worker.close(5)
        with pytest.raises(Refused):
            await worker.submit("a", "z")

    asyncio.run(main())


def test_a_bug_is_told_in_one_line_without_the_picture(captioner, capsys):
    class Broken(Network):
        def features(self, batch):
            raise RuntimeError("secret.png is broken")

    own = make_captioner()
    own.network = Broken()
    with serving(make_app(Describer(own, "mine", "no maps"), limits=LIMITS), LIMITS) as port:
        status, answer, _ = ask(port, "/caption", *form(picture()))
        assert (status, answer) == (500, {"detail": "internal error"})
        assert ask(port, "/health")[0] == 200
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "RuntimeError" in said.err
    assert "secret" not in said.err + said.out


WRITTEN: list[str] = []
WATCHED = threading.Event()


def _watch(event: str, details: tuple) -> None:
    if event == "open" and WATCHED.is_set() and details[2] & (os.O_WRONLY | os.O_RDWR):
        WRITTEN.append(str(details))


def test_nothing_is_stored_or_logged(port, capfd):
    """Not even a temporary file, whatever the size."""
    sys.addaudithook(_watch)  # it stays until the process ends
    large = picture(size=(240, 240), kind="BMP")
    WATCHED.set()
    try:
        for file in (picture(), large, b"x" * 199_000):
            caption(port, file)
        body, headers = form(b"x" * 3_000_000)
        assert len(read_form(headers["Content-Type"], body).file) == 3_000_000
        ask(port, "/caption", b"garbage", {"Content-Type": "multipart/form-data; boundary=edge"})
    finally:
        WATCHED.clear()
    assert WRITTEN == []
    assert capfd.readouterr() == ("", "")


def test_answers_are_json_that_a_browser_reads(port):
    """No NaN and no Infinity."""
    body, headers = form(picture(), {"max_length": 1})
    status, _, _ = ask(port, "/caption", body, headers)
    assert status == 200
    json.dumps(ask(port, "/caption", body, headers)[1], allow_nan=False)


# -- Saliency maps


def explain(image, text, method, steps, gone):
    """Maps that say what was asked: the mean colour, the number of words, the method."""
    if text == "unknown":
        raise ValueError("caption has 'unknown'; expected words of the model's vocabulary")
    words = (text or "a cat").split()
    steps = list(range(len(words))) if steps is None else steps
    maps = np.zeros((len(steps), 8, 8), np.float32)
    for row, step in enumerate(steps):
        maps[row, step] = np.linspace(-4, 4, 8)
    return Saliency(maps, [words[k] for k in steps], np.zeros((8, 8, 3)), steps, words)


def levels(uri: str) -> np.ndarray:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.fixture(scope="module")
def mapped():
    with serving(make_app(make_describer(explain), limits=LIMITS), LIMITS) as port:
        yield port


@pytest.mark.parametrize(
    ("fields", "words", "steps"),
    [({"caption": "the dog on a mat", "method": "integrated"}, "the dog on a mat", range(5)),
     ({}, "a cat", range(2)), ({"caption": "the dog on", "step": 1}, "the dog on", [1])],
)  # fmt: skip
def test_maps_of_a_caption(mapped, fields, words, steps):
    status, answer, _ = ask(mapped, "/saliency", *form(picture(), fields))
    assert status == 200
    SaliencyAnswer.model_validate(answer, strict=True)
    assert answer["caption"] == words
    assert answer["method"] == fields.get("method", "smooth")
    assert [one["step"] for one in answer["maps"]] == list(steps)
    assert [one["word"] for one in answer["maps"]] == [words.split()[k] for k in steps]
    for one in answer["maps"]:
        expected = np.zeros((8, 8))
        expected[one["step"]] = np.abs(np.linspace(-255, 255, 8)).round()
        assert np.allclose(levels(one["image"]), expected, atol=2)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"caption": "unknown"}, "vocabulary"), ({"caption": " "}, "words"), ({"step": "x"}, "step"),
     ({"caption": "a " * 60}, "60 words"), ({"method": "other"}, "plain"), ({"beam": 3}, "field"),
     ({"caption": "a" * 3000}, "longer")],
)  # fmt: skip
def test_maps_that_cannot_be_made_are_refused(mapped, fields, said):
    status, answer, _ = ask(mapped, "/saliency", *form(picture(), fields))
    assert status == 400
    assert said in answer["detail"]
    assert ask(mapped, "/saliency", *form(b"a text"))[0] == 415


def test_a_server_without_maps_says_why(port):
    assert ask(port, "/about")[1]["maps"] == {"available": False, "why": "no maps"}
    assert ask(port, "/saliency", *form(picture()))[:2] == (501, {"detail": "no maps"})
    assert caption(port, picture())[0] == 200


def test_networks_without_gradients_have_no_maps(captioner, monkeypatch):
    own = make_captioner()
    own.network.name = "onnx"
    assert "ONNX" in explain_by(own)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "PyTorch" in explain_by(captioner)


def test_captions_do_not_wait_for_maps(captioner):
    go = threading.Event()

    def slow(*asked):
        assert go.wait(20)
        return explain(*asked)

    limits = Limits(maps_waiting=1)
    app = make_app(make_describer(slow), limits=limits)
    with serving(app, limits) as port, ThreadPoolExecutor(2) as pool:
        asked = []
        for _ in range(2):
            asked.append(pool.submit(ask, port, "/saliency", *form(picture())))
            time.sleep(0.1)
        assert caption(port, picture())[0] == 200
        status, answer, _ = ask(port, "/saliency", *form(picture()))
        assert (status, "waiting" in answer["detail"]) == (503, True)
        go.set()
        assert [one.result()[0] for one in asked] == [200, 200]


def test_maps_are_those_of_explain():
    """With a network of PyTorch, as small as can be, the maps are what `saliency` gives."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    class Module(torch.nn.Module):
        def forward(self, pixels):
            return torch.nn.functional.avg_pool2d(torch.tanh(pixels), 4).flatten(1)

    class Tanh(Network):
        module = Module()

        def features(self, batch):
            return self.module(torch.from_numpy(batch)).numpy()

    captioner = make_captioner()
    captioner.network = Tanh()
    noise = np.random.default_rng(5).integers(0, 256, (20, 30, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "PNG")
    file = content.getvalue()
    app = make_app(Describer(captioner, "mine", explain_by(captioner)), limits=LIMITS)
    with serving(app, LIMITS) as port:
        said = caption(port, file)[1]["caption"]
        found = saliency(captioner, file, said, "plain")
        status, answer, _ = ask(
            port, "/saliency", *form(file, {"caption": said, "method": "plain"})
        )
        assert status == 200
        assert [one["word"] for one in answer["maps"]] == said.split()
        for one, own in zip(answer["maps"], np.abs(found.maps), strict=True):
            shares = np.minimum(own / np.quantile(own, 0.995), 1)
            assert np.allclose(levels(one["image"]), 255 * shares, atol=1)


def test_a_map_that_nobody_waits_for_is_given_up():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    passes, going_on = [], threading.Event()

    class Module(torch.nn.Module):
        def forward(self, pixels):
            passes.append(len(pixels))
            assert going_on.wait(20)
            return torch.nn.functional.avg_pool2d(torch.tanh(pixels), 4).flatten(1)

    class Tanh(Network):
        module = Module()

    captioner = make_captioner()
    captioner.network = Tanh()
    app = make_app(Describer(captioner, "mine", explain_by(captioner)), limits=LIMITS)
    with serving(app, LIMITS) as port:
        body, headers = form(picture(), {"method": "smooth"})
        with connect(port) as connection:
            kind, length = headers["Content-Type"], len(body)
            lines = (f"Content-Type: {kind}", f"Content-Length: {length}")
            connection.sendall(head(port, "POST /saliency", *lines) + body)
            until(lambda: passes)
        time.sleep(0.2)  # it sees that the connection is closed
        going_on.set()
        assert ask(port, "/saliency", *form(picture(), {"method": "plain"}))[0] == 200
    assert len(passes) == 2


def test_the_process_does_not_end_below_a_computation():
    """Libraries of networks abort where the interpreter goes while they compute."""
    script = (
        "import asyncio, time\n"
        "from fastrnn.serve.worker import Worker\n"
        "def compute(kind, items):\n"
        "    time.sleep(0.5)\n"
        "    print('done', flush=True)\n"
        "    return items\n"
        "async def main():\n"
        "    worker = Worker(compute, batch=1, waiting=1, name='test')\n"
        "    task = asyncio.ensure_future(worker.submit(None, 1))\n"
        "    await asyncio.sleep(0.1)\n"
        "    worker.close(0.01)\n"
        "    task.cancel()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
