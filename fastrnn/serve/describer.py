"""Pictures to answers: what the server says of a picture, as JSON can hold it."""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import io
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import __version__
from ..captioner import Captioner, ImageCaption
from ..extras import install_command
from ..vision.images import ImageError, open_image, prepare_image
from .limits import Refused

if TYPE_CHECKING:
    from PIL import Image

    from ..explain import Saliency

Explain: TypeAlias = (
    "Callable[[Image.Image, str | None, str, list[int] | None, threading.Event], Saliency]"
)
"""Called with an image, a caption, a method, the steps that are wanted, and what says that nobody
waits any more."""
METHODS = {
    "smooth": "smoothed gradient",
    "plain": "gradient",
    "integrated": "integrated gradients",
}
"""Of saliency maps, and what the page calls them. The first is the default."""
_WHITE = 0.005
"""The share of a map's pixels that are shown as white: a few are far above the others."""
MOST_BEAM, MOST_LENGTH, MOST_ALTERNATIVES = 10, 50, 20


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a request wants to know of a picture.

    Attributes
    ----------
    beam : int
        Width of the beam search; 1 is greedy decoding.
    n_best : int
        Number of captions, at most `beam`.
    max_length : int
        Largest number of words.
    alternatives : int
        Number of most probable words told at each step.
    """

    beam: int = 1
    n_best: int = 1
    max_length: int = 30
    alternatives: int = 0


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as the network reads it.

    Attributes
    ----------
    pixels : float32 ndarray (3, S, S)
    """

    pixels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Explained:
    """What a request for saliency maps asks.

    Attributes
    ----------
    content : bytes
        The file of the picture.
    caption : str or None
        The caption; None for the greedy one.
    method : str
        One of `METHODS`.
    step : int or None
        The word that is wanted, from 0; None for all.
    gone : threading.Event
        Set when nobody waits any more.
    """

    content: bytes
    caption: str | None = None
    method: str = "smooth"
    step: int | None = None
    gone: threading.Event = dataclasses.field(default_factory=threading.Event)


class Describer:
    """What the server asks of a captioner.

    Parameters
    ----------
    captioner : Captioner
    name : str
        What the run is called.
    explain : Explain or str
        What makes saliency maps; or why there are none, in a sentence.
    """

    def __init__(self, captioner: Captioner, name: str, explain: Explain | str) -> None:
        self.captioner = captioner
        self.name = name
        self._explain = explain

    def about(self) -> dict[str, Any]:
        """Return what the page says of the model."""
        model, network = self.captioner.model, self.captioner.network
        return {
            "fastrnn": __version__,
            "run": self.name,
            "cell": model.cell_type,
            "words": len(model.word_to_idx),
            "network": network.name,
            "engine": network.engine,
            "maps": self._about_maps(),
        }

    def _about_maps(self) -> dict[str, Any]:
        if isinstance(self._explain, str):
            return {"available": False, "why": self._explain}
        methods = [{"name": name, "title": title} for name, title in METHODS.items()]
        return {"available": True, "methods": methods}

    def read(self, content: bytes) -> Picture:
        """Read a picture, and bring it to the size that the network reads.

        Raises
        ------
        Refused
            If it cannot be read as a picture.
        """
        pixels = prepare_image(self._open(content), self.captioner.network.preprocessing)
        return Picture(pixels)

    def _open(self, content: bytes) -> Image.Image:
        try:
            size = self.captioner.network.preprocessing.size
            return open_image(content, size=size, name="the file")
        except ImageError as error:
            raise Refused(415, f"the file {str(error).removeprefix('the file: ')}") from None

    def describe(self, wanted: Wanted, pictures: Sequence[Picture | bytes]) -> list[dict[str, Any]]:
        """Caption pictures.

        Parameters
        ----------
        wanted : Wanted
        pictures : sequence of Picture or bytes
            Bytes are read first, see `read`.

        Returns
        -------
        list of dict
            The answers to ``POST /caption``.
        """
        read = [self.read(one) if isinstance(one, bytes) else one for one in pictures]
        found = self.captioner.caption_pixels(
            np.stack([picture.pixels for picture in read]),
            beam=wanted.beam, n_best=wanted.n_best, max_length=wanted.max_length,
        )  # fmt: skip
        return [
            {
                "caption": captioned.caption,
                "captions": [
                    self._tell(captioned.features, caption, wanted.alternatives)
                    for caption in captioned.captions
                ],
            }
            for captioned in found
        ]

    def _tell(self, features: np.ndarray, caption: ImageCaption, count: int) -> dict[str, Any]:
        probabilities: list[float | None] = [*caption.probabilities]
        words = [*caption.words]
        if caption.end_probability is not None:
            probabilities.append(caption.end_probability)
            words.append("<END>")
        others: list[list[tuple[str, float]]] = [[] for _ in words]
        if count:
            others = self.captioner.alternatives(features, caption, count)
        return {
            "caption": caption.text,
            "log_prob": caption.log_prob,
            "score": caption.score,
            "words": [
                {
                    "word": word,
                    "probability": probability,
                    "alternatives": [{"word": other, "probability": p} for other, p in row],
                }
                for word, probability, row in zip(words, probabilities, others, strict=True)
            ],
        }

    def explain(self, asked: Sequence[Explained]) -> list[dict[str, Any]]:
        """Compute saliency maps of captions.

        Parameters
        ----------
        asked : sequence of Explained

        Returns
        -------
        list of dict
            The answers to ``POST /saliency``.

        Raises
        ------
        Refused
            If there are no maps, or the caption has a word that the model does not know, or the
            step is not in it.
        """
        if isinstance(self._explain, str):
            raise Refused(501, self._explain)
        return [self._map(one, self._explain) for one in asked]

    def _map(self, asked: Explained, explain: Explain) -> dict[str, Any]:
        steps = None if asked.step is None else [asked.step]
        try:
            found = explain(
                self._open(asked.content), asked.caption, asked.method, steps, asked.gone
            )
        except ValueError as error:
            raise Refused(400, str(error)) from None
        return {
            "caption": " ".join(found.caption),
            "method": asked.method,
            "maps": [
                {"step": step, "word": word, "image": _gray_png(values)}
                for step, word, values in zip(found.steps, found.words, found.maps, strict=True)
            ],
        }


def explain_by(captioner: Captioner) -> Explain | str:
    """Return what makes saliency maps for a captioner; or why there are none, in a sentence."""
    if captioner.network.name == "onnx":
        return (
            "There are no saliency maps: this model's network is an ONNX file, which gives no "
            "gradients."
        )
    if importlib.util.find_spec("torch") is None:
        return f"There are no saliency maps: they need PyTorch, {install_command('vision')}"
    from ..explain import saliency

    def explain(
        image: Image.Image, caption: str | None, method: str, steps: list[int] | None,
        gone: threading.Event,
    ) -> Saliency:  # fmt: skip
        def check(*_: Any) -> None:
            if gone.is_set():
                raise Refused(503, "nobody waits for this map any more")

        # Some methods run the network very often: each time, this looks whether it is wanted.
        module = captioner.network.module
        hooks = [
            module.register_forward_pre_hook(check),
            module.register_full_backward_pre_hook(check),
        ]
        try:
            return saliency(captioner, image, caption, method, steps=steps)
        finally:
            for hook in hooks:
                hook.remove()

    return explain


def _gray_png(values: np.ndarray) -> str:
    """Return a map as a data URI of a PNG: black is 0, white what few pixels exceed."""
    from PIL import Image

    sizes = np.abs(values)
    peak = np.quantile(sizes, 1 - _WHITE) or sizes.max()
    levels = np.rint(np.minimum(sizes / peak if peak > 0 else sizes, 1) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
