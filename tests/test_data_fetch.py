"""Downloads from a server that breaks off, stalls, lies and changes; hostile archives."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
import resource
import stat
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from coco_layout import WORDS, write_layout
from commands import refused, run

from fastrnn.data import fetch
from fastrnn.data.fetch import Download, FetchError, fetch_directory, unpack
from fastrnn.data.layout import read_captioning_directory

CONTENT = bytes(range(256)) * 1000


class Server(ThreadingHTTPServer):
    """Serves `content` at every path; `act` may answer a request in its stead."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag = CONTENT, '"one"'
        self.requests: list[dict[str, str]] = []
        self.act: Callable[[Handler, int], bool] = lambda handler, number: False
        self.done = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/archive.zip"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.requests.append(dict(self.headers) | {"path": self.path})
        if not self.server.act(self, len(self.server.requests)):
            self.answer()

    def answer(
        self, *, stop: int | None = None, length: int | None = None, ranges: bool = True,
        honest: bool = True, tag: bool = True,
    ) -> None:  # fmt: skip
        """Send the content, or the part asked for; `stop` ends it there, counted in the file."""
        content, start, status = self.server.content, 0, 200
        asked = self.headers.get("Range")
        same = self.headers.get("If-Range") == self.server.tag
        if asked and ranges and (same or not honest):
            start, status = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]), 206
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(status)
        if tag:
            self.send_header("ETag", self.server.tag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start if length is None else length))
        self.end_headers()
        self.wfile.write(content[start:stop])
        self.wfile.flush()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = Server()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.done.set()
    found.shutdown()
    thread.join()
    found.server_close()


def first(**options: object) -> Callable[[Handler, int], bool]:
    """Answer the first request in another way."""

    def act(handler: Handler, number: int) -> bool:
        if number == 1:
            handler.answer(**options)  # type: ignore[arg-type]
        return number == 1

    return act


def always(**options: object) -> Callable[[Handler, int], bool]:
    def act(handler: Handler, number: int) -> bool:
        handler.answer(**options)  # type: ignore[arg-type]
        return True

    return act


def download(server: Server, tmp_path: Path, **options: object) -> bytes:
    options = {"timeout": 0.3, "pause": 0.01, "tries": 3} | options
    return Download(server.url, tmp_path / "a.zip", **options).run().read_bytes()  # type: ignore


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# -- download


def test_a_file_that_comes_at_once(server, tmp_path):
    told: list[tuple[int, int | None]] = []
    digest = hashlib.sha256(CONTENT).hexdigest().upper()
    options = {"sha256": digest, "progress": lambda *at: told.append(at)}
    assert download(server, tmp_path, **options) == CONTENT
    assert names(tmp_path) == ["a.zip"]
    assert told[0] == (0, len(CONTENT))
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert told == sorted(told)
    assert len(server.requests) == 1


def test_it_goes_on_where_the_server_broke_off(server, tmp_path):
    server.act = first(stop=100_000)
    assert download(server, tmp_path) == CONTENT
    assert "Range" not in server.requests[0]
    assert server.requests[1]["Range"] == "bytes=100000-"
    assert server.requests[1]["If-Range"] == '"one"'


def test_it_goes_on_in_another_process(server, tmp_path):
    """What was interrupted is on the disk, with what the server said about it."""
    server.act = always(stop=100_000, ranges=False)
    with pytest.raises(FetchError, match=r"archive.zip: the server broke off, 3 times in a row"):
        download(server, tmp_path)
    assert names(tmp_path) == ["a.zip.part", "a.zip.part.json"]
    server.requests.clear()
    server.act = lambda handler, number: False
    assert download(server, tmp_path) == CONTENT
    assert server.requests[0]["Range"] == "bytes=100000-"


def test_a_part_of_another_address_is_not_used(server, tmp_path):
    server.act = always(stop=100_000, ranges=False)
    with pytest.raises(FetchError):
        download(server, tmp_path)
    server.requests.clear()
    server.act = lambda handler, number: False
    Download(f"{server.url}?b", tmp_path / "a.zip").run()
    assert "Range" not in server.requests[0]


def test_what_is_whole_is_not_asked_for_again(server, tmp_path):
    """As when the process was killed between the last byte and the renaming."""
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    note = {"url": server.url, "tag": '"one"', "date": None, "total": len(CONTENT)}
    (tmp_path / "a.zip.part.json").write_text(json.dumps(note))
    assert download(server, tmp_path) == CONTENT
    assert server.requests == []


@pytest.mark.parametrize("note", ["", "[]", '{"url": 3}', '{"url": "x", "tag": [], "date": null}'])
def test_a_damaged_note_means_to_start_over(server, tmp_path, note):
    (tmp_path / "a.zip.part").write_bytes(b"something else")
    (tmp_path / "a.zip.part.json").write_text(note)
    assert download(server, tmp_path) == CONTENT


def test_a_server_that_stalls(server, tmp_path):
    def act(handler: Handler, number: int) -> bool:
        if number == 1:
            handler.answer(stop=50_000)
            server.done.wait(5)
        return number == 1

    server.act = act
    began = time.monotonic()
    assert download(server, tmp_path) == CONTENT
    assert time.monotonic() - began < 3
    assert server.requests[1]["Range"] == "bytes=50000-"


def test_a_server_that_sends_a_byte_now_and_then(server, tmp_path):
    def act(handler: Handler, number: int) -> bool:
        handler.answer(stop=0)
        for _ in range(100):
            if server.done.wait(0.05):
                break
            try:
                handler.wfile.write(b"a")
            except OSError:
                break
        return True

    server.act = act
    with pytest.raises(FetchError, match="the server has stalled"):
        download(server, tmp_path, timeout=0.2, tries=1)


@pytest.mark.parametrize("more", [1, 10_000])
def test_a_server_that_says_more_than_it_has(server, tmp_path, more):
    server.act = always(length=len(CONTENT) + more, ranges=False)
    with pytest.raises(FetchError, match="broke off, 3 times in a row"):
        download(server, tmp_path)
    assert not (tmp_path / "a.zip").exists()


def test_a_server_that_says_less_than_it_has(server, tmp_path):
    server.act = always(length=1000)
    digest = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(ValueError, match=rf"has the SHA-256 [0-9a-f]*; expected {digest}"):
        download(server, tmp_path, sha256=digest)
    assert names(tmp_path) == []


def test_a_server_that_ignores_ranges(server, tmp_path):
    def act(handler: Handler, number: int) -> bool:
        handler.answer(ranges=False, stop=70_000 if number < 3 else None)
        return True

    server.act = act
    assert download(server, tmp_path) == CONTENT
    assert [r.get("Range") for r in server.requests] == [None, "bytes=70000-", "bytes=70000-"]


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_that_changes_between_two_tries(server, tmp_path, honest):
    """A server that heeds If-Range sends all of it; one that does not is found out by its ETag."""
    changed = CONTENT[::-1]

    def act(handler: Handler, number: int) -> bool:
        if number == 1:
            handler.answer(stop=70_000)
            server.content, server.tag = changed, '"two"'
        else:
            handler.answer(honest=honest)
        return True

    server.act = act
    assert download(server, tmp_path) == changed
    assert server.requests[1]["If-Range"] == '"one"'
    assert "Range" not in server.requests[-1] or honest


def test_a_file_that_shrinks_between_two_tries(server, tmp_path):
    def act(handler: Handler, number: int) -> bool:
        if number == 1:
            handler.answer(stop=70_000)
            server.content = CONTENT[:5000]
        else:
            handler.answer(honest=False)
        return True

    server.act = act
    assert download(server, tmp_path) == CONTENT[:5000]


def test_without_a_validator_it_starts_over(server, tmp_path):
    def act(handler: Handler, number: int) -> bool:
        handler.answer(tag=False, stop=70_000 if number == 1 else None)
        return True

    server.act = act
    assert download(server, tmp_path) == CONTENT
    assert "Range" not in server.requests[1]


def redirect(place: str, code: int = 302) -> Callable[[Handler, int], bool]:
    def act(handler: Handler, number: int) -> bool:
        if handler.path == "/archive.zip":
            handler.send_response(code)
            handler.send_header("Location", place)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return True
        return False

    return act


def test_redirects(server, tmp_path):
    server.act = redirect("/elsewhere.zip", 307)
    assert download(server, tmp_path) == CONTENT
    assert [r["path"] for r in server.requests] == ["/archive.zip", "/elsewhere.zip"]


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/a", "/archive.zip"])
def test_redirects_that_are_not_followed(server, tmp_path, place):
    server.act = redirect(place)
    with pytest.raises(FetchError, match=r"(?i)redirect|infinite loop"):
        download(server, tmp_path)
    assert len(server.requests) <= 11
    assert names(tmp_path) == []


def test_a_redirect_from_https_stays_there():
    request = urllib.request.Request("https://a/b")
    follow = fetch._Redirect().redirect_request
    assert follow(request, None, 302, "Found", {}, "https://c/d").full_url == "https://c/d"
    with pytest.raises(urllib.error.URLError, match="a redirect from https to http://c/d"):
        follow(request, None, 302, "Found", {}, "http://c/d")


def test_answers_that_are_errors(server, tmp_path):
    codes = iter([404, 503, 503])

    def act(handler: Handler, number: int) -> bool:
        code = next(codes, None)
        if code:
            handler.send_error(code)
        return code is not None

    server.act = act
    with pytest.raises(FetchError, match=r"archive.zip: the server answers 404 Not Found$"):
        download(server, tmp_path)
    assert len(server.requests) == 1
    assert download(server, tmp_path) == CONTENT
    assert len(server.requests) == 4


def test_nobody_answers(tmp_path):
    server = Server()
    server.server_close()
    with pytest.raises(FetchError, match="refused, 3 times in a row"):
        download(server, tmp_path)


def test_noise_instead_of_http(server, tmp_path):
    def act(handler: Handler, number: int) -> bool:
        handler.wfile.write(b"\x00\xff nonsense\r\n\r\n")
        return True

    server.act = act
    with pytest.raises(FetchError, match="3 times in a row"):
        download(server, tmp_path)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://a/b", "http://", "a.zip", "http://a b/", "http://a:b/", ""]
)
def test_addresses_that_are_refused(tmp_path, url):
    with pytest.raises(ValueError, match="expected an http or https address"):
        Download(url, tmp_path / "a")


def test_the_disk_is_too_small(server, tmp_path, monkeypatch):
    usage = SimpleNamespace(free=fetch._MARGIN + 1000)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(OSError, match="are free"):
        download(server, tmp_path)
    assert len(server.requests) == 1
    with pytest.raises(OSError, match="are free"):
        unpack(archive(tmp_path, {"a": b"a" * 2000}), tmp_path)


def test_the_disk_becomes_full(server, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*a\.zip\.part") as caught:
            download(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert len(server.requests) == 1
    assert download(server, tmp_path) == CONTENT
    assert server.requests[1]["Range"].startswith("bytes=")


# -- unpacking


def archive(tmp_path: Path, files: dict[str | zipfile.ZipInfo, bytes], **options: int) -> Path:
    path = tmp_path / "hostile.zip"
    with zipfile.ZipFile(path, "w", **{"compression": zipfile.ZIP_DEFLATED} | options) as content:
        for name, data in files.items():
            content.writestr(name, data)
    return path


def test_unpacking(tmp_path):
    files = {"a/b/c.txt": b"c" * 3_000_000, "a/d": b"", "é.txt": b"e"}
    told: list[tuple[int, int | None]] = []
    (tmp_path / "out").mkdir()
    path = archive(tmp_path, {**files, "a/empty/": b""})
    unpack(path, tmp_path / "out", progress=lambda *at: told.append(at))
    found = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes()
             for p in (tmp_path / "out").rglob("*") if p.is_file()}  # fmt: skip
    assert found == files
    assert (told[0], told[-1]) == ((0, 3_000_001), (3_000_001, 3_000_001))


def link(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (mode | 0o777) << 16
    return info


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("../a", b"x")], "leads outside"),
        ([("a/../../b", b"x")], "leads outside"),
        ([("/etc/a", b"x")], "leads outside"),
        ([("a//b", b"x")], "leads outside"),
        ([("./a", b"x")], "leads outside"),
        ([("C:/a", b"x")], "no plain name"),
        ([("..\\a", b"x")], "no plain name"),
        ([("a\nb", b"x")], "no plain name"),
        ([("a" * 300, b"x")], "leads outside of the directory, or is no plain name"),
        ([(link("a", stat.S_IFLNK), b"/etc/passwd")], "is a link or a special file"),
        ([(link("a", stat.S_IFIFO), b"")], "is a link or a special file"),
        ([(link("a", stat.S_IFCHR), b"")], "is a link or a special file"),
        ([("a", b"x"), ("a", b"y")], "'a' is there twice"),
        ([("a", b"x"), ("A", b"y")], "'A' is there twice"),
        ([("a", b"x"), ("a/b", b"y")], "'a/b' is there twice"),
        ([("a/b", b"x"), ("a", b"y")], "'a' is a file and a directory"),
        ([("a", b"x"), ("a/", b"")], "'a/' is there twice"),
        ([("a", bytes(2_000_000))], "files of 2000000 bytes; expected at most 1000000"),
        ([("a", bytes(600_000)), ("b", bytes(600_000))], "files of 1200000 bytes"),
        ([(f"{k}", b"") for k in range(12)], "has 12 files; expected at most 10"),
        ([("a/", b"")], "has no files"),
    ],
)
def test_hostile_archives(tmp_path, monkeypatch, files, message):
    monkeypatch.setattr(fetch, "MAX_FILES", 10)
    path = tmp_path / "hostile.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
        for name, data in files:
            content.writestr(name, data)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError) as caught:
        unpack(path, out, max_size=1_000_000)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["hostile.zip", "out"]
    assert names(out) == []


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, compression):
    path = archive(tmp_path, {"a": b"x"}, compression=compression)
    with pytest.raises(ValueError, match="has the compression"):
        unpack(path, tmp_path)


def patched(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def test_a_size_that_is_a_lie(tmp_path):
    """A bomb that says it is small, and a file that says it is larger than it is."""
    for size in (1000, 300_000):
        path = archive(tmp_path, {"a": bytes(200_000)})
        patched(path, (200_000).to_bytes(4, "little"), size.to_bytes(4, "little"))
        out = tmp_path / str(size)
        out.mkdir()
        with pytest.raises(ValueError, match=r"hostile.zip: (cannot be unpacked|damaged)"):
            unpack(path, out)
        assert sum(p.stat().st_size for p in out.iterdir()) <= max(size, 200_000)


def test_files_that_overlap(tmp_path):
    """A directory that names the same data many times, as in the bombs that are not nested."""
    path = archive(tmp_path, {f"{k:02}": bytes(100) for k in range(9)}, compression=0)
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    entry, end = data[start : start + 46 + 2], data[start + 9 * 48 :]
    entries = b"".join(entry[:46] + f"{k:02}".encode() for k in range(9))
    kept = data[: data.index(b"PK\x03\x04", 4)]
    end = end[:12] + len(entries).to_bytes(4, "little") + len(kept).to_bytes(4, "little") + end[20:]
    path.write_bytes(kept + entries + end)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"hostile.zip: .*has files that overlap"):
        unpack(path, tmp_path / "out")


def test_damaged_archives(tmp_path):
    path = archive(tmp_path, {"a": bytes(range(256)) * 50})
    whole = path.read_bytes()
    out = tmp_path / "out"
    for content in (
        b"",
        b"PK",
        whole[:-1],
        whole[: len(whole) // 2],
        whole.replace(b"\x12", b"\x13"),
    ):
        path.write_bytes(content)
        out.mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"hostile.zip: "):
            unpack(path, out)
        for left in out.iterdir():
            left.unlink()


# -- the whole way


def zipped(tmp_path: Path, folder: str = "coco_captioning/") -> bytes:
    write_layout(tmp_path / "layout")
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w", zipfile.ZIP_DEFLATED) as content:
        for path in sorted((tmp_path / "layout").iterdir()):
            content.write(path, f"{folder}{path.name}")
    return found.getvalue()


QUICK = {"timeout": 0.3, "pause": 0.01, "tries": 2}


@pytest.mark.parametrize("folder", ["coco_captioning/", "", "a/b/"])
def test_a_directory(server, tmp_path, folder):
    server.content = zipped(tmp_path, folder)
    (tmp_path / "place").mkdir()
    figures = fetch_directory(tmp_path / "place" / "data", server.url, **QUICK)
    assert figures["words"] == len(WORDS)
    assert (figures["train_captions"], figures["val_images"]) == (36, 5)
    assert names(tmp_path / "place") == ["data"]
    assert names(tmp_path / "place" / "data") == names(tmp_path / "layout")
    read_captioning_directory(tmp_path / "place" / "data")


def test_a_directory_that_is_no_data(server, tmp_path):
    out = tmp_path / "place" / "data"
    out.parent.mkdir()
    good = zipped(tmp_path)
    without, damaged = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as source:
        for target, name in (
            (without, "val2014_vgg16_fc7_pca.h5"),
            (damaged, "coco2014_captions.h5"),
        ):
            with zipfile.ZipFile(target, "w") as content:
                for info in source.infolist():
                    if not info.filename.endswith(name):
                        content.writestr(info.filename, source.read(info))
                    elif target is damaged:
                        content.writestr(info.filename, source.read(info)[:1000])
    for content, message in (
        (b"<html>not found</html>", "damaged|cannot be unpacked"),
        (without.getvalue(), r"no such data file: coco_captioning/val2014_vgg16_fc7_pca.h5"),
        (damaged.getvalue(), r"coco_captioning/coco2014_captions.h5 cannot be read"),
        (zipped(tmp_path, "x/") and hostile(), "leads outside"),
    ):
        server.content = content
        with pytest.raises(ValueError, match=message) as caught:
            fetch_directory(out, server.url, **QUICK)
        assert str(caught.value).startswith(f"{server.url}: ")
        assert names(out.parent) == []
    server.content = good
    fetch_directory(out, server.url, **QUICK)
    assert names(out.parent) == ["data"]


def hostile() -> bytes:
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w") as content:
        content.writestr("../../x", b"x")
    return found.getvalue()


def test_the_command(server, tmp_path, capsys):
    out = tmp_path / "new" / "place" / "my data"
    server.content = zipped(tmp_path)
    half = len(server.content) // 2
    server.act = always(stop=half, ranges=False)
    options = ("--url", server.url, "--out", out, "--timeout", 0.3)
    fetch_once = {"tries": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch.Download.__init__, "__kwdefaults__",
                      fetch.Download.__init__.__kwdefaults__ | fetch_once)  # fmt: skip
        said = refused(capsys, "fetch", *options)
    assert "the server broke off" in said
    assert "the same command goes on from there" in said
    assert names(out.parent) == [".my data.fetch"]
    server.act = lambda handler, number: False
    server.requests.clear()
    assert run("fetch", *options) == 0
    said = capsys.readouterr()
    assert server.requests[0]["Range"] == f"bytes={half}-"
    assert said.err == f"download: goes on at {half / 1e6:,.1f} MB\n"
    assert said.out.splitlines() == [
        "train  12 images, 36 captions", "val    5 images, 15 captions", "words  11",
        f"written to {out}", f"next: fastrnn train --data '{out}' --recipe coco",
    ]  # fmt: skip
    assert names(out.parent) == ["my data"]
    assert "exists; expected a new directory" in refused(capsys, "fetch", *options)
    said = refused(capsys, "fetch", "--url", "a.zip", "--out", out, "--force")
    assert said == "fastrnn: error: --url is 'a.zip'; expected an http or https address\n"
    assert "fastrnn: error: --sha256 is 'x'; expected 64" in refused(
        capsys, "fetch", *options, "--force", "--sha256", "x"
    )
    wrong = refused(capsys, "fetch", *options, "--force", "--sha256", "0" * 64)
    assert "has the SHA-256" in wrong
    assert names(out) == names(tmp_path / "layout")
    assert run("fetch", *options, "--force") == 0
    assert names(out.parent) == ["my data"]
