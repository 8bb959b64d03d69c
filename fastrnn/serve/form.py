"""A multipart form with a picture: read in memory, never written to a file."""

from __future__ import annotations

import dataclasses
from typing import Any

from .limits import Refused

_MOST_PARTS = 16
_MOST_TEXT = 2000  # bytes of a field that is not the picture


@dataclasses.dataclass
class Form:
    """What a form held.

    Attributes
    ----------
    file : bytes
        The content of the picture's file.
    fields : dict of str to str
        The other fields.
    """

    file: bytes
    fields: dict[str, str]


def read_form(content_type: str, body: bytes) -> Form:
    """Read the body of a request.

    Parameters
    ----------
    content_type : str
        The header.
    body : bytes

    Returns
    -------
    Form

    Raises
    ------
    Refused
        If it is no multipart form, or has no picture in the field ``file``.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import FormParser, parse_options_header

    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise Refused(415, "the body is not multipart/form-data; expected a form with a file")
    files: list[bytes] = []
    fields: dict[str, str] = {}
    parts, ended = 0, False

    def count() -> None:
        nonlocal parts
        parts += 1
        if parts > _MOST_PARTS:
            raise Refused(400, f"the form has more than {_MOST_PARTS} parts")

    def on_field(field: Any) -> None:
        count()
        name = (field.field_name or b"").decode("utf-8", "replace")
        value = field.value or b""
        if name == "file":
            raise Refused(400, "file is a text field; expected a file")
        if len(value) > _MOST_TEXT:
            raise Refused(400, f"a field is longer than {_MOST_TEXT} bytes")
        fields[name] = value.decode("utf-8", "replace")

    def on_file(file: Any) -> None:
        count()
        try:
            if file.field_name != b"file":
                raise Refused(400, "the form has an unknown file; expected one in the field file")
            file.file_object.seek(0)
            files.append(file.file_object.read())
        finally:
            file.close()

    def on_end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = FormParser(
            "multipart/form-data", on_field, on_file, on_end, boundary=boundary,
            # In memory always: by default, larger files become temporary files.
            config={"MAX_MEMORY_FILE_SIZE": len(body) + 1},
        )  # fmt: skip
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise Refused(400, "the form is malformed") from None
    if not ended:
        raise Refused(400, "the form has no end")
    if len(files) != 1:
        raise Refused(400, f"the form has {len(files)} files; expected one in the field file")
    if not files[0]:
        raise Refused(415, "the file is empty; expected a picture")
    return Form(files[0], fields)
