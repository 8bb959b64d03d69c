"""The gallery of the page: validation images with their captions, metrics and previews."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint import describe_mismatch
from ..classifiers.rnn import CaptioningRNN
from ..data.pictures import find_picture, folder_of_images
from ..decoding import Decoded
from ..evaluation import Evaluator, evenly_spread, truth_of
from ..files import one_line
from ..metrics import METRIC_NAMES
from ..vision.images import open_image, read_picture
from ..words import END, NULL
from .tables import table

if TYPE_CHECKING:
    from PIL import Image

_MAX_PIXELS = 320
"""Largest width and height of a preview."""
_MAX_EMBEDDED = 8 << 20
"""Characters of all previews of a page together. A photograph takes about 30,000."""
_MAX_PNG = 1 << 15
"""Bytes of a preview that stays a PNG file."""
_PIXEL_ART = 96
"""Images up to this size are enlarged without smoothing."""


@dataclass
class Gallery:
    """Images with their captions, as the script of the page shows them.

    Attributes
    ----------
    notes : list of str
        Notes to show at the top of the page, such as why there are no captions.
    methods : list of str
        The decoding methods, such as "greedy" and "beam 3".
    images : list of dict
        For each image its ``name``, ``link``, ``picture`` (a preview as a data URI, or None),
        ``pixels`` (whether to enlarge it without smoothing), ``references``, and ``captions``: for
        each method the ``words`` with their probabilities, the probability of the ``end``, the
        mean ``probability`` of a word, the ``cider``, and whether the caption is ``true``.
    metrics : dict of str to dict
        The metrics of each method.
    tables : list of dict
        The table of these metrics.
    shape : float or None
        The width of a usual picture, divided by its height.
    """

    notes: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: list[dict[str, Any]] = field(default_factory=list)
    shape: float | None = None


def make_gallery(
    model: CaptioningRNN,
    data: Mapping[str, Any],
    directory: Path,
    *,
    images: int,
    pictures: int,
    beam: int,
    greedy: Decoded | None = None,
    suppress_unk: bool = True,
    progress: Callable[[int, int], Any] | None = None,
) -> Gallery:
    """Caption validation images and score the captions.

    Parameters
    ----------
    model : CaptioningRNN
        The model.
    data : mapping
        The data set.
    directory : Path
        Its directory, to which URLs may be relative.
    images : int
        Largest number of images, evenly spread over the validation set.
    pictures : int
        Largest number of previews.
    beam : int
        Width of the beam search; 1 shows greedy captions only.
    greedy : Decoded, optional
        The greedy captions of all validation images, if they are already known.
    suppress_unk, progress
        See `Report`.

    Returns
    -------
    Gallery

    Raises
    ------
    ValueError
        If the data do not match the model.
    """
    mismatch = describe_mismatch(model, data)
    if mismatch:
        raise ValueError(f"{directory}: {mismatch}")
    total = len(data["val_features"])
    rows = evenly_spread(total, images)
    if not len(rows):
        return Gallery(["There are no validation images, so there are no captions to show."])
    evaluator = Evaluator(data, images=rows)
    is_true = truth_of(directory, total)

    how: dict[str, Any] = {"suppress_unk": suppress_unk, "progress": progress}
    greedy = evaluator.decode(model, **how) if greedy is None else _of_images(greedy, rows)
    decoded = {"greedy": greedy}
    if beam > 1:
        decoded[f"beam {beam}"] = evaluator.decode(model, beam=beam, **how)
    gallery = Gallery(methods=list(decoded))
    captions = [_split_captions(found, model, rows, is_true) for found in decoded.values()]
    _score(gallery, evaluator, captions, total)

    urls = [str(data["val_urls"][row]) for row in rows]
    gallery.images = [
        {
            "name": url or f"image {row}",
            "link": url if re.match(r"https?://", url, re.I) else None,
            "picture": None,
            "pixels": False,
            "references": list(dict.fromkeys(evaluator.references[number])),
            "captions": [by_image[number] for by_image in captions],
        }
        for number, (row, url) in enumerate(zip(rows.tolist(), urls, strict=True))
    ]
    folder = _folder_of_images(gallery, directory)
    _add_previews(gallery, [find_picture(url, directory, folder) for url in urls], pictures)
    return gallery


def _of_images(decoded: Decoded, rows: np.ndarray) -> Decoded:
    return Decoded(
        decoded.ids[rows], decoded.word_log_probs[rows], decoded.log_probs[rows],
        decoded.scores[rows],
    )  # fmt: skip


def _split_captions(
    decoded: Decoded,
    model: CaptioningRNN,
    rows: np.ndarray,
    is_true: Callable[[int, str], bool] | None,
) -> list[dict[str, Any]]:
    """Split the best caption of each image into words with their probabilities."""
    null, end = model.word_to_idx[NULL], model.word_to_idx[END]
    captions = []
    best = zip(
        rows.tolist(),
        decoded.ids[:, 0].tolist(),
        decoded.word_log_probs[:, 0].tolist(),
        strict=True,
    )
    for row, ids, log_probs in best:
        taken = [(idx, log) for idx, log in zip(ids, log_probs, strict=True) if idx != null]
        words = [[model.idx_to_word[idx], round(math.exp(log), 4)] for idx, log in taken]
        mean = math.exp(sum(log for _, log in taken) / len(taken)) if taken else 0.0
        end_probability = words.pop()[1] if taken and taken[-1][0] == end else None
        text = " ".join(model.idx_to_word[idx] for idx, _ in taken if idx != end)
        captions.append({
            "words": words,
            "end": end_probability,
            "probability": round(mean, 5),
            "cider": None,
            "true": None if is_true is None else is_true(row, text),
        })  # fmt: skip
    return captions


def _score(
    gallery: Gallery,
    evaluator: Evaluator,
    captions: Sequence[Sequence[dict[str, Any]]],
    total: int,
) -> None:
    """Score the captions: a table of the metrics, and the CIDEr of each caption."""
    if not evaluator.judged:
        gallery.notes.append("The validation images have no references, so there are no metrics.")
        return
    if evaluator.missing:
        gallery.notes.append(f"Some metrics are missing. {evaluator.missing}")
    for method, by_image in zip(gallery.methods, captions, strict=True):
        texts = [" ".join(word for word, _ in caption["words"]) for caption in by_image]
        metrics = evaluator.score(texts)
        gallery.metrics[method] = metrics
        if metrics["cider"] is None:
            continue
        for caption, cider in zip(by_image, evaluator.cider(texts), strict=True):
            caption["cider"] = None if cider is None else round(cider, 4)
    rows = []
    for name, label in METRIC_NAMES.items():
        values = [v for m in gallery.metrics.values() if (v := m.get(name)) is not None]
        if len(values) == len(gallery.methods):
            rows.append([label, *(f"{100 * value:.1f}" for value in values)])
    judged = len(evaluator.judged)
    which = f"all {total:,}" if judged == total else f"{judged:,} of {total:,}"
    gallery.tables.append(
        table(
            "metrics", f"Metrics on {which} validation images (×100)", rows,
            columns=["", *gallery.methods], opened=True,
        )
    )  # fmt: skip


# -- Previews


def _folder_of_images(gallery: Gallery, directory: Path) -> Path | None:
    """Return the folder of the images that a data directory names; add a note if it is gone."""
    try:
        folder = folder_of_images(directory)
    except (OSError, ValueError) as error:
        gallery.notes.append(f"The folder of the images is not known. {one_line(error)}")
        return None
    if folder is not None and not folder.is_dir():
        gallery.notes.append(f"The folder of the images, {folder}, does not exist.")
        return None
    return folder


def _add_previews(gallery: Gallery, paths: Sequence[Path | None], limit: int) -> None:
    """Embed previews; if there are too many, of the best, the worst and some other images."""
    images = gallery.images
    chosen = [number for number, path in enumerate(paths) if path is not None]
    if len(chosen) > limit:

        def quality(number: int) -> float:
            caption = images[number]["captions"][-1]
            return caption["probability"] if caption["cider"] is None else caption["cider"]

        chosen.sort(key=quality)
        third = limit // 3
        best, worst = chosen[len(chosen) - third :], chosen[:third]
        others = chosen[third : len(chosen) - third]
        spread = np.linspace(0, len(others) - 1, limit - 2 * third).round().astype(int)
        # In turn, so that there are some of each if the page would become too large.
        parts = zip_longest(best[::-1], worst, (others[place] for place in spread))
        chosen = [number for part in parts for number in part if number is not None]
    room, left_out, shapes = _MAX_EMBEDDED, 0, list[float]()
    for number in chosen:
        path = paths[number]
        preview = None if path is None or left_out else _preview(path)
        if preview is not None and len(preview[0]) <= room:
            images[number]["picture"], images[number]["pixels"], shape = preview
            shapes.append(shape)
            room -= len(preview[0])
        elif preview is not None or left_out:
            left_out += 1
    if shapes:  # neither a strip nor a tower, whatever the pictures
        gallery.shape = round(min(max(float(np.median(shapes)), 0.8), 1.5), 3)
    if left_out:
        gallery.notes.append(
            f"{left_out:,} pictures are left out, because this page would become too large."
        )


def _preview(path: Path) -> tuple[str, bool, float] | None:
    """Return an image as a data URI, whether its pixels are visible, and its width by height."""
    try:
        with read_picture(path) as picture:
            is_png = picture.format == "PNG"
            picture.draft("RGB", (2 * _MAX_PIXELS, 2 * _MAX_PIXELS))  # a JPEG: several times faster
            image = open_image(picture)
    except (OSError, ValueError):
        return None
    image.thumbnail((_MAX_PIXELS, _MAX_PIXELS))
    kind, content = "png", b""
    if is_png:
        content = _encode(image, "png")
    if not is_png or len(content) > _MAX_PNG:  # a photograph
        kind, content = "jpeg", _encode(image, "jpeg")
    data = base64.b64encode(content).decode("ascii")
    uri = f"data:image/{kind};base64,{data}"
    return uri, max(image.size) <= _PIXEL_ART, image.width / image.height


def _encode(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, quality=85)
    return file.getvalue()
