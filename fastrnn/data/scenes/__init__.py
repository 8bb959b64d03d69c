"""Drawn scenes of colored shapes: a captioning data set that is made in seconds.

``draw`` composes and renders scenes, ``language`` writes captions and checks whether a caption is
true, ``features`` computes image features, ``dataset`` writes the data set.
"""

from .draw import COLORS, SHAPES, SIDE, SIZES, Scene, Shape, draw_scenes, make_scene

__all__ = [
    "COLORS",
    "SHAPES",
    "SIDE",
    "SIZES",
    "Scene",
    "Shape",
    "draw_scenes",
    "make_scene",
]
