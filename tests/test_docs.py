"""The documentation is complete, its examples run, and it is built without a warning."""

from __future__ import annotations

import argparse
import doctest
import importlib
import inspect
import io
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from test_public_names import MODULES

from fastrnn.cli.main import make_parser

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
if not DOCS.is_dir():
    pytest.skip("the docs are not beside the tests", allow_module_level=True)
PAGES = sorted(DOCS.glob("*.rst"))


def public_names(module: ModuleType) -> list[str]:
    """Return the names in `__all__` that are to be documented: those that are no modules."""
    return [name for name in module.__all__ if not isinstance(getattr(module, name), ModuleType)]


def imported(module_name: str) -> ModuleType:
    """Import a module; skip the test where it needs an extra."""
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        pytest.skip(str(error))


def public_objects(modules: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Give the public functions, classes and methods with their full names, each once."""
    seen = set()
    for module_name in modules:
        module = imported(module_name)
        for name in public_names(module):
            value = getattr(module, name)
            if not (inspect.isfunction(value) or inspect.isclass(value)) or id(value) in seen:
                continue
            seen.add(id(value))
            yield f"{module_name}.{name}", value
            if inspect.isclass(value):
                for member, inner in vars(value).items():
                    if not member.startswith("_") and (
                        inspect.isfunction(inner)
                        or isinstance(inner, (property, classmethod, staticmethod))
                    ):
                        yield f"{module_name}.{name}.{member}", inner


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the command line by what is typed for them."""
    parser = make_parser()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return {f"fastrnn {name}": command for name, command in action.choices.items()}
    raise AssertionError


COMMANDS = commands()

# -- without Sphinx


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name: str) -> None:
    """Where nothing is imported but NumPy, as in the session of a reader."""
    module = imported(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    printed = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in finder.find(module, name):
        example.globs = {"np": np}
        runner.run(example, out=printed.write)
    assert runner.failures == 0, printed.getvalue()


def test_functions_of_the_course_have_examples() -> None:
    """Readers of the API pages see what goes in and what comes out."""
    for module, names in {
        "rnn_layers": ["rnn_forward", "lstm_forward", "word_embedding_forward",
                       "temporal_affine_forward", "temporal_softmax_loss"],
        "classifiers.rnn": ["CaptioningRNN"],
        "captioning_solver": ["CaptioningSolver"],
        "coco_utils": ["decode_captions"],
        "gradient_check": ["eval_numerical_gradient_array"],
        "optim": ["adam"],
        "decoding": ["beam_search"],
        "rewards": ["CiderReward"],
        "training": ["Trainer"],
    }.items():  # fmt: skip
        for name in names:
            value = getattr(importlib.import_module(f"fastrnn.{module}"), name)
            assert ">>> " in inspect.getdoc(value), f"{module}.{name}"


@pytest.mark.parametrize("page", [page for page in PAGES if ">>> " in page.read_text("utf-8")])
def test_examples_of_pages_run(page: Path) -> None:
    failed, _ = doctest.testfile(
        str(page), module_relative=False, encoding="utf-8", optionflags=doctest.ELLIPSIS
    )
    assert failed == 0


def test_every_public_module_has_a_page() -> None:
    listed = re.findall(r"^   (fastrnn[\w.]*)$", (DOCS / "api" / "index.rst").read_text(), re.M)
    assert sorted(listed) == sorted(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name: str) -> None:
    missing = [each for each, value in public_objects([name]) if not inspect.getdoc(value)]
    assert missing == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_states_the_default_of_each_option_with_a_value(command: str) -> None:
    for action in COMMANDS[command]._actions:
        if not action.option_strings or action.nargs == 0 or action.required:
            continue
        help_ = action.help % vars(action)
        if action.default not in (None, [], argparse.SUPPRESS):
            assert "default: " in help_, action.option_strings


# -- with the extra


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages; a warning fails the build."""
    for package in ("sphinx", "numpydoc", "pydata_sphinx_theme", "myst_nb", "sphinx_copybutton"):
        pytest.importorskip(package)
    pytest.importorskip("tensorboardX")
    place = tmp_path_factory.mktemp("docs")
    built = sphinx("html", place)
    assert built.returncode == 0, built.stderr
    return place


def sphinx(builder: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Run Sphinx."""
    return subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going", "-b", builder, str(DOCS),
         str(place)],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def documented(site: Path) -> dict[str, set[str]]:
    """What the pages document: the names of each kind, as the inventory of the site lists them."""
    from sphinx.util.inventory import InventoryFile

    found = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    return {kind: set(names) for kind, names in found.data.items()}


def test_every_public_name_is_documented(documented: dict[str, set[str]]) -> None:
    python = {
        name for kind, names in documented.items() if kind.startswith("py:") for name in names
    }
    for module_name in MODULES:
        assert module_name in documented["py:module"]
        module = importlib.import_module(module_name)
        missing = [name for name in public_names(module) if f"{module_name}.{name}" not in python]
        assert missing == [], module_name


def test_every_public_method_is_documented(documented: dict[str, set[str]]) -> None:
    python = {
        name for kind, names in documented.items() if kind.startswith("py:") for name in names
    }
    assert [name for name, _ in public_objects(MODULES) if name not in python] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented(command: str, documented: dict[str, set[str]]) -> None:
    page = documented["std:cmdoption"]
    for action in COMMANDS[command]._actions:
        for flag in action.option_strings:
            everywhere = action.dest in ("help", "traceback")
            where = "fastrnn" if everywhere else command.replace(" ", "-")
            assert f"{where}.{flag}" in page


def test_links_lead_somewhere(site: Path) -> None:
    checked = check_links(site)
    assert checked.returncode == 0, checked.stderr


def check_links(site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DOCS / "links.py"), str(site)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("there.html", "is no file"),
        ("#there", "has no such place"),
        ("other.html#there", "has no such place"),
        ("", None),
        ("other.html#here", None),
        ("https://example.org/there", None),
    ],
)
def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, link: str, said: str | None) -> None:
    (tmp_path / "index.html").write_text(f'<p id="top"><a href="{link}">x</a>')
    (tmp_path / "other.html").write_text('<p id="here">')
    checked = check_links(tmp_path)
    assert checked.returncode == (said is not None), checked.stderr
    assert said is None or f"index.html: {link} {said}" in checked.stderr


@pytest.mark.parametrize(("seed", "length"), [(2, 4), (4, 30)])
def test_the_onnx_example_says_what_the_model_says(tmp_path: Path, seed: int, length: int) -> None:
    """The program of export.rst decodes as `greedy` does, to ``<END>`` or to the largest length."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from fastrnn.classifiers.rnn import CaptioningRNN
    from fastrnn.decoding import greedy
    from fastrnn.export import save_onnx

    words = {"<NULL>": 0, "<START>": 1, "<END>": 2, "<UNK>": 3, "a": 4, "dog": 5, "runs": 6}
    np.random.seed(seed)
    model = CaptioningRNN(words, input_dim=5, wordvec_dim=6, hidden_dim=7, cell_type="lstm")
    for name, factor in (("W_embed", 20), ("Wx", 3), ("Wh", 3)):  # so that words change
        model.params[name] *= factor
    model.params["b_vocab"][[0, 1, 3]] -= 100
    features = np.random.standard_normal((1, 5)).astype(np.float32)
    save_onnx(tmp_path / "flickr8k-onnx", model)
    text = (DOCS / "export.rst").read_text(encoding="utf-8")
    code = text.partition("Decode with ONNX Runtime")[2].partition("code-block:: python\n\n")[2]
    code = textwrap.dedent(code).replace("flickr8k-onnx", f"{tmp_path}/flickr8k-onnx")
    said: list[str] = []
    exec(compile(code, "export.rst", "exec"), {"features": features, "print": said.append})
    [[expected]] = greedy(model, features, max_length=30).captions(model.idx_to_word)
    assert " ".join(said) == expected
    assert len(said) == length and len(set(said)) > 1


def faults_of(name: str, value: Any) -> list[str]:
    """Return what numpydoc finds missing in a docstring.

    A docstring may be one sentence. As soon as it has sections, it has all of them. Keywords that
    are passed on, and the fields of a dataclass, which are attributes, are no parameters of it;
    arguments that another function describes need no type here.
    """
    from numpydoc.validate import validate

    text = inspect.getdoc(value) or ""
    wanted = {"GL01", "GL03", "GL05", "GL06", "GL07", "GL08", "GL10", "SS01", "SS02", "SS03",
              "SS04", "SS06", "SA02", "SA03", "PR02", "PR07", "RT03"}  # fmt: skip
    if "\n---" in text:
        wanted |= {"PR01", "PR03", "PR04", "RT01", "YD01"}
    if isinstance(value, property) or (inspect.isclass(value) and "Attributes\n---" in text):
        wanted -= {"PR01", "RT01"}
    if not isinstance(value, property) and "**" in signature_of(value):
        wanted -= {"PR01", "PR02"}
    if re.search(r"^(\w+, )+\S+\n    (See|As) ", text, re.MULTILINE):
        wanted -= {"PR03", "PR04"}
    return [f"{name}: {message}" for code, message in validate(name)["errors"] if code in wanted]


def signature_of(value: Any) -> str:
    """Return the parameters of a function, a method or a class; '' for a class without any."""
    try:
        return str(inspect.signature(getattr(value, "__func__", value)))
    except ValueError:
        return ""


def test_docstrings_are_complete() -> None:
    """Each parameter and each result of a public function is described, in the form of numpydoc."""
    pytest.importorskip("numpydoc")
    assert [
        fault for name, value in public_objects(MODULES) for fault in faults_of(name, value)
    ] == []
