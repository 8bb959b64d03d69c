"""``fastrnn train``: its options, and a run from its start to its results."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastrnn

from .. import runs
from ..checks import ArgumentError
from ..data.layout import DATA_VARIABLE, FEATURE_DTYPES, named_directory
from ..runlock import RunLock
from ..runs import checkpoint_steps
from ..terminal import say_facts
from ..training import (
    RECIPES,
    Interrupted,
    ModelConfig,
    Run,
    TrainConfig,
    Trainer,
    distributed,
    read_run,
)
from ..training.config import CHANGEABLE_ON_RESUME
from ..training.recipes import DATA_DEFAULTS, SCENE_DEFAULTS
from .config_file import ReadConfig
from .options import (
    Choice,
    add_fields,
    add_integer,
    add_threads,
    describe_error,
    flag_of,
    shown,
    use_threads,
)
from .results import write_results
from .run_directory import draw_scenes, free_directory, make_directory

_BEFORE_TRAINING = "interrupted before training; start it"

# -- options


def add_parser(commands: Any) -> Any:
    """Add the command; return its parser."""
    parser = commands.add_parser(
        "train",
        help="train a captioner",
        description="Train a captioner on images and their captions, and report how well it "
        "captions images that it has not seen. Without --data it draws its own images: scenes of "
        "coloured shapes. A training that was stopped can be resumed with --resume, with the same "
        "results to the bit.",
        epilog="example: fastrnn train --data flickr8k --recipe flickr8k --out runs/flickr8k",
    )
    parser.add_argument(
        "--config", metavar="FILE.toml", action=ReadConfig,
        help="read options from a file, a line 'name = value' for each; they override a recipe, "
        "and options of the command line override them (default: none)",
    )  # fmt: skip
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", metavar="DIR",
        help="a data set in CS231n's h5 layout (default: drawn scenes; with --recipe or "
        f"--raw-features, what the environment variable {DATA_VARIABLE} names)",
    )  # fmt: skip
    data.add_argument(
        "--recipe", action=Choice, words=tuple(RECIPES),
        help="settings that work well for this data set; other options override them "
        "(default: none)",
    )  # fmt: skip
    data.add_argument(
        "--raw-features", action=argparse.BooleanOptionalAction,
        help="read *_vgg16_fc7.h5, the features before PCA (default: *_vgg16_fc7_pca.h5)",
    )  # fmt: skip
    data.add_argument(
        "--features-dtype", action=Choice, words=FEATURE_DTYPES,
        help="the dtype to keep the features in: float16 takes half of the memory of float32 and "
        "rounds to 11 bits; a file in float16 loses nothing and is mapped (default: the file's)",
    )  # fmt: skip
    add_integer(
        data, "--max-train",
        help="use only N training captions, drawn at random (default: all)",
    )  # fmt: skip

    add_fields(parser.add_argument_group("model"), ModelConfig, "model", _default, {})
    notes = {
        "lr_decay": "; given alone, it selects step",
        "seed": ": weights, order, noise, dropout and scenes",
    }
    for title in ("training", "regularisation", "self-critical training", "validation"):
        group = parser.add_argument_group(title)
        add_fields(group, TrainConfig, title, _default, notes)
        if title == "training":
            add_threads(group)

    where = parser.add_argument_group("results")
    where.add_argument(
        "--out", metavar="DIR", help="the run directory (default: runs/<date>-<cell>)"
    )
    where.add_argument(
        "--force", action=argparse.BooleanOptionalAction,
        help="replace the run in the --out directory (default: refuse)",
    )  # fmt: skip
    where.add_argument(
        "--resume", metavar="RUN",
        help="resume a run from its newest checkpoint; the other options are the run's, except "
        "--data, --threads, " + ", ".join(map(flag_of, CHANGEABLE_ON_RESUME))
        + ", --tensorboard, --no-report and --restart-schedule (default: start a new run)",
    )  # fmt: skip
    where.add_argument(
        "--restart-schedule", action=argparse.BooleanOptionalAction,
        help="with --resume, let the learning rate start again and fall over the epochs that are "
        "left; a cosine cannot get more --epochs without it (default: no)",
    )  # fmt: skip
    add_fields(where, TrainConfig, "results", _default, notes)
    where.add_argument(
        "--tensorboard", action=argparse.BooleanOptionalAction,
        help="also write TensorBoard logs to tensorboard/ in the run directory (default: no)",
    )  # fmt: skip
    where.add_argument(
        "--report", action=argparse.BooleanOptionalAction,
        help="write a plot and a page at the end (default: yes)",
    )  # fmt: skip
    parser.set_defaults(run=run)
    return parser


def _default(name: str, otherwise: Any) -> str:
    scenes, data = (
        shown(recipe.settings.get(name, otherwise)) for recipe in (SCENE_DEFAULTS, DATA_DEFAULTS)
    )
    return f"(default: {data})" if scenes == data else f"(default: {data}; drawn scenes: {scenes})"


# -- a run from its start to its report


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    ranks = distributed.join()
    if ranks is None:
        return _run_from_file(arguments, None)
    try:
        with distributed.quiet(ranks):
            status = _run_from_file(arguments, ranks)
            ranks.meet()
        return status
    except BaseException as error:
        if ranks.together:
            if ranks.is_root:
                raise
            return 0  # rank 0 says it, and its exit status is that of mpirun
        if arguments.traceback:
            traceback.print_exc()
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        ranks.abort(f"{ranks.place}: {kind}{describe_error(error)}")


def _run_from_file(arguments: argparse.Namespace, ranks: distributed.Ranks | None) -> int:
    file = arguments.config
    if file is None:
        return _run(arguments, ranks)
    file.apply(arguments)
    try:
        return _run(arguments, ranks)
    except ArgumentError as error:
        name = "threads" if error.name == "count" else error.name
        if name not in vars(arguments):
            raise
        raise ValueError(f"{file.name_of(name)} {error.problem}") from error


def _run(arguments: argparse.Namespace, ranks: distributed.Ranks | None) -> int:
    began = time.perf_counter()
    if ranks is not None and arguments.threads is None and "OMP_NUM_THREADS" not in os.environ:
        arguments.threads = ranks.threads()
    use_threads(arguments)
    if arguments.restart_schedule and not arguments.resume:
        raise ValueError("--restart-schedule needs --resume")
    # The lock keeps others out of the run directory until the last file is written.
    with contextlib.ExitStack() as locks:
        if arguments.tensorboard:
            from ..tensorboard import TensorBoardLogger  # an error, if it is not installed
        start = _resume if arguments.resume else _begin
        trainer = start(arguments, locks, ranks)
        out = trainer.run
        if ranks is not None and not ranks.is_root:
            trainer.fit(verbose=False)
            return 0
        assert out is not None
        directory = Path(trainer.settings["data"])
        # They belong to the previous end of a run that is resumed.
        (out / runs.METRICS_FILE).unlink(missing_ok=True)
        if arguments.tensorboard:
            events = out / runs.EVENT_DIRECTORY
            trainer.callbacks.append(TensorBoardLogger(events, first_step=trainer.step))
        try:
            _fit(trainer, out)
        finally:
            for logger in trainer.callbacks:
                logger.close()
        with _resumable(out, "interrupted when training was done; write its results"):
            write_results(trainer, directory, began, page=arguments.report is not False)
    return 0


@contextlib.contextmanager
def _resumable(out: Path, about: str) -> Iterator[None]:
    """Let an interrupt say what was interrupted, and the command that goes on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{about} with: {_resume_with(out)}") from None


def _fit(trainer: Trainer, out: Path) -> None:
    """Train; errors say how to resume."""
    resume = _resume_with(out)
    try:
        trainer.fit(verbose=True)
    except Interrupted as stop:
        stop.args = (f"{stop}; resume with: {resume}",)
        raise
    except OSError as error:
        if not checkpoint_steps(out):
            raise
        problem = describe_error(error)
        raise OSError(f"{problem}; once this is fixed, resume with: {resume}") from error


def _resume_with(out: Path) -> str:
    return f"fastrnn train --resume {shlex.quote(str(out))}"


def _begin(
    arguments: argparse.Namespace, locks: contextlib.ExitStack, ranks: distributed.Ranks | None
) -> Trainer:
    """Start a run: settings, data, and a model with its first weights."""
    if ranks is not None:
        return _begin_together(arguments, locks, ranks)
    out, settings, config, model = _plan(arguments)
    directory = Path(arguments.data or settings["data"])  # as it was typed, for messages
    if arguments.data:
        # Create the run directory only if the data can be used for training.
        trainer = _new_trainer(out, settings, config, directory)
        lock = make_directory(out, arguments, settings, config, locks)
    else:
        lock = make_directory(out, arguments, settings, config, locks)
        with _resumable(out, _BEFORE_TRAINING):
            draw_scenes(directory, config.seed)
            trainer = _new_trainer(out, settings, config, directory)
    trainer.use_lock(lock)
    if arguments.recipe:
        say_facts({"recipe": describe_recipe(arguments.recipe, model, config)})
    return trainer


def _begin_together(
    arguments: argparse.Namespace, locks: contextlib.ExitStack, ranks: distributed.Ranks
) -> Trainer:
    """Start a run on several ranks, of which rank 0 alone writes."""
    out, settings, config, model = ranks.do(lambda: _plan(arguments))
    # rank 0 chooses the directory, whose name has the date
    chosen, place = ranks.broadcast((out, settings["data"]))
    if settings["drawn"]:
        settings["data"] = place
    directory = Path(arguments.data or settings["data"])  # as it was typed, for messages
    ranks.agree({"--data": settings["data"], "--recipe": settings["recipe"],
                 "--out": arguments.out, **dataclasses.asdict(model)})  # fmt: skip
    lock: list[RunLock] = []

    def make() -> None:
        if ranks.is_root:
            lock.append(make_directory(chosen, arguments, settings, config, locks))

    def start() -> Trainer:
        return Trainer(run.start_model(data), data, config, settings=settings, ranks=ranks)

    if not arguments.data:
        ranks.do(make)
        ranks.do(lambda: draw_scenes(directory, config.seed) if ranks.is_root else None)
    run = Run(chosen, settings, config, directory)
    data = ranks.read_once(run.read_data)
    trainer = ranks.do(start)
    if arguments.data:
        ranks.do(make)
    if ranks.is_root:
        trainer.use_lock(lock[0])
        facts = {"ranks": f"{ranks.size}, threads of each: {fastrnn.get_num_threads()}"}
        if arguments.recipe:
            facts["recipe"] = describe_recipe(arguments.recipe, model, config)
        say_facts(facts)
    return trainer


def _plan(arguments: argparse.Namespace) -> tuple[Path, dict[str, Any], TrainConfig, ModelConfig]:
    """Return the run directory and the settings."""
    for name in ("raw_features", "recipe"):
        if getattr(arguments, name) and arguments.data is None:
            named = named_directory()
            if named is None:
                raise ValueError(f"{flag_of(name)} needs --data, or {DATA_VARIABLE}")
            arguments.data = str(named)
    model, config = _choose(arguments)
    out = free_directory(arguments, model.cell)
    directory = Path(arguments.data) if arguments.data else out / runs.SCENE_DIRECTORY
    settings = {
        "data": str(directory.resolve()),
        "drawn": not arguments.data,
        "raw_features": bool(arguments.raw_features),
        "features_dtype": arguments.features_dtype,
        "max_train": arguments.max_train,
        "recipe": arguments.recipe,
        **dataclasses.asdict(model),
    }
    return out, settings, config, model


def _new_trainer(
    out: Path, settings: dict[str, Any], config: TrainConfig, directory: Path
) -> Trainer:
    run = Run(out, settings, config, directory)
    data = run.read_data()
    return Trainer(run.start_model(data), data, config, settings=settings)


def _choose(arguments: argparse.Namespace) -> tuple[ModelConfig, TrainConfig]:
    """Return the settings: given options, then those of the recipe, then defaults."""
    model_names, training_names = (
        [field.name for field in dataclasses.fields(config)]
        for config in (ModelConfig, TrainConfig)
    )
    # A recipe replaces the defaults of this command. Other fields have their own defaults.
    recipe = DATA_DEFAULTS if arguments.data else SCENE_DEFAULTS
    if arguments.recipe:
        recipe = RECIPES[arguments.recipe]
    chosen = recipe.settings
    given = {
        name: v
        for name in model_names + training_names
        if (v := getattr(arguments, name)) is not None
    }
    chosen.update(given)
    decays = chosen.get("schedule") in ("step", "exponential")
    if not decays and "schedule" not in given and "lr_decay" in given:
        chosen["schedule"] = "step"
    elif not decays and "lr_decay" not in given:
        chosen.pop("lr_decay", None)
    return (
        ModelConfig(**{name: chosen[name] for name in model_names if name in chosen}),
        TrainConfig(**{name: chosen[name] for name in training_names if name in chosen}),
    )


def describe_recipe(recipe: str, model: ModelConfig, config: TrainConfig) -> str:
    """Return the name of a recipe, and the settings that differ from it."""
    changes, settings = [], RECIPES[recipe].settings
    for chosen in (model, config):
        for field in dataclasses.fields(chosen):
            value = getattr(chosen, field.name)
            planned = settings.get(field.name, field.default)
            if value != planned and field.name not in ("cell", "seed"):
                changes.append(f"{flag_of(field.name)} {shown(value)} instead of {shown(planned)}")
    return f"{recipe}, with {', '.join(changes)}" if changes else recipe


def _resume(
    arguments: argparse.Namespace, locks: contextlib.ExitStack, ranks: distributed.Ranks | None
) -> Trainer:
    """Resume a run; refuse options that cannot change."""
    if ranks is None:
        run = read_run(arguments.resume)
        lock = locks.enter_context(RunLock(run.directory))
        changes = _changes(arguments, run)
        _draw_again(run)
        data = run.read_data(arguments.data)
        trainer = Trainer.resume(
            run.directory, data, restart_schedule=bool(arguments.restart_schedule), **changes
        )
        trainer.use_lock(lock)
    else:
        run = ranks.do(lambda: read_run(arguments.resume))
        trainer = _resume_together(arguments, run, locks, ranks)
    directory = arguments.data or run.data_directory
    if directory is not None:
        trainer.settings["data"] = str(Path(directory).resolve())
    trainer.settings.setdefault("drawn", False)
    done = trainer.step / trainer.steps_per_epoch
    epochs = f"{done:.4g} of {trainer.config.all_epochs} epochs"
    say_facts({"resumed": f"{run.directory} after {epochs}"})
    return trainer


def _resume_together(
    arguments: argparse.Namespace,
    run: Run,
    locks: contextlib.ExitStack,
    ranks: distributed.Ranks,
) -> Trainer:
    lock = ranks.do(lambda: locks.enter_context(RunLock(run.directory)) if ranks.is_root else None)
    changes = ranks.do(lambda: _changes(arguments, run))
    ranks.do(lambda: _draw_again(run) if ranks.is_root else None)
    data = ranks.read_once(lambda: run.read_data(arguments.data))
    trainer = ranks.do(
        lambda: Trainer.resume(
            run.directory,
            data,
            restart_schedule=bool(arguments.restart_schedule),
            ranks=ranks,
            **changes,
        )
    )
    if lock is not None:
        trainer.use_lock(lock)
    return trainer


def _draw_again(run: Run) -> None:
    if run.settings.get("drawn") and not checkpoint_steps(run.directory):
        # The run was stopped while its scenes were drawn.
        with _resumable(run.directory, _BEFORE_TRAINING):
            draw_scenes(run.directory / runs.SCENE_DIRECTORY, run.config.seed)


def _changes(arguments: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Return the settings of a run that change; refuse options that cannot change."""
    allowed = {
        "resume", "command", "run", "data", "threads", "tensorboard", "report", "traceback",
        "config", "restart_schedule", *CHANGEABLE_ON_RESUME,
    }  # fmt: skip
    named = arguments.config.name_of if arguments.config else flag_of
    for name, value in vars(arguments).items():
        if name not in allowed and value is not None:
            was = run.settings.get(name)
            stays = "" if was is None else f"; the run has {shown(was)}"
            raise ValueError(f"{named(name)} cannot be given with --resume{stays}")
    changes = {
        name: v for name in CHANGEABLE_ON_RESUME if (v := getattr(arguments, name)) is not None
    }
    return changes
