"""Log the scalars and captions of a training for TensorBoard.

Importing this module needs tensorboardX, or torch with tensorboard.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from .extras import install_command
from .runs import is_epoch_record

__all__ = ["TensorBoardLogger"]

try:
    from tensorboardX import SummaryWriter
except ImportError:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(
            "writing for TensorBoard needs tensorboardX, or torch and tensorboard: "
            + install_command("tensorboard")
        ) from None

_TAGS = {
    "loss": "loss/training",
    "reward": "training/reward",
    "val_loss": "loss/validation",
    "val_perplexity": "validation/perplexity",
    "val_bleu_4": "validation/BLEU-4",
    "val_cider": "validation/CIDEr",
    "learning_rate": "training/learning_rate",
    "captions_per_second": "training/captions_per_second",
    "seconds": "training/seconds",
    "validation_seconds": "validation/seconds",
}
"""The tag of each number of the history."""


class TensorBoardLogger:
    """Callbacks of a `fastrnn.training.Trainer` that write TensorBoard event files.

    Parameters
    ----------
    directory : path
        The directory of the event files; it is created if it does not exist. A resumed training
        adds a file.
    captions : int, optional
        Number of validation captions to write as text after every epoch.
    first_step : int, optional
        The step that a resumed training starts from. Records up to this step are not written again,
        and TensorBoard hides the records of later steps that an earlier writer wrote.

    Raises
    ------
    ValueError
        `captions` or `first_step` is negative.

    Examples
    --------
    .. code-block:: python

        with TensorBoardLogger("runs/one/tensorboard") as logger:
            Trainer(model, data, callbacks=[logger]).fit()
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, captions: int = 12, first_step: int = 0
    ) -> None:
        for name, value in (("captions", captions), ("first_step", first_step)):
            if value < 0:
                raise ValueError(f"{name} is {value}; expected at least 0")
        # Event files are named by the second. The suffix keeps a training that is resumed within
        # that second from overwriting a file.
        self._writer = SummaryWriter(
            os.fspath(directory),
            purge_step=first_step + 1 if first_step else None,
            filename_suffix=f".{first_step}",
        )
        self._captions, self._first_step = captions, first_step
        self._written = 0  # records of the history
        self._said: list[str] = []

    def on_step(self, trainer: Any, record: Mapping[str, Any]) -> None:
        """Write the new records of the history."""
        self._catch_up(trainer.history)

    def on_validation(
        self, trainer: Any, metrics: Mapping[str, Any], captions: Sequence[str]
    ) -> None:
        """Keep some captions; they are written with the step of the epoch's end."""
        self._said = list(captions[: self._captions])

    def on_epoch(self, trainer: Any, record: Mapping[str, Any]) -> None:
        """Write the epoch's numbers and captions."""
        self._catch_up(trainer.history)
        if self._said:
            # A Markdown list; the characters of a caption are escaped.
            lines = [f"{n}. {_plain(said)}" for n, said in enumerate(self._said, 1)]
            self._writer.add_text("captions", "\n".join(lines), record["step"])
            self._said = []
        self._writer.flush()

    def _catch_up(self, history: Sequence[Mapping[str, Any]]) -> None:
        for record in history[self._written :]:
            if record["step"] <= self._first_step:
                continue
            # The epoch's last step already has a loss, a reward and a rate.
            epoch = is_epoch_record(record)
            for name, tag in _TAGS.items():
                value = record.get(name)
                if value is None or (epoch and name in ("loss", "reward", "learning_rate")):
                    continue
                if math.isfinite(value):
                    self._writer.add_scalar(tag, value, record["step"])
        self._written = len(history)

    def close(self) -> None:
        """Write what is pending, and close the file."""
        self._writer.close()

    def __enter__(self) -> TensorBoardLogger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _plain(text: str) -> str:
    """Escape the characters that have a meaning in Markdown and HTML."""
    marks = "\\`*_[]|<>&"
    return "".join(f"\\{c}" if c in marks else c for c in text) or "(no words)"
