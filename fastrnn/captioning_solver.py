"""The course's training loop for captioning models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from . import optim
from .classifiers.rnn import CaptioningRNN, CaptioningWorkspace
from .coco_utils import sample_coco_minibatch

__all__ = ["CaptioningSolver", "np"]


class CaptioningSolver:
    """Train a captioning model by stochastic gradient descent on random minibatches.

    Parameters
    ----------
    model : object
        Any object with a dict ``params`` of arrays and a method
        ``loss(features, captions) -> (loss, grads)``, where ``grads`` has the keys of ``params``.
    data : mapping
        Data set as returned by `load_coco_data`: captions, image indices, features and URLs.
    update_rule : str, optional
        Name of an update rule in `fastrnn.optim`. Default 'sgd'.
    optim_config : dict, optional
        Hyperparameters of the update rule, such as 'learning_rate'. Each parameter gets its own
        copy.
    lr_decay : float, optional
        Factor by which the learning rate is multiplied after each epoch. Default 1.0.
    batch_size : int, optional
        Number of captions in a minibatch. Default 100.
    num_epochs : int, optional
        Number of epochs to train. An epoch draws as many captions as there are training captions,
        rounded down to whole minibatches. Default 10.
    print_every : int, optional
        Number of iterations between printed losses. Default 10.
    verbose : bool, optional
        Whether to print the losses. Default True.

    Attributes
    ----------
    loss_history : list of float
        Loss of each iteration so far.
    epoch : int
        Number of finished epochs.
    optim_configs : dict of str to dict
        Hyperparameters and state of the update rule for each parameter.
    best_val_acc, best_params, train_acc_history, val_acc_history
        Unused; they exist for compatibility with the course. Captions have no accuracy.

    Raises
    ------
    ValueError
        If `update_rule` is not in `fastrnn.optim`, an argument is unknown, or `batch_size` or
        `print_every` is less than 1.

    Notes
    -----
    Each iteration draws its minibatch by one call of the global ``np.random.choice``. With the
    same seed, the minibatches are those of the course's solver.

    Examples
    --------
    Two captions, learned by heart:

    >>> from fastrnn.captioning_solver import CaptioningSolver
    >>> from fastrnn.classifiers.rnn import CaptioningRNN
    >>> from fastrnn.coco_utils import decode_captions
    >>> words = {"<NULL>": 0, "<START>": 1, "<END>": 2, "a": 3, "dog": 4, "runs": 5}
    >>> np.random.seed(0)
    >>> features = np.random.standard_normal((2, 6)).astype(np.float32)
    >>> data = {
    ...     "train_captions": np.array([[1, 3, 4, 2, 0], [1, 3, 4, 5, 2]]),
    ...     "train_image_idxs": np.array([0, 1]),
    ...     "train_features": features,
    ...     "train_urls": np.array(["one.jpg", "two.jpg"]),
    ... }
    >>> model = CaptioningRNN(words, input_dim=6, wordvec_dim=8, hidden_dim=16, cell_type="lstm")
    >>> solver = CaptioningSolver(
    ...     model, data, update_rule="adam", optim_config={"learning_rate": 0.05}, batch_size=2,
    ...     num_epochs=100, verbose=False,
    ... )
    >>> solver.train()
    >>> len(solver.loss_history), bool(solver.loss_history[-1] < solver.loss_history[0] / 5)
    (100, True)
    >>> decode_captions(model.sample(features, max_length=5, stop_at_end=True), model.idx_to_word)
    ['a dog <END>', 'a dog runs <END>']
    """

    _rules: ClassVar[Any] = optim

    def __repr__(self) -> str:
        rule = getattr(self.update_rule, "__name__", self.update_rule)
        return (
            f"{type(self).__name__}({self.model!r}, update_rule={rule!r}, "
            f"batch_size={self.batch_size}, num_epochs={self.num_epochs}, "
            f"{len(self.loss_history):,} steps done)"
        )

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
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")

        rule = getattr(self._rules, rule_name, None)
        if not callable(rule):
            raise ValueError(f'Invalid update_rule "{rule_name}"')
        self.update_rule: Callable[..., tuple[np.ndarray, dict[str, Any]]] = rule

        self._reset()

    def _reset(self) -> None:
        self.epoch: int = 0
        self.best_val_acc: float = 0
        self.best_params: dict[str, np.ndarray] = {}
        self.loss_history: list[Any] = []
        self.train_acc_history: list[float] = []
        self.val_acc_history: list[float] = []
        self._workspace = CaptioningWorkspace()
        self.optim_configs: dict[str, dict[str, Any]] = {
            name: dict(self.optim_config) for name in self.model.params
        }

    def _step(self) -> None:
        """Draw a minibatch and update every parameter once."""
        captions, features, _ = sample_coco_minibatch(
            self.data, batch_size=self.batch_size, split="train"
        )
        # fastrnn's own model and update rules reuse their memory from step to step. Other models
        # and rules are called without these extra arguments.
        if getattr(self.model.loss, "__func__", None) is CaptioningRNN.loss:
            loss, grads = self.model.loss(features, captions, workspace=self._workspace)
        else:
            loss, grads = self.model.loss(features, captions)
        self.loss_history.append(loss)
        params = self.model.params
        if self.update_rule in optim.IN_PLACE_RULES:
            optim.update_all(self.update_rule, params, grads, self.optim_configs)
            return
        for name, w in params.items():
            params[name], self.optim_configs[name] = self.update_rule(
                w, grads[name], self.optim_configs[name]
            )

    def _iterations_per_epoch(self) -> float:
        return max(self.data["train_captions"].shape[0] // self.batch_size, 1)

    def train(self) -> None:
        """Train for `num_epochs` epochs of ``max(num_train // batch_size, 1)`` iterations."""
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
        """Return 0.0: captions have no accuracy. Exists for compatibility with the course."""
        return 0.0
