"""`fastrnn serve` as a command: where it listens, what it says, how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import refused

pytest.importorskip("fastapi", reason="fastrnn[serve] is not installed")
pytest.importorskip("uvicorn", reason="fastrnn[serve] is not installed")
pytest.importorskip("python_multipart", reason="fastrnn[serve] is not installed")
pytest.importorskip("onnx", reason="fastrnn[vision] is not installed")
pytest.importorskip("onnxruntime", reason="fastrnn[vision] is not installed")

from serve_setup import ask, caption, form, make_captioner, picture

from fastrnn.captioner import Captioner
from fastrnn.checkpoint import save_model
from fastrnn.extras import install_command
from fastrnn.vision.networks import load_network
from fastrnn.vision.source import FeatureSource


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run whose network is an ONNX model: the mean colours of 4 x 4 parts of the image."""
    from onnx import TensorProto, helper, save

    place = tmp_path_factory.mktemp("runs") / "mine"
    place.mkdir()
    graph = helper.make_graph(
        [
            helper.make_node("AveragePool", ["in"], ["mean"], kernel_shape=[4, 4], strides=[4, 4]),
            helper.make_node("Flatten", ["mean"], ["out"]),
        ],
        "colours",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 48])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    save(model, str(place / "network.onnx"))
    FeatureSource.of(load_network(onnx=place / "network.onnx")).write(place)
    save_model(place / "model.npz", make_captioner().model)
    return place


@contextmanager
def serving(*arguments: object):
    """Run the command; yield the process and what it prints first."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fastrnn", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def port_of(line: str) -> int:
    return int(re.search(r":(\d+)/", line)[1])


def test_it_captions_and_ends_by_an_interrupt(run_dir):
    with serving(run_dir, "--port", 0, "--max-upload", 0.05) as (process, line):
        port = port_of(line)
        assert line == f"{run_dir}: http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
        file = picture((10, 200, 10))
        status, answer = caption(port, file, beam=2, n_best=2)
        assert status == 200
        expected = Captioner.load(run_dir)([file], beam=2, n_best=2)[0]
        assert [one["caption"] for one in answer["captions"]] == [
            one.text for one in expected.captions
        ]
        assert ask(port, "/caption", *form(b"x" * 60_000))[0] == 413
        about = ask(port, "/about")[1]
        assert (about["run"], about["network"]) == ("mine", "onnx")
        assert "ONNX" in about["maps"]["why"]
        assert b"<title>" in ask(port, "/")[1]
        # A connection that sends nothing, and one that is kept open, do not hold it up.
        idle = socket.create_connection(("127.0.0.1", port))
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert time.monotonic() - began < 5
        idle.close()
    assert (process.returncode, out, err) == (130, "", "fastrnn: interrupted\n")


def test_on_the_network_and_ended_by_sigterm_after_what_is_under_way(run_dir):
    options = ("--port", 0, "--host", "0.0.0.0", "--allow-network")
    with serving(run_dir, *options) as (process, line):
        port = port_of(line)
        assert f"http://127.0.0.1:{port}/" in line
        assert ask(port, "/health", headers={"Host": f"192.168.1.7:{port}"})[0] == 200
        assert ask(port, "/health", headers={"Host": "evil.example"})[0] == 421
        body, headers = form(picture())
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = (
                f"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
                f"Content-Type: {headers['Content-Type']}\r\n\r\n"
            )
            connection.sendall(head.encode() + body[:100])
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            connection.sendall(body[100:])
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert err.startswith("fastrnn: warning: whoever reaches this machine can use the server")
    assert err.count("\n") == 1


def test_a_second_signal_ends_it_at_once(run_dir):
    with serving(run_dir, "--port", 0) as (process, line):
        port = port_of(line)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(
                b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx"
            )
            time.sleep(0.3)
            began = time.monotonic()
            for _ in range(2):
                process.send_signal(signal.SIGINT)
                time.sleep(0.2)
            _, err = process.communicate(timeout=20)
        assert time.monotonic() - began < 2.5
    assert (process.returncode, err) == (130, "fastrnn: interrupted\n")


def test_a_port_in_use_is_told_in_one_line(run_dir, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert refused(capsys, "serve", run_dir, "--port", port) == (
            f"fastrnn: error: --port is {port}; expected one that is not in use\n"
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--host is 0.0.0.0; expected 127.0.0.1 or, with --allow-network"),
        (["--host", "::"], "--allow-network"),
        (["--host", ""], "--allow-network"),
        (["--host", "example.invalid", "--allow-network"], "expected an address of this machine"),
        (["--host", "203.0.113.9", "--allow-network"], "expected an address of this machine"),
        (["--port", "65536"], "--port is 65536; expected at most 65535"),
        (["--port", "-1"], "--port is '-1'"),
        (["--max-upload", "0"], "--max-upload is '0'"),
        (["--max-upload", "1e9"], "--max-upload is 1e+09; expected at most 200"),
    ],
)
def test_options_are_checked(run_dir, capsys, options, said):
    assert said in refused(capsys, "serve", run_dir, *options)


def test_what_cannot_caption_photographs_is_refused(tmp_path, capsys):
    assert "nowhere" in refused(capsys, "serve", tmp_path / "nowhere", "--port", 0)
    save_model(tmp_path / "model.npz", make_captioner().model)
    assert "features.json" in refused(capsys, "serve", tmp_path, "--port", 0)


def test_a_missing_package_is_named(run_dir, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert install_command("serve") in refused(capsys, "serve", run_dir, "--port", 0)


def test_the_browser_is_opened(run_dir, monkeypatch):
    from fastrnn.cli import serve as command

    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    before = set(threading.enumerate())
    command._open("http://127.0.0.1:1/")
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert opened == ["http://127.0.0.1:1/"]
