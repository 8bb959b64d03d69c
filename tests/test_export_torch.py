"""Models in PyTorch and safetensors: the same loss and gradients, and the same weights back."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from coco_layout import draw_captions
from export_models import (
    CELLS,
    DTYPES,
    TOLERANCE,
    WORD_TO_IDX,
    D,
    H,
    V,
    W,
    assert_same_bits,
    small_model,
)

from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.coco_utils import load_coco_data
from fastrnn.export import from_torch, save_safetensors, to_torch, torch_module


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def safetensors_numpy():
    return pytest.importorskip("safetensors.numpy")


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
        assert_same_bits(again.params, model.params)
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
    assert_same_bits(model.params, before)
    assert_same_bits(again.params, before)


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
        *((without(name), rf"state_dict has .*; expected '{name}' too") for name in state_of()),
        (with_entry("rnn.weight_ih_l1", 4 * H, H), "'rnn.weight_ih_l1'; .*several layers"),
        (with_entry("rnn.bias_hh_l0_reverse", 4 * H), "l0_reverse'; .*bidirectional"),
        (with_entry("rnn.weight_hr_l0", 3, H), "'rnn.weight_hr_l0'; .*proj_size"),
        (with_entry("attention.weight", 3, H), "'attention.weight'; expected only"),
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
    with pytest.raises(ValueError, match="state_dict has nothing; expected"):
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
    with pytest.raises(TypeError, match=r"vocab\.bias is float64; expected the same dtype"):
        from_torch(state, WORD_TO_IDX)


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
    assert_same_bits(from_torch(safetensors_numpy.load_file(path), words).params, model.params)


def test_safetensors_file_is_a_state_dict(torch, safetensors_numpy, tmp_path):
    from safetensors.torch import load_file

    model = small_model("lstm", np.float32)
    save_safetensors(tmp_path / "m.safetensors", model)
    found, expected = load_file(tmp_path / "m.safetensors"), to_torch(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], w) for name, w in expected.items())
