"""Update rules on all kinds of arrays: subclasses, read-only arrays, overlapping memory."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
from coco_layout import write_layout
from equivalence import RULES, assert_equal, compiled, draw, twin
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrnn
from fastrnn import optim
from fastrnn._core import optim as core
from fastrnn.captioning_solver import CaptioningSolver
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.reference import optim as reference_optim
from fastrnn.training import TrainConfig, Trainer, start_model

SIZES = {"N": 2, "T": 3, "D": 9, "H": 5, "V": 7, "M": 11}
STATES = {"sgd": [], "sgd_momentum": ["velocity"], "rmsprop": ["cache"]}
STATES |= {"adam": ["m", "v"], "adamw": ["m", "v"]}
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
EVERY_RULE = pytest.mark.parametrize("name", RULES)


class Plain(np.ndarray):
    """A subclass that adds nothing."""


def memory_map(a, tmp_path):
    mapped = np.memmap(tmp_path / "w", dtype=a.dtype, mode="w+", shape=a.shape)
    mapped[...] = a
    return mapped


KINDS = {
    "plain": lambda a, _: a.copy(),
    "memory map": memory_map,
    "matrix": lambda a, _: np.asmatrix(a.copy()),
    "subclass": lambda a, _: a.copy().view(Plain),
    "masked": lambda a, _: np.ma.array(a.copy(), mask=np.arange(a.size).reshape(a.shape) % 3 == 0),
    "not masked": lambda a, _: np.ma.array(a.copy()),
    "record array": lambda a, _: a.copy().view(np.recarray),
    "Fortran": lambda a, _: np.asfortranarray(a),
    "Fortran subclass": lambda a, _: np.asfortranarray(a).view(Plain),
    "reversed": lambda a, _: a[::-1].copy()[::-1],
    "every other": lambda a, _: np.repeat(a, 2, axis=1)[:, ::2],
    "unaligned": lambda a, _: unaligned(a),
}


def unaligned(a):
    view = np.ndarray(a.shape, a.dtype, np.zeros(a.nbytes + 1, "u1"), offset=1)
    view[...] = a
    return view


def values(a):
    return np.array(np.asarray(a))


def take_steps(find, name, w, dw, state, steps=3, **options):
    """Return the weights and states after some steps, as plain arrays."""
    config = dict(state, learning_rate=0.1)
    with np.errstate(all="ignore"):
        for _ in range(steps):
            same, config = find(name)(w, dw, config, **options)
            assert same is w
    assert all(type(config[key]) is np.ndarray for key in STATES[name] if key not in state)
    return [values(w), *(values(config[key]) for key in STATES[name])]


def drawn(name, dtype):
    arguments, _ = draw(name, SIZES, dtype, np.random.default_rng(7))
    return arguments


@EVERY_RULE
@DTYPES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # raised by np.matrix
def test_weights_of_every_kind_are_updated(name, dtype, kind, with_state, tmp_path):
    results = []
    for k, find in enumerate((compiled, twin)):
        (tmp_path / str(k)).mkdir()
        arguments = drawn(name, dtype)
        w = KINDS[kind](arguments["w"], tmp_path / str(k))
        state = {key: arguments[key] for key in STATES[name]} if with_state else {}
        before = values(w)
        results.append(take_steps(find, name, w, arguments["dw"], state))
        assert (results[-1][0] != before).any()
        if kind == "masked":
            hidden = np.ma.getmaskarray(w)
            np.testing.assert_array_equal(results[-1][0][hidden], before[hidden])
    assert_equal(*results)


@EVERY_RULE
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["dw", "state"])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_gradients_and_states_of_every_kind(name, kind, which, in_place, tmp_path):
    arguments = drawn(name, np.float64)
    wanted = take_steps(
        twin, name, arguments["w"].copy(), arguments["dw"], {k: arguments[k] for k in STATES[name]}
    )
    for key in STATES[name] if which == "state" else ["dw"]:
        given_arguments = {k: a.copy() for k, a in arguments.items()}
        given_arguments[key] = KINDS[kind](arguments[key], tmp_path)
        state = {k: given_arguments[k] for k in STATES[name]}
        found = take_steps(
            compiled, name, given_arguments["w"], given_arguments["dw"], state, in_place=in_place
        )
        assert_equal(found, wanted)
        if in_place and which == "state":
            np.testing.assert_allclose(
                values(given_arguments[key]), found[STATES[name].index(key) + 1]
            )


@EVERY_RULE
@pytest.mark.parametrize("how", ["flag", "bytes", "read-only map", "broadcast"])
def test_state_that_is_read_only(name, how, tmp_path):
    """With in_place, a named error is raised and nothing changes; otherwise state is only read."""
    for key in STATES[name]:
        arguments = drawn(name, np.float64)
        state = {k: arguments[k] for k in STATES[name]}
        a = state[key]
        if how == "flag":
            a.flags.writeable = False
        elif how == "bytes":
            state[key] = np.frombuffer(a.tobytes()).reshape(a.shape)
        elif how == "read-only map":
            np.save(tmp_path / "a.npy", a)
            state[key] = np.load(tmp_path / "a.npy", mmap_mode="r")
        else:
            state[key] = np.broadcast_to(0.5, a.shape)
        kept = values(state[key])
        w, config = arguments["w"].copy(), dict(state, learning_rate=0.1)
        with pytest.raises(ValueError, match=f"^{key} is read-only"):
            compiled(name)(w, arguments["dw"], config, in_place=True)
        np.testing.assert_array_equal(w, arguments["w"])
        np.testing.assert_array_equal(state[key], kept)
        assert config.get("t", 0) == 0 and config[key] is state[key]
        found = take_steps(compiled, name, w, arguments["dw"], state, steps=1)
        np.testing.assert_array_equal(state[key], kept)
        wanted = take_steps(twin, name, arguments["w"], arguments["dw"], state, steps=1)
        assert_equal(found, wanted)


@EVERY_RULE
@DTYPES
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("shift", [-64, -16, -3, -1, 0, 1, 2, 17, 64])
def test_arrays_that_overlap(name, dtype, in_place, shift):
    """As in NumPy, all inputs are read before anything is written."""
    n = 300
    names = ["w", "dw", *STATES[name]]
    for pair in itertools.combinations(names, 2):
        written = {"w", *STATES[name]} if in_place else {"w"}
        if written.issuperset(pair):
            continue  # both are written, so the result would depend on the order
        results = []
        for find in (compiled, twin):
            rng = np.random.default_rng(3)
            memory = rng.random(n + 128).astype(dtype)
            arrays = {key: rng.random(n).astype(dtype) for key in names}
            arrays[pair[0]] = memory[64 : 64 + n]
            arrays[pair[1]] = memory[64 + shift : 64 + shift + n]
            if find is twin:
                arrays = {key: a.copy() for key, a in arrays.items()}
            options = {"in_place": in_place} if find is compiled else {}
            state = {key: arrays[key] for key in STATES[name]}
            results.append(take_steps(find, name, arrays["w"], arrays["dw"], state, 1, **options))
        assert_equal(*results)


@pytest.mark.parametrize("shift", [-5, 0, 5])
def test_average_of_arrays_that_overlap(shift):
    results = []
    for module in (optim, reference_optim):
        memory = np.random.default_rng(3).random(400)
        module.average(memory[50:350], memory[50 + shift : 350 + shift], 0.3)
        results.append(memory)
    np.testing.assert_allclose(*results, rtol=1e-12)


@pytest.mark.parametrize("module", [optim, reference_optim])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "matrix"])
def test_gradients_of_every_kind_are_clipped(module, kind, tmp_path):
    a = np.random.default_rng(3).standard_normal((9, 11))
    clipped = KINDS[kind](a, tmp_path)
    module.clip_by_value({"w": clipped}, 0.5)
    shown = ~np.ma.getmaskarray(clipped)
    np.testing.assert_array_equal(values(clipped)[shown], np.clip(a, -0.5, 0.5)[shown])
    scaled = KINDS[kind](a, tmp_path)
    norm = module.clip_by_norm({"w": scaled}, 1.0)
    assert norm == pytest.approx(np.linalg.norm(a))
    np.testing.assert_allclose(values(scaled)[shown], (a / norm)[shown], rtol=1e-12)


@EVERY_RULE
@pytest.mark.parametrize("find", [compiled, twin])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"w": [1.0, 2.0]}, TypeError),
        ({"w": None}, TypeError),
        ({"w": np.ones((9, 11), int)}, TypeError),
        ({"w": np.ones((9, 11), ">f8")}, TypeError),
        ({"dw": None}, TypeError),
        ({"dw": np.ones(3)}, ValueError),
        ({"dw": np.full((9, 11), "a")}, TypeError),
        ({"learning_rate": "fast"}, ValueError),
        ({"learning_rate": None}, TypeError),
        ({"learning_rate": 1j}, TypeError),
    ],
    ids=str,
)
def test_bad_arguments_change_nothing(name, find, change, error):
    arguments = drawn(name, np.float64) | {"learning_rate": 0.1} | change
    config = {key: arguments[key] for key in (*STATES[name], "learning_rate")}
    before = copy.deepcopy(config)
    w = arguments["w"]
    kept = copy.deepcopy(w)
    with pytest.raises(error):
        find(name)(w, arguments["dw"], config)
    np.testing.assert_array_equal(w, kept)
    for key in STATES[name]:
        np.testing.assert_array_equal(config[key], before[key])
    assert config.get("t", 0) == 0


@pytest.mark.parametrize("name", ["sgd_momentum", "rmsprop", "adam", "adamw"])
@pytest.mark.parametrize("find", [compiled, twin])
@pytest.mark.parametrize(
    ("state", "error"), [("text", TypeError), (np.ones(3), ValueError), (1j, TypeError)], ids=str
)
def test_bad_states(name, find, state, error):
    arguments = drawn(name, np.float64)
    for key in STATES[name]:
        given = state if isinstance(state, np.ndarray) else np.full((9, 11), state)
        config = {k: arguments[k] for k in STATES[name]} | {key: given}
        w = arguments["w"].copy()
        with pytest.raises(error, match=f"^{key} has "):
            find(name)(w, arguments["dw"], config)
        np.testing.assert_array_equal(w, arguments["w"])


@st.composite
def calls(draw_):
    name = draw_(st.sampled_from(RULES))
    dtype = draw_(st.sampled_from([np.float32, np.float64]))
    kinds = {
        key: draw_(st.sampled_from([k for k in KINDS if k not in ("memory map", "matrix")]))
        for key in ("w", "dw", *STATES[name])
    }
    read_only = draw_(st.sampled_from([None, None, "w", "dw", *STATES[name]]))
    return name, dtype, kinds, read_only, draw_(st.booleans())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(calls())
def test_drawn_kinds_against_the_twin(call):
    name, dtype, kinds, read_only, in_place = call
    outcomes = []
    for find in (compiled, twin):
        arguments = {k: KINDS[kinds[k]](a, None) for k, a in drawn(name, dtype).items()}
        if read_only:
            arguments[read_only].flags.writeable = False
        options = {"in_place": True} if in_place and find is compiled else {}
        state = {key: arguments[key] for key in STATES[name]}
        try:
            outcomes.append(
                take_steps(find, name, arguments["w"], arguments["dw"], state, 2, **options)
            )
        except ValueError as error:
            outcomes.append(str(error).split()[0])
    if in_place and read_only in STATES[name]:
        assert outcomes[0] == read_only
    elif isinstance(outcomes[1], str):
        assert outcomes[0] == outcomes[1] == "w"
    else:
        assert_equal(*outcomes)


# ---- Solver and trainer --------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    write_layout(tmp_path / "data")
    return read_captioning_directory(tmp_path / "data")


@pytest.mark.parametrize("rule", RULES)
def test_solver_on_weights_in_a_file(rule, data, tmp_path):
    trained = []
    for mapped in (False, True):
        np.random.seed(4)
        model = CaptioningRNN(data["word_to_idx"], 7, 5, 6, "lstm", dtype=np.float64)
        if mapped:
            for name, w in model.params.items():
                (tmp_path / name).mkdir()
                model.params[name] = memory_map(w, tmp_path / name)
        solver = CaptioningSolver(
            model, data, update_rule=rule, num_epochs=2, batch_size=6, verbose=False,
            optim_config={"learning_rate": 0.01},
        )  # fmt: skip
        solver.train()
        trained.append(solver.loss_history)
        assert not mapped or all(type(w) is np.memmap for w in model.params.values())
    assert trained[0] == trained[1]
    assert trained[0][-1] != trained[0][0]


def test_trainer_on_weights_in_a_file(data, tmp_path):
    trained = []
    for mapped in (False, True):
        model = start_model(data, "lstm", 5, 6)
        if mapped:
            for name, w in model.params.items():
                (tmp_path / name).mkdir()
                model.params[name] = memory_map(w, tmp_path / name)
        config = TrainConfig(
            epochs=2, batch_size=6, weight_decay=0.1, weight_average=0.9, clip_norm=1
        )
        trainer = Trainer(model, data, config)
        trainer.fit()
        trained.append({name: values(w) for name, w in model.params.items()})
    for name, w in trained[0].items():
        np.testing.assert_array_equal(w, trained[1][name])


# -- all parameters together

SHAPES = {"W": (300, 700), "b": (5,), "empty": (0, 3), "V": (40, 50)}


def parameters(dtype, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", optim.IN_PLACE_RULES)
def test_all_together_are_one_by_one_to_the_bit(rule, dtype, threads):
    count = fastrnn.get_num_threads()
    fastrnn.set_num_threads(threads)
    try:
        params = parameters(dtype, 0)
        together, configs = dict(parameters(dtype, 0)), {name: {} for name in SHAPES}
        alone = {name: {} for name in SHAPES}
        configs["b"] = {"learning_rate": 0.5}
        alone["b"] = {"learning_rate": 0.5}
        for step in range(1, 4):
            grads = parameters(dtype, step)
            optim.update_all(rule, together, grads, configs)
            for name, w in params.items():
                params[name], alone[name] = rule(w, grads[name], alone[name], in_place=True)
        for name, w in params.items():
            np.testing.assert_array_equal(together[name], w)
            assert configs[name].keys() == alone[name].keys()
            for key, value in alone[name].items():
                np.testing.assert_array_equal(configs[name][key], value)
    finally:
        fastrnn.set_num_threads(count)


def test_parameters_that_share_memory_are_updated_one_by_one():
    w = np.ones((4, 5))
    params, grads = {"a": w, "b": w}, {"a": np.ones((4, 5)), "b": np.full((4, 5), 2.0)}
    configs = {name: {} for name in params}
    wanted, alone = np.ones((4, 5)), {name: {} for name in params}
    for _ in range(3):
        optim.update_all(optim.adam, params, grads, configs)
        for name in params:
            optim.adam(wanted, grads[name], alone[name], in_place=True)
    np.testing.assert_array_equal(w, wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_averages_are_one_by_one_to_the_bit(dtype):
    means, wanted, params = (parameters(dtype, seed) for seed in (0, 0, 1))
    optim.average_all(means, params, 0.25)
    for name, w in params.items():
        np.testing.assert_array_equal(means[name], optim.average(wanted[name], w, 0.25))
    strided = {"a": np.zeros((4, 6))[:, ::2]}
    optim.average_all(strided, {"a": np.ones((4, 3))}, 0.5)
    np.testing.assert_array_equal(strided["a"], np.full((4, 3), 0.5))
    with pytest.raises(KeyError):
        optim.average_all({}, params, 0.5)


def test_arrays_that_do_not_fit_together_are_refused():
    w, m = np.ones(3), np.ones(3)
    assert core.fit_together([(w, m)]) and not core.fit_together([(w, m), (m, np.ones(3))])
    assert not core.fit_together([(w, m), (np.ones(3, np.float32), np.ones(3, np.float32))])
    with pytest.raises(ValueError, match="fit_together"):
        core.average_each([(w, w)], 0.5)
    core.adam_each([], [])
