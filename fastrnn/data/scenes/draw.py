"""Scenes of colored shapes: what is in them, and how they are rendered.

A scene contains one to three shapes that do not overlap, on a background whose tint, brightness and
gradient vary. Colors, radii and angles are jittered and the pixels are noisy, so a model has to
learn what "yellow" or "small" looks like. Shapes of one color also have one kind and one size, and
a scene may contain several of them. Positions are in pixels: x to the right, y down.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross")
"""What a shape can be."""
COLORS = ("red", "yellow", "green", "blue")
"""Its colors."""
SIZES = ("small", "big")
"""Its sizes."""
SIDE = 48
"""Height and width of an image, in pixels."""

_RGB = np.array(
    [
        (0.86, 0.14, 0.16),
        (0.94, 0.82, 0.14),
        (0.16, 0.68, 0.28),
        (0.15, 0.35, 0.88),
    ]
)
_RADIUS = {"small": (4.0, 5.2), "big": (7.4, 9.0)}
_REACH = 1.2
"""Largest distance of an outline from the center, in radii: the corners of the triangle."""


@dataclass(frozen=True)
class Shape:
    """A shape in a scene.

    Attributes
    ----------
    kind, color, size : str
        One of `SHAPES`, of `COLORS` and of `SIZES`.
    x, y : float
        Center, in pixels from the left and from the top.
    radius : float
        Radius in pixels. Default 5.
    angle : float
        Rotation in radians. Default 0.
    """

    kind: str
    color: str
    size: str
    x: float
    y: float
    radius: float = 5.0
    angle: float = 0.0


@dataclass(frozen=True)
class Scene:
    """The contents of an image: its shapes, in any order."""

    shapes: tuple[Shape, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the scene as a list of dictionaries, to be written as JSON."""
        return [asdict(shape) for shape in self.shapes]

    @classmethod
    def from_json(cls, shapes: list[dict[str, Any]]) -> Scene:
        """Return the scene of a list that `to_json` returned.

        Parameters
        ----------
        shapes : list of dict
            The attributes of each shape.

        Returns
        -------
        Scene
            The scene.

        Raises
        ------
        TypeError, ValueError
            If an entry is not a shape.
        """
        found = tuple(Shape(**shape) for shape in shapes)
        for shape in found:
            kinds = (shape.kind in SHAPES, shape.color in COLORS, shape.size in SIZES)
            places = (shape.x, shape.y, shape.radius, shape.angle)
            if not all(kinds) or not all(type(n) in (int, float) and abs(n) < 1e9 for n in places):
                raise ValueError(f"shape is {shape!r:.80}; expected known words, finite numbers")
        return cls(found)


def make_scene(rng: np.random.Generator) -> Scene:
    """Return a random scene of one to three shapes that touch neither each other nor the border.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    Scene
        The scene; `draw_scenes` draws it.
    """
    wanted = 1 + rng.choice(3, p=[0.25, 0.5, 0.25])
    palette = rng.permutation(COLORS).tolist()
    placed: list[Shape] = []
    attempts = 0
    while len(placed) < wanted:
        attempts += 1
        if attempts > 200:  # the shapes placed so far may leave no room: start again
            placed, attempts = [], 0
        if placed and rng.random() < 0.3:
            twin = placed[rng.integers(len(placed))]
            kind, color, size = twin.kind, twin.color, twin.size
        else:
            kind, color, size = (
                SHAPES[rng.integers(len(SHAPES))],
                next(name for name in palette if all(s.color != name for s in placed)),
                SIZES[rng.integers(len(SIZES))],
            )
        radius = float(rng.uniform(*_RADIUS[size]))
        reach = _REACH * radius + 1
        x, y = rng.uniform(reach, SIDE - reach, 2).tolist()
        gaps = (np.hypot(s.x - x, s.y - y) - _REACH * s.radius - reach for s in placed)
        if all(gap > 0 for gap in gaps):
            angle = float(rng.uniform(-0.12, 0.12))
            placed.append(Shape(kind, color, size, x, y, radius, angle))
    return Scene(tuple(placed))


def _distance(kind: str, u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Return the signed distance to the outline in pixels, negative inside; v points down."""
    if kind == "circle":
        return np.hypot(u, v) - r
    if kind == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.88 * r
    if kind == "triangle":  # three half-planes, each 0.6 r from the center: corners at 1.2 r
        return np.maximum(v, np.sqrt(0.75) * np.abs(u) - 0.5 * v) - 0.6 * r
    if kind == "cross":
        horizontal = np.maximum(np.abs(u) - r, np.abs(v) - 0.34 * r)
        vertical = np.maximum(np.abs(v) - r, np.abs(u) - 0.34 * r)
        return np.minimum(horizontal, vertical)
    raise ValueError(f"kind is {kind!r}; expected one of {', '.join(SHAPES)}")


def draw_scenes(scenes: list[Scene], rng: np.random.Generator) -> np.ndarray:
    """Render scenes, each on a background of its own.

    Parameters
    ----------
    scenes : list of N Scene
        The scenes.
    rng : numpy.random.Generator
        Source of the random backgrounds, shades and noise.

    Returns
    -------
    uint8 ndarray (N, SIDE, SIDE, 3)
        RGB images. Edges are antialiased over one pixel.
    """
    n = len(scenes)
    center = (SIDE - 1) / 2
    across = ((np.arange(SIDE) - center) / SIDE).astype(np.float32)
    base = rng.uniform(0.15, 0.85, (n, 1)) + rng.uniform(-0.05, 0.05, (n, 3))
    slope = rng.uniform(-0.25, 0.25, (n, 2))
    ramp = (
        slope[:, 0, None, None] * across[None, None, :]
        + slope[:, 1, None, None] * across[None, :, None]
    )
    pixels = (base[:, None, None, :] + ramp[..., None]).astype(np.float32)

    owner = np.array([i for i, scene in enumerate(scenes) for _ in scene.shapes], dtype=np.intp)
    shapes = [shape for scene in scenes for shape in scene.shapes]
    shade = _RGB[[COLORS.index(s.color) for s in shapes]] if shapes else np.zeros((0, 3))
    shade = shade * rng.uniform(0.85, 1.05, (len(shapes), 1))
    shade = np.clip(shade + rng.uniform(-0.05, 0.05, shade.shape), 0, 1).astype(np.float32)
    # Rendering only a window around each shape is four times faster.
    half = int(np.ceil(_REACH * _RADIUS["big"][1])) + 2
    window = np.arange(-half, half + 1)
    for kind in SHAPES:
        index = np.array([i for i, s in enumerate(shapes) if s.kind == kind], dtype=np.intp)
        if not index.size:
            continue
        x, y, r, angle = np.array(
            [(shapes[i].x, shapes[i].y, shapes[i].radius, shapes[i].angle) for i in index]
        ).T
        columns = np.floor(x).astype(np.intp)[:, None] + window
        rows = np.floor(y).astype(np.intp)[:, None] + window
        dx = (columns - x[:, None] + 0.5).astype(np.float32)[:, None, :]
        dy = (rows - y[:, None] + 0.5).astype(np.float32)[:, :, None]
        cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
        outline = _distance(
            kind, cos * dx + sin * dy, cos * dy - sin * dx, r.astype(np.float32)[:, None, None]
        )
        cover = np.clip(0.5 - outline, 0, 1)
        inside = ((rows >= 0) & (rows < SIDE))[:, :, None] & ((columns >= 0) & (columns < SIDE))[
            :, None, :
        ]
        which, row, column = np.nonzero(inside & (cover > 0))
        at = (owner[index[which]], rows[which, row], columns[which, column])
        weight = cover[which, row, column][:, None]
        pixels[at] = (1 - weight) * pixels[at] + weight * shade[index[which]]
    pixels += np.float32(0.025) * rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
