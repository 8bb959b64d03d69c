"""Calls of the public API in any order, each compared with its twin.

FASTRNN_FUZZ=N runs N sequences with a seed of their own (.ci/fuzz does so in a process of its own,
again and again); else a few that are always the same.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os

import numpy as np
from equivalence import (
    OPS,
    RAGGED,
    assert_equal,
    compiled,
    draw,
    draw_captions,
    draw_model,
    vocabulary,
)
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from test_core_layers import LAYOUTS, calls, hold_against_twin

import fastrnn
import fastrnn.reference
from fastrnn import decoding
from fastrnn.classifiers import rnn as classifier
from fastrnn.classifiers.rnn import CaptioningWorkspace, Regularisation

EXAMPLES = int(os.environ.get("FASTRNN_FUZZ", "0"))
REFUSALS = (TypeError, ValueError, IndexError, MemoryError, OverflowError, KeyError)
OP_NAMES = [*OPS]
WITH_BACKWARD = [name for name in OPS if OPS[name][1]]
SIZES = st.fixed_dictionaries(
    {
        "N": st.sampled_from([0, 1, 2, 5, 17, 70]),
        "T": st.sampled_from([0, 1, 2, 7]),
        "D": st.sampled_from([0, 1, 3, 17]),
        "H": st.sampled_from([0, 1, 2, 5, 33]),
        "V": st.sampled_from([4, 5, 37]),
        "W": st.sampled_from([0, 1, 3, 17]),
        "M": st.sampled_from([0, 1, 6]),
    }
)
MODEL_SIZES = SIZES.map(lambda sizes: {k: max(n, int(k in "DHW")) for k, n in sizes.items()})
DTYPE = st.sampled_from([np.float32, np.float64])
CELL = st.sampled_from(["rnn", "lstm"])
WAY = st.sampled_from(["beam", "draw"])
BAD = st.sampled_from([np.nan, np.inf, -np.inf, 1e30, 1e-42, 0.0])


class Calls(RuleBasedStateMachine):
    """One workspace and a heap of caches for calls of every kind."""

    def __init__(self):
        super().__init__()
        self.workspace = CaptioningWorkspace()
        self.caches = []
        faulthandler.dump_traceback_later(300, exit=True)  # a call that hangs

    def teardown(self):
        faulthandler.cancel_dump_traceback_later()

    @rule(count=st.integers(1, 5))
    def threads(self, count):
        fastrnn.set_num_threads(count)

    @rule(data=st.data(), name=st.sampled_from(OP_NAMES))
    def op(self, data, name):
        hold_against_twin(name, data.draw(calls(name)))

    @rule(name=st.sampled_from(WITH_BACKWARD), sizes=SIZES, dtype=DTYPE, seed=st.integers(0, 99))
    def forward(self, name, sizes, dtype, seed):
        ragged = name in RAGGED and seed % 2 == 1
        arguments, _ = draw(name, sizes, dtype, np.random.default_rng(seed), ragged)
        try:
            self.caches.append(compiled(f"{name}_forward")(**arguments)[-1])
        except IndexError:
            assert not sizes["V"]
        del self.caches[:-8]

    @rule(data=st.data(), name=st.sampled_from(WITH_BACKWARD), sizes=SIZES, dtype=DTYPE)
    def backward_with_any_cache(self, data, name, sizes, dtype):
        """A value or a refusal; never a crash."""
        if not self.caches:
            return
        cache = data.draw(st.sampled_from(self.caches))
        if isinstance(cache, tuple) and data.draw(st.booleans()):
            parts = list(cache)
            k = data.draw(st.integers(0, len(parts) - 1))
            changes = [None, 3, (), parts[0], [[0]], np.zeros(0), np.full((2, 3), 10**12)]
            parts[k] = data.draw(st.sampled_from(changes))
            cache = tuple(parts)
        _, gradients = draw(name, sizes, dtype, np.random.default_rng(3))
        with contextlib.suppress(REFUSALS):
            compiled(f"{name}_backward")(*gradients.values(), cache)

    @rule(
        data=st.data(), sizes=MODEL_SIZES, cell=CELL, dtype=DTYPE, kept=st.booleans(),
        regularised=st.booleans(), weighted=st.booleans(),
    )  # fmt: skip
    def loss(self, data, sizes, cell, dtype, kept, regularised, weighted):
        model, features, rng = draw_model(classifier, sizes, cell, dtype)
        captions = draw_captions(sizes, rng)
        options = {}
        if weighted:
            options["weights"] = rng.choice([0.0, 1.0, -2.0, 0.5], sizes["N"])
        if regularised:
            options["regularisation"] = Regularisation(0.2, 0.3, 0.1, 0.5, seed=sizes["V"])
        flaw = data.draw(st.sampled_from([None, None, "layout", "number", "ids", "shape", "name"]))
        name = data.draw(st.sampled_from([*model.params]))
        if flaw == "layout":
            layout = data.draw(st.sampled_from([k for k in LAYOUTS if k != "list"]))
            model.params[name] = LAYOUTS[layout](model.params[name])
            captions = LAYOUTS[layout](captions)
        elif flaw == "number" and model.params[name].size:
            model.params[name].flat[-1] = data.draw(BAD)
        elif flaw == "ids" and captions.size:
            captions.flat[-1] = data.draw(st.sampled_from([-1, -99, 99, 2**40, -(2**63)]))
        elif flaw == "shape":
            model.params[name] = np.concatenate([model.params[name]] * 2)
        elif flaw == "name":
            del model.params[name]
        twin_model = fastrnn.reference.CaptioningRNN(
            vocabulary(sizes["V"]), sizes["D"], sizes["W"], sizes["H"], cell, dtype
        )
        twin_model.params = {key: np.array(w) for key, w in model.params.items()}
        kept_params = {key: np.array(w) for key, w in model.params.items()}
        outcomes = []
        for m, more in ((model, {"workspace": self.workspace} if kept else {}), (twin_model, {})):
            try:
                with np.errstate(all="ignore"):
                    value, grads = m.loss(features, captions, **options, **more)
                outcomes.append([np.asarray(value, dtype), *(grads[k].copy() for k in m.params)])
            except REFUSALS as error:
                outcomes.append(type(error))
        for key, w in model.params.items():
            np.testing.assert_array_equal(w, kept_params[key])
        got, wanted = outcomes
        if flaw == "number" and isinstance(got, list) and isinstance(wanted, list):
            for a, b in zip(got, wanted, strict=True):
                assert not (np.isnan(a) & np.isfinite(b)).any()
        elif isinstance(wanted, list) and isinstance(got, list):
            assert_equal(got, wanted, floor=1.0)
        else:
            assert got == wanted, (got, wanted, flaw, name)

    @rule(
        data=st.data(), sizes=MODEL_SIZES, cell=CELL, dtype=DTYPE, way=WAY,
        bad=st.booleans(),
    )  # fmt: skip
    def decode(self, data, sizes, cell, dtype, way, bad):
        """A refusal, or the same bits again with another number of threads."""
        model, features, _ = draw_model(classifier, sizes, cell, dtype)
        name = data.draw(st.sampled_from([*model.params]))
        if bad and model.params[name].size:
            model.params[name].flat[0] = data.draw(BAD)
        count = st.sampled_from([-1, 0, 1, 2, 3, 7, 2**40, 2**63, True, 1.5, None])
        options = {
            "max_length": data.draw(st.sampled_from([0, 1, 2, 9])),
            "no_repeat_ngram": data.draw(st.sampled_from([0, 1, 2, 2**70])),
            "suppress_unk": data.draw(st.booleans()),
        }
        if way == "beam":
            options |= {key: data.draw(count) for key in ("width", "n_best", "groups")}
            options["diversity"] = data.draw(st.sampled_from([0.0, 0.5, -1.0, np.nan]))
            call = decoding.beam_search
        else:
            options |= {"count": data.draw(count), "top_k": data.draw(count)}
            options["top_p"] = data.draw(st.sampled_from([1.0, 0.5, 1e-9, 0.0, np.nan]))
            options["temperature"] = data.draw(st.sampled_from([1.0, 1e-300, 1e300, 0.0]))
            call = decoding.sample
        found = []
        for threads in (1, 3):
            fastrnn.set_num_threads(threads)
            try:
                result = call(model, features, **options)
                found.append(tuple(a.tobytes() for a in vars(result).values()))
                assert (result.ids >= 0).all() and (result.ids < sizes["V"]).all()
            except REFUSALS as error:
                found.append(type(error))
        assert found[0] == found[1]

    @rule(sizes=MODEL_SIZES, cell=CELL, dtype=DTYPE, length=st.sampled_from([0, 1, 9, -1, 2**63]))
    def sample(self, sizes, cell, dtype, length):
        model, features, _ = draw_model(classifier, sizes, cell, dtype)
        try:
            ids = model.sample(features, length)
        except REFUSALS:
            assert length in (-1, 2**63)
        else:
            assert ids.shape == (sizes["N"], length)
            assert (ids >= 0).all() and (ids < sizes["V"]).all()


Calls.TestCase.settings = settings(
    max_examples=EXAMPLES or 100,
    stateful_step_count=25,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
)
TestCalls = Calls.TestCase
