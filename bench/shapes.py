"""The one table of shapes that every benchmark takes its sizes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a captioning model and its batch.

    Attributes
    ----------
    name : str
        What the benchmarks call it.
    N, T, D, H, V : int
        Captions in a batch, steps, width of the word vectors, hidden units, words.
    F : int
        Width of the image features.
    """

    name: str
    N: int
    T: int
    D: int
    H: int
    V: int = 1004
    F: int = 512

    @property
    def sizes(self) -> str:
        """``N/D/H``, as the tables write it."""
        return f"{self.N}/{self.D}/{self.H}"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("cs231n", N=25, T=16, D=256, H=512),
        Shape("coco", N=100, T=16, D=256, H=512),
        Shape("good", N=100, T=16, D=256, H=200),
        Shape("large", N=256, T=16, D=256, H=512),
        Shape("small", N=128, T=16, D=128, H=128),
        Shape("tiny", N=2, T=3, D=4, H=5, V=7, F=6),
    )
}

# The whole training steps that are held against the peers: (shape, cell).
STEPS = (
    ("cs231n", "lstm"),
    ("coco", "lstm"),
    ("good", "lstm"),
    ("large", "lstm"),
    ("coco", "rnn"),
)

# The dense layers that are held against the peers: (shape, dtype).
LAYERS = (
    ("coco", "float32"),
    ("cs231n", "float32"),
    ("coco", "float64"),
    ("cs231n", "float64"),
)
