"""Explanations of captions as pictures, as HTML, and as the files of ``fastrnn explain``.

`section` is a part of a page: `explanations_of_run` makes those of a report, and `write_page` a
page that has nothing else.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..explain import Fooling, Saliency, Visualisation
from ..files import write_aside, write_text
from .template import fill_template

if TYPE_CHECKING:
    from ..captioner import Captioner

_FOR, _AGAINST = (224, 36, 46), (30, 92, 232)
"""Colours of pixels that made a word more and less probable."""
_HEAT = np.array([[58, 12, 96], [214, 54, 72], [252, 160, 30], [255, 246, 150]], np.float64)
"""Colours of gradients, from small to large."""
_METHODS = {
    "plain": "Largest absolute gradient of the word's log-probability over the channels.",
    "smooth": "Largest absolute gradient of the word's log-probability over the channels, for the "
    "mean gradient of {passes} copies with noise (SmoothGrad).",
    "integrated": "Integrated gradients from gray to the image ({passes} gradients): red pixels "
    "made the word more probable, blue ones less.",
}


@dataclass(frozen=True)
class ClassSaliency:
    """What the network takes an image for, and where.

    Attributes
    ----------
    number : int
        The class with the largest score; of ImageNet's 1000 for an EfficientNet-Lite.
    probability : float
        Its probability.
    map : float32 ndarray (S, S)
        Saliency map of its score.
    """

    number: int
    probability: float
    map: np.ndarray


@dataclass
class Explanation:
    """Everything about one image.

    Attributes
    ----------
    name : str
        The name of the image.
    caption : str
        The caption that is explained.
    saliency : Saliency
        A map for each word.
    network : ClassSaliency or None
        The class that the network alone gives the image.
    fooling : list of Fooling
    visualisations : list of Visualisation
    """

    name: str
    caption: str
    saliency: Saliency
    network: ClassSaliency | None = None
    fooling: list[Fooling] = field(default_factory=list)
    visualisations: list[Visualisation] = field(default_factory=list)


def explain_class(captioner: Captioner, image: np.ndarray) -> ClassSaliency | None:
    """Explain the class that the network gives an image; None if it has no classes.

    Parameters
    ----------
    captioner : Captioner
        The captioner with the network.
    image : uint8 ndarray (S, S, 3)
        The image as the network sees it.

    Returns
    -------
    ClassSaliency or None
    """
    from PIL import Image

    from ..explain import classifier_of, compute_saliency_maps
    from ..vision.images import prepare_image

    network = captioner.network
    x = prepare_image(Image.fromarray(image), network.preprocessing)[None]
    try:
        scores = network.classify(x)[0].astype(np.float64)
    except ValueError:
        return None
    shares = np.exp(scores - scores.max())
    best = int(scores.argmax())
    maps = compute_saliency_maps(x, np.array([best]), classifier_of(network))
    return ClassSaliency(best, float(shares[best] / shares.sum()), maps[0])


# -- Pictures


def overlay(image: np.ndarray, weights: np.ndarray, *, signed: bool = False) -> np.ndarray:
    """Lay a map over a photograph.

    The map is blurred by a fiftieth of its size, so that regions can be seen, and scaled so that
    its largest value has the strongest colour.

    Parameters
    ----------
    image : uint8 ndarray (S, S, 3)
        The photograph.
    weights : float ndarray (S, S)
        The map.
    signed : bool, optional
        Whether positive and negative values have different colours: red and blue.

    Returns
    -------
    uint8 ndarray (S, S, 3)
    """
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(weights.astype(np.float64), len(weights) / 50)
    strength = np.abs(smooth)
    if not signed:  # noise is everywhere; what stands out is shown
        strength = np.clip(strength - np.median(strength), 0, None)
    top = np.quantile(strength, 0.998)
    strength = np.clip(strength / (top or 1), 0, 1)[..., None]
    gray = image.astype(np.float64) @ (0.299, 0.587, 0.114)
    photo = np.repeat(0.8 * gray[..., None] + 25, 3, axis=2)
    if signed:
        colour = np.where(smooth[..., None] > 0, _FOR, _AGAINST)
    else:
        place = strength[..., 0] * (len(_HEAT) - 1)
        grid = np.arange(len(_HEAT))
        colour = np.stack([np.interp(place, grid, _HEAT[:, c]) for c in range(3)], axis=2)
    share = 0.88 * strength**0.7
    return np.clip(np.rint((1 - share) * photo + share * colour), 0, 255).astype(np.uint8)


def amplified(change: np.ndarray) -> tuple[np.ndarray, int]:
    """Show a change of an image (S, S, 3), in levels, as uint8 around gray, and by what factor."""
    factor = max(1, int(127 // max(float(np.quantile(np.abs(change), 0.999)), 1)))
    return np.clip(128 + factor * change, 0, 255).astype(np.uint8), factor


def png_of(image: np.ndarray) -> bytes:
    """Return an image, uint8 (H, W, 3), as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="png", optimize=True)
    return file.getvalue()


# -- HTML


def _picture(image: np.ndarray, title: str, *lines: str, kind: str = "png") -> str:
    """Return a picture with its legend; `title` and `lines` are HTML."""
    from PIL import Image

    if kind == "png":
        content = png_of(image)
    else:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="jpeg", quality=88)
        content = file.getvalue()
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    alternative = html.escape(re.sub(r"<[^>]*>", "", title), quote=True)
    text = "".join(f"<span>{line}</span>" for line in lines)
    return (
        f'<figure><img src="{source}" alt="{alternative}" width="{image.shape[1]}" '
        f'height="{image.shape[0]}"><figcaption><b>{title}</b>{text}</figcaption></figure>'
    )


def _pictures(pictures: Sequence[str]) -> str:
    return f'<div class="maps">{"".join(pictures)}</div>'


def _share(log_prob: float) -> str:
    probability = math.exp(log_prob)
    return f"{probability:.0%}" if probability >= 0.0995 else f"{100 * probability:.2g}%"


def section(
    about: Explanation, *, kind: str = "jpeg", heading: str = "h3", alone: bool = False
) -> str:
    """Return an explanation as HTML.

    Parameters
    ----------
    about : Explanation
        The explanation.
    kind : {'jpeg', 'png'}, optional
        Format of the maps. Images that were made by gradients are always PNG, which keeps them.
    heading : str, optional
        The element of the headings.
    alone : bool, optional
        Whether the page is about this image alone, so that its title says the caption.

    Returns
    -------
    str
    """
    found, escape = about.saliency, html.escape
    pictures = [_picture(found.image, "The image as the network sees it", kind=kind)]
    for k, word in enumerate(found.words):
        lines = [f"probability {_share(float(found.log_probs[k]))}"]
        if found.changes is not None and found.errors is not None:
            change = float(found.changes[k])
            lines.append(
                f"{change:+.2f} nats since gray; the map sums to "
                f"{change + float(found.errors[k]):+.2f}"
            )
        picture = overlay(found.image, found.maps[k], signed=found.method == "integrated")
        pictures.append(_picture(picture, escape(word), *lines, kind=kind))
    if about.network is not None:
        pictures.append(
            _picture(
                overlay(found.image, about.network.map),
                f"class {about.network.number} of ImageNet",
                "what the network alone takes it for; "
                f"probability {about.network.probability:.0%}",
                kind=kind,
            )
        )  # fmt: skip
    title, name = escape(about.caption) or "(no words)", f"{escape(about.name)}. "
    if alone:
        title, name = "Which pixels made it say each word", ""
    parts = [
        f"<{heading}>{title}</{heading}>",
        f'<p class="about">{name}'
        f"{_METHODS[found.method].format(passes=found.passes)} "
        "Each map has its own scale.</p>",
        _pictures(pictures),
    ]
    for fooling in about.fooling:
        parts.append(_fooling(fooling, heading))
    if about.visualisations:
        made_for = [
            _picture(
                made.image, escape(made.word),
                f"its caption: {escape(made.caption) or '(no words)'}",
                f"largest probability of the word: {_share(made.log_prob)}",
            )
            for made in about.visualisations
        ]  # fmt: skip
        parts.append(
            f"<{heading}>Images made for words</{heading}>"
            '<p class="about">From noise, by steps that raise the score of the word.</p>'
            + _pictures(made_for)
        )
    return "".join(parts)


def _fooling(found: Fooling, heading: str) -> str:
    escape = html.escape
    change, factor = amplified(found.image.astype(int) - found.original)
    return (
        f"<{heading}>The smallest change found that makes it say “{escape(found.word)}”</{heading}>"
        f'<p class="about">Root mean square {found.change:.2f} of 255 levels, at most '
        f"{found.largest}, after {found.steps} gradient step{'' if found.steps == 1 else 's'}.</p>"
        + _pictures([
            _picture(found.original, escape(found.before), "the image"),
            _picture(change, "the change", f"{factor} times as large, around gray"),
            _picture(found.image, escape(found.after), "the changed image"),
        ])
    )  # fmt: skip


def write_page(
    path: str | os.PathLike[str], explanations: Sequence[Explanation], *, title: str, about: str
) -> None:
    """Write a page of explanations: one file that loads nothing else.

    Parameters
    ----------
    path : path
        The file.
    explanations : sequence of Explanation
        What to show.
    title, about : str
        The title, and a line below it.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    sections = "".join(
        section(one, kind="png", heading="h2", alone=len(explanations) == 1) for one in explanations
    )
    values = {"sections": sections, "made": html.escape(f"fastrnn {__version__}")}
    write_text(path, fill_template("explanations.html", title, about, "", values))


# -- Files


def write_pictures(directory: Path, about: Explanation) -> dict[str, Any]:
    """Write the pictures of an explanation as PNG files.

    Parameters
    ----------
    directory : Path
        An existing directory.
    about : Explanation
        The explanation.

    Returns
    -------
    dict
        What the explanation says in numbers, with the names of the files.
    """
    found = about.saliency

    def write(name: str, image: np.ndarray) -> str:
        content = png_of(image)
        write_aside(directory / name, lambda file: file.write(content))
        return name

    words = []
    for k, word in enumerate(found.words):
        picture = overlay(found.image, found.maps[k], signed=found.method == "integrated")
        entry: dict[str, Any] = {
            "word": word, "step": found.steps[k], "log_prob": float(found.log_probs[k]),
            "map": write(f"saliency-{found.steps[k] + 1:02d}-{_plain(word)}.png", picture),
        }  # fmt: skip
        if found.changes is not None and found.errors is not None:
            entry["change"] = float(found.changes[k])
            entry["sum"] = float(found.changes[k] + found.errors[k])
        if found.resolution is not None:
            entry["resolution"] = float(found.resolution[k])
        words.append(entry)
    said: dict[str, Any] = {
        "image": about.name, "caption": about.caption, "method": found.method,
        "gradients": found.passes, "seen": write("image.png", found.image), "words": words,
        "fooling": [], "visualisations": [],
    }  # fmt: skip
    if about.network is not None:
        said["class"] = {
            "number": about.network.number, "probability": about.network.probability,
            "map": write("saliency-class.png", overlay(found.image, about.network.map)),
        }  # fmt: skip
    for made in about.fooling:
        name = f"fooling-{_plain(made.word)}"
        said["fooling"].append({
            "word": made.word, "before": made.before, "after": made.after,
            "change_rms": made.change, "change_max": made.largest, "steps": made.steps,
            "image": write(f"{name}.png", made.image),
            "change": write(f"{name}-change.png",
                            amplified(made.image.astype(int) - made.original)[0]),
        })  # fmt: skip
    for seen in about.visualisations:
        said["visualisations"].append({
            "word": seen.word, "caption": seen.caption, "log_prob": seen.log_prob,
            "image": write(f"visualisation-{_plain(seen.word)}.png", seen.image),
        })  # fmt: skip
    return said


def remove_other_pictures(directory: Path, said: Mapping[str, Any]) -> None:
    """Remove the pictures of an earlier explanation that this one does not have.

    Parameters
    ----------
    directory : Path
        The directory.
    said : mapping
        What `write_pictures` returned.
    """
    entries = [*said["words"], *said["fooling"], *said["visualisations"], said.get("class", {})]
    kept = {entry.get(name) for entry in entries for name in ("map", "image", "change")}
    for kind in ("saliency", "fooling", "visualisation"):
        for path in directory.glob(f"{kind}-*.png"):
            if path.name not in kept:
                path.unlink()


def _plain(word: str) -> str:
    """Return a word as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", word.lower())[:40].strip("-") or "word"


# -- The part of a report


def explanations_of_run(
    run: Path, data: Mapping[str, Any], directory: Path, count: int
) -> tuple[str, str]:
    """Explain the captions of validation images, for the page of a run.

    Parameters
    ----------
    run : Path
        The run directory.
    data : mapping
        The data set.
    directory : Path
        Its directory, to which URLs may be relative.
    count : int
        Number of images, evenly spread over those that are files.

    Returns
    -------
    sections : str
        The HTML of the explanations.
    note : str
        Why there are none, or nothing.
    """
    from ..captioner import Captioner
    from ..data.pictures import find_picture, folder_of_images
    from ..evaluation import evenly_spread
    from ..explain import saliency

    try:
        images = folder_of_images(directory)
        places = [
            (str(url), path)
            for url in data["val_urls"]
            if (path := find_picture(str(url), directory, images)) is not None
        ]
        if not places:
            return "", "The validation images are not files here, so no caption is explained."
        captioner = Captioner.load(run)
        sections = []
        for row in evenly_spread(len(places), count).tolist():
            name, path = places[row]
            found = saliency(captioner, path, method="smooth", samples=8)
            network = explain_class(captioner, found.image)
            sections.append(section(Explanation(name, " ".join(found.caption), found, network)))
    except (ImportError, OSError, ValueError) as error:
        return "", f"No caption is explained: {error}"
    return "".join(sections), ""
