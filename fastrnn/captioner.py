"""Photographs to captions: the network that made a run's features, its PCA, and its model.

`Captioner.load` reads a run directory. A run knows how the features that it was trained on were
made (``features.json``), so that the same features are computed for any photograph, and features
that do not belong to the model are refused.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from . import runs
from .classifiers.rnn import CaptioningRNN
from .data.pca import PCA
from .decoding import Decoded, beam_search
from .forcing import forced_states
from .rnn_layers import temporal_affine_forward
from .vision.images import open_image, prepare_image
from .vision.networks import Network
from .vision.source import SOURCE_FILE, FeatureSource
from .words import END, NULL, UNK

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Captioned", "Captioner", "ImageCaption", "ImageSource"]

ImageSource: TypeAlias = Any
"""A path, the bytes of a file, an open file, a PIL image, a uint8 array (H, W, 3), or a function
without arguments that returns one of these."""


@dataclass(frozen=True)
class ImageCaption:
    """A caption that a model generated.

    Attributes
    ----------
    text : str
        The words, separated by spaces.
    words : list of str
        The words, without ``<END>``.
    probabilities : list of float
        The probability of each of `words` given the words before it, over the full vocabulary.
    end_probability : float or None
        The probability of ``<END>`` after them; None if the caption was cut at the largest length.
    ids : list of int
        Word ids, with that of ``<END>`` if the caption has one: what `Captioner.alternatives`
        takes.
    log_prob : float
        Log-probability of the caption, in nats: the sum over all words and ``<END>``.
    score : float
        What captions of an image are ranked by, see `fastrnn.decoding.beam_search`.
    """

    text: str
    words: list[str]
    probabilities: list[float]
    end_probability: float | None
    ids: list[int]
    log_prob: float
    score: float

    def as_dict(self) -> dict[str, Any]:
        """Return the caption as JSON has it."""
        return {
            "caption": self.text,
            "words": self.words,
            "probabilities": self.probabilities,
            "end_probability": self.end_probability,
            "log_prob": self.log_prob,
            "score": self.score,
        }


@dataclass(frozen=True)
class Captioned:
    """An image with its captions.

    Attributes
    ----------
    name : str
        The name of the image: its path, or its number if it has none.
    captions : list of ImageCaption
        The captions, best first.
    features : float32 ndarray (D,)
        The features that the captions were generated from, after PCA.
    preview : PIL.Image.Image or None
        A small copy of the image, if one was asked for.
    """

    name: str
    captions: list[ImageCaption]
    features: np.ndarray = field(repr=False, compare=False)
    preview: Image.Image | None = field(default=None, repr=False, compare=False)

    @property
    def caption(self) -> str:
        """The text of the best caption."""
        return self.captions[0].text

    def as_dict(self) -> dict[str, Any]:
        """Return the name and the captions as JSON has them."""
        return {
            "image": self.name,
            "caption": self.caption,
            "captions": [caption.as_dict() for caption in self.captions],
        }


class Captioner:
    """A model with the network that makes its features: photographs in, captions out.

    Parameters
    ----------
    model : CaptioningRNN
        The captioning model.
    network : Network
        The network that makes the features.
    pca : PCA, optional
        What is applied to the features of the network before the model reads them.
    source : FeatureSource, optional
        How the features that the model was trained on were made.

    Attributes
    ----------
    model, network, pca, source
        The arguments.

    Raises
    ------
    ValueError
        If the network is not the one of `source`, or if the number of its features does not fit
        the PCA or the model.

    Examples
    --------
    .. code-block:: python

        captioner = Captioner.load("runs/flickr8k")
        [dog] = captioner("dog.jpg", beam=3)
        print(dog.caption)  # a dog runs through the grass
    """

    def __init__(
        self,
        model: CaptioningRNN,
        network: Network,
        pca: PCA | None = None,
        source: FeatureSource | None = None,
    ) -> None:
        if source is not None:
            source.check(network)
        width, made = network.width, "before PCA"
        if pca is not None:
            if len(pca.mean) != width:
                raise ValueError(
                    f"the network makes {width} features; expected {len(pca.mean)}, as the PCA has"
                )
            width, made = len(pca.components), "after PCA"
        expected = model.params["W_proj"].shape[0]
        if width != expected:
            raise ValueError(
                f"the network makes {width} features {made}; expected {expected}, as the model "
                "reads"
            )
        self.model = model
        self.network = network
        self.pca = pca
        self.source = source

    def __repr__(self) -> str:
        pca = "" if self.pca is None else f", {self.pca!r}"
        return f"{type(self).__name__}({self.model!r}, {self.network!r}{pca})"

    @classmethod
    def load(
        cls,
        run: str | os.PathLike[str],
        *,
        threads: int | None = None,
        onnx: str | os.PathLike[str] | None = None,
        engine: str | None = None,
    ) -> Captioner:
        """Read the model of a run, and load the network that made its features.

        Parameters
        ----------
        run : path
            A run directory, or a model file in it or in its ``checkpoints``.
        threads : int, optional
            Number of threads of the network. Default `fastrnn.get_num_threads`.
        onnx : path, optional
            Where the ONNX model is now, if the features were made by one. It must be the same
            model: its digest decides. Default where it was.
        engine : str, optional
            What computes, see `fastrnn.vision.networks.load_network`.

        Returns
        -------
        Captioner

        Raises
        ------
        FileNotFoundError
            If there is no such run, or no such file.
        ValueError
            If the run does not know how its features were made, or if they were not made by a
            network that is known here, or if a file does not belong to the run.
        ImportError
            If a package that the network needs is missing.
        """
        place = Path(run)
        model = CaptioningRNN.load(place)
        directory = place if place.is_dir() else place.parent
        if directory.name == runs.CHECKPOINT_DIRECTORY:
            directory = directory.parent
        source = _read_source(directory)
        if onnx is not None and source.network != "onnx":
            raise ValueError(
                f"{directory}: its features were made by {source.network}; expected no ONNX model, "
                f"but {onnx} was given"
            )
        try:
            network = source.load_network(onnx=onnx, engine=engine, threads=threads)
            return cls(model, network, source.pca, source)
        except FileNotFoundError as error:
            if source.network != "onnx" or onnx is not None:
                raise
            raise FileNotFoundError(
                errno.ENOENT, f"no such ONNX model, which made the features of {directory}; give "
                "its place as onnx (--network)", error.filename or source.file,
            ) from None  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from None

    # -- images to captions

    def __call__(
        self, images: ImageSource | Sequence[ImageSource], **options: Any
    ) -> list[Captioned]:
        """Caption images.

        Parameters
        ----------
        images : image or sequence of images
            Each is a path, the bytes of a file, an open file, a PIL image, or a uint8 array
            (H, W, 3). A uint8 array (N, H, W, 3) is N images.
        **options
            As for `each`: ``beam``, ``n_best``, ``max_length`` and others.

        Returns
        -------
        list of Captioned
            In the order of `images`.

        Raises
        ------
        OSError, ValueError
            If an image cannot be read, see `fastrnn.vision.images.open_image`; or if an option is
            out of range, see `fastrnn.decoding.beam_search`.
        """
        return list(self.each(_as_list(images), **options))

    def each(
        self,
        images: Iterable[ImageSource],
        *,
        names: Iterable[str] | None = None,
        beam: int = 1,
        n_best: int = 1,
        max_length: int = 30,
        suppress_unk: bool = True,
        batch_size: int = 16,
        preview: int | None = None,
        failed: Callable[[str, Exception], Any] | None = None,
        **options: Any,
    ) -> Iterator[Captioned]:
        """Caption images one batch after the other, so that any number fits into memory.

        Images are read in other threads while the network computes.

        Parameters
        ----------
        images : iterable
            As for calling the captioner. An image may also be a function without arguments that
            returns one; it is called in another thread when its turn comes.
        names : iterable of str, optional
            A name for each image; by default its path, or its number.
        beam : int, optional
            Width of the beam search; 1 (default) is greedy decoding.
        n_best : int, optional
            Number of captions of each image, at most `beam`. Default 1.
        max_length : int, optional
            Maximum number of words in a caption, including ``<END>``. Default 30.
        suppress_unk : bool, optional
            Never generate ``<UNK>``. Default True.
        batch_size : int, optional
            Number of images that the network reads at a time. Default 16.
        preview : int, optional
            Keep a small copy of each image, of at most this width and height.
        failed : callable, optional
            Called as ``failed(name, error)`` for an image that cannot be read, which is then left
            out. By default, the error is raised.
        **options
            Further options of `fastrnn.decoding.beam_search`.

        Returns
        -------
        iterator of Captioned
            One for each image, in order, as they are ready.

        Raises
        ------
        OSError, ValueError
            See calling the captioner. Wrong options are refused at once, unreadable images when
            their turn comes.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        options |= self._search_options(beam, n_best, max_length, suppress_unk)
        none = np.empty((0, self.model.params["W_proj"].shape[0]), np.float32)
        beam_search(self.model, none, **options)  # only to check the options
        named = _name(images, names)
        return self._each(named, options, batch_size, preview, failed)

    def caption_pixels(
        self,
        pixels: np.ndarray,
        *,
        beam: int = 1,
        n_best: int = 1,
        max_length: int = 30,
        suppress_unk: bool = True,
        **options: Any,
    ) -> list[Captioned]:
        """Caption images that are prepared for the network already, in one batch.

        Parameters
        ----------
        pixels : float32 ndarray (N, 3, S, S)
            What `fastrnn.vision.images.prepare_image` makes of each image, with the
            ``preprocessing`` of `network`.
        beam, n_best, max_length, suppress_unk, **options : optional
            As for `each`.

        Returns
        -------
        list of Captioned
            One for each image; their names are their numbers.

        Raises
        ------
        ValueError
            If the pixels do not fit the network, or an option is out of range.
        """
        options |= self._search_options(beam, n_best, max_length, suppress_unk)
        named = [(f"image {number}", _Prepared(row, None)) for number, row in enumerate(pixels)]
        return list(self._caption(named, options))

    def _search_options(
        self, beam: int, n_best: int, max_length: int, suppress_unk: bool
    ) -> dict[str, Any]:
        return {
            "width": beam, "n_best": n_best, "max_length": max_length,
            "suppress_unk": suppress_unk and UNK in self.model.word_to_idx,
        }  # fmt: skip

    def _each(
        self,
        images: Iterator[tuple[str, ImageSource]],
        options: dict[str, Any],
        batch_size: int,
        preview: int | None,
        failed: Callable[[str, Exception], Any] | None,
    ) -> Iterator[Captioned]:
        def read(named: tuple[str, ImageSource]) -> _Prepared | Exception:
            try:
                return self._prepare(*named, preview)
            except (OSError, ValueError) as error:
                if failed is None:
                    raise
                return error

        batch: list[tuple[str, _Prepared]] = []
        with closing(_read_ahead(read, images, batch_size)) as found:
            for (name, _), prepared in found:
                if isinstance(prepared, Exception):
                    assert failed is not None
                    failed(name, prepared)
                    continue
                batch.append((name, prepared))
                if len(batch) == batch_size:
                    yield from self._caption(batch, options)
                    batch = []
        if batch:
            yield from self._caption(batch, options)

    def _prepare(self, name: str, image: ImageSource, preview: int | None = None) -> _Prepared:
        preprocessing = self.network.preprocessing
        if callable(image):
            image = image()
        picture = open_image(image, size=preprocessing.size, name=name)
        pixels = prepare_image(picture, preprocessing)
        if preview is None:
            return _Prepared(pixels, None)
        picture.thumbnail((preview, preview))
        return _Prepared(pixels, picture)

    def _caption(
        self, batch: Sequence[tuple[str, _Prepared]], options: dict[str, Any]
    ) -> Iterator[Captioned]:
        features = self._features([prepared.pixels for _, prepared in batch])
        captions = self._split(beam_search(self.model, features, **options))
        for (name, prepared), row, found in zip(batch, features, captions, strict=True):
            yield Captioned(name, found, row, prepared.preview)

    def _split(self, decoded: Decoded) -> Iterator[list[ImageCaption]]:
        null, end = self.model.word_to_idx[NULL], self.model.word_to_idx[END]
        for image in range(len(decoded.ids)):
            found = []
            for rank in range(decoded.ids.shape[1]):
                log_prob = float(decoded.log_probs[image, rank])
                if log_prob == -np.inf:  # the search found fewer
                    continue
                ids = [idx for idx in decoded.ids[image, rank].tolist() if idx != null]
                logs = decoded.word_log_probs[image, rank, : len(ids)]
                probabilities = np.exp(logs).tolist()
                ended = bool(ids) and ids[-1] == end
                words = [self.model.idx_to_word[idx] for idx in (ids[:-1] if ended else ids)]
                found.append(
                    ImageCaption(
                        text=" ".join(words),
                        words=words,
                        probabilities=probabilities[: len(words)],
                        end_probability=probabilities[-1] if ended else None,
                        ids=ids,
                        log_prob=log_prob,
                        score=float(decoded.scores[image, rank]),
                    )
                )
            yield found

    # -- what lies between

    def features(
        self, images: ImageSource | Sequence[ImageSource], *, batch_size: int = 16
    ) -> np.ndarray:
        """Compute the features of images as the model reads them: of the network, after PCA.

        Parameters
        ----------
        images : image or sequence of images
            As for calling the captioner.
        batch_size : int, optional
            Number of images that the network reads at a time. Default 16.

        Returns
        -------
        float32 ndarray (N, D)
            The features.

        Raises
        ------
        OSError, ValueError
            If an image cannot be read.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        found, batch = [], []
        named = _name(_as_list(images), None)
        with closing(_read_ahead(lambda one: self._prepare(*one), named, batch_size)) as ready:
            for _, prepared in ready:
                batch.append(prepared.pixels)
                if len(batch) == batch_size:
                    found.append(self._features(batch))
                    batch = []
        if batch or not found:
            found.append(self._features(batch))
        return np.concatenate(found)

    def _features(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        if not pixels:
            return np.empty((0, self.model.params["W_proj"].shape[0]), np.float32)
        features = self.network.features(np.stack(pixels))
        return features if self.pca is None else self.pca.transform(features)

    def alternatives(
        self, image: ImageSource, caption: ImageCaption | Sequence[int], k: int = 5
    ) -> list[list[tuple[str, float]]]:
        """Return the most probable words at each step of a caption.

        Parameters
        ----------
        image : image or float ndarray (D,)
            The image, or its features as `Captioned.features` has them.
        caption : ImageCaption or sequence of int
            The caption, or its word ids without ``<START>``.
        k : int, optional
            Number of words at each step. Default 5.

        Returns
        -------
        list of lists of (str, float)
            For each word of the caption, and for its ``<END>`` if it has one, the `k` most
            probable words given the words before it, and their probabilities. They include
            ``<END>`` and ``<UNK>``, and need not include the word of the caption. They are computed
            in float32, also by a model that decodes in bfloat16: its captions have probabilities
            that differ a little.

        Raises
        ------
        ValueError, IndexError
            If `k` is less than 1, the features do not match the model, or an id is unknown.
        """
        if k < 1:
            raise ValueError(f"k is {k}; expected at least 1")
        features = image if _is_features(image) else self.features([image])[0]
        ids = caption.ids if isinstance(caption, ImageCaption) else [int(idx) for idx in caption]
        probabilities = self._probabilities(features, ids)
        order = _largest(probabilities, k)
        return [
            [(self.model.idx_to_word[idx], float(row[idx])) for idx in best]
            for row, best in zip(probabilities, order.tolist(), strict=True)
        ]

    def _probabilities(self, features: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        """Return the probability (T, V) of every word at each step of a caption."""
        params, V = self.model.params, len(self.model.params["W_embed"])
        wrong = next((idx for idx in ids if not 0 <= idx < V), None)
        if wrong is not None:
            raise IndexError(f"caption has the word id {wrong}; expected one in [0, {V})")
        if features.shape != params["W_proj"].shape[:1]:
            raise ValueError(
                f"features has shape {features.shape}; expected {params['W_proj'].shape[:1]}"
            )
        if not ids:
            return np.empty((0, V))
        h, _ = forced_states(self.model, features[None].astype(params["W_proj"].dtype), ids[:-1])
        scores, _ = temporal_affine_forward(h, params["W_vocab"], params["b_vocab"])
        exponents = scores[0].astype(np.float64)
        exponents -= exponents.max(axis=1, keepdims=True)
        shares = np.exp(exponents)
        return shares / shares.sum(axis=1, keepdims=True)


def _largest(rows: np.ndarray, k: int) -> np.ndarray:
    """Return the places of the `k` largest entries of each row, largest first."""
    if k < rows.shape[1]:
        # Sorting whole rows takes as long as the network needs for them.
        places = np.sort(np.argpartition(-rows, k - 1, axis=1)[:, :k], axis=1)
    else:
        places = np.tile(np.arange(rows.shape[1]), (len(rows), 1))
    order = np.argsort(-np.take_along_axis(rows, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)


@dataclass(frozen=True)
class _Prepared:
    pixels: np.ndarray
    preview: Image.Image | None


def _read_source(directory: Path) -> FeatureSource:
    """Read how the features that the model of a run reads were made."""
    source = FeatureSource.read(directory)
    if source is None:
        raise ValueError(_unknown_source(directory))
    if source.network is None:
        raise ValueError(
            f"{directory / SOURCE_FILE}: the features were given as numbers, and no network is "
            "known that makes them of images; expected a run trained on data of "
            "`fastrnn prepare --images`"
        )
    raw = runs.is_run(directory) and runs.read_settings(directory).get("raw_features")
    return source.without_pca() if raw else source


def _unknown_source(directory: Path) -> str:
    message = (
        f"{directory}: has no {SOURCE_FILE}, so it is unknown which network makes the features "
        "that its model reads; expected a run trained on data of `fastrnn prepare --images`"
    )
    data = None
    if runs.is_run(directory):
        data = runs.read_settings(directory).get("data")
    if isinstance(data, str) and Path(data, SOURCE_FILE).is_file():
        message += f" (its data directory {data} has one now: copy it with its PCA file)"
    return message


def _is_features(image: Any) -> bool:
    return isinstance(image, np.ndarray) and image.ndim == 1 and image.dtype.kind == "f"


def _as_list(images: Any) -> list[Any]:
    """Return images as a list; one image is a list of one."""
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    one = isinstance(images, str | bytes | bytearray | os.PathLike) or not (
        isinstance(images, Iterable) and not hasattr(images, "read")
    )
    return [images] if one else list(images)


def _name(
    images: Iterable[ImageSource], names: Iterable[str] | None
) -> Iterator[tuple[str, ImageSource]]:
    if names is not None:
        yield from zip(names, images, strict=True)
        return
    for number, image in enumerate(images):
        path = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", None)
        yield str(path) if path else f"image {number}", image


def _read_ahead(
    read: Callable[[Any], Any], images: Iterator[Any], ahead: int
) -> Generator[tuple[Any, Any], None, None]:
    """Yield each image with what `read` makes of it, while others are read in other threads."""
    first = list(islice(images, 2))
    if len(first) < 2:  # a thread would only cost time
        for image in first:
            yield image, read(image)
        return
    waiting: deque[tuple[Any, Future[Any]]] = deque()
    tasks: SimpleQueue[tuple[Any, Future[Any]] | None] = SimpleQueue()

    def work() -> None:
        while (task := tasks.get()) is not None:
            image, future = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(read(image))
            except BaseException as error:  # raised again where the result is asked for
                future.set_exception(error)

    def submit(image: Any) -> None:
        task = image, Future[Any]()
        waiting.append(task)
        tasks.put(task)

    # Not a ThreadPoolExecutor: a process that is interrupted would wait for its threads, which
    # may be waiting for a slow server.
    threads = [Thread(target=work, name="image", daemon=True) for _ in range(_readers())]
    try:
        for thread in threads:
            thread.start()
        for image in first:
            submit(image)
        while True:
            for image in islice(images, max(2 * ahead - len(waiting), 0)):
                submit(image)
            if not waiting:
                return
            image, future = waiting.popleft()
            yield image, future.result()
    finally:
        for _, future in waiting:
            future.cancel()
        for _ in threads:
            tasks.put(None)


def _readers() -> int:
    return min(8, (os.cpu_count() or 1) + 2)
