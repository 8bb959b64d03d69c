"""Pictures to answers: what the server says of a picture, as JSON can hold it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import __version__
from ..captioner import Captioner, ImageCaption
from ..vision.images import ImageError, open_image, prepare_image
from .limits import Refused

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
    alternatives: int = 5


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as the network reads it.

    Attributes
    ----------
    pixels : float32 ndarray (3, S, S)
    """

    pixels: np.ndarray


class Describer:
    """What the server asks of a captioner.

    Parameters
    ----------
    captioner : Captioner
    name : str
        What the run is called.
    """

    def __init__(self, captioner: Captioner, name: str) -> None:
        self.captioner = captioner
        self.name = name

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
            "features": int(model.params["W_proj"].shape[0]),
        }

    def read(self, content: bytes) -> Picture:
        """Read a picture, and bring it to the size that the network reads.

        Raises
        ------
        Refused
            If it cannot be read as a picture.
        """
        try:
            image = open_image(content, name="the file")
        except ImageError as error:
            raise Refused(415, f"the file {str(error).removeprefix('the file: ')}") from None
        pixels = prepare_image(image, self.captioner.network.preprocessing)
        return Picture(pixels)

    def describe(self, wanted: Wanted, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
        """Caption pictures.

        Parameters
        ----------
        wanted : Wanted
        pictures : sequence of Picture

        Returns
        -------
        list of dict
            The answers to ``POST /caption``.
        """
        found = self.captioner.caption_pixels(
            np.stack([picture.pixels for picture in pictures]),
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
            "text": caption.text,
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
