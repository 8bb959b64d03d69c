"""The course's training loop for captioning models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from . import optim
from .classifiers.rnn import CaptioningRNN, CaptioningWorkspace
from .coco_utils import sample_coco_minibatch


class CaptioningSolver:
    """Train a captioning model by stochastic gradient descent on random minibatches.

    Parameters
    ----------
    model : object
        Anything with a dict ``params`` of arrays and a method
        ``loss(features, captions) -> (loss, grads)``, where grads has the keys of params.
    data : mapping
        Captions, image indices, features and URLs, as `load_coco_data` returns them.
    update_rule : str, optional
        The name of a function in `fastrnn.optim`. Default 'sgd'.
    optim_config : dict, optional
        Its settings, such as 'learning_rate'; every parameter gets its own copy.
    lr_decay : float, optional
        The learning rates are multiplied by this after every epoch. Default 1.0.
    batch_size : int, optional
        Captions in a minibatch. Default 100.
    num_epochs : int, optional
        How many times the number of training captions to draw. Default 10.
    print_every : int, optional
        Print the loss every so many iterations. Default 10.
    verbose : bool, optional
        False prints nothing. Default True.

    Attributes
    ----------
    loss_history : list
        The loss of every iteration so far.
    epoch : int
        Epochs finished.
    optim_configs : dict
        The update rule's state and settings, per parameter.
    best_val_acc, best_params, train_acc_history, val_acc_history
        There for the notebooks' sake: captions have no accuracy, and these stay empty.

    Raises
    ------
    ValueError
        `update_rule` is not in `fastrnn.optim`, an argument is not known, or `batch_size` or
        `print_every` is less than 1.

    Notes
    -----
    Batches come from the global ``np.random``, one ``choice`` an iteration, so that a seeded run
    sees what it saw with the course's solver.
    """

    _rules: ClassVar[Any] = optim

    def __init__(self, model: Any, data: Mapping[str, Any], **kwargs: Any) -> None:
        self.model = model
        self.data = data

        rule_name = kwargs.pop("update_rule", "sgd")
        self.optim_config: dict[str, Any] = kwargs.pop("optim_config", {})
        self.lr_decay: float = kwargs.pop("lr_decay", 1.0)
        self.batch_size: int = kwargs.pop("batch_size", 100)
        self.num_epochs: int = kwargs.pop("num_epochs", 10)
        self.print_every: int = kwargs.pop("print_every", 10)
        self.verbose: bool = kwargs.pop("verbose", True)
        if kwargs:
            extra = ", ".join(f'"{name}"' for name in kwargs)
            raise ValueError(f"Unrecognized arguments {extra}")
        for name in ("batch_size", "print_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, was {getattr(self, name)}")

        rule = getattr(self._rules, rule_name, None)
        if not callable(rule):
            raise ValueError(f'Invalid update_rule "{rule_name}"')
        self.update_rule: Callable[..., tuple[np.ndarray, dict[str, Any]]] = rule

        self._reset()

    def _reset(self) -> None:
        self.epoch = 0
        self.best_val_acc = 0
        self.best_params: dict[str, np.ndarray] = {}
        self.loss_history: list[Any] = []
        self.train_acc_history: list[float] = []
        self.val_acc_history: list[float] = []
        self._workspace = CaptioningWorkspace()
        self.optim_configs = {name: dict(self.optim_config) for name in self.model.params}

    def _step(self) -> None:
        """Draw one minibatch, and update every parameter once."""
        captions, features, _ = sample_coco_minibatch(
            self.data, batch_size=self.batch_size, split="train"
        )
        # A model of ours and a rule of ours work in memory that is used again at every step; any
        # other model with `params` and `loss`, and any other rule, do as they always did.
        if getattr(self.model.loss, "__func__", None) is CaptioningRNN.loss:
            loss, grads = self.model.loss(features, captions, workspace=self._workspace)
        else:
            loss, grads = self.model.loss(features, captions)
        self.loss_history.append(loss)
        params = self.model.params
        reuse = {"in_place": True} if self.update_rule in optim.IN_PLACE_RULES else {}
        for name, w in params.items():
            params[name], self.optim_configs[name] = self.update_rule(
                w, grads[name], self.optim_configs[name], **reuse
            )

    def _iterations_per_epoch(self) -> float:
        return max(self.data["train_captions"].shape[0] // self.batch_size, 1)

    def train(self) -> None:
        """Run ``num_epochs`` epochs of ``num_train // batch_size`` iterations, at least one."""
        iterations_per_epoch = self._iterations_per_epoch()
        num_iterations = int(self.num_epochs * iterations_per_epoch)
        for t in range(num_iterations):
            self._step()
            if self.verbose and t % self.print_every == 0:
                print(f"(Iteration {t + 1} / {num_iterations}) loss: {self.loss_history[-1]:f}")
            if (t + 1) % iterations_per_epoch == 0:
                self.epoch += 1
                for config in self.optim_configs.values():
                    config["learning_rate"] *= self.lr_decay

    def check_accuracy(
        self, X: Any, y: Any, num_samples: int | None = None, batch_size: int = 100
    ) -> float:
        """Return 0.0: captions have no accuracy. It is here because the course has it."""
        return 0.0
