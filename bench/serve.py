"""How long the server takes for a caption, beside the network in this process; 64 clients at once.

    python bench/serve.py RUN photo.jpg [--beam 1] [--alternatives 0] [--rounds 100]

In this process: the CNN alone on the prepared photograph, the CNN with the RNN that writes the
caption, and both with reading the photograph, as ``Captioner`` does. The server is ``fastrnn
serve``, asked over a connection that is kept. They are measured in turn.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from threadpoolctl import threadpool_limits

import fastrnn
from fastrnn.captioner import Captioner
from fastrnn.vision.images import open_image, prepare_image


def form(file: bytes, **fields: int) -> tuple[bytes, dict[str, str]]:
    """The body of a request, and its headers."""
    body = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + file
    for name, value in fields.items():
        body += (
            f'\r\n--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()
        )
    return body + b"\r\n--edge--\r\n", {"Content-Type": "multipart/form-data; boundary=edge"}


class Client:
    """A connection that is kept, with as little Python of its own as possible."""

    def __init__(self, port: int, body: bytes, headers: dict[str, str]) -> None:
        lines = ["POST /caption HTTP/1.1", f"Host: 127.0.0.1:{port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}", "", ""]
        self._request = "\r\n".join(lines).encode() + body
        self._socket = socket.create_connection(("127.0.0.1", port))

    def ask(self) -> bytes:
        """Send the picture; return the answer as JSON."""
        self._socket.sendall(self._request)
        got = self._socket.recv(1 << 16)
        head, _, content = got.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(got.decode())
        size = int(re.search(rb"content-length: (\d+)", head)[1])
        while len(content) < size:
            content += self._socket.recv(1 << 16)
        return content


def seconds(work: Callable[[], object]) -> float:
    """The time that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("photo")
    parser.add_argument("--beam", type=int, default=1)
    parser.add_argument("--alternatives", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    file = Path(options.photo).read_bytes()
    body, headers = form(
        file, beam=options.beam, n_best=options.beam, alternatives=options.alternatives
    )
    captioner = Captioner.load(options.run)
    fastrnn.set_num_threads(1)  # as the server does; the CNN has all
    threadpool_limits(1, user_api="blas")
    pixels = prepare_image(open_image(file), captioner.network.preprocessing)[None]
    server = subprocess.Popen(
        [sys.executable, "-m", "fastrnn", "serve", options.run, "--port", "0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        port = int(re.search(r":(\d+)/", server.stdout.readline())[1])
        client = Client(port, body, headers)
        times: dict[str, list[float]] = {
            name: [] for name in ("cnn", "both", "photo", "asked", "inside")
        }
        for _ in range(options.rounds):
            times["cnn"].append(seconds(lambda: captioner.network.features(pixels)))
            times["both"].append(
                seconds(lambda: captioner.caption_pixels(pixels, beam=options.beam))
            )
            times["photo"].append(seconds(lambda: captioner(file, beam=options.beam)))
            start = time.perf_counter()
            content = client.ask()
            times["asked"].append(time.perf_counter() - start)
            found = json.loads(content)
            times["inside"].append(found["seconds"])
        cnn, both, photo, asked, inside = (statistics.median(each[5:]) for each in times.values())
        print(found["caption"])
        print(f"CNN                          p50 {1e3 * cnn:7.2f} ms")
        print(f"CNN and RNN                  p50 {1e3 * both:7.2f} ms")
        print(f"photograph to caption        p50 {1e3 * photo:7.2f} ms")
        print(f"POST /caption                p50 {1e3 * asked:7.2f} ms", end="")
        print(f" = {asked / cnn:.2f}, {asked / both:.2f} and {asked / photo:.2f} of these")
        print(f"POST /caption, in the server p50 {1e3 * inside:7.2f} ms")
        barrier = threading.Barrier(64)

        def one(_: int) -> float:
            client = Client(port, body, headers)
            barrier.wait()
            start = time.perf_counter()
            client.ask()
            return time.perf_counter() - start

        with ThreadPoolExecutor(64) as pool:
            start = time.perf_counter()
            waits = sorted(pool.map(one, range(64)))
            total = time.perf_counter() - start
        print(
            f"64 at once                   p50 {1e3 * waits[31]:7.2f} ms, "
            f"last {1e3 * waits[-1]:.0f} ms, {64 / total:.0f} captions/s, no error"
        )
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
