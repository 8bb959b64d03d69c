"""The configuration: what is refused, the learning rates, the recipes."""

from __future__ import annotations

import dataclasses
import inspect
import math
import pickle
import re

import pytest

from fastrnn.checks import ArgumentError
from fastrnn.cli.options import Parser, add_fields
from fastrnn.training import RECIPES, ModelConfig, TrainConfig, start_model
from fastrnn.training.config import CHANGEABLE_ON_RESUME, checked, document, option, option_of


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("epochs", 0, ValueError),
        ("epochs", 1.5, TypeError),
        ("epochs", True, TypeError),
        ("batch_size", -1, ValueError),
        ("learning_rate", 0, ValueError),
        ("learning_rate", math.nan, ValueError),
        ("learning_rate", "fast", TypeError),
        ("schedule", "linear", ValueError),
        ("schedule", 3, TypeError),
        ("lr_decay", 0.0, ValueError),
        ("lr_decay", 0.5, ValueError),  # nothing for it to act on
        ("lr_decay", "cosine", TypeError),
        ("decay_every", 0, ValueError),
        ("warmup_steps", -1, ValueError),
        ("weight_decay", -0.1, ValueError),
        ("clip_value", -1.0, ValueError),
        ("clip_norm", -1.0, ValueError),
        ("embed_dropout", 1.0, ValueError),
        ("vocab_dropout", -0.1, ValueError),
        ("label_smoothing", 1, ValueError),
        ("scheduled_sampling", 1.1, ValueError),
        ("feature_noise", math.inf, ValueError),
        ("weight_average", 1.0, ValueError),
        ("consensus", -1.0, ValueError),
        ("reward_epochs", -1, ValueError),
        ("reward_captions", 1, ValueError),
        ("reward_rate", 0.0, ValueError),
        ("bucket_by_length", 1, TypeError),
        ("patience", -1, ValueError),
        ("monitor", "meteor", ValueError),
        ("val_images", 1.0, TypeError),
        ("keep_last", 0, ValueError),
        ("save_every", -1, ValueError),
        ("val_captions", -1, ValueError),
        ("record_every", 0, ValueError),
        ("seed", -1, ValueError),
        ("seed", 2**32, ValueError),
        ("restart_epoch", -0.5, ValueError),
        ("restart_epoch", 10, ValueError),  # nothing is left
    ],
)
def test_config_names_the_field(field, value, error):
    with pytest.raises(error, match=f"^{field} is "):
        TrainConfig(**{field: value})


def test_learning_rates():
    def rates(steps: list[int], **fields: object) -> list[float]:
        config = TrainConfig(epochs=4, learning_rate=0.1, **fields)
        return [config.rate(step, 10) for step in steps]

    assert rates([0, 15, 40]) == [0.1, 0.1, 0.1]
    assert rates([0, 20, 40], schedule="cosine") == pytest.approx([0.1, 0.05, 0.0])
    step = {"schedule": "step", "lr_decay": 0.5}
    assert rates([0, 9, 10, 35], **step) == pytest.approx([0.1, 0.1, 0.05, 0.0125])
    assert rates([0, 19, 20], **step, decay_every=2) == pytest.approx([0.1, 0.1, 0.05])
    smooth = {"schedule": "exponential", "lr_decay": 0.25}
    assert rates([0, 5, 10, 20], **smooth) == pytest.approx([0.1, 0.05, 0.025, 0.00625])
    assert rates([5, 10], **smooth, decay_every=2) == pytest.approx([0.1 / 2**0.5, 0.05])
    rewarded = {**step, "reward_epochs": 2, "reward_rate": 0.01}
    assert rates([0, 39, 40, 50, 59], **rewarded) == pytest.approx(
        [0.1, 0.0125, 0.01, 0.005, 0.005 * (1 - math.cos(math.pi / 20))]
    )
    assert rates([0, 1, 3, 4], warmup_steps=4) == pytest.approx([0.025, 0.05, 0.1, 0.1])


def test_learning_rates_after_a_restart_are_those_of_the_start():
    def rates(first: int, last: int, **fields: object) -> list[float]:
        config = TrainConfig(learning_rate=0.1, **fields)
        return [config.rate(step, 10) for step in range(first, last)]

    cosine = {"schedule": "cosine", "warmup_steps": 3}
    # Each part is as a run of its own length.
    parts = rates(0, 25, epochs=5, restart_epoch=2.5, **cosine)
    assert parts[:3] == pytest.approx([0.1 / 3, 0.2 / 3 * wave(1 / 25), 0.1 * wave(2 / 25)])
    assert parts[24] == pytest.approx(0.1 * wave(24 / 25))
    assert rates(25, 50, epochs=5, restart_epoch=2.5, **cosine) == pytest.approx(parts)
    assert rates(40, 100, epochs=10, restart_epoch=4, **cosine) == pytest.approx(
        rates(0, 60, epochs=6, **cosine)
    )
    for other in (
        {"schedule": "step", "lr_decay": 0.5, "decay_every": 0.7},
        {"schedule": "exponential", "lr_decay": 0.5, "warmup_steps": 4},
    ):
        for restart in (3, 2.7):
            steps = round(10 * restart)
            found = rates(0, 50, epochs=5, restart_epoch=restart, **other)
            assert found[:steps] == rates(0, steps, epochs=5, **other)
            assert found[steps:] == pytest.approx(rates(0, 50 - steps, epochs=5, **other))
    # The rate of the rewards restarts if it has begun; that of the captions stays.
    rewards = {"epochs": 2, "reward_rate": 0.01, **cosine}
    found = rates(0, 70, reward_epochs=5, restart_epoch=4, **rewards)
    assert found[:40] == pytest.approx(rates(0, 40, reward_epochs=2, **rewards))
    assert found[40:] == pytest.approx([0.01 * wave(i / 30) for i in range(30)])


def wave(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def test_recipes_are_configurations():
    for recipe in RECIPES.values():
        assert TrainConfig(**recipe.training).clip_norm == recipe.training["clip_norm"]
        assert ModelConfig(**recipe.model).hidden_dim == recipe.model["hidden_dim"]
        assert recipe.model.keys() <= inspect.signature(start_model).parameters.keys()
        assert recipe.settings == {**recipe.model, **recipe.training}


@pytest.mark.parametrize(
    ("config", "name", "wanted"),
    [
        (TrainConfig, "epoch", "TrainConfig has no field 'epoch'; did you mean epochs?"),
        (TrainConfig, "learning_rat", "did you mean learning_rate?"),
        (TrainConfig, "hidden_dim", "TrainConfig has no field 'hidden_dim'"),
        (ModelConfig, "hiden_dim", "ModelConfig has no field 'hiden_dim'; did you mean hidden_dim"),
    ],
)
def test_an_unknown_field(config, name, wanted):
    with pytest.raises(TypeError) as caught:
        config(**{name: 2})
    assert str(caught.value).startswith(wanted) or wanted in str(caught.value)
    assert list(inspect.signature(config).parameters) == [
        field.name for field in dataclasses.fields(config)
    ]


def test_an_error_names_the_field_in_an_attribute():
    with pytest.raises(ArgumentError) as caught:
        TrainConfig(epochs=0)
    assert (caught.value.name, caught.value.problem) == ("epochs", "is 0; expected at least 1")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.name) == ("epochs is 0; expected at least 1", "epochs")


@pytest.mark.parametrize("config", [TrainConfig, ModelConfig])
def test_docstring_has_every_field(config):
    listed = re.findall(r"^(\w+) : (.+)\n    [A-Z]", inspect.getdoc(config), re.MULTILINE)
    assert [name for name, _ in listed] == [field.name for field in dataclasses.fields(config)]
    kinds = dict(listed)
    for field in dataclasses.fields(config):
        about = option_of(field)
        assert kinds[field.name] == (
            f"{{{str(about.choices)[1:-1]}}}" if about.choices else field.type
        )


def test_a_field_is_written_once(capsys):
    """Its range, its line in the docstring and its option come from one place."""

    gates = option(3, "number of gates", "At most a few.", group="g", at_least=2)
    doc = {"__doc__": "More.\n\n    {fields}\n    "}
    More = document(dataclasses.make_dataclass("More", [("gates", "int", gates)], namespace=doc))
    assert "gates : int\n        Number of gates. At most a few.\n" in More.__doc__
    more = dataclasses.fields(More)[0]
    with pytest.raises(ArgumentError, match=r"^gates is 1; expected at least 2$"):
        checked(more, 1)
    parser = Parser(prog="x")
    add_fields(parser, More, "g", lambda name, default: f"(default: {default})", {})
    assert parser.parse_args(["--gates", "4"]).gates == 4
    assert "--gates N   number of gates (default: 3)" in parser.format_help()
    with pytest.raises(SystemExit):
        parser.parse_args(["--gates", "x"])
    assert "--gates is 'x'; expected an integer" in capsys.readouterr().err


def test_what_may_change_when_a_run_is_resumed():
    assert sorted(CHANGEABLE_ON_RESUME) == [
        "epochs", "keep_last", "patience", "reward_epochs", "save_every",
    ]  # fmt: skip
