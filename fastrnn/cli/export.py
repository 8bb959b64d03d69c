"""``fastrnn export``: write a model for other libraries."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..checkpoint import load_model
from .options import add_force, check_file, refuse_to_replace


def add_parser(commands: Any) -> Any:
    """Add the command; return its parser."""
    parser = commands.add_parser(
        "export",
        help="write a model for PyTorch or ONNX",
        description="Write the model of a run in formats that other libraries read.",
        epilog="example: fastrnn export runs/flickr8k --safetensors flickr8k.safetensors --onnx "
        "flickr8k-onnx",
    )
    parser.add_argument(
        "run_or_model", metavar="RUN", help="a run directory, or a model file (npz)"
    )
    parser.add_argument(
        "--safetensors", metavar="FILE",
        help="write a state_dict for torch.nn.Embedding, Linear and LSTM or RNN, in the "
        "safetensors format",
    )  # fmt: skip
    parser.add_argument(
        "--onnx", metavar="DIR",
        help="write project.onnx (features to the first state) and step.onnx (a word and the "
        "state to log-probabilities and the next state)",
    )  # fmt: skip
    add_force(parser)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from ..export import ONNX_FILES, save_onnx, save_safetensors

    if not (arguments.safetensors or arguments.onnx):
        raise ValueError("export needs --safetensors FILE, --onnx DIR or both")
    check_file("--safetensors", arguments.safetensors, force=arguments.force)
    if arguments.onnx and Path(arguments.onnx).exists() and not Path(arguments.onnx).is_dir():
        raise ValueError(f"--onnx is {arguments.onnx}, a file; expected a directory")
    for file in ONNX_FILES.values() if arguments.onnx and not arguments.force else ():
        refuse_to_replace("--onnx", arguments.onnx, file)
    model = load_model(arguments.run_or_model)
    if arguments.safetensors:
        save_safetensors(arguments.safetensors, model)
        print(f"written to {arguments.safetensors}")
    if arguments.onnx:
        save_onnx(arguments.onnx, model)
        print(f"written to {arguments.onnx}: {', '.join(ONNX_FILES.values())}")
    return 0
