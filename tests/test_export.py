"""All exports: replaced parameters, missing packages, and the command."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from export_models import WORD_TO_IDX, H, V, assert_same_bits, small_model

from fastrnn import cli, files
from fastrnn.checkpoint import save_model
from fastrnn.export import (
    from_torch,
    save_onnx,
    save_safetensors,
    to_onnx,
    to_torch,
    torch_module,
)
from fastrnn.extras import install_command


@pytest.fixture
def safetensors_numpy():
    return pytest.importorskip("safetensors.numpy")


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx")


@pytest.mark.parametrize("export", [to_torch, torch_module, to_onnx])
def test_parameters_that_were_replaced(export):
    pytest.importorskip("onnx" if export is to_onnx else "torch")
    model = small_model("lstm", np.float32)
    model.params["Wh"] = model.params["Wh"].astype(np.float64)
    export(model)  # in the common dtype, as the loss takes them
    model.params["Wh"] = np.ones((H, 4 * H + 1))
    with pytest.raises(ValueError, match=r"Wh has shape \(7, 29\); expected \(H, 4H\)"):
        export(model)
    model.params["W_embed"] = np.ones(V, np.complex64)
    with pytest.raises(TypeError, match="W_embed has dtype complex64"):
        export(model)


@pytest.mark.parametrize("export", [to_torch, torch_module, to_onnx])
def test_a_cell_that_cannot_be_exported(export):
    """A new cell in the core is refused until the exports know it."""
    pytest.importorskip("onnx" if export is to_onnx else "torch")
    model = small_model("lstm")
    model.cell_type = "gru"
    with pytest.raises(ValueError, match=r"^cell_type is 'gru'; expected one of rnn, lstm$"):
        export(model)


@pytest.mark.parametrize(
    "package, extra, call",
    [
        ("torch", "torch", to_torch),
        ("torch", "torch", torch_module),
        ("safetensors.numpy", "safetensors", lambda model: save_safetensors("no", model)),
        ("onnx", "onnx", to_onnx),
        ("onnx", "onnx", lambda model: save_onnx("no", model)),
    ],
)
def test_missing_packages_are_named(monkeypatch, package, extra, call):
    monkeypatch.setitem(sys.modules, package, None)
    name = package.split(".")[0]
    with pytest.raises(ImportError) as caught:
        call(small_model("rnn"))
    assert str(caught.value).endswith(f"needs the package {name}: {install_command(extra)}")


def command(capsys, *arguments):
    status = cli.main(["export", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def run_directory(tmp_path):
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run" / "model.npz", small_model("lstm", np.float32))
    return tmp_path / "run"


def test_command(onnx, safetensors_numpy, run_directory, tmp_path, capsys):
    weights, graphs = tmp_path / "m.safetensors", tmp_path / "graphs"
    arguments = ["--safetensors", weights, "--onnx", graphs]
    for model, force in ((run_directory, []), (run_directory / "model.npz", ["--force"])):
        assert command(capsys, model, *arguments, *force) == (
            0, f"written to {weights}\nwritten to {graphs}: project.onnx, step.onnx\n", "",
        )  # fmt: skip
    expected = small_model("lstm", np.float32)
    found = from_torch(safetensors_numpy.load_file(weights), WORD_TO_IDX)
    assert_same_bits(found.params, expected.params)
    assert onnx.load(graphs / "step.onnx") == to_onnx(expected)["step"]


def test_command_refuses(run_directory, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    onnx = f"needs the package onnx: {install_command('onnx')}"
    weights = f"needs the package safetensors: {install_command('safetensors')}"
    for arguments, message in [
        ([run_directory], "export needs --safetensors FILE, --onnx DIR or both"),
        ([run_directory, "--onnx", ""], "export needs --safetensors FILE, --onnx DIR or both"),
        (
            [tmp_path / "none", "--onnx", "x"],
            f"no such run directory or model file: {tmp_path / 'none'}",
        ),
        ([tmp_path, "--onnx", "x"], f"no such model file: {tmp_path / 'model.npz'}"),
        ([run_directory, "--onnx", "x"], f"export to ONNX {onnx}"),
        ([run_directory, "--safetensors", "x"], f"a safetensors file {weights}"),
        (
            [run_directory, "--safetensors", tmp_path, "--onnx", "x"],
            f"--safetensors is {tmp_path}; expected a file, not a directory",
        ),
    ]:
        assert command(capsys, *arguments) == (2, "", f"fastrnn: error: {message}\n")


def test_command_replaces_nothing_without_force(
    onnx, safetensors_numpy, run_directory, tmp_path, capsys
):
    weights, graphs = tmp_path / "m.safetensors", tmp_path / "graphs"
    graphs.mkdir()
    kept = {graphs / "notes.txt": b"mine", graphs / "step.onnx": b"older", weights: b"older"}
    for path, content in kept.items():
        path.write_bytes(content)
    instead = "choose another, or replace it with --force"
    for arguments, found in [
        (["--safetensors", weights, "--onnx", tmp_path / "new"],
         f"--safetensors is {weights}, which exists"),
        (["--safetensors", tmp_path / "new", "--onnx", graphs],
         f"--onnx is {graphs}, which has step.onnx"),
    ]:  # fmt: skip
        said = command(capsys, run_directory, *arguments)
        assert said == (2, "", f"fastrnn: error: {found}; {instead}\n")
    assert sorted(tmp_path.iterdir()) == [graphs, weights, run_directory]
    assert {path: path.read_bytes() for path in kept} == kept
    assert sorted(path.name for path in graphs.iterdir()) == ["notes.txt", "step.onnx"]
    # what is there is no obstacle if it is not replaced
    (graphs / "step.onnx").unlink()
    assert command(capsys, run_directory, "--onnx", graphs)[0] == 0
    assert (graphs / "notes.txt").read_bytes() == b"mine"


def test_the_graphs_are_replaced_together(onnx, tmp_path, monkeypatch):
    """An error while the second is written leaves the first as it was."""
    save_onnx(tmp_path, small_model("rnn"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fsync, calls = files.os.fsync, []

    def fail(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left.*step\.onnx"):
        save_onnx(tmp_path, small_model("lstm"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_command_cannot_write(onnx, run_directory, tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    status, said, error = command(capsys, run_directory, "--onnx", taken)
    assert (status, said, error.count("\n")) == (2, "", 1)
    assert error == f"fastrnn: error: --onnx is {taken}, a file; expected a directory\n"
    assert taken.read_text() == "mine"
