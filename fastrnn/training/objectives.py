"""Training objectives: the likelihood of captions, or the rewards of drawn captions.

An objective says which batches make up an epoch, and computes the gradients of a batch.
`CaptionObjective` maximises the likelihood of the training captions; `RewardObjective` maximises
the CIDEr-D of captions that the model draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..classifiers.rnn import CaptioningRNN, CaptioningWorkspace, Regularisation, Share
from ..decoding import sample
from ..evaluation import longest_caption
from ..rewards import CiderReward
from ..words import NULL, START
from .config import TrainConfig
from .start import feature_scale

if TYPE_CHECKING:
    from .distributed import GradientSum

_ORDER, _NOISE, _MASKS, _DRAWS = 1, 2, 3, 4
"""RNG stream ids, one per purpose."""


@dataclass(frozen=True)
class Gradients:
    """What an objective computes for a batch.

    Attributes
    ----------
    grads : dict of str to ndarray
        The gradients of the loss.
    loss : float
        The loss that was differentiated.
    total : float
        The sum for the records: of nats over words, or of rewards over drawn captions.
    count : int
        The number of these words or captions.
    """

    grads: dict[str, np.ndarray]
    loss: float
    total: float
    count: int


class Objective(Protocol):
    """The interface of an objective."""

    minimises_loss: bool
    """Whether the validation loss is expected to fall."""

    @property
    def captions_per_row(self) -> int:
        """Number of training captions for each row of a batch."""

    @property
    def weight_decay(self) -> float:
        """The decoupled weight decay."""

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Return the batches of an epoch, counted from 0."""

    def gradients(self, rows: np.ndarray, step: int) -> Gradients:
        """Compute the gradients of a batch in a step, counted from 0."""

    def summary(self, total: float, count: int) -> dict[str, float | None]:
        """Return the entries of a record for some steps, from the sums of `total` and `count`."""


class TrainingSet:
    """The training data, and the values that are computed from them once.

    Parameters
    ----------
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it.
    model : CaptioningRNN
        The model to train.
    batch_size : int
        The largest number of captions in a batch.

    Attributes
    ----------
    data : mapping
        As given.
    words : int ndarray (M,)
        The number of words in each caption.
    mean, deviation : ndarray (D,), float
        The mean and the standard deviation of the features.
    steps_per_epoch : int
    """

    def __init__(self, data: Mapping[str, Any], model: CaptioningRNN, batch_size: int) -> None:
        self.data = data
        self._word_to_idx, self._dtype = model.word_to_idx, model.dtype
        captions = data["train_captions"]
        self.words: np.ndarray = np.count_nonzero(
            captions[:, 1:] != model.word_to_idx[NULL], axis=1
        )
        self.steps_per_epoch: int = -(-len(captions) // batch_size)
        self.mean: np.ndarray
        self.deviation: float
        self.mean, self.deviation = feature_scale(data["train_features"])

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the standardised features of some images."""
        features = self.data["train_features"][images]
        return ((features - self.mean) / self.deviation).astype(self._dtype)

    @cached_property
    def reward(self) -> CiderReward:
        """The CIDEr-D of captions against the training captions."""
        data = self.data
        return CiderReward(
            data["train_captions"], data["train_image_idxs"], len(data["train_features"]),
            self._word_to_idx,
        )  # fmt: skip


class _Objective:
    """What the objectives are made of; the parameters are described at `CaptionObjective`."""

    def __init__(
        self,
        training: TrainingSet,
        network: CaptioningRNN,
        config: TrainConfig,
        workspace: CaptioningWorkspace,
        ranks_sum: GradientSum | None = None,
    ) -> None:
        self._training, self._network = training, network
        self._config, self._workspace = config, workspace
        self._sum = ranks_sum

    def _share_of(self, words: np.ndarray) -> np.ndarray | None:
        """Return the rows of a batch that this rank computes; None for all of them."""
        return None if self._sum is None else self._sum.ranks.share_of(words)

    def _share(self, rows: np.ndarray | None, size: int) -> dict[str, Any]:
        """Return the arguments that tell `CaptioningRNN.loss` which part of a batch it gets."""
        if self._sum is None or rows is None:
            return {}
        return {"share": Share(rows, size, self._sum.ready)}


class CaptionObjective(_Objective):
    """The likelihood of the training captions; the rows of a batch are captions.

    Parameters
    ----------
    training : TrainingSet
        The captions, and the standardised features of their images.
    network : CaptioningRNN
        The model in training; it reads standardised features.
    config : TrainConfig
        The settings.
    workspace : CaptioningWorkspace
        Memory to use.
    ranks_sum : GradientSum, optional
        Where several ranks train together: what adds up their gradients. Each then computes a share
        of the batch.
    """

    captions_per_row = 1
    minimises_loss = True

    @property
    def weight_decay(self) -> float:
        """The decoupled weight decay."""
        return self._config.weight_decay

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Return the rows of each batch: every caption once, in random order."""
        rng = np.random.default_rng([self._config.seed, _ORDER, epoch])
        words, steps = self._training.words, self._training.steps_per_epoch
        order = rng.permutation(len(words))
        if not self._config.bucket_by_length:
            return np.array_split(order, steps)
        # A stable sort, so that captions of one length stay in random order.
        order = order[np.argsort(words[order], kind="stable")]
        batches = np.array_split(order, steps)
        return [batches[i] for i in rng.permutation(len(batches))]

    def gradients(self, rows: np.ndarray, step: int) -> Gradients:
        """Compute the gradients of the loss of captions; sum its nats and count the words."""
        weights, captions = self._weights, self._training.data["train_captions"]
        size, features = len(rows), self._noisy_features(rows, step)
        regularisation = self._regularisation(step)
        share = self._share_of(self._training.words[rows])
        if self._sum is not None:
            # with scheduled sampling, input words are those of no caption
            drawn = regularisation is not None and regularisation.scheduled_sampling
            self._sum.begin(None if drawn else np.unique(captions[rows, :-1]))
            features, rows = features[share], rows[share]
        loss, grads = self._network.loss(
            features,
            captions[rows],
            weights=None if weights is None else weights[rows],
            workspace=self._workspace,
            regularisation=regularisation,
            **self._share(share, size),
        )
        nats = float(loss) * size
        return Gradients(grads, float(loss), nats, int(self._training.words[rows].sum()))

    def summary(self, total: float, count: int) -> dict[str, float | None]:
        """Return the loss per word."""
        return {"loss": total / max(count, 1)}

    @cached_property
    def _weights(self) -> np.ndarray | None:
        """The weight of each caption, by its CIDEr-D against the image's other captions."""
        if not self._config.consensus:
            return None
        agreement = self._training.reward.agreement() ** self._config.consensus
        mean = agreement.mean()  # 0 if each image has one caption
        return agreement / mean if mean > 0 else np.ones_like(agreement)

    @np.errstate(invalid="ignore", over="ignore")
    def _noisy_features(self, rows: np.ndarray, step: int) -> np.ndarray:
        features = self._training.features(self._training.data["train_image_idxs"][rows])
        if self._config.feature_noise:
            rng = np.random.default_rng([self._config.seed, _NOISE, step])
            noise = rng.standard_normal(features.shape, dtype=np.float32)
            features += np.float32(self._config.feature_noise) * noise
        return features

    def _regularisation(self, step: int) -> Regularisation | None:
        config = self._config
        if not (
            config.embed_dropout
            or config.vocab_dropout
            or config.label_smoothing
            or config.scheduled_sampling
        ):
            return None
        last = config.epochs * self._training.steps_per_epoch - 1
        return Regularisation(
            embed_dropout=config.embed_dropout,
            vocab_dropout=config.vocab_dropout,
            label_smoothing=config.label_smoothing,
            scheduled_sampling=config.scheduled_sampling * step / max(last, 1),
            seed=_step_seed(config.seed, _MASKS, step),
        )


class RewardObjective(_Objective):
    """The CIDEr-D of captions that the model draws; the rows of a batch are images.

    This is self-critical training (Rennie et al. 2017). The reward of a caption is compared with
    the mean reward of the image's other captions (Kool, van Hoof and Welling 2019).

    Parameters
    ----------
    training, network, config, workspace, ranks_sum
        As for `CaptionObjective`.
    """

    weight_decay: float = 0.0
    minimises_loss = False

    @property
    def captions_per_row(self) -> int:
        """Number of captions that are drawn for each image."""
        return self._config.reward_captions

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Return the images of each batch: every image that has captions, in random order.

        There are as many batches as in other epochs, so with few images, each is used several
        times.
        """
        rng = np.random.default_rng([self._config.seed, _ORDER, epoch])
        images = np.unique(self._training.data["train_image_idxs"])
        times = -(-self._training.steps_per_epoch // len(images))
        order = np.concatenate([rng.permutation(images) for _ in range(times)])
        return np.array_split(order, self._training.steps_per_epoch)

    def gradients(self, rows: np.ndarray, step: int) -> Gradients:
        """Draw captions for images and compute the gradients; sum the rewards."""
        count, network, training = self._config.reward_captions, self._network, self._training
        size = len(rows)
        share = self._share_of(np.zeros(size))  # nobody knows how long the captions will be
        if self._sum is not None:
            self._sum.begin()
            rows = rows[share]
        features = training.features(rows)
        seed = _step_seed(self._config.seed, _DRAWS, step)
        drawn = sample(  # from the model itself: no word is suppressed, and captions may be empty
            network, features, longest_caption(training.data), count=count, seed=seed, min_length=0,
            rows=share,
        )  # fmt: skip
        ids = drawn.ids.reshape(len(rows) * count, drawn.ids.shape[-1])
        rewards = training.reward(ids, np.repeat(rows, count)).reshape(-1, count)
        others = (rewards.sum(axis=1, keepdims=True) - rewards) / (count - 1)
        start = np.full((len(ids), 1), network.word_to_idx[START], ids.dtype)
        loss, grads = network.loss(
            np.repeat(features, count, axis=0),
            np.concatenate([start, ids], axis=1),
            weights=(rewards - others).ravel(),
            workspace=self._workspace,
            **self._share(None if share is None else _captions_of(share, count), size * count),
        )
        return Gradients(grads, float(loss), float(rewards.sum()), rewards.size)

    def summary(self, total: float, count: int) -> dict[str, float | None]:
        """Return the mean reward."""
        return {"loss": None, "reward": total / max(count, 1)}


def _captions_of(images: np.ndarray, count: int) -> np.ndarray:
    """Return the rows of the captions of some images, of which each has `count`."""
    return (images[:, None] * count + np.arange(count)).ravel()


def _step_seed(seed: int, purpose: int, step: int) -> int:
    sequence = np.random.SeedSequence([seed, purpose, step])
    return int(sequence.generate_state(1, np.uint64)[0])
