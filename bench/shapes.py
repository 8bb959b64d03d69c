"""The table of shapes that all benchmarks use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a captioning model and its batch.

    Attributes
    ----------
    name : str
        Name of the shape in the benchmarks.
    N, T, D, H, V : int
        Batch size, time steps, size of the word vectors, hidden units, vocabulary size.
    F : int
        Size of the image features.
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
        """``N/D/H``, as printed in the tables."""
        return f"{self.N}/{self.D}/{self.H}"


GATES = {"rnn": 1, "lstm": 4}
"""Blocks of H columns in the weights of each recurrent cell."""

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

# Training steps to compare with the other libraries: (shape, cell).
STEPS = (
    ("cs231n", "lstm"),
    ("coco", "lstm"),
    ("good", "lstm"),
    ("large", "lstm"),
    ("coco", "rnn"),
)

# The same with products in bfloat16.
ROUNDED_STEPS = (
    ("cs231n", "lstm"),
    ("coco", "lstm"),
    ("large", "lstm"),
    ("coco", "rnn"),
)

# Dense layers to compare with the other libraries: (shape, dtype). With bfloat16, the arguments are
# float32, and the products are bfloat16.
LAYERS = (
    ("coco", "float32"),
    ("cs231n", "float32"),
    ("coco", "float64"),
    ("cs231n", "float64"),
    ("coco", "bfloat16"),
    ("cs231n", "bfloat16"),
)
