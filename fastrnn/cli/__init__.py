"""The command line: parse, call, print."""

from __future__ import annotations

from ..training.recipes import DATA_DEFAULTS, SCENE_DEFAULTS, SCENES
from .main import main

__all__ = ["DATA_DEFAULTS", "SCENES", "SCENE_DEFAULTS", "main"]
