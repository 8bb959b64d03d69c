"""A small captioner with a network that needs no package, and a server of it on a thread."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from fastrnn.captioner import Captioner
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.serve.describer import Describer
from fastrnn.vision.images import Preprocessing

WORDS = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "cat", "dog", "on", "the", "mat", "sofa"]


class Network:
    """Mean colours of 4 x 4 parts of an image: features that depend on what it shows."""

    name, layer, engine, width, digest = "colours", "mean", "numpy", 48, "sha256:0"
    preprocessing = Preprocessing(size=16)
    module = None

    def features(self, batch: np.ndarray) -> np.ndarray:
        parts = batch.reshape(len(batch), 3, 4, 4, 4, 4).mean(axis=(3, 5))
        return np.ascontiguousarray(parts.reshape(len(batch), -1), np.float32)


def make_captioner() -> Captioner:
    """A model that says different things of different colours, and ends."""
    np.random.seed(3)
    words = {word: idx for idx, word in enumerate(WORDS)}
    model = CaptioningRNN(words, 48, 8, 12, "lstm")
    rng = np.random.default_rng(7)
    for name, w in model.params.items():
        model.params[name] = (rng.standard_normal(w.shape) * 0.7).astype(np.float32)
    model.params["b_vocab"][:4] = -9, -9, 1, 2
    return Captioner(model, Network())


def make_describer(explain: Any = "no maps in this test") -> Describer:
    return Describer(make_captioner(), "mine", explain)


def picture(colour: Any = (200, 30, 40), size: tuple[int, int] = (40, 30), kind="PNG") -> bytes:
    """The file of a picture whose halves differ."""
    image = Image.new("RGB", size, colour)
    image.paste((20, 90, 220), (0, 0, size[0] // 2, size[1]))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@contextmanager
def serving(app: Any, limits: Any) -> Iterator[int]:
    """Run a server of an application on a thread; yield its port."""
    from fastrnn.serve.server import Server, open_socket

    opened = open_socket("127.0.0.1", 0)
    started = threading.Event()
    server = Server(app, limits, started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    port = opened.getsockname()[1]
    thread.start()
    try:
        assert started.wait(10)
        yield port
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def form(file: bytes, fields: dict[str, Any] | None = None) -> tuple[bytes, dict[str, str]]:
    """The body of a request with a picture, and its headers."""
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n" + file + b"\r\n"
    ]
    for name, value in (fields or {}).items():
        head = f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        parts.append(head.encode() + str(value).encode() + b"\r\n")
    body = b"".join(parts) + b"--edge--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=edge"}


def ask(
    port: int, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str = ""
) -> tuple[int, Any, http.client.HTTPResponse]:
    """The status of an answer, what it says (JSON or bytes), and the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        method = method or ("GET" if body is None else "POST")
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if content and answer.headers.get_content_type() == "application/json":
        return answer.status, json.loads(content), answer
    return answer.status, content, answer


def caption(port: int, file: bytes, **fields: Any) -> tuple[int, Any]:
    """The status of the answer to a picture, and what it says."""
    return ask(port, "/caption", *form(file, fields))[:2]
