"""The training loop over the NumPy network: the twin of ``fastrnn.captioning_solver``."""

import numpy as np

from . import optim


class CaptioningSolver:
    """Train a captioning model by stochastic gradient descent.

    Parameters
    ----------
    model : object
        Anything with a dictionary ``params`` and a method
        ``loss(features, captions) -> (loss, grads)``.
    data : dict
        ``train_captions`` (C, L) of int, ``train_image_idxs`` (C,) of int, the row of each
        caption's image in ``train_features`` (I, D).
    update_rule : str, default 'sgd'
        Name of a rule of the module ``optim``.
    optim_config : dict, default empty
        Settings of the rule; every parameter gets a copy of its own.
    lr_decay : float, default 1.0
        Factor of the learning rate at the end of an epoch.
    batch_size : int, default 100
        Captions in a batch.
    num_epochs : int, default 10
        Number of epochs of ``max(C // batch_size, 1)`` steps.
    print_every : int, default 10
        Print the loss every so many steps.
    verbose : bool, default True
        Whether to print at all.

    Attributes
    ----------
    loss_history : list of float
        The loss of every step.
    optim_configs : dict of str to dict
        The state of the rule for every parameter.

    Raises
    ------
    ValueError
        If there is no such rule, or for an argument that is not listed above.
    """

    def __init__(self, model, data: dict, **kwargs) -> None:
        self.model = model
        self.data = data
        update_rule = kwargs.pop("update_rule", "sgd")
        self.optim_config = kwargs.pop("optim_config", {})
        self.lr_decay = kwargs.pop("lr_decay", 1.0)
        self.batch_size = kwargs.pop("batch_size", 100)
        self.num_epochs = kwargs.pop("num_epochs", 10)
        self.print_every = kwargs.pop("print_every", 10)
        self.verbose = kwargs.pop("verbose", True)
        if kwargs:
            names = ", ".join(f'"{name}"' for name in kwargs)
            raise ValueError(f"Unrecognized arguments {names}")
        if not hasattr(optim, update_rule):
            raise ValueError(f'Invalid update_rule "{update_rule}"')
        self.update_rule = getattr(optim, update_rule)
        self._reset()

    def _reset(self) -> None:
        """Forget all training so far, but for the parameters of the model."""
        self.epoch = 0
        self.best_val_acc = 0
        self.best_params: dict = {}
        self.loss_history: list[float] = []
        self.train_acc_history: list[float] = []
        self.val_acc_history: list[float] = []
        self.optim_configs = {name: dict(self.optim_config) for name in self.model.params}

    def _minibatch(self) -> tuple[np.ndarray, np.ndarray]:
        """Captions and features of a batch, drawn with replacement from the global generator."""
        captions = self.data["train_captions"]
        chosen = np.random.choice(captions.shape[0], self.batch_size)
        images = self.data["train_image_idxs"][chosen]
        return captions[chosen], self.data["train_features"][images]

    def _step(self) -> None:
        """Draw a batch and update every parameter once."""
        captions, features = self._minibatch()
        loss, grads = self.model.loss(features, captions)
        self.loss_history.append(loss)
        for name, param in self.model.params.items():
            self.model.params[name], self.optim_configs[name] = self.update_rule(
                param, grads[name], self.optim_configs[name]
            )

    def check_accuracy(self, X, y, num_samples=None, batch_size: int = 100) -> float:
        """Always 0.0: captions have no accuracy. It is here because the course has it."""
        return 0.0

    def train(self) -> None:
        """Run all epochs; the losses are in `loss_history` afterwards."""
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
