"""The former name of `fastrnn.data.scenes.dataset`."""

from .scenes.dataset import SCENES_FILE, SceneSet, make_scenes, read_scenes, write_scenes

__all__ = ["SCENES_FILE", "SceneSet", "make_scenes", "read_scenes", "write_scenes"]
