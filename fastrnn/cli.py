"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import fastrnn

from ._core import runtime
from .checkpoint import (
    HISTORY_FILE,
    MODEL_FILE,
    SETTINGS_FILE,
    checkpoint_steps,
    load_model,
    remove_checkpoints,
)
from .classifiers.rnn import CaptioningRNN
from .coco_utils import read_captioning_directory
from .files import is_unfinished, read_json, write_aside, write_json
from .metrics import METRIC_NAMES, CaptionScorer, diversity, meteor, read_references
from .runlock import HOLDER_FILE, LOCK_FILE, RunLock
from .training import (
    HARMLESS,
    MONITORS,
    RECIPES,
    SCHEDULES,
    Interrupted,
    Run,
    TrainConfig,
    Trainer,
    caption_images,
    evaluate,
    loss_per_word,
    read_run,
    references_of,
    seconds_since,
)

SCENES = {"num_train": 12000, "num_val": 1000}
"""How many scenes are drawn where no data is given."""
SCENE_DEFAULTS: dict[str, Any] = {
    "hidden_dim": 160,
    "wordvec_dim": 64,
    "batch_size": 200,
    "epochs": 12,
    "learning_rate": 1e-2,
    "schedule": "cosine",
    "feature_noise": 0.12,
    "clip_norm": 5.0,
    # There are many true captions of a scene, and CIDEr knows five: it falls while truth rises.
    "monitor": "loss",
}
DATA_DEFAULTS: dict[str, Any] = {
    "hidden_dim": 512,
    "wordvec_dim": 256,
    "batch_size": 100,
    "epochs": 5,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "feature_noise": 0.5,
    "clip_norm": 5.0,
}
_DIMENSIONS = ("hidden_dim", "wordvec_dim")
_START = {"bias_start": "frequencies", "forget_bias": 1.0, "embed_scale": 0.1}
"""How a model's first weights are made, by default."""
_TRAINING: dict[str, list[tuple[str, str]]] = {
    "training": [
        ("epochs", "passes over the data"),
        ("batch_size", "captions in a step"),
        ("learning_rate", "Adam's learning rate"),
        ("schedule", "course of the learning rate"),
        ("lr_decay", "factor of the schedules step and exponential; alone it means step"),
        ("decay_every", "epochs over which the factor acts once"),
        ("warmup_steps", "steps over which the learning rate rises to its value"),
        ("clip_norm", "scale gradients down to this norm; 0: never"),
        ("clip_value", "clip the elements of gradients to this; 0: never"),
        ("bucket_by_length", "put captions of like length into a batch"),
        ("seed", "decides weights, order, noise, dropout and scenes"),
    ],
    "rewards": [
        ("reward_epochs", "after --epochs, so many more on drawn captions, rewarded by CIDEr"),
        ("reward_captions", "captions that are drawn for an image"),
        ("reward_rate", "learning rate of these epochs, which falls to 0"),
    ],
    "against overfitting": [
        ("feature_noise", "noise on the features, in deviations"),
        ("embed_dropout", "share of the word vectors' elements that is left out"),
        ("vocab_dropout", "share of the hidden state that the words' scores do without"),
        ("label_smoothing", "share of a target that is spread over all words"),
        ("scheduled_sampling", "how often an input word is the model's own, at the end"),
        ("weight_decay", "decoupled decay of the weights, not of biases"),
        ("consensus", "let captions count by this power of their CIDEr against the image's others"),
        ("weight_average", "decay per step of an average of the weights; 0: none"),
    ],
    "validation": [
        ("val_captions", "captions for the loss after every epoch"),
        ("val_images", "images that are captioned after every epoch"),
        ("monitor", "what decides which model is the best"),
        ("patience", "stop after N epochs without a gain; 0: never"),
    ],
    "results": [
        ("save_every", "steps between checkpoints within an epoch; 0: one after every epoch"),
        ("keep_last", "newest checkpoints that are kept beside the best"),
        ("record_every", "steps between lines of the history"),
    ],
}
"""Every field of `TrainConfig`, by the group of options that it is shown in."""
_RENAMED = {"learning_rate": "--lr", "count": "--threads"}
_LOCK_FILES = (LOCK_FILE, HOLDER_FILE)
_RUN_FILES = (
    SETTINGS_FILE, MODEL_FILE, HISTORY_FILE, "metrics.json", "loss.png", "report.html",
)  # fmt: skip
_NO_WORDS = "(no words)"
_EVENTS = "tensorboard"
"""What --tensorboard writes is in this directory of the run."""


def _flag(name: str) -> str:
    """Return the option for an argument."""
    return _RENAMED.get(name, "--" + name.replace("_", "-"))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse what is unknown at once: here the options are known that may have been meant."""
        arguments, unknown = super().parse_known_args(args, namespace)
        if unknown:
            from difflib import get_close_matches

            message = f"unrecognized arguments: {' '.join(unknown)}"
            option = next((word for word in unknown if word.startswith("-")), "").partition("=")[0]
            for meant in get_close_matches(option, self._option_string_actions, 1):
                message += f"; did you mean {meant}?"
            self.error(message)
        return arguments, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"fastrnn: error: {message} (see {self.prog} --help)\n")


def _number(kind: Callable[[str], Any], least: float = -math.inf) -> Callable[[str], Any]:
    """Make a parser of numbers that are at least `least`."""
    most = 2.0**63 if kind is int else math.inf

    def parse(text: str) -> Any:
        wanted = "a 64-bit integer" if kind is int else "a number"
        if least > -math.inf:
            wanted += f" of at least {least:g}"
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not abs(value) < most or value < least:
            raise argparse.ArgumentTypeError(f"was {text!r}, must be {wanted}")
        return value

    return parse


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _default(name: str, otherwise: Any) -> str:
    scenes, data = (_shown(table.get(name, otherwise)) for table in (SCENE_DEFAULTS, DATA_DEFAULTS))
    return f"(default: {data})" if scenes == data else f"(default: {data}; drawn: {scenes})"


def _add_training_options(parser: argparse.ArgumentParser, group: Any, title: str) -> None:
    """Add an option for each field of `TrainConfig` that belongs into a group.

    No option has a default of its own, so that what was asked for is known from what was not.
    """
    kinds = {field.name: (field.type, field.default) for field in dataclasses.fields(TrainConfig)}
    for name, text in _TRAINING[title]:
        kind, otherwise = kinds[name]
        text = f"{text} {_default(name, otherwise)}"
        if kind == "bool":
            group.add_argument(
                _flag(name), dest=name, action=argparse.BooleanOptionalAction, help=text
            )
        elif kind == "str":
            choices = SCHEDULES if name == "schedule" else MONITORS
            group.add_argument(_flag(name), dest=name, choices=choices, help=text)
        else:
            number = _number(int if kind == "int" else float)
            metavar = "N" if kind == "int" else "X"
            group.add_argument(_flag(name), dest=name, type=number, metavar=metavar, help=text)


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train a captioner",
        description="Train a captioner on pictures and their captions, and report how well it "
        "captions pictures that it has not seen. Without --data it draws its own: scenes of "
        "coloured shapes. Whatever stops it, --resume goes on bit for bit.",
        epilog="example: fastrnn train --data flickr8k --recipe flickr8k --out runs/flickr8k",
    )
    integer = _number(int, 1)
    data = train.add_argument_group("data")
    data.add_argument(
        "--data", metavar="DIR", help="a data set in CS231n's h5 layout (default: drawn scenes)"
    )
    data.add_argument(
        "--recipe", choices=tuple(RECIPES),
        help="settings that are good for known data; other options change them (default: none)",
    )  # fmt: skip
    data.add_argument(
        "--raw-features", action="store_true", default=None,
        help="read *_vgg16_fc7.h5, the features before PCA (default: *_vgg16_fc7_pca.h5)",
    )  # fmt: skip
    data.add_argument(
        "--max-train", type=integer, metavar="N",
        help="use N of the training captions, drawn at random (default: all)",
    )  # fmt: skip

    model = train.add_argument_group("model")
    model.add_argument("--cell", choices=("rnn", "lstm"), help="recurrence (default: lstm)")
    for name, text in (
        ("hidden_dim", "width of the hidden state"),
        ("wordvec_dim", "width of the word vectors"),
    ):
        model.add_argument(
            _flag(name), type=integer, metavar="N", help=f"{text} {_default(name, None)}"
        )
    model.add_argument(
        "--bias-start", choices=("frequencies", "zero"),
        help="biases of the words at the start (default: frequencies)",
    )  # fmt: skip
    model.add_argument(
        "--forget-bias", type=_number(float), metavar="X",
        help="bias of an LSTM's forget gates at the start (default: 1)",
    )  # fmt: skip
    model.add_argument(
        "--embed-scale", type=_number(float), metavar="X",
        help="deviation of the word vectors at the start (default: 0.1)",
    )  # fmt: skip

    for title in ("training", "against overfitting", "rewards", "validation"):
        group = train.add_argument_group(title)
        _add_training_options(train, group, title)
        if title == "training":
            group.add_argument(
                "--threads", type=integer, metavar="N",
                help="threads to use (default: FASTRNN_NUM_THREADS, OMP_NUM_THREADS or all "
                "processors)",
            )  # fmt: skip

    where = train.add_argument_group("results")
    where.add_argument(
        "--out", metavar="DIR", help="the run directory (default: runs/<date>-<cell>)"
    )
    where.add_argument(
        "--force", action="store_true", default=None,
        help="replace the run that is in the --out directory (default: refuse)",
    )  # fmt: skip
    where.add_argument(
        "--resume", metavar="RUN",
        help="go on with a run from its newest checkpoint; only --data, --threads, "
        + ", ".join(map(_flag, HARMLESS)) + " and the two below go with it (default: a new run)",
    )  # fmt: skip
    _add_training_options(train, where, "results")
    where.add_argument(
        "--tensorboard", action="store_true", default=None,
        help="log for TensorBoard, too, to tensorboard/ in the run directory (default: no)",
    )  # fmt: skip
    where.add_argument(
        "--no-report", action="store_true", default=None,
        help="write no plot and no page at the end (default: both)",
    )  # fmt: skip
    train.set_defaults(run=_train)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fastrnn", description="Image captioning with an RNN or an LSTM, in NumPy and C."
    )
    parser.add_argument("--version", action="version", version=f"fastrnn {fastrnn.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    _add_train(commands)

    _add_evaluate(commands)

    export = commands.add_parser(
        "export",
        help="write a model for PyTorch or ONNX",
        description="Write the model of a run in formats that other libraries read.",
        epilog="example: fastrnn export runs/flickr8k --safetensors flickr8k.safetensors --onnx "
        "flickr8k-onnx",
    )
    export.add_argument("run_or_model", metavar="RUN", help="a run directory, or a model's npz")
    export.add_argument(
        "--safetensors", metavar="FILE",
        help="write a state_dict for torch.nn.Embedding, Linear and LSTM or RNN, in the "
        "safetensors format",
    )  # fmt: skip
    export.add_argument(
        "--onnx", metavar="DIR",
        help="write project.onnx (features to the first state) and step.onnx (a word and the "
        "state to log-probabilities and the next state)",
    )  # fmt: skip
    export.set_defaults(run=_export)

    _add_report(commands)

    info = commands.add_parser(
        "info",
        help="print versions, instruction set, threads",
        description="Print what fastrnn runs on: versions, instruction set in use, threads, BLAS.",
        epilog="example: FASTRNN_MAX_ISA=avx2 fastrnn info",
    )
    info.set_defaults(run=_info)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; the process's own by default.

    Returns
    -------
    int
        The exit status: 0, 2 for bad input, 128 and the signal's number after one: 130 after an
        interrupt, 143 after SIGTERM.

    Raises
    ------
    SystemExit
        For ``--help``, ``--version`` and arguments that cannot be parsed.
    """
    arguments = _parser().parse_args(argv)
    threads = fastrnn.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return arguments.run(arguments)
    except Interrupted as stop:
        print(f"fastrnn: {stop}", file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt:
        print("fastrnn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone: nobody is left to be told, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (
        OSError, ValueError, TypeError, KeyError, IndexError, FloatingPointError, ImportError,
    ) as error:  # fmt: skip
        print(f"fastrnn: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except MemoryError:
        print("fastrnn: error: out of memory", file=sys.stderr)
        return 2
    finally:
        fastrnn.set_num_threads(threads)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{error.strerror}: {error.filename}"
    elif isinstance(error, KeyError) and error.args:
        message = str(error.args[0])
    else:
        message = str(error)
        # An argument by which an error begins has another name on the command line.
        name, found, rest = message.partition(" is ")
        if found and name in _argument_names():
            message = f"{_flag(name)} is {rest}"
    return " ".join(message.split()) or type(error).__name__


def _argument_names() -> set[str]:
    return {field.name for field in dataclasses.fields(TrainConfig)} | {*_START, "count"}


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"fastrnn: warning: {' '.join(str(message).split())}", file=sys.stderr)


# -- fastrnn train


def _train(arguments: argparse.Namespace) -> int:
    began = time.perf_counter()
    if arguments.threads is not None:
        fastrnn.set_num_threads(arguments.threads)
    with contextlib.ExitStack() as locks:
        return _train_alone(arguments, began, locks)


def _train_alone(arguments: argparse.Namespace, began: float, locks: contextlib.ExitStack) -> int:
    """Train; `locks` keeps others out of the run directory up to the last file that is written."""
    if arguments.tensorboard:
        from .tensorboard import TensorBoardLogger  # what it needs may be missing: say so at once
    trainer = _resume(arguments, locks) if arguments.resume else _begin(arguments, locks)
    out = trainer.run
    assert out is not None
    directory = Path(trainer.settings["data"])
    _introduce(None if trainer.settings["drawn"] else directory, trainer)

    progress = _Progress(trainer)
    listeners: list[Any] = [progress]
    if arguments.tensorboard:
        listeners.append(TensorBoardLogger(out / _EVENTS, first_step=trainer.step))
    trainer.on_step = lambda *event: _tell(listeners, "on_step", *event)
    trainer.on_validation = lambda *event: _tell(listeners, "on_validation", *event)
    trainer.on_epoch = lambda *event: _tell(listeners, "on_epoch", *event)
    resume = f"fastrnn train --resume {shlex.quote(str(out))}"
    # A run that goes on has not come to its end: what was measured there is no longer true.
    (out / "metrics.json").unlink(missing_ok=True)
    try:
        trainer.fit()
    except Interrupted as stop:
        stop.args = (f"{stop}; go on with: {resume}",)
        raise
    except OSError as error:
        if not checkpoint_steps(out):
            raise
        raise OSError(f"{_one_line(error)}; once there is room, go on with: {resume}") from error
    finally:
        for listener in listeners:
            listener.close()
    _report(trainer, directory, began, page=not arguments.no_report)
    return 0


def _check_file(option: str, file: str | None) -> None:
    """Refuse a place that no file can be written to, before any work is done for it."""
    if file is None:
        return
    path = Path(file)
    if file.endswith(os.sep) or path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{option} {file}: must be a file in a directory that exists")


def _tell(listeners: Sequence[Any], what: str, *event: Any) -> None:
    for listener in listeners:
        if hasattr(listener, what):
            getattr(listener, what)(*event)


def _begin(arguments: argparse.Namespace, locks: contextlib.ExitStack) -> Trainer:
    """Start a run: settings, data and a model with its first weights."""
    for name in ("raw_features", "recipe"):
        if getattr(arguments, name) and arguments.data is None:
            raise ValueError(f"{_flag(name)} goes with --data")
    chosen = _choose(arguments)
    config = TrainConfig(
        **{field.name: chosen[field.name] for field in dataclasses.fields(TrainConfig)}
    )
    cell = arguments.cell or "lstm"
    start = {name: chosen[name] for name in _START}
    out = _free_directory(arguments, cell)

    directory = Path(arguments.data) if arguments.data else out / "data"
    settings = {
        "fastrnn": fastrnn.__version__,
        "data": str(directory.resolve()),
        "drawn": not arguments.data,
        "raw_features": bool(arguments.raw_features),
        "max_train": arguments.max_train,
        "recipe": arguments.recipe,
        "cell": cell,
        **{name: chosen[name] for name in _DIMENSIONS},
        **start,
        **dataclasses.asdict(config),
    }
    run = Run(out, settings, config, directory)
    # What cannot be trained on leaves no run directory behind.
    if arguments.data:
        data = run.read_data()
        trainer = Trainer(run.start_model(data), data, config, settings=settings)
        lock = _make_directory(out, arguments, settings, locks)
    else:
        lock = _make_directory(out, arguments, settings, locks)
        _draw_scenes(directory, config.seed)
        data = run.read_data()
        trainer = Trainer(run.start_model(data), data, config, settings=settings)
    trainer.use_lock(lock)
    return trainer


def _choose(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settle every setting: what is asked for, else the recipe's, else the default."""
    chosen = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    chosen.update(_START)
    chosen.update(DATA_DEFAULTS if arguments.data else SCENE_DEFAULTS)
    if arguments.recipe:
        # A recipe is whole: what it does not name is off.
        chosen.update({field.name: field.default for field in dataclasses.fields(TrainConfig)})
        chosen.update(RECIPES[arguments.recipe])
    asked = {name: v for name in chosen if (v := getattr(arguments, name)) is not None}
    chosen.update(asked)
    decays = chosen["schedule"] in ("step", "exponential")
    if not decays and "schedule" not in asked and "lr_decay" in asked:
        chosen["schedule"] = "step"
    elif not decays and "lr_decay" not in asked:
        chosen["lr_decay"] = 1.0
    return chosen


def _resume(arguments: argparse.Namespace, locks: contextlib.ExitStack) -> Trainer:
    run = read_run(arguments.resume)
    lock = locks.enter_context(RunLock(run.directory))
    free = {"resume", "command", "run", "data", "threads", "tensorboard", "no_report", *HARMLESS}
    for name, value in vars(arguments).items():
        if name not in free and value is not None:
            was = run.settings.get(name)
            stays = "" if was is None else f"; the run has {_shown(was)}"
            raise ValueError(f"{_flag(name)} cannot be given with --resume{stays}")
    changes = {name: v for name in HARMLESS if (v := getattr(arguments, name)) is not None}
    if run.settings.get("drawn") and not checkpoint_steps(run.directory):
        # It was stopped while drawing.
        _draw_scenes(run.directory / "data", run.config.seed)
    data = run.read_data(arguments.data)
    trainer = Trainer.resume(run.directory, data, **changes)
    directory = arguments.data or run.data_directory
    if directory is not None:
        trainer.settings["data"] = str(Path(directory).resolve())
    trainer.settings.setdefault("drawn", False)
    trainer.use_lock(lock)
    done = trainer.step / trainer.steps_per_epoch
    print(f"resumed  {run.directory} after {done:.4g} of {trainer.config.all_epochs} epochs")
    return trainer


def _free_directory(arguments: argparse.Namespace, cell: str) -> Path:
    """Choose the run directory; refuse one that must not be written to."""
    if arguments.out is None:
        name = f"{time.strftime('%Y-%m-%d')}-{cell}"
        out, number = Path("runs", name), 1
        while out.exists():
            number += 1
            out = Path("runs", f"{name}-{number}")
        return out
    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; it must be a directory")
    if not out.is_dir() or all(is_unfinished(p) or p.name in _LOCK_FILES for p in out.iterdir()):
        return out
    if not arguments.force:
        raise ValueError(
            f"--out {out} exists; choose another, go on with it by --resume, or replace it with "
            "--force"
        )
    if not _is_run(out):
        raise ValueError(f"--out {out} holds other things than a run: --force replaces only runs")
    return out


def _is_run(out: Path) -> bool:
    try:
        return "fastrnn" in read_json(out / SETTINGS_FILE)
    except (OSError, ValueError, TypeError):
        return False


def _make_directory(
    out: Path,
    arguments: argparse.Namespace,
    settings: Mapping[str, Any],
    locks: contextlib.ExitStack,
) -> RunLock:
    """Make the run directory, or free it of an old run, once nobody else is at work there."""
    lock = locks.enter_context(RunLock(out))
    if not arguments.force and (out / SETTINGS_FILE).exists():
        raise ValueError(f"--out {out} has just been made a run by another process; choose another")
    # Nothing of an old run may pass for a part of the new one. What is not a run's own stays; and
    # the settings, soon written over, do, so that the directory is known as a run all the time.
    if arguments.force and _is_run(out):
        remove_checkpoints(out, keep=())
        for name in _RUN_FILES:
            if name != SETTINGS_FILE:
                (out / name).unlink(missing_ok=True)
        for events in (out / _EVENTS).glob("events.out.tfevents.*"):
            events.unlink()
    write_json(out / SETTINGS_FILE, settings)
    return lock


def _draw_scenes(directory: Path, seed: int) -> None:
    from .data.scenes.dataset import write_scenes

    print(f"drawing {SCENES['num_train'] + SCENES['num_val']} scenes", flush=True)
    write_scenes(directory, **SCENES, seed=seed, threads=fastrnn.get_num_threads())


def _introduce(directory: Path | None, trainer: Trainer) -> None:
    """Say what is trained on what."""
    data, model = trainer.data, trainer.model
    width = model.params["W_proj"].shape[0]
    pictures = "drawn scenes" if directory is None else str(directory)
    captions = f"{len(data['train_captions']):,} captions of {len(data['train_features']):,} images"
    facts = {
        "data": f"{pictures}: {captions}, {width} features",
        "words": f"{len(data['word_to_idx']):,}",
        "model": _size(model),
        "runs on": f"{runtime.isa()}, threads: {fastrnn.get_num_threads()}",
    }
    for name, value in facts.items():
        print(f"{name:<8} {value}", flush=True)


def _size(model: CaptioningRNN) -> str:
    weights = sum(w.size for w in model.params.values())
    hidden, wordvec = model.params["W_proj"].shape[1], model.params["W_embed"].shape[1]
    size = f"{weights / 1e6:.1f}M" if weights >= 1e6 else f"{weights / 1e3:.0f}k"
    cell = model.cell_type.upper()
    return f"{cell}, hidden {hidden}, word vectors {wordvec}, {size} weights"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _Progress:
    """A bar on a terminal; elsewhere a line an epoch, and one every half a minute."""

    EVERY = 30.0

    def __init__(self, trainer: Trainer) -> None:
        captions = len(trainer.data["train_captions"])
        self._epochs = trainer.config.all_epochs
        self._total = captions * self._epochs
        self._began = self._spoke = time.perf_counter()
        self._start = self._seen = round(captions * trainer.step / trainer.steps_per_epoch)
        self._kind, self._value = "loss", math.nan
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # a tenth of the start of every command, were it up there

            form = (
                "{desc} {percentage:3.0f}%|{bar}| {rate_fmt}, {elapsed} gone, {remaining} left"
                "{postfix}"
            )
            self._bar = tqdm(
                total=self._total, unit=" captions", unit_scale=True, dynamic_ncols=True,
                bar_format=form, smoothing=0.05, leave=False, desc="training",
                initial=self._start,
            )  # fmt: skip

    def on_step(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        new, self._seen = record["captions"] - self._seen, record["captions"]
        kind = _kind(record)
        if kind != self._kind or math.isnan(self._value):
            self._kind, self._value = kind, record[kind]
        self._value += 0.05 * (record[kind] - self._value)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{kind} {self._value:.3f}", refresh=False)
            self._bar.update(new)
        elif time.perf_counter() - self._spoke > self.EVERY:
            self._say(f"epoch {record['epoch']:.2f}/{self._epochs}  {kind} {self._value:.3f}")

    def on_epoch(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        text = f"epoch {record['epoch']:>{len(str(self._epochs))}}/{self._epochs}"
        text += f"  {_kind(record)} {record[_kind(record)]:.3f}"
        if record["val_loss"] is not None:
            text += f"  validation {record['val_loss']:.3f}"
            text += f"  perplexity {record['val_perplexity']:.2f}"
        for name, value in (("BLEU-4", record["val_bleu_4"]), ("CIDEr", record["val_cider"])):
            if value is not None:
                text += f"  {name} {100 * value:.1f}"
        text += f"  {record['captions_per_second']:,.0f} captions/s"
        if self._bar is not None:
            self._bar.write(text)
        else:
            self._say(text, rate=False)

    def _say(self, text: str, rate: bool = True) -> None:
        self._spoke = time.perf_counter()
        seconds = seconds_since(self._began)
        done = max(self._seen - self._start, 1)
        if rate:
            text += f"  {done / seconds:,.0f} captions/s"
        left = seconds / done * (self._total - self._seen)
        print(f"{text}  {_duration(left)} left", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _kind(record: Mapping[str, Any]) -> str:
    """What is said of training: the loss, or where captions are rewarded their reward."""
    return "loss" if record["loss"] is not None else "reward"


def _report(trainer: Trainer, directory: Path, began: float, *, page: bool = True) -> None:
    """Caption the validation pictures with the best model; write and print what came of it."""
    # matplotlib takes its time to load; what is refused is refused without it.
    from .data.scenes.dataset import read_scenes
    from .data.scenes.language import caption_is_true
    from .report import draw_loss, write_report

    out, data, best = trainer.run, trainer.data, trainer.best
    assert out is not None
    model = load_model(out)
    width = data["train_captions"].shape[1]
    captions = caption_images(model, data["val_features"], max(width - 1, 1))
    references = references_of(data)
    scenes = read_scenes(directory)
    if scenes is not None and len(scenes) != len(captions):
        scenes = None
    marks = None if scenes is None else [*map(caption_is_true, captions, scenes)]
    metrics = evaluate(captions, references, marks)
    val_loss = loss_per_word(model, data)
    epochs = [record for record in trainer.history if "val_loss" in record]
    metrics["val_loss"] = val_loss
    metrics["val_perplexity"] = None if val_loss is None else float(np.exp(min(val_loss, 700)))
    metrics["epoch"] = best and best["epoch"]
    seconds = [record["seconds"] for record in epochs]
    speeds = [record["captions_per_second"] for record in epochs]
    metrics["captions_per_second"] = float(np.average(speeds, weights=seconds))

    figures = {}
    for name in ("bleu_1", "bleu_4", "cider"):
        if metrics[name] is not None:
            figures[METRIC_NAMES[name]] = f"{100 * metrics[name]:.1f}"
    if scenes is not None:
        figures["true captions"] = f"{metrics['true_share']:.1%}"
    if val_loss is not None:
        figures["perplexity"] = f"{metrics['val_perplexity']:.2f}"
    figures["distinct captions"] = f"{metrics['distinct_captions']:,} of {metrics['images']:,}"
    figures["captions/s in training"] = f"{metrics['captions_per_second']:,.0f}"

    if page:
        picture = draw_loss(trainer.history)
        write_aside(out / "loss.png", lambda file: file.write(picture))
    metrics["seconds"] = seconds_since(began)
    write_json(out / "metrics.json", metrics)
    if page:
        write_report(out, directory=directory, data=data)

    print(f"\non {metrics['images']:,} unseen images, after {_duration(metrics['seconds'])}:")
    for name, value in figures.items():
        print(f"  {name:<24}{value}")
    for row, caption in enumerate(captions[:3]):
        false = "" if marks is None or marks[row] else "  (false)"
        print(f"  says: {caption or _NO_WORDS}{false}")
    written = [name for name in _RUN_FILES if (out / name).exists()]
    print(f"best of {len(epochs)} epochs: {metrics['epoch']}")
    print(f"written to {out}: {', '.join(written)}, checkpoints")


# -- fastrnn evaluate


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a captioner: BLEU, ROUGE-L, CIDEr",
        description="Caption the images of a split and measure the captions against what people "
        "wrote: BLEU, ROUGE-L and CIDEr as COCO's evaluation has them, without Java.",
        epilog="example: fastrnn evaluate runs/flickr8k --beam 3 --results captions.json",
    )
    integer = _number(int, 1)
    what = evaluate.add_argument_group("what")
    what.add_argument("model", metavar="RUN", help="a run directory, or a model file (npz)")
    what.add_argument(
        "--data", metavar="DIR", help="a data set in CS231n's h5 layout (default: the run's)"
    )
    what.add_argument(
        "--raw-features", action="store_true", default=None,
        help="read the features before PCA (default: as the run did)",
    )  # fmt: skip
    what.add_argument(
        "--split", choices=("train", "val"), default="val", help="(default: %(default)s)"
    )
    what.add_argument("--limit", type=integer, metavar="N", help="the first N images alone")
    what.add_argument(
        "--references", metavar="FILE.json",
        help="captions by people: {file name: [captions]}, COCO's annotations, or a list of lists "
        "(default: <split>_references.json of the data, else the captions in its h5 file)",
    )  # fmt: skip

    how = evaluate.add_argument_group("decoding")
    how.add_argument(
        "--beam", type=integer, metavar="N", default=3,
        help="width of the beam; 1: greedy (default: %(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--max-length", type=integer, metavar="N", default=30,
        help="words in a caption, at most (default: %(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--length-penalty", type=_number(float, 0), metavar="X",
        help="how much long captions are favoured (default: beam_search's)",
    )  # fmt: skip
    how.add_argument(
        "--no-repeat-ngram", type=integer, metavar="N", help="never say the same N words twice"
    )
    how.add_argument("--suppress-unk", action="store_true", help="never say <UNK>")
    how.add_argument(
        "--threads", type=integer, metavar="N",
        help="threads to use (default: FASTRNN_NUM_THREADS, OMP_NUM_THREADS or all processors)",
    )  # fmt: skip

    where = evaluate.add_argument_group("results")
    where.add_argument("--json", metavar="FILE", help="write the figures there")
    where.add_argument(
        "--results", metavar="FILE.json",
        help="write the captions there in COCO's result format; image_id is the image's row",
    )  # fmt: skip
    evaluate.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    _check_file("--json", arguments.json)
    _check_file("--results", arguments.results)
    if arguments.threads is not None:
        fastrnn.set_num_threads(arguments.threads)
    model, directory, data = _evaluated(arguments)
    split = arguments.split
    features, urls = data[f"{split}_features"], data[f"{split}_urls"].tolist()
    references, source = _references(arguments, directory, data)
    count = min(arguments.limit or len(features), len(features))
    known = [image for image in range(count) if references[image]]
    if not known:
        raise ValueError(f"{source}: has no captions of the images that are to be evaluated")

    began = time.perf_counter()
    captions = _decode(arguments, model, features[:count])
    seconds = seconds_since(began)

    said, meant = [captions[image] for image in known], [references[image] for image in known]
    scorer = CaptionScorer(meant)
    figures: dict[str, float | None] = scorer.evaluate(said)
    notes = [scorer.missing] if scorer.missing else []
    try:
        figures["meteor"] = meteor(said, meant)
    except (ImportError, LookupError) as error:
        figures["meteor"] = None
        notes.append(str(error.args[0]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        varied = diversity(captions)

    decoding = "greedy" if arguments.beam == 1 else f"beam {arguments.beam}"
    lines = {
        "model": f"{arguments.model} ({_size(model)})",
        "data": f"{directory}, {split}: {count:,} images",
        "references": f"{source}: {sum(map(len, meant)):,} captions"
        + (f" of {len(known):,} of the images" if len(known) < count else ""),
        "decoding": f"{decoding}: {seconds:.2f} s, {count / seconds:,.0f} captions/s",
    }
    for name, line in lines.items():
        print(f"{name:<12}{line}")
    print()
    for name, label in METRIC_NAMES.items():
        value = figures[name]
        if value is not None:
            print(f"{label:<12}{100 * value:5.1f}")
    print()
    print(f"{'distinct':<12}{varied['distinct_captions']:,} of {count:,} captions")
    print(f"{'words used':<12}{varied['vocabulary_used']:,} of {len(model.word_to_idx):,}")
    print(f"{'length':<12}{varied['mean_length']:.1f} words")
    often = varied["most_common"] or _NO_WORDS
    print(f"{'most often':<12}{often} ({varied['most_common_share']:.1%})")
    for note in notes:
        print(f"note: {note}")
    for warning in caught:
        print(f"fastrnn: warning: {warning.message}", file=sys.stderr)

    if arguments.json is not None:
        about = {
            "model": str(arguments.model), "data": str(directory), "split": split,
            "references": source, "beam": arguments.beam, "max_length": arguments.max_length,
            "length_penalty": arguments.length_penalty,
            "no_repeat_ngram": arguments.no_repeat_ngram,
            "suppress_unk": arguments.suppress_unk, "images_with_references": len(known),
            "seconds": seconds,
        }  # fmt: skip
        write_json(arguments.json, {**about, **figures, **varied})
    if arguments.results is not None:
        rows = [
            {"image_id": row, "caption": caption, "file_name": url}
            for row, (caption, url) in enumerate(zip(captions, urls[:count], strict=True))
        ]
        write_json(arguments.results, rows)
    return 0


def _evaluated(arguments: argparse.Namespace) -> tuple[CaptioningRNN, Path, dict[str, Any]]:
    """Read the model that is to be evaluated and data that fit it."""
    run = Path(arguments.model)
    known = read_run(run) if run.is_dir() else None
    model = load_model(run)
    place = arguments.data or (known.data_directory if known else None)
    if place is None:
        raise ValueError(f"--data is needed: {run} does not say what it was trained on")
    directory = Path(str(place))
    raw = arguments.raw_features or bool(known and known.settings.get("raw_features"))
    data = read_captioning_directory(directory, pca_features=not raw)
    if dict(model.word_to_idx) != data["word_to_idx"]:
        raise ValueError(
            f"{directory / 'coco2014_vocab.json'}: is not the vocabulary of {run} "
            f"({len(data['word_to_idx']):,} words, {len(model.word_to_idx):,} in the model)"
        )
    width, wanted = data["val_features"].shape[1], model.params["W_proj"].shape[0]
    if width != wanted:
        raise ValueError(
            f"{directory}: its features{'' if raw else ' after PCA'} are {width} wide; {run} reads "
            f"features of {wanted}" + ("" if raw else " (perhaps --raw-features)")
        )
    return model, directory, data


def _references(
    arguments: argparse.Namespace, directory: Path, data: Mapping[str, Any]
) -> tuple[list[list[str]], str]:
    """Find what people wrote about every image of the split; say where."""
    urls = data[f"{arguments.split}_urls"].tolist()[: len(data[f"{arguments.split}_features"])]
    beside = directory / f"{arguments.split}_references.json"
    if arguments.references is not None or beside.is_file():
        path = Path(arguments.references or beside)
        return read_references(path, urls), str(path)
    longest = max(data[f"{arguments.split}_captions"].shape[1] - 2, 0)
    source = f"coco2014_captions.h5 (cut at {longest} words, rare words <UNK>)"
    return references_of(data, arguments.split), source


def _decode(arguments: argparse.Namespace, model: CaptioningRNN, features: np.ndarray) -> list[str]:
    options = {
        name: getattr(arguments, name)
        for name in ("length_penalty", "no_repeat_ngram", "suppress_unk")
        if getattr(arguments, name) not in (None, False)
    }
    if arguments.beam == 1 and not options:
        return caption_images(model, features, arguments.max_length)
    from .decoding import beam_search

    decoded = beam_search(model, features, arguments.beam, arguments.max_length, **options)
    return [best[0] for best in decoded.captions(model.idx_to_word)]


# -- fastrnn export


def _export(arguments: argparse.Namespace) -> int:
    from .export import ONNX_FILES, save_onnx, save_safetensors

    if not (arguments.safetensors or arguments.onnx):
        raise ValueError("export needs --safetensors FILE or --onnx DIR (or both)")
    _check_file("--safetensors", arguments.safetensors)
    model = load_model(arguments.run_or_model)
    if arguments.safetensors:
        save_safetensors(arguments.safetensors, model)
        print(f"written to {arguments.safetensors}")
    if arguments.onnx:
        save_onnx(arguments.onnx, model)
        print(f"written to {arguments.onnx}: {', '.join(ONNX_FILES.values())}")
    return 0


# -- fastrnn report


def _add_report(commands: Any) -> None:
    report = commands.add_parser(
        "report",
        help="write a page of curves and captions",
        description="Write one HTML page about a run, which needs no network: curves, captions "
        "beside their pictures, the best and the worst, settings, metrics.",
        epilog="example: fastrnn report runs/flickr8k --watch",
    )
    integer, at_least_0 = _number(int, 1), _number(int, 0)
    report.add_argument("of_run", metavar="RUN", help="a directory that fastrnn train has made")
    report.add_argument(
        "--out", metavar="FILE", help="the page (default: report.html in the run directory)"
    )
    report.add_argument(
        "--data", metavar="DIR", help="where the data is now (default: where the run had it)"
    )
    report.add_argument(
        "--beam", type=integer, metavar="N", default=3,
        help="width of the beam search; 1: greedy captions alone (default: %(default)s)",
    )  # fmt: skip
    report.add_argument(
        "--images", type=at_least_0, metavar="N", default=1000,
        help="validation images on the page, at most (default: %(default)s)",
    )  # fmt: skip
    report.add_argument(
        "--pictures", type=at_least_0, metavar="N", default=96,
        help="how many of them are shown as pictures, at most (default: %(default)s)",
    )  # fmt: skip
    report.add_argument(
        "--watch", action="store_true",
        help="write it again whenever the run has grown, until the training is finished; the open "
        "page follows (default: write it once)",
    )  # fmt: skip
    report.add_argument(
        "--every", type=_number(float, 0.1), metavar="SECONDS",
        help="with --watch, the time from one look at the run to the next (default: 5)",
    )  # fmt: skip
    report.add_argument(
        "--threads", type=integer, metavar="N",
        help="threads to use (default: FASTRNN_NUM_THREADS, OMP_NUM_THREADS or all processors)",
    )  # fmt: skip
    report.set_defaults(run=_write_report)


def _write_report(arguments: argparse.Namespace) -> int:
    from .report import watch_report, write_report

    _check_file("--out", arguments.out)
    if arguments.every is not None and not arguments.watch:
        raise ValueError("--every goes with --watch")
    if arguments.threads is not None:
        fastrnn.set_num_threads(arguments.threads)
    options = {
        "directory": arguments.data,
        "images": arguments.images,
        "pictures": arguments.pictures,
        "beam": arguments.beam,
    }
    if not arguments.watch:
        out = write_report(arguments.of_run, arguments.out, **options)
        print(f"{out}: {out.stat().st_size / 1e3:,.0f} kB")
        return 0

    def say(out: Path, status: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {out}  {status}", flush=True)

    seconds = arguments.every or 5.0
    watch_report(arguments.of_run, arguments.out, seconds=seconds, on_write=say, **options)
    return 0


# -- fastrnn info


def _info(arguments: argparse.Namespace) -> int:
    import importlib.metadata  # here, since no other command has use for it

    blas = np.show_config(mode="dicts")["Build Dependencies"].get("blas", {})
    facts = {
        "fastrnn": fastrnn.__version__,
        "instruction set": runtime.isa(),
        "threads": f"{fastrnn.get_num_threads()} ({'OpenMP' if runtime.openmp() else 'no OpenMP'})",
        "NumPy's BLAS": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        "Python": f"{platform.python_version()}, {platform.platform()}",
    }
    for package in ("numpy", "scipy", "h5py", "matplotlib", "pillow", "tqdm"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "missing"
    for name, value in facts.items():
        print(f"{name:<16} {value}")
    return 0
