"""Images made by gradients: fooling images and visualisations, of words and of classes.

`fool` and `visualise` are for the words of a captioner. `compute_saliency_maps`,
`make_fooling_image` and `create_class_visualization` are the course's functions for a classifier,
such as `classifier_of` the network that makes the features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..image_utils import SQUEEZENET_MEAN, SQUEEZENET_STD
from ..vision.images import Preprocessing
from ..words import END, UNK
from .gradients import pixel_gradients, project, project_back, word_gradients
from .saliency import caption_ids, known_word, network_pixels, prepared

if TYPE_CHECKING:
    import torch

    from ..captioner import Captioner, ImageCaption
    from ..vision.networks import Network

_LARGEST_STEP = 0.5
"""Largest step of `fool`: root mean square over the pixels, in levels of 255."""
_EXTRA = 0.1
"""How far beyond the other words' scores the first step of `fool` goes."""
_GROWTH = 1.1
"""How much farther each further step goes, so that captions that alternate are left behind."""
_CAPTION_EVERY = 5
"""Steps of `visualise` with the same caption."""
_FARTHEST = 4
"""How far from the original `fool` looks: a change within the bound may lie on the way there."""
_SCALES = 8
"""Images between the original and a fooling image that are tried at a time."""


# -- Words


@dataclass(frozen=True)
class Fooling:
    """An image that was changed until a model says a word.

    Attributes
    ----------
    image : uint8 ndarray (S, S, 3)
        The changed image.
    original : uint8 ndarray (S, S, 3)
        The part of the original image that the network sees.
    word : str
        The word.
    before, after : str
        The greedy captions of the two images.
    change : float
        Root mean square of the change over all pixels and channels, in levels of 255.
    largest : int
        The largest change of a pixel, in levels.
    steps : int
        Number of gradient steps.
    """

    image: np.ndarray = field(repr=False)
    original: np.ndarray = field(repr=False)
    word: str
    before: str
    after: str
    change: float
    largest: int
    steps: int


def fool(
    captioner: Captioner, image: Any, word: str, *, bound: float = 8.0, max_steps: int = 100
) -> Fooling:
    """Change an image as little as possible, so that its caption has a given word.

    Each step goes to where the word's score would just exceed those of all other words if scores
    were linear in the pixels (DeepFool, Moosavi-Dezfooli et al. 2016), at the place in the caption
    that is closest to it. Then the change is made as small as it can be along its direction. The
    caption is always that of the image in 8 bits.

    Parameters
    ----------
    captioner : Captioner
        The model with its network, which may not be an ONNX model.
    image : image
        See `fastrnn.vision.images.open_image`.
    word : str
        A word of the model's vocabulary.
    bound : float, optional
        Largest root mean square of the change, in levels of 255. Default 8.
    max_steps : int, optional
        Largest number of gradient steps. Default 100.

    Returns
    -------
    Fooling
        The image, and what the model says about it before and after.

    Raises
    ------
    ImportError
        If PyTorch is missing.
    ValueError
        If no such image is found, the word is not in the vocabulary or is in the caption already,
        the image cannot be read, or an option is out of range.
    """
    if not 0 < bound < 255:
        raise ValueError(f"bound is {bound}; expected a number between 0 and 255")
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; expected at least 1")
    target = known_word(captioner.model, word)
    original = network_pixels(captioner, image)
    start = original.astype(np.float32)
    before = _greedy(captioner, [original])[0]
    if word in before.words:
        raise ValueError(f"word is {word!r}, which the caption has: {before.text!r}")
    refused = f"word is {word!r}; expected one that the model says within a bound of {bound:g}"
    p, shown, caption, steps = start.copy(), original, before, 0
    while word not in caption.words:
        if steps == max_steps or _root_mean_square(shown - start) > _FARTHEST * bound:
            raise ValueError(
                f"{refused}, but it says {caption.text!r} after a change of "
                f"{_root_mean_square(shown - start):.3g} in {steps} steps"
            )
        margin, gradient = _margin(captioner, shown, caption, target)
        size = float(np.sqrt(np.mean(gradient.astype(np.float64) ** 2)))
        if not size > 0:
            raise ValueError(f"word is {word!r}, whose score does not depend on this image")
        # the root mean square of the step to the border, were the scores linear
        length = (_EXTRA * _GROWTH**steps - margin) / (size * gradient.size)
        p = np.clip(p + np.clip(length, 0, _LARGEST_STEP) / size * gradient, 0, 255)
        shown = np.rint(p).astype(np.uint8)
        caption = _greedy(captioner, [shown])[0]
        steps += 1
    shown, caption = _smallest(captioner, start, p, shown, caption, word)
    if _root_mean_square(shown - start) > bound:
        raise ValueError(
            f"{refused}, but the smallest change found is {_root_mean_square(shown - start):.3g}"
        )
    change = shown - start
    return Fooling(
        image=shown, original=original, word=word, before=before.text, after=caption.text,
        change=_root_mean_square(change), largest=int(np.abs(change).max()), steps=steps,
    )  # fmt: skip


def _greedy(captioner: Captioner, images: Sequence[np.ndarray]) -> list[ImageCaption]:
    return [found.captions[0] for found in captioner(images)]


def _root_mean_square(change: np.ndarray) -> float:
    return float(np.sqrt(np.mean(change.astype(np.float64) ** 2)))


def _margin(
    captioner: Captioner, pixels: np.ndarray, caption: ImageCaption, word: int
) -> tuple[float, np.ndarray]:
    """Return how much a word's score exceeds the others at the step where that is closest.

    Returns
    -------
    margin : float
        Negative if the word is not generated there.
    gradient : float32 ndarray (S, S, 3)
        Its gradient with respect to the pixels, from 0 to 255.
    """
    model = captioner.model
    step, ids = _closest(captioner, prepared(captioner, pixels), caption, word)
    options = {"words": [word] * len(ids), "never": _never(captioner)}
    values, gradients = pixel_gradients(
        captioner, prepared(captioner, pixels)[None], ids, steps=[step], measure="margin",
        **options,
    )  # fmt: skip
    assert model.word_to_idx[END] == ids[-1]
    return float(values[0, 0]), _to_levels(captioner.network.preprocessing, gradients[0, 0])


def _never(captioner: Captioner) -> list[int]:
    known = captioner.model.word_to_idx
    return [known[UNK]] if UNK in known else []


def _closest(
    captioner: Captioner, x: np.ndarray, caption: ImageCaption, word: int
) -> tuple[int, list[int]]:
    """Return the step of a caption where a word is closest, and the caption with ``<END>``."""
    model = captioner.model
    end = model.word_to_idx[END]
    ids = [idx for idx in caption.ids if idx != end] + [end]
    features = project(captioner.pca, captioner.network.features(x[None]))
    margins, gradients = word_gradients(
        model, features, ids, words=[word] * len(ids), measure="margin", never=_never(captioner)
    )
    sizes = np.linalg.norm(project_back(captioner.pca, gradients[0]), axis=1)
    return int(np.argmin(-margins[0] / np.maximum(sizes, 1e-30))), ids


def _to_levels(preprocessing: Preprocessing, gradient: np.ndarray) -> np.ndarray:
    """Turn a gradient for the network's input (3, S, S) into one for RGB levels (S, S, 3)."""
    scaled = gradient / np.asarray(preprocessing.std, gradient.dtype)[:, None, None]
    if preprocessing.channels == "BGR":
        scaled = scaled[::-1]
    return scaled.transpose(1, 2, 0)


def _smallest(
    captioner: Captioner, start: np.ndarray, end: np.ndarray, shown: np.ndarray,
    caption: ImageCaption, word: str,
) -> tuple[np.ndarray, ImageCaption]:  # fmt: skip
    """Return the image closest to the start on the line to the end whose caption has a word."""
    low, high = 0.0, 1.0
    for _ in range(3):
        scales = np.linspace(low, high, _SCALES + 2)[1:-1]
        images = [np.rint(start + scale * (end - start)).astype(np.uint8) for scale in scales]
        captions = _greedy(captioner, images)
        found = next((k for k in range(len(images)) if word in captions[k].words), None)
        if found is None:
            low = scales[-1]
            continue
        shown, caption, high = images[found], captions[found], scales[found]
        low = scales[found - 1] if found else low
    return shown, caption


@dataclass(frozen=True)
class Visualisation:
    """An image that makes a word probable.

    Attributes
    ----------
    image : uint8 ndarray (S, S, 3)
        The image.
    word : str
        The word.
    caption : str
        The greedy caption of the image.
    log_prob : float
        Log-probability of the word on the image, in nats, at the place in the caption where it is
        most probable.
    """

    image: np.ndarray = field(repr=False)
    word: str
    caption: str
    log_prob: float


def visualise(
    captioner: Captioner,
    word: str,
    *,
    caption: str | None = None,
    l2_reg: float = 1e-3,
    learning_rate: float = 10.0,
    num_iterations: int = 100,
    blur_every: int = 4,
    blur_sigma: float = 0.7,
    smooth: tuple[float, float] = (4.0, 1.0),
    max_jitter: int = 16,
    noise: float = 0.1,
    measure: str = "score",
    seed: int = 0,
    on_step: Callable[[int], Any] | None = None,
) -> Visualisation:
    """Make an image that maximises a word's score, from noise, as the course does for a class.

    Parameters
    ----------
    captioner : Captioner
        The model with its network, which may not be an ONNX model.
    word : str
        A word of the model's vocabulary.
    caption : str, optional
        The words of the caption before the word. By default, the caption is that of the image as
        it changes, and the word's place in it is where its score is closest to the largest one.
    l2_reg : float, optional
        Weight of the squared L2 norm of the image, which is subtracted from the score. Default
        1e-3.
    learning_rate : float, optional
        L2 norm of each step, in units of the network's input. Default 10.
    num_iterations : int, optional
        Number of steps. Default 100.
    blur_every : int, optional
        The image is blurred after each such number of steps. Default 4.
    blur_sigma : float, optional
        Standard deviation of the blur, in pixels of an image of 224 x 224. Default 0.7.
    smooth : (float, float), optional
        Gradients are blurred: the standard deviation in the first and the last step, as for
        `blur_sigma`. Large forms come first, which the course's visualisation lacks. Default (4,
        1); (0, 0) takes the gradients as they are.
    max_jitter : int, optional
        The image is moved by up to this many pixels for each step. Default 16.
    noise : float, optional
        Standard deviation of the first image, in units of the network's input. Default 0.1.
    measure : {'score', 'log_prob', 'margin'}, optional
        What is maximised, see `word_gradients`. Default 'score', as in the course.
    seed : int, optional
        Seed of the noise and of the moves. Default 0.
    on_step : callable, optional
        Called as ``on_step(t)`` after step t, from 1.

    Returns
    -------
    Visualisation
        The image, and what the model says about it.

    Raises
    ------
    ImportError
        If PyTorch is missing.
    ValueError
        If a word is not in the vocabulary, or an option is out of range.
    """
    _check_options(num_iterations, blur_every, max_jitter)
    model, preprocessing = captioner.model, captioner.network.preprocessing
    target = known_word(model, word)
    prefix = None if caption is None else caption_ids(captioner, np.empty(0), caption)

    where: tuple[int, list[int]] | None = None
    if prefix is not None:
        where = len(prefix), [*prefix, target]

    def gradient(x: np.ndarray, t: int) -> np.ndarray:
        nonlocal where
        if where is None or (prefix is None and t % _CAPTION_EVERY == 0):
            where = _closest(
                captioner, x, _greedy(captioner, [_shown(x, preprocessing)])[0], target
            )
        step, ids = where
        words = [target] * len(ids)
        _, found = pixel_gradients(
            captioner, x[None], ids, words=words, steps=[step], measure=measure
        )
        return found[0, 0]

    image = _ascend(
        gradient, preprocessing, l2_reg=l2_reg, learning_rate=learning_rate,
        num_iterations=num_iterations, blur_every=blur_every, blur_sigma=blur_sigma,
        smooth=smooth, max_jitter=max_jitter, seed=seed, noise=noise, on_step=on_step,
    )  # fmt: skip
    x = prepared(captioner, image)
    found = _greedy(captioner, [image])[0]
    ids = [*found.ids, model.word_to_idx[END]] if prefix is None else [*prefix, target]
    features = project(captioner.pca, captioner.network.features(x[None]))
    values, _ = word_gradients(model, features, ids, words=[target] * len(ids))
    best = values[0].max() if prefix is None else values[0, -1]
    return Visualisation(image, word, found.text, float(best))


def _check_options(num_iterations: int, blur_every: int, max_jitter: int) -> None:
    for name, value, least in (
        ("num_iterations", num_iterations, 1),
        ("blur_every", blur_every, 1),
        ("max_jitter", max_jitter, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}")


def _ascend(
    gradient: Callable[[np.ndarray, int], np.ndarray],
    preprocessing: Preprocessing,
    *,
    l2_reg: float,
    learning_rate: float,
    num_iterations: int,
    blur_every: int,
    blur_sigma: float,
    smooth: tuple[float, float],
    max_jitter: int,
    noise: float,
    seed: int,
    on_step: Callable[[int], Any] | None = None,
) -> np.ndarray:
    """Climb a score from noise, with L2 regularisation, jitter and blur; return uint8 RGB."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(seed)
    mean, std = (
        np.asarray(values, np.float32)[:, None, None]
        for values in (preprocessing.mean, preprocessing.std)
    )
    low, high = -mean / std, (255 - mean) / std
    size = preprocessing.size
    x = (noise * random.standard_normal((3, size, size))).astype(np.float32)

    def blurred(values: np.ndarray, sigma: float) -> np.ndarray:
        sigma *= size / 224
        return gaussian_filter(values, (0, sigma, sigma)) if sigma > 0 else values

    for t in range(num_iterations):
        ox, oy = random.integers(0, max_jitter + 1, size=2)
        x = np.roll(x, (oy, ox), axis=(1, 2))
        dx = blurred(gradient(x, t), smooth[0] + (smooth[1] - smooth[0]) * t / num_iterations)
        dx = dx - 2 * l2_reg * x
        x = x + learning_rate * dx / max(float(np.linalg.norm(dx)), 1e-30)
        x = np.clip(np.roll(x, (-oy, -ox), axis=(1, 2)), low, high).astype(np.float32)
        if (t + 1) % blur_every == 0:
            x = blurred(x, blur_sigma)
        if on_step is not None:
            on_step(t + 1)
    return _shown(x, preprocessing)


def _shown(x: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Turn the network's input (3, S, S) into uint8 RGB (S, S, 3)."""
    mean, std = (
        np.asarray(values, x.dtype)[:, None, None]
        for values in (preprocessing.mean, preprocessing.std)
    )
    pixels = x * std + mean
    if preprocessing.channels == "BGR":
        pixels = pixels[::-1]
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


# -- Classes, under the course's names


def classifier_of(network: Network) -> torch.nn.Module:
    """Return a network with its head: from pixels (N, 3, S, S) to scores of classes (N, K).

    Parameters
    ----------
    network : Network
        An EfficientNet-Lite, with the 1000 classes of ImageNet.

    Returns
    -------
    torch.nn.Module
        The network in evaluation mode.

    Raises
    ------
    ImportError
        If PyTorch is missing.
    ValueError
        If the network is an ONNX model.
    """
    module: Any = network.module
    import torch

    return torch.nn.Sequential(module, module.head)


def compute_saliency_maps(X: Any, y: Any, model: Any) -> Any:
    """Compute a saliency map for each image: the largest absolute gradient over its channels.

    Parameters
    ----------
    X : torch.Tensor or float ndarray (N, 3, H, W)
        Images as the model reads them.
    y : int tensor or ndarray (N,)
        Their classes.
    model : torch.nn.Module
        From images to scores (N, K).

    Returns
    -------
    tensor or ndarray (N, H, W)
        Of the type of `X`: the gradient of the score of the image's class.
    """
    import torch

    x = _tensor(X).detach().clone().requires_grad_()
    with torch.enable_grad():
        scores = model(x)
        own = scores.gather(1, torch.as_tensor(y).long().view(-1, 1)).sum()
        (dx,) = torch.autograd.grad(own, x)
    return _like(dx.abs().amax(dim=1), X)


def make_fooling_image(
    X: Any, target_y: int, model: Any, *, learning_rate: float = 1.0, max_iter: int = 100
) -> Any:
    """Change an image by normalised gradient steps until the model takes it for another class.

    Parameters
    ----------
    X : torch.Tensor or float ndarray (1, 3, H, W)
        The image as the model reads it. It is not changed.
    target_y : int
        The class.
    model : torch.nn.Module
        From images to scores (N, K).
    learning_rate : float, optional
        L2 norm of each step. Default 1, as in the course.
    max_iter : int, optional
        Largest number of steps. Default 100.

    Returns
    -------
    tensor or ndarray (1, 3, H, W)
        Of the type of `X`: the changed image, as it is after the last step even if the model still
        takes it for another class.
    """
    import torch

    x = _tensor(X).detach().clone()
    for _ in range(max_iter):
        x.requires_grad_()
        with torch.enable_grad():
            scores = model(x)
            if int(scores[0].argmax()) == target_y:
                break
            (dx,) = torch.autograd.grad(scores[0, target_y], x)
        x = (x + learning_rate * dx / dx.norm().clamp_min(1e-30)).detach()
    return _like(x.detach(), X)


def class_visualization_update_step(
    img: torch.Tensor, model: Any, target_y: int, l2_reg: float, learning_rate: float
) -> None:
    """Change an image in place by one normalised gradient step on a class's score.

    Parameters
    ----------
    img : torch.Tensor (1, 3, H, W)
        The image.
    model : torch.nn.Module
        From images to scores (N, K).
    target_y : int
        The class.
    l2_reg : float
        Weight of the squared L2 norm of the image, which is subtracted from the score.
    learning_rate : float
        L2 norm of the step.
    """
    import torch

    x = img.detach().clone().requires_grad_()
    with torch.enable_grad():
        target = model(x)[0, target_y] - l2_reg * (x * x).sum()
        (dx,) = torch.autograd.grad(target, x)
    with torch.no_grad():
        img += learning_rate * dx / dx.norm().clamp_min(1e-30)


def create_class_visualization(
    target_y: int,
    model: Any,
    dtype: Any = None,
    *,
    preprocessing: Preprocessing | None = None,
    l2_reg: float = 1e-3,
    learning_rate: float = 25.0,
    num_iterations: int = 100,
    blur_every: int = 10,
    max_jitter: int = 16,
    seed: int = 0,
) -> np.ndarray:
    """Make an image that maximises the score of a class, from noise.

    Parameters
    ----------
    target_y : int
        The class.
    model : torch.nn.Module
        From images (N, 3, S, S) to scores (N, K).
    dtype : torch.dtype, optional
        dtype of the images that the model reads, or a tensor type such as ``torch.FloatTensor``.
        Default float32.
    preprocessing : Preprocessing, optional
        What the model reads. Default that of the course's SqueezeNet, 224 x 224.
    l2_reg, learning_rate, num_iterations, blur_every, max_jitter, seed
        See `visualise`. The defaults are those of the course, and so are the standard deviations
        of the noise, 1, and of the blur, 0.5 pixels.

    Returns
    -------
    uint8 ndarray (S, S, 3)
        The image.

    Raises
    ------
    ValueError
        If an option is out of range.
    """
    import torch

    _check_options(num_iterations, blur_every, max_jitter)
    if preprocessing is None:
        (r, g, b), (sr, sg, sb) = (255 * SQUEEZENET_MEAN).tolist(), (255 * SQUEEZENET_STD).tolist()
        preprocessing = Preprocessing(mean=(r, g, b), std=(sr, sg, sb))
    number = getattr(dtype, "dtype", dtype) or torch.float32

    def gradient(x: np.ndarray, t: int) -> np.ndarray:
        pixels = torch.from_numpy(x)[None].to(number).requires_grad_()
        with torch.enable_grad():
            (dx,) = torch.autograd.grad(model(pixels)[0, target_y], pixels)
        return dx[0].float().numpy()

    return _ascend(
        gradient, preprocessing, l2_reg=l2_reg, learning_rate=learning_rate,
        num_iterations=num_iterations, blur_every=blur_every, blur_sigma=0.5, smooth=(0, 0),
        max_jitter=max_jitter, noise=1.0, seed=seed,
    )  # fmt: skip


def _tensor(X: Any) -> torch.Tensor:
    import torch

    return X if isinstance(X, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(X))


def _like(tensor: torch.Tensor, X: Any) -> Any:
    import torch

    return tensor if isinstance(X, torch.Tensor) else tensor.numpy()
