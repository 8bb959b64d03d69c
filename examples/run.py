"""Run the notebooks of this directory, and write their outputs into them.

``python examples/run.py`` runs all, ``python examples/run.py rnn_captioning`` one; with ``--check``
nothing is written. Each runs in an empty temporary directory, without the environment variables of
fastrnn, so that its outputs come from data that it draws itself. What differs between two runs
without a reason is left out: times, versions, and the text of pictures.

It needs ``pip install "fastrnn[examples]"``.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NOTEBOOKS = tuple(sorted(path.stem for path in HERE.glob("*.ipynb")))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
CELL_SECONDS = 600
"""After which a cell is given up."""


def read(name: str) -> dict[str, Any]:
    """Read a notebook."""
    return json.loads((HERE / f"{name}.ipynb").read_text(encoding="utf-8"))


def write(name: str, notebook: Mapping[str, Any]) -> None:
    """Write a notebook as Jupyter does, with sorted keys; the old one stays until it is whole."""
    from fastrnn.files import write_text

    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    write_text(HERE / f"{name}.ipynb", text + "\n")


def code_of(notebook: Mapping[str, Any]) -> list[str]:
    """Return the code of a notebook, cell by cell."""
    cells = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    return ["".join(cell["source"]) for cell in cells]


def code_digest(notebook: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the code, which a run writes into the notebook."""
    return hashlib.sha256(json.dumps(code_of(notebook)).encode()).hexdigest()


@contextlib.contextmanager
def _environment(directory: Path, given: Mapping[str, str]) -> Iterator[None]:
    """Set the environment of a kernel: nothing of fastrnn's but what is given."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("FASTRNN_")]:
        del os.environ[name]
    found = importlib.util.find_spec("fastrnn")  # the one that is imported here
    if found is None or found.origin is None:
        raise ModuleNotFoundError("fastrnn is not installed", name="fastrnn")
    paths = [given.get("PYTHONPATH"), str(Path(found.origin).parents[1]), before.get("PYTHONPATH")]
    os.environ |= {
        "IPYTHONDIR": str(directory / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(directory / "runtime"),
        **given,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def execute(
    name: str, environment: Mapping[str, str] | None = None, *, times: int = 1
) -> tuple[dict[str, Any], float]:
    """Run a notebook in an empty temporary directory.

    Parameters
    ----------
    name : str
        Its name, without ``.ipynb``.
    environment : mapping, optional
        Environment variables, such as FASTRNN_DATA. PYTHONPATH comes before the one that there is.
    times : int, optional
        How often to run it there, each time with a new kernel. Default 1.

    Returns
    -------
    notebook : dict
        The notebook with its new outputs.
    seconds : float
        The processor time of the last kernel.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell failed.
    """
    import nbclient
    import nbformat

    notebook = nbformat.reads(json.dumps(read(name)), as_version=4)
    clock = nbformat.v4.new_code_cell("import time; print(time.process_time())")
    notebook.cells.append(clock)
    with tempfile.TemporaryDirectory(prefix="fastrnn-") as place:
        work = Path(place, "work")
        work.mkdir()
        with _environment(Path(place), environment or {}):
            for _ in range(times):
                nbclient.NotebookClient(
                    notebook, timeout=CELL_SECONDS, kernel_name="python3", record_timing=False,
                    extra_arguments=["--log-level=ERROR"],
                    resources={"metadata": {"path": str(work)}},
                ).execute()  # fmt: skip
    seconds = float(notebook.cells.pop().outputs[0].text)
    return normalise(json.loads(nbformat.writes(notebook))), seconds


def normalise(notebook: dict[str, Any]) -> dict[str, Any]:
    """Leave out what differs between two runs without a reason, and make pictures small."""
    notebook["metadata"] = {**METADATA, "fastrnn": {"code_sha256": code_digest(notebook)}}
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        cell["metadata"].pop("execution", None)
        merged: list[dict[str, Any]] = []
        for output in cell["outputs"]:
            same = merged and output["output_type"] == merged[-1]["output_type"] == "stream"
            if same and output["name"] == merged[-1]["name"]:
                merged[-1]["text"] = [*merged[-1]["text"], *output["text"]]
            else:
                merged.append(output)
            if "image/png" in output.get("data", {}):
                output["data"] = {"image/png": _small_picture(output["data"]["image/png"])}
                if "alt" in cell["metadata"]:
                    output["metadata"] = {"image/png": {"alt": cell["metadata"]["alt"]}}
        cell["outputs"] = merged
    return notebook


def _small_picture(content: str | list[str]) -> str:
    """Return a PNG file in base64 with few colors and without the version of what drew it."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode("".join(content)))) as picture:
        image = picture.convert("RGB")
    # Without k-means, the palette lacks rare colors: a small yellow circle turns gray.
    few = image.quantize(256, kmeans=3, dither=Image.Dither.NONE)
    file = io.BytesIO()
    few.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode() + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run notebooks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"of {', '.join(NOTEBOOKS)}")
    parser.add_argument("--check", action="store_true", help="run them, but write nothing")
    options = parser.parse_args(arguments)
    names = [Path(name).stem for name in options.names] or NOTEBOOKS
    for name in names:
        if name not in NOTEBOOKS:
            parser.error(f"{name} is none of the notebooks; expected {', '.join(NOTEBOOKS)}")
    for name in names:
        began = time.perf_counter()
        notebook, seconds = execute(name)
        wall = time.perf_counter() - began
        if not options.check:
            write(name, notebook)
        print(f"{name:<20} {wall:5.0f} s, {seconds:5.0f} s of processor time", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
