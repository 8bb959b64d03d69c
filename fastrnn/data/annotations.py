"""Images and their captions from the files in which they are published.

`read_annotations` reads COCO's JSON, Karpathy's JSON with splits, JSON and JSON Lines of records,
the token files of Flickr8k and Flickr30k, CSV and TSV. Files are read piece by piece, so that what
is kept are the captions alone.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..files import is_text, one_line, open_file, unique_keys

__all__ = [
    "AnnotatedImage",
    "Annotations",
    "Columns",
    "FORMATS",
    "SPLIT_NAMES",
    "read_annotations",
    "read_names",
]

FORMATS = ("json", "jsonl", "csv", "tsv", "flickr")
"""What `read_annotations` reads: COCO's and Karpathy's files are ``json``."""
SPLIT_NAMES = {
    "train": "train", "training": "train", "trn": "train", "restval": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "tst": "test",
}  # fmt: skip
"""What files call their splits; Karpathy's ``restval`` is trained on, as it is everywhere."""

_IMAGE_KEYS = (
    "image", "image_name", "file_name", "filename", "file_path", "filepath", "path", "image_path",
    "file", "img", "photo", "image_id", "image_url", "url", "coco_url", "flickr_url",
)  # fmt: skip
_CAPTION_KEYS = (
    "caption", "captions", "caption_text", "comment", "sentence", "sentences", "text",
    "description", "raw",
)  # fmt: skip
_SPLIT_KEYS = ("split", "set", "subset")
_DELIMITERS = (",", ";", "|", "\t")

_PIECE = 1 << 20
_LONGEST_ITEM = 1 << 24
"""Characters of one line or of one value in JSON; what is longer is no annotation."""
_LONGEST_NAME = 1000
_FLICKR_LINE = re.compile(r"(?P<image>[^\t]+)#\d+\s*\t(?P<caption>.*)")


@dataclass
class AnnotatedImage:
    """An image and what people said about it.

    Attributes
    ----------
    name : str
        Its name or path, as in the file.
    captions : list of str
        Raw text, or words separated by spaces.
    split : {'train', 'val', 'test'} or None
        None if the file does not say.
    url : str or None
        Its address, if the file has one beside the name.
    number : str or None
        COCO's number of the image, by which features are often named.
    """

    __slots__ = ("captions", "name", "number", "split", "url")

    name: str
    captions: list[str]
    split: str | None
    url: str | None
    number: str | None


@dataclass
class Annotations:
    """Images in the order in which files name them first.

    Attributes
    ----------
    images : list of AnnotatedImage
    orphans : dict of str to int
        Images that have captions but are not among the images of their file (COCO's annotations
        with an unknown ``image_id``), and how many.
    sources : list of str
        The files, each with its format.
    """

    images: list[AnnotatedImage] = field(default_factory=list)
    orphans: dict[str, int] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._by_name = {image.name: image for image in self.images}

    def add(
        self,
        where: str,
        name: Any,
        captions: Sequence[Any] = (),
        split: str | None = None,
        url: str | None = None,
        number: str | None = None,
    ) -> None:
        """Add captions to an image, which is made when it is new.

        Parameters
        ----------
        where : str
            The file and the place in it, for messages.
        name : str or int
            The name of the image.
        captions : sequence of str, optional
            Its captions: text, or sequences of words.
        split : {'train', 'val', 'test'}, optional
            The split that the image belongs to.
        url : str, optional
            Its address.
        number : str, optional
            COCO's number of the image.

        Raises
        ------
        ValueError
            If the name or a caption is not such, or if the image has another split already; the
            message begins with `where`.
        """
        if type(name) is int:
            name = str(name)
        if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME:
            raise ValueError(f"{where} has the image {name!r:.60}; expected a name")
        name = name.strip()
        if any(sign in name for sign in "\0\n\r") or not is_text(name):
            raise ValueError(f"{where} has the image {name!r:.60}; expected a name in one line")
        for caption in captions:
            if not isinstance(caption, str):
                raise ValueError(f"{where} has the caption {caption!r:.60}; expected text")
            if "\0" in caption or not is_text(caption):
                raise ValueError(f"{where} has the caption {caption!r:.60}; expected valid text")
        image = self._by_name.get(name)
        if image is None:
            image = self._by_name[name] = AnnotatedImage(name, list(captions), split, url, number)
            self.images.append(image)
            return
        if split != image.split:
            if split is not None and image.split is not None:
                raise ValueError(
                    f"{where} has the image {name!r:.60} in {split}, and it is in {image.split} "
                    "already; expected every image in one split"
                )
            image.split = split or image.split
        image.captions += captions


@dataclass(frozen=True)
class Columns:
    """Names of columns or keys, where they are not among those that are known."""

    image: str | None = None
    caption: str | None = None
    split: str | None = None


def read_annotations(
    path: str | os.PathLike[str],
    into: Annotations | None = None,
    *,
    form: str | None = None,
    split: str | None = None,
    columns: Columns | None = None,
    tokens: bool = False,
) -> Annotations:
    """Read images and their captions from a file.

    Parameters
    ----------
    path : path
        The file.
    into : Annotations, optional
        What was read from other files, to which this one is added.
    form : {'json', 'jsonl', 'csv', 'tsv', 'flickr'}, optional
        The format; by default it is told from the name and the beginning of the file.
    split : {'train', 'val', 'test'}, optional
        The split of all images in the file, whatever the file says.
    columns : Columns, optional
        Names of the columns (CSV, TSV) or keys (JSON, JSON Lines) with the image, the caption and
        the split; a number counts columns from 1. By default names in use are looked for, such as
        ``image``, ``file_name`` and ``caption``; a CSV or TSV file without them that has two
        columns has the image and the caption in them.
    tokens : bool, optional
        Take the tokens of Karpathy's files, joined by spaces, instead of the raw sentences.

    Returns
    -------
    Annotations
        `into`, if given.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not in the format; the message has the file, and the line or the record.
    """
    path = Path(path)
    into = Annotations() if into is None else into
    form = form or _form_of(path)
    if form not in FORMATS:
        raise ValueError(f"form is {form!r}; expected one of {', '.join(FORMATS)}")
    reader = _Reader(path, into, split, columns or Columns(), tokens)
    kind = {
        "json": reader.read_json, "jsonl": reader.read_json_lines, "csv": reader.read_csv,
        "tsv": reader.read_tsv, "flickr": reader.read_flickr,
    }[form]()  # fmt: skip
    if not reader.records:
        raise ValueError(f"{path}: has no images and no captions; expected {kind}")
    into.sources.append(f"{path} ({kind})")
    return into


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Read a list of images: a name or path on each line.

    Parameters
    ----------
    path : path
        The text file. Empty lines are left out.

    Returns
    -------
    list of str
        The names, in the order of the lines.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not text, has a name twice or none.
    """
    path = Path(path)
    names: dict[str, int] = {}
    for number, line in _lines(path):
        name = line.strip()
        if not name:
            continue
        if "\0" in name or len(name) > _LONGEST_NAME:
            raise ValueError(
                f"{path}: line {number} has {name!r:.60}; expected the name of an image"
            )
        if name in names:
            raise ValueError(
                f"{path}: line {number} has {name!r:.60}, as line {names[name]}; expected every "
                "image once"
            )
        names[name] = number
    if not names:
        raise ValueError(f"{path}: has no names; expected the name of an image on each line")
    return list(names)


# -- which format


def _form_of(path: Path) -> str:
    """Tell the format of a file from its name, else from its first line."""
    known = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
    suffix = path.suffix.lower()
    if suffix in known:
        return known[suffix]
    first = next((line for _, line in _lines(path) if line.strip()), "")
    if first.lstrip().startswith(("{", "[")):
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            return "json"
        return "jsonl" if first.lstrip().startswith("{") else "json"
    if _FLICKR_LINE.match(first):
        return "flickr"
    return "tsv" if "\t" in first else "csv"


# -- text, piece by piece


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file with their numbers, line ends included."""
    with open_file(path) as file:
        number = 0
        while line := file.readline(_LONGEST_ITEM + 1):
            number += 1
            if len(line) > _LONGEST_ITEM:
                raise ValueError(
                    f"{path}: line {number} is longer than {_LONGEST_ITEM} bytes; expected an "
                    "image and a caption"
                )
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}: line {number} is not text in UTF-8 ({one_line(error)})"
                ) from None


class _Json:
    """A JSON file, read value by value: of a large file only one item is in memory."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder(object_pairs_hook=unique_keys).raw_decode
        self._text, self._at, self._line, self._ended = "", 0, 1, False

    def _more(self) -> None:
        """Read at least as much as is left, so that a long value is not scanned too often."""
        self._line += self._text.count("\n", 0, self._at)
        rest = self._text[self._at :]
        content = self._file.read(max(_PIECE, len(rest)))
        self._ended = not content
        try:
            self._text = rest + self._decode.decode(content, self._ended)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: not text in UTF-8 ({one_line(error)})") from None
        self._at = 0

    def peek(self) -> str:
        """Return the next character that is not a blank; "" at the end of the file."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\n\r":
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._more()

    def take(self, expected: str) -> str:
        """Take the next character, one of those expected."""
        found = self.peek()
        if not found or found not in expected:
            raise self.error(
                f"has {found or 'its end'!r} where {' or '.join(expected)} is expected"
            )
        self._at += 1
        return found

    def error(self, problem: str) -> ValueError:
        """Return an error about the place that was reached."""
        line = self._line + self._text.count("\n", 0, self._at)
        return ValueError(f"{self.path}: not a JSON file (line {line} {problem})")

    def value(self) -> Any:
        """Take the next value."""
        self.peek()
        while True:
            try:
                found, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self.error(f"on: {error.msg}") from None
            except (ValueError, RecursionError) as error:
                deep = isinstance(error, RecursionError)
                raise self.error(
                    f"on: {'nested too deeply' if deep else one_line(error)}"
                ) from None
            else:
                # A number could go on in the next piece.
                if end < len(self._text) or self._ended:
                    self._at = end
                    return found
            if len(self._text) - self._at > _LONGEST_ITEM:
                raise self.error(f"on: no value that ends within {_LONGEST_ITEM} characters")
            self._more()

    def items(self) -> Iterator[Any]:
        """Yield the items of the array that is next."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        yield self.value()
        while self.take(",]") == ",":
            yield self.value()

    def keys(self) -> Iterator[str]:
        """Yield the keys of the object that is next; the caller takes the values."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        seen: set[str] = set()
        while True:
            if self.peek() != '"':
                raise self.error(f"has {self.peek() or 'its end'!r}; expected a key")
            key = self.value()
            if key in seen:
                raise self.error(f"has the key {key!r:.60} again")
            seen.add(key)
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return


def _problem(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else one_line(error)


# -- the formats


def _first(found: dict[str, Any], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if found.get(key) not in (None, "")), None)


class _Reader:
    """Reads one file into annotations; each method returns what its format is called."""

    def __init__(
        self, path: Path, into: Annotations, split: str | None, columns: Columns, tokens: bool
    ) -> None:
        self.path, self.into, self.split = path, into, split
        self.columns, self.tokens = columns, tokens
        self.records = 0

    def split_of(self, where: str, name: Any) -> str | None:
        if self.split is not None or name in (None, ""):
            return self.split
        found = SPLIT_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
        if found is None:
            raise ValueError(
                f"{where} has the split {name!r:.60}; expected one of {', '.join(SPLIT_NAMES)}"
            )
        return found

    # JSON

    def read_json(self) -> str:
        with open_file(self.path) as file:
            text = _Json(self.path, file)
            opening = text.peek()
            if opening == "[":
                kind = "JSON records"
                for number, record in enumerate(text.items()):
                    self.add_record(f"{self.path}: record {number}", record)
            elif opening == "{":
                kind = self.read_coco(text)
            else:
                raise ValueError(
                    f"{self.path}: not a JSON file of annotations; expected an object or an array"
                )
            if text.peek():
                raise text.error(f"has {text.peek()!r} after the end")
        return kind

    def read_coco(self, text: _Json) -> str:
        """COCO's annotations, or Karpathy's images with their sentences."""
        numbers: dict[Any, tuple[str, str | None]] = {}
        captions: dict[Any, list[str]] = {}
        sentences = False
        found: set[str] = set()
        for key in text.keys():  # noqa: SIM118
            if key not in ("images", "annotations"):
                text.value()
                continue
            found.add(key)
            if text.peek() != "[":
                raise ValueError(f"{self.path}: {key!r} is no array; expected an array of objects")
            for number, item in enumerate(text.items()):
                where = f"{self.path}: {key}[{number}]"
                if not isinstance(item, dict):
                    raise ValueError(f"{where} is {item!r:.60}; expected an object")
                self.records += 1
                if key == "annotations":
                    idx = self.number_of(where, item, "image_id")
                    caption = item.get("caption")
                    if not isinstance(caption, str) or "\0" in caption or not is_text(caption):
                        raise ValueError(f"{where} has the caption {caption!r:.60}; expected text")
                    captions.setdefault(idx, []).append(caption)
                elif "sentences" in item:
                    sentences = True
                    self.add_karpathy(where, item)
                else:
                    idx = self.number_of(where, item, "id")
                    if idx in numbers:
                        raise ValueError(f"{where} has the id {idx!r:.60} again; expected it once")
                    numbers[idx] = self.name_of(where, item), self.url_of(where, item)
        if sentences and (numbers or captions):
            raise ValueError(
                f"{self.path}: has images with 'sentences' and images without; expected all as in "
                "Karpathy's files or all as in COCO's"
            )
        if not sentences and found != {"images", "annotations"}:
            missing = sorted({"images", "annotations"} - found)
            raise ValueError(
                f"{self.path}: {' and '.join(map(repr, missing))} not found; expected COCO's "
                "annotations ('images' and 'annotations'), or images with 'sentences'"
            )
        for idx, (name, url) in numbers.items():
            where = f"{self.path}: the image {idx!r:.60}"
            self.into.add(where, name, captions.pop(idx, ()), self.split, url, str(idx))
        for idx, texts in captions.items():
            self.into.orphans[f"image_id {idx}"] = len(texts)
        return "Karpathy's JSON" if sentences else "COCO's JSON"

    @staticmethod
    def number_of(where: str, item: dict[str, Any], key: str) -> int | str:
        number: Any = item.get(key)
        if type(number) not in (int, str):
            raise ValueError(f"{where} has the {key} {number!r:.60}; expected a number or text")
        return number

    def name_of(self, where: str, item: dict[str, Any]) -> str:
        if self.columns.image is not None:
            return item.get(self.columns.image, "")
        key = _first(item, ("file_name", "filename", "coco_url", "flickr_url"))
        name = item[key] if key else None
        if not isinstance(name, str):
            raise ValueError(f"{where} has the file_name {name!r:.60}; expected a name")
        return name.rsplit("/", 1)[-1] if key in ("coco_url", "flickr_url") else name

    @staticmethod
    def url_of(where: str, item: dict[str, Any]) -> str | None:
        key = _first(item, ("coco_url", "flickr_url", "url"))
        url = item[key] if key else None
        if url is None:
            return None
        if not isinstance(url, str) or not 0 < len(url.strip()) <= _LONGEST_NAME:
            raise ValueError(f"{where} has the {key} {url!r:.60}; expected an address")
        if any(sign in url for sign in "\0\n\r") or not is_text(url):
            raise ValueError(f"{where} has the {key} {url!r:.60}; expected one line")
        return url.strip()

    def add_karpathy(self, where: str, item: dict[str, Any]) -> None:
        name, folder = self.name_of(where, item), item.get("filepath")
        if isinstance(folder, str) and folder and self.columns.image is None:
            name = f"{folder.rstrip('/')}/{name}"
        sentences = item["sentences"]
        if not isinstance(sentences, list):
            raise ValueError(f"{where} has the sentences {sentences!r:.60}; expected an array")
        texts = []
        for sentence in sentences:
            words = sentence.get("tokens") if isinstance(sentence, dict) else None
            if isinstance(sentence, dict) and (self.tokens or "raw" not in sentence):
                if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
                    raise ValueError(f"{where} has the tokens {words!r:.60}; expected words")
                texts.append(" ".join(words))
            else:
                texts.append(sentence["raw"] if isinstance(sentence, dict) else sentence)
        number = item.get("cocoid")
        split = self.split_of(where, item.get(self.columns.split or "split"))
        self.into.add(
            where, name, texts, split, self.url_of(where, item),
            None if number is None else f"{number!s:.60}",
        )  # fmt: skip

    def read_json_lines(self) -> str:
        for number, line in _lines(self.path):
            if not line.strip():
                continue
            where = f"{self.path}: line {number}"
            try:
                record = json.loads(line, object_pairs_hook=unique_keys)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{where} is not JSON ({_problem(error)}); expected an object"
                ) from None
            self.add_record(where, record)
        return "JSON Lines"

    def add_record(self, where: str, record: Any) -> None:
        """An object with an image and one or several captions."""
        if not isinstance(record, dict):
            raise ValueError(f"{where} is {record!r:.60}; expected an object")
        self.records += 1
        columns = self.columns
        image = columns.image or _first(record, _IMAGE_KEYS)
        caption = columns.caption or _first(record, _CAPTION_KEYS)
        for key, what in ((image, "image"), (caption, "caption")):
            if key is None or key not in record:
                have = ", ".join(map(repr, record))
                raise ValueError(f"{where} has {have or 'no keys':.100}; expected the {what}")
        if not isinstance(record[image], (str, int)):
            raise ValueError(f"{where} has the image {record[image]!r:.60}; expected a name")
        found = record[caption]
        texts = found if isinstance(found, list) else [found]
        texts = [t["raw"] if isinstance(t, dict) and "raw" in t else t for t in texts]
        split = columns.split or _first(record, _SPLIT_KEYS)
        self.into.add(where, record[image], texts, self.split_of(where, record.get(split)))

    # lines and columns

    def read_flickr(self) -> str:
        for number, line in _lines(self.path):
            line = line.rstrip("\r\n")
            if not line.strip():
                continue
            self.records += 1
            where = f"{self.path}: line {number}"
            found = _FLICKR_LINE.fullmatch(line)
            if found is None:
                raise ValueError(f"{where} is {line!r:.60}; expected IMAGE#NUMBER, a tab, CAPTION")
            self.into.add(where, found["image"], [found["caption"]], self.split)
        return "a Flickr token file"

    def read_tsv(self) -> str:
        """Fields between tabs; quotes are part of the text unless they are about all of it."""

        def rows() -> Iterator[tuple[int, list[str]]]:
            for number, line in _lines(self.path):
                if line.strip():
                    yield number, [_unquoted(part) for part in line.rstrip("\r\n").split("\t")]

        self.read_rows(rows)
        return "TSV"

    def read_csv(self) -> str:
        delimiter = self.delimiter_of()

        def rows() -> Iterator[tuple[int, list[str]]]:
            reader = csv.reader(
                (line for _, line in _lines(self.path)), delimiter=delimiter, strict=True,
                skipinitialspace=True,
            )  # fmt: skip
            while True:
                number = reader.line_num + 1
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    raise ValueError(
                        f"{self.path}: line {number} is not CSV ({one_line(error)})"
                    ) from None
                if any(part.strip() for part in row):
                    yield number, row

        self.read_rows(rows)
        return "CSV"

    def delimiter_of(self) -> str:
        """The delimiter by which the first line has the columns, or else one that it has."""
        first = next((line for _, line in _lines(self.path) if line.strip()), "")
        for delimiter in _DELIMITERS:
            names = [part.strip().strip('"').lower() for part in first.split(delimiter)]
            if self.columns_of(names)[1] is not None:
                return delimiter
        return next((sign for sign in _DELIMITERS if sign in first), ",")

    def columns_of(self, names: list[str]) -> tuple[int | None, int | None, int | None]:
        """Return the columns of image, caption and split: all None unless the first two are."""
        found: list[int | None] = []
        for given, known in (
            (self.columns.image, _IMAGE_KEYS), (self.columns.caption, _CAPTION_KEYS),
            (self.columns.split, _SPLIT_KEYS),
        ):  # fmt: skip
            keys = known if given is None else (given.strip().lower(),)
            found.append(next((names.index(key) for key in keys if key in names), None))
        if found[0] is None or found[1] is None:
            return None, None, None
        return found[0], found[1], found[2]

    def read_rows(self, rows: Callable[[], Iterator[tuple[int, list[str]]]]) -> None:
        """Rows below a header, or of numbered columns, or of an image and a caption."""
        image: int | None = None
        caption: int | None = None
        split: int | None = None
        width = 0
        for number, row in rows():
            where = f"{self.path}: line {number}"
            if not width:
                width = len(row)
                names = [part.strip().lower() for part in row]
                image, caption, split = self.columns_of(names)
                if image is not None:
                    if self.columns.split is not None and split is None:
                        raise self.no_column(where, row, self.columns.split)
                    continue
                image, caption, split = self.numbered_columns(where, row)
            if len(row) != width:
                raise ValueError(f"{where} has {len(row)} columns; expected {width}, as the first")
            assert image is not None and caption is not None
            self.records += 1
            found = None if split is None else row[split]
            self.into.add(where, row[image], [row[caption]], self.split_of(where, found))

    def numbered_columns(self, where: str, row: list[str]) -> tuple[int, int, int | None]:
        found: list[int | None] = []
        given = (self.columns.image, self.columns.caption, self.columns.split)
        for name, otherwise in zip(given, (0, 1, None), strict=True):
            if name is None:
                found.append(otherwise)
            elif name.isascii() and name.isdecimal() and 1 <= int(name) <= len(row):
                found.append(int(name) - 1)
            else:
                raise self.no_column(where, row, name)
        if given[:2] == (None, None) and len(row) != 2:
            raise ValueError(
                f"{where} has the columns {', '.join(map(repr, row)):.100}; expected a header "
                "with 'image' and 'caption', or two columns"
            )
        image, caption, split = found
        if image is None or caption is None or max(image, caption) >= len(row):
            raise ValueError(f"{where} has {len(row)} columns; expected an image and a caption")
        return image, caption, split

    @staticmethod
    def no_column(where: str, row: list[str], name: str) -> ValueError:
        have = ", ".join(map(repr, row))
        return ValueError(f"{where} has the columns {have:.100}; expected {name!r} among them")


def _unquoted(part: str) -> str:
    """Return a field as it was before a program put it in quotes."""
    if len(part) > 1 and part[0] == part[-1] == '"' and '"' not in part[1:-1].replace('""', ""):
        return part[1:-1].replace('""', '"')
    return part
