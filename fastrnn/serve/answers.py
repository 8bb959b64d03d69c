"""What the server answers, as OpenAPI describes it."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Alternative(BaseModel):
    """A word that could have stood at a step."""

    word: str
    probability: float


class Word(BaseModel):
    """A word of a caption."""

    word: str = Field(description="The word; <END> for the end of the caption.")
    probability: float = Field(description="Its probability, given the words before it.")
    alternatives: list[Alternative] = Field(
        description="The most probable words at this step, most probable first."
    )


class Caption(BaseModel):
    """A caption of a picture."""

    caption: str = Field(description="The words, separated by spaces.")
    log_prob: float = Field(description="The sum of the logarithms of the words' probabilities.")
    score: float = Field(description="What the captions are ranked by.")
    words: list[Word]


class CaptionAnswer(BaseModel):
    """The answer to POST /caption."""

    caption: str = Field(description="The best caption.")
    captions: list[Caption] = Field(description="All captions that were asked for, best first.")
    seconds: float = Field(description="Time from the whole upload to the answer.")


class Map(BaseModel):
    """Where the pixels lie that change a word's probability most."""

    step: int = Field(description="The place of the word in the caption, from 0.")
    word: str
    image: str = Field(
        description="A data URI of a gray PNG of the square that the network reads: black is 0, "
        "white the largest 0.5 % of the magnitudes."
    )


class SaliencyAnswer(BaseModel):
    """The answer to POST /saliency."""

    caption: str
    method: str
    maps: list[Map] = Field(description="A map for each word, or for the one that was asked for.")
    seconds: float


class Fault(BaseModel):
    """The answer to a request that is refused."""

    detail: str
