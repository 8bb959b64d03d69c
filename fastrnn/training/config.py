"""The settings of a model and of a training: each field with its range, its help and its group.

Each field is defined once, with `option`. The checks, the docstrings below and the options of
``fastrnn train`` are generated from this definition.
"""

from __future__ import annotations

import functools
import math
import re
import textwrap
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from .. import checks
from .._core.runtime import CELL_GATES
from ..checks import PRECISIONS, ArgumentError
from ..messages import did_you_mean

SCHEDULES = ("constant", "step", "exponential", "cosine")
"""Ways in which the learning rate changes."""
MONITORS = ("cider", "bleu_4", "loss")
"""Validation metrics that can decide which epoch is the best."""
CELLS = tuple(CELL_GATES)
BIAS_STARTS = ("frequencies", "zero")

_Config = TypeVar("_Config")


@dataclass(frozen=True)
class Option:
    """The description of a field: everything but its name, type and default.

    Attributes
    ----------
    help : str
        A phrase that explains the field, for ``--help`` and the docstring.
    details : str
        Further sentences for the docstring.
    group : str
        The group of its option in ``--help``.
    at_least, above, at_most, below : float or None
        The range of a number.
    choices : tuple of str
        The values of a string.
    flag : str or None
        The option on the command line, if it does not follow from the name.
    on_resume : bool
        Whether it may change when a run is resumed.
    """

    help: str
    details: str = ""
    group: str = "training"
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    flag: str | None = None
    on_resume: bool = False

    @property
    def expected(self) -> str:
        """The range or the choices, in words."""
        if self.choices:
            return f"one of {self.choices}"
        if self.above == 0:
            return "a positive number"
        if self.at_least is None:
            return "a finite number"
        if self.below is not None:
            return f"a number of at least {self.at_least:g} and below {self.below:g}"
        if self.at_most is not None:
            return f"a number from {self.at_least:g} to {self.at_most:.10g}"
        return f"at least {self.at_least:g}"

    def allows(self, value: float) -> bool:
        """Return whether a number is finite and in range."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def option(default: Any, help: str, details: str = "", **about: Any) -> Any:
    """Return a dataclass field with a default and an `Option`, whose arguments follow."""
    return field(default=default, metadata={"option": Option(help, details, **about)})


def option_of(config_field: Field[Any]) -> Option:
    """Return the `Option` of a field."""
    return config_field.metadata["option"]


def checked(config_field: Field[Any], value: Any) -> Any:
    """Return the value of a field as a plain Python value, so that it can be written as JSON.

    Raises
    ------
    TypeError
        The value has the wrong type.
    ArgumentError
        It is out of range, or none of the choices.
    """
    name, about = config_field.name, option_of(config_field)
    if config_field.type == "bool":
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name} is {value!r}; expected True or False")
        return bool(value)
    if config_field.type == "str":
        if not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}; expected {about.expected}")
        if value not in about.choices:
            raise ArgumentError(name, f"is {value!r}; expected {about.expected}")
        return value
    as_kind = checks.as_int if config_field.type == "int" else checks.as_number
    number = as_kind(name, value)
    if not about.allows(number):
        raise ArgumentError(name, f"is {number}; expected {about.expected}")
    return number


def _check_fields(config: Any) -> None:
    for each in fields(config):
        object.__setattr__(config, each.name, checked(each, getattr(config, each.name)))


def _name_unknown_fields(config: type[_Config]) -> None:
    """Let the constructor of a dataclass say which field a misspelt argument may mean."""
    plain = config.__init__
    known = {each.name for each in fields(config)}  # type: ignore[arg-type]

    @functools.wraps(plain)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        for name in values:
            if name not in known:
                meant = did_you_mean(name, known)
                raise TypeError(f"{config.__name__} has no field {name!r}{meant}")
        plain(self, *args, **values)

    config.__init__ = __init__  # type: ignore[method-assign]


def document(config: type[_Config]) -> type[_Config]:
    """Put the fields into the docstring of a class, in place of ``{fields}``, and into errors."""
    _name_unknown_fields(config)
    lines = []
    for each in fields(config):  # type: ignore[arg-type]
        about = option_of(each)
        kind = "{" + ", ".join(map(repr, about.choices)) + "}" if about.choices else each.type
        text = f"{about.help[0].upper()}{about.help[1:]}. {about.details}".strip()
        lines += [f"{each.name} : {kind}", *textwrap.wrap(
            text, 92, initial_indent=" " * 4, subsequent_indent=" " * 4
        )]  # fmt: skip
    if config.__doc__ is not None:  # which python -OO leaves out
        # From Python 3.13 on, docstrings are not indented.
        place = re.search(r"^( *)\{fields\}$", config.__doc__, re.MULTILINE)
        assert place is not None
        listed = textwrap.indent("\n".join(lines), place[1])
        config.__doc__ = config.__doc__.replace(place[0], listed)
    return config


@document
@dataclass(frozen=True)
class ModelConfig:
    """The model that a training starts with.

    Parameters
    ----------
    {fields}

    Raises
    ------
    TypeError, ValueError
        A field has the wrong type or value; the message begins with its name.
    """

    cell: str = option("lstm", "type of the recurrent cell", group="model", choices=CELLS)
    hidden_dim: int = option(512, "size of the hidden state", group="model", at_least=1)
    wordvec_dim: int = option(256, "size of the word vectors", group="model", at_least=1)
    bias_start: str = option(
        "frequencies",
        "initial biases of the words' scores",
        "'frequencies' are the logarithms of the words' frequencies, so that training need not "
        "learn them first.",
        group="model",
        choices=BIAS_STARTS,
    )
    forget_bias: float = option(
        1.0,
        "initial bias of an LSTM's forget gates",
        "1 lets cells remember (Jozefowicz, Zaremba and Sutskever 2015); `CaptioningRNN` has 0.",
        group="model",
    )
    embed_scale: float = option(
        0.1,
        "initial standard deviation of the word vectors",
        "`CaptioningRNN` has 0.01.",
        group="model",
        above=0,
    )

    def __post_init__(self) -> None:
        _check_fields(self)


@document
@dataclass(frozen=True, repr=False)
class TrainConfig:
    """How to train. Options that CS231n's solver does not have are off by default.

    Parameters
    ----------
    {fields}

    Raises
    ------
    TypeError, ValueError
        A field has the wrong type or value; the message begins with its name.
    """

    # The order of the fields is that of positional arguments and of the settings in checkpoints.
    epochs: int = option(10, "passes over the training captions", at_least=1, on_resume=True)
    batch_size: int = option(
        100,
        "largest number of captions in a batch",
        "The batches of an epoch are as equal in size as possible.",
        at_least=1,
    )
    learning_rate: float = option(
        1e-3, "Adam's learning rate", "The schedule starts from it.", above=0, flag="--lr"
    )
    schedule: str = option(
        "constant",
        "how the learning rate changes",
        "'step' multiplies it by `lr_decay` after every `decay_every` epochs. 'exponential' decays "
        "it as fast, but a little at every step. 'cosine' lowers it to 0 over the whole run, along "
        "half a cosine wave (Loshchilov and Hutter 2017, without restarts).",
        choices=SCHEDULES,
    )
    lr_decay: float = option(
        1.0,
        "decay factor of the schedules step and exponential",
        "It must be 1 with the other schedules.",
        above=0,
    )
    decay_every: float = option(
        1.0, "multiply by the decay factor once in this many epochs", above=0
    )
    warmup_steps: int = option(
        0,
        "steps over which the learning rate rises linearly to its value",
        "It is multiplied by 1 / warmup_steps in the first step, by 2 / warmup_steps in the "
        "second, and so on.",
        at_least=0,
    )
    weight_decay: float = option(
        0.0,
        "decoupled weight decay; biases are not decayed",
        "Weights are multiplied by 1 - rate * weight_decay at every step (Loshchilov and Hutter "
        "2019).",
        group="regularisation",
        at_least=0,
    )
    clip_value: float = option(
        0.0, "clip each element of the gradients to this magnitude; 0: off", at_least=0
    )
    clip_norm: float = option(
        0.0,
        "scale the gradients down to this norm if theirs is larger; 0: off",
        "The norm is over all parameters and is taken after `clip_value` (Pascanu, Mikolov and "
        "Bengio 2013).",
        at_least=0,
    )
    embed_dropout: float = option(
        0.0,
        "dropout probability of the word vectors' elements",
        "Inverted dropout: elements that are kept are divided by the probability of keeping them.",
        group="regularisation",
        at_least=0,
        below=1,
    )
    vocab_dropout: float = option(
        0.0,
        "dropout probability of the hidden states that the words' scores are computed from",
        "Inverted dropout. The recurrence uses the hidden states without it.",
        group="regularisation",
        at_least=0,
        below=1,
    )
    label_smoothing: float = option(
        0.0,
        "share of a target's probability that is spread evenly over all words",
        "See Szegedy et al. 2016.",
        group="regularisation",
        at_least=0,
        below=1,
    )
    scheduled_sampling: float = option(
        0.0,
        "probability at the end of training of drawing an input word from the model",
        "The other input words are the caption's (Bengio et al. 2015). The probability is 0 at the "
        "first step and rises linearly.",
        group="regularisation",
        at_least=0,
        at_most=1,
    )
    feature_noise: float = option(
        0.0,
        "Gaussian noise added to the features, in units of their standard deviation",
        "The unit is the deviation over the training images. To first order this is Tikhonov "
        "regularisation (Bishop 1995).",
        group="regularisation",
        at_least=0,
    )
    consensus: float = option(
        0.0,
        "weight each caption by this power of its CIDEr-D against the image's other captions",
        "The weights are scaled to a mean of 1 (Phan, Henter, Miyao and Satoh 2017). With 0 all "
        "captions have the same weight.",
        group="regularisation",
        at_least=0,
    )
    weight_average: float = option(
        0.0,
        "decay per step of a moving average of the weights; 0: off",
        "The exponential moving average replaces the weights in `Trainer.model` (Polyak "
        "and Juditsky 1992). It is not biased towards the initial weights: after the first step it "
        "equals that step's weights.",
        group="regularisation",
        at_least=0,
        below=1,
    )
    reward_epochs: int = option(
        0,
        "further epochs, in which captions drawn from the model are rewarded by CIDEr-D",
        "This is self-critical training (Rennie et al. 2017). It follows the `epochs` and starts "
        "from their final weights, or from the average of the weights if there is one, with a new "
        "Adam state. Regularisation is off in these epochs, and no average is kept.",
        group="self-critical training",
        at_least=0,
        on_resume=True,
    )
    reward_captions: int = option(
        5,
        "captions drawn for each image",
        "The baseline of each reward is the mean reward of the image's other captions (Kool, van "
        "Hoof and Welling 2019).",
        group="self-critical training",
        at_least=2,
    )
    reward_rate: float = option(
        2e-4,
        "learning rate of these epochs, which falls to 0",
        "It follows half a cosine wave.",
        group="self-critical training",
        above=0,
    )
    bucket_by_length: bool = option(
        False,
        "put captions of similar length into the same batch",
        "The order of the batches is random.",
    )
    patience: int = option(
        0,
        "stop after this many epochs in a row without improvement; 0: never",
        group="validation",
        at_least=0,
        on_resume=True,
    )
    monitor: str = option(
        "cider",
        "validation metric that decides which epoch is the best",
        "If it cannot be computed, the loss is used. The `reward_epochs` do not minimise the loss, "
        "so each of them then counts as an improvement.",
        group="validation",
        choices=MONITORS,
    )
    val_captions: int = option(
        1000,
        "validation captions for the loss after each epoch, evenly spread",
        group="validation",
        at_least=0,
    )
    val_images: int = option(
        500,
        "validation images that are captioned after each epoch, evenly spread",
        group="validation",
        at_least=0,
    )
    keep_last: int = option(
        2,
        "number of newest checkpoints to keep, besides the best",
        group="results",
        at_least=1,
        on_resume=True,
    )
    save_every: int = option(
        0,
        "steps between checkpoints within an epoch; 0: only after each epoch",
        group="results",
        at_least=0,
        on_resume=True,
    )
    record_every: int = option(
        20, "steps between records of the history", group="results", at_least=1
    )
    seed: int = option(0, "seed of all random numbers", at_least=0, at_most=2**32 - 1)
    restart_epoch: float = option(
        0.0,
        "number of epochs after which the schedule of the learning rate starts again; 0: never",
        "This is a warm restart (Loshchilov and Hutter 2017): the learning rate, with its warm-up, "
        "is as at the start, and the schedule runs over the epochs that are left. 'cosine' falls "
        "to 0 before the restart, too. In the `reward_epochs` it is their rate that restarts. "
        "`Trainer.resume` sets it if it is called with ``restart_schedule=True``.",
        at_least=0,
    )
    precision: str = option(
        "float32",
        "what the operands of matrix products are rounded to",
        "'bfloat16' is faster on processors with AVX512_BF16. Weights and Adam's moments stay "
        "float32. The model that is saved decodes in the same precision.",
        choices=PRECISIONS,
    )

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.lr_decay != 1 and self.schedule not in ("step", "exponential"):
            raise ArgumentError(
                "lr_decay",
                f"is {self.lr_decay:g}; expected 1 with the schedule {self.schedule!r}, because "
                "only 'step' and 'exponential' use it",
            )
        if self.restart_epoch >= self.all_epochs:
            raise ArgumentError(
                "restart_epoch",
                f"is {self.restart_epoch:g}; expected a number below {self.all_epochs}, the number "
                "of epochs",
            )

    def __repr__(self) -> str:
        """Show the options that are not the default."""
        changed = ", ".join(
            f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        )
        return f"{type(self).__name__}({changed})"

    @property
    def all_epochs(self) -> int:
        """`epochs` and `reward_epochs` together."""
        return self.epochs + self.reward_epochs

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rewarding = bool(self.reward_epochs) and step >= self.epochs * steps_per_epoch
        begin: float
        end: float
        begin, end = (self.epochs, self.all_epochs) if rewarding else (0, self.epochs)
        restart, first = self.restart_epoch, 0
        if begin < restart < end:
            first = round(restart * steps_per_epoch)
            begin, end = (restart, end) if step >= first else (begin, restart)
        progress = step / steps_per_epoch - begin
        if rewarding:
            return self.reward_rate * 0.5 * (1 + math.cos(math.pi * (progress / (end - begin))))
        step -= first if begin else 0
        rate = self.learning_rate
        if self.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * progress / (end - begin)))
        elif self.schedule == "exponential":
            rate *= self.lr_decay ** (progress / self.decay_every)
        elif self.schedule == "step":
            # Whole steps before the division, so that rounding does not move the end of an epoch.
            rate *= self.lr_decay ** math.floor(step / (steps_per_epoch * self.decay_every))
        if step < self.warmup_steps:
            rate *= (step + 1) / self.warmup_steps
        return rate


CHANGEABLE_ON_RESUME = tuple(each.name for each in fields(TrainConfig) if option_of(each).on_resume)
"""Fields of `TrainConfig` that may change when a run is resumed."""
