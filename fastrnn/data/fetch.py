"""Fetch an archive with a data directory: download with resuming, and unpack safely."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from ..checks import ArgumentError
from ..files import one_line, parse_json, read_text, write_json
from .aside import AsideDirectory
from .layout import (
    CAPTIONS_FILE,
    COURSE_URL,
    SPLITS,
    dataset_shapes,
    features_file,
    read_captioning_directory,
)

__all__ = [
    "Download",
    "FetchError",
    "MAX_FILES",
    "MAX_SIZE",
    "fetch_directory",
    "unpack",
    "verify_directory",
]

MAX_SIZE = 16 << 30
"""Bytes that the unpacked files of an archive may have."""
MAX_FILES = 10_000
"""Files that an archive may have."""

_CHUNK = 1 << 16
_MARGIN = 64 << 20
"""Bytes that are left free on the disk."""
_SLOWEST = 1 << 10
"""Bytes that must come within the timeout; a server that sends less has stalled."""
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")

Progress = Callable[[int, "int | None"], Any]
"""Called with the bytes that are there, and how many there will be, if that is known."""


class FetchError(OSError):
    """A file cannot be fetched; what came is kept, to go on from there."""


# -- download


@dataclass
class _Known:
    """What is known of the file on the server, to see that it is still the same."""

    url: str
    tag: str | None = None
    date: str | None = None
    total: int | None = None

    @property
    def validator(self) -> str | None:
        """What ``If-Range`` compares: a strong ETag or else the date."""
        return self.tag or self.date

    def same(self, other: _Known) -> bool:
        """Whether two answers are about the same content, for all that they say."""
        pairs = ((self.tag, other.tag), (self.date, other.date), (self.total, other.total))
        return all(a is None or b is None or a == b for a, b in pairs)


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.URLError(f"a redirect to {newurl:.200}, expected http or https")
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError(f"a redirect from https to {newurl:.200}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for http and https alone: urllib's own would also open files."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(), _Redirect(),
        urllib.request.HTTPErrorProcessor(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener


class Download:
    """A file from a server, which can be resumed.

    What has come is in `path` with the suffix ``.part``, and what the server said about it in
    ``.part.json``: it goes on from there only while the server says that the file is the same.

    Parameters
    ----------
    url : str
        An http or https address.
    path : path
        Where the file is to be.
    sha256 : str, optional
        The SHA-256 that the file must have, in hexadecimal.
    timeout : float, optional
        Seconds without an answer, or with less than 1 KiB, after which it is tried again.
        Default 30.
    tries : int, optional
        How often in a row it is tried without getting further. Default 5.
    pause : float, optional
        Seconds before the second try; they double with each. Default 1.
    progress : callable, optional
        Called with the bytes that are there and the bytes of the file, None if not known.

    Raises
    ------
    ValueError
        If an argument is wrong.
    """

    def __init__(
        self,
        url: str,
        path: str | os.PathLike[str],
        *,
        sha256: str | None = None,
        timeout: float = 30.0,
        tries: int = 5,
        pause: float = 1.0,
        progress: Progress | None = None,
    ) -> None:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
            _ = parts.port
        except ValueError:
            usable = False
        if not usable or any(ord(sign) <= 32 or ord(sign) > 126 for sign in url):
            raise ArgumentError("url", f"is {url!r:.200}; expected an http or https address")
        if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
            raise ArgumentError("sha256", f"is {sha256!r:.80}; expected 64 hexadecimal digits")
        self.url: str = url
        self.path: Path = Path(path)
        self._sha256 = sha256.lower() if sha256 else None
        self._timeout, self._tries, self._pause = timeout, tries, pause
        self._progress = progress or (lambda done, total: None)
        self.part: Path = self.path.with_name(f"{self.path.name}.part")
        self._note = self.path.with_name(f"{self.path.name}.part.json")

    def run(self) -> Path:
        """Fetch the file, or what is missing of it.

        Returns
        -------
        Path
            The whole file.

        Raises
        ------
        FetchError
            If the server cannot be reached, refuses, or breaks off again and again.
        ValueError
            If the file has another SHA-256; it is removed.
        OSError
            If the disk is full, or the file cannot be written.
        """
        if not self.path.exists():
            failures = 0
            while True:
                before = self._size()
                try:
                    if self._once():
                        break
                    problem: object = "the server broke off"
                except urllib.error.HTTPError as error:
                    error.close()
                    if error.code < 500 and error.code not in (408, 425, 429):
                        raise self._error(
                            f"the server answers {error.code} {error.reason}"
                        ) from None
                    problem = f"the server answers {error.code} {error.reason}"
                except (http.client.HTTPException, urllib.error.URLError, OSError) as error:
                    cause = getattr(error, "reason", error)
                    if isinstance(error, FetchError):
                        raise
                    if isinstance(error, OSError) and _is_local(error):
                        where = error.filename or str(self.part)
                        raise OSError(error.errno, error.strerror, where) from error
                    if isinstance(cause, str):  # refused before anything was sent
                        raise self._error(cause) from None
                    problem = one_line(cause) or type(cause).__name__
                failures = 1 if self._size() > before else failures + 1
                if failures >= self._tries:
                    raise self._error(f"{problem}, {failures} times in a row")
                time.sleep(self._pause * 2 ** (failures - 1))
            self._check(self.part)
            self.part.replace(self.path)
            self._note.unlink(missing_ok=True)
        else:
            self._check(self.path)
        return self.path

    def _error(self, problem: object) -> FetchError:
        return FetchError(f"{self.url}: {one_line(problem)}")

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _check(self, path: Path) -> None:
        if self._sha256 is None:
            return
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != self._sha256:
            path.unlink()
            self._note.unlink(missing_ok=True)
            raise ValueError(
                f"{self.url}: has the SHA-256 {digest.hexdigest()}; expected {self._sha256}"
            )

    def _recall(self) -> _Known | None:
        """Return what the server said about the part that is there."""
        try:
            found = parse_json(read_text(self._note))
            known = _Known(**found)
        except (OSError, ValueError, TypeError):
            return None
        kinds = (known.url, str), (known.tag, str | None), (known.date, str | None)
        if not all(isinstance(value, kind) for value, kind in kinds):
            return None
        if not isinstance(known.total, int | None) or known.url != self.url:
            return None
        return known

    def _once(self) -> bool:
        """Ask the server once, and store what comes; return whether the file is whole."""
        known, have = self._recall(), self._size()
        if known is None or known.validator is None:
            have = 0
        elif have and have == known.total:
            return True
        request = urllib.request.Request(
            self.url, headers={"User-Agent": "fastrnn", "Accept-Encoding": "identity"}
        )
        if have:
            assert known is not None and known.validator is not None
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", known.validator)
        try:
            answer = _opener().open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not have:
                raise
            # The file is shorter than what is there: it is another one.
            error.close()
            self._forget()
            return False
        with answer:
            found = _described(self.url, answer.headers)
            if answer.status == 206:
                start, found.total = _range_of(answer.headers)
                if known is None or start != have or not known.same(found):
                    self._forget()
                    return False
                found.tag, found.date = found.tag or known.tag, found.date or known.date
                found.total = known.total if found.total is None else found.total
            elif answer.status == 200:
                have = 0
            else:
                raise self._error(f"the server answers {answer.status} {answer.reason}")
            if answer.headers.get("Content-Encoding", "identity") not in ("identity", ""):
                raise self._error("the server sends it compressed, though it was not asked to")
            _check_room(self.part.parent, (found.total or 0) - have, str(self.part))
            with self.part.open("r+b" if have else "wb") as file:
                write_json(self._note, vars(found))
                file.seek(have)
                self._receive(answer, file, have, found.total)
                file.flush()
                os.fsync(file.fileno())
        return found.total is None or self._size() == found.total

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def _receive(self, answer: Any, file: BinaryIO, done: int, total: int | None) -> None:
        self._progress(done, total)
        since, seen, checked = time.monotonic(), done, done
        while chunk := answer.read1(_CHUNK):
            if total is not None and done + len(chunk) > total:
                raise self._error(f"the server sends more than the {total} bytes that it says")
            file.write(chunk)
            done += len(chunk)
            if done - checked > _MARGIN // 4:
                checked = done
                _check_room(self.part.parent, 0, str(self.part))
            self._progress(done, total)
            now = time.monotonic()
            if now - since > self._timeout:
                if done - seen < _SLOWEST:
                    raise TimeoutError("the server has stalled")
                since, seen = now, done


def _is_local(error: OSError) -> bool:
    """Whether an error is about this machine's disk, and another try does not help."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
    return error.filename is not None or error.errno in full


def _described(url: str, headers: Message) -> _Known:
    tag, length = headers.get("ETag"), headers.get("Content-Length", "")
    return _Known(
        url,
        tag if tag and not tag.startswith("W/") and _printable(tag) else None,
        date if _printable(date := headers.get("Last-Modified", "")) and date else None,
        int(length) if re.fullmatch(r"\d{1,18}", length) else None,
    )


def _printable(text: str) -> bool:
    return text.isascii() and text.isprintable() and len(text) < 1000


def _range_of(headers: Message) -> tuple[int | None, int | None]:
    """Return where a part begins, and the length of the whole."""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip()[:100])
    if match is None or match[1] is None:
        return None, None
    return int(match[1]), None if match[3] == "*" else int(match[3])


def _check_room(directory: Path, size: int, name: str) -> None:
    free = shutil.disk_usage(directory).free
    if size + _MARGIN > free:
        raise OSError(
            errno.ENOSPC, f"{free} bytes are free; expected {size + _MARGIN} for the download", name
        )


# -- unpacking


def unpack(
    archive: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    max_size: int = MAX_SIZE,
    progress: Progress | None = None,
) -> None:
    """Unpack a zip archive of plain files.

    Parameters
    ----------
    archive : path
        The archive.
    directory : path
        An empty directory. Nothing is written outside of it; if anything fails, what was written
        stays in it.
    max_size : int, optional
        Bytes that all files together may have. Default 16 GiB.
    progress : callable, optional
        Called with the bytes that are written and all bytes.

    Raises
    ------
    OSError
        If there is not enough room on the disk, or a file cannot be written.
    ValueError
        If the archive is damaged, has links, names that lead elsewhere, the same name twice or
        files of more than `max_size` bytes.
    """
    archive, directory = Path(archive), Path(directory)
    try:
        with zipfile.ZipFile(archive) as content:
            members = _checked_members(content, archive.stat().st_size, max_size)
            total = sum(member.file_size for member in members.values())
            _check_room(directory, total, str(directory))
            done = 0
            if progress is not None:
                progress(0, total)
            for name, member in members.items():
                place = directory.joinpath(*name.parts)
                place.parent.mkdir(parents=True, exist_ok=True)
                with content.open(member) as source, place.open("xb") as file:
                    size = 0
                    while chunk := source.read(1 << 20):
                        size += len(chunk)
                        if size > member.file_size:
                            raise ValueError(f"{member.filename!r:.80} is larger than it says")
                        file.write(chunk)
                        if progress is not None:
                            progress(done + size, total)
                    if size != member.file_size:
                        raise ValueError(f"{member.filename!r:.80} is cut short")
                done += size
    except OSError as error:
        if error.filename is not None or error.errno not in (None, errno.EINVAL):
            raise
        raise ValueError(f"{archive}: damaged, or no zip archive ({one_line(error)})") from None
    except Exception as error:  # zipfile raises many types for damaged archives
        raise ValueError(f"{archive}: cannot be unpacked ({one_line(error)})") from None


def _checked_members(
    content: zipfile.ZipFile, size: int, max_size: int
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return the files of an archive by their paths, or refuse it."""
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    files: set[str] = set()
    infos = content.infolist()
    if len(infos) > MAX_FILES:
        raise ValueError(f"has {len(infos)} files; expected at most {MAX_FILES}")
    for info in infos:
        about = repr(info.filename)[:80]
        name, kind = info.filename, stat.S_IFMT(info.external_attr >> 16)
        # The name before zipfile cut it at a null character.
        if info.orig_filename != name or not name.isprintable() or set(name) & set('\\:*?"<>|'):
            raise ValueError(f"{about} is no plain name")
        parts = name.removesuffix("/").split("/")
        if any(part in ("", ".", "..") or len(part.encode()) > 200 for part in parts):
            raise ValueError(f"{about} leads outside of the directory, or is no plain name")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{about} is a link or a special file; expected plain files")
        if kind == stat.S_IFDIR and not info.is_dir():
            raise ValueError(f"{about} is a directory without a slash")
        if info.flag_bits & 1:
            raise ValueError(f"{about} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{about} has the compression {info.compress_type}; expected deflate")
        # Names that differ in case alone are one file on some systems.
        keys = ["/".join(parts[: k + 1]).casefold() for k in range(len(parts))]
        above = keys if info.is_dir() else keys[:-1]
        if files.intersection(above) or keys[-1] in files:
            raise ValueError(f"{about} is there twice")
        folders.update(above)
        if info.is_dir():
            continue
        if keys[-1] in folders:
            raise ValueError(f"{about} is a file and a directory")
        files.add(keys[-1])
        members[PurePosixPath(*parts)] = info
    total = sum(info.file_size for info in members.values())
    if total > max_size:
        raise ValueError(f"has files of {total} bytes; expected at most {max_size}")
    if sum(info.compress_size for info in members.values()) > size:
        raise ValueError("has files that overlap")
    if not members:
        raise ValueError("has no files")
    return members


# -- all of it


def fetch_directory(
    out: str | os.PathLike[str],
    url: str = COURSE_URL,
    *,
    sha256: str | None = None,
    force: bool = False,
    max_size: int = MAX_SIZE,
    progress: Callable[[str], Progress] | None = None,
    **options: Any,
) -> dict[str, int]:
    """Fetch an archive with a data directory, and make that directory.

    Parameters
    ----------
    out : path
        The directory. It is there when it is whole; a download that broke off goes on with the
        next call.
    url : str, optional
        A zip archive with the files of the layout, in a directory or not. Default the course's.
    sha256 : str, optional
        The SHA-256 of the archive.
    force : bool, optional
        Replace a data directory that exists.
    max_size : int, optional
        See `unpack`.
    progress : callable, optional
        Called with "download" and "unpack"; returns the ``progress`` of `Download` and `unpack`.
    **options
        See `Download`.

    Returns
    -------
    dict
        ``{split}_captions`` and ``{split}_images`` of the directory, and ``words``.

    Raises
    ------
    OSError, ValueError
        As `Download` and `unpack` raise them, or if the archive has no data directory.
    """
    begin = progress or (lambda what: lambda done, total: None)
    with AsideDirectory(out, "fetch", force=force) as place:
        archive = place.aside / "archive.zip"
        download = Download(url, archive, sha256=sha256, progress=begin("download"), **options)
        place.keep = True
        _remember(place.aside / "url.json", url, archive)
        download.run()
        unpacked = place.aside / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        try:
            unpack(archive, unpacked, max_size=max_size, progress=begin("unpack"))
            directory = _find_directory(unpacked, url)
            figures = verify_directory(directory)
        except (ValueError, OSError) as error:
            shutil.rmtree(unpacked, ignore_errors=True)
            if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
                raise
            # The archive is whole and no good: the next call is to fetch another.
            place.keep = False
            message = str(error)
            if isinstance(error, OSError) and error.filename is not None:
                message = f"{error.strerror}: {error.filename}"
            message = message.replace(str(archive), url).replace(f"{unpacked}{os.sep}", "")
            raise ValueError(message if url in message else f"{url}: {message}") from None
        place.move(directory)
    return figures


def _remember(note: Path, url: str, archive: Path) -> None:
    """Forget the archive of another address."""
    known = None
    with contextlib.suppress(OSError, ValueError):
        known = parse_json(read_text(note))
    if known != url:
        archive.unlink(missing_ok=True)
        write_json(note, url)


def _find_directory(unpacked: Path, url: str) -> Path:
    found = sorted(path.parent for path in unpacked.rglob(CAPTIONS_FILE))
    if len(found) != 1:
        raise ValueError(f"{url}: has {len(found)} files {CAPTIONS_FILE}; expected one")
    return found[0]


def verify_directory(directory: str | os.PathLike[str]) -> dict[str, int]:
    """Read a data directory as training does, and check that features before PCA fit it.

    Parameters
    ----------
    directory : path
        The data directory.

    Returns
    -------
    dict
        ``{split}_captions`` and ``{split}_images``, and ``words``.

    Raises
    ------
    OSError, ValueError
        See `fastrnn.data.layout.read_captioning_directory`.
    """
    data = read_captioning_directory(directory)
    figures = {"words": len(data["idx_to_word"])}
    for split in SPLITS:
        figures[f"{split}_captions"] = len(data[f"{split}_captions"])
        figures[f"{split}_images"] = len(data[f"{split}_features"])
        raw = Path(directory, features_file(split, pca=False))
        if raw.exists():
            shape, _ = dataset_shapes(raw).get("features", ((), None))
            if len(shape) != 2 or shape[0] != figures[f"{split}_images"]:
                raise ValueError(
                    f"{raw}: dataset 'features' has shape {shape}; expected "
                    f"{figures[f'{split}_images']} rows, as after PCA"
                )
    return figures
