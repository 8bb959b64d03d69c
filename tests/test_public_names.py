"""The public names of the modules: `__all__` has every one of them, and nothing else."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import fastrnn
import fastrnn.training

INTERNAL = {
    "fastrnn.__main__",
    "fastrnn.caption_tokens",
    "fastrnn.checks",
    "fastrnn.cli",
    "fastrnn.environment",
    "fastrnn.extras",
    "fastrnn.files",
    "fastrnn.forcing",
    "fastrnn.messages",
    "fastrnn.runlock",
    "fastrnn.seeds",
    "fastrnn.terminal",
}
OF_THE_COURSE = [
    "rnn_layers",
    "layers",
    "optim",
    "classifiers.rnn",
    "captioning_solver",
    "coco_utils",
    "image_utils",
    "gradient_check",
]


def public_modules() -> list[str]:
    """Return the package, its modules and packages, and the modules with a twin or of the data."""
    found = ["fastrnn"]
    found += [f"fastrnn.{module.name}" for module in pkgutil.iter_modules(fastrnn.__path__)]
    for package in ("classifiers", "reference"):
        path = importlib.import_module(f"fastrnn.{package}").__path__
        found += [f"fastrnn.{package}.{module.name}" for module in pkgutil.iter_modules(path)]
    found += [
        f"fastrnn.{name}"
        for name in ("data.annotations", "data.fetch", "data.prepare", "data.scenes",
                     "data.scenes.dataset", "data.layout",
                     "data.pca", "data.references", "data.feature_files", "vision.images",
                     "vision.networks", "vision.source", "vision.extract")
    ]  # fmt: skip
    return sorted(
        name for name in set(found) if name not in INTERNAL and not name.startswith("fastrnn._")
        and name not in ("fastrnn.data", "fastrnn.reference.cells", "fastrnn.reference.checks")
    )  # fmt: skip


MODULES = public_modules()


def defined_in(module: ModuleType) -> set[str]:
    """Return the names of the functions and classes that a module defines itself."""
    return {
        name
        for name, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def test_the_modules_that_users_import_are_checked():
    assert len(MODULES) > 35
    for name in (*OF_THE_COURSE, "training", "decoding", "metrics", "captioner", "explain",
                 "rewards", "evaluation", "checkpoint", "report", "export", "book", "reference",
                 "reference.rnn_layers", "serve", "data.prepare"):  # fmt: skip
        assert f"fastrnn.{name}" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_all_names_exist_and_none_is_missing(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(str(error))  # it needs an extra
    assert len(set(module.__all__)) == len(module.__all__)
    assert [each for each in module.__all__ if not hasattr(module, each)] == []
    assert sorted(defined_in(module) - set(module.__all__)) == []


@pytest.mark.parametrize("name", OF_THE_COURSE)
def test_a_star_import_gives_the_functions_and_np(name):
    """The modules of the course import NumPy as np and have no `__all__`."""
    space: dict = {}
    exec(f"from fastrnn.{name} import *", space)
    module = importlib.import_module(f"fastrnn.{name}")
    assert space["np"].__name__ == "numpy"
    assert defined_in(module) <= set(space)
    assert "annotations" not in space
    assert "Any" not in space


def test_training_offers_what_a_training_needs():
    """Not what its own modules and the command line share."""
    assert fastrnn.training.__all__ == [
        "RECIPES", "Interrupted", "ModelConfig", "Recipe", "Run", "TrainConfig", "Trainer",
        "read_run", "read_training_data", "start_model",
    ]  # fmt: skip


def test_a_star_import_of_the_layers_gives_what_the_notebooks_call():
    space: dict = {}
    exec("from fastrnn.rnn_layers import *", space)
    cells = [f"{cell}{step}_{way}" for cell in ("rnn", "lstm") for step in ("", "_step")
             for way in ("forward", "backward")]  # fmt: skip
    layers = [f"{layer}_{way}" for layer in ("word_embedding", "temporal_affine", "affine")
              for way in ("forward", "backward")]  # fmt: skip
    assert {*cells, *layers, "temporal_softmax_loss", "sigmoid", "np"} <= set(space)
