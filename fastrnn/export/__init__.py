"""Convert models to PyTorch, safetensors and ONNX, and PyTorch models to `CaptioningRNN`.

PyTorch, safetensors and onnx are imported only by the functions that need them.
"""

from .onnx import ONNX_FILES, save_onnx, to_onnx
from .torch import from_torch, save_safetensors, to_torch, torch_module

__all__ = [
    "ONNX_FILES",
    "from_torch",
    "save_onnx",
    "save_safetensors",
    "to_onnx",
    "to_torch",
    "torch_module",
]
