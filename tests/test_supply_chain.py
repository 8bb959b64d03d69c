"""Things that no file of the package may do: unpickle, eval, start a shell or a program."""

from __future__ import annotations

import ast
import importlib.metadata
import io
import re
import tokenize
from pathlib import Path

import pytest

import fastrnn

PACKAGE = Path(fastrnn.__file__).resolve().parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROOT = PACKAGE.parent
# Not in an installed package, but in a checkout.
CYTHON = sorted([*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")])
C_CODE = sorted((ROOT / "src_c").glob("*.[ch]"))
SCRIPTS = sorted([*PACKAGE.rglob("*.js"), *PACKAGE.rglob("*.html")])
MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "subprocess", "pty",
    "runpy", "code", "codeop", "builtins", "ctypes", "cffi",
}  # fmt: skip
EVALUATION = {"eval", "exec", "compile", "__import__"}
FORBIDDEN = re.compile(
    r"os\.(system|popen|exec\w+|spawn\w+|posix_spawnp?|startfile)|importlib\.import_module|"
    r"asyncio\.create_subprocess_\w+|torch\.load|\w+\.read_pickle"
)
ALLOWED = {
    # Python again, with h5py alone: HDF5 does not survive every file. It gets no shell, and nothing
    # that was read becomes an argument.
    ("data/h5.py", "os.posix_spawn"),
    ("cli/completion.py", "shtab.complete(shell=)"),  # the name of the shell that a script is for
}  # fmt: skip
WORDS = MODULES - {"code", "builtins"} | EVALUATION - {"compile"} | {"system", "popen"}
"""Names that must not occur in Cython files, which `ast` cannot parse."""
C_CALLS = re.compile(r"\b(system|popen|exec[lv]p?e?|fork|vfork|posix_spawnp?|dlopen)\s*\(")


def names_of(tree: ast.AST) -> dict[str, str]:
    """The meaning of imported names: np for numpy, load for numpy.load."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def name_of(node: ast.expr, names: dict[str, str]) -> str:
    """a.b.c of such an expression, whatever a was imported as."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def faults(source: str) -> list[str]:
    """A description of what is wrong with a file."""
    tree = ast.parse(source)
    names, found = names_of(tree), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [str(node.module)] * ((node.module or "").split(".")[0] in MODULES)
        elif isinstance(node, ast.Name | ast.Attribute):  # called here, or handed on to be called
            name = name_of(node, names)
            if name in EVALUATION or FORBIDDEN.fullmatch(name):
                found.append(name)
        elif isinstance(node, ast.Call):
            name = name_of(node.func, names)
            given = {k.arg: k.value for k in node.keywords}
            for argument in ("shell", "allow_pickle"):
                value = given.get(argument)
                if value and not (isinstance(value, ast.Constant) and value.value is False):
                    found.append(f"{name}({argument}=)")
            if name == "numpy.load" and "allow_pickle" not in given:
                found.append("numpy.load without allow_pickle=False")
            if name == "yaml.load" and "Loader" not in given:
                found.append(name)
    return found


def faults_of_cython(source: str) -> list[str]:
    """Words of a Cython file that should not be there, comments and strings aside."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [t.string for t in tokens if t.type == tokenize.NAME and t.string in WORDS]


def faults_of_c(source: str) -> list[str]:
    """Calls of a C file that start a program or load a library."""
    code = re.sub(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\])*\"", " ", source, flags=re.S)
    return [match[1] for match in C_CALLS.finditer(code)]


def faults_of_script(source: str) -> list[str]:
    """Words by which a page's script evaluates text."""
    return re.findall(r"\beval\s*\(|\bnew Function\b|\bdocument\.write\b", source)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_runs_what_it_reads(path):
    place = path.relative_to(PACKAGE).as_posix()
    found = faults(path.read_text(encoding="utf-8"))
    assert {(place, what) for what in found} == {known for known in ALLOWED if known[0] == place}
    assert len(found) <= 1


@pytest.mark.parametrize(
    ("files", "look"),
    [(CYTHON, faults_of_cython), (C_CODE, faults_of_c), (SCRIPTS, faults_of_script)],
    ids=["cython", "c", "scripts"],
)
def test_no_other_file_does(files, look):
    if not files:
        pytest.skip("not in an installed package")
    found = {path.name: look(path.read_text(encoding="utf-8")) for path in files}
    assert not {name: words for name, words in found.items() if words}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "eval('1')", "exec(x)", "map(eval, x)",
        "import os; os.system(x)", "from os import system as run; run(x)", "run = os.popen",
        "import os; os.posix_spawn(x, y, z)",
        "import os as o; o.execv(x, y)", "f(x, shell=True)", "import subprocess",
        "import numpy as np; np.load(f)", "import numpy; numpy.load(f, allow_pickle=True)",
        "from numpy import load; load(f)", "read_array(f, allow_pickle=x)",
        "import torch; torch.load(f)", "import pandas; pandas.read_pickle(f)",
        "import importlib; importlib.import_module(x)", "yaml.load(f)", "import builtins",
    ],
)  # fmt: skip
def test_faults_are_seen(source):
    assert faults(source)


def test_faults_of_other_files_are_seen():
    assert faults_of_cython("cdef int f():\n    return eval('1')  # pickle\n") == ["eval"]
    assert faults_of_cython("from libc.stdlib cimport system\n") == ["system"]
    assert faults_of_c('/* system(x) */ int f(void) { return system("exec(x)"); }') == ["system"]
    assert faults_of_c("execvp(x, y); execute(x);") == ["execvp"]
    assert faults_of_script("x = eval (y); evaluate(z)") == ["eval ("]


def test_dependencies_are_few_and_known():
    """Add a new dependency here only after considering it."""
    needed = {
        requirement.split(";")[0].split(">")[0].split("=")[0].strip().lower()
        for requirement in importlib.metadata.requires("fastrnn") or []
        if "extra ==" not in requirement
    }
    known = {"numpy", "scipy", "h5py", "tqdm", "matplotlib", "pillow", "filelock"}
    assert needed <= known | {"tomli"}  # on Python 3.10, which has no tomllib
