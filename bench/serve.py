"""How long the server takes for a caption, beside the network alone; and 64 clients at once.

    python bench/serve.py RUN photo.jpg [--beam 1] [--rounds 100]

The networks alone read the prepared photograph in this process: the CNN, and the CNN with the RNN
that writes the caption. The server is ``fastrnn serve``, asked over a connection that is kept. They
are measured in turn.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
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


def ask(connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]) -> dict:
    """The answer to a picture."""
    connection.request("POST", "/caption", body, headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status} {content.decode()}")
    return json.loads(content)


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
    parser.add_argument("--alternatives", type=int, default=5)
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
        connection = http.client.HTTPConnection("127.0.0.1", port)
        times: dict[str, list[float]] = {name: [] for name in ("cnn", "both", "asked", "inside")}
        for _ in range(options.rounds):
            times["cnn"].append(seconds(lambda: captioner.network.features(pixels)))
            times["both"].append(
                seconds(lambda: captioner.caption_pixels(pixels, beam=options.beam))
            )
            start = time.perf_counter()
            found = ask(connection, body, headers)
            times["asked"].append(time.perf_counter() - start)
            times["inside"].append(found["seconds"])
        cnn, both, asked, inside = (statistics.median(each[5:]) for each in times.values())
        print(found["caption"])
        print(f"CNN alone        p50 {1e3 * cnn:7.2f} ms")
        print(f"CNN and RNN      p50 {1e3 * both:7.2f} ms")
        print(
            f"POST /caption    p50 {1e3 * asked:7.2f} ms  {asked / both:.2f} x CNN and RNN, "
            f"{asked / cnn:.2f} x CNN"
        )
        print(f"  in the server  p50 {1e3 * inside:7.2f} ms")
        barrier = threading.Barrier(64)

        def one(_: int) -> float:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            barrier.wait()
            start = time.perf_counter()
            ask(connection, body, headers)
            return time.perf_counter() - start

        with ThreadPoolExecutor(64) as pool:
            start = time.perf_counter()
            times = sorted(pool.map(one, range(64)))
            total = time.perf_counter() - start
        print(
            f"64 at once       p50 {1e3 * times[31]:7.2f} ms, last {1e3 * times[-1]:.0f} ms, "
            f"{64 / total:.0f} captions/s, no error"
        )
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
