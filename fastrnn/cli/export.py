"""``fastrnn export``: write a model for other libraries."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..checkpoint import load_model
from .options import check_file


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
    parser.add_argument(
        "--force", action="store_true", help="replace files that exist (default: refuse)"
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from ..export import ONNX_FILES, save_onnx, save_safetensors

    if not (arguments.safetensors or arguments.onnx):
        raise ValueError("export needs --safetensors FILE, --onnx DIR or both")
    check_file("--safetensors", arguments.safetensors)
    if arguments.onnx and Path(arguments.onnx).exists() and not Path(arguments.onnx).is_dir():
        raise ValueError(f"--onnx is {arguments.onnx}, a file; expected a directory")
    if not arguments.force:
        _refuse_to_replace(arguments)
    model = load_model(arguments.run_or_model)
    if arguments.safetensors:
        save_safetensors(arguments.safetensors, model)
        print(f"written to {arguments.safetensors}")
    if arguments.onnx:
        save_onnx(arguments.onnx, model)
        print(f"written to {arguments.onnx}: {', '.join(ONNX_FILES.values())}")
    return 0


def _refuse_to_replace(arguments: argparse.Namespace) -> None:
    from ..export import ONNX_FILES

    instead = "choose another, or replace it with --force"
    if arguments.safetensors and Path(arguments.safetensors).exists():
        raise ValueError(f"--safetensors is {arguments.safetensors}, which exists; {instead}")
    for file in ONNX_FILES.values() if arguments.onnx else ():
        if Path(arguments.onnx, file).exists():
            raise ValueError(f"--onnx is {arguments.onnx}, which has {file}; {instead}")
