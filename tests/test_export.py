"""Models in PyTorch, safetensors and ONNX: the same numbers there, the same weights back."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from coco_layout import WORDS, draw_captions

from fastrnn import cli, reference
from fastrnn.checkpoint import save_model
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.coco_utils import load_coco_data
from fastrnn.export import (
    from_torch,
    save_onnx,
    save_safetensors,
    to_onnx,
    to_torch,
    torch_module,
)

WORD_TO_IDX = {word: i for i, word in enumerate(WORDS)}
CELLS = pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}
V, D, W, H = len(WORDS), 5, 6, 7


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def safetensors_numpy():
    return pytest.importorskip("safetensors.numpy")


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx")


@pytest.fixture
def ort():
    pytest.importorskip("onnx")
    return pytest.importorskip("onnxruntime")


def small_model(cell_type, dtype=np.float64):
    """Return a model whose weights are large enough for its words to depend on one another."""
    np.random.seed(231)
    model = CaptioningRNN(WORD_TO_IDX, D, W, H, cell_type, dtype)
    for w in model.params.values():
        w += np.random.randn(*w.shape).astype(dtype) / 2
    return model


def twin_of(model):
    """Return the NumPy twin of a model, with the same parameters."""
    state = np.random.get_state()
    twin = reference.CaptioningRNN(WORD_TO_IDX, D, W, H, model.cell_type)
    np.random.set_state(state)
    twin.params = model.params
    return twin


def state_of(cell_type="lstm", dtype=np.float32):
    """Return a state_dict of arrays in torch's shapes, drawn without this package."""
    rng, k = np.random.default_rng(5), {"lstm": 4, "rnn": 1}[cell_type]
    shapes = {
        "embed.weight": (V, W),
        "project.weight": (H, D),
        "project.bias": (H,),
        "rnn.weight_ih_l0": (k * H, W),
        "rnn.weight_hh_l0": (k * H, H),
        "rnn.bias_ih_l0": (k * H,),
        "rnn.bias_hh_l0": (k * H,),
        "vocab.weight": (V, H),
        "vocab.bias": (V,),
    }
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def torch_loss(torch, scores, captions):
    """Return the cross-entropy of the next words, summed, divided by N."""
    total = torch.nn.functional.cross_entropy(
        scores.flatten(0, 1), captions[:, 1:].flatten(), reduction="sum", ignore_index=0
    )
    return total / len(captions)


def same_bits(a, b):
    assert a.keys() == b.keys()
    for name, w in a.items():
        assert (w.dtype, w.shape, w.tobytes()) == (b[name].dtype, b[name].shape, b[name].tobytes())


# -- PyTorch


@CELLS
@DTYPES
def test_entries_are_those_of_torchs_layers(torch, cell_type, dtype):
    state = to_torch(small_model(cell_type, dtype))
    nn = torch.nn
    layers = {
        "embed": nn.Embedding(V, W),
        "project": nn.Linear(D, H),
        "rnn": {"rnn": nn.RNN, "lstm": nn.LSTM}[cell_type](W, H),
        "vocab": nn.Linear(H, V),
    }
    nn.ModuleDict(layers).load_state_dict(state, strict=True)
    assert {w.dtype for w in state.values()} == {getattr(torch, np.dtype(dtype).name)}
    assert not state["rnn.bias_hh_l0"].any()


@CELLS
@DTYPES
def test_loss_and_gradients_are_the_same(torch, cell_type, dtype, rng):
    model = small_model(cell_type, dtype)
    features = rng.standard_normal((9, D)).astype(dtype)
    captions = draw_captions(rng, 9)
    expected, expected_grads = model.loss(features, captions)

    module, words = torch_module(model), torch.from_numpy(captions).long()
    scores = module(torch.from_numpy(features), words[:, :-1])
    assert scores.shape == (9, captions.shape[1] - 1, V)
    loss = torch_loss(torch, scores, words)
    np.testing.assert_allclose(loss.item(), expected, rtol=TOLERANCE[dtype])

    # Gradients lie where the weights lie, so they travel by the same road.
    loss.backward()
    model.params = expected_grads
    expected_grads = to_torch(model)
    found = {name: w.grad for name, w in module.named_parameters()}
    assert found.keys() == expected_grads.keys()
    expected_grads["rnn.bias_hh_l0"] = expected_grads["rnn.bias_ih_l0"]
    for name, grad in found.items():
        np.testing.assert_allclose(
            grad.numpy(), expected_grads[name].numpy(), rtol=1e-4, atol=10 * TOLERANCE[dtype]
        )


@CELLS
def test_loss_on_real_captions(torch, shared_data, cell_type):
    data = load_coco_data(str(shared_data / "flickr8k"), max_train=128)
    features = data["train_features"][data["train_image_idxs"]]
    captions = data["train_captions"]
    np.random.seed(3)
    model = CaptioningRNN(data["word_to_idx"], features.shape[1], 256, 512, cell_type)
    expected = model.loss(features, captions)[0]
    words = torch.from_numpy(captions).long()
    with torch.no_grad():
        scores = torch_module(model)(torch.from_numpy(features), words[:, :-1])
        found = torch_loss(torch, scores, words).item()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@CELLS
@DTYPES
def test_round_trip_is_exact(torch, cell_type, dtype):
    model = small_model(cell_type, dtype)
    model.params["b"][:2] = [-0.0, np.nextafter(dtype(0), dtype(1))]
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    for state in (to_torch(model), torch_module(model).state_dict()):
        again = from_torch(state, WORD_TO_IDX)
        assert (again.cell_type, again.dtype) == (cell_type, dtype)
        assert again.word_to_idx == WORD_TO_IDX
        same_bits(again.params, model.params)
        assert all(w.flags.c_contiguous for w in again.params.values())
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@CELLS
def test_memory_is_not_shared(torch, cell_type):
    model = small_model(cell_type)
    before = {name: w.copy() for name, w in model.params.items()}
    state = to_torch(model)
    again = from_torch(state, WORD_TO_IDX)
    for w in state.values():
        w.zero_()
    same_bits(model.params, before)
    same_bits(again.params, before)


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_a_model_of_torchs_own(torch, cell_type, rng):
    """Drawn by torch, both biases at work, under names of its own."""
    nn = torch.nn
    torch.manual_seed(7)
    net = nn.ModuleDict(
        {
            "encoder": nn.Linear(D, H),
            "decoder": nn.ModuleDict(
                {
                    "words": nn.Embedding(V, W),
                    "cell": {"rnn": nn.RNN, "lstm": nn.LSTM}[cell_type](W, H, batch_first=True),
                }
            ),
            "fc": nn.Linear(H, V),
        }
    ).double()
    features, captions = rng.standard_normal((6, D)), draw_captions(rng, 6)
    words = torch.from_numpy(captions).long()
    h0 = net["encoder"](torch.from_numpy(features))[None]
    state = (h0, torch.zeros_like(h0)) if cell_type == "lstm" else h0
    h, _ = net["decoder"]["cell"](net["decoder"]["words"](words[:, :-1]), state)
    expected = torch_loss(torch, net["fc"](h), words).item()

    names = {
        "embed": "decoder.words", "project": "encoder", "rnn": "decoder.cell", "vocab": "fc",
    }  # fmt: skip
    # Parameters that ask for gradients are taken too.
    for entries in (net.state_dict(), dict(net.named_parameters())):
        model = from_torch(entries, WORD_TO_IDX, names=names)
        assert model.cell_type == cell_type
        np.testing.assert_allclose(model.loss(features, captions)[0], expected, rtol=1e-12)


@CELLS
@DTYPES
def test_arrays_need_no_torch(monkeypatch, cell_type, dtype):
    monkeypatch.setitem(sys.modules, "torch", None)
    state = state_of(cell_type, dtype)
    p = from_torch(state, WORD_TO_IDX).params
    np.testing.assert_array_equal(p["W_embed"], state["embed.weight"])
    np.testing.assert_array_equal(p["W_proj"].T, state["project.weight"])
    np.testing.assert_array_equal(p["W_vocab"].T, state["vocab.weight"])
    bias = state["rnn.bias_ih_l0"] + state["rnn.bias_hh_l0"]
    if cell_type == "rnn":
        np.testing.assert_array_equal(p["Wh"].T, state["rnn.weight_hh_l0"])
        np.testing.assert_array_equal(p["b"], bias)
    else:
        i, f, g, o = np.split(state["rnn.weight_hh_l0"], 4)
        np.testing.assert_array_equal(p["Wh"], np.vstack([i, f, o, g]).T)
        i, f, g, o = np.split(bias, 4)
        np.testing.assert_array_equal(p["b"], np.hstack([i, f, o, g]))


def without(name):
    return lambda state: state.pop(name)


def with_entry(name, *shape):
    return lambda state: state.update({name: np.ones(shape, np.float32)})


@pytest.mark.parametrize(
    "damage, message",
    [
        *((without(name), rf"has no '{name}'; it has .*\.") for name in state_of()),
        (with_entry("rnn.weight_ih_l1", 4 * H, H), "'rnn.weight_ih_l1': .*several layers"),
        (with_entry("rnn.bias_hh_l0_reverse", 4 * H), "l0_reverse': .*bidirectional"),
        (with_entry("rnn.weight_hr_l0", 3, H), "'rnn.weight_hr_l0': .*proj_size"),
        (with_entry("attention.weight", 3, H), "'attention.weight': .*no place"),
        (with_entry("embed.weight", V - 1, W), "embed.weight has 10 rows; .* 11 words"),
        (with_entry("embed.weight", V), r"embed.weight has shape \(11,\); .*\(V, W\)"),
        (with_entry("project.weight", D, H), r"project.weight has shape \(5, 7\); .*\(7, 7\)"),
        (with_entry("project.bias", H, 1), r"project.bias has shape \(7, 1\); .* \(7\)"),
        (with_entry("rnn.weight_ih_l0", 4 * H, 2), r"weight_ih_l0 has shape .*\(4H, W\) = \(28, 6"),
        (with_entry("rnn.weight_hh_l0", 3 * H, H), r"weight_hh_l0 has shape \(21, 7\), .* GRU"),
        (with_entry("rnn.weight_hh_l0", 5 * H, H), r"weight_hh_l0 has shape \(35, 7\); .*LSTM's"),
        (with_entry("rnn.weight_hh_l0", 4 * H), r"weight_hh_l0 has shape \(28,\); .*LSTM's"),
        (with_entry("rnn.weight_hh_l0", 0, 0), r"weight_hh_l0 has shape \(0, 0\); .*LSTM's"),
        (with_entry("rnn.bias_ih_l0", H), r"bias_ih_l0 has shape \(7,\); expected \(4H\) = \(28\)"),
        (with_entry("rnn.bias_hh_l0", H), r"bias_hh_l0 has shape \(7,\); expected \(4H\) = \(28\)"),
        (with_entry("vocab.weight", V, W), r"vocab.weight has shape \(11, 6\); .* = \(11, 7\)"),
        (with_entry("vocab.bias", V + 1), r"vocab.bias has shape \(12,\); expected \(V\) = \(11\)"),
    ],
)
def test_what_does_not_fit_is_named(damage, message):
    state = state_of()
    damage(state)
    with pytest.raises(ValueError, match=message):
        from_torch(state, WORD_TO_IDX)


def test_other_things_than_a_state_dict(torch):
    with pytest.raises(TypeError, match=r"state_dict is Linear; expected .*module\.state_dict"):
        from_torch(torch.nn.Linear(2, 2), WORD_TO_IDX)
    with pytest.raises(ValueError, match="it has nothing"):
        from_torch({}, WORD_TO_IDX)
    with pytest.raises(KeyError, match="<NULL>"):
        from_torch(state_of(), {str(i): i for i in range(V)})
    with pytest.raises(ValueError, match="names has 'lstm'; expected some of embed, project, rnn"):
        from_torch(state_of(), WORD_TO_IDX, names={"lstm": "rnn"})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int64", "complex64"])
def test_other_dtypes(torch, dtype):
    state = {name: torch.from_numpy(w) for name, w in state_of().items()}
    state["vocab.bias"] = state["vocab.bias"].to(getattr(torch, dtype))
    with pytest.raises(TypeError, match=rf"vocab.bias is {dtype}; expected float32 or float64"):
        from_torch(state, WORD_TO_IDX)
    state["vocab.bias"] = [0.0] * V
    with pytest.raises(TypeError, match=r"vocab\.bias is list"):
        from_torch(state, WORD_TO_IDX)


def test_mixed_dtypes():
    state = state_of()
    state["vocab.bias"] = state["vocab.bias"].astype(np.float64)
    with pytest.raises(TypeError, match=r"vocab\.bias is float64; expected one dtype"):
        from_torch(state, WORD_TO_IDX)


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


# -- safetensors


@CELLS
@DTYPES
def test_safetensors_file(safetensors_numpy, tmp_path, monkeypatch, cell_type, dtype):
    from safetensors import safe_open

    monkeypatch.setitem(sys.modules, "torch", None)
    model = small_model(cell_type, dtype)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    save_safetensors(path, model)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    with safe_open(path, "np") as file:
        about = file.metadata()
    assert (about["format"], about["cell_type"]) == ("pt", cell_type)
    words = json.loads(about["word_to_idx"])
    same_bits(from_torch(safetensors_numpy.load_file(path), words).params, model.params)


def test_safetensors_file_is_a_state_dict(torch, safetensors_numpy, tmp_path):
    from safetensors.torch import load_file

    model = small_model("lstm", np.float32)
    save_safetensors(tmp_path / "m.safetensors", model)
    found, expected = load_file(tmp_path / "m.safetensors"), to_torch(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], w) for name, w in expected.items())


# -- ONNX


def sessions_of(ort, graphs):
    return {
        name: ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        for name, proto in graphs.items()
    }


def run_steps(sessions, features, words):
    """Run the step along words (N, T), or along its own best ones from <START> if T is given.

    Returns the words that went in and log_probs (N, T, V).
    """
    (h,) = sessions["project"].run(["h"], {"features": features})
    states = [i.name for i in sessions["step"].get_inputs()][1:]
    state = {name: h if name == "h" else np.zeros_like(h) for name in states}
    greedy = isinstance(words, int)
    word = np.full(len(features), WORD_TO_IDX["<START>"], dtype=np.int64)
    went_in, log_probs = [], []
    for t in range(words if greedy else words.shape[1]):
        if not greedy:
            word = words[:, t].astype(np.int64)
        out = ["log_probs", *(f"next_{name}" for name in states)]
        found, *new = sessions["step"].run(out, {"word": word, **state})
        state = dict(zip(states, new, strict=True))
        went_in.append(word)
        log_probs.append(found)
        word = found.argmax(axis=1)
    return np.stack(went_in, axis=1), np.stack(log_probs, axis=1)


@CELLS
@DTYPES
@pytest.mark.parametrize("rows", [1, 40])
def test_onnx_says_the_same(ort, cell_type, dtype, rows, rng):
    model = small_model(cell_type, dtype)
    features = rng.standard_normal((rows, D)).astype(dtype)
    _, log_probs = run_steps(sessions_of(ort, to_onnx(model)), features, 12)
    ids = log_probs.argmax(axis=2)
    np.testing.assert_array_equal(ids, twin_of(model).sample(features, 12))
    np.testing.assert_array_equal(ids, model.sample(features, 12))
    if rows > 1:
        assert len(np.unique(ids, axis=0)) > 3  # the captions depend on the features
    assert log_probs.dtype == dtype


@CELLS
@DTYPES
def test_onnx_log_probs_are_those_of_the_loss(ort, cell_type, dtype, rng):
    model = small_model(cell_type, dtype)
    features = rng.standard_normal((30, D)).astype(dtype)
    captions = draw_captions(rng, 30)
    _, log_probs = run_steps(sessions_of(ort, to_onnx(model)), features, captions[:, :-1])
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=2), 1, rtol=10 * TOLERANCE[dtype])
    of_words = np.take_along_axis(log_probs, captions[:, 1:, None].astype(int), axis=2)[..., 0]
    loss = -of_words[captions[:, 1:] != 0].sum(dtype=np.float64) / 30
    expected, _ = twin_of(model).loss(features, captions)
    np.testing.assert_allclose(loss, expected, rtol=TOLERANCE[dtype])


def test_onnx_ids_from_the_end_and_beyond(ort):
    model = small_model("lstm")
    session = sessions_of(ort, to_onnx(model))["step"]
    state = {"h": np.full((2, H), 0.5), "c": np.full((2, H), 0.25)}
    last, again = (
        session.run(None, {"word": np.array(word), **state}) for word in ([V - 1, 3], [-1, 3])
    )
    for a, b in zip(last, again, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {"word": np.array([V, 3]), **state})


@CELLS
def test_onnx_interface_and_metadata(onnx, cell_type):
    model = small_model(cell_type, np.float32)
    model.word_to_idx = {**WORD_TO_IDX, "été": np.int32(V)}
    graphs = to_onnx(model)
    assert list(graphs) == ["project", "step"]
    for proto in graphs.values():
        onnx.checker.check_model(proto, full_check=True)
        about = {entry.key: entry.value for entry in proto.metadata_props}
        assert about["cell_type"] == cell_type
        assert json.loads(about["word_to_idx"]) == model.word_to_idx

    def shapes(values):
        return {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in values
        }

    states = ["h", "c"][: 2 if cell_type == "lstm" else 1]
    step, project = graphs["step"].graph, graphs["project"].graph
    assert shapes(project.input) == {"features": ["N", D]}
    assert shapes(project.output) == {"h": ["N", H]}
    assert shapes(step.input) == {"word": ["N"]} | {name: ["N", H] for name in states}
    assert shapes(step.output) == {"log_probs": ["N", V]} | {
        f"next_{name}": ["N", H] for name in states
    }


def test_onnx_takes_weights_as_they_lie(ort, rng):
    model = small_model("lstm")
    features = rng.standard_normal((5, D))
    expected = run_steps(sessions_of(ort, to_onnx(model)), features, 4)[1]
    model.params = {name: np.asfortranarray(w) for name, w in model.params.items()}
    found = run_steps(sessions_of(ort, to_onnx(model)), features, 4)[1]
    np.testing.assert_array_equal(found, expected)


def test_onnx_files(onnx, tmp_path):
    model = small_model("lstm", np.float32)
    for _ in range(2):  # the second time over the files of the first
        save_onnx(tmp_path / "new" / "folder", model)
        graphs = to_onnx(model)
        found = {p.name: onnx.load(p) for p in (tmp_path / "new" / "folder").iterdir()}
        assert found == {f"{name}.onnx": proto for name, proto in graphs.items()}
        model.params["b"] += 1


# -- What is missing, and the command line


@pytest.mark.parametrize(
    "package, extra, call",
    [
        ("torch", "torch", to_torch),
        ("torch", "torch", torch_module),
        ("safetensors.numpy", "torch", lambda model: save_safetensors("no", model)),
        ("onnx", "onnx", to_onnx),
        ("onnx", "onnx", lambda model: save_onnx("no", model)),
    ],
)
def test_missing_packages_are_named(monkeypatch, package, extra, call):
    monkeypatch.setitem(sys.modules, package, None)
    name = package.split(".")[0]
    with pytest.raises(ImportError) as caught:
        call(small_model("rnn"))
    assert str(caught.value).endswith(f'needs the package {name}: pip install "fastrnn[{extra}]"')


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
    for model in (run_directory, run_directory / "model.npz"):
        assert command(capsys, model, *arguments) == (
            0, f"written to {weights}\nwritten to {graphs}: project.onnx, step.onnx\n", "",
        )  # fmt: skip
    expected = small_model("lstm", np.float32)
    found = from_torch(safetensors_numpy.load_file(weights), WORD_TO_IDX)
    same_bits(found.params, expected.params)
    assert onnx.load(graphs / "step.onnx") == to_onnx(expected)["step"]


def test_command_refuses(run_directory, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    install = 'needs the package {0}: pip install "fastrnn[{1}]"'.format
    weights = install("safetensors", "torch")
    for arguments, message in [
        ([run_directory], "export needs --safetensors FILE or --onnx DIR (or both)"),
        ([run_directory, "--onnx", ""], "export needs --safetensors FILE or --onnx DIR (or both)"),
        ([tmp_path / "none", "--onnx", "x"], f"no such model file: {tmp_path / 'none'}"),
        ([tmp_path, "--onnx", "x"], f"no such model file: {tmp_path / 'model.npz'}"),
        ([run_directory, "--onnx", "x"], f"export to ONNX {install('onnx', 'onnx')}"),
        ([run_directory, "--safetensors", "x"], f"a safetensors file {weights}"),
        (
            [run_directory, "--safetensors", tmp_path, "--onnx", "x"],
            f"--safetensors {tmp_path}: must be a file in a directory that exists",
        ),
    ]:
        assert command(capsys, *arguments) == (2, "", f"fastrnn: error: {message}\n")


def test_command_cannot_write(onnx, run_directory, tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    status, said, error = command(capsys, run_directory, "--onnx", taken)
    assert (status, said, error.count("\n")) == (2, "", 1)
    assert error == f"fastrnn: error: File exists: {taken}\n"
    assert taken.read_text() == "mine"
