"""The course's training loop in plain NumPy: the reference for ``fastrnn.captioning_solver``."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import optim

__all__ = ["CaptioningSolver"]


class CaptioningSolver:
    """Train a captioning model by stochastic gradient descent on random minibatches.

    Parameters
    ----------
    model : object
        Any object with a dict ``params`` of arrays and a method
        ``loss(features, captions) -> (loss, grads)``, where ``grads`` has the keys of ``params``.
    data : dict
        ``train_captions``, int (C, L); ``train_features``, float (I, D); and
        ``train_image_idxs``, int (C,), the row of `train_features` for each caption.
    update_rule : str, default 'sgd'
        Name of an update rule in the module ``optim``.
    optim_config : dict, default empty
        Hyperparameters of the update rule. Each parameter gets its own copy.
    lr_decay : float, default 1.0
        Factor by which the learning rate is multiplied after each epoch.
    batch_size : int, default 100
        Number of captions in a minibatch.
    num_epochs : int, default 10
        Number of epochs, each of ``max(C // batch_size, 1)`` steps.
    print_every : int, default 10
        Number of steps between printed losses.
    verbose : bool, default True
        Whether to print the losses.

    Attributes
    ----------
    loss_history : list of float
        Loss of each step so far.
    optim_configs : dict of str to dict
        Hyperparameters and state of the update rule for each parameter.

    Raises
    ------
    ValueError
        If `update_rule` is not in ``optim``, or an argument is unknown.
    """

    def __init__(self, model: Any, data: Mapping[str, Any], **kwargs: Any) -> None:
        self.model: Any = model
        self.data: Mapping[str, Any] = data
        update_rule = kwargs.pop("update_rule", "sgd")
        self.optim_config: dict[str, Any] = kwargs.pop("optim_config", {})
        self.lr_decay: float = kwargs.pop("lr_decay", 1.0)
        self.batch_size: int = kwargs.pop("batch_size", 100)
        self.num_epochs: int = kwargs.pop("num_epochs", 10)
        self.print_every: int = kwargs.pop("print_every", 10)
        self.verbose: bool = kwargs.pop("verbose", True)
        if kwargs:
            names = ", ".join(f'"{name}"' for name in kwargs)
            raise ValueError(f"Unrecognized arguments {names}")
        if not hasattr(optim, update_rule):
            raise ValueError(f'Invalid update_rule "{update_rule}"')
        self.update_rule: Callable[..., tuple[Any, dict[str, Any]]] = getattr(optim, update_rule)
        self._reset()

    def _reset(self) -> None:
        """Reset the training state, but not the parameters of the model."""
        self.epoch: int = 0
        self.best_val_acc: float = 0
        self.best_params: dict[str, np.ndarray] = {}
        self.loss_history: list[float] = []
        self.train_acc_history: list[float] = []
        self.val_acc_history: list[float] = []
        self.optim_configs: dict[str, dict[str, Any]] = {
            name: dict(self.optim_config) for name in self.model.params
        }

    def _minibatch(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw captions and their features with replacement, from the global ``np.random``."""
        captions = self.data["train_captions"]
        chosen = np.random.choice(captions.shape[0], self.batch_size)
        images = self.data["train_image_idxs"][chosen]
        return captions[chosen], self.data["train_features"][images]

    def _step(self) -> None:
        """Draw a minibatch and update every parameter once."""
        captions, features = self._minibatch()
        loss, grads = self.model.loss(features, captions)
        self.loss_history.append(loss)
        for name, param in self.model.params.items():
            self.model.params[name], self.optim_configs[name] = self.update_rule(
                param, grads[name], self.optim_configs[name]
            )

    def check_accuracy(
        self, X: Any, y: Any, num_samples: int | None = None, batch_size: int = 100
    ) -> float:
        """Return 0.0: captions have no accuracy. Exists for compatibility with the course."""
        return 0.0

    def train(self) -> None:
        """Train for all epochs; the losses are appended to `loss_history`."""
        steps_per_epoch = max(self.data["train_captions"].shape[0] // self.batch_size, 1)
        steps = self.num_epochs * steps_per_epoch
        for t in range(steps):
            self._step()
            if self.verbose and t % self.print_every == 0:
                print(f"(Iteration {t + 1} / {steps}) loss: {self.loss_history[-1]:f}")
            if (t + 1) % steps_per_epoch == 0:
                self.epoch += 1
                for config in self.optim_configs.values():
                    config["learning_rate"] *= self.lr_decay
