"""What no file of the package may do: unpickle, evaluate text, start a shell."""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

import pytest

import fastrnn

PACKAGE = Path(fastrnn.__file__).resolve().parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "compile", "__import__"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}


def name_of(node: ast.expr) -> str:
    """a.b.c of such an expression."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(source: str) -> list[str]:
    """What is wrong with a file, in words."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module or "")
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            given = {k.arg: k.value for k in node.keywords}
            if name in CALLS or name in SHELLS or name.startswith(("os.exec", "os.spawn")):
                found.append(name)
            if "shell" in given and not (
                isinstance(given["shell"], ast.Constant) and given["shell"].value is False
            ):
                found.append(f"{name}(shell=)")
            if name in ("np.load", "numpy.load"):
                allowed = given.get("allow_pickle")
                if not (isinstance(allowed, ast.Constant) and allowed.value is False):
                    found.append("np.load without allow_pickle=False")
            if name == "torch.load" or (name == "yaml.load" and "Loader" not in given):
                found.append(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_runs_what_it_reads(path):
    assert not faults(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "eval('1')", "exec(x)", "os.system(x)",
        "subprocess.run(x, shell=True)", "np.load(f)", "np.load(f, allow_pickle=True)",
        "torch.load(f)", "os.execv(x, y)",
    ],
)  # fmt: skip
def test_faults_are_seen(source):
    assert len(faults(source)) == 1


def test_dependencies_are_few_and_known():
    """Somebody must have thought about a new one."""
    needed = {
        requirement.split(";")[0].split(">")[0].split("=")[0].strip().lower()
        for requirement in importlib.metadata.requires("fastrnn") or []
        if "extra ==" not in requirement
    }
    assert needed <= {"numpy", "scipy", "h5py", "tqdm", "matplotlib", "pillow", "filelock"}
