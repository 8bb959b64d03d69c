"""Reference captions of images, from a JSON file."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import is_text, read_json

__all__ = ["read_references", "references_file"]


def references_file(split: str) -> str:
    """Return the name of the optional file with the references of a split in a data directory."""
    return f"{split}_references.json"


def read_references(path: str | os.PathLike[str], urls: Sequence[str]) -> list[list[str]]:
    """Read the reference captions of images from a JSON file.

    Parameters
    ----------
    path : path
        A file in one of three forms: an object that maps file names to lists of captions; COCO's
        annotations (``images`` and ``annotations``); or a list with a list of captions for each
        of `urls`, in the same order.
    urls : sequence of str
        URLs or paths of the images. In the first two forms an image is found by the last part of
        its URL or path; in COCO's annotations ``file_name``, ``coco_url`` and ``flickr_url`` are
        searched.

    Returns
    -------
    list of list of str
        The captions of each image; an empty list if the file has none for it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a JSON file in one of these forms, or has captions for none of the images.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file of references", str(path))
    found = read_json(path)
    if isinstance(found, list):
        if len(found) != len(urls):
            raise ValueError(
                f"{path}: contains a list of {len(found)} entries; expected {len(urls)}, one for "
                "each image"
            )
        captions = found
    elif isinstance(found, dict):
        try:
            by_name = _coco_references(found) if "annotations" in found else found
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: 'annotations' cannot be read ({type(error).__name__}: {error}); expected "
                "annotations in COCO's form"
            ) from None
        if not all(isinstance(name, str) for name in by_name):
            raise ValueError(f"{path}: an image has a name that is not a string; expected strings")
        by_name = {_last_part(name): texts for name, texts in by_name.items()}
        captions = [by_name.get(_last_part(url), []) for url in urls]
        if not any(captions):
            first = f", such as {_last_part(urls[0])!r}" if len(urls) else ""
            raise ValueError(
                f"{path}: has captions of {len(by_name)} images; expected some of the "
                f"{len(urls)} images of the data set{first}"
            )
    else:
        raise ValueError(f"{path}: contains a {type(found).__name__}; expected a list or an object")
    for image, texts in enumerate(captions):
        where = f"{path}: image {image} ({urls[image]})"
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where} has {texts!r:.60}; expected a list of strings")
        for text in texts:
            if not is_text(text):
                raise ValueError(f"{where} has {text!r:.60}; expected valid Unicode text")
    return captions


def _coco_references(found: Mapping[str, Any]) -> dict[str, list[str]]:
    by_id: dict[Any, list[str]] = {}
    for annotation in found["annotations"]:
        by_id.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return {
        image[key]: by_id.get(image["id"], [])
        for image in found["images"]
        for key in ("file_name", "coco_url", "flickr_url")
        if image.get(key)
    }


def _last_part(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]
