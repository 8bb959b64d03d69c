"""What the messages say about installing an extra: it works from where the package is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import fastrnn
from fastrnn import extras
from fastrnn.extras import install_command

PACKAGE = Path(fastrnn.__file__).resolve().parent
METADATA = """\
Metadata-Version: 2.4
Name: fastrnn
Version: 0.1.0
Provides-Extra: torch
Provides-Extra: fuzz
Requires-Dist: numpy>=1.26
Requires-Dist: torch>=2.4; extra == "torch"
Requires-Dist: tensors<2; extra == 'torch'
Requires-Dist: atheris>=2.3; (sys_platform == "linux") and extra == "fuzz"
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Pretend that the package was installed, and that pip wrote such a direct_url.json."""
    site = tmp_path / "site"
    info = site / "fastrnn-0.1.0.dist-info"
    (site / "fastrnn").mkdir(parents=True)
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    monkeypatch.setattr(extras, "_PACKAGE", site / "fastrnn")
    monkeypatch.syspath_prepend(site)

    def write(origin: object) -> None:
        text = origin if isinstance(origin, str) else json.dumps(origin)
        (info / "direct_url.json").write_text(text)

    return write


def source_tree(place: Path) -> Path:
    place.mkdir(parents=True)
    (place / "pyproject.toml").write_text('[project]\nname = "fastrnn"\n')
    return place


def test_from_an_index(installed):
    assert install_command("torch") == 'pip install "fastrnn[torch]"'


@pytest.mark.parametrize("editable", [False, True])
def test_from_a_directory(installed, tmp_path, editable):
    tree = source_tree(tmp_path / "my code" / "fastrnn")
    installed({"url": tree.as_uri(), "dir_info": {"editable": editable}})
    assert install_command("torch") == f'pip install "{tree}[torch]"'


def test_from_a_directory_that_is_gone(installed, tmp_path):
    """The packages can still be installed by their own names."""
    installed({"url": (tmp_path / "gone").as_uri(), "dir_info": {}})
    assert install_command("torch") == 'pip install "torch>=2.4" "tensors<2"'
    assert install_command("fuzz") == 'pip install "atheris>=2.3"'


def test_another_project_in_that_directory(installed, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pyproject.toml").write_text('[project]\nname = "other"\n')
    installed({"url": (tmp_path / "other").as_uri(), "dir_info": {}})
    assert install_command("torch").startswith('pip install "torch>=2.4"')


def test_from_a_wheel(installed, tmp_path):
    wheel = tmp_path / "fastrnn-0.1.0-cp311-cp311-linux_x86_64.whl"
    wheel.write_bytes(b"")
    installed({"url": wheel.as_uri(), "archive_info": {}})
    assert install_command("onnx") == f'pip install "{wheel}[onnx]"'
    wheel.unlink()
    assert install_command("torch") == 'pip install "torch>=2.4" "tensors<2"'


@pytest.mark.parametrize(
    "origin, place",
    [
        ({"url": "https://a.b/fastrnn.zip", "archive_info": {}}, "https://a.b/fastrnn.zip"),
        (
            {"url": "https://a.b/c.git", "vcs_info": {"vcs": "git", "commit_id": "12ab"}},
            "git+https://a.b/c.git@12ab",
        ),
        (
            {
                "url": "https://a.b/c.git",
                "subdirectory": "python",
                "vcs_info": {"vcs": "git", "requested_revision": "main", "commit_id": "12ab"},
            },
            "git+https://a.b/c.git@main#subdirectory=python",
        ),
    ],
)
def test_from_an_address(installed, origin, place):
    installed(origin)
    assert install_command("torch") == f'pip install "fastrnn[torch] @ {place}"'


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"url": 1}', "null", "\x00"])
def test_a_damaged_note_of_the_origin(installed, text):
    installed(text)
    assert install_command("torch") == 'pip install "fastrnn[torch]"'


def test_without_an_installation(tmp_path, monkeypatch):
    tree = source_tree(tmp_path / "tree")
    monkeypatch.setattr(extras, "_PACKAGE", tree / "fastrnn")
    assert install_command("torch") == f'pip install -e "{tree}[torch]"'
    monkeypatch.chdir(tree)
    assert install_command("torch") == 'pip install -e ".[torch]"'
    # as a copied package: nothing is known of it
    monkeypatch.setattr(extras, "_PACKAGE", tmp_path / "fastrnn")
    assert install_command("torch") == 'pip install "fastrnn[torch]"'


def test_the_working_directory_was_removed(tmp_path, monkeypatch):
    tree = source_tree(tmp_path / "tree")
    monkeypatch.setattr(extras, "_PACKAGE", tree / "fastrnn")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    try:
        (tmp_path / "here").rmdir()
    except OSError:
        pytest.skip("this system keeps working directories")
    assert install_command("torch") == f'pip install -e "{tree}[torch]"'


@pytest.mark.skipif(os.name == "nt", reason="quotes as POSIX shells do")
@pytest.mark.parametrize("name", ["a b", "$HOME", "it's", 'a"b', "`id`", "a\\b", "!!", "[x]"])
def test_a_shell_reads_the_place_as_it_is(tmp_path, monkeypatch, name):
    tree = source_tree(tmp_path / name)
    monkeypatch.setattr(extras, "_PACKAGE", tree / "fastrnn")
    expected = ["pip", "install", "-e", f"{tree}[torch]"]
    assert shlex.split(install_command("torch")) == expected
    done = subprocess.run(
        ["sh", "-c", f'pip() {{ printf "%s\\n" pip "$@"; }}; {install_command("torch")}'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == expected


def test_only_one_place_says_how_to_install():
    """Messages do not say it by themselves, and name extras that exist."""
    called = set()
    for path in PACKAGE.rglob("*"):
        if path.suffix not in (".py", ".pyx", ".js", ".html") or path.name == "extras.py":
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"fastrnn\[\w+\]", text), path
        called |= set(re.findall(r"install_command\(['\"](\w+)['\"]\)", text))
        called |= set(re.findall(r"raise_missing\(.*['\"](\w+)['\"]\)", text))
    assert {"eval", "serve", "vision", "tensorboard", "onnx", "torch", "safetensors"} <= called
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file():
        text = project.read_text(encoding="utf-8")
        known = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
        assert called <= set(re.findall(r"^(\w+) = ", known, re.MULTILINE))


BACKEND = '''
"""Builds wheels of a project with extras.py as its only module, without the network."""
import pathlib, zipfile

def wheel(directory, files):
    path = pathlib.Path(directory, "fastrnn-0.1.0-py3-none-any.whl")
    info = "fastrnn-0.1.0.dist-info"
    files[info + "/METADATA"] = pathlib.Path("METADATA").read_text()
    files[info + "/WHEEL"] = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    files[info + "/RECORD"] = "".join(name + ",,\\n" for name in [*files, info + "/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path.name

def build_wheel(directory, config_settings=None, metadata_directory=None):
    names = ["fastrnn/__init__.py", "fastrnn/extras.py"]
    return wheel(directory, {name: pathlib.Path(name).read_text() for name in names})

def build_editable(directory, config_settings=None, metadata_directory=None):
    return wheel(directory, {"fastrnn.pth": str(pathlib.Path.cwd()) + "\\n"})
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with an extra that needs a package in a folder of wheels."""
    place = tmp_path_factory.mktemp("pip") / "a project"
    (place / "fastrnn").mkdir(parents=True)
    (place / "fastrnn" / "__init__.py").touch()
    shutil.copy(extras.__file__, place / "fastrnn" / "extras.py")
    (place / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "fastrnn"\nversion = "0.1.0"\n'
    )
    (place / "backend.py").write_text(BACKEND)
    (place / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fastrnn\nVersion: 0.1.0\nProvides-Extra: torch\n"
        'Requires-Dist: needed>=1; extra == "torch"\n'
    )
    wheels = place.with_name("wheels")
    (wheels / "work").mkdir(parents=True)
    exec_in = {"__name__": "backend"}
    exec(BACKEND.replace("fastrnn-0.1.0", "needed-1.0"), exec_in)
    (wheels / "work" / "METADATA").write_text("Metadata-Version: 2.1\nName: needed\nVersion: 1.0\n")
    before = Path.cwd()
    os.chdir(wheels / "work")
    try:
        exec_in["wheel"](wheels, {"needed.py": ""})
    finally:
        os.chdir(before)
    return place


@pytest.mark.skipif(os.name == "nt", reason="runs the command in a POSIX shell")
@pytest.mark.parametrize("how", ["directory", "editable", "wheel", "index", "gone"])
def test_the_command_works(project, tmp_path, how):
    """Pip installs the package in each way; then the command that the package names works."""
    pytest.importorskip("ensurepip")
    home, wheels = tmp_path / "venv", project.with_name("wheels")
    venv.create(home, with_pip=True)
    variables = {
        **os.environ, "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONPATH": "",
    }  # fmt: skip

    def shell(command: str) -> str:
        done = subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, env=variables, text=True, timeout=120,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    source = project
    if how == "gone":
        source = tmp_path / "soon gone"
        shutil.copytree(project, source)
    named = {"editable": f"-e {shlex.quote(str(source))}", "index": "fastrnn"}
    if how in ("wheel", "index"):
        place = tmp_path / "built"
        shell(f"pip wheel -q -w {place} {shlex.quote(str(source))}")
        [built] = place.glob("*.whl")
        named["wheel"] = str(built)
        variables["PIP_FIND_LINKS"] += f" {place}"
    shell(f"pip install -q {named.get(how, shlex.quote(str(source)))}")
    if how == "gone":
        shutil.rmtree(source)
    ask = "from fastrnn.extras import install_command; print(install_command('torch'))"
    command = shell(f'python -c "{ask}"').strip()
    assert ("fastrnn[torch]" in command) == (how == "index")
    assert ("-e " in command) == (how == "editable")
    shell(command)
    shell("python -c 'import needed'")


def test_safetensors_without_torch(tmp_path):
    """The extra safetensors is enough to write the file and to read it."""
    pytest.importorskip("safetensors")
    program = """
import sys
sys.modules["torch"] = None  # an import of it fails
import numpy as np
from fastrnn import cli
from fastrnn.checkpoint import save_model
from fastrnn.classifiers.rnn import CaptioningRNN
words = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3}
model = CaptioningRNN(words, input_dim=5, wordvec_dim=3, hidden_dim=4, cell_type="lstm")
save_model("model.npz", model)
assert cli.main(["export", "model.npz", "--safetensors", "m.safetensors"]) == 0
from safetensors.numpy import load_file
from fastrnn.export import from_torch
found = from_torch(load_file("m.safetensors"), words)
for name, w in model.params.items():
    assert np.array_equal(found.params[name], w), name
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, text=True, capture_output=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
